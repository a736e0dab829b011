"""Rows of new users and items from their interactions, without training; the other table stays fixed.

A new row is a linear function of two summaries of its interactions: the mean of their rows, and the least-squares row
that scores them near 1 and all others near 0. The function is fitted to the trained rows of the same side, whatever
loss they were trained with; it varies with the number of interactions, as trained rows do. So one rule serves every
model whose scores are inner products.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.data import Dataset, Interactions
from htd_jax.errors import UserError
from htd_jax.ops.precision import Rows, encoded
from htd_jax.ops.products import dot
from htd_jax.serving.topk import Hidden, best_items

# The weights of `least_squares`, chosen on validation by `benchmarks/fold_in.py`.
UNSEEN, RIDGE = 0.01, 1.0

# The largest number of trained rows that a map is fitted to.
FITTED = 8192

# Ridges of the fit, relative to the variance of a feature; the one with the smallest leave-one-out error is taken.
FIT_RIDGES = 10.0 ** np.arange(-6, 4)

# The length k of the lists whose items `_length_factors` counts, the largest number of users whose lists are compared,
# and the number of places in lists below which a count is mostly chance.
LISTED, COMPARED, CHANCE = 20, 1024, 20

# The number of floats that are gathered at once.
CELLS = 2**22

# A table with no larger number counts as zeros: its reciprocal would be infinite.
SMALLEST = 1e-36


class RowMap(NamedTuple):
    """A function from interactions to rows of one side.

    Attributes:
      weights: `[2 + 4 d, d]` float32, see `_features`.
      knots: `[2, k]` float32: base-2 logarithms of numbers of interactions, ascending, and the factor of the rows'
        lengths at each. Between them factors are interpolated. Fewer or more interactions than at the first and last
        knot count as so many.
    """

    weights: np.ndarray
    knots: np.ndarray

    def rows(self, table: Rows, lists: list[np.ndarray]) -> np.ndarray:
        """Returns new rows.

        Args:
          table: `[n, d]`, of items for new users, of users for new items.
          lists: per new entity its distinct rows `[m]`, m at least 1.

        Returns:
          `[len(lists), d]` float32.

        Raises:
          UserError: if a list is empty.
        """
        counts, factors = self.knots
        octaves = np.clip(np.log2([max(1, len(rows)) for rows in lists]), counts[0], counts[-1])
        rows = _features(*summarise(table, lists), octaves) @ self.weights.astype(np.float64)
        return (rows * np.interp(octaves, counts, factors)[:, None]).astype(np.float32)


class Pooling(NamedTuple):
    """The function from interactions to the rows of users, of a model without a table of users, see `Folded`.

    Attributes:
      map: `[d, d]` float32.
      bias: `[d]` float32, the row of a user without items.
      power: `[]` float32, of the number of items by which the sum of their rows is divided.
    """

    map: np.ndarray
    bias: np.ndarray
    power: np.ndarray

    def rows(self, table: Rows, lists: list[np.ndarray]) -> np.ndarray:
        """Returns the rows `[len(lists), d]` float32 of users who have seen these rows `[m]` of the items' table."""
        sizes = np.array([len(rows) for rows in lists], np.int64)
        used, place = np.unique(np.concatenate([*lists, np.zeros(0, np.int64)]), return_inverse=True)
        sums = np.zeros((len(lists), table.dim))
        if len(used):
            padded = np.pad(used, (0, 4 ** math.ceil(math.log(len(used), 4)) - len(used)))  # few sizes are compiled
            y = np.asarray(_decode(table, padded.astype(np.int32)), np.float64)
            starts = np.cumsum(sizes) - sizes
            sums[sizes > 0] = np.add.reduceat(y[place], starts[sizes > 0])
        factors = np.maximum(sizes, 1) ** -np.float64(self.power)
        return ((sums * factors[:, None]) @ self.map + self.bias).astype(np.float32)


