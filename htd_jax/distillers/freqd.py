"""FreqD, features matched by their frequencies on a graph (Zhu and Zhang, KDD'25)."""

import dataclasses
from typing import Annotated, ClassVar, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from annotated_types import Ge, Interval
from flax import struct

from htd_jax.data import Interactions
from htd_jax.distillers.base import Distiller, EpochStart, Method, Params, Shapes, Side, Step, Terms
from htd_jax.distillers.layers import init_dense, init_sides
from htd_jax.losses import cosine_hint_loss, hint_loss
from htd_jax.losses.checks import check_choice
from htd_jax.models import Representations
from htd_jax.models.lightgcn import Neighbours, add_weighted, neighbours
from htd_jax.ops.products import rows_dot
from htd_jax.teacher import Teacher

DISTANCES = {"cosine": cosine_hint_loss, "squares": hint_loss}
SIDES = ("users", "items")

# Rows of a graph that are made at once.
BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class FreqD(Method):
    """The teacher's representations, smoothed over who goes with whom, through one projection a side (KDD'25)."""

    weight: Annotated[float, Ge(0)] = 0.05
    """Lambda: the distillation loss counts this much against the base loss."""
    alpha: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """The neighbours' share in what is matched; at 0 the representations are matched as they are."""
    neighbours: Annotated[int, Ge(1)] = 5
    """Each user's, and each item's, that it goes with most often."""
    dropped: Annotated[float, Interval(ge=0, lt=1)] = 0.5
    """The share of edges, drawn at random, that are not there in an epoch."""
    distance: Literal["cosine", "squares"] = "cosine"
    """By what they are matched: one less the cosine, or the squared difference, for which lambda should be smaller."""

    label: ClassVar[str] = "FreqD"

    def make(self, epochs: int) -> Distiller:
        return freqd(alpha=self.alpha, num_neighbours=self.neighbours, dropped=self.dropped, distance=self.distance)


@struct.dataclass
class Graph:
    """Who goes with whom, of one side.

    Attributes:
      near: the normalised adjacency, symmetric.
      edges: `[n + m, WIDTH]` int32, the number of each neighbour's edge, the same from either end.
      num_edges: how many edges there are.
    """

    near: Neighbours
    edges: jax.Array
    num_edges: int = struct.field(pytree_node=False)


@struct.dataclass
class Graphs:
    """The teacher's representations, and the graphs of users and items."""

    representations: Representations
    users: Graph
    items: Graph


@struct.dataclass
class Filtered:
    """Of one side: the edges that are there in an epoch, by their weights, 0 for the others; and the teacher's
    representations after the filter that these make."""

    weights: jax.Array
    teacher: jax.Array


def freqd(*, alpha: float = 0.5, num_neighbours: int = 5, dropped: float = 0.5, distance: str = "cosine") -> Distiller:
    """FitNet after a graph filter: H T against H P(S), of users + (positive items + negative items) / 2.

    H = alpha A + (1 - alpha) I. A is the normalised adjacency of a graph a side, see `cooccurrence`. What neighbours
    share counts more, what differs among them less: a low-pass filter, which weighs the frequencies of the difference
    by (1 - alpha lambda)^2, lambda the eigenvalues of I - A. Of the edges each epoch keeps some, whose weights are
    divided by their share; both ends of an edge lose it together.

    P is affine, so that H P(S) is P(H S): the filter works on the student's narrow vectors, and the projection on the
    rows of the batch alone. The authors' code takes the mean of five networks of one hidden layer, by which every row
    of both tables would have to go at each step, and there draws the edges anew, in either direction for itself.
    There the distance is the cosine's; the paper's analysis is of squares.

    Cost: the state holds the teacher's representations once more, filtered once an epoch. A step sums the neighbours of
    all users and items in d_s + 1 dimensions, O((users + items) neighbours d_s), and back. The graphs are made once, on
    the host, a block of rows at a time.

    Args:
      alpha: in [0, 1].
      num_neighbours: of each entity; it is also neighbour of those whose it is.
      dropped: in [0, 1), the share of edges that are not there in an epoch.
      distance: `cosine` or `squares`.

    Returns:
      A `Distiller`; its term is `freqd`.

    Raises:
      ValueError: an unknown `distance`.
    """
    kept = 1 - dropped
    check_choice("distance", distance, tuple(DISTANCES))

    def prepare(teacher: Teacher, train: Interactions) -> Graphs:
        assert teacher.representations is not None
        of = lambda items: cooccurrence(train, num_neighbours, of_items=items)
        return Graphs(teacher.representations, of(False), of(True))

    def init(key: chex.PRNGKey, student: Shapes, teacher: Graphs) -> Params:
        width = teacher.representations.users.shape[1]
        return init_sides(key, lambda key: init_dense(key, (), student.dim, width))

    def refresh(start: EpochStart) -> dict[str, Filtered]:
        params, key, epoch, teacher, student = start.params, start.key, start.epoch, start.context, start.student

        def of_side(key: chex.PRNGKey, name: str) -> Filtered:
            graph = getattr(teacher, name)
            there = jax.random.bernoulli(key, kept, (max(graph.num_edges, 1),))
            weights = jnp.where(there[graph.edges], graph.near.weights / kept, 0)
            table = getattr(teacher.representations, name)
            return Filtered(weights, smooth(table, graph.near._replace(weights=weights), alpha))

        return {name: of_side(key, name) for key, name in zip(jax.random.split(key), SIDES)}

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        params, drawn, batch, key, epoch = step.params, step.sampled, step.batch, step.key, step.epoch
        graphs: Graphs = step.context
        tables = graphs.representations
        both = batch.represent(*(jnp.arange(len(table)) for table in tables))
        smoothed = {}
        for name, table in zip(SIDES, both):
            near = getattr(graphs, name).near._replace(weights=drawn[name].weights)
            with_ones = jnp.pad(table, [(0, 0), (0, 1)], constant_values=1)  # for the bias, which is smoothed too
            smoothed[name] = smooth(with_ones, near, alpha)

        def of(name: str, side: Side) -> jax.Array:
            layer = params[name]
            affine = jnp.concatenate([layer["kernel"], layer["bias"][None]])
            projected = rows_dot(smoothed[name][side.ids], affine)
            return DISTANCES[distance](projected, drawn[name].teacher[side.ids], where=side.where)

        entities = batch.entities
        items = of("items", entities.positives) + of("items", entities.negatives)
        value = of("users", entities.users) + 0.5 * items
        return value, {"freqd": value}

    return Distiller(init, loss, refresh, prepare)


