"""Matrix products in float32 on every backend: by default GPUs and TPUs use a shorter format, which would change losses
and rankings."""

import functools

import jax
import jax.numpy as jnp

from htd_jax.ops import platforms

dot = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

# Rows per chunk of `over_rows` on a GPU or TPU.
CHUNK = 256


def over_rows(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns X'Y `[a, b]` of `x` `[n, a]` and `y` `[n, b]` with many more rows than columns.

    One product on a CPU. Elsewhere it has too few results to fill the device, each with too many terms: chunks of rows
    are multiplied in parallel, and their results, `[n / CHUNK, a, b]`, are added.
    """
    return platforms.by_platform(lambda x, y: einsum("na,nb->ab", x, y), lambda x, y: in_chunks(x.T, y), x, y)


def in_chunks(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns `dot(x, y)` of `x` `[a, n]` and `y` `[n, b]`, n large, in chunks: the form for a GPU or TPU."""
    pieces = max(1, -(-len(y) // CHUNK))
    pad = pieces * CHUNK - len(y)
    wide = jnp.pad(x, [(0, 0), (0, pad)]).reshape(len(x), pieces, CHUNK)
    long = jnp.pad(y, [(0, pad), (0, 0)]).reshape(pieces, CHUNK, y.shape[1])
    return jnp.sum(einsum("acn,cnb->cab", wide, long), axis=0)


@jax.custom_vjp
def rows_dot(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns `dot(x, y)` of many rows `[n, a]` and a small matrix `[a, b]`; its gradient is summed by `over_rows`."""
    return dot(x, y)


rows_dot.defvjp(
    lambda x, y: (dot(x, y), (x, y)),
    lambda factors, gradient: (dot(gradient, factors[1].T), over_rows(factors[0], gradient)),
)
