"""Rows of a matrix: masked, scaled to length one, taken by index, summed by group."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from htd_jax.ops import platforms
from htd_jax.ops.manual import alike
from htd_jax.ops.products import CHUNK, in_chunks


def keep_rows(x: jax.Array, where: jax.Array | None) -> jax.Array:
    """Sets the rows of `x` `[n, ...]` where `where` `[n]` is false to zero, even if they are nan, and stops their
    gradient."""
    if where is None:
        return x
    return jnp.where(where.reshape(where.shape + (1,) * (x.ndim - 1)), x, 0)


def take_rows(x: jax.Array, index: jax.Array | tuple[jax.Array, ...]) -> jax.Array:
    """Returns `x[index]`, zeros where the index is out of range."""
    return x.at[index].get(mode="fill", fill_value=0)


def unit_rows(x: jax.Array) -> jax.Array:
    """Returns the rows of `x` `[n, d]` scaled to length one; zero rows stay zero, with a zero gradient.

    A direction does not depend on the row's scale, so each row is first divided by its largest entry, a constant:
    squares then neither overflow nor vanish.
    """
    largest = _largest(x)[:, None]
    x = x / safe_divisor(largest)
    square = jnp.sum(x**2, axis=1, keepdims=True)
    return x * jnp.where(largest == 0, 0, jax.lax.rsqrt(jnp.where(largest == 0, 1, square)))


def group_directions(x: jax.Array, groups: jax.Array, num_groups: int) -> jax.Array:
    """Returns the direction of the mean of each group's rows, zeros for an empty group.

    The rows of a group are first divided by the largest entry among them, a constant, which changes no direction: a sum
    of rows then neither overflows nor vanishes.

    Args:
      x: `[n, d]` floats.
      groups: `[n]` integers in [0, num_groups]; `num_groups` stands for no group.
      num_groups: static.

    Returns:
      `[num_groups, d]`, rows of length one or zero.
    """
    row_largest, row_groups = alike(_largest(x), groups)
    largest = _group_largest(row_largest, row_groups, num_groups)
    divisor = safe_divisor(largest).at[groups].get(mode="fill", fill_value=1)
    return unit_rows(_group_sums(*alike(x / divisor[:, None], groups), num_groups))


def group_sizes(groups: jax.Array, num_groups: int) -> jax.Array:
    """Returns the number of rows of each group: `[num_groups]` int32."""
    return platforms.by_platform(
        lambda groups: jax.ops.segment_sum(jnp.ones_like(groups, jnp.int32), groups, num_groups),
        lambda groups: _reduced(jnp.sum, _members(groups, num_groups).astype(jnp.int32)).astype(jnp.int32),
        groups,
    )


def _group_largest(largest: jax.Array, groups: jax.Array, num_groups: int) -> jax.Array:
    """Returns the maximum of each group's `largest`, at least 0: `[num_groups]`."""
    return platforms.by_platform(
        lambda largest, groups: jnp.maximum(jax.ops.segment_max(largest, groups, num_groups), 0),
        lambda largest, groups: _reduced(jnp.max, jnp.where(_members(groups, num_groups), largest[None], 0)),
        *(largest, groups),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _group_sums(x: jax.Array, groups: jax.Array, num_groups: int) -> jax.Array:
    """Returns the sum of each group's rows: `[num_groups, d]`.

    On a CPU the n rows are scattered, O(n d). Elsewhere it is one product with the rows' membership `[n, num_groups]`,
    2 n num_groups d operations and 4 n num_groups bytes: a scatter adds in no fixed order on a GPU, so that its results
    would differ from run to run.
    """
    return platforms.by_platform(
        lambda x, groups: jax.ops.segment_sum(x, groups, num_groups),
        lambda x, groups: in_chunks(_members(groups, num_groups).astype(x.dtype), x),
        x,
        groups,
    )


_group_sums.defvjp(
    lambda x, groups, num_groups: (_group_sums(x, groups, num_groups), groups),
    lambda num_groups, groups, cotangent: (take_rows(cotangent, groups), None),
)


def _reduced(reduce: Callable[..., jax.Array], x: jax.Array) -> jax.Array:
    """Reduces each row of `x` `[g, n]`, padded with zeros, first by pieces: few long rows would leave a GPU idle."""
    pieces = max(1, -(-x.shape[1] // CHUNK))
    cut = jnp.pad(x, [(0, 0), (0, pieces * CHUNK - x.shape[1])]).reshape(len(x), pieces, CHUNK)
    return reduce(reduce(cut, axis=2), axis=1)


def _members(groups: jax.Array, num_groups: int) -> jax.Array:
    """Returns the rows of each group, `[num_groups, n]` bool; in this order a GPU reduces along contiguous memory."""
    return groups[None] == jnp.arange(num_groups, dtype=groups.dtype)[:, None]


def _largest(x: jax.Array) -> jax.Array:
    """Returns each row's largest absolute entry, a constant: `[n]`."""
    return jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=1, initial=0))


def safe_divisor(largest: jax.Array) -> jax.Array:
    """Returns a safe divisor: 1 instead of 0, and small enough that its reciprocal, by which a compiler may multiply
    instead, does not vanish."""
    return jnp.where(largest == 0, 1, jnp.minimum(largest, 1 / jnp.finfo(largest.dtype).tiny))
