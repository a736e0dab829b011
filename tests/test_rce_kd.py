"""RCE-KD: the loss against its definition in NumPy, the sets of items, the samples, and the method in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rankings import Student, batch_of, loss_of, resumes_to_the_bit, sample, table_of

import htd_jax
from htd_jax import distillers
from htd_jax.data import make_split
from htd_jax.distillers import RCEKD, Lists, Teacher
from htd_jax.distillers.sampling import map_blocks, sample_by_weight
from htd_jax.losses import rejuvenated_loss
from htd_jax.ops.largest import top_k

USERS, ITEMS = 60, 90


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


def softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def definition(best, best_teacher, others, others_teacher, shared, of_best, of_others, temperature, beta):
    """The loss in float64, a user at a time, and its gradients by both kinds of the student's scores."""
    value, gradients = 0.0, (np.zeros(best.shape), np.zeros(others.shape))
    for u in range(len(shared)):
        w = np.exp(-beta * shared[u])
        sets = ((1 - w, best, best_teacher, of_best), (w, others, others_teacher, of_others))
        for (weight, student, teacher, counted), gradient in zip(sets, gradients):
            at = np.flatnonzero(counted[u])
            if len(at):
                s = student[u, at].astype(float) / temperature
                p, top = softmax(teacher[u, at].astype(float) / temperature), s.max()
                value += weight * (top + np.log(np.exp(s - top).sum()) - p @ s)
                gradient[u, at] += weight * (softmax(s) - p) / temperature
    return value, *gradients


def found(best, best_teacher, others, others_teacher, shared, **options):
    of = lambda best, others: rejuvenated_loss(best, best_teacher, others, others_teacher, shared, **options)
    value, gradients = jax.jit(jax.value_and_grad(of, argnums=(0, 1)))(best, others)
    return value, *gradients


@pytest.fixture
def case(rng):
    """The scores, and masks under which a user has no items of one kind, or of both, or does not count."""
    arrays = [jnp.asarray(rng.normal(size=(9, k)) * 2, jnp.float32) for k in (5, 5, 7, 7)]
    where, of_best, of_others = rng.random(9) < 0.7, rng.random((9, 5)) < 0.6, rng.random((9, 7)) < 0.6
    of_best[0], of_others[1], of_best[2], of_others[2], where[:3], where[3] = False, False, False, False, True, False
    masks = where[:, None] & of_best, where[:, None] & of_others
    return (*arrays, jnp.asarray(rng.random(9), jnp.float32)), masks


# --- the loss


def test_the_loss_is_its_definition(case):
    arrays, masks = case
    expected = definition(*map(np.asarray, arrays), *masks, 0.7, 2.0)
    got = found(*arrays, where=masks, temperature=0.7, beta=2.0)
    for one, wanted in zip(got, expected):
        np.testing.assert_allclose(one, wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e38])
def test_what_is_masked_is_not_there_whatever_it_holds(case, junk):
    arrays, (of_best, of_others) = case
    expected = found(*arrays, where=(of_best, of_others))
    kept = of_best, of_best, of_others, of_others
    junked = [jnp.where(jnp.asarray(mask), x, junk) for mask, x in zip(kept, arrays)]
    shared = jnp.where(jnp.asarray(of_best.any(1) | of_others.any(1)), arrays[4], junk)
    jax.tree.map(np.testing.assert_array_equal, found(*junked, shared, where=(of_best, of_others)), expected)


