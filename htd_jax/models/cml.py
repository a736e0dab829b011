"""Collaborative metric learning: users lie near the items that they have seen."""

import dataclasses
from typing import Annotated, ClassVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from annotated_types import Gt

from htd_jax.data import Interactions
from htd_jax.losses import hinge_loss
from htd_jax.models.base import ModelSettings, Recommender
from htd_jax.ops.products import dot
from htd_jax.ops.shards import at_owner, look_up


class CML(Recommender):
    r"""Collaborative metric learning (Hsieh et al., WWW'17): a pair's score is minus the squared distance of its rows.

    .. math:: x_{ui} = -|p_u - q_i|^2 \quad \text{with } p = r / \max(1, |r|)

    r are rows of the tables, p and q their images in the unit ball: the paper projects the rows after each step, and
    here the module does, in its scores. Tables start at N(0, 1 / dim), so that rows are about one long.

    The loss is `hinge_loss`. The paper's rank weight is left out: it is estimated from several unseen items per pair,
    and a triple has one. Its covariance term is left out too.

    Attributes:
      dim: the width of the rows.
      margin: by how much a seen item shall be nearer than an unseen one, in squared distance.
    """

    row_local: ClassVar[bool] = True
    divided: ClassVar[bool] = True

    dim: int
    margin: float = 0.5

    def setup(self) -> None:
        normal = nn.initializers.normal(self.dim**-0.5)
        self.users = self.param("users", normal, (self.num_users, self.dim))
        self.items = self.param("items", normal, (self.num_items, self.dim))

    def represent(self, users: chex.Array, items: chex.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the points `[n, dim]` of the users `[n]` and `[m, dim]` of the items `[m]` in the unit ball."""
        chex.assert_rank([users, items], 1)
        return in_ball(look_up(self.users, users)), in_ball(look_up(self.items, items))

    def score(self, users: chex.Array, items: chex.Array) -> jax.Array:
        """Returns the scores of pairs (user, item), from two integer arrays that broadcast, see `Recommender`."""
        chex.assert_equal_rank([users, items])
        points = in_ball(look_up(self.users, users))
        return at_owner(lambda rows: -jnp.sum(jnp.square(points - in_ball(rows)), axis=-1), self.items, items)

    def score_all(self, users: chex.Array) -> jax.Array:
        """Returns the scores `[n, num_items]` of every item for the users `[n]`, by one matrix product."""
        chex.assert_rank(users, 1)
        return _minus_distances(in_ball(look_up(self.users, users)), in_ball(self.items))

    def score_each(self, users: chex.Array, items: chex.Array) -> jax.Array:
        """Returns the scores `[n, m]` of the users `[n]` for the items `[m]`, by one matrix product."""
        return _minus_distances(*self.represent(users, items))

    def score_users(self, items: chex.Array) -> jax.Array:
        """Returns the scores `[n, num_users]` of the items `[n]` for every user, by one matrix product."""
        chex.assert_rank(items, 1)
        return _minus_distances(in_ball(look_up(self.items, items)), in_ball(self.users))

    def loss(self, users: chex.Array, positives: chex.Array, negatives: chex.Array, where: chex.Array) -> jax.Array:
        """Returns `hinge_loss`, summed over triples `[n]` (user, seen item, unseen item)."""
        return hinge_loss(self.score(users, positives), self.score(users, negatives), where=where, margin=self.margin)


def in_ball(rows: jax.Array) -> jax.Array:
    """Returns rows `[..., d]` divided by their lengths, where these are over 1."""
    return rows * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(rows), axis=-1, keepdims=True), 1))


def _minus_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns minus the squared distances `[n, m]` of rows `[n, d]` from rows `[m, d]`: 2 x.y - |x|^2 - |y|^2."""
    squares = lambda rows: jnp.sum(jnp.square(rows), axis=1)
    return 2 * dot(x, y.T) - squares(x)[:, None] - squares(y)[None, :]


@dataclasses.dataclass(frozen=True)
class CMLSettings(ModelSettings):
    """Settings of collaborative metric learning, distances in place of inner products (Hsieh et al., WWW'17)."""

    margin: Annotated[float, Gt(0)] = 0.5
    """Margin by which CML's loss wants a seen item nearer than an unseen one, in squared distance, at most 4."""

    module: ClassVar[type[Recommender]] = CML
    label: ClassVar[str] = "CML"

    def build(self, train: Interactions, dim: int) -> CML:
        return CML(train.num_users, train.num_items, dim, self.margin)
