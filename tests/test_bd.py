"""BD: the loss and the samples against their definitions in NumPy, and both models in training."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rankings import Student, loss_of, sample, side_of
from scipy import stats

import htd_jax
from htd_jax import distillers
from htd_jax.data import make_split
from htd_jax.distillers import BD, Batch, Entities, Lists, Representations, Shapes, Teacher, Triples
from htd_jax.distillers.bd import SampledItems
from htd_jax.distillers.sampling import resample, unseen_ranks
from htd_jax.errors import UserError
from htd_jax.losses import bpr_loss, soft_bce_loss
from htd_jax.models import BPRSettings, ModelOf
from htd_jax.training import Checkpoints, adam, make_trainer, run_phase

# How often a test of samples fails by chance; seeds are fixed, so it fails always or never.
FALSE_ALARM = 1e-4


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


sigmoid = lambda x: 1 / (1 + np.exp(-x))


def definition(logits, guide, temperature, where):
    """The loss in float64, a pair at a time, and its gradient by the logits."""
    value, gradient = 0.0, np.zeros(logits.shape)
    for at in np.argwhere(where):
        s, q = logits[tuple(at)], sigmoid(np.clip(guide[tuple(at)] / temperature, -700, 700))
        value += q * np.logaddexp(0, -s) + (1 - q) * np.logaddexp(0, s)
        gradient[tuple(at)] = sigmoid(np.clip(s, -700, 700)) - q
    return value, gradient


def found(logits, guide, temperature, where):
    of = lambda s, g: soft_bce_loss(s, g, temperature=temperature, where=jnp.asarray(where))
    both = jnp.asarray(logits, jnp.float32), jnp.asarray(guide, jnp.float32)
    value, (by_logits, by_guide) = jax.jit(jax.value_and_grad(of, argnums=(0, 1)))(*both)
    assert not by_guide.any()
    return value, by_logits


# --- the loss


@pytest.mark.parametrize("temperature", [1.0, 5.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_the_loss_is_its_definition_at_any_scores(rng, temperature, scale):
    logits, guide, where = scale * rng.normal(size=(9, 4)), scale * rng.normal(size=(9, 4)), rng.random((9, 4)) < 0.7
    expected = definition(logits, guide, temperature, where)
    for junk in (0.0, np.nan, np.inf, -np.inf):
        logits[~where] = guide[~where] = junk
        for one, wanted in zip(found(logits, guide, temperature, where), expected):
            np.testing.assert_allclose(one, wanted, rtol=1e-4, atol=1e-5)


def test_a_mask_may_be_of_rows(rng):
    logits, guide = rng.normal(size=(2, 9, 4))
    rows = np.arange(9) % 3 > 0
    for one, wanted in zip(found(logits, guide, 2.0, rows), definition(logits, guide, 2.0, np.tile(rows[:, None], 4))):
        np.testing.assert_allclose(one, wanted, rtol=1e-4, atol=1e-5)


def test_halves_are_added_up_in_float32():
    x = jnp.ones((300, 10), jnp.float16)
    np.testing.assert_allclose(
        soft_bce_loss(x, x), 3000 * definition(np.ones((1, 1)), np.ones((1, 1)), 1, [[1]])[0], 1e-4
    )
    assert soft_bce_loss(x[:0], x[:0]) == 0


def test_what_the_loss_refuses():
    x = jnp.zeros((2, 3))
    for refused, name in (
        (lambda: soft_bce_loss(x[0], x[0]), "logits"),
        (lambda: soft_bce_loss(x, x[:1]), "guide"),
        (lambda: soft_bce_loss(x, x.astype(jnp.bfloat16)), "guide"),
        (lambda: soft_bce_loss(x, x, where=jnp.ones(3, bool)), "where"),
    ):
        with pytest.raises(AssertionError, match=name):
            refused()


# --- ranks and samples


USERS, ITEMS = 60, 90


@pytest.fixture(scope="module")
def tables():
    """Scores of a teacher and a student."""
    return np.random.default_rng(2).normal(size=(2, USERS, ITEMS)).astype(np.float32)


def seen_by(train):
    return [set(np.asarray(train.items)[np.asarray(train.users) == user]) for user in range(train.num_users)]


def ranks(scores, train):
    """By sorting: 1 is the best of the unseen; 0 for what is seen."""
    found = np.zeros(scores.shape, int)
    for row, of_user, seen in zip(scores, found, seen_by(train)):
        unseen = [item for item in range(len(row)) if item not in seen]
        for item in unseen:
            of_user[item] = 1 + sum(row[other] > row[item] for other in unseen)
    return found


@pytest.mark.parametrize("block", [1, 7, USERS])
def test_ranks_among_the_unseen_are_those_of_a_sort(small_split, tables, block, monkeypatch):
    """With ties, zeros of both signs and infinities among the scores."""
    monkeypatch.setattr("htd_jax.distillers.sampling.SCORES", block * ITEMS)
    train, scores = small_split.train, np.round(tables[0] * 2) / 2
    scores[:, 3], scores[:, 4], scores[:, 5], scores[:, 6] = 0.0, -0.0, np.inf, -np.inf
    items = jnp.broadcast_to(jnp.arange(ITEMS, dtype=jnp.int32), (USERS, ITEMS))
    got = np.asarray(jax.jit(lambda table: unseen_ranks(lambda users: table[users], train, items))(jnp.asarray(scores)))
    expected = ranks(scores, train)
    np.testing.assert_array_equal(got[expected > 0], expected[expected > 0])


def test_what_is_accepted_is_sampled_like_its_weight():
    weights, rows, proposals, count = np.array([0.0, 0.2, 1.0, 0.5, 0.05]), 2000, 64, 16
    keys = jax.random.split(jax.random.key(8))
    items = jax.random.randint(keys[0], (rows, proposals), 0, len(weights))
    sampled = np.asarray(
        jax.jit(lambda w: resample(keys[1], items, w[items], count))(jnp.asarray(weights, jnp.float32))
    )
    first = np.bincount(sampled[:, 0], minlength=len(weights))  # places of one row may repeat one another
    last = np.bincount(sampled[:, -1], minlength=len(weights))
    for times in (first, last):
        assert times[0] == 0
        expected = rows * weights[1:] / weights.sum()
        assert stats.chisquare(times[1:], expected).pvalue > FALSE_ALARM
    few = np.asarray(resample(keys[1], jnp.array([[7, 8, 9]]), jnp.array([[0.0, 1.0, 0.0]]), 5))
    assert few.tolist() == [[8] * 5]
    none = np.asarray(resample(keys[1], jnp.array([[7, 8, 9]]), jnp.zeros((1, 3)), 5))
    assert none.tolist() == [[-1] * 5]


def given(scores):
    """A teacher of these scores: its items are the unit vectors."""
    return Teacher.of(Representations(jnp.asarray(scores), jnp.eye(ITEMS)))


@pytest.mark.slow
@pytest.mark.parametrize("counted", ["best", "worst"])
def test_both_sample_by_the_difference_of_ranks(small_split, tables, counted):
    train, times, pool = small_split.train, 250, 40  # of 320 proposals, few of 90 items are not among them
    method = distillers.bd(BD(pool=pool, ranks=counted, student_scale=0.03, teacher_scale=0.02))
    context = method.prepare(given(tables[0]), train)
    refresh = lambda key: sample(method, context, key, Student(tables[1]), context.variables)
    sampled = jax.jit(lambda keys: jax.lax.map(refresh, keys))(jax.random.split(jax.random.key(4), times))
    chex.assert_shape((sampled.student, sampled.teacher), (times, USERS, pool))
    of_teacher, of_student = (ranks(scores, train) for scores in tables)
    lower = (of_student - of_teacher) * (1 if counted == "best" else -1)
    seen = of_teacher == 0
    for items, weights in (
        (sampled.student, np.tanh(np.maximum(0.03 * lower, 0))),
        (sampled.teacher, np.exp(-0.02 * lower)),
    ):
        weights = np.where(seen, 0, weights)
        statistic, freedom = 0.0, 0
        for user in range(USERS):
            one = np.asarray(items)[:, user, 0]  # one per epoch
            if not weights[user].any():
                assert (one == -1).all()
                continue
            kept = weights[user] > 0
            times_sampled = np.bincount(one, minlength=ITEMS)
            assert times_sampled[~kept].sum() == 0
            expected = times * weights[user][kept] / weights[user].sum()
            order = np.argsort(expected)  # the rare ones together, at least 5 expected in each class
            classes = np.minimum(np.cumsum(expected[order]) // 5, times // 5 - 1).astype(int)
            of_class = lambda x, c=classes, o=order: np.bincount(c, x[o])
            wanted, got = of_class(expected), of_class(times_sampled[kept])
            wanted, got = wanted[wanted > 0], got[wanted > 0]
            statistic += np.sum((got - wanted) ** 2 / wanted)
            freedom += len(wanted) - 1
        assert stats.chi2.sf(statistic, freedom) > FALSE_ALARM
    with pytest.raises(ValueError, match="ranks"):
        distillers.bd(BD(ranks="middle"))


# --- the method


def test_the_loss_of_a_batch_is_that_of_both_models(small_split, tables):
    """Every triple counts, masked ones do not; where nothing was sampled nothing is learned."""
    train = small_split.train
    method = distillers.bd(BD(samples=3, student_weight=0.3, teacher_weight=0.7, pool=4))
    context = method.prepare(given(tables[0]), train)
    params = method.init(jax.random.key(0), Shapes(USERS, ITEMS, 2), context)
    rng = np.random.default_rng(0)
    item = rng.integers(0, ITEMS, (2, USERS)).astype(np.int32)
    item[0, 5], item[1, 6] = -1, -1
    sampled = SampledItems(*(jnp.broadcast_to(jnp.asarray(of_side)[:, None], (USERS, 4)) for of_side in item))
    users = np.array([5, 6, 7, 7, 9])
    positives, negatives = rng.integers(0, ITEMS, (2, 5))
    where = np.array([1, 1, 1, 1, 0], bool)
    triples = Triples(*map(jnp.asarray, (users, positives, negatives, where)))
    side = side_of(users, where)

    @jax.jit
    def loss(params, student):
        batch = Batch(Entities(side, side, side, side), triples, Student(student).score)
        return loss_of(method, context, sampled, batch, jax.random.key(1), params=params)

    student = jnp.asarray(tables[1])
    (value, terms), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, student)
    wanted, by_teacher, by_student = {}, np.zeros((USERS, ITEMS)), np.zeros((USERS, ITEMS))
    sides = {
        "bd_student": (tables[1], tables[0], by_student, 0.3),
        "bd_teacher": (tables[0], tables[1], by_teacher, 0.7),
    }
    for (name, (own, other, gradient, weight)), items in zip(sides.items(), item):
        wanted[name] = 0
        for user in users[where]:
            if items[user] >= 0:
                one = [np.array([[x[user, items[user]]]], np.float64) for x in (own, other)]
                of_pair, by_pair = definition(*one, 5.0, [[True]])
                wanted[name] += 3 * of_pair
                gradient[user, items[user]] += 3 * weight * by_pair[0, 0]
    margin = (tables[0][users, positives] - tables[0][users, negatives])[where]
    wanted["teacher"] = bpr_loss(jnp.asarray(margin), jnp.zeros(4))
    np.add.at(by_teacher, (users[where], positives[where]), -sigmoid(-margin))
    np.add.at(by_teacher, (users[where], negatives[where]), sigmoid(-margin))
    assert set(terms) == set(wanted)
    for name in terms:
        np.testing.assert_allclose(terms[name], wanted[name], rtol=1e-5)
    total = 0.3 * wanted["bd_student"] + 0.7 * wanted["bd_teacher"] + wanted["teacher"]
    np.testing.assert_allclose(value, total, rtol=1e-5)
    np.testing.assert_allclose(gradients[1], by_student, atol=1e-5)
    np.testing.assert_allclose(gradients[0]["params"]["users"], by_teacher, atol=1e-5)  # items are unit vectors


FEW = dict(epochs=3, eval_every=1, batch_size=64, cutoffs=(20,), learning_rate=0.02, progress=False)


@pytest.fixture(scope="module")
def data():
    return htd_jax.data.make_synthetic(num_users=60, num_items=150)


@pytest.fixture(scope="module")
def teacher(data):
    return htd_jax.fit(data, dim=12, **FEW)


SMALL = BD(pool=8, period=2)


@pytest.mark.slow
def test_both_learn_and_both_are_measured(data, teacher):
    student = htd_jax.fit(data, dim=4, **FEW)
    found = htd_jax.distill(teacher, data, method=SMALL, dim=4, start=student, **FEW)
    assert set(found.chosen["terms"]) == {"loss", "base", "bd_student", "bd_teacher", "teacher"}
    assert found.records[-1]["terms"]["teacher"] < teacher.records[-1]["terms"]["loss"]
    assert found.records[-1]["terms"]["base"] < student.records[-1]["terms"]["loss"]
    assert found.records[-1]["second_model"]["test"] != teacher.metrics
    assert found.variables["params"]["users"].shape == (60, 4)


@pytest.mark.slow
def test_a_model_that_scores_by_no_product_is_taught_as_it_is(data):
    with jax.numpy_rank_promotion("allow"):  # NeuMF's
        settings = {**FEW, "epochs": 1}
        neumf = htd_jax.fit(data, model="neumf", dim=4, **settings)
        make_model, variables = neumf.teacher().learner()
        assert make_model == neumf.make_model
        chex.assert_trees_all_equal(variables, neumf.variables)
        found = htd_jax.distill(neumf, data, method=SMALL, dim=2, **settings)
    assert np.isfinite(found.chosen["terms"]["loss"])


def test_what_cannot_learn_is_refused(data):
    tables = Representations(jnp.zeros((60, 2)), jnp.zeros((150, 2)))
    with pytest.raises(UserError, match="representations"):
        htd_jax.distill(Lists(jnp.tile(jnp.arange(3), (60, 1))), data, method="bd", dim=2, **FEW)
    other = Teacher(representations=tables, scores=jax.tree_util.Partial(lambda users: jnp.zeros((len(users), 150))))
    with pytest.raises(UserError, match="a teacher that is trained further"):
        other.learner()
    assert Teacher(representations=tables).learner()[0] == ModelOf(BPRSettings(), 2)


@pytest.mark.slow
def test_users_with_one_unseen_item_and_equal_rankings_train():
    """Nobody has anything to learn of such a user, but the teacher."""
    pairs = lambda *rows: tuple(np.array(rows).T)
    split = make_split(pairs((0, 0), (0, 1), (1, 0), (2, 1)), pairs((1, 1)), pairs((2, 2)), 3, 3)
    tables = Representations(jnp.ones((3, 2)), jnp.ones((3, 2)))
    student = htd_jax.distill(tables, split, method=SMALL, dim=2, **{**FEW, "cutoffs": (1,)})
    assert all(np.isfinite(table).all() for table in student.representations())


@pytest.mark.slow
def test_a_killed_run_goes_on_between_rankings(data, teacher, tmp_path):
    method = SMALL.make(4)
    trainer = make_trainer(ModelOf(BPRSettings(), 4), method, adam(0.01, 1e-3), batch_size=256)
    runs = {}
    for name, stops in (("unbroken", (4,)), ("broken", (1, 4))):
        for epochs in stops:
            phase = dict(epochs=epochs, eval_every=1, checkpoints=Checkpoints(tmp_path / name), settings={})
            runs[name] = run_phase(trainer, lambda *_: {}, data, teacher.teacher(), jax.random.key(4), **phase)
    chex.assert_trees_all_equal(runs["broken"].variables, runs["unbroken"].variables)
    assert [x["terms"] for x in runs["broken"].records] == [x["terms"] for x in runs["unbroken"].records]
    trees = [Checkpoints(tmp_path / name).tree()["train"] for name in runs]
    jax.tree.map(np.testing.assert_array_equal, *trees)
