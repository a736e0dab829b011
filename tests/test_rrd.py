"""RRD: the loss and the samples against their definitions in NumPy, and the method in training."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rankings import batch_of, loss_of, ranked, sample, sample_many, seen_by, table_of

import htd_jax
from htd_jax import distillers
from htd_jax.data import Interactions, make_split, nth_unseen, seen_before
from htd_jax.distillers import RRD, Lists, Teacher
from htd_jax.errors import UserError
from htd_jax.losses import relaxed_ranking_loss
from htd_jax.training import Checkpoints, adam, make_trainer, run_phase

USERS, ITEMS = 60, 90


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


def definition(interesting, uninteresting, where, of_interesting, of_uninteresting):
    """The loss in float64, a term at a time, and its gradients by both kinds of scores."""
    value, by_best, by_rest = 0.0, np.zeros(interesting.shape), np.zeros(uninteresting.shape)
    for u in np.flatnonzero(where):
        best, rest = np.flatnonzero(of_interesting[u]), np.flatnonzero(of_uninteresting[u])
        for k in range(len(best)):
            below = np.concatenate([interesting[u, best[k:]], uninteresting[u, rest]])
            top = below.max()
            log_sum = top + np.log(np.sum(np.exp(below - top)))
            value += log_sum - interesting[u, best[k]]
            by_best[u, best[k]] -= 1
            by_best[u, best[k:]] += np.exp(interesting[u, best[k:]] - log_sum)
            by_rest[u, rest] += np.exp(uninteresting[u, rest] - log_sum)
    return value, by_best, by_rest


def found(interesting, uninteresting, where=None):
    of = lambda best, rest: relaxed_ranking_loss(best, rest, where=where)
    arrays = (jnp.asarray(x, jnp.float32) for x in (interesting, uninteresting))
    value, gradients = jax.jit(jax.value_and_grad(of, argnums=(0, 1)))(*arrays)
    return value, *gradients


def agree(found, expected):
    for one, wanted in zip(found, expected):
        np.testing.assert_allclose(one, wanted, rtol=1e-4, atol=1e-5)


# --- the loss


@pytest.mark.parametrize("shape", [(0, 3, 2), (1, 1, 1), (7, 5, 4), (3, 40, 40), (4, 6, 0), (4, 0, 6)])
def test_the_loss_is_its_definition(rng, shape):
    n, k, length = shape
    interesting, uninteresting = rng.normal(size=(n, k)) * 3, rng.normal(size=(n, length)) * 3
    everything = np.ones(n, bool), np.ones((n, k), bool), np.ones((n, length), bool)
    agree(found(interesting, uninteresting), definition(interesting, uninteresting, *everything))


def test_what_is_masked_is_not_there_whatever_it_holds(rng):
    interesting, uninteresting = rng.normal(size=(9, 6)), rng.normal(size=(9, 5))
    where, of_best, of_rest = rng.random(9) < 0.7, rng.random((9, 6)) < 0.6, rng.random((9, 5)) < 0.6
    of_best[0], of_rest[1], where[:3], of_best[2], of_rest[2] = False, False, True, False, False
    expected = definition(interesting, uninteresting, where, of_best, of_rest)
    for junk in (np.nan, np.inf, -np.inf, 1e38):
        for scores, kept in ((interesting, of_best), (uninteresting, of_rest)):
            scores[~(kept & where[:, None])] = junk
        agree(found(interesting, uninteresting, (where[:, None] & of_best, where[:, None] & of_rest)), expected)


def test_a_mask_may_be_of_rows_or_of_entries_and_each_list_has_its_own(rng):
    interesting, uninteresting = rng.normal(size=(9, 6)), rng.normal(size=(9, 5))
    rows, every, rest = rng.random(9) < 0.7, np.ones((9, 6), bool), np.ones((9, 5), bool)
    agree(found(interesting, uninteresting, (rows, rows)), definition(interesting, uninteresting, rows, every, rest))
    of_rest = rest & rows[:, None]
    expected = definition(interesting, uninteresting, np.ones(9, bool), every, of_rest)
    agree(found(interesting, uninteresting, (None, rows)), expected)
    agree(found(interesting, uninteresting, (every, of_rest)), expected)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4, 1e30])
def test_extreme_scores_have_a_finite_loss_and_gradient(rng, scale):
    interesting, uninteresting = scale * rng.choice([-1.0, 1.0], (50, 8)), scale * rng.choice([-1.0, 1.0], (50, 8))
    value, by_best, by_rest = found(interesting, uninteresting)
    assert np.isfinite(value) and np.isfinite(by_best).all() and np.isfinite(by_rest).all()
    exact = definition(interesting, uninteresting, np.ones(50, bool), np.ones((50, 8), bool), np.ones((50, 8), bool))
    np.testing.assert_allclose(value, exact[0], rtol=1e-4)
    if scale <= 1e4:  # beyond, the logarithm of a sum of equals is below a rounding of their score
        np.testing.assert_allclose(by_best, exact[1], atol=1e-2)
        np.testing.assert_allclose(by_rest, exact[2], atol=1e-2)


def test_the_likelihoods_of_all_orders_sum_to_one(rng):
    """Without other items, exp(-loss) is the probability of their order."""
    scores = rng.normal(size=4)
    orders = np.array([scores[list(order)] for order in itertools.permutations(range(4))])
    loss = jax.vmap(lambda row: relaxed_ranking_loss(row[None], jnp.zeros((1, 0))))(jnp.asarray(orders, jnp.float32))
    np.testing.assert_allclose(np.exp(-loss).sum(), 1, rtol=1e-5)


def test_what_the_loss_refuses():
    x = jnp.zeros((2, 3))
    for refused, name in (
        (lambda: relaxed_ranking_loss(x[0], x), "interesting"),
        (lambda: relaxed_ranking_loss(x, jnp.zeros((3, 3))), "uninteresting"),
        (lambda: relaxed_ranking_loss(x, x.astype(jnp.bfloat16)), "uninteresting"),
        (lambda: relaxed_ranking_loss(x, x, where=jnp.ones(3, bool)), "where: expected a pair"),
        (lambda: relaxed_ranking_loss(x, x, where=(jnp.ones(3, bool), None)), r"where\[0\]"),
        (lambda: relaxed_ranking_loss(x, x, where=(jnp.ones((2, 2), bool), None)), r"where\[0\]"),
        (lambda: relaxed_ranking_loss(x, x, where=(None, x)), r"where\[1\]"),
    ):
        with pytest.raises(AssertionError, match=name):
            refused()


# --- samples


@pytest.fixture(scope="module")
def scores():
    """Of a teacher, with many ties."""
    return np.random.default_rng(2).integers(0, 12, (USERS, ITEMS)).astype(np.float32)


def test_the_pool_is_the_teachers_ranking_whatever_the_teacher_is(small_split, scores):
    train, method = small_split.train, distillers.rrd(RRD(pool=30))
    context = jax.jit(method.prepare)(table_of(scores), train)
    expected = ranked(scores, train, 30)
    for row, wanted in zip(np.asarray(context.pool), expected):
        assert [x for x in row if x >= 0] == wanted and (row[len(wanted) :] == -1).all()
    every = np.argsort(-scores, axis=1, kind="stable").astype(np.int32)  # lists with seen items in them
    of_lists = jax.jit(method.prepare)(Teacher(lists=Lists(jnp.asarray(every))), train)
    jax.tree.map(np.testing.assert_array_equal, of_lists, context)
    samples = [sample_many(method, teacher, train, 1) for teacher in (table_of(scores), Teacher(lists=Lists(every)))]
    jax.tree.map(np.testing.assert_array_equal, *samples)


def test_interesting_items_are_sampled_one_after_the_other_by_rank(small_split, scores):
    """How often a place of the pool is sampled, against samples without replacement made one at a time in NumPy."""
    train, (size, count, temperature, times) = small_split.train, (12, 4, 3.0, 400)
    method = distillers.rrd(RRD(pool=size, interesting=count, uninteresting=1, temperature=temperature))
    sampled = np.asarray(sample_many(method, table_of(scores), train, times).interesting)
    lists, frequency, full = ranked(scores, train, size), np.zeros(size), 0
    for user in range(USERS):
        place = {item: k for k, item in enumerate(lists[user])}
        places = np.array([[place[item] for item in items if item >= 0] for items in sampled[:, user]])
        assert places.shape[1] == min(count, len(place))
        assert (np.diff(places, axis=1) > 0).all()  # different ones, in the teacher's order
        if len(place) == size:
            frequency, full = frequency + np.bincount(places.ravel(), minlength=size), full + 1
    rng, trials = np.random.default_rng(5), 20_000
    expected, left = np.zeros(size), np.tile(np.exp(-np.arange(1, size + 1) / temperature), (trials, 1))
    for _ in range(count):
        chosen = (rng.random((trials, 1)) * left.sum(1, keepdims=True) < left.cumsum(1)).argmax(1)
        expected += np.bincount(chosen, minlength=size) / trials
        left[np.arange(trials), chosen] = 0
    np.testing.assert_allclose(frequency / (full * times), expected, atol=0.015)


def test_uninteresting_items_are_uniform_over_exactly_the_rest(small_split, scores):
    train, (size, count, times) = small_split.train, (20, 6, 4000)
    method = distillers.rrd(RRD(pool=size, interesting=3, uninteresting=count))
    sampled = np.asarray(sample_many(method, table_of(scores), train, times).uninteresting)
    lists, seen = ranked(scores, train, size), seen_by(train)
    for user in range(USERS):
        rest = sorted(set(range(ITEMS)) - seen[user] - set(lists[user]))
        items = sampled[:, user]
        if not rest:
            assert (items == -1).all()
            continue
        assert len(rest) >= count and set(np.unique(items)) == set(rest)
        assert (np.diff(np.sort(items, axis=1), axis=1) > 0).all()  # without replacement
        times_sampled = np.bincount(items.ravel(), minlength=ITEMS)[rest]
        share = count / len(rest)
        deviation = (times_sampled - times * share) / np.sqrt(times * share * (1 - share))
        assert np.abs(deviation).max() < 5 and 0.5 < np.mean(deviation**2) < 1.7
    assert any(not set(range(ITEMS)) - seen[user] - set(lists[user]) for user in range(USERS))


def test_every_set_of_uninteresting_items_is_equally_likely():
    """5 items, of which one is seen and one is the pool: three pairs of the other three."""
    train = Interactions.from_pairs(np.array([0]), np.array([1]), 1, 5)
    method = distillers.rrd(RRD(pool=1, interesting=1, uninteresting=2))
    sampled = sample_many(method, Teacher(lists=Lists(jnp.array([[3, 0]]))), train, 9000)
    assert (np.asarray(sampled.interesting) == 3).all()
    pairs, times = np.unique(np.sort(np.asarray(sampled.uninteresting)[:, 0], axis=1), axis=0, return_counts=True)
    assert pairs.tolist() == [[0, 2], [0, 4], [2, 4]]
    assert (np.abs(times - 3000) < 5 * np.sqrt(2000)).all()


def test_a_rest_smaller_than_what_is_asked_is_taken_whole(small_split, scores):
    train, size = small_split.train, 80
    sampled = sample_many(distillers.rrd(RRD(pool=size)), table_of(scores), train, 1)
    lists, seen = ranked(scores, train, size), seen_by(train)
    for user, items in enumerate(np.asarray(sampled.uninteresting)[0]):
        rest = set(range(ITEMS)) - seen[user] - set(lists[user])
        assert len(rest) < 40 and sorted(items[items >= 0]) == sorted(rest)


def test_top_takes_the_best_as_they_are(small_split, scores):
    train = small_split.train
    sampled = sample_many(distillers.rrd(RRD(pool=30, interesting=7, choice="top")), table_of(scores), train, 2)
    for row, wanted in zip(np.asarray(sampled.interesting)[1], ranked(scores, train, 7)):
        assert row.tolist() == wanted + [-1] * (7 - len(wanted))
    assert (np.asarray(sampled.uninteresting)[0] != np.asarray(sampled.uninteresting)[1]).any()
    with pytest.raises(ValueError, match="choice"):
        distillers.rrd(RRD(choice="best"))


def test_unseen_items_by_number(small_split):
    train, seen = small_split.train, seen_by(small_split.train)
    unseen = [[item for item in range(ITEMS) if item not in own] for own in seen]
    users, every = jnp.arange(USERS)[:, None], jnp.arange(ITEMS)[None, :]
    found = np.asarray(jax.jit(nth_unseen)(train, users, every))
    assert all(row[: len(items)].tolist() == items for row, items in zip(found, unseen))
    before = np.asarray(jax.jit(seen_before)(train, users, every))
    assert before.tolist() == [[sum(other < item for other in own) for item in range(ITEMS)] for own in seen]


# --- the method


def test_every_different_user_of_a_batch_counts_once(small_split, scores):
    train, method = small_split.train, distillers.rrd(RRD(pool=30, interesting=5, uninteresting=4))
    context = jax.jit(method.prepare)(table_of(scores), train)
    sampled = jax.jit(lambda key: sample(method, context, key))(jax.random.key(3))
    student = np.random.default_rng(7).normal(size=(USERS, ITEMS))
    ids, where = np.array([0, 0, 4, 9, 9, 9, 59], np.int32), np.array([1, 0, 1, 1, 0, 0, 0], bool)
    batch = batch_of(jnp.asarray(student, jnp.float32), ids, where)
    value, terms = jax.jit(lambda sampled: loss_of(method, context, sampled, batch))(sampled)
    best, rest = (np.asarray(items)[[0, 4, 9]] for items in (sampled.interesting, sampled.uninteresting))
    assert (rest[0] == -1).all() and (best[0] >= 0).all()  # user 0 has seen nearly all
    rows = np.array([0, 4, 9])[:, None]
    expected = definition(student[rows, best], student[rows, rest], np.ones(3, bool), best >= 0, rest >= 0)[0]
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_array_equal(terms["rrd"], value)


@pytest.mark.slow
@pytest.mark.parametrize("others", [[], [distillers.HTD(groups=3)]], ids=["rrd", "htd+rrd"])
def test_students_learn_their_teachers_order(data, teacher, others):
    """The loss of the last epoch is well below that of the first."""
    methods = [*others, RRD(weight=0.1, interesting=10, uninteresting=20, pool=30)]
    settings = dict(dim=4, epochs=5, eval_every=5, batch_size=64, learning_rate=0.02, progress=False)
    student = htd_jax.distill(teacher, data, method=methods, **settings)
    first, *_, last = (record["terms"]["rrd"] for record in student.records)
    assert last < 0.9 * first


@pytest.mark.slow
def test_a_teacher_whose_scores_are_no_products_teaches(data):
    settings = dict(epochs=1, progress=False)
    teacher = htd_jax.fit(data, model="neumf", dim=4, **settings)
    student = htd_jax.distill(teacher, data, method="rrd", model="neumf", dim=2, **settings)
    assert np.isfinite(student.representations().users).all()
    with jax.numpy_rank_promotion("allow"):  # NeuMF's, not RRD's
        scores = np.asarray(teacher.scores(np.arange(80)))
        context = jax.jit(distillers.rrd(RRD(pool=20)).prepare)(teacher.teacher(), data.train)
    for user, items in enumerate(ranked(scores, data.train, 20)):  # equal but for roundings
        np.testing.assert_allclose(scores[user][np.asarray(context.pool)[user]], scores[user][items], atol=1e-5)


@pytest.mark.slow
def test_lists_teach_even_where_they_or_the_rest_are_empty():
    """User 0 has no list, user 1 no items other than its list and those it has seen."""
    pairs = lambda *rows: tuple(np.array(rows).T)
    split = make_split(pairs((0, 0), (1, 0), (2, 1)), pairs((0, 1)), pairs((1, 1)), 3, 4)
    teacher = Teacher(lists=Lists(jnp.array([[-1, -1, -1], [3, 2, 1], [2, -1, -1]])))
    settings = dict(method="rrd", dim=2, epochs=2, cutoffs=(1,), progress=False)
    student = htd_jax.distill(teacher.lists, split, **settings)
    assert all(np.isfinite(table).all() for table in student.representations())
    sampled = sample_many(distillers.rrd(RRD(pool=3)), teacher, split.train, 1)
    assert np.asarray(sampled.interesting)[0].tolist() == teacher.lists.items.tolist()
    assert [sorted(row[row >= 0]) for row in np.asarray(sampled.uninteresting)[0]] == [[1, 2, 3], [], [0, 3]]
    with pytest.raises(UserError, match="lists"):
        htd_jax.distill(Teacher(), split, **settings)


@pytest.mark.slow
def test_what_is_sampled_is_part_of_the_state(data, teacher, tmp_path):
    """Of a method that samples every third epoch: a run killed between ends with the bits of an unbroken one."""
    settings = RRD(weight=0.1, pool=60, interesting=10, uninteresting=10)
    method = distillers.every(3, settings.make(4))
    trainer = make_trainer(teacher.make_model, method, adam(0.01, 1e-3), batch_size=256)
    given = teacher.teacher()
    runs = {}
    for name, stops in (("unbroken", (4,)), ("broken", (2, 4))):
        for epochs in stops:
            phase = dict(epochs=epochs, eval_every=1, checkpoints=Checkpoints(tmp_path / name), settings={})
            runs[name] = run_phase(trainer, lambda *_: {}, data, given, jax.random.key(4), **phase)
    jax.tree.map(np.testing.assert_array_equal, runs["broken"].variables, runs["unbroken"].variables)
    assert [x["terms"] for x in runs["broken"].records] == [x["terms"] for x in runs["unbroken"].records]
    guidance = trainer.guide(data.train, given)
    state, sampled = trainer.init(jax.random.key(0), data.train, guidance), []
    for _ in range(4):
        state, _ = trainer.epoch(state, jax.random.key(1), data.train, guidance)
        sampled.append(jax.tree.map(np.asarray, state.sampled))
    jax.tree.map(np.testing.assert_array_equal, sampled[0], sampled[2])
    assert (sampled[3].interesting != sampled[2].interesting).any()
    assert (sampled[3].uninteresting != sampled[2].uninteresting).any()
