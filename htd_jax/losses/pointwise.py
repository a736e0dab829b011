"""Losses over the scores of single items, one at a time."""

import chex
import jax
import jax.numpy as jnp

from htd_jax.losses.checks import check_dtype, check_floats, check_items, check_where


def weighted_log_loss(
    scores: chex.Array, weights: chex.Array, *, where: chex.Array | None = None, items_where: chex.Array | None = None
) -> jax.Array:
    r"""The logistic loss of items that are all wanted, each with a weight of its own, summed over rows.

    .. math:: -\sum_u \sum_{k=1}^{K} w_{uk} \log \sigma(s_{uk})

    Source: Tang and Wang, KDD'18, of the teacher's best items.

    Args:
      scores: `[n, K]` floats.
      weights: `[n, K]` floats, at least 0, taken as constants.
      where: `[n]` bool; a masked row changes nothing, whatever it holds.
      items_where: `[n, K]` bool; a masked item is not there.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: an argument of a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> print(f"{weighted_log_loss(jnp.array([[2.0, 0.0]]), jnp.array([[0.5, 0.25]])):.4f}")
    0.2368
    """
    found = check_floats("scores", scores, None, None)
    of_items = check_floats("weights", weights, *found.shape)
    check_dtype("weights", weights, scores.dtype)
    counted = check_items("items_where", items_where, check_where(where, len(found)), found)
    of_items = jax.lax.stop_gradient(jnp.where(counted, of_items, 0))
    return -jnp.sum(of_items * jax.nn.log_sigmoid(jnp.where(counted, found, 0)))


def soft_label_loss(
    scores: chex.Array, labels: chex.Array, *, where: chex.Array | None = None, items_where: chex.Array | None = None
) -> jax.Array:
    r"""The cross-entropy of scores as logits to labels between 0 and 1, the mean over a row's items, summed over rows.

    .. math:: -\sum_u \frac{1}{K_u} \sum_{k=1}^{K_u} q_{uk} \log \sigma(s_{uk}) + (1 - q_{uk}) \log \sigma(-s_{uk})

    Source: Lee et al., ICDM'19, of labels that a teacher gives.

    Args:
      scores: `[n, K]` floats.
      labels: `[n, K]` floats from 0 to 1, taken as constants.
      where: `[n]` bool; a masked row changes nothing, whatever it holds.
      items_where: `[n, K]` bool; a masked item is not there, a row without items adds nothing.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: an argument of a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> print(f"{soft_label_loss(jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 0.5]])):.4f}")
    0.4100
    """
    found = check_floats("scores", scores, None, None)
    wanted = check_floats("labels", labels, *found.shape)
    check_dtype("labels", labels, scores.dtype)
    counted = check_items("items_where", items_where, check_where(where, len(found)), found)
    found = jnp.where(counted, found, 0)
    wanted = jax.lax.stop_gradient(jnp.where(counted, wanted, 0))
    terms = wanted * jax.nn.log_sigmoid(found) + (1 - wanted) * jax.nn.log_sigmoid(-found)
    sums = jnp.sum(jnp.where(counted, terms, 0), axis=1)
    return -jnp.sum(sums / jnp.maximum(jnp.sum(counted, axis=1), 1))


def position_weights(count: int, decay: float) -> jax.Array:
    r"""What the places of a list weigh, the first the most: :math:`e^{-k / \lambda}` over their sum.

    Source: Tang and Wang, KDD'18, equation 8.

    Args:
      count: K, at least 1.
      decay: lambda, over 0; small for a weight that is nearly all the first's.

    Returns:
      `[count]` float32.

    >>> print(position_weights(3, 1.0).round(3))
    [0.665 0.245 0.09 ]
    """
    return jax.nn.softmax(-jnp.arange(count) / decay)


def discrepancy_weights(scores: chex.Array, sampled: chex.Array, *, num_items: int, sharpness: float) -> jax.Array:
    r"""How far below its place in a list a student ranks an item, from nothing to 1, as far as a sample shows it.

    .. math:: \tanh(\max(\mu (\hat r_{uk} - k), 0)), \quad
              \hat r_{uk} = \left\lfloor \frac{N - 1}{S} \sum_{j=1}^{S} [b_{uj} > s_{uk}] \right\rfloor + 1

    Source: Tang and Wang, KDD'18, equation 9, and their code, where k is counted from 0 with no 1 added to the rank.

    Args:
      scores: `[n, K]` floats, the student's, of the items of each row's list, the first at the front.
      sampled: `[n, S]` floats, its scores of S items drawn uniformly, S under 46341; nothing is masked, and minus
        infinity stands above nothing.
      num_items: N, among how many an item is ranked.
      sharpness: mu.

    Returns:
      `[n, K]` float32, with no gradient.

    Raises:
      AssertionError: an argument of a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> scores, sampled = jnp.array([[3.0, -1.0]]), jnp.array([[0.0, 1.0, -2.0, 2.0]])
    >>> print(discrepancy_weights(scores, sampled, num_items=9, sharpness=0.1).round(3))
    [[0.    0.462]]
    """
    own = check_floats("scores", scores, None, None)
    others = check_floats("sampled", sampled, len(own), None)
    check_dtype("sampled", sampled, scores.dtype)
    size = others.shape[1]
    above = jnp.sum(others[:, None, :] > own[:, :, None], axis=2)
    whole, part = divmod(num_items - 1, max(size, 1))
    rank = above * whole + above * part // max(size, 1)  # (N - 1) above / S, of which the product may be over an int32
    behind = rank - jnp.arange(own.shape[1])[None, :]
    return jax.lax.stop_gradient(jnp.tanh(jnp.maximum(sharpness * behind, 0)))
