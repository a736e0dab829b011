"""Tests of significance against SciPy's, and against every flip of signs."""

import dataclasses
import itertools
import json
import time

import numpy as np
import pytest
from scipy import stats

from htd_jax.evaluation.significance import bootstrap_intervals, corrected, seeds_test, users_test
from htd_jax.studies.significance import compare_users


def every_flip(differences):
    """Two-sided p by enumeration: twice the smaller tail, at most 1."""
    sums = [np.dot(signs, differences) for signs in itertools.product((1, -1), repeat=len(differences))]
    seen = np.sum(differences)
    tail = min(np.mean(np.array(sums) >= seen - 1e-12), np.mean(np.array(sums) <= seen + 1e-12))
    return min(1.0, 2 * tail)


def test_the_t_test_is_the_textbooks():
    """Student's own sleep data (Biometrika 1908): t = -4.0621, p = 0.002833."""
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    assert seeds_test(first, second) == pytest.approx(0.002833, abs=5e-7)


def test_the_t_test_of_few_seeds():
    assert seeds_test([0.3], [0.2]) is None and seeds_test([], []) is None
    assert seeds_test([0.3, 0.4], [0.3, 0.4]) == 1
    assert seeds_test([1.0, 2.0, 3.0], [0.0, 1.0, 2.0]) == 0  # no spread at all


@pytest.mark.parametrize("size", [1, 2, 5, 9, 13])
def test_few_users_are_enumerated(rng, size):
    for values in (rng.normal(size=(2, size)), rng.integers(3, size=(2, size)).astype(float)):
        first, second = values
        assert users_test(first, second) == pytest.approx(every_flip(first - second))


def test_users_without_a_difference_change_nothing(rng):
    first, second = rng.normal(0.3, 1, size=(2, 10))
    same = rng.normal(size=5000)
    assert users_test(np.append(first, same), np.append(second, same)) == users_test(first, second)
    assert users_test(same, same) == 1


def test_drawn_flips_agree_with_scipy_and_with_all_of_them(rng):
    for shift in (0.0, 0.3, 0.6):
        first, second = rng.normal(size=16), rng.normal(shift, 1, size=16)
        exact = every_flip(first - second)
        spread = np.sqrt(exact * (1 - exact) / 10_000) + 1e-4
        found = users_test(first, second)
        assert abs(found - exact) < 2 * 5 * spread, (found, exact)  # twice a tail
        theirs = stats.permutation_test(
            (first - second,), np.mean, permutation_type="samples", n_resamples=10_000, rng=np.random.default_rng(1)
        )
        assert abs(found - theirs.pvalue) < 2 * 7 * spread


def test_a_test_is_the_same_whatever_the_batches_and_the_side(rng, monkeypatch):
    first, second = rng.normal(size=40), rng.normal(0.4, 1, size=40)
    found = users_test(first, second)
    assert found == users_test(first, second) == users_test(first.tolist(), second.tolist())
    assert users_test(second, first) == pytest.approx(found, abs=0.02)
    assert users_test(first, second, seed=1) != found
    monkeypatch.setattr("htd_jax.evaluation.significance.NUMBERS", 120)
    assert users_test(first, second) == pytest.approx(found, abs=0.02)


def test_under_the_null_p_is_uniform(rng):
    ps = [users_test(*rng.normal(size=(2, 30)), resamples=400, seed=run) for run in range(400)]
    assert stats.kstest(ps, "uniform").pvalue > 1e-3


def test_many_users_take_little(rng):
    """No 10,000 x 50,000 array: that would be 4 GB."""
    first, second = rng.normal(size=(2, 50_000))
    begun = time.monotonic()
    assert 0 < users_test(first, second, resamples=200) <= 1
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ([1.0, np.nan], [0.0, 1.0], "one is not finite"),
        ([1.0, 0.0], [0.0, np.inf], "one is not finite"),
        ([1.0], [0.0, 1.0], r"one length, got \[1\] and \[2\]"),
        ([[1.0]], [[0.0]], "two columns"),
    ],
)
def test_what_cannot_be_tested_is_refused(first, second, reason):
    for test in (seeds_test, users_test):
        with pytest.raises(ValueError, match=reason):
            test(np.array(first), np.array(second))


