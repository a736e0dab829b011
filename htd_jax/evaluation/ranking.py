"""The compiled evaluation of a model on a split."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.data import Interactions, Split
from htd_jax.evaluation.metrics import CUTOFFS, Metrics, check_cutoffs, metrics_of_pairs, metrics_of_users
from htd_jax.evaluation.protocols import Full, Sampled
from htd_jax.models import MakeModel, Recommender, with_tables
from htd_jax.ops.platforms import compiler_options

T = TypeVar("T")

# What is evaluated, in the order in which a protocol ranks it.
PARTS = ("valid", "test")

Evaluator = Callable[[MakeModel, Any], dict[str, Metrics]]


class OfUsers(NamedTuple):
    """Metrics of each user who has a held-out item.

    Attributes:
      users: `[n]` int64, in ascending order.
      values: by metric `[n]` float32 in [0, 1], whose mean is the metric that an `Evaluator` gives.
    """

    users: np.ndarray
    values: dict[str, np.ndarray]


UserEvaluator = Callable[[MakeModel, Any], dict[str, OfUsers]]
Ranker = Callable[[MakeModel, Any], dict[str, np.ndarray]]


def make_evaluator(
    split: Split,
    *,
    cutoffs: Iterable[int] = CUTOFFS,
    protocol: Full | Sampled = Full(),  # noqa: B008 (a constant)
) -> Evaluator:
    """Builds `evaluate(make_model, variables) -> {"valid": metrics, "test": metrics}`, compiled.

    `make_model` gives the Flax module for the training interactions, see `htd_jax.models`, and `variables` are its own.
    It is compiled once for one function `make_model`.

    Args:
      split: what is ranked.
      cutoffs: the k of every metric, see `ranking_metrics`.
      protocol: what a held-out item is ranked against. Users are scored in blocks, one after the other.

    Raises:
      UserError: a protocol that cannot be on this split.
      ValueError: cutoffs that are not whole numbers of at least 1.
    """
    cutoffs = check_cutoffs(cutoffs)
    of_part = lambda part, ranks: metrics_of_pairs(
        part.users, ranks, jnp.ones(len(part), bool), part.num_users, cutoffs
    )
    return _compiled(split, protocol, of_part)


def make_user_evaluator(
    split: Split,
    *,
    cutoffs: Iterable[int] = CUTOFFS,
    protocol: Full | Sampled = Full(),  # noqa: B008 (a constant)
) -> UserEvaluator:
    """Builds `evaluate(make_model, variables) -> {"valid": OfUsers, "test": OfUsers}`, compiled.

    The metrics of each user who has a held-out item in the part.

    Args, raises: see `make_evaluator`.
    """
    cutoffs = check_cutoffs(cutoffs)
    of_part = lambda part, ranks: metrics_of_users(
        part.users, ranks, jnp.ones(len(part), bool), part.num_users, cutoffs
    )
    evaluate = _compiled(split, protocol, of_part)
    users = {name: np.unique(np.asarray(getattr(split, name).users, np.int64)) for name in PARTS}

    def of_users(make_model: MakeModel, variables: Any) -> dict[str, OfUsers]:
        found = evaluate(make_model, variables)
        of = lambda its, metrics: OfUsers(its, {name: np.asarray(x)[its] for name, x in metrics.items()})
        return {name: of(users[name], metrics) for name, metrics in found.items()}

    return of_users


def make_ranker(split: Split, *, protocol: Full | Sampled = Full()) -> Ranker:  # noqa: B008 (a constant)
    """Builds `rank(make_model, variables) -> {"valid": ranks, "test": ranks}`, compiled.

    The ranks, `[n]` int32 from 1, of the held-out pairs of `split.valid` and of `split.test`, in their order.

    Args, raises: see `make_evaluator`.
    """
    rank = _compiled(split, protocol, lambda part, ranks: ranks)
    return lambda make_model, variables: {
        name: np.asarray(ranks) for name, ranks in rank(make_model, variables).items()
    }


def _compiled(
    split: Split, protocol: Full | Sampled, of_part: Callable[[Interactions, jax.Array], T]
) -> Callable[[MakeModel, Any], dict[str, T]]:
    """What is made of each part's pairs and their ranks, compiled once for one function `make_model`."""
    prepared = protocol.prepare(split)

    @functools.partial(jax.jit, static_argnums=0, compiler_options=compiler_options())
    def evaluate(make_model: MakeModel, variables: Any, split: Split, prepared: Any) -> dict[str, T]:
        def of_model(model: Recommender) -> tuple[jax.Array, jax.Array]:
            return protocol.ranks(with_tables(model), split, prepared)

        ranks = nn.apply(of_model, make_model(split.train))(variables)
        return {name: of_part(getattr(split, name), its) for name, its in zip(PARTS, ranks)}

    return lambda make_model, variables: evaluate(make_model, variables, split, prepared)
