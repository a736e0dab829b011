"""DCD: the samples of either side, the loss against its definition in NumPy, and the method in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rankings import Student, loss_of, resumes_to_the_bit, sample, side_of, table_of

import htd_jax
from htd_jax import distillers
from htd_jax.data import make_split, seen_mask
from htd_jax.distillers import DCD, Batch, Entities, Lists
from htd_jax.errors import UserError

USERS, ITEMS = 60, 90


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="module")
def tables():
    """Scores of a teacher, with ties, and of a student who knows something of them."""
    rng = np.random.default_rng(2)
    teacher = (np.round(rng.normal(size=(USERS, ITEMS)), 1) + 0.0).astype(np.float32)  # a zero of one sign
    return teacher, (teacher + rng.normal(size=teacher.shape)).astype(np.float32)


def ranked(scores, seen):
    """Every row's best unseen columns, the first of equals first."""
    return [[i for i in np.argsort(-row, kind="stable") if not own[i]] for row, own in zip(scores, seen)]


def sides_of(train, *tables):
    """For either side, whether it has seen the other, and the tables' rows."""
    seen = np.asarray(seen_mask(train, jnp.arange(train.num_users)))
    return (seen, *tables), (seen.T, *(table.T for table in tables))


def sampler(method, teacher, student, train):
    context = method.prepare(table_of(teacher), train)
    return context, jax.jit(lambda key: sample(method, context, key, Student(student)))


# --- context and samples


def test_pairs_with_users_and_items_exchanged(small_split):
    train = small_split.train
    turned = jax.jit(lambda train: train.transposed())(train)
    assert (turned.num_users, turned.num_items) == (ITEMS, USERS)
    assert (np.diff(np.asarray(turned.users) * USERS + np.asarray(turned.items)) > 0).all()
    seen = np.asarray(seen_mask(train, jnp.arange(USERS)))
    np.testing.assert_array_equal(seen_mask(turned, jnp.arange(ITEMS)), seen.T)


def test_the_teachers_best_users_of_an_item(small_split, tables, monkeypatch):
    train, teacher = small_split.train, tables[0]
    (_, (seen, scores)) = sides_of(train, teacher)
    wanted = ranked(scores, seen)
    for numbers in (2**22, 2 * ITEMS):  # all at once, and in blocks
        monkeypatch.setattr("htd_jax.teacher.SCORES", numbers)
        for k in (5, 100):
            found = np.asarray(jax.jit(lambda k=k: table_of(teacher).top_users(train, k))())
            assert found.shape == (ITEMS, min(k, USERS))
            assert [[u for u in row if u >= 0] for row in found] == [row[:k] for row in wanted]


