"""RCE-KD, rejuvenated cross-entropy for knowledge distillation (2025)."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from flax import struct

from htd_jax.data import Interactions
from htd_jax.distillers.base import Distiller, EpochStart, Method, Step, Terms, no_params
from htd_jax.distillers.draws import best_of, by_weight, in_blocks
from htd_jax.losses import rejuvenated_loss
from htd_jax.teacher import Teacher

# The most of the teacher's items that add to an item's chance of being drawn, as in the authors' code.
CAP = 50


@dataclasses.dataclass(frozen=True)
class RCEKD(Method):
    """Cross-entropies to the teacher over the student's best items, and around the teacher's best (RCE-KD, 2025)."""

    weight: Annotated[float, Ge(0)] = 500.0
    """Lambda: the distillation loss counts this much against the base loss."""
    best: Annotated[int, Ge(1)] = 50
    """K: the teacher's, and the student's, best items of each user."""
    sampled: Annotated[int, Ge(0)] = 50
    """L: items of each user that are drawn from the student's list."""
    pool: Annotated[int, Ge(1)] = 200
    """The student's best items, from which they are drawn."""
    draw_temperature: Annotated[float, Gt(0)] = 10.0
    """An item with c of the teacher's items at or below it is drawn with a probability like exp((c + 1) / this)."""
    beta: Annotated[float, Ge(0)] = 3.0
    """How fast the weight of the teacher's items falls with the share of them that was drawn."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """Of both models' scores."""
    rank_temperature: Annotated[float, Gt(0)] = 10.0
    """For lists without scores: the item of rank r has the score -r / this."""

    label: ClassVar[str] = "RCE-KD"

    def make(self, epochs: int) -> Distiller:
        return rce_kd(
            num_best=self.best,
            num_sampled=self.sampled,
            pool=self.pool,
            draw_temperature=self.draw_temperature,
            beta=self.beta,
            temperature=self.temperature,
            rank_temperature=self.rank_temperature,
        )


@struct.dataclass
class Known:
    """A teacher's best items, seen ones too, and what it is asked for others.

    Attributes:
      best: `[num_users, K]` int32, -1 for none.
      scores: see `Teacher`; None where there are lists alone.
      items: `[num_users, k]` int32, then: the lists, -1 for none; and else None.
      worth: `[num_users, k]`, what listed items score.
      floor: `[num_users]`, what the others do.
    """

    best: jax.Array
    scores: Callable[[jax.Array], jax.Array] | None = None
    items: jax.Array | None = None
    worth: jax.Array | None = None
    floor: jax.Array | None = None


@struct.dataclass
class Sample:
    """The items of an epoch, -1 for none, and what the teacher scores them.

    Attributes:
      best: `[num_users, K]`, the student's best items.
      others: `[num_users, L + K]`, those drawn, and the teacher's best that are in neither set.
      best_teacher, others_teacher: the same shapes.
      shared: `[num_users]`, of K, how many of the teacher's best were drawn.
    """

    best: jax.Array
    others: jax.Array
    best_teacher: jax.Array
    others_teacher: jax.Array
    shared: jax.Array


