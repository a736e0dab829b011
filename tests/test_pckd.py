"""PCKD: the loss against its definition in NumPy, the sampling, and the experts' outputs for users and items."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import htd_jax
from htd_jax import distillers
from htd_jax.data import make_split
from htd_jax.distillers import (
    PCKD,
    Batch,
    Entities,
    EpochStart,
    Lists,
    Representations,
    Shapes,
    Side,
    Step,
    Teacher,
    Triples,
)
from htd_jax.distillers.experts import project
from htd_jax.distillers.pckd import Context
from htd_jax.errors import UserError
from htd_jax.losses import preference_loss

USERS, ITEMS, NARROW, WIDE, EXPERTS = 60, 90, 3, 5, 4
FALSE_ALARM = 1e-4  # the probability that a test of a correct distribution fails; the seeds are fixed


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


def softmax(x):
    powers = np.exp(x - x.max())
    return powers / powers.sum()


def definition(scores, guide, temperature, where):
    """Returns the loss in float64, a row at a time, and its gradient by the scores."""
    value, gradient = 0.0, np.zeros(scores.shape)
    for u, items in enumerate(map(np.flatnonzero, where)):
        if len(items):
            s, p = scores[u, items] / temperature, softmax(guide[u, items] / temperature)
            value += p @ (s.max() + np.log(np.exp(s - s.max()).sum()) - s)
            gradient[u, items] = (softmax(s) - p) / temperature
    return value, gradient


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_the_loss_is_its_definition_at_any_scores(rng, scale):
    scores, guide = scale * rng.normal(size=(2, 9, 5))
    where = (rng.random(9) < 0.7)[:, None] & (rng.random((9, 5)) < 0.6)
    where[0], where[1] = False, [1, 0, 0, 0, 0]
    expected = definition(scores, guide, 0.1, where)
    loss = lambda s, g: preference_loss(s, g, temperature=0.1, where=jnp.asarray(where))
    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    for junk in (0.0, np.nan, np.inf, -np.inf):
        scores[~where] = guide[~where] = junk
        value, (by_scores, by_guide) = both(*(jnp.asarray(x, jnp.float32) for x in (scores, guide)))
        assert not by_guide.any()
        np.testing.assert_allclose(value, expected[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(by_scores, expected[1], rtol=1e-4, atol=1e-4)


def test_a_mask_of_rows_masks_their_items(rng):
    scores, guide = jnp.asarray(rng.normal(size=(2, 9, 5)), jnp.float32)
    where = jnp.asarray(rng.random(9) < 0.7)
    expected = preference_loss(scores, guide, where=jnp.broadcast_to(where[:, None], (9, 5)))
    assert preference_loss(scores, guide, where=where) == expected


def test_halves_are_summed_in_float32():
    x = jnp.ones((3000, 2), jnp.float16)
    np.testing.assert_allclose(preference_loss(x, x), 3000 * np.log(2), rtol=1e-5)
    assert preference_loss(x[:0], x[:0]) == 0


def test_what_the_loss_refuses():
    x = jnp.zeros((2, 3))
    for refused, name in (
        (lambda: preference_loss(x[0], x[0]), "scores"),
        (lambda: preference_loss(x, x[:1]), "guide"),
        (lambda: preference_loss(x, x.astype(jnp.bfloat16)), "guide"),
        (lambda: preference_loss(x, x, where=jnp.ones(3, bool)), "where"),
        (lambda: preference_loss(x, x, where=jnp.ones((2, 2), bool)), "where"),
    ):
        with pytest.raises(AssertionError, match=name):
            refused()


# --- the method


@pytest.fixture(scope="module")
def tables():
    """Representations of a teacher and of a student."""
    rng = np.random.default_rng(3)
    return [[rng.normal(size=(rows, width)).astype(np.float32) for rows in (USERS, ITEMS)] for width in (WIDE, NARROW)]


def test_items_are_sampled_by_rank_from_the_teachers_best(small_split, tables):
    """A list of one shows the distribution: that of rank r is proportional to exp(-r / 3)."""
    train, times, pool = small_split.train, 300, 8
    method = distillers.pckd(PCKD(pool=pool, items=1, rank_temperature=3.0))
    context = method.prepare(Teacher.of(Representations(*map(jnp.asarray, tables[0]))), train)
    sample = lambda key: method.refresh(EpochStart({}, context, None, None, key, 0))
    sampled = np.asarray(jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(5), times)))[..., 0]
    scores = tables[0][0] @ tables[0][1].T
    scores[np.asarray(train.users), np.asarray(train.items)] = -np.inf
    best = np.argsort(-scores, axis=1)[:, :pool]
    full = np.flatnonzero(np.isfinite(scores).sum(1) >= pool)
    ranks = np.array([(sampled[:, user, None] == best[user]).argmax(1) for user in full])
    assert (sampled[:, full].T == np.take_along_axis(best[full], ranks, axis=1)).all()
    expected = np.exp(-np.arange(1, pool + 1) / 3)
    counts = np.bincount(ranks.ravel(), minlength=pool)
    assert stats.chisquare(counts, counts.sum() * expected / expected.sum()).pvalue > FALSE_ALARM


@pytest.mark.slow
def test_the_term_is_that_of_the_experts_outputs_and_trains_them_alone(small_split, tables):
    """The first triples of a batch stand for all; the mixture is DE's, the student is a constant in it."""
    train = small_split.train
    method = distillers.pckd(PCKD(experts=EXPERTS, items=3, pool=9, users=4, alpha=0.3), epochs=11)
    context = method.prepare(Teacher.of(Representations(*map(jnp.asarray, tables[0]))), train)
    params = method.init(jax.random.key(1), Shapes(USERS, ITEMS, NARROW), context)
    sampled = method.refresh(EpochStart(params, context, None, None, jax.random.key(2), 0))
    sampled = sampled.at[7, 2].set(-1).at[9].set(-1)
    users = jnp.array([7, 3, 9, 11, 5, 5, 2])
    where = jnp.array([1, 1, 1, 0, 1, 1, 0], bool)
    triples = Triples(users, users, users, where)
    key, epoch = jax.random.key(4), jnp.int32(0)  # at T = 1 every expert and gate counts

    @jax.jit
    def loss(params, student):
        side = lambda i: Side(student[i][users], context.representations[i][users], where, users)
        entities = Entities(side(0), side(1), side(1), side(1))
        represent = lambda users, items: (student[0][users], student[1][items])
        batch = Batch(entities, triples, None, represent=represent)
        return method.loss(Step(params, context, sampled, batch, key, epoch))[1]["preference"]

    student = [jnp.asarray(table) for table in tables[1]]
    value, (by_params, by_student) = jax.value_and_grad(loss, argnums=(0, 1))(params, student)
    first = np.asarray(users[:4])
    items = np.asarray(sampled)[first]
    ids = first, np.maximum(items, 0).ravel()
    heat = distillers.annealing(11, first=0)(epoch)
    rows = lambda of: tuple(jnp.asarray(table[chosen]) for table, chosen in zip(of, ids))
    projected = project(params, rows(tables[1]), rows(tables[0]), heat, jax.random.split(key)[1])
    products = lambda of: np.einsum("ud,uqd->uq", of[0], np.reshape(of[1], (4, 3, -1)))
    scores = products(projected), products(rows(tables[1]))
    expected, _ = definition(*scores, 0.1, np.asarray(where[:4])[:, None] & (items >= 0))
    np.testing.assert_allclose(value, expected * 5 / 3, rtol=1e-4)
    assert all(not table.any() for table in by_student)
    assert all(np.isfinite(x).all() and x.any() for x in jax.tree.leaves(by_params))


