"""What ranking methods draw from: a teacher's best unseen items, and the rest, all on the device."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from htd_jax.data import Interactions, nth_unseen, seen_before
from htd_jax.distillers.teacher import Teacher

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
    items = teacher.top(train, size)
    ordered = jnp.sort(jnp.where(items < 0, train.num_items, items), axis=1)
    unseen = ordered - seen_before(train, jnp.arange(train.num_users)[:, None], ordered)
    before = jnp.where(ordered < train.num_items, unseen - jnp.arange(items.shape[1])[None, :], train.num_items)
    rest = train.num_items - jnp.diff(train.offsets) - jnp.sum(items >= 0, axis=1)
    return Ranking(train, items, before, rest)


def best_of(scores: jax.Array, k: int) -> jax.Array:
    """The places of the k largest of each row `[n, m]`, the largest first, equal ones in their order: `[n, k]` int32.

    What is cut out of the result stays out of its search: on a CPU, XLA takes a search for the k best of which a part
    is used for a sort of everything, thirty times as slow.
    """
    places: jax.Array = jax.lax.optimization_barrier(jax.lax.top_k(scores, min(k, scores.shape[1])))[1]
    return places


def in_blocks(of_users: Callable[[jax.Array], Any], rows: int, width: int) -> Any:
    """`of_users(users [n])`, a pytree of arrays `[n, ...]`, for all `rows`: `[rows, ...]`. So many rows at a time as
    `width` numbers of each allow; the last block is filled up with the last row."""
    at_once = max(1, min(rows, NUMBERS // width))
    blocks = -(-rows // at_once)
    users = jnp.minimum(jnp.arange(blocks * at_once), rows - 1).reshape(blocks, at_once)
    whole = lambda x: x.reshape(-1, *x.shape[2:])[:rows]
    return jax.tree.map(whole, jax.lax.map(of_users, users))


def by_rank(key: chex.PRNGKey, pool: jax.Array, count: int, temperature: float) -> jax.Array:
    """`[n, count]` different items of each row of `pool` `[n, P]`, in its order; the first P, if there are fewer."""
    places = jnp.arange(pool.shape[1], dtype=jnp.float32)
    return by_weight(key, pool, -places[None, :] / temperature, count)


def by_weight(key: chex.PRNGKey, items: jax.Array, log_weights: jax.Array, count: int) -> jax.Array:
    """`[n, min(count, P)]` different items of each row of `items` `[n, P]`, in its order.

    They are drawn one after the other, each with a probability like its weight among those left.

    An item of -1, or of a weight of zero, is never drawn; a row with fewer others has -1 somewhere in its order.

    The largest of log-probabilities with Gumbel noise are a sample without replacement (Kool et al., ICML'19).
    """
    noisy = jax.random.gumbel(key, items.shape) + log_weights
    noisy = jnp.where(items >= 0, noisy, -jnp.inf)
    _, chosen = jax.lax.top_k(noisy, min(count, items.shape[1]))
    return jnp.take_along_axis(jnp.where(noisy > -jnp.inf, items, -1), jnp.sort(chosen, axis=1), axis=1)


def of_rest(key: chex.PRNGKey, ranking: Ranking, count: int) -> jax.Array:
    """`[num_users, count]` different items that are neither seen nor in the pool, uniformly, -1 where there are fewer.

    The r-th of the rest is the r + j-th unseen item, where j items of the pool have at most r of the rest before them.
    """
    r = distinct_numbers(key, ranking.rest, count)
    in_pool = jax.vmap(lambda before, r: jnp.searchsorted(before, r, side="right", method="scan_unrolled"))
    users = jnp.arange(len(r))[:, None]
    items = nth_unseen(ranking.train, users, r + in_pool(ranking.before, r).astype(jnp.int32))
    return jnp.where(r < 0, -1, items)


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
