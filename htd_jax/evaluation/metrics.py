"""Metrics of a ranking, from the ranks of what should stand on top."""

import chex
import jax
import jax.numpy as jnp

CUTOFFS = (10, 20, 50)
METRICS = ("recall", "ndcg", "mrr", "precision", "map")

Metrics = dict[str, jax.Array]


def ranking_metrics(ranks: chex.Array, where: chex.Array, cutoffs: tuple[int, ...] = CUTOFFS) -> Metrics:
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

    >>> import jax.numpy as jnp
    >>> metrics = ranking_metrics(jnp.array([[1], [4], [99]]), jnp.ones((3, 1), bool), cutoffs=(10,))
    >>> print({name: round(float(value), 3) for name, value in metrics.items()})
    {'recall@10': 0.667, 'ndcg@10': 0.477, 'mrr@10': 0.417, 'precision@10': 0.067, 'map@10': 0.417}
    """
    chex.assert_rank([ranks, where], 2)
    chex.assert_equal_shape([ranks, where])
    ranks, where = jnp.asarray(ranks), jnp.asarray(where)
    count = where.sum(1)
    users = jnp.maximum((count > 0).sum(), 1)
    ranks = jnp.sort(jnp.where(where, ranks, jnp.iinfo(ranks.dtype).max), axis=1)
    place = jnp.arange(1, 1 + ranks.shape[1])
    best = jnp.concatenate([jnp.ones(1), jnp.cumsum(1 / jnp.log2(1 + place))])

    def of_users(k):
        over_hits = lambda x: jnp.where(ranks <= k, x, 0).sum(1)
        return {
            "recall": over_hits(1) / jnp.maximum(count, 1),
            "ndcg": over_hits(1 / jnp.log2(1.0 + ranks)) / best[jnp.minimum(count, k)],
            "mrr": over_hits(jnp.where(place == 1, 1 / ranks, 0)),
            "precision": over_hits(1) / k,
            "map": over_hits(place / ranks) / jnp.maximum(count, 1),
        }

    return {f"{name}@{k}": of_user.sum() / users for k in cutoffs for name, of_user in of_users(k).items()}
