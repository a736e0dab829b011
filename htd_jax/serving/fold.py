"""A row for somebody new, from what is known of them, without training: the table of the other side stays as it is."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.data import Interactions
from htd_jax.errors import UserError
from htd_jax.ops.precision import Rows
from htd_jax.ops.products import dot, einsum

# Of `squares`, chosen in validation by `benchmarks/fold_in.py`.
UNSEEN, RIDGE = 0.01, 1.0

# Rows that `length` is found on.
KNOWN = 1024

# Numbers of rows that are gathered at once.
CELLS = 2**22


def squares(table: Rows, lists: list[np.ndarray], *, unseen: float = UNSEEN, ridge: float = RIDGE) -> np.ndarray:
    r"""The least squares of implicit feedback (Hu et al., ICDM'08), for each list of the table's rows.

    .. math:: \sum_{i \in S} (1 - x \cdot y_i)^2 + w \sum_i (x \cdot y_i)^2 + \lambda |x|^2

    The sum over all rows is x'Gx with the Gram matrix G of the table, made once; each list costs d^2 for every row in
    it and d^3. Scores are near 1 for what is in the list and near 0 elsewhere, whatever the trained rows' scores are:
    they rank as the others do, and are compared with nobody else's.

    Args:
      table: `[n, d]`, of items for a new user, of users for a new item.
      lists: of each newcomer the rows `[m]`, each once, m at least 1.
      unseen: w, at least 0.
      ridge: lambda, above 0.

    Returns:
      `[len(lists), d]` float32.

    Raises:
      UserError: an empty list.
    """
    gram = _gram(table)
    solve = lambda rows, where: _squares(table, gram, rows, where, jnp.float32(unseen), jnp.float32(ridge))
    return _for_lists(solve, table, lists)


def length(
    mine: Rows, other: Rows, seen: Interactions, side: str, *, unseen: float = UNSEEN, ridge: float = RIDGE
) -> float:
    """What makes rows that `squares` gives as long, in the mean, as the trained rows of their side.

    Found on KNOWN rows evenly spread over those that have a pair: how long they are, by how long they come out if they
    are folded in. One factor for all: how much longer the rows of popular items come out than others' is kept.

    Args:
      mine, other: the tables of this side, and of the other.
      seen: the pairs that are known.
      side: `users` or `items`.

    Returns:
      The factor; 1 if no pair is known, or all rows are zero.
    """
    whose, what = (seen.users, seen.items) if side == "users" else (seen.items, seen.users)
    order = np.argsort(np.asarray(whose), kind="stable")
    found, starts = np.unique(np.asarray(whose)[order], return_index=True)
    if not len(found):
        return 1.0
    chosen = np.unique(np.linspace(0, len(found) - 1, min(KNOWN, len(found))).round().astype(int))
    lists = np.split(np.asarray(what)[order], starts[1:])
    solved = np.linalg.norm(squares(other, [lists[i] for i in chosen], unseen=unseen, ridge=ridge), axis=1).sum()
    trained = np.linalg.norm(np.asarray(mine.take(jnp.asarray(found[chosen])).floats()), axis=1).sum()
    return float(trained / solved) if solved > 0 < trained else 1.0


def _for_lists(solve: Callable[..., jax.Array], table: Rows, lists: list[np.ndarray]) -> np.ndarray:
    found = np.zeros((len(lists), table.dim), np.float32)
    for which, rows, where in _padded(lists, table.dim):
        found[which] = np.asarray(solve(rows, where))[: len(which)]
    return found


def _padded(lists: list[np.ndarray], dim: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Lists of about one length together, `[b, m]`; b and m are powers of two, so few shapes are compiled."""
    sizes = np.array([len(rows) for rows in lists], np.int64)
    if not sizes.all():
        raise UserError(f"list {int(np.argmin(sizes))} is empty: a row is made of one known interaction at least")
    power = lambda size: 1 << (int(size) - 1).bit_length()
    length = np.array([power(size) for size in sizes], np.int64)
    for size in np.unique(length):
        of_size = np.flatnonzero(length == size)
        most = max(1, CELLS // int(size * dim + dim * dim))
        for first in range(0, len(of_size), most):
            which = of_size[first : first + most]
            rows = np.zeros((min(most, power(len(which))), size), np.int32)
            for place, number in enumerate(which):
                rows[place, : sizes[number]] = lists[number]
            count = np.pad(sizes[which], (0, len(rows) - len(which)))
            yield which, rows, np.arange(size) < count[:, None]


@jax.jit
def _gram(table: Rows) -> jax.Array:
    """Y'Y `[d, d]`, a block of rows after the other, as floats of a whole table are never held."""
    block = max(1, min(len(table), CELLS // table.dim))

    def add(number: jax.Array, total: jax.Array) -> jax.Array:
        first = jnp.minimum(number * block, len(table) - block)
        rows = table.slice(first, block).floats()
        new = first + jnp.arange(block) >= number * block  # the last block reaches back into the one before
        rows = jnp.where(new[:, None], rows, 0)
        return total + dot(rows.T, rows)

    return jax.lax.fori_loop(0, -(-len(table) // block), add, jnp.zeros((table.dim, table.dim), jnp.float32))


@jax.jit
def _squares(
    table: Rows, gram: jax.Array, rows: jax.Array, where: jax.Array, unseen: jax.Array, ridge: jax.Array
) -> jax.Array:
    y = _gathered(table, rows, where)
    matrix = einsum("bmd,bme->bde", y, y) + unseen * gram + ridge * jnp.eye(table.dim, dtype=jnp.float32)
    return _solve(matrix, y.sum(1))


def _gathered(table: Rows, rows: jax.Array, where: jax.Array) -> jax.Array:
    """`[b, m, d]` floats, zeros where there is none."""
    taken = table.take(rows.ravel()).floats().reshape(*rows.shape, table.dim)
    return jnp.where(where[:, :, None], taken, 0)


@functools.partial(jax.vmap)
def _solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(matrix), True), right)
