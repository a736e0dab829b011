"""Files for every reader that are damaged, or made to harm; each is read right or refused, in bounded time and memory.

Damaged: a valid file with bytes changed, numbers changed, parts cut out, moved, and repeated up to thousands of times;
files cut off and spliced. Made to harm: from a grammar of what each format can claim, such as sizes, depths, names and
repetitions.

A reader gives a result or a `UserError`, every argument of which is one line. Reading takes at most `SECONDS` of CPU
and `SECONDS_PER_MIB` for each MiB of the file, and at most `MEMORY` and `MEMORY_PER_BYTE` for each byte, where a
compressed text counts as what `htd_jax.data.files` lets it become. Anything else is a failure, and the seed that makes
the same file again is printed. Everything happens in this process.

    python benchmarks/fuzz.py --files 100000 --seed 1 --json fuzz.json   # files in all, over all formats
    python benchmarks/fuzz.py --format npy pth lists.csv --files 1000

A new format is a line in `FORMATS`: how valid files are made, and what reads one; in `HOSTILE`: how harmful ones are.
"""

import argparse
import collections
import contextlib
import functools
import gzip
import io
import json
import re
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import safetensors.numpy

from htd_jax.command.described import read_flags
from htd_jax.data import Ids, Interactions, Reading, load_split, read_log
from htd_jax.data.files import most_inflated
from htd_jax.data.idfiles import read_id_file
from htd_jax.data.ranked import read_lists, to_lists
from htd_jax.data.tables import match_rows, read_tables
from htd_jax.errors import UserError
from htd_jax.ops.precision import Rows
from htd_jax.pipeline.run_folder import RunFolder
from htd_jax.serve.storage import Export, read_export, write_export

# The bounds of reading a file.
SECONDS, SECONDS_PER_MIB = 1.0, 4.0
MEMORY, MEMORY_PER_BYTE = 2**28, 2**10

# Wall-clock seconds after which a reader is interrupted.
HANGS = 120

# Valid files are made from so many seeds.
VARIANTS = 16

FILES = Path(__file__).parent.parent / "tests" / "files"
GZIP, ZIP = b"\x1f\x8b", b"PK"
USERS, ITEMS = Ids.numbers(6, "user"), Ids.numbers(9, "item")


class Format(NamedTuple):
    """A kind of file: its suffix, a few valid ones (of unlike writers, and so spliced), and what reads one."""

    suffix: str
    make: Callable[[np.random.Generator], list[bytes]]
    read: Callable[[Path], Any]