@pytest.mark.slow
def test_a_models_scores_of_every_user(data, teacher):
    model = teacher.make_model(data.train)
    every = model.apply(teacher.variables, jnp.arange(80), method="score_all")
    items = jnp.array([3, 149, 3])
    found = model.apply(teacher.variables, items, method="score_users")
    np.testing.assert_allclose(found, every.T[items], rtol=1e-5, atol=1e-6)
    settings = dict(model="neumf", dim=2, epochs=1, progress=False)
    with jax.numpy_rank_promotion("allow"):
        other = htd_jax.fit(data, **settings)
        model = other.make_model(data.train)
        every = model.apply(other.variables, jnp.arange(80), method="score_all")
        found = model.apply(other.variables, items, method="score_users")
    np.testing.assert_allclose(found, every.T[items], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("epsilon", [0.05, 3.0])
def test_what_is_sampled_is_over_and_underestimated(small_split, tables, epsilon, monkeypatch):
    """Exactly what has a weight, as many as are asked for if there are as many, the underestimated in order."""
    monkeypatch.setattr("htd_jax.distillers.sampling.BLOCK_SCORES", 7 * ITEMS)  # blocks of seven users
    train, count = small_split.train, 6
    method = distillers.dcd(DCD(items=count, users=count, pool=20, user_pool=20, epsilon=epsilon))
    _, refresh = sampler(method, *tables, train)
    fewer = 0
    for found, (seen, teacher, student) in zip(refresh(jax.random.key(0)), sides_of(train, *tables)):
        pools, orders = ranked(teacher, seen), ranked(student, seen)
        for row, (pool, order) in enumerate(zip(pools, orders)):
            gap = {item: order.index(item) - k for k, item in enumerate(pool[:20])}
            under = [item for item in np.asarray(found.under[row]).tolist() if item >= 0]
            over = [item for item in np.asarray(found.over[row]).tolist() if item >= 0]
            assert len(set(under)) == len(under) == min(count, sum(g > 0 for g in gap.values()))
            assert len(set(over)) == len(over) == min(count, sum(g < 0 for g in gap.values()))
            assert all(gap[item] > 0 for item in under) and all(gap[item] < 0 for item in over)
            assert sorted(under, key=pool.index) == under
            fewer += len(over) < count
    assert fewer


def test_samples_are_by_the_difference_of_ranks(small_split, tables):
    """Draws of one, of the same row 60 times, of either kind: chi-square, false alarms 1e-4 each by Wilson and
    Hilferty's cube root."""
    train, epsilon = small_split.train, 0.07
    teacher, student = tables
    method = distillers.dcd(DCD(items=1, users=1, pool=20, user_pool=20, epsilon=epsilon))
    _, refresh = sampler(method, teacher, student, train)
    sampled = jax.lax.map(refresh, jax.random.split(jax.random.key(3), 3000))
    for kinds, (seen, *scores), row in zip(sampled, sides_of(train, teacher, student), (7, 11)):
        pool, order = (ranked(table, seen)[row] for table in scores)
        gap = np.array([order.index(item) - k for k, item in enumerate(pool[:20])])
        for found, signed in ((kinds.under, gap), (kinds.over, -gap)):
            weights = np.tanh(np.maximum(epsilon * signed, 0))
            expected = 3000 * weights / weights.sum()
            times = np.array([np.sum(np.asarray(found[:, row, 0]) == item) for item in pool[:20]])
            there = expected > 0
            chi, free = np.sum((times - expected)[there] ** 2 / expected[there]), there.sum() - 1
            assert times[~there].sum() == 0 and free > 0
            assert chi < free * (1 - 2 / (9 * free) + 3.719 * np.sqrt(2 / (9 * free))) ** 3


def test_no_two_users_sample_alike(small_split, tables):
    teacher, student = (np.repeat(table[3:4], USERS, 0) for table in tables)
    method = distillers.dcd(DCD(items=1, pool=20, sides="users"))
    _, refresh = sampler(method, teacher, student, small_split.train)
    sampled = np.asarray(jax.lax.map(lambda key: refresh(key)[0].under[:, 0], jax.random.split(jax.random.key(2), 40)))
    assert len({tuple(column) for column in sampled.T}) == USERS


# --- the loss


def relaxed(s, b):
    """The loss of one row in float64."""
    value = 0.0
    for k in range(len(s)):
        below = np.concatenate([s[k:], b]).astype(float)
        value += below.max() + np.log(np.exp(below - below.max()).sum()) - s[k]
    return value


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("sides", ["both", "users"])
def test_every_different_user_and_seen_item_of_a_batch_counts_once(small_split, tables, sides, scale):
    train, (teacher, student) = small_split.train, tables
    method = distillers.dcd(DCD(items=6, users=5, pool=20, user_pool=15, sides=sides))
    context, refresh = sampler(method, teacher, student, train)
    sampled = refresh(jax.random.key(1))
    users, items = side_of([0, 0, 4, 9, 59], [1, 0, 1, 1, 0]), side_of([2, 2, 5, 80, 81], [1, 0, 1, 1, 0])

    def loss(table):
        batch = Batch(Entities(users, items, items, items), None, Student(table).score)
        return loss_of(method, context, sampled, batch)

    table = scale * student
    (value, terms), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(jnp.asarray(table))
    expected = 0.0
    for kinds, scores, rows in zip(sampled, (table, table.T), ([0, 4, 9], [2, 5, 80])):
        for row in rows:
            under, over = (np.asarray(x[row]) for x in (kinds.under, kinds.over))
            expected += relaxed(scores[row, under[under >= 0]], scores[row, over[over >= 0]])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_array_equal(terms["dcd"], value)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


# --- the method


@pytest.mark.slow
def test_what_is_sampled_every_third_epoch_is_part_of_the_state(data, teacher, tmp_path):
    """A run killed between two samples ends with the bits of an unbroken one."""
    settings = DCD(weight=0.1, items=8, users=6, pool=30, user_pool=20)
    terms = resumes_to_the_bit(settings, teacher.make_model, teacher.teacher(), data, tmp_path, batch_size=256)
    assert all(np.isfinite(one["dcd"]) for one in terms)


@pytest.mark.slow
def test_lists_teach_one_side_even_where_they_are_empty():
    pairs = lambda *rows: tuple(np.array(rows).T)
    split = make_split(pairs((0, 0), (1, 0), (2, 1)), pairs((0, 1)), pairs((1, 1)), 3, 4)
    lists = Lists(jnp.array([[-1, -1, -1], [3, 2, 1], [2, -1, -1]]))
    settings = dict(dim=2, epochs=2, cutoffs=(1,), progress=False)
    student = htd_jax.distill(lists, split, method=DCD(sides="users"), **settings)
    assert all(np.isfinite(table).all() for table in student.representations())
    with pytest.raises(UserError, match="scores"):
        htd_jax.distill(lists, split, method="dcd", **settings)
    with pytest.raises(ValueError, match="sides"):
        distillers.dcd(DCD(sides="items"))
