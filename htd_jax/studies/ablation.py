"""Ablation and sensitivity: what each part of a method, and each number in it, is worth."""

from collections.abc import Mapping, Sequence
from typing import Any

from htd_jax.distillers import METHODS
from htd_jax.errors import UserError
from htd_jax.studies import charts, comparison
from htd_jax.studies.plan import Plan, Row, student_of
from htd_jax.studies.report import Chart, Part, Report, Table, Values, of_seeds
from htd_jax.studies.variants import Variant

ABLATION = "What is each part of the method worth?"
SENSITIVITY = "How much hangs on each of the method's numbers?"

# Of whom there is an ablation.
OF = ("htd", "best")


def ablated(method: str) -> tuple[Variant, ...]:
    """The method, and the method less one part, or with another in its place.

    Raises:
      UserError: a method whose parts are not known.
    """
    htd = lambda part, label, **own: Variant("htd", {"htd": own}, part=part, label=label)
    best = lambda part, label, **own: Variant("best", {"best": own}, part=part, label=label)
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
            Variant("best", label="the recipe"),
            best("teacher", "no teacher: softmax of the seen items", weight=0.0),
            best("teacher", "the teacher's own order (temperature 1)", teacher_temperature=1.0),
            best("teacher", "20 items of the teacher", top=20),
            best("teacher", "500 items of the teacher", top=500),
            Variant("best", training={"l2": 0.0}, part="training", label="no L2"),
            Variant("best", training={"schedule": "constant"}, part="training", label="constant learning rate"),
            Variant("best", what={"student_init": "svd"}, part="start", label="from the teacher's SVD"),
            Variant("best+ftd", part="topology", label="and FTD"),
            Variant("best+htd", part="topology", label="and HTD"),
        )
    raise UserError(f"--of: there is an ablation of {' and '.join(OF)}, not of {method!r}")


def varied(values: Mapping[str, Sequence[float]]) -> tuple[Variant, ...]:
    """HTD with one of its numbers other than usual, the others as usual; and as usual, a point of each.

    Args:
      values: by the name of a setting of HTD; one that has no other than its usual value is left out.

    Raises:
      UserError: all are.
    """
    usual = vars(METHODS["htd"]())
    values = {name: sorted({*of, usual[name]}) for name, of in values.items() if set(of) - {usual[name]}}
    if not values:
        raise UserError("--groups, --weight, --alpha, --coldest: nothing to vary, all are as usual")
    return tuple(
        Variant(
            "htd",
            {} if value == usual[name] else {"htd": {name: value}},
            part=name,
            label=f"{name} = {value:g}" + ", as usual" * (value == usual[name]),
            value=value,
        )
        for name, of in values.items()
        for value in of
    )


# What is varied, and over which values; their names on an axis.
VALUES: dict[str, tuple[float, ...]] = {
    "groups": (5, 10, 30, 60, 100),
    "weight": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    "alpha": (0.1, 0.3, 0.5, 0.7, 0.9),
    "coldest": (1e-10, 1e-5, 1e-2, 1.0),
}
AXES = {"groups": "K, groups a side", "weight": "lambda", "alpha": "alpha", "coldest": "temperature at the end"}


def table(plan: Plan, every: Sequence[Row], name: str, first: Row | None) -> Table:
    """A row a variant; `first` is what it is told from."""
    metric = plan.metrics[0]
    made: list[tuple[str | Values, ...]] = []
    for row in every:
        if row.dim is None or row.beside or not row.test:
            continue
        against = (
            Values(tuple(row.above(first, metric)), "+.4f") if first and row.is_helped and row is not first else ""
        )
        student = student_of(row, every)
        closed = Values(tuple(row.closed(student, every[0], metric)), ".0%") if student and row.is_helped else ""
        made.append(
            (row.variant.part if row.is_helped else "", row.name, Values(tuple(row.values(metric))), against, closed)
        )
    whole = "the usual" if first and first.variant.value is not None else first.name if first else "the first"
    return Table(name, "Every variant", ("part", "", metric, f"above {whole}", "gap closed"), tuple(made))


def report(plan: Plan, every: Sequence[Row], seen: Any = None) -> Report:
    """Of an ablation."""
    metric = plan.metrics[0]
    ran = [row for row in every if row.is_helped and row.test]
    first = next((row for row in ran if row.variant == plan.variants[0]), None)
    levels = [
        {"name": row.name, "mean": row.mean(metric)}
        for row in every
        if row.test and not row.is_helped and not row.beside
    ]
    data = [{"name": row.name, **of_seeds(row.values(metric))} for row in ran]
    drawn = (
        [Chart("ablation", "Every variant", charts.bars(data, value=f"test {metric}", levels=levels))] if data else []
    )
    title = f"The parts of {first.name if first else 'the method'} on {plan.config.filled().what.dataset}"
    parts: list[Part] = [*drawn, table(plan, every, "ablation", first), *comparison.failed(every)]
    return Report("ablation", title, ABLATION, _answer(ran, first, metric) + plan.caveat, parts)


def _answer(ran: Sequence[Row], first: Row | None, metric: str) -> str:
    others = [row for row in ran if row is not first]
    if first is None or not others:
        return "Nothing has been run to its end."
    worst, best = (f(others, key=lambda row: row.mean(metric)) for f in (min, max))
    costs = first.mean(metric) - worst.mean(metric)
    told = f"{first.name} has a {metric} of {first.mean(metric):.4f}. What costs most is {worst.name!r}: {-costs:+.4f}."
    clearly = [row.name for row in others if len(row.test) > 1 and row.is_above(first, metric)]
    if clearly:
        return told + f" Clearly better than the whole: {', '.join(clearly)}."
    return (
        told
        + f" No variant is clearly better; the best is {best.name!r}, {best.mean(metric) - first.mean(metric):+.4f}."
    )


def report_of_values(plan: Plan, every: Sequence[Row], seen: Any = None) -> Report:
    """Of a sensitivity: a line a number."""
    metric = plan.metrics[0]
    ran = [row for row in every if row.is_helped and row.test]
    drawn, told = [], []
    plain = [row for row in every if row.phase == "student" and row.test]
    for name in dict.fromkeys(row.variant.part for row in ran):
        own = [row for row in ran if row.variant.part == name]
        data = [{"name": "HTD", "x": row.variant.value, **of_seeds(row.values(metric))} for row in own]
        level = plain[0].mean(metric) if plain else None
        spec = charts.lines(data, x=AXES.get(name, name), y=f"test {metric}", log=name != "alpha", reference=level)
        drawn.append(Chart(f"by-{name}", AXES.get(name, name), spec, "The dashed line is the plain student."))
        low, high = (f(row.mean(metric) for row in own) for f in (min, max))
        told.append(f"{AXES.get(name, name)} moves {metric} from {low:.4f} to {high:.4f}")
    usual = next((row for row in ran if row.variant.is_usual), None)
    parts: list[Part] = [*drawn, table(plan, every, "sensitivity", usual), *comparison.failed(every)]
    title = f"The numbers of HTD on {plan.config.filled().what.dataset}"
    answer = "; ".join(told) + "." + plan.caveat if told else "Nothing has been run to its end."
    return Report("sensitivity", title, SENSITIVITY, answer, parts)
