"""PCKD, Preference-Consistent Knowledge Distillation (Zhu and Zhang, TKDE'25)."""

import dataclasses
from typing import Annotated, ClassVar

import chex
import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from flax import struct

from htd_jax.data import Interactions
from htd_jax.distillers.base import (
    Distiller,
    EpochStart,
    Method,
    Params,
    RowIds,
    Shapes,
    Step,
    Terms,
    Triples,
    concatenate,
)
from htd_jax.distillers.experts import annealing, assign, init_experts, project
from htd_jax.distillers.sampling import sample_by_rank
from htd_jax.losses import preference_loss
from htd_jax.models import Representations
from htd_jax.ops.shards import look_up
from htd_jax.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class PCKD(Method):
    """Trains DE's experts to preserve preferences among items (Zhu and Zhang, TKDE'25)."""

    weight: Annotated[float, Ge(0)] = 1e-2
    """Lambda, the weight of the distillation loss against the base loss. Both are sums over a batch: htd-jax
    study weights measures the method's part."""
    experts: Annotated[int, Ge(1)] = 30
    """K, the number of experts of users, and of experts of items."""
    alpha: Annotated[float, Ge(0)] = 0.1
    """The weight of the preference loss against DE's loss."""
    items: Annotated[int, Ge(2)] = 5
    """Q, the number of items per user among which preferences are compared, sampled in each epoch."""
    pool: Annotated[int, Ge(2)] = 100
    """The number of the teacher's best unseen items of a user from which these items are sampled."""
    rank_temperature: Annotated[float, Gt(0)] = 10.0
    """The item of rank r is sampled with a probability proportional to exp(-r / this)."""
    temperature: Annotated[float, Gt(0)] = 0.1
    """T, the temperature of the softmax over scores that defines preferences."""
    users: Annotated[int, Ge(1)] = 16
    """The number of triples of a batch whose users' preferences are compared, in place of all triples."""

    label: ClassVar[str] = "PCKD"
    scheduled: ClassVar[bool] = True  # the temperature of the gates falls over all epochs

    def make(self, epochs: int) -> Distiller:
        return pckd(self, epochs=epochs)


@struct.dataclass
class Context:
    """The teacher's representations, see `Teacher.hints`, and its best unseen items `[num_users, pool]`, -1 where a
    user has fewer."""

    representations: Representations
    pool: jax.Array


def pckd(settings: PCKD = PCKD(), *, epochs: int = 101) -> Distiller:
    """Adds to `de` alpha times `preference_loss`, between a user's scores of some items before and after the experts.

    Scores are products of representations: before the experts the student's own, a constant, so that this term trains
    experts and gates alone; after them, of the experts' outputs. A user's Q items are sampled by rank among the
    teacher's best, without replacement, in each epoch. Every triple counts, by its user; the gates' noise is separate
    for every user and item.

    This is the list-wise variant, that of the authors' settings. Their paper ranks by the student, their settings, as
    here, by the teacher. Their code also ranks seen items; here the teacher's best are unseen, as in other methods.
    They compare the users of all triples, which costs several times what DE costs: Q + 1 outputs for each. Here the
    batch's first `users` triples, which are in random order, stand for all, and the term is multiplied by the ratio, so
    that its expectation is the same.

    Cost in addition to DE's: `pool` items per user (400 bytes) in memory and Q in the state; (Q + 1) `users` rows of
    all K experts per step, by default a thirtieth of what DE computes for a batch of 1,024.

    Args:
      settings: see `PCKD`.
      epochs: the number of epochs over which the temperature of the gates falls, see `annealing`.

    Returns:
      A `Distiller`; its terms are `de` and `preference`.
    """
    gate_temperature = annealing(epochs, first=0)

    def prepare(teacher: Teacher, train: Interactions) -> Context:
        return Context(teacher.hints(), teacher.top(train, settings.pool))

    def init(key: chex.PRNGKey, student: Shapes, context: Context) -> Params:
        return init_experts(key, student.dim, context.representations.users.shape[1], settings.experts)

    def refresh(start: EpochStart) -> jax.Array:
        return sample_by_rank(start.key, start.context.pool, settings.items, settings.rank_temperature)

    def preferences(step: Step, key: chex.PRNGKey, temperature: jax.Array) -> jax.Array:
        all_triples = step.batch.triples.where
        where = all_triples[: settings.users]
        users = step.batch.triples.users[: settings.users]
        items = look_up(step.sampled, users)
        tables: Representations = step.context.representations
        item_ids = jnp.maximum(items, 0).ravel()
        student = jax.lax.stop_gradient(step.batch.represent(users, item_ids))
        teacher = look_up(tables.users, users), look_up(tables.items, item_ids)
        projected = project(step.params, student, teacher, temperature, key)
        before, after = (
            jnp.sum(user_rows[:, None] * item_rows.reshape(*items.shape, -1), axis=2)
            for user_rows, item_rows in (student, projected)
        )
        counted = where[:, None] & (items >= 0)
        value = preference_loss(after, before, where=counted, temperature=settings.temperature)
        return value * all_triples.sum() / jnp.maximum(where.sum(), 1)

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        entities, temperature = step.batch.entities, gate_temperature(step.epoch)
        de_key, preference_key = jax.random.split(step.key)
        items = concatenate(entities.positives, entities.negatives)
        value, _ = assign(step.params, entities.users, items, temperature, de_key, item_weight=0.5)
        consistency = preferences(step, preference_key, temperature)
        return value + settings.alpha * consistency, {"de": value, "preference": consistency}

    def reads(context: Context, sampled: jax.Array, triples: Triples, key: chex.PRNGKey) -> RowIds:
        return RowIds.of_items(look_up(sampled, triples.users[: settings.users]))

    return Distiller(init, loss, refresh, prepare, needs=("representations", "lists"), reads=reads, divided=True)
