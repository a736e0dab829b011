"""Logs in several files, read as one log by one process or by several."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import htd_jax
from htd_jax.errors import UserError

FEW = {"max_examples": 25, "deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


def log_of(seed, rows=60, users=9, items=7, text=True):
    """A log with repeated pairs, equal times and low ratings."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, users, rows), rng.integers(0, items, rows)
    name = lambda kind, codes: [f"{kind}{code}" for code in codes] if text else codes
    columns = {"user": name("u", user), "item": name("i", item), "time": rng.integers(0, 9, rows)}
    return pa.table(columns | {"rating": rng.integers(1, 6, rows)})


def write_parts(folder, table, cuts, row_group_size=5):
    """Writes rows between cuts to files whose names are in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    ends = sorted(min(cut, len(table)) for cut in cuts)
    for k, (start, end) in enumerate(zip([0, *ends], [*ends, len(table)])):
        pq.write_table(table.slice(start, end - start), folder / f"part-{k:03}.parquet", row_group_size=row_group_size)
    return folder


def found(source, **options):
    """All that a data set holds, or the error."""
    try:
        data = htd_jax.read(source, **options)
    except UserError as error:
        return str(error).partition(": ")[2]
    parts = [[*zip(part.users.tolist(), part.items.tolist())] for part in data.split]
    return parts, data.users.values.to_pylist(), data.items.values.to_pylist(), data.span


OPTIONS = [
    {},
    {"split": "last"},
    {"split": "ratio", "min_rating": 2},
    {"split": "time", "min_per_user": 2},
    {"split": "new-users"},
]


@settings(**FEW)
@given(seed=st.integers(0, 99), cuts=st.lists(st.integers(0, 60), max_size=5), options=st.sampled_from(OPTIONS))
def test_rows_in_several_files_are_those_of_one(tmp_path_factory, seed, cuts, options):
    folder = tmp_path_factory.mktemp("log")
    table = log_of(seed)
    pq.write_table(table, folder / "whole.parquet")
    expected = found(folder / "whole.parquet", **options)
    parts = write_parts(folder / "parts", table, cuts)
    assert found(parts, **options) == expected
    assert found(str(parts / "part-*.parquet"), **options) == expected


def test_patterns_and_files_that_differ(tmp_path, monkeypatch):
    def told(source, **options):
        with pytest.raises(UserError) as error:
            htd_jax.read(source, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    table = log_of(0)
    for k in range(2):
        write_parts(tmp_path / "logs" / f"day={k}", table.slice(30 * k, 30), [10])
    data = htd_jax.read(str(tmp_path / "logs" / "*" / "part-*.parquet"), time_column="day", split="last")
    assert data.name == "logs" and data.span == (0, 1)
    assert found(f"{tmp_path}/logs/**") == found(tmp_path / "logs") == found(table)
    monkeypatch.chdir(tmp_path / "logs" / "day=0")
    assert htd_jax.read("part-*").name == "data"
    assert "no file matches this pattern" in told("no-*.parquet")
    pq.write_table(table.rename_columns(["user_id", "item", "time", "rating"]), "part-009.parquet")
    assert "part-009.parquet: the user column is named 'user_id', and 'user' in part-000.parquet" in told("part-*")
    pq.write_table(table.set_column(2, "time", table["time"].cast(pa.timestamp("s"))), "part-009.parquet")
    assert "part-009.parquet: the time column 'time' holds dates, and numbers or text in" in told("part-*")
    pq.write_table(table.drop_columns("time"), "part-009.parquet")
    assert "part-009.parquet: no time column found" in told("part-*", split="last")
    note = "column 'time' is not read, because it is missing in part-009.parquet of its 3 files"
    assert any(note in line for line in htd_jax.read("part-*").notes)
