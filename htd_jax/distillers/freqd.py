"""FreqD, features matched by their frequencies on a graph (Zhu and Zhang, KDD'25)."""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Interval
from flax import struct

from htd_jax.data import Interactions
from htd_jax.distillers.base import Distiller, EpochStart, Method, Params, Shapes, Side, Step, Terms
from htd_jax.distillers.layers import init_dense, init_sides
from htd_jax.losses import cosine_hint_loss, hint_loss
from htd_jax.models import Representations
from htd_jax.ops.neighbours import Neighbours, add_weighted, neighbours
from htd_jax.ops.products import rows_dot
from htd_jax.ops.shards import look_up
from htd_jax.settings import check
from htd_jax.teacher import Teacher

DISTANCES = {"cosine": cosine_hint_loss, "squares": hint_loss}
SIDES = ("users", "items")

# Rows of a graph that `cooccurrence` computes at once.
BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class FreqD(Method):
    """Regresses the teacher's representations, smoothed over graphs of users and of items (Zhu and Zhang, KDD'25)."""

    weight: Annotated[float, Ge(0)] = 0.05
    """Lambda, the weight of the distillation loss against the base loss. Both are sums over a batch: htd-jax
    study weights measures the method's part."""
    alpha: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """The share of the neighbours in the smoothed representations; at 0 they are not smoothed."""
    neighbours: Annotated[int, Ge(1)] = 5
    """The number of neighbours of each user and item in the graph: those that share most interactions with it."""
    dropped: Annotated[float, Interval(ge=0, lt=1)] = 0.5
    """The share of edges that are dropped, sampled in each epoch."""
    distance: Literal["cosine", "squares"] = "cosine"
    """The distance between representations: 1 - cosine, or the squared difference, which needs a smaller lambda."""

    label: ClassVar[str] = "FreqD"

    def make(self, epochs: int) -> Distiller:
        return freqd(self)


@struct.dataclass
class Graph:
    """A graph of users, or of items.

    Attributes:
      near: the normalised adjacency, symmetric.
      edges: `[n + m, WIDTH]` int32, the number of the edge to each neighbour, the same from either end.
      num_edges: the number of edges.
    """

    near: Neighbours
    edges: jax.Array
    num_edges: int = struct.field(pytree_node=False)


@struct.dataclass
class Context:
    """The teacher's representations, see `Teacher.hints`, and the graphs of users and items."""

    representations: Representations
    users: Graph
    items: Graph


@struct.dataclass
class Filtered:
    """The filter of one side in an epoch: the weights of its edges, 0 where dropped, and the teacher's representations
    smoothed by them."""

    weights: jax.Array
    teacher: jax.Array


def freqd(settings: FreqD = FreqD()) -> Distiller:
    """Matches H P(S) with H T, FitNet after a graph filter; the loss is users + (positive items + negative items) / 2.

    H = alpha A + (1 - alpha) I, with A the normalised adjacency of a graph of users or of items, see `cooccurrence`. It
    is a low-pass filter: it keeps what neighbours share and damps what differs between them, and weighs the frequencies
    of the difference by (1 - alpha lambda)^2, with lambda the eigenvalues of I - A. Each epoch drops some edges, from
    both ends, and divides the weights of the others by the share that it keeps.

    P is affine, so that H P(S) = P(H S): the filter works on the student's narrow vectors, and the projection only on
    the rows of the batch. The authors' code instead averages five networks of one hidden layer, through which both
    tables pass at each step, and drops edges in each step, either direction independently. It compares cosines; the
    paper analyses squares.

    Cost: the state holds a second copy of the teacher's representations, smoothed once per epoch. A step sums the
    neighbours of all users and items in d_s + 1 dimensions, O((users + items) neighbours d_s), forward and backward.
    The graphs are built once, on the host, by blocks of rows.

    Args:
      settings: see `FreqD`.

    Returns:
      A `Distiller`; its term is `freqd`.

    Raises:
      UserError: if a setting is invalid.
    """
    check(settings)
    kept, distance = 1 - settings.dropped, DISTANCES[settings.distance]

    def prepare(teacher: Teacher, train: Interactions) -> Context:
        users = cooccurrence(train, settings.neighbours)
        items = cooccurrence(train.transposed(), settings.neighbours)
        return Context(teacher.hints(), users, items)

    def init(key: chex.PRNGKey, student: Shapes, context: Context) -> Params:
        teacher_dim = context.representations.users.shape[1]
        return init_sides(key, lambda key: init_dense(key, (), student.dim, teacher_dim))

    def refresh(start: EpochStart) -> dict[str, Filtered]:
        def filter_side(key: chex.PRNGKey, name: str) -> Filtered:
            graph = getattr(start.context, name)
            keep = jax.random.bernoulli(key, kept, (max(graph.num_edges, 1),))
            weights = jnp.where(keep[graph.edges], graph.near.weights / kept, 0)
            table = getattr(start.context.representations, name)
            return Filtered(weights, smooth(table, graph.near._replace(weights=weights), settings.alpha))

        return {name: filter_side(key, name) for key, name in zip(jax.random.split(start.key), SIDES)}

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        graphs = step.context.users.near, step.context.items.near
        tables = step.batch.represent(*(jnp.arange(near.nodes) for near in graphs))
        smoothed = {}
        for name, table in zip(SIDES, tables):
            near = getattr(step.context, name).near._replace(weights=step.sampled[name].weights)
            with_ones = jnp.pad(table, [(0, 0), (0, 1)], constant_values=1)  # for the bias, which is smoothed too
            smoothed[name] = smooth(with_ones, near, settings.alpha)

        def side_loss(name: str, side: Side) -> jax.Array:
            layer = step.params[name]
            affine = jnp.concatenate([layer["kernel"], layer["bias"][None]])
            projected = rows_dot(smoothed[name][side.ids], affine)
            return distance(projected, look_up(step.sampled[name].teacher, side.ids), where=side.where)

        entities = step.batch.entities
        items = side_loss("items", entities.positives) + side_loss("items", entities.negatives)
        value = side_loss("users", entities.users) + 0.5 * items
        return value, {"freqd": value}

    return Distiller(init, loss, refresh, prepare)


