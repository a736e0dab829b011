"""RD: the loss and its weights against their definitions in NumPy, the samples, and the method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rankings import (
    agree_with,
    loss_and_gradient,
    ranked,
    resumes_to_the_bit,
    sample,
    sample_many,
    seen_by,
    table_of,
)

import htd_jax
from htd_jax import distillers
from htd_jax.data import Interactions, make_split
from htd_jax.distillers import RD, Lists, Teacher
from htd_jax.errors import UserError
from htd_jax.losses import discrepancy_weights, position_weights, weighted_log_loss
from htd_jax.models import BPRSettings, ModelOf

USERS, ITEMS = 60, 90


@pytest.fixture(autouse=True)
def no_rank_promotion(no_implicit_broadcasting):
    yield


def definition(scores, weights, where):
    """The loss in float64, a term at a time, and its gradient by the scores."""
    value, gradient = 0.0, np.zeros(scores.shape)
    for u, k in zip(*np.nonzero(where)):
        value += weights[u, k] * np.logaddexp(0, -scores[u, k])
        gradient[u, k] = -weights[u, k] * 0.5 * (1 - np.tanh(scores[u, k] / 2))
    return value, gradient


def found(scores, weights, where=None):
    arrays = (jnp.asarray(x, jnp.float32) for x in (scores, weights))
    of = lambda scores, weights, where: weighted_log_loss(scores, where=where, weights=weights)
    return jax.jit(jax.value_and_grad(of))(*arrays, where)


def weights_of(scores, sampled, num_items, decay, sharpness):
    """Both weights' product, from the definitions."""
    n, k = scores.shape
    places = np.exp(-np.arange(1, k + 1) / decay)
    weights = np.zeros((n, k))
    for u in range(n):
        for place in range(k):
            above = sum(other > scores[u, place] for other in sampled[u])
            rank = (num_items - 1) * above // sampled.shape[1] + 1
            weights[u, place] = places[place] / places.sum() * np.tanh(max(sharpness * (rank - (place + 1)), 0))
    return weights


# --- the loss


@pytest.mark.parametrize("scale", [3.0, 1e4])
def test_the_loss_is_its_definition_and_finite(rng, scale):
    scores, weights = scale * rng.normal(size=(9, 6)), rng.random((9, 6))
    rows, where = rng.random(9) < 0.7, rng.random((9, 6)) < 0.6
    rows[0], where[0] = True, False
    where &= rows[:, None]
    value, gradient = definition(scores, weights, where)
    assert np.isfinite(value) and value > 0
    for junk in (0, np.nan, np.inf, -np.inf):
        for array in (scores, weights):
            array[~where] = junk
        got = found(scores, weights, where)
        np.testing.assert_allclose(got[0], value, rtol=1e-5)
        np.testing.assert_allclose(got[1], gradient, rtol=1e-4, atol=1e-6)


def test_without_masks_everything_counts_and_weights_have_no_gradient(rng):
    scores, weights = rng.normal(size=(4, 3)), rng.random((4, 3))
    for mask, every in ((None, np.ones(4, bool)), (np.arange(4) > 1, np.arange(4) > 1)):  # of rows
        expected = definition(scores, weights, np.tile(every[:, None], 3))
        for got, wanted in zip(found(scores, weights, mask), expected):
            np.testing.assert_allclose(got, wanted, rtol=1e-5)
    np.testing.assert_array_equal(weighted_log_loss(scores), weighted_log_loss(scores, weights=np.ones((4, 3))))
    assert found(np.zeros((0, 3)), np.zeros((0, 3)))[0] == 0
    of_weights = jax.grad(lambda weights: weighted_log_loss(jnp.ones((1, 2)), weights=weights))(jnp.ones((1, 2)))
    assert (of_weights == 0).all()


def test_half_scores_are_summed_in_float32(rng):
    scores = jnp.asarray(rng.normal(size=(3000, 4)), jnp.bfloat16)
    weights = jnp.full(scores.shape, 0.25, jnp.bfloat16)
    exact = np.logaddexp(0, -np.asarray(scores, np.float64)).sum() / 4
    np.testing.assert_allclose(weighted_log_loss(scores, weights=weights), exact, rtol=1e-5)


def test_the_weights_are_their_definitions(rng):
    scores, sampled = rng.normal(size=(7, 5)), rng.normal(size=(7, 13))
    scores[0], sampled[1] = 9, scores[1, 0]  # above all; a tie is not above
    expected = weights_of(scores.astype(np.float32), sampled.astype(np.float32), 30, 1.5, 0.1)
    arrays = (jnp.asarray(x, jnp.float32) for x in (scores, sampled))
    behind = discrepancy_weights(*arrays, num_items=30, sharpness=0.1)
    np.testing.assert_allclose(position_weights(5, 1.5)[None, :] * behind, expected, rtol=1e-5)
    assert (behind[0] == 0).all()


def test_ranks_of_many_items_do_not_overflow():
    scores, sampled = jnp.zeros((1, 1)), jnp.ones((1, 10_000)).at[0, 0].set(-1)
    small = discrepancy_weights(scores, sampled, num_items=2**31 - 1, sharpness=1e-9)
    np.testing.assert_allclose(small, np.tanh(1e-9 * 9999 * (2**31 - 2) / 1e4), rtol=1e-5)


