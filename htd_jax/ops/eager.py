"""Sums over many rows of what is large for each, with a gradient that is taken on the way."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Scores = Callable[[jax.Array], jax.Array]
OfBlock = Callable[[jax.Array, Any], jax.Array]


def sum_over_blocks(scores: Scores, of_block: OfBlock, rows: jax.Array, others: Any, width: int) -> jax.Array:
    """The sum of `of_block(scores(rows), others)` over blocks of `width` rows, one block at a time.

    Differentiated, it takes the gradient of each block where it computes its value: nothing is computed twice, and
    nothing of a block is kept but what it adds to the gradient of what `scores` is made of.

    Args:
      scores: rows `[width]` -> `[width, m]`, differentiable in what it closes over, and called for its gradient.
      of_block: a scalar of these and of their part of `others`; no gradient by anything else is known.
      rows: `[n]` int32.
      others: a pytree of arrays `[n, ...]`, constants; zero, or false, where a row is added to fill the last block. So
        `of_block` must be 0 for rows all of whose `others` are zero.
      width: rows in a block, at least 1.

    Returns:
      A scalar.
    """
    blocks = -(-len(rows) // width)
    in_blocks = lambda x: jnp.pad(x, [(0, blocks * width - len(x))] + [(0, 0)] * (x.ndim - 1)).reshape(
        blocks, width, *x.shape[1:]
    )
    cut = jax.tree.map(in_blocks, (rows, jax.lax.stop_gradient(others)))
    converted, made_of = jax.closure_convert(scores, cut[0][0])
    return _total(converted, of_block, tuple(made_of), cut)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _total(scores: Callable[..., jax.Array], of_block: OfBlock, made_of: tuple[jax.Array, ...], cut: Any) -> jax.Array:
    return jnp.sum(jax.lax.map(lambda block: of_block(scores(block[0], *made_of), block[1]), cut))


def _with_gradient(
    scores: Callable[..., jax.Array], of_block: OfBlock, made_of: tuple[jax.Array, ...], cut: Any
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    def turn(total: Any, block: Any) -> tuple[Any, None]:
        rows, others = block
        found, back = jax.vjp(lambda made_of: scores(rows, *made_of), made_of)
        value, by_scores = jax.value_and_grad(of_block)(found, others)
        return jax.tree.map(jnp.add, total, (value, *back(by_scores))), None

    nothing = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, made_of))
    return jax.lax.scan(turn, nothing, cut)[0]


def _scaled(
    scores: Callable[..., jax.Array], of_block: OfBlock, gradient: tuple[jax.Array, ...], by_total: jax.Array
) -> tuple[tuple[jax.Array, ...], None]:
    return jax.tree.map(lambda one: one * by_total, gradient), None


_total.defvjp(_with_gradient, _scaled)
