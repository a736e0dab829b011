"""Significance tests between methods: over seeds, over users, and corrected for many comparisons."""

import dataclasses
import statistics
import warnings
from collections.abc import Mapping, Sequence

import chex
import numpy as np
from scipy import stats

# The number of sign flips that a test over users samples; a test with fewer possible flips uses each once.
RESAMPLES = 10_000

# The number of signs in a batch: 8 MiB.
NUMBERS = 2**20

# A metric of each user `[users]` by method and seed, with the same users everywhere.
Values = Mapping[str, Mapping[int, chex.Array]]


@dataclasses.dataclass(frozen=True)
class Test:
    """A test of one method against another in one metric.

    Attributes:
      name, other: the methods.
      seeds: the seeds that both have.
      difference: the difference of their means over users, averaged over seeds.
      over_seeds: the p-value of `seeds_test`; None for one seed.
      over_users: the p-value of `users_test` per seed.
      over_seeds_corrected, over_users_corrected: the same p-values, corrected for the number of methods that are tested
        together: all against the student, or all against the best other method, per seed; see `corrected`.
    """

    __test__ = False  # not one of pytest's

    name: str
    other: str
    seeds: tuple[int, ...]
    difference: float
    over_seeds: float | None
    over_users: tuple[float, ...]
    over_seeds_corrected: float | None
    over_users_corrected: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Tests:
    """Tests of every method, in the given order, against the plain student and against the best other method."""

    __test__ = False

    against_student: tuple[Test, ...]
    against_best: tuple[Test, ...]


