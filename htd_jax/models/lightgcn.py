"""Vectors that are averaged over the graph of interactions, trained with BPR."""

import dataclasses
import functools
from typing import Annotated, ClassVar, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from annotated_types import Ge

from htd_jax.data import Interactions
from htd_jax.models.base import InnerProduct, ModelSettings, Recommender

# Neighbours a row. Rows of one length are summed in one loop over all of them, on every core and without a scatter: at
# 200 dimensions twice as fast as to add up one interaction after the other.
WIDTH = 8

Tables = tuple[jax.Array, jax.Array]


class Neighbours(NamedTuple):
    """The neighbours of n entities, in rows of `WIDTH`, the last of an entity filled up with weights of zero.

    Attributes:
      ids, weights: `[n + m, WIDTH]`; row a is entity a's first. Who has more neighbours has further rows, from n on.
      owners: `[m]` int32, whose the further rows are, in ascending order; n where they are nobody's.
    """

    ids: jax.Array
    weights: jax.Array
    owners: jax.Array


class Graph(NamedTuple):
    """Who has seen what, from either side: the matrix that `propagate` multiplies by."""

    of_users: Neighbours
    of_items: Neighbours


class LightGCN(InnerProduct):
    """A vector for every user and item, averaged with those of its neighbours near and far (He et al., SIGIR'20).

    Only the tables before `propagate` are parameters. They start at N(0, 0.1^2), as the authors' do: a mean over
    neighbours is shorter than what it averages.

    Attributes:
      graph: `make_graph` of the training interactions.
      dim: of the tables.
      layers: how often neighbours are averaged.
    """

    graph: Graph
    dim: int
    layers: int = 1
    precision: str = "float32"

    def setup(self) -> None:
        normal = nn.initializers.normal(0.1)
        users = self.param("users", normal, (self.num_users, self.dim))
        items = self.param("items", normal, (self.num_items, self.dim))
        self.keep(*propagate((users, items), self.graph, self.layers))


@dataclasses.dataclass(frozen=True)
class LightGCNSettings(ModelSettings):
    """Vectors averaged along the graph (He et al., SIGIR'20)."""

    layers: Annotated[int, Ge(0)] = 1
    """How often neighbours are averaged. The published figures were measured with one."""

    module: ClassVar[type[Recommender]] = LightGCN
    label: ClassVar[str] = "LightGCN"

    def build(self, train: Interactions, dim: int) -> LightGCN:
        return LightGCN(train.num_users, train.num_items, make_graph(train), dim, self.layers)


def make_graph(train: Interactions) -> Graph:
    """The graph of the interactions, an edge between u and i weighing 1 / sqrt(deg(u) deg(i)).

    Worth making once for many steps: it sorts the interactions by item.
    """
    users, items = train.users, train.items
    degrees = jnp.diff(train.offsets), jnp.zeros(train.num_items, jnp.int32).at[items].add(1)
    weights = jax.lax.rsqrt(degrees[0][users] * degrees[1][items].astype(jnp.float32))  # int32 could overflow
    order = jnp.argsort(items)
    return Graph(
        neighbours(users, items, weights, degrees[0]),
        neighbours(items[order], users[order], weights[order], degrees[1]),
    )


def neighbours(owners: jax.Array, ids: jax.Array, weights: jax.Array, degrees: jax.Array) -> Neighbours:
    """Rows of the edges, given in ascending order of owners, of whom each has as many as `degrees` says."""
    count, size = len(degrees), len(ids)
    before = lambda sizes: (jnp.cumsum(sizes) - sizes)[owners]
    position = jnp.arange(size) - before(degrees)  # of a neighbour among its owner's
    further = jnp.maximum((degrees - 1) // WIDTH, 0)  # rows of an entity beside its first: size // WIDTH at most in all
    row = jnp.where(position < WIDTH, owners, count + before(further) + position // WIDTH - 1)
    rows = count + size // WIDTH
    place = lambda what: jnp.zeros((rows, WIDTH), what.dtype).at[row, position % WIDTH].set(what)
    return Neighbours(place(ids), place(weights), jnp.full(rows, count, jnp.int32).at[row].set(owners)[count:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def propagate(tables: Tables, graph: Graph, layers: int) -> Tables:
    r"""The mean of the tables over 0, 1, ..., `layers` steps along the edges.

    .. math:: \frac{1}{L + 1} \sum_{l=0}^{L} (D^{-1/2} A D^{-1/2})^l E

    A is the symmetric matrix of who has seen what, without self-loops, D its row sums; who has no neighbours gets zeros
    from them. The map is linear and symmetric, so its transpose, which is the backward pass, is itself. Time is
    O(layers * (pairs + users + items) * dim), and beside tables a row for every `WIDTH` pairs is held.

    Args:
      tables: users `[num_users, dim]` and items `[num_items, dim]`.
      graph: a constant, see `make_graph`.
      layers: static, at least 0.

    Returns:
      Tables of the same shapes.

    Raises:
      AssertionError: tables of other sizes than the graph's.
    """
    chex.assert_shape(tables, [(len(side.ids) - len(side.owners), None) for side in graph])
    total = tables
    for _ in range(layers):  # Horner's rule: E + A (E + A (E + ...))
        total = add_neighbours(tables, total, graph)
    users, items = total
    return users / (layers + 1), items / (layers + 1)


propagate.defvjp(
    lambda tables, graph, layers: (propagate(tables, graph, layers), graph),
    lambda layers, graph, cotangents: (propagate(cotangents, graph, layers), None),
)


def add_neighbours(onto: Tables, tables: Tables, graph: Graph) -> Tables:
    """Adds to every user's row the weighted sum of its items' rows in `tables`, to every item's that of its users'."""
    users, items = tables
    return add_weighted(onto[0], items, graph.of_users), add_weighted(onto[1], users, graph.of_items)


def add_weighted(onto: jax.Array, table: jax.Array, side: Neighbours) -> jax.Array:
    """Adds to every row of `onto` `[n, d]` the weighted sum of its neighbours' rows in `table` `[m, d]`."""
    count = len(onto)
    of_rows = lambda ids, weights: sum(table[i] * w[:, None] for i, w in zip(ids.T, weights.T))
    first = onto + of_rows(side.ids[:count], side.weights[:count])
    further = of_rows(side.ids[count:], side.weights[count:])
    return first.at[side.owners].add(further, mode="drop", indices_are_sorted=True)
