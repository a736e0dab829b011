"""Serving: lists, precisions, newcomers, folders, and the commands `export` and `recommend`."""

import csv
import ctypes
import dataclasses
import functools
import gzip
import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runs
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

import htd_jax
from htd_jax import data
from htd_jax.command.export import export, train_command
from htd_jax.command.recommend import read_asked, recommend
from htd_jax.data import Dataset, Ids, Interactions
from htd_jax.data.arrays import open_arrays
from htd_jax.errors import UserError
from htd_jax.models import ModelOf, NeuMFSettings
from htd_jax.ops.codes import BITS
from htd_jax.ops.precision import unpack
from htd_jax.pipeline import open_phases, open_run, resolve_run
from htd_jax.serve import fold as new_rows
from htd_jax.serve import storage
from htd_jax.serve.lists import writer
from htd_jax.serve.rank import Hidden, concatenate
from htd_jax.serving import PRECISIONS, Retriever, Rows, fold, retriever_of, row_bytes, to_precision, topk
from htd_jax.serving.topk import Searched, best_items, best_scored
from htd_jax.settings import check


def oracle(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of every row, ties in the order of columns, by a stable sort of everything."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, rows, 1)
    return np.where(best > -np.inf, rows, -1), best


def pairs(rng, users: int, items: int, count: int) -> Interactions:
    return Interactions.from_pairs(rng.integers(0, users, count), rng.integers(0, items, count), users, items)


def scores_of_pairs(users: Rows, items: Rows, seen: Interactions | None = None) -> np.ndarray:
    scores = np.array(users.floats() @ items.floats().T)
    if seen is not None:
        scores[np.asarray(seen.users), np.asarray(seen.items)] = -np.inf
    return scores


def small_blocks(monkeypatch, cells: int = 3000) -> None:
    monkeypatch.setattr(topk, "ON_CPU", cells)
    monkeypatch.setattr(topk, "FEW", 8)
    monkeypatch.setattr(topk, "PAIRS", 16)


# The best items


@pytest.mark.parametrize("cells", [2**22, 5500, 3000])
@pytest.mark.parametrize("num_items", [1, 63, 64, 65, 700])
def test_best_items_with_many_ties(monkeypatch, cells, num_items):
    small_blocks(monkeypatch, cells)
    rng = np.random.default_rng(num_items)
    users = Rows(jnp.asarray(rng.integers(-1, 2, (37, 3)), jnp.float32))
    items = Rows(jnp.asarray(rng.integers(-1, 2, (num_items, 3)), jnp.float32))
    seen = pairs(rng, 37, num_items, 300)
    top = concatenate(best_items(users, items, 5, hidden=Hidden.from_interactions(seen)), 5)
    rows, best = oracle(scores_of_pairs(users, items, seen), 5)
    np.testing.assert_array_equal(top.rows, rows)
    np.testing.assert_array_equal(top.scores, best)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("num_items", [1, 64, 65, 3000])
def test_one_user_gets_the_list_of_float64(precision, num_items):
    rng = np.random.default_rng(num_items)
    users, items = (to_precision(rng.normal(size=(n, 6)), precision) for n in (9, num_items))
    items = items.take(jnp.asarray(rng.integers(0, num_items, num_items)))  # equal rows tie
    searched = Searched(items)
    seen = Interactions.from_pairs(
        np.r_[np.full(num_items // 2, 3), 4], np.r_[: num_items // 2, num_items - 1], 9, num_items
    )
    scores = np.asarray(users.floats(), np.float64) @ np.asarray(items.floats(), np.float64).T
    some = np.flatnonzero(rng.random(num_items) < 0.3)
    some = some if len(some) else np.array([0])
    for row in range(5):
        for k in (1, 20, 5000):
            for hidden in (None, Hidden.from_interactions(seen)):
                mine = scores[row : row + 1].copy()
                if hidden is not None:
                    mine[0, np.asarray(seen.items)[np.asarray(seen.users) == row]] = -np.inf
                for candidates in (None, some):
                    (top,) = best_items(users, searched, k, rows=np.array([row]), hidden=hidden, candidates=candidates)
                    among = np.arange(num_items) if candidates is None else some
                    rows, best = oracle(mine[:, among], k)
                    np.testing.assert_array_equal(top.rows, np.where(rows >= 0, among[rows], -1))
                    np.testing.assert_allclose(top.scores, best, rtol=1e-4, atol=1e-5)


def test_one_user_of_wide_tables_and_scores_that_are_no_numbers():
    rng = np.random.default_rng(5)
    users, items = (to_precision(rng.normal(size=(n, 150)), "int8") for n in (3, 500))
    (top,) = best_items(users, Searched(items), 9, rows=np.array([1]))
    scores = np.asarray(users.floats(), np.float64) @ np.asarray(items.floats(), np.float64).T
    np.testing.assert_array_equal(top.rows, oracle(scores[1:2], 9)[0])
    table = rng.integers(-2, 3, (300, 2)).astype(np.float32)
    table[rng.random(300) < 0.3] = np.nan
    table[7] = np.inf, 0
    for k in (3, 300):
        (top,) = best_items(Rows(jnp.asarray([[1.0, 1.0]])), Searched(Rows(jnp.asarray(table))), k)
        rows, best = oracle(table.sum(1)[None], k)
        np.testing.assert_array_equal(top.rows, rows)
        np.testing.assert_array_equal(top.scores, best)


def test_requests_of_several_threads():
    retriever = made("int8", 40, 3000)
    alone = retriever.recommend(k=7).rows
    similar = retriever.similar([5, 15, 25], 7).rows
    fresh = dataclasses.replace(retriever)  # what is computed once is computed under load

    def ask(turn: int) -> bool:
        user = turn % 40
        if turn % 3 == 0:
            return np.array_equal(fresh.recommend(k=7).rows, alone)
        if turn % 3 == 1:
            return np.array_equal(fresh.similar(5 + 10 * (turn % 2), 7).rows[0], similar[turn % 2])
        return np.array_equal(fresh.recommend(f"u{user}", 7).rows[0], alone[user])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(120)))


def test_both_forms_score_the_same_chunks():
    rng = np.random.default_rng(6)
    users = jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)
    chunk = jnp.asarray([[0, 2, 5]] * 5, jnp.int32)
    for precision in PRECISIONS:
        items = to_precision(rng.normal(size=(6 * topk.CHUNK, 4)), precision)
        scores = (users @ items.floats().T).reshape(5, 6, topk.CHUNK)[:, [0, 2, 5]]
        for form in (topk._score_chunk_by_chunk, topk._score_chunks):
            np.testing.assert_allclose(form(users, items, chunk), scores, rtol=1e-5, atol=1e-5)


def test_few_ids_are_found_among_many():
    rng = np.random.default_rng(7)
    for values in ([f"u{n}" for n in rng.permutation(3000)], rng.permutation(3000) * 7 - 500):
        ids = Ids.from_values(values, "user")
        for row in (0, 1500, 2999):
            assert ids.rows(values[row]).tolist() == [row]
        assert ids.find(["nobody", None]).tolist() == [-1, -1]
        assert ids.find(["zz"]).tolist() == ids.find([10**9]).tolist() == [-1]


