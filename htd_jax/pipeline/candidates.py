"""The candidates of a choice: what is tried, and in which order."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from htd_jax.models import (
    BlendSettings,
    BPRSettings,
    EASESettings,
    IALSSettings,
    ModelOf,
    ModelSettings,
)
from htd_jax.ops.precision import forms_for_bytes
from htd_jax.pipeline.spec import PhaseSpec

# iALS is tried first at this width, with so many sweeps; then, at its best settings, at the full width with more.
NARROW, FEW_SWEEPS, SWEEPS = 64, 5, 12

# The coarse grid: confidences of a seen pair, and lambda in proportion to them. They are far apart because the best of
# sparse and dense data differ by two orders of magnitude; the finer search halves and doubles.
ALPHAS = (32.0, 8.0, 128.0, 2.0)
RATIOS = (1.0, 4.0, 0.25)

# The most steps of the finer search, each of up to four trials.
STEPS = 4

# EASE is tried where its inverse, of at most so many rows, takes seconds; its first lambda, and its share of a mix.
EASE_ROWS = 8_192
EASE_LAMBDA, SHARE = 100.0, 0.3

# A mix is tried where EASE alone reaches this share of iALS's metric.
MIXED_FROM = 0.85

# Rows of fewer numbers than this may be better with more of them, in fewer bits each.
SHORT = 16

# Trainings of the student that the default budget adds to the first, beyond coarser forms of short rows.
VARIANTS = 0

# A teacher twice as wide is tried where the full width is better than the narrow one by this factor.
STILL_GROWING = 1.1


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A phase to try.

    Attributes:
      name: its name, as shown to people.
      phase: the phase.
      coarser: whether its rows have more numbers in fewer bits than the recipe's.
    """

    name: str
    phase: PhaseSpec
    coarser: bool = False


# Returns the metric of a candidate in validation; None once the budget is spent.
Measure = Callable[[Candidate], float | None]


def search_teacher(base: PhaseSpec, rows: int | None, measure: Measure, *, fixed_width: bool = False) -> None:
    """Tries iALS over confidence, lambda, width, sweeps and frequency scaling; then EASE, and a mix of both.

    Args:
      base: the teacher's phase by default: iALS at its full width.
      rows: the smaller of the numbers of users and items, which decides whether EASE is tried; None to leave it out.
      measure: tries a candidate.
      fixed_width: whether all teachers have the width of `base`.
    """
    at = base.make_model
    assert isinstance(at, ModelOf) and isinstance(at.settings, IALSSettings)
    settings, narrow = at.settings, at.dim if fixed_width else min(NARROW, at.dim)

    def ials(dim: int, sweeps: int, **changes: Any) -> Candidate:
        return _teacher(base, dataclasses.replace(settings, **changes), dim, sweeps)

    pairs = [(alpha, alpha * ratio) for ratio, alpha in itertools.product(RATIOS, ALPHAS)]
    few = lambda alpha, penalty: ials(narrow, FEW_SWEEPS, alpha=alpha, regularization=penalty)
    best = _best_of([few(*pair) for pair in pairs], measure)
    for _ in range(STEPS):
        if best is None:
            return
        alpha, penalty = _pair(best)
        near = [(alpha, penalty * 2), (alpha, penalty / 2), (alpha * 2, penalty), (alpha / 2, penalty)]
        better = _best_of([best, *(few(*pair) for pair in near if pair[0] > 1)], measure)
        if better is best:
            break
        best = better
    if best is None:
        return
    alpha, penalty = _pair(best)
    fitted = lambda dim, penalty, frequency: ials(dim, SWEEPS, alpha=alpha, regularization=penalty, frequency=frequency)
    at_narrow = fitted(narrow, penalty, 0.0)
    wide = [fitted(at.dim, penalty * factor, 0.0) for factor in (1, 2) if at.dim > narrow]
    best = _best_of([at_narrow, *wide], measure)
    if best is None:
        return
    by_width, by_narrow = measure(best), measure(at_narrow)
    if best is not at_narrow and by_width and by_narrow and by_width > STILL_GROWING * by_narrow:
        best = _best_of([best, fitted(2 * at.dim, _pair(best)[1], 0.0)], measure) or best
    dim, (_, penalty) = best.phase.dim or narrow, _pair(best)
    best = _best_of([best, fitted(dim, penalty, 1.0)], measure)
    if best is not None and rows is not None and rows <= EASE_ROWS:
        _search_ease(base, best, measure)


def _search_ease(base: PhaseSpec, ials: Candidate, measure: Measure) -> None:
    """Tries EASE, and mixes of it with the best iALS if it comes near."""
    dim, sweeps = ials.phase.dim, ials.phase.training.epochs
    ease = _best_of([_ease(base, dim, EASE_LAMBDA), _ease(base, dim, 4 * EASE_LAMBDA)], measure)
    if ease is not None:
        stronger = _settings(ease).regularization > EASE_LAMBDA
        ease = _best_of([ease, _ease(base, dim, EASE_LAMBDA * (16 if stronger else 0.25))], measure)
    by_ials, by_ease = measure(ials), None if ease is None else measure(ease)
    if ease is None or by_ials is None or by_ease is None or by_ease < MIXED_FROM * by_ials:
        return
    penalty = _settings(ease).regularization
    mixed = BlendSettings(**vars(_settings(ials)), ease_regularization=penalty)
    measure(_teacher(base, dataclasses.replace(mixed, share=SHARE), dim, sweeps))


