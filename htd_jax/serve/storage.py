"""The folder of an exported retriever: plain files, which any version of JAX on any device opens, and other programs.

    htd_jax.json          {"format", "version", "parent", "precision", "dim", "users", "items", "seen", "metrics",
                          "about"}; written last
    tables.safetensors    users [num_users, dim], items [num_items, dim]; with int8 also user_scales, item_scales; with
                          int4, int3 and int2, packed, user_steps, item_steps: see `htd_jax.ops.precision.pack`;
                          and for new rows user_map, user_knots, item_map, item_knots: see `fold.RowMap`. A model
                          without a table of users has pooling_map [dim, dim], pooling_bias [dim] and pooling_power [1]
                          in place of users: see `fold.Pooling`
    users.npy, items.npy  the same tables as plain arrays, only on request; int8, int4, int3 and int2 are decoded to
                          float32 (no users.npy without a table of users)
    users.parquet, items.parquet   row, id; no users without a table of users, unless with seen.parquet
    seen.parquet          user, item: rows of the pairs that are not recommended; only on request
    README.md             a model card

The `.npy` files are for other programs: `read_export` reads the others.

Tables that are larger than a limit, or of which no process holds all rows, are in shards, without `.npy` files:

    tables.safetensors.index.json         {"metadata": {"total_size"}, "weight_map": {"users.0": file, ...}}
    tables-00001-of-00008.safetensors     rows of a table from r on, as `users.r`, and their scales, as `user_scales.r`;
                                          arrays without a row per user or item are in the first shard, whole

The layout is Hugging Face's, but that a table is cut by rows. Rows that lie on one device are read from it alone, and
each process writes those of its devices, all to one folder.

The version is a hash of the content, see `version_of`; the parent is the version that it was made from, or null.
Exports of 0.4 have neither. `deltas.py` writes what changed from one version to another.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from htd_jax import processes
from htd_jax.data.arrays import LazyArray, open_arrays, safetensors_bytes
from htd_jax.data.files import open_parquet, read_json
from htd_jax.data.ids import Ids, read_ids, write_ids
from htd_jax.errors import UserError, reading, shown
from htd_jax.ops.codes import BITS, PRECISIONS, packed_bytes
from htd_jax.serve.card import card
from htd_jax.serve.fold import Pooling, RowMap
from htd_jax.serve.table import Table
from htd_jax.writing import check_free, whole

# The formats of an export with two tables, of one without a table of users, and of one in shards, with or without it.
# Earlier versions cannot read the later ones.
FORMAT, WITHOUT_USERS, IN_SHARDS = 1, 2, 3
NAME, DELTA = "htd_jax.json", "htd_jax_delta.json"
TABLES, INDEX = "tables.safetensors", "tables.safetensors.index.json"
SHARD = r"tables-\d{5}-of-\d{5}\.safetensors"

# Megabytes of a shard, as in the libraries of Hugging Face.
SHARD_SIZE = 5000

# Characters of a version.
VERSION = 16

# Bytes of a path, or of an error, that processes tell one another.
MESSAGE = 2**13
FILES = {
    NAME,
    "README.md",
    "items.npy",
    "items.parquet",
    "seen.parquet",
    TABLES,
    INDEX,
    "users.npy",
    "users.parquet",
}

T = TypeVar("T")


class Pairs(NamedTuple):
    """Distinct pairs (user, item), sorted by user and then by item.

    Attributes:
      users, items: `[n]` int32.
      offsets: `[num_users + 1]` int64; user u's pairs are those from `offsets[u]` to `offsets[u + 1]`.
    """

    users: np.ndarray
    items: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, users: np.ndarray, items: np.ndarray, num_users: int, num_items: int) -> "Pairs":
        """Sorts pairs `[n]` and drops repeated ones.

        Raises:
          ValueError: if a number is no row.
        """
        for name, rows, size in (("user", users, num_users), ("item", items, num_items)):
            if rows.dtype.kind not in "iu" or (len(rows) and not 0 <= rows.min() <= rows.max() < size):
                raise ValueError(f"a {name} of a pair is none of the {size} rows")
        codes = np.unique(users.astype(np.int64) * num_items + items.astype(np.int64))
        rows, columns = np.divmod(codes, max(1, num_items))
        offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=num_users))]).astype(np.int64)
        return cls(rows.astype(np.int32), columns.astype(np.int32), offsets)


class Export(NamedTuple):
    """The content of an export.

    Attributes:
      users, items: tables of `[num_users, d]` and `[num_items, d]`: a `Table`, or `Rows` of JAX.
      user_ids, item_ids: the ids of their rows.
      seen: pairs that are not recommended, `Pairs` or `Interactions`; or None.
      about: how the model was made, as JSON.
      row_maps: for `users` and `items`, how new rows are computed; empty if unknown.
      pooling: how rows of users are made, of a model without a table of users; then `users` has no rows.
      version: the version that it was opened from, or made from; None if from none.
      parent: the version that this one was made from; None if unknown.
    """

    users: Any
    items: Any
    user_ids: Ids
    item_ids: Ids
    seen: Any
    about: dict[str, Any]
    row_maps: dict[str, RowMap]
    pooling: Pooling | None = None
    version: str | None = None
    parent: str | None = None


def is_export(folder: Path) -> bool:
    """Returns whether the folder holds an export."""
    return (folder / NAME).is_file()


def check_target(folder: Path, name: str = NAME, files: Collection[str] = frozenset(FILES)) -> None:
    """Raises UserError if no export can be written there: the folder holds other files, or the path is unusable.

    Args:
      folder: where to.
      name, files: the file that tells an earlier export, which is replaced, from another folder, and all its files but
        shards.
    """
    check_free(folder, name, lambda other: other in files or bool(re.fullmatch(SHARD, other)))


def write_export(folder: Path, export: Export, shard_size: float = SHARD_SIZE, npy: bool = False) -> None:
    """Writes an export atomically: at every moment the folder is complete, or as it was before.

    If there are several processes, all of them call this, and all must see the folder: each writes the rows of its
    devices, or some of the shards if all hold all rows, and process 0 the rest, when the rows are written.

    Args:
      folder: new, empty, or an earlier export, which is replaced; a link to one is followed.
      export: `seen.parquet` is written if its `seen` is not None. Rows of tables beyond the ids, which fill up the
        parts of devices, are left out.
      shard_size: megabytes of tables from which on they are in shards, and of each shard. A process needs twice the
        memory of a shard.
      npy: whether to also write the tables as `.npy` files of floats, for other programs.

    Raises:
      UserError: if the folder holds other files or cannot be written, in every process; or if `npy` is set, and the
        tables are in shards.
    """
    limit = int(shard_size * 1e6)
    first = processes.is_first()
    shards = _shards(export, limit)
    if npy and shards:
        raise UserError("`npy`: tables of this size are written in shards; set a larger `shard_size`, or leave it out")
    with contextlib.ExitStack() as stack:

        def begin() -> str:
            if not first:
                return ""
            check_target(folder)
            Path(os.path.realpath(folder)).parent.mkdir(parents=True, exist_ok=True)
            partial = stack.enter_context(whole(folder))
            partial.mkdir()
            return str(partial)

        def end() -> str:
            if first:
                _write(partial, export, shards, npy)
                check_target(folder)  # nothing else was put there meanwhile
                stack.close()
            return ""

        partial = Path(together(begin, folder))
        together(lambda: _write_shards(partial, shards), folder)
        together(end, folder)


def together(step: Callable[[], str], folder: Path) -> str:
    """Runs a step in every process, and returns the text of process 0, when all have ended.

    Raises:
      UserError: in every process, if the step fails in one.
    """
    error, text = "", ""
    try:
        text = step()
    except UserError as wrong:
        error = str(wrong)
    except OSError as wrong:
        error = f"{shown(folder)}: cannot be written ({wrong.strerror or wrong})"
    if processes.several():
        processes.barrier("export")  # which waits longer than a collective does
        told = np.zeros((2, MESSAGE), np.uint8)
        for row, line in zip(told, (error, text)):
            coded = os.fsencode(line)[:MESSAGE]
            row[: len(coded)] = np.frombuffer(coded, np.uint8)
        from jax.experimental import multihost_utils

        rows = multihost_utils.process_allgather(told)
        errors, texts = ([os.fsdecode(row.tobytes().rstrip(b"\0")) for row in rows[:, k]] for k in (0, 1))
        error, text = next(filter(None, errors), ""), texts[0]
    if error:
        raise UserError(*error.split("\n"))
    return text


def read_export(folder: Path) -> Export:
    """Reads what `write_export` wrote, all from one export, also while another replaces it.

    Raises:
      UserError: if the folder holds no export, a file is missing or damaged, sizes do not match, or the format is
        unknown.
    """
    return read_whole(folder, _read)


def read_whole(folder: Path, read: Callable[[Path], T]) -> T:
    """Reads a folder all from one version of it, also while another replaces it."""
    while True:
        which = _inode(folder)
        try:
            content = read(folder)
        except UserError:
            if _inode(folder) == which:
                raise
        else:
            if _inode(folder) == which:
                return content


def _inode(folder: Path) -> int | None:
    return folder.stat().st_ino if folder.is_dir() else None


def _read(folder: Path) -> Export:
    if not folder.is_dir():
        raise UserError(f"{shown(folder)}: there is no such folder")
    if (folder / DELTA).is_file():
        raise UserError(
            f"{shown(folder)}: a delta, which is no model alone; apply it to the export that it starts from"
        )
    if not is_export(folder):
        raise UserError(f"{shown(folder)}: not an exported model (no {NAME}); pass a run folder as `run`")
    head = _read_header(folder / NAME)
    (users, items), row_maps, pooling = _read_tables(folder, head)
    ids = []
    for side, size in (("user", head["users"]), ("item", head["items"])):
        ids.append(read_ids(folder / f"{side}s.parquet", side))
        if len(ids[-1]) != size:
            raise UserError(f"{shown(folder)}: {len(ids[-1])} {side} ids for {size} rows; export it again")
    user_ids, item_ids = ids
    seen = _read_seen(folder / "seen.parquet", user_ids, item_ids) if head["seen"] else None
    about = {**head["about"], "metrics": head["metrics"]}
    versions = head.get("version"), head.get("parent")
    return Export(users, items, user_ids, item_ids, seen, about, row_maps, pooling, *versions)


def version_of(export: Export) -> str:
    """Returns the version of a content that this process holds: the same for equal precision, tables, functions for new
    rows, ids and seen pairs, however the tables are cut into shards, and whatever the export says of its origin."""
    return _version(export, {name: [array] for name, array in whole_arrays(export).items()})


def _version(export: Export, arrays: Mapping[str, Iterable[np.ndarray]]) -> str:
    """Returns the version; `arrays` are consecutive rows of each array."""
    found = hashlib.sha256(export.items.precision.encode())

    def add(name: str, chunks: Iterable[np.ndarray]) -> None:
        size = 0
        for number, chunk in enumerate(chunks):
            if not number:
                found.update(f"{name} {chunk.dtype.str} {chunk.shape[1:]} ".encode())
            found.update(np.ascontiguousarray(chunk).data)
            size += len(chunk)
        found.update(f" {size} ".encode())

    for name in sorted(arrays):
        add(name, arrays[name])
    for ids in (export.user_ids, export.item_ids):
        if pa.types.is_integer(ids.values.type):
            add(ids.kind, [np.asarray(ids.values, np.int64)])
        else:
            texts = [text.encode() for text in ids.values.to_pylist()]
            add(ids.kind, [np.array([len(text) for text in texts], np.int64)])
            found.update(b"".join(texts))
    if export.seen is not None:
        for name in ("users", "items"):
            add("seen", [np.asarray(getattr(export.seen, name))])
    return found.hexdigest()[:VERSION]


def header(export: Export, version: str, in_shards: bool = False) -> dict[str, Any]:
    """Returns the content of `htd_jax.json`."""
    about = dict(export.about)
    return {
        "format": IN_SHARDS if in_shards else WITHOUT_USERS if export.pooling else FORMAT,
        "version": version,
        "parent": export.parent if export.version in (None, version) else export.version,
        "precision": export.items.precision,
        "dim": export.items.dim,
        "users": len(export.user_ids),
        "items": len(export.item_ids),
        "seen": export.seen is not None,
        "metrics": about.pop("metrics", {}),
        "about": about,
    }


class _Part(NamedTuple):
    """Rows of an array, from `first` up to `last`."""

    array: Any
    first: int
    last: int

    @property
    def nbytes(self) -> int:
        width = self.array.nbytes // len(self.array) if len(self.array) else 0
        return (self.last - self.first) * width

    @property
    def process(self) -> int | None:
        """The process that writes it: of the devices that hold it, that of the first; None if every process may."""
        if getattr(self.array, "is_fully_addressable", True):
            return None
        holders = [device for device, start, stop in _places(self.array) if start <= self.first < stop]
        return min(holders, key=lambda device: device.id).process_index

    def read(self) -> np.ndarray:
        """Copies the rows from the device that holds them, if one of this process does."""
        for shard in getattr(self.array, "addressable_shards", ()):
            start, stop = _range(shard.index, len(self.array))
            if start <= self.first and self.last <= stop:
                return np.asarray(shard.data[self.first - start : self.last - start])
        return np.asarray(self.array[self.first : self.last])


def _range(index: tuple[slice, ...], size: int) -> tuple[int, int]:
    return index[0].indices(size)[:2] if index else (0, size)


def _places(array: Any) -> Iterator[tuple[Any, int, int]]:
    """Yields devices, and the rows that each holds of an array; none of an array in the host's memory."""
    if hasattr(array, "sharding") and array.ndim:  # of JAX
        for device, index in array.sharding.devices_indices_map(array.shape).items():
            yield device, *_range(index, len(array))


