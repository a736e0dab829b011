"""Losses on the order of a user's items: a teacher's lists, or its distribution over all items."""

import chex
import jax
import jax.numpy as jnp

from htd_jax.losses.checks import (
    check_dtype,
    check_entries,
    check_floats,
    check_ints,
    check_mask,
    check_scalar,
    check_seen,
    check_two_entries,
)
from htd_jax.losses.softmaxes import cross_entropies, log_sum, mask_entries, rows_with_entries, subtract_best
from htd_jax.ops.shards import any_of, place, take_columns, total

Masks = tuple[chex.Array | None, chex.Array | None]

# HetComp's losses clip scores, and exponentials are not below this before a logarithm.
CLIPPED, SMALLEST = 40.0, 1e-5


def relaxed_ranking_loss(
    interesting: chex.Array, uninteresting: chex.Array, *, where: Masks | None = None
) -> jax.Array:
    r"""Computes the negative log-likelihood of ranking some items in a given order, above others in any order, per row.

    With s the scores of the K interesting items, in the order to learn, and b those of the L uninteresting ones,

    .. math:: -\sum_u \sum_{k=1}^{K} \left( s_{uk} - \log \left( \sum_{m=k}^{K} e^{s_{um}}
              + \sum_{l=1}^{L} e^{b_{ul}} \right) \right)

    The rows are summed. The inner sums over m are one cumulative log-sum-exp, from the last item to the first:
    O(K + L) per row, without overflow.

    Source: Kang et al., CIKM'20, RRD: the likelihood of a permutation (Xia et al., ICML'08), relaxed.

    Args:
      interesting: `[n, K]` floats, the scores of each row's interesting items, the best item first.
      uninteresting: `[n, L]` floats, the scores of each row's uninteresting items.
      where: masks of `interesting` and `uninteresting`, each bool, `[n]` (rows) or `[n, K]` and `[n, L]` (entries), or
        None; masked values are ignored, whatever they hold, and a row without interesting entries adds nothing.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> print(f"{relaxed_ranking_loss(jnp.array([[2.0, 1.0]]), jnp.array([[0.0, 0.0]])):.4f}")
    1.0453
    """
    scores = check_floats("interesting", interesting, None, None)
    rest = check_floats("uninteresting", uninteresting, len(scores), None)
    check_dtype("uninteresting", uninteresting, interesting.dtype)
    first, second = check_two_entries(where, scores, rest)
    # The score of masked entries. It is finite, since the difference of two infinities has no gradient.
    nothing = jnp.finfo(scores.dtype).min / 2
    scores = jnp.where(first, scores, nothing)
    rest = jnp.pad(jnp.where(second, rest, nothing), [(0, 0), (0, 1)], constant_values=nothing)
    rest = jax.nn.logsumexp(rest, axis=1, keepdims=True)
    upward = jnp.concatenate([scores, rest], axis=1)  # jax.lax.cumlogsumexp without a gradient is O(K^2) on a CPU
    below = jax.lax.associative_scan(jnp.logaddexp, upward, reverse=True, axis=1)[:, :-1]
    return jnp.sum(jnp.where(first, below - scores, 0))


def pair_loss(better: chex.Array, worse: chex.Array, *, where: chex.Array | None = None) -> jax.Array:
    r"""Computes the logistic loss of the score differences of pairs, averaged over a row's pairs, summed over rows.

    .. math:: -\sum_u \frac{1}{P_u} \sum_{p=1}^{P_u} \log \sigma(s^+_{up} - s^-_{up})

    Source: Chen et al., WSDM'23, who sum over a row's pairs, and their code, which averages.

    Args:
      better: `[n, P]` floats, the scores of the items to rank higher.
      worse: `[n, P]` floats, the scores of the items to rank lower.
      where: bool, `[n]` (rows) or `[n, P]` (pairs); masked values are ignored, whatever they hold, and a row without
        pairs adds nothing.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> print(f"{pair_loss(jnp.array([[2.0, 1.0]]), jnp.array([[0.0, 1.0]])):.4f}")
    0.4100
    """
    above = check_floats("better", better, None, None)
    below = check_floats("worse", worse, *above.shape)
    check_dtype("worse", worse, better.dtype)
    where = check_entries(where, above)
    margin = jnp.where(where, above, 0) - jnp.where(where, below, 0)
    sums = jnp.sum(jnp.where(where, jax.nn.log_sigmoid(margin), 0), axis=1)
    return -jnp.sum(sums / jnp.maximum(jnp.sum(where, axis=1), 1))


