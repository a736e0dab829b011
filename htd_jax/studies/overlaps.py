"""How much of two lists is the same."""

from collections.abc import Iterator

import chex
import numpy as np

# Pairs of places that are compared at once.
PLACES = 2**22

# Of `rank_biased_overlap`: of the weight of a list of any length, the first ten places have 86%.
PERSISTENCE = 0.9


def overlap(first: chex.Array, second: chex.Array) -> np.ndarray:
    """The share of a list that stands in the other one too, at any place.

    Args:
      first, second: `[n, k]` integers, rows of different items, -1 where a list has no more.

    Returns:
      `[n]` float64 in [0, 1]: the number of common items / the length of the longer list; 1 where both have none.

    Raises:
      ValueError: no integers, unlike shapes, or an item that stands twice in a list.

    >>> overlap(np.array([[1, 2], [3, -1]]), np.array([[2, 5], [4, -1]])).tolist()
    [0.5, 0.0]
    """
    a, b = _check(first, second)
    longest = np.maximum((a >= 0).sum(1), (b >= 0).sum(1))
    common = np.concatenate([same.sum((1, 2)) for _, same in _same(a, b)]) if len(a) else np.zeros(0)
    return np.where(longest > 0, common / np.maximum(longest, 1), 1.0)


def rank_biased_overlap(first: chex.Array, second: chex.Array, *, p: float = PERSISTENCE) -> np.ndarray:
    r"""The overlap of two rankings of which only the tops are known, agreement further up counting more: RBO_EXT.

    With X_d how many items the first d places of both have in common, and s <= l the lengths of the two lists:

    .. math:: \frac{1 - p}{p} \Big(\sum_{d=1}^{l} \frac{X_d}{d} p^d + \sum_{d=s+1}^{l} \frac{X_s (d - s)}{s d} p^d\Big)
       + \Big(\frac{X_l - X_s}{l} + \frac{X_s}{s}\Big) p^l

    Beyond what is known the agreement is taken to go on as it was: that is the extrapolated form, equation 32; of lists
    of one length equation 30. Identical lists have 1 whatever their length, disjoint ones 0.

    Source: Webber, Moffat and Zobel, "A Similarity Measure for Indefinite Rankings", TOIS 28(4), 2010.

    Args:
      first, second: `[n, k]` integers, rows of different items, the best first, -1 where a list has no more.
      p: in (0, 1), how likely a reader goes on by a place.

    Returns:
      `[n]` float64 in [0, 1]; 0 where one list has nothing, 1 where neither has.

    Raises:
      ValueError: see `overlap`; p out of range, or an item behind a -1.

    >>> rank_biased_overlap(np.array([[1, 2, 3]]), np.array([[2, 1, 4]])).round(4).tolist()
    [0.63]
    """
    if not 0 < p < 1:
        raise ValueError(f"p: must be in (0, 1), not {p}")
    a, b = _check(first, second)
    for lists in (a, b):
        if ((lists[:, :-1] < 0) & (lists[:, 1:] >= 0)).any():
            raise ValueError("lists: an item stands behind a -1")
    k = a.shape[1]
    if not k:
        return np.ones(len(a))
    depth = np.arange(1, 1 + k)
    later = np.maximum(depth[:, None], depth[None])  # at which depth a common item is known to be one
    found = np.empty(len(a))
    for at, same in _same(a, b):
        enters = np.where(same, later, 0).reshape(len(same), -1)
        counts = np.zeros((len(same), k + 1), np.int64)
        np.add.at(counts, (np.arange(len(same))[:, None], enters), 1)
        found[at] = _extrapolated(np.cumsum(counts[:, 1:], axis=1), (a[at] >= 0).sum(1), (b[at] >= 0).sum(1), p)
    return found


def _extrapolated(common: np.ndarray, of_first: np.ndarray, of_second: np.ndarray, p: float) -> np.ndarray:
    """RBO_EXT from X_d `[n, k]`, d from 1, and the lengths `[n]` of both lists."""
    depth = np.arange(1, 1 + common.shape[1])
    short, long = (f(of_first, of_second)[:, None] for f in (np.minimum, np.maximum))
    at = lambda d: np.take_along_axis(common, np.maximum(d - 1, 0), axis=1)
    some = np.maximum(short, 1)
    agreement = common / depth + np.where(depth > short, at(short) * (depth - short) / (some * depth), 0)
    known = (1 - p) / p * np.sum(np.where(depth <= long, agreement * p**depth, 0), axis=1)
    last = (at(long) - at(short)) / np.maximum(long, 1) + at(short) / some
    value = known + (last * p**long)[:, 0]
    return np.where(long[:, 0] == 0, 1.0, np.where(short[:, 0] == 0, 0.0, value))


def _same(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Some rows at a time, `[rows, k, k]` bool: which places of one list hold what which of the other."""
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
            raise ValueError("lists: an item stands twice in a list")
    return a, b
