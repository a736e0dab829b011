"""DCD, Dual Correction strategy for Distillation (Lee and Kim, CIKM'21)."""

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import chex
import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from flax import struct

from htd_jax.data import Interactions, seen_mask
from htd_jax.distillers.base import (
    Distiller,
    EpochStart,
    Method,
    RowIds,
    Side,
    Step,
    Terms,
    Triples,
    every,
    no_params,
)
from htd_jax.distillers.rrd import lists_loss
from htd_jax.distillers.sampling import map_blocks, sample_by_weight
from htd_jax.ops.largest import top_k
from htd_jax.ops.shards import look_up
from htd_jax.settings import check
from htd_jax.teacher import Teacher

Scores = Callable[[jax.Array], jax.Array]

# The hyperbolic tangent of this, and of any larger number, is 1 in float32.
SATURATED = 10.0


@dataclasses.dataclass(frozen=True)
class DCD(Method):
    """Corrects the student's rank errors: learns what it ranks too low above what it ranks too high (Lee and Kim,
    CIKM'21)."""

    weight: Annotated[float, Ge(0)] = 1e-3
    """Lambda, the weight of the distillation loss against the base loss. Both are sums over a batch: htd-jax
    study weights measures the method's part."""
    items: Annotated[int, Ge(1)] = 40
    """The number of items per user that are sampled from those ranked too low, and from those ranked too high."""
    users: Annotated[int, Ge(1)] = 20
    """The number of users per item that are sampled from those ranked too low, and from those ranked too high."""
    pool: Annotated[int, Ge(1)] = 500
    """The number of the teacher's best unseen items per user from which items are sampled."""
    user_pool: Annotated[int, Ge(1)] = 100
    """The number of the teacher's best users per item, who have not seen it, from which users are sampled."""
    epsilon: Annotated[float, Gt(0)] = 0.1
    """A difference d of ranks is sampled with probability proportional to tanh(epsilon d)."""
    period: Annotated[int, Ge(1)] = 3
    """The number of epochs between two samplings."""
    sides: Literal["both", "users"] = "both"
    """Whether the ranks of items per user and of users per item are corrected, or only the former, for which a
    teacher's lists suffice."""

    label: ClassVar[str] = "DCD"

    def make(self, epochs: int) -> Distiller:
        return dcd(self)


@struct.dataclass
class Context:
    """The teacher's best, and the training interactions.

    Attributes:
      train: the training interactions.
      items: `[num_users, P]` int32, the best unseen items, the best first, -1 for none.
      transposed: `train` with users and items exchanged; None without the item side.
      users: `[num_items, Q]` int32, the best users who have not seen the item; None without the item side.
    """

    train: Interactions
    items: jax.Array
    transposed: Interactions | None = None
    users: jax.Array | None = None


@struct.dataclass
class Misranked:
    """The ids sampled from each row's pool, -1 for none.

    Attributes:
      under: `[n, K]` int32, underestimated by the student, the teacher's best first.
      over: `[n, K]` int32, overestimated by the student.
    """

    under: jax.Array
    over: jax.Array


