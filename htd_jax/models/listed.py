"""Models without training: rankings from given lists, and from popularity, to evaluate like any model."""

import dataclasses
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp

from htd_jax.data import Interactions
from htd_jax.models.base import MakeModel, ModelOf, Recommender
from htd_jax.models.bpr import BPRSettings


class Listed(Recommender):
    """A list of items for every user: the item at position p of `length` scores `length - p`, any other item 0.

    Its variables are `{"params": {"items": [num_users, length] int32}}`, -1 for none. An item that occurs twice in a
    list has the score of its better position. It has no representations and no loss.

    Attributes:
      length: of the lists.
    """

    has_representations: ClassVar[bool] = False

    length: int

    def setup(self) -> None:
        empty = lambda key, shape: jnp.full(shape, -1, jnp.int32)
        self.items = self.param("items", empty, (self.num_users, self.length))

    def score(self, users: chex.Array, items: chex.Array) -> jax.Array:
        """Returns the scores of pairs (user, item), from two integer arrays that broadcast, see `Recommender`."""
        chex.assert_equal_rank([users, items])
        here = self.items[users] == jnp.asarray(items)[..., None]
        return jnp.max(jnp.where(here, self._scores(), 0.0), axis=-1, initial=0.0)

    def score_all(self, users: chex.Array) -> jax.Array:
        """Returns the scores `[n, num_items]` of every item for the users `[n]`."""
        chex.assert_rank(users, 1)
        lists = self.items[users]
        at = jnp.where(lists < 0, self.num_items, lists)
        rows = jnp.arange(len(users))[:, None]
        scores = jnp.zeros((len(users), self.num_items))
        return scores.at[rows, at].max(jnp.broadcast_to(self._scores(), at.shape), mode="drop")

    def represent(self, users: chex.Array, items: chex.Array) -> tuple[jax.Array, jax.Array]:
        raise NotImplementedError("lists have no representations")

    def loss(self, users: chex.Array, positives: chex.Array, negatives: chex.Array, where: chex.Array) -> jax.Array:
        raise NotImplementedError("lists are not trained")

    def _scores(self) -> jax.Array:
        return self.length - jnp.arange(self.length, dtype=jnp.float32)


@dataclasses.dataclass(frozen=True)
class ListedOf:
    """A `MakeModel` of `Listed`; it compares by value, like `ModelOf`."""

    length: int

    def __call__(self, train: Interactions) -> Listed:
        return Listed(train.num_users, train.num_items, self.length)


def listed(items: chex.Array) -> tuple[MakeModel, dict[str, Any]]:
    """Returns a model of lists `[num_users, k]` int32, -1 for none, and its variables.

    >>> import htd_jax
    >>> from htd_jax.evaluation import make_evaluator
    >>> split = htd_jax.data.make_synthetic(num_users=100, num_items=200)
    >>> best = jnp.argsort(-jnp.bincount(split.train.items, length=200))[:50]
    >>> model, variables = listed(jnp.tile(best, (100, 1)))
    >>> 0 < make_evaluator(split)(model, variables)["test"]["recall@50"] < 1
    Array(True, dtype=bool)
    """
    chex.assert_rank(items, 2)
    return ListedOf(items.shape[1]), {"params": {"items": jnp.asarray(items, jnp.int32)}}


def popularity(train: Interactions) -> tuple[MakeModel, dict[str, Any]]:
    """Returns a model that scores an item by the number of users who have seen it in `train`, and its variables."""
    counts = jnp.bincount(train.items, length=train.num_items).astype(jnp.float32)
    tables = {"users": jnp.ones((train.num_users, 1)), "items": counts[:, None]}
    return ModelOf(BPRSettings(), 1), {"params": tables}