def test_masks_of_rows_are_masks_of_all_their_entries(case):
    arrays, _ = case
    rows, other = np.arange(9) != 3, np.arange(9) < 7
    entries = np.tile(rows[:, None], 5), np.tile(other[:, None], 7)
    of_entries = found(*arrays, where=entries)
    jax.tree.map(np.testing.assert_array_equal, found(*arrays, where=(rows, other)), of_entries)
    for one, wanted in zip(of_entries, definition(*map(np.asarray, arrays), *entries, 1.0, 3.0)):
        np.testing.assert_allclose(one, wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("scale", [0.0, 1e4, 1e30])
def test_extreme_scores_have_a_finite_loss_and_gradient(case, scale):
    arrays, masks = case
    arrays = [jnp.sign(x) * scale for x in arrays[:4]] + [arrays[4]]
    got = found(*arrays, where=masks)
    assert all(np.isfinite(x).all() for x in got)
    expected = definition(*map(np.asarray, arrays), *masks, 1.0, 3.0)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
    for one, wanted in zip(got[1:], expected[1:]):
        np.testing.assert_allclose(one, wanted, atol=1e-5)


def test_what_the_loss_refuses():
    x, shared = jnp.zeros((2, 3)), jnp.zeros(2)
    for refused, name in (
        (lambda: rejuvenated_loss(x[0], x, x, x, shared), "best"),
        (lambda: rejuvenated_loss(x, x[:1], x, x, shared), "best_teacher"),
        (lambda: rejuvenated_loss(x, x, x, x[:, :1], shared), "others_teacher"),
        (lambda: rejuvenated_loss(x, x, x, x, x), "shared"),
        (lambda: rejuvenated_loss(x, x, x, x, shared, where=jnp.ones(3, bool)), "where: expected a pair"),
        (lambda: rejuvenated_loss(x, x, x, x, shared, where=(jnp.ones((2, 2), bool), None)), r"where\[0\]"),
        (lambda: rejuvenated_loss(x, x, x, x, shared, where=(None, jnp.ones(3, bool))), r"where\[1\]"),
        (lambda: rejuvenated_loss(x, x, x, x, shared, where=(None, x)), r"where\[1\]"),
    ):
        with pytest.raises(AssertionError, match=name):
            refused()


# --- samples


def test_what_is_done_in_blocks_is_done_for_every_row(monkeypatch):
    monkeypatch.setattr("htd_jax.distillers.sampling.BLOCK_SCORES", 30)
    seen = map_blocks(lambda users: (users, jnp.tile(users[:, None], (1, 2)) * 2), 7, 10)
    np.testing.assert_array_equal(seen[0], np.arange(7))
    np.testing.assert_array_equal(seen[1][:, 1], 2 * np.arange(7))


def test_the_best_are_the_first_of_a_stable_sort(rng):
    scores = rng.integers(0, 9, (20, 50)).astype(np.float32)
    for k in (1, 7, 60):
        np.testing.assert_array_equal(top_k(jnp.asarray(scores), k)[1], np.argsort(-scores, kind="stable")[:, :k])


def test_samples_by_weight_are_samples_one_after_the_other():
    """Pairs of five, 20,000 samples: chi-square over 9 degrees of freedom, false alarms 1e-4."""
    weights, times = np.array([0.1, 1.0, 2.0, 3.0, 4.0]), 20_000
    items = jnp.tile(jnp.arange(10, 15)[None], (times, 1))
    log_weights = jnp.broadcast_to(jnp.log(jnp.asarray(weights, jnp.float32))[None], items.shape)
    sampled = np.asarray(jax.jit(sample_by_weight, static_argnums=3)(jax.random.key(0), items, log_weights, 2)) - 10
    assert (sampled[:, 0] < sampled[:, 1]).all()
    p = weights / weights.sum()
    chi = 0.0
    for a in range(5):
        for b in range(a + 1, 5):
            expected = times * (p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b]))
            chi += (np.sum((sampled == [a, b]).all(1)) - expected) ** 2 / expected
    assert chi < 33.7


def test_nothing_of_no_weight_is_sampled():
    items = jnp.array([[4, 5, -1, 7], [4, -1, -1, 7]])
    log_weights = jnp.array([[0.0, -jnp.inf, 0.0, 0.0], [-jnp.inf, 0.0, 0.0, -jnp.inf]])
    sampled = sample_by_weight(jax.random.key(0), items, log_weights, 3)
    assert [sorted(x for x in row if x >= 0) for row in sampled.tolist()] == [[4, 7], []]


# --- the sets


@pytest.fixture(scope="module")
def tables():
    """Scores of a teacher and of a student who knows something of them."""
    rng = np.random.default_rng(2)
    teacher = rng.normal(size=(USERS, ITEMS)).astype(np.float32)
    return teacher, (teacher + 1.5 * rng.normal(size=teacher.shape)).astype(np.float32)


def refresh_of(method, context, student):
    return jax.jit(lambda key: sample(method, context, key, Student(student)))


def test_the_sets_are_their_definitions(small_split, tables, monkeypatch):
    monkeypatch.setattr("htd_jax.distillers.sampling.BLOCK_SCORES", 7 * ITEMS)  # blocks of seven users
    teacher, student = tables
    method = distillers.rce_kd(RCEKD(best=6, sampled=5, pool=20))
    refresh = refresh_of(method, method.prepare(table_of(teacher), small_split.train), student)
    sets = jax.tree.map(np.asarray, refresh(jax.random.key(1)))
    ranked, wanted = np.argsort(-student, axis=1), np.argsort(-teacher, axis=1)[:, :6]
    np.testing.assert_array_equal(sets.best, ranked[:, :6])
    for u in range(USERS):
        sampled, beside = sets.others[u, :5], sets.others[u, 5:]
        assert len(set(sampled)) == 5 and set(sampled) <= set(ranked[u, :20])
        assert set(beside[beside >= 0]) == set(wanted[u]) - set(sampled) - set(ranked[u, :6])
        assert sets.shared[u] == np.float32(len(set(sampled) & set(wanted[u])) / 6)
        np.testing.assert_array_equal(sets.best_teacher[u], teacher[u, sets.best[u]])
        there = sets.others[u] >= 0
        np.testing.assert_array_equal(sets.others_teacher[u, there], teacher[u, sets.others[u, there]])


