"""FreqD: graph, filter and loss against dense matrices in NumPy, the sampling of edges, and a training."""

import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import htd_jax
from htd_jax import distillers
from htd_jax.data import make_split
from htd_jax.distillers import Batch, Entities, EpochStart, FreqD, Representations, Shapes, Side, Step, Teacher
from htd_jax.distillers.freqd import cooccurrence, smooth
from htd_jax.losses import cosine_hint_loss

USERS, ITEMS, NARROW, WIDE = 60, 90, 3, 5
FALSE_ALARM = 1e-4  # the probability that a test of a correct distribution fails; the seeds are fixed


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


def adjacency(train, count):
    """Returns the normalised graph of users as a matrix, a user at a time."""
    seen = np.zeros((train.num_users, train.num_items))
    seen[np.asarray(train.users), np.asarray(train.items)] = 1
    common = seen @ seen.T
    one_way = np.zeros(common.shape)
    for entity, row in enumerate(common):
        others = [other for other in np.argsort(-row, kind="stable") if other != entity and row[other] > 0]
        one_way[entity, others[:count]] = 1
    graph = (one_way + one_way.T) / 2
    sums = np.maximum(graph.sum(1), 1e-30)
    return graph / np.sqrt(sums[:, None] * sums[None, :])


def dense(near, size):
    """Returns the rows of a graph as a matrix."""
    matrix, owners = np.zeros((size, size)), np.concatenate([np.arange(size), near.owners])
    for owner, ids, weights in zip(owners, np.asarray(near.ids), np.asarray(near.weights)):
        if owner < size:
            np.add.at(matrix, (owner, ids), weights)
    return matrix


def hint(prediction, teacher, where):
    """Returns the loss in float64, a row at a time, and its gradient by the prediction."""
    value, gradient = 0.0, np.zeros(prediction.shape)
    for a in np.flatnonzero(where):
        y, t = prediction[a], teacher[a] / max(np.linalg.norm(teacher[a]), 1e-300)
        size = np.linalg.norm(y)
        if size == 0:
            value += 1
            continue
        cosine = y @ t / size
        value, gradient[a] = value + 1 - cosine, -(t - cosine * y / size) / size
    return value, gradient


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_loss_is_its_definition_at_any_size(rng, scale):
    prediction, teacher = scale * rng.normal(size=(2, 9, 4))
    where = rng.random(9) < 0.7
    where[:3], prediction[0], teacher[1] = True, 0, 0
    expected = hint(prediction, teacher, where)
    both = jax.jit(jax.value_and_grad(lambda y, t: cosine_hint_loss(y, t, where=jnp.asarray(where)), argnums=(0, 1)))
    for junk in (0.0, np.nan, np.inf):
        prediction[~where] = teacher[~where] = junk
        value, (by_prediction, by_teacher) = both(*(jnp.asarray(x, jnp.float32) for x in (prediction, teacher)))
        assert not by_teacher.any()
        np.testing.assert_allclose(value, expected[0], rtol=1e-4)
        np.testing.assert_allclose(by_prediction, expected[1], rtol=1e-3, atol=1e-4 / scale)
    with pytest.raises(AssertionError, match="teacher"):
        cosine_hint_loss(jnp.zeros((2, 3)), jnp.zeros((2, 4)))


@pytest.mark.parametrize("side", ["users", "items"])
def test_the_graph_is_its_definition(small_split, side, monkeypatch):
    """Computed in blocks; every edge has one number from both ends."""
    monkeypatch.setattr(sys.modules[cooccurrence.__module__], "BLOCK", 17)
    train = small_split.train if side == "users" else small_split.train.transposed()
    size, graph, expected = train.num_users, cooccurrence(train, 5), adjacency(train, 5)
    np.testing.assert_allclose(dense(graph.near, size), expected, atol=1e-6)
    assert graph.num_edges == np.count_nonzero(np.triu(expected))
    numbers = dense(graph.near._replace(weights=np.where(graph.near.weights > 0, graph.edges + 1, 0)), size)
    np.testing.assert_array_equal(numbers, numbers.T)
    assert len(np.unique(numbers[numbers > 0])) == graph.num_edges


@pytest.fixture(scope="module")
def context(small_split):
    rng = np.random.default_rng(3)
    tables = Representations(*(jnp.asarray(rng.normal(size=(rows, WIDE)), jnp.float32) for rows in (USERS, ITEMS)))
    return distillers.freqd(FreqD(neighbours=5)).prepare(Teacher.of(tables), small_split.train)


