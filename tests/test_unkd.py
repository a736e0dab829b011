"""UnKD: the groups, the pairs that are sampled, and the loss, against their definitions in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rankings import agree_with, loss_and_gradient, ranked, resumes_to_the_bit, sample_many, table_of

import htd_jax
from htd_jax import distillers
from htd_jax.data import Interactions, make_split
from htd_jax.distillers import Lists, Teacher, UnKD
from htd_jax.distillers.sampling import sample_pairs_by_rank
from htd_jax.distillers.unkd import popularity_groups
from htd_jax.errors import UserError
from htd_jax.losses import pair_loss
from htd_jax.models import BPRSettings, ModelOf

USERS, ITEMS = 60, 90


@pytest.fixture(autouse=True)
def no_rank_promotion(no_implicit_broadcasting):
    yield


def definition(better, worse, where):
    """The loss in float64, a term at a time, and its gradient by the better scores, that by the worse less its sign."""
    value, gradient = 0.0, np.zeros(better.shape)
    for u, p in zip(*np.nonzero(where)):
        margin = better[u, p] - worse[u, p]
        value += np.logaddexp(0, -margin) / where[u].sum()
        gradient[u, p] = -0.5 * (1 - np.tanh(margin / 2)) / where[u].sum()
    return value, gradient


def found(better, worse, where=None):
    of = lambda better, worse: pair_loss(better, worse, where=where)
    arrays = (jnp.asarray(x, jnp.float32) for x in (better, worse))
    return jax.jit(jax.value_and_grad(of, argnums=(0, 1)))(*arrays)


# --- the loss


@pytest.mark.parametrize("scale", [3.0, 1e4])
def test_the_loss_is_its_definition_and_finite(rng, scale):
    better, worse = scale * rng.normal(size=(2, 9, 6))
    rows, where = rng.random(9) < 0.7, rng.random((9, 6)) < 0.6
    rows[:2], where[0], where[1] = True, False, True
    where &= rows[:, None]
    value, gradient = definition(better, worse, where)
    assert np.isfinite(value) and value > 0
    for junk in (0, np.nan, np.inf, -np.inf):
        for array in (better, worse):
            array[~where] = junk
        got = found(better, worse, where)
        np.testing.assert_allclose(got[0], value, rtol=1e-5)
        np.testing.assert_allclose(got[1][0], gradient, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(got[1][0], -got[1][1])


def test_without_masks_everything_counts(rng):
    better, worse = rng.normal(size=(2, 4, 3))
    for mask, rows in ((None, np.ones(4, bool)), (np.arange(4) > 1, np.arange(4) > 1)):  # of rows
        expected = definition(better, worse, np.tile(rows[:, None], 3))
        value, (gradient, _) = found(better, worse, mask)
        np.testing.assert_allclose(value, expected[0], rtol=1e-5)
        np.testing.assert_allclose(gradient, expected[1], rtol=1e-5)
    assert found(np.zeros((0, 3)), np.zeros((0, 3)))[0] == 0 == found(np.zeros((3, 0)), np.zeros((3, 0)))[0]


def test_half_scores_are_summed_in_float32(rng):
    better = jnp.asarray(rng.normal(size=(3000, 4)), jnp.bfloat16)
    exact = np.logaddexp(0, -np.asarray(better, np.float64)).sum() / 4
    np.testing.assert_allclose(pair_loss(better, jnp.zeros_like(better)), exact, rtol=1e-5)


def test_what_the_loss_refuses():
    x = jnp.zeros((2, 3))
    for refused, name in (
        (lambda: pair_loss(x[0], x), "better"),
        (lambda: pair_loss(x, x[:, :2]), "worse"),
        (lambda: pair_loss(x, x.astype(jnp.bfloat16)), "worse"),
        (lambda: pair_loss(x, x, where=jnp.ones(3, bool)), "where"),
        (lambda: pair_loss(x, x, where=x), "where"),
    ):
        with pytest.raises(AssertionError, match=name):
            refused()


# --- the groups


def test_groups_have_equal_shares_of_what_was_seen(small_split):
    train = small_split.train
    seen = np.bincount(train.items, minlength=ITEMS)
    for count in (1, 2, 5):
        groups = np.asarray(popularity_groups(train, count))
        assert (groups[seen == 0] == -1).all() and set(groups[seen > 0]) == set(range(count))
        for group in range(count):
            own = seen[groups == group]
            assert abs(own.sum() - len(train) / count) <= seen.max()
            assert group == 0 or own.max() <= seen[groups == group - 1].min()


def test_an_item_that_outweighs_a_group_leaves_one_empty():
    """Of 10 pairs 8 are of item 2; item 1 begins in the last fifth, item 0 is seen by nobody."""
    train = Interactions.from_pairs(np.array([*range(8), 0, 1]), np.array([2] * 8 + [1] * 2), 8, 3)
    assert popularity_groups(train, 5).tolist() == [-1, 4, 0]


# --- samples


@pytest.mark.parametrize("temperature", [0.3, 3.0, 20.0, 1e6])
def test_pairs_come_as_two_samples_that_are_not_the_same(temperature):
    """A correct sample fails with probability under 16 times 1e-5."""
    sizes, count = jnp.array([2, 3, 7, 40]), 20_000
    sampled = jax.jit(lambda key: sample_pairs_by_rank(key, sizes, count, temperature))(jax.random.key(0))
    for size, first, second in zip(sizes.tolist(), *map(np.asarray, sampled)):
        assert (0 <= first).all() and (first < second).all() and (second < size).all()
        one = np.exp(-np.arange(size) / temperature)
        shares = np.triu(np.outer(one, one), 1)
        possible = shares.ravel() > 1e-12 * shares.max()
        counts = np.bincount(first * size + second, minlength=size * size)
        if possible.sum() > 1 and np.sort(shares.ravel())[-2] > 1e-3 * shares.max():
            agree_with(counts, np.where(possible, shares.ravel(), 0), alarm=1e-5)


def test_lists_without_two_items_have_no_pairs():
    first, second = sample_pairs_by_rank(jax.random.key(0), jnp.array([[0, 1], [2, 0]]), 3, 20.0)
    assert first.tolist() == [[[-1] * 3, [-1] * 3], [[0] * 3, [-1] * 3]]
    assert second.tolist() == [[[-1] * 3, [-1] * 3], [[1] * 3, [-1] * 3]]


# --- the method


@pytest.fixture(scope="module")
def scores():
    """Of a teacher, with many ties."""
    return np.random.default_rng(2).integers(0, 12, (USERS, ITEMS)).astype(np.float32)


def test_a_users_pools_are_the_teachers_ranking_within_groups(small_split, scores):
    train = small_split.train
    groups = np.asarray(popularity_groups(train, 3))
    prepare = distillers.unkd(UnKD(groups=3, pool=10)).prepare
    pools = np.asarray(jax.jit(prepare)(table_of(scores), train))
    every = np.argsort(-scores, axis=1, kind="stable").astype(np.int32)
    np.testing.assert_array_equal(jax.jit(prepare)(Teacher(lists=Lists(jnp.asarray(every))), train), pools)
    for user, items in enumerate(ranked(scores, train, ITEMS)):
        for group in range(3):
            wanted = [item for item in items if groups[item] == group][:10]
            row = pools[user, group]
            assert row[row >= 0].tolist() == wanted and (row[len(wanted) :] == -1).all()


def test_every_different_user_of_a_batch_counts_once(small_split, scores):
    train, method = small_split.train, distillers.unkd(UnKD(groups=3, pairs=4, pool=10))
    context = jax.jit(method.prepare)(table_of(scores), train)
    sampled = jax.tree.map(lambda x: x[0], sample_many(method, table_of(scores), train, 1))
    ids, where = np.array([0, 0, 4, 9, 9, 59]), np.array([1, 0, 1, 1, 0, 0], bool)
    student = np.random.default_rng(7).normal(size=(USERS, ITEMS))
    value, terms, gradient = loss_and_gradient(method, context, sampled, student, ids, where)
    rows, better, worse = np.array([0, 4, 9]), np.asarray(sampled.better), np.asarray(sampled.worse)
    pool = np.asarray(context)
    for user in rows:
        for better_item, worse_item in zip(better[user], worse[user]):
            group = [g for g in range(3) if better_item in pool[user, g]]
            assert better_item < 0 or list(pool[user, group[0]]).index(better_item) < list(pool[user, group[0]]).index(
                worse_item
            )
    better, worse = better[rows], worse[rows]
    assert (better[0] == -1).any() and better.max() >= 0  # user 0 has seen nearly all
    of_rows = rows[:, None]
    expected, by_better = definition(student[of_rows, better], student[of_rows, worse], better >= 0)
    by_score = np.zeros(student.shape)
    np.add.at(by_score, (of_rows, better), by_better)
    np.add.at(by_score, (of_rows, worse), -by_better)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, by_score, atol=1e-5)
    np.testing.assert_array_equal(terms["unkd"], value)


@pytest.mark.slow
def test_lists_teach_even_where_they_are_empty():
    """User 0 has no list, and nobody two items of one group but user 1."""
    pairs = lambda *rows: tuple(np.array(rows).T)
    split = make_split(pairs((0, 0), (1, 0), (2, 1), (0, 3)), pairs((0, 1)), pairs((1, 1)), 3, 5)
    lists = Lists(jnp.array([[-1, -1, -1], [3, 2, 1], [2, 0, -1]]))
    settings = dict(method=UnKD(groups=1), dim=2, epochs=2, cutoffs=(1,), progress=False)
    student = htd_jax.distill(lists, split, **settings)
    assert all(np.isfinite(table).all() for table in student.representations())
    sampled = sample_many(distillers.unkd(UnKD(groups=1, pairs=2)), Teacher(lists=lists), split.train, 1)
    assert sampled.better[0].tolist() == [[-1, -1], [3, 3], [-1, -1]]
    assert sampled.worse[0].tolist() == [[-1, -1], [1, 1], [-1, -1]]
    with pytest.raises(UserError, match="lists"):
        htd_jax.distill(Teacher(), split, **settings)


@pytest.mark.slow
def test_a_broken_run_goes_on_with_the_same(small_split, scores, tmp_path):
    settings = UnKD(groups=3, pairs=3, pool=10)
    resumes_to_the_bit(settings, ModelOf(BPRSettings(), 4), table_of(scores), small_split, tmp_path)
