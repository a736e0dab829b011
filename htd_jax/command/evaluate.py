"""Measures any model on held-out items, with intervals over users, and tests it against another one.

A model is a run folder, an export, two tables, or top-k lists, as for htd-jax train --teacher. What a list leaves out
counts as not found.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval
from rich.console import Console
from rich.table import Table

from htd_jax.command.flags import parse_with_data
from htd_jax.errors import UserError, as_flags, shown
from htd_jax.escaping import markup
from htd_jax.evaluation import shown_metrics
from htd_jax.evaluation.settings import ProtocolName
from htd_jax.pipeline import Measured, RunFolder, RunRequest
from htd_jax.pipeline import evaluate as measure
from htd_jax.studies.tables import FORMATS, write_table
from htd_jax.studies.tables import Table as FileTable

ENDINGS = (".json", *FORMATS)


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures any model on held-out items."""

    model: tuple[Path, ...]
    """Model to measure: a run folder; an export; two .npy tables (users, items), or one .npz, .safetensors or .pth; or
    a file of top-k lists (user, item, and score or rank)."""
    against: tuple[Path, ...] = ()
    """Second model, any of these, which the first is compared with by a paired test. Default: none."""
    phase: str | None = None
    """Phase of a run: teacher, student, or the method's name. Default: the distilled student."""
    user_ids: Path | None = None
    """File with the user ids of the rows of tables. Default: rows are in the order of the data's ids."""
    item_ids: Path | None = None
    """File with the item ids of the rows of tables. Default: rows are in the order of the data's ids."""
    part: Literal["test", "valid"] = "test"
    """Held-out part to measure on."""
    protocol: ProtocolName | None = None
    """Ranks among all items that the user has not seen (full), or among a sample of them (sampled). Default: that of
    the run, or full."""
    candidates: Annotated[int, Ge(1)] | None = None
    """Number of unseen items per user that the sampled protocol ranks against. Default: that of the run, or 499."""
    cutoffs: tuple[Annotated[int, Ge(1)], ...] = ()
    """Cutoffs k of every metric. Default: those of the run, or 10 20 50."""
    level: Annotated[float, Interval(ge=0.5, le=0.999)] = 0.95
    """Level of the bootstrap intervals over users."""
    samples: Annotated[int, Ge(100)] = 1000
    """Number of samples of users of the bootstrap."""
    to: Path | None = None
    """File to write every metric to, too: .json, .csv, .md or .tex (booktabs)."""


def evaluate(arguments: Sequence[str], prog: str = "htd-jax evaluate") -> None:
    from htd_jax.command import use_devices

    options, request = parse_with_data(Options, arguments, prog=prog, description=__doc__ or "")
    if options.to and options.to.suffix.lower() not in ENDINGS:
        raise UserError(f"`to` {shown(options.to)}: must end in {', '.join(ENDINGS)}")
    use_devices()
    data = _data(options, request, arguments)
    for note in data.notes if data else ():
        print(f"note: {as_flags(note)}")
    asked: dict[str, Any] = {name: getattr(options, name) for name in ("protocol", "candidates", "cutoffs")}
    measured = measure(
        _model(options.model),
        data,
        against=_model(options.against) if options.against else None,
        user_ids=options.user_ids,
        item_ids=options.item_ids,
        part=options.part,
        level=options.level,
        samples=options.samples,
        phase=options.phase,
        **{name: value for name, value in asked.items() if value},
    )
    for note in measured.notes:
        print(f"note: {as_flags(note)}")
    show(measured)
    if options.to:
        if options.to.suffix.lower() in (".json", ".csv"):
            measured.save(options.to)
        else:
            head, rows = _cells(measured, list(measured.metrics))
            write_table(options.to, FileTable("metrics", measured.model, tuple(head), tuple(map(tuple, rows))))
        print(f"metrics: {options.to}")


def _data(options: Options, request: RunRequest, arguments: Sequence[str]) -> Any:
    """Returns the data set that the flags name; None for that of the run.

    Raises:
      UserError: if none is named and the model is no run.
    """
    if request.split_given or any(argument.partition("=")[0] == "--dataset" for argument in arguments):
        return request.load_dataset()
    if len(options.model) != 1 or not RunFolder(options.model[0]).config.is_file():
        raise UserError("set `dataset`, or `split_files`: only a run folder names the data that it is measured on")
    return None


def _model(paths: tuple[Path, ...]) -> Any:
    return paths[0] if len(paths) == 1 else paths


def show(measured: Measured) -> None:
    """Prints the metrics that tables show."""
    names = shown_metrics(measured.evaluation.cutoffs, measured.metrics)
    head, rows = _cells(measured, names)
    table = Table()
    for n, name in enumerate(head):
        table.add_column(markup(name), justify="right" if n else "left")
    for row in rows:
        table.add_row(*map(markup, row))
    print(f"{shown(measured.model)}: {measured.part} of {shown(measured.data[0])}, {measured.users:,} users")
    if measured.other:
        print(f"against {shown(measured.other)}")
    Console(width=None if os.isatty(1) else 120).print(table)


def _cells(measured: Measured, names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Returns the head and the rows of a table of some metrics."""
    interval = f"{measured.level:.4g}".lstrip("0")
    head = ["metric", "value", f"{interval} interval"]
    head += ["against", "difference", f"{interval} interval", "p"] if measured.differences else []
    rows = []
    for row in measured.rows(names):
        cells = [row["metric"], f"{row['value']:.4f}", f"{row['low']:.4f} to {row['high']:.4f}"]
        if measured.differences:
            ends = f"{row['difference_low']:+.4f} to {row['difference_high']:+.4f}"
            cells += [f"{row['other']:.4f}", f"{row['difference']:+.4f}", ends, f"{row['p']:.2g}"]
        rows.append(cells)
    return head, rows
