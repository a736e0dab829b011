"""What a distillation method is: a pair of pure functions, and how methods compose."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from htd_jax.losses.checks import keep_rows

Params = Any
Terms = dict[str, jax.Array]


class Side(NamedTuple):
    """The users, or the items, of a batch.

    Attributes:
      student: `[n, d_s]`, the representations being trained.
      teacher: `[n, d_t]`, those of the same entities in the teacher.
      where: `[n]` bool, false where an entity is a repeat and does not count.
      ids: `[n]` int32, which users or items they are.
    """

    student: jax.Array
    teacher: jax.Array
    where: jax.Array
    ids: jax.Array

    def kept(self) -> "Side":
        """The same with masked rows zeroed, whatever they held, and the teacher a constant: what layers may be
        applied to before a loss masks their output."""
        teacher = jax.lax.stop_gradient(keep_rows(self.teacher, self.where))
        return self._replace(student=keep_rows(self.student, self.where), teacher=teacher)


class Entities(NamedTuple):
    """The entities of a batch, each once a side.

    Attributes:
      users: of all triples.
      items: the seen and the unseen ones together.
      positives: the seen items.
      negatives: the unseen ones that were drawn.
    """

    users: Side
    items: Side
    positives: Side
    negatives: Side

    def together(self) -> Side:
        """Users and items in one set; its ids are ambiguous."""
        return concatenate(self.users, self.items)


def concatenate(*sides: Side) -> Side:
    """All their rows, one side after the other."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *sides)


class Distiller(NamedTuple):
    """A method of distillation.

    Attributes:
      init: `(key, student_dim, teacher_dim) -> params`, what the method learns beside the student.
      loss: `(params, entities, key, epoch) -> (loss, terms)`, a scalar to add to the base model's loss, and its named
        parts for the log; `epoch` is a traced integer.
    """

    init: Callable[[chex.PRNGKey, int, int], Params]
    loss: Callable[[Params, Entities, chex.PRNGKey, jax.Array], tuple[jax.Array, Terms]]


def none() -> Distiller:
    """No distillation: the student learns from the data alone."""
    return Distiller(
        init=lambda key, student_dim, teacher_dim: {},
        loss=lambda params, entities, key, epoch: (jnp.zeros(()), {}),
    )


def scale(distiller: Distiller, weight: float) -> Distiller:
    """`distiller` with its loss times `weight`; the terms in the log stay as they are."""

    def loss(params, entities, key, epoch):
        value, terms = distiller.loss(params, entities, key, epoch)
        return weight * value, terms

    return Distiller(distiller.init, loss)


def chain(*distillers: Distiller) -> Distiller:
    """Several methods at once: the sum of their losses. Terms of one name are summed too."""

    def init(key, student_dim, teacher_dim):
        keys = jax.random.split(key, len(distillers))
        return tuple(d.init(k, student_dim, teacher_dim) for d, k in zip(distillers, keys))

    def loss(params, entities, key, epoch):
        keys = jax.random.split(key, len(distillers))
        total, terms = jnp.zeros(()), {}
        for distiller, own, k in zip(distillers, params, keys):
            value, parts = distiller.loss(own, entities, k, epoch)
            total += value
            terms |= {name: part + terms.get(name, 0) for name, part in parts.items()}
        return total, terms

    return Distiller(init, loss)
