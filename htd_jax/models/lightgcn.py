"""LightGCN: vectors averaged over the graph of interactions, trained with BPR."""

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
from htd_jax.ops.neighbours import Neighbours, add_weighted, neighbours
from htd_jax.ops.shards import gathered, is_shard

Tables = tuple[jax.Array, jax.Array]


class Graph(NamedTuple):
    """The matrix that `propagate` multiplies by: the items of every user, and the users of every item."""

    users: Neighbours
    items: Neighbours


class LightGCN(InnerProduct):
    """A vector for every user and item, averaged with those of its neighbours near and far (He et al., SIGIR'20).

    Only the tables before `propagate` are parameters. They start at N(0, 0.1^2), as the authors' do: a mean over
    neighbours is shorter than the vectors it averages.

    Attributes:
      graph: `make_graph` of the training interactions.
      dim: the width of the tables.
      layers: steps along the edges, at least 0.
    """

    divided: ClassVar[bool] = True

    graph: Graph
    dim: int
    layers: int = 1

    def setup(self) -> None:
        normal = nn.initializers.normal(0.1)
        users = self.param("users", normal, (self.num_users, self.dim))
        items = self.param("items", normal, (self.num_items, self.dim))
        if is_shard(users):  # sums over neighbours read any row
            users, items = (gathered(x)[: near.nodes] for x, near in zip((users, items), self.graph))
        self.keep(*propagate((users, items), self.graph, self.layers))


@dataclasses.dataclass(frozen=True)
class LightGCNSettings(ModelSettings):
    """Settings of LightGCN, vectors averaged along the graph of interactions (He et al., SIGIR'20)."""

    layers: Annotated[int, Ge(0)] = 1
    """Number of LightGCN's averaging steps over neighbours; the published figures were measured with one, the
    default."""

    module: ClassVar[type[Recommender]] = LightGCN
    label: ClassVar[str] = "LightGCN"

    def build(self, train: Interactions, dim: int) -> LightGCN:
        return LightGCN(train.num_users, train.num_items, make_graph(train), dim, self.layers)


def make_graph(train: Interactions) -> Graph:
    """Returns the graph of the interactions, in which the edge (u, i) has the weight 1 / sqrt(deg(u) deg(i)).

    It sorts the interactions by item, so make it once for many steps.
    """
    users, items = train.users, train.items
    degrees = jnp.diff(train.offsets), jnp.zeros(train.num_items, jnp.int32).at[items].add(1)
    weights = jax.lax.rsqrt(degrees[0][users] * degrees[1][items].astype(jnp.float32))  # int32 could overflow
    order = jnp.argsort(items)
    return Graph(
        neighbours(users, items, weights, degrees[0]),
        neighbours(items[order], users[order], weights[order], degrees[1]),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def propagate(tables: Tables, graph: Graph, layers: int) -> Tables:
    r"""Returns the mean of the tables over 0, 1, ..., `layers` steps along the edges.

    .. math:: \frac{1}{L + 1} \sum_{l=0}^{L} (D^{-1/2} A D^{-1/2})^l E

    A is the symmetric adjacency matrix of users and items, without self-loops, and D its row sums; a node without
    neighbours receives zeros. The map is linear and symmetric, so its transpose, which is the backward pass, is itself.
    Time is O(layers * (pairs + users + items) * dim); memory, in addition to the tables, is one row per `WIDTH` pairs.

    Args:
      tables: users `[num_users, dim]` and items `[num_items, dim]`.
      graph: a constant, see `make_graph`.
      layers: static, at least 0.

    Returns:
      Tables of the same shapes.

    Raises:
      AssertionError: if the tables' sizes differ from the graph's.
    """
    chex.assert_shape(tables, [(side.nodes, None) for side in graph])
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
    """Adds to the row of every user or item in `onto` the weighted sum of its neighbours' rows in `tables`."""
    users, items = tables
    return add_weighted(onto[0], items, graph.users), add_weighted(onto[1], users, graph.items)
