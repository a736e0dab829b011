"""Half a sweep of alternating least squares: the best row of every user for given items, or of every item."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from htd_jax.ops.platforms import at_once
from htd_jax.ops.products import dot, einsum

# Entries that are worked on at once, whose rows of the other side's table are held: in a core's cache, or many.
ENTRIES, MANY_ENTRIES = 2**11, 2**16

# Up to so many entries, a row is found by a system of as many unknowns.
FEW = 32

# The narrowest block; a wider one is twice as wide as the next.
NARROWEST = 4


# Of conjugate gradients: rows, residuals, directions, and the residuals' squared lengths.
State = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


@struct.dataclass
class Rows:
    """Rows of like many entries, in blocks of equally many.

    Attributes:
      ids: `[blocks, b]` int32, which rows; as many as there are rows, for a filler.
      others: `[blocks, b, w]` int32, the other sides of their entries.
      weights: `[blocks, b, w]`, by how much an entry's confidence is above 1; 0 for a filler.
    """

    ids: jax.Array
    others: jax.Array
    weights: jax.Array


def in_rows(owners: np.ndarray, others: np.ndarray, weights: np.ndarray, num_rows: int) -> tuple[Rows, ...]:
    """The entries `[n]`, sorted by owner, in rows whose widths are powers of two; a row without any is in none.

    On the host: how many there are of which width decides the shapes. At most half of a row is filled up.
    """
    degrees = np.bincount(owners, minlength=num_rows)
    begins = np.cumsum(degrees) - degrees
    widths = np.maximum(NARROWEST, 2 ** np.ceil(np.log2(np.maximum(degrees, 1))).astype(np.int64))
    return tuple(
        _of_width(np.flatnonzero((widths == width) & (degrees > 0)), int(width), begins, degrees, others, weights)
        for width in np.unique(widths[degrees > 0])
    )


def _of_width(
    ids: np.ndarray, width: int, begins: np.ndarray, degrees: np.ndarray, others: np.ndarray, weights: np.ndarray
) -> Rows:
    """The rows `ids`, each of whose entries are `degrees` from `begins` on, filled up to `width`."""
    a_block = min(max(1, at_once(ENTRIES, MANY_ENTRIES) // width), len(ids))
    ids = np.pad(ids, (0, -len(ids) % a_block), constant_values=len(degrees))
    begin, degree = np.append(begins, 0)[ids][:, None], np.append(degrees, 0)[ids][:, None]
    place = np.arange(width)[None, :]
    there = place < degree
    at = np.where(there, begin + place, 0)
    shaped = lambda x, dtype: jnp.asarray(x.astype(dtype).reshape(-1, a_block, *x.shape[1:]))
    return Rows(
        shaped(ids, np.int32),
        shaped(np.where(there, others[at], 0), np.int32),
        shaped(np.where(there, weights[at], 0), np.float32),
    )


def solve_rows(
    rows: Sequence[Rows], table: jax.Array, penalties: jax.Array, start: jax.Array, steps: int = 0
) -> tuple[jax.Array, jax.Array]:
    r"""The rows that are best for a table of the other side, and what is left of the sum that they lower.

    .. math:: x_u = \arg\min_x \sum_{i \in S_u} (w_{ui} + 1) (1 - x \cdot y_i)^2 + \sum_{i \notin S_u} (x \cdot y_i)^2
              + \lambda_u |x|^2

    The normal equations of a row are (Y'Y + lambda + Y_S' W Y_S) x = Y_S' (W + 1) 1. What all rows have in common is
    taken apart once, Y'Y = Q diag(e) Q': in the basis of Q it is a diagonal, D = e + lambda, and D is what the
    conjugate gradients are preconditioned with. The rest has the rank of the row's entries, so that they end after as
    many steps; a few come close.

    Source: Hu et al., ICDM'08, equations 4 and 5; conjugate gradients from the last sweep's rows, Takacs et al.,
    RecSys'11.

    Cost, with m others, n rows, p entries and d dimensions: 2 d^2 (2 m + 2 n) and an eigendecomposition of d x d, and
    4 p d a step.

    Args:
      rows: see `in_rows`.
      table: `[m, d]`, Y.
      penalties: `[n]`, lambda, over 0.
      start: `[n, d]`, where the steps begin.
      steps: of the conjugate gradients; 0: until every residual is a rounding error.

    Returns:
      `[n, d]`, zeros for a row without entries; and the sum over rows, a scalar.
    """
    dim = table.shape[1]
    eigenvalues, basis = jnp.linalg.eigh(dot(table.T, table))
    eigenvalues = jnp.maximum(eigenvalues, 0)  # what is below is rounding
    turned, begin = dot(table, basis), dot(start, basis)
    solved, left = jnp.zeros((len(penalties), dim), table.dtype), jnp.zeros((), table.dtype)
    for of_width in rows:

        def of_block(carry: tuple[jax.Array, jax.Array], block: Rows) -> tuple[tuple[jax.Array, jax.Array], None]:
            solved, left = carry
            filler = block.ids == len(penalties)
            ids = jnp.where(filler, 0, block.ids)
            entries = jnp.where((block.weights > 0)[..., None], turned[block.others], 0)
            diagonal = eigenvalues + penalties[ids][:, None]
            if entries.shape[1] <= FEW:
                best = _few_entries(entries, block.weights, diagonal)
            else:
                best = _many_entries(entries, block.weights, diagonal, begin[ids], steps)
            scores = einsum("bwd,bd->bw", entries, best)
            seen = jnp.where(block.weights > 0, (block.weights + 1) * (1 - scores) ** 2 - scores**2, 0)
            left += jnp.sum(jnp.where(filler[:, None], 0, diagonal * best**2)) + jnp.sum(seen)
            return (solved.at[block.ids].set(best, mode="drop"), left), None

        (solved, left), _ = jax.lax.scan(of_block, (solved, left), of_width)
    return dot(solved, basis.T), left


def _few_entries(entries: jax.Array, weights: jax.Array, diagonal: jax.Array) -> jax.Array:
    """Rows `[b, d]` of entries `[b, w, d]`, their weights `[b, w]` and D `[b, d]`, w small.

    By a system of w unknowns a row: x = D^-1 Z' W^1/2 v with (1 + W^1/2 Z D^-1 Z' W^1/2) v = W^-1/2 (W + 1) 1.
    """
    roots = jnp.sqrt(weights)
    scaled = entries * roots[..., None]
    system = einsum("bid,bjd->bij", scaled / diagonal[:, None, :], scaled)
    right = jnp.where(weights > 0, (weights + 1) / jnp.where(weights > 0, roots, 1), 0)
    times = lambda v: v + einsum("bij,bj->bi", system, v)
    found = _conjugate_gradients(times, jnp.ones_like(right), right, jnp.zeros_like(right), 0)
    return einsum("bi,bid->bd", found, scaled) / diagonal


def _many_entries(
    entries: jax.Array, weights: jax.Array, diagonal: jax.Array, start: jax.Array, steps: int
) -> jax.Array:
    """The same by the normal equations, from `[b, d]`."""
    scores = lambda x: einsum("bwd,bd->bw", entries, x)
    back = lambda x: einsum("bwd,bw->bd", entries, x)
    times = lambda x: diagonal * x + back(weights * scores(x))
    return _conjugate_gradients(times, diagonal, back(weights + 1), start, steps)


def _conjugate_gradients(
    times: Callable[[jax.Array], jax.Array], like: jax.Array, right: jax.Array, start: jax.Array, steps: int
) -> jax.Array:
    """Solves systems side by side.

    Args:
      times: of `[b, n]`, the products with the positive definite matrices.
      like: `[b, n]`, the diagonals that are like them.
      right, start: `[b, n]`.
      steps: 0: until every residual is a rounding error.
    """
    within = lambda x, y: jnp.sum(x * y, axis=1, keepdims=True)
    tiny = jnp.finfo(right.dtype).tiny
    limit = jnp.finfo(right.dtype).eps ** 2 * within(right, right / like)

    def step(carry: State) -> State:
        x, residual, direction, size = carry
        ahead = times(direction)
        length = size / jnp.maximum(within(direction, ahead), tiny)
        x, residual = x + length * direction, residual - length * ahead
        now = within(residual, residual / like)
        return x, residual, residual / like + now / jnp.maximum(size, tiny) * direction, now

    residual = right - times(start)
    carry: State = (start, residual, residual / like, within(residual, residual / like))
    if steps:
        carry = jax.lax.fori_loop(0, steps, lambda _, carry: step(carry), carry)
    else:
        most = 2 * right.shape[1] + 10
        unfinished = lambda counted: (counted[0] < most) & jnp.any(counted[1][3] > limit)
        _, carry = jax.lax.while_loop(unfinished, lambda counted: (counted[0] + 1, step(counted[1])), (0, carry))
    return carry[0]
