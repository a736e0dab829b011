"""Matrix factorisation trained with BPR."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from htd_jax.losses import bpr_loss


class BPR(nn.Module):
    """A vector for every user and item; a pair's score is the product of the two (Rendle et al., UAI'09).

    Tables start at N(0, 0.01^2). Called through `apply`, like every Flax module: `model.apply(variables, users,
    method="score_all")`.
    """

    num_users: int
    num_items: int
    dim: int

    def setup(self) -> None:
        normal = nn.initializers.normal(0.01)
        self.users = self.param("users", normal, (self.num_users, self.dim))
        self.items = self.param("items", normal, (self.num_items, self.dim))

    def represent(self, users: chex.Array, items: chex.Array) -> tuple[jax.Array, jax.Array]:
        """Representations `[n, dim]` of the users `[n]` and `[m, dim]` of the items `[m]`."""
        chex.assert_rank([users, items], 1)
        return self.users[users], self.items[items]

    def score(self, users: chex.Array, items: chex.Array) -> jax.Array:
        """Scores `[n]` of the pairs (users[a], items[a])."""
        chex.assert_rank([users, items], 1)
        chex.assert_equal_shape([users, items])
        return jnp.sum(self.users[users] * self.items[items], axis=-1)

    def score_all(self, users: chex.Array) -> jax.Array:
        """Scores `[n, num_items]` of every item for the users `[n]`, in full float32 on every backend."""
        chex.assert_rank(users, 1)
        return jnp.dot(self.users[users], self.items.T, precision=jax.lax.Precision.HIGHEST)

    def loss(self, users: chex.Array, positives: chex.Array, negatives: chex.Array, where: chex.Array) -> jax.Array:
        """The loss that the model trains with, summed over triples `[n]` (user, seen item, unseen item)."""
        return bpr_loss(self.score(users, positives), self.score(users, negatives), where=where)

    __call__ = score
