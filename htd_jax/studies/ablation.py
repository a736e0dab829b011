"""Ablation and sensitivity: the worth of each part of a method, and of each of its settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from htd_jax.distillers import METHODS
from htd_jax.errors import UserError
from htd_jax.pipeline import STUDENT
from htd_jax.studies import charts, comparison
from htd_jax.studies.plan import Plan, Row, plain_student
from htd_jax.studies.report import UNFINISHED, Chart, Part, Report
from htd_jax.studies.tables import Cell, Table, Values
from htd_jax.studies.variants import Variant

ABLATION = "What is each part of the method worth?"
SENSITIVITY = "How much depends on each of the method's settings?"


def ablated(method: str) -> tuple[Variant, ...]:
    """Returns a method, and the method with one part removed or replaced.

    Raises:
      UserError: if the method has no ablation.
    """
    htd = lambda part, label, **changes: Variant("htd", {"htd": changes}, part=part, label=label)
    fixed = {"budget": "0"}  # one change at a time, not another choice for each
    best = lambda part, label, **changes: Variant("best", {"best": changes}, settings=fixed, part=part, label=label)
    if method == "htd":
        return (
            Variant("htd", label="HTD"),
            htd("groups", "groups by k-means", grouping="kmeans"),
            htd("groups", "random groups", grouping="random"),
            htd("groups", "no Gumbel noise", noise=False),
            htd("levels", "entity level alone", levels="entity"),
            htd("levels", "group level alone", levels="group"),
            htd("levels", "group level between prototypes", group_level="prototype-prototype"),
            htd("pairs", "all pairs of a group", pairs="all"),
            Variant("ftd", part="no hierarchy", label="FTD: no groups at all"),
        )
    if method == "best":
        return (
            Variant("best", settings=fixed, label="the recipe"),
            best("teacher", "no teacher: softmax of the seen items", weight=0.0),
            best("teacher", "the teacher's order counts more (perplexity 20)", perplexity=20.0),
            best("teacher", "the teacher's order counts little (perplexity 250)", perplexity=250.0),
            best("teacher", "20 items of the teacher", top=20),
            best("teacher", "500 items of the teacher", top=500),
            Variant("best", training={"l2": 0.0}, settings=fixed, part="training", label="no L2"),
            Variant(
                "best",
                training={"schedule": "constant"},
                settings=fixed,
                part="training",
                label="constant learning rate",
            ),
            Variant("best", settings={"student_init": "svd", **fixed}, part="start", label="from the teacher's SVD"),
            Variant("best+ftd", part="topology", label="with FTD"),
            Variant("best+htd", part="topology", label="with HTD"),
        )
    raise UserError(f"`of` must be htd or best, which have an ablation, not {method!r}")


# The values of each setting of HTD that a sensitivity varies, and the titles of their axes.
VALUES: dict[str, tuple[float, ...]] = {
    "groups": (5, 10, 30, 60, 100),
    "weight": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    "alpha": (0.1, 0.3, 0.5, 0.7, 0.9),
    "coldest": (1e-10, 1e-5, 1e-2, 1.0),
}
AXES = {"groups": "K, groups per side", "weight": "lambda", "alpha": "alpha", "coldest": "temperature at the end"}


def varied(values: Mapping[str, Sequence[float]]) -> tuple[Variant, ...]:
    """Returns HTD with one setting changed at a time, and with its default as a point of each.

    Args:
      values: values by the name of a setting of HTD; a setting with no value but its default is left out.

    Raises:
      UserError: if all are left out.
    """
    defaults = vars(METHODS["htd"]())
    values = {name: sorted({*own, defaults[name]}) for name, own in values.items() if set(own) - {defaults[name]}}
    if not values:
        raise UserError(
            "`groups`, `weight`, `alpha` and `coldest` have only their default values, so that nothing varies; give "
            "one of them another value"
        )
    return tuple(
        Variant(
            "htd",
            {} if value == defaults[name] else {"htd": {name: value}},
            part=name,
            label=f"{name} = {value:g}" + ", the default" * (value == defaults[name]),
            value=value,
        )
        for name, own in values.items()
        for value in own
    )


def table(plan: Plan, every: Sequence[Row], name: str, first: Row | None) -> Table:
    """Returns a table with a row per variant, and its difference from `first`."""
    metric = plan.metrics[0]
    lines: list[tuple[Cell, ...]] = []
    for row in filter(lambda row: row.is_student, every):
        above: Cell = ""
        if first and row.is_distilled and row is not first:
            above = Values(tuple(row.above(first, metric)), "+.4f")
        student = plain_student(row, every)
        closed = Values(tuple(row.closed(student, every[0], metric)), ".0%") if student and row.is_distilled else ""
        lines.append((row.variant.part if row.is_distilled else "", row.name, row.cell(metric), above, closed))
    whole = "the default" if first and first.variant.value is not None else first.name if first else "the first"
    return Table(name, "Every variant", ("part", "", metric, f"above {whole}", "gap closed"), tuple(lines))


def report(plan: Plan, every: Sequence[Row], seen: Any = None) -> Report:
    """Returns the report of an ablation."""
    metric = plan.metrics[0]
    distilled = [row for row in every if row.is_distilled]
    first = next((row for row in distilled if row.variant == plan.variants[0]), None)
    others = [row for row in every if row.test and not row.is_distilled and not row.second_model]
    levels = [{"name": row.name, "mean": row.mean(metric)} for row in others]
    data = [row.point(metric) for row in distilled]
    spec = charts.bars(data, value=f"test {metric}", levels=levels)
    drawn = [Chart("ablation", "Every variant", spec)] if data else []
    title = f"The parts of {first.name if first else 'the method'} on {plan.dataset_name}"
    parts: list[Part] = [*drawn, table(plan, every, "ablation", first), *comparison.failed(every)]
    return Report("ablation", title, ABLATION, _answer(distilled, first, metric) + plan.caveat, parts)


def _answer(distilled: Sequence[Row], first: Row | None, metric: str) -> str:
    others = [row for row in distilled if row is not first]
    if first is None or not others:
        return UNFINISHED
    level = first.mean(metric)
    worst, best = (f(others, key=lambda row: row.mean(metric)) for f in (min, max))
    cost = f"{first.name} has a {metric} of {level:.4f}. {worst.name!r} costs most: {worst.mean(metric) - level:+.4f}."
    better = [row.name for row in others if len(row.test) > 1 and row.is_above(first, metric)]
    if better:
        return f"{cost} Clearly better than the whole: {', '.join(better)}."
    return f"{cost} No variant is clearly better; the best is {best.name!r}, {best.mean(metric) - level:+.4f}."


def report_of_values(plan: Plan, every: Sequence[Row], seen: Any = None) -> Report:
    """Returns the report of a sensitivity, with a chart per setting."""
    metric = plan.metrics[0]
    distilled = [row for row in every if row.is_distilled]
    plain = next((row for row in every if row.phase == STUDENT and row.test), None)
    drawn, sentences = [], []
    for name in dict.fromkeys(row.variant.part for row in distilled):
        own, axis = [row for row in distilled if row.variant.part == name], AXES.get(name, name)
        data = [row.point(metric, x=row.variant.value) | {"name": "HTD"} for row in own]
        level = plain.mean(metric) if plain else None
        spec = charts.lines(data, x=axis, y=f"test {metric}", log=name != "alpha", reference=level)
        drawn.append(Chart(f"by-{name}", axis, spec, "The dashed line is the plain student."))
        low, high = (f(row.mean(metric) for row in own) for f in (min, max))
        sentences.append(f"{axis} moves {metric} from {low:.4f} to {high:.4f}")
    default = next((row for row in distilled if not row.variant.changes), None)
    parts: list[Part] = [*drawn, table(plan, every, "sensitivity", default), *comparison.failed(every)]
    answer = "; ".join(sentences) + "." + plan.caveat if sentences else UNFINISHED
    return Report("sensitivity", f"The settings of HTD on {plan.dataset_name}", SENSITIVITY, answer, parts)
