"""The largest entries of rows."""

import jax
import jax.numpy as jnp

# From so many columns on, rows are searched by chunks of so many, if the chunks that are kept hold an eighth of them.
WIDE, CHUNK = 2**16, 16


def top_k(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Returns the k largest entries per row and their columns, the largest first, ties in the order of columns.

    Use it instead of `jax.lax.top_k`, which a CPU replaces by a full sort, a hundred times as slow, if the result is
    sliced: the barrier keeps such slices out of the search.

    Wide rows are searched in two steps: the k chunks with the largest maxima, then the k best of these. This is exact,
    ties included, see `htd_jax.serving.topk`.

    Args:
      scores: `[n, m]` numbers, not NaN.
      k: at least 1; at most m counts.

    Returns:
      `[n, min(k, m)]` values, and int32 columns.

    >>> [x.tolist() for x in top_k(jnp.array([[1.0, 3.0, 2.0, 3.0]]), 2)]
    [[[3.0, 3.0]], [[1, 3]]]
    """
    rows, columns = scores.shape
    k = min(k, columns)
    if columns < WIDE or 8 * k * CHUNK > columns:
        return _search(scores, k)
    lowest = -jnp.inf if jnp.issubdtype(scores.dtype, jnp.floating) else jnp.iinfo(scores.dtype).min
    chunks = jnp.pad(scores, [(0, 0), (0, -columns % CHUNK)], constant_values=lowest).reshape(rows, -1, CHUNK)
    chunk = jnp.sort(_search(chunks.max(axis=2), k)[1], axis=1)  # in order, so that ties are
    among = jnp.take_along_axis(chunks, chunk[:, :, None], axis=1).reshape(rows, -1)
    values, at = _search(among, k)
    return values, jnp.take_along_axis(chunk, at // CHUNK, axis=1) * CHUNK + at % CHUNK


def _search(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    values, columns = jax.lax.optimization_barrier(jax.lax.top_k(scores, k))
    return values, columns