def _tables(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """So large that most of a file is not its header."""
    return {"users": rng.normal(size=(60, 4)).astype(np.float32), "items": rng.normal(size=(90, 4)).astype(np.float32)}


def _saved(save: Callable[[io.BytesIO], Any]) -> bytes:
    file = io.BytesIO()
    save(file)
    return file.getvalue()


def _npy(rng: np.random.Generator) -> list[bytes]:
    items = _tables(rng)["items"]
    variants = [items, items.astype(np.float16), np.asfortranarray(items.astype(">f8")), np.arange(6)]
    return [_saved(lambda file, table=table: np.save(file, table)) for table in variants]


def _npz(rng: np.random.Generator) -> list[bytes]:
    tables = _tables(rng)
    more = {"user_factors": tables["users"], "item_factors": tables["items"], "user_bias": rng.normal(size=60)}
    return [_saved(lambda file: np.savez(file, **tables)), _saved(lambda file: np.savez_compressed(file, **more))]


def _safetensors(rng: np.random.Generator) -> list[bytes]:
    tables = _tables(rng)
    half = {f"{name[:-1]}_embedding.weight": table.astype(np.float16) for name, table in tables.items()}
    return [safetensors.numpy.save(tables), safetensors.numpy.save(half | {"steps": np.arange(3)})]


def _pth(rng: np.random.Generator) -> list[bytes]:
    """Files that torch wrote."""
    return [path.read_bytes() for path in sorted(FILES.glob("*.pth"))]


def _rows(rng: np.random.Generator) -> pa.Table:
    users = np.repeat(np.arange(6), 4)
    items = np.concatenate([rng.permutation(9)[:4] for _ in range(6)])
    return pa.table(
        {"user_id": users, "item_id": items, "score": rng.random(24).round(3), "rank": np.tile(range(4), 6)}
    )


def _csv(rng: np.random.Generator) -> list[bytes]:
    rows = _rows(rng)
    lines = [",".join(rows.column_names), *(",".join(map(str, row.values())) for row in rows.to_pylist())]
    plain = "\n".join(lines).encode()
    return [plain, plain.replace(b"\n", b"\r\n"), b'"user","item"\n"1","2"\n"3","4"\n']


def _gz(rng: np.random.Generator) -> list[bytes]:
    return [gzip.compress(text, mtime=0) for text in _csv(rng)]


def _jsonl(rng: np.random.Generator) -> list[bytes]:
    return [
        "\n".join(map(json.dumps, _rows(rng).to_pylist())).encode(),
        b'{"user": "1", "item": 2, "more": [1, {"a": 2}]}\n',
    ]


def _parquet(rng: np.random.Generator) -> list[bytes]:
    rows = _rows(rng)
    texts = rows.set_column(0, "user_id", rows["user_id"].cast(pa.string()))
    options: list[dict[str, Any]] = [{}, {"compression": "zstd", "use_dictionary": False}]
    return [_saved(lambda file, table=t, o=o: pq.write_table(table, file, **o)) for t, o in zip((rows, texts), options)]


def _ids_parquet(rng: np.random.Generator) -> list[bytes]:
    tables = [pa.table({"row": np.arange(5), "id": list("vwxyz")}), pa.table({"user_id": rng.permutation(99)[:20]})]
    return [_saved(lambda file, table=table: pq.write_table(table, file)) for table in tables]


def _ids_npy(rng: np.random.Generator) -> list[bytes]:
    variants = [rng.permutation(40)[:9], np.array(["a", "bc", "é"]), np.array([b"a", b"bc"])]
    return [_saved(lambda file, table=table: np.save(file, table)) for table in variants]


def _ids_csv(rng: np.random.Generator) -> list[bytes]:
    return [b"id\n1\n2\n007\n", b"token,user_id\na,1\nb,2\n", b'"user"\r\n"x"\r\n"y, z"\r\n']


def _text(rng: np.random.Generator) -> list[bytes]:
    return [b"0\n1\n2\n3\n4\n5\n", "a\n[PAD]\né\n".encode(), b"x\r\ny\r\n"]


def _read_npy(path: Path) -> Any:
    good = path.with_name("users.npy")
    if not good.exists():
        np.save(good, np.ones((6, 4), np.float32))
    return read_tables([good, path])


def _read_one(path: Path) -> Any:
    users, items = read_tables([path])
    return match_rows(users, None, USERS, "user"), match_rows(items, None, ITEMS, "item")


def _read_lists(path: Path) -> Any:
    return to_lists(read_lists(path), USERS, ITEMS)


def _read_ids(path: Path) -> Any:
    return read_id_file(path, "user")


def _log(rng: np.random.Generator) -> pa.Table:
    users, items = np.divmod(rng.permutation(400)[:120], 20)
    columns = {"user_id": users, "item": [f"i{i}" for i in items], "rating": rng.integers(1, 6, 120)}
    return pa.table({**columns, "timestamp": 1.6e9 + rng.integers(0, 10**6, 120)})


def _log_csv(rng: np.random.Generator) -> list[bytes]:
    plain = _saved(lambda file: pyarrow.csv.write_csv(_log(rng), file))
    return [plain, plain.replace(b'"', b"").replace(b"\n", b"\r\n")]


def _log_inter(rng: np.random.Generator) -> list[bytes]:
    text = _log_csv(rng)[0].replace(b'"', b"").replace(b",", b"\t")
    return [text.replace(b"user_id\titem", b"user_id:token\titem:token", 1)]


def _log_jsonl(rng: np.random.Generator) -> list[bytes]:
    return ["\n".join(map(json.dumps, _log(rng).to_pylist())).encode()]


def _log_parquet(rng: np.random.Generator) -> list[bytes]:
    return [
        _saved(lambda file, how=how: pq.write_table(_log(rng), file, compression=how)) for how in ("snappy", "zstd")
    ]


def _zstd(text: bytes) -> bytes:
    stream = pa.BufferOutputStream()
    with pa.CompressedOutputStream(stream, "zstd") as packed:
        packed.write(text)
    return stream.getvalue().to_pybytes()


def _read_log(path: Path) -> Any:
    """With all that a log is read for, and half of them without their bad rows."""
    how = Reading(split="last", min_rating=2, skip_bad_rows=path.stat().st_size % 2 == 0)
    return read_log(path, how)


def _nested(rng: np.random.Generator) -> pa.Table:
    lists = [rng.permutation(9)[:4].tolist() for _ in range(6)]
    structs = [[{"item": item, "rating": 1 / (1 + rank)} for rank, item in enumerate(own)] for own in lists]
    return pa.table(
        {"user": range(6), "recommendations": structs} if rng.random() < 0.5 else {"user": range(6), "items": lists}
    )


def _nested_parquet(rng: np.random.Generator) -> list[bytes]:
    tables = [_nested(rng), _nested(rng)]
    return [_saved(lambda file, table=table: pq.write_table(table, file)) for table in tables]


def _nested_jsonl(rng: np.random.Generator) -> list[bytes]:
    return ["\n".join(map(json.dumps, _nested(rng).to_pylist())).encode() for _ in range(2)]


def _split(rng: np.random.Generator) -> list[bytes]:
    codes = rng.permutation(300)[:120]
    train, valid, test = (np.stack(np.divmod(part, 20), 1) for part in np.split(codes, [100, 110]))
    arrays = {"train": train, "valid": valid, "test": test, "sizes": np.array([15, 20])}
    return [_saved(lambda file: np.savez_compressed(file, **arrays)), _saved(lambda file: np.savez(file, **arrays))]


@functools.cache
def _export() -> dict[str, bytes]:
    """The files of an export."""
    rng = np.random.default_rng(0)
    rows = [Rows(jnp.asarray(rng.normal(size=(size, 4)), jnp.float32)) for size in (6, 9)]
    seen = Interactions.from_pairs(range(6), range(6), 6, 9)
    with tempfile.TemporaryDirectory() as folder:
        write_export(Path(folder, "x"), Export(*rows, USERS, ITEMS, seen, {"model": "bpr"}, {}))
        return {path.name: path.read_bytes() for path in Path(folder, "x").iterdir()}


def _read_export(name: str) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        folder = path.with_name("export")
        if not folder.is_dir():
            folder.mkdir()
            for other, data in _export().items():
                (folder / other).write_bytes(data)
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(path.read_bytes())
        try:
            return read_export(folder)
        finally:
            (folder / name).write_bytes(good)

    return read


def _results(rng: np.random.Generator) -> list[bytes]:
    metrics = {"recall@50": 0.25, "ndcg@50": 0.125}
    settings = {"model": {"name": "bpr", "dim": 20}, "evaluation": {"protocol": "full"}, "seed": 0}
    phase = {"final": {"epoch": 3, "test": metrics, "valid": metrics}, "settings": settings}
    config = {"dataset": "citeulike", "method": "htd", "seed": 0, "student_dim": 20, "gap_closed": metrics}
    return [json.dumps({**config, "phases": {"teacher": phase, "student": phase}}, indent=2).encode()]


def _read_run(name: str) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        folder = path.with_name("run")
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(path.read_bytes())
        run = RunFolder(folder)
        return run.read_config() if name == "config.json" else run.read_results()

    return read


def _metrics(rng: np.random.Generator) -> list[bytes]:
    lines = [{"phase": "student", "epoch": e, "terms": {"bpr": 0.5}, "valid": {"recall@50": 0.1}} for e in range(9)]
    return ["\n".join(map(json.dumps, lines)).encode()]


def _read_metrics(path: Path) -> Any:
    (path.parent / "metrics.jsonl").write_bytes(path.read_bytes())
    return RunFolder(path.parent).read_metrics()


def _toml(rng: np.random.Generator) -> list[bytes]:
    return [b"dataset = 'citeulike'\nseeds = [0, 1]\nmethod = ['htd', 'rrd']\n[htd]\ngroups = 60\n[htd.x]\ny = true\n"]


FORMATS = {
    "npy": Format(".npy", _npy, _read_npy),
    "npz": Format(".npz", _npz, _read_one),
    "safetensors": Format(".safetensors", _safetensors, _read_one),
    "pth": Format(".pth", _pth, _read_one),
    "lists.csv": Format(".csv", _csv, _read_lists),
    "lists.csv.gz": Format(".csv.gz", _gz, _read_lists),
    "lists.jsonl": Format(".jsonl", _jsonl, _read_lists),
    "lists.parquet": Format(".parquet", _parquet, _read_lists),
    "nested.jsonl": Format(".jsonl", _nested_jsonl, _read_lists),
    "nested.parquet": Format(".parquet", _nested_parquet, _read_lists),
    "log.csv": Format(".csv", _log_csv, _read_log),
    "log.tsv": Format(".tsv", lambda rng: [x.replace(b",", b"\t") for x in _log_csv(rng)], _read_log),
    "log.inter": Format(".inter", _log_inter, _read_log),
    "log.csv.gz": Format(".csv.gz", lambda rng: [gzip.compress(x, mtime=0) for x in _log_csv(rng)], _read_log),
    "log.csv.zst": Format(".csv.zst", lambda rng: [_zstd(x) for x in _log_csv(rng)], _read_log),
    "log.jsonl": Format(".jsonl", _log_jsonl, _read_log),
    "log.parquet": Format(".parquet", _log_parquet, _read_log),
    "ids": Format(".txt", _text, _read_ids),
    "ids.csv": Format(".csv", _ids_csv, _read_ids),
    "ids.npy": Format(".npy", _ids_npy, _read_ids),
    "ids.parquet": Format(".parquet", _ids_parquet, _read_ids),
    "split.npz": Format(".npz", _split, load_split),
    "run.config": Format(".json", _results, _read_run("config.json")),
    "run.results": Format(".json", _results, _read_run("results.json")),
    "run.metrics": Format(".jsonl", _metrics, _read_metrics),
    "toml": Format(".toml", _toml, read_flags),
    **{
        f"export.{name.partition('.')[0]}{Path(name).suffix}": Format(
            Path(name).suffix, lambda rng, name=name: [_export()[name]], _read_export(name)
        )
        for name in ("htd_jax.json", "tables.safetensors", "users.parquet", "items.parquet", "seen.parquet")
    },
}


# Parts of hostile text and JSON.
_NAMES = ["user", "item", "items", "recommendations", "scores", "score", "rank", "rating", "timestamp", "row", "id"]
_FIELDS = [*_NAMES, ";", "1", "2.5", "1e999", "-", "NaN", "é", "NULL", "2020-01-01"]
_JSON = ["1", "-0", "1e999", '"x"', '"\\ud800"', "null", "[]", "[1,2]", '{"item":1}', "NaN", "[[]]"]


def _one(rng: np.random.Generator, *values: str) -> str:
    return values[rng.integers(len(values))]


def _size(rng: np.random.Generator) -> int:
    """A size whose logarithm is uniform, up to 2^16."""
    return int(2 ** rng.uniform(0, 16))


def _number(rng: np.random.Generator) -> int:
    """A number that a header may claim."""
    return int(rng.choice([0, 1, 4, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, rng.integers(1, 10**9)]))


def _name(rng: np.random.Generator) -> str:
    part = lambda: _one(rng, "user", "item", "USER", "bias", "weight", ".", "_", "x", "é", "\n", "a" * 300)
    return "".join(part() for _ in range(rng.integers(0, 6)))


def _hostile_pickle(rng: np.random.Generator) -> bytes:
    """Opcodes in any order, most of which are valid where they stand."""
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpuK\x0ctQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0(K\4K\3t(K\3K\1t\x89NtR"
    common = [b"N", b"K\1", b"]", b"}", b")", b"(", b"2", b"0", b"a", b"e", b"s", b"u", b"t", b"l", b"d", b"R", b"b"]
    common += [b"\x85", b"\x86", b"\x87", b"h\0", b"h\1", b"h\2", b"q\0", b"q\1", b"q\2", b"\x94", b"\x93", b"Q", b"1"]
    common += [b"ccollections\nOrderedDict\n", b"X\4\0\0\0user", b"X\4\0\0\0item", b"\x8a\x08" + b"\xff" * 8, tensor]
    common += [b"X\0\1\0\0" + b"a" * 256, b"\x8b\0\1\0\0" + b"\x7f" * 256, b"h\0h\1\x86", b"(h\0t", b"(h\0h\0e"]
    weights = rng.dirichlet(np.full(len(common), 0.3))
    codes = rng.choice(len(common), _size(rng), p=weights)
    program = b"".join(common[code] for code in codes)
    if rng.random() < 0.5:  # a pattern, again and again
        program = program[: rng.integers(1, 60)] * min(_size(rng), 2**14)
    return b"\x80\2" + b"}q\0]q\1)q\2" * int(rng.integers(0, 2)) + program + b"."


def _hostile_pth(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", _hostile_pickle(rng))
        archive.writestr("a/data/0", bytes(48))
    return file.getvalue()


def _hostile_npy(rng: np.random.Generator) -> bytes:
    descr = _one(rng, "<f4", ">f8", "<f2", "|O", "<U9", f"<U{_number(rng)}", f"|S{_number(rng)}", "<c16", "x")
    shape = tuple(_number(rng) for _ in range(rng.integers(0, 4)))
    shape = shape if rng.random() < 0.9 else (1,) * _size(rng)
    header = f"{{'descr': '{descr}', 'fortran_order': {rng.random() < 0.5}, 'shape': {shape}, }}"
    if rng.random() < 0.2:
        header = str(rng.choice(["[", "(", "{1:", "-", "~"])) * _size(rng)
    head = header.encode() + b"\n"
    version = b"\1\0" + struct.pack("<H", min(len(head), 2**16 - 1))
    version = version if rng.random() < 0.5 else b"\2\0" + struct.pack("<I", min(len(head), 2**32 - 1))
    return b"\x93NUMPY" + version + head + bytes(int(rng.integers(0, 200)))


def _hostile_npz(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", int(rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as archive,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # about equal names
        for _ in range(rng.integers(0, _size(rng) // 128 + 3)):
            name = _one(rng, "users", "items", "user_bias", "item_bias", "train", "valid", "test", "sizes", _name(rng))
            if rng.random() < 0.5:
                shape = (int(rng.integers(0, 9)), int(rng.integers(0, 3)))
                data = _saved(lambda file, shape=shape: np.save(file, rng.normal(size=shape).astype("f4")))
            else:
                data = _hostile_npy(rng)
            archive.writestr(f"{name}.npy", data + bytes(_size(rng) * 64 if rng.random() < 0.01 else 0))
    return file.getvalue()


def _hostile_split(rng: np.random.Generator) -> bytes:
    part = lambda: rng.integers(0, rng.choice([3, 2**31, 2**62]), (rng.integers(0, 9), rng.choice([2, 2, 2, 3])))
    arrays = {"train": part(), "valid": part(), "test": part(), "sizes": np.array([_number(rng), _number(rng)])}
    return _saved(lambda file: np.savez_compressed(file, **arrays))


def _hostile_safetensors(rng: np.random.Generator) -> bytes:
    header: dict[str, Any] = {}
    for i in range(rng.integers(0, _size(rng) // 64 + 2)):
        name = f"{_name(rng)}{i if rng.random() < 0.5 else ''}"
        shape = [_number(rng) if rng.random() < 0.3 else 1 for _ in range(rng.integers(0, 4))]
        low, high = sorted(rng.integers(0, 200, 2).tolist())
        where = rng.choice(3)
        offsets = [[0, 0], [low, high], [_number(rng), _number(rng)]][where]
        header[name] = {
            "dtype": _one(rng, "F32", "F16", "BF16", "I8", "F8"),
            "shape": shape if where else [0, 1],
            "data_offsets": offsets,
        }
    text = json.dumps(header).encode() if rng.random() < 0.9 else b'{"a":' * _size(rng)
    size = len(text) if rng.random() < 0.9 else _number(rng)
    return struct.pack("<Q", size % 2**64) + text + bytes(200)


def _hostile_text(rng: np.random.Generator) -> bytes:
    """Text with separated fields: many columns, long fields, many quotes, lines of one kind again and again."""
    parts = [*_FIELDS, ",", "\t", "\n", "\r\n", '"', '""', "\ufeff", "a" * 999, "0" * 400, " ", "\0", "\u2028"]
    head = _one(rng, "user,item\n", "user,item,rating,timestamp\n", "user\titem\tscore\n", "id\n", "")
    weights = rng.dirichlet(np.full(len(parts), 0.3))
    line = lambda size: "".join(parts[i] for i in rng.choice(len(parts), size, p=weights))
    body = line(_size(rng)) if rng.random() < 0.5 else line(int(rng.integers(1, 30))) * min(_size(rng), 2**14)
    return (head + body).encode()[: 2**20]


def _hostile_json(rng: np.random.Generator) -> bytes:
    """JSON: deep, long, with many keys, large numbers and equal names."""
    deep = str(rng.choice(["[", '{"user":', '[{"item":', "-", "1", '"a'])) * _size(rng)
    values = [*_JSON, "9" * 400, deep[:2000]]
    value = lambda: _one(rng, *values)
    entry = lambda: (
        "{"
        + ",".join(f'"{_one(rng, *_NAMES)}{i if i > 20 else ""}":{value()}' for i in range(rng.integers(0, 9)))
        + "}"
    )
    kind = rng.choice(4)
    if kind == 0:
        return deep.encode()
    if kind == 1:
        return "\n".join(entry() for _ in range(min(_size(rng), 500))).encode()
    if kind == 2:
        return (entry() + "\n").encode() * min(_size(rng), 2**12)
    return ("{" + ",".join(f'"k{i}":{value()}' for i in range(min(_size(rng), 2000))) + "}").encode()


def _hostile_packed(pack: Callable[[bytes], bytes]) -> Callable[[np.random.Generator], bytes]:
    def make(rng: np.random.Generator) -> bytes:
        row = _one(rng, "1,2\n", "user1,item22,3\n", "\n", "0", ",", '"')
        many = rng.choice([1, 2**8, 2**12]) * _size(rng)
        return pack(b"user,item\n" + row.encode() * int(min(many, 2**25 // len(row))))

    return make


def _hostile_parquet(rng: np.random.Generator) -> bytes:
    """One value again and again, many columns, long texts, columns of any type."""
    size = _size(rng) * int(rng.choice([1, 1, 2**6]))
    short = lambda values: np.resize(np.asarray(values, object), min(size, 2000)).tolist()
    kinds: list[Callable[[], Any]] = [
        lambda: np.zeros(size, np.int64),
        lambda: rng.integers(0, 50, size),
        lambda: np.full(size, np.nan),
        lambda: pa.nulls(size),
        lambda: pa.repeat(pa.scalar("x" * int(rng.choice([1, 99, 9999]))), min(size, 2**12)),
        lambda: pa.array(short([[1, 2], [], None])),
        lambda: pa.array(short([{"item": 1}, None])),
        lambda: pa.array(short([[{"item": 1, "rating": 0.5}], []])),
        lambda: pa.array(short([b"\xff", b"a"])),
        lambda: pa.array(short([2**63 - 1, -1])).cast(pa.timestamp("us")),
    ]
    names = [*_NAMES, _name(rng)]
    chosen = rng.choice(len(names), rng.integers(1, 6), replace=False).tolist()
    columns = {names[k]: kinds[rng.integers(len(kinds))]() for k in [0, 1, *chosen]}
    rows = min(map(len, columns.values()))
    table = pa.table({name: column[:rows] for name, column in columns.items()})
    groups = max(1, rows // int(rng.integers(1, 100)))
    return _saved(
        lambda file: pq.write_table(table, file, compression=_one(rng, "zstd", "none"), row_group_size=groups)
    )


def _hostile_toml(rng: np.random.Generator) -> bytes:
    parts = [
        *["[", "]", "a", ".", "=", "1", "{", "}", ",", "true", "x=[1,", "1979-05-27"],
        "\n",
        '"',
        "'",
        "a=1\n",
        "[a.b]\n",
        "[[a]]\n",
        "9" * 400,
    ]
    count = min(_size(rng), 2000)
    return "".join(parts[i] for i in rng.choice(len(parts), count, p=rng.dirichlet(np.full(len(parts), 0.3)))).encode()


HOSTILE: dict[str, Callable[[np.random.Generator], bytes]] = {
    **dict.fromkeys(["npy", "ids.npy"], _hostile_npy),
    "npz": _hostile_npz,
    "split.npz": lambda rng: _hostile_split(rng) if rng.random() < 0.7 else _hostile_npz(rng),
    **dict.fromkeys(["safetensors", "export.tables.safetensors"], _hostile_safetensors),
    "pth": _hostile_pth,
    **dict.fromkeys(["lists.csv", "log.csv", "log.tsv", "log.inter", "ids", "ids.csv"], _hostile_text),
    **dict.fromkeys(["lists.csv.gz", "log.csv.gz"], _hostile_packed(lambda text: gzip.compress(text, mtime=0))),
    "log.csv.zst": _hostile_packed(_zstd),
    **dict.fromkeys(["lists.jsonl", "nested.jsonl", "log.jsonl", "run.metrics"], _hostile_json),
    **dict.fromkeys(["run.config", "run.results", "export.htd_jax.json"], _hostile_json),
    **dict.fromkeys(["lists.parquet", "nested.parquet", "log.parquet", "ids.parquet"], _hostile_parquet),
    **dict.fromkeys(["export.users.parquet", "export.items.parquet", "export.seen.parquet"], _hostile_parquet),
    "toml": _hostile_toml,
}


def damaged(rng: np.random.Generator, valid: list[bytes]) -> bytes:
    """A valid file with up to four kinds of damage, half the time small ones; one in fifty stays whole."""
    data = bytearray(valid[rng.integers(len(valid))])
    if rng.random() < 0.02:
        return bytes(data)
    kinds = 3 if rng.random() < 0.5 else 9
    for _ in range(rng.integers(1, 5)):
        size = len(data)
        kind = rng.integers(kinds)
        at, stop = sorted(int(x) for x in rng.integers(0, size + 1, 2))
        if kind == 0 and size:  # a bit
            data[rng.integers(size)] ^= 1 << rng.integers(8)
        elif kind == 1 and size:  # bytes, often the largest or the smallest number
            for place in rng.integers(0, size, rng.integers(1, 5)):
                data[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256), ord("9"), ord("\n")])
        elif kind == 2:  # a number in text
            if numbers := [match.span() for match in re.finditer(rb"[0-9]+", bytes(data[:4096]))]:
                first, last = numbers[rng.integers(len(numbers))]
                data[first:last] = str(_number(rng)).encode()
        elif kind == 3:  # cut off
            del data[at:]
        elif kind == 4:  # cut out
            del data[at : min(stop, at + 40)]
        elif kind == 5:  # repeated, at times very often
            often = int(2 ** rng.uniform(0, 12)) if rng.random() < 0.2 else 1
            data[at:at] = data[at : min(stop, at + 40)] * often
        elif kind == 6:  # the rest is another file's
            other = valid[rng.integers(len(valid))]
            data[at:] = other[rng.integers(len(other) + 1) :]
        elif kind == 7 and stop - at > 1:  # in another order
            part = np.frombuffer(bytes(data[at:stop]), np.uint8)
            data[at:stop] = bytes(np.roll(part, int(rng.integers(1, stop - at))))
        elif kind == 8 and size >= 8:  # a size in a header
            place = int(rng.integers(size - 7))
            data[place : place + 8] = struct.pack("<q", _number(rng))
    return bytes(data)


def harmed(rng: np.random.Generator, valid: list[bytes]) -> bytes:
    """Damages a file; if it has a checksum, half the time its content, so that the checksum is right."""
    data = valid[rng.integers(len(valid))]
    if data.startswith(GZIP) and rng.random() < 0.5:
        return gzip.compress(damaged(rng, [gzip.decompress(one) for one in valid]), mtime=0)
    if not data.startswith(ZIP) or rng.random() < 0.5:
        return damaged(rng, valid)
    members = [zipfile.ZipFile(io.BytesIO(one)) for one in valid if one.startswith(ZIP)]
    base = members[rng.integers(len(members))]
    names = base.namelist()
    # The first is read first, and says most about the others.
    chosen = {names[0] if rng.random() < 0.7 else names[rng.integers(len(names))]}
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w", base.infolist()[0].compress_type) as archive:
        for name in names:
            archive.writestr(name, damaged(rng, [base.read(name)]) if name in chosen else base.read(name))
    return result.getvalue()


class Outcome(NamedTuple):
    """What came of a file: `read`, `refused` or `failed`, the message, and what it took."""

    kind: str
    message: str
    size: int
    seconds: float
    memory: int


@functools.cache
def _valid(name: str, variant: int) -> list[bytes]:
    return FORMATS[name].make(np.random.default_rng(variant))


def make_file(name: str, seed: int) -> bytes:
    """The file of a seed: made to harm, one time in three, else damaged."""
    rng = np.random.default_rng([*name.encode(), seed])
    if name in HOSTILE and rng.random() < 1 / 3:
        return HOSTILE[name](rng)
    return harmed(rng, _valid(name, int(rng.integers(VARIANTS))))


def attempt(name: str, seed: int, folder: Path, read: Callable[[Path], Any] | None = None) -> Outcome:
    """Reads the file of a seed."""
    path = folder / f"file{FORMATS[name].suffix}"
    data = make_file(name, seed)
    path.write_bytes(data)
    before, begin = _reset_peak(), time.process_time()
    kind, message = "read", ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            (read or FORMATS[name].read)(path)
    except UserError as error:
        lines = [str(line) for line in error.args]
        kind, message = "refused", "; ".join(lines).replace(str(folder), "")
        if not lines or any("\n" in line or not line.isprintable() or len(line) > 2000 for line in lines):
            kind, message = "failed", f"a message of several lines, or a long one: {ascii(lines)[:3000]}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        kind, message = "failed", "".join(traceback.format_exception(error))
    seconds, memory = time.process_time() - begin, max(0, _peak() - before)
    size = most_inflated(len(data)) if path.suffix in (".gz", ".zst") else len(data)
    allowed = SECONDS + SECONDS_PER_MIB * size / 2**20
    if seconds > allowed:
        kind, message = (
            "failed",
            f"{seconds:.2f} s for {len(data)} bytes, more than {allowed:.2f} s ({kind}: {message[:200]})",
        )
    elif memory > MEMORY + MEMORY_PER_BYTE * size:
        kind, message = "failed", f"{memory / 2**20:.0f} MiB for {len(data)} bytes ({kind}: {message[:200]})"
    return Outcome(kind, message, len(data), seconds, memory)


def _reset_peak() -> int:
    """Resets the largest memory so far, where the system can, and returns the memory now, in bytes."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux
        return 0
    return int(status.partition(name + ":")[2].split(None, 1)[0]) * 1024


@contextlib.contextmanager
def _interrupted_after(seconds: int) -> Any:
    """Raises TimeoutError in what takes longer."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--files", type=int, default=10_000, help="in all, over all formats")
    parser.add_argument("--seed", type=int, default=0, help="of the first file of each format; the next has the next")
    parser.add_argument("--trace", action="store_true", help="print every seed before its file is read")
    parser.add_argument("--messages", type=int, default=0, help="print so many of the commonest messages")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    begin = time.process_time()
    each = -(-options.files // len(options.format))
    for name in options.format:
        outcomes: list[Outcome] = []
        with tempfile.TemporaryDirectory() as folder:
            for seed in range(options.seed, options.seed + each):
                if options.trace:
                    print(f"{name} --seed {seed}", flush=True)
                with _interrupted_after(HANGS):
                    outcome = attempt(name, seed, Path(folder))
                outcomes.append(outcome._replace(message=outcome.message[:110]))
                if outcome.kind == "failed":
                    print(
                        f"FAILED: --format {name} --seed {seed} --files 1\n{outcome.message}",
                        file=sys.stderr,
                        flush=True,
                    )
        kinds = collections.Counter(outcome.kind for outcome in outcomes)
        large = [outcome for outcome in outcomes if outcome.size >= 2**14]
        figures[name] = {
            **{kind: kinds[kind] for kind in ("read", "refused", "failed")},
            "mebibytes": round(sum(outcome.size for outcome in outcomes) / 2**20, 2),
            "seconds": round(sum(outcome.seconds for outcome in outcomes), 1),
            "slowest": round(max(outcome.seconds for outcome in outcomes), 3),
            "slowest per MiB": round(max((o.seconds / o.size * 2**20 for o in large), default=0), 2),
            "largest MiB": round(max(outcome.memory for outcome in outcomes) / 2**20, 1),
        }
        print(f"{name}: " + ", ".join(f"{value} {key}" for key, value in figures[name].items()), flush=True)
        for message, times in collections.Counter(o.message for o in outcomes).most_common(options.messages):
            print(f"  {times} {message}")
        whole = {kind: sum(figure[kind] for figure in figures.values()) for kind in ("read", "refused", "failed")}
        figures_now = {"files": sum(whole.values()), **whole, "seconds of CPU": round(time.process_time() - begin)}
        if options.json:
            bounds = f"{SECONDS} s + {SECONDS_PER_MIB} s per MiB, {MEMORY >> 20} MiB + {MEMORY_PER_BYTE} per byte"
            options.json.write_text(
                json.dumps({"all": figures_now, "bounds": bounds, "formats": figures}, indent=2) + "\n"
            )
    print(json.dumps(figures_now))
    return 1 if figures_now["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
