"""The compiled evaluation of a model on a split."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from htd_jax.data import Split
from htd_jax.evaluation.metrics import CUTOFFS, Metrics, ranking_metrics
from htd_jax.evaluation.protocols import Full, Sampled
from htd_jax.models import MakeModel

Evaluator = Callable[[MakeModel, Any], dict[str, Metrics]]


def make_evaluator(
    split: Split,
    *,
    cutoffs: tuple[int, ...] = CUTOFFS,
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
    """
    blocks = protocol.blocks(split)

    @functools.partial(jax.jit, static_argnums=0)
    def evaluate(make_model, variables, train, blocks):
        def of_blocks(model):
            nothing = jnp.zeros(1, jnp.int32)
            model.score(nothing, nothing)  # makes the model's tables here, once, not in every block
            return jax.lax.map(lambda block: protocol.ranks(model, block), blocks)

        ranks = nn.apply(of_blocks, make_model(train))(variables)
        flat = lambda x: x.reshape(-1, x.shape[-1])
        return {
            name: ranking_metrics(flat(of_part), flat(blocks[name]) >= 0, cutoffs)
            for name, of_part in zip(("valid", "test"), ranks)
        }

    return lambda make_model, variables: evaluate(make_model, variables, split.train, blocks)