def students(
    base: PhaseSpec, factors: IALSSettings | None, size: int | None, widest: int, *, variants: bool = True
) -> Iterator[Candidate]:
    """Yields candidates for the student, in the order in which they are worth their time: the recipe, iALS in as many
    bytes, and variants of the recipe.

    Args:
      base: the student's phase by default.
      factors: the settings of the best iALS teacher; the default ones if None.
      size: the bytes per row, if they are to decide width and precision.
      widest: the teacher's width.
      variants: whether to vary width, precision and settings of the recipe.
    """
    at = base.make_model
    assert isinstance(at, ModelOf)
    yield Candidate(f"the recipe, {at.dim} {at.precision}", base)
    if isinstance(at.settings, BPRSettings):  # a student without a table of users is compared with none that has one
        yield from alone(base, factors or IALSSettings())
    if not variants:
        return
    wider = [form for form in forms_for_bytes(size, widest) if form[0] > at.dim] if size and not at.prefixes else []
    for dim, precision in wider[: at.dim < SHORT]:  # more numbers, each in fewer bits
        model = dataclasses.replace(at, dim=dim, precision=precision)
        phase = dataclasses.replace(base, make_model=model, dim=dim)
        yield Candidate(f"the recipe, {dim} {precision}", phase, coarser=True)
    for name, change in VARIATIONS:
        yield Candidate(f"the recipe, {name}", change(base))


def alone(base: PhaseSpec, factors: IALSSettings) -> Iterator[Candidate]:
    """Yields iALS in as many bytes as the student, rounded to its precision, at two lambdas."""
    at = base.make_model
    assert isinstance(at, ModelOf)
    for factor in (1.0, 0.25):
        settings = dataclasses.replace(factors, regularization=factors.regularization * factor)
        model = ModelOf(settings, at.dim, at.precision)
        training = dataclasses.replace(
            base.training,
            epochs=SWEEPS,
            eval_every=2,
            patience=2,
            loss="own",
            sampled_items=None,
            schedule="constant",
            optimizer="adam",
        )
        phase = dataclasses.replace(base, make_model=model, dim=at.dim, methods=(), training=training, start="random")
        yield Candidate(f"{_described(model)}, no teacher", phase)


def _times(factor: float, *, training: str = "", method: str = "") -> Callable[[PhaseSpec], PhaseSpec]:
    """Returns a change of a phase: multiplies a setting of its training, or of the recipe, by a factor."""

    def times(settings: Any, name: str) -> Any:
        value = getattr(settings, name)
        return dataclasses.replace(settings, **{name: type(value)(value * factor)})

    def change(phase: PhaseSpec) -> PhaseSpec:
        if training:
            return dataclasses.replace(phase, training=times(phase.training, training))
        return dataclasses.replace(phase, methods=tuple((name, times(own, method)) for name, own in phase.methods))

    return change


# Variants of the recipe, the most promising first.
VARIATIONS: tuple[tuple[str, Callable[[PhaseSpec], PhaseSpec]], ...] = (
    ("perplexity / 2", _times(0.5, method="perplexity")),
    ("L2 x 4", _times(4, training="l2")),
    ("epochs x 2", _times(2, training="epochs")),
    ("L2 / 4", _times(0.25, training="l2")),
)


def _ease(base: PhaseSpec, dim: int | None, penalty: float) -> Candidate:
    return _teacher(base, EASESettings(regularization=penalty), dim, 1)


def _teacher(base: PhaseSpec, settings: ModelSettings, dim: int | None, sweeps: int) -> Candidate:
    model = ModelOf(settings, dim or 1)
    more = sweeps > FEW_SWEEPS  # then the best of them is looked for
    training = dataclasses.replace(
        base.training, epochs=sweeps, eval_every=2 if more else sweeps, patience=2 if more else None
    )
    swept = f", {sweeps} sweeps" if sweeps == FEW_SWEEPS else ""
    phase = dataclasses.replace(base, make_model=model, dim=dim, training=training)
    return Candidate(_described(model) + swept, phase)


def _described(model: ModelOf) -> str:
    """Returns a model's settings as shown to people: `iALS 64, alpha 32, lambda 128`."""
    own, default = vars(model.settings), vars(type(model.settings)())
    always = ("alpha", "regularization", "share")
    changed = [f"{name} {x:g}" for name, x in own.items() if name in always or x != default[name]]
    width = f" {model.dim}" if model.precision == "float32" else f" {model.dim} {model.precision}"
    if isinstance(model.settings, EASESettings):  # which has none
        width = ""
    return ", ".join([model.settings.label + width, *changed]).replace("regularization", "lambda")


def _settings(candidate: Candidate) -> Any:
    model = candidate.phase.make_model
    assert isinstance(model, ModelOf)
    return model.settings


def _pair(candidate: Candidate) -> tuple[float, float]:
    settings = _settings(candidate)
    return settings.alpha, settings.regularization


def _best_of(candidates: Iterable[Candidate], measure: Measure) -> Candidate | None:
    """Returns the first of the best candidates; None if none was measured."""
    measured = ((measure(candidate), candidate) for candidate in candidates)
    known = [(value, candidate) for value, candidate in measured if value is not None]
    return max(known, key=lambda pair: pair[0])[1] if known else None
