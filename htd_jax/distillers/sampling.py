"""Samples for ranking methods, on the device: from a teacher's best unseen items, and from the rest."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from htd_jax.data import Interactions, ItemSample, nth_unseen, sample_items, seen_before, seen_mask, some_seen
from htd_jax.ops.largest import top_k
from htd_jax.ops.mapped import map_rows
from htd_jax.teacher import SCORES, Teacher

# With many scores, see `has_many_scores`: the items that a step samples to stand for all, and the most seen items of a
# user that it learns.
SAMPLED, KNOWN = 2_048, 32

# Scores that `map_blocks` holds at once: 4 MiB of them.
BLOCK_SCORES = 2**20


@struct.dataclass
class Ranking:
    """A teacher's best unseen items, and what `sample_rest` needs.

    Attributes:
      train: the training interactions.
      pool: `[num_users, P]` int32, the teacher's best unseen items, the best first, -1 if there are fewer.
      before: `[num_users, P]` int32, ascending: the number of items of the rest, neither seen nor in the pool, before
        each item of the pool, in the order of items; `num_items` if there are fewer.
      rest: `[num_users]` int32, the number of items neither seen nor in the pool.
    """

    train: Interactions
    pool: jax.Array
    before: jax.Array
    rest: jax.Array


@functools.partial(jax.jit, static_argnames="size")
def rank_unseen(teacher: Teacher, train: Interactions, size: int) -> Ranking:
    """Returns the `size` best unseen items of every user, see `Teacher.top`."""
    return _ranking(train, teacher.top(train, size))


@functools.partial(jax.jit, static_argnames="size")
def rank_users(teacher: Teacher, train: Interactions, size: int) -> Ranking:
    """Returns the `size` best users of every item, see `Teacher.top_users`: a `Ranking` of transposed interactions."""
    return _ranking(train.transposed(), teacher.top_users(train, size))


def _ranking(train: Interactions, items: jax.Array) -> Ranking:
    ordered = jnp.sort(jnp.where(items < 0, train.num_items, items), axis=1)
    unseen = ordered - seen_before(train, jnp.arange(train.num_users)[:, None], ordered)
    before = jnp.where(ordered < train.num_items, unseen - jnp.arange(items.shape[1])[None, :], train.num_items)
    rest = train.num_items - jnp.diff(train.offsets) - jnp.sum(items >= 0, axis=1)
    return Ranking(train, items, before, rest)


def read_step(
    key: chex.PRNGKey, train: Interactions, times: jax.Array, users: jax.Array
) -> tuple[jax.Array, ItemSample]:
    """Returns what a step reads in place of all items: seen items of its users `[n, KNOWN]`, -1 for none, and a sample
    of all items. Both follow from the key, and a user's items from the user, wherever it is in `users`.

    Args:
      key: the key of the step.
      train: the training interactions.
      times: see `times_seen`.
      users: `[n]` int32.
    """
    seen = some_seen(jax.random.fold_in(key, 1), train, users, min(KNOWN, train.max_degree))
    return seen, sample_items(key, train, times, SAMPLED)


def map_blocks(function: Callable[[jax.Array], Any], rows: int, width: int) -> Any:
    """Returns `map_rows` of a function that holds `width` numbers per row, in blocks of rows that fit in a cache."""
    return map_rows(function, rows, BLOCK_SCORES // width)


def sample_by_rank(key: chex.PRNGKey, pool: jax.Array, count: int, temperature: float) -> jax.Array:
    """Returns `[n, min(count, P)]` different items per row of `pool` `[n, P]`, in its order; see
    `sample_columns_by_rank`."""
    return jnp.take_along_axis(pool, sample_columns_by_rank(key, pool >= 0, count, temperature), axis=1)


def sample_columns_by_rank(
    key: chex.PRNGKey, where: jax.Array, count: int, temperature: float | jax.Array
) -> jax.Array:
    """Returns `[n, min(count, P)]` different columns, ascending, per row of the mask `where` `[n, P]`.

    They are sampled one by one with probability ~ exp(-column / T) among those left and not masked; T is a number, or
    `[n, 1]`.
    """
    return sample_columns_by_weight(key, where, -jnp.arange(where.shape[1])[None, :] / temperature, count)


def sample_columns_by_weight(key: chex.PRNGKey, where: jax.Array, log_weights: jax.Array, count: int) -> jax.Array:
    """Returns `[n, min(count, P)]` different columns, ascending, sampled one by one in proportion to their weights.

    The largest log-weights with Gumbel noise are a sample without replacement (Kool et al., ICML'19).
    """
    noisy = jnp.where(where, jax.random.gumbel(key, where.shape) + log_weights, -jnp.inf)
    _, chosen = top_k(noisy, count)
    return jnp.sort(chosen, axis=1)


def sample_pairs_by_rank(
    key: chex.PRNGKey, sizes: jax.Array, count: int, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Samples pairs of positions in lists, with replacement.

    In a list of n, positions i < j have probability ~ exp(-(i + j) / T): that of two independent samples ~ exp(-i / T),
    given that they differ. Both distribution functions are inverted in closed form, without rejection or tables. With
    q = exp(-1 / T) and x = q^(i + 1), that of the first position is

        1 - x^2 - q^(n - 1) (1 + q) (1 - x),  over  (1 - q^(n - 1)) (1 - q^n),

    and that of the second, given the first, is a truncated geometric distribution's.

    Args:
      key: a JAX random key.
      sizes: `[...]` integers, the lengths of the lists.
      count: the number of pairs per list.
      temperature: T, over 0.

    Returns:
      The first and the second positions, both `[..., count]` int32, -1 in lists of fewer than two.
    """
    first_uniform, second_uniform = jax.random.uniform(key, (2, *sizes.shape, count))
    sizes = jnp.maximum(sizes, 0)[..., None]
    mass = lambda positions: -jnp.expm1(-jnp.maximum(positions, 0) / temperature)  # 1 - q^positions
    a, b = mass(sizes - 1), mass(sizes)
    root = jnp.sqrt((a + b) ** 2 - 4 * first_uniform * a * b)
    left = 2 * first_uniform * a * b / jnp.maximum(a + b + root, jnp.finfo(root.dtype).tiny)  # 1 - x
    first = jnp.ceil(-temperature * jnp.log1p(-left)) - 1
    first = jnp.clip(first, 0, jnp.maximum(sizes - 2, 0)).astype(jnp.int32)
    further = jnp.floor(-temperature * jnp.log1p(-second_uniform * mass(sizes - 1 - first)))
    second = first + 1 + jnp.clip(further, 0, jnp.maximum(sizes - 2 - first, 0)).astype(jnp.int32)
    return jnp.where(sizes > 1, first, -1), jnp.where(sizes > 1, second, -1)


def sample_by_weight(key: chex.PRNGKey, items: jax.Array, log_weights: jax.Array, count: int) -> jax.Array:
    """Returns `[n, min(count, P)]` different items per row of `items` `[n, P]`, in its order.

    They are sampled one by one in proportion to their weights. An item -1, or of weight 0, is never sampled; a row with
    fewer others holds -1, anywhere.
    """
    where = (items >= 0) & (log_weights > -jnp.inf)
    return jnp.take_along_axis(
        jnp.where(where, items, -1), sample_columns_by_weight(key, where, log_weights, count), axis=1
    )


def sample_rest(key: chex.PRNGKey, ranking: Ranking, count: int) -> jax.Array:
    """Returns `[num_users, count]` different items neither seen nor in the pool, uniformly, -1 if there are fewer.

    The r-th of the rest is the (r + j)-th unseen item if j items of the pool have at most r of the rest before them.
    """
    r = sample_distinct(key, ranking.rest, count)
    in_pool = jax.vmap(lambda before, r: jnp.searchsorted(before, r, side="right", method="scan_unrolled"))
    users = jnp.arange(len(r))[:, None]
    items = nth_unseen(ranking.train, users, r + in_pool(ranking.before, r).astype(jnp.int32))
    return jnp.where(r < 0, -1, items)


def sample_unseen(key: chex.PRNGKey, train: Interactions, count: int) -> jax.Array:
    """Returns `[num_users, count]` unseen items of each user, uniformly, with replacement; -1 for a user who has seen
    all."""
    unseen = train.num_items - jnp.diff(train.offsets)[:, None]
    r = jax.random.randint(key, (train.num_users, count), 0, jnp.maximum(unseen, 1))
    items = nth_unseen(train, jnp.arange(train.num_users)[:, None], r)
    return jnp.where(unseen > 0, items, -1)


def resample(key: chex.PRNGKey, items: jax.Array, weights: jax.Array, count: int) -> jax.Array:
    """Returns `[n, count]` samples in proportion to weights, from uniform samples, by rejection.

    Each item is accepted with the probability of its weight over the row's largest, which stands for the largest
    weight of all items; this matters to one sample in C. If fewer than `count` are accepted, they are repeated in turn:
    each is still a sample from the same distribution.

    Source: von Neumann, 1951.

    Args:
      key: a JAX random key.
      items: `[n, C]` integers, sampled uniformly with replacement.
      weights: `[n, C]` floats, at least 0; a row of zeros returns -1.
      count: the number of samples per row.
    """
    rows = jnp.arange(len(items))[:, None]
    largest = weights.max(axis=1, keepdims=True)
    accepted = jax.random.uniform(key, weights.shape) * largest < weights
    position = jnp.where(accepted, jnp.cumsum(accepted, axis=1) - 1, count)
    first = jnp.full((len(items), count), -1, items.dtype).at[rows, position].set(items, mode="drop")
    number = jnp.minimum(accepted.sum(axis=1, keepdims=True), count)
    return jnp.take_along_axis(first, jnp.arange(count)[None, :] % jnp.maximum(number, 1), axis=1)


def unseen_ranks(
    score_all: Callable[[jax.Array], jax.Array], train: Interactions, items: jax.Array, deepest: int | None = None
) -> jax.Array:
    """Returns the ranks of `items` among each user's unseen items: 1 + the number with a higher score, int32.

    Users are scored and sorted in blocks, and the items found by bisection. Floats are sorted as integers of the same
    order, in a fifth of the time on a CPU.

    Args:
      score_all: users `[n]` -> scores `[n, num_items]`.
      train: the training interactions.
      items: `[num_users, C]` integers in [0, num_items), unseen.
      deepest: the rank of all items at or below it, which are not sorted; None for no limit.
    """

    def block_ranks(users: jax.Array) -> jax.Array:
        scores, seen = score_all(users), seen_mask(train, users)
        searched = deepest is not None and deepest <= train.num_items
        order = jnp.where(seen, -jnp.inf, scores) if searched else jnp.where(seen, 0, _ordered(scores))
        bars = jnp.take_along_axis(order, items[users], axis=1)
        ascending = top_k(order, deepest - 1)[0][:, ::-1] if deepest and searched else jnp.sort(order, axis=1)
        reached = jax.vmap(lambda row, bars: jnp.searchsorted(row, bars, side="right", method="scan_unrolled"))
        return (1 + ascending.shape[1] - reached(ascending, bars)).astype(jnp.int32)

    ranks: jax.Array = map_rows(block_ranks, train.num_users, SCORES // train.num_items)
    return ranks


def _ordered(x: jax.Array) -> jax.Array:
    """Returns uint32 numbers in the order of the float32 `x`, over 0 except for NaN."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x).astype(jnp.float32), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def sample_distinct(key: chex.PRNGKey, sizes: jax.Array, count: int) -> jax.Array:
    """Returns `[n, count]` int32: different numbers below each of `sizes` `[n]`, all sets equally likely; if a size is
    smaller than `count`, all its numbers, and -1.

    Turn i takes a number up to `last[i]`, which grows by one per turn, or `last[i]` itself if that number is taken.

    Source: Floyd, in Bentley and Floyd, CACM 1987.
    """
    last = sizes[None, :] - count + jnp.arange(count)[:, None]
    picks = jax.random.randint(key, last.shape, 0, jnp.maximum(last, 0) + 1)

    def turn(i: jax.Array, chosen: jax.Array) -> jax.Array:
        pick = jnp.where((chosen == picks[i][None, :]).any(0), last[i], picks[i])
        return chosen.at[i].set(jnp.where(last[i] < 0, -1, pick))

    return jax.lax.fori_loop(0, count, turn, jnp.full_like(picks, -1)).T
