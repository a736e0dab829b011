"""The compiled evaluation of a model on a split."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.data import Interactions, Split
from htd_jax.evaluation.metrics import (
    CUTOFFS,
    METRICS,
    Metric,
    Metrics,
    check_cutoffs,
    metrics_of_pairs,
    metrics_of_users,
)
from htd_jax.evaluation.protocols import Full, Protocol
from htd_jax.evaluation.scored import Scored
from htd_jax.evaluation.users import of_users, sample_parts
from htd_jax.models import MakeModel, ModelOf, holding, with_tables
from htd_jax.ops.platforms import compiler_options

# The parts that are evaluated, in the order in which a protocol ranks them.
PARTS = ("valid", "test")

T = TypeVar("T")

Evaluator = Callable[[MakeModel, Any], dict[str, Metrics]]


class Mesh(typing.Hashable, typing.Protocol):
    """Several devices, see `htd_jax.training.Partitioning`."""

    def copy(self, tree: T) -> T:
        """Returns arrays that are whole on every device."""

    def extents(self, tree: Any, train: Interactions, *, by_name: bool = False, held: bool = False) -> Any:
        """Returns how variables are split over devices."""

    def map_shards(self, function: Callable[..., T], extents: Any) -> Callable[..., T]:
        """Returns a function that each device calls with its rows of its first argument."""


class UserMetrics(NamedTuple):
    """Metrics of each user who has a held-out item.

    Attributes:
      users: `[n]` int64, ascending.
      values: `[n]` float32 by metric; their mean is the metric that an `Evaluator` returns.
    """

    users: np.ndarray
    values: dict[str, np.ndarray]


UserEvaluator = Callable[[MakeModel, Any], dict[str, UserMetrics]]
Ranker = Callable[[MakeModel, Any], dict[str, np.ndarray]]


def make_evaluator(
    split: Split,
    *,
    cutoffs: Iterable[int] = CUTOFFS,
    protocol: Protocol = Full(),  # noqa: B008 (a constant)
    users: int | None = None,
    mesh: Mesh | None = None,
) -> Evaluator:
    """Builds `evaluate(make_model, variables) -> {"valid": metrics, "test": metrics}`.

    `make_model` returns the Flax module for the training interactions, see `htd_jax.models`; `variables` are the
    module's. The compiled program is shared by every evaluator of equal protocol and cutoffs, `make_model` and
    shapes.

    Args:
      split: the interactions to rank.
      cutoffs: the k of every metric, see `ranking_metrics`.
      protocol: which items a held-out item is ranked against. Users are scored in blocks, one after the other.
      users: the number of users to sample, see `sample_parts`; the others are not scored. All if None.
      mesh: how to evaluate on several devices, on which variables then are; None for one.

    Raises:
      UserError: if the protocol does not fit the split.
      ValueError: if cutoffs are not whole numbers of at least 1.
    """
    return _make(split, protocol, metrics_of_pairs, check_cutoffs(cutoffs), users, mesh)


def make_user_evaluator(
    split: Split,
    *,
    cutoffs: Iterable[int] = CUTOFFS,
    protocol: Protocol = Full(),  # noqa: B008 (a constant)
) -> UserEvaluator:
    """Builds `evaluate(make_model, variables) -> {"valid": UserMetrics, "test": UserMetrics}`.

    Args, raises: see `make_evaluator`.
    """
    evaluate_all = _make(split, protocol, metrics_of_users, check_cutoffs(cutoffs))
    users = {part: np.unique(np.asarray(getattr(split, part).users, np.int64)) for part in PARTS}
    pick = lambda users, metrics: UserMetrics(users, {name: np.asarray(x)[users] for name, x in metrics.items()})

    def evaluate(make_model: MakeModel, variables: Any) -> dict[str, UserMetrics]:
        return {part: pick(users[part], metrics) for part, metrics in evaluate_all(make_model, variables).items()}

    return evaluate


def make_ranker(split: Split, *, protocol: Protocol = Full()) -> Ranker:  # noqa: B008 (a constant)
    """Builds `rank(make_model, variables) -> {"valid": ranks, "test": ranks}`.

    The ranks are `[n]` int32 from 1, of the held-out pairs of `split.valid` and of `split.test`, in their order.

    Args, raises: see `make_evaluator`.
    """
    rank = _make(split, protocol)
    to_numpy = lambda ranks: {part: np.asarray(x) for part, x in ranks.items()}
    return lambda make_model, variables: to_numpy(rank(make_model, variables))


@dataclasses.dataclass(frozen=True)
class Summary:
    """Metrics as a function of a part's pairs and their ranks; it compares by value, so that it is compiled once.

    Attributes:
      function: `metrics_of_pairs` or `metrics_of_users`.
      cutoffs: the k of every metric.
      metrics: the registered ones, which the function reads.
    """

    function: Callable[..., Metrics]
    cutoffs: tuple[int, ...]
    metrics: tuple[tuple[str, Metric], ...]

    def __call__(self, part: Interactions, ranks: jax.Array, counted: jax.Array | None) -> Metrics:
        """Returns the metrics of a part; 0 if it holds no pair."""
        where = jnp.ones(len(part), bool) if counted is None else counted[part.users]
        return self.function(part.users, ranks, where, part.num_users, self.cutoffs)


def _make(
    split: Split,
    protocol: Protocol,
    function: Callable[..., Metrics] | None = None,
    cutoffs: tuple[int, ...] = (),
    sampled: int | None = None,
    mesh: Mesh | None = None,
) -> "CompiledEvaluation":
    """Returns the evaluation: `function` of each part's ranks, or the ranks themselves, of a number of users or all."""
    users, train = None, split.train
    counted: dict[str, jax.Array | None] = dict.fromkeys(PARTS)
    if sampled is not None:
        own = sample_parts(split, sampled)
        chosen = np.union1d(*own)
        split, users = of_users(split, chosen), jnp.asarray(chosen, jnp.int32)
        # The users of the other part's sample are scored, but do not count in this part.
        counted = {part: jnp.asarray(np.isin(chosen, of_part)) for part, of_part in zip(PARTS, own)}
    prepared = protocol.prepare(split)
    if mesh is not None:
        train, users, counted, split, prepared = mesh.copy((train, users, counted, split, prepared))

    def inputs(make_model: MakeModel, variables: Any) -> tuple[Any, ...]:
        summary = Summary(function, cutoffs, tuple(METRICS.items())) if function else None
        if isinstance(make_model, ModelOf):
            make_model = dataclasses.replace(make_model, settings=make_model.settings.same_module())
        return make_model, protocol, summary, variables, train, users, counted, split, prepared

    return CompiledEvaluation(inputs, split.train.num_users, mesh)


