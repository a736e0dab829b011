"""PCKD, Preference-Consistent Knowledge Distillation (Zhu and Zhang, TKDE'25)."""

import dataclasses
from typing import Annotated, Any, ClassVar

import chex
import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from flax import struct

from htd_jax.data import Interactions
from htd_jax.distillers.base import Distiller, EpochStart, Method, Params, Shapes, Step, Terms, concatenate
from htd_jax.distillers.draws import by_rank
from htd_jax.distillers.experts import annealing, assign, init_experts, project
from htd_jax.losses import preference_loss
from htd_jax.models import Representations
from htd_jax.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class PCKD(Method):
    """DE, whose experts are to leave preferences as they are (Zhu and Zhang, TKDE'25)."""

    weight: Annotated[float, Ge(0)] = 1e-2
    """Lambda: the distillation loss counts this much against the base loss."""
    experts: Annotated[int, Ge(1)] = 30
    """K, experts a side."""
    alpha: Annotated[float, Ge(0)] = 0.1
    """The preferences count this much against DE's loss."""
    items: Annotated[int, Ge(2)] = 5
    """Q: items of each user among which preferences are compared, drawn anew each epoch."""
    pool: Annotated[int, Ge(2)] = 100
    """The teacher's best unseen items, of which they are."""
    rank_temperature: Annotated[float, Gt(0)] = 10.0
    """The item of rank r is drawn with a probability like exp(-r / this)."""
    temperature: Annotated[float, Gt(0)] = 0.1
    """T: preferences are the softmax of scores over T."""
    users: Annotated[int, Ge(1)] = 16
    """Triples of a batch whose users' preferences are compared, for all of them; all, if there are no more."""

    label: ClassVar[str] = "PCKD"
    scheduled: ClassVar[bool] = True  # the temperature falls over all epochs

    def make(self, epochs: int) -> Distiller:
        return pckd(
            num_experts=self.experts,
            alpha=self.alpha,
            num_items=self.items,
            pool=self.pool,
            rank_temperature=self.rank_temperature,
            temperature=self.temperature,
            num_users=self.users,
            epochs=epochs,
        )


@struct.dataclass
class Liked:
    """The teacher's representations, and its best unseen items, `[num_users, pool]`, -1 where there are fewer."""

    representations: Representations
    pool: jax.Array


def pckd(
    *,
    num_experts: int = 30,
    alpha: float = 0.1,
    num_items: int = 5,
    pool: int = 100,
    rank_temperature: float = 10.0,
    temperature: float = 0.1,
    num_users: int = 16,
    epochs: int = 101,
) -> Distiller:
    """DE, and its experts are held to preferences: what a user prefers among some items by the products of the
    student's representations, it is to prefer by those of the experts' outputs too.

    `de` + alpha times `preference_loss` of the products after the experts to those before them. In the latter the
    student is a constant, which trains the experts and gates alone. A user's Q items are drawn of the teacher's best
    by rank, without replacement, anew each epoch. Every triple counts, by its user; gates have noise of their own for
    every user and item.

    That is the list-wise variant, the one of the authors' settings. Their paper ranks by the student, their settings by
    the teacher, as here. Their code ranks seen items too; here a teacher's best are unseen ones, as everywhere else.
    They compare the users of all triples: an expert's output for each of Q + 1 times the batch costs several times what
    DE costs. Here the batch's first `num_users` triples, which are in random order, stand for all of them: the term is
    multiplied by how many there are for each, so that its expectation is theirs.

    Cost, beside DE's: held is a user's pool (400 bytes), and in the state Q items; a step is (Q + 1) `num_users` rows
    of all K experts, by default a thirtieth of what a batch of 1,024 gives DE.

    Args:
      num_experts: K, experts a side.
      alpha: of the preferences.
      num_items: Q.
      pool: how many of the teacher's best items there are to draw from.
      rank_temperature: of the draw.
      temperature: of the preferences.
      num_users: triples of a batch that are compared.
      epochs: over how many epochs the temperature of the gates falls, see `annealing`.

    Returns:
      A `Distiller`; its terms are `de` and `preference`.
    """
    of_gates = annealing(epochs, first=0)

    def prepare(teacher: Teacher, train: Interactions) -> Liked:
        assert teacher.representations is not None
        return Liked(teacher.representations, teacher.top(train, pool))

    def init(key: chex.PRNGKey, student: Shapes, teacher: Liked) -> Params:
        return init_experts(key, student.dim, teacher.representations.users.shape[1], num_experts)

    def refresh(start: EpochStart) -> jax.Array:
        params, key, epoch, teacher, student = start.params, start.key, start.epoch, start.context, start.student
        return by_rank(key, teacher.pool, num_items, rank_temperature)

    def preferences(step: Step, key: chex.PRNGKey, heat: jax.Array) -> jax.Array:
        params, items, batch = step.params, step.sampled, step.batch
        where = batch.triples.where[:num_users]
        users = batch.triples.users[:num_users]
        items = items[users]
        there = items >= 0
        ids = users, jnp.maximum(items, 0).ravel()
        student = jax.lax.stop_gradient(batch.represent(*ids))
        teacher: Any = step.context
        tables = (table[chosen] for table, chosen in zip(teacher.representations, ids))
        projected = project(params, student, tuple(tables), heat, key)
        before, after = (
            jnp.sum(of_users[:, None] * of_items.reshape(*items.shape, -1), axis=2)
            for of_users, of_items in (student, projected)
        )
        value = preference_loss(after, before, temperature=temperature, where=where, items_where=there)
        return value * batch.triples.where.sum() / jnp.maximum(where.sum(), 1)

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        params, drawn, batch, key, epoch = step.params, step.sampled, step.batch, step.key, step.epoch
        entities = batch.entities
        for_de, for_preferences = jax.random.split(key)
        items = concatenate(entities.positives, entities.negatives)
        value, _ = assign(params, entities.users, items, of_gates(epoch), for_de, item_weight=0.5)
        consistency = preferences(step, for_preferences, of_gates(epoch))
        return value + alpha * consistency, {"de": value, "preference": consistency}

    return Distiller(init, loss, refresh, prepare, needs=("representations", "lists"))