def fit_map(mine: Rows, other: Rows, known: Interactions, side: str) -> RowMap | None:
    """Fits a map to the trained rows of a side.

    At most FITTED rows are taken, evenly from every octave of the number of interactions; an octave weighs the square
    root of its rows' number. The fit is a ridge regression, whose ridge has the smallest leave-one-out error. A
    regression shortens what it cannot predict, and an item's places in lists depend on its length, so the items of each
    octave are scaled until they stand in as many lists as their trained rows.

    Args:
      mine, other: the tables of this side and of the other.
      known: the pairs that the tables were trained on.
      side: `users` or `items`.

    Returns:
      The map; None if no pair is known.
    """
    pairs = (known.users, known.items) if side == "users" else (known.items, known.users)
    owners, entries = (np.asarray(column) for column in pairs)
    order = np.argsort(owners, kind="stable")
    present, starts, counts = np.unique(owners[order], return_index=True, return_counts=True)
    if not len(present):
        return None
    entries = entries[order]
    octaves = np.log2(counts)
    groups = [np.flatnonzero(octaves.astype(int) == octave) for octave in np.unique(octaves.astype(int))]
    each = max(1, FITTED // len(groups))
    groups = [group[np.unique(np.linspace(0, len(group) - 1, min(each, len(group))).astype(int))] for group in groups]
    chosen = np.concatenate(groups)
    lists = [entries[starts[i] : starts[i] + counts[i]] for i in chosen]
    importance = np.concatenate([np.full(len(group), len(group) ** -0.5) for group in groups])
    x = _features(*summarise(other, lists), octaves[chosen])
    trained = np.asarray(mine.take(jnp.asarray(present[chosen])).floats(), np.float64)
    weights = _regress(x, trained, importance).astype(np.float32)
    at = np.array([octaves[group].mean() for group in groups])
    factors = np.ones(len(groups))
    if side == "items":
        parts = np.split(np.arange(len(chosen)), np.cumsum([len(group) for group in groups])[:-1])
        factors = _length_factors(trained, x @ weights, lists, parts, other, mine, known)
    return RowMap(weights, np.stack([at, factors]).astype(np.float32))


def fold_new_users(users: Rows, items: Rows, dataset: Dataset) -> Rows:
    """Returns the table of users with rows of `dataset.new_users` that are made from their known items, by `fit_map` of
    the other users; a user without items has the mean row."""
    if dataset.new_users is None:
        return users
    offsets, entries = (np.asarray(x) for x in (dataset.train.offsets, dataset.train.items))
    lists = [entries[offsets[user] : offsets[user + 1]] for user in dataset.new_users]
    some = np.array([len(rows) > 0 for rows in lists], bool)
    others = np.setdiff1d(np.arange(len(users)), dataset.new_users)
    made = np.tile(np.asarray(users.take(jnp.asarray(others)).floats()).mean(0), (len(lists), 1))
    row_map = fit_map(users, items, dataset.learned, "users")
    if row_map is not None and some.any():
        made[some] = row_map.rows(items, [rows for rows in lists if len(rows)])
    new = encoded(jnp.asarray(made, jnp.float32), users.precision, users.steps)
    at = jnp.asarray(dataset.new_users)
    scales = None if users.scales is None or new.scales is None else users.scales.at[at].set(new.scales)
    return Rows(users.values.at[at].set(new.values), scales, users.steps, users.bits)


def least_squares(table: Rows, lists: list[np.ndarray], *, unseen: float = UNSEEN, ridge: float = RIDGE) -> np.ndarray:
    r"""Returns the least-squares solution of implicit feedback (Hu et al., ICDM'08) for each list of the table's rows.

    .. math:: \sum_{i \in S} (1 - x \cdot y_i)^2 + w \sum_i (x \cdot y_i)^2 + \lambda \sigma^2 |x|^2

    Scores are near 1 for the rows in the list and near 0 elsewhere, whatever the scale of trained scores: the ranking
    is comparable with that of trained rows, the scores are not.

    Args:
      table: `[n, d]`, of items for new users, of users for new items.
      lists: per new entity its distinct rows `[m]`, m at least 1.
      unseen: w, at least 0.
      ridge: lambda, above 0, in units of the mean square sigma^2 of the table's numbers.

    Returns:
      `[len(lists), d]` float32.

    Raises:
      UserError: if a list is empty.
    """
    _, solved = summarise(table, lists, unseen=unseen, ridge=ridge)
    return (solved / float(_moments(table)[0])).astype(np.float32)


def summarise(
    table: Rows, lists: list[np.ndarray], *, unseen: float = UNSEEN, ridge: float = RIDGE
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean row of each list and its `least_squares`, both for the table divided by the root mean square of
    its numbers: two arrays `[len(lists), d]` float64.

    The sum over all rows of the table is x'Gx with its Gram matrix G, computed once; each list costs d^2 per row in it,
    plus d^3.

    Raises:
      UserError: if a list is empty.
    """
    if not all(map(len, lists)):
        raise UserError(
            f"list {[len(rows) for rows in lists].index(0)} is empty; give at least one interaction per list"
        )
    unit, gram = (np.asarray(x, np.float64) for x in _moments(table))
    penalty = unseen * gram + ridge * np.eye(table.dim)
    means, solved = np.zeros((2, len(lists), table.dim))
    for some in np.split(np.arange(len(lists)), range(0, len(lists), max(1, CELLS // table.dim**2))[1:]):
        chosen = [lists[number] for number in some]
        sums, squares = _sums(table, unit, chosen)
        means[some] = sums / np.array([len(rows) for rows in chosen])[:, None]
        solved[some] = np.linalg.solve(squares + penalty, sums[:, :, None])[:, :, 0]
    return means, solved


def _sums(table: Rows, unit: np.ndarray, lists: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sums `[b, d]` of the lists' rows y / unit, and of their products yy' `[b, d, d]`, float64."""
    sums, squares = np.zeros((len(lists), table.dim)), np.zeros((len(lists), table.dim, table.dim))
    ends = np.cumsum([len(rows) for rows in lists])
    begins = np.concatenate([[0], ends[:-1]])
    entries = np.concatenate(lists).astype(np.int32)
    block = max(1, CELLS // table.dim)
    for first in range(0, len(entries), block):
        some = entries[first : first + block]
        # Few sizes, since each is compiled.
        padded = np.pad(some, (0, min(block, 4 ** math.ceil(math.log(len(some), 4))) - len(some)))
        y = np.asarray(_decode(table, padded), np.float64)[: len(some)] / unit
        begun, ended = np.searchsorted(begins, first + len(some)), np.searchsorted(ends, first, side="right")
        for number in range(ended, begun):
            part = y[max(0, begins[number] - first) : ends[number] - first]
            sums[number] += part.sum(0)
            squares[number] += part.T @ part
    return sums, squares


def _features(means: np.ndarray, solved: np.ndarray, octaves: np.ndarray) -> np.ndarray:
    """Returns 1, both summaries, and their products with the logarithm of the number of interactions `[n]`:
    `[n, 2 + 4 d]`."""
    each = np.hstack([np.ones((len(means), 1)), means, solved])
    return np.hstack([each, each * octaves[:, None]])


def _regress(x: np.ndarray, y: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Returns weights `[p, d]` of a ridge regression of `y` `[n, d]` on `x` `[n, p]`, whose first column is 1.

    The constant is not penalised, and features are compared by their standard deviation.
    """
    share = importance / importance.sum()
    largest = np.maximum(np.abs(y).max(initial=0), np.finfo(np.float64).tiny)
    y = y / largest
    centre, goal = share @ x, share @ y
    spread = np.sqrt(share @ (x - centre) ** 2)
    used = spread > 1e-6 * np.abs(x).max(initial=0)  # of a constant only rounding is left
    spread = np.where(used, spread, 1)
    features = np.where(used, (x - centre) / spread, 0)
    values, vectors = np.linalg.eigh((features * share[:, None]).T @ features)
    values, turned = np.maximum(values, 0), features @ vectors
    along = (turned * share[:, None]).T @ (y - goal)
    error, best = np.inf, np.zeros_like(along)
    for ridge in FIT_RIDGES:
        solved = along / (values + ridge)[:, None]
        leverage = share * (1 + (turned**2 / (values + ridge)).sum(1))
        left_out = (y - goal - turned @ solved) / np.maximum(1 - leverage, 1e-9)[:, None]
        if (now := float(share @ (left_out**2).sum(1))) < error:
            error, best = now, solved
    weights = (vectors @ best) / spread[:, None] * used[:, None]
    weights[0] += goal - centre @ weights
    return weights * largest


def _length_factors(
    trained: np.ndarray,
    rows: np.ndarray,
    lists: list[np.ndarray],
    parts: list[np.ndarray],
    users: Rows,
    items: Rows,
    known: Interactions,
) -> np.ndarray:
    """Returns the factor of each part of the new items with which they reach as many users' lists as trained ones.

    An item reaches a user's list if its score is at least that of the LISTED-th best item that the user has not seen.
    The fewer places there are to count, the nearer the factor stays to 1.

    Args:
      trained, rows: `[n, d]`, trained rows of items, and those to be scaled.
      lists: the users of each item, who are not counted.
      parts: numbers of the rows per part.
      users, items: the tables.
      known: the pairs that lists leave out.
    """
    some = np.unique(np.linspace(0, len(users) - 1, min(COMPARED, len(users))).astype(int))
    tops = best_items(users, items, LISTED, rows=some, hidden=Hidden.from_interactions(known))
    bars = np.concatenate([top.scores[:, -1] for top in tops]).astype(np.float64)
    reached = bars > 0  # a longer row comes nearer to such a bar; -infinity is the end of a shorter list
    some, bars = some[reached], bars[reached]
    if not len(some):
        return np.ones(len(parts))
    table = np.asarray(users.take(jnp.asarray(some)).floats(), np.float64) / bars[:, None]
    factors = []
    for part in parts:
        own = [np.searchsorted(some, lists[i]) for i in part]
        own = [at[(at < len(some)) & (some[np.minimum(at, len(some) - 1)] == lists[i])] for at, i in zip(own, part)]
        owner = np.repeat(np.arange(len(part)), [len(at) for at in own])
        scores = []
        for x in (trained[part], rows[part]):
            score = x @ table.T
            score[owner, np.concatenate(own)] = -np.inf
            scores.append(score.ravel())
        wanted, found = (int((score >= 1 - 1e-6).sum()) for score in scores)
        wanted = round((wanted**2 + found * CHANCE) / (wanted + CHANCE))
        if not 0 < wanted < scores[1].size:
            factors.append(1.0)
            continue
        at = -np.partition(-scores[1], wanted - 1)[wanted - 1]
        factors.append(float(np.clip(1 / at, 0.5, 2)) if at > 0 else 1.0)
    return np.array(factors)


@jax.jit
def _decode(table: Rows, rows: jax.Array) -> jax.Array:
    return table.take(rows).floats()


@jax.jit
def _moments(table: Rows) -> tuple[jax.Array, jax.Array]:
    """Returns the root mean square of the table's numbers, 1 if all are zero, and Y'Y `[d, d]` of the table divided by
    it; block by block, so that the whole table is never converted to float32 at once."""
    block = max(1, min(len(table), CELLS // table.dim))
    blocks = -(-len(table) // block)

    def rows_of(number: jax.Array) -> jax.Array:
        first = jnp.minimum(number * block, len(table) - block)
        new = first + jnp.arange(block) >= number * block  # the last block overlaps the one before
        return jnp.where(new[:, None], table.slice(first, block).floats(), 0)

    largest = jax.lax.fori_loop(
        0, blocks, lambda number, most: jnp.maximum(most, jnp.abs(rows_of(number)).max(initial=0)), jnp.float32(0)
    )
    largest = jnp.where(largest > SMALLEST, largest, 1)  # squares of large and of small floats are not floats

    def add(number: jax.Array, total: jax.Array) -> jax.Array:
        rows = rows_of(number) / largest
        return total + dot(rows.T, rows)

    gram = jax.lax.fori_loop(0, blocks, add, jnp.zeros((table.dim, table.dim), jnp.float32))
    square = jnp.trace(gram) / (len(table) * table.dim)
    square = jnp.where(square > 0, square, 1)
    return largest * jnp.sqrt(square), gram / square
