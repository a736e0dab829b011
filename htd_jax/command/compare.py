"""Shows finished runs side by side: the settings that differ, and their results."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from htd_jax.command.parsing import import_trusted, parse
from htd_jax.command.report import teacher_of
from htd_jax.errors import UserError, shown
from htd_jax.escaping import markup
from htd_jax.evaluation import shown_metrics
from htd_jax.pipeline import TEACHER, RunFolder, flat, label
from htd_jax.studies.tables import Table as FileTable
from htd_jax.studies.tables import check_table_path, write_table

# Settings of the measurement, in which compared runs agree, and the error if they do not.
MEASUREMENT = {
    "data": "is on other data",
    "protocol": "has another protocol",
    "candidates": "has another number of candidates",
}

ROLES = {"teacher": "teacher", "student": "student", "distilled": "distilled student"}


@dataclasses.dataclass
class Options:
    """Shows finished runs side by side, a column per run: the settings that differ, and each phase's test results."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of two or more runs."""
    to: Path | None = None
    """File to write the table to, too: .md, .csv or .tex (booktabs)."""
    trust_code: tuple[str, ...] = ()
    """Modules, or package.module:Class, that are imported because runs name models or methods of theirs, and
    package.module:function, a metric to add. Their code runs; without this flag, a file's name runs none."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
      name: the title of its column.
      settings: its settings by name: `htd.groups`.
      results: what `results.json` holds.
    """

    name: str
    settings: dict[str, Any]
    results: dict[str, Any]

    @property
    def cutoffs(self) -> list[int]:
        """The k of its metrics."""
        found: list[int] = self.settings["cutoffs"]
        return found

    def phase(self, role: str) -> dict[str, Any]:
        """Returns the results of a phase, one of `ROLES`; empty if the run does not have it."""
        found: dict[str, Any] = self.results["phases"].get(self.results["method"] if role == "distilled" else role, {})
        return found


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: its title, a cell per run, and the columns of the best."""

    name: str
    cells: tuple[str, ...]
    best: tuple[int, ...] = ()


def compare(arguments: Sequence[str], prog: str = "htd-jax compare") -> None:
    options = parse(Options, arguments, prog=prog, description=__doc__)
    check_table_path(options.to)
    folders = tuple(dict.fromkeys(options.runs))
    import_trusted(arguments)
    if len(folders) < 2:
        raise UserError("name the folders of two or more finished runs")
    runs = read_runs(folders)
    cutoffs = common_cutoffs(runs)
    for run in runs:
        if others := [k for k in run.cutoffs if k not in cutoffs]:
            left = ", ".join(map(str, others))
            print(f"note: cutoffs {left} of {run.name} are left out, because not all runs have them")
    print(f"{shown(str(runs[0].results['dataset']))}: test")
    found = sections(runs, cutoffs)
    Console(width=None if os.isatty(1) else 120).print(make_table(runs, found))
    if options.to:
        write_table(options.to, file_table(runs, found))


def read_runs(folders: Sequence[Path]) -> list[Finished]:
    """Returns finished runs on the same data, measured in the same way.

    Raises:
      UserError: if a folder holds no finished run, or one that is measured differently.
    """
    ambiguous = len({folder.name for folder in folders}) < len(folders)
    runs = [_read(folder, shown(folder if ambiguous else folder.resolve().name)) for folder in folders]
    first, *others = runs
    for run in others:
        for name, problem in MEASUREMENT.items():
            if run.settings.get(name) != first.settings.get(name):
                raise UserError(f"{run.name} {problem} than {first.name}, so their results cannot be compared")
    return runs


def _read(folder: Path, name: str) -> Finished:
    run = RunFolder(folder)
    settings = flat(run.read_config())
    if not {"data", "cutoffs"} <= settings.keys():
        raise UserError(f"{shown(run.config)}: not the settings of a run")
    return Finished(name, settings, run.read_results())


def common_cutoffs(runs: Sequence[Finished]) -> list[int]:
    """Returns the cutoffs that all runs have.

    Raises:
      UserError: if there are none.
    """
    common = [k for k in runs[0].cutoffs if all(k in run.cutoffs for run in runs)]
    if not common:
        each = "; ".join(f"{run.name} has {', '.join(map(str, run.cutoffs))}" for run in runs)
        raise UserError(f"the runs have no cutoff in common: {each}")
    return common


def sections(runs: Sequence[Finished], cutoffs: Sequence[int]) -> list[list[Row]]:
    """Returns the rows of settings that differ, of each phase, and of the gap closed."""
    metrics = shown_metrics(cutoffs)
    found = [differences(runs)]
    found += [_phase_rows(role, runs, metrics) for role in ROLES if any(run.phase(role) for run in runs)]
    closed = [run.results["gap_closed"] for run in runs]
    shares = [_row(name, [shares.get(name) for shares in closed], "{:.0%}".format, max) for name in metrics]
    if any(closed):
        found.append([Row("gap closed", ("",) * len(runs)), *(row for row in shares if any(row.cells))])
    return [section for section in found if section]


def differences(runs: Sequence[Finished]) -> list[Row]:
    """Returns a row per setting that differs; the cell of a run without it is empty."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = [Row(name, tuple(_text(run.settings.get(name)) for run in runs)) for name in names]
    return [row for row in rows if len(set(row.cells)) > 1]


