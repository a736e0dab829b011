"""Half a sweep of alternating least squares: the best row of every user for given items, or of every item."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from htd_jax.ops.manual import axes_of, vary
from htd_jax.ops.platforms import by_backend
from htd_jax.ops.products import dot, einsum
from htd_jax.ops.shards import gathered, place, total

# Entries per block, each with its row of the other side's table in memory: on a CPU they fit in a core's cache.
ENTRIES, MANY_ENTRIES = 2**11, 2**16

# Up to this many entries, a row is solved by a system of as many unknowns as entries.
FEW = 32

# The smallest width; each larger one is twice the last.
NARROWEST = 4


# State of conjugate gradients: rows, residuals, directions, and the residuals' squared lengths.
State = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


@struct.dataclass
class PaddedRows:
    """Rows grouped by number of entries and padded to a common width w, in blocks of b rows.

    Attributes:
      ids: `[blocks, b]` int32, the rows' numbers; the number of rows for padding.
      others: `[blocks, b, w]` int32, the other side of each entry.
      weights: `[blocks, b, w]`, the confidence of each entry minus 1; 0 for padding.
    """

    ids: jax.Array
    others: jax.Array
    weights: jax.Array


def pad_rows(
    owners: np.ndarray, others: np.ndarray, weights: np.ndarray, num_rows: int, parts: int = 1
) -> tuple[PaddedRows, ...]:
    """Groups entries `[n]`, sorted by owner, into rows whose widths are powers of two.

    Rows without entries are left out; at most half of a row is padding. It runs on the host, because the number of rows
    of each width decides the shapes.

    Args:
      owners, others, weights: see `PaddedRows`.
      num_rows: the number of owners.
      parts: the number of devices that hold equal ranges of the owners; each has its own blocks, as many as the others.
    """
    degrees = np.bincount(owners, minlength=num_rows)
    begins = np.cumsum(degrees) - degrees
    widths = np.maximum(NARROWEST, 2 ** np.ceil(np.log2(np.maximum(degrees, 1))).astype(np.int64))
    held = -(-num_rows // parts)

    def of_width(width: int) -> PaddedRows:
        ids = np.flatnonzero((widths == width) & (degrees > 0))
        own = np.split(ids, np.searchsorted(ids, held * np.arange(1, parts)))
        most = max(map(len, own))
        block = min(max(1, by_backend(ENTRIES, MANY_ENTRIES) // width), most)
        size = -(-most // block) * block
        ids = np.concatenate([np.pad(part, (0, size - len(part)), constant_values=num_rows) for part in own])
        return _pad_to_width(ids, block, width, begins, degrees, others, weights)

    return tuple(map(of_width, np.unique(widths[degrees > 0]).tolist()))


def _pad_to_width(
    ids: np.ndarray,
    block: int,
    width: int,
    begins: np.ndarray,
    degrees: np.ndarray,
    others: np.ndarray,
    weights: np.ndarray,
) -> PaddedRows:
    """Pads the rows `ids`, in blocks of `block`, to `width`; the entries of row i are `begins[i]` to `begins[i] +
    degrees[i]`."""
    begin, degree = np.append(begins, 0)[ids][:, None], np.append(degrees, 0)[ids][:, None]
    place = np.arange(width)[None, :]
    where = place < degree
    at = np.where(where, begin + place, 0)
    in_blocks = lambda x, dtype: jnp.asarray(x.astype(dtype).reshape(-1, block, *x.shape[1:]))
    return PaddedRows(
        in_blocks(ids, np.int32),
        in_blocks(np.where(where, others[at], 0), np.int32),
        in_blocks(np.where(where, weights[at], 0), np.float32),
    )


def solve_rows(
    rows: Sequence[PaddedRows], table: jax.Array, penalties: jax.Array, start: jax.Array, steps: int = 0
) -> tuple[jax.Array, jax.Array]:
    r"""Returns the best rows for a table of the other side, and the value of the objective that they minimise.

    .. math:: x_u = \arg\min_x \sum_{i \in S_u} (w_{ui} + 1) (1 - x \cdot y_i)^2 + \sum_{i \notin S_u} (x \cdot y_i)^2
              + \lambda_u |x|^2

    The normal equations of a row are (Y'Y + lambda + Y_S' W Y_S) x = Y_S' (W + 1) 1. Their common part is decomposed
    once, Y'Y = Q diag(e) Q': in the basis of Q it is the diagonal D = e + lambda, which preconditions the conjugate
    gradients. The rank of the remainder is the row's number of entries, so that they converge in that many steps, and
    nearly so in a few.

    Source: Hu et al., ICDM'08, equations 4 and 5; conjugate gradients from the last sweep's rows, Takacs et al.,
    RecSys'11.

    Cost, with m others, n rows, p entries and d dimensions: 2 d^2 (2 m + 2 n) operations, an eigendecomposition of
    d x d, and 4 p d operations per step.

    Args:
      rows: see `pad_rows`.
      table: `[m, d]`, Y.
      penalties: `[n]`, lambda, over 0.
      start: `[n, d]`, the rows before the first step.
      steps: conjugate gradient steps; 0 iterates until every residual is a rounding error.

    On a mesh, each device solves the rows that it holds, from the whole table of the other side, which is gathered for
    it; the sum over devices is of d^2 numbers. Then tables and results are shards.

    Returns:
      `[n, d]`, zeros for a row without entries; and the objective, a scalar, summed over rows.
    """
    dim = table.shape[1]
    eigenvalues, basis = jnp.linalg.eigh(total(dot(table.T, table)))
    eigenvalues = jnp.maximum(eigenvalues, 0)  # below 0 by rounding only
    rotated, begin = gathered(dot(table, basis)), dot(start, basis)
    solved, objective = vary((jnp.zeros((len(start), dim), table.dtype), jnp.zeros((), table.dtype)), axes_of(start))
    for group in rows:

        def solve(carry: tuple[jax.Array, jax.Array], block: PaddedRows) -> tuple[tuple[jax.Array, jax.Array], None]:
            solved, objective = carry
            padding = block.ids == len(penalties)
            ids = jnp.where(padding, 0, block.ids)
            entries = jnp.where((block.weights > 0)[..., None], rotated[block.others], 0)
            at = jnp.where(padding, len(start), place(start, block.ids))
            diagonal = eigenvalues + penalties[ids][:, None]
            if entries.shape[1] <= FEW:
                best = _few_entries(entries, block.weights, diagonal)
            else:
                best = _many_entries(entries, block.weights, diagonal, begin.at[at].get(mode="clip"), steps)
            scores = einsum("bwd,bd->bw", entries, best)
            seen = jnp.where(block.weights > 0, (block.weights + 1) * (1 - scores) ** 2 - scores**2, 0)
            objective += jnp.sum(jnp.where(padding[:, None], 0, diagonal * best**2)) + jnp.sum(seen)
            return (solved.at[at].set(best, mode="drop"), objective), None

        (solved, objective), _ = jax.lax.scan(solve, (solved, objective), group)
    return dot(solved, basis.T), total(objective)


def solve_each(
    owners: np.ndarray, others: np.ndarray, weights: np.ndarray, table: np.ndarray, penalties: np.ndarray
) -> np.ndarray:
    """Returns what `solve_rows` does, for rows that are solved once: on the host, in float64, row by row.

    No program is compiled, which takes ten seconds. A row of p entries costs p^2 d or p d^2 operations, whichever is
    less, and 50 microseconds.

    Args:
      owners, others, weights: entries `[n]`, see `pad_rows`, in any order.
      table, penalties: see `solve_rows`.

    Returns:
      `[n, d]` float32, zeros for a row without entries.
    """
    dim = table.shape[1]
    blocks = (table[first : first + MANY_ENTRIES].astype(np.float64) for first in range(0, len(table), MANY_ENTRIES))
    eigenvalues, basis = np.linalg.eigh(sum((block.T @ block for block in blocks), np.zeros((dim, dim))))
    solved = np.zeros((len(penalties), dim))
    order = np.argsort(owners, kind="stable")
    present, starts = np.unique(owners[order], return_index=True)
    for owner, own in zip(present, np.split(order, starts[1:])):
        roots = np.sqrt(weights[own].astype(np.float64))
        scaled = (table[others[own]] @ basis) * roots[:, None]
        diagonal = np.maximum(eigenvalues, 0) + float(penalties[owner])
        right = roots + 1 / roots
        if len(own) < dim:  # as in `_few_entries`
            system = np.eye(len(own)) + (scaled / diagonal) @ scaled.T
            solved[owner] = np.linalg.solve(system, right) @ scaled / diagonal
        else:
            solved[owner] = np.linalg.solve(np.diag(diagonal) + scaled.T @ scaled, right @ scaled)
    return (solved @ basis.T).astype(np.float32)


def _few_entries(entries: jax.Array, weights: jax.Array, diagonal: jax.Array) -> jax.Array:
    """Solves rows `[b, d]` from entries Z `[b, w, d]`, their weights `[b, w]` and D `[b, d]`, w small.

    By a system of w unknowns per row: x = D^-1 Z' W^1/2 v with (1 + W^1/2 Z D^-1 Z' W^1/2) v = W^-1/2 (W + 1) 1.
    """
    roots = jnp.sqrt(weights)
    scaled = entries * roots[..., None]
    system = einsum("bid,bjd->bij", scaled / diagonal[:, None, :], scaled)
    right = jnp.where(weights > 0, (weights + 1) / jnp.where(weights > 0, roots, 1), 0)
    times = lambda v: v + einsum("bij,bj->bi", system, v)
    v = _conjugate_gradients(times, jnp.ones_like(right), right, jnp.zeros_like(right), 0)
    return einsum("bi,bid->bd", v, scaled) / diagonal


def _many_entries(
    entries: jax.Array, weights: jax.Array, diagonal: jax.Array, start: jax.Array, steps: int
) -> jax.Array:
    """Solves the same rows by the normal equations, starting from `start` `[b, d]`."""
    scores = lambda x: einsum("bwd,bd->bw", entries, x)
    back = lambda x: einsum("bwd,bw->bd", entries, x)
    times = lambda x: diagonal * x + back(weights * scores(x))
    return _conjugate_gradients(times, diagonal, back(weights + 1), start, steps)


def _conjugate_gradients(
    times: Callable[[jax.Array], jax.Array], diagonal: jax.Array, right: jax.Array, start: jax.Array, steps: int
) -> jax.Array:
    """Solves b systems of n unknowns together.

    Args:
      times: multiplies `[b, n]` by the positive definite matrices.
      diagonal: `[b, n]`, the preconditioner.
      right, start: `[b, n]`.
      steps: 0 iterates until every residual is a rounding error.
    """
    within = lambda x, y: jnp.sum(x * y, axis=1, keepdims=True)
    tiny = jnp.finfo(right.dtype).tiny
    limit = jnp.finfo(right.dtype).eps ** 2 * within(right, right / diagonal)

    def step(carry: State) -> State:
        x, residual, direction, size = carry
        ahead = times(direction)
        length = size / jnp.maximum(within(direction, ahead), tiny)
        x, residual = x + length * direction, residual - length * ahead
        now = within(residual, residual / diagonal)
        return x, residual, residual / diagonal + now / jnp.maximum(size, tiny) * direction, now

    residual = right - times(start)
    carry: State = (start, residual, residual / diagonal, within(residual, residual / diagonal))
    if steps:
        carry = jax.lax.fori_loop(0, steps, lambda _, carry: step(carry), carry)
    else:
        most = 2 * right.shape[1] + 10
        unfinished = lambda counted: (counted[0] < most) & jnp.any(counted[1][3] > limit)
        _, carry = jax.lax.while_loop(unfinished, lambda counted: (counted[0] + 1, step(counted[1])), (0, carry))
    return carry[0]
