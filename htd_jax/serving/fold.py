"""A row for somebody new, from what is known of them, without training: the table of the other side stays as it is.

Two losses. The squares of implicit feedback have a solution in closed form. What BPR trains a row with is convex in
that row, and a few Newton steps find its least.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.errors import UserError
from htd_jax.ops.products import dot, einsum
from htd_jax.serving.precision import Rows

# Of `squares`, chosen in validation by `benchmarks/fold_in.py`.
UNSEEN, RIDGE = 0.01, 0.1

# Of `bpr`, likewise.
DECAY = 0.01

# Rows that stand for the unseen ones in `bpr`, and Newton steps.
SAMPLE, STEPS = 1024, 8

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


def bpr(table: Rows, lists: list[np.ndarray], *, decay: float = DECAY) -> np.ndarray:
    r"""The least of what BPR trains a row with (Rendle et al., UAI'09), for each list of the table's rows.

    .. math:: \frac{1}{|S| |N|} \sum_{i \in S} \sum_{j \in N} -\ln \sigma(x \cdot y_i - x \cdot y_j)
              + \frac{\lambda}{2} |x|^2

    N are SAMPLE rows evenly spread over the table, the same for every list; each list costs SAMPLE d^2 a step.

    Args:
      table, lists: see `squares`.
      decay: lambda, above 0.

    Returns:
      `[len(lists), d]` float32.

    Raises:
      UserError: an empty list.
    """
    sample = np.unique(np.linspace(0, len(table) - 1, min(SAMPLE, len(table))).round().astype(np.int32))
    others = table.take(jnp.asarray(sample)).floats()
    solve = lambda rows, where: _bpr(table, others, rows, where, jnp.float32(decay))
    return _for_lists(solve, table, lists)


fold = squares


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
        rows = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, block), table).floats()
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


@jax.jit
def _bpr(table: Rows, others: jax.Array, rows: jax.Array, where: jax.Array, decay: jax.Array) -> jax.Array:
    y = _gathered(table, rows, where)
    share = where / jnp.maximum(where.sum(1, keepdims=True), 1) / len(others)

    def loss(x: jax.Array) -> jax.Array:
        margins = einsum("bmd,bd->bm", y, x)[:, :, None] - dot(x, others.T)[:, None, :]
        return jnp.sum(jax.nn.softplus(-margins) * share[:, :, None], axis=(1, 2)) + decay / 2 * jnp.sum(x * x, 1)

    def step(_: int, x: jax.Array) -> jax.Array:
        margins = einsum("bmd,bd->bm", y, x)[:, :, None] - dot(x, others.T)[:, None, :]
        away = jax.nn.sigmoid(-margins) * share[:, :, None]  # minus the loss's slope in a margin
        bend = away * jax.nn.sigmoid(margins)
        gradient = decay * x - einsum("bmd,bm->bd", y, away.sum(2)) + dot(away.sum(1), others)
        cross = einsum("bmd,bmj,je->bde", y, bend, others)
        hessian = (
            einsum("bmd,bm,bme->bde", y, bend.sum(2), y)
            + einsum("jd,bj,je->bde", others, bend.sum(1), others)
            - (cross + cross.swapaxes(1, 2))
            + decay * jnp.eye(table.dim, dtype=jnp.float32)
        )
        move = _solve(hessian, gradient)
        # As far as the loss falls: the whole step, or a part of it.
        tries = jnp.stack([x - move * 0.5**n for n in range(0, 8, 2)] + [x])
        values = jax.lax.map(loss, tries)
        return jnp.take_along_axis(tries, jnp.argmin(values, 0)[None, :, None], axis=0)[0]

    return jax.lax.fori_loop(0, STEPS, step, jnp.zeros((len(rows), table.dim), jnp.float32))


def _gathered(table: Rows, rows: jax.Array, where: jax.Array) -> jax.Array:
    """`[b, m, d]` floats, zeros where there is none."""
    taken = table.take(rows.ravel()).floats().reshape(*rows.shape, table.dim)
    return jnp.where(where[:, :, None], taken, 0)


@functools.partial(jax.vmap)
def _solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(matrix), True), right)
