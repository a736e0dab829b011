"""Vectors that are averaged over the graph of interactions, trained with BPR."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from htd_jax.data import Interactions
from htd_jax.models.base import InnerProduct

# Interactions worked off at once: their gathered rows stay in a processor's cache between the gather and the sum, which
# is six times as fast at 200 dimensions as to write and read them all; and a GPU has few enough kernels to launch.
BLOCK = 4096

Tables = tuple[jax.Array, jax.Array]


class LightGCN(InnerProduct):
    """A vector for every user and item, averaged with those of its neighbours near and far (He et al., SIGIR'20).

    Only the tables before `propagate` are parameters. They start at N(0, 0.1^2), as the authors' do: a mean over
    neighbours is shorter than what it averages.

    Attributes:
      train: the interactions that are the graph's edges.
      dim: of the tables.
      layers: how often neighbours are averaged.
    """

    train: Interactions
    dim: int
    layers: int = 2

    def setup(self) -> None:
        normal = nn.initializers.normal(0.1)
        users = self.param("users", normal, (self.num_users, self.dim))
        items = self.param("items", normal, (self.num_items, self.dim))
        self.users, self.items = propagate((users, items), self.train, self.layers)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def propagate(tables: Tables, train: Interactions, layers: int) -> Tables:
    r"""The mean of the tables over 0, 1, ..., `layers` steps along the edges.

    .. math:: \frac{1}{L + 1} \sum_{l=0}^{L} (D^{-1/2} A D^{-1/2})^l E

    A is the symmetric matrix of who has seen what, without self-loops, D its row sums; who has no neighbours gets zeros
    from them. The map is linear and symmetric, so its transpose, which is the backward pass, is itself. Time is
    O(layers * (pairs + users + items) * dim), and beside tables one block of rows is held.

    Args:
      tables: users `[num_users, dim]` and items `[num_items, dim]`.
      train: the edges.
      layers: static, at least 0.

    Returns:
      Tables of the same shapes.

    Raises:
      AssertionError: tables of other sizes than the graph's.
    """
    chex.assert_shape(tables, [(train.num_users, None), (train.num_items, None)])
    degrees = jnp.diff(train.offsets), jnp.zeros(train.num_items, jnp.int32).at[train.items].add(1)
    scale = [1 / jnp.sqrt(jnp.maximum(degree, 1).astype(jnp.float32))[:, None] for degree in degrees]
    scaled = lambda tables: tuple(x * y for x, y in zip(scale, tables))
    total = tables
    for _ in range(layers):
        tables = scaled(neighbour_sums(scaled(tables), train))
        total = tuple(x + y for x, y in zip(total, tables))
    return tuple(x / (layers + 1) for x in total)


propagate.defvjp(
    lambda tables, train, layers: (propagate(tables, train, layers), train),
    lambda layers, train, cotangents: (propagate(cotangents, train, layers), None),
)


def neighbour_sums(tables: Tables, train: Interactions) -> Tables:
    """For every user the sum of its items' rows, for every item that of its users' rows: the product of A and tables.

    In the order of users in both directions: rows added in the order of items are no faster, and need a sort.
    """
    users, items = tables
    block = min(BLOCK, len(train))
    split = lambda ids, nobody: jnp.pad(ids, (0, -len(ids) % block), constant_values=nobody).reshape(-1, block)

    def add(sums, edges):
        of_users, of_items = sums
        user, item = edges
        return (of_users.at[user].add(items[item], mode="drop"), of_items.at[item].add(users[user], mode="drop")), None

    edges = split(train.users, train.num_users), split(train.items, train.num_items)
    return jax.lax.scan(add, (jnp.zeros_like(users), jnp.zeros_like(items)), edges)[0]