def test_outputs_are_mixtures_of_the_experts_by_the_gates(tables):
    """Against NumPy; at a low temperature each is one expert's, sampled with the gate's probabilities."""
    method = distillers.pckd(PCKD(experts=EXPERTS))
    context = Context(Representations(*map(jnp.asarray, tables[0])), jnp.zeros((USERS, 0), jnp.int32))
    params = method.init(jax.random.key(1), Shapes(USERS, ITEMS, NARROW), context)
    times = 3000
    first = lambda of: tuple(jnp.broadcast_to(jnp.asarray(table[:1]), (times, table.shape[1])) for table in of)
    run = jax.jit(lambda heat: project(params, first(tables[1]), first(tables[0]), heat, jax.random.key(6)))
    found = [np.asarray(outputs) for outputs in run(1e-10)]
    for i in range(2):
        own = jax.tree.map(lambda x, i=i: np.asarray(x[i], np.float64), params)
        student, teacher = tables[1][i][0].astype(np.float64), tables[0][i][0]
        hidden, output = own["experts"]["hidden"], own["experts"]["output"]
        outputs = [
            np.maximum(student @ hidden["kernel"][k] + hidden["bias"][k], 0) @ output["kernel"][k] + output["bias"][k]
            for k in range(EXPERTS)
        ]
        expert = np.argmin([np.abs(found[i] - one).max(1) for one in outputs], axis=0)
        np.testing.assert_allclose(found[i], np.array(outputs)[expert], atol=1e-5)
        gate = softmax(teacher @ own["gate"]["kernel"] + own["gate"]["bias"])
        assert stats.chisquare(np.bincount(expert, minlength=EXPERTS), times * gate).pvalue > FALSE_ALARM


FEW = dict(epochs=2, eval_every=1, cutoffs=(1,), progress=False)
SMALL = PCKD(experts=2, items=2, pool=3)


@pytest.mark.slow
def test_users_with_one_unseen_item_or_none_train():
    pairs = lambda *rows: tuple(np.array(rows).T)
    split = make_split(pairs((0, 0), (0, 1), (1, 0), (2, 1)), pairs((1, 1)), pairs((2, 2)), 3, 3)
    lists = Lists(jnp.array([[-1, -1], [1, 2], [0, 2]]))
    teacher = Teacher(Representations(jnp.ones((3, 2)), jnp.ones((3, 2))), lists=lists)
    student = htd_jax.distill(teacher, split, method=SMALL, dim=2, **FEW)
    assert all(np.isfinite(table).all() for table in student.representations())
    assert set(student.chosen["terms"]) == {"loss", "base", "de", "preference"}
    with pytest.raises(UserError, match="representations"):
        htd_jax.distill(lists, split, method=SMALL, dim=2, **FEW)
