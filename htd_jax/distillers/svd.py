"""SVD: the best factors of the teacher's own scores, without training."""

import dataclasses
import functools
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp

from htd_jax.distillers.base import Distiller, Method, none
from htd_jax.losses.checks import check_dtype, check_floats
from htd_jax.ops.products import dot


@dataclasses.dataclass(frozen=True)
class SVD(Method):
    """Factorises the teacher's scores, without training (Eckart and Young, 1936)."""

    label: ClassVar[str] = "SVD of the teacher"
    trains: ClassVar[bool] = False

    def make(self, epochs: int) -> Distiller:
        return none()


@functools.partial(jax.jit, static_argnames="rank")
def svd_factors(users: chex.Array, items: chex.Array, rank: int) -> tuple[jax.Array, jax.Array]:
    """Returns factors of `rank` dimensions whose products are closest to `users @ items.T` in squared error.

    They are the truncated SVD of that matrix, which is never formed: after a QR of each side only a `[d_t, d_t]` matrix
    is decomposed. Each side gets the square root of a singular value, so that the k-th columns of both have length
    sqrt(sigma_k). The sign of a dimension is arbitrary and the same on both sides: no score depends on it. Dimensions
    that the scores do not have (`rank` beyond d_t, users or items) are zero.

    Source: Eckart and Young, Psychometrika, 1936.

    Args:
      users: `[num_users, d_t]` floats.
      items: `[num_items, d_t]` floats.
      rank: at least 1.

    Returns:
      `[num_users, rank]` and `[num_items, rank]`.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.
      ValueError: if `rank` is under 1.

    >>> import jax.numpy as jnp
    >>> users, items = svd_factors(jnp.array([[3.0, 0.0], [0.0, 1.0]]), jnp.eye(2), rank=1)
    >>> print(f"{users[0] @ items[0]:.3f} {users[1] @ items[1]:.3f}")
    3.000 0.000
    """
    check_floats("users", users, None, None)
    check_floats("items", items, None, users.shape[1])
    check_dtype("items", items, users.dtype)
    if rank < 1:
        raise ValueError(f"rank: expected at least 1, got {rank}")
    (user_basis, user_part), (item_basis, item_part) = jnp.linalg.qr(users), jnp.linalg.qr(items)
    left, values, right = jnp.linalg.svd(dot(user_part, item_part.T), full_matrices=False)
    size = min(rank, len(values))
    root = jnp.sqrt(values[:size])[None, :]
    pad = lambda x: jnp.pad(x, [(0, 0), (0, rank - size)])
    return pad(dot(user_basis, left[:, :size]) * root), pad(dot(item_basis, right[:size].T) * root)
