"""The k best items by the products of rows, exactly, in NumPy.

Codes are decoded a block of items at a time, for all users of a block at once, and never as a whole. Ties are in the
order of items. A score of -infinity or NaN is never among the best.
"""

import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from htd_jax.errors import UserError
from htd_jax.ops.codes import middle
from htd_jax.serve.table import Table

# Items whose largest score is compared first: at least k items score as high as the k-th largest of these maxima, and
# so do the k best.
CHUNK = 64

# The most users that are scored at once.
USERS = 256

# The default memory in MiB for scores and temporary arrays.
MEMORY = 256

# Below this share of all items, candidates are taken out of the table.
FEW = 0.25


class Top(NamedTuple):
    """The best items of some users, the best first.

    Attributes:
      rows: `[n, k]` int32, -1 past the end of a shorter list.
      scores: `[n, k]` float32, -infinity past the end.
    """

    rows: np.ndarray
    scores: np.ndarray


class Hidden(NamedTuple):
    """The items that are hidden from each of n users: `items[offsets[u]:offsets[u + 1]]` from user u.

    Attributes:
      offsets: `[n + 1]` int64.
      items: `[m]` int32.
    """

    offsets: np.ndarray
    items: np.ndarray

    @classmethod
    def from_interactions(cls, seen: Any) -> "Hidden":
        """Hides the pairs of `Interactions`, or of `Pairs`."""
        return cls(np.asarray(seen.offsets, np.int64), np.asarray(seen.items))

    @classmethod
    def from_lists(cls, lists: list[np.ndarray]) -> "Hidden":
        """Hides an array of items per user."""
        sizes = np.array([len(items) for items in lists], np.int64)
        return cls(np.concatenate([[0], np.cumsum(sizes)]), np.concatenate([*lists, []]).astype(np.int32))

    def of(self, user: int) -> np.ndarray:
        """Returns the items that are hidden from a user."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]


def best_items(
    queries: np.ndarray,
    items: Table,
    k: int,
    *,
    hidden: list[np.ndarray] | None = None,
    candidates: np.ndarray | None = None,
    factors: np.ndarray | None = None,
    memory: int = MEMORY,
) -> Iterator[Top]:
    """Yields the k best items by the products of rows, a block of queries at a time.

    Args:
      queries: `[n, d]` float32, the rows of users.
      items: the table of items.
      k: at least 1; at most the number of items counts.
      hidden: the items that are hidden from each query, an array each.
      candidates: rows `[m]` of the items to rank, ascending; all if None.
      factors: `[items]`, by which scores are multiplied in place of the table's scales.
      memory: MiB, at least 1, for scores and temporary arrays.

    Raises:
      UserError: if `k` or `memory` is below 1, or the widths differ.

    >>> table = Table(np.array([[1.0], [3.0], [3.0]], np.float32))
    >>> [top.rows.tolist() for top in best_items(np.ones((1, 1), np.float32), table, 2)]
    [[[1, 2]]]
    """
    k = limited(k, len(items) if candidates is None else len(candidates), memory)
    if queries.shape[1] != items.dim:
        raise UserError(f"users and items differ in width: {queries.shape[1]} and {items.dim}")
    factors = items.scales if factors is None else factors
    taken = candidates is not None and len(candidates) < FEW * len(items)
    if taken and candidates is not None:
        items, factors = items.take(candidates), None if factors is None else factors[candidates]
        place = lambda rows: _among(candidates, rows)
    else:
        place = lambda rows: rows
    denied = None
    if candidates is not None and not taken:
        denied = np.ones(len(items), bool)
        denied[candidates] = False

    def rank(first: int, last: int) -> Top:
        scores = _scores(queries[first:last], items, factors)
        if denied is not None:
            scores[:, : len(items)][:, denied] = -np.inf
        for own, rows in zip(scores, [] if hidden is None else hidden[first:last]):
            own[place(rows)] = -np.inf
        top = _select(scores, k)
        if taken and candidates is not None and len(candidates):
            return Top(np.where(top.rows >= 0, candidates[top.rows], -1).astype(np.int32), top.scores)
        return top

    # A score is held up to twice, as computed and as compared.
    size = max(1, min(USERS, memory * 2**17 // max(1, len(items))))
    return (rank(first, min(first + size, len(queries))) for first in range(0, len(queries), size))


def limited(k: int, items: int, memory: int) -> int:
    """Returns `k`, limited to the number of items.

    Raises:
      UserError: if `k` or `memory` is below 1.
    """
    try:
        checked = 0 if isinstance(k, bool) else operator.index(k)
    except TypeError:
        checked = 0
    if checked < 1:
        raise UserError(f"`k` must be a whole number of at least 1, not {k!r}")
    if memory < 1:
        raise UserError(f"`memory` must be at least 1 MiB, not {memory}")
    return min(checked, items)


def concatenate(blocks: Iterator[Top], k: int) -> Top:
    """Joins blocks of users; `[0, k]` if there are none."""
    parts = list(blocks)
    if not parts:
        return Top(np.zeros((0, k), np.int32), np.zeros((0, k), np.float32))
    return Top(*map(np.concatenate, zip(*parts)))


def _among(candidates: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns the places of rows among the candidates, without rows that are none."""
    at = np.searchsorted(candidates, rows)
    found = candidates[np.minimum(at, len(candidates) - 1)] == rows if len(candidates) else np.zeros(len(rows), bool)
    return at[found]


def _scores(queries: np.ndarray, items: Table, factors: np.ndarray | None) -> np.ndarray:
    """Returns the scores `[n, m]` of all items, m rounded up to whole chunks, which end with -infinity."""
    scores = np.empty((len(queries), max(1, -(-len(items) // CHUNK)) * CHUNK), np.float32)
    scores[:, len(items) :] = -np.inf
    weights, offset = queries, None
    if items.steps is not None and items.bits is not None:  # (c - middle) steps, with the steps on the users' side
        weights = queries * items.steps
        offset = weights.sum(axis=1, keepdims=True) * np.float32(middle(items.bits))
    for first, last in items.blocks():
        block = scores[:, first:last]
        np.matmul(weights, items.codes(first, last), out=block)
        if offset is not None:
            block -= offset
        if factors is not None:
            block *= factors[first:last]
    return scores


def _select(scores: np.ndarray, k: int) -> Top:
    """Returns the k best of scores `[n, m]`, m a multiple of CHUNK."""
    top = Top(np.full((len(scores), k), -1, np.int32), np.full((len(scores), k), -np.inf, np.float32))
    chunks = scores.reshape(len(scores), -1, CHUNK)
    maxima = chunks.max(axis=2)
    if np.isnan(maxima).any():
        scores[np.isnan(scores)] = -np.inf
        maxima = chunks.max(axis=2)
    for user, best in enumerate(maxima):
        least = np.partition(best, -k)[-k] if 0 < k < len(best) else -np.inf
        some = (best >= least).nonzero()[0]
        among = chunks[user, some]
        chunk, at = (among >= least).nonzero()  # in the order of items
        found = among[chunk, at]
        order = (-found).argsort(kind="stable")[:k]
        order = order[found[order] > -np.inf]
        top.rows[user, : len(order)] = some[chunk[order]] * CHUNK + at[order]
        top.scores[user, : len(order)] = found[order]
    return top
