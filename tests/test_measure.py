"""Any model of anybody, measured: every form of one model has one result; what lists leave out; intervals and tests."""

import json

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from runs import line_of, start_command

import htd_jax
from htd_jax.data import Dataset, Ids
from htd_jax.evaluation.significance import users_test
from htd_jax.pipeline import evaluate


@pytest.fixture
def named(small_split):
    """The small split with ids of text for users, and of other numbers for items."""
    users = Ids.from_values([f"u{n:03}" for n in range(small_split.train.num_users)], "user")
    items = Ids.from_values(np.arange(small_split.train.num_items) * 7 + 100, "item")
    return Dataset(small_split, users, items, "named")


@pytest.fixture
def tables(named, rng):
    return [rng.normal(size=(len(ids), 5)).astype(np.float32) for ids in (named.users, named.items)]


def test_every_form_of_a_model_has_one_result(named, tables, rng, tmp_path):
    users, items = tables
    u, i = rng.permutation(len(users)), rng.permutation(len(items))
    for side, table, rows, ids in (("users", users, u, named.users), ("items", items, i, named.items)):
        np.save(tmp_path / f"{side}.npy", table[rows])
        (tmp_path / f"{side}.txt").write_text("\n".join(map(str, ids.take(rows).to_pylist())) + "\n")
    shuffled = {"user_ids": named.users.take(u), "item_ids": named.items.take(i)}
    order = np.argsort(-(users @ items.T), axis=1)
    lists = pd.DataFrame(
        {
            "user": np.repeat(named.users.values.to_pylist(), len(items)),
            "item": named.items.values.to_numpy()[order.ravel()],
            "rank": np.tile(np.arange(len(items)), len(users)),
        }
    )
    forms = {
        "arrays": ((users, items), {}),
        "rows in another order": ((users[u], items[i]), shuffled),
        "files": (
            (tmp_path / "users.npy", tmp_path / "items.npy"),
            {"user_ids": tmp_path / "users.txt", "item_ids": str(tmp_path / "items.txt")},
        ),
        "a scorer of NumPy": (lambda some: users[some] @ items.T, {}),
        "lists": (lists.sample(frac=1, random_state=0), {}),
        "lists of rows": (htd_jax.Lists(jnp.asarray(order)), {}),
    }
    few = {"samples": 100, "cutoffs": (10,)}
    results = {name: evaluate(model, named, **few, **ids).metrics for name, (model, ids) in forms.items()}
    assert list(results["arrays"])[:2] == ["recall@10", "ndcg@10"]
    seen = np.zeros((len(users), len(items)), bool)
    for part in named.split[:2]:
        seen[part.users, part.items] = True
    ranked = np.argsort(np.where(seen, np.inf, -(users @ items.T)), axis=1)
    owner, held = map(np.asarray, (named.test.users, named.test.items))
    found = (ranked[owner, :10] == held[:, None]).any(1).mean()  # one held-out item each
    for name, metrics in results.items():
        assert metrics == pytest.approx(results["arrays"], abs=1e-6), name
    assert results["arrays"]["recall@10"] == pytest.approx(found)


def test_a_scorer_of_jax_is_measured_by_the_sampled_protocol_too(named, tables):
    users, items = map(jnp.asarray, tables)
    how = {"protocol": "sampled", "candidates": 8, "cutoffs": (5,), "samples": 100, "part": "valid"}
    scorer = evaluate(lambda some: users[some] @ items.T, named, against=tuple(tables), **how)
    assert scorer.differences["recall@5"].p == 1 and scorer.differences["recall@5"].difference == 0


def test_differences_are_tested_over_users(named, tables, tmp_path):
    users, items = tables
    measured = evaluate((users, items), named, against=(users, -items), samples=200, cutoffs=(10,))
    first, second = (one.values["recall@10"].astype(float) for one in measured.by_user)
    difference = measured.differences["recall@10"]
    assert difference.p == users_test(first, second)
    assert difference.difference == pytest.approx(first.mean() - second.mean())
    assert difference.difference_low <= difference.difference <= difference.difference_high
    low, high = measured.intervals["recall@10"]
    assert low <= measured.metrics["recall@10"] <= high and measured.users == len(first)
    assert "recall@10" in repr(measured) and "against" in repr(measured)
    for name in ("m.json", "m.csv"):
        measured.save(tmp_path / name)
    saved = json.loads((tmp_path / "m.json").read_text())
    assert saved["metrics"]["recall@10"]["p"] == difference.p and saved["users"] == len(first)
    assert pd.read_csv(tmp_path / "m.csv").set_index("metric").loc["mrr@10"].notna().all()


def test_what_lists_leave_out_is_not_found(named):
    test = [(named.users.values[u].as_py(), named.items.values[i].as_py()) for u, i in zip(
        named.test.users.tolist(), named.test.items.tolist()
    )]  # fmt: skip
    best = pd.DataFrame(test, columns=["user", "item"])
    perfect = evaluate(best, named, samples=100, cutoffs=(5,))
    assert perfect.metrics["recall@5"] == 1 and any("at most 1 items" in note for note in perfect.notes)
    half = pd.concat([best[: len(best) // 2], pd.DataFrame({"user": ["stranger"], "item": [100]})])
    measured = evaluate(half, named, samples=100, cutoffs=(5,))
    assert measured.metrics["recall@5"] == pytest.approx((len(best) // 2) / len(best))
    notes = "\n".join(measured.notes)
    assert "users have no list" in notes and "1 of 31 users are not in the data and were left out" in notes
    other = best.assign(item=best["item"].to_numpy()[::-1])
    other = other[[pair not in set(test) for pair in zip(other["user"], other["item"])]]
    assert any(
        "no list holds a held-out item" in note for note in evaluate(other, named, samples=100, cutoffs=(5,)).notes
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda u, i: {"model": (u[1:], i)}, "rows of users, and the data"),
        (lambda u, i: {"model": (u, i), "item_ids": np.arange(len(i))}, "ids lack"),
        (lambda u, i: {"model": lambda some: np.zeros((len(some), 3))}, "the scores of every item"),
        (lambda u, i: {"model": (u, i), "part": "train"}, "must be test or valid"),
        (lambda u, i: {"model": (u, i), "level": 1}, "`level`"),
        (lambda u, i: {"model": (u, i), "data": None}, "`data` is missing"),
    ],
)
def test_models_of_other_data_are_refused(named, tables, change, reason):
    with pytest.raises(htd_jax.UserError, match=reason):
        evaluate(**{"data": named, **change(*tables)})


def test_the_command(tmp_path):
    data = htd_jax.read("synthetic")
    rng = np.random.default_rng(0)
    for side in ("users", "items"):
        np.save(tmp_path / f"{side}.npy", rng.normal(size=(len(getattr(data, side)), 3)).astype(np.float32))
    files = [tmp_path / "users.npy", tmp_path / "items.npy"]
    dataset = ["--dataset", "synthetic", "--samples", "100", "--cutoffs", "10"]
    done = start_command("evaluate", "--model", *files, "--against", *files, *dataset, "--to", tmp_path / "m.json")
    assert done.status == 0, done.err
    assert "recall@10" in done.out and "metrics: " in done.out
    assert json.loads((tmp_path / "m.json").read_text())["metrics"]["mrr@10"]["p"] == 1
    assert "--split-files" in line_of(start_command("evaluate", "--model", *files))
    assert "must end in" in line_of(start_command("evaluate", "--model", *files, *dataset, "--to", "m.xls"))
