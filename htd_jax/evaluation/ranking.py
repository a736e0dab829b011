"""Full ranking: where a user's held-out items stand among all the items that the user has not seen."""

from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.data import Interactions, Split

CUTOFFS = (10, 20, 50)

# Scores held at once, 16 MiB of them: a good matrix product, and most of them still in a processor's cache when read.
SCORES = 2**22

Metrics = dict[str, jax.Array]


def make_evaluator(model: nn.Module, split: Split) -> Callable[[Any], dict[str, Metrics]]:
    """Builds `evaluate(variables) -> {"valid": metrics, "test": metrics}`, compiled, for the model's variables.

    For test, the items of train and valid are hidden; for valid, those of train and test. A held-out item's rank is
    one plus the number of visible items that do not score lower: ties count against it, and so does a score that is
    not a number. Users are scored in blocks; no users x items array is held, and nothing is sorted.
    """
    width = max(1, min(split.train.num_users, SCORES // split.train.num_items))
    blocks = -(-split.train.num_users // width)
    starts = np.minimum(np.arange(blocks + 1) * width, split.train.num_users)
    bounds = np.asarray(split.train.offsets)[starts]
    longest = int(np.diff(bounds).max())
    held_out = [_targets(part, blocks * width) for part in (split.valid, split.test)]

    @jax.jit
    def ranks(variables, train, valid, test):
        def block(inputs):
            first_user, first_pair, last_pair, valid, test = inputs
            users = jnp.minimum(first_user + jnp.arange(width), train.num_users - 1)
            scores = model.apply(variables, users, method="score_all")
            pair = first_pair + jnp.arange(longest)
            row = jnp.where(pair < last_pair, train.users[pair] - first_user, width)
            return tuple(
                _ranks(scores, targets, others, row, train.items[pair])
                for targets, others in ((valid, test), (test, valid))
            )

        split_blocks = lambda x: x.reshape(blocks, width, -1)
        pairs = jnp.asarray(bounds, jnp.int32)
        inputs = (jnp.asarray(starts[:-1], jnp.int32), pairs[:-1], pairs[1:], split_blocks(valid), split_blocks(test))
        return tuple(x.reshape(blocks * width, -1) for x in jax.lax.map(block, inputs))

    @jax.jit
    def evaluate(variables, train, valid, test):
        of_valid, of_test = ranks(variables, train, valid, test)
        return {"valid": ranking_metrics(of_valid, valid >= 0), "test": ranking_metrics(of_test, test >= 0)}

    return lambda variables: evaluate(variables, split.train, *held_out)


def ranking_metrics(ranks: chex.Array, where: chex.Array, cutoffs: tuple[int, ...] = CUTOFFS) -> Metrics:
    """recall@k and ndcg@k, means over the users who have a held-out item.

    recall@k is the share of a user's held-out items ranked k or better; ndcg@k sums 1 / log2(1 + rank) over them and
    divides by the most that sum could be.

    Args:
      ranks: `[users, m]` integers from 1, the ranks of each user's held-out items.
      where: `[users, m]` bool, false where a user has fewer than m.
      cutoffs: the values of k.

    Returns:
      Scalars in [0, 1] by name: `{"recall@10": ..., "ndcg@10": ..., ...}`.

    >>> import jax.numpy as jnp
    >>> metrics = ranking_metrics(jnp.array([[1], [3], [99]]), jnp.ones((3, 1), bool), cutoffs=(10,))
    >>> print({name: round(float(value), 3) for name, value in metrics.items()})
    {'recall@10': 0.667, 'ndcg@10': 0.5}
    """
    chex.assert_rank([ranks, where], 2)
    chex.assert_equal_shape([ranks, where])
    count = where.sum(1)
    users = jnp.maximum((count > 0).sum(), 1)
    discount = 1 / jnp.log2(1 + jnp.arange(1, 1 + max(cutoffs)))
    metrics = {}
    for k in cutoffs:
        hit = where & (ranks <= k)
        ideal = jnp.concatenate([jnp.ones(1), jnp.cumsum(discount[:k])])[jnp.minimum(count, k)]
        metrics[f"recall@{k}"] = jnp.sum(hit.sum(1) / jnp.maximum(count, 1)) / users
        metrics[f"ndcg@{k}"] = jnp.sum(jnp.where(hit, 1 / jnp.log2(1 + ranks), 0).sum(1) / ideal) / users
    return metrics


def _ranks(scores: jax.Array, targets: jax.Array, others: jax.Array, row: jax.Array, item: jax.Array) -> jax.Array:
    """`[users, m]` ranks of the targets among all items but `others` and the pairs (row, item) seen in training.

    -1 in `targets` or `others` is no item, a row past the last no pair. What is hidden is counted with the rest and
    taken off again: it is little, and the scores need no copy in which it is overwritten.
    """
    bar = jnp.take_along_axis(scores, targets, axis=1)
    as_good = lambda score, bar: (~(score < bar)).astype(jnp.int32)
    count = as_good(scores[:, None, :], bar[:, :, None]).sum(-1)
    seen = as_good(scores[row, item][:, None], bar[row])
    count -= jnp.zeros_like(count).at[row].add(seen, mode="drop")
    other = as_good(jnp.take_along_axis(scores, others, axis=1)[:, None, :], bar[:, :, None])
    count -= jnp.where(others[:, None, :] >= 0, other, 0).sum(-1)
    return jnp.maximum(count, 1)  # the target is as good as itself


def _targets(part: Interactions, rows: int) -> jax.Array:
    """`[rows, most held-out items of a user]` int32, -1 where there are fewer."""
    users = np.asarray(part.users)
    column = np.arange(len(part)) - np.asarray(part.offsets)[users]
    targets = np.full((rows, part.max_degree), -1, np.int32)
    targets[users, column] = np.asarray(part.items)
    return jnp.asarray(targets)
