"""Base losses: likelihoods of users' interactions."""

import chex
import jax
import jax.numpy as jnp

from htd_jax.losses.checks import (
    check_entries,
    check_floats,
    check_mask,
    check_scalar,
    check_seen,
    check_where,
    keep_rows,
)
from htd_jax.losses.softmaxes import log_sum, mask_entries, subtract_best
from htd_jax.ops.shards import total


def bpr_loss(positive_scores: chex.Array, negative_scores: chex.Array, *, where: chex.Array | None = None) -> jax.Array:
    r"""Computes the loss of Bayesian personalised ranking, summed over triples.

    .. math:: -\sum_b \log \sigma(x_{u_b i_b} - x_{u_b j_b})

    Source: Rendle et al., UAI'09, and equation 1 of the topology distillation paper (Kang et al., KDD'21).

    Args:
      positive_scores: `[n]` floats, the scores of seen items.
      negative_scores: `[n]` floats, the same users' scores of unseen items.
      where: `[n]` bool; a masked triple is ignored, whatever it holds.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> print(f"{bpr_loss(jnp.array([2.0, 1.0]), jnp.array([0.0, 1.0])):.4f}")
    0.8201
    """
    positive_scores, negative_scores, where = _check_triples(positive_scores, negative_scores, where)
    margin = keep_rows(positive_scores, where) - keep_rows(negative_scores, where)
    return -jnp.sum(keep_rows(jax.nn.log_sigmoid(margin), where))


def bce_loss(positive_scores: chex.Array, negative_scores: chex.Array, *, where: chex.Array | None = None) -> jax.Array:
    r"""Computes binary cross-entropy with scores as logits, summed over triples; labels are 1 for seen items, else 0.

    .. math:: -\sum_b \log \sigma(x_{u_b i_b}) + \log(1 - \sigma(x_{u_b j_b}))

    Source: He et al., WWW'17, equation 7.

    Args:
      positive_scores: `[n]` floats, the scores of seen items.
      negative_scores: `[n]` floats, the same users' scores of unseen items.
      where: `[n]` bool; a masked triple is ignored, whatever it holds.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> print(f"{bce_loss(jnp.array([2.0, 0.0]), jnp.array([-2.0, 0.0])):.4f}")
    1.6402
    """
    positive_scores, negative_scores, where = _check_triples(positive_scores, negative_scores, where)
    log_sigmoid = lambda scores: jax.nn.log_sigmoid(keep_rows(scores, where))
    return -jnp.sum(keep_rows(log_sigmoid(positive_scores) + log_sigmoid(-negative_scores), where))


def hinge_loss(
    positive_scores: chex.Array,
    negative_scores: chex.Array,
    *,
    where: chex.Array | None = None,
    margin: float = 1.0,
) -> jax.Array:
    r"""Computes the hinge loss of pairs of scores, summed over triples.

    .. math:: \sum_b \max(0, m - x_{u_b i_b} + x_{u_b j_b})

    Source: with minus squared distances as scores, Hsieh et al., WWW'17, equation 1, without its rank weights.

    Args:
      positive_scores: `[n]` floats, the scores of seen items.
      negative_scores: `[n]` floats, the same users' scores of unseen items.
      where: `[n]` bool; a masked triple is ignored, whatever it holds.
      margin: m, over 0.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> print(f"{hinge_loss(jnp.array([2.0, 1.0]), jnp.array([0.0, 0.5])):.4f}")
    0.5000
    """
    positives, negatives, where = _check_triples(positive_scores, negative_scores, where)
    gap = keep_rows(negatives, where) - keep_rows(positives, where)
    return jnp.sum(keep_rows(jax.nn.relu(gap + check_scalar("margin", margin, gap.dtype)), where))


def gaussian_divergence(means: chex.Array, log_variances: chex.Array, *, where: chex.Array | None = None) -> jax.Array:
    r"""Computes the divergence of Gaussians with diagonal covariances from N(0, 1), summed over rows.

    .. math:: \frac{1}{2} \sum_{nk} (\sigma_{nk}^2 + \mu_{nk}^2 - 1 - \log \sigma_{nk}^2)

    Source: Kingma and Welling, ICLR'14, appendix B; of users, Liang et al., WWW'18, equation 5.

    Args:
      means: `[n, d]` floats.
      log_variances: `[n, d]` floats, the logarithms of the variances.
      where: `[n]` bool; a masked row is ignored, whatever it holds.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> print(f"{gaussian_divergence(jnp.ones((1, 2)), jnp.zeros((1, 2))):.4f}")
    1.0000
    """
    means = check_floats("means", means, None, None)
    log_variances = check_floats("log_variances", log_variances, *means.shape)
    where = check_where(where, len(means))
    means, log_variances = keep_rows(means, where), keep_rows(log_variances, where)
    return jnp.sum(jnp.expm1(log_variances) - log_variances + jnp.square(means)) / 2


