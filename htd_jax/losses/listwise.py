"""Cross-entropies between distributions over all items."""

import chex
import jax
import jax.numpy as jnp

from htd_jax.losses.checks import check_floats, check_ints, check_where


def listwise_loss(
    student: chex.Array,
    teacher: chex.Array,
    seen: chex.Array,
    *,
    where: chex.Array | None = None,
    temperature: float = 1.0,
    teacher_temperature: float | jax.Array = 1.0,
    log_partition: chex.Array | None = None,
    seen_weight: float = 1.0,
) -> jax.Array:
    r"""Cross-entropies of the student's softmax over a user's items: to the teacher's over the unseen, and to the seen.

    With U the unseen items of user u, S the seen ones, s the student's scores over its temperature and t the teacher's
    over its own, summed over users,

    .. math:: \sum_u \left( \log \sum_{j \in U} e^{s_{uj}} - \sum_{i \in U} p_{ui} s_{ui} \right)
              + \omega \left( \log \sum_j e^{s_{uj}} - \frac{1}{|S|} \sum_{i \in S} s_{ui} \right),
              \quad p_{ui} = \frac{e^{t_{ui}}}{\sum_{j \in U} e^{t_{uj}}}

    A user without unseen items adds nothing to the first sum, one without seen items nothing to the second.

    Source: the top one probabilities of ListNet (Cao et al., ICML'07), the teacher's as in Hinton et al., 2015, without
    their factor of the square of the temperature; the second is the multinomial likelihood (Liang et al., WWW'18).

    Args:
      student: `[n, m]` floats, a user's scores of all items.
      teacher: `[n, m]` floats, constants.
      seen: `[n, m]` bool.
      where: `[n]` bool; a masked row changes nothing, whatever it holds.
      temperature: over 0, of the student, in both terms.
      teacher_temperature: over 0.
      log_partition: `[n]` floats, if it is known: the logarithm of the sum under p, see `log_partition`.
      seen_weight: omega.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: an argument of a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[2.0, 0.0, 1.0]]), jnp.array([[0.0, 0.0, 0.0]])
    >>> print(f"{listwise_loss(student, teacher, jnp.array([[True, False, False]])):.4f}")
    1.2209
    """
    scores, seen, where = _check(student, seen, where)
    given = jax.lax.stop_gradient(check_floats("teacher", teacher, *scores.shape))
    unseen = ~seen if where is None else ~seen & where[:, None]
    if log_partition is None:
        log_partition = _log_sum(given / teacher_temperature, unseen)
    known = check_floats("log_partition", log_partition, len(scores))
    scores = _less_best(scores, where) / temperature
    logits = jnp.where(unseen, given / teacher_temperature - known[:, None], 0)
    probabilities = jax.lax.stop_gradient(jnp.where(unseen, jnp.exp(logits), 0))
    log_sum = _log_sum(scores, unseen)
    to_teacher = jnp.where(unseen.any(1), log_sum - jnp.sum(probabilities * scores, axis=1), 0)
    return jnp.sum(to_teacher) + _of_seen(scores, log_sum, seen, where, seen_weight)


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
    r"""`listwise_loss` of a teacher that is known by its probabilities of some items; the others are one class.

    With q the student's softmax over the unseen items U of user u, A the listed ones, p their probabilities and R = U
    less A the rest, the first term is

    .. math:: - \sum_{i \in A} p_{ui} \log q_{ui} - \left( 1 - \sum_{i \in A} p_{ui} \right) \log \sum_{i \in R} q_{ui}

    Where no item is left for the rest, the probabilities of the listed are scaled to a sum of 1.

    Args:
      student: `[n, m]` floats, a user's scores of all items.
      items: `[n, k]` integers, unseen, each once, -1 for none.
      probabilities: `[n, k]` floats, at least 0, of sums up to 1, constants.
      seen: `[n, m]` bool.
      where: `[n]` bool; a masked row changes nothing, whatever it holds.
      temperature: over 0, of the student.
      seen_weight: of the second term.
      others: false if the probabilities of the listed are known to add up to 1, which saves the sum over the others.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: an argument of a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> of = lambda p: listed_loss(jnp.zeros((1, 4)), jnp.array([[2]]), jnp.array([[p]]), jnp.zeros((1, 4), bool))
    >>> print(f"{of(1.0):.4f} {of(0.25):.4f}")
    1.3863 0.5623
    """
    scores, seen, where = _check(student, seen, where)
    items = check_ints("items", items, len(scores), None)
    shares = jax.lax.stop_gradient(check_floats("probabilities", probabilities, *items.shape))
    counted = items >= 0 if where is None else (items >= 0) & where[:, None]
    unseen = ~seen if where is None else ~seen & where[:, None]
    shares = jnp.where(counted, shares, 0)
    scores = _less_best(scores, where) / temperature
    log_sum = _log_sum(scores, unseen)
    to_rest: jax.Array | float = 0.0
    if others:
        rows, at = jnp.arange(len(items))[:, None], jnp.where(counted, items, scores.shape[1])
        rest = unseen.at[rows, at].set(False, mode="drop")
        any_rest, total = rest.any(1), jnp.sum(shares, axis=1)
        shares = jnp.where(any_rest[:, None], shares, shares / jnp.where(total > 0, total, 1)[:, None])
        of_rest = jnp.where(any_rest, jnp.maximum(1 - total, 0), 0)
        to_rest = of_rest * jnp.where(any_rest, log_sum - _log_sum(scores, rest), 0)
    listed = jnp.take_along_axis(scores, jnp.maximum(items, 0), axis=1)
    to_listed = jnp.sum(jnp.where(counted, shares * (log_sum[:, None] - listed), 0), axis=1)
    return jnp.sum(to_listed + to_rest) + _of_seen(scores, log_sum, seen, where, seen_weight)