def test_correction_is_benjamini_and_hochbergs():
    """Their own example: 15 p-values of a trial, of which the four smallest stand at 0.05."""
    ps = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528]
    ps += [0.7590, 1.0000]
    found = corrected(ps)
    assert sum(p <= 0.05 for p in found) == 4
    by_hand = [min(1, *(15 * p / (j + 1) for j, p in list(enumerate(ps))[i:])) for i in range(15)]
    assert found == pytest.approx(by_hand)
    order = np.random.default_rng(0).permutation(15)
    assert corrected([ps[i] for i in order]) == pytest.approx([found[i] for i in order])
    with_gaps = corrected([None, *ps, None])
    assert with_gaps[0] is with_gaps[-1] is None and with_gaps[1:-1] == found
    assert corrected([]) == [] and corrected([None]) == [None]
    with pytest.raises(ValueError):
        corrected([0.1, np.nan])


@pytest.fixture
def values(rng):
    """Of three methods and the student, two seeds, 60 users; `better` is better, `equal` is the student itself."""
    hits = lambda share: (rng.random(60) < share).astype(np.float32)
    student = {seed: hits(0.3) for seed in (0, 1)}
    raised = {seed: np.maximum(x, hits(0.5)) for seed, x in student.items()}
    return {"student": student, "better": raised, "equal": dict(student), "once": {1: hits(0.3)}}


def test_every_method_against_the_student_and_the_best_other(values):
    found = compare_users(values)
    better, equal, once = found.against_student
    assert [test.name for test in found.against_student] == ["better", "equal", "once"]
    assert better.seeds == (0, 1) and once.seeds == (1,) and once.over_seeds is None
    assert equal.over_seeds == 1 and equal.over_users == (1, 1) and equal.difference == 0
    means = {name: {s: x.astype(float).mean() for s, x in its.items()} for name, its in values.items()}
    wanted = np.mean([means["better"][s] - means["student"][s] for s in (0, 1)])
    assert better.difference == pytest.approx(wanted)
    assert better.over_seeds == seeds_test(list(means["better"].values()), list(means["student"].values()))
    assert better.over_users == tuple(users_test(values["better"][s], values["student"][s]) for s in (0, 1))
    assert better.over_users_corrected[0] == corrected([better.over_users[0], 1.0])[0]
    assert better.over_users_corrected[1] == corrected([better.over_users[1], 1.0, once.over_users[0]])[0]
    assert better.over_seeds_corrected == corrected([better.over_seeds, 1.0, None])[0]
    others = {test.name: test.other for test in found.against_best}
    assert others["equal"] == others["once"] == "better" and others["better"] in ("equal", "once")
    assert json.loads(json.dumps(dataclasses.asdict(found)))["against_student"][2]["over_seeds"] is None


def test_what_has_nothing_to_be_tested_against(values):
    with pytest.raises(ValueError, match="no 'student' to test against"):
        compare_users({"better": values["better"]})
    with pytest.raises(ValueError, match="a and student have no seed in common"):
        compare_users({"student": {0: np.zeros(3)}, "a": {1: np.zeros(3)}})
    found = compare_users({"student": {0: np.zeros(3)}, "a": {0: np.ones(3)}})
    assert found.against_best == () and found.against_student[0].over_users == (0.25,)


# --- intervals


def test_an_interval_is_that_of_sampled_users(rng):
    values = rng.random((25, 2)) < 0.4
    low, high = bootstrap_intervals(values, level=0.9, samples=4000)
    sampled = values[rng.integers(25, size=(4000, 25))].mean(1)
    np.testing.assert_allclose([low, high], np.quantile(sampled, [0.05, 0.95], axis=0), atol=0.041)  # one user in 25
    assert np.isnan(bootstrap_intervals(values[:1])).all()
    assert [end.tolist() for end in bootstrap_intervals(np.ones((9, 1)))] == [[1], [1]]


def test_intervals_contain_the_mean_as_often_as_they_say(rng):
    held = []
    for run in range(40):  # 50 columns each of 60 exponential users
        low, high = bootstrap_intervals(rng.exponential(size=(60, 50)), level=0.9, samples=300, seed=run)
        held.append(((low < 1) & (high > 1)).mean())
    assert 0.83 < np.mean(held) < 0.92  # of a skewed distribution a little too few