def weighted_log_loss(
    scores: chex.Array, *, where: chex.Array | None = None, weights: chex.Array | None = None
) -> jax.Array:
    r"""Computes the weighted logistic loss of items that are all positive, summed over rows.

    .. math:: -\sum_u \sum_{k=1}^{K} w_{uk} \log \sigma(s_{uk})

    Source: Tang and Wang, KDD'18, for the teacher's best items.

    Args:
      scores: `[n, K]` floats.
      where: bool, `[n]` (rows) or `[n, K]` (entries); masked values are ignored, whatever they hold.
      weights: `[n, K]` floats, at least 0, constants; 1 if None.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> print(f"{weighted_log_loss(jnp.array([[2.0, 0.0]]), weights=jnp.array([[0.5, 0.25]])):.4f}")
    0.2368
    """
    s = check_floats("scores", scores, None, None)
    where = check_entries(where, s)
    if weights is None:
        w = jnp.ones_like(s)
    else:
        w = check_floats("weights", weights, *s.shape)
        check_dtype("weights", weights, scores.dtype)
    w = jax.lax.stop_gradient(jnp.where(where, w, 0))
    return -jnp.sum(w * jax.nn.log_sigmoid(jnp.where(where, s, 0)))


def position_weights(count: int, decay: float) -> jax.Array:
    r"""Weights of a list's positions, which sum to 1: :math:`e^{-k / \lambda}`, normalised.

    Source: Tang and Wang, KDD'18, equation 8.

    Args:
      count: K, at least 1.
      decay: lambda, over 0; the smaller, the larger the weight of the first position.

    Returns:
      `[count]` float32.

    >>> print(position_weights(3, 1.0).round(3))
    [0.665 0.245 0.09 ]
    """
    return jax.nn.softmax(-jnp.arange(count, dtype=jnp.float32) / check_scalar("decay", decay, jnp.float32))


