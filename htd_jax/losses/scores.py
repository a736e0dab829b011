"""Losses with another model's scores as labels."""

import chex
import jax
import jax.numpy as jnp

from htd_jax.losses.checks import check_dtype, check_entries, check_floats, check_scalar
from htd_jax.losses.softmaxes import cross_entropies


def soft_label_loss(scores: chex.Array, labels: chex.Array, *, where: chex.Array | None = None) -> jax.Array:
    r"""Computes binary cross-entropy between scores as logits and soft labels, averaged over a row, summed over rows.

    .. math:: -\sum_u \frac{1}{K_u} \sum_{k=1}^{K_u} q_{uk} \log \sigma(s_{uk}) + (1 - q_{uk}) \log \sigma(-s_{uk})

    Source: Lee et al., ICDM'19.

    Args:
      scores: `[n, K]` floats.
      labels: `[n, K]` floats in [0, 1], constants.
      where: bool, `[n]` (rows) or `[n, K]` (entries); masked values are ignored, whatever they hold, and a row without
        entries adds nothing.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> print(f"{soft_label_loss(jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 0.5]])):.4f}")
    0.4100
    """
    s = check_floats("scores", scores, None, None)
    q = check_floats("labels", labels, *s.shape)
    check_dtype("labels", labels, scores.dtype)
    where = check_entries(where, s)
    s = jnp.where(where, s, 0)
    q = jax.lax.stop_gradient(jnp.where(where, q, 0))
    terms = q * jax.nn.log_sigmoid(s) + (1 - q) * jax.nn.log_sigmoid(-s)
    sums = jnp.sum(jnp.where(where, terms, 0), axis=1)
    return -jnp.sum(sums / jnp.maximum(jnp.sum(where, axis=1), 1))


def soft_bce_loss(
    logits: chex.Array, guide: chex.Array, *, where: chex.Array | None = None, temperature: float = 1.0
) -> jax.Array:
    r"""Computes binary cross-entropy between logits and the probabilities by another model's logits, summed over pairs.

    With s the logits and g those of the other model,

    .. math:: -\sum_{ui} q_{ui} \log \sigma(s_{ui}) + (1 - q_{ui}) \log(1 - \sigma(s_{ui})), \quad
              q_{ui} = \sigma(g_{ui} / T)

    The minimum is at s = g / T. Both q and 1 - q are computed as sigmoids, so that neither is rounded to 0.

    Source: Kweon et al., WWW'21, the distillation losses of BD.

    Args:
      logits: `[n, m]` floats.
      guide: `[n, m]` floats, constants.
      where: bool, `[n]` (rows) or `[n, m]` (pairs); masked values are ignored, whatever they hold.
      temperature: T, over 0.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> print(f"{soft_bce_loss(jnp.array([[0.0, 2.0]]), jnp.array([[5.0, 10.0]]), temperature=5.0):.4f}")
    1.0585
    """
    s = check_floats("logits", logits, None, None)
    g = check_floats("guide", guide, *s.shape)
    check_dtype("guide", guide, logits.dtype)
    where = check_entries(where, s)
    s = jnp.where(where, s, 0)
    g = jax.lax.stop_gradient(jnp.where(where, g, 0)) / check_scalar("temperature", temperature, s.dtype)
    entropy = jax.nn.sigmoid(g) * jax.nn.log_sigmoid(s) + jax.nn.sigmoid(-g) * jax.nn.log_sigmoid(-s)
    return -jnp.sum(jnp.where(where, entropy, 0))


def preference_loss(
    scores: chex.Array, guide: chex.Array, *, where: chex.Array | None = None, temperature: float = 1.0
) -> jax.Array:
    r"""Computes cross-entropy between a row's softmax of scores and that of other scores, summed over rows.

    With s the scores and g the others,

    .. math:: -\sum_u \sum_i p_{ui} \log q_{ui}, \quad p_u = softmax(g_u / T), \quad q_u = softmax(s_u / T)

    Source: Zhu and Zhang, TKDE'25, the list-wise regularisation of PCKD.

    Args:
      scores: `[n, m]` floats.
      guide: `[n, m]` floats, constants.
      where: bool, `[n]` (rows) or `[n, m]` (entries); masked values are ignored, whatever they hold, and a row without
        entries adds nothing.
      temperature: T, over 0.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> print(f"{preference_loss(jnp.array([[0.0, 0.0]]), jnp.array([[1.0, 2.0]]), temperature=0.1):.4f}")
    0.6931
    """
    s = check_floats("scores", scores, None, None)
    g = check_floats("guide", guide, *s.shape)
    check_dtype("guide", guide, scores.dtype)
    return jnp.sum(cross_entropies(s, g, check_entries(where, s), temperature))
