"""Curves of several data sets: what share of the best teacher a number of bytes keeps, in two metrics."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from htd_jax.errors import UserError, shown
from htd_jax.studies.frontier import Point, grouped
from htd_jax.studies.tables import Cell, Table

# The metrics that are drawn, and the kinds: those of the same bytes, and those of four times as many.
METRICS = ("recall@50", "ndcg@10")
STYLES = {
    "best": ("#0072b2", "-", "o", "best"),
    "opq": ("#d55e00", "-", "s", "OPQ of the teacher"),
    "pq": ("#a58f12", "--", "s", "PQ of the teacher"),
    "als": ("#009e73", ":", "^", "iALS, float32"),
    "svd": ("#9322fb", ":", "v", "SVD of the teacher, float32"),
    "plain": ("#767676", ":", "x", "plain student (BPR), float32"),
}


def read_points(path: Path) -> list[Point]:
    """Returns the models of a frontier, from its `frontier.json`.

    Raises:
      UserError: if it cannot be read, or is something else.
    """
    try:
        points = [Point(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
        if not points:
            raise ValueError("empty")
        return points
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError):
        raise UserError(f"{shown(path)}: not the models of a frontier") from None


def shares(points: Sequence[Point], metric: str) -> list[dict[str, Any]]:
    """Returns, for each model, its test metric averaged over seeds, and the share of the best teacher's.

    Raises:
      UserError: if the metric is missing, or there is no teacher.
    """
    if missing := [point for point in points if metric not in point.test]:
        known = ", ".join(name for name in missing[0].test if name.startswith(("recall", "ndcg")))
        raise UserError(f"`metrics` {metric} was not measured; known: {known}")
    teachers = [point.test[metric] for point in points if point.kind == "teacher"]
    if not teachers:
        raise UserError("a frontier without a teacher; run its study again")
    best = statistics.mean(teachers)
    return [
        {"kind": kind, "what": what, "bytes": size, "value": value, "share": value / best, "seeds": len(own)}
        for (size, kind, what), own in grouped(points)
        for value in [statistics.mean(point.test[metric] for point in own)]
    ]


def draw(frontiers: Mapping[str, Sequence[Point]], figure: Any, metrics: Sequence[str] = METRICS) -> None:
    """Draws a row per metric and a column per data set: the share of the teacher's metric by bytes per row.

    Args:
      frontiers: the models of each data set, by its name.
      figure: a matplotlib figure.
      metrics: the metrics.
    """
    rows = figure.subplots(len(metrics), len(frontiers), squeeze=False, sharex=True, sharey=True)
    handles: dict[str, Any] = {}
    for row, (axes, metric) in enumerate(zip(rows, metrics)):
        for place, (name, points) in zip(axes, frontiers.items()):
            found = shares(points, metric)
            for kind, (colour, line, marker, title) in STYLES.items():
                own = sorted((x["bytes"], x["share"]) for x in found if x["kind"] == kind)
                if own:
                    (handles[title],) = place.plot(
                        *zip(*own), color=colour, linestyle=line, marker=marker, markersize=4, linewidth=1.6
                    )
            place.axhline(1, color="#444444", linewidth=0.8, linestyle=(0, (4, 3)))
            place.set_xscale("log")
            place.set_xticks([5, 10, 20, 50, 100, 200], ["5", "10", "20", "50", "100", "200"], minor=False)
            place.minorticks_off()
            place.grid(alpha=0.25)
            place.spines[["top", "right"]].set_visible(False)
            if row == 0:
                place.set_title(name, fontsize=10)
            if row == len(metrics) - 1:
                place.set_xlabel("bytes per row")
        axes[0].set_ylabel(f"{metric}, share of teacher")
        axes[0].set_ylim(0, 1.12)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(len(handles), 2 * len(frontiers)),
        fontsize=8,
    )


def table(frontiers: Mapping[str, Sequence[Point]], metrics: Sequence[str] = METRICS) -> Table:
    """Returns a table: for each data set and number of bytes, every model's metrics."""
    lines: list[tuple[Cell, ...]] = []
    for name, points in frontiers.items():
        by_metric = [shares(points, metric) for metric in metrics]
        for entries in zip(*by_metric):
            first = entries[0]
            values = [f"{entry['value']:.4f}" for entry in entries]
            kept = ", ".join(f"{entry['share']:.0%}" for entry in entries)
            model = f"{first['kind']}, {first['what']}"
            lines.append((name, f"{first['bytes']:g}", model, *values, kept, str(first["seeds"])))
    return Table("curves", "Shares", ("data", "bytes", "model", *metrics, "share", "seeds"), tuple(lines))
