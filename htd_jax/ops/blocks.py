"""Rows gathered into blocks of one owner each, so that products over an owner's rows become products over blocks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.ops.products import einsum


class Blocks(NamedTuple):
    """Rows in blocks.

    Attributes:
      rows: `[blocks, size]` int32, the rows of each block in ascending order, n where a block has no more.
      owner: `[blocks]` int32, whose rows they are.
      slots: `[n, k]` int32, where the pair (row, owner) is among the `blocks * size` places; `blocks * size` where the
        pair does not count.
      used: a scalar, how many blocks hold a row; they come first, in the order of their owners.
    """

    rows: jax.Array
    owner: jax.Array
    slots: jax.Array
    used: jax.Array


def into_blocks(active: jax.Array, sides: tuple[int, ...], size: int, most: int) -> Blocks:
    """Blocks for the pairs (row, owner) that count.

    Each of the s sides has k owners of its own: owner j of side i is number i k + j of all.

    Args:
      active: `[n, k]` bool, which owners of its side a row has; n under 2^24.
      sides: how many rows each side has, in the order of the rows; n in all. Static.
      size: rows in a block.
      most: how many blocks there may be, s k + pairs // size are enough.

    Returns:
      The blocks; of pairs beyond `most` blocks nothing.
    """
    rows, owners = active.shape
    side_of = side_of_rows(sides)
    position = running_count(active)  # from 1
    last = np.cumsum(sides)
    ends = jnp.where((last > 0)[:, None], position[np.maximum(last - 1, 0)], 0)
    before = jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]])  # the sides before a row's own
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
    """A number for each pair, `x` `[n, k]`, where the pairs are in blocks of `shape`; zeros where none is."""
    return jnp.zeros(shape, x.dtype).ravel().at[slots].set(x, mode="drop").reshape(shape)


def side_of_rows(sides: tuple[int, ...]) -> np.ndarray:
    """Each row's side: `[n]`, constants."""
    return np.repeat(np.arange(len(sides)), sides)


def running_count(active: jax.Array) -> jax.Array:
    """How many of `active` `[n, k]` bool are true down to each row, itself included: `[n, k]` int32.

    Two products with triangles of ones, about 2 n^1.5 k operations, exact up to 2^24: a sum that runs in one pass is
    log n small operations on a device, or a loop.
    """
    rows, owners = active.shape
    size = 1 << -(-max(rows - 1, 1).bit_length() // 2)
    pieces = -(-rows // size)
    ones = jnp.pad(active.astype(jnp.float32), [(0, pieces * size - rows), (0, 0)]).reshape(pieces, size, owners)
    within = einsum("ab,pbk->pak", np.tri(size, dtype=np.float32), ones)
    before = einsum("pq,qk->pk", np.tri(pieces, k=-1, dtype=np.float32), within[:, -1])
    return (within + before[:, None]).reshape(-1, owners)[:rows].astype(jnp.int32)