def discrepancy_weights(scores: chex.Array, sampled: chex.Array, *, num_items: int, sharpness: float) -> jax.Array:
    r"""Weights in [0, 1] that grow with how far a student ranks an item below its position in a list.

    The student's rank is estimated from its scores of sampled items:

    .. math:: \tanh(\max(\mu (\hat r_{uk} - k), 0)), \quad
              \hat r_{uk} = \left\lfloor \frac{N - 1}{S} \sum_{j=1}^{S} [b_{uj} > s_{uk}] \right\rfloor + 1

    Source: Tang and Wang, KDD'18, equation 9, and their code, which counts k from 0 and adds no 1 to the rank.

    Args:
      scores: `[n, K]` floats, the student's scores of each row's list, the best item first.
      sampled: `[n, S]` floats, the student's scores of S items sampled uniformly, S under 46341; -inf for none.
      num_items: N, the number of items ranked.
      sharpness: mu.

    Returns:
      `[n, K]` floats, without gradient.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.

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
    rank = above * whole + above * part // max(size, 1)  # (N - 1) above / S, whose product may overflow int32
    behind = (rank - jnp.arange(own.shape[1])[None, :]).astype(own.dtype)
    return jax.lax.stop_gradient(jnp.tanh(jnp.maximum(check_scalar("sharpness", sharpness, own.dtype) * behind, 0)))


def listwise_loss(
    student: chex.Array,
    teacher: chex.Array,
    seen: chex.Array,
    *,
    where: chex.Array | None = None,
    log_partition: chex.Array | None = None,
    temperature: float = 1.0,
    teacher_temperature: float | jax.Array = 1.0,
    seen_weight: float = 1.0,
) -> jax.Array:
    r"""Computes the student's cross-entropy to the teacher's softmax over unseen items, plus that to the seen items.

    With U the unseen items of user u, S the seen ones, s the student's scores divided by its temperature and t the
    teacher's divided by its own, summed over users,

    .. math:: \sum_u \left( \log \sum_{j \in U} e^{s_{uj}} - \sum_{i \in U} p_{ui} s_{ui} \right)
              + \omega \left( \log \sum_j e^{s_{uj}} - \frac{1}{|S|} \sum_{i \in S} s_{ui} \right),
              \quad p_{ui} = \frac{e^{t_{ui}}}{\sum_{j \in U} e^{t_{uj}}}

    A user without unseen items adds nothing to the first term, a user without seen items nothing to the second.

    Source: the top one probabilities of ListNet (Cao et al., ICML'07), the teacher's as in Hinton et al., 2015, without
    their factor of the squared temperature; the second term is the multinomial likelihood (Liang et al., WWW'18).

    Args:
      student: `[n, m]` floats, each user's scores of all items.
      teacher: `[n, m]` floats, constants.
      seen: `[n, m]` bool.
      where: bool, `[n]` (rows) or `[n, m]` (items); what is masked is ignored, whatever it holds.
      log_partition: `[n]` floats, the teacher's, from `log_partition`; computed if None.
      temperature: the student's, over 0, in both terms.
      teacher_temperature: over 0.
      seen_weight: omega.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[2.0, 0.0, 1.0]]), jnp.array([[0.0, 0.0, 0.0]])
    >>> print(f"{listwise_loss(student, teacher, jnp.array([[True, False, False]])):.4f}")
    1.2209
    """
    scores = check_floats("student", student, None, None)
    seen, where = check_seen(seen, scores), check_mask(where, scores)
    guide = jax.lax.stop_gradient(check_floats("teacher", teacher, *scores.shape).astype(scores.dtype))
    guide = guide / check_scalar("teacher_temperature", teacher_temperature, scores.dtype)
    unseen = mask_entries(~seen, where)
    if log_partition is None:
        log_partition = log_sum(guide, unseen)
    guide_sum = check_floats("log_partition", log_partition, len(scores)).astype(scores.dtype)
    scores = subtract_best(scores, where) / check_scalar("temperature", temperature, scores.dtype)
    logits = jnp.where(unseen, guide - guide_sum[:, None], 0)
    probabilities = jax.lax.stop_gradient(jnp.where(unseen, jnp.exp(logits), 0))
    unseen_sum = log_sum(scores, unseen)
    expected = total(jnp.sum(probabilities * scores, axis=1))
    to_teacher = jnp.where(any_of(unseen.any(1)), unseen_sum - expected, 0)
    return jnp.sum(to_teacher) + _seen_cross_entropy(scores, unseen_sum, seen, where, seen_weight)


def listed_loss(
    student: chex.Array,
    items: chex.Array,
    probabilities: chex.Array,
    seen: chex.Array,
    *,
    where: chex.Array | None = None,
    temperature: float = 1.0,
    seen_weight: float = 1.0,
    others: bool = True,
) -> jax.Array:
    r"""Computes `listwise_loss` for a teacher's probabilities of some items; all other items are one class.

    With q the student's softmax over the unseen items U of user u, A the listed items, p their probabilities and R = U
    less A the rest, the first term is

    .. math:: - \sum_{i \in A} p_{ui} \log q_{ui} - \left( 1 - \sum_{i \in A} p_{ui} \right) \log \sum_{i \in R} q_{ui}

    If R is empty, the probabilities of the listed items are scaled to a sum of 1.

    Args:
      student: `[n, m]` floats, each user's scores of all items.
      items: `[n, k]` integers, different unseen items, -1 for none.
      probabilities: `[n, k]` floats, at least 0, of sums up to 1, constants.
      seen: `[n, m]` bool.
      where: bool, `[n]` (rows) or `[n, m]` (items); what is masked is ignored, whatever it holds.
      temperature: the student's, over 0.
      seen_weight: the weight of the second term.
      others: False if the probabilities of the listed items sum to 1, which saves the sum over R.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> scores, seen = jnp.zeros((1, 4)), jnp.zeros((1, 4), bool)
    >>> print(f"{listed_loss(scores, jnp.array([[2]]), jnp.array([[0.25]]), seen):.4f}")
    0.5623
    """
    scores = check_floats("student", student, None, None)
    seen, where = check_seen(seen, scores), check_mask(where, scores)
    items = check_ints("items", items, len(scores), None)
    shares = jax.lax.stop_gradient(check_floats("probabilities", probabilities, *items.shape).astype(scores.dtype))
    counted = mask_entries(items >= 0, rows_with_entries(where))
    unseen = mask_entries(~seen, where)
    shares = jnp.where(counted, shares, 0)
    scores = subtract_best(scores, where) / check_scalar("temperature", temperature, scores.dtype)
    unseen_sum = log_sum(scores, unseen)
    to_rest: jax.Array | float = 0.0
    if others:
        columns = jnp.where(counted, place(scores, items, axis=1), scores.shape[1])
        rest = unseen.at[jnp.arange(len(items))[:, None], columns].set(False, mode="drop")
        any_rest, listed_share = any_of(rest.any(1)), jnp.sum(shares, axis=1)
        scaled = shares / jnp.where(listed_share > 0, listed_share, 1)[:, None]
        shares = jnp.where(any_rest[:, None], shares, scaled)
        rest_share = jnp.where(any_rest, jnp.maximum(1 - listed_share, 0), 0)
        to_rest = rest_share * jnp.where(any_rest, unseen_sum - log_sum(scores, rest), 0)
    listed = take_columns(scores, jnp.maximum(items, 0))
    to_listed = jnp.sum(jnp.where(counted, shares * (unseen_sum[:, None] - listed), 0), axis=1)
    return jnp.sum(to_listed + to_rest) + _seen_cross_entropy(scores, unseen_sum, seen, where, seen_weight)


def sampled_cross_entropy(
    known: chex.Array,
    shares: chex.Array,
    sampled: chex.Array,
    log_weights: chex.Array,
    *,
    where: Masks | None = None,
    rest: chex.Array | None = None,
    temperature: float = 1.0,
) -> jax.Array:
    r"""Computes cross-entropies of known items under a softmax over many more, whose sum is estimated from a sample.

    With K the known items of user u, p their shares, J the sampled ones and w their weights,

    .. math:: \sum_u \sum_{i \in K} p_{ui} \log \frac{\hat Z_u}{e^{s_{ui}}} + r_u \log \frac{\hat Z_u}{\hat R_u}, \quad
              \hat Z_u = \sum_{i \in K} e^{s_{ui}} + \hat R_u, \quad \hat R_u = \sum_{j \in J} w_j e^{s_{uj}}

    If J is masked where an item is known, or does not belong to the softmax, and w_j is the number of items that j
    stands for, then the expectation of :math:`\hat Z_u` is the sum over all items. With all items in J, and weights of
    1, these are the terms of `softmax_loss` and `listed_loss`.

    Source: the estimate is that of `sampled_softmax_loss`.

    Args:
      known: `[n, k]` floats, each user's scores of its known items.
      shares: `[n, k]` floats, at least 0, constants.
      sampled: `[n, s]` floats, each user's scores of the sampled items.
      log_weights: `[s]` or `[n, s]` floats, -inf for a weight of 0, constants.
      where: masks of `known` and `sampled`, each bool, `[n]` (rows) or `[n, k]` and `[n, s]` (entries), or None; masked
        values are ignored, whatever they hold, and a user without known items adds nothing to the first term.
      rest: `[n]` floats, at least 0, the share r of all items that are not known, as one class; 0 if None. A user
        without sampled items adds nothing to its term.
      temperature: the divisor of scores, over 0.

    Returns:
      A scalar.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> one, two = jnp.zeros((1, 1)), jnp.zeros((1, 2))
    >>> print(f"{sampled_cross_entropy(one, jnp.ones((1, 1)), two, jnp.log(jnp.array([1.0, 2.0]))):.4f}")
    1.3863
    """
    scores = check_floats("known", known, None, None)
    others = check_floats("sampled", sampled, len(scores), None)
    check_dtype("sampled", sampled, known.dtype)
    weights = check_floats("log_weights", log_weights, *log_weights.shape).astype(scores.dtype)
    weights = jax.lax.stop_gradient(jnp.broadcast_to(weights, others.shape))
    first, second = check_two_entries(where, scores, others)
    second &= weights > -jnp.inf
    shares = jax.lax.stop_gradient(check_floats("shares", shares, *scores.shape).astype(scores.dtype))
    shares = jnp.where(first, shares, 0)
    divisor = check_scalar("temperature", temperature, scores.dtype)
    scores = jnp.where(first, scores, 0) / divisor
    others = jnp.where(second, others, 0) / divisor + jnp.where(second, weights, 0)
    rest_sum = log_sum(others, second)
    total = jnp.logaddexp(log_sum(scores, first), rest_sum)
    value = jnp.sum(shares * (jnp.where(first.any(1), total, 0)[:, None] - scores))
    if rest is not None:
        share = jax.lax.stop_gradient(check_floats("rest", rest, len(scores)).astype(scores.dtype))
        some = second.any(1)
        value += jnp.sum(jnp.where(some, share, 0) * jnp.where(some, total - rest_sum, 0))
    return value


def log_partition(scores: chex.Array, seen: chex.Array, temperature: float | jax.Array = 1.0) -> jax.Array:
    """Returns `[n]`, the log-sum-exp of `scores` `[n, m]` over `temperature`, over a row's unseen items.

    It is finite but meaningless in a row without unseen items.
    """
    scores = check_floats("scores", scores, None, None)
    return log_sum(scores / check_scalar("temperature", temperature, scores.dtype), ~seen)


def rejuvenated_loss(
    best: chex.Array,
    best_teacher: chex.Array,
    others: chex.Array,
    others_teacher: chex.Array,
    shared: chex.Array,
    *,
    where: Masks | None = None,
    temperature: float = 1.0,
    beta: float = 3.0,
) -> jax.Array:
    r"""Computes cross-entropies to the teacher over the student's best items, and over a second set, summed over rows.

    .. math:: \sum_u (1 - w_u) H(S_u) + w_u H(O_u), \quad w_u = e^{-\beta c_u}, \quad
              H(A) = -\sum_{i \in A} p_i \log q_i

    with p and q the softmaxes of the teacher's and the student's scores, divided by the temperature, over the items of
    A alone. S are the student's best items, O the others, and c is the share of the teacher's best items that the
    student ranks high.

    Source: RCE-KD ("Rejuvenating Cross-Entropy Loss in Knowledge Distillation for Recommender Systems", 2025). Its code
    exponentiates raw scores; here the largest is subtracted first.

    Args:
      best: `[n, k]` floats, the student's scores of S.
      best_teacher: `[n, k]` floats, the teacher's scores of S, constants.
      others: `[n, m]` floats, the student's scores of O.
      others_teacher: `[n, m]` floats, the teacher's scores of O, constants.
      shared: `[n]` floats in [0, 1], c.
      where: masks of S and O, each bool, `[n]` (rows) or `[n, k]` and `[n, m]` (entries), or None; masked values are
        ignored, whatever they hold, and a set without entries adds nothing.
      temperature: of both models, over 0.
      beta: the rate at which w falls.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> scores, flat = jnp.array([[1.0, 0.0]]), jnp.zeros((1, 2))
    >>> print(f"{rejuvenated_loss(scores, flat, scores, flat, jnp.array([0.5])):.4f}")
    0.8133
    """
    scores = check_floats("best", best, None, None)
    rest = check_floats("others", others, len(scores), None)
    check_dtype("others", others, best.dtype)
    guide = check_floats("best_teacher", best_teacher, *scores.shape).astype(scores.dtype)
    rest_guide = check_floats("others_teacher", others_teacher, *rest.shape).astype(scores.dtype)
    share = check_floats("shared", shared, len(scores)).astype(scores.dtype)
    first, second = check_two_entries(where, scores, rest)
    share = jnp.where(first.any(1) | second.any(1), share, 0)
    weight = jax.lax.stop_gradient(jnp.exp(-check_scalar("beta", beta, scores.dtype) * share))
    on_best = cross_entropies(scores, guide, first, temperature)
    on_rest = cross_entropies(rest, rest_guide, second, temperature)
    return jnp.sum((1 - weight) * on_best + weight * on_rest)


def coarse_ranking_loss(
    student: chex.Array,
    listed: chex.Array,
    own: chex.Array,
    seen: chex.Array,
    *,
    where: chex.Array | None = None,
) -> jax.Array:
    r"""Computes the negative log-likelihood of ranking listed and own items, in any order, above the rest, per user.

    With s the student's scores, clipped to [-40, 40], T the listed items, P some seen items of a user, and R the items
    neither seen nor in T, summed over users,

    .. math:: -\sum_u \sum_{i \in P \cup T} \left( s_{ui}
              - \log \max \left( e^{s_{ui}} + \sum_{j \in R} e^{s_{uj}}, 10^{-5} \right) \right)

    Source: Kang et al., WWW'23, HetComp, the rank-relaxed loss of the early stages.

    Args:
      student: `[n, m]` floats, each user's scores of all items.
      listed: `[n, K]` integers, T, different unseen items, -1 for none.
      own: `[n, k]` integers, P, different seen items, -1 for none.
      seen: `[n, m]` bool.
      where: bool, `[n]` (rows) or `[n, m]` (items); what is masked is ignored, whatever it holds.

    Returns:
      A scalar, at least 0 but for what is below 1e-5.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> seen = jnp.array([[True, False, False, False]])
    >>> print(f"{coarse_ranking_loss(jnp.zeros((1, 4)), jnp.array([[1]]), jnp.array([[0]]), seen):.4f}")
    2.1972
    """
    (listed_scores, in_list), (own_scores, in_own), rest = _clipped(student, listed, own, seen, where)
    scores = jnp.concatenate([listed_scores, own_scores], axis=1)
    counted = jnp.concatenate([in_list, in_own], axis=1)
    return -jnp.sum(jnp.where(counted, scores - _log(jnp.exp(scores) + rest[:, None]), 0))


def fine_ranking_loss(
    student: chex.Array,
    listed: chex.Array,
    own: chex.Array,
    seen: chex.Array,
    *,
    where: chex.Array | None = None,
    first: tuple[int, int] = (50, 10),
) -> jax.Array:
    r"""Computes Plackett-Luce negative log-likelihoods of the order of own and of listed items, above the rest.

    With s the student's scores, clipped to [-40, 40], T1 and T2 the first of the listed items, P some seen items of a
    user in the order to learn, and R1 and R2 the sums of :math:`e^s` over items neither seen nor in T1 or T2, summed
    over users,

    .. math:: PL(P, R_1) + \tfrac12 \left( PL(T_1, R_1) + PL(T_2, R_2) \right), \quad
              PL(S, R) = -\sum_k \left( s_{S_k} - \log \max \left( \sum_{l \ge k} e^{s_{S_l}} + R, 10^{-5} \right)
              \right)

    Source: Kang et al., WWW'23, HetComp, the loss of the last stages.

    Args:
      student: `[n, m]` floats, each user's scores of all items.
      listed: `[n, K]` integers, T, different unseen items, the best first, -1 for none.
      own: `[n, k]` integers, P, different seen items, the best first, -1 for none.
      seen: `[n, m]` bool.
      where: bool, `[n]` (rows) or `[n, m]` (items); what is masked is ignored, whatever it holds.
      first: the numbers of items in T1 and T2, descending.

    Returns:
      A scalar, at least 0 but for what is below 1e-5.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> seen = jnp.array([[True, False, False, False]])
    >>> print(f"{fine_ranking_loss(jnp.zeros((1, 4)), jnp.array([[1]]), jnp.array([[0]]), seen):.4f}")
    2.1972
    """
    (scores, in_list), (own_scores, in_own), rest = _clipped(student, listed, own, seen, where)
    powers = jnp.where(in_list, jnp.exp(scores), 0)
    one, two = (rest + jnp.sum(powers[:, number:], axis=1) for number in first)
    of_first = [
        _plackett_luce(scores[:, :number], in_list[:, :number], rest) for number, rest in zip(first, (one, two))
    ]
    return _plackett_luce(own_scores, in_own, one) + sum(of_first) / 2


def _clipped(
    student: chex.Array, listed: chex.Array, own: chex.Array, seen: chex.Array, where: chex.Array | None
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array], jax.Array]:
    """Returns the clipped scores of listed and of own items, each with its mask, and the sum of the exponentials of the
    items neither seen nor listed, `[n]`, without the cancellation of a difference."""
    scores = check_floats("student", student, None, None)
    seen, where = check_seen(seen, scores), check_mask(where, scores)
    listed = check_ints("listed", listed, len(scores), None)
    own = check_ints("own", own, len(scores), None)
    if where is not None:
        scores = jnp.where(where if where.ndim == 2 else where[:, None], scores, 0)
    scores = jnp.clip(scores, -CLIPPED, CLIPPED)
    rows = rows_with_entries(where)
    in_list, in_own = mask_entries(listed >= 0, rows), mask_entries(own >= 0, rows)
    columns = jnp.where(in_list, place(scores, listed, axis=1), scores.shape[1])
    rest = mask_entries(~seen, where).at[jnp.arange(len(listed))[:, None], columns].set(False, mode="drop")
    rest_sum = total(jnp.sum(jnp.where(rest, jnp.exp(scores), 0), axis=1))
    take = lambda items: take_columns(scores, jnp.maximum(items, 0))
    return (take(listed), in_list), (take(own), in_own), rest_sum


def _plackett_luce(scores: jax.Array, where: jax.Array, rest: jax.Array) -> jax.Array:
    """Returns the negative log-likelihood of the order of `scores` `[n, k]`, above items whose exponentials sum to
    `rest` `[n]`, summed over rows."""
    powers = jnp.where(where, jnp.exp(scores), 0)
    below = jnp.cumsum(powers[:, ::-1], axis=1)[:, ::-1] + rest[:, None]
    return -jnp.sum(jnp.where(where, scores - _log(below), 0))


def _log(x: jax.Array) -> jax.Array:
    return jnp.log(jnp.maximum(x, SMALLEST))


def _seen_cross_entropy(
    scores: jax.Array, unseen_sum: jax.Array, seen: jax.Array, where: jax.Array | None, weight: float
) -> jax.Array:
    """Returns the weighted cross-entropy to the seen items; `unseen_sum` is the log-sum-exp over the unseen ones."""
    if weight == 0:
        return jnp.zeros((), scores.dtype)
    seen = mask_entries(seen, where)
    number = total(jnp.sum(seen, axis=1))
    mean = total(jnp.sum(jnp.where(seen, scores, 0), axis=1)) / jnp.maximum(number, 1)
    all_sum = jnp.logaddexp(unseen_sum, log_sum(scores, seen))
    return check_scalar("seen_weight", weight, scores.dtype) * jnp.sum(jnp.where(number > 0, all_sum - mean, 0))