def test_best_items_of_scores_that_are_no_numbers(monkeypatch):
    small_blocks(monkeypatch)
    rng = np.random.default_rng(0)
    table = rng.integers(-2, 3, (300, 2)).astype(np.float32)
    table[rng.random(300) < 0.3] = np.nan
    table[rng.random(300) < 0.3, 0] = -np.inf
    table[7] = np.inf, 0
    users = Rows(jnp.asarray([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
    top = concatenate(best_items(users, Rows(jnp.asarray(table)), 200), 200)
    scores = np.array(users.values @ table.T)
    rows, best = oracle(scores, 200)
    np.testing.assert_array_equal(top.rows, rows)
    np.testing.assert_array_equal(top.scores, best)
    assert (top.rows == -1).any()


def test_more_than_there_are():
    users, items = Rows(jnp.ones((2, 1))), Rows(jnp.arange(3.0)[:, None])
    hidden = Hidden.from_lists([np.array([2]), np.array([0, 1, 2])])
    top = concatenate(best_items(users, items, 9, hidden=hidden), 9)
    np.testing.assert_array_equal(top.rows, [[1, 0, -1], [-1, -1, -1]])
    for wrong in ({"k": 0}, {"k": 1, "memory": 0}):
        with pytest.raises(UserError, match="at least 1"):
            best_items(users, items, **wrong)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 20]), st.booleans(), st.booleans())
def test_best_items_of_some_among_some(seed, k, some, in_blocks):
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        if in_blocks:
            small_blocks(patch)
        users = Rows(jnp.asarray(rng.integers(-2, 3, (40, 2)), jnp.float32))
        items = Rows(jnp.asarray(rng.integers(-2, 3, (200, 2)), jnp.float32))
        seen = pairs(rng, 40, 200, 900)
        of = rng.integers(0, 40, 16)
        among = np.flatnonzero(rng.random(200) < 0.4) if some else np.arange(200)
        top = concatenate(
            best_items(
                users, items, k, rows=of, hidden=Hidden.from_interactions(seen), candidates=among if some else None
            ),
            k,
        )
        scores = scores_of_pairs(users, items, seen)[of][:, among]
        rows, best = oracle(scores, k)
        np.testing.assert_array_equal(top.rows, np.where(rows >= 0, among[rows], -1))
        np.testing.assert_array_equal(top.scores, best)


def test_a_heavy_user_costs_the_others_nothing_but_room(monkeypatch):
    small_blocks(monkeypatch)
    rng = np.random.default_rng(1)
    users, items = (Rows(jnp.asarray(rng.normal(size=(n, 4)), jnp.float32)) for n in (50, 400))
    its = (np.concatenate([np.full(399, 20), rng.integers(0, 50, 60)]), np.r_[np.arange(1, 400), np.arange(60)])
    seen = Interactions.from_pairs(*its, 50, 400)
    top = concatenate(best_items(users, items, 6, hidden=Hidden.from_interactions(seen)), 6)
    rows, _ = oracle(scores_of_pairs(users, items, seen), 6)
    np.testing.assert_array_equal(top.rows, rows)
    assert set(top.rows[20]) <= {0, -1}


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_short_tables_are_searched_as_what_they_stand_for(monkeypatch, precision):
    small_blocks(monkeypatch)
    rng = np.random.default_rng(2)
    users, items = (to_precision(rng.normal(size=(n, 4)), precision) for n in (30, 500))
    top = concatenate(best_items(users, items, 7), 7)
    scores = scores_of_pairs(users, items)
    np.testing.assert_allclose(top.scores, oracle(scores, 7)[1], rtol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(scores, top.rows, 1), top.scores, rtol=1e-6)


def test_memory_bounds_the_blocks():
    for memory in (1, 16, 256):
        for users, items in ((5, 10**6), (10**6, 10**6), (10**6, 50)):
            plan = topk._divide(20, users, items, memory, 20)
            assert plan.users * (plan.items + 2 * 20 * topk.CHUNK) * 12 <= max(memory * 2**20, 12 * 2**18), plan
            assert plan.items * plan.number >= items


def test_scores_that_are_no_products():
    split = data.make_synthetic(num_users=30, num_items=90)
    make_model = ModelOf(NeuMFSettings(), 3)
    variables = make_model(split.train).init(jax.random.key(0), jnp.arange(2), jnp.arange(2))
    retriever = retriever_of(make_model, variables, Dataset.from_split(split))
    every = np.array(make_model(split.train).apply(variables, jnp.arange(30), method="score_all"))
    for part in split:
        every[np.asarray(part.users), np.asarray(part.items)] = -np.inf
    found = retriever.recommend([4, 9, 2], 5)
    np.testing.assert_array_equal(found.rows, oracle(every[[4, 9, 2]], 5)[0])
    among = np.array([3, 40, 77, 80])
    found = retriever.recommend([4, 9, 2], 2, allow=among)
    np.testing.assert_array_equal(found.rows, among[oracle(every[[4, 9, 2]][:, among], 2)[0]])
    for refused in (lambda: retriever.fold_in([1, 2]), lambda: retriever.recommend_vectors(np.zeros((1, 6)))):
        with pytest.raises(UserError, match="not products"):
            refused()


def test_scored_in_blocks(monkeypatch):
    small_blocks(monkeypatch)
    rng = np.random.default_rng(3)
    table = jnp.asarray(rng.integers(0, 4, (50, 130)), jnp.float32)
    found = concatenate(best_scored(jax.tree_util.Partial(lambda t, u: t[u], table), 130, 4, rows=np.arange(50)), 4)
    np.testing.assert_array_equal(found.rows, oracle(np.asarray(table), 4)[0])


# Precisions


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-20, 4), st.sampled_from([2, 18]))
def test_errors_are_bounded(seed, exponent, dim):
    rng = np.random.default_rng(seed)
    table = (rng.normal(size=(20, dim)) * 10.0**exponent * 10 ** rng.uniform(-3, 0, (20, 1))).astype(np.float32)
    table[3] = 0
    of = {precision: np.asarray(to_precision(table, precision).floats(), np.float64) for precision in PRECISIONS}
    np.testing.assert_array_equal(of["float32"], table)
    assert (np.abs(of["float16"] - table) <= np.maximum(2.0**-11 * np.abs(table), 2.0**-25)).all()
    scale = np.abs(table).max(1, keepdims=True) / 127
    assert (np.abs(of["int8"] - table) <= scale * 0.5001).all()
    assert not of["int8"][3].any()


def test_what_a_precision_cannot_hold():
    with pytest.raises(UserError, match="float16 holds no number above 65504"):
        to_precision(np.array([[1e6]]), "float16")
    with pytest.raises(UserError, match=r"int2 holds no number above 1e\+37"):
        to_precision(np.array([[1e38]]), "int2")
    for bad in (np.nan, np.inf):
        with pytest.raises(UserError, match="not finite"):
            to_precision(np.array([[bad]]), "int8")
    with pytest.raises(UserError, match="must be one of float32, float16, int8, int4, int3, int2, not .int5."):
        to_precision(np.array([[1.0]]), "int5")
    assert [row_bytes(20, precision) for precision in PRECISIONS] == [80, 40, 24, 10, 8, 5]
    assert [to_precision(np.ones((2, 20)), p).row_bytes for p in PRECISIONS] == [80, 40, 24, 10, 8, 5]


# Newcomers


