"""Whether one method is above another, or chance: over seeds, over users, and among many comparisons."""

import dataclasses
import statistics
import warnings
from collections.abc import Mapping, Sequence

import chex
import numpy as np
from scipy import stats

# Sign flips of a test over users; where all of them are no more, each is taken once.
RESAMPLES = 10_000

# Numbers of a batch of flips: 8 MiB.
NUMBERS = 2**20

# By method and seed, a metric of each user `[users]`, the same users everywhere.
Values = Mapping[str, Mapping[int, chex.Array]]


@dataclasses.dataclass(frozen=True)
class Test:
    """One method against another, in one metric.

    Attributes:
      name, other: the methods.
      seeds: those that both have.
      difference: of their means over users, its mean over seeds.
      over_seeds: p of `seeds_test`; None of one seed.
      over_users: p of `users_test`, one a seed.
      over_seeds_corrected, over_users_corrected: the same among all methods that are tested against the student, or
        against the best other, a seed at a time; see `corrected`.
    """

    __test__ = False  # no test of pytest's

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
    """Every method against the plain student, and against the best of the others.

    Attributes:
      against_student, against_best: a `Test` a method, in the order in which they were given.
    """

    __test__ = False

    against_student: tuple[Test, ...]
    against_best: tuple[Test, ...]


def seeds_test(first: Sequence[float], second: Sequence[float]) -> float | None:
    """The two-sided p of the paired t-test: were the means over seeds equal, so large a difference would come so often.

    Args:
      first, second: a metric of two methods, one a seed, of the same seeds in one order.

    Returns:
      p in [0, 1]; 1 of values that are all equal, None of fewer than two seeds.

    Raises:
      ValueError: unlike lengths, or a value that is no finite number.

    >>> print(f"{seeds_test([0.31, 0.32, 0.33], [0.30, 0.30, 0.30]):.4f}")
    0.0742
    """
    a, b = _pair(first, second)
    if len(a) < 2:
        return None
    if np.array_equal(a, b):
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # differences that are all alike: no spread to divide by
        return float(stats.ttest_rel(a, b).pvalue)


def users_test(first: chex.Array, second: chex.Array, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """The two-sided p of the paired randomisation test over users: what each has of the two methods is exchanged or
    not, at random, and so large a difference of the means comes so often.

    An exchange changes the sign of a user's difference. One of zero has none, so such users are left out, which changes
    nothing of p and is most of them where a metric is 0 or 1. Where all flips of the others are at most `resamples`
    they are taken, each once, and p is exact; else flips are drawn, some at a time.

    Source: Smucker et al., "A Comparison of Statistical Significance Tests for Information Retrieval Evaluation",
    CIKM'07.

    Args:
      first, second: `[users]`, a metric of each user.
      resamples: at least 1.
      seed: of the flips.

    Returns:
      p in (0, 1]; 1 where no user differs.

    Raises:
      ValueError: unlike lengths, or a value that is no finite number.

    >>> users_test(np.array([1.0, 1.0, 0.0, 1.0]), np.array([0.0, 0.0, 0.0, 0.0]))  # of 8 flips the two that are whole
    0.25
    """
    a, b = _pair(first, second)
    differences = a - b
    differences = differences[differences != 0]
    size = len(differences)
    if size < 2:  # one difference is as large either way
        return 1.0
    if 2**size <= resamples:
        total = lambda x, axis: np.sum(x, axis=axis)
        how = {"permutation_type": "samples", "vectorized": True, "n_resamples": resamples}
        return float(stats.permutation_test((differences,), total, **how).pvalue)
    rng = np.random.default_rng(seed)
    # The samples are the signs, so that a statistic is one product: SciPy's own flips take fifty times as long.
    flips = lambda size: 2.0 * rng.integers(2, size=size, dtype=np.int8) - 1
    total = lambda signs, axis: signs @ differences
    how = {"vectorized": True, "n_resamples": resamples, "batch": max(1, NUMBERS // size)}
    return float(stats.monte_carlo_test(np.ones(size), flips, total, **how).pvalue)


def corrected(ps: Sequence[float | None]) -> list[float | None]:
    """What p are once many are looked at: of those at most q, a share of q at most is chance, in the mean.

    Source: Benjamini and Hochberg, "Controlling the False Discovery Rate", J. R. Stat. Soc. B, 1995.

    Args:
      ps: in [0, 1]; None where there is no test, which counts as none.

    Raises:
      ValueError: one outside [0, 1], or that is no number.

    >>> corrected([0.01, None, 0.5, 0.02])
    [0.03, None, 0.5, 0.03]
    """
    there = [p for p in ps if p is not None]
    if not there:
        return list(ps)
    found = iter(_corrected(there))
    return [None if p is None else next(found) for p in ps]


def _corrected(ps: Sequence[float]) -> list[float]:
    found: list[float] = stats.false_discovery_control(ps, method="bh").tolist()
    return found


def compare_users(values: Values, *, student: str = "student", resamples: int = RESAMPLES, seed: int = 0) -> Tests:
    """Every method against the plain student, and against the best of the other methods.

    Args:
      values: by method and seed `[users]` floats, a metric of each user, of the same users in one order, see
        `htd_jax.evaluation.make_user_evaluator`; the plain student's under its name. Best is who has the largest mean
        over users and seeds.
      student: its name.
      resamples, seed: see `users_test`.

    Raises:
      ValueError: no student, two methods that have no seed in common, other users, or a value that is no finite number.
    """
    if student not in values:
        raise ValueError(f"values: no {student!r} to test against; there is {', '.join(values)}")
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
    """Each p among those of all methods: over seeds, and over the users of each seed."""
    over_seeds = corrected([test.over_seeds for test in tests])
    of_seed = {}
    for seed in {seed for test in tests for seed in test.seeds}:
        at = {test.name: test.over_users[test.seeds.index(seed)] for test in tests if seed in test.seeds}
        of_seed[seed] = dict(zip(at, _corrected(list(at.values()))))
    return tuple(
        dataclasses.replace(
            test,
            over_seeds_corrected=p,
            over_users_corrected=tuple(of_seed[seed][test.name] for seed in test.seeds),
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
        raise ValueError("values: one is no finite number")
    return a, b
