"""NeuMF: an inner product and a small network, trained with binary cross-entropy."""

import dataclasses
import itertools
from typing import Annotated, ClassVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from annotated_types import Ge

from htd_jax.data import Interactions
from htd_jax.losses import bce_loss
from htd_jax.models.base import ModelSettings, Recommender
from htd_jax.ops.products import dot
from htd_jax.ops.shards import at_owner, look_up

# Units of the tower that `score_all` holds at a time: they fit in a cache.
UNITS = 2**20


class NeuMF(Recommender):
    r"""Neural matrix factorisation (He et al., WWW'17): a pair's score is the logit of its being seen.

    .. math:: x_{ui} = w^T [p_u \odot q_i;\ f([r_u; s_i])] + b

    f is a tower of layers with ReLU, each half as wide as its input. Users have vectors p and r, items q and s, in one
    row each: a table's first `dim` columns are the product's ("GMF"), its last `dim` the tower's ("MLP"). Tables start
    at N(0, 0.01^2), kernels at Glorot's uniform distribution, biases at zero.

    The tower's first layer is the sum of a user's part and an item's, so that scoring many users with many items
    computes an item's part once.

    Attributes:
      dim: the width of each of the four vectors; a representation is twice as wide.
      layers: hidden layers of the tower, at least 1.
    """

    row_local: ClassVar[bool] = True
    divided: ClassVar[bool] = True

    dim: int
    layers: int = 1

    def setup(self) -> None:
        normal, glorot, zeros = nn.initializers.normal(0.01), nn.initializers.glorot_uniform(), nn.initializers.zeros
        self.users = self.param("users", normal, (self.num_users, 2 * self.dim))
        self.items = self.param("items", normal, (self.num_items, 2 * self.dim))
        widths = [max(1, 2 * self.dim >> layer) for layer in range(self.layers + 1)]
        shapes = [*itertools.pairwise(widths), (self.dim + widths[-1], 1)]
        (first, self.bias), *self.tower, (output, self.output_bias) = [
            (self.param(f"kernel{i}", glorot, shape), self.param(f"bias{i}", zeros, shape[1:]))
            for i, shape in enumerate(shapes)
        ]
        self.user_kernel, self.item_kernel = jnp.split(first, 2)
        self.product_weights, self.tower_weights = jnp.split(output[:, 0], [self.dim])
        self.all_item_parts = self._item_parts(self.items)  # under jit, computed only where they are used

    def represent(self, users: chex.Array, items: chex.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the representations `[n, 2 dim]` of the users `[n]` and `[m, 2 dim]` of the items `[m]`."""
        chex.assert_rank([users, items], 1)
        return look_up(self.users, users), look_up(self.items, items)

    def score(self, users: chex.Array, items: chex.Array) -> jax.Array:
        """Returns the logits of pairs (user, item), from two integer arrays that broadcast, see `Recommender`."""
        chex.assert_equal_rank([users, items])
        if items.ndim < 2:
            return self._logits(self._user_parts(users), self._item_parts(look_up(self.items, items)))
        user_parts = self._user_parts(users)
        return at_owner(lambda item_parts: self._logits(user_parts, item_parts), self.all_item_parts, items)

    def score_all(self, users: chex.Array) -> jax.Array:
        """Returns the logits `[n, num_items]` of every item for the users `[n]`, UNITS of the first layer at a time."""
        chex.assert_rank(users, 1)
        (user_product, user_first), (item_product, item_first) = self._user_parts(users), self.all_item_parts
        batch_size = max(1, UNITS // max(1, user_first.size))
        score_item = lambda first: self._tower(user_first + first[None, :])
        return dot(user_product, item_product.T) + jax.lax.map(score_item, item_first, batch_size=batch_size).T

    def loss(self, users: chex.Array, positives: chex.Array, negatives: chex.Array, where: chex.Array) -> jax.Array:
        """Returns `bce_loss`, summed over triples `[n]` (user, seen item, unseen item)."""
        return bce_loss(self.score(users, positives), self.score(users, negatives), where=where)

    def _user_parts(self, users: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns what depends on users `[...]` in the product and in the tower's first layer: `[..., dim]` each."""
        product, tower = jnp.split(look_up(self.users, users), 2, axis=-1)
        return product * _last(self.product_weights, product), _affine(tower, self.user_kernel, self.bias)

    def _item_parts(self, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the parts that depend on items, from their rows `[..., 2 dim]`: `[..., dim]` each."""
        product, tower = jnp.split(rows, 2, axis=-1)
        return product, dot(tower, self.item_kernel)

    def _logits(self, user: tuple[jax.Array, jax.Array], item: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.sum(user[0] * item[0], axis=-1) + self._tower(user[1] + item[1])

    def _tower(self, first: jax.Array) -> jax.Array:
        """Returns the tower's term of a logit, `[...]`, from the inputs of its first ReLU, `[..., dim]`."""
        units = jax.nn.relu(first)
        for kernel, bias in self.tower:
            units = jax.nn.relu(_affine(units, kernel, bias))
        return dot(units, self.tower_weights) + self.output_bias[0]


def _last(row: jax.Array, x: jax.Array) -> jax.Array:
    """Reshapes `row` `[d]` to the rank of `x` `[..., d]`: a program may forbid implicit rank promotion."""
    return row.reshape((1,) * (x.ndim - 1) + row.shape)


def _affine(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    y: jax.Array = dot(x, kernel)
    return y + _last(bias, y)


@dataclasses.dataclass(frozen=True)
class NeuMFSettings(ModelSettings):
    """Settings of NeuMF, an inner product and a small network (He et al., WWW'17)."""

    layers: Annotated[int, Ge(1)] = 1
    """Number of hidden layers of NeuMF's network; the published figures were measured with one, the default."""

    teacher_dim: ClassVar[int] = 250
    module: ClassVar[type[Recommender]] = NeuMF
    label: ClassVar[str] = "NeuMF"

    def build(self, train: Interactions, dim: int) -> NeuMF:
        return NeuMF(train.num_users, train.num_items, dim, self.layers)
