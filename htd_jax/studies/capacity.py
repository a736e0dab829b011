"""Capacity: methods at students of 5% to 100% of the teacher's width."""

from collections.abc import Sequence
from typing import Any

from htd_jax.studies import charts, comparison
from htd_jax.studies.plan import Plan, Row, plain_student
from htd_jax.studies.report import UNFINISHED, Chart, Part, Report, mean_and_band
from htd_jax.studies.tables import Cell, Table

QUESTION = "How small can a student be, and which method suits which size?"

# Shares of the teacher's width, as in the paper.
SHARES = (0.05, 0.1, 0.5, 1.0)


def widths(shares: Sequence[float], teacher_dim: int) -> tuple[int, ...]:
    """Returns the students' different widths, ascending.

    >>> widths((0.05, 0.1, 1.0), 200)
    (10, 20, 200)
    """
    return tuple(sorted({max(1, round(share * teacher_dim)) for share in shares}))


def table(plan: Plan, every: Sequence[Row]) -> Table:
    """Returns a table with a row per method and a column per width."""
    metric, width = plan.metrics[0], plan.spec.settings.teacher_dim
    assert width
    students = [row for row in every if row.dim and not row.second_model]
    lines: list[tuple[Cell, ...]] = []
    for name in dict.fromkeys(row.name for row in students):
        cells = {row.dim: row.cell(metric) for row in students if row.name == name}
        lines.append((name, *(cells.get(dim, "") for dim in plan.student_dims)))
    head = ("", *(f"{dim} ({dim / width:.0%})" for dim in plan.student_dims))
    title = f"Test {metric} by the student's width, and its share of the teacher's {width}"
    return Table("capacity", title, head, tuple(lines))


def answer(plan: Plan, every: Sequence[Row]) -> str:
    """Returns the best method of every width."""
    metric = plan.metrics[0]
    sentences = []
    for dim in plan.student_dims:
        distilled = [row for row in every if row.dim == dim and row.is_distilled]
        if distilled:
            best = max(distilled, key=lambda row: row.mean(metric))
            sentences.append(f"{best.short_name} is ahead at {dim} dimensions ({best.mean(metric):.4f})")
    if not sentences:
        return UNFINISHED
    teacher = f"; the teacher has {every[0].mean(metric):.4f}." if every[0].test else "."
    return "; ".join(sentences) + teacher + plan.caveat


def report(plan: Plan, every: Sequence[Row], seen: Any = None) -> Report:
    """Returns charts and tables of the metric and of the gap closed, by width."""
    metric, teacher = plan.metrics[0], every[0]
    points, gaps = [], []
    for row in filter(lambda row: row.is_student, every):
        points.append(row.point(metric, x=row.dim))
        student = plain_student(row, every)
        if student and row.is_distilled and (closed := row.closed(student, teacher, metric)):
            gaps.append({"name": row.name, "x": row.dim, **mean_and_band(closed)})
    x, drawn = "dimensions of the student", []
    if points:
        level = teacher.mean(metric) if teacher.test else None
        spec = charts.lines(points, x=x, y=f"test {metric}", log=True, reference=level)
        note = "The dashed line is the teacher; bands are a standard deviation over seeds."
        drawn.append(Chart("capacity", "Recall by width", spec, note))
    if gaps:
        spec = charts.lines(gaps, x=x, y="share of the gap closed", log=True)
        drawn.append(Chart("gap", "Share of the gap between student and teacher that is closed", spec))
    parts: list[Part] = [*drawn, table(plan, every), comparison.table(plan, every), *comparison.failed(every)]
    title = f"Students of every size on {plan.dataset_name}"
    return Report("capacity", title, QUESTION, answer(plan, every), parts)