@dataclasses.dataclass(frozen=True, eq=False)
class CompiledEvaluation:
    """An evaluation: `(make_model, variables) -> {"valid": ..., "test": ...}`.

    Attributes:
      inputs: returns the inputs of the compiled program.
      users: the number of users that are scored.
      mesh: see `make_evaluator`.
    """

    inputs: Callable[[MakeModel, Any], tuple[Any, ...]]
    users: int
    mesh: Mesh | None = None

    def __call__(self, make_model: MakeModel, variables: Any) -> dict[str, Any]:
        return _compiled(self.mesh)(*self.inputs(make_model, variables))

    def compile(self, make_model: MakeModel, variables: Any) -> Any:
        """Compiles the program that a call runs, which would compile it otherwise, and returns it."""
        return _compiled(self.mesh).lower(*self.inputs(make_model, variables)).compile()


@functools.cache  # not at import: the options depend on the backend, which that would initialise
def _compiled(mesh: Mesh | None) -> Any:
    function = _evaluate if mesh is None else functools.partial(_evaluate_on, mesh)
    return jax.jit(function, static_argnums=(0, 1, 2), compiler_options=compiler_options())


def _evaluate_on(
    mesh: Mesh,
    make_model: MakeModel,
    protocol: Protocol,
    summary: Summary | None,
    variables: Any,
    train: Interactions,
    *others: Any,
) -> dict[str, Any]:
    evaluate = functools.partial(_evaluate, make_model, protocol, summary)
    if not make_model(train).divided:
        return evaluate(variables, train, *others)
    extents = mesh.extents(variables, train, by_name=True, held=True)
    return mesh.map_shards(evaluate, extents)(variables, train, *others)


class _Some(NamedTuple):
    """Scores of some users, who are numbered anew from 0.

    Attributes:
      model: the model that scores.
      users: `[n]`, the model's users.
    """

    model: Any
    users: jax.Array

    def score(self, users: chex.Array, items: chex.Array) -> jax.Array:
        return self.model.score(self.users[users], items)

    def score_all(self, users: chex.Array) -> jax.Array:
        return self.model.score_all(self.users[users])


def _evaluate(
    make_model: MakeModel,
    protocol: Protocol,
    summary: Summary | None,
    variables: Any,
    train: Interactions,
    users: jax.Array | None,
    counted: dict[str, jax.Array | None],
    split: Split,
    prepared: Any,
) -> dict[str, Any]:
    def rank(model: Any) -> tuple[jax.Array, jax.Array]:
        return protocol.ranks(model if users is None else _Some(model, users), split, prepared)

    made = make_model(train)
    if isinstance(made, Scored):
        ranked = rank(made)
    else:
        ranked = nn.apply(lambda model: rank(with_tables(model)), holding(made, variables))(variables)
    parts = zip(PARTS, ranked)
    return {part: summary(getattr(split, part), ranks, counted[part]) if summary else ranks for part, ranks in parts}
