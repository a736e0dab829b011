"""Matrix products in full float32 on every backend: GPUs and TPUs left to themselves take a shorter format, which would
move losses and rankings."""

import functools

import jax
import jax.numpy as jnp

from htd_jax.ops import platforms

dot = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

# Rows that `over_rows` takes at once where it is not on a CPU.
CHUNK = 256


def over_rows(x: jax.Array, y: jax.Array) -> jax.Array:
    """X'Y of `x` `[n, a]` and `y` `[n, b]`, which have many more rows than columns: `[a, b]`.

    One product on a CPU. Elsewhere such a product has too few results for the device, each of too many terms: it is
    done for chunks of rows side by side, whose results, `[n / CHUNK, a, b]`, are added up.
    """
    return platforms.by_platform(lambda x, y: einsum("na,nb->ab", x, y), lambda x, y: in_chunks(x.T, y), x, y)


def in_chunks(x: jax.Array, y: jax.Array) -> jax.Array:
    """`dot(x, y)` of `x` `[a, n]` and `y` `[n, b]`, n large, as it is where it is not on a CPU."""
    pieces = max(1, -(-len(y) // CHUNK))
    pad = pieces * CHUNK - len(y)
    wide = jnp.pad(x, [(0, 0), (0, pad)]).reshape(len(x), pieces, CHUNK)
    long = jnp.pad(y, [(0, pad), (0, 0)]).reshape(pieces, CHUNK, y.shape[1])
    return jnp.sum(einsum("acn,cnb->cab", wide, long), axis=0)


@jax.custom_vjp
def rows_dot(x: jax.Array, y: jax.Array) -> jax.Array:
    """`dot(x, y)` of many rows `[n, a]` with a small matrix `[a, b]`, whose gradient is a sum `over_rows`."""
    return dot(x, y)


rows_dot.defvjp(
    lambda x, y: (dot(x, y), (x, y)),
    lambda factors, gradient: (dot(gradient, factors[1].T), over_rows(factors[0], gradient)),
)
