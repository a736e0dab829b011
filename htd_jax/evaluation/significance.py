"""Significance of differences between models over users and over seeds, and intervals of metrics over users."""

import warnings
from collections.abc import Sequence

import chex
import numpy as np
from scipy import stats

# The number of sign flips that a test over users samples; a test with fewer possible flips uses each once.
RESAMPLES = 10_000

# The number of signs in a batch: 8 MiB.
NUMBERS = 2**20


# The number of samples of users of a bootstrap.
SAMPLES = 1000


def bootstrap_intervals(
    values: chex.Array, *, level: float = 0.95, samples: int = SAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ends of percentile bootstrap intervals of the means of columns, over users who are sampled with
    replacement, the same for every column.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993. Sampled users are counted, so that the means
    of all columns are one product: a thousand samples of 30,000 users take a second.

    Args:
      values: `[users, m]`, a metric of each user per column.
      level: the share of intervals that contain the mean of all possible users, over 0 and under 1.
      samples: the number of samples, at least 1.
      seed: the seed of the samples.

    Returns:
      The lower and the upper ends, `[m]` each; NaN for fewer than two users, of whom nothing can be said.

    >>> low, high = bootstrap_intervals(np.arange(101.0)[:, None] / 100)
    >>> print(low.round(1), high.round(1))
    [0.4] [0.6]
    """
    values = np.asarray(values, np.float64)
    users = len(values)
    if users < 2:
        return np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)

    def means(sampled: np.ndarray, axis: int) -> np.ndarray:
        counts = [np.bincount(one, minlength=users) for one in np.atleast_2d(sampled)]
        found: np.ndarray = values.T @ np.stack(counts, axis=1) / users
        return found if sampled.ndim > 1 else found[:, 0]

    rng = np.random.default_rng(seed)
    how = {"method": "percentile", "vectorized": True, "n_resamples": samples, "batch": max(1, NUMBERS // users)}
    interval = stats.bootstrap((np.arange(users),), means, confidence_level=level, rng=rng, **how).confidence_interval
    return interval.low, interval.high


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
    found = iter(corrected_known(known))
    return [None if p is None else next(found) for p in ps]


def corrected_known(ps: Sequence[float]) -> list[float]:
    """Returns `corrected` p-values, all of which are known."""
    found: list[float] = stats.false_discovery_control(ps, method="bh").tolist()
    return found


def _pair(first: chex.Array | Sequence[float], second: chex.Array | Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"values: expected two columns of one length, got {list(a.shape)} and {list(b.shape)}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("values: one is not finite")
    return a, b
