"""Hint regression: the student's representations, projected into the teacher's space, against the teacher's."""

import chex
import jax
import jax.numpy as jnp

from htd_jax.losses.checks import check_dtype, check_floats, check_where, keep_rows
from htd_jax.ops.products import dot
from htd_jax.ops.rows import unit_rows


def hint_loss(prediction: chex.Array, teacher: chex.Array, *, where: chex.Array | None = None) -> jax.Array:
    r"""Computes the squared distance of predictions from the teacher's representations.

    .. math:: \sum_a |t_a - y_a|^2

    Source: the hint of FitNets (Romero et al., ICLR'15).

    Args:
      prediction: `[n, d]` floats, the student's representations in the teacher's space.
      teacher: `[n, d]` floats, of the same entities, constants.
      where: `[n]` bool; a masked row changes nothing, whatever it holds.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> print(hint_loss(jnp.array([[1.0, 2.0], [3.0, 3.0]]), jnp.array([[1.0, 0.0], [3.0, 4.0]])))
    5.0
    """
    y, t, where = _check_hint(prediction, teacher, where)
    gap = jax.lax.stop_gradient(t) - y
    return jnp.sum(keep_rows(gap, where) ** 2)


def cosine_hint_loss(prediction: chex.Array, teacher: chex.Array, *, where: chex.Array | None = None) -> jax.Array:
    r"""Computes the cosine distance of predictions from the teacher's representations.

    .. math:: \sum_a 1 - \cos(t_a, y_a)

    A row of zeros has no direction: its cosine with any row is 0, and so is its gradient.

    Source: the authors' code of FreqD (Zhu and Zhang, KDD'25).

    Args:
      prediction: `[n, d]` floats, the student's representations in the teacher's space.
      teacher: `[n, d]` floats, of the same entities, constants.
      where: `[n]` bool; a masked row changes nothing, whatever it holds.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> print(cosine_hint_loss(jnp.array([[1.0, 0.0], [3.0, 3.0]]), jnp.array([[0.0, 2.0], [1.0, 1.0]])))
    1.0
    """
    y, t, where = _check_hint(prediction, teacher, where)
    cosine = jnp.sum(unit_rows(jax.lax.stop_gradient(keep_rows(t, where))) * unit_rows(keep_rows(y, where)), axis=1)
    return jnp.sum(keep_rows(1 - cosine, where))


def personalised(x: chex.Array, mixture: chex.Array, maps: chex.Array) -> jax.Array:
    r"""Multiplies each row by a matrix of its own, a mixture of m common ones.

    .. math:: y_a = x_a W_a, \quad W_a = \sum_k c_{ak} A_k

    Computed as one product, of the rows' outer products with their mixtures, `[n, m d]`, and the stacked maps,
    `[m d, e]`: no row's `[d, e]` matrix is ever formed. A map with mixture 1 in every row is shared by all.

    Source: the personalisation of PHR (Kang et al., Knowledge-Based Systems, 2022).

    Args:
      x: `[n, d]` floats.
      mixture: `[n, m]` floats, c.
      maps: `[m, d, e]` floats, A.

    Returns:
      `[n, e]`.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.

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


def _check_hint(
    prediction: chex.Array, teacher: chex.Array, where: chex.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Checks the arguments of a hint loss."""
    y = check_floats("prediction", prediction, None, None)
    t = check_floats("teacher", teacher, *prediction.shape)
    check_dtype("teacher", teacher, prediction.dtype)
    return y, t, check_where(where, len(y))