def seeds_test(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Returns the two-sided p-value of the paired t-test over seeds.

    Args:
      first, second: a metric of two methods by seed, for the same seeds in one order.

    Returns:
      p in [0, 1]; 1 if all values are equal, None for fewer than two seeds.

    Raises:
      ValueError: if lengths differ, or a value is not finite.

    >>> print(f"{seeds_test([0.31, 0.32, 0.33], [0.30, 0.30, 0.30]):.4f}")
    0.0742
    """
    a, b = _pair(first, second)
    if len(a) < 2:
        return None
    if np.array_equal(a, b):
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all differences are equal: their deviation is 0
        return float(stats.ttest_rel(a, b).pvalue)


def users_test(first: chex.Array, second: chex.Array, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Returns the two-sided p-value of the paired randomisation test over users, whose values for the two methods are
    exchanged at random.

    An exchange flips the sign of a user's difference. Users without a difference are left out, which does not change p.
    If there are at most `resamples` combinations of flips, each is used once and p is exact; else flips are sampled.

    Source: Smucker et al., "A Comparison of Statistical Significance Tests for Information Retrieval Evaluation",
    CIKM'07.

    Args:
      first, second: `[users]`, a metric of each user.
      resamples: the number of sampled flips, at least 1.
      seed: the seed of the flips.

    Returns:
      p in (0, 1]; 1 if no user differs.

    Raises:
      ValueError: if lengths differ, or a value is not finite.

    >>> users_test(np.array([1.0, 1.0, 0.0, 1.0]), np.array([0.0, 0.0, 0.0, 0.0]))  # 2 of 8 flips
    0.25
    """
    a, b = _pair(first, second)
    differences = a - b
    differences = differences[differences != 0]
    size = len(differences)
    if size < 2:  # one difference is as large with either sign
        return 1.0
    if 2**size <= resamples:
        total = lambda x, axis: np.sum(x, axis=axis)
        how = {"permutation_type": "samples", "vectorized": True, "n_resamples": resamples}
        return float(stats.permutation_test((differences,), total, **how).pvalue)
    rng = np.random.default_rng(seed)
    # Sampled signs make the statistic one product; SciPy's own flips take fifty times as long.
    flips = lambda size: 2.0 * rng.integers(2, size=size, dtype=np.int8) - 1
    total = lambda signs, axis: signs @ differences
    how = {"vectorized": True, "n_resamples": resamples, "batch": max(1, NUMBERS // size)}
    return float(stats.monte_carlo_test(np.ones(size), flips, total, **how).pvalue)


def corrected(ps: Sequence[float | None]) -> list[float | None]:
    """Returns p-values corrected for many tests: of all that are at most q, at most a share q is expected to be false.

    Source: Benjamini and Hochberg, "Controlling the False Discovery Rate", J. R. Stat. Soc. B, 1995.

    Args:
      ps: p-values in [0, 1]; None is not counted as a test.

    Raises:
      ValueError: if one is not in [0, 1].

    >>> corrected([0.01, None, 0.5, 0.02])
    [0.03, None, 0.5, 0.03]
    """
    known = [p for p in ps if p is not None]
    if not known:
        return list(ps)
    found = iter(_corrected(known))
    return [None if p is None else next(found) for p in ps]


def _corrected(ps: Sequence[float]) -> list[float]:
    found: list[float] = stats.false_discovery_control(ps, method="bh").tolist()
    return found


def compare_users(values: Values, *, student: str = "student", resamples: int = RESAMPLES, seed: int = 0) -> Tests:
    """Tests every method against the plain student, and against the other method with the largest mean.

    Args:
      values: `[users]` floats by method and seed, a metric of each user, for the same users in one order, see
        `htd_jax.evaluation.make_user_evaluator`.
      student: the name of the plain student among the methods.
      resamples, seed: see `users_test`.

    Raises:
      ValueError: if the student is missing, two methods have no common seed, users differ, or a value is not finite.
    """
    if student not in values:
        raise ValueError(f"values: no {student!r} to test against (known: {', '.join(values)})")
    methods = [name for name in values if name != student]
    means = {name: statistics.mean(map(_mean, values[name].values())) for name in methods}

    def best_but(name: str) -> str | None:
        others = [other for other in methods if other != name]
        return max(others, key=lambda other: means[other]) if others else None

    against = lambda others: tuple(
        _test(values, name, other, resamples, seed) for name, other in others if other is not None
    )
    return Tests(
        _all_corrected(against((name, student) for name in methods)),
        _all_corrected(against((name, best_but(name)) for name in methods)),
    )


def _test(values: Values, name: str, other: str, resamples: int, seed: int) -> Test:
    seeds = tuple(seed for seed in values[name] if seed in values[other])
    if not seeds:
        raise ValueError(f"values: {name} and {other} have no seed in common")
    pairs = [(values[name][its], values[other][its]) for its in seeds]
    over_users = tuple(users_test(*pair, resamples=resamples, seed=seed) for pair in pairs)
    first, second = ([*map(_mean, side)] for side in zip(*pairs))
    difference = statistics.mean(a - b for a, b in zip(first, second))
    over_seeds = seeds_test(first, second)
    return Test(name, other, seeds, difference, over_seeds, over_users, over_seeds, over_users)


def _all_corrected(tests: tuple[Test, ...]) -> tuple[Test, ...]:
    """Returns the tests with p-values corrected for the number of methods, over seeds and over the users of a seed."""
    over_seeds = corrected([test.over_seeds for test in tests])
    by_seed = {}
    for seed in {seed for test in tests for seed in test.seeds}:
        at = {test.name: test.over_users[test.seeds.index(seed)] for test in tests if seed in test.seeds}
        by_seed[seed] = dict(zip(at, _corrected(list(at.values()))))
    return tuple(
        dataclasses.replace(
            test,
            over_seeds_corrected=p,
            over_users_corrected=tuple(by_seed[seed][test.name] for seed in test.seeds),
        )
        for test, p in zip(tests, over_seeds)
    )


def _mean(values: chex.Array) -> float:
    return float(np.mean(np.asarray(values, np.float64)))


def _pair(first: chex.Array | Sequence[float], second: chex.Array | Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"values: expected two columns of one length, got {list(a.shape)} and {list(b.shape)}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("values: one is not finite")
    return a, b
