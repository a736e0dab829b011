"""Significance tests between methods: over seeds, over users, and corrected for many comparisons."""

import dataclasses
import statistics
from collections.abc import Mapping

import chex
import numpy as np

from htd_jax.evaluation.significance import RESAMPLES, corrected, corrected_known, seeds_test, users_test

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
        by_seed[seed] = dict(zip(at, corrected_known(list(at.values()))))
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
