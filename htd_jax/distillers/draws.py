"""What ranking methods draw from: a teacher's best unseen items, and the rest, all on the device."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from htd_jax.data import Interactions, nth_unseen, seen_before, seen_mask
from htd_jax.ops.mapped import map_rows
from htd_jax.teacher import SCORES, Teacher

# Scores that `in_blocks` holds at once: 4 MiB of them.
NUMBERS = 2**20


@struct.dataclass
class Ranking:
    """A teacher's best unseen items, and what is needed to draw from the others.

    Attributes:
      train: who has seen what.
      pool: `[num_users, P]` int32, the teacher's best unseen items, the best first, -1 where there are fewer.
      before: `[num_users, P]` int32, ascending: how many of the rest, neither seen nor in the pool, come before each
        item of the pool, in the order of items; past all of them where there are fewer.
      rest: `[num_users]` int32, how many are neither seen nor in the pool.
    """

    train: Interactions
    pool: jax.Array
    before: jax.Array
    rest: jax.Array


@functools.partial(jax.jit, static_argnames="size")
def rank_unseen(teacher: Teacher, train: Interactions, size: int) -> Ranking:
    """The `size` best unseen items of every user, see `Teacher.top`."""
    return _ranking(train, teacher.top(train, size))


@functools.partial(jax.jit, static_argnames="size")
def rank_users(teacher: Teacher, train: Interactions, size: int) -> Ranking:
    """The same with users and items exchanged: the `size` best users of every item, see `Teacher.top_users`."""
    return _ranking(train.transposed(), teacher.top_users(train, size))


def _ranking(train: Interactions, items: jax.Array) -> Ranking:
    ordered = jnp.sort(jnp.where(items < 0, train.num_items, items), axis=1)
    unseen = ordered - seen_before(train, jnp.arange(train.num_users)[:, None], ordered)
    before = jnp.where(ordered < train.num_items, unseen - jnp.arange(items.shape[1])[None, :], train.num_items)
    rest = train.num_items - jnp.diff(train.offsets) - jnp.sum(items >= 0, axis=1)
    return Ranking(train, items, before, rest)


def in_blocks(of_users: Callable[[jax.Array], Any], rows: int, width: int) -> Any:
    """`map_rows`, of which `width` numbers of each of some rows are held at once."""
    return map_rows(of_users, rows, NUMBERS // width)


def best_of(scores: jax.Array, k: int) -> jax.Array:
    """The places of the k largest of each row `[n, m]`, the largest first, equal ones in their order: `[n, k]` int32.

    What is cut out of the result stays out of its search: on a CPU, XLA takes a search for the k best of which a part
    is used for a sort of everything, thirty times as slow.
    """
    places: jax.Array = jax.lax.optimization_barrier(jax.lax.top_k(scores, min(k, scores.shape[1])))[1]
    return places


def by_rank(key: chex.PRNGKey, pool: jax.Array, count: int, temperature: float) -> jax.Array:
    """`[n, count]` different items of each row of `pool` `[n, P]`, in its order; the first P, if there are fewer."""
    return jnp.take_along_axis(pool, places_by_rank(key, pool >= 0, count, temperature), axis=1)


def places_by_rank(key: chex.PRNGKey, there: jax.Array, count: int, temperature: float | jax.Array) -> jax.Array:
    """`[n, count]` different places, ascending, of each row of `there` `[n, P]` bool, the next always with a
    probability ~ exp(-place / T) among those left that are there; T is one number, or `[n, 1]`."""
    return _places(key, there, -jnp.arange(there.shape[1])[None, :] / temperature, count)


def _places(key: chex.PRNGKey, there: jax.Array, log_weights: jax.Array, count: int) -> jax.Array:
    """`[n, min(count, P)]` different places, ascending, each with a probability like its weight among those left.

    The largest of log-probabilities with Gumbel noise are a sample without replacement (Kool et al., ICML'19).
    """
    noisy = jnp.where(there, jax.random.gumbel(key, there.shape) + log_weights, -jnp.inf)
    _, chosen = jax.lax.top_k(noisy, min(count, there.shape[1]))
    return jnp.sort(chosen, axis=1)


def pairs_by_rank(key: chex.PRNGKey, sizes: jax.Array, count: int, temperature: float) -> tuple[jax.Array, jax.Array]:
    """Pairs of places of lists: the first and the second of each, the first above, both `[..., count]` int32, -1 where
    a list has no two.

    Of a list of n, i < j come with a probability like exp(-(i + j) / T): that of two places drawn one by one with a
    probability like exp(-i / T) each, when they are not the same. Both distribution functions are inverted in closed
    form, so that nothing is rejected and no table is made. With q = exp(-1 / T) and x = q^(i + 1), the first's is

        1 - x^2 - q^(n - 1) (1 + q) (1 - x),  over  (1 - q^(n - 1)) (1 - q^n),

    and the second's, given the first, that of a geometric distribution cut off.

    Args:
      key: a JAX random key.
      sizes: `[...]` integers, the lengths of the lists.
      count: how many pairs, each drawn for itself.
      temperature: T, over 0.
    """
    of_first, of_second = jax.random.uniform(key, (2, *sizes.shape, count))
    sizes = jnp.maximum(sizes, 0)[..., None]
    short = lambda places: -jnp.expm1(-jnp.maximum(places, 0) / temperature)  # 1 - q^places
    a, b = short(sizes - 1), short(sizes)
    root = jnp.sqrt((a + b) ** 2 - 4 * of_first * a * b)
    left = 2 * of_first * a * b / jnp.maximum(a + b + root, jnp.finfo(root.dtype).tiny)  # 1 - x
    first = jnp.ceil(-temperature * jnp.log1p(-left)) - 1
    first = jnp.clip(first, 0, jnp.maximum(sizes - 2, 0)).astype(jnp.int32)
    further = jnp.floor(-temperature * jnp.log1p(-of_second * short(sizes - 1 - first)))
    second = first + 1 + jnp.clip(further, 0, jnp.maximum(sizes - 2 - first, 0)).astype(jnp.int32)
    return jnp.where(sizes > 1, first, -1), jnp.where(sizes > 1, second, -1)


def by_weight(key: chex.PRNGKey, items: jax.Array, log_weights: jax.Array, count: int) -> jax.Array:
    """`[n, min(count, P)]` different items of each row of `items` `[n, P]`, in its order.

    They are drawn one after the other, each with a probability like its weight among those left.

    An item of -1, or of a weight of zero, is never drawn; a row with fewer others has -1 somewhere in its order.
    """
    there = (items >= 0) & (log_weights > -jnp.inf)
    return jnp.take_along_axis(jnp.where(there, items, -1), _places(key, there, log_weights, count), axis=1)


def of_rest(key: chex.PRNGKey, ranking: Ranking, count: int) -> jax.Array:
    """`[num_users, count]` different items that are neither seen nor in the pool, uniformly, -1 where there are fewer.

    The r-th of the rest is the r + j-th unseen item, where j items of the pool have at most r of the rest before them.
    """
    r = distinct_numbers(key, ranking.rest, count)
    in_pool = jax.vmap(lambda before, r: jnp.searchsorted(before, r, side="right", method="scan_unrolled"))
    users = jnp.arange(len(r))[:, None]
    items = nth_unseen(ranking.train, users, r + in_pool(ranking.before, r).astype(jnp.int32))
    return jnp.where(r < 0, -1, items)


def of_unseen(key: chex.PRNGKey, train: Interactions, count: int) -> jax.Array:
    """`[num_users, count]` items that each user has not seen, uniformly, each draw for itself, so that an item may come
    twice; -1 for a user who has seen all."""
    unseen = train.num_items - jnp.diff(train.offsets)[:, None]
    r = jax.random.randint(key, (train.num_users, count), 0, jnp.maximum(unseen, 1))
    items = nth_unseen(train, jnp.arange(train.num_users)[:, None], r)
    return jnp.where(unseen > 0, items, -1)


def accepted(key: chex.PRNGKey, items: jax.Array, weights: jax.Array, count: int) -> jax.Array:
    """`[n, count]` of the items `[n, C]`, which were drawn uniformly and each for itself: draws with probabilities like
    the `weights` `[n, C]`, at least 0; -1 in a row where all of these are 0.

    Of each row the first that are accepted, an item with the probability of its weight over the largest there. Where
    fewer than `count` are, they are repeated in turn: each place is still a draw from the same distribution. The
    largest weight among C stands for that of all items, which matters to one in C of them.

    Source: von Neumann, 1951, rejection.
    """
    rows = jnp.arange(len(items))[:, None]
    largest = weights.max(axis=1, keepdims=True)
    kept = jax.random.uniform(key, weights.shape) * largest < weights
    place = jnp.where(kept, jnp.cumsum(kept, axis=1) - 1, count)
    first = jnp.full((len(items), count), -1, items.dtype).at[rows, place].set(items, mode="drop")
    found = jnp.minimum(kept.sum(axis=1, keepdims=True), count)
    return jnp.take_along_axis(first, jnp.arange(count)[None, :] % jnp.maximum(found, 1), axis=1)


def unseen_ranks(score_all: Callable[[jax.Array], jax.Array], train: Interactions, items: jax.Array) -> jax.Array:
    """The ranks of unseen items `[num_users, C]` among all that each user has not seen, the best of rank 1: one more
    than the number of those that score higher, int32.

    A block of users at a time is scored and sorted, and the items are found by bisection: no users x items array is
    held. Floats are sorted as the integers of the same order, in a fifth of the time on a CPU.

    Args:
      score_all: users `[n]` -> scores `[n, num_items]`.
      train: who has seen what.
      items: integers in [0, num_items).
    """

    def of_block(users: jax.Array) -> jax.Array:
        order = jnp.where(seen_mask(train, users), 0, _ordered(score_all(users)))
        bars = jnp.take_along_axis(order, items[users], axis=1)
        reached = jax.vmap(lambda row, bars: jnp.searchsorted(row, bars, side="right", method="scan_unrolled"))
        return (1 + train.num_items - reached(jnp.sort(order, axis=1), bars)).astype(jnp.int32)

    ranks: jax.Array = map_rows(of_block, train.num_users, SCORES // train.num_items)
    return ranks


def _ordered(x: jax.Array) -> jax.Array:
    """uint32 in the order of the float32 `x`; none is 0 but that of a NaN."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x).astype(jnp.float32), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def distinct_numbers(key: chex.PRNGKey, sizes: jax.Array, count: int) -> jax.Array:
    """`[n, count]` int32: of the numbers from 0 to each of `sizes` `[n]`, `count` different ones, all sets equally
    likely; where a size is smaller, all its numbers, and -1.

    Each turn takes a number up to `last`, which grows by one a turn; if that was taken before, it takes `last` itself,
    which was not.

    Source: Floyd, in Bentley and Floyd, CACM 1987.
    """
    last = sizes[None, :] - count + jnp.arange(count)[:, None]
    picks = jax.random.randint(key, last.shape, 0, jnp.maximum(last, 0) + 1)

    def turn(i: jax.Array, chosen: jax.Array) -> jax.Array:
        pick = jnp.where((chosen == picks[i][None, :]).any(0), last[i], picks[i])
        return chosen.at[i].set(jnp.where(last[i] < 0, -1, pick))

    return jax.lax.fori_loop(0, count, turn, jnp.full_like(picks, -1)).T