def _phase_rows(role: str, runs: Sequence[Finished], metrics: Sequence[str]) -> list[Row]:
    phases = [run.phase(role) for run in runs]
    distilled = role == "distilled"
    names = [label(run.results["method"]) if distilled and phase else "" for run, phase in zip(runs, phases)]
    if role == TEACHER:  # a run may have chosen its own
        names = [teacher_of(run.results) if phase else "" for run, phase in zip(runs, phases)]
    tests = [phase["final"]["test"] if phase else {} for phase in phases]
    seconds = [phase["seconds_per_epoch"] if phase.get("epochs") else None for phase in phases]
    return [
        Row(ROLES[role], tuple(names)),
        *(_row(name, [test.get(name) for test in tests], "{:.4f}".format, max) for name in metrics),
        _row("parameters", [phase.get("parameters") for phase in phases], "{:,}".format),
        _row("epochs", [phase.get("epochs") for phase in phases], str),
        _row("seconds per epoch", seconds, "{:.3g}".format, min),
    ]


def _row(
    name: str, values: Sequence[Any], show: Callable[[Any], str], better: Callable[[Sequence[Any]], Any] | None = None
) -> Row:
    """Returns a row; its best cells are marked unless all are equal."""
    cells = tuple("" if value is None else show(value) for value in values)
    known = [value for value in values if value is not None]
    if better is None or len({show(value) for value in known}) < 2:
        return Row(f"  {name}", cells)
    best = show(better(known))
    return Row(f"  {name}", cells, tuple(i for i, cell in enumerate(cells) if cell == best))


def _text(value: Any) -> str:
    return "" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)


def make_table(runs: Sequence[Finished], found: Sequence[Sequence[Row]]) -> Table:
    """Returns the table, with the best cells in bold."""
    table = Table()
    table.add_column("", no_wrap=True)
    for run in runs:
        table.add_column(markup(run.name), justify="right", overflow="fold")
    for section in found:
        for row in section:
            cells = [f"[bold]{markup(x)}[/bold]" if i in row.best else markup(x) for i, x in enumerate(row.cells)]
            table.add_row(markup(row.name), *cells, end_section=row is section[-1])
    return table


def file_table(runs: Sequence[Finished], found: Sequence[Sequence[Row]]) -> FileTable:
    """Returns the table for a file, with the section of each row in the first column."""
    rows: list[tuple[str, ...]] = []
    best: set[tuple[int, int]] = set()
    for section in found:
        indented = any(row.name.startswith("  ") for row in section)
        for row in section:
            best |= {(len(rows), column + 2) for column in row.best}
            name = row.name.strip() if row.name.startswith("  ") or not indented else ""
            if any(row.cells):
                rows.append((section[0].name if indented else "settings", name, *row.cells))
    head = ("", "", *(run.name for run in runs))
    return FileTable("compare", "Runs", head, tuple(rows), best=frozenset(best))