def lists_of(rng, rows: int, sizes: list[int]) -> list[np.ndarray]:
    return [np.sort(rng.choice(rows, size, replace=False)) for size in sizes]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_least_squares_against_an_optimiser(precision, scale):
    scale = 1.0 if precision == "float16" else scale
    rng = np.random.default_rng(4)
    table = to_precision(scale * rng.normal(size=(90, 6)), precision)
    y = np.asarray(table.floats(), np.float64) / scale
    lists = lists_of(rng, 90, [1, 2, 17, 90, 4])
    found = new_rows.least_squares(table, lists, unseen=0.03, ridge=0.2)

    for x, rows in zip(found, lists):

        def objective(x, rows=rows):
            fits, all_rows = y[rows] @ x, y @ x
            value = ((1 - fits) ** 2).sum() + 0.03 * (all_rows**2).sum() + 0.2 * (y**2).mean() * (x**2).sum()
            slope = y[rows].T @ (fits - 1) + 0.03 * y.T @ all_rows + 0.2 * (y**2).mean() * x
            return value, 2 * slope

        best = scipy.optimize.minimize(objective, np.zeros(6), jac=True, options={"gtol": 1e-9}).x
        np.testing.assert_allclose(x * scale, best, rtol=1e-4, atol=1e-6)


def test_sums_in_blocks(monkeypatch):
    rng = np.random.default_rng(5)
    table = Rows(jnp.asarray(rng.normal(size=(83, 3)), jnp.float32))
    lists = lists_of(rng, 83, [1, 40, 83, 2, 3, 3, 30])
    whole = new_rows.summarise(table, lists)
    monkeypatch.setattr(new_rows, "CELLS", 60)
    np.testing.assert_allclose(new_rows.summarise(table, lists), whole, rtol=1e-5)


def test_an_empty_list_is_refused():
    with pytest.raises(UserError, match="list 1 is empty"):
        new_rows.least_squares(Rows(jnp.ones((3, 2))), [np.array([1]), np.array([], int)])


def test_the_regression_against_an_optimiser(monkeypatch):
    """At one ridge, the weights minimise the penalised squares; of several, the one with the least error on rows left
    out one by one is taken."""
    rng = np.random.default_rng(6)
    x = np.column_stack([np.ones(40), rng.normal(3, [1, 5, 0.2], (40, 3)), np.full(40, 7.0)])
    y, importance = x[:, 1:3] @ rng.normal(size=(2, 2)) + 20 + rng.normal(size=(40, 2)), rng.uniform(1, 3, 40)

    def solved(x, y, importance, ridge):
        share = importance / importance.sum()
        spread = np.sqrt(share @ (x - share @ x) ** 2)

        def objective(flat):
            weights = flat.reshape(x.shape[1], -1)
            errors = x @ weights - y
            value = share @ (errors**2).sum(1) + ridge * ((spread[:, None] * weights) ** 2).sum()
            return value, 2 * (x.T @ (share[:, None] * errors) + ridge * spread[:, None] ** 2 * weights).ravel()

        start = np.zeros(x.shape[1] * y.shape[1])
        return scipy.optimize.minimize(objective, start, jac=True, options={"gtol": 1e-9}).x.reshape(x.shape[1], -1)

    errors = []
    for ridge in (0.001, 0.1, 10.0):
        monkeypatch.setattr(fold, "FIT_RIDGES", [ridge])
        np.testing.assert_allclose(x @ fold._regress(x, y, importance), x @ solved(x, y, importance, ridge), rtol=1e-4)
        error = 0.0
        for row in range(40):
            others = np.arange(40) != row
            # The spread is that of all rows, so that a ridge means the same with and without one.
            share = importance / importance.sum()
            spread = np.sqrt(share @ (x - share @ x) ** 2)[1:4]
            centre, goal = share @ x[:, 1:4], share @ y
            z = (x[:, 1:4] - centre) / spread
            full = np.column_stack([np.ones(40), z])
            matrix = (full[others] * share[others, None]).T @ full[others] + ridge * np.diag([0, 1, 1, 1])
            weights = np.linalg.solve(matrix, (full[others] * share[others, None]).T @ (y - goal)[others])
            error += share[row] * ((full[row] @ weights - (y - goal)[row]) ** 2).sum()
        errors.append(error)
    monkeypatch.setattr(fold, "FIT_RIDGES", [0.001, 0.1, 10.0])
    chosen = fold._regress(x, y, importance)
    best = solved(x, y, importance, (0.001, 0.1, 10.0)[int(np.argmin(errors))])
    np.testing.assert_allclose(x @ chosen, x @ best, rtol=1e-4)


def planted(precision: str = "float32", scale: float = 1.0) -> tuple[Rows, Rows, Interactions]:
    """Users of a few tastes with a common part, and items whose rows follow from their users and from how many those
    are."""
    rng = np.random.default_rng(9)
    tastes = rng.normal(size=(5, 6))
    of_user, of_item = rng.integers(0, 5, 400), rng.integers(0, 5, 500)
    users = tastes[of_user] + 0.3 * rng.normal(size=(400, 6)) + [2, 0, 0, 0, 0, 0]
    chance = np.where(of_user[:, None] == of_item, 0.12, 0.005) * rng.uniform(0.05, 2, 500)
    seen = Interactions.from_pairs(*np.nonzero(rng.random((400, 500)) < chance), 400, 500)
    counts = np.bincount(np.asarray(seen.items), minlength=500)
    sums = np.zeros((500, 6))
    np.add.at(sums, np.asarray(seen.items), users[np.asarray(seen.users)])
    turn = rng.normal(size=(6, 6))
    items = (sums / np.maximum(counts, 1)[:, None]) @ turn * (0.2 + 0.1 * np.log2(np.maximum(counts, 1)))[:, None]
    return to_precision(users * scale, precision), to_precision(items * scale, precision), seen


def by_owner(owners: Any, others: Any, number: int) -> list[np.ndarray]:
    return [np.asarray(others)[np.asarray(owners) == owner] for owner in range(number)]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_known_items_get_their_rows_back(precision, scale):
    scale = 1.0 if precision == "float16" else scale
    users, items, seen = planted(precision, scale)
    row_map = fold.fit_map(items, users, seen, "items")
    lists = by_owner(seen.items, seen.users, 500)
    known = [item for item in range(500) if len(lists[item])]
    rows, trained = row_map.rows(users, [lists[i] for i in known]), np.asarray(items.floats())[known]
    assert rows.dtype == np.float32 and rows.shape == (len(known), 6)
    error = np.linalg.norm(rows - trained, axis=1) / np.linalg.norm(trained, axis=1).mean()
    assert error.mean() < {"int4": 0.15, "int3": 0.3, "int2": 0.45}.get(precision, 0.05)  # of rounding
    few, many = row_map.rows(users, [np.array([3]), np.arange(400)])
    assert np.isfinite([few, many]).all() and (np.linalg.norm([few, many], axis=1) > 0).all()


def test_tables_that_say_nothing_give_finite_rows():
    rng = np.random.default_rng(8)
    seen = pairs(rng, 30, 50, 200)
    zeros, same = Rows(jnp.zeros((30, 4))), Rows(jnp.ones((30, 4)))
    some = rng.normal(size=(50, 4)).astype(np.float32)
    some[::2] = 0
    for users in (zeros, same, Rows(jnp.asarray(rng.normal(size=(30, 4)) * 1e-30, jnp.float32))):
        for items in (jnp.zeros((50, 4)), jnp.asarray(some), jnp.asarray(some) * 1e30):
            items = Rows(jnp.asarray(items, jnp.float32))
            for side, mine, other in (("users", users, items), ("items", items, users)):
                row_map = fold.fit_map(mine, other, seen, side)
                lists = [np.array([1]), np.array([0, 2, 4]), np.arange(30)]
                assert np.isfinite(row_map.rows(other, lists)).all() and np.isfinite(row_map.weights).all()
    one = fold.fit_map(Rows(jnp.asarray(some)), same, Interactions.from_pairs([3], [1], 30, 50), "items")
    np.testing.assert_allclose(one.rows(same, [np.array([5, 6])]), some[[1]], rtol=1e-6)
    assert fold.fit_map(Rows(jnp.asarray(some)), same, Interactions.from_pairs([], [], 30, 50), "items") is None


