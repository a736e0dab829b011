"""Losses that bring a model's predictions to those of another."""

import chex
import jax
import jax.numpy as jnp

from htd_jax.losses.checks import check_dtype, check_floats, check_items, check_where


def soft_bce_loss(
    logits: chex.Array,
    guide: chex.Array,
    *,
    temperature: float = 1.0,
    where: chex.Array | None = None,
) -> jax.Array:
    r"""Binary cross-entropy of logits to the probabilities that another model gives; summed over pairs.

    With s the logits of one model and g those of the other,

    .. math:: -\sum_{ui} q_{ui} \log \sigma(s_{ui}) + (1 - q_{ui}) \log(1 - \sigma(s_{ui})), \quad
              q_{ui} = \sigma(g_{ui} / T)

    It is least where s = g / T. Both factors are computed as sigmoids, so that neither is lost beside 1.

    Source: Kweon et al., WWW'21, the distillation losses of BD.

    Args:
      logits: `[n, m]` floats.
      guide: `[n, m]` floats, a constant.
      temperature: T, over 0.
      where: `[n, m]` bool; a masked pair changes nothing, whatever it holds.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: an argument of a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> print(f"{soft_bce_loss(jnp.array([[0.0, 2.0]]), jnp.array([[5.0, 10.0]]), temperature=5.0):.4f}")
    1.0585
    """
    s = check_floats("logits", logits, None, None)
    g = check_floats("guide", guide, *s.shape)
    check_dtype("guide", guide, logits.dtype)
    where = check_items("where", where, None, s)
    s = jnp.where(where, s, 0)
    g = jax.lax.stop_gradient(jnp.where(where, g, 0)) / temperature
    entropy = jax.nn.sigmoid(g) * jax.nn.log_sigmoid(s) + jax.nn.sigmoid(-g) * jax.nn.log_sigmoid(-s)
    return -jnp.sum(jnp.where(where, entropy, 0))


def preference_loss(
    scores: chex.Array,
    guide: chex.Array,
    *,
    temperature: float = 1.0,
    where: chex.Array | None = None,
    items_where: chex.Array | None = None,
) -> jax.Array:
    r"""Cross-entropy of a row's preferences among its items to those that other scores give; summed over rows.

    With s the scores and g the others,

    .. math:: -\sum_u \sum_i p_{ui} \log q_{ui}, \quad p_u = softmax(g_u / T), \quad q_u = softmax(s_u / T)

    Source: Zhu and Zhang, TKDE'25, the list-wise regularisation of PCKD.

    Args:
      scores: `[n, m]` floats.
      guide: `[n, m]` floats, a constant.
      temperature: T, over 0.
      where: `[n]` bool; a masked row changes nothing, whatever it holds.
      items_where: `[n, m]` bool; a masked item is not there.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: an argument of a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> print(f"{preference_loss(jnp.array([[0.0, 0.0]]), jnp.array([[1.0, 2.0]]), temperature=0.1):.4f}")
    0.6931
    """
    s = check_floats("scores", scores, None, None)
    g = check_floats("guide", guide, *s.shape)
    check_dtype("guide", guide, scores.dtype)
    there = check_items("items_where", items_where, check_where(where, len(s)), s)
    return jnp.sum(cross_entropies(s, g, there, temperature))


def cross_entropies(scores: jax.Array, guide: jax.Array, there: jax.Array, temperature: float) -> jax.Array:
    """Of each row, between the softmaxes of scores and guide, a constant, over its items that are there.

    Args:
      scores, guide, there: `[n, m]`.

    Returns:
      `[n]`, 0 where no item is there.
    """
    if not scores.shape[1]:
        return jnp.zeros(len(scores), scores.dtype)
    # Of what is not there: so low that its share is 0, and finite, since between two infinities there is no gradient.
    scaled = lambda x: jnp.where(there, jnp.where(there, x, 0) / temperature, jnp.finfo(scores.dtype).min / 2)
    share = jax.nn.softmax(jax.lax.stop_gradient(scaled(guide)), axis=1)
    return -jnp.sum(jnp.where(there, share * jax.nn.log_softmax(scaled(scores), axis=1), 0), axis=1)
