"""Representations of new users and items from their interactions, without training; the other table stays fixed."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.data import Interactions
from htd_jax.errors import UserError
from htd_jax.ops.precision import Rows
from htd_jax.ops.products import dot, einsum

# Defaults of `least_squares`, chosen on validation by `benchmarks/fold_in.py`.
UNSEEN, RIDGE = 0.01, 1.0

# The number of rows that `length_factor` compares.
COMPARED = 1024

# The number of floats that are gathered at once.
CELLS = 2**22


def least_squares(table: Rows, lists: list[np.ndarray], *, unseen: float = UNSEEN, ridge: float = RIDGE) -> np.ndarray:
    r"""Returns the least-squares solution of implicit feedback (Hu et al., ICDM'08) for each list of the table's rows.

    .. math:: \sum_{i \in S} (1 - x \cdot y_i)^2 + w \sum_i (x \cdot y_i)^2 + \lambda |x|^2

    The sum over all rows is x'Gx with the Gram matrix G of the table, computed once; each list costs d^2 per row in it,
    plus d^3. Scores are near 1 for the rows in the list and near 0 elsewhere, whatever the scale of trained scores: the
    ranking is comparable with that of trained rows, the scores are not.

    Args:
      table: `[n, d]`, of items for new users, of users for new items.
      lists: per new entity its distinct rows `[m]`, m at least 1.
      unseen: w, at least 0.
      ridge: lambda, above 0.

    Returns:
      `[len(lists), d]` float32.

    Raises:
      UserError: if a list is empty.
    """
    gram = _gram(table)
    solved = np.zeros((len(lists), table.dim), np.float32)
    for which, rows, where in _padded(lists, table.dim):
        solutions = _solve(table, gram, rows, where, jnp.float32(unseen), jnp.float32(ridge))
        solved[which] = np.asarray(solutions)[: len(which)]
    return solved


def length_factor(
    mine: Rows, other: Rows, seen: Interactions, side: str, *, unseen: float = UNSEEN, ridge: float = RIDGE
) -> float:
    """Returns the factor that makes rows from `least_squares` as long, on average, as the trained rows of their side.

    It is the ratio of trained to solved lengths over COMPARED rows, evenly spread over those that have a pair. There is
    one factor for all rows, so popular items still have longer rows than others.

    Args:
      mine, other: the tables of this side and of the other.
      seen: the known pairs.
      side: `users` or `items`.

    Returns:
      The factor; 1 if no pair is known, or all rows are zero.
    """
    owners, entries = (seen.users, seen.items) if side == "users" else (seen.items, seen.users)
    order = np.argsort(np.asarray(owners), kind="stable")
    rows, starts = np.unique(np.asarray(owners)[order], return_index=True)
    if not len(rows):
        return 1.0
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(COMPARED, len(rows))).round().astype(int))
    lists = np.split(np.asarray(entries)[order], starts[1:])
    solved = least_squares(other, [lists[i] for i in chosen], unseen=unseen, ridge=ridge)
    trained = np.asarray(mine.take(jnp.asarray(rows[chosen])).floats())
    trained_length, solved_length = (np.linalg.norm(x, axis=1).sum() for x in (trained, solved))
    return float(trained_length / solved_length) if solved_length > 0 < trained_length else 1.0


def _padded(lists: list[np.ndarray], dim: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Groups lists by length: their numbers `[b]`, rows `[b, m]` and mask `[b, m]`. b and m are powers of two, so that
    few shapes are compiled."""
    sizes = np.array([len(rows) for rows in lists], np.int64)
    if not sizes.all():
        raise UserError(f"list {int(np.argmin(sizes))} is empty; give at least one interaction per list")
    power = lambda size: 1 << (int(size) - 1).bit_length()
    widths = np.array([power(size) for size in sizes], np.int64)
    for width in np.unique(widths):
        group = np.flatnonzero(widths == width)
        most = max(1, CELLS // int(width * dim + dim * dim))
        for first in range(0, len(group), most):
            which = group[first : first + most]
            rows = np.zeros((min(most, power(len(which))), width), np.int32)
            for place, number in enumerate(which):
                rows[place, : sizes[number]] = lists[number]
            count = np.pad(sizes[which], (0, len(rows) - len(which)))
            yield which, rows, np.arange(width) < count[:, None]


@jax.jit
def _gram(table: Rows) -> jax.Array:
    """Computes Y'Y `[d, d]`, block by block, so that the whole table is never converted to float32 at once."""
    block = max(1, min(len(table), CELLS // table.dim))

    def add(number: jax.Array, total: jax.Array) -> jax.Array:
        first = jnp.minimum(number * block, len(table) - block)
        rows = table.slice(first, block).floats()
        new = first + jnp.arange(block) >= number * block  # the last block overlaps the one before
        rows = jnp.where(new[:, None], rows, 0)
        return total + dot(rows.T, rows)

    return jax.lax.fori_loop(0, -(-len(table) // block), add, jnp.zeros((table.dim, table.dim), jnp.float32))


@jax.jit
def _solve(
    table: Rows, gram: jax.Array, rows: jax.Array, where: jax.Array, unseen: jax.Array, ridge: jax.Array
) -> jax.Array:
    y = table.take(rows.ravel()).floats().reshape(*rows.shape, table.dim)
    y = jnp.where(where[:, :, None], y, 0)
    matrix = einsum("bmd,bme->bde", y, y) + unseen * gram + ridge * jnp.eye(table.dim, dtype=jnp.float32)
    return jax.vmap(lambda a, b: jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(a), True), b))(matrix, y.sum(1))
