"""The representations of a trained model, and its scores as a function."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from htd_jax.data import Interactions
from htd_jax.errors import UserError
from htd_jax.models.base import MakeModel, ModelOf, holding


class Representations(NamedTuple):
    """The representations of a trained model: users `[num_users, d]`, items `[num_items, d]`."""

    users: jax.Array
    items: jax.Array


def represent_all(make_model: MakeModel, variables: Any, train: Interactions) -> Representations:
    """Returns the representations of every user and item under a model's variables.

    Raises:
      UserError: if the model has none.
    """
    if not (model := make_model(train)).has_representations:
        raise UserError(f"{type(model).__name__} has no representations, only scores")
    represented: Representations = _represent_all(make_model, variables, train)
    return represented


@functools.partial(jax.jit, static_argnums=0)
def _represent_all(make_model: MakeModel, variables: Any, train: Interactions) -> Representations:
    every = jnp.arange(train.num_users), jnp.arange(train.num_items)
    tables: Any = make_model(train).apply(variables, *every, method="represent")
    return Representations(*tables)


@dataclasses.dataclass(frozen=True)
class ScoreAll:
    """`score_all` as a function of arrays; it compares by value, so that what is compiled for one serves equal ones."""

    make_model: MakeModel

    @property
    def divided(self) -> bool:
        """Whether it takes shards of the model's tables, see `Recommender`."""
        return isinstance(self.make_model, ModelOf) and self.make_model.settings.module.divided

    def __call__(self, variables: Any, train: Interactions, users: jax.Array) -> jax.Array:
        model = holding(self.make_model(train), variables)
        scores: Any = model.apply(variables, users, method="score_all")
        return scores


def model_scores(make_model: MakeModel, variables: Any, train: Interactions) -> Callable[[jax.Array], jax.Array]:
    """Returns the scores of a trained model as a pytree function of users, see `htd_jax.Teacher.scores`."""
    return jax.tree_util.Partial(ScoreAll(make_model), variables, train)
