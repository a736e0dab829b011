"""RD, Ranking Distillation (Tang and Wang, KDD'18)."""

import dataclasses
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le
from flax import struct

from htd_jax.data import Interactions
from htd_jax.distillers.base import Distiller, EpochStart, Method, Step, Terms, no_params
from htd_jax.distillers.draws import of_unseen
from htd_jax.losses import discrepancy_weights, position_weights, weighted_log_loss
from htd_jax.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class RD(Method):
    """The teacher's few best unseen items, as if they had been seen (Tang and Wang, KDD'18)."""

    weight: Annotated[float, Ge(0)] = 1.0
    """Alpha: the distillation loss counts this much against the base loss."""
    items: Annotated[int, Ge(1)] = 10
    """K: the teacher's best unseen items of each user."""
    decay: Annotated[float, Gt(0)] = 1.0
    """Lambda: the item of rank k weighs like exp(-k / lambda)."""
    sharpness: Annotated[float, Ge(0)] = 0.1
    """Mu: how soon the weight grows of an item that the student ranks too low."""
    samples: Annotated[int, Ge(1), Le(10_000)] = 100
    """Unseen items of each user, of which the student's ranks are estimated."""
    start: Annotated[int, Ge(0)] = 10
    """The first epoch, counted from 0, in which the student's ranks count; before, only the teacher's do."""

    label: ClassVar[str] = "RD"

    def make(self, epochs: int) -> Distiller:
        return rd(
            num_items=self.items,
            decay=self.decay,
            sharpness=self.sharpness,
            num_samples=self.samples,
            start=self.start,
        )


@struct.dataclass
class Best:
    """Who has seen what, and the teacher's best unseen items: `[num_users, K]` int32, -1 where there are fewer."""

    train: Interactions
    items: jax.Array


def rd(
    *, num_items: int = 10, decay: float = 1.0, sharpness: float = 0.1, num_samples: int = 100, start: int = 10
) -> Distiller:
    """The teacher's K best unseen items are taken for seen ones: each adds its logistic loss, times a weight.

    The weight falls with the teacher's rank, `position_weights`, and from epoch `start` on is that times
    `discrepancy_weights`: an item counts only so far as the student ranks it lower than the teacher. The student's
    rank is estimated in every step from its scores of the user's samples, unseen items drawn uniformly and with
    repetitions, anew each epoch. Every different user of a batch counts once.

    Of what can be read in more than one way, the authors' code decides: the weights by place sum to 1 over all K, and
    their product with the others is left as it is (their code has a switch, off, by which it would sum to 1 as well).
    There a user's samples are drawn for each of the user's pairs, here once an epoch; and a user counts there as often
    as it is in the batch.

    Any teacher that ranks will do, lists alone included. A user with fewer unseen items than K is held to what there
    is; one with none, to nothing.

    Cost, a user: held are K numbers, and drawn, in the state, S (400 bytes); a step scores K + S pairs, of which K
    with a gradient, and compares K S scores.

    Args:
      num_items: K.
      decay: lambda, over 0.
      sharpness: mu.
      num_samples: S, of which the student's ranks are estimated.
      start: the first epoch, from 0, in which they count.

    Returns:
      A `Distiller`; its term is `rd`.
    """

    def prepare(teacher: Teacher, train: Interactions) -> Best:
        return Best(train, teacher.top(train, num_items))

    def refresh(start: EpochStart) -> jax.Array:
        params, key, epoch, teacher, student = start.params, start.key, start.epoch, start.context, start.student
        return of_unseen(key, teacher.train, num_samples)

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        params, drawn, batch, key, epoch = step.params, step.sampled, step.batch, step.key, step.epoch
        users = batch.entities.users
        items, samples = step.context.items[users.ids], drawn[users.ids]
        scores = batch.score(users.ids[:, None], jnp.maximum(items, 0))
        sampled = jax.lax.stop_gradient(batch.score(users.ids[:, None], jnp.maximum(samples, 0)))
        behind = discrepancy_weights(scores, sampled, num_items=step.context.train.num_items, sharpness=sharpness)
        by_place = position_weights(num_items, decay)[None, : items.shape[1]]
        weights = by_place * jnp.where(epoch >= start, behind, 1)
        value = weighted_log_loss(scores, weights.astype(scores.dtype), where=users.where, items_where=items >= 0)
        return value, {"rd": value}

    return Distiller(no_params, loss, refresh, prepare, needs=("lists",))