@pytest.mark.parametrize("loss", ["own", "softmax"])
@pytest.mark.slow
def test_folded_rows_stand_in_as_many_lists_as_trained_ones(loss):
    """Items of every number of users, and no student's rows are too long or too short."""
    found = htd_jax.data.make_synthetic(num_users=900, num_items=1200, seed=3)
    student = htd_jax.fit(found, dim=10, loss=loss, epochs=30, progress=False)
    model, train = student.retriever("int8"), student.train
    users, items = (np.asarray(table.floats()) for table in (model.users, model.items))
    lists = by_owner(train.items, train.users, 1200)
    scores = scores_of_pairs(model.users, model.items, train)
    bars = np.sort(scores, axis=1)[:, -20]
    counts = np.array([len(its) for its in lists])
    for least, beyond in ((3, 8), (8, 20), (20, 60), (60, 900)):
        some = np.flatnonzero((counts >= least) & (counts < beyond))
        if len(some) < 30:
            continue
        folded = model.fold_in_items([[int(u) for u in lists[i]] for i in some])
        listed = []
        for rows in (items[some], folded):
            reached = users @ rows.T >= bars[:, None]
            for column, item in enumerate(some):
                reached[lists[item], column] = False
            listed.append(reached.sum() / len(some) + 0.5)
        assert 1 / 1.6 < listed[1] / listed[0] < 1.6, (least, listed)
    own = by_owner(train.users, train.items, 900)
    cosine = lambda x, y: ((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)).mean()
    assert cosine(model.fold_in([[int(i) for i in its] for its in own]), users) > 0.85


# The retriever


@functools.cache
def made(precision: str = "float32", users: int = 40, items: int = 120, dim: int = 6) -> Retriever:
    rng = np.random.default_rng(7)
    tables = [to_precision(rng.normal(size=(n, dim)), precision) for n in (users, items)]
    ids = Ids.from_values([f"u{n}" for n in range(users)], "user"), Ids.from_values(np.arange(items) * 10 + 5, "item")
    return Retriever(*tables, *ids, pairs(rng, users, items, 400), {"dataset": "made", "metrics": {"recall@5": 0.5}})


def test_ids_in_and_ids_out():
    retriever = made()
    found = retriever.recommend(["u7", "u0"], 4)
    rows = oracle(scores_of_pairs(retriever.users, retriever.items, retriever.seen), 4)[0]
    np.testing.assert_array_equal(found.rows, rows[[7, 0]])
    np.testing.assert_array_equal(found.items, rows[[7, 0]] * 10 + 5)
    assert found.users.tolist() == ["u7", "u0"] and found.ranks.tolist() == [[1, 2, 3, 4]] * 2 and len(found) == 2
    one = retriever.recommend("u7", 4)
    np.testing.assert_array_equal(one.rows, rows[[7]])
    np.testing.assert_array_equal(retriever.recommend(k=4).rows, rows)
    shown = retriever.recommend(["u7"], 200, seen=True)
    assert shown.rows.shape == (1, 120) and (shown.rows >= 0).all()
    some = retriever.recommend(["u7"], 200, allow=[5, 15, "25", 35], deny=[15])
    assert set(some.items[0][: (some.rows >= 0).sum()]) <= {5, 25, 35}
    assert len(retriever.recommend([], 4)) == 0
    for wrong, message in (
        (lambda: retriever.recommend("nobody"), "user 'nobody': not among the 40 users"),
        (lambda: retriever.recommend("u1", allow=[6]), "item 6: not among"),
        (lambda: retriever.recommend("u1", allow=[5], deny=[5]), "no item is left"),
        (lambda: retriever.recommend("u1", 0), "`k` must be a whole number of at least 1"),
        (lambda: retriever.similar(7), "item 7: not among"),
    ):
        with pytest.raises(UserError, match=message):
            wrong()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_neighbours_by_cosine_without_themselves(precision):
    retriever = made(precision)
    found = retriever.similar([15, 5], 3)
    table = np.asarray(retriever.items.floats(), np.float64)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    rows, best = oracle(cosine[[1, 0]], 3)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.scores, best, rtol=1e-5)
    assert found.to_table().column_names == ["item", "similar", "score", "rank"]
    assert 15 not in found.items[0]


