"""Rows grouped by owner into blocks, so that products over an owner's rows become products over blocks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.ops.products import einsum


class Blocks(NamedTuple):
    """Rows in blocks.

    Attributes:
      rows: `[blocks, size]` int32, the rows of each block in ascending order, n for padding.
      owner: `[blocks]` int32, the owner of each block's rows.
      slots: `[n, k]` int32, the position of the pair (row, owner) among the `blocks * size`; `blocks * size` for an
        inactive pair.
      used: a scalar, the number of blocks that hold a row; they come first, in the order of their owners.
    """

    rows: jax.Array
    owner: jax.Array
    slots: jax.Array
    used: jax.Array


def into_blocks(active: jax.Array, sides: tuple[int, ...], size: int, most: int) -> Blocks:
    """Returns blocks of the active pairs (row, owner).

    Each of the s sides has k owners: owner j of side i is number i k + j.

    Args:
      active: `[n, k]` bool, the owners of its side that a row has; n under 2^24.
      sides: the number of rows of each side, in the order of the rows; n in total. Static.
      size: rows per block.
      most: number of blocks, s k + pairs // size is enough; pairs beyond it are dropped.
    """
    rows, owners = active.shape
    side_of = side_of_rows(sides)
    position = running_count(active)  # from 1
    last = np.cumsum(sides)
    ends = jnp.where((last > 0)[:, None], position[np.maximum(last - 1, 0)], 0)
    before = jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]])  # in the sides before a row's side
    blocks = -(-(ends - before).ravel() // size)
    last_block = jnp.sum(jnp.where(np.tri(len(blocks), dtype=bool), blocks[None], 0), axis=1)
    base = (last_block - blocks).reshape(-1, owners) * size - before
    slots = jnp.where(active, base[side_of] + position - 1, most * size)
    row = jnp.broadcast_to(jnp.arange(rows, dtype=jnp.int32)[:, None], active.shape)
    row_of = jnp.full(most * size, rows, jnp.int32).at[slots].set(row, mode="drop").reshape(most, size)
    owner = jnp.sum(last_block[None] <= jnp.arange(most, dtype=jnp.int32)[:, None], axis=1, dtype=jnp.int32)
    owner = jnp.minimum(owner, len(blocks) - 1)
    return Blocks(row_of, owner, slots, last_block[-1])


def to_slots(x: jax.Array, slots: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Scatters a number per pair, `x` `[n, k]`, to the pairs' positions in blocks of `shape`; zeros elsewhere."""
    return jnp.zeros(shape, x.dtype).ravel().at[slots].set(x, mode="drop").reshape(shape)


def side_of_rows(sides: tuple[int, ...]) -> np.ndarray:
    """Returns each row's side: `[n]`, constants."""
    return np.repeat(np.arange(len(sides)), sides)


def running_count(active: jax.Array) -> jax.Array:
    """Returns the cumulative sum of `active` `[n, k]` bool over rows: `[n, k]` int32.

    Two products with triangles of ones, about 2 n^1.5 k operations, exact up to 2^24; `jnp.cumsum` would be log n small
    operations on a device, or a loop.
    """
    rows, owners = active.shape
    size = 1 << -(-max(rows - 1, 1).bit_length() // 2)
    pieces = -(-rows // size)
    ones = jnp.pad(active.astype(jnp.float32), [(0, pieces * size - rows), (0, 0)]).reshape(pieces, size, owners)
    within = einsum("ab,pbk->pak", np.tri(size, dtype=np.float32), ones)
    before = einsum("pq,qk->pk", np.tri(pieces, k=-1, dtype=np.float32), within[:, -1])
    return (within + before[:, None]).reshape(-1, owners)[:rows].astype(jnp.int32)
