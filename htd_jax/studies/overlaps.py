"""The overlap of lists."""

from collections.abc import Iterator

import chex
import numpy as np

# The number of pairs of places that are compared at once.
PLACES = 2**22

# The default p of `rank_biased_overlap`, under which the first ten places have 86% of the weight.
PERSISTENCE = 0.9


def overlap(first: chex.Array, second: chex.Array) -> np.ndarray:
    """Returns the share of common items of two lists, at any place.

    Args:
      first, second: `[n, k]` integers, rows of different items, -1 after the end of a list.

    Returns:
      `[n]` float64 in [0, 1]: the number of common items / the length of the longer list; 1 if both are empty.

    Raises:
      ValueError: if they are not integers of one shape, or a list has an item twice.

    >>> overlap(np.array([[1, 2], [3, -1]]), np.array([[2, 5], [4, -1]])).tolist()
    [0.5, 0.0]
    """
    a, b = _check(first, second)
    longest = np.maximum((a >= 0).sum(1), (b >= 0).sum(1))
    common = np.concatenate([same.sum((1, 2)) for _, same in _same(a, b)]) if len(a) else np.zeros(0)
    return np.where(longest > 0, common / np.maximum(longest, 1), 1.0)


def rank_biased_overlap(first: chex.Array, second: chex.Array, *, p: float = PERSISTENCE) -> np.ndarray:
    r"""Returns RBO_EXT, the overlap of two rankings of which the tops are known; agreement near the top counts more.

    With X_d the number of common items of the first d places, and s <= l the lengths of the two lists:

    .. math:: \frac{1 - p}{p} \Big(\sum_{d=1}^{l} \frac{X_d}{d} p^d + \sum_{d=s+1}^{l} \frac{X_s (d - s)}{s d} p^d\Big)
       + \Big(\frac{X_l - X_s}{l} + \frac{X_s}{s}\Big) p^l

    This extrapolates the agreement beyond the known places: equation 32, or 30 for lists of one length. Identical lists
    have 1 whatever their length, disjoint ones 0.

    Source: Webber, Moffat and Zobel, "A Similarity Measure for Indefinite Rankings", TOIS 28(4), 2010.

    Args:
      first, second: `[n, k]` integers, rows of different items, the best first, -1 after the end of a list.
      p: the persistence in (0, 1), the probability that a reader looks at the next place.

    Returns:
      `[n]` float64 in [0, 1]; 0 if one list is empty, 1 if both are.

    Raises:
      ValueError: see `overlap`; also if p is out of range, or an item follows a -1.

    >>> rank_biased_overlap(np.array([[1, 2, 3]]), np.array([[2, 1, 4]])).round(4).tolist()
    [0.63]
    """
    if not 0 < p < 1:
        raise ValueError(f"p: must be in (0, 1), not {p}")
    a, b = _check(first, second)
    for lists in (a, b):
        if ((lists[:, :-1] < 0) & (lists[:, 1:] >= 0)).any():
            raise ValueError("lists: an item follows a -1")
    k = a.shape[1]
    if not k:
        return np.ones(len(a))
    depth = np.arange(1, 1 + k)
    later = np.maximum(depth[:, None], depth[None])  # the depth from which on an item is common
    found = np.empty(len(a))
    for at, same in _same(a, b):
        enters = np.where(same, later, 0).reshape(len(same), -1)
        counts = np.zeros((len(same), k + 1), np.int64)
        np.add.at(counts, (np.arange(len(same))[:, None], enters), 1)
        found[at] = _extrapolated(np.cumsum(counts[:, 1:], axis=1), (a[at] >= 0).sum(1), (b[at] >= 0).sum(1), p)
    return found


def _extrapolated(common: np.ndarray, first: np.ndarray, second: np.ndarray, p: float) -> np.ndarray:
    """Returns RBO_EXT from X_d `[n, k]`, d from 1, and the lengths `[n]` of both lists."""
    depth = np.arange(1, 1 + common.shape[1])
    short, long = (f(first, second)[:, None] for f in (np.minimum, np.maximum))
    at = lambda d: np.take_along_axis(common, np.maximum(d - 1, 0), axis=1)
    some = np.maximum(short, 1)
    agreement = common / depth + np.where(depth > short, at(short) * (depth - short) / (some * depth), 0)
    known = (1 - p) / p * np.sum(np.where(depth <= long, agreement * p**depth, 0), axis=1)
    last = (at(long) - at(short)) / np.maximum(long, 1) + at(short) / some
    value = known + (last * p**long)[:, 0]
    return np.where(long[:, 0] == 0, 1.0, np.where(short[:, 0] == 0, 0.0, value))


def _same(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields blocks of rows, and `[rows, k, k]` bool: whether places of the two lists have the same item."""
    width = max(1, PLACES // max(1, a.shape[1] * b.shape[1]))
    for first in range(0, len(a), width):
        at = slice(first, first + width)
        yield at, (a[at, :, None] == b[at, None, :]) & (a[at, :, None] >= 0)


def _check(first: chex.Array, second: chex.Array) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(first), np.asarray(second)
    if a.dtype.kind not in "iu" or b.dtype.kind not in "iu" or a.ndim != 2 or a.shape != b.shape:
        shapes = " and ".join(f"{x.dtype}{list(x.shape)}" for x in (a, b))
        raise ValueError(f"lists: expected integers of one shape [n, k], got {shapes}")
    for lists in (a, b):
        ordered = np.sort(lists, axis=1)
        if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
            raise ValueError("lists: a list has an item twice")
    return a, b
