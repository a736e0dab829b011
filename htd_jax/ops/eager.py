"""Sums over many rows whose intermediate results are large, with the gradient computed along with the value."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from htd_jax.ops.manual import axes_of, vary
from htd_jax.ops.mapped import in_blocks

Scores = Callable[[jax.Array], jax.Array]
BlockLoss = Callable[[jax.Array, Any], jax.Array]


def sum_over_blocks(scores: Scores, loss_for_block: BlockLoss, rows: jax.Array, others: Any, width: int) -> jax.Array:
    """Returns the sum of `loss_for_block(scores(rows), others)` over blocks of `width` rows, one block at a time.

    When it is differentiated, each block's gradient is computed along with its value: nothing is computed twice, and a
    block leaves nothing in memory but its contribution to the gradient by the values that `scores` closes over.

    Args:
      scores: rows `[width]` -> `[width, m]`, differentiable by the values that it closes over.
      loss_for_block: (scores, the block's part of `others`) -> a scalar; differentiated by the scores alone.
      rows: `[n]` int32.
      others: a pytree of arrays `[n, ...]`, constants; zero, or false, in the rows that pad the last block.
        `loss_for_block` must be 0 for rows all of whose `others` are zero.
      width: rows per block, at least 1.

    Returns:
      A scalar.
    """
    blocks = jax.tree.map(lambda x: in_blocks(x, width), (rows, jax.lax.stop_gradient(others)))
    converted, closed_over = jax.closure_convert(scores, blocks[0][0])
    return _total(converted, loss_for_block, tuple(closed_over), blocks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _total(
    scores: Callable[..., jax.Array], loss_for_block: BlockLoss, closed_over: tuple[jax.Array, ...], blocks: Any
) -> jax.Array:
    loss = lambda block: loss_for_block(scores(block[0], *closed_over), block[1])
    return jnp.sum(jax.lax.map(loss, blocks))


def _total_and_gradient(
    scores: Callable[..., jax.Array], loss_for_block: BlockLoss, closed_over: tuple[jax.Array, ...], blocks: Any
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    def add(total: Any, block: Any) -> tuple[Any, None]:
        rows, others = block
        block_scores, pull_back = jax.vjp(lambda closed_over: scores(rows, *closed_over), closed_over)
        value, gradient = jax.value_and_grad(loss_for_block)(block_scores, others)
        return jax.tree.map(jnp.add, total, (value, *pull_back(gradient))), None

    zero = (jnp.zeros(()), jax.tree.map(lambda x: vary(jnp.zeros_like(x), axes_of(x)), closed_over))
    return jax.lax.scan(add, zero, blocks)[0]


_total.defvjp(
    _total_and_gradient,
    lambda scores, loss_for_block, gradient, cotangent: (jax.tree.map(lambda g: g * cotangent, gradient), None),
)
