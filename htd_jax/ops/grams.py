"""The full topology: the sum over all pairs of rows, computed from matrices of their dimensions."""

import jax
import jax.numpy as jnp

from htd_jax.ops import platforms
from htd_jax.ops.manual import alike, axes_of, vary
from htd_jax.ops.products import einsum, in_chunks
from htd_jax.ops.rows import take_rows
from htd_jax.ops.shards import ROWS, all_parts, is_shard, own_part, total


def all_pairs(s: jax.Array, t: jax.Array) -> jax.Array:
    r"""Returns the sum over all ordered pairs of (t_a . t_b - s_a . s_b)^2.

    .. math:: |T^\top T|^2 - 2 |T^\top S|^2 + |S^\top S|^2

    With d = d_s + d_t it costs n d^2 operations for the value and 2 n d d_s for the gradient, and memory `[d, d]`
    in addition to its arguments. It takes four products on a CPU and two elsewhere, whatever n. On a mesh,
    devices divide the rows: they exchange d^2 numbers for the value, and n d_s for the gradient; or d^2 alone if each
    has the rows that it holds, and zeros for the others, see `htd_jax.ops.shards.keep_local`.

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
    rows, held = len(both), is_shard(both)
    if not held:
        both = own_part(both)
    products = total(_sum_of_held(both) if held else _gram(both))
    tt, (ts, ss) = products[: t.shape[1], : t.shape[1]], jnp.split(products[:, t.shape[1] :], [t.shape[1]])
    loss = jnp.sum(tt**2) - 2 * jnp.sum(ts**2) + jnp.sum(ss**2)
    if held:
        return loss, _products_of_held(both, 4 * jnp.concatenate([-ts, ss]))
    return loss, all_parts(4 * einsum("nd,de->ne", both, jnp.concatenate([-ts, ss])), rows)


_all_pairs.defvjp(
    _all_pairs_and_gradient,
    lambda gradient, cotangent: (cotangent * gradient, None),
)


def _sum_of_held(x: jax.Array) -> jax.Array:
    """Computes X'X from the rows `[n, d]` that are not zero: those that a device holds of a batch."""
    order, turns, size = _held_first(x)
    add = lambda turn, products: products + _gram(take_rows(x, _turn(order, turn, size)))
    return jax.lax.fori_loop(0, turns, add, vary(jnp.zeros((x.shape[1],) * 2, x.dtype), axes_of(x)))


def _products_of_held(x: jax.Array, y: jax.Array) -> jax.Array:
    """Computes X Y from the rows of X that are not zero."""
    order, turns, size = _held_first(x)

    def put(turn: jax.Array, product: jax.Array) -> jax.Array:
        at = _turn(order, turn, size)
        return product.at[at].set(einsum("nd,de->ne", take_rows(x, at), y), mode="drop")

    return jax.lax.fori_loop(0, turns, put, vary(jnp.zeros((len(x), y.shape[1]), x.dtype), axes_of(x)))


def _held_first(x: jax.Array) -> tuple[jax.Array, jax.Array, int]:
    """Returns the rows that are not zero, then n, in whole turns; the number of turns; and the rows per turn, such that
    one turn is enough if devices hold equally many."""
    rows = len(x)
    size = -(-rows // jax.lax.axis_size(ROWS))
    held = jnp.any(x != 0, axis=1)
    order = jnp.sort(jnp.where(held, jnp.arange(rows, dtype=jnp.int32), rows))
    order = jnp.pad(order, (0, -rows % size), constant_values=rows)
    return order, -(-jnp.sum(held) // size), size


def _turn(order: jax.Array, turn: jax.Array, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(order, turn * size, size)


def _gram(x: jax.Array) -> jax.Array:
    """Computes X'X."""
    return platforms.by_platform(_by_halves, lambda x: in_chunks(x.T, x), x)


def _by_halves(x: jax.Array) -> jax.Array:
    """Computes X'X from halves of columns: it is symmetric, so the product of the two halves is computed once."""
    left, right = jnp.split(x, [x.shape[1] // 2], axis=1)
    product = lambda x, y: einsum("nd,ne->de", x, y)
    across = product(left, right)
    return jnp.block([[product(left, left), across], [across.T, product(right, right)]])
