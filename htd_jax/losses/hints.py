"""Hint regression: the student's representations, mapped into the teacher's space, against the teacher's."""

import chex
import jax
import jax.numpy as jnp

from htd_jax.losses.checks import check_dtype, check_floats, check_where, keep_rows
from htd_jax.ops.products import dot
from htd_jax.ops.rows import unit_rows


def hint_loss(prediction: chex.Array, teacher: chex.Array, *, where: chex.Array | None = None) -> jax.Array:
    r"""How far the predictions lie from the teacher's representations.

    .. math:: \sum_a |t_a - y_a|^2

    Source: the hint of FitNets (Romero et al., ICLR'15).

    Args:
      prediction: `[n, d]` floats, the student's representations in the teacher's space.
      teacher: `[n, d]` floats, of the same entities; a constant.
      where: `[n]` bool; a masked row changes nothing, whatever it holds.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: an argument of a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> print(hint_loss(jnp.array([[1.0, 2.0], [3.0, 3.0]]), jnp.array([[1.0, 0.0], [3.0, 4.0]])))
    5.0
    """
    y, t, where = _checked(prediction, teacher, where)
    gap = jax.lax.stop_gradient(t) - y
    return jnp.sum(keep_rows(gap, where) ** 2)


def cosine_hint_loss(prediction: chex.Array, teacher: chex.Array, *, where: chex.Array | None = None) -> jax.Array:
    r"""How far the directions of the predictions are from those of the teacher's representations.

    .. math:: \sum_a 1 - \cos(t_a, y_a)

    A row of zeros has no direction: its cosine with anything is 0, and so is the gradient.

    Source: the authors' code of FreqD (Zhu and Zhang, KDD'25).

    Args:
      prediction: `[n, d]` floats, the student's representations in the teacher's space.
      teacher: `[n, d]` floats, of the same entities; a constant.
      where: `[n]` bool; a masked row changes nothing, whatever it holds.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: an argument of a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> print(cosine_hint_loss(jnp.array([[1.0, 0.0], [3.0, 3.0]]), jnp.array([[0.0, 2.0], [1.0, 1.0]])))
    1.0
    """
    y, t, where = _checked(prediction, teacher, where)
    cosine = jnp.sum(unit_rows(jax.lax.stop_gradient(keep_rows(t, where))) * unit_rows(keep_rows(y, where)), axis=1)
    return jnp.sum(keep_rows(1 - cosine, where))


def personalised(x: chex.Array, mixture: chex.Array, maps: chex.Array) -> jax.Array:
    r"""Each row through a linear map of its own, mixed from m common ones.

    .. math:: y_a = x_a W_a, \quad W_a = \sum_k c_{ak} A_k

    It is computed as one product, of the rows' outer products with their mixtures, `[n, m d]`, and the stacked
    kernels, `[m d, e]`: no row's `[d, e]` weights are ever held. A map that all rows share is one whose mixture is 1.

    Source: the personalisation of PHR (Kang et al., Knowledge-Based Systems, 2022).

    Args:
      x: `[n, d]` floats.
      mixture: `[n, m]` floats, c.
      maps: `[m, d, e]` floats, A.

    Returns:
      `[n, e]`.

    Raises:
      AssertionError: an argument of a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> maps = jnp.array([[[1.0]], [[10.0]]])
    >>> print(personalised(jnp.array([[2.0], [2.0]]), jnp.array([[1.0, 0.0], [0.5, 1.0]]), maps))
    [[ 2.]
     [21.]]
    """
    s = check_floats("x", x, None, None)
    rows, fan_in = s.shape
    c = check_floats("mixture", mixture, rows, None)
    check_dtype("mixture", mixture, x.dtype)
    count = c.shape[1]
    maps = check_floats("maps", maps, count, fan_in, None)
    outer = (c[:, :, None] * s[:, None, :]).reshape(rows, count * fan_in)
    return dot(outer, maps.reshape(count * fan_in, -1))


def _checked(
    prediction: chex.Array, teacher: chex.Array, where: chex.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """What both hint losses take, checked at the door."""
    y = check_floats("prediction", prediction, None, None)
    t = check_floats("teacher", teacher, *prediction.shape)
    check_dtype("teacher", teacher, prediction.dtype)
    return y, t, check_where(where, len(y))
