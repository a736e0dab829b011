"""Items alone: pooling and the model against their definitions, training, export and new users."""

import dataclasses
import json

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import start_command

import htd_jax
from htd_jax.data import Interactions, fingerprint, load_dataset, save_dataset
from htd_jax.errors import UserError
from htd_jax.models import Folded, FoldedSettings, ModelOf
from htd_jax.ops import pooling
from htd_jax.ops.eager import sum_over_blocks
from htd_jax.ops.pooling import Histories, pool

USERS, ITEMS, DIM = 13, 29, 6

pytestmark = pytest.mark.usefixtures("no_implicit_broadcasting")


@pytest.fixture
def train(rng):
    """User 0 and item 0 have no pairs, and user 5 nearly all."""
    users = np.append(rng.integers(1, 12, 40), np.full(26, 5))
    items = np.append(rng.integers(1, 28, 40), np.arange(1, 27))
    return Interactions.from_pairs(users, items, USERS, ITEMS)


def seen(train):
    """Which user has seen which item, `[num_users, num_items]` float64."""
    x = np.zeros((train.num_users, train.num_items))
    x[np.asarray(train.users), np.asarray(train.items)] = 1
    return x


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_pooling_and_its_gradient_are_sums_over_histories(train, rng, monkeypatch, size):
    monkeypatch.setattr(pooling, "ON_CPU", size)
    table = jnp.asarray(rng.normal(size=(ITEMS, DIM)), jnp.float32)
    users = jnp.array([5, 0, 12, 5, 3, 0, 7])
    weights = rng.normal(size=(len(users), DIM))
    histories = Histories(train.offsets, train.items)
    value = jax.jit(lambda table: pool(table, histories, users))
    expected = seen(train)[np.asarray(users)]
    np.testing.assert_allclose(value(table), expected @ np.asarray(table, np.float64), rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda table: jnp.sum(value(table) * jnp.asarray(weights, jnp.float32)))(table)
    np.testing.assert_allclose(gradient, expected.T @ weights, rtol=1e-5, atol=1e-5)


def test_pooling_of_nothing_is_zero():
    table, none = jnp.ones((3, 2)), jnp.zeros(0, jnp.int32)
    np.testing.assert_array_equal(pool(table, Histories(jnp.zeros(5, jnp.int32), none), jnp.arange(4)), 0)
    assert pool(table, Histories(jnp.array([0, 1]), jnp.array([2])), none).shape == (0, 2)


def scores_by_definition(params, train, leaves_out):
    """Scores `[num_users, num_items]` in NumPy, user by user; with `leaves_out`, of seen items without themselves."""
    x, y = seen(train), params["items"]
    scores = np.zeros((USERS, ITEMS))
    for user in range(USERS):
        factor = max(x[user].sum(), 1) ** -params["power"]
        for item in range(ITEMS):
            history = x[user].copy()
            if leaves_out:
                history[item] = 0
            scores[user, item] = (factor * (history @ y) @ params["map"] + params["bias"]) @ y[item]
    return scores


def variables_of(model, rng):
    nothing = jnp.zeros(1, jnp.int32)
    variables = model.init(jax.random.key(0), nothing, nothing, method="score")
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) / 2, jnp.float32), variables)


@pytest.mark.parametrize("leaves_out", [False, True])
def test_scores_are_their_definition_and_so_are_gradients(train, rng, leaves_out):
    model = ModelOf(FoldedSettings(), DIM)(train)
    model = model.in_step() if leaves_out else model
    variables = variables_of(model, rng)
    params = {name: np.asarray(x, np.float64) for name, x in variables["params"].items()}
    expected = scores_by_definition(params, train, leaves_out)
    every = jnp.arange(USERS)
    same = lambda scores, expected: np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
    call = jax.jit(model.apply, static_argnames="method")
    same(call(variables, every, method="score_all"), expected)
    same(call(variables, every[:, None], jnp.arange(ITEMS)[None], method="score"), expected)
    same(call(variables, every, jnp.array([3, 3, 0]), method="score_each"), expected[:, [3, 3, 0]])
    same(call(variables, jnp.array([1, 8]), method="score_users"), expected[:, [1, 8]].T)

    weights = rng.normal(size=expected.shape)
    weighted = lambda v: jnp.sum(model.apply(v, every, method="score_all") * jnp.asarray(weights, jnp.float32))
    gradient = jax.jit(jax.grad(weighted))(variables)["params"]
    total = lambda params: np.sum(scores_by_definition(params, train, leaves_out) * weights)
    for name, at in [("items", (7, 2)), ("items", (0, 0)), ("map", (1, 4)), ("bias", (3,)), ("power", ())]:
        more, less = ({**params, name: params[name].copy()} for _ in range(2))
        more[name][at] += 1e-4
        less[name][at] -= 1e-4
        np.testing.assert_allclose(gradient[name][at], (total(more) - total(less)) / 2e-4, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["float16", "int8", "int4"])
