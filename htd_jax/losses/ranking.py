"""Losses over the scores of a recommender."""

import chex
import jax
import jax.numpy as jnp

from htd_jax.losses.checks import check_dtype, check_floats, check_items, check_where, keep_rows


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


def relaxed_ranking_loss(
    interesting: chex.Array,
    uninteresting: chex.Array,
    *,
    where: chex.Array | None = None,
    interesting_where: chex.Array | None = None,
    uninteresting_where: chex.Array | None = None,
) -> jax.Array:
    r"""The log-likelihood of an order of some items, above others whose order does not matter; summed over rows.

    With s the scores of the K interesting items in the order that is to be learned, and b those of the L others,

    .. math:: -\sum_u \sum_{k=1}^{K} \left( s_{uk} - \log \left( \sum_{m=k}^{K} e^{s_{um}}
              + \sum_{l=1}^{L} e^{b_{ul}} \right) \right)

    The inner sums over m are one cumulative log-sum-exp from the last item up: O(K + L) a row, and no score overflows.

    Source: Kang et al., CIKM'20, RRD: the likelihood of a permutation (Xia et al., ICML'08), relaxed.

    Args:
      interesting: `[n, K]` floats, the scores of each row's items, the one that should be first at the front.
      uninteresting: `[n, L]` floats, the scores of those that should come after them.
      where: `[n]` bool; a masked row changes nothing, whatever it holds.
      interesting_where: `[n, K]` bool; a masked item is not there.
      uninteresting_where: `[n, L]` bool; the same.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: an argument of a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> print(f"{relaxed_ranking_loss(jnp.array([[2.0, 1.0]]), jnp.array([[0.0, 0.0]])):.4f}")
    1.0453
    """
    scores = check_floats("interesting", interesting, None, None)
    rest = check_floats("uninteresting", uninteresting, len(scores), None)
    check_dtype("uninteresting", uninteresting, interesting.dtype)
    where = check_where(where, len(scores))
    counted = check_items("interesting_where", interesting_where, where, scores)
    others = check_items("uninteresting_where", uninteresting_where, where, rest)
    # The score of what is not there. It is finite, since between two infinities there is no gradient.
    nothing = jnp.finfo(scores.dtype).min / 2
    scores = jnp.where(counted, scores, nothing)
    rest = jnp.pad(jnp.where(others, rest, nothing), [(0, 0), (0, 1)], constant_values=nothing)
    rest = jax.nn.logsumexp(rest, axis=1, keepdims=True)
    upward = jnp.concatenate([scores, rest], axis=1)  # jax.lax.cumlogsumexp without a gradient is O(K^2) on a CPU
    below = jax.lax.associative_scan(jnp.logaddexp, upward, reverse=True, axis=1)[:, :-1]
    return jnp.sum(jnp.where(counted, below - scores, 0))
