"""Parts that the losses with a softmax share. Scores of all items may be split by columns, see `htd_jax.ops.shards`."""

import chex
import jax
import jax.numpy as jnp

from htd_jax.losses.checks import check_scalar
from htd_jax.ops.shards import any_of, largest, total


def subtract_best(scores: jax.Array, where: jax.Array | None) -> jax.Array:
    """Returns each row `[n, m]` minus its maximum, which keeps sums of exponentials small; masked rows, or entries, are
    0."""
    lowest = jnp.finfo(scores.dtype).min
    if where is None or where.ndim == 1:
        if where is not None:
            scores = jnp.where(where[:, None], scores, 0)
        return scores - jax.lax.stop_gradient(jnp.max(scores, axis=1, keepdims=True, initial=lowest))
    best = largest(jnp.max(jnp.where(where, scores, lowest), axis=1, keepdims=True, initial=lowest))
    return jnp.where(where, jnp.where(where, scores, 0) - best, 0)


def mask_entries(mask: jax.Array, where: jax.Array | None) -> jax.Array:
    """Returns `mask` `[n, m]` where `where`, `[n]` (rows) or `[n, m]` (entries), is true."""
    return mask if where is None else mask & (where if where.ndim == 2 else where[:, None])


def rows_with_entries(where: jax.Array | None) -> jax.Array | None:
    """Returns which rows `[n]` a mask of rows, or of entries, does not mask whole."""
    return where if where is None or where.ndim == 1 else any_of(where.any(1))


def log_sum(scores: jax.Array, where: jax.Array) -> jax.Array:
    """Returns the log-sum-exp `[n]` of each row's unmasked entries, finite even if all are masked."""
    nothing = jnp.finfo(scores.dtype).min / 2
    scores = jnp.where(where, scores, nothing)
    best = largest(jnp.max(scores, axis=1, initial=nothing))
    return best + jnp.log(total(jnp.sum(jnp.exp(scores - best[:, None]), axis=1)))


def cross_entropies(scores: jax.Array, guide: jax.Array, where: jax.Array, temperature: chex.Numeric) -> jax.Array:
    """Returns each row's cross-entropy between the softmaxes of `scores` and of `guide`, which is a constant.

    Args:
      scores, guide: `[n, m]` floats.
      where: `[n, m]` bool.
      temperature: the divisor of both, over 0.

    Returns:
      `[n]`, 0 if all entries are masked.
    """
    if not scores.shape[1]:
        return jnp.zeros(len(scores), scores.dtype)
    temperature = check_scalar("temperature", temperature, scores.dtype)
    # Masked entries get a share of 0. They stay finite, since the difference of two infinities has no gradient.
    scaled = lambda x: jnp.where(where, jnp.where(where, x, 0) / temperature, jnp.finfo(scores.dtype).min / 2)
    share = jax.nn.softmax(jax.lax.stop_gradient(scaled(guide)), axis=1)
    return -jnp.sum(jnp.where(where, share * jax.nn.log_softmax(scaled(scores), axis=1), 0), axis=1)
