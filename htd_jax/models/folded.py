"""Items alone: a user's row is made from the items that the user has seen, so that users take no memory."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from annotated_types import Interval

from htd_jax.data import Interactions, seen_mask, was_seen
from htd_jax.losses import bpr_loss
from htd_jax.models.base import InnerProduct, ModelSettings, Recommender
from htd_jax.ops.pooling import Histories, pool
from htd_jax.ops.precision import Rows, encoded, rounded
from htd_jax.ops.products import dot


class Shared(NamedTuple):
    """The parameters that all users share.

    Attributes:
      map: `[dim, dim]`.
      bias: `[dim]`, the row of a user without items.
      power: scalar.
    """

    map: jax.Array
    bias: jax.Array
    power: jax.Array

    def factors(self, counts: jax.Array) -> jax.Array:
        """Returns the factors of sums over so many items: counts^-power, and 1 for none."""
        return jnp.exp(-self.power * jnp.log(jnp.maximum(counts, 1).astype(jnp.float32)))

    def rows(self, sums: jax.Array, counts: jax.Array) -> jax.Array:
        """Returns the rows `[n, dim]` of users, from the sums `[n, dim]` of their items' rows and the numbers `[n]` of
        their items."""
        return dot(sums * self.factors(counts)[:, None], self.map) + self.bias[None]


class Folded(InnerProduct):
    r"""A trained row for every item; the row of a user is a function of those of the items that the user has seen.

    .. math:: x_u = |S_u|^{-\beta} \Big( \sum_{i \in S_u} y_i \Big) W + b

    y_i are the rows of the items S_u that user u has seen, rounded to the model's precision, here as in scores. W
    `[dim, dim]`, b `[dim]` and beta are trained and shared by all users. With rows of length one, W = 1, b = 0 and
    beta = 0 the scores are those of ELSA (Vančura et al., RecSys'22).

    A seen item would be evidence for itself. So a training step leaves it out of the row that scores it: the score of a
    seen item i is less by y_i W y_i / |S_u|^beta, as ELSA's and EASE's are. Otherwise scores are products of rows.

    Attributes:
      train: the interactions that the rows of users are made from.
      dim: the width of the rows.
      power: the initial beta.
      leaves_out: whether a seen item is left out of the row that scores it, see `in_step`.
    """

    rows_of: ClassVar[Mapping[str, str]] = {"items": "items"}

    train: Interactions
    dim: int
    power: float = 0.5
    leaves_out: bool = False

    def setup(self) -> None:
        identity = lambda key, shape: jnp.eye(*shape)
        self.raw = self.param("items", nn.initializers.normal(0.1), (self.num_items, self.dim))
        self.shared = Shared(
            self.param("map", identity, (self.dim, self.dim)),
            self.param("bias", nn.initializers.zeros, (self.dim,)),
            self.param("power", nn.initializers.constant(self.power), ()),
        )
        self.items = rounded(self.raw, self.precision, self.steps[1])

    @property
    def from_history(self) -> bool:
        return True

    def in_step(self) -> "Folded":
        return self.clone(leaves_out=True)

    def represent(self, users: chex.Array, items: chex.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the representations `[n, dim]` of the users `[n]` and `[m, dim]` of the items `[m]`."""
        chex.assert_rank([users, items], 1)
        return self._users(users), self.items[items]

    def rows(self) -> tuple[Rows, Rows]:
        """Returns the tables of users, which is float32, and of items, encoded in the model's precision."""
        return Rows(self._users(jnp.arange(self.num_users))), self.item_rows()

    def item_rows(self) -> Rows:
        """Returns the table of items, encoded in the model's precision."""
        return encoded(self.raw, self.precision)

    def score(self, users: chex.Array, items: chex.Array) -> jax.Array:
        """Returns the scores of pairs (user, item), from two integer arrays that broadcast, see `Recommender`."""
        chex.assert_equal_rank([users, items])
        rows = self._users(users.ravel()).reshape(*users.shape, self.dim)
        scores = jnp.sum(rows * self.items[items], axis=-1)
        if not self.leaves_out:
            return scores
        return scores - jnp.where(was_seen(self.train, users, items), self._factors(users) * self._own()[items], 0)

    def score_all(self, users: chex.Array) -> jax.Array:
        """Returns the scores `[n, num_items]` of every item for the users `[n]`, in float32 on every backend."""
        chex.assert_rank(users, 1)
        scores = dot(self._users(users), self.items.T)
        if not self.leaves_out:
            return scores
        own = self._factors(users)[:, None] * self._own()[None]
        return scores - jnp.where(seen_mask(self.train, users), own, 0)

    def score_each(self, users: chex.Array, items: chex.Array) -> jax.Array:
        """Returns the scores `[n, m]` of the users `[n]` for the items `[m]`, in float32 on every backend."""
        chex.assert_rank([users, items], 1)
        scores = dot(self._users(users), self.items[items].T)
        if not self.leaves_out:
            return scores
        own = self._factors(users)[:, None] * self._own()[items][None]
        return scores - jnp.where(was_seen(self.train, users[:, None], items[None]), own, 0)

    def score_users(self, items: chex.Array) -> jax.Array:
        """Returns the scores `[n, num_users]` of the items `[n]` for every user, in float32 on every backend."""
        chex.assert_rank(items, 1)
        return self.score_each(jnp.arange(self.num_users), items).T

    def loss(self, users: chex.Array, positives: chex.Array, negatives: chex.Array, where: chex.Array) -> jax.Array:
        """Returns `bpr_loss`, summed over triples `[n]` (user, seen item, unseen item)."""
        scores = self.score(users[:, None], jnp.stack([positives, negatives], axis=1))  # makes each row once
        return bpr_loss(scores[:, 0], scores[:, 1], where=where)

    def _users(self, users: jax.Array) -> jax.Array:
        """Returns the rows `[n, dim]` of the users `[n]`."""
        sums = pool(self.items, Histories(self.train.offsets, self.train.items), users)
        return self.shared.rows(sums, self._counts(users))

    def _counts(self, users: jax.Array) -> jax.Array:
        return jnp.diff(self.train.offsets)[users]

    def _factors(self, users: jax.Array) -> jax.Array:
        return self.shared.factors(self._counts(users))

    def _own(self) -> jax.Array:
        """Returns what each item adds to its own score, before the factor of the user: `[num_items]`."""
        return jnp.sum(dot(self.items, self.shared.map) * self.items, axis=1)


@dataclasses.dataclass(frozen=True)
class FoldedSettings(ModelSettings):
    """Settings of items alone: the row of a user is made from the items that the user has seen."""

    power: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """Initial power of the number of a user's items by which the sum of their rows is divided."""

    module: ClassVar[type[Recommender]] = Folded
    label: ClassVar[str] = "Folded"

    def build(self, train: Interactions, dim: int) -> Folded:
        return Folded(train.num_users, train.num_items, train, dim, self.power)