def smooth(table: jax.Array, near: Neighbours, alpha: float) -> jax.Array:
    """H X of a table X `[n, d]`, H = alpha A + (1 - alpha) I."""
    return alpha * _neighbour_sums(table, near) + (1 - alpha) * table


@jax.custom_vjp
def _neighbour_sums(table: jax.Array, near: Neighbours) -> jax.Array:
    """A X. A is symmetric: the backward pass is the same, and no scatter."""
    return add_weighted(jnp.zeros_like(table), table, near)


_neighbour_sums.defvjp(
    lambda table, near: (_neighbour_sums(table, near), near),
    lambda near, cotangent: (_neighbour_sums(cotangent, near), None),
)


def cooccurrence(train: Interactions, count: int, *, of_items: bool) -> Graph:
    """The graph of items that are seen by the same users, or of users who have seen the same items.

    Each is joined to the `count` others with which it has most in common, the first of equals; with fewer, if fewer
    have anything in common with it. With B that relation, the graph is (B + B') / 2, each edge over the square root of
    the product of both ends' sums.
    """
    pairs = [np.asarray(ids) for ids in (train.users, train.items)]
    shape = train.num_users, train.num_items
    seen = sp.csr_matrix((np.ones(len(pairs[0]), np.int32), tuple(pairs)), shape)
    rows = seen.T.tocsr() if of_items else seen
    size = rows.shape[0]
    chosen = [_nearest(rows, first, count) for first in range(0, size, BLOCK)]
    owners, ids = (np.concatenate(part) for part in zip(*chosen, strict=True))
    one_way = sp.csr_matrix((np.full(len(owners), 0.5), (owners, ids)), (size, size))
    graph = (one_way + one_way.T).tocoo()
    sums = np.asarray(graph.sum(axis=1)).ravel()
    weights = graph.data / np.sqrt(sums[graph.row] * sums[graph.col])
    low, high = (f(graph.row, graph.col).astype(np.int64) for f in (np.minimum, np.maximum))
    numbers, edges = np.unique(low * size + high, return_inverse=True)
    order = np.lexsort((graph.col, graph.row))
    of = lambda x, dtype: jnp.asarray(x[order], dtype)
    ends, degrees = of(graph.row, jnp.int32), jnp.asarray(np.bincount(graph.row, minlength=size), jnp.int32)
    near = neighbours(ends, of(graph.col, jnp.int32), of(weights, jnp.float32), degrees)
    placed = neighbours(ends, of(edges.ravel(), jnp.int32), of(weights, jnp.float32), degrees)
    return Graph(near, placed.ids, len(numbers))


def _nearest(rows: sp.csr_matrix, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the rows from `first` on, a block of them: each with the `count` others that share most with it."""
    common = (rows[first : first + BLOCK] @ rows.T).tocoo()
    owner, other, times = common.row + first, common.col, common.data
    order = np.lexsort((other, -times, owner))
    order = order[owner[order] != other[order]]
    owner, other = owner[order], other[order]
    place = np.arange(len(owner)) - np.searchsorted(owner, owner)
    return owner[place < count], other[place < count]
