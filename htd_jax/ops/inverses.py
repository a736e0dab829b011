"""The inverse of a large positive definite matrix, in little memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.ops import platforms

# Rows of a triangle that are mirrored at once.
ROWS = 2**10


def inverse(matrix: np.ndarray) -> np.ndarray | jax.Array:
    """Returns the inverse of a symmetric positive definite matrix `[n, n]` float32, by Cholesky's decomposition.

    On a CPU it is computed in place by LAPACK, n^3 multiplications and additions: `matrix` becomes the result. On a GPU
    or TPU, by two triangular solves, in four arrays of n x n.

    Raises:
      LinAlgError: if the matrix is not positive definite in float32.
    """
    found: Any = platforms.by_backend(in_place, on_device)(matrix)
    return found


def in_place(matrix: np.ndarray) -> np.ndarray:
    """Replaces a matrix by its inverse, and returns it."""
    from scipy.linalg import lapack  # takes a moment, which other runs do not wait for

    columns = matrix.T  # the order in which LAPACK works in place
    _, failed = lapack.spotrf(columns, lower=1, clean=0, overwrite_a=1)
    if not failed:
        _, failed = lapack.spotri(columns, lower=1, overwrite_c=1)
    if failed:
        raise np.linalg.LinAlgError("not positive definite")
    for begin in range(0, len(matrix), ROWS):  # a triangle of `columns`, mirrored
        end = min(begin + ROWS, len(matrix))
        block = np.triu(matrix[begin:end, begin:end])
        matrix[begin:end, begin:end] = block + np.triu(block, 1).T
        matrix[end:, begin:end] = matrix[begin:end, end:].T
    return matrix


def on_device(matrix: np.ndarray) -> jax.Array:
    """Returns the inverse, computed by JAX."""
    found: jax.Array = _solve(jnp.asarray(matrix))
    if not np.isfinite(found[-1, -1]):  # the last entry depends on every pivot
        raise np.linalg.LinAlgError("not positive definite")
    return found


@jax.jit(donate_argnums=0)
def _solve(matrix: jax.Array) -> jax.Array:
    factor = jax.lax.linalg.cholesky(matrix, symmetrize_input=False)
    identity = jnp.eye(len(matrix), dtype=matrix.dtype)
    half = jax.lax.linalg.triangular_solve(factor, identity, left_side=True, lower=True)
    return jax.lax.linalg.triangular_solve(factor, half, left_side=True, lower=True, transpose_a=True)
