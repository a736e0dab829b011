"""The comparison: every method beside the plain student and its teacher, at several sizes, over seeds."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from htd_jax.distillers import METHODS
from htd_jax.errors import UserError
from htd_jax.pipeline import NO_METHOD
from htd_jax.studies import charts
from htd_jax.studies.plan import Plan, Row, curves, student_of, users_of
from htd_jax.studies.report import Chart, Part, Report, Table, Values, of_seeds
from htd_jax.studies.variants import Variant

if TYPE_CHECKING:
    from htd_jax.studies.significance import Test

QUESTION = "Which method makes the best small recommender of a large one?"


def parse_methods(names: Sequence[str]) -> tuple[Variant, ...]:
    """Methods by name, as they usually are; `all` stands for every one that there is but those of models that are
    solved for, and `none` need not be said.

    Raises:
      UserError: an unknown one.
    """
    usual = [name for name, method in METHODS.items() if not getattr(method, "solved", False)]
    every = [known for name in names for known in (usual if name == "all" else [name])]
    for name in every:
        for part in name.split("+"):
            if part != NO_METHOD:
                METHODS[part]
    chosen = tuple(Variant(name) for name in dict.fromkeys(every) if name != NO_METHOD)
    if not chosen:
        raise UserError("--methods: names none to compare")
    return chosen


def table(plan: Plan, every: Sequence[Row]) -> Table:
    """A row a model, of `plan.rows`."""
    recall, ndcg = plan.metrics
    teacher, doubted = every[0], False
    made: list[tuple[str | Values, ...]] = []
    for row in every:
        filled = plan.config.filled()
        width = str(row.dim or ("given" if filled.places.teacher else filled.what.teacher_dim))
        if not row.test:
            made.append((width, row.name, "failed" if row.errors else "not run", *[""] * 6))
            continue
        student = student_of(row, every)
        gain, closed = Values(()), Values(())
        if student is not None and row.is_helped:
            doubtful = not row.is_above(student, recall)
            doubted |= doubtful
            gain = Values(tuple(row.above(student, recall)), "+.4f", " (a)" if doubtful else "")
            closed = Values(tuple(row.closed(student, teacher, recall)), ".0%")
        seconds, own = list(row.seconds.values()), list(student.seconds.values()) if student else []
        ratio = f"{statistics.mean(seconds) / statistics.mean(own):.1f}" if seconds and own else ""
        most = f"{max(row.memory.values()) / 2**30:.2f}" if row.memory else ""
        figures = Values(tuple(row.values(recall))), Values(tuple(row.values(ndcg)))
        cost = f"{statistics.mean(seconds):.3g}" if seconds else "", ratio, most
        made.append((width, row.name, *figures, gain, closed, *cost))
    by = " by more than twice the larger spread of the two" if len(plan.seeds) > 1 else ""
    note = f"(a) not above the plain student{by}, in {recall}."
    head = ("dimensions", "", recall, ndcg, "above the student", "gap closed", "s/epoch", "x student's", "GiB")
    return Table("comparison", "Every method", head, tuple(made), note if doubted else "")


def pairs(plan: Plan, every: Sequence[Row]) -> Table | None:
    """What methods that are joined reach above the best of their parts that was run alone too."""
    metric = plan.metrics[0]
    made: list[tuple[str | Values, ...]] = []
    for row in every:
        own = row.variant.method.split("+")
        parts = [
            r for r in every if r.dim == row.dim and r.test and r.is_helped and r.variant.method in own and r is not row
        ]
        if len(own) == 1 or not row.test or not parts or row.beside:
            continue
        best = max(parts, key=lambda part: part.mean(metric))
        above = row.above(best, metric)
        helps = "yes" if row.is_above(best, metric) else "no" if statistics.mean(above) <= 0 else "not told apart"
        named = lambda row: row.name.removeprefix("+ ")
        figures = Values(tuple(row.values(metric))), named(best), Values(tuple(best.values(metric)))
        made.append((str(row.dim), named(row), *figures, Values(tuple(above), "+.4f"), helps))
    head = ("dimensions", "joined", metric, "best part", metric, "above it", "helps")
    return Table("joined", "Methods that were joined", head, tuple(made)) if made else None


def failures(every: Sequence[Row]) -> list[str]:
    """A line for each run that failed."""
    named = lambda row: f"{row.name}, {row.dim}" if row.dim else row.name
    return [f"{named(row)}, seed {s}: {e}" for row in every for s, e in row.errors.items()]


def failed(every: Sequence[Row]) -> tuple[str, ...]:
    """The same, as a paragraph of a report."""
    lines = failures(every)
    return ("Failed:\n\n" + "\n".join(f"- {line}" for line in lines),) if lines else ()


def answer(plan: Plan, every: Sequence[Row]) -> str:
    """In a sentence."""
    metric, teacher = plan.metrics[0], every[0]
    told = []
    for dim in plan.student_dims:
        ran = [row for row in every if row.dim == dim and row.is_helped and row.test]
        student = student_of(ran[0], every) if ran else None
        if student is None:
            continue
        best = max(ran, key=lambda row: row.mean(metric))
        closed = best.closed(student, teacher, metric)
        high = teacher.mean(metric) if closed else 0
        gap = f", {statistics.mean(closed):.0%} of the gap to the teacher's {high:.4f}" if closed else ""
        name, plain = best.name.removeprefix("+ "), student.mean(metric)
        told.append(
            f"At {dim} dimensions {name} ranks best: {metric} {best.mean(metric):.4f}, where the plain student has "
            f"{plain:.4f}{gap}."
        )
        if len(plan.seeds) > 1:
            above = sum(row.is_above(student, metric) for row in ran)
            told.append(f"{above} of {len(ran)} are above the student by more than twice the spread over seeds.")
    if told and plan.caveat:
        told.append(plan.caveat.strip())
    if count := len(failures(every)):
        told.append(f"{count} of the runs failed.")
    return " ".join(told) or "Nothing has been run to its end."


class Seen(NamedTuple):
    """What a comparison looks at besides the runs' metrics.

    Attributes:
      curves: of learning, see `plan.curves`.
      users: see `plan.users_of`.
    """

    curves: Sequence[Mapping[str, Any]] = ()
    users: Mapping[Row, Mapping[int, np.ndarray]] = {}


def look(plan: Plan, every: Sequence[Row], told: Callable[[str], None]) -> Seen:
    return Seen(curves(plan, every), users_of(plan, every, told))


def beyond_chance(plan: Plan, every: Sequence[Row], users: Mapping[Row, Mapping[int, np.ndarray]]) -> list[Table]:
    """Every method against the plain student, and against the best of the others: a table a width."""
    from htd_jax.studies.significance import compare_users  # SciPy's statistics, which other commands need not load

    made = []
    for dim in plan.student_dims:
        own = {row.name: users[row] for row in every if row.dim == dim and not row.beside and users.get(row)}
        if "student" not in own or len(own) < 2:
            continue
        tests = compare_users(own)
        best = {test.name: test for test in tests.against_best}
        lines: list[tuple[str | Values, ...]] = []
        for test in tests.against_student:
            beside = best.get(test.name)
            against_best = [beside.other.removeprefix("+ "), *_of_test(beside)] if beside else [""] * 4
            lines.append((test.name.removeprefix("+ "), *_of_test(test), *against_best))
        against = ("difference", "p, seeds", "p, users")
        head = ("", *(f"student: {name}" for name in against), "best other", *against)
        note = (
            f"Differences in {plan.metrics[0]}. p, seeds: paired t-test over the seeds. p, users: paired randomisation "
            "test over users, the largest of the seeds' own. Both are corrected for as many comparisons as there are "
            "rows (Benjamini and Hochberg)."
        )
        made.append(Table(f"chance-{dim}", f"Beyond chance, {dim} dimensions", head, tuple(lines), note))
    return made


def _of_test(test: "Test") -> list[str]:
    p = lambda value: "" if value is None else "<.001" if value < 0.001 else f"{value:.3f}"
    return [f"{test.difference:+.4f}", p(test.over_seeds_corrected), p(max(test.over_users_corrected))]


def report(plan: Plan, every: Sequence[Row], seen: Seen = Seen()) -> Report:  # noqa: B008 (a constant)
    """The whole of it, of `plan.rows`."""
    drawn = []
    metric, teacher = plan.metrics[0], every[0]
    for dim in plan.student_dims:
        helped = [row for row in every if row.dim == dim and row.is_helped and row.test]
        helped.sort(key=lambda row: -row.mean(metric))
        plain = [row for row in every if row.dim == dim and row.phase == "student" and row.test]
        levels = [{"name": row.name, "mean": row.mean(metric)} for row in ([teacher] if teacher.test else []) + plain]
        data = [{"name": row.name.removeprefix("+ "), **of_seeds(row.values(metric))} for row in helped]
        if data:
            spec = charts.bars(data, value=f"test {metric}", levels=levels)
            drawn.append(
                Chart(f"methods-{dim}", f"At {dim} dimensions", spec, "Mean over seeds, and a standard deviation.")
            )
        own = [point for point in seen.curves if point["dim"] in (dim, None)]
        if own:
            spec = charts.lines(own, x="epoch", y=f"test {metric}", points=False)
            drawn.append(
                Chart(
                    f"curves-{dim}",
                    f"While they learn, {dim} dimensions",
                    spec,
                    "Mean over seeds.",
                )
            )
    joined = pairs(plan, every)
    parts: list[Part] = [*drawn, table(plan, every), *([joined] if joined else [])]
    parts += [*beyond_chance(plan, every, seen.users), *failed(every)]
    what = plan.config.filled().what
    title = f"Methods of distillation on {what.dataset}"
    return Report("comparison", title, QUESTION, answer(plan, every), parts)


def draw(plan: Plan, every: Sequence[Row], figure: Any) -> None:
    """A bar a method, with the spread over seeds, the plain student and the teacher as lines; a panel a width."""
    metric = plan.metrics[0]
    panels = figure.subplots(1, len(plan.student_dims), sharex=True, squeeze=False)[0]
    for panel, dim in zip(panels, plan.student_dims):
        here = [row for row in every if row.dim == dim and row.test and not row.beside]
        helped = sorted((row for row in here if row.is_helped), key=lambda row: row.mean(metric))
        names, means = [row.name.removeprefix("+ ") for row in helped], [row.mean(metric) for row in helped]
        panel.barh(names, means, xerr=[row.deviation(metric) for row in helped], color="#0072b2")
        students = [row for row in here if row.phase == "student"]
        levels = [(row.mean(metric), row.name) for row in (*students, every[0]) if row.test]
        for (level, name), side in zip(sorted(levels), ("right", "left")):  # words away from one another
            colour = {"student": "#d55e00", "teacher": "#555555"}[name]
            panel.axvline(level, color=colour, linewidth=1.5)
            above: Any = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
            panel.annotate(f"{name} {level:.4f}", (level, 1), (0, 4), ha=side, color=colour, **above)
        panel.set_xlim(0, 1.12 * panel.get_xlim()[1])
        panel.set(xlabel=f"test {metric}", title=f"{dim} dimensions\n")
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="x", alpha=0.3)
        panel.set_axisbelow(True)


def size(plan: Plan) -> tuple[float, float]:
    """Of the picture, in inches."""
    return 1.5 + 4.5 * len(plan.student_dims), 1.4 + 0.28 * max(len(plan.variants), 4)
