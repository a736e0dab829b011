"""The compiled evaluation of a model on a split."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

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
from htd_jax.models import MakeModel, Recommender, with_tables
from htd_jax.ops.platforms import compiler_options

# The parts that are evaluated, in the order in which a protocol ranks them.
PARTS = ("valid", "test")

Evaluator = Callable[[MakeModel, Any], dict[str, Metrics]]


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
) -> Evaluator:
    """Builds `evaluate(make_model, variables) -> {"valid": metrics, "test": metrics}`.

    `make_model` returns the Flax module for the training interactions, see `htd_jax.models`; `variables` are the
    module's. What is compiled serves every evaluator of equal protocol and cutoffs, equal `make_model`, and shapes.

    Args:
      split: the interactions to rank.
      cutoffs: the k of every metric, see `ranking_metrics`.
      protocol: which items a held-out item is ranked against. Users are scored in blocks, one after the other.

    Raises:
      UserError: if the protocol does not fit the split.
      ValueError: if cutoffs are not whole numbers of at least 1.
    """
    cutoffs = check_cutoffs(cutoffs)
    prepared = protocol.prepare(split)
    summary = lambda: Summary(metrics_of_pairs, cutoffs, tuple(METRICS.items()))
    return lambda make_model, variables: _compiled()(make_model, protocol, summary(), variables, split, prepared)


def make_user_evaluator(
    split: Split,
    *,
    cutoffs: Iterable[int] = CUTOFFS,
    protocol: Protocol = Full(),  # noqa: B008 (a constant)
) -> UserEvaluator:
    """Builds `evaluate(make_model, variables) -> {"valid": UserMetrics, "test": UserMetrics}`.

    Args, raises: see `make_evaluator`.
    """
    cutoffs = check_cutoffs(cutoffs)
    prepared = protocol.prepare(split)
    users = {part: np.unique(np.asarray(getattr(split, part).users, np.int64)) for part in PARTS}

    def evaluate(make_model: MakeModel, variables: Any) -> dict[str, UserMetrics]:
        summary = Summary(metrics_of_users, cutoffs, tuple(METRICS.items()))
        every = _compiled()(make_model, protocol, summary, variables, split, prepared)
        pick = lambda users, metrics: UserMetrics(users, {name: np.asarray(x)[users] for name, x in metrics.items()})
        return {part: pick(users[part], metrics) for part, metrics in every.items()}

    return evaluate


def make_ranker(split: Split, *, protocol: Protocol = Full()) -> Ranker:  # noqa: B008 (a constant)
    """Builds `rank(make_model, variables) -> {"valid": ranks, "test": ranks}`.

    The ranks are `[n]` int32 from 1, of the held-out pairs of `split.valid` and of `split.test`, in their order.

    Args, raises: see `make_evaluator`.
    """
    prepared = protocol.prepare(split)

    def rank(make_model: MakeModel, variables: Any) -> dict[str, np.ndarray]:
        ranks = _compiled()(make_model, protocol, None, variables, split, prepared)
        return {part: np.asarray(x) for part, x in ranks.items()}

    return rank


@dataclasses.dataclass(frozen=True)
class Summary:
    """A function of a part's pairs and their ranks; equal values are equal functions, compiled once.

    Attributes:
      function: `metrics_of_pairs` or `metrics_of_users`.
      cutoffs: the k of every metric.
      metrics: the registered ones, which the function reads.
    """

    function: Callable[..., Metrics]
    cutoffs: tuple[int, ...]
    metrics: tuple[tuple[str, Metric], ...]

    def __call__(self, part: Interactions, ranks: jax.Array) -> Metrics:
        return self.function(part.users, ranks, jnp.ones(len(part), bool), part.num_users, self.cutoffs)


@functools.cache  # not at import: the options depend on the backend, which that would initialise
def _compiled() -> Callable[..., Any]:
    return jax.jit(_evaluate, static_argnums=(0, 1, 2), compiler_options=compiler_options())


def _evaluate(
    make_model: MakeModel, protocol: Protocol, summary: Summary | None, variables: Any, split: Split, prepared: Any
) -> dict[str, Any]:
    """The summary of each part's ranks, or the ranks themselves."""

    def rank(model: Recommender) -> tuple[jax.Array, jax.Array]:
        return protocol.ranks(with_tables(model), split, prepared)

    parts = zip(PARTS, nn.apply(rank, make_model(split.train))(variables))
    return {part: summary(getattr(split, part), ranks) if summary else ranks for part, ranks in parts}