def softmax_loss(
    scores: chex.Array, seen: chex.Array, *, where: chex.Array | None = None, temperature: float = 1.0
) -> jax.Array:
    r"""Cross-entropies of a softmax over all of a user's items to each of the seen ones; summed over the pairs.

    .. math:: - \sum_u \sum_{i \in S_u} \log \frac{e^{s_{ui}}}{\sum_j e^{s_{uj}}}

    Source: the multinomial likelihood, Liang et al., WWW'18, equation 2.

    Args:
      scores: `[n, m]` floats, of every item.
      seen: `[n, m]` bool; a user who has seen nothing adds nothing.
      where: `[n]` bool; a masked row changes nothing, whatever it holds.
      temperature: over 0; scores are divided by it.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: an argument of a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> print(f"{softmax_loss(jnp.zeros((1, 4)), jnp.array([[True, False, False, False]])):.4f}")
    1.3863
    """
    scores, seen, where = _check(scores, seen, where)
    scores = _less_best(scores, where) / temperature
    counted = seen if where is None else seen & where[:, None]
    of_seen = jnp.sum(jnp.where(counted, scores, 0), axis=1)
    return jnp.sum(jnp.sum(counted, axis=1) * jax.nn.logsumexp(scores, axis=1) - of_seen)


def sampled_softmax_loss(
    positives: chex.Array,
    sampled: chex.Array,
    counts: chex.Array,
    *,
    where: chex.Array | None = None,
    sampled_where: chex.Array | None = None,
    temperature: float = 1.0,
) -> jax.Array:
    r"""`softmax_loss` of pairs, whose sum over all items is estimated from drawn ones; summed over the pairs.

    With c the number of times that an item is drawn in the mean, and J the items that were drawn,

    .. math:: \sum_{ui} \log \left( e^{s_{ui}} + \sum_{j \in J, j \neq i} \frac{e^{s_{uj}}}{c_j} \right) - s_{ui}

    The sum in brackets is that over all items on average.

    Source: Bengio and Senecal, IEEE Trans. Neural Netw. 2008; of recommenders, Yi et al., RecSys'19, equation 4.

    Args:
      positives: `[n]` floats, the scores of the pairs.
      sampled: `[n, s]` floats, their users' scores of the drawn items.
      counts: `[s]` or `[n, s]` floats over 0.
      where: `[n]` bool; a masked row changes nothing, whatever it holds.
      sampled_where: `[n, s]` bool, false where a drawn item is the pair's own.
      temperature: over 0; scores are divided by it.

    Returns:
      A scalar.

    Raises:
      AssertionError: an argument of a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> print(f"{sampled_softmax_loss(jnp.zeros(1), jnp.zeros((1, 2)), jnp.full(2, 2 / 3)):.4f}")
    1.3863
    """
    sampled = check_floats("sampled", sampled, None, None)
    positives = check_floats("positives", positives, len(sampled))
    counts = jnp.broadcast_to(check_floats("counts", counts, *counts.shape), sampled.shape)
    where = check_where(where, len(sampled))
    counted = jnp.ones(sampled.shape, bool) if sampled_where is None else sampled_where
    if where is not None:
        positives, counted = jnp.where(where, positives, 0), counted & where[:, None]
    logits = (jnp.where(counted, sampled, 0) - positives[:, None]) / temperature - jnp.log(counts)
    return jnp.sum(jax.nn.softplus(_log_sum(logits, counted)))


