"""Capacity: methods at students of 5% to 100% of the teacher's width."""

from collections.abc import Sequence
from typing import Any

from htd_jax.studies import charts, comparison
from htd_jax.studies.plan import Plan, Row, student_of
from htd_jax.studies.report import Chart, Part, Report, Table, Values, of_seeds

QUESTION = "How small may a student be, and which method suits which size?"

# Of the teacher's width, as in the paper.
SHARES = (0.05, 0.1, 0.5, 1.0)


def widths(shares: Sequence[float], teacher_dim: int) -> tuple[int, ...]:
    """The students' widths, each once, the narrowest first.

    >>> widths((0.05, 0.1, 1.0), 200)
    (10, 20, 200)
    """
    return tuple(sorted({max(1, round(share * teacher_dim)) for share in shares}))


def table(plan: Plan, every: Sequence[Row]) -> Table:
    """A row a method, a column a width."""
    metric, width = plan.metrics[0], plan.config.filled().what.teacher_dim
    assert width
    names = list(dict.fromkeys(row.name for row in every if row.dim and not row.beside))
    made: list[tuple[str | Values, ...]] = []
    for name in names:
        of = {row.dim: row for row in every if row.name == name and not row.beside}
        made.append((name, *(Values(tuple(of[dim].values(metric))) if dim in of else "" for dim in plan.student_dims)))
    head = ("", *(f"{dim} ({dim / width:.0%})" for dim in plan.student_dims))
    return Table(
        "capacity", f"Test {metric} by the student's width, and its share of the teacher's {width}", head, tuple(made)
    )


def answer(plan: Plan, every: Sequence[Row]) -> str:
    """Which method is ahead at which width."""
    metric = plan.metrics[0]
    ahead = {}
    for dim in plan.student_dims:
        ran = [row for row in every if row.dim == dim and row.test and row.is_helped]
        if ran:
            ahead[dim] = max(ran, key=lambda row: row.mean(metric))
    if not ahead:
        return "Nothing has been run to its end."
    told = [
        f"{row.name.removeprefix('+ ')} is ahead at {dim} dimensions ({row.mean(metric):.4f})"
        for dim, row in ahead.items()
    ]
    taught = f"; the teacher has {every[0].mean(metric):.4f}." if every[0].test else "."
    return "; ".join(told) + taught + plan.caveat


def report(plan: Plan, every: Sequence[Row], seen: Any = None) -> Report:
    """Recall against width, the gap closed against width, and both as tables."""
    metric, teacher = plan.metrics[0], every[0]
    recall, gaps = [], []
    for row in every:
        if row.dim is None or row.beside or not row.test:
            continue
        recall.append({"name": row.name, "x": row.dim, **of_seeds(row.values(metric))})
        student = student_of(row, every)
        if student and row.is_helped and (closed := row.closed(student, teacher, metric)):
            gaps.append({"name": row.name, "x": row.dim, **of_seeds(closed)})
    drawn = []
    if recall:
        level = teacher.mean(metric) if teacher.test else None
        spec = charts.lines(recall, x="dimensions of the student", y=f"test {metric}", log=True, reference=level)
        drawn.append(
            Chart(
                "capacity",
                "Recall by width",
                spec,
                "The dashed line is the teacher; bands are a standard deviation over seeds.",
            )
        )
    if gaps:
        spec = charts.lines(gaps, x="dimensions of the student", y="share of the gap closed", log=True)
        drawn.append(Chart("gap", "Share of the gap between student and teacher that is closed", spec))
    parts: list[Part] = [*drawn, table(plan, every), comparison.table(plan, every), *comparison.failed(every)]
    title = f"Students of every size on {plan.config.filled().what.dataset}"
    return Report("capacity", title, QUESTION, answer(plan, every), parts)
