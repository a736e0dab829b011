"""Finished runs side by side: what differs in their settings, and what each came to."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from htd_jax.command.finished import read_results
from htd_jax.command.flags import parse
from htd_jax.errors import UserError, shown
from htd_jax.pipeline import describe, flat

# Runs that differ in one of these are measured by different yardsticks.
YARDSTICKS = {
    "data": "is on other data",
    "protocol": "has another protocol",
    "candidates": "has another number of candidates",
}

# Of several values, the best; None where none is.
Better = Callable[[Sequence[Any]], Any] | None


@dataclasses.dataclass
class Options:
    """Finished runs side by side, a column a run: the settings that differ, and what each phase came to in test."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Their folders, two or more."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run that has ended.

    Attributes:
      name: of its column.
      settings: by the names of their flags.
      results: what `results.json` holds.
    """

    name: str
    settings: dict[str, Any]
    results: dict[str, Any]

    @property
    def cutoffs(self) -> list[int]:
        found: list[int] = self.settings["cutoffs"]
        return found

    def phase(self, role: str) -> dict[str, Any] | None:
        """What a phase came to: that of the teacher, of the plain student, or of the helped one."""
        found: dict[str, Any] = self.results["phases"]
        return found.get(self.results["method"] if role == "helped" else role)


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
      name: what it says.
      cells: one a run, as they are shown.
      best: the columns of the best.
    """

    name: str
    cells: tuple[str, ...]
    best: tuple[int, ...] = ()


def compare(arguments: Sequence[str], prog: str = "htd-jax compare") -> None:
    folders = tuple(dict.fromkeys(parse(Options, arguments, prog=prog, description=__doc__).runs))
    if len(folders) < 2:
        raise UserError("name the folders of two finished runs or more")
    runs = read_runs(folders)
    cutoffs = common_cutoffs(runs)
    for run in runs:
        if left := [k for k in run.cutoffs if k not in cutoffs]:
            print(f"note: {run.name} has cutoffs {', '.join(map(str, left))} that not all have; they are left out")
    print(f"{runs[0].results['dataset']}: test")
    Console(width=None if os.isatty(1) else 120).print(table_of(runs, sections(runs, cutoffs)))


def read_runs(folders: Sequence[Path]) -> list[Finished]:
    """Finished runs on the same data, measured alike.

    Raises:
      UserError: a folder of none, or of one that is measured otherwise.
    """
    alike = len({folder.name for folder in folders}) < len(folders)
    runs = [_read(folder, shown(folder if alike else folder.resolve().name)) for folder in folders]
    first, *others = runs
    for run in others:
        for name, what in YARDSTICKS.items():
            if run.settings.get(name) != first.settings.get(name):
                raise UserError(f"{run.name} {what} than {first.name}: their figures say nothing of one another")
    return runs


def _read(folder: Path, name: str) -> Finished:
    try:
        settings = flat(json.loads((folder / "config.json").read_text()))
        settings["data"], settings["cutoffs"]
    except FileNotFoundError:
        raise UserError(f"{shown(folder)}: no run folder: there is no config.json of a run in it") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{shown(folder / 'config.json')}: not the settings of a run, or damaged") from None
    try:
        return Finished(name, settings, read_results(folder))
    except FileNotFoundError:
        raise UserError(f"{shown(folder)}: not finished; the command that began it goes on") from None
    except ValueError as error:
        raise UserError(f"{shown(folder / 'results.json')}: damaged ({error})") from None


def common_cutoffs(runs: Sequence[Finished]) -> list[int]:
    """Raises UserError if the runs have none in common."""
    common = [k for k in runs[0].cutoffs if all(k in run.cutoffs for run in runs)]
    if not common:
        said = "; ".join(f"{run.name} has {', '.join(map(str, run.cutoffs))}" for run in runs)
        raise UserError(f"no cutoff is common to all: {said}")
    return common


def sections(runs: Sequence[Finished], cutoffs: Sequence[int]) -> list[list[Row]]:
    """Settings that differ; teacher, student and helped student; the gap that is closed."""
    metrics = [f"{name}@{k}" for name in ("recall", "ndcg") for k in cutoffs]
    found = [differences(runs)]
    for role in ("teacher", "student", "helped"):
        of = [run.phase(role) for run in runs]
        if any(of):
            found.append(_of_phase(role, runs, of, metrics))
    closed = [run.results["gap_closed"] for run in runs]
    shares = [_row(name, [one.get(name) for one in closed], "{:.0%}".format, max) for name in metrics]
    if any(closed):
        found.append([Row("gap closed", ("",) * len(runs)), *(row for row in shares if any(row.cells))])
    return [section for section in found if section]


def differences(runs: Sequence[Finished]) -> list[Row]:
    """A row a setting that is not the same in all of them; one that a run does not have is empty."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    cells = {name: tuple(_said(run.settings.get(name)) for run in runs) for name in names}
    return [Row(name, of) for name, of in cells.items() if len(set(of)) > 1]


def _of_phase(role: str, runs: Sequence[Finished], of: Sequence[Any], metrics: Sequence[str]) -> list[Row]:
    names = [describe(run.results["method"]) if role == "helped" and one else "" for run, one in zip(runs, of)]
    figures = [one["final"]["test"] if one else {} for one in of]
    cells = lambda name: [one[name] if one else None for one in of]
    seconds = [one["seconds_per_epoch"] if one and one["epochs"] else None for one in of]
    return [
        Row("helped student" if role == "helped" else role, tuple(names)),
        *(_row(name, [test.get(name) for test in figures], "{:.4f}".format, max) for name in metrics),
        _row("parameters", cells("parameters"), "{:,}".format),
        _row("epochs", cells("epochs"), str),
        _row("seconds an epoch", seconds, "{:.3g}".format, min),
    ]


def _row(name: str, values: Sequence[Any], show: Callable[[Any], str], better: Better = None) -> Row:
    """Without a best one where all are alike, or there is nothing to compare."""
    cells = tuple("" if value is None else show(value) for value in values)
    known = [value for value in values if value is not None]
    if better is None or len(known) < 2 or len({show(value) for value in known}) < 2:
        return Row(f"  {name}", cells)
    best = show(better(known))
    return Row(f"  {name}", cells, tuple(i for i, cell in enumerate(cells) if cell == best))


def _said(value: Any) -> str:
    return "" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)


def table_of(runs: Sequence[Finished], found: Sequence[Sequence[Row]]) -> Table:
    table = Table()
    table.add_column("", no_wrap=True)
    for run in runs:
        table.add_column(escape(run.name), justify="right", overflow="fold")
    for section in found:
        for row in section:
            cells = [f"[bold]{escape(x)}[/bold]" if i in row.best else escape(x) for i, x in enumerate(row.cells)]
            table.add_row(escape(row.name), *cells, end_section=row is section[-1])
    return table
