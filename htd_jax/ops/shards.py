"""Rows of arrays that are split by rows over devices.

Within `jax.shard_map` over a mesh with the axis `rows`, an array that varies over this axis is a shard: the part of the
rows that one device holds, all parts of one size, in the order of the devices. Row numbers count through all of them.
Scores of all items are split alike by columns, where the table of items is split.

The functions here take shards and whole arrays alike; of a whole array, they are plain indexing and sums. Their
gradients stay on the device that holds a row: the transpose of the sum over devices is the identity.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from htd_jax.ops.manual import axes_of

T = TypeVar("T")

# The axes of a mesh: batches are divided along `data`, tables along `rows`.
DATA, ROWS = "data", "rows"


def is_shard(tree: object) -> bool:
    """Returns whether arrays hold a part of the rows."""
    return ROWS in axes_of(tree)


def num_rows(x: jax.Array, axis: int = 0) -> int:
    """Returns the number of rows in all shards."""
    return x.shape[axis] * (jax.lax.axis_size(ROWS) if is_shard(x) else 1)


def first_row(x: jax.Array, axis: int = 0) -> jax.Array | int:
    """Returns the number of the first row that a shard holds."""
    return x.shape[axis] * jax.lax.axis_index(ROWS) if is_shard(x) else 0


def place(x: jax.Array, ids: jax.Array, axis: int = 0) -> jax.Array:
    """Returns where the rows `ids` are in a shard, and its size for those that another device holds."""
    if not is_shard(x):
        return ids
    at = ids - first_row(x, axis)
    return jnp.where((at >= 0) & (at < x.shape[axis]), at, x.shape[axis])


def _own(x: jax.Array, ids: jax.Array) -> jax.Array:
    """Returns `x[ids]` of a shard, zeros where another device holds the row."""
    return x.at[place(x, ids)].get(mode="fill", fill_value=0)


def local_rows(x: jax.Array, shard: jax.Array) -> jax.Array:
    """Returns the rows of a whole array `[n, ...]` that a device holds of `shard`, zeros past the last."""
    if not is_shard(shard):
        return x
    return x.at[first_row(shard) + jnp.arange(len(shard))].get(mode="fill", fill_value=0)


def look_up(rows: T, ids: jax.Array) -> T:
    """Returns `rows[ids]` of every array of a pytree.

    From a shard, each device takes the rows that it holds, and zeros for the others; the sum over devices moves
    d numbers per id. The gradient is added to the rows that a device holds, without communication.

    Args:
      rows: arrays `[n, ...]`.
      ids: integers of any shape, from 0 and below n; the same on all devices.
    """

    def one(x: jax.Array) -> jax.Array:
        if not is_shard(x):
            return x[ids]
        if x.dtype == jnp.bool_:
            return one(x.astype(jnp.int8)) > 0
        return jax.lax.psum(_own(x, ids), ROWS)

    found: T = jax.tree.map(one, rows)
    return found


def keep_local(rows: jax.Array, table: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns `rows` `[n, ...]` and `table[ids]`, both with zeros where another device holds the row of the table: sums
    over rows are then sums over devices, and no row is moved."""
    if not is_shard(table):
        return rows, table[ids]
    mine = (place(table, ids) < len(table)).reshape(-1, *(1,) * (rows.ndim - 1))
    return jnp.where(mine, rows, 0), _own(table, ids)


def at_owner(function: Callable[[T], jax.Array], rows: T, ids: jax.Array) -> jax.Array:
    """Returns `function(rows[ids])`, of the shape of `ids`, computed where the rows are.

    From shards, it moves one number per id in place of a row: each device computes the results of the rows that it
    holds, zeros for the others, and the sum over devices is exact.

    Args:
      function: takes the rows `[*ids.shape, ...]`; an entry of its result depends on no other row.
      rows: arrays `[n, ...]`.
      ids: integers from 0 and below n; the same on all devices.
    """
    if not is_shard(rows):
        return function(jax.tree.map(lambda x: x[ids], rows))
    first = jax.tree.leaves(rows)[0]
    mine = place(first, ids) < len(first)
    return jax.lax.psum(jnp.where(mine, function(jax.tree.map(lambda x: _own(x, ids), rows)), 0), ROWS)