def test_what_the_losses_refuse():
    x = jnp.zeros((2, 3))
    for refused, name in (
        (lambda: weighted_log_loss(x[0], weights=x), "scores"),
        (lambda: weighted_log_loss(x, weights=x[:, :2]), "weights"),
        (lambda: weighted_log_loss(x, weights=x.astype(jnp.bfloat16)), "weights"),
        (lambda: weighted_log_loss(x, where=jnp.ones(3, bool)), "where"),
        (lambda: weighted_log_loss(x, where=x), "where"),
        (lambda: discrepancy_weights(x, x[:1], num_items=3, sharpness=1.0), "sampled"),
    ):
        with pytest.raises(AssertionError, match=name):
            refused()


# --- samples


def test_samples_are_uniform_over_the_unseen(small_split):
    """A correct sample fails with probability under 60 times 1e-5."""
    train = small_split.train
    teacher = Teacher(lists=Lists(jnp.zeros((USERS, 1), jnp.int32)))
    sampled = np.asarray(sample_many(distillers.rd(RD(samples=20)), teacher, train, 100))
    for user, seen in enumerate(seen_by(train)):
        shares = np.array([item not in seen for item in range(ITEMS)], float)
        agree_with(np.bincount(sampled[:, user].ravel(), minlength=ITEMS), shares, alarm=1e-5)


def test_a_user_who_has_seen_all_has_no_samples():
    train = Interactions.from_pairs(np.array([0, 0, 1]), np.array([0, 1, 0]), 2, 2)
    sampled = sample_many(distillers.rd(RD(samples=5)), Teacher(lists=Lists(jnp.array([[0, 1], [0, 1]]))), train, 1)
    assert np.asarray(sampled)[0].tolist() == [[-1] * 5, [1] * 5]


# --- the method


@pytest.mark.parametrize(("epoch", "start"), [(9, 10), (10, 10)], ids=["before", "after"])
def test_every_different_user_of_a_batch_counts_once(small_split, epoch, start):
    train = small_split.train
    scores = np.random.default_rng(2).integers(0, 12, (USERS, ITEMS)).astype(np.float32)
    method = distillers.rd(RD(items=15, decay=4.0, samples=7, start=start))
    context = jax.jit(method.prepare)(table_of(scores), train)
    sampled = jax.jit(lambda key: sample(method, context, key))(jax.random.key(3))
    student = np.random.default_rng(7).normal(size=(USERS, ITEMS)).astype(np.float32)
    ids, where = np.array([0, 0, 4, 9, 9, 59]), np.array([1, 0, 1, 1, 0, 0], bool)
    value, terms, gradient = loss_and_gradient(method, context, sampled, student, ids, where, epoch)
    expected, by_score = 0.0, np.zeros(student.shape)
    for user in (0, 4, 9):
        items = ranked(scores, train, 15)[user]  # user 0 has fewer
        assert [item for item in np.asarray(context.items)[user] if item >= 0] == items
        own = np.zeros((1, 15))
        own[0, : len(items)] = student[user, items]
        weights = weights_of(own, student[user, np.asarray(sampled)[user]][None], ITEMS, 4.0, 0.1)
        if epoch < start:
            weights = np.exp(-np.arange(1, 16) / 4)[None] / np.exp(-np.arange(1, 16) / 4).sum()
        there = np.arange(15)[None] < len(items)
        part, gradients = definition(own, weights, there)
        expected += part
        by_score[user, items] = gradients[0, : len(items)]
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, by_score, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(terms["rd"], value)


def test_lists_teach_even_where_they_are_empty():
    """User 0 has no list, user 1 has seen all but what is on its list."""
    pairs = lambda *rows: tuple(np.array(rows).T)
    split = make_split(pairs((0, 0), (1, 0), (2, 1)), pairs((0, 1)), pairs((1, 1)), 3, 4)
    lists = Lists(jnp.array([[-1, -1, -1], [3, 2, 1], [2, -1, -1]]))
    settings = dict(method=RD(start=1), dim=2, epochs=2, cutoffs=(1,), progress=False)
    student = htd_jax.distill(lists, split, **settings)
    assert all(np.isfinite(table).all() for table in student.representations())
    with pytest.raises(UserError, match="lists"):
        htd_jax.distill(Teacher(), split, **settings)


@pytest.mark.slow
def test_a_broken_run_goes_on_with_the_same(small_split, tmp_path):
    teacher = table_of(np.random.default_rng(2).normal(size=(USERS, ITEMS)))
    resumes_to_the_bit(RD(start=2), ModelOf(BPRSettings(), 4), teacher, small_split, tmp_path)


@pytest.mark.slow
def test_students_learn_their_teachers_best(small_split):
    """With RD, more of the teacher's five best are among the student's."""
    settings = dict(dim=8, batch_size=64, learning_rate=0.02, progress=False)
    rng = np.random.default_rng(0)
    teacher = table_of(rng.normal(size=(USERS, 3)) @ rng.normal(size=(3, ITEMS)))
    students = [
        htd_jax.distill(teacher, small_split, method=method, epochs=12, **settings)
        for method in ("none", RD(decay=3.0, start=4))
    ]
    wanted = ranked(np.asarray(teacher.scores(jnp.arange(USERS))), small_split.train, 5)
    shares = []
    for student in students:
        best = ranked(np.asarray(student.scores(np.arange(USERS))), small_split.train, 5)
        shares.append(np.mean([len(set(a) & set(b)) / 5 for a, b in zip(best, wanted)]))
    assert shares[1] > shares[0] + 0.2, shares
