"""EASE against its definition in float64, in both forms, and as a teacher that has scores alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import refused, results, start, start_command

import htd_jax
from htd_jax.data import Interactions
from htd_jax.models import BlendSettings, EASESettings, IALSSettings, ease
from htd_jax.ops import inverses, platforms, sparse

LAMBDA = 3.0


@pytest.fixture(scope="module", params=[(17, 40), (40, 17), (1, 6)], ids=str)
def train(request):
    """Pairs of few users and many items (the dual form), and the reverse; some of either have none."""
    num_users, num_items = request.param
    rng = np.random.default_rng(0)
    x = rng.random(request.param) < 0.3
    if min(request.param) > 1:
        x[[0, -1]] = x[:, [3, -1]] = False
        x[4, :-2] = True
    else:
        x.flat[[0, 2, 3]] = True
    return Interactions.from_pairs(*np.nonzero(x), num_users, num_items)


def matrix(train):
    x = np.zeros((train.num_users, train.num_items))
    x[train.users, train.items] = 1
    return x


def weights(x, regularization):
    """B of the definition: each column by its own least squares, without the item itself."""
    size = x.shape[1]
    b = np.zeros((size, size))
    for item in range(size):
        others = np.delete(np.arange(size), item)
        own = x[:, others]
        system = own.T @ own + regularization * np.eye(size - 1)
        b[others, item] = np.linalg.solve(system, own.T @ x[:, item])
    return b


def solved(train, regularization=LAMBDA):
    """The module and its variables, and the loss."""
    settings = EASESettings(regularization=regularization)
    solver = settings.solver()
    module = settings.build(train, 200)
    zero = jnp.zeros(1, jnp.int32)
    begun = module.init(jax.random.key(0), zero, zero, method="score")
    variables, loss = solver.sweep(begun, solver.prepare(train, None))
    assert jax.tree.map(jnp.shape, begun) == jax.tree.map(jnp.shape, variables)
    return module, variables, loss


@pytest.mark.parametrize("form", ["cpu", "default"])
def test_scores_and_loss_are_those_of_the_definition(train, form, monkeypatch):
    choose = lambda cpu, default: cpu if form == "cpu" else default
    monkeypatch.setattr(platforms, "by_platform", lambda cpu, default, *operands: choose(cpu, default)(*operands))
    monkeypatch.setattr(platforms, "by_backend", choose)
    monkeypatch.setattr(sparse, "ENTRIES", 60)  # several blocks
    monkeypatch.setattr(ease, "PAIRS", 7)
    ease._own_sums.clear_cache()
    module, variables, loss = solved(train)
    x = matrix(train)
    b = weights(x, LAMBDA)
    users, items = np.array([*range(train.num_users), 0]), np.arange(train.num_items)[::-1]

    @jax.jit
    def scores(variables):
        apply = lambda *inputs, method: module.apply(variables, *map(jnp.asarray, inputs), method=method)
        some = apply(users[:2, None], np.tile(items[:2], (2, 1)), method="score")
        of_items = apply(items, method="score_users")
        return apply(users, method="score_all"), apply(users[:, None], items[None], method="score"), some, of_items

    every, pairs, some, of_items = scores(variables)
    np.testing.assert_allclose(every, (x @ b)[users], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(pairs, every[:, ::-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(some, pairs[:2, :2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of_items, pairs[:-1].T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(loss, ((x - x @ b) ** 2).sum() + LAMBDA * (b**2).sum(), rtol=1e-4)


@pytest.mark.parametrize("invert", [inverses.in_place, inverses.on_device])
def test_the_inverse_is_that_of_float64(invert, monkeypatch):
    monkeypatch.setattr(inverses, "ROWS", 7)
    rng = np.random.default_rng(0)
    root = rng.normal(size=(30, 40)).astype(np.float32)
    gram = root @ root.T
    np.testing.assert_allclose(invert(gram.copy()), np.linalg.inv(gram.astype(np.float64)), rtol=1e-2, atol=1e-4)
    with pytest.raises(np.linalg.LinAlgError):
        invert(np.ones((30, 30), np.float32) - 2 * np.eye(30, dtype=np.float32))


def test_a_large_matrix_is_refused_in_a_line(data, monkeypatch):
    monkeypatch.setattr(ease, "MOST", 79)
    with pytest.raises(htd_jax.UserError, match="80 x 80, the smaller number of users and items; at most 79"):
        htd_jax.fit(data, model="ease", progress=False)
    singular = Interactions.from_pairs([0, 1, 2], [0, 0, 0], 3, 4)
    with pytest.raises(htd_jax.UserError, match="singular in float32; raise `regularization`"):
        ease.fit_ease(singular, 1e-30)


def test_it_teaches_by_scores_alone(data, tmp_path):
    model = htd_jax.fit(data, model=EASESettings(regularization=10.0), folder=tmp_path / "ease", progress=False)
    assert model.metrics["recall@50"] > 0.5
    again = htd_jax.fit(data, model=EASESettings(regularization=10.0), folder=tmp_path / "ease", progress=False)
    assert again.metrics == model.metrics and len(again.seconds) == 1
    teacher = model.teacher()
    assert teacher.representations is None and teacher.has("lists") and not teacher.inner_product
    lists = model.recommend([0, 1, 2], k=5)
    scores = np.array(model.scores([0, 1, 2]))
    for part in data:
        own = np.asarray(part.users) < 3
        scores[np.asarray(part.users)[own], np.asarray(part.items)[own]] = -np.inf
    np.testing.assert_array_equal(np.asarray(lists.rows)[0], np.argsort(-scores[0], kind="stable")[:5])
    for refused_call in (model.representations, lambda: model.similar(0), lambda: model.save("x")):
        with pytest.raises(htd_jax.UserError):
            refused_call()
    for method in ("ftd", "bd"):
        with pytest.raises(htd_jax.UserError, match="needs the teacher's representations"):
            htd_jax.distill(model, data, method=method, dim=2, epochs=1, progress=False)
    with pytest.raises(htd_jax.UserError, match="EASE is no smaller at any width"):
        htd_jax.distill(model, data, method="pseudo", model="ease", dim=2, progress=False)


@pytest.mark.slow
def test_a_run_with_it_as_teacher(tmp_path):
    done = start("--teacher-model", "ease", "--method", "best", "--run", tmp_path / "run")
    assert done.status == 0, done.err
    assert results(tmp_path / "run")["phases"]["teacher"]["settings"]["model"]["name"] == "ease"
    again = start("--teacher", tmp_path / "run", "--method", "rrd", "--run", tmp_path / "again")
    assert again.status == 0, again.err
    listed = start_command("recommend", "--run", tmp_path / "run", "--phase", "teacher", "--k", "3")
    assert listed.status == 0, listed.err
    assert "--model EASE is no smaller at any width" in refused("--model", "ease", "--method", "none")


# --- mixed with iALS


def test_a_mix_is_that_of_z_scores(data):
    settings = BlendSettings(alpha=10.0, regularization=3.0, share=0.4, ease_regularization=10.0)
    model = htd_jax.fit(data, model=settings, dim=8, epochs=3, progress=False)
    factors = htd_jax.fit(data, model=IALSSettings(alpha=10.0, regularization=3.0), dim=8, epochs=3, progress=False)
    one = htd_jax.fit(data, model=EASESettings(regularization=10.0), progress=False)
    users = np.arange(80)

    def z_scores(fitted):
        scores = np.asarray(fitted.scores(users), np.float64)
        return (scores - scores.mean(1, keepdims=True)) / scores.std(1, keepdims=True)

    variables = {"params": model.variables["params"]["factors"]}
    same_start = dataclasses.replace(factors, variables=variables)
    expected = 0.6 * z_scores(same_start) + 0.4 * z_scores(one)
    np.testing.assert_allclose(model.scores(users), expected, rtol=1e-3, atol=1e-3)
    items = np.array([[3, 149, 0]])
    pairs = jax.jit(lambda v: model.make_model(data.train).apply(v, users[:, None], items, method="score"))
    np.testing.assert_allclose(pairs(model.variables), expected[:, items[0]], rtol=1e-3, atol=1e-3)
    assert model.teacher().representations is None and model.metrics["recall@50"] > 0.5


def test_users_of_equal_scores_add_nothing():
    train = Interactions.from_pairs([0, 0, 2], [1, 2, 2], 3, 5)
    settings = BlendSettings(steps=0)
    solver, module, zero = settings.solver(), settings.build(train, 2), jnp.zeros(1, jnp.int32)
    begun = module.init(jax.random.key(0), zero, zero, method="score")
    variables, _ = solver.sweep(begun, solver.prepare(train, None))
    assert jax.tree.map(jnp.shape, begun) == jax.tree.map(jnp.shape, variables)
    scores = np.asarray(module.apply(variables, jnp.arange(3), method="score_all"))
    assert np.isfinite(scores).all() and not scores[1].any() and scores[0].any()
