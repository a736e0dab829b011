"""Sums of the rows of each user's items, at the cost of their pairs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from htd_jax.ops.platforms import by_backend

# Pairs whose rows are gathered at once: on a CPU these stay in its cache, elsewhere a step of a loop costs a launch.
ON_CPU, ELSEWHERE = 2**12, 2**18

Add = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Histories(NamedTuple):
    """The items of every user: `items[offsets[u]:offsets[u + 1]]` of user u.

    Attributes:
      offsets: `[num_users + 1]` int32.
      items: `[pairs]` int32.
    """

    offsets: jax.Array
    items: jax.Array


@jax.custom_vjp
def pool(table: jax.Array, histories: Histories, users: jax.Array) -> jax.Array:
    """Returns the sum of the rows of each user's items: `[n, d]`, zeros for a user without items.

    Time is O(p (d + log n)) for users with p pairs in all, and memory in addition to the result that of a block of
    rows, in both passes.

    Args:
      table: `[num_items, d]`, differentiable.
      histories: constants.
      users: `[n]` integers, in any order, repeated or not.
    """
    chex.assert_rank([table, users], [2, 1])

    def add(sums: jax.Array, owners: jax.Array, items: jax.Array) -> jax.Array:
        return sums.at[owners].add(table[items], mode="drop", indices_are_sorted=True)

    return _fold(histories, users, add, jnp.zeros((len(users), table.shape[1]), table.dtype))


def _backward(inputs: tuple[jax.Array, Histories, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, None, None]:
    table, histories, users = inputs
    rows = jnp.pad(cotangent, ((0, 1), (0, 0)))  # the last is for pairs past the end

    def add(gradient: jax.Array, owners: jax.Array, items: jax.Array) -> jax.Array:
        return gradient.at[items].add(rows[owners])

    return _fold(histories, users, add, jnp.zeros_like(table)), None, None


pool.defvjp(lambda *inputs: (pool(*inputs), inputs), _backward)


def _fold(histories: Histories, users: jax.Array, add: Add, init: jax.Array) -> Any:
    """Folds `add(value, owners, items)` over the pairs of users, a block at a time.

    `owners` are positions in `users`, ascending; n past the last pair.
    """
    offsets, entries = histories
    if not len(users) or not len(entries):
        return init
    starts, degrees = offsets[users], jnp.diff(offsets)[users]
    ends = jnp.cumsum(degrees)
    size = by_backend(ON_CPU, ELSEWHERE)

    def block(number: jax.Array, value: jax.Array) -> jax.Array:
        at = number * size + jnp.arange(size, dtype=ends.dtype)
        owners = jnp.searchsorted(ends, at, side="right", method="scan_unrolled")
        known = jnp.minimum(owners, len(users) - 1)
        pairs = (starts - ends + degrees)[known] + at
        return add(value, owners, entries[jnp.minimum(pairs, len(entries) - 1)])

    return jax.lax.fori_loop(0, -(-ends[-1] // size), block, init)
