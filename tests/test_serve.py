"""An export opened without JAX: the lists and scores of the retriever, from the codes."""

import concurrent.futures
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import htd_jax
from htd_jax import serve
from htd_jax.data import Ids, Interactions
from htd_jax.errors import UserError
from htd_jax.ops.codes import PRECISIONS
from htd_jax.ops.precision import to_precision
from htd_jax.serve import rank, storage
from htd_jax.serve.fold import Pooling
from htd_jax.serve.table import Table
from htd_jax.serving import Retriever

USERS, ITEMS, DIM = 60, 150, 13


def retriever(precision: str, seed: int = 0, *, text: bool = True) -> Retriever:
    rng = np.random.default_rng(seed)
    users, items = (to_precision(rng.normal(size=(n, DIM)), precision) for n in (USERS, ITEMS))
    seen = Interactions.from_pairs(rng.integers(0, USERS, 300), rng.integers(0, ITEMS, 300), USERS, ITEMS)
    name = (lambda n, c: pa.array([f"{c}{i}" for i in range(n)])) if text else (lambda n, c: pa.array(np.arange(n) * 7))
    return Retriever(users, items, Ids(name(USERS, "u"), "user"), Ids(name(ITEMS, "i"), "item"), seen)


def same(found, expected) -> None:
    """Equal lists, but for items whose scores differ by rounding alone, which may change places."""
    assert found.queries.to_pylist() == expected.queries.to_pylist() and found.names == expected.names
    assert found.rows.shape == expected.rows.shape and found.rows.dtype == np.int32
    assert found.scores.dtype == np.float32
    np.testing.assert_array_equal(found.rows < 0, expected.rows < 0)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5, atol=1e-5)
    for mine, theirs, scores in zip(found.rows, expected.rows, expected.scores):
        ends = scores > scores[-1] + 1e-4  # beyond the last place an equal item may stand in for another
        assert set(mine[ends]) == set(theirs[ends])
        apart = np.append(True, scores[1:] < scores[:-1] - 1e-4)
        alone = apart & np.append(apart[1:], True)
        np.testing.assert_array_equal(mine[alone], theirs[alone])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_lists_and_scores_of_the_retriever(tmp_path, precision):
    made = retriever(precision)
    made.save(tmp_path / "model", seen=True)
    model, by_jax = serve.load(tmp_path / "model"), htd_jax.load(tmp_path / "model")
    assert (model.precision, model.dim, model.version) == (precision, DIM, by_jax.version)
    for table, rows in ((model.users, made.users), (model.items, made.items)):
        np.testing.assert_array_equal(table.floats(), rows.floats())
        assert table.row_bytes == rows.row_bytes
    few, some = [f"i{i}" for i in range(0, ITEMS, 9)], [f"u{i}" for i in (3, 0, 59)]
    for users, options in [
        (None, {}),
        ("u7", {"seen": True, "k": 5}),
        (some, {"allow": few, "deny": ["i9"]}),
        (some, {"deny": few, "k": 200}),
    ]:
        same(model.recommend(users, **options), by_jax.recommend(users, **options))
    same(model.similar(["i3", "i77"], 10), by_jax.similar(["i3", "i77"], 10))
    same(model.similar("i3", 10, allow=few), by_jax.similar("i3", 10, allow=few))
    seen = [["i1", "i2", "i2"], ["i70"]]
    rows = model.fold_in(seen)
    np.testing.assert_allclose(rows, by_jax.fold_in(seen), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.fold_in_items(["u1", "u9"]), by_jax.fold_in_items(["u1", "u9"]), rtol=1e-5)
    same(model.recommend_vectors(rows, 9, seen=seen), by_jax.recommend_vectors(rows, 9, seen=seen))


def test_a_table_of_codes_stays_codes(tmp_path):
    retriever("int4").save(tmp_path / "model")
    model = serve.load(tmp_path / "model")
    model.recommend(["u1", "u2"])
    model.similar("i1")
    model.fold_in("i1")
    kept = [x.nbytes for x in vars(model.items).values() if isinstance(x, np.ndarray)]
    assert sorted(kept) == [4 * DIM, 4 * ITEMS, 7 * ITEMS]  # steps, lengths, codes


