"""What a run shows: a table and a picture."""

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from htd_jax.errors import shown
from htd_jax.pipeline import RunResult, describe
from htd_jax.writing import whole


def print_table(result: RunResult) -> None:
    """Teacher, student, distilled student, and the share of the gap closed, in test: a row a phase, or where the
    terminal is too narrow for that, a column."""
    config, results = result.config, result.results
    when = f"best epoch in validation {config.evaluation.metric}" if config.training.patience else "last epoch"
    metrics = [f"{name}@{k}" for name in ("recall", "ndcg") for k in config.evaluation.cutoffs]
    phases = results["phases"]
    rows = [["", "parameters", *metrics]]
    for phase, entry in phases.items():
        figures = [f"{entry['final']['test'][name]:.4f}" for name in metrics]
        rows.append([describe(phase), f"{entry['parameters']:,}", *figures])
        if "beside" in entry["final"]:
            taught = [f"{entry['final']['beside']['test'][name]:.4f}" for name in metrics]
            rows.append(["the teacher beside it", "", *taught])
    if closed := results["gap_closed"]:
        rows.append(["gap closed", "", *("-" if closed[name] is None else f"{closed[name]:.0%}" for name in metrics)])
    console = Console(width=None if os.isatty(1) else 120)
    wide = sum(max(len(row[i]) for row in rows) + 3 for i in range(len(rows[0]))) + 1 <= console.width
    if not wide:
        rows = [list(column) for column in zip(*rows, strict=True)]
    table = Table()
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if number else "left", no_wrap=wide)
    for number, row in enumerate(rows[1:]):
        table.add_row(*row, end_section=wide and bool(closed) and number == len(rows) - 3)
    what = config.what
    print(f"{what.dataset}, {what.model}, seed {what.seed}: test, {when}")  # as a title it would be wrapped
    console.print(table)


def draw_curves(result: RunResult) -> None:
    """`curves.png`: test recall at the last cutoff against epoch, a line a phase, level where nothing is trained."""
    save_picture(result.config.folder / "curves.png", lambda figure: _draw_curves(result, figure), (7, 4.2))


def save_picture(path: Path, draw: Callable[[Any], None], size: tuple[float, float]) -> bool:
    """A PNG of what `draw` does to a matplotlib figure; whether there is one.

    What goes wrong here costs the picture and a line, not what was computed.
    """
    # Not pyplot: a figure of its own needs no window, nor the backend that a notebook names to what it starts.
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a folder for its cache that it had to make
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        with whole(path) as partial:
            figure.savefig(partial, dpi=150, format="png")
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        print(f"note: no picture in {shown(path)} ({reason[0]})", file=sys.stderr)
        return False
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return True


def _draw_curves(result: RunResult, figure: Any) -> None:
    config, records = result.config, result.records
    metric = f"recall@{max(config.evaluation.cutoffs)}"
    axes = figure.subplots()
    colours = {"teacher": "#555555", "student": "#c44e52"}
    last = max(record["epoch"] for of_phase in records.values() for record in of_phase)
    labels = []
    for phase, of_phase in records.items():
        epochs = [record["epoch"] for record in of_phase]
        recall = [record["test"][metric] for record in of_phase]
        colour = colours.get(phase, "#1f77b4")
        if not of_phase[0]["terms"]:  # nothing was trained
            epochs, recall = [0, last], recall * 2
        axes.plot(epochs, recall, marker="o", markersize=3.5, linewidth=1.8, color=colour)
        labels.append((recall[-1], epochs[-1], f"{describe(phase)}  {recall[-1]:.4f}", colour))
    top = 1.05 * max(record["test"][metric] for of_phase in records.values() for record in of_phase)
    lowest = -top
    for height, epoch, text, colour in sorted(labels):
        lowest = max(height, lowest + 0.05 * top)  # above the label under it
        where: Any = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
        axes.annotate(text, (epoch, lowest), (8, 0), color=colour, **where)
    title = f"{config.what.dataset}, {config.what.model}"
    axes.set(xlabel="epoch", ylabel=f"test {metric}", title=title, ylim=(0, max(top, lowest) or 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.margins(x=0.02)