def test_an_epoch_keeps_a_share_of_edges_and_filters_the_teacher_with_these(context):
    times, kept = 300, 0.3
    method = distillers.freqd(FreqD(dropped=1 - kept, alpha=0.7))
    sample = jax.jit(jax.vmap(lambda key: method.refresh(EpochStart({}, context, None, None, key, 0))))
    sampled = sample(jax.random.split(jax.random.key(2), times))
    for name, graph, table in (("users", context.users, context.representations.users), ("items", context.items, None)):
        whole = dense(graph.near, USERS if name == "users" else ITEMS)
        one = dense(graph.near._replace(weights=sampled[name].weights[0]), len(whole))
        np.testing.assert_array_equal(one, one.T)  # both ends lose an edge
        np.testing.assert_allclose(one[one > 0], (whole / kept)[one > 0], rtol=1e-5)
        there = np.asarray(sampled[name].weights > 0).sum() / 2
        edges = times * graph.num_edges
        assert stats.binomtest(int(there), edges, kept).pvalue > FALSE_ALARM
        if table is not None:
            expected = 0.7 * one @ np.asarray(table) + 0.3 * np.asarray(table)
            np.testing.assert_allclose(sampled[name].teacher[0], expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("distance", ["cosine", "squares"])
def test_the_filter_after_the_projection_is_that_before_it(context, distance):
    """The loss and its gradient by the student's whole tables, against H P(S) in matrices."""
    method = distillers.freqd(FreqD(alpha=0.7, distance=distance))
    params = method.init(jax.random.key(1), Shapes(USERS, ITEMS, NARROW), context)
    sampled = jax.jit(lambda key: method.refresh(EpochStart(params, context, None, None, key, 0)))(jax.random.key(2))
    rng = np.random.default_rng(6)
    student = [jnp.asarray(rng.normal(size=(rows, NARROW)), jnp.float32) for rows in (USERS, ITEMS)]

    def side(size, rows):
        ids = jnp.asarray(rng.choice(size, rows, replace=False), jnp.int32)
        return Side(jnp.zeros((rows, 0)), jnp.zeros((rows, 0)), jnp.asarray(rng.random(rows) < 0.7), ids)

    entities = Entities(side(USERS, 20), side(ITEMS, 30), side(ITEMS, 25), side(ITEMS, 15))

    @jax.jit
    def found(params, student):
        represent = lambda users, items: (student[0][users], student[1][items])
        batch = Batch(entities, None, None, represent=represent)
        return method.loss(Step(params, context, sampled, batch, jax.random.key(0), 0))[0]

    matrices = {
        name: jnp.asarray(dense(getattr(context, name).near._replace(weights=sampled[name].weights), size), jnp.float32)
        for name, size in (("users", USERS), ("items", ITEMS))
    }

    @jax.jit
    def expected(params, student):
        total = 0.0
        sides = ("users", entities.users, 1.0), ("items", entities.positives, 0.5), ("items", entities.negatives, 0.5)
        for name, side, share in sides:
            i = ("users", "items").index(name)
            h = 0.7 * matrices[name] + 0.3 * jnp.eye(len(matrices[name]))
            projected = h @ (student[i] @ params[name]["kernel"] + params[name]["bias"][None])
            y, t = projected[side.ids], (h @ context.representations[i])[side.ids]
            unit = lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True)
            gaps = 1 - jnp.sum(unit(y) * unit(t), 1) if distance == "cosine" else jnp.sum((y - t) ** 2, 1)
            total += share * jnp.sum(jnp.where(side.where, gaps, 0))
        return total

    got, wanted = (jax.value_and_grad(of, argnums=(0, 1))(params, student) for of in (found, expected))
    chex.assert_trees_all_close(got, wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="distance"):
        distillers.freqd(FreqD(distance="far"))


@pytest.mark.slow
def test_entities_that_share_nothing_are_not_smoothed_and_train():
    """No two users share an item, and no user has two items: there is no edge."""
    pairs = lambda *rows: tuple(np.array(rows).T)
    split = make_split(pairs((0, 0), (1, 1)), pairs((0, 1)), pairs((1, 2)), 3, 4)
    graph = cooccurrence(split.train.transposed(), 5)
    assert graph.num_edges == 0
    table = jnp.ones((4, 2))
    np.testing.assert_allclose(smooth(table, graph.near, 0.25), 0.75 * table)
    tables = Representations(jnp.ones((3, 2)), jnp.ones((4, 2)))
    student = htd_jax.distill(tables, split, method="freqd", dim=2, epochs=2, cutoffs=(1,), progress=False)
    assert all(np.isfinite(x).all() for x in student.representations())