def take_columns(scores: jax.Array, items: jax.Array) -> jax.Array:
    """Returns the entries `items` `[n, k]` of each row of `scores` `[n, m]`."""
    if not is_shard(scores):
        return jnp.take_along_axis(scores, items, axis=1)
    at = place(scores, items, axis=1)
    rows = jnp.arange(len(scores))[:, None]
    return jax.lax.psum(scores.at[rows, at].get(mode="fill", fill_value=0), ROWS)


def share(count: int) -> tuple[jax.Array | int, jax.Array | int]:
    """Returns the first and the last, exclusive, of `count` pieces of work that fall to a device along `data`."""
    if DATA not in devices():
        return 0, count
    number, parts = jax.lax.axis_index(DATA), jax.lax.axis_size(DATA)
    return count * number // parts, count * (number + 1) // parts


def devices() -> tuple[str, ...]:
    """Returns the axes of the mesh that a program runs on each device of; none outside `jax.shard_map`."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(axis for axis in (DATA, ROWS) if axis in manual)


def divided_by_compiler() -> bool:
    """Returns whether a program of whole arrays is divided among the devices of a mesh by the compiler, see
    `Partitioning.by_compiler`."""
    mesh = jax.sharding.get_abstract_mesh()
    return ROWS in mesh.axis_names and ROWS not in mesh.manual_axes


def own_part(x: jax.Array, fill: int = 0) -> jax.Array:
    """Returns a device's part of rows `[n, ...]` that are the same on all devices, `fill` past the last: work on a
    batch is divided so. Without a mesh it is all rows."""
    axes = devices()
    if not axes:
        return x
    size = -(-len(x) // jax.lax.axis_size(axes))
    rows = jax.lax.axis_index(axes) * size + jnp.arange(size)
    return x.at[rows].get(mode="fill", fill_value=fill)


def all_parts(part: jax.Array, rows: int) -> jax.Array:
    """Returns all of `rows` rows from the parts of the devices, see `own_part`."""
    axes = devices()
    if not axes:
        return part
    return gathered(part)[:rows]


def columns_like(x: jax.Array, scores: jax.Array, count: int) -> jax.Array:
    """Returns scores `x` of `count` items split by columns as `scores` are: both may be whole or split."""
    if is_shard(x) == is_shard(scores):
        return x
    if is_shard(scores):
        columns = first_row(scores, axis=1) + jnp.arange(scores.shape[1])
        return x.at[:, columns].get(mode="fill", fill_value=0)
    return gathered(x.T)[:count].T


def gathered(tree: T) -> T:
    """Returns rows, of which each device has a part, whole on every device."""

    def one(part: jax.Array) -> jax.Array:
        axes = tuple(axis for axis in (DATA, ROWS) if axis in axes_of(part))
        return jax.lax.all_gather(part, axes, tiled=True, to="invarying") if axes else part

    found: T = jax.tree.map(one, tree)
    return found


def total(x: jax.Array) -> jax.Array:
    """Returns the sum over devices of what each has summed over its rows, or its share of work."""
    axes = tuple(axis for axis in (DATA, ROWS) if axis in axes_of(x))  # a caller's own axes are the caller's to sum
    return jax.lax.psum(x, axes) if axes else x


def largest(x: jax.Array) -> jax.Array:
    """Returns the maximum over shards, a constant."""
    x = jax.lax.stop_gradient(x)
    return jax.lax.pmax(x, ROWS) if is_shard(x) else x


def any_of(x: jax.Array) -> jax.Array:
    """Returns whether a bool is true in any shard."""
    return total(x.astype(jnp.int32)) > 0 if is_shard(x) else x
