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
from htd_jax.distillers.base import Distiller, EpochStart, Method, Side, Step, Terms, every, no_params
from htd_jax.distillers.draws import best_of, by_weight, in_blocks
from htd_jax.losses import relaxed_ranking_loss
from htd_jax.losses.checks import check_choice
from htd_jax.teacher import Teacher

SIDES = ("both", "users")

Scores = Callable[[jax.Array], jax.Array]

# The hyperbolic tangent of this, and of all above, is 1 in float32.
FULL = 10.0


@dataclasses.dataclass(frozen=True)
class DCD(Method):
    """The order of what the student ranks too low, above what it ranks too high (Lee and Kim, CIKM'21)."""

    weight: Annotated[float, Ge(0)] = 1e-3
    """Lambda: the distillation loss counts this much against the base loss."""
    items: Annotated[int, Ge(1)] = 40
    """Items of each user that are drawn of either kind."""
    users: Annotated[int, Ge(1)] = 20
    """Users of each item that are drawn of either kind."""
    pool: Annotated[int, Ge(1)] = 500
    """The teacher's best unseen items of each user, of which they are drawn."""
    user_pool: Annotated[int, Ge(1)] = 100
    """The teacher's best users of each item who have not seen it, of which they are drawn."""
    epsilon: Annotated[float, Gt(0)] = 0.1
    """A difference d of ranks is drawn with a probability like tanh(epsilon d)."""
    period: Annotated[int, Ge(1)] = 3
    """Epochs from one draw to the next."""
    sides: Literal["both", "users"] = "both"
    """Items of users and users of items, or the first alone, for which a teacher of lists will do."""

    label: ClassVar[str] = "DCD"

    def make(self, epochs: int) -> Distiller:
        method = dcd(
            num_items=self.items,
            num_users=self.users,
            pool=self.pool,
            user_pool=self.user_pool,
            epsilon=self.epsilon,
            sides=self.sides,
        )
        return every(self.period, method)


@struct.dataclass
class Known:
    """A teacher's best.

    Attributes:
      train: who has seen what; `of_items` is the same with users and items exchanged, None for one side alone.
      items: `[num_users, P]` int32, the best unseen items, the best first, -1 for none.
      users: `[num_items, Q]` int32, the best users who have not seen it, or None.
    """

    train: Interactions
    items: jax.Array
    of_items: Interactions | None = None
    users: jax.Array | None = None


@struct.dataclass
class Sample:
    """What is drawn of each row's pool, -1 for none.

    Attributes:
      under: `[n, K]` int32, underestimated ones, the teacher's best first.
      over: `[n, K]` int32, overestimated ones.
    """

    under: jax.Array
    over: jax.Array


