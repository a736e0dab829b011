"""How long a phase is said to take."""

import pytest

from htd_jax.training import estimate


def test_a_phase_takes_its_epochs_and_its_evaluations():
    found = estimate([6.0], [8.0], epochs=101, eval_every=10, before=20)
    assert found.evaluations == 11  # epochs 0, 10, ..., 100
    assert found.whole == pytest.approx(20 + 101 * 6 + 11 * 8)
    assert str(found) == "about 12 min: 101 epochs of 6 s, 11 evaluations of 8 s, 20 s before them"
    assert estimate([6.0], [8.0], epochs=100, eval_every=10).evaluations == 11  # and the last, 99
    assert estimate([6.0], [8.0], epochs=1, eval_every=10).whole == 14


def test_an_outlier_does_not_decide():
    found = estimate([60.0, 6.0, 6.0], [50.0, 5.0, 5.0], epochs=10, eval_every=3)
    assert found.whole == 10 * 6 + 4 * 5


def test_the_evaluation_of_all_users_at_the_end_counts():
    found = estimate([1.0], [2.0], epochs=10, eval_every=10, full=50, at_most=True)
    assert found.whole == 10 + 2 * 2 + 100
    assert str(found) == "at most 1.9 min: 10 epochs of 1 s, 2 evaluations of 2 s, one of all users of 1.7 min"
