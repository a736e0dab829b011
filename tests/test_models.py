"""Every base model against its definition in float64 NumPy, and each of its methods against the others."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import htd_jax
from htd_jax import losses
from htd_jax.data import Interactions
from htd_jax.errors import UserError
from htd_jax.models import (
    BPR,
    CML,
    Folded,
    InnerProduct,
    ItemVAE,
    LightGCN,
    ModelOf,
    ModelSettings,
    MultVAE,
    NeuMF,
    Recommender,
    lightgcn,
    make_graph,
)
from htd_jax.models.autoencoders import Autoencoder
from htd_jax.ops import neighbours
from htd_jax.training import own

USERS, ITEMS, DIM = 13, 29, 6

pytestmark = pytest.mark.usefixtures("no_implicit_broadcasting")


class Distance(Recommender):
    """A model from outside: the score is minus a distance, after a layer that is a Flax module."""

    def setup(self):
        self.users = self.param("users", nn.initializers.normal(1), (self.num_users, DIM))
        self.items = self.param("items", nn.initializers.normal(1), (self.num_items, DIM))
        self.layer = nn.Dense(3)

    def represent(self, users, items):
        return self.users[users], self.items[items]

    def score(self, users, items):
        return -jnp.sum((self.layer(self.users[users]) - self.layer(self.items[items])) ** 2, -1)

    def loss(self, users, positives, negatives, where):
        return losses.bpr_loss(self.score(users, positives), self.score(users, negatives), where=where)


@pytest.fixture
def graph(rng):
    """Users 0 and 12, and items 0 and 28, have no neighbours; one user has nearly all items."""
    users = np.append(rng.integers(1, 12, 40), np.full(26, 5))
    items = np.append(rng.integers(1, 28, 40), np.arange(1, 27))
    return Interactions.from_pairs(users, items, USERS, ITEMS)


MODELS = {
    "bpr": lambda graph: BPR(USERS, ITEMS, DIM),
    "neumf": lambda graph: NeuMF(USERS, ITEMS, DIM, layers=2),
    "neumf, one layer": lambda graph: NeuMF(USERS, ITEMS, DIM, layers=1),
    "neumf, more layers than halves": lambda graph: NeuMF(USERS, ITEMS, DIM, layers=6),
    "lightgcn": lambda graph: LightGCN(USERS, ITEMS, make_graph(graph), DIM, layers=2),
    "folded": lambda graph: Folded(USERS, ITEMS, graph, DIM),
    "cml": lambda graph: CML(USERS, ITEMS, DIM),
    "multvae": lambda graph: MultVAE(USERS, ITEMS, graph, DIM),
    "itemvae": lambda graph: ItemVAE(USERS, ITEMS, graph.transposed(), DIM),
    "foreign": lambda graph: Distance(USERS, ITEMS),
}


@pytest.fixture(params=MODELS)
def model(request, graph):
    return MODELS[request.param](graph)


def init(model, rng):
    """Variables in which nothing is small, and no bias zero."""
    nothing = jnp.zeros(1, jnp.int32)
    variables = model.init(jax.random.key(0), nothing, nothing, method="score")
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), variables)


def f64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


# --- one interface


@pytest.mark.slow
def test_methods_agree_in_values_and_shapes(model, rng):
    variables = init(model, rng)
    call = lambda method, *arguments: jax.jit(lambda v: model.apply(v, *arguments, method=method))(variables)
    users, items = jnp.array([5, 0, 12, 5]), jnp.arange(ITEMS)
    every = call("score_all", users)
    chex.assert_shape(every, (4, ITEMS))
    chex.assert_type(jax.tree.leaves(variables), jnp.float32)
    chex.assert_type(every, jnp.float32)
    same = lambda scores, expected: np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
    same(call("score", users[:, None], items[None]), every)
    same(call("score_each", users, items), every)
    some = jnp.asarray(rng.integers(0, ITEMS, (4, 7)))
    same(call("score", users[:, None], some), np.take_along_axis(np.asarray(every), np.asarray(some), 1))
    same(call("score", users, some[:, 0]), every[jnp.arange(4), some[:, 0]])
    np.testing.assert_array_equal(call("__call__", users, users), call("score", users, users))
    of_users, of_items = call("represent", users, items)
    chex.assert_shape(of_users, (4, None))
    chex.assert_shape(of_items, (ITEMS, of_users.shape[1]))


@pytest.mark.slow
def test_one_bound_module_serves_several_methods_also_in_a_loop(model, rng):
    variables = init(model, rng)
    users = jnp.arange(6)

    @jax.jit
    def both(variables):
        def use(model):
            first = model.represent(users, users)
            return first, jax.lax.map(model.score_all, users.reshape(3, 2))

        return nn.apply(use, model)(variables)

    represented, scores = both(variables)
    chex.assert_trees_all_close(represented, model.apply(variables, users, users, method="represent"), rtol=1e-5)
    np.testing.assert_allclose(
        scores.reshape(6, ITEMS), model.apply(variables, users, method="score_all"), rtol=1e-4, atol=1e-5
    )


def test_a_masked_triple_changes_nothing(model, rng):
    if isinstance(model, Autoencoder):
        model = model.clone(dropout=0, beta=0)  # noise differs between batches of different sizes
    variables = init(model, rng)
    users, positives, negatives = (jnp.asarray(rng.integers(0, size, 9)) for size in (USERS, ITEMS, ITEMS))
    where = jnp.asarray(rng.random(9) < 0.6)
    of = jax.jit(jax.value_and_grad(lambda v, *triples: model.apply(v, *triples, method="loss")))
    loss = functools.partial(of, variables)
    masked = loss(users, positives, negatives, where)
    other = lambda ids: jnp.where(where, ids, 0)
    chex.assert_trees_all_close(masked, loss(other(users), other(positives), other(negatives), where), rtol=1e-5)
    kept = [ids[where] for ids in (users, positives, negatives)]
    chex.assert_trees_all_close(masked, loss(*kept, jnp.ones(len(kept[0]), bool)), rtol=1e-4, atol=1e-5)
    nothing = loss(users, positives, negatives, jnp.zeros(9, bool))
    chex.assert_trees_all_equal(nothing, jax.tree.map(jnp.zeros_like, nothing))


def test_the_base_class_leaves_three_methods_to_models():
    ids = jnp.zeros(1, jnp.int32)
    for method, arguments in {"represent": 2, "score": 2, "loss": 4, "score_all": 1}.items():
        with pytest.raises(NotImplementedError):
            Recommender(2, 2).apply({}, *[ids] * arguments, method=method)


def test_ids_of_different_ranks_are_refused(model, rng):
    variables = init(model, rng)
    if not isinstance(model, Distance):
        with pytest.raises(AssertionError):
            model.apply(variables, jnp.zeros(3, int), jnp.zeros((3, 2), int), method="score")


# --- precision


class Shifted(InnerProduct):
    """A model from outside that declares no precision of its own."""

    dim: int
    shift: float = 0.5

    def setup(self):
        table = lambda name, rows: self.shift + self.param(name, nn.initializers.normal(1), (rows, self.dim))
        self.keep(table("users", self.num_users), table("items", self.num_items))


@dataclasses.dataclass(frozen=True)
class ShiftedSettings(ModelSettings):
    module = Shifted


@dataclasses.dataclass(frozen=True)
class DistanceSettings(ModelSettings):
    module = Distance

    def build(self, train, dim):
        return Distance(train.num_users, train.num_items)


@pytest.mark.parametrize("precision", ["float16", "int8", "int4", "int3", "int2"])
def test_every_inner_product_model_takes_a_precision(graph, rng, precision):
    plain, small = ModelOf(ShiftedSettings(), DIM)(graph), ModelOf(ShiftedSettings(), DIM, precision)(graph)
    assert (plain.precision, small.precision, small.shift) == ("float32", precision, 0.5)
    variables = init(plain, rng)
    tables = small.apply(variables, method="rows")
    assert {rows.precision for rows in tables} == {precision}
    users, items = (np.asarray(rows.floats()) for rows in tables)
    found = small.apply(variables, jnp.arange(USERS), method="score_all")
    np.testing.assert_allclose(found, users @ items.T, rtol=1e-5, atol=1e-4)
    assert (np.asarray(found) != np.asarray(plain.apply(variables, jnp.arange(USERS), method="score_all"))).any()


def test_any_other_model_takes_float32_alone(graph):
    assert ModelOf(DistanceSettings(), DIM)(graph) == Distance(USERS, ITEMS)
    with pytest.raises(UserError, match="`precision` must be float32: scores of Distance are not inner products"):
        ModelOf(DistanceSettings(), DIM, "int8")(graph)


# --- NeuMF


def neumf(params, users, items, layers):
    """Logits `[n]`, pair by pair, the tower on the joined rows."""
    scores = []
    for user, item in zip(params["users"][users], params["items"][items]):
        units = np.concatenate([user[DIM:], item[DIM:]])
        for layer in range(layers):
            units = np.maximum(units @ params[f"kernel{layer}"] + params[f"bias{layer}"], 0)
        joined = np.concatenate([user[:DIM] * item[:DIM], units])
        scores.append((joined @ params[f"kernel{layers}"] + params[f"bias{layers}"])[0])
    return np.array(scores)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_neumf_is_its_definition(rng, layers):
    model = NeuMF(USERS, ITEMS, DIM, layers)
    variables = init(model, rng)
    users, items = np.repeat(np.arange(USERS), ITEMS), np.tile(np.arange(ITEMS), USERS)
    expected = neumf(f64(variables["params"]), users, items, layers)
    np.testing.assert_allclose(model.apply(variables, users, items, method="score"), expected, rtol=1e-5, atol=1e-4)
    every = model.apply(variables, jnp.arange(USERS), method="score_all")
    np.testing.assert_allclose(every, expected.reshape(USERS, ITEMS), rtol=1e-5, atol=1e-4)


def test_neumf_starts_as_published():
    model = NeuMF(500, 400, 50, layers=2)
    ids = jnp.zeros(1, jnp.int32)
    params = model.init(jax.random.key(0), ids, ids, method="score")["params"]
    shapes = {name: value.shape for name, value in params.items()}
    assert shapes == {
        "users": (500, 100),
        "items": (400, 100),
        "kernel0": (100, 50),
        "bias0": (50,),
        "kernel1": (50, 25),
        "bias1": (25,),
        "kernel2": (75, 1),
        "bias2": (1,),
    }
    np.testing.assert_allclose([params["users"].std(), params["items"].std()], 0.01, rtol=0.02)
    np.testing.assert_allclose(params["kernel0"].std(), np.sqrt(2 / 150), rtol=0.05)
    represented = model.apply({"params": params}, jnp.arange(3), jnp.arange(4), method="represent")
    chex.assert_trees_all_equal(represented, (params["users"][:3], params["items"][:4]))


# --- LightGCN


def operator(graph, layers):
    """The dense matrix `[users + items, users + items]` that `propagate` applies."""
    size = graph.num_users + graph.num_items
    adjacency = np.zeros((size, size))
    users, items = np.asarray(graph.users), graph.num_users + np.asarray(graph.items)
    adjacency[users, items] = adjacency[items, users] = 1
    degree = adjacency.sum(1)
    scale = np.divide(1, np.sqrt(degree), out=np.zeros(size), where=degree > 0)
    normalised = scale[:, None] * adjacency * scale
    return sum(np.linalg.matrix_power(normalised, layer) for layer in range(layers + 1)) / (layers + 1)


# width: a row a pair, rows that are full and short, a row an entity
@pytest.mark.slow
@pytest.mark.parametrize(("layers", "width"), [(0, 8), (1, 3), (2, 1), (2, 64), (3, 3), (3, 8)])
def test_propagate_is_the_dense_product_and_so_is_its_gradient(graph, rng, monkeypatch, layers, width):
    monkeypatch.setattr(neighbours, "WIDTH", width)
    x, cotangent = rng.normal(size=(2, USERS + ITEMS, DIM))
    tables = lambda x: (jnp.asarray(x[:USERS], jnp.float32), jnp.asarray(x[USERS:], jnp.float32))
    expected = operator(graph, layers)
    propagate = lambda tables, train: lightgcn.propagate(tables, make_graph(train), layers)
    apply = jax.jit(lambda tables, train: jax.vjp(lambda tables: propagate(tables, train), tables))
    out, transpose = apply(tables(x), graph)
    np.testing.assert_allclose(np.concatenate(out), expected @ x, atol=2e-6)
    (gradient,) = transpose(tables(cotangent))
    np.testing.assert_allclose(np.concatenate(gradient), expected.T @ cotangent, atol=2e-6)


def test_who_has_no_neighbours_keeps_a_share_of_itself(graph, rng):
    x = rng.normal(size=(USERS + ITEMS, DIM)).astype(np.float32)
    users, items = lightgcn.propagate((jnp.asarray(x[:USERS]), jnp.asarray(x[USERS:])), make_graph(graph), 2)
    np.testing.assert_allclose(users[jnp.array([0, 12])], x[[0, 12]] / 3, rtol=1e-6)
    np.testing.assert_allclose(items[jnp.array([0, 28])], x[[USERS, USERS + 28]] / 3, rtol=1e-6)


def test_propagate_refuses_tables_of_other_sizes(graph):
    with pytest.raises(AssertionError):
        lightgcn.propagate((jnp.zeros((USERS + 1, 2)), jnp.zeros((ITEMS, 2))), make_graph(graph), 1)


@pytest.mark.parametrize("layers", [3])
def test_lightgcn_loss_and_gradient_are_their_definitions(graph, rng, layers):
    model = LightGCN(USERS, ITEMS, make_graph(graph), DIM, layers)
    variables = init(model, rng)
    users, positives, negatives = (rng.integers(0, size, 20) for size in (USERS, ITEMS, ITEMS))
    users[:2], positives[:2] = (0, 5), (3, 28)  # without neighbours
    where = rng.random(20) < 0.8
    matrix = operator(graph, layers)

    def definition(tables):
        out = matrix @ tables
        score = lambda items: np.sum(out[users] * out[USERS + items], axis=1)
        return oracle.bpr(score(positives), score(negatives), where)

    # interactions traced, as in a compiled epoch
    loss = lambda v, train: LightGCN(USERS, ITEMS, make_graph(train), DIM, layers).apply(
        v, users, positives, negatives, jnp.asarray(where), method="loss"
    )
    value, gradient = jax.jit(jax.value_and_grad(loss))(variables, graph)
    params = f64(variables["params"])
    tables = np.concatenate([params["users"], params["items"]])
    np.testing.assert_allclose(value, definition(tables), rtol=1e-5)
    gradient = f64(gradient["params"])
    gradient = np.concatenate([gradient["users"], gradient["items"]])
    for _ in range(5):
        direction = rng.normal(size=tables.shape)
        slope = oracle.slope(definition, tables, direction)
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-4, atol=1e-4)


# --- CML


def test_cml_is_its_definition(rng):
    model = CML(USERS, ITEMS, DIM, margin=0.7)
    variables = jax.tree.map(lambda x: x * 0.5, init(model, rng))  # rows within the ball and outside of it
    ball = lambda rows: rows / np.maximum(1, np.linalg.norm(rows, axis=1, keepdims=True))
    tables = f64(variables["params"])
    assert {bool(x) for x in np.linalg.norm(tables["items"], axis=1) > 1} == {True, False}
    users, positives, negatives = (rng.integers(0, size, 40) for size in (USERS, ITEMS, ITEMS))
    where = rng.random(40) < 0.8

    def definition(tables):
        users_in, items_in = ball(tables[:USERS]), ball(tables[USERS:])
        apart = lambda items: np.sum((users_in[users] - items_in[items]) ** 2, axis=1)
        return np.sum(np.maximum(0, 0.7 + apart(positives) - apart(negatives)) * where)

    tables = np.concatenate([tables["users"], tables["items"]])
    triples = users, positives, negatives, jnp.asarray(where)
    value, gradient = jax.value_and_grad(lambda v: model.apply(v, *triples, method="loss"))(variables)
    np.testing.assert_allclose(value, definition(tables), rtol=1e-5)
    gradient = np.concatenate([f64(gradient["params"][name]) for name in ("users", "items")])
    direction = rng.normal(size=tables.shape)
    np.testing.assert_allclose(np.sum(gradient * direction), oracle.slope(definition, tables, direction), rtol=1e-4)


def test_a_row_of_zeros_has_a_gradient():
    model = CML(2, 3, DIM)
    variables = {"params": {"users": jnp.zeros((2, DIM)), "items": jnp.zeros((3, DIM))}}
    one = jnp.ones(1, jnp.int32)
    gradient = jax.grad(lambda v: model.apply(v, one, one, one + 1, one > 0, method="loss"))(variables)
    chex.assert_trees_all_equal(gradient, variables)


# --- autoencoders


def autoencoder(params, decoded, matrix, entities, noise=0.0, kept=None):
    """Rows, means and log-variances of entities, from the dense matrix `[entities, others]`."""
    layer = lambda name, x: x @ params[name] + params[f"{name}_bias"]
    x = matrix[entities] / np.sqrt(np.maximum(matrix[entities].sum(1, keepdims=True), 1))
    hidden = np.tanh((x if kept is None else x * kept[None] / 0.5) @ params["encoder"] + params["encoder_bias"])
    mean, log_variance = layer("mean", hidden), layer("log_variance", hidden)
    latent = mean + np.exp(log_variance / 2) * noise
    rows = np.append(np.tanh(layer("decoder", latent)), np.ones((len(x), 1)), axis=1)
    return rows, mean, log_variance


@pytest.mark.parametrize("side", ["users", "items"])
def test_autoencoders_are_their_definitions(graph, rng, side, monkeypatch):
    """With entities that have no neighbours, and masked ones."""
    matrix = np.zeros((USERS, ITEMS))
    matrix[np.asarray(graph.users), np.asarray(graph.items)] = 1
    by_user = side == "users"
    model = MultVAE(USERS, ITEMS, graph, DIM) if by_user else ItemVAE(USERS, ITEMS, graph.transposed(), DIM)
    matrix, other = (matrix, "items") if by_user else (matrix.T, "users")
    variables = jax.tree.map(lambda x: x / 2, init(model, rng))
    size, number = matrix.shape[1], 9
    kept, noise = rng.random(size) < 0.5, rng.normal(size=(number, DIM))
    monkeypatch.setattr(jax.random, "bernoulli", lambda key, p, shape: jnp.asarray(kept[:, None]))
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.asarray(noise, jnp.float32))
    entities, where = np.arange(number), rng.random(number) < 0.7
    where[0] = True  # has no neighbours
    chosen = jnp.asarray(entities)
    zeros = jnp.zeros_like(chosen)
    triples = (chosen, zeros, zeros) if by_user else (zeros, chosen, zeros)
    rngs = {"noise": jax.random.key(0)}
    loss = lambda v: model.apply(v, *triples, jnp.asarray(where), method="loss", rngs=rngs)
    value, gradient = jax.value_and_grad(loss)(variables)

    def definition(params):
        rows, mean, log_variance = autoencoder(params, other, matrix, entities, noise, kept)
        scores = rows @ params[other].T
        log_shares = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        divergence = np.sum(np.exp(log_variance) + mean**2 - 1 - log_variance, axis=1) / 2
        return np.sum((0.2 * divergence - np.sum(matrix[entities] * log_shares, axis=1))[where])

    params = f64(variables["params"])
    np.testing.assert_allclose(value, definition(params), rtol=1e-5)
    directions = {name: rng.normal(size=x.shape) for name, x in params.items()}
    moved = lambda step: definition({name: x + step * directions[name] for name, x in params.items()})
    slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
    found = sum(np.sum(np.asarray(gradient["params"][name], np.float64) * directions[name]) for name in params)
    np.testing.assert_allclose(found, slope, rtol=1e-3, atol=1e-3)

    rows, _, _ = autoencoder(params, other, matrix, np.arange(len(matrix)))
    scores = rows @ params[other].T
    every = model.apply(variables, jnp.arange(USERS), method="score_all")
    np.testing.assert_allclose(every, scores if by_user else scores.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [MODELS["multvae"], MODELS["itemvae"]], ids=["multvae", "itemvae"])
def test_the_parameters_with_a_row_per_entity_are_declared(graph, make):
    model, ids = make(graph), jnp.zeros(1, jnp.int32)
    params = model.init(jax.random.key(0), ids, ids, method="score")["params"]
    sizes = {"users": USERS, "items": ITEMS}
    assert {name for name, x in params.items() if len(x) in sizes.values()} == {*model.rows_of}
    assert all(len(params[name]) == sizes[side] for name, side in model.rows_of.items())


# --- binary cross-entropy


@pytest.mark.parametrize("rows", [0, 1, 300])
def test_bce_is_its_definition(rng, rows):
    scores, where = 5 * rng.normal(size=(2, rows)), rng.random(rows) < 0.7
    scores[:, : rows // 10] *= 1000
    positive, negative = jnp.asarray(scores, jnp.float32)
    value, gradients = jax.value_and_grad(losses.bce_loss, (0, 1))(positive, negative, where=jnp.asarray(where))
    exact = f64((positive, negative))
    expected = np.sum(np.logaddexp(0, -exact[0][where])) + np.sum(np.logaddexp(0, exact[1][where]))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    sigmoid = lambda x: np.exp(-np.logaddexp(0, -x))
    np.testing.assert_allclose(gradients[0], -sigmoid(-exact[0]) * where, atol=1e-6)
    np.testing.assert_allclose(gradients[1], sigmoid(exact[1]) * where, atol=1e-6)


def test_bce_neither_overflows_nor_vanishes():
    scores = jnp.array([1e4, -1e4, 0.0])
    value, gradients = jax.value_and_grad(losses.bce_loss, (0, 1))(scores, scores)
    np.testing.assert_allclose(value, 2e4 + 2 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradients[0], [0, -1, -0.5], atol=1e-6)
    np.testing.assert_allclose(gradients[1], [1, 0, 0.5], atol=1e-6)


def test_bce_ignores_what_a_masked_row_holds():
    scores, where = jnp.array([1.0, jnp.nan, jnp.inf]), jnp.array([True, False, False])
    value, gradients = jax.value_and_grad(losses.bce_loss, (0, 1))(scores, -scores, where=where)
    np.testing.assert_allclose(value, 2 * np.logaddexp(0, -1), rtol=1e-6)
    np.testing.assert_allclose(gradients, np.array([[-1, 0, 0], [1, 0, 0]]) / (1 + np.e), atol=1e-6)
    with pytest.raises(AssertionError):
        losses.bce_loss(scores, scores[:2])


# --- training


@pytest.mark.slow
@pytest.mark.parametrize(("model", "method"), [("cml", "htd"), ("multvae", "rrd"), ("itemvae", "bd")])
def test_the_models_teach_and_learn(small_split, model, method):
    few = dict(epochs=2, progress=False)
    teacher = htd_jax.fit(small_split, model=model, dim=8, **few)
    first, last = (record["terms"]["loss"] for record in (teacher.records[0], teacher.records[-1]))
    assert last < first
    student = htd_jax.distill(teacher, small_split, method=method, model="bpr", dim=4, **few)
    assert all(np.isfinite(list(record["terms"].values())).all() for record in student.records)


@pytest.mark.parametrize("batches", ["users", "items"])
def test_an_epoch_goes_through_every_entity_once(graph, batches):
    objective = own(batches)
    steps, width = objective.steps(graph, 5)
    batch = jax.tree.map(np.ravel, objective.sample(jax.random.split(jax.random.key(0)), graph, 5))
    ids, side = (batch.users, graph.users) if batches == "users" else (batch.positives, graph.items)
    assert len(ids) == steps * width
    assert sorted(ids[batch.where]) == sorted({*np.asarray(side).tolist()})
    pairs = {*zip(np.asarray(graph.users).tolist(), np.asarray(graph.items).tolist())}
    users, positives, negatives = (x[batch.where].tolist() for x in batch[:3])
    assert {*zip(users, positives)} <= pairs and not {*zip(users, negatives)} & pairs
