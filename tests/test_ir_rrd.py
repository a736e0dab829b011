"""IR-RRD: who is ranked and sampled on the item side, and the loss, against their definitions in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rankings import (
    agree_with,
    batch_of,
    loss_and_gradient,
    loss_of,
    resumes_to_the_bit,
    sample,
    sample_many,
    seen_by,
    table_of,
)
from test_rrd import definition

import htd_jax
from htd_jax import distillers
from htd_jax.data import Interactions
from htd_jax.distillers import IRRRD, RRD, Lists
from htd_jax.distillers.sampling import rank_users
from htd_jax.errors import UserError
from htd_jax.models import BPRSettings, ModelOf

USERS, ITEMS = 60, 90


@pytest.fixture(autouse=True)
def no_rank_promotion(no_implicit_broadcasting):
    yield


@pytest.fixture(scope="module")
def scores():
    """Of a teacher, with many ties."""
    return np.random.default_rng(2).integers(0, 12, (USERS, ITEMS)).astype(np.float32)


def users_ranked(scores, train, size):
    """Of every item, the users who have not seen it, the first of equals first."""
    seen = seen_by(train)
    order = np.argsort(-scores.T, axis=1, kind="stable")
    return [[user for user in order[item] if item not in seen[user]][:size] for item in range(ITEMS)]


# --- users of items


@pytest.mark.parametrize("block", [7, 60], ids=["blocks of 7 users", "one block"])
def test_users_of_items_are_ranked_block_by_block(small_split, scores, block, monkeypatch):
    train = small_split.train
    monkeypatch.setattr("htd_jax.teacher.SCORES", -(-block * ITEMS // 4))
    rank_users.clear_cache()
    for size in (20, 100):
        found = rank_users(table_of(scores), train, size)
        for row, wanted in zip(np.asarray(found.pool), users_ranked(scores, train, size)):
            assert [user for user in row if user >= 0] == wanted and (row[len(wanted) :] == -1).all()
    rank_users.clear_cache()


# --- samples


@pytest.mark.slow
def test_users_are_sampled_from_the_pool_and_from_the_rest(small_split, scores):
    """A correct sample fails with probability under 90 times 1e-5, and 1e-4."""
    train, size, times = small_split.train, 12, 400
    method = distillers.ir_rrd(IRRRD(pool=size, item_interesting=1, item_uninteresting=1, item_temperature=3.0))
    sampled = jax.tree.map(np.asarray, sample_many(method, table_of(scores), train, times).items)
    best, unseen, places = users_ranked(scores, train, size), users_ranked(scores, train, USERS), np.zeros(size)
    for item in range(ITEMS):
        assert len(best[item]) == size
        place = {user: k for k, user in enumerate(best[item])}
        places += np.bincount([place[user] for user in sampled.interesting[:, item, 0]], minlength=size)
        shares = np.isin(np.arange(USERS), unseen[item][size:]).astype(float)
        agree_with(np.bincount(sampled.uninteresting[:, item, 0], minlength=USERS), shares, alarm=1e-5)
    agree_with(places, np.exp(-np.arange(size) / 3.0))


@pytest.mark.slow
def test_the_noise_that_is_not_made_would_change_nothing(small_split, scores):
    """Of a low temperature, only the first places are sampled, whatever the pool."""
    sampled = [
        sample_many(
            distillers.ir_rrd(IRRRD(pool=size, item_interesting=3, item_temperature=0.1)), table_of(scores), train, 1
        )
        for train in (small_split.train,)
        for size in (5, 50)
    ]
    np.testing.assert_array_equal(sampled[0].items.interesting, sampled[1].items.interesting)


# --- the loss

IDS, WHERE = np.array([0, 0, 4, 9, 9, 59]), np.array([1, 0, 1, 1, 0, 0], bool)


def prepared(train, scores, **settings):
    chosen = dict(pool=30, interesting=3, uninteresting=2, item_interesting=5, item_uninteresting=4)
    method = distillers.ir_rrd(IRRRD(**chosen, **settings))
    context = jax.jit(method.prepare)(table_of(scores), train)
    return method, context, jax.jit(lambda key: sample(method, context, key))(jax.random.key(3))


def items_part(student, sampled, items):
    """The loss of some items, in float64, and its gradient by the scores."""
    best, rest = (np.asarray(users)[items] for users in (sampled.items.interesting, sampled.items.uninteresting))
    columns, table = np.asarray(items)[:, None], np.zeros(student.shape)
    value, by_best, by_rest = definition(
        student[best, columns], student[rest, columns], np.ones(len(items), bool), best >= 0, rest >= 0
    )
    np.add.at(table, (best, columns), by_best)
    np.add.at(table, (rest, columns), by_rest)
    return value, table


def in_batch(sampled):
    both = np.concatenate([sampled.users.interesting, sampled.users.uninteresting], axis=1)[IDS[WHERE]]
    return np.unique(both[both >= 0])


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_every_different_item_that_was_sampled_counts_once(small_split, scores, scale):
    train = small_split.train
    method, context, sampled = prepared(train, scores, item_weight=0.5, items=ITEMS)
    student = (scale * np.random.default_rng(7).normal(size=(USERS, ITEMS))).astype(np.float32)
    value, terms, gradient = loss_and_gradient(method, context, sampled, student, IDS, WHERE)
    alone = distillers.rrd(RRD(pool=30, interesting=3, uninteresting=2))
    of_users, _, by_users = loss_and_gradient(alone, context.users, sampled.users, student, IDS, WHERE)
    expected, by_items = items_part(student.astype(np.float64), sampled, in_batch(sampled))
    np.testing.assert_allclose(terms["rrd"], of_users, rtol=1e-6)
    np.testing.assert_allclose(terms["ir"], expected, rtol=1e-5)
    np.testing.assert_allclose(value, of_users + 0.5 * expected, rtol=1e-5)
    np.testing.assert_allclose(gradient - by_users, 0.5 * by_items, atol=2e-5 if scale == 1 else 1e-2)


def test_a_step_with_fewer_items_has_the_same_expectation(small_split, scores):
    """The parts that a step may take: their mean is the whole, and each comes equally often (alarm 1e-4)."""
    train = small_split.train
    method, context, sampled = prepared(train, scores, items=25)  # every fourth
    student = np.random.default_rng(7).normal(size=(USERS, ITEMS))
    chosen = [[item for item in in_batch(sampled) if item % 4 == first] for first in range(4)]
    parts = [4 * items_part(student, sampled, items)[0] for items in chosen]
    whole = items_part(student, sampled, in_batch(sampled))[0]
    np.testing.assert_allclose(np.mean(parts), whole)
    batch = batch_of(jnp.asarray(student, jnp.float32), IDS, WHERE)
    keys = jax.random.split(jax.random.key(1), 400)
    found = jax.jit(jax.vmap(lambda key: loss_of(method, context, sampled, batch, key)[1]["ir"]))(keys)
    near = np.isclose(np.asarray(found)[:, None], np.array(parts)[None], rtol=1e-5)
    assert (near.sum(1) == 1).all()
    agree_with(near.sum(0), np.ones(4))


# --- the method


@pytest.mark.slow
def test_what_is_not_there_is_not_sampled():
    """User 1 has seen all, and everyone has seen item 0."""
    train = Interactions.from_pairs(np.array([0, 1, 2, 1, 1]), np.array([0, 0, 0, 1, 2]), 3, 3)
    teacher = table_of(np.arange(9.0, dtype=np.float32).reshape(3, 3))
    method = distillers.ir_rrd(IRRRD(pool=1, item_uninteresting=2))
    sampled = jax.tree.map(lambda x: x[0], sample_many(method, teacher, train, 1))
    assert sampled.items.interesting.tolist() == [[-1], [2], [2]]
    assert np.sort(sampled.items.uninteresting).tolist() == [[-1, -1], [-1, 0], [-1, 0]]
    context = jax.jit(method.prepare)(teacher, train)
    value, _, gradient = loss_and_gradient(method, context, sampled, np.zeros((3, 3)), np.arange(3), np.ones(3, bool))
    assert value > 0 and np.isfinite(gradient).all()


def test_lists_do_not_do(small_split):
    """They do not say which of two users an item is more for."""
    lists = Lists(jnp.zeros((USERS, 1), jnp.int32))
    with pytest.raises(UserError, match="scores"):
        htd_jax.distill(lists, small_split, method="ir-rrd", dim=2, epochs=1, progress=False)


@pytest.mark.slow
def test_a_broken_run_goes_on_with_the_same(small_split, scores, tmp_path):
    settings = IRRRD(interesting=5, uninteresting=5, item_interesting=5, item_uninteresting=5, items=30)
    resumes_to_the_bit(settings, ModelOf(BPRSettings(), 4), table_of(scores), small_split, tmp_path)