def softmax_loss(
    scores: chex.Array, seen: chex.Array, *, where: chex.Array | None = None, temperature: float = 1.0
) -> jax.Array:
    r"""Computes cross-entropy between a user's softmax over all items and each seen item, summed over interactions.

    .. math:: - \sum_u \sum_{i \in S_u} \log \frac{e^{s_{ui}}}{\sum_j e^{s_{uj}}}

    Source: the multinomial likelihood, Liang et al., WWW'18, equation 2.

    Args:
      scores: `[n, m]` floats, of all items.
      seen: `[n, m]` bool; a user without seen items adds nothing.
      where: bool, `[n]` (rows) or `[n, m]` (items); what is masked is ignored, whatever it holds.
      temperature: the divisor of scores, over 0.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> print(f"{softmax_loss(jnp.zeros((1, 4)), jnp.array([[True, False, False, False]])):.4f}")
    1.3863
    """
    scores = check_floats("scores", scores, None, None)
    seen, where = check_seen(seen, scores), check_mask(where, scores)
    scores = subtract_best(scores, where) / check_scalar("temperature", temperature, scores.dtype)
    counted = mask_entries(seen, where)
    seen_scores = total(jnp.sum(jnp.where(counted, scores, 0), axis=1))
    log_sums = jax.nn.logsumexp(scores, axis=1) if where is None or where.ndim == 1 else log_sum(scores, where)
    return jnp.sum(total(jnp.sum(counted, axis=1)) * log_sums - seen_scores)


def sampled_softmax_loss(
    positives: chex.Array,
    sampled: chex.Array,
    counts: chex.Array,
    *,
    where: chex.Array | None = None,
    temperature: float = 1.0,
) -> jax.Array:
    r"""Computes `softmax_loss` with the sum over all items estimated from sampled items, summed over interactions.

    With c the expected number of times that an item is sampled, and J the sampled items,

    .. math:: \sum_{ui} \log \left( e^{s_{ui}} + \sum_{j \in J, j \neq i} \frac{e^{s_{uj}}}{c_j} \right) - s_{ui}

    The expectation of the sum in brackets is the sum over all items.

    Source: Bengio and Senecal, IEEE Trans. Neural Netw. 2008; for recommenders, Yi et al., RecSys'19, equation 4.

    Args:
      positives: `[n]` floats, the scores of the seen items.
      sampled: `[n, s]` floats, the same users' scores of the sampled items.
      counts: `[s]` or `[n, s]` floats over 0.
      where: bool, `[n]` (interactions) or `[n, s]` (sampled items, False where one is the seen item itself); masked
        values are ignored, whatever they hold.
      temperature: the divisor of scores, over 0.

    Returns:
      A scalar.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> print(f"{sampled_softmax_loss(jnp.zeros(1), jnp.zeros((1, 2)), jnp.full(2, 2 / 3)):.4f}")
    1.3863
    """
    sampled = check_floats("sampled", sampled, None, None)
    positives = check_floats("positives", positives, len(sampled))
    counts = jnp.broadcast_to(check_floats("counts", counts, *counts.shape).astype(sampled.dtype), sampled.shape)
    where = check_entries(where, sampled)
    positives = jnp.where(where.any(1), positives, 0)
    gap = jnp.where(where, sampled, 0) - positives[:, None]
    logits = gap / check_scalar("temperature", temperature, sampled.dtype) - jnp.log(counts)
    return jnp.sum(jax.nn.softplus(log_sum(logits, where)))


def _check_triples(
    positive_scores: chex.Array, negative_scores: chex.Array, where: chex.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    positives = check_floats("positive_scores", positive_scores, None)
    negatives = check_floats("negative_scores", negative_scores, *positives.shape)
    return positives, negatives, check_where(where, len(positives))
