"""Overlaps of lists against sets and double loops."""

import numpy as np
import pytest

from htd_jax.studies import overlaps
from htd_jax.studies.overlaps import overlap, rank_biased_overlap


def lists_of(rng, rows, k, items):
    """Distinct items, every third list shorter than k, some empty."""
    found = np.stack([rng.permutation(items)[:k] for _ in range(rows)])
    for row in range(0, rows, 3):
        found[row, rng.integers(k + 1) :] = -1
    return found


def rbo_by_loops(first, second, p):
    """Equation 32 as it stands, with sets."""
    S, T = sorted(([x for x in row if x >= 0] for row in (first, second)), key=len)
    s, l = map(len, (S, T))  # noqa: E741
    if not l:
        return 1.0
    if not s:
        return 0.0
    X = lambda d: len(set(S[:d]) & set(T[:d]))
    total = sum(X(d) / d * p**d for d in range(1, l + 1))
    total += sum(X(s) * (d - s) / (s * d) * p**d for d in range(s + 1, l + 1))
    return (1 - p) / p * total + ((X(l) - X(s)) / l + X(s) / s) * p**l


@pytest.mark.parametrize("k", [1, 2, 10, 33])
def test_overlaps_are_their_definition(rng, k, monkeypatch):
    a, b = (lists_of(rng, 60, k, 50) for _ in range(2))
    for places in (overlaps.PLACES, 7 * k * k):
        monkeypatch.setattr(overlaps, "PLACES", places)
        for p in (0.5, 0.9, 0.99):
            wanted = [rbo_by_loops(x, y, p) for x, y in zip(a, b)]
            np.testing.assert_allclose(rank_biased_overlap(a, b, p=p), wanted, rtol=1e-12, atol=1e-14)
        sets = [[set(row[row >= 0].tolist()) for row in lists] for lists in (a, b)]
        wanted = [len(x & y) / max(len(x), len(y)) if x or y else 1 for x, y in zip(*sets)]
        np.testing.assert_allclose(overlap(a, b), wanted)
    np.testing.assert_array_equal(rank_biased_overlap(a, b), rank_biased_overlap(b, a))


def test_identical_and_disjoint_lists(rng):
    a = lists_of(rng, 30, 20, 40)
    for p in (0.1, 0.9, 0.999):
        np.testing.assert_allclose(rank_biased_overlap(a, a, p=p), 1, rtol=1e-12)
        apart = np.where(a >= 0, a + 40, -1)
        assert (rank_biased_overlap(a, apart, p=p)[(a >= 0).any(1)] == 0).all()
    assert (overlap(a, a) == 1).all()


def test_the_papers_lists():
    """The paper's example: a b c d e f g and z c a v w x y agree by 0, 0, 2/3, 2/4, 2/5, 2/6, 2/7."""
    a, z = np.array([[0, 1, 2, 3, 4, 5, 6]]), np.array([[25, 2, 0, 21, 22, 23, 24]])
    agreement = np.array([0, 0, 2 / 3, 2 / 4, 2 / 5, 2 / 6, 2 / 7])
    for p in (0.5, 0.9):
        wanted = (1 - p) * (agreement * p ** np.arange(7)).sum() + agreement[-1] * p**7
        assert rank_biased_overlap(a, z, p=p)[0] == pytest.approx(wanted)


def test_lists_that_differ_further_up_differ_more():
    a = np.arange(10)[None]
    swapped = lambda i: np.where(a == i, i + 1, np.where(a == i + 1, i, a))
    found = [float(rank_biased_overlap(a, swapped(i))[0]) for i in range(9)]
    assert found == sorted(found) and found[-1] < 1
    assert all(overlap(a, swapped(i))[0] == 1 for i in range(9))


def test_nobody_and_nothing():
    for shape in ((0, 3), (2, 0)):
        empty = np.zeros(shape, np.int32)
        assert len(rank_biased_overlap(empty, empty)) == len(overlap(empty, empty)) == shape[0]


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ([[1, 1]], [[1, 2]], "has an item twice"),
        ([[1.0]], [[1.0]], "expected integers"),
        ([[1, 2]], [[1]], "one shape"),
        ([1], [1], "one shape"),
    ],
)
def test_what_are_no_lists_is_refused(first, second, reason):
    for of in (overlap, rank_biased_overlap):
        with pytest.raises(ValueError, match=reason):
            of(np.array(first), np.array(second))


def test_what_rankings_cannot_be():
    with pytest.raises(ValueError, match="an item follows a -1"):
        rank_biased_overlap(np.array([[-1, 2]]), np.array([[1, 2]]))
    for p in (0, 1, 1.5):
        with pytest.raises(ValueError, match="p: must be in"):
            rank_biased_overlap(np.array([[1]]), np.array([[1]]), p=p)
