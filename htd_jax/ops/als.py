"""Half a sweep of alternating least squares: the best row of every user for given items, or of every item."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from htd_jax.ops.products import dot, einsum

# Entries that are worked on at once: their rows of the other side's table are what a step holds.
ENTRIES = 2**15

# The narrowest block; a wider one is twice as wide as the next.
NARROWEST = 4


@struct.dataclass
class Rows:
    """Rows of like many entries, in blocks of equally many.

    Attributes:
      ids: `[blocks, b]` int32, which rows; as many as there are rows, for a filler.
      others: `[blocks, b, w]` int32, the other sides of their entries.
      weights: `[blocks, b, w]`, by how much an entry's confidence is above 1; 0 for a filler.
      blocks: how many there are, as a number on the device: a loop that is known to turn once is no loop any more, and
        of several decompositions that wait for none another, on a CPU's few threads, none ends.
    """

    ids: jax.Array
    others: jax.Array
    weights: jax.Array
    blocks: jax.Array


def in_rows(owners: np.ndarray, others: np.ndarray, weights: np.ndarray, num_rows: int) -> tuple[Rows, ...]:
    """The entries `[n]`, sorted by owner, in rows whose widths are powers of two; a row without any is in none.

    On the host: how many there are of which width decides the shapes. At most half of a row is filled up.
    """
    degrees = np.bincount(owners, minlength=num_rows)
    begins = np.cumsum(degrees) - degrees
    widths = np.maximum(NARROWEST, 2 ** np.ceil(np.log2(np.maximum(degrees, 1))).astype(np.int64))
    found = []
    for width in np.unique(widths[degrees > 0]):
        ids = np.flatnonzero((widths == width) & (degrees > 0))
        a_block = min(max(1, ENTRIES // int(width)), len(ids))
        ids = np.pad(ids, (0, -len(ids) % a_block), constant_values=num_rows)
        own = np.append(degrees, 0)[ids][:, None], np.append(begins, 0)[ids][:, None]
        place = np.arange(width)[None, :]
        there = place < own[0]
        at = np.where(there, own[1] + place, 0)
        shape = lambda x: jnp.asarray(x.reshape(-1, a_block, *x.shape[1:]))
        blocks = jnp.int32(len(ids) // a_block)
        found.append(
            Rows(
                shape(ids.astype(np.int32)),
                shape(np.where(there, others[at], 0).astype(np.int32)),
                shape(np.where(there, weights[at], 0).astype(np.float32)),
                blocks,
            )
        )
    return tuple(found)


def solve_rows(rows: Sequence[Rows], table: jax.Array, penalties: jax.Array) -> jax.Array:
    r"""The rows that are best for a table of the other side.

    .. math:: x_u = \arg\min_x \sum_{i \in S_u} (w_{ui} + 1) (1 - x \cdot y_i)^2 + \sum_{i \notin S_u} (x \cdot y_i)^2
              + \lambda_u |x|^2

    Exact. What all rows have in common, Y'Y, is taken apart once, Y'Y = Q diag(e) Q'; in its basis, z = Q'y, the
    normal equations of a row are (D + Z' W Z) x = Z' (W + 1) 1 with D = diag(e) + lambda_u, and, Z having a row an
    entry, x = D^-1 Z' v with (1 + W Z D^-1 Z') v = (W + 1) 1: a system of as many unknowns as the row has entries,
    which mostly are fewer than the dimensions. Rows of more entries than dimensions solve the normal equations as they
    are.

    Source: Hu et al., ICDM'08, equations 4 and 5; the smaller system is the Woodbury identity.

    Cost, with m others, d dimensions and rows of n entries: 2 m d^2 and an eigendecomposition, once; then n^2 d and
    n^3 / 3 a row, or n d^2 and d^3 / 3.

    Args:
      rows: see `in_rows`.
      table: `[m, d]`, Y.
      penalties: `[num_rows]`, lambda, over 0.

    Returns:
      `[num_rows, d]`; zeros for a row without entries.
    """
    dim = table.shape[1]
    eigenvalues, basis = jnp.linalg.eigh(dot(table.T, table))
    turned = dot(table, basis)
    eigenvalues = jnp.maximum(eigenvalues, 0)  # what is below is rounding
    padded = jnp.append(penalties, 1.0)
    solved = jnp.zeros((len(penalties), dim), table.dtype)
    for of_width in rows:
        solve = _few_entries if of_width.others.shape[2] <= dim else _many_entries

        def of_block(number: jax.Array, solved: jax.Array, of_width=of_width, solve=solve) -> jax.Array:  # type: ignore[no-untyped-def]
            block = jax.tree.map(lambda x: x[number], (of_width.ids, of_width.others, of_width.weights))
            (ids, others, weights), solved = jax.lax.optimization_barrier((block, solved))  # in the loop, whole
            there = weights > 0
            entries = jnp.where(there[..., None], turned[others], 0)
            best = solve(entries, weights, there, eigenvalues + padded[ids][:, None])
            return solved.at[ids].set(best, mode="drop")

        solved = jax.lax.fori_loop(0, of_width.blocks, of_block, solved)
    return dot(solved, basis.T)


def _few_entries(entries: jax.Array, weights: jax.Array, there: jax.Array, diagonal: jax.Array) -> jax.Array:
    """`[b, d]` of entries `[b, w, d]`, their weights and whether they are there `[b, w]`, and D `[b, d]`."""
    roots = jnp.sqrt(weights)
    scaled = entries * roots[..., None]
    system = einsum("bid,bjd->bij", scaled / diagonal[:, None, :], scaled) + jnp.eye(weights.shape[1])
    right = jnp.where(there, (weights + 1) / jnp.where(there, roots, 1), 0)
    found = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(system), True), right[..., None])[..., 0]
    return einsum("bi,bid->bd", found, scaled) / diagonal


def _many_entries(entries: jax.Array, weights: jax.Array, there: jax.Array, diagonal: jax.Array) -> jax.Array:
    """The same by the normal equations."""
    system = einsum("bid,bie->bde", entries * weights[..., None], entries) + jax.vmap(jnp.diag)(diagonal)
    right = einsum("bi,bid->bd", weights + 1, entries)
    found: jax.Array = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(system), True), right[..., None])[..., 0]
    return found


def objective(
    users: jax.Array,
    items: jax.Array,
    entries: tuple[jax.Array, jax.Array, jax.Array],
    penalties: tuple[jax.Array, jax.Array],
) -> jax.Array:
    """What `solve_rows` of users and of items both lower, over the entries (users, items, weights) `[n]`."""
    of_users, of_items, weights = entries
    scores = jnp.sum(users[of_users] * items[of_items], axis=1)
    everywhere = jnp.sum(dot(users.T, users) * dot(items.T, items))
    seen = jnp.sum((weights + 1) * (1 - scores) ** 2 - scores**2)
    lengths = sum(jnp.sum(penalty * jnp.sum(table**2, axis=1)) for penalty, table in zip(penalties, (users, items)))
    return everywhere + seen + lengths