def test_items_are_sampled_by_how_many_of_the_teachers_stand_below(small_split, tables):
    """Draws of one item, of user 3 of 60: chi-square over 11 degrees of freedom, false alarms 1e-4. And no two users
    or blocks sample alike."""
    teacher, student = (np.repeat(table[3:4], USERS, 0) for table in tables)
    method = distillers.rce_kd(RCEKD(best=6, sampled=1, pool=12, draw_temperature=1.5))
    refresh = refresh_of(method, method.prepare(table_of(teacher), small_split.train), student)
    keys = jax.random.split(jax.random.key(2), 200)
    sampled = np.asarray(jax.lax.map(lambda key: refresh(key).others[:, 0], keys))
    ranked, wanted = np.argsort(-student[0])[:12], np.argsort(-teacher[0])[:6]
    below = np.array([np.isin(ranked[k:], wanted).sum() for k in range(12)])
    assert below[0] > 1
    expected = softmax((below + 1) / 1.5) * sampled.size
    times = np.array([(sampled == item).sum() for item in ranked])
    assert np.sum((times - expected) ** 2 / expected) < 37.4
    assert len({tuple(column) for column in sampled.T}) == USERS


def test_lists_alone_score_what_they_hold_and_the_rest_below(small_split, tables):
    _, student = tables
    rng = np.random.default_rng(3)
    items = np.stack([rng.permutation(ITEMS)[:15] for _ in range(USERS)]).astype(np.int32)
    items[4, 2:], items[5] = -1, -1
    scores = -np.sort(-rng.normal(size=items.shape), axis=1).astype(np.float32)
    scores[items < 0] = np.nan
    method = distillers.rce_kd(RCEKD(best=6, sampled=5, pool=20, rank_temperature=4.0))
    for given in (Lists(jnp.asarray(items)), Lists(jnp.asarray(items), jnp.asarray(scores))):
        context = method.prepare(Teacher.of(given), small_split.train)
        sets = jax.tree.map(np.asarray, refresh_of(method, context, student)(jax.random.key(1)))
        for u in range(USERS):
            place = {item: k for k, item in enumerate(items[u]) if item >= 0}
            if given.scores is None:
                worth = lambda item, place=place: -place.get(item, len(place)) / 4.0
            else:
                last = scores[u, len(place) - 1] if place else 0.0
                worth = lambda item, place=place, u=u, last=last: scores[u, place[item]] if item in place else last
            for chosen, found in ((sets.best, sets.best_teacher), (sets.others, sets.others_teacher)):
                there = chosen[u] >= 0
                np.testing.assert_allclose(found[u, there], [worth(i) for i in chosen[u, there]], rtol=1e-6)
            beside = sets.others[u, 5:]
            assert set(beside[beside >= 0]) <= set(items[u, :6])


# --- the method


def test_every_different_user_of_a_batch_counts_once(small_split, tables):
    teacher, student = tables
    method = distillers.rce_kd(RCEKD(best=6, sampled=5, pool=20, temperature=2.0))
    context = method.prepare(table_of(teacher), small_split.train)
    sets = refresh_of(method, context, student)(jax.random.key(1))
    ids, where = np.array([0, 0, 4, 9, 9, 59], np.int32), np.array([1, 0, 1, 1, 0, 0], bool)
    batch = batch_of(student, ids, where)
    value, terms = jax.jit(lambda sets: loss_of(method, context, sets, batch))(sets)
    rows = np.array([0, 4, 9])
    own = jax.tree.map(lambda x: np.asarray(x)[rows], sets)
    scores = [student[rows[:, None], items] for items in (own.best, own.others)]
    masks = own.best >= 0, own.others >= 0
    arrays = (scores[0], own.best_teacher, scores[1], own.others_teacher, own.shared)
    np.testing.assert_allclose(value, definition(*arrays, *masks, 2.0, 3.0)[0], rtol=1e-5)
    np.testing.assert_array_equal(terms["rce-kd"], value)


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_bits_of_an_unbroken_one(data, teacher, tmp_path):
    settings = RCEKD(weight=1.0, best=8, sampled=8, pool=20)
    terms = resumes_to_the_bit(settings, teacher.make_model, teacher.teacher(), data, tmp_path, batch_size=256)
    assert all(np.isfinite(one["rce-kd"]) for one in terms)


@pytest.mark.slow
def test_lists_teach_even_where_they_are_empty():
    pairs = lambda *rows: tuple(np.array(rows).T)
    split = make_split(pairs((0, 0), (1, 0), (2, 1)), pairs((0, 1)), pairs((1, 1)), 3, 4)
    lists = Lists(jnp.array([[-1, -1, -1], [3, 2, 1], [2, -1, -1]]))
    settings = dict(dim=2, epochs=2, cutoffs=(1,), progress=False)
    student = htd_jax.distill(lists, split, method="rce-kd", **settings)
    assert all(np.isfinite(table).all() for table in student.representations())
