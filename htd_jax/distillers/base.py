"""What a distillation method is: a pair of pure functions, and how methods compose."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

Params = Any
Terms = dict[str, jax.Array]


class Side(NamedTuple):
    """The users, or the items, of a batch.

    Attributes:
      student: `[n, d_s]`, the representations being trained.
      teacher: `[n, d_t]`, those of the same entities in the teacher.
      where: `[n]` bool, false where an entity is a repeat and does not count.
    """

    student: jax.Array
    teacher: jax.Array
    where: jax.Array


class Entities(NamedTuple):
    """The entities of a batch, each once."""

    users: Side
    items: Side

    def together(self) -> Side:
        """Users and items in one set."""
        return jax.tree.map(lambda user, item: jnp.concatenate([user, item]), *self)


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
