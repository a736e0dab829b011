"""The study of weights: what part of a step's gradient a method has, and the weight with which it has an equal part."""

import dataclasses
from collections.abc import Iterator, Sequence

from htd_jax.data import Dataset
from htd_jax.errors import UserError
from htd_jax.pipeline import Experiment, Fitted, RunRequest, resolve_run
from htd_jax.studies.report import UNFINISHED, Report
from htd_jax.studies.tables import Cell, Table
from htd_jax.studies.variants import Variant

QUESTION = "How much of a training step is each method's?"

NOTE = (
    "Share: the norm of the method's gradient of the student's parameters, weight included, of the sum of this norm "
    "and that of the base loss's gradient, averaged over the first batches of an epoch: at the first step, of a random "
    "student, and at the trained plain student, which the method has to change. Weight of an equal part: with which "
    "the latter is 50%; a start for a search, not the best."
)


@dataclasses.dataclass(frozen=True)
class Weighed:
    """What was measured of a method.

    Attributes:
      name: the name shown to people.
      weight: its weight.
      first, later: its share of the gradient at the first step, and at the trained plain student.
      equal: the weight with which `later` is a half; None where the method or the base loss has no gradient.
      error: why nothing was measured.
    """

    name: str
    weight: float | None = None
    first: float = 0.0
    later: float = 0.0
    equal: float | None = None
    error: str | None = None


def weigh(
    request: RunRequest, experiment: Experiment, teacher: Fitted, student: Fitted, variants: Sequence[Variant]
) -> Iterator[Weighed]:
    """Yields the shares of methods, in their order; of one that cannot be measured, the reason.

    Args:
      request: what all methods have in common, with their settings.
      experiment: data and evaluation.
      teacher, student: the trained teacher and plain student.
      variants: the methods, one each.
    """
    for variant in variants:
        try:
            yield _weigh(variant, variant.apply(request), experiment, teacher, student)
        except UserError as error:
            yield Weighed(_name(variant), error=str(error))


def _weigh(variant: Variant, request: RunRequest, experiment: Experiment, teacher: Fitted, student: Fitted) -> Weighed:
    phase = resolve_run(request, experiment.data).distilled
    assert phase is not None
    ((_, settings),) = phase.methods
    first, later = experiment.gradient_norms(phase, teacher, [None, student.variables])
    share = lambda norms: norms["method"] / max(sum(norms.values()), 1e-30)
    equal = settings.weight * later["base"] / later["method"] if later["method"] and later["base"] else None
    return Weighed(_name(variant), settings.weight, share(first), share(later), equal)


def report(found: Sequence[Weighed], dataset: Dataset) -> Report:
    """Returns the report: a table of shares, the smallest first."""
    measured = sorted((x for x in found if x.error is None), key=lambda x: x.later)
    lines: list[tuple[Cell, ...]] = [
        (x.name, f"{x.weight:g}", _percent(x.first), _percent(x.later), _short(x.equal)) for x in measured
    ]
    head = ("", "weight", "share at the first step", "share at the plain student", "weight of an equal part")
    answer = UNFINISHED
    if measured:
        least, most = measured[0], measured[-1]
        answer = (
            f"At the trained plain student, {least.name} has {_percent(least.later)} of the gradient with a weight of "
            f"{least.weight:g}, {most.name} {_percent(most.later)} with {most.weight:g}."
        )
    failed = [f"- {x.name}: {x.error}" for x in found if x.error]
    parts = [Table("weights", "Shares of the gradient", head, tuple(lines), NOTE)]
    texts = ("Not measured:\n\n" + "\n".join(failed),) if failed else ()
    return Report("weights", f"Weights of methods on {dataset.name}", QUESTION, answer, [*parts, *texts])


def _name(variant: Variant) -> str:
    return variant.name.removeprefix("+ ")


def _percent(share: float) -> str:
    """Returns a share that is neither 0% nor 100% unless it is.

    >>> _percent(0.0004), _percent(0.5), _percent(0.9996)
    ('0.04%', '50%', '99.96%')
    """
    return f"{share:.2%}" if share and (share < 0.01 or share > 0.99) else f"{share:.0%}"


def _short(weight: float | None) -> str:
    return "" if weight is None else f"{weight:.2g}"
