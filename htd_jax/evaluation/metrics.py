"""Metrics of a ranking, from the ranks of what should stand on top."""

import operator
from collections.abc import Iterable

import chex
import jax
import jax.numpy as jnp

CUTOFFS = (10, 20, 50)
METRICS = ("recall", "ndcg", "mrr", "precision", "map")

Metrics = dict[str, jax.Array]


def ranking_metrics(ranks: chex.Array, where: chex.Array, cutoffs: Iterable[int] = CUTOFFS) -> Metrics:
    """Every one of `METRICS` at every cutoff, means over the users who have a held-out item.

    For a user with held-out items at the ranks r_1 <= r_2 <= ... <= r_n, those at k or better being the hits:

    - recall@k: the number of hits / n.
    - ndcg@k: the sum over hits of 1 / log2(1 + r), divided by the most that it could be, the sum of 1 / log2(1 + r)
      for r from 1 to min(n, k).
    - mrr@k: 1 / r_1 if that is a hit, else 0.
    - precision@k: the number of hits / k.
    - map@k: the sum over hits of j / r_j, divided by n (by n also where n > k, as trec_eval's map_cut does).

    Args:
      ranks: `[users, m]` integers from 1, the ranks of each user's held-out items in any order; held-out items count
        in one another's ranks.
      where: `[users, m]` bool, false where a user has fewer than m.
      cutoffs: the values of k.

    Returns:
      Scalars in [0, 1] by name: `{"recall@10": ..., "ndcg@10": ..., ...}`.

    Raises:
      ValueError: ranks that are no integers, or cutoffs that are not whole numbers of at least 1.

    >>> import jax.numpy as jnp
    >>> metrics = ranking_metrics(jnp.array([[1], [4], [99]]), jnp.ones((3, 1), bool), cutoffs=(10,))
    >>> print({name: round(float(value), 3) for name, value in metrics.items()})
    {'recall@10': 0.667, 'ndcg@10': 0.477, 'mrr@10': 0.417, 'precision@10': 0.067, 'map@10': 0.417}
    """
    chex.assert_rank([ranks, where], 2)
    chex.assert_equal_shape([ranks, where])
    num_users, most = ranks.shape
    users = jnp.repeat(jnp.arange(num_users), most, total_repeat_length=num_users * most)
    return metrics_of_pairs(users, jnp.ravel(ranks), jnp.ravel(where), num_users, cutoffs)


def metrics_of_pairs(
    users: chex.Array, ranks: chex.Array, where: chex.Array, num_users: int, cutoffs: Iterable[int] = CUTOFFS
) -> Metrics:
    """`ranking_metrics` of held-out pairs one after the other, however many each user has.

    Args:
      users: `[n]` integers in [0, num_users), whose each is, in any order.
      ranks: `[n]` integers from 1.
      where: `[n]` bool; a masked pair is none.
      num_users: static.
      cutoffs: the values of k.

    Raises:
      ValueError: see `ranking_metrics`.
    """
    _, of_user, shares = _shares(users, ranks, where, num_users, cutoffs)
    count = jnp.maximum((of_user > 0).sum(), 1)
    return {name: share.sum() / count for name, share in shares.items()}


def metrics_of_users(
    users: chex.Array, ranks: chex.Array, where: chex.Array, num_users: int, cutoffs: Iterable[int] = CUTOFFS
) -> Metrics:
    """What `metrics_of_pairs` is the mean of: every metric of each user, `[num_users]` floats in [0, 1] by name.

    A user without a held-out item has 0 everywhere, and is none of those whom the mean is over.

    Args, raises: see `metrics_of_pairs`.

    >>> import jax.numpy as jnp
    >>> users, ranks = jnp.array([0, 2, 2]), jnp.array([3, 1, 99])
    >>> print(metrics_of_users(users, ranks, jnp.ones(3, bool), 3, cutoffs=(10,))["recall@10"])
    [1.  0.  0.5]
    """
    users, _, shares = _shares(users, ranks, where, num_users, cutoffs)
    of_users = lambda share: jax.ops.segment_sum(share, users, num_users, indices_are_sorted=True)
    return {name: of_users(share) for name, share in shares.items()}


def _shares(
    users: chex.Array, ranks: chex.Array, where: chex.Array, num_users: int, cutoffs: Iterable[int]
) -> tuple[jax.Array, jax.Array, Metrics]:
    """Every metric of a user as a sum over its pairs: so there is no users x items array.

    Returns:
      `[n]`, whose each pair is, in the order of users; `[num_users]`, how many pairs each has; and by metric `[n]`,
      what a pair adds to its user's.
    """
    cutoffs = check_cutoffs(cutoffs)
    chex.assert_rank([users, ranks, where], 1)
    chex.assert_equal_shape([users, ranks, where])
    if not jnp.issubdtype(ranks.dtype, jnp.integer):
        raise ValueError(f"ranks: must be integers, not {ranks.dtype}")
    # Short integers have no room for what stands in a masked slot, nor for the cutoffs.
    ranks = jnp.asarray(ranks).astype(jnp.promote_types(ranks.dtype, jnp.int32))
    last = jnp.iinfo(ranks.dtype).max
    users, where = jnp.asarray(users), jnp.asarray(where, bool)
    users, ranks, where = jax.lax.sort((users, jnp.where(where, ranks, last), ~where), num_keys=3)
    where = ~where
    slots = jax.ops.segment_sum(jnp.ones_like(users), users, num_users, indices_are_sorted=True)
    of_user = jax.ops.segment_sum(where.astype(jnp.int32), users, num_users, indices_are_sorted=True)
    place = jnp.arange(1, 1 + len(users)) - (jnp.cumsum(slots) - slots)[users]
    count = jnp.maximum(of_user[users], 1)
    longest = max(1, min(max(cutoffs), len(users)))
    best = jnp.cumsum(1 / jnp.log2(1.0 + jnp.arange(1, 1 + longest)))
    shares = lambda k: {
        "recall": 1 / count,
        "ndcg": 1 / jnp.log2(1.0 + ranks) / best[jnp.minimum(count, k) - 1],
        "mrr": jnp.where(place == 1, 1 / ranks, 0),
        "precision": jnp.full(len(users), 1 / k),
        "map": place / ranks / count,
    }
    hit = lambda share, k: jnp.where(where & (ranks <= min(k, last)), share, 0)
    every = {f"{name}@{k}": hit(share, k) for k in cutoffs for name, share in shares(min(k, last)).items()}
    return users, of_user, every


def check_cutoffs(cutoffs: Iterable[int]) -> tuple[int, ...]:
    """The cutoffs as ints.

    Raises:
      ValueError: there is none, or one that is not a whole number of at least 1.
    """
    try:
        found = tuple(operator.index(k) for k in cutoffs if not isinstance(k, bool))
        whole = len(found) == len(tuple(cutoffs))
    except TypeError:
        found, whole = (), False
    if not whole or not found or min(found) < 1:
        raise ValueError(f"cutoffs: must be whole numbers of at least 1, and one at least, not {cutoffs!r}")
    return found
