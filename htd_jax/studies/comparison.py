"""The comparison: every method next to the plain student and its teacher, at several widths and seeds."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from htd_jax.distillers import METHODS
from htd_jax.errors import UserError
from htd_jax.pipeline import NO_METHOD, STUDENT
from htd_jax.studies import charts
from htd_jax.studies.plan import Plan, Row, curves, metric_by_user, plain_student
from htd_jax.studies.report import UNFINISHED, Chart, Part, Report
from htd_jax.studies.tables import Cell, Table, Values
from htd_jax.studies.variants import Variant

if TYPE_CHECKING:
    from htd_jax.studies.significance import Test

QUESTION = "Which method makes the best small recommender from a large one?"


def parse_methods(names: Sequence[str]) -> tuple[Variant, ...]:
    """Returns methods by name, with default settings; `all` stands for all that train students anew, by
    gradients; `none` is ignored.

    Raises:
      UserError: if one is unknown, or there is none.
    """
    trainable = [name for name, method in METHODS.items() if not (method.closed_form or method.for_updates)]
    every = [known for name in names for known in (trainable if name == "all" else [name])]
    for name in every:
        for part in name.split("+"):
            if part != NO_METHOD:
                METHODS[part]
    chosen = tuple(Variant(name) for name in dict.fromkeys(every) if name != NO_METHOD)
    if not chosen:
        raise UserError("`methods` must name a method to compare")
    return chosen


def table(plan: Plan, every: Sequence[Row]) -> Table:
    """Returns a table with a row per model."""
    metrics = plan.metrics
    recall = metrics[0]
    teacher, doubted = every[0], False
    lines: list[tuple[Cell, ...]] = []
    for row in every:
        width = str(row.dim or ("given" if plan.request.paths.teacher else plan.spec.settings.teacher_dim))
        if not row.test:
            lines.append((width, row.name, "failed" if row.errors else "not run", *[""] * (4 + len(metrics))))
            continue
        student = plain_student(row, every)
        gain, closed = Values(()), Values(())
        if student is not None and row.is_distilled:
            doubtful = not row.is_above(student, recall)
            doubted |= doubtful
            gain = Values(tuple(row.above(student, recall)), "+.4f", " (a)" if doubtful else "")
            closed = Values(tuple(row.closed(student, teacher, recall)), ".0%")
        seconds, plain = list(row.seconds.values()), list(student.seconds.values()) if student else []
        ratio = f"{statistics.mean(seconds) / statistics.mean(plain):.1f}" if seconds and plain else ""
        memory = f"{max(row.memory.values()) / 2**30:.2f}" if row.memory else ""
        cost = f"{statistics.mean(seconds):.3g}" if seconds else "", ratio, memory
        lines.append((width, row.name, *map(row.cell, metrics), gain, closed, *cost))
    by = " by more than twice the larger spread of the two" if len(plan.seeds) > 1 else ""
    notes = [f"(a) not above the plain student{by}, in {recall}."] if doubted else []
    if searched := [row.short_name for row in every if row.is_distilled and _searched(row.variant)]:
        taught = "the given teacher" if plan.request.paths.teacher else teacher_name(plan)
        notes.append(
            f"{', '.join(dict.fromkeys(searched))}: taught here by {taught}, {recall} {teacher.cell(recall)}, as all "
            "others; htd-jax train chooses a teacher of its own for it."
        )
    head = ("dimensions", "", *metrics, "above the student", "gap closed", "s/epoch", "x student's", "GiB")
    return Table("comparison", "Every method", head, tuple(lines), " ".join(notes))


def _searched(variant: Variant) -> bool:
    """Returns whether `train` chooses the teacher of a method."""
    return "+" not in variant.method and METHODS[variant.method].searched


def teacher_name(plan: Plan) -> str:
    """Returns the model and the width of the teacher of all runs."""
    settings = plan.spec.settings
    return f"{settings.teacher_model or settings.model} {settings.teacher_dim}"


def joined_methods(plan: Plan, every: Sequence[Row]) -> Table | None:
    """Returns a table of joined methods next to the best of their parts; None if there are none."""
    metric = plan.metrics[0]
    lines: list[tuple[Cell, ...]] = []
    for row in filter(lambda row: row.is_distilled, every):
        names = row.variant.method.split("+")
        parts = [r for r in every if r.dim == row.dim and r.is_distilled and r.variant.method in names and r is not row]
        if len(names) == 1 or not parts:
            continue
        best = max(parts, key=lambda part: part.mean(metric))
        above = row.above(best, metric)
        helps = "yes" if row.is_above(best, metric) else "no" if statistics.mean(above) <= 0 else "not clear"
        figures = row.cell(metric), best.short_name, best.cell(metric)
        lines.append((str(row.dim), row.short_name, *figures, Values(tuple(above), "+.4f"), helps))
    head = ("dimensions", "joined", metric, "best part", metric, "above it", "helps")
    return Table("joined", "Joined methods", head, tuple(lines)) if lines else None


def failures(every: Sequence[Row]) -> list[str]:
    """Returns a line for each failed run."""
    title = lambda row: f"{row.name}, {row.dim}" if row.dim else row.name
    return [f"{title(row)}, seed {seed}: {error}" for row in every for seed, error in row.errors.items()]


def failed(every: Sequence[Row]) -> tuple[str, ...]:
    """Returns the failed runs as a paragraph of a report, if there are any."""
    lines = failures(every)
    return ("Failed:\n\n" + "\n".join(f"- {line}" for line in lines),) if lines else ()


def answer(plan: Plan, every: Sequence[Row]) -> str:
    """Returns the best method of every width in a sentence."""
    metric, teacher = plan.metrics[0], every[0]
    sentences = []
    for dim in plan.student_dims:
        distilled = [row for row in every if row.dim == dim and row.is_distilled]
        student = plain_student(distilled[0], every) if distilled else None
        if student is None:
            continue
        best = max(distilled, key=lambda row: row.mean(metric))
        closed = best.closed(student, teacher, metric)
        gap = (
            f", {statistics.mean(closed):.0%} of the gap to the teacher's {teacher.mean(metric):.4f}" if closed else ""
        )
        sentences.append(
            f"At {dim} dimensions {best.short_name} ranks best: {metric} {best.mean(metric):.4f}, where the plain "
            f"student has {student.mean(metric):.4f}{gap}."
        )
        if len(plan.seeds) > 1:
            above = sum(row.is_above(student, metric) for row in distilled)
            sentences.append(
                f"{above} of {len(distilled)} are above the student by more than twice the spread over seeds."
            )
    if sentences and plan.caveat:
        sentences.append(plan.caveat.strip())
    if number := len(failures(every)):
        sentences.append(f"{number} of the runs failed.")
    return " ".join(sentences) or UNFINISHED


class Seen(NamedTuple):
    """The data that a comparison reads in addition to the runs' results.

    Attributes:
      curves: learning curves, see `plan.curves`.
      users: a metric of each user, see `plan.metric_by_user`.
    """

    curves: Sequence[Mapping[str, Any]] = ()
    users: Mapping[Row, Mapping[int, np.ndarray]] = {}


def look(plan: Plan, every: Sequence[Row], log: Callable[[str], None]) -> Seen:
    """Reads learning curves and metrics of users."""
    return Seen(curves(plan, every), metric_by_user(plan, every, log))


def beyond_chance(plan: Plan, every: Sequence[Row], users: Mapping[Row, Mapping[int, np.ndarray]]) -> list[Table]:
    """Returns a table per width of tests of every method against the plain student and the best other method."""
    from htd_jax.studies.significance import compare_users  # loads scipy.stats, which other commands do not need

    tables = []
    for dim in plan.student_dims:
        values = {row.name: users[row] for row in every if row.dim == dim and users.get(row)}
        if STUDENT not in values or len(values) < 2:
            continue
        tests = compare_users(values)
        best = {test.name: test for test in tests.against_best}
        lines: list[tuple[Cell, ...]] = []
        for test in tests.against_student:
            other = best.get(test.name)
            against_best = [other.other.removeprefix("+ "), *_figures(other)] if other else [""] * 4
            lines.append((test.name.removeprefix("+ "), *_figures(test), *against_best))
        against = ("difference", "p, seeds", "p, users")
        head = ("", *(f"student: {name}" for name in against), "best other", *against)
        note = (
            f"Differences in {plan.metrics[0]}. p, seeds: paired t-test over the seeds. p, users: paired randomisation "
            "test over users, the largest of the seeds. Both are corrected for the number of rows (Benjamini and "
            "Hochberg)."
        )
        tables.append(Table(f"chance-{dim}", f"Beyond chance, {dim} dimensions", head, tuple(lines), note))
    return tables


def _figures(test: "Test") -> list[str]:
    p = lambda value: "" if value is None else "<.001" if value < 0.001 else f"{value:.3f}"
    return [f"{test.difference:+.4f}", p(test.over_seeds_corrected), p(max(test.over_users_corrected))]


def report(plan: Plan, every: Sequence[Row], seen: Seen = Seen()) -> Report:  # noqa: B008 (a constant)
    """Returns the report of a comparison."""
    metric, teacher = plan.metrics[0], every[0]
    drawn, picture = [], []
    for dim in plan.student_dims:
        distilled = [row for row in every if row.dim == dim and row.is_distilled]
        plain = [row for row in every if row.dim == dim and row.phase == STUDENT and row.test]
        levels = [{"name": row.name, "mean": row.mean(metric)} for row in ([teacher] if teacher.test else []) + plain]
        data = [row.point(metric) | {"name": row.short_name} for row in distilled]
        data.sort(key=lambda point: -point["mean"])
        if data:
            spec = charts.bars(data, value=f"test {metric}", levels=levels)
            note = "Mean over seeds, and a standard deviation."
            drawn.append(Chart(f"methods-{dim}", f"At {dim} dimensions", spec, note))
            picture.append(drawn[-1].name)
        learning = [point for point in seen.curves if point["dim"] in (dim, None)]
        if learning:
            spec = charts.lines(learning, x="epoch", y=f"test {metric}", points=False)
            drawn.append(Chart(f"curves-{dim}", f"Learning curves, {dim} dimensions", spec, "Mean over seeds."))
    joined = joined_methods(plan, every)
    parts: list[Part] = [*drawn, table(plan, every), *([joined] if joined else [])]
    parts += [*beyond_chance(plan, every, seen.users), *failed(every)]
    title = f"Methods of distillation on {plan.dataset_name}"
    return Report("comparison", title, QUESTION, answer(plan, every), parts, picture=tuple(picture))
