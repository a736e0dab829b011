"""RD, Ranking Distillation (Tang and Wang, KDD'18)."""

import dataclasses
from typing import Annotated, ClassVar

import chex
import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le
from flax import struct

from htd_jax.data import Interactions
from htd_jax.distillers.base import Distiller, EpochStart, Method, RowIds, Step, Terms, Triples, no_params
from htd_jax.distillers.sampling import sample_unseen
from htd_jax.losses import discrepancy_weights, position_weights, weighted_log_loss
from htd_jax.ops.shards import look_up
from htd_jax.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class RD(Method):
    """Learns the teacher's few best unseen items as if they had been seen (Tang and Wang, KDD'18)."""

    weight: Annotated[float, Ge(0)] = 1.0
    """Alpha, the weight of the distillation loss against the base loss."""
    items: Annotated[int, Ge(1)] = 10
    """K, the number of the teacher's best unseen items per user that are learned."""
    decay: Annotated[float, Gt(0)] = 1.0
    """Lambda; the item of rank k has a weight proportional to exp(-k / lambda)."""
    sharpness: Annotated[float, Ge(0)] = 0.1
    """Mu, the rate at which the weight of an item grows with the number of ranks that the student places it too low."""
    samples: Annotated[int, Ge(1), Le(10_000)] = 100
    """The number of unseen items per user from which the student's ranks are estimated."""
    start: Annotated[int, Ge(0)] = 10
    """The first epoch, counted from 0, in which weights depend on the student's ranks."""

    label: ClassVar[str] = "RD"

    def make(self, epochs: int) -> Distiller:
        return rd(self)


@struct.dataclass
class Context:
    """The training interactions, and the teacher's best unseen items: `[num_users, K]` int32, -1 if there are fewer."""

    train: Interactions
    items: jax.Array


def rd(settings: RD = RD()) -> Distiller:
    """Learns the teacher's K best unseen items as positives, by a weighted logistic loss.

    The weight falls with the teacher's rank, see `position_weights`, and from epoch `settings.start` on is multiplied
    by `discrepancy_weights`: an item counts as far as the student ranks it lower than the teacher. Each step estimates
    the student's rank from its scores of the user's samples: unseen items, uniform with replacement, new in each epoch.
    Every different user of a batch counts once.

    Where the paper is ambiguous this follows the authors' code: position weights sum to 1 over all K, and their product
    with the others is not normalised (their code has a switch for that, off by default). Their code samples for each of
    the user's pairs, here once per epoch; and there a user counts as often as it is in the batch.

    Any teacher that ranks works, lists alone included. A user with fewer unseen items than K has a shorter list, a user
    without any adds nothing.

    Cost per user: K numbers in memory and S in the state (400 bytes); a step scores K + S pairs, of which K with a
    gradient, and compares K S scores.

    Args:
      settings: see `RD`.

    Returns:
      A `Distiller`; its term is `rd`.
    """

    def prepare(teacher: Teacher, train: Interactions) -> Context:
        return Context(train, teacher.top(train, settings.items))

    def refresh(start: EpochStart) -> jax.Array:
        return sample_unseen(start.key, start.context.train, settings.samples)

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        users = step.batch.entities.users
        items, samples = look_up((step.context.items, step.sampled), users.ids)
        scores = step.batch.score(users.ids[:, None], jnp.maximum(items, 0))
        sampled = jax.lax.stop_gradient(step.batch.score(users.ids[:, None], jnp.maximum(samples, 0)))
        num_items = step.context.train.num_items
        discrepancy = discrepancy_weights(scores, sampled, num_items=num_items, sharpness=settings.sharpness)
        position = position_weights(settings.items, settings.decay)[None, : items.shape[1]]
        weights = position * jnp.where(step.epoch >= settings.start, discrepancy, 1)
        where = users.where[:, None] & (items >= 0)
        value = weighted_log_loss(scores, where=where, weights=weights.astype(scores.dtype))
        return value, {"rd": value}

    def reads(context: Context, sampled: jax.Array, triples: Triples, key: chex.PRNGKey) -> RowIds:
        return RowIds.of_items(*look_up((context.items, sampled), triples.users))

    return Distiller(no_params, loss, refresh, prepare, needs=("lists",), reads=reads, divided=True)
