"""Describes a data set: counts, density, long tail, and a picture.

The flags for reading a file are those of htd-jax train; see htd-jax train --help data.
"""

import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from htd_jax import data
from htd_jax.command.parsing import parse
from htd_jax.command.report import save_picture
from htd_jax.data import Dataset, Reading, Summary
from htd_jax.errors import as_flags, shown
from htd_jax.studies.tables import Table as FileTable
from htd_jax.studies.tables import check_table_path, write_table


@dataclasses.dataclass
class Options:
    """Describes a data set in a table and a picture."""

    dataset: str = "synthetic"
    """Name of a data set, or path of a file, of a folder of files, or a pattern in quotes ('logs/part-*.parquet')."""
    picture: Path | None = None
    """File of the picture: .png, .pdf or .svg. Default: <dataset>-summary.png in the current folder."""
    to: Path | None = None
    """File to write the counts to, too: .md, .csv or .tex (booktabs)."""
    reading: Annotated[Reading, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Reading)


def summary(arguments: Sequence[str], prog: str = "htd-jax summary") -> None:
    options = parse(Options, arguments, prog=prog, description=__doc__)
    check_table_path(options.to)
    named = not data.is_path(options.dataset)
    dataset = data.read(options.dataset) if named else data.read_log(Path(options.dataset), options.reading)
    for note in dataset.notes:
        print(f"note: {as_flags(note)}")
    counts = data.summarise(dataset)
    rows = summary_rows(dataset, counts)
    print_summary(dataset, rows)
    if options.to:
        write_table(options.to, FileTable("summary", dataset.name, ("", dataset.name), tuple(rows)))
    path = options.picture or Path(f"{dataset.name}-summary.png")
    if save_picture(path, lambda figure: draw_summary(dataset, counts, figure), (9, 3.6)):
        print(f"picture: {path}")


def print_summary(dataset: Dataset, rows: Sequence[tuple[str, str]]) -> None:
    """Prints the counts of a data set."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(name, value)
    print(shown(dataset.name))
    Console().print(table)


def summary_rows(dataset: Dataset, counts: Summary) -> list[tuple[str, str]]:
    """Returns the counts of a data set by name."""
    quantiles = lambda x: ", ".join(f"{q:,.0f}" for q in np.quantile(x, [0, 0.25, 0.5, 0.75, 1]))
    rows = [
        ("users", f"{counts.users:,}"),
        ("items", f"{counts.items:,}"),
        ("interactions", f"{counts.interactions:,}"),
        ("  train, valid, test", ", ".join(f"{n:,}" for n in counts.parts)),
        ("density", f"{counts.density:.4%}"),
        ("items per user: least, quartiles, most", quantiles(counts.per_user)),
        ("users per item: least, quartiles, most", quantiles(counts.per_item)),
        ("share of the most popular fifth of the items", f"{counts.head:.0%}"),
        ("Gini of the items", f"{counts.gini:.2f}"),
        ("users without training interactions", f"{counts.cold_users:,}"),
        ("items without training interactions", f"{counts.cold_items:,}"),
    ]
    if dataset.span:
        first, last = dataset.span
        rows.append(("from", moment(first)))
        rows.append(("to", moment(last)))
    return rows


def moment(number: float) -> str:
    """Returns the date of seconds or milliseconds since 1970, if it is between 1980 and 2100; else the number."""
    for unit in (1, 1000):
        if 3.15e8 <= number / unit < 4.1e9:
            return datetime.datetime.fromtimestamp(number / unit, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{number:g}"


def draw_summary(dataset: Dataset, counts: Summary, figure: Any) -> None:
    """Draws the numbers of interactions of items and users."""
    from matplotlib.ticker import LogFormatter

    left, right = figure.subplots(1, 2)
    for axes, values, entity, colour in (
        (left, counts.per_item, "item", "#1f77b4"),
        (right, counts.per_user, "user", "#c44e52"),
    ):
        axes.plot(np.arange(1, len(values) + 1), np.maximum(values, 0.5), color=colour, linewidth=1.8)
        axes.set(xscale="log", yscale="log", xlabel=f"{entity}, most interactions first", ylabel="interactions")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:,.0f}")
            axis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
        axes.set_title(f"{len(values):,} {entity}s")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    fifth = max(1, counts.items // 5)
    left.axvspan(left.get_xlim()[0], fifth, color="#1f77b4", alpha=0.08, linewidth=0)
    share = f"the most popular fifth\nof the items has {counts.head:.0%}"
    left.annotate(share, (0.03, 0.04), xycoords="axes fraction", fontsize=9, color="#1f77b4")
    left.margins(x=0)
    figure.suptitle(f"{dataset.name}: {counts.interactions:,} interactions, density {counts.density:.3%}", fontsize=11)
