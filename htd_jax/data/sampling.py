"""Everything random about a batch, on the device and inside the compiled epoch."""

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from htd_jax.data.interactions import Interactions

ROUNDS = 8
# Items that `seen_mask` marks of every user at once.
TURN = 64


def shuffle(key: chex.PRNGKey, size: int) -> jax.Array:
    """A pseudo-random order of `size` numbers, computed instead of sorted: O(size), and exact on every device.

    A generalised Feistel network: x in [0, a b) is the pair (x // b, x % b), and each round adds to one half, modulo
    its size, a keyed hash of the other. Every round is a bijection, so the whole is one. The few results from `size`
    to a b are sent through again until they fall below `size` ("cycle walking"), which keeps it a bijection.

    Of a handful of numbers not all orders are equally likely (of 5, by up to a quarter; a number's place, 3%), and
    where size = a b with both odd, no odd permutation is made. Of some dozens, places are uniform as tests see it.

    Source: Luby and Rackoff, SIAM J. Comput. 1988; for shuffling, Mitchell et al., ACM TOPC 2022.

    Args:
      key: a JAX random key.
      size: at least 1 and under 2^31, static.

    Returns:
      `[size]` int32, a permutation of 0 .. size - 1.
    """
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    round_keys = jax.random.bits(key, (ROUNDS,))

    def scramble(x: jax.Array) -> jax.Array:
        left, right = x // b, x % b
        for i in range(0, ROUNDS, 2):
            left = (left + _hash(right, round_keys[i]) % a) % a
            right = (right + _hash(left, round_keys[i + 1]) % b) % b
        return left * b + right

    order = jax.lax.while_loop(
        lambda x: (x >= size).any(),
        lambda x: jnp.where(x < size, x, scramble(x)),
        scramble(jnp.arange(size, dtype=jnp.uint32)),
    )
    return order.astype(jnp.int32)


def unseen_items(key: chex.PRNGKey, train: Interactions) -> jax.Array:
    """One item for each pair of `train`, uniform over the items that the pair's user has not seen.

    Dealt like cards, packs of all the items each in a new order, so that every item is drawn almost equally often, as
    every positive is; independent draws would give each item a number of its own, by the law of Poisson. A pair that
    is dealt what its user has seen, s of m items, draws again among the unseen, which leaves every one of these as
    likely as any other: 1/m + s/m 1/(m - s) = 1/(m - s).

    The second draw is no rejection either, see `nth_unseen`. O(n log(max_degree) + m), no table.

    Args:
      key: a JAX random key.
      train: no user of which has seen every item.

    Returns:
      `[n]` int32, in the order of `train`.
    """
    deal_key, again_key = jax.random.split(key)
    packs = -(-len(train) // train.num_items)
    dealt = jax.vmap(lambda key: shuffle(key, train.num_items))(jax.random.split(deal_key, packs)).ravel()[: len(train)]
    start, stop = train.offsets[train.users], train.offsets[train.users + 1]
    seen = was_seen(train, train.users, dealt)
    r = jax.random.randint(again_key, train.users.shape, 0, train.num_items - (stop - start))
    return jnp.where(seen, nth_unseen(train, train.users, r), dealt)


def nth_unseen(train: Interactions, users: jax.Array, r: jax.Array) -> jax.Array:
    """The r-th, from 0, of the items that a user has not seen, in the order of items.

    Of a user's sorted items s_0 < s_1 < ..., s_j has s_j - j unseen items before it, so the r-th unseen item is r plus
    the number of j with s_j - j <= r, found by bisection: O(log(max_degree)) each, no table.

    Args:
      train: who has seen what.
      users: integers that broadcast with `r`.
      r: integers from 0, under the number of items that the user has not seen.

    Returns:
      int32 of the shape of both.
    """
    return r + _count_leading(train, users, r, lambda item, j: item - j <= r)


def seen_before(train: Interactions, users: jax.Array, items: jax.Array) -> jax.Array:
    """How many of a user's seen items come before an item, by bisection.

    Args:
      train: who has seen what.
      users: integers that broadcast with `items`.
      items: integers.

    Returns:
      int32 of the shape of both; an unseen item is the r-th unseen one with r the item less this.
    """
    return _count_leading(train, users, items, lambda item, j: item < items)


def was_seen(train: Interactions, users: jax.Array, items: jax.Array) -> jax.Array:
    """Whether each user has seen each item, of integers that broadcast: bool of the shape of both."""
    at = train.offsets[users] + seen_before(train, users, items)
    return (at < train.offsets[users + 1]) & (train.items[jnp.minimum(at, len(train) - 1)] == items)


def seen_mask(train: Interactions, users: jax.Array) -> jax.Array:
    """Which items each of the users `[n]` has seen: `[n, num_items]` bool.

    Some of each user's items at a time, as often as the one with the most of them needs: of users who are drawn, few
    have nearly as many as the one who has the most of all.
    """
    start, stop = train.offsets[users][:, None], train.offsets[users + 1][:, None]
    most, rows, turn = jnp.max(stop - start, initial=0), jnp.arange(len(users))[:, None], jnp.arange(TURN)[None, :]

    def mark(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        done, mask = state
        at = start + done + turn
        seen = jnp.where(at < stop, train.items[jnp.minimum(at, len(train) - 1)], train.num_items)
        return done + TURN, mask.at[rows, seen].set(True, mode="drop")

    nothing = jnp.zeros((len(users), train.num_items), bool)
    return jax.lax.while_loop(lambda state: state[0] < most, mark, (jnp.zeros_like(most), nothing))[1]


def distinct(ids: jax.Array, where: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """The different values among `ids`, in a static shape.

    Args:
      ids: `[n]` integers in [0, size).
      where: `[n]` bool; masked ids do not count.
      size: static.

    Returns:
      `[n]` ids in ascending order and `[n]` bool, true at the first occurrence of each.
    """
    chex.assert_rank([ids, where], 1)
    chex.assert_equal_shape([ids, where])
    ids = jnp.sort(jnp.where(where, ids, size))
    first = jnp.concatenate([jnp.ones(1, bool), ids[1:] != ids[:-1]])
    return jnp.minimum(ids, size - 1), first & (ids < size)


def _count_leading(
    train: Interactions, users: jax.Array, like: jax.Array, holds: Callable[[jax.Array, jax.Array], jax.Array]
) -> jax.Array:
    """How many of each user's items `holds(item, j)` is true of, true of the first ones only, in the shape that `users`
    and `like` have together."""
    start, stop = train.offsets[users], train.offsets[users + 1]
    shape = jnp.broadcast_shapes(users.shape, like.shape)
    low, high = jnp.zeros(shape, jnp.int32), jnp.broadcast_to(stop - start, shape)  # the count lies in [low, high]
    for _ in range(train.max_degree.bit_length()):
        middle = (low + high) // 2
        more = holds(train.items[jnp.minimum(start + middle, len(train) - 1)], middle)
        low, high = jnp.where((low < high) & more, middle + 1, low), jnp.where((low < high) & ~more, middle, high)
    return low


def _hash(x: jax.Array, key: jax.Array) -> jax.Array:
    """A well-mixed uint32 of each uint32 (the finaliser of MurmurHash3, keyed)."""
    x = x ^ key
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