def log_partition(scores: chex.Array, seen: chex.Array, temperature: float | jax.Array = 1.0) -> jax.Array:
    """`[n]`, the logarithm of the sum of exp(score / temperature) over the unseen items of `[n, m]`; a finite number
    that says nothing where there is none."""
    return _log_sum(check_floats("scores", scores, None, None) / temperature, ~seen)


def _check(
    student: chex.Array, seen: chex.Array, where: chex.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    scores = check_floats("student", student, None, None)
    message = f"seen: expected bool{list(scores.shape)}, got {seen.dtype}{list(seen.shape)}"
    chex.assert_type(seen, bool, custom_message=message)
    chex.assert_shape(seen, scores.shape, custom_message=message)
    return scores, jnp.asarray(seen), check_where(where, len(scores))


def _less_best(scores: jax.Array, where: jax.Array | None) -> jax.Array:
    """Rows less their maximum, which changes no probability and keeps what is added up small; masked rows are 0."""
    if where is not None:
        scores = jnp.where(where[:, None], scores, 0)
    return scores - jax.lax.stop_gradient(jnp.max(scores, axis=1, keepdims=True, initial=jnp.finfo(scores.dtype).min))


def _log_sum(scores: jax.Array, counted: jax.Array) -> jax.Array:
    """`[n]`, log-sum-exp over the items that count, finite where none does."""
    nothing = jnp.finfo(scores.dtype).min / 2
    scores = jnp.where(counted, scores, nothing)
    best = jax.lax.stop_gradient(jnp.max(scores, axis=1, initial=nothing))
    return best + jnp.log(jnp.sum(jnp.exp(scores - best[:, None]), axis=1))


def _of_seen(
    scores: jax.Array, log_sum: jax.Array, seen: jax.Array, where: jax.Array | None, weight: float
) -> jax.Array:
    """The cross-entropy to the seen items, of which `log_sum` is over the unseen ones."""
    if weight == 0:
        return jnp.zeros((), scores.dtype)
    seen = seen if where is None else seen & where[:, None]
    number = jnp.sum(seen, axis=1)
    mean = jnp.sum(jnp.where(seen, scores, 0), axis=1) / jnp.maximum(number, 1)
    total = jnp.logaddexp(log_sum, _log_sum(scores, seen))
    return weight * jnp.sum(jnp.where(number > 0, total - mean, 0))
