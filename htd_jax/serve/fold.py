"""Rows of new users and items from their interactions, without training; the other table stays fixed.

A new row is a linear function of two summaries of its interactions: the mean of their rows, and the least-squares row
that scores them near 1 and all others near 0. The function is fitted to trained rows, see `htd_jax.serving.fold`, and
varies with the number of interactions, as trained rows do. So one rule serves every model whose scores are inner
products.
"""

from typing import Any, NamedTuple

import numpy as np

from htd_jax.errors import UserError
from htd_jax.serve.table import Table

# The weights of `least_squares`, chosen on validation by `benchmarks/fold_in.py`.
UNSEEN, RIDGE = 0.01, 1.0

# The number of floats that are gathered at once.
CELLS = 2**22


class RowMap(NamedTuple):
    """A function from interactions to rows of one side.

    Attributes:
      weights: `[2 + 4 d, d]` float32, see `features`.
      knots: `[2, k]` float32: base-2 logarithms of numbers of interactions, ascending, and the factor of the rows'
        lengths at each. Between them factors are interpolated. Fewer or more interactions than at the first and last
        knot count as so many.
    """

    weights: np.ndarray
    knots: np.ndarray

    def rows(self, table: Any, lists: list[np.ndarray]) -> np.ndarray:
        """Returns new rows.

        Args:
          table: `[n, d]`, a `Table` or `Rows` of JAX, of items for new users, of users for new items.
          lists: per new entity its distinct rows `[m]`, m at least 1.

        Returns:
          `[len(lists), d]` float32.

        Raises:
          UserError: if a list is empty.
        """
        counts, factors = self.knots
        octaves = np.clip(np.log2([max(1, len(rows)) for rows in lists]), counts[0], counts[-1])
        rows = features(*summarise(table, lists), octaves) @ self.weights.astype(np.float64)
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

    def rows(self, table: Any, lists: list[np.ndarray]) -> np.ndarray:
        """Returns the rows `[len(lists), d]` float32 of users who have seen these rows `[m]` of the items' table."""
        table = Table.of(table)
        sizes = np.array([len(rows) for rows in lists], np.int64)
        used, place = np.unique(np.concatenate([*lists, np.zeros(0, np.int64)]), return_inverse=True)
        sums = np.zeros((len(lists), table.dim))
        if len(used):
            y = table.take(used).floats().astype(np.float64)
            starts = np.cumsum(sizes) - sizes
            sums[sizes > 0] = np.add.reduceat(y[place], starts[sizes > 0])
        factors = np.maximum(sizes, 1) ** -np.float64(self.power)
        return ((sums * factors[:, None]) @ self.map + self.bias).astype(np.float32)


def least_squares(table: Any, lists: list[np.ndarray], *, unseen: float = UNSEEN, ridge: float = RIDGE) -> np.ndarray:
    r"""Returns the least-squares solution of implicit feedback (Hu et al., ICDM'08) for each list of the table's rows.

    .. math:: \sum_{i \in S} (1 - x \cdot y_i)^2 + w \sum_i (x \cdot y_i)^2 + \lambda \sigma^2 |x|^2

    Scores are near 1 for the rows in the list and near 0 elsewhere, whatever the scale of trained scores: the ranking
    is comparable with that of trained rows, the scores are not.

    Args:
      table: `[n, d]`, a `Table` or `Rows` of JAX, of items for new users, of users for new items.
      lists: per new entity its distinct rows `[m]`, m at least 1.
      unseen: w, at least 0.
      ridge: lambda, above 0, in units of the mean square sigma^2 of the table's numbers.

    Returns:
      `[len(lists), d]` float32.

    Raises:
      UserError: if a list is empty.
    """
    table = Table.of(table)
    _, solved = summarise(table, lists, unseen=unseen, ridge=ridge)
    return (solved / table.moments[0]).astype(np.float32)


def summarise(
    table: Any, lists: list[np.ndarray], *, unseen: float = UNSEEN, ridge: float = RIDGE
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean row of each list and its `least_squares`, both for the table divided by the root mean square of
    its numbers: two arrays `[len(lists), d]` float64.

    The sum over all rows of the table is x'Gx with its Gram matrix G, computed once per table; each list costs d^2 per
    row in it, plus d^3.

    Raises:
      UserError: if a list is empty.
    """
    if not all(map(len, lists)):
        raise UserError(
            f"list {[len(rows) for rows in lists].index(0)} is empty; give at least one interaction per list"
        )
    table = Table.of(table)
    unit, gram = table.moments
    penalty = unseen * gram + ridge * np.eye(table.dim)
    means, solved = np.zeros((2, len(lists), table.dim))
    for some in np.split(np.arange(len(lists)), range(0, len(lists), max(1, CELLS // table.dim**2))[1:]):
        chosen = [lists[number] for number in some]
        sums, squares = _sums(table, unit, chosen)
        means[some] = sums / np.array([len(rows) for rows in chosen])[:, None]
        solved[some] = np.linalg.solve(squares + penalty, sums[:, :, None])[:, :, 0]
    return means, solved


def _sums(table: Any, unit: float, lists: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sums `[b, d]` of the lists' rows y / unit, and of their products yy' `[b, d, d]`, float64."""
    sums, squares = np.zeros((len(lists), table.dim)), np.zeros((len(lists), table.dim, table.dim))
    ends = np.cumsum([len(rows) for rows in lists])
    begins = np.concatenate([[0], ends[:-1]])
    entries = np.concatenate(lists).astype(np.int32)
    block = max(1, CELLS // table.dim)
    for first in range(0, len(entries), block):
        some = entries[first : first + block]
        y = table.take(some).floats().astype(np.float64) / unit
        begun, ended = np.searchsorted(begins, first + len(some)), np.searchsorted(ends, first, side="right")
        for number in range(ended, begun):
            part = y[max(0, begins[number] - first) : ends[number] - first]
            sums[number] += part.sum(0)
            squares[number] += part.T @ part
    return sums, squares


def features(means: np.ndarray, solved: np.ndarray, octaves: np.ndarray) -> np.ndarray:
    """Returns 1, both summaries, and their products with the logarithm of the number of interactions `[n]`:
    `[n, 2 + 4 d]`."""
    each = np.hstack([np.ones((len(means), 1)), means, solved])
    return np.hstack([each, each * octaves[:, None]])