def rce_kd(
    *,
    num_best: int = 50,
    num_sampled: int = 50,
    pool: int = 200,
    draw_temperature: float = 10.0,
    beta: float = 3.0,
    temperature: float = 1.0,
    rank_temperature: float = 10.0,
) -> Distiller:
    """Cross-entropies to the teacher over two small sets of each user's items, see `rejuvenated_loss`.

    Every epoch ranks all items by the student as it is, seen ones too, as the teacher's are. S are its K best. Of its
    `pool` best, L are drawn without replacement, each with a probability like exp((min(c, 50) + 1) / T), c the number
    of the teacher's K best that stand at or below it in the pool: I. The second set are I and those of the teacher's
    best that are in neither I nor S; its weight is exp(-beta |T and I| / K).

    Every different user of a batch counts once; in the authors' code once for every triple. The largest score is taken
    off before exponentiating, which their code does not do.

    A teacher of lists alone has as its best the first K of its list; an item that is not listed scores what the next
    after the list would (by rank), or what the last of the list does (by scores).

    Cost, a user: an epoch's refresh makes all scores of student and teacher, m (d_S + d_T), some users at a time, and
    finds the pool among them; a step scores 2K + L pairs. Held are 2 (2K + L) numbers a user.

    Args:
      num_best: K, at most all items.
      num_sampled: L, at most the pool.
      pool: of the student's best items.
      draw_temperature: T, over 0.
      beta: see `rejuvenated_loss`.
      temperature: of both models' scores, over 0.
      rank_temperature: of lists without scores, over 0.

    Returns:
      A `Distiller`; its term is `rce-kd`.
    """

    def prepare(teacher: Teacher, train: Interactions) -> Known:
        if teacher.scores is not None:
            return Known(_best_of_scores(teacher, train, num_best), teacher.scores)
        assert teacher.lists is not None, "a teacher with neither lists nor scores"
        items = jnp.asarray(teacher.lists.items, jnp.int32)
        there = items >= 0
        if teacher.lists.scores is None:
            rank = jnp.arange(items.shape[1], dtype=jnp.float32)[None, :]
            worth = jnp.broadcast_to(-rank / rank_temperature, items.shape)
            floor = -jnp.sum(there, axis=1) / rank_temperature
        else:
            worth = jnp.asarray(teacher.lists.scores, jnp.float32)
            floor = jnp.min(jnp.where(there, worth, jnp.inf), axis=1, initial=jnp.inf)
            floor = jnp.where(there.any(1), floor, 0)
        return Known(items[:, :num_best], None, items, jnp.where(there, worth, 0), floor)

    def refresh(start: EpochStart) -> Sample:
        params, key, epoch, teacher, student = start.params, start.key, start.epoch, start.context, start.student
        num_users, num_items = student.num_users, student.num_items

        def of_block(users: jax.Array) -> Sample:
            ranked = best_of(student.score_all(users), max(pool, num_best))
            best, candidates = ranked[:, :num_best], ranked[:, :pool]
            wanted = teacher.best[users]
            hits = _among(candidates, wanted).astype(jnp.int32)
            below = jnp.cumsum(hits[:, ::-1], axis=1)[:, ::-1]  # at this rank or a worse one
            log_weights = (jnp.minimum(below, CAP) + 1) / draw_temperature
            sampled = by_weight(jax.random.fold_in(key, users[0]), candidates, log_weights, num_sampled)
            in_sample = _among(wanted, sampled)
            beside = jnp.where(in_sample | _among(wanted, best), -1, wanted)
            others = jnp.concatenate([sampled, beside], axis=1)
            worth = _worth(teacher, users, jnp.concatenate([best, others], axis=1))
            of_best, of_others = jnp.split(worth, [best.shape[1]], axis=1)
            return Sample(best, others, of_best, of_others, jnp.mean(in_sample, axis=1, dtype=jnp.float32))

        sample: Sample = in_blocks(of_block, num_users, num_items)
        return sample

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        params, drawn, batch, key, epoch = step.params, step.sampled, step.batch, step.key, step.epoch
        users = batch.entities.users
        own: Sample = jax.tree.map(lambda of_all: of_all[users.ids], drawn)
        items = jnp.concatenate([own.best, own.others], axis=1)
        scores = batch.score(users.ids[:, None], jnp.maximum(items, 0))
        best, others = jnp.split(scores, [own.best.shape[1]], axis=1)
        value = rejuvenated_loss(
            best,
            own.best_teacher,
            others,
            own.others_teacher,
            own.shared,
            where=users.where,
            best_where=own.best >= 0,
            others_where=own.others >= 0,
            temperature=temperature,
            beta=beta,
        )
        return value, {"rce-kd": value}

    return Distiller(no_params, loss, refresh, prepare, needs=("lists",))


@jax.jit(static_argnames="k")
def _best_of_scores(teacher: Teacher, train: Interactions, k: int) -> jax.Array:
    scores = teacher.scores
    assert scores is not None
    best: jax.Array = in_blocks(lambda users: best_of(scores(users), k), train.num_users, train.num_items)
    return best


def _among(items: jax.Array, others: jax.Array) -> jax.Array:
    """Which of `[n, a]` items, -1 for none, stand in the same row of `[n, b]`: `[n, a]` bool."""
    return ((items[:, :, None] == others[:, None, :]) & (items >= 0)[:, :, None]).any(2)


def _worth(teacher: Known, users: jax.Array, items: jax.Array) -> jax.Array:
    """What the teacher scores items `[n, a]` of the users `[n]`; anything for one of -1."""
    if teacher.scores is not None:
        return jnp.take_along_axis(teacher.scores(users), jnp.maximum(items, 0), axis=1)
    assert teacher.items is not None and teacher.worth is not None and teacher.floor is not None
    listed, worth, floor = teacher.items[users], teacher.worth[users], teacher.floor[users]
    here = items[:, :, None] == listed[:, None, :]
    found = jnp.max(jnp.where(here, worth[:, None, :], -jnp.inf), axis=2, initial=-jnp.inf)
    return jnp.where(here.any(2), found, floor[:, None])
