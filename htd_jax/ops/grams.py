"""The full topology: the sum over all pairs of rows, computed from matrices of their dimensions."""

import jax
import jax.numpy as jnp

from htd_jax.ops import platforms
from htd_jax.ops.manual import alike
from htd_jax.ops.products import einsum, in_chunks
from htd_jax.ops.shards import all_parts, own_part, total


def all_pairs(s: jax.Array, t: jax.Array) -> jax.Array:
    r"""Returns the sum over all ordered pairs of (t_a . t_b - s_a . s_b)^2.

    .. math:: |T^\top T|^2 - 2 |T^\top S|^2 + |S^\top S|^2

    With d = d_s + d_t it costs n d^2 operations for the value and 2 n d d_s for the gradient, and memory `[d, d]`
    in addition to its arguments. It takes four products on a CPU and two elsewhere, whatever n. On a mesh, devices
    divide the rows: they exchange d^2 numbers for the value, and n d_s for the gradient.

    Args:
      s: `[n, d_s]` floats.
      t: `[n, d_t]` floats, a constant.

    Returns:
      A scalar.
    """
    return _all_pairs(*alike(s, t))


@jax.custom_vjp
def _all_pairs(s: jax.Array, t: jax.Array) -> jax.Array:
    return _all_pairs_and_gradient(s, t)[0]


def _all_pairs_and_gradient(s: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes loss and gradient in two products: U'U with U = [T | S], which contains the three products of the loss;
    and that of the gradient, 4 (S S'S - T T'S). Differentiation by JAX needs seven, most of them small."""
    both = jnp.concatenate([t, s], axis=1)
    rows = len(both)
    both = own_part(both)
    products = total(_gram(both))
    tt, (ts, ss) = products[: t.shape[1], : t.shape[1]], jnp.split(products[:, t.shape[1] :], [t.shape[1]])
    loss = jnp.sum(tt**2) - 2 * jnp.sum(ts**2) + jnp.sum(ss**2)
    return loss, all_parts(4 * einsum("nd,de->ne", both, jnp.concatenate([-ts, ss])), rows)


_all_pairs.defvjp(
    _all_pairs_and_gradient,
    lambda gradient, cotangent: (cotangent * gradient, None),
)


def _gram(x: jax.Array) -> jax.Array:
    """Computes X'X."""
    return platforms.by_platform(_by_halves, lambda x: in_chunks(x.T, x), x)


def _by_halves(x: jax.Array) -> jax.Array:
    """Computes X'X from halves of columns: it is symmetric, so the product of the two halves is computed once."""
    left, right = jnp.split(x, [x.shape[1] // 2], axis=1)
    product = lambda x, y: einsum("nd,ne->de", x, y)
    across = product(left, right)
    return jnp.block([[product(left, left), across], [across.T, product(right, right)]])
