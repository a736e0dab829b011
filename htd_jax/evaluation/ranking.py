"""The compiled evaluation of a model on a split."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from htd_jax.data import Split
from htd_jax.evaluation.metrics import CUTOFFS, Metrics, check_cutoffs, metrics_of_pairs
from htd_jax.evaluation.protocols import Full, Sampled
from htd_jax.models import MakeModel, Recommender, with_tables
from htd_jax.ops.platforms import compiler_options

Evaluator = Callable[[MakeModel, Any], dict[str, Metrics]]


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
    prepared = protocol.prepare(split)

    @functools.partial(jax.jit, static_argnums=0, compiler_options=compiler_options())
    def evaluate(make_model: MakeModel, variables: Any, split: Split, prepared: Any) -> dict[str, Metrics]:
        def of_model(model: Recommender) -> tuple[jax.Array, jax.Array]:
            return protocol.ranks(with_tables(model), split, prepared)

        ranks = nn.apply(of_model, make_model(split.train))(variables)
        of_part = lambda part, ranks: metrics_of_pairs(
            part.users, ranks, jnp.ones(len(part), bool), part.num_users, cutoffs
        )
        return {name: of_part(getattr(split, name), its) for name, its in zip(("valid", "test"), ranks)}

    return lambda make_model, variables: evaluate(make_model, variables, split, prepared)
