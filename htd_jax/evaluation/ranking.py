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
from htd_jax.models import MakeModel, with_tables
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
    module's. The compiled program is shared by every evaluator of equal protocol and cutoffs, `make_model` and
    shapes.

    Args:
      split: the interactions to rank.
      cutoffs: the k of every metric, see `ranking_metrics`.
      protocol: which items a held-out item is ranked against. Users are scored in blocks, one after the other.

    Raises:
      UserError: if the protocol does not fit the split.
      ValueError: if cutoffs are not whole numbers of at least 1.
    """
    return _make(split, protocol, metrics_of_pairs, check_cutoffs(cutoffs))


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

    def __call__(self, part: Interactions, ranks: jax.Array) -> Metrics:
        return self.function(part.users, ranks, jnp.ones(len(part), bool), part.num_users, self.cutoffs)


def _make(
    split: Split, protocol: Protocol, function: Callable[..., Metrics] | None = None, cutoffs: tuple[int, ...] = ()
) -> Callable[[MakeModel, Any], dict[str, Any]]:
    """Returns the evaluation: `function` of each part's ranks, or the ranks themselves."""
    prepared = protocol.prepare(split)

    def evaluate(make_model: MakeModel, variables: Any) -> dict[str, Any]:
        summary = Summary(function, cutoffs, tuple(METRICS.items())) if function else None
        return _compiled()(make_model, protocol, summary, variables, split, prepared)

    return evaluate


@functools.cache  # not at import: the options depend on the backend, which that would initialise
def _compiled() -> Callable[..., dict[str, Any]]:
    return jax.jit(_evaluate, static_argnums=(0, 1, 2), compiler_options=compiler_options())


def _evaluate(
    make_model: MakeModel, protocol: Protocol, summary: Summary | None, variables: Any, split: Split, prepared: Any
) -> dict[str, Any]:
    rank = lambda model: protocol.ranks(with_tables(model), split, prepared)
    parts = zip(PARTS, nn.apply(rank, make_model(split.train))(variables))
    return {part: summary(getattr(split, part), ranks) if summary else ranks for part, ranks in parts}
