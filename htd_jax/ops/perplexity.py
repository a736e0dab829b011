"""Probabilities of a given perplexity."""

import chex
import jax
import jax.numpy as jnp

from htd_jax.ops.rows import safe_divisor

# Bisections of the logarithm of a temperature: its error is then 2^-30 of the range, far below a float's of the result.
BISECTIONS = 30

# Temperatures in units of the range of a row's logits. At the lowest, only equals of the best have a share; at the
# highest, all are as good as equal.
LOWEST, HIGHEST = 1e-4, 1e4


def with_perplexity(logits: chex.Array, where: chex.Array, perplexity: float) -> jax.Array:
    """Returns the softmax of each row of logits at the temperature that gives it this perplexity, exp(entropy).

    The perplexity is the effective number of items: a uniform distribution over n items has n. Multiplying logits by a
    number over 0, or adding one, changes nothing. A row of fewer items than the perplexity is uniform; a row of which
    more items share the best logit is uniform over these.

    Args:
      logits: `[n, k]`.
      where: `[n, k]` bool; a masked item has no share.
      perplexity: at least 1.

    Returns:
      `[n, k]`, rows with a sum of 1, or of 0 where all is masked.

    >>> shares = with_perplexity(jnp.array([[3.0, 2.0, 1.0, 9.0]]), jnp.array([[True, True, True, False]]), 2.0)
    >>> [f"{share:.3f}" for share in shares[0]], f"{jnp.exp(-jnp.sum(shares * jnp.log(shares.clip(1e-9)))):.3f}"
    (['0.749', '0.199', '0.053', '0.000'], '2.000')
    """
    chex.assert_rank([logits, where], 2)
    chex.assert_equal_shape([logits, where])
    logits = jnp.asarray(logits, jnp.promote_types(jnp.float32, jnp.result_type(logits)))
    best = jnp.max(jnp.where(where, logits, -jnp.inf), axis=1, keepdims=True, initial=jnp.finfo(logits.dtype).min)
    below = jnp.where(where, best - logits, 0)
    below = below / safe_divisor(jnp.max(below, axis=1, keepdims=True))

    def shares(log_temperature: jax.Array) -> jax.Array:
        weights = jnp.where(where, jnp.exp(-below / jnp.exp(log_temperature)[:, None]), 0)
        return weights / safe_divisor(weights.sum(axis=1, keepdims=True))

    def narrow(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        p = shares(middle)
        entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0), axis=1)
        too_high = entropy > jnp.log(perplexity)
        return jnp.where(too_high, low, middle), jnp.where(too_high, middle, high)

    ends = tuple(jnp.full(len(logits), jnp.log(end), logits.dtype) for end in (LOWEST, HIGHEST))
    low, high = jax.lax.fori_loop(0, BISECTIONS, narrow, ends)
    return shares((low + high) / 2)
