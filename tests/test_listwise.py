"""Listwise distillation: losses against their definitions in NumPy, gradients by blocks, samples of users, and teachers
of scores and of lists."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rankings import batch_of, loss_of

import htd_jax
from htd_jax import distillers
from htd_jax.data import make_split, seen_mask
from htd_jax.distillers import Lists, Listwise, Representations, Teacher
from htd_jax.errors import UserError
from htd_jax.losses import listed_loss, listwise_loss, log_partition
from htd_jax.ops.eager import sum_over_blocks

USERS, ITEMS = 60, 90


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


def log_sum(x):
    return x.max() + np.log(np.sum(np.exp(x - x.max())))


def softmax(x):
    return np.exp(x - log_sum(x))


def definition(student, targets, seen, where, temperature=1.0, seen_weight=1.0):
    """In float64, a user at a time: `targets(u, unseen)` gives the teacher's probabilities of classes and what items
    each class holds. The value, and the gradient by the scores."""
    value, gradient = 0.0, np.zeros(student.shape)
    for u in np.flatnonzero(where):
        s, unseen, own = student[u] / temperature, np.flatnonzero(~seen[u]), np.flatnonzero(seen[u])
        for p, members in targets(u, unseen) if len(unseen) else ():
            value += p * (log_sum(s[unseen]) - log_sum(s[members]))
            gradient[u, unseen] += p * softmax(s[unseen]) / temperature
            gradient[u, members] -= p * softmax(s[members]) / temperature
        if len(own):
            value += seen_weight * (log_sum(s) - s[own].mean())
            gradient[u] += seen_weight * softmax(s) / temperature
            gradient[u, own] -= seen_weight / len(own) / temperature
    return value, gradient


def of_scores(teacher, temperature=1.0):
    return lambda u, unseen: [
        (p, [item]) for p, item in zip(softmax(teacher[u, unseen].astype(float) / temperature), unseen)
    ]


def of_listed(items, probabilities):
    def targets(u, unseen):
        listed = [(float(p), [item]) for p, item in zip(probabilities[u], items[u]) if item >= 0]
        rest = sorted(set(unseen) - set(items[u]))
        total = sum(p for p, _ in listed)
        if rest:
            return [*listed, (1 - total, rest)]
        return [(p / total, one) for p, one in listed]

    return targets


def found(loss, student, *args, **options):
    of = lambda student: loss(student, *(jnp.asarray(x) for x in args), **options)
    return jax.jit(jax.value_and_grad(of))(jnp.asarray(student, jnp.float32))


def agree(found, expected, rtol=1e-5, atol=2e-6):
    np.testing.assert_allclose(found[0], expected[0], rtol=rtol, atol=atol)
    np.testing.assert_allclose(found[1], expected[1], rtol=rtol, atol=atol)


@pytest.fixture(scope="module")
def case():
    """Users who have seen nothing, everything, all but one; and one who does not count and holds anything."""
    rng = np.random.default_rng(4)
    student, teacher = (rng.normal(size=(9, 12)).astype(np.float32) * 2 for _ in range(2))
    seen = rng.random((9, 12)) < 0.3
    seen[0], seen[1], seen[2] = False, True, np.arange(12) != 5
    where = np.arange(9) != 4
    items, shares = np.full((9, 6), -1, np.int32), rng.random((9, 6)).astype(np.float32)
    for u in range(9):
        chosen = rng.permutation(np.flatnonzero(~seen[u]))[: 0 if u == 3 else 5]
        items[u, : len(chosen)] = chosen
        shares[u, : len(chosen)] *= 0.8 / max(1e-9, shares[u, : len(chosen)].sum())
    return student, teacher, seen, where, items, shares


# --- the losses


def test_the_losses_are_their_definitions(case):
    student, teacher, seen, _, items, shares = case
    every = np.ones(9, bool)
    options = dict(temperature=0.7, seen_weight=0.3)
    wanted = definition(student, of_scores(teacher, 1.8), seen, every, **options)
    agree(found(listwise_loss, student, teacher, seen, teacher_temperature=1.8, **options), wanted)
    sums = log_partition(jnp.asarray(teacher), jnp.asarray(seen), 1.8)
    once = dict(teacher_temperature=1.8, log_partition=sums, **options)
    agree(found(listwise_loss, student, teacher, seen, **once), wanted)
    wanted = definition(student, of_listed(items, shares), seen, every, **options)
    agree(found(listed_loss, student, items, shares, seen, **options), wanted)


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e38])
def test_what_is_masked_changes_nothing_whatever_it_holds(case, junk):
    student, teacher, seen, where, items, shares = (x.copy() for x in case)
    expected = definition(student, of_scores(teacher), seen, where)
    listed = definition(student, of_listed(items, shares), seen, where)
    teacher[seen] = junk  # of a seen item, the teacher's score is not read
    student[~where] = teacher[~where] = shares[items < 0] = shares[~where] = junk
    mask = dict(where=jnp.asarray(where))
    agree(found(listwise_loss, student, teacher, seen, **mask), expected)
    agree(found(listed_loss, student, items, shares, seen, **mask), listed)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4, 1e30])
def test_extreme_scores_have_a_finite_loss_and_gradient(case, rng, scale):
    _, _, seen, _, items, shares = case
    student, teacher = (scale * rng.choice([-1.0, 0.5, 1.0], seen.shape).astype(np.float32) for _ in range(2))
    every = np.ones(9, bool)
    for loss, args, targets in (
        (listwise_loss, (teacher, seen), of_scores(teacher)),
        (listed_loss, (items, shares, seen), of_listed(items, shares)),
    ):
        value, gradient = found(loss, student, *args)
        assert np.isfinite(value) and np.isfinite(gradient).all()
        wanted = definition(student.astype(float), targets, seen, every)
        np.testing.assert_allclose(value, wanted[0], rtol=1e-4)
        if scale <= 1e4:
            np.testing.assert_allclose(gradient, wanted[1], atol=1e-2)


def test_half_inputs_are_added_up_in_float32(case):
    student, teacher, seen, *_ = case
    half = jnp.asarray(student, jnp.bfloat16)
    value, gradient = jax.value_and_grad(listwise_loss)(half, jnp.asarray(teacher), jnp.asarray(seen))
    assert value.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    wanted = definition(np.asarray(half, float), of_scores(teacher), seen, np.ones(9, bool))
    np.testing.assert_allclose(value, wanted[0], rtol=1e-5)


def test_what_the_losses_refuse():
    x, seen, items = jnp.zeros((2, 3)), jnp.zeros((2, 3), bool), jnp.zeros((2, 1), int)
    for refused, name in (
        (lambda: listwise_loss(x[0], x, seen), "student"),
        (lambda: listwise_loss(x, x[:1], seen), "teacher"),
        (lambda: listwise_loss(x, x, x), "seen"),
        (lambda: listwise_loss(x, x, seen, where=jnp.ones(3, bool)), "where"),
        (lambda: listwise_loss(x, x, seen, log_partition=jnp.zeros(3)), "log_partition"),
        (lambda: listed_loss(x, x, x, seen), "items"),
        (lambda: listed_loss(x, items, x, seen), "probabilities"),
    ):
        with pytest.raises(AssertionError, match=name):
            refused()


# --- a sum over blocks


@pytest.mark.parametrize("width", [1, 3, 8, 50])
def test_a_gradient_taken_on_the_way_is_the_gradient(rng, width):
    tables = {"users": jnp.asarray(rng.normal(size=(7, 3))), "items": jnp.asarray(rng.normal(size=(5, 3)))}
    rows, weights = jnp.asarray([4, 0, 0, 6, 1, 2, 2, 3]), jnp.asarray(rng.random(8))
    of_block = lambda scores, weights: jnp.sum(jnp.sin(scores) * weights[:, None])

    def blocked(tables):
        scores = lambda rows: jnp.tanh(tables["users"])[rows] @ tables["items"].T
        return 3 * sum_over_blocks(scores, of_block, rows, weights, width)

    whole = lambda tables: 3 * of_block(jnp.tanh(tables["users"])[rows] @ tables["items"].T, weights)
    np.testing.assert_allclose(jax.jit(blocked)(tables), whole(tables), rtol=1e-5)
    for transform in (jax.grad(blocked), jax.jit(jax.grad(blocked)), jax.grad(jax.jit(blocked))):
        near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        jax.tree.map(near, transform(tables), jax.grad(whole)(tables))


# --- the method


def seen_of(train):
    return np.asarray(seen_mask(train, jnp.arange(train.num_users)))


@pytest.fixture(scope="module")
def tables():
    """A teacher's representations, and a student's scores."""
    rng = np.random.default_rng(2)
    users, items = (jnp.asarray(rng.normal(size=(n, 8)), jnp.float32) for n in (USERS, ITEMS))
    return Representations(users, items), jnp.asarray(rng.normal(size=(USERS, ITEMS)), jnp.float32)


def test_what_a_user_has_seen(small_split):
    train = small_split.train
    pairs = set(zip(np.asarray(train.users).tolist(), np.asarray(train.items).tolist()))
    assert pairs == {(int(u), int(i)) for u, i in np.argwhere(seen_of(train))}


@pytest.mark.parametrize("top", [0, 7])
def test_every_different_user_of_a_batch_counts_once(small_split, tables, top, monkeypatch):
    monkeypatch.setattr(sys.modules["htd_jax.distillers.base"], "SCORES", 2 * ITEMS)  # blocks of two users
    train, (teacher, student) = small_split.train, tables
    method = distillers.listwise(Listwise(temperature=0.5, teacher_temperature=2.0, seen=0.2, top=top))
    context = method.prepare(Teacher.of(teacher), train)
    ids, counts = np.array([0, 0, 4, 9, 59]), np.array([True, False, True, True, True])
    loss = lambda student: loss_of(method, context, (), batch_of(student, ids, counts))
    (value, terms), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(student)
    scores = np.asarray(teacher.users, float) @ np.asarray(teacher.items, float).T
    seen, where = seen_of(train), np.isin(np.arange(USERS), ids)
    unit = np.sqrt(scores.var(axis=1).mean())
    targets = of_scores(scores, 2.0 * unit)
    if top:

        def targets(u, unseen):
            classes = sorted(of_scores(scores, 2.0 * unit)(u, unseen), reverse=True, key=lambda one: one[0])
            rest = classes[top:]
            return [*classes[:top], *([(sum(p for p, _ in rest), [i for _, (i,) in rest])] if rest else [])]

    wanted = definition(np.asarray(student, float), targets, seen, where, 0.5, 0.2)
    agree((value, gradient), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(terms["listwise"], value)


@pytest.mark.slow
def test_the_users_of_a_step_stand_for_all_of_them(small_split, tables):
    """Each of 30 users is sampled as often as another (4,000 samples of 8, chi-square over 29 degrees of freedom, false
    alarms: 1e-4), and the mean of what they give is what all of them give."""
    train, (teacher, student) = small_split.train, tables
    context = distillers.listwise().prepare(Teacher.of(teacher), train)
    ids, where = np.arange(40), np.arange(40) % 4 > 0

    def by_scores(most, key):
        method = distillers.listwise(Listwise(users=most))
        loss = lambda student: loss_of(method, context, (), batch_of(student, ids, where), key)[0]
        return jax.value_and_grad(loss)(student)

    keys = jax.random.split(jax.random.key(1), 4000)
    values, gradients = jax.jit(lambda keys: jax.lax.map(lambda key: by_scores(8, key), keys))(keys)
    times = np.asarray((gradients != 0).any(2).sum(0))
    assert (times[:40][~where] == 0).all() and (times[40:] == 0).all() and times.sum() == 8 * 4000
    share = 8 / 30
    chi = np.sum((times[:40][where] - 4000 * share) ** 2) / (4000 * share * (1 - share)) * 29 / 30
    assert 8.0 < chi < 66.2
    whole, exact = by_scores(0, keys[0])
    assert abs(np.mean(values) - whole) < 5 * np.std(values) / np.sqrt(4000)
    error = np.std(gradients, axis=0) / np.sqrt(4000)
    assert (abs(np.mean(gradients, 0) - exact) < 6 * error + 1e-3).all()


def test_fewer_users_than_may_be_sampled_count_once_each(small_split, tables):
    train, (teacher, student) = small_split.train, tables
    context = distillers.listwise().prepare(Teacher.of(teacher), train)
    ids, where = np.arange(40), np.arange(40) < 5

    def of(most, where):
        method = distillers.listwise(Listwise(users=most))
        return loss_of(method, context, (), batch_of(student, ids, where), jax.random.key(3))[0]

    np.testing.assert_allclose(of(8, where), of(0, where), rtol=1e-5)
    assert of(8, np.zeros(40, bool)) == 0


@pytest.mark.slow
def test_lists_give_probabilities_by_their_scores_or_by_rank(small_split):
    train = small_split.train
    seen = seen_of(train)
    rng = np.random.default_rng(8)
    items = np.stack([rng.permutation(ITEMS)[:20] for _ in range(USERS)]).astype(np.int32)
    items[5], items[6, 4:] = -1, -1
    scores = -np.sort(-rng.normal(size=items.shape), axis=1).astype(np.float32)
    scores[items < 0] = np.nan
    method = distillers.listwise(Listwise(teacher_temperature=0.5, rank_temperature=3.0, rest=0.25, top=6))
    variances = [np.var(own[listed >= 0]) for own, listed in zip(scores.astype(float), items) if (listed >= 0).any()]
    unit = np.sqrt(np.mean(variances))
    for given in (Lists(jnp.asarray(items)), Lists(jnp.asarray(items), jnp.asarray(scores))):
        context = method.prepare(Teacher.of(given), train)
        for u in range(USERS):
            places = [k for k, item in enumerate(items[u]) if item >= 0 and not seen[u, item]][:6]
            kept = np.asarray(context.items[u]) >= 0
            assert np.flatnonzero(kept).tolist() == places
            found = np.asarray(context.probabilities[u])
            assert (found[~kept] == 0).all()
            if places:
                logits = scores[u, places] / (0.5 * unit) if given.scores is not None else -np.arange(len(places)) / 3.0
                np.testing.assert_allclose(found[kept], 0.75 * softmax(logits.astype(float)), rtol=1e-4)


def test_teachers_of_unlike_scales_teach_alike(small_split, tables):
    train, (teacher, student) = small_split.train, tables
    ids, where = np.arange(6), np.ones(6, bool)
    method = distillers.listwise()

    def of(scale):
        context = method.prepare(Teacher.of(Representations(scale * teacher.users, teacher.items)), train)
        return loss_of(method, context, (), batch_of(student, ids, where))[0]

    np.testing.assert_allclose(of(0.01), of(1.0), rtol=1e-5)
    assert np.isfinite(of(0.0))  # all alike


@pytest.mark.slow
def test_students_learn_their_teachers_distribution(data, teacher):
    method = Listwise(weight=1.0, seen=0, temperature=1.0, teacher_temperature=0.1)
    student = htd_jax.distill(
        teacher, data, method=method, dim=4, epochs=5, eval_every=1, batch_size=64, learning_rate=0.02, progress=False
    )
    terms = [record["terms"]["listwise"] for record in student.records if "terms" in record]
    assert terms[-1] < 0.9 * terms[0]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["neumf", "lightgcn"])
def test_every_model_takes_it(data, teacher, model):
    with jax.numpy_rank_promotion("allow"):
        method = Listwise(users=4)
        settings = dict(method=method, model=model, dim=2, epochs=1, batch_size=512, progress=False)
        student = htd_jax.distill(teacher, data, **settings)
    assert np.isfinite(student.representations().users).all()


@pytest.mark.slow
def test_lists_teach_even_where_they_or_the_rest_are_empty():
    """User 0 has no list, user 1 no items other than its list and those it has seen."""
    pairs = lambda *rows: tuple(np.array(rows).T)
    split = make_split(pairs((0, 0), (1, 0), (2, 1)), pairs((0, 1)), pairs((1, 1)), 3, 4)
    lists = Lists(jnp.array([[-1, -1, -1], [3, 2, 1], [2, -1, -1]]))
    student = htd_jax.distill(lists, split, method="listwise", dim=2, epochs=2, cutoffs=(1,), progress=False)
    assert all(np.isfinite(table).all() for table in student.representations())


def test_a_list_of_one_perplexity_is_of_that_for_every_user_and_teacher(small_split, tables):
    train = small_split.train
    method = distillers.listwise(Listwise(top=12, perplexity=5.0, rest=0, users=0))
    users, items_table = tables[0]
    given = Teacher.of(tables[0])
    by_scores = method.prepare(given, train)
    items = given.top(train, 12)
    np.testing.assert_array_equal(by_scores.items, items)
    entropy = lambda p: -np.sum(np.where(p > 0, p * np.log(np.maximum(p, 1e-30)), 0), axis=1)
    shares = np.asarray(by_scores.probabilities, float)
    np.testing.assert_allclose(np.exp(entropy(shares)), 5, rtol=1e-3)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
    assert (np.diff(shares, axis=1) <= 1e-7).all()  # the best items count most

    by_lists = method.prepare(Teacher.of(Lists(items, given.score(items))), train)
    np.testing.assert_allclose(by_lists.probabilities, shares, atol=1e-5)
    louder = method.prepare(Teacher.of(Representations(users * 64, items_table)), train)
    np.testing.assert_allclose(louder.probabilities, shares, atol=1e-6)
    by_rank = np.asarray(method.prepare(Teacher.of(Lists(items)), train).probabilities, float)
    np.testing.assert_allclose(np.exp(entropy(by_rank)), 5, rtol=1e-3)
    np.testing.assert_allclose(by_rank[1:], by_rank[:1].repeat(len(by_rank) - 1, 0), atol=1e-6)
    with pytest.raises(UserError, match="`listwise.perplexity` needs a number of items; set `listwise.top`"):
        Listwise(perplexity=5.0).make(1)
