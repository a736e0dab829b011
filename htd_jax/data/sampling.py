"""Random sampling of batches, on the device and inside the compiled epoch."""

import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from htd_jax.data.interactions import Interactions

# Rounds of the Feistel network.
ROUNDS = 8

# Items per user that `seen_mask` marks at once.
TURN = 64

# Past this product of users and items, to score all items for every user takes minutes per epoch: a softmax over
# them is then estimated from a sample. The published data sets are below it: Gowalla, the largest, has 1.2e9.
MANY_SCORES = 2**31


class ItemSample(NamedTuple):
    """Items that stand for all.

    Attributes:
      items: `[s]` int32, ascending.
      log_weights: `[s]` floats: the logarithm of the number of items that each stands for, on average; -inf for the
        repetition of an item, which counts once, for all.
    """

    items: jax.Array
    log_weights: jax.Array


def has_many_scores(train: Interactions) -> bool:
    """Returns whether there are more pairs of a user and an item than `MANY_SCORES`."""
    return train.num_users * train.num_items > MANY_SCORES


def times_seen(train: Interactions) -> jax.Array:
    """Returns how often each item has been seen: `[num_items]` int32."""
    return jnp.zeros(train.num_items, jnp.int32).at[train.items].add(1)


def sample_items(key: chex.PRNGKey, train: Interactions, times: jax.Array, count: int) -> ItemSample:
    """Samples items, half of them uniformly and half in proportion to how often they were seen, with replacement.

    A sum over the sample, weighted, is that over all items on average, since an item that is expected c times and
    sampled k times has the weight k / c.

    Source of the mixture: Yang et al., WWW'20.

    Args:
      key: a JAX random key.
      train: the training interactions.
      times: `times_seen(train)`.
      count: the number of samples.
    """
    items = jnp.sort(mixed_items(key, train, count))
    first, last = (jnp.searchsorted(items, items, side=side, method="scan_unrolled") for side in ("left", "right"))
    weights = jnp.where(first == jnp.arange(count), (last - first) / mixed_counts(items, train, times, count), 0)
    return ItemSample(items, jnp.log(weights))