def smooth(table: jax.Array, near: Neighbours, alpha: float) -> jax.Array:
    """Returns H X of a table X `[n, d]`, with H = alpha A + (1 - alpha) I."""
    return alpha * _neighbour_sums(table, near) + (1 - alpha) * table


@jax.custom_vjp
def _neighbour_sums(table: jax.Array, near: Neighbours) -> jax.Array:
    """Returns A X. A is symmetric, so the backward pass is the same, without a scatter."""
    return add_weighted(jnp.zeros_like(table), table, near)


_neighbour_sums.defvjp(
    lambda table, near: (_neighbour_sums(table, near), near),
    lambda near, cotangent: (_neighbour_sums(cotangent, near), None),
)


def cooccurrence(train: Interactions, count: int) -> Graph:
    """Builds the graph of users who have seen the same items; that of items from `train.transposed()`.

    Each user is joined to the `count` others with whom it shares most items, the first of equals; to fewer if fewer
    share an item with it. With B that relation, the graph is (B + B') / 2, each edge divided by the square root of the
    product of the row sums of both ends.
    """
    import scipy.sparse as sp  # takes a moment, which other methods do not wait for

    owners, items = np.asarray(train.users), np.asarray(train.items)
    size = train.num_users
    seen = sp.csr_matrix((np.ones(len(owners), np.int32), (owners, items)), (size, train.num_items))
    nearest = [_nearest(seen, first, count) for first in range(0, size, BLOCK)]
    owners, ids = (np.concatenate(part) for part in zip(*nearest, strict=True))
    one_way = sp.csr_matrix((np.full(len(owners), 0.5), (owners, ids)), (size, size))
    graph = (one_way + one_way.T).tocoo()
    sums = np.asarray(graph.sum(axis=1)).ravel()
    weights = graph.data / np.sqrt(sums[graph.row] * sums[graph.col])
    low, high = (f(graph.row, graph.col).astype(np.int64) for f in (np.minimum, np.maximum))
    numbers, edges = np.unique(low * size + high, return_inverse=True)
    order = np.lexsort((graph.col, graph.row))
    ordered = lambda x, dtype: jnp.asarray(x[order], dtype)
    rows, weights = ordered(graph.row, jnp.int32), ordered(weights, jnp.float32)
    degrees = jnp.asarray(np.bincount(graph.row, minlength=size), jnp.int32)
    near = neighbours(rows, ordered(graph.col, jnp.int32), weights, degrees)
    numbered = neighbours(rows, ordered(edges.ravel(), jnp.int32), weights, degrees)
    return Graph(near, numbered.ids, len(numbers))


def _nearest(seen: Any, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pairs of each of `BLOCK` rows from `first` on with the `count` others that share most with it.

    Args:
      seen: `[rows, columns]` sparse matrix.
    """
    common = (seen[first : first + BLOCK] @ seen.T).tocoo()
    owner, other, times = common.row + first, common.col, common.data
    order = np.lexsort((other, -times, owner))
    order = order[owner[order] != other[order]]
    owner, other = owner[order], other[order]
    position = np.arange(len(owner)) - np.searchsorted(owner, owner)
    return owner[position < count], other[position < count]