def whole_arrays(export: Export) -> dict[str, np.ndarray]:
    """Returns all arrays of an export by name, copied from the devices of this process."""
    parts = {name: _Part(array, 0, size) for side in _tables(export).values() for name, (array, size) in side.items()}
    return {name: part.read() for name, part in parts.items()} | others(export)


def _tables(export: Export) -> dict[str, dict[str, tuple[Any, int]]]:
    """Returns by side the arrays with a row per user or item by name, with their numbers of rows."""
    sides = {"user": (export.users, len(export.user_ids)), "item": (export.items, len(export.item_ids))}
    if export.pooling:
        del sides["user"]
    tables = {side: {f"{side}s": (rows.values, size)} for side, (rows, size) in sides.items()}
    for side, (rows, size) in sides.items():
        if rows.scales is not None:
            tables[side][f"{side}_scales"] = (rows.scales, size)
    return tables


def others(export: Export) -> dict[str, np.ndarray]:
    """Returns the arrays without a row per user or item by name."""
    others: dict[str, Any] = {}
    if export.pooling:
        others |= {f"pooling_{name}": np.atleast_1d(x) for name, x in export.pooling._asdict().items()}
    for side, rows in (("user", export.users), ("item", export.items)):
        if rows.steps is not None and not (side == "user" and export.pooling):
            others[f"{side}_steps"] = rows.steps
        if (row_map := export.row_maps.get(f"{side}s")) is not None:
            others[f"{side}_map"], others[f"{side}_knots"] = row_map
    return {name: np.asarray(array) for name, array in others.items()}