def test_users_are_float_rows_of_the_rounded_items(train, rng, precision):
    model = ModelOf(FoldedSettings(), DIM, precision)(train)
    variables = variables_of(model, rng)
    users, items = model.apply(variables, method="rows")
    assert (users.precision, items.precision) == ("float32", precision)
    found = model.apply(variables, jnp.arange(USERS), method="score_all")
    np.testing.assert_allclose(found, users.floats() @ items.floats().T, rtol=1e-5, atol=1e-5)
    params = {name: np.asarray(x, np.float64) for name, x in variables["params"].items()}
    params["items"] = np.asarray(items.floats(), np.float64)
    np.testing.assert_allclose(found, scores_by_definition(params, train, False), rtol=1e-3, atol=1e-3)


def test_the_gradient_of_blocks_of_users_is_that_of_all(train, rng):
    model = ModelOf(FoldedSettings(), DIM, "int4")(train).in_step()
    variables = variables_of(model, rng)
    every, weights = jnp.arange(USERS), jnp.asarray(rng.normal(size=(USERS, 1)), jnp.float32)
    of_block = lambda scores, weights: jnp.sum(scores**2 * weights)
    in_blocks = lambda bound: sum_over_blocks(bound.score_all, of_block, every, weights, 5)
    at_once = lambda bound: of_block(bound.score_all(every), weights)
    first, second = (jax.jit(jax.grad(nn.apply(f, model)))(variables) for f in (in_blocks, at_once))
    chex.assert_trees_all_close(first, second, rtol=1e-3, atol=1e-3)


def test_elsa_is_a_special_case(train, rng):
    """x (A A' - I): rows of length one, no map, no bias, no power."""
    model = Folded(USERS, ITEMS, train, DIM).in_step()
    rows = rng.normal(size=(ITEMS, DIM))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    params = {"items": rows, "map": np.eye(DIM), "bias": np.zeros(DIM), "power": np.zeros(())}
    variables = {"params": jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)}
    found = model.apply(variables, jnp.arange(USERS), method="score_all")
    np.testing.assert_allclose(found, seen(train) @ (rows @ rows.T - np.eye(ITEMS)), rtol=1e-4, atol=1e-5)


# --- served


@pytest.fixture(scope="module")
def fitted():
    data = htd_jax.data.make_synthetic(num_users=60, num_items=90)
    return htd_jax.fit(data, model=ModelOf(FoldedSettings(), 4, "int4"), epochs=1, progress=False)


def test_an_export_holds_items_and_a_map_and_gives_the_lists_of_the_model(fitted, tmp_path):
    train = fitted.train
    fitted.retriever(seen=train).save(tmp_path / "whole", seen=True)
    opened = htd_jax.load(tmp_path / "whole")
    lists = opened.recommend(k=10)
    scores = np.array(fitted.scores(np.arange(train.num_users)))
    scores[seen(train) > 0] = -np.inf
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    np.testing.assert_array_equal(lists.items, expected)
    np.testing.assert_array_equal(fitted.retriever(seen=train).recommend([7, 3], k=10).items, expected[[7, 3]])
    assert not (tmp_path / "whole" / "users.npy").exists()
    assert "Users take 0 bytes" in (tmp_path / "whole" / "README.md").read_text()
    assert "4 x 4 floats" in (tmp_path / "whole" / "README.md").read_text()


def test_new_users_have_rows_without_training_or_histories(fitted, tmp_path):
    fitted.retriever().save(tmp_path / "items")
    opened = htd_jax.load(tmp_path / "items")
    with pytest.raises(UserError, match="which this model does not hold: export it with `seen`, or pass"):
        opened.recommend([7])
    train, known = fitted.train, fitted.representations().users
    histories = [np.flatnonzero(row).tolist() for row in seen(train)]
    rows = opened.fold_in(histories)
    np.testing.assert_allclose(rows, known, rtol=1e-4, atol=1e-5)
    expected = fitted.retriever(seen=train).recommend([7, 3], k=10)
    found = opened.recommend_vectors(rows[[7, 3]], k=10, seen=[histories[7], histories[3]])
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_array_equal(opened.fold_in([[], [5]])[0], opened.pooling.bias)