def mixed_items(key: chex.PRNGKey, train: Interactions, count: int) -> jax.Array:
    """Samples items `[count]` int32, half of them uniformly and half in proportion to how often they were seen."""
    uniform_key, seen_key = jax.random.split(key)
    uniform = jax.random.randint(uniform_key, (count - count // 2,), 0, train.num_items)
    seen = train.items[jax.random.randint(seen_key, (count // 2,), 0, len(train))]
    return jnp.concatenate([uniform, seen])


def mixed_counts(items: jax.Array, train: Interactions, times: jax.Array, count: int) -> jax.Array:
    """Returns how often `mixed_items` samples each of `items` on average; `times` is `times_seen(train)`."""
    return (count - count // 2) / train.num_items + count // 2 * times[items].astype(jnp.float32) / len(train)


def some_seen(key: chex.PRNGKey, train: Interactions, users: jax.Array, most: int) -> jax.Array:
    """Returns at most `most` items that each of the users `[n]` has seen: `[n, most]` int32, -1 for none.

    Of more, they are neighbours in the order of items from a random one on, so that all are equally likely. They follow
    from the key and the user, wherever it is in `users`.
    """
    start, degree = train.offsets[users], jnp.diff(train.offsets)[users]
    first = _hash(users.astype(jnp.uint32), jax.random.bits(key)) % jnp.maximum(degree, 1).astype(jnp.uint32)
    turn = jnp.arange(most, dtype=jnp.int32)[None, :]
    at = start[:, None] + (first.astype(jnp.int32)[:, None] + turn) % jnp.maximum(degree, 1)[:, None]
    return jnp.where(turn < degree[:, None], train.items[jnp.minimum(at, len(train) - 1)], -1)


def among(items: jax.Array, wanted: jax.Array) -> jax.Array:
    """Returns which of `items` `[s]`, ascending, are in each row of `wanted` `[n, k]`: `[n, s]` bool, for the first of
    equal items."""
    rows = jnp.arange(len(wanted))[:, None]
    return jnp.zeros((len(wanted), len(items)), bool).at[rows, _place(items, wanted)].set(True, mode="drop")


def shuffle(key: chex.PRNGKey, size: int) -> jax.Array:
    """Returns a pseudo-random permutation, computed without sorting: O(size), and the same on every device.

    A generalised Feistel network: x in [0, a b) is the pair (x // b, x % b), and each round adds to one half, modulo
    its size, a keyed hash of the other. Every round is a bijection, so the network is one. The few results from `size`
    to a b are passed through it again until they fall below `size` ("cycle walking"), which keeps it a bijection.

    For very small sizes the permutations are not equally likely (for 5, by up to a quarter; a number's place, 3%), and
    if size = a b with both odd, odd permutations never occur. From some dozens on, places pass tests of uniformity.

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
    """Samples one item for each learned pair of `train`, uniformly over the items that the pair's user has not seen.

    Items are dealt like cards, from shuffled packs of all items, so that every item is sampled almost equally often, as
    every positive is; with independent samples the counts would follow a Poisson law. If a pair is dealt one of the s
    of m items that its user has seen, it samples again among the unseen, which keeps these equally likely:
    1/m + s/m 1/(m - s) = 1/(m - s). The second sample needs no rejection, see `nth_unseen`. O(n log(max_degree) + m),
    without a table.

    Args:
      key: a JAX random key.
      train: interactions in which no user has seen every item.

    Returns:
      `[n]` int32, in the order of `train.learned`.
    """
    pairs = train.learned
    deal_key, again_key = jax.random.split(key)
    packs = -(-len(pairs) // train.num_items)
    dealt = jax.vmap(lambda key: shuffle(key, train.num_items))(jax.random.split(deal_key, packs)).ravel()[: len(pairs)]
    start, stop = train.offsets[pairs.users], train.offsets[pairs.users + 1]
    seen = was_seen(train, pairs.users, dealt)
    r = jax.random.randint(again_key, pairs.users.shape, 0, train.num_items - (stop - start))
    return jnp.where(seen, nth_unseen(train, pairs.users, r), dealt)


def nth_unseen(train: Interactions, users: jax.Array, r: jax.Array) -> jax.Array:
    """Returns the r-th item, from 0, among those that a user has not seen, in the order of items.

    In a user's sorted items s_0 < s_1 < ..., s_j has s_j - j unseen items before it, so the r-th unseen item is r plus
    the number of j with s_j - j <= r. Bisection takes O(log(max_degree)) each, without a table.

    Args:
      train: seen pairs.
      users: integers that broadcast with `r`.
      r: integers from 0, below the number of items that the user has not seen.

    Returns:
      int32 of the shape of both.
    """
    return r + _count_leading(train, users, r, lambda item, j: item - j <= r)


def seen_before(train: Interactions, users: jax.Array, items: jax.Array) -> jax.Array:
    """Returns the number of a user's seen items before an item, by bisection.

    Args:
      train: seen pairs.
      users: integers that broadcast with `items`.
      items: integers.

    Returns:
      int32 of the broadcast shape. An unseen item minus this is its rank among the unseen items, see `nth_unseen`.
    """
    return _count_leading(train, users, items, lambda item, j: item < items)


def was_seen(train: Interactions, users: jax.Array, items: jax.Array) -> jax.Array:
    """Returns whether each user has seen each item, for integers that broadcast: bool of the broadcast shape."""
    at = train.offsets[users] + seen_before(train, users, items)
    return (at < train.offsets[users + 1]) & (train.items[jnp.minimum(at, len(train) - 1)] == items)


def seen_mask(
    train: Interactions,
    users: jax.Array,
    items: jax.Array | None = None,
    *,
    first: jax.Array | int = 0,
    size: int | None = None,
) -> jax.Array:
    """Returns which items each of the users `[n]` has seen: `[n, num_items]` bool; or which of `items` `[s]`,
    ascending, for the first of equal ones: `[n, s]`; or which of the `size` items from `first` on: `[n, size]`.

    Marks TURN items of each user at a time, until the largest degree among these users is reached: that of a sample is
    mostly far below `max_degree`.
    """
    start, stop = train.offsets[users][:, None], train.offsets[users + 1][:, None]
    most, rows, turn = jnp.max(stop - start, initial=0), jnp.arange(len(users))[:, None], jnp.arange(TURN)[None, :]

    def mark(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        done, mask = state
        at = start + done + turn
        seen = jnp.where(at < stop, train.items[jnp.minimum(at, len(train) - 1)], train.num_items)
        seen = seen if items is None else _place(items, seen)
        if size is not None:
            seen = jnp.where((seen >= first) & (seen < first + size), seen - first, size)
        return done + TURN, mask.at[rows, seen].set(True, mode="drop")

    width = size or (train.num_items if items is None else len(items))
    nothing = jnp.zeros((len(users), width), bool)
    if size is not None:
        nothing |= first < 0  # never; but on a mesh it differs between devices as `first` does
    return jax.lax.while_loop(lambda state: state[0] < most, mark, (jnp.zeros_like(most), nothing))[1]


def distinct(ids: jax.Array, where: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Returns the distinct values among `ids`, in a static shape.

    Args:
      ids: `[n]` integers in [0, size).
      where: `[n]` bool; masked ids are ignored.
      size: static.

    Returns:
      `[n]` ids in ascending order and `[n]` bool, true at the first occurrence of each. Masked ids repeat the largest.
    """
    chex.assert_rank([ids, where], 1)
    chex.assert_equal_shape([ids, where])
    largest = jnp.max(jnp.where(where, ids, jnp.min(ids, initial=size - 1)), initial=0)
    ids = jnp.sort(jnp.where(where, ids, size))
    first = jnp.concatenate([jnp.ones(1, bool), ids[1:] != ids[:-1]])
    return jnp.minimum(ids, largest), first & (ids < size)


def _place(items: jax.Array, wanted: jax.Array) -> jax.Array:
    """Returns the first place of each of `wanted` in `items` `[s]`, ascending; s if it is not there."""
    at = jnp.searchsorted(items, wanted, method="scan_unrolled")
    return jnp.where(items[jnp.minimum(at, len(items) - 1)] == wanted, at, len(items))


def _count_leading(
    train: Interactions, users: jax.Array, like: jax.Array, holds: Callable[[jax.Array, jax.Array], jax.Array]
) -> jax.Array:
    """Counts each user's items for which `holds(item, j)`, which must be true for leading items only. The shape is that
    of `users` and `like`, broadcast."""
    start, stop = train.offsets[users], train.offsets[users + 1]
    shape = jnp.broadcast_shapes(users.shape, like.shape)
    low, high = jnp.zeros(shape, jnp.int32), jnp.broadcast_to(stop - start, shape)  # the count lies in [low, high]
    for _ in range(train.max_degree.bit_length()):
        middle = (low + high) // 2
        more = holds(train.items[jnp.minimum(start + middle, len(train) - 1)], middle)
        low, high = jnp.where((low < high) & more, middle + 1, low), jnp.where((low < high) & ~more, middle, high)
    return low


def _hash(x: jax.Array, key: jax.Array) -> jax.Array:
    """Hashes each uint32 to a uint32 (the finaliser of MurmurHash3, keyed)."""
    x = x ^ key
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
