"""Damaged files for every reader: bytes changed, parts cut out, moved and repeated, files cut off and spliced.

A reader gives a result or a `UserError`, every argument of which is one line; anything else is a failure, and the seed
that makes the same file again is printed. Everything happens in this process, so one that the system kills or that
never ends is seen as well: the seed is on the last line of `--trace`.

    python benchmarks/fuzz.py --format npy pth lists.csv --files 10000   # of each; all formats if none is named

A new format is a line in `FORMATS`: how valid files are made, and what reads one.
"""

import argparse
import collections
import gzip
import io
import json
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import safetensors.numpy

from htd_jax.data import Ids, Reading, read_log
from htd_jax.data.idfiles import read_id_file
from htd_jax.data.ranked import read_lists, to_lists
from htd_jax.data.tables import match_rows, read_tables
from htd_jax.errors import UserError

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
    more = {"user_factors": tables["users"], "item_factors": tables["items"], "user_bias": np.zeros(6)}
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


FORMATS = {
    "npy": Format(".npy", _npy, _read_npy),
    "npz": Format(".npz", _npz, _read_one),
    "safetensors": Format(".safetensors", _safetensors, _read_one),
    "pth": Format(".pth", _pth, _read_one),
    "lists.csv": Format(".csv", _csv, _read_lists),
    "lists.csv.gz": Format(".csv.gz", _gz, _read_lists),
    "lists.jsonl": Format(".jsonl", _jsonl, _read_lists),
    "lists.parquet": Format(".parquet", _parquet, _read_lists),
    "log.csv": Format(".csv", _log_csv, _read_log),
    "log.inter": Format(".inter", _log_inter, _read_log),
    "log.csv.gz": Format(".csv.gz", lambda rng: [gzip.compress(x, mtime=0) for x in _log_csv(rng)], _read_log),
    "log.csv.zst": Format(".csv.zst", lambda rng: [_zstd(x) for x in _log_csv(rng)], _read_log),
    "log.jsonl": Format(".jsonl", _log_jsonl, _read_log),
    "log.parquet": Format(".parquet", _log_parquet, _read_log),
    "ids": Format(".txt", _text, _read_ids),
    "ids.csv": Format(".csv", _ids_csv, _read_ids),
    "ids.npy": Format(".npy", _ids_npy, _read_ids),
    "ids.parquet": Format(".parquet", _ids_parquet, _read_ids),
}


def damaged(rng: np.random.Generator, valid: list[bytes]) -> bytes:
    """A valid file with up to four kinds of harm done to it, half the time small ones; one in fifty stays whole."""
    data = bytearray(valid[rng.integers(len(valid))])
    if rng.random() < 0.02:
        return bytes(data)
    kinds = 2 if rng.random() < 0.5 else 7
    for _ in range(rng.integers(1, 5)):
        size = len(data)
        kind = rng.integers(kinds)
        at, stop = sorted(int(x) for x in rng.integers(0, size + 1, 2))
        if kind == 0 and size:  # a bit
            data[rng.integers(size)] ^= 1 << rng.integers(8)
        elif kind == 1 and size:  # bytes, often such as are the largest or the smallest number
            for place in rng.integers(0, size, rng.integers(1, 5)):
                data[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256), ord("9"), ord("\n")])
        elif kind == 2:  # cut off
            del data[at:]
        elif kind == 3:  # cut out
            del data[at : min(stop, at + 40)]
        elif kind == 4:  # said twice
            data[at:at] = data[at : min(stop, at + 40)]
        elif kind == 5:  # the rest is another file's
            other = valid[rng.integers(len(valid))]
            data[at:] = other[rng.integers(len(other) + 1) :]
        elif kind == 6 and stop - at > 1:  # in another order
            part = np.frombuffer(bytes(data[at:stop]), np.uint8)
            data[at:stop] = bytes(np.roll(part, int(rng.integers(1, stop - at))))
    return bytes(data)


def harmed(rng: np.random.Generator, valid: list[bytes]) -> bytes:
    """`damaged`; of what has a checksum, half the time what it is of, so that it is right and the rest is read."""
    data = valid[rng.integers(len(valid))]
    if data.startswith(GZIP) and rng.random() < 0.5:
        return gzip.compress(damaged(rng, [gzip.decompress(one) for one in valid]), mtime=0)
    if not data.startswith(ZIP) or rng.random() < 0.5:
        return damaged(rng, valid)
    members = [zipfile.ZipFile(io.BytesIO(one)) for one in valid if one.startswith(ZIP)]
    base = members[rng.integers(len(members))]
    names = base.namelist()
    # The first is read first, and says most.
    chosen = {names[0] if rng.random() < 0.7 else names[rng.integers(len(names))]}
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w", base.infolist()[0].compress_type) as archive:
        for name in names:
            archive.writestr(name, damaged(rng, [base.read(name)]) if name in chosen else base.read(name))
    return result.getvalue()


def attempt(form: Format, seed: int, folder: Path) -> tuple[str, str]:
    """What comes of the file of this seed: `read`, `refused` or `failed`, and the message."""
    rng = np.random.default_rng(seed)
    path = folder / f"file{form.suffix}"
    path.write_bytes(harmed(rng, form.make(rng)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            form.read(path)
    except UserError as error:
        lines = [str(line) for line in error.args]
        if not lines or any("\n" in line or not line.isprintable() for line in lines):
            return "failed", f"a message of several lines: {lines}"
        return "refused", "; ".join(lines).replace(str(folder), "")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "failed", "".join(traceback.format_exception(error))
    return "read", ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--files", type=int, default=10_000, help="of each format")
    parser.add_argument("--seed", type=int, default=0, help="of the first file; the next has the next")
    parser.add_argument("--trace", action="store_true", help="print every seed before its file is read")
    parser.add_argument("--messages", type=int, default=0, help="print so many of the commonest messages")
    options = parser.parse_args()
    failures = 0
    for name in options.format:
        counts: collections.Counter[str] = collections.Counter()
        messages: collections.Counter[str] = collections.Counter()
        slowest, start = 0.0, time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            for seed in range(options.seed, options.seed + options.files):
                if options.trace:
                    print(f"{name} --seed {seed}", flush=True)
                begun = time.perf_counter()
                outcome, message = attempt(FORMATS[name], seed, Path(folder))
                slowest = max(slowest, time.perf_counter() - begun)
                counts[outcome] += 1
                messages[message[:110]] += 1
                if outcome == "failed":
                    print(f"FAILED: --format {name} --seed {seed} --files 1\n{message}", file=sys.stderr)
        failures += counts["failed"]
        told = ", ".join(f"{counts[key]} {key}" for key in ("read", "refused", "failed"))
        print(f"{name}: {told}; {time.perf_counter() - start:.0f} s, the slowest {slowest:.2f} s", flush=True)
        for message, times in messages.most_common(options.messages):
            print(f"  {times} {message}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
