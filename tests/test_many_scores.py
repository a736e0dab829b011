"""The softmax and listwise losses that estimate their sums from a sample, and what a step reads: against definitions in
float64 and against the forms over all items."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rankings import batch_of, loss_of

import htd_jax
from htd_jax.data import Interactions, among, sample_items, seen_mask, some_seen, times_seen
from htd_jax.distillers import METHODS, Listwise, Representations, Teacher
from htd_jax.losses import listed_loss, sampled_cross_entropy, softmax_loss
from htd_jax.training.objectives import softmax

USERS, ITEMS = 60, 90


@pytest.fixture
def many(monkeypatch):
    """Any data have many scores."""
    monkeypatch.setattr("htd_jax.data.sampling.MANY_SCORES", 0)


def definition(known, shares, sampled, log_weights, first, second, rest, temperature):
    """In float64, a user at a time: the value, and the gradients by both kinds of scores."""
    value, by_known, by_sampled = 0.0, np.zeros(known.shape), np.zeros(sampled.shape)
    second = second & np.isfinite(np.broadcast_to(log_weights, sampled.shape))
    for u in range(len(known)):
        k, s = np.flatnonzero(first[u]), np.flatnonzero(second[u])
        weights = np.exp(np.broadcast_to(log_weights, sampled.shape)[u, s].astype(float))
        e, o = (np.exp(x.astype(float) / temperature) for x in (known[u, k], sampled[u, s]))
        o = o * weights
        z, r, p = e.sum() + o.sum(), o.sum(), shares[u, k].astype(float)
        left = rest[u] if len(s) else 0.0
        if len(k):
            value += np.sum(p * (np.log(z) - known[u, k] / temperature))
        if len(s):
            value += left * (np.log(z) - np.log(r))
            by_sampled[u, s] = (p.sum() + left) * o / z - left * o / r
        if len(k):
            by_known[u, k] = (p.sum() + left) * e / z - p
    return value, by_known / temperature, by_sampled / temperature


@pytest.fixture
def case(rng):
    """Users with nothing known, nothing sampled, nothing at all."""
    known, sampled = (rng.normal(size=(8, size)).astype(np.float32) for size in (5, 9))
    shares, rest = rng.random((8, 5)).astype(np.float32), rng.random(8).astype(np.float32)
    log_weights = rng.normal(size=9).astype(np.float32)
    log_weights[3] = -np.inf
    first, second = rng.random((8, 5)) < 0.8, rng.random((8, 9)) < 0.8
    first[0], second[1], first[2], second[2] = False, False, False, False
    return known, shares, sampled, log_weights, first, second, rest


@pytest.mark.parametrize("temperature", [1.0, 0.05])
@pytest.mark.parametrize("junk", [0.0, np.nan, np.inf, 1e38])
def test_the_loss_is_its_definition_and_masks_hide_anything(case, temperature, junk):
    known, shares, sampled, log_weights, first, second, rest = case
    wanted = definition(known, shares, sampled, log_weights, first, second, rest, temperature)
    known[~first], shares[~first], sampled[~second] = junk, junk, junk
    given = [jnp.asarray(x) for x in (shares, log_weights, rest)]

    def loss(known, sampled):
        where = jnp.asarray(first), jnp.asarray(second)
        options = dict(where=where, rest=given[2], temperature=temperature)
        return sampled_cross_entropy(known, given[0], sampled, given[1], **options)

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(jnp.asarray(known), jnp.asarray(sampled))
    np.testing.assert_allclose(value, wanted[0], rtol=2e-5)
    for found, expected in zip(gradients, wanted[1:]):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("scale", [1e-6, 1e4, 1e30])
def test_extreme_scores_have_a_finite_loss_and_gradient(case, scale):
    known, shares, sampled, log_weights, first, second, rest = (jnp.asarray(x) for x in case)
    loss = lambda a, b: sampled_cross_entropy(a, shares, b, log_weights, where=(first, second), rest=rest)
    value, gradients = jax.value_and_grad(loss, (0, 1))(known * scale, sampled * scale)
    assert np.isfinite(value) and all(np.isfinite(x).all() for x in gradients)


def test_with_all_items_in_the_sample_it_is_the_softmax_and_the_listed_loss(rng):
    scores = jnp.asarray(rng.normal(size=(7, 20)), jnp.float32)
    seen = np.zeros((7, 20), bool)
    seen[:, :3], seen[:, 4] = True, [True, False] * 3 + [True]
    items = jnp.asarray(np.stack([rng.permutation(np.arange(5, 20))[:6] for _ in range(7)]), jnp.int32)
    shares = jnp.asarray(rng.random((7, 6)) / 6, jnp.float32)
    every = jnp.arange(20)

    def of_listed(scores, others):
        unseen = ~jnp.asarray(seen) & ~among(every, items)
        known = jnp.take_along_axis(scores, items, axis=1)
        rest = 1 - shares.sum(1) if others else None
        where = (jnp.ones(items.shape, bool), unseen)
        return sampled_cross_entropy(known, shares, scores, jnp.zeros(20), where=where, rest=rest, temperature=0.3)

    for others in (True, False):
        full = lambda scores: listed_loss(
            scores, items, shares, jnp.asarray(seen), temperature=0.3, seen_weight=0, others=others
        )
        agree(jax.value_and_grad(full)(scores), jax.value_and_grad(of_listed)(scores, others))

    def of_seen(scores):
        own = jnp.asarray([[0, 1, 2, 4 if seen[u, 4] else -1] for u in range(7)])
        known = jnp.take_along_axis(scores, jnp.maximum(own, 0), axis=1)
        where = (own >= 0, ~among(every, own))
        ones = jnp.ones(own.shape)
        return sampled_cross_entropy(known, ones, scores, jnp.zeros(20), where=where, temperature=0.3)

    full = lambda scores: softmax_loss(scores, jnp.asarray(seen), temperature=0.3)
    agree(jax.value_and_grad(full)(scores), jax.value_and_grad(of_seen)(scores))


def agree(found, expected, rtol=1e-4):
    np.testing.assert_allclose(found[0], expected[0], rtol=rtol)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-3, atol=1e-5)


# --- what a step reads


def test_sums_over_the_sample_are_those_over_all_items_on_average(small_split, rng):
    train = small_split.train
    times, values = times_seen(train), rng.exponential(size=ITEMS)

    def total(key):
        sample = sample_items(key, train, times, 16)
        return jnp.sum(jnp.exp(sample.log_weights) * jnp.asarray(values)[sample.items])

    totals = np.asarray(jax.jit(jax.vmap(total))(jax.random.split(jax.random.key(0), 4000)), float)
    assert abs(totals.mean() - values.sum()) < 4.5 * totals.std() / np.sqrt(4000)
    sample = sample_items(jax.random.key(1), train, times, 300)
    items, weights = np.asarray(sample.items), np.exp(sample.log_weights)
    assert (np.diff(items) >= 0).all() and len(np.unique(items)) < 91
    assert ((weights > 0) == np.append(True, np.diff(items) > 0)).all()


def test_seen_items_are_the_users_own_all_equally_likely_and_follow_from_the_user(small_split):
    train = small_split.train
    seen = np.asarray(seen_mask(train, jnp.arange(USERS)))
    users = jnp.asarray([5, 0, 59, 0])
    some = jax.jit(lambda key: some_seen(key, train, users, 8))
    every = np.stack([some(key) for key in jax.random.split(jax.random.key(3), 500)])
    for row, user in enumerate(users):
        own = every[:, row]
        number = min(8, seen[user].sum())
        assert all(len(set(one[one >= 0])) == (one >= 0).sum() == number for one in own)
        assert seen[user][own[own >= 0]].all()
    np.testing.assert_array_equal(every[:, 1], every[:, 3])
    times = np.bincount(every[:, 1].ravel(), minlength=ITEMS)[seen[0]]
    share = 8 / len(times)  # user 0 has many
    assert (abs(times - 500 * share) < 4.5 * np.sqrt(500 * share * (1 - share))).all()


def test_what_of_a_sample_was_seen_or_is_listed(small_split, rng):
    train = small_split.train
    items = jnp.sort(jnp.asarray(rng.integers(0, ITEMS, 40)))
    first = np.append(True, np.diff(items) > 0)
    seen = np.asarray(seen_mask(train, jnp.arange(USERS)))
    np.testing.assert_array_equal(seen_mask(train, jnp.arange(USERS), items), seen[:, items] & first)
    wanted = rng.integers(-1, ITEMS, (5, 12))
    expected = np.stack([np.isin(items, row[row >= 0]) & first for row in wanted])
    np.testing.assert_array_equal(among(items, jnp.asarray(wanted)), expected)


def batch_with_each(table, ids, where):
    batch = batch_of(table, ids, where)
    return batch._replace(score_each=lambda users, items: jnp.asarray(table)[users][:, items])


@pytest.mark.parametrize("name", ["best", "listwise"])
def test_a_large_sample_is_close_to_all_items(small_split, rng, name, monkeypatch):
    """The method and the objective, with a sample of many times all items."""
    monkeypatch.setattr("htd_jax.distillers.sampling.SAMPLED", 200_000)
    monkeypatch.setattr("htd_jax.distillers.sampling.KNOWN", ITEMS)
    train = small_split.train
    tables = (jnp.asarray(rng.normal(size=(size, 8)), jnp.float32) for size in (USERS, ITEMS))
    teacher = Teacher.of(Representations(*tables))
    student = jnp.asarray(rng.normal(size=(USERS, ITEMS)) / 4, jnp.float32)
    ids, where = np.array([0, 4, 9, 59, 9]), np.array([True, True, True, True, False])
    settings = {"best": lambda: METHODS["best"](top=20), "listwise": lambda: Listwise(top=20, users=0)}[name]()
    method = settings.make(5)

    def of_method():
        context = method.prepare(teacher, train)
        return lambda table: loss_of(method, context, (), batch_with_each(table, ids, where))[0]

    def of_objective():
        base = softmax(0.5)
        constants = base.constants(train)
        return lambda table: base.loss(None, batch_with_each(table, ids, where), constants, jax.random.key(1))

    for make in (of_method, of_objective):
        full = jax.jit(jax.value_and_grad(make()))(student)
        with monkeypatch.context() as patch:
            patch.setattr("htd_jax.data.sampling.MANY_SCORES", 0)
            sampled = jax.jit(jax.value_and_grad(make()))(student)
        np.testing.assert_allclose(sampled[0], full[0], rtol=5e-3)
        scale = np.abs(full[1]).max()
        np.testing.assert_allclose(sampled[1], full[1], atol=0.06 * scale)
        assert not (np.asarray(sampled[1]) == np.asarray(full[1])).all()


def test_the_rule_is_by_the_product(small_split):
    train = small_split.train
    assert softmax(0.5).constants(train)[1] is None
    large = Interactions(train.users, train.items, train.offsets, 100_000, 30_000, train.max_degree)
    assert softmax(0.5).constants(large)[1].shape == (30_000,)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["best", "listwise", "ftd+listwise"])
def test_students_learn_from_samples(many, data, teacher, method):
    options = dict(dim=4, epochs=6, eval_every=1, progress=False, cutoffs=(10,))
    student = htd_jax.distill(teacher, data, method=method, **options)
    terms = [record["terms"]["listwise"] for record in student.records]
    assert np.isfinite(terms).all() and terms[-1] < terms[0]


def test_a_teacher_is_prepared_alike_by_its_covariance(small_split, rng, monkeypatch):
    train = small_split.train
    tables = Representations(*(jnp.asarray(rng.normal(1, 1, (size, 8)), jnp.float32) for size in (USERS, ITEMS)))
    method = METHODS["best"](top=20).make(5)
    full = method.prepare(Teacher.of(tables), train)
    jax.clear_caches()  # the choice is made when the preparation is traced
    monkeypatch.setattr("htd_jax.data.sampling.MANY_SCORES", 0)
    many = method.prepare(Teacher.of(tables), train)
    np.testing.assert_array_equal(many.items, full.items)
    np.testing.assert_allclose(many.probabilities, full.probabilities, rtol=1e-4)
    assert full.times is None and many.times is not None
    jax.clear_caches()
