"""Alternating least squares: rows against a float64 solve, the objective against its definition, and the base model."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import refused, results, start

import htd_jax
from htd_jax.data import Interactions
from htd_jax.distillers import Pseudo
from htd_jax.models import IALSSettings
from htd_jax.ops import als

DIM = 6


@pytest.fixture(scope="module")
def problem():
    """40 rows of 0 to 30 entries among 50 others, with weights of their own; 6 dimensions."""
    rng = np.random.default_rng(0)
    degrees = np.concatenate([[0, 0], rng.integers(1, 12, 34), [30, 25, 17, 1]])
    owners = np.repeat(np.arange(40), degrees)
    others = np.concatenate([rng.choice(50, degree, replace=False) for degree in degrees])
    weights = rng.uniform(0.5, 60, len(owners)).astype(np.float32)
    table = rng.normal(size=(50, DIM)).astype(np.float32)
    penalties = rng.uniform(0.5, 20, 40).astype(np.float32)
    return owners, others, weights, jnp.asarray(table), jnp.asarray(penalties)


def solved(problem):
    """By the normal equations, one row after the other, in float64."""
    owners, others, weights, table, penalties = (np.asarray(x, np.float64) for x in problem)
    gram, best = table.T @ table, np.zeros((len(penalties), DIM))
    for row in range(len(penalties)):
        own = table[others[owners == row].astype(int)]
        weight = weights[owners == row]
        system = gram + penalties[row] * np.eye(DIM) + own.T @ (weight[:, None] * own)
        best[row] = np.linalg.solve(system, own.T @ (weight + 1))
    return best


def test_every_entry_stands_in_a_row_once(problem, monkeypatch):
    monkeypatch.setattr(als, "ENTRIES", 40)
    owners, others, weights, *_ = problem
    found = []
    for rows in als.pad_rows(owners, others, weights, 40):
        blocks, _, width = rows.others.shape
        degrees = np.asarray((rows.weights > 0).sum(2))
        assert width == 4 or (degrees[np.asarray(rows.ids) < 40] > width // 2).all()
        assert blocks == 1 or rows.ids.shape[1] * width <= 40
        for row, other, weight in zip(
            *(np.asarray(x).reshape(-1, *x.shape[2:]) for x in (rows.ids, rows.others, rows.weights))
        ):
            assert row < 40 or not weight.any()
            found += [(row, o, w) for o, w in zip(other, weight) if w]
    assert sorted(found) == sorted(zip(owners, others, weights))


@pytest.mark.parametrize("few", [0, 8, 32])
@pytest.mark.parametrize("entries", [32, 2**15])
def test_rows_are_those_of_the_normal_equations(problem, entries, few, monkeypatch):
    monkeypatch.setattr(als, "ENTRIES", entries)  # in many blocks, and in one
    monkeypatch.setattr(als, "FEW", few)
    owners, others, weights, table, penalties = problem
    order = np.random.default_rng(2).permutation(len(owners))
    each = als.solve_each(owners[order], others[order], weights[order], np.asarray(table), np.asarray(penalties))
    np.testing.assert_allclose(each, solved(problem), rtol=1e-6, atol=1e-7)
    rows = als.pad_rows(owners, others, weights, 40)
    start = np.random.default_rng(1).normal(size=(40, DIM)).astype(np.float32)
    best, left = jax.jit(als.solve_rows)(rows, table, penalties, start)
    np.testing.assert_allclose(best, solved(problem), rtol=2e-5, atol=2e-6)
    assert not np.asarray(best)[:2].any()  # no entries
    scores, confidence, seen = solved(problem) @ np.asarray(table, np.float64).T, np.ones((40, 50)), np.zeros((40, 50))
    confidence[owners, others] += weights
    seen[owners, others] = 1
    lengths = np.asarray(penalties)[:, None] * solved(problem) ** 2
    np.testing.assert_allclose(left, (confidence * (seen - scores) ** 2).sum() + lengths.sum(), rtol=1e-5)


@pytest.mark.slow
def test_some_steps_come_closer(problem, monkeypatch):
    monkeypatch.setattr(als, "FEW", 0)
    owners, others, weights, table, penalties = problem
    rows = als.pad_rows(owners, others, weights, 40)
    of = lambda steps: np.asarray(als.solve_rows(rows, table, penalties, jnp.ones((40, DIM)), steps)[0])
    away = [np.abs(of(steps) - solved(problem)).max() for steps in (1, 2, 4, DIM + 2)]
    assert all(b < a for a, b in itertools.pairwise(away)) and away[-1] < 1e-4


def test_rows_that_start_at_the_best_stay_there(problem, monkeypatch):
    monkeypatch.setattr(als, "FEW", 0)
    owners, others, weights, table, penalties = problem
    rows, best = als.pad_rows(owners, others, weights, 40), solved(problem).astype(np.float32)
    np.testing.assert_allclose(als.solve_rows(rows, table, penalties, best, 3)[0], best, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("few", [0, 32])
def test_a_table_of_zeros_gives_zeros(problem, few, monkeypatch):
    monkeypatch.setattr(als, "FEW", few)
    owners, others, weights, _, penalties = problem
    rows = als.pad_rows(owners, others, weights, 40)
    for steps in (0, 3):
        best, _ = als.solve_rows(rows, jnp.zeros((50, DIM)), penalties, jnp.ones((40, DIM)), steps)
        np.testing.assert_allclose(best, 0, atol=1e-6)


def objective(users, items, train, alpha, penalties):
    """Over all pairs, in float64 if the tables are."""
    scores = users @ items.T
    seen = np.zeros(scores.shape, bool)
    seen[train.users, train.items] = True
    confidence = np.where(seen, alpha, 1.0)
    lengths = [(np.asarray(penalty)[:, None] * table**2).sum() for penalty, table in zip(penalties, (users, items))]
    return (confidence * (seen - scores) ** 2).sum() + sum(lengths)


# --- as a base model


def fitted(data, epochs=8, **settings):
    return htd_jax.fit(
        data, model=IALSSettings(**settings), dim=8, epochs=epochs, eval_every=1, patience=None, progress=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("frequency", [0.0, 1.0])
@pytest.mark.parametrize("steps", [0, 3])
def test_every_sweep_lowers_the_objective_to_where_nothing_pulls(data, steps, frequency):
    of_model = {"alpha": 10.0, "regularization": 3.0, "frequency": frequency, "steps": steps}
    model = fitted(data, 60, **of_model)
    left = [record["terms"]["loss"] for record in model.records]
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(left)) and left[-1] < 0.9 * left[0]
    settings = IALSSettings(**of_model)
    context = settings.solver().prepare(data.train, None)
    users, items = (np.asarray(table, np.float64) for table in model.representations())
    of = lambda users, items: objective(users, items, data.train, 10.0, context.penalties)
    np.testing.assert_allclose(left[-1], of(users, items), rtol=1e-5)
    rng = np.random.default_rng(0)
    for _ in range(20):  # in no direction is there anything lower
        away = 0.01 * rng.normal(size=users.shape), 0.01 * rng.normal(size=items.shape)
        assert of(users + away[0], items + away[1]) > of(users, items)


def test_penalties_average_to_lambda_and_grow_with_confidences(data):
    context = IALSSettings(alpha=5.0, regularization=3.0, frequency=0.5).solver().prepare(data.train, None)
    degrees = np.bincount(data.train.users, minlength=80)
    np.testing.assert_allclose(np.mean(context.penalties[0]), 3.0, rtol=1e-5)
    like = np.sqrt(150 + 4.0 * degrees)
    np.testing.assert_allclose(context.penalties[0] / context.penalties[0][0], like / like[0], rtol=1e-5)


def test_the_same_seed_gives_the_same_bits_and_another_folder_too(data, tmp_path):
    first = fitted(data).variables
    again = htd_jax.fit(
        data, model=IALSSettings(), dim=8, epochs=4, eval_every=1, folder=tmp_path / "als", progress=False
    )
    again = htd_jax.fit(
        data, model=IALSSettings(), dim=8, epochs=8, eval_every=1, folder=tmp_path / "als", progress=False
    )
    assert jax.tree.all(jax.tree.map(lambda a, b: (np.asarray(a) == np.asarray(b)).all(), first, again.variables))


def test_it_ranks_better_than_at_the_start(data):
    model = fitted(data, 10, alpha=10.0, regularization=3.0)
    assert model.metrics["recall@50"] > htd_jax.fit(data, dim=8, epochs=1, progress=False).metrics["recall@50"]


def test_new_rows_are_those_of_the_normal_equations():
    """Of 50 x 40, the first 40 x 32 are old. The last user and item are connected to each other alone."""
    rng = np.random.default_rng(0)
    seen = rng.random((50, 40)) < 0.15
    seen[:40, 37] = False  # an item whose users are all new
    seen[40:45, 37] = True
    seen[49], seen[:, 39] = False, False
    seen[49, 39] = True
    train = Interactions.from_pairs(*np.nonzero(seen), 50, 40)
    model = IALSSettings(alpha=10.0, regularization=3.0, frequency=1.0)
    old = {"params": {"users": rng.normal(size=(40, DIM)), "items": rng.normal(size=(32, DIM))}}
    old = jax.tree.map(lambda x: x.astype(np.float32), old)
    penalties = [np.asarray(x, np.float64) for x in model.solver().prepare(train, None).penalties]
    confidence = np.where(seen, 10.0, 1.0)

    def solve(table, columns, seen, confidence, penalty):
        of = lambda seen, weight, penalty: np.linalg.solve(
            table.T @ (weight[:, None] * table) + penalty * np.eye(DIM), table.T @ (weight * seen)
        )
        return np.stack([of(seen[:, j], confidence[:, j], penalty[j]) for j in columns])

    users, items = (np.asarray(old["params"][side], np.float64) for side in ("users", "items"))
    first = solve(users, range(32, 40), seen[:40], confidence[:40], penalties[1])
    table = np.concatenate([items, first])
    users = np.concatenate([users, solve(table, range(40, 50), seen.T, confidence.T, penalties[0])])
    items = np.concatenate([items, solve(users, range(32, 40), seen, confidence, penalties[1])])
    grown, none = model.grow(old, train)
    for side, expected in (("users", users), ("items", items)):
        np.testing.assert_allclose(grown["params"][side], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(grown["params"][side][: len(old["params"][side])], old["params"][side])
    assert none == [] and not np.asarray(grown["params"]["users"][49]).any() and np.any(grown["params"]["items"][37])
    swept, objectives = model.grow(old, train, 4)
    tables = lambda grown: (np.asarray(grown["params"][side], np.float64) for side in ("users", "items"))
    before = objective(*tables(grown), train, 10.0, penalties)
    assert all(b < a for a, b in itertools.pairwise([before, *objectives]))
    np.testing.assert_allclose(objectives[-1], objective(*tables(swept), train, 10.0, penalties), rtol=1e-5)
    assert all(np.isfinite(table).all() for table in tables(swept))
    with pytest.raises(htd_jax.UserError, match="the model has 40 users, and the data 39"):
        model.grow(old, Interactions.from_pairs([0], [0], 39, 40))


@pytest.mark.slow
def test_it_teaches_students_of_another_model(tmp_path):
    done = start("--teacher-model", "ials", "--ials.alpha", "10", "--method", "ftd", "--run", tmp_path / "run")
    assert done.status == 0, done.err
    phases = results(tmp_path / "run")["phases"]
    assert phases["teacher"]["settings"]["model"]["name"] == "ials"
    assert phases["ftd"]["settings"]["model"]["name"] == "bpr"
    assert phases["teacher"]["settings"]["model"]["alpha"] == 10


def test_each_model_has_its_usual_epochs(tmp_path):
    model = htd_jax.fit(htd_jax.data.make_synthetic(num_users=60, num_items=150), model="ials", dim=4, progress=False)
    assert len(model.seconds) == 15
    assert "Default: 101" in start("--help").out


@pytest.mark.slow
def test_a_teachers_best_items_count_as_seen(data):
    teacher = fitted(data, alpha=10.0, regularization=3.0)
    of_model = {"alpha": 10.0, "regularization": 3.0, "steps": 0}
    method = Pseudo(weight=0.5, top=7)
    student = htd_jax.distill(
        teacher, data, method=method, model=IALSSettings(**of_model), dim=4, epochs=40, progress=False
    )
    labels = np.asarray(teacher.teacher().top(data.train, 7))
    users, items = (np.asarray(table, np.float64) for table in student.representations())
    scores = users @ items.T
    confidence, wanted = np.ones(scores.shape), np.zeros(scores.shape)
    rows = np.arange(len(users))[:, None]
    confidence[rows, labels], wanted[rows, labels] = 1 + 0.5 * 9, 1
    confidence[data.train.users, data.train.items], wanted[data.train.users, data.train.items] = 10, 1
    lengths = 3.0 * ((users**2).sum() + (items**2).sum())
    left = (confidence * (wanted - scores) ** 2).sum() + lengths
    np.testing.assert_allclose(student.records[-1]["terms"]["loss"], left, rtol=1e-5)
    plain = fitted(data, 40, **of_model)
    assert abs(plain.records[-1]["terms"]["loss"] / left - 1) > 0.05


def test_what_it_refuses(data, tmp_path):
    needs = "pseudo needs a model that is fitted in closed form"
    alone = "ftd trains by gradients, and the model is fitted in closed form"
    assert f"--method {needs}" in refused("--model", "bpr", "--method", "pseudo")
    assert "cannot be joined with others" in refused("--model", "ials", "--method", "pseudo+ftd")
    assert f"--method {alone}" in refused("--model", "ials", "--method", "ftd")
    assert "--ials.alpha must be more than 1" in refused("--model", "ials", "--method", "none", "--ials.alpha", "1")
    teacher = htd_jax.fit(data, dim=4, epochs=1, progress=False)
    with pytest.raises(htd_jax.UserError, match=f"`method` {alone}"):
        htd_jax.distill(teacher, data, method="ftd", model="ials", dim=2, progress=False)
    with pytest.raises(htd_jax.UserError, match=f"`method` {needs}"):
        htd_jax.distill(teacher, data, method="pseudo", dim=2, progress=False)
