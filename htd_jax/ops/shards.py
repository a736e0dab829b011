"""Rows of arrays that are split by rows over devices.

Within `jax.shard_map` over a mesh with the axis `rows`, an array that varies over this axis is a shard: the part of the
rows that one device holds, all parts of one size, in the order of the devices. Row numbers count through all of them.
The functions here take shards and whole arrays alike, and outside a mesh they are plain indexing.
"""

import jax

from htd_jax.ops.manual import axes_of

# The axes of a mesh: batches are divided along `data`, tables along `rows`.
DATA, ROWS = "data", "rows"


def is_shard(x: jax.Array) -> bool:
    """Returns whether an array holds a part of the rows."""
    return ROWS in axes_of(x)