@given(st.sampled_from(PRECISIONS), st.integers(1, 70), st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_the_best_against_a_sort(precision, users, items, k, seed):
    rng = np.random.default_rng(seed)
    dim = int(rng.integers(1, 9))
    # Few whole numbers: exact sums, and many ties, which are in the order of items.
    table = rng.integers(-2, 3, (items, dim)).astype(np.float32)
    if precision in ("float32", "float16"):
        table = Table.by_columns(table.astype(precision))
    elif precision == "int8":
        table = Table.by_columns(table.astype(np.int8), np.ones(items, np.float32))
    else:
        table = Table.of(to_precision(table, precision))
        table = Table.by_columns(table.values, None, np.ones(dim, np.float32), table.bits)
    queries = rng.integers(-3, 4, (users, dim)).astype(np.float32)
    hidden = [np.flatnonzero(rng.random(items) < 0.2) for _ in range(users)]
    candidates = None if seed % 3 else np.flatnonzero(rng.random(items) < rng.choice([0.1, 0.9]))
    scores = queries @ table.floats().T
    for own, rows in zip(scores, hidden):
        own[rows] = -np.inf
    if candidates is not None:
        scores[:, np.setdiff1d(np.arange(items), candidates)] = -np.inf
    size = items if candidates is None else len(candidates)
    order = np.argsort(-scores, axis=1, kind="stable")[:, : min(k, size)]
    best = np.take_along_axis(scores, order, 1)
    found = rank.concatenate(rank.best_items(queries, table, k, hidden=hidden, candidates=candidates, memory=1), 0)
    np.testing.assert_array_equal(found.rows, np.where(best > -np.inf, order, -1))
    np.testing.assert_array_equal(found.scores, best)


def test_scores_that_are_no_numbers_are_never_among_the_best():
    table = Table(np.array([[np.nan], [1.0], [np.inf], [-np.inf], [2.0]], np.float32))
    (top,) = rank.best_items(np.ones((1, 1), np.float32), table, 5)
    assert top.rows.tolist() == [[2, 4, 1, -1, -1]]
    (top,) = rank.best_items(np.ones((1, 1), np.float32), Table(np.zeros((0, 1), np.float32)), 5)
    assert top.rows.shape == (1, 0)


def test_a_model_without_a_table_of_users(tmp_path):
    rng = np.random.default_rng(1)
    made = retriever("int4")
    pooling = Pooling(rng.normal(size=(DIM, DIM)).astype(np.float32), np.ones(DIM, np.float32), np.float32(0.5))
    empty = to_precision(np.zeros((0, DIM)), "float32")
    ids = made.user_ids, made.item_ids
    Retriever(empty, made.items, *ids, made.seen, pooling=pooling).save(tmp_path / "model", seen=True)
    model, by_jax = serve.load(tmp_path / "model"), htd_jax.load(tmp_path / "model")
    same(model.recommend(["u3", "u59"], 7), by_jax.recommend(["u3", "u59"], 7))
    np.testing.assert_allclose(model.fold_in(["i3", "i4"]), by_jax.fold_in(["i3", "i4"]), rtol=1e-5)
    Retriever(empty, made.items, *ids, made.seen, pooling=pooling).save(tmp_path / "other")
    with pytest.raises(UserError, match="made from the items that they have seen"):
        serve.load(tmp_path / "other").recommend("u3")


def test_deltas_shards_and_saving_need_no_jax(tmp_path):
    retriever("int8").save(tmp_path / "old", seen=True)
    retriever("int8", 1).save(tmp_path / "delta", seen=True, delta_from=tmp_path / "old")
    new = serve.load(tmp_path / "old", tmp_path / "delta")
    same(new.recommend(None, 5), retriever("int8", 1).recommend(None, 5))
    new.save(tmp_path / "new", seen=True)
    new.save(tmp_path / "shards", seen=True, shard_size=0.001)
    assert len([*(tmp_path / "shards").glob("tables-*")]) > 2
    for folder in ("new", "shards"):
        again = serve.load(tmp_path / folder)
        assert (again.version, again.parent) == (new.version, new.parent)
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['jax', 'flax', 'optax', 'orbax', 'chex', 'scipy'])); "
        "from htd_jax import serve; from pathlib import Path; import json; "
        f"model = serve.load({str(tmp_path / 'old')!r}, {str(tmp_path / 'delta')!r}); "
        f"model.save({str(tmp_path / 'made')!r}); "
        "lists = model.recommend(['u1'], 5); lists.write(Path('lists.csv')); model.fold_in(['i1', 'i2']); "
        "print(json.dumps(lists.items.tolist()))"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=path_only())
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout) == new.recommend(["u1"], 5).items.tolist()


def path_only() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(htd_jax.__file__).parent.parent)}


def test_requests_from_several_threads(tmp_path):
    retriever("int4", text=False).save(tmp_path / "model", seen=True)
    model = serve.load(tmp_path / "model")
    expected = {user: model.recommend(user * 7, 10).rows.tolist() for user in range(USERS)}
    fresh = serve.load(tmp_path / "model")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = [user for user in range(USERS) for _ in range(5)]
        for user, lists in zip(asked, pool.map(lambda user: fresh.recommend(user * 7, 10), asked)):
            assert lists.rows.tolist() == expected[user]


def test_errors_are_one_line(tmp_path):
    retriever("int4").save(tmp_path / "model")
    model = serve.load(tmp_path / "model")
    for ask, message in [
        (lambda: model.recommend("nobody"), "user 'nobody': not among the 60 users"),
        (lambda: model.recommend("u1", 0), "`k` must be a whole number of at least 1"),
        (lambda: model.recommend("u1", k=1.5), "`k` must be a whole number of at least 1"),
        (lambda: model.recommend("u1", memory=0), "`memory` must be at least 1 MiB"),
        (lambda: model.recommend("u1", allow=["i1"], deny=["i1"]), "no item is left"),
        (lambda: model.recommend_vectors(np.zeros((2, 3))), r"`vectors` must be \[n, 13\]"),
        (lambda: model.fold_in([]), "list 0 is empty"),
        (lambda: serve.load(tmp_path), "not an exported model"),
    ]:
        with pytest.raises(UserError, match=message):
            ask()


def test_a_seen_pair_that_is_no_row_is_refused(tmp_path):
    retriever("float32").save(tmp_path / "model", seen=True)
    pq.write_table(pa.table({"user": [0, 60], "item": [0, 0]}), tmp_path / "model" / "seen.parquet")
    with pytest.raises(UserError, match="seen.parquet"):
        storage.read_export(tmp_path / "model")
