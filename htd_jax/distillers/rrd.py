"""RRD, Relaxed Ranking Distillation (Kang et al., CIKM'20)."""

import dataclasses
from typing import Annotated, ClassVar, Literal

import chex
import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from flax import struct

from htd_jax.data import Interactions, nth_unseen, seen_before
from htd_jax.distillers.base import Batch, Distiller, Drawn, Params, Run, Terms, learns_nothing
from htd_jax.distillers.teacher import Teacher
from htd_jax.losses import relaxed_ranking_loss
from htd_jax.losses.checks import check_choice
from htd_jax.models import Recommender

CHOICES = ("drawn", "top")


@dataclasses.dataclass(frozen=True)
class RRD:
    """The order of the teacher's best unseen items, above the rest (Kang et al., CIKM'20)."""

    weight: Annotated[float, Ge(0)] = 1e-3
    """Lambda: the distillation loss counts this much against the base loss."""
    interesting: Annotated[int, Ge(1)] = 40
    """K: items of each user whose order is learned."""
    uninteresting: Annotated[int, Ge(1)] = 40
    """L: items of each user that come after them, in no order."""
    pool: Annotated[int, Ge(1)] = 500
    """The teacher's best unseen items, of which the interesting ones are, and none of the uninteresting ones."""
    temperature: Annotated[float, Gt(0)] = 10.0
    """T: the item of rank r is drawn with a probability like exp(-r / T)."""
    choice: Literal["drawn", "top"] = "drawn"
    """Which of the pool are interesting: some drawn by rank, anew each epoch, or always the first."""

    label: ClassVar[str] = "RRD"

    def make(self, run: Run) -> Distiller:
        return rrd(
            num_interesting=self.interesting,
            num_uninteresting=self.uninteresting,
            pool=self.pool,
            temperature=self.temperature,
            choice=self.choice,
        )


@struct.dataclass
class Ranking:
    """What is known of the teacher, and of whose items may be drawn.

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


@struct.dataclass
class Sample:
    """The items of an epoch, -1 for none: `[num_users, K]` interesting ones, the teacher's best first, and `[num_users,
    L]` uninteresting ones."""

    interesting: jax.Array
    uninteresting: jax.Array


def rrd(
    *,
    num_interesting: int = 40,
    num_uninteresting: int = 40,
    pool: int = 500,
    temperature: float = 10.0,
    choice: str = "drawn",
) -> Distiller:
    """The order of the teacher's best items, and that they stand above the rest, whose order does not matter.

    A user's pool are the teacher's best unseen items. Every epoch draws anew, on the device: of the pool the
    interesting items, without replacement, the next always with probability ~ exp(-rank / T) among those left, set in
    the teacher's order; and of the rest, neither seen nor in the pool, the uninteresting ones, uniformly, without
    replacement, as in the authors' code. Every different user of a batch adds one `relaxed_ranking_loss` to the loss. A
    user whose pool or rest is smaller is held to what there is; one without a pool, to nothing.

    Any teacher that ranks will do, lists alone included. They may be shorter than the pool, which is then smaller, and
    hold each item once.

    Cost, a user: held are 2 P numbers (4 KB), and drawn, in the state, K + L (320 bytes); an epoch's draw takes
    O(P log K + L (L + log P + log max_degree)), and a step scores the K + L pairs of its users, O((K + L) d) each.

    Args:
      num_interesting: K, at most; the pool may be smaller.
      num_uninteresting: L.
      pool: P, how many of the teacher's best items the pool holds.
      temperature: T, over 0.
      choice: `drawn`, or `top` for the first K of the pool in every epoch, which the authors' later work prefers.

    Returns:
      A `Distiller`; its term is `rrd`.

    Raises:
      ValueError: an unknown `choice`.
    """
    check_choice("choice", choice, CHOICES)

    @jax.jit
    def prepare(teacher: Teacher, train: Interactions) -> Ranking:
        items = teacher.top(train, pool)
        ordered = jnp.sort(jnp.where(items < 0, train.num_items, items), axis=1)
        unseen = ordered - seen_before(train, jnp.arange(train.num_users)[:, None], ordered)
        before = jnp.where(ordered < train.num_items, unseen - jnp.arange(items.shape[1])[None, :], train.num_items)
        rest = train.num_items - jnp.diff(train.offsets) - jnp.sum(items >= 0, axis=1)
        return Ranking(train, items, before, rest)

    def refresh(
        params: Params, drawn: Drawn, key: chex.PRNGKey, epoch: jax.Array, teacher: Ranking, student: Recommender
    ) -> Sample:
        for_interesting, for_rest = jax.random.split(key)
        if choice == "top":
            interesting = teacher.pool[:, :num_interesting]
        else:
            interesting = _by_rank(for_interesting, teacher.pool, num_interesting, temperature)
        return Sample(interesting, _of_rest(for_rest, teacher, num_uninteresting))

    def loss(
        params: Params, drawn: Sample, batch: Batch, key: chex.PRNGKey, epoch: jax.Array
    ) -> tuple[jax.Array, Terms]:
        users = batch.entities.users
        of_users = jax.tree.map(lambda items: items[users.ids], drawn)
        items = jnp.concatenate([of_users.interesting, of_users.uninteresting], axis=1)
        scores = batch.score(users.ids[:, None], jnp.maximum(items, 0))
        best, rest = jnp.split(scores, [of_users.interesting.shape[1]], axis=1)
        value = relaxed_ranking_loss(
            best,
            rest,
            where=users.where,
            interesting_where=of_users.interesting >= 0,
            uninteresting_where=of_users.uninteresting >= 0,
        )
        return value, {"rrd": value}

    return Distiller(learns_nothing, loss, refresh, prepare, needs=("lists",))


def _by_rank(key: chex.PRNGKey, pool: jax.Array, count: int, temperature: float) -> jax.Array:
    """`[n, count]` different items of each row of `pool` `[n, P]`, in its order; the first P, if there are fewer.

    The largest of log-probabilities with Gumbel noise are a sample without replacement (Kool et al., ICML'19).
    """
    places = jnp.arange(pool.shape[1])
    noisy = jax.random.gumbel(key, pool.shape) - places[None, :] / temperature
    _, chosen = jax.lax.top_k(jnp.where(pool >= 0, noisy, -jnp.inf), min(count, pool.shape[1]))
    return jnp.take_along_axis(pool, jnp.sort(chosen, axis=1), axis=1)


def _of_rest(key: chex.PRNGKey, ranking: Ranking, count: int) -> jax.Array:
    """`[num_users, count]` different items of each user's rest, uniformly, -1 where it holds fewer.

    The r-th of the rest is the r + j-th unseen item, where j items of the pool have at most r of the rest before them.
    """
    r = _distinct_numbers(key, ranking.rest, count)
    in_pool = jax.vmap(lambda before, r: jnp.searchsorted(before, r, side="right", method="scan_unrolled"))
    users = jnp.arange(len(r))[:, None]
    items = nth_unseen(ranking.train, users, r + in_pool(ranking.before, r).astype(jnp.int32))
    return jnp.where(r < 0, -1, items)


def _distinct_numbers(key: chex.PRNGKey, sizes: jax.Array, count: int) -> jax.Array:
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
