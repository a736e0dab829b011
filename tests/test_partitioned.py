"""Logs in several files, read as one log by one process or by several."""

import dataclasses
import json
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import htd_jax
from htd_jax.data import Reading
from htd_jax.data.partitioned import read_partitioned
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
    {"min_rating": 3, "min_per_user": 2, "min_per_item": 4, "split_seed": 3},
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


def in_threads(processes, path, shards=None, **options):
    """Reads a log as so many processes would, each of which is a thread."""
    barrier, sent = threading.Barrier(processes, timeout=30), {}

    def exchange_of(process):
        def exchange(parts):
            assert len(parts) == processes and all(part.dtype == np.uint8 for part in parts)
            sent[process] = list(parts)
            barrier.wait()
            received = [sent[other][process].copy() for other in range(processes)]
            barrier.wait()
            return received

        return exchange

    def read(process):
        how = {"process": process, "processes": processes, "exchange": exchange_of(process), "shards": shards}
        return read_partitioned(path, Reading(**options), **how)

    with ThreadPoolExecutor(processes) as pool:
        return [*pool.map(read, range(processes))]


def found_by(processes, path, shards=None, **options):
    """What `found` returns, put together from the parts of all processes."""
    try:
        logs = in_threads(processes, path, shards, **options)
    except UserError as error:
        return str(error).partition(": ")[2]
    block = -(-logs[0].num_users // (shards or processes)) * ((shards or processes) // processes)
    for p, log in enumerate(logs):
        ends = [min(q * block, log.num_users) for q in (p, p + 1)]
        assert [log.first_user, log.last_user] == ends and log.num_items == len(log.items)
        assert all(((users >= ends[0]) & (users < ends[1])).all() for users, _ in (log.train, log.valid, log.test))
        assert log.items.values.equals(logs[0].items.values) and log.span == logs[0].span
    parts = [
        [pair for log in logs for pair in zip(*(column.tolist() for column in getattr(log, name)))]
        for name in ("train", "valid", "test")
    ]
    assert logs[0].sizes == tuple(map(len, parts))
    ids = [x for log in logs for x in log.users.values.to_pylist()]
    return parts, ids, logs[0].items.values.to_pylist(), logs[0].span


@settings(**FEW)
@given(
    seed=st.integers(0, 99),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    options=st.sampled_from(OPTIONS),
    processes=st.integers(1, 4),
    text=st.booleans(),
    more=st.integers(1, 2),
)
def test_several_processes_find_what_one_does(tmp_path_factory, seed, cuts, options, processes, text, more):
    folder = write_parts(tmp_path_factory.mktemp("log"), log_of(seed, text=text), cuts)
    assert found_by(processes, folder, processes * more, **options) == found(folder, **options)


def test_ids_follow_one_rule_in_several_processes(tmp_path):
    """Whether ids are numbers is about those of all processes that are left after all filters."""
    pairs = [(str(u), f"{i}.0" if u % 2 else str(i)) for u in range(12) for i in range(8) if (u * i) % 5 < 3]
    for name, more in (("numbers", []), ("text", [("x", "1"), ("x", "2"), ("x", "3")]), ("rare", [("x", "2")])):
        users, items = zip(*pairs, *more)
        folder = write_parts(tmp_path / name, pa.table({"user": users, "item": items}), [20, 45])
        for options in ({}, {"min_per_user": 2, "split": "ratio"}):
            for processes in (2, 3):
                expected = found(folder, **options)
                assert found_by(processes, folder, **options) == expected
                assert isinstance(expected[1][0], int) == (name == "numbers" or (name == "rare" and bool(options)))


def test_what_is_not_read_in_parts(tmp_path):
    def told(folder, processes=3, **options):
        with pytest.raises(UserError) as error:
            in_threads(processes, folder, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    table = log_of(0)
    folder = write_parts(tmp_path / "a", table, [20, 40])
    assert "`split` new-users needs the whole log in one process" in told(folder, split="new-users")
    assert "`clean_ids` needs the whole log" in told(folder, clean_ids=True)
    assert "`shards` must be a multiple of the 3 processes" in told(folder, shards=4)
    assert "nothing is left with" in told(folder, min_per_user=50)
    (tmp_path / "a.csv").write_text("user,item\n1,2\n")
    assert "a.csv: only Parquet is read in parts" in told(tmp_path / "a.csv")
    other = table.set_column(0, "user", pa.array(range(60))).slice(40)
    pq.write_table(other, folder / "part-002.parquet")
    assert "part-002.parquet: column 'user' is int64, and string in part-000.parquet" in told(folder)
    columns = table.to_pydict()
    columns["item"][50] = None
    folder = write_parts(tmp_path / "b", pa.table(columns), [20, 40])
    assert "no value in column 'item', first in part-002.parquet, row 11" in told(folder)
    columns |= {"user": ["7"] * 60, "item": ["NULL", *map(str, range(59))]}
    assert "item 'NULL' is no id among whole numbers" in told(write_parts(tmp_path / "c", pa.table(columns), [20, 40]))
    columns["item"][30] = "tea"
    folder = write_parts(tmp_path / "d", pa.table(columns), [20, 40])
    assert found_by(3, folder, split="ratio") == found(folder, split="ratio")


IN_A_PROCESS = """
import json, sys
import jax

process, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from htd_jax.data import Ids, Reading
from htd_jax.data import partitioned
from htd_jax.errors import UserError
from htd_jax.serving import Retriever, Rows

partitioned.SENT = 64  # several pieces
log = partitioned.read_partitioned(folder + "/log", Reading(split="last"), shards=4)
parts = [[column.tolist() for column in part] for part in (log.train, log.valid, log.test)]
by_rows = NamedSharding(Mesh(jax.devices(), "rows"), PartitionSpec("rows"))


def table(rows):
    padded = np.pad(np.arange(rows * 3.0, dtype=np.float32).reshape(rows, 3), ((0, -rows % 4), (0, 0)))
    return Rows(jax.make_array_from_callback(padded.shape, by_rows, lambda index: padded[index]))


users = Ids.from_values([f"u{k}" for k in range(9)], "user")
model = Retriever(table(9), table(7), users, Ids.numbers(7, "item"))
model.save(folder + "/model")
here = Rows(np.arange(27, dtype=np.float32).reshape(9, 3))
everywhere = Retriever(here, here, users, Ids.numbers(9, "item"))
everywhere.save(folder + "/everywhere", shard_size=40 / 1e6)
everywhere.save(folder + "/later", delta_from=folder + "/everywhere")
try:
    model.save(folder + "/none", delta_from=folder + "/model")
except UserError as error:
    assert "needs tables that one process holds whole" in str(error), error
try:
    model.save(folder)
except UserError as error:
    print(json.dumps([parts, log.users.values.to_pylist(), log.items.values.to_pylist(), log.span, str(error)]))
"""


@pytest.mark.slow
def test_two_processes_read_a_log_and_write_a_model(tmp_path):
    folder = write_parts(tmp_path / "log", log_of(5, rows=400), [100, 150, 300])
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = str(bound.getsockname()[1])
    command = [sys.executable, "-c", IN_A_PROCESS]
    started = [
        subprocess.Popen([*command, str(k), port, str(tmp_path)], stdout=subprocess.PIPE, text=True) for k in range(2)
    ]
    told = [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in started]
    parts, users, items, span = found(folder, split="last")
    for k, part in enumerate(parts):
        assert part == [pair for parts, *_ in told for pair in zip(*parts[k])]
    assert [*told[0][1], *told[1][1]] == users and told[0][2] == told[1][2] == items
    assert [tuple(x[3]) for x in told] == [span] * 2
    assert all("holds something else, everywhere; name a new folder" in x[4] for x in told)
    model = htd_jax.load(tmp_path / "model")
    dataclasses.replace(model, version=None).save(tmp_path / "again")
    assert htd_jax.load(tmp_path / "again").version == model.version
    assert len(htd_jax.load(tmp_path / "everywhere", tmp_path / "later").users) == 9
    assert len([*(tmp_path / "model").glob("tables-*-of-00007.safetensors")]) == 7
    np.testing.assert_array_equal(model.users.values, np.arange(27).reshape(9, 3))
    np.testing.assert_array_equal(model.items.values, np.arange(21).reshape(7, 3))
    assert model.recommend("u2", 1).items.tolist() == [[6]]
    assert len([*(tmp_path / "everywhere").glob("tables-*-of-00006.safetensors")]) == 6
    np.testing.assert_array_equal(htd_jax.load(tmp_path / "everywhere").items.values, np.arange(27).reshape(9, 3))
