"""Cross-entropies between softmaxes over some items of a user."""

import chex
import jax
import jax.numpy as jnp

from htd_jax.losses.checks import check_floats, check_items, check_where
from htd_jax.losses.predictions import cross_entropies


def rejuvenated_loss(
    best: chex.Array,
    best_teacher: chex.Array,
    others: chex.Array,
    others_teacher: chex.Array,
    shared: chex.Array,
    *,
    where: chex.Array | None = None,
    best_where: chex.Array | None = None,
    others_where: chex.Array | None = None,
    temperature: float = 1.0,
    beta: float = 3.0,
) -> jax.Array:
    r"""Cross-entropies to the teacher over the student's own best items, and over a set around the teacher's.

    .. math:: \sum_u (1 - w_u) H(S_u) + w_u H(O_u), \quad w_u = e^{-\beta c_u}, \quad
              H(A) = -\sum_{i \in A} p_i \log q_i

    with p and q the softmaxes of the teacher's and the student's scores, over the temperature, among the items of A
    alone. S are the student's best items, O the others, and c is the share of the teacher's best ones that the student
    ranks high.

    Source: RCE-KD ("Rejuvenating Cross-Entropy Loss in Knowledge Distillation for Recommender Systems", 2025). Its code
    exponentiates the raw scores; here the largest is taken off first.

    Args:
      best: `[n, k]` floats, the student's scores of S.
      best_teacher: `[n, k]` floats, the teacher's, constants.
      others: `[n, m]` floats, the student's scores of O.
      others_teacher: `[n, m]` floats, the teacher's, constants.
      shared: `[n]` floats in [0, 1], c.
      where: `[n]` bool; a masked row changes nothing, whatever it holds.
      best_where: `[n, k]` bool; a masked item is not there.
      others_where: `[n, m]` bool; the same.
      temperature: over 0, of both.
      beta: how fast w falls.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: an argument of a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> scores, flat = jnp.array([[1.0, 0.0]]), jnp.zeros((1, 2))
    >>> print(f"{rejuvenated_loss(scores, flat, scores, flat, jnp.array([0.5])):.4f}")
    0.8133
    """
    scores = check_floats("best", best, None, None)
    rest = check_floats("others", others, len(scores), None)
    of_best = check_floats("best_teacher", best_teacher, *scores.shape)
    of_rest = check_floats("others_teacher", others_teacher, *rest.shape)
    share = check_floats("shared", shared, len(scores))
    where = check_where(where, len(scores))
    weight = jnp.exp(-beta * (share if where is None else jnp.where(where, share, 0)))
    weight = jax.lax.stop_gradient(weight)
    on_best = cross_entropies(scores, of_best, check_items("best_where", best_where, where, scores), temperature)
    on_rest = cross_entropies(rest, of_rest, check_items("others_where", others_where, where, rest), temperature)
    return jnp.sum((1 - weight) * on_best + weight * on_rest)
