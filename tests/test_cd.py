"""CD: the loss, the labels, and the samples of either guide, against their definitions in NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rankings import agree_with, loss_and_gradient, ranked, resumes_to_the_bit, sample, sample_many, table_of

import htd_jax
from htd_jax import distillers
from htd_jax.data import Interactions
from htd_jax.distillers import CD, Lists, Representations, Teacher
from htd_jax.errors import UserError
from htd_jax.losses import soft_label_loss
from htd_jax.models import BPRSettings, ModelOf, NeuMFSettings, with_tables
from htd_jax.teacher import SCORES

USERS, ITEMS = 60, 90


@pytest.fixture(autouse=True)
def no_rank_promotion(no_implicit_broadcasting):
    yield


def definition(scores, labels, where):
    """The loss in float64, a term at a time, and its gradient by the scores."""
    value, gradient = 0.0, np.zeros(scores.shape)
    for u, k in zip(*np.nonzero(where)):
        s, q = scores[u, k], labels[u, k]
        value += (q * np.logaddexp(0, -s) + (1 - q) * np.logaddexp(0, s)) / where[u].sum()
        gradient[u, k] = (0.5 * (1 + np.tanh(s / 2)) - q) / where[u].sum()
    return value, gradient


def found(scores, labels, where=None):
    arrays = (jnp.asarray(x, jnp.float32) for x in (scores, labels))
    return jax.jit(jax.value_and_grad(lambda scores, labels: soft_label_loss(scores, labels, where=where)))(*arrays)


# --- the loss


@pytest.mark.parametrize("scale", [3.0, 1e4])
def test_the_loss_is_its_definition_and_finite(rng, scale):
    scores, labels = scale * rng.normal(size=(9, 6)), rng.random((9, 6))
    labels[:, 0], labels[:, 1] = 0, 1
    rows, where = rng.random(9) < 0.7, rng.random((9, 6)) < 0.6
    rows[:2], where[0], where[1] = True, False, True
    where &= rows[:, None]
    value, gradient = definition(scores, labels, where)
    assert np.isfinite(value) and value > 0
    for junk in (0, np.nan, np.inf, -np.inf):
        for array in (scores, labels):
            array[~where] = junk
        got = found(scores, labels, where)
        np.testing.assert_allclose(got[0], value, rtol=1e-5)
        np.testing.assert_allclose(got[1], gradient, rtol=1e-4, atol=1e-6)


def test_without_masks_everything_counts_and_labels_are_constants(rng):
    scores, labels = rng.normal(size=(4, 3)), rng.random((4, 3))
    for mask, rows in ((None, np.ones(4, bool)), (np.arange(4) > 1, np.arange(4) > 1)):  # of rows
        expected = definition(scores, labels, np.tile(rows[:, None], 3))
        for got, wanted in zip(found(scores, labels, mask), expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5)
    assert found(np.zeros((0, 3)), np.zeros((0, 3)))[0] == 0 == found(np.zeros((3, 0)), np.zeros((3, 0)))[0]
    of_labels = jax.grad(lambda labels: soft_label_loss(jnp.ones((1, 2)), labels))(jnp.ones((1, 2)))
    assert (of_labels == 0).all()


def test_half_scores_are_summed_in_float32(rng):
    scores = jnp.asarray(rng.normal(size=(3000, 4)), jnp.bfloat16)
    exact = np.logaddexp(0, -np.asarray(scores, np.float64)).sum() / 4
    np.testing.assert_allclose(soft_label_loss(scores, jnp.ones_like(scores)), exact, rtol=1e-5)


def test_what_the_loss_refuses():
    x = jnp.zeros((2, 3))
    for refused, name in (
        (lambda: soft_label_loss(x[0], x), "scores"),
        (lambda: soft_label_loss(x, x[:, :2]), "labels"),
        (lambda: soft_label_loss(x, x.astype(jnp.bfloat16)), "labels"),
        (lambda: soft_label_loss(x, x, where=jnp.ones(3, bool)), "where"),
        (lambda: soft_label_loss(x, x, where=x), "where"),
    ):
        with pytest.raises(AssertionError, match=name):
            refused()


# --- samples


@pytest.fixture(scope="module")
def scores():
    return np.random.default_rng(2).normal(size=(USERS, ITEMS)).astype(np.float32)


def test_items_are_sampled_by_their_rank_among_so_many(small_split, scores):
    """User 0 has fewer, and they are nearer to equally likely. A correct sample fails with probability under 2e-4."""
    train, times = small_split.train, 1000
    sampled = sample_many(distillers.cd(CD(pool=20, items=1, temperature=0.2)), table_of(scores), train, times)
    items, labels = np.asarray(sampled.items)[:, :, 0], np.asarray(sampled.scores)[:, :, 0]
    np.testing.assert_array_equal(labels, scores[np.arange(USERS)[None], items])
    pools = ranked(scores, train, 20)
    few = len(pools[0])
    assert few < 20 and all(len(pool) == 20 for pool in pools[1:])
    places = np.zeros(20)
    for user in range(1, USERS):
        place = {item: k for k, item in enumerate(pools[user])}
        places += np.bincount([place[item] for item in items[:, user]], minlength=20)
    agree_with(places, np.exp(-np.arange(20) / (20 * 0.2)))
    of_user_0 = [pools[0].index(item) for item in items[:, 0]]
    agree_with(np.bincount(of_user_0, minlength=few), np.exp(-np.arange(few) / (few * 0.2)))


def test_items_are_different_ones_of_the_guides(small_split, scores):
    train, student = small_split.train, ModelOf(BPRSettings(), 4)(small_split.train)
    variables = student.init(jax.random.key(0), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32), method="score")
    of_student = np.asarray(student.apply(variables, jnp.arange(USERS), method="score_all"))
    for guide, table in (("teacher", scores), ("student", of_student)):
        method = distillers.cd(CD(guide=guide, pool=20, items=15))
        context = jax.jit(method.prepare)(table_of(scores), train)
        refresh = lambda model: sample(method, context, jax.random.key(3), with_tables(model))
        sampled = nn.apply(refresh, student)(variables)
        for user, (pool, items) in enumerate(zip(ranked(table, train, 20), np.asarray(sampled.items))):
            there = items[items >= 0]
            assert len(there) == min(len(pool), 15) and len(set(there)) == len(there) and set(there) <= set(pool)
            np.testing.assert_array_equal(np.asarray(sampled.scores)[user][items >= 0], scores[user, there])


def test_a_teachers_scores_of_some_items(small_split, rng, monkeypatch):
    """As products of few representations, or out of all scores; in blocks of some users."""
    users, tables = rng.normal(size=(USERS, 3)), rng.normal(size=(ITEMS, 3))
    items = rng.integers(-1, ITEMS, (USERS, 5)).astype(np.int32)
    wanted = np.take_along_axis(users @ tables.T, np.maximum(items, 0), axis=1)
    products = Teacher.of(Representations(*(jnp.asarray(x, jnp.float32) for x in (users, tables))))
    for size in (SCORES, 7 * ITEMS):
        monkeypatch.setattr("htd_jax.teacher.SCORES", size)
        for teacher in (products, table_of(np.float32(users @ tables.T))):
            found = jax.jit(lambda teacher, items: teacher.score(items))(teacher, jnp.asarray(items))
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


# --- the method


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_every_different_user_of_a_batch_counts_once(small_split, scores, scale):
    train, method = small_split.train, distillers.cd(CD(pool=20, items=15, sharpness=3.0, shift=0.5))
    context = jax.jit(method.prepare)(table_of(scale * scores), train)
    sampled = jax.tree.map(lambda x: x[0], sample_many(method, table_of(scale * scores), train, 1))
    ids, where = np.array([0, 0, 4, 9, 9, 59]), np.array([1, 0, 1, 1, 0, 0], bool)
    student = scale * np.random.default_rng(7).normal(size=(USERS, ITEMS))
    value, terms, gradient = loss_and_gradient(method, context, sampled, student, ids, where)
    rows = np.array([0, 4, 9])[:, None]
    items = np.asarray(sampled.items)[rows[:, 0]]
    assert (items[0] == -1).any()  # user 0 has seen nearly all
    labels = 0.5 * (1 + np.tanh((np.float64(scale) * scores[rows, items] + 0.5) / 6))
    expected, by_items = definition(student[rows, items], labels, items >= 0)
    by_score = np.zeros(student.shape)
    np.add.at(by_score, (rows, items), by_items)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    np.testing.assert_allclose(gradient, by_score, atol=1e-5)
    np.testing.assert_array_equal(terms["cd"], value)


def test_a_user_who_has_seen_all_gets_no_label():
    train = Interactions.from_pairs(np.array([0, 0, 1]), np.array([0, 1, 0]), 2, 2)
    method, teacher = distillers.cd(CD(items=3)), table_of(np.ones((2, 2), np.float32))
    sampled = jax.tree.map(lambda x: x[0], sample_many(method, teacher, train, 1))
    assert sampled.items.tolist() == [[-1, -1], [1, -1]]
    context = jax.jit(method.prepare)(teacher, train)
    value, _, gradient = loss_and_gradient(method, context, sampled, np.zeros((2, 2)), np.arange(2), np.ones(2, bool))
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    assert np.isfinite(gradient).all() and np.count_nonzero(gradient) == 1


def test_what_is_refused(small_split):
    with pytest.raises(ValueError, match="guide"):
        distillers.cd(CD(guide="both"))
    lists = Lists(jnp.zeros((USERS, 1), jnp.int32))
    with pytest.raises(UserError, match="scores"):
        htd_jax.distill(lists, small_split, method="cd", dim=2, epochs=1, progress=False)


@pytest.mark.slow
def test_a_student_of_layers_guides(small_split, scores):
    with jax.numpy_rank_promotion("allow"):  # NeuMF's, not CD's
        method = CD(guide="student", items=5, pool=10)
        settings = dict(model=NeuMFSettings(), dim=2, epochs=1, progress=False)
        student = htd_jax.distill(table_of(scores), small_split, method=method, **settings)
    assert np.isfinite(student.representations().users).all()


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["teacher", "student"])
def test_a_broken_run_goes_on_with_the_same(guide, small_split, scores, tmp_path):
    settings = CD(guide=guide, items=5, pool=10, refresh=3)
    resumes_to_the_bit(settings, ModelOf(BPRSettings(), 4), table_of(scores), small_split, tmp_path)