def dcd(settings: DCD = DCD()) -> Distiller:
    """Learns what the student ranks lower than the teacher, in the teacher's order, above what it ranks higher.

    With r_T and r_S the ranks of a user's pool, the teacher's best unseen items, among all unseen items under either
    model, underestimated items are sampled without replacement with probability ~ tanh(max(epsilon (r_S - r_T), 0)),
    and kept in the teacher's order; overestimated ones likewise with the opposite sign. The loss is
    `relaxed_ranking_loss` of the former over the latter, summed over the different users of a batch; and, with users
    and items exchanged, over its different seen items. Samples are kept for `settings.period` epochs.

    Items of probability 0 are never sampled, so there may be fewer. Others' public code (RCE-KD's) gives them a weight
    of 1e-5, ranks seen items too, has no item side, and leaves the underestimated in the order of sampling. The paper
    adds these corrections to RRD's loss: `rrd+dcd`.

    Cost: sampling computes all scores of the student once per side, in blocks of rows, and searches them for a few more
    than the pool: beyond 10 / epsilon, differences of ranks weigh the same. A step scores 2 K pairs per user and per
    item. In memory are P + 2 K numbers per user and per item.

    Args:
      settings: see `DCD`.

    Returns:
      A `Distiller`; its term is `dcd`.

    Raises:
      UserError: if a setting is invalid.
    """
    check(settings, "dcd.")
    epsilon = settings.epsilon

    def prepare(teacher: Teacher, train: Interactions) -> Context:
        items = _top(teacher, train, settings.pool)
        if settings.sides == "users":
            return Context(train, items)
        return Context(train, items, train.transposed(), _top_users(teacher, train, settings.user_pool))

    def sample(key: chex.PRNGKey, train: Interactions, best: jax.Array, score_all: Scores, count: int) -> Misranked:
        def sample_block(rows: jax.Array) -> Misranked:
            scores = jnp.where(seen_mask(train, rows), -jnp.inf, score_all(rows))
            own = best[rows]
            gap = epsilon * (_ranks(scores, own, math.ceil(SATURATED / epsilon)) - jnp.arange(own.shape[1])[None, :])
            under, over = jax.random.split(jax.random.fold_in(key, rows[0]))
            log_weights = lambda gap: jnp.log(jnp.tanh(jnp.maximum(gap, 0)))
            return Misranked(
                sample_by_weight(under, own, log_weights(gap), count),
                sample_by_weight(over, own, log_weights(-gap), count),
            )

        sampled: Misranked = map_blocks(sample_block, train.num_users, train.num_items)
        return sampled

    def refresh(start: EpochStart) -> tuple[Misranked, ...]:
        context: Context = start.context
        user_key, item_key = jax.random.split(start.key)
        items = sample(user_key, context.train, context.items, start.student.score_all, settings.items)
        if context.transposed is None or context.users is None:
            return (items,)
        return items, sample(item_key, context.transposed, context.users, start.student.score_users, settings.users)

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        batch, entities = step.batch, step.batch.entities
        score_users = lambda items, users: batch.score(users, jnp.broadcast_to(items, users.shape))
        value = _correction(step.sampled[0], entities.users, batch.score)
        if len(step.sampled) > 1:
            value += _correction(step.sampled[1], entities.positives, score_users)
        return value, {"dcd": value}

    def reads(context: Context, sampled: tuple[Misranked, ...], triples: Triples, key: chex.PRNGKey) -> RowIds:
        lists = lambda sampled, rows: RowIds.of_items(*jax.tree.leaves(look_up(sampled, rows))).items
        items = lists(sampled[0], triples.users)
        users = lists(sampled[1], triples.positives) if len(sampled) > 1 else jnp.zeros(0, jnp.int32)
        return RowIds(users, items)

    needs = ("lists" if settings.sides == "users" else "scores",)
    return every(settings.period, Distiller(no_params, loss, refresh, prepare, needs=needs, reads=reads, divided=True))


def _correction(sampled: Misranked, side: Side, score: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    own: Misranked = look_up(sampled, side.ids)
    return lists_loss(own.under, own.over, side.where, lambda chosen: score(side.ids[:, None], chosen))


def _ranks(scores: jax.Array, chosen: jax.Array, beyond: int) -> jax.Array:
    """Returns the ranks, from 0, of `chosen` `[n, P]` among the scores `[n, m]`, at most P + `beyond`."""
    _, best = top_k(scores, chosen.shape[1] + beyond)
    rows, last = jnp.arange(len(scores))[:, None], best.shape[1]
    ranks = jnp.full(scores.shape, last, jnp.int32).at[rows, best].set(jnp.arange(last, dtype=jnp.int32)[None, :])
    return jnp.take_along_axis(ranks, jnp.maximum(chosen, 0), axis=1)


@jax.jit(static_argnames="k")
def _top(teacher: Teacher, train: Interactions, k: int) -> jax.Array:
    return teacher.top(train, k)


@jax.jit(static_argnames="k")
def _top_users(teacher: Teacher, train: Interactions, k: int) -> jax.Array:
    return teacher.top_users(train, k)