def test_newcomers_are_recommended_to():
    retriever = made()
    vectors = retriever.fold_in([[5, 15], [25, 25, "35"]])
    assert vectors.shape == (2, 6) and vectors.dtype == np.float32
    np.testing.assert_allclose(retriever.fold_in([5, 15]), vectors[:1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(retriever.fold_in(np.array([5, 15])), vectors[:1], rtol=1e-5, atol=1e-6)
    found = retriever.recommend_vectors(vectors, 5, seen=[[5, 15], [25, 35]])
    scores = vectors @ np.asarray(retriever.items.values).T
    scores[0, [0, 1]] = scores[1, [2, 3]] = -np.inf
    np.testing.assert_array_equal(found.rows, oracle(scores, 5)[0])
    assert found.users.tolist() == [0, 1]
    assert retriever.fold_in_items(["u1", "u2"]).shape == (1, 6)
    for one in (5, np.int64(5), "5", np.array(5), np.array([[5]]), pa.array([5]), pa.array([[5]]), ([5],), {5}):
        np.testing.assert_allclose(retriever.fold_in(one), retriever.fold_in([5]), rtol=1e-6)
    for wrong, message in (
        (lambda: retriever.fold_in(None), "`items` must be ids, or a list of lists of ids, not None; pass a list"),
        (lambda: retriever.fold_in(x for x in [5]), "not a generator; pass a list"),
        (lambda: retriever.fold_in({5: 2.0}), "not a dict; pass a list"),
        (lambda: retriever.fold_in([[5], 15]), "not both"),
        (lambda: retriever.fold_in([5, [15]]), "not both"),
        (lambda: retriever.fold_in([[[5]]]), "item ids must be"),
        (lambda: retriever.fold_in([5, None]), "item None: not among"),
        (lambda: retriever.fold_in_items(None), "`users` must be ids"),
        (lambda: retriever.recommend_vectors(vectors, seen=iter([5])), "`seen` must be ids"),
        (lambda: retriever.fold_in([]), "empty"),
        (lambda: retriever.fold_in([[5], []]), "list 1 is empty"),
        (lambda: retriever.fold_in([1]), "item 1: not among"),
        (lambda: retriever.recommend_vectors(np.zeros((1, 5))), r"`vectors` must be \[n, 6\], not \[1, 5\]"),
        (lambda: retriever.recommend_vectors(vectors, seen=[[5]]), "one list per vector: 1 lists for 2 vectors"),
    ):
        with pytest.raises(UserError, match=message):
            wrong()


def test_tables_frames_and_files(tmp_path, monkeypatch):
    found = made().recommend(["u7", "u0"], 3)
    table = found.to_table()
    assert table.schema == pa.schema(
        [("user", pa.string()), ("item", pa.int64()), ("score", pa.float32()), ("rank", pa.int32())]
    )
    assert table["user"].to_pylist() == ["u7"] * 3 + ["u0"] * 3 and table["rank"].to_pylist() == [1, 2, 3] * 2
    found.write(tmp_path / "lists.parquet")
    assert pq.read_table(tmp_path / "lists.parquet").equals(table)
    found.write(tmp_path / "lists.csv")
    rows = list(csv.DictReader((tmp_path / "lists.csv").read_text().splitlines()))
    assert [row["user"] for row in rows] == table["user"].to_pylist()
    assert [int(row["item"]) for row in rows] == table["item"].to_pylist()
    for name, message in (("lists.txt", "written as .csv or .parquet"), ("no/lists.csv", "there is no folder")):
        with pytest.raises(UserError, match=message):
            found.write(tmp_path / name)
    monkeypatch.setattr("htd_jax.serve.lists.PART_ROWS", 4)
    for _ in range(2):  # an earlier folder is replaced
        with writer(tmp_path / "lists", table.schema) as write:
            for row in (0, 3, 0):
                write(table.slice(row, 3))
    parts = sorted((tmp_path / "lists").iterdir())
    assert [path.name for path in parts] == ["lists-00001.parquet", "lists-00002.parquet"]
    assert pq.read_table(tmp_path / "lists").equals(pa.concat_tables([table, table.slice(0, 3)]))
    (tmp_path / "lists" / "a.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds something else, a.txt"):
        found.write(tmp_path / "lists")
    pandas = pytest.importorskip("pandas")
    assert isinstance(found.to_pandas(), pandas.DataFrame) and len(found.to_pandas()) == 6


def test_polars():
    polars = pytest.importorskip("polars")
    assert isinstance(made().recommend(["u7"], 3).to_polars(), polars.DataFrame)


def test_short_lists_have_short_tables():
    found = made().recommend(["u7"], 3, allow=[5])
    assert len(found.to_table()) == (found.rows >= 0).sum() <= 1
    assert Retriever(*[Rows(jnp.ones((2, 1)))] * 2, Ids.numbers(2, "user"), Ids.numbers(2, "item")).recommend(
        [1], 5
    ).items.tolist() == [[0, 1]]


# Folders


@pytest.mark.parametrize("precision", PRECISIONS)
def test_saved_and_opened(tmp_path, precision):
    retriever = made(precision)
    retriever.save(tmp_path / "model", seen=True, npy=True)
    opened = htd_jax.load(tmp_path / "model")
    for mine, its in ((retriever.users, opened.users), (retriever.items, opened.items)):
        np.testing.assert_array_equal(mine.values, its.values)
        np.testing.assert_array_equal(np.asarray(mine.floats()), np.asarray(its.floats()))
        assert its.precision == precision
    assert opened.user_ids.values.equals(retriever.user_ids.values)
    assert opened.about == retriever.about and list(opened.row_maps) == ["users", "items"]
    one, other = (x.recommend(k=5) for x in (retriever, opened))
    np.testing.assert_array_equal(one.rows, other.rows)
    np.testing.assert_allclose(np.load(tmp_path / "model" / "items.npy"), np.asarray(retriever.items.floats()))
    retriever.save(tmp_path / "model")  # an earlier export is replaced
    assert not list((tmp_path / "model").glob("*.npy"))
    with pytest.raises(UserError, match="`npy`: tables of this size are written in shards"):
        retriever.save(tmp_path / "model", npy=True, shard_size=1e-4)
    unseen = htd_jax.load(tmp_path / "model")
    assert unseen.seen is None
    np.testing.assert_allclose(unseen.fold_in([5, 15]), retriever.fold_in([5, 15]), rtol=1e-6)
    np.testing.assert_allclose(unseen.fold_in_items(["u1"]), retriever.fold_in_items(["u1"]), rtol=1e-6)
    rounded = unseen.with_precision("float16").fold_in_items(["u1"])
    np.testing.assert_allclose(rounded, retriever.fold_in_items(["u1"]), rtol=0.05, atol=0.01)
    bare = dataclasses.replace(unseen, row_maps={})
    assert bare.fold_in([5, 15]).shape == (1, 6)
    with pytest.raises(UserError, match="needs a model that knows its training pairs"):
        bare.fold_in_items(["u1"])
    assert not (tmp_path / "model" / "seen.parquet").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert "made" in (tmp_path / "model" / "README.md").read_text()


def _damage(folder: Path, what: str) -> None:
    path = folder / what.split(":")[0]
    match what.split(":")[1]:
        case "gone":
            path.unlink()
        case "cut":
            path.write_bytes(path.read_bytes()[:-20])
        case "text":
            path.write_text("hello")
        case "nan":
            size = path.stat().st_size
            path.write_bytes(path.read_bytes()[: size - 4] + np.float32(np.nan).tobytes())
        case "fewer":
            data.write_ids(path, Ids.numbers(3, "user"))
        case change:
            head = json.loads(path.read_text())
            name, value = change.split("=")
            path.write_text(json.dumps(head | {name: json.loads(value)}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("tables.safetensors:gone", "there is no such file"),
        ("tables.safetensors:cut", "damaged, cut off, or not a .safetensors file"),
        ("tables.safetensors:text", "damaged, cut off, or not a .safetensors file"),
        ("tables.safetensors:nan", "not finite"),
        ("users.parquet:gone", "there is no such file"),
        ("items.parquet:cut", "damaged"),
        ("users.parquet:fewer", "3 user ids for 40 rows"),
        ("seen.parquet:text", "damaged"),
        ("seen.parquet:gone", "there is no such file"),
        ("htd_jax.json:text", "damaged, cut off, or not the header of an export"),
        ("htd_jax.json:cut", "damaged"),
        ("htd_jax.json:format=4", "has format 4, and this version of htd-jax reads 1 to 3"),
        ("htd_jax.json:dim=7", r"float32\[40, 6\], and htd_jax.json says float32\[40, 7\]"),
        ("htd_jax.json:users=7", r"says float32\[7, 6\]"),
        ('htd_jax.json:precision="int8"', "says int8"),
        ('htd_jax.json:precision="int5"', "damaged"),
        ("htd_jax.json:about=3", "damaged"),
        ("htd_jax.json:gone", "not an exported model"),
    ],
)
def test_a_damaged_folder_is_told_in_a_line(tmp_path, damage, message):
    made().save(tmp_path / "model", seen=True)
    _damage(tmp_path / "model", damage)
    with pytest.raises(UserError, match=message) as error:
        htd_jax.load(tmp_path / "model")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("precision", ["float32", "int8", "int3"])
def test_tables_in_shards(tmp_path, precision):
    """Tables larger than a limit are cut by rows; every shard must be there, whole and with the rows that it says."""
    retriever, folder = made(precision), tmp_path / "model"
    retriever.save(folder, seen=True, shard_size=40 / 1e6)
    shards = sorted(folder.glob("tables-*.safetensors"))
    assert len(shards) > 4 and not [*folder.glob("*.npy"), *folder.glob("tables.safetensors")]
    index = json.loads((folder / "tables.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == [path.name for path in shards]
    stored = {name: array for path in shards for name, array in open_arrays(path).items()}
    assert sorted(stored) == sorted(index["weight_map"])
    assert index["metadata"]["total_size"] == sum(array.read().nbytes for array in stored.values())
    opened = htd_jax.load(folder)
    assert list(opened.row_maps) == ["users", "items"] and opened.precision == precision
    for mine, its in ((retriever.users, opened.users), (retriever.items, opened.items)):
        np.testing.assert_array_equal(np.asarray(mine.floats()), np.asarray(its.floats()))

    def told():
        with pytest.raises(UserError) as error:
            htd_jax.load(folder)
        assert "\n" not in str(error.value)
        return str(error.value)

    kept = shards[1].read_bytes()
    shards[1].write_bytes(kept[:-20])
    assert shards[1].name in told() and "cut off" in told()
    shards[1].unlink()
    assert told().endswith(f"{shards[1].name}: there is no such file")
    shards[1].write_bytes(shards[0].read_bytes())
    assert f"{shards[1].name}: the array users." in told()
    shards[1].write_bytes(kept)
    fewer = {name: file for name, file in index["weight_map"].items() if file != shards[1].name}
    (folder / "tables.safetensors.index.json").write_text(json.dumps({"weight_map": fewer}))
    assert "do not fit together" in told()
    (folder / "tables.safetensors.index.json").write_text(json.dumps({"weight_map": {"users.0": "../a"}}))
    assert "damaged" in told()
    retriever.save(folder)  # shards of an earlier export are replaced
    assert not [*folder.glob("tables-*")] and htd_jax.load(folder).dim == 6


def test_any_bytes_give_a_model_or_a_line(tmp_path):
    made("int8").save(tmp_path / "model", seen=True)
    names = [
        path.name for path in (tmp_path / "model").iterdir() if path.suffix in (".json", ".parquet", ".safetensors")
    ]
    whole = {name: (tmp_path / "model" / name).read_bytes() for name in names}
    rng = np.random.default_rng(0)
    for turn in range(300):
        name = names[turn % len(names)]
        broken = bytearray(whole[name])
        for _ in range(rng.integers(1, 4)):
            broken[rng.integers(len(broken))] = rng.integers(256)
        if turn % 3 == 0:
            del broken[rng.integers(len(broken)) :]
        (tmp_path / "model" / name).write_bytes(broken)
        try:
            htd_jax.load(tmp_path / "model")
        except UserError as error:
            assert "\n" not in str(error), error
        (tmp_path / "model" / name).write_bytes(whole[name])


def test_what_is_not_written(tmp_path, monkeypatch):
    retriever = made()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds something else, notes.txt; name a new folder"):
        retriever.save(tmp_path / "mine")
    with pytest.raises(UserError, match="is not a folder"):
        retriever.save(tmp_path / "mine" / "notes.txt")
    retriever.save(tmp_path / "model")
    before = htd_jax.load(tmp_path / "model")

    def broken(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_ids", broken)
        for name in ("model", "new"):
            with pytest.raises(UserError, match="cannot be written .No space left"):
                retriever.save(tmp_path / name, seen=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "model"]
    assert htd_jax.load(tmp_path / "model").seen is None is before.seen
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="something else, notes.txt"):
        retriever.save(tmp_path / "model")
    with pytest.raises(UserError, match="seen pairs are unknown"):
        dataclasses.replace(retriever, seen=None).save(tmp_path / "other", seen=True)
    with pytest.raises(UserError, match="there is no such folder"):
        htd_jax.load(tmp_path / "nowhere")


def assert_same_lists(found: Any, users: Any, items: Any, rows: np.ndarray, scores: np.ndarray) -> None:
    """Few bits give many equal scores, and sums in another order swap these: rows are compared by exact scores."""
    np.testing.assert_allclose(scores, found.scores, rtol=1e-4, atol=1e-5)
    exact = np.asarray(users, float) @ np.asarray(items, float).T
    theirs, ours = (np.take_along_axis(exact, x, axis=1) for x in (rows, found.rows))
    np.testing.assert_allclose(theirs, ours, rtol=1e-6, atol=1e-6)
    if len(np.unique(exact.round(5))) == exact.size:
        np.testing.assert_array_equal(rows, found.rows)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_faiss_and_usearch_find_the_same(tmp_path, precision):
    made(precision).save(tmp_path / "model", npy=True)
    users, items = (np.load(tmp_path / "model" / f"{side}.npy").astype(np.float32) for side in ("users", "items"))
    found = htd_jax.load(tmp_path / "model").recommend(k=10)
    same = functools.partial(assert_same_lists, found, users, items)
    faiss = pytest.importorskip("faiss")
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items)
    scores, rows = index.search(users, 10)
    same(rows, scores)
    usearch = pytest.importorskip("usearch.index")
    matches = usearch.search(items, users, 10, usearch.MetricKind.IP, exact=True)
    same(matches.keys.astype(int), 1 - matches.distances)


@pytest.mark.parametrize("precision", ["int8", *BITS])
def test_lists_from_the_codes_alone(tmp_path, precision):
    """The formulas and the C program of `docs/indexes.md` rank from the bytes of an export as `recommend` does."""
    dataclasses.replace(made(precision, dim=27), seen=None).save(tmp_path / "model")
    model = htd_jax.load(tmp_path / "model")
    stored = {name: array.read() for name, array in open_arrays(tmp_path / "model" / "tables.safetensors").items()}
    users, items = stored["users"], stored["items"]
    same = functools.partial(assert_same_lists, model.recommend(k=10), model.users.floats(), model.items.floats())
    if precision == "int8":
        scores = stored["user_scales"][:, None] * stored["item_scales"] * (users.astype(int) @ items.T.astype(int))
        same(*oracle(scores, 10))
        return
    bits, dim = BITS[precision], 27
    doubled = lambda packed: 2 * np.asarray(unpack(jnp.asarray(packed), dim, bits), np.float32) - (2**bits - 1)
    weights = doubled(users) * stored["user_steps"] * stored["item_steps"] / 4
    same(*oracle(weights @ doubled(items).T, 10))
    faiss = pytest.importorskip("faiss")
    index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT)
    index.add(doubled(items))
    same(*index.search(weights, 10)[::-1])
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    program = re.search("```c\n(.*?)```", (Path(__file__).parents[1] / "docs" / "indexes.md").read_text(), re.DOTALL)
    assert program
    (tmp_path / "codes.c").write_text(program[1])
    command = ["cc", "-O2", "-Wall", "-shared", "-fPIC", "codes.c", "-o", "codes.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    library, width = ctypes.CDLL(str(tmp_path / "codes.so")), items.shape[1]
    library.prepare.restype = ctypes.c_float
    at = lambda array: array.ctypes.data_as(ctypes.c_void_p)
    table, scores = np.empty((width, 256), np.float32), np.empty((len(users), len(items)), np.float32)
    for user, out in zip(users, scores):
        user_steps, item_steps = stored["user_steps"], stored["item_steps"]
        zeros = library.prepare(at(user), at(user_steps), at(item_steps), dim, bits, at(table))
        library.scores(at(items), len(items), width, at(table), ctypes.c_float(zeros), at(out))
    same(*oracle(scores, 10))


# Runs and commands


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    runs.trained("--run", folder)
    return folder


@pytest.fixture(scope="module")
def neumf(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("neumf") / "run"
    runs.trained("--run", folder, "--model", "neumf", "--method", "none", "--epochs", "1")
    return folder


def start(command, *arguments) -> runs.Done:
    return runs._enter(command, arguments)


def done(command, *arguments) -> str:
    ended = start(command, *arguments)
    assert ended.status == 0, ended.err
    return ended.out


def test_a_run_is_opened(run, tmp_path):
    opened = open_run(run)
    assert opened.about["phase"] == "htd" and opened.inner_product
    assert open_run(run, "teacher").retriever().dim == 12
    retriever = htd_jax.load(run)
    assert retriever.dim == 4 and retriever.about["metrics"] == runs.results(run)["phases"]["htd"]["final"]["test"]
    copy = tmp_path / "named"
    shutil.copytree(run, copy)
    data.write_ids(copy / "users.parquet", Ids.from_values([f"u{n}" for n in range(60)], "user"))
    np.testing.assert_array_equal(htd_jax.load(copy).recommend("u3").rows, retriever.recommend(3).rows)
    data.write_ids(copy / "items.parquet", Ids.from_values(["a"], "item"))
    with pytest.raises(UserError, match="1 ids, and split.npz has 150 items"):
        htd_jax.load(copy)
    with pytest.raises(UserError, match=r"no phase 'rrd' is trained there; trained: teacher, student, htd"):
        open_run(run, "rrd")


def test_all_phases_of_runs_are_opened_together(run, neumf, tmp_path):
    found = open_phases([run])
    assert list(found) == ["teacher", "student", "htd"]
    assert {name: opened.representations().items.shape for name, opened in found.items()} == {
        "teacher": (150, 12),
        "student": (150, 4),
        "htd": (150, 4),
    }
    groups = htd_jax.distillers.learned_groups(found["htd"].distiller, found["teacher"].representations())
    gate = jax.tree.map(np.asarray, found["htd"].distiller["gate"])
    for side, (its, rows) in enumerate(zip(groups, found["teacher"].teacher().hints())):
        gated = np.asarray(rows, float) @ gate["kernel"][side] + gate["bias"][side]
        assert np.mean(np.asarray(its) == gated.argmax(1)) > 0.98  # but where two are as likely
    assert found["student"].distiller == {}
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    assert list(open_phases([copy, run])) == ["teacher", "student", "htd"]
    with pytest.raises(UserError, match="its teacher differs from that of .*copy; name runs of one width and seed"):
        open_phases([copy, neumf])
    (step,) = (copy / "checkpoints" / "teacher").iterdir()
    history = json.loads((step / "history.json").read_text())
    history["settings"]["data"] = "another"
    (step / "history.json").write_text(json.dumps(history))
    with pytest.raises(UserError, match="its data differ from those of"):
        open_phases([run, copy])
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match="no phase is trained in these run folders"):
        open_phases([copy])
    with pytest.raises(UserError, match="not a run folder"):
        open_phases([tmp_path])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_export(run, tmp_path, precision):
    out = done(export, "--run", run, "--to", tmp_path / "model", "--precision", precision)
    assert "bytes per row" in out and precision + " *" in out
    retriever = htd_jax.load(tmp_path / "model")
    assert retriever.precision == precision and retriever.seen is None
    measured = retriever.about["precisions"]
    its = runs.results(run)["phases"]["htd"]["final"]["test"]
    for name, value in measured["float32"]["metrics"].items():
        assert value == pytest.approx(its[name], abs=1e-6)
    text = (tmp_path / "model" / "README.md").read_text()
    assert "--synthetic.users 60" in text and "gap closed" in text and f"{precision} (this one)" in text
    assert "htd (this one)" in text


def test_a_delta_of_a_run_keeps_the_codes_of_unchanged_rows(run, tmp_path):
    """The earlier export has steps that are a little wider; of its rows one has changed."""
    now, base = open_run(run).retriever("float32"), tmp_path / "base"
    floats = now.items.floats()
    rows = to_precision(floats, "int4", 1.01 * to_precision(floats, "int4").steps)
    changed = dataclasses.replace(rows, values=rows.values.at[7].set(rows.values[7] ^ 1))
    dataclasses.replace(now.with_precision("int4"), items=changed).save(base)
    out = done(export, "--run", run, "--delta-from", base, "--to", tmp_path / "delta")
    assert "users: 0 of 60 rows changed, 0 new" in out and f"items keep the steps of {base}" in out
    assert "int4 *" in out and "items: 1 of 150 rows changed, 0 new" in out
    assert (htd_jax.load(base, tmp_path / "delta").items.steps == rows.steps).all()
    line = runs.line_of(
        start(export, "--run", run, "--delta-from", base, "--precision", "int8", "--to", tmp_path / "x")
    )
    assert "--precision int8: the export of --delta-from is in int4" in line


def test_the_command_of_a_run_makes_it_again(run):
    from htd_jax.command.flags import parse_request

    config = runs.strict(run / "config.json")
    words = train_command(config).split()
    request = parse_request(words[2:], prog="htd-jax train", description="")
    made = resolve_run(request, request.load_dataset()).identity
    assert {name: config[name] for name in made} == json.loads(json.dumps(made))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("seen", ["all", "train"])
def test_recommend_to_a_file(run, tmp_path, suffix, seen):
    path = tmp_path / f"lists.{suffix}"
    done(recommend, "--run", run, "--k", 7, "--to", path, "--seen", seen)
    table = pq.read_table(path) if suffix == "parquet" else pa.csv.read_csv(path)
    opened = open_run(run)
    retriever = opened.retriever(seen=opened.train if seen == "train" else None)
    assert table["item"].to_pylist() == retriever.recommend(k=7).to_table()["item"].to_pylist()
    assert [path.name for path in tmp_path.iterdir()] == [path.name]


def test_recommend_on_the_screen(run, tmp_path):
    done(export, "--run", run, "--to", tmp_path / "model", "--seen")
    for source in (("--run", run), ("--model", tmp_path / "model")):
        best = htd_jax.load(source[1]).recommend([3, 5], 2).items
        out = done(recommend, *source, "--user", "3", "5", "--k", 2)
        assert all(str(item) in out for item in best.ravel()) and "note" not in out
    assert "the first 2 of 60 users" in done(recommend, "--run", run)
    assert "similar" in done(recommend, "--run", run, "--similar", 7, "--k", 3)
    (tmp_path / "users.txt").write_text("3\n\n5\n")
    (tmp_path / "allow.csv").write_text("name,item_id\nx,8\ny,9\n")
    (tmp_path / "deny.txt").write_text("9")
    flags = ("--users", tmp_path / "users.txt", "--allow", tmp_path / "allow.csv", "--deny", tmp_path / "deny.txt")
    done(recommend, "--run", run, *flags, "--to", tmp_path / "lists.csv", "--keep-seen")
    rows = list(csv.DictReader((tmp_path / "lists.csv").read_text().splitlines()))
    assert [(row["user"], row["item"]) for row in rows] == [("3", "8"), ("5", "8")]


def test_new_users_of_a_file_are_left_out_and_named(run, tmp_path):
    (tmp_path / "users.txt").write_text("".join(f"{user}\n" for user in ("new", 3, 99, 5, *range(100, 105))))
    out = done(recommend, "--run", run, "--users", tmp_path / "users.txt", "--k", 2, "--to", tmp_path / "lists.csv")
    assert "note: 7 of 9 users are not known to the model and left out: new, 99, 100, 101, 102, ...\n" in out
    rows = list(csv.DictReader((tmp_path / "lists.csv").read_text().splitlines()))
    assert [row["user"] for row in rows] == ["3", "3", "5", "5"]
    assert "note: 7 of 9" in done(recommend, "--run", run, "--users", tmp_path / "users.txt")


def test_an_export_without_seen_pairs_says_so(run, tmp_path):
    done(export, "--run", run, "--to", tmp_path / "model")
    note = "this export has no seen pairs"
    assert note in done(recommend, "--model", tmp_path / "model", "--user", 1)
    assert note not in done(recommend, "--model", tmp_path / "model", "--user", 1, "--keep-seen")


def test_a_model_without_products(neumf, tmp_path):
    path = tmp_path / "lists.csv"
    done(recommend, "--run", neumf, "--to", path)
    assert len(path.read_text().splitlines()) == 1 + 60 * 20
    line = runs.line_of(start(export, "--run", neumf, "--to", tmp_path / "model"))
    assert "not inner products" in line and not (tmp_path / "model").exists()
    with pytest.raises(UserError, match="not products of two rows"):
        htd_jax.load(neumf).save(tmp_path / "model")


def test_what_cannot_be_is_told_in_a_line(run, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    write = lambda name, text: (here / name).write_bytes(text.encode() if isinstance(text, str) else text)
    write("empty.txt", "\n")
    write("other.csv", "name,age\nx,3\n")
    write("latin.txt", b"caf\xe9\n")
    write("bad.parquet", "hello")
    write("ragged.csv", "age,user\n3\n")
    write("unknown.txt", "1\n99\nx\n")
    write("new.txt", "99\nx\n")
    write("users.txt", "1\n")
    before = sorted(here.iterdir())
    of_run, to = ("--run", run), ("--to", here / "lists.csv")
    for command, arguments, message in [
        (export, ["--run", run], "--to"),
        (export, ["--run", here / "no", "--to", here / "model"], "not a run folder"),
        (export, ["--run", run, "--to", here], "holds something else"),
        (export, ["--run", run, "--to", run], "holds something else"),
        (export, ["--run", run, "--to", here / "users.txt"], "is not a folder"),
        (export, ["--run", run, "--to", here / "model", "--phase", "de"], "no phase 'de'"),
        (export, ["--run", run, "--to", here / "model", "--precision", "int5"], "int5"),
        (recommend, [], "set either --run to a run folder, or --model to an exported model"),
        (recommend, [*of_run, "--model", here], "set either --run"),
        (recommend, [*of_run, "--k", "0", *to], "--k must be at least 1"),
        (recommend, [*of_run, "--k", "x"], "--k"),
        (recommend, [*of_run, "--memory", "0", *to], "--memory must be at least 1"),
        (recommend, [*of_run, "--user", "99", *to], "user '99': not among the 60 users"),
        (recommend, [*of_run, "--user", "99"], "user '99': not among the 60 users"),
        (recommend, [*of_run, "--user", "1", "--users", here / "users.txt"], "--user and --users exclude each other"),
        (recommend, [*of_run, "--users", here / "no.txt", *to], "there is no such file"),
        (recommend, [*of_run, "--users", here / "empty.txt", *to], "no ids in it"),
        (
            recommend,
            [*of_run, "--users", here / "other.csv", *to],
            "no single user id column found (columns: 'name', 'age')",
        ),
        (recommend, [*of_run, "--users", here / "latin.txt", *to], "line 1 is not UTF-8 (caf"),
        (recommend, [*of_run, "--users", here / "bad.parquet", *to], "damaged, cut off, or not a Parquet file"),
        (recommend, [*of_run, "--users", here / "ragged.csv", *to], "line 2 has 1 field ("),
        (recommend, [*of_run, "--users", here / "new.txt", *to], "user '99' and 1 more: not among"),
        (recommend, [*of_run, "--user", "1", "99", *to], "user '99': not among the 60 users"),
        (recommend, [*of_run, "--allow", here / "unknown.txt", *to], "item 'x': not among the 150 items"),
        (recommend, [*of_run, "--allow", here / "users.txt", "--deny", here / "users.txt", *to], "no item is left"),
        (recommend, [*of_run, "--similar", "999"], "item '999': not among"),
        (recommend, [*of_run, "--similar", "1", "--user", "1"], "--similar is for items"),
        (recommend, [*of_run, "--user", "1", "--user=2"], "give all ids after one --user"),
        (recommend, [*of_run, "--seen", "train", "--keep-seen"], "does not go with --keep-seen"),
        (recommend, ["--model", here, "--seen", "train"], "does not know the training part"),
        (recommend, ["--model", here], "not an exported model"),
        (recommend, ["--model", run], "not an exported model (no htd_jax.json); pass a run folder as --run"),
        (recommend, ["--model", here / "no"], "there is no such folder"),
        (recommend, [*of_run, "--to", here / "lists.txt"], "written as .csv or .parquet"),
        (recommend, [*of_run, "--to", here / "no" / "lists.csv"], "there is no folder"),
        (recommend, [*of_run, "--to", here], "holds something else"),
    ]:
        line = runs.line_of(start(command, *arguments))
        assert message in line, (line, message)
        assert sorted(here.iterdir()) == before, line


def test_an_unfinished_phase_is_refused(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (step,) = (copy / "checkpoints" / "htd").iterdir()
    history = json.loads((step / "history.json").read_text())
    (step / "history.json").write_text(json.dumps(history | {"finished": False}))
    assert "stopped after 3 epochs, unfinished" in runs.line_of(start(recommend, "--run", copy))
    shutil.rmtree(step / "state")
    assert "damaged" in runs.line_of(start(recommend, "--run", copy))
    (copy / "config.json").write_text("{")
    assert "damaged" in runs.line_of(start(recommend, "--run", copy))


def test_files_of_ids(tmp_path):
    write = lambda name, text: (tmp_path / name).write_text(text) and tmp_path / name
    found = lambda path, kind="user": read_asked(path, kind).to_pylist()
    assert found(write("a.txt", "\ufeff7\n\n x y \n")) == ["7", "x y"]
    assert found(write("a.csv", 'n,USER_ID:token\n1,"a,b"\n2,007\n3,\n')) == ["a,b", "007"]
    assert found(write("a.tsv", "id\tn\n q\t1\n")) == [" q"]
    pq.write_table(pa.table({"item": [3, 4]}), tmp_path / "a.parquet")
    assert found(tmp_path / "a.parquet", "item") == [3, 4]
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"user\nann\n"))
    assert found(tmp_path / "a.csv.gz") == ["ann"]


@pytest.mark.parametrize("command", [export, recommend])
def test_help_fits_a_screen(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    lines = done(command, "--help").splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= 100


def test_settings_have_limits():
    from htd_jax.command.recommend import Options

    with pytest.raises(UserError, match="`k`"):
        check(Options(k=0))


def test_requests_of_any_size_compile_few_programs():
    rng = np.random.default_rng(0)
    users, items = (to_precision(rng.normal(size=(n, 4)), "int4") for n in (300, 130))
    before = topk._rank_products._cache_size()
    for count in (5, 9, 33, 63, 64, 65, 100, 101, 129, 200, 255, 256, 300):
        top = concatenate(best_items(users, items, 3, rows=np.arange(count)), 3)
        assert len(top.rows) == count
    assert topk._rank_products._cache_size() - before <= 7  # 8, 16, 64, 128, 256, 512 users