def _shards(export: Export, limit: int) -> list[dict[str, _Part]]:
    """Returns the arrays of each shard by name: rows that lie on one device, and at most `limit` bytes of a table.

    Returns none if both tables take no more than that, and this process holds them.
    """
    tables = _tables(export)
    arrays = [table for side in tables.values() for table in side.values()]
    if sum(_Part(array, 0, size).nbytes for array, size in arrays) <= limit and all(
        getattr(array, "is_fully_addressable", True) for array, _ in arrays
    ):
        return []
    shards: list[dict[str, _Part]] = []
    for side in tables.values():
        size = next(iter(side.values()))[1]
        most = max(1, limit // max(1, sum(_Part(array, 0, 1).nbytes for array, _ in side.values())))
        starts = {0} | {start for array, _ in side.values() for _, start, _ in _places(array) if start < size}
        devices = itertools.pairwise([*sorted(starts), size])
        cuts = [cut for start, stop in devices for cut in range(start, stop, most)]
        for first, last in itertools.pairwise([*cuts, size]):
            shards.append({f"{name}.{first}": _Part(array, first, last) for name, (array, _) in side.items()})
    if shards:
        shards[0] |= {name: _Part(array, 0, len(array)) for name, array in others(export).items()}
    return shards


def _shard_name(k: int, count: int) -> str:
    return f"tables-{k + 1:05}-of-{count:05}.safetensors"


def _write_shards(folder: Path, shards: list[dict[str, _Part]]) -> str:
    """Writes the shards of this process, one after the other; returns nothing of interest."""
    for k, parts in enumerate(shards):
        writer = next(iter(parts.values())).process
        if (k % processes.count() if writer is None else writer) == processes.number():
            arrays = {name: part.read() for name, part in parts.items()}
            # Not `save_file`, which makes files that only their owner may read.
            (folder / _shard_name(k, len(shards))).write_bytes(safetensors_bytes(arrays, {"format": "htd_jax"}))
    return ""


def _write(folder: Path, export: Export, shards: list[dict[str, _Part]], npy: bool) -> None:
    """Writes all but the shards, the header last."""
    chunks: dict[str, Iterable[np.ndarray]]
    if shards:
        of_file = {name: _shard_name(k, len(shards)) for k, parts in enumerate(shards) for name in parts}
        total = sum(part.nbytes for parts in shards for part in parts.values())
        index = {"metadata": {"total_size": total}, "weight_map": of_file}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        chunks = _in_shards(folder, of_file)
    else:
        arrays = whole_arrays(export)
        (folder / TABLES).write_bytes(safetensors_bytes(arrays, {"format": "htd_jax"}))
        for side, rows in (("user", export.users), ("item", export.items)):
            if npy and f"{side}s" in arrays:
                table = arrays[f"{side}s"]
                is_plain = rows.precision in ("float32", "float16")
                np.save(folder / f"{side}s.npy", table if is_plain else np.asarray(rows.floats())[: len(table)])
        chunks = {name: [array] for name, array in arrays.items()}
    write_ids(folder / "users.parquet", export.user_ids)
    write_ids(folder / "items.parquet", export.item_ids)
    if export.seen is not None:
        pairs = {"user": np.asarray(export.seen.users), "item": np.asarray(export.seen.items)}
        pq.write_table(pa.table(pairs), folder / "seen.parquet", compression="zstd")
    head = header(export, _version(export, chunks), bool(shards))
    (folder / "README.md").write_text(card(head, export.pooling is not None), encoding="utf-8")
    (folder / NAME).write_text(json.dumps(head, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _in_shards(folder: Path, of_file: dict[str, str]) -> dict[str, Iterable[np.ndarray]]:
    """Returns the arrays of shards that were just written, the parts of a table in the order of their rows; each part
    is read when it is reached."""
    names: dict[str, list[str]] = {}
    for name in of_file:  # in the order of rows
        names.setdefault(name.partition(".")[0], []).append(name)
    read = lambda name: open_arrays(folder / of_file[name])[name].read()
    return {array: map(read, parts) for array, parts in names.items()}


def _read_header(path: Path) -> dict[str, Any]:
    kinds = {"precision": str, "dim": int, "users": int, "items": int, "seen": bool, "metrics": dict, "about": dict}
    with reading(path, "the header of an export"):
        head = read_json(path, "the header of an export")
        if head["format"] not in (FORMAT, WITHOUT_USERS, IN_SHARDS):
            raise UserError(
                f"{shown(path)}: has format {head['format']!r}, and this version of htd-jax reads {FORMAT} to "
                f"{IN_SHARDS}; update it"
            )
        versions = head.get("version"), head.get("parent")  # exports of earlier versions have none
        fits = all(isinstance(head[name], kind) for name, kind in kinds.items())
        if not fits or head["precision"] not in PRECISIONS or not all(isinstance(x, str | None) for x in versions):
            raise ValueError("its entries are of other types")
    return head


def _open_shards(folder: Path) -> dict[str, LazyArray]:
    """Opens the arrays of all shards; the parts of a table are one array, whose rows are read shard by shard.

    Raises:
      UserError: if a shard is missing, damaged or does not hold what the index says, or rows are missing.
    """
    path = folder / INDEX
    what = "the index of an export's shards"
    with reading(path, what):
        of_file = read_json(path, what)["weight_map"]
        if not all(isinstance(name, str) and re.fullmatch(SHARD, name) for name in of_file.values()):
            raise ValueError("it names other files than shards")
    files = {name: open_arrays(folder / name) for name in sorted(set(of_file.values()))}
    arrays: dict[str, LazyArray] = {}
    parts: dict[str, dict[int, LazyArray]] = {}
    for name, file in of_file.items():
        if name not in files[file]:
            raise UserError(f"{shown(folder / file)}: the array {shown(name)} is missing; export it again")
        if part := re.fullmatch(r"(\w+)\.([0-9]{1,12})", name):
            parts.setdefault(part[1], {})[int(part[2])] = files[file][name]
        else:
            arrays[name] = files[file][name]
    return arrays | {table: _joined(path, table, of_table) for table, of_table in parts.items()}


def _joined(path: Path, name: str, parts: dict[int, LazyArray]) -> LazyArray:
    """Returns a table whose parts begin at these rows."""
    end, kinds = 0, {(array.dtype, array.shape[1:]) for array in parts.values()}
    for first, array in sorted(parts.items()):
        if first != end or len(kinds) > 1 or not array.shape:
            raise UserError(f"{shown(path)}: the parts of {shown(name)} do not fit together; export it again")
        end += array.shape[0]
    ((dtype, rest),) = kinds

    def read() -> np.ndarray:
        rows = np.empty((end, *rest), dtype)
        for first, array in parts.items():
            rows[first : first + array.shape[0]] = array.read()
        return rows

    return LazyArray(dtype, (end, *rest), read)


def _read_tables(folder: Path, head: dict[str, Any]) -> tuple[list[Table], dict[str, RowMap], Pooling | None]:
    in_shards = head["format"] == IN_SHARDS
    path = folder / (INDEX if in_shards else TABLES)
    arrays = _open_shards(folder) if in_shards else open_arrays(path)
    tables, row_maps, pooling = [], {}, None
    for side in ("user", "item"):
        precision, size, dim = head["precision"], head[f"{side}s"], head["dim"]
        expected: dict[str, Any] = {f"{side}s": (precision, (size, dim))}
        if precision == "int8":
            expected[f"{side}_scales"] = ("float32", (size,))
        bits = BITS.get(precision)
        if bits is not None:
            width = packed_bytes(dim, bits)
            expected = {f"{side}s": ("uint8", (size, width)), f"{side}_steps": ("float32", (dim,))}
        without_users = "pooling_map" in arrays if in_shards else head["format"] == WITHOUT_USERS
        pools = side == "user" and without_users
        if pools:
            shapes = {"map": (dim, dim), "bias": (dim,), "power": (1,)}
            expected = {f"pooling_{name}": ("float32", shape) for name, shape in shapes.items()}
        if f"{side}_map" in arrays:  # exports of earlier versions have none
            shape = arrays[f"{side}_knots"].shape if f"{side}_knots" in arrays else ()
            knots = shape[-1] if shape else 0
            expected |= {f"{side}_map": ("float32", (2 + 4 * dim, dim)), f"{side}_knots": ("float32", (2, knots))}
        for name, (dtype, shape) in expected.items():
            if name not in arrays:
                raise UserError(f"{shown(path)}: the table {name} is missing; export it again")
            array = arrays[name]
            if array.dtype != dtype or array.shape != shape:
                raise UserError(
                    f"{shown(path)}: {name} is {array.dtype}{list(array.shape)}, and {NAME} says {dtype}{list(shape)}"
                )
        parts = {name: arrays[name].read() for name in expected}
        for name, part in parts.items():
            if part.dtype.kind == "f" and not np.isfinite(part).all():
                raise UserError(f"{shown(path)}: {name} holds numbers that are not finite; export it again")
        if f"{side}_map" in parts:
            row_map = RowMap(parts[f"{side}_map"], parts[f"{side}_knots"])
            if not row_map.knots.size or (np.diff(row_map.knots[0]) <= 0).any():
                raise UserError(f"{shown(path)}: {side}_knots are not in ascending order; export it again")
            row_maps[f"{side}s"] = row_map
        if pools:
            pooling = Pooling(parts["pooling_map"], parts["pooling_bias"], parts["pooling_power"][0])
            tables.append(Table(np.zeros((0, dim), np.float32)))
            continue
        tables.append(Table(parts[f"{side}s"], parts.get(f"{side}_scales"), parts.get(f"{side}_steps"), bits))
    return tables, row_maps, pooling


def _read_seen(path: Path, user_ids: Ids, item_ids: Ids) -> Pairs:
    with reading(path, "the seen pairs of an export"):
        with open_parquet(path) as file:
            table = file.read(columns=["user", "item"])
        table.validate(full=True)
        users, items = (table[name].to_numpy() for name in ("user", "item"))
        return Pairs.of(users, items, len(user_ids), len(item_ids))
