"""The largest entries of rows."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from htd_jax.ops.shards import ROWS, divided_by_compiler, first_row

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
    if divided_by_compiler():
        return _by_devices(scores, k)
    if columns < WIDE or 8 * k * CHUNK > columns:
        return _search(scores, k)
    chunks = jnp.pad(scores, [(0, 0), (0, -columns % CHUNK)], constant_values=_lowest(scores.dtype)).reshape(
        rows, -1, CHUNK
    )
    chunk = jnp.sort(_search(chunks.max(axis=2), k)[1], axis=1)  # in order, so that ties are
    among = jnp.take_along_axis(chunks, chunk[:, :, None], axis=1).reshape(rows, -1)
    values, at = _search(among, k)
    return values, jnp.take_along_axis(chunk, at // CHUNK, axis=1) * CHUNK + at % CHUNK


def _by_devices(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Searches on all devices of a mesh: rows, or the columns of wide rows, of which each device keeps its k best; the
    compiler would have every device search everything."""
    rows, columns = scores.shape
    shards = jax.sharding.get_abstract_mesh().shape[ROWS]
    if rows >= columns:
        padded = jnp.pad(scores, [(0, -rows % shards), (0, 0)])
        found = jax.shard_map(lambda own: _search(own, k), in_specs=P(ROWS), out_specs=P(ROWS))(padded)
        return found[0][:rows], found[1][:rows]

    def best(own: jax.Array) -> tuple[jax.Array, jax.Array]:
        values, at = _search(own, min(k, own.shape[1]))
        of_all = functools.partial(jax.lax.all_gather, axis_name=ROWS, axis=1, tiled=True, to="invarying")
        values, at = of_all(values), of_all(at + first_row(own, axis=1))
        values, place = _search(values, k)  # in the order of columns, so that ties are
        return values, jnp.take_along_axis(at, place, axis=1)

    padded = jnp.pad(scores, [(0, 0), (0, -columns % shards)], constant_values=_lowest(scores.dtype))
    values, at = jax.shard_map(best, in_specs=P(None, ROWS), out_specs=P())(padded)
    return values, at


def _search(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    values, columns = jax.lax.optimization_barrier(jax.lax.top_k(scores, k))
    return values, columns


def _lowest(dtype: Any) -> Any:
    return -jnp.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min
