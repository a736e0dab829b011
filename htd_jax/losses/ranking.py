"""Losses over the scores of a recommender."""

import chex
import jax
import jax.numpy as jnp

from htd_jax.losses.checks import check_floats, check_where, keep_rows


def bpr_loss(positive_scores: chex.Array, negative_scores: chex.Array, *, where: chex.Array | None = None) -> jax.Array:
    r"""Bayesian personalised ranking, summed over triples.

    .. math:: -\sum_b \log \sigma(x_{u_b i_b} - x_{u_b j_b})

    Source: Rendle et al., UAI'09, and equation 1 of the topology distillation paper (Kang et al., KDD'21).

    Args:
      positive_scores: `[n]`, the scores of the items that the users have seen.
      negative_scores: `[n]`, the scores of the items sampled against them.
      where: `[n]` bool; a masked triple changes nothing.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: an argument of a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> print(f"{bpr_loss(jnp.array([2.0, 1.0]), jnp.array([0.0, 1.0])):.4f}")
    0.8201
    """
    positive_scores, negative_scores, where = _check_scores(positive_scores, negative_scores, where)
    margin = keep_rows(positive_scores, where) - keep_rows(negative_scores, where)
    return -jnp.sum(keep_rows(jax.nn.log_sigmoid(margin), where))


def bce_loss(positive_scores: chex.Array, negative_scores: chex.Array, *, where: chex.Array | None = None) -> jax.Array:
    r"""Binary cross-entropy of scores as logits, summed: seen items are of class 1, those sampled against them of 0.

    .. math:: -\sum_b \log \sigma(x_{u_b i_b}) + \log(1 - \sigma(x_{u_b j_b}))

    Source: He et al., WWW'17, equation 7.

    Args:
      positive_scores: `[n]`, the scores of the items that the users have seen.
      negative_scores: `[n]`, the scores of the items sampled against them.
      where: `[n]` bool; a masked triple changes nothing.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: an argument of a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> print(f"{bce_loss(jnp.array([2.0, 0.0]), jnp.array([-2.0, 0.0])):.4f}")
    1.6402
    """
    positive_scores, negative_scores, where = _check_scores(positive_scores, negative_scores, where)
    log_sigmoid = lambda scores: jax.nn.log_sigmoid(keep_rows(scores, where))
    return -jnp.sum(keep_rows(log_sigmoid(positive_scores) + log_sigmoid(-negative_scores), where))


def _check_scores(
    positive_scores: chex.Array, negative_scores: chex.Array, where: chex.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    positives = check_floats("positive_scores", positive_scores, None)
    negatives = check_floats("negative_scores", negative_scores, *positives.shape)
    return positives, negatives, check_where(where, len(positives))