def dcd(
    *,
    num_items: int = 40,
    num_users: int = 20,
    pool: int = 500,
    user_pool: int = 100,
    epsilon: float = 0.1,
    sides: str = "both",
) -> Distiller:
    """What the student ranks lower than the teacher, in the teacher's order, above what it ranks higher.

    Of the teacher's best unseen items of a user, with ranks r_T and r_S under either model among all unseen items, some
    are drawn without replacement with probabilities like tanh(max(epsilon (r_S - r_T), 0)): the underestimated ones,
    set in the teacher's order. Others are drawn by the same with the sign turned round: the overestimated ones. Every
    different user of a batch adds one `relaxed_ranking_loss` of the first over the second; and every different seen
    item of it the same with users and items exchanged. A draw holds for as many epochs as `every` says.

    What is of no weight is never drawn, so there may be fewer. Public code by others (that of RCE-KD) gives it a
    weight of 1e-5, ranks seen items too, leaves out the items' side, and leaves the underestimated in the order in
    which they were drawn. The paper adds these corrections to RRD's loss: `rrd+dcd`.

    Cost: a draw makes all scores of the student once a side, some rows at a time, and finds a few more than the pool
    among them: beyond 10 / epsilon, differences of ranks are alike. A step scores 2 K pairs of its users and of its
    items. Held are, a user, P + 2 K numbers, and an item likewise.

    Args:
      num_items: K of each user, at most the pool.
      num_users: K of each item.
      pool: P, of the teacher's best items of a user.
      user_pool: of the teacher's best users of an item.
      epsilon: over 0.
      sides: `both`, or `users`.

    Returns:
      A `Distiller`; its term is `dcd`.

    Raises:
      ValueError: an unknown `sides`.
    """
    check_choice("sides", sides, SIDES)

    def prepare(teacher: Teacher, train: Interactions) -> Known:
        items = _top(teacher, train, pool)
        if sides == "users":
            return Known(train, items)
        return Known(train, items, train.transposed(), _top_users(teacher, train, user_pool))

    def refresh(start: EpochStart) -> tuple[Sample, ...]:
        params, key, epoch, teacher, student = start.params, start.key, start.epoch, start.context, start.student
        for_users, for_items = jax.random.split(key)

        def draw(key: chex.PRNGKey, train: Interactions, best: jax.Array, score_all: Scores, count: int) -> Sample:
            def of_block(rows: jax.Array) -> Sample:
                scores = jnp.where(seen_mask(train, rows), -jnp.inf, score_all(rows))
                own = best[rows]
                gap = epsilon * (_ranks(scores, own, math.ceil(FULL / epsilon)) - jnp.arange(own.shape[1])[None, :])
                one, other = jax.random.split(jax.random.fold_in(key, rows[0]))
                weigh = lambda gap: jnp.log(jnp.tanh(jnp.maximum(gap, 0)))
                return Sample(by_weight(one, own, weigh(gap), count), by_weight(other, own, weigh(-gap), count))

            sample: Sample = in_blocks(of_block, train.num_users, train.num_items)
            return sample

        of_users = draw(for_users, teacher.train, teacher.items, student.score_all, num_items)
        if teacher.of_items is None or teacher.users is None:
            return (of_users,)
        return of_users, draw(for_items, teacher.of_items, teacher.users, student.score_users, num_users)

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        params, drawn, batch, key, epoch = step.params, step.sampled, step.batch, step.key, step.epoch
        score_users = lambda items, users: batch.score(users, jnp.broadcast_to(items, users.shape))
        entities = batch.entities
        value = _correction(drawn[0], entities.users, batch.score)
        if len(drawn) > 1:
            value += _correction(drawn[1], entities.positives, score_users)
        return value, {"dcd": value}

    return Distiller(no_params, loss, refresh, prepare, needs=("lists" if sides == "users" else "scores",))


def _correction(drawn: Sample, side: Side, score: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    own: Sample = jax.tree.map(lambda of_all: of_all[side.ids], drawn)
    chosen = jnp.concatenate([own.under, own.over], axis=1)
    under, over = jnp.split(score(side.ids[:, None], jnp.maximum(chosen, 0)), [own.under.shape[1]], axis=1)
    masks = dict(interesting_where=own.under >= 0, uninteresting_where=own.over >= 0)
    return relaxed_ranking_loss(under, over, where=side.where, **masks)


def _ranks(scores: jax.Array, chosen: jax.Array, beyond: int) -> jax.Array:
    """Ranks, from 0, of `chosen` `[n, P]` among the scores `[n, m]`; P + `beyond` stands for all above."""
    best = best_of(scores, chosen.shape[1] + beyond)
    rows, last = jnp.arange(len(scores))[:, None], best.shape[1]
    ranks = jnp.full(scores.shape, last, jnp.int32).at[rows, best].set(jnp.arange(last, dtype=jnp.int32)[None, :])
    return jnp.take_along_axis(ranks, jnp.maximum(chosen, 0), axis=1)


@jax.jit(static_argnames="k")
def _top(teacher: Teacher, train: Interactions, k: int) -> jax.Array:
    return teacher.top(train, k)


@jax.jit(static_argnames="k")
def _top_users(teacher: Teacher, train: Interactions, k: int) -> jax.Array:
    return teacher.top_users(train, k)