def test_users_of_a_folded_model_have_rows_of_all_known_pairs(fitted):
    """A pair that was held out is in the row as soon as it is known; new items are folded in by these rows."""
    retriever = fitted.retriever()
    pairs = retriever.seen
    history = np.asarray(pairs.items)[np.asarray(pairs.users) == 7]
    found = retriever.recommend_vectors(retriever.fold_in(history), k=5, seen=history)
    np.testing.assert_array_equal(retriever.recommend([7], k=5).items, found.items)
    assert retriever.fold_in_items([[1, 2, 3]]).shape == (1, retriever.dim)
    assert retriever.with_precision("int8").recommend([7], k=5).rows.shape == (1, 5)


@pytest.mark.slow
def test_the_command_trains_exports_and_recommends(tmp_path):
    line = "train --dataset synthetic --synthetic.users 60 --synthetic.items 120 --method best --users folded --bytes 3"
    run = [*line.split(), "--teacher-dim", "8", "--epochs", "2", "--budget", "0"]
    for command in (
        [*run, "--run", tmp_path / "run"],
        ["export", "--run", tmp_path / "run", "--to", tmp_path / "small", "--seen"],
        ["recommend", "--model", tmp_path / "small", "--k", "3", "--to", tmp_path / "lists.csv"],
    ):
        assert start_command(*command).status == 0
    assert len((tmp_path / "lists.csv").read_text().splitlines()) == 1 + 60 * 3
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["users"], config["model"], config["precision"]) == ("folded", "bpr", "int4")
    assert "--users folded" in (tmp_path / "small" / "README.md").read_text()


# --- new users


@pytest.fixture(scope="module")
def new_users():
    split = htd_jax.data.make_synthetic(num_users=60, num_items=90)
    pairs = (np.concatenate([np.asarray(getattr(part, side)) for part in split]) for side in ("users", "items"))
    return htd_jax.read(tuple(pairs), split="new-users", held_out=0.1)


def test_a_fifth_of_a_new_users_items_is_held_out_and_the_others_are_not_learned(new_users, tmp_path):
    train, valid, test = (seen(part) for part in new_users.split)
    in_valid, in_test = (set(np.flatnonzero(part.sum(1))) for part in (valid, test))
    assert (len(in_valid), len(in_test)) == (6, 6) and not in_valid & in_test
    assert sorted(in_valid | in_test) == new_users.new_users.tolist()
    held_out, degree = (valid + test).sum(1), (train + valid + test).sum(1)
    # Items without other users are left out after the choice, here few.
    assert (np.abs(held_out - 0.2 * degree)[new_users.new_users] <= 1.5).all()
    learned = seen(new_users.learned)
    others = np.setdiff1d(np.arange(len(train)), new_users.new_users)
    assert not learned[new_users.new_users].any() and (learned[others] == train[others]).all()
    assert learned.any(0).all()

    save_dataset(tmp_path, new_users)
    loaded = load_dataset(tmp_path / "split.npz", "data")
    np.testing.assert_array_equal(loaded.new_users, new_users.new_users)
    assert fingerprint(loaded) == fingerprint(new_users) != fingerprint(dataclasses.replace(loaded, new_users=None))


@pytest.mark.parametrize("model", ["ials", pytest.param("folded", marks=pytest.mark.slow), "ease"])
def test_models_do_not_learn_the_known_items_of_new_users(new_users, model):
    fit = lambda data: htd_jax.fit(data, model=model, dim=4, epochs=1, progress=False)
    split = new_users.split
    unknown = dataclasses.replace(new_users, split=split._replace(train=new_users.learned))
    if model == "ease":  # whose dual, where users are few, has no scores for new ones
        with pytest.raises(UserError, match="needs a model that has rows of new users, and EASE has none"):
            fit(new_users)
        return
    fitted, without = fit(new_users), fit(unknown)
    jax.tree.map(np.testing.assert_array_equal, fitted.variables, without.variables)
    assert fitted.metrics["recall@50"] != without.metrics["recall@50"]


def test_rows_of_new_users_are_folded_into_tables(new_users):
    fitted = htd_jax.fit(new_users, model="ials", dim=4, epochs=1, progress=False)
    retriever, user = fitted.retriever(seen=new_users.train), new_users.new_users[0]
    history = np.flatnonzero(seen(new_users.train)[user])
    row = np.asarray(retriever.users.floats())[user]
    np.testing.assert_allclose(row, retriever.fold_in(new_users.items.take(history))[0], rtol=1e-5, atol=1e-6)
    ranked = retriever.recommend(k=50).rows
    held_out = [(u, np.flatnonzero(row)) for u, row in enumerate(seen(new_users.test)) if row.any()]
    recalls = [len({*items} & {*ranked[u]}) / len(items) for u, items in held_out]
    np.testing.assert_allclose(np.mean(recalls), fitted.metrics["recall@50"], rtol=1e-5)
