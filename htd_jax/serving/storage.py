"""The folder of an exported retriever: plain files, which any version of JAX on any device opens, and other programs.

    htd_jax.json          {"format", "precision", "dim", "users", "items", "seen", "metrics", "about"}
    tables.safetensors    users [num_users, dim], items [num_items, dim]; with int8 also user_scales, item_scales; with
                          int4, int3 and int2, packed, user_steps, item_steps: see `htd_jax.ops.precision.pack`;
                          and for new rows user_map, user_knots, item_map, item_knots: see `fold.RowMap`. A model
                          without a table of users has pooling_map [dim, dim], pooling_bias [dim] and pooling_power [1]
                          in place of users: see `fold.Pooling`
    users.npy, items.npy  the same tables as plain arrays; int8, int4, int3 and int2 are decoded to float32
                          (no users.npy without a table of users)
    users.parquet, items.parquet   row, id; no users without a table of users, unless with seen.parquet
    seen.parquet          user, item: rows of the pairs that are not recommended; only on request
    README.md             a model card

The `.npy` files are for other programs: `read_export` reads the others.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from htd_jax.data import Ids, Interactions, read_ids, write_ids
from htd_jax.data.arrays import open_arrays, safetensors_bytes
from htd_jax.data.files import open_parquet, read_json
from htd_jax.errors import UserError, reading, shown
from htd_jax.ops.precision import BITS, PRECISIONS, Rows, packed_bytes
from htd_jax.serving.card import card
from htd_jax.serving.fold import Pooling, RowMap
from htd_jax.writing import is_partial, whole

# The formats of an export with two tables, and of one without a table of users, which earlier versions cannot read.
FORMAT, WITHOUT_USERS = 1, 2
NAME = "htd_jax.json"
FILES = {
    NAME,
    "README.md",
    "items.npy",
    "items.parquet",
    "seen.parquet",
    "tables.safetensors",
    "users.npy",
    "users.parquet",
}


class Export(NamedTuple):
    """The content of an export.

    Attributes:
      users, items: tables of `[num_users, d]` and `[num_items, d]`.
      user_ids, item_ids: the ids of their rows.
      seen: pairs that are not recommended, or None.
      about: how the model was made, as JSON.
      row_maps: for `users` and `items`, how new rows are computed; empty if unknown.
      pooling: how rows of users are made, of a model without a table of users; then `users` has no rows.
    """

    users: Rows
    items: Rows
    user_ids: Ids
    item_ids: Ids
    seen: Interactions | None
    about: dict[str, Any]
    row_maps: dict[str, RowMap]
    pooling: Pooling | None = None


def is_export(folder: Path) -> bool:
    """Returns whether the folder holds an export."""
    return (folder / NAME).is_file()


def check_target(folder: Path) -> None:
    """Raises UserError if no export can be written there: the folder holds other files, or the path is unusable."""
    try:
        folder = Path(os.path.realpath(folder))
        if folder.is_dir():
            others = [path for path in folder.iterdir() if not is_partial(path)]
            others = [path for path in others if not is_export(folder) or path.name not in FILES]
            if others:
                name = shown(min(others).name)
                raise UserError(f"{shown(folder)}: holds something else, {name}; name a new folder, or empty this one")
        elif os.path.lexists(folder):
            raise UserError(f"{shown(folder)}: is not a folder; name another")
    except OSError as error:
        raise UserError(f"{shown(folder)}: cannot be used ({error.strerror}); name another") from None


def write_export(folder: Path, export: Export) -> None:
    """Writes an export atomically: at every moment the folder is complete, or as it was before.

    Args:
      folder: new, empty, or an earlier export, which is replaced; a link to one is followed.
      export: `seen.parquet` is written if its `seen` is not None.

    Raises:
      UserError: if the folder holds other files or cannot be written.
    """
    check_target(folder)
    try:
        Path(os.path.realpath(folder)).parent.mkdir(parents=True, exist_ok=True)
        with whole(folder) as partial:
            partial.mkdir()
            _write(partial, export)
            check_target(folder)  # nothing else was put there meanwhile
    except OSError as error:
        raise UserError(f"{shown(folder)}: cannot be written ({error.strerror or error})") from None


def read_export(folder: Path) -> Export:
    """Reads what `write_export` wrote, all from one export, also while another replaces it.

    Raises:
      UserError: if the folder holds no export, a file is missing or damaged, sizes do not match, or the format is
        unknown.
    """
    while True:
        which = _inode(folder)
        try:
            export = _read(folder)
        except UserError:
            if _inode(folder) == which:
                raise
        else:
            if _inode(folder) == which:
                return export


def _inode(folder: Path) -> int | None:
    return folder.stat().st_ino if folder.is_dir() else None


def _read(folder: Path) -> Export:
    if not folder.is_dir():
        raise UserError(f"{shown(folder)}: there is no such folder")
    if not is_export(folder):
        raise UserError(f"{shown(folder)}: not an exported model (no {NAME}); pass a run folder as `run`")
    head = _read_header(folder / NAME)
    (users, items), row_maps, pooling = _read_tables(folder / "tables.safetensors", head)
    ids = []
    for side, size in (("user", head["users"]), ("item", head["items"])):
        ids.append(read_ids(folder / f"{side}s.parquet", side))
        if len(ids[-1]) != size:
            raise UserError(f"{shown(folder)}: {len(ids[-1])} {side} ids for {size} rows; export it again")
    user_ids, item_ids = ids
    seen = _read_seen(folder / "seen.parquet", user_ids, item_ids) if head["seen"] else None
    about = {**head["about"], "metrics": head["metrics"]}
    return Export(users, items, user_ids, item_ids, seen, about, row_maps, pooling)


def _write(folder: Path, export: Export) -> None:
    tables: dict[str, np.ndarray] = {}
    for side, rows in (("user", export.users), ("item", export.items)):
        if side == "user" and export.pooling:
            tables |= {f"pooling_{name}": np.atleast_1d(x) for name, x in export.pooling._asdict().items()}
            continue
        tables[f"{side}s"] = np.asarray(rows.values)
        for name in ("scales", "steps"):
            if (numbers := getattr(rows, name)) is not None:
                tables[f"{side}_{name}"] = np.asarray(numbers)
        if (row_map := export.row_maps.get(f"{side}s")) is not None:
            tables[f"{side}_map"], tables[f"{side}_knots"] = row_map
        is_plain = rows.precision in ("float32", "float16")
        np.save(folder / f"{side}s.npy", np.asarray(rows.values if is_plain else rows.floats()))
    # Not `save_file`, which makes files that only their owner may read.
    (folder / "tables.safetensors").write_bytes(safetensors_bytes(tables, {"format": "htd_jax"}))
    write_ids(folder / "users.parquet", export.user_ids)
    write_ids(folder / "items.parquet", export.item_ids)
    if export.seen is not None:
        pairs = {"user": np.asarray(export.seen.users), "item": np.asarray(export.seen.items)}
        pq.write_table(pa.table(pairs), folder / "seen.parquet", compression="zstd")
    about = dict(export.about)
    head = {
        "format": WITHOUT_USERS if export.pooling else FORMAT,
        "precision": export.items.precision,
        "dim": export.items.dim,
        "users": len(export.user_ids),
        "items": len(export.items),
        "seen": export.seen is not None,
        "metrics": about.pop("metrics", {}),
        "about": about,
    }
    (folder / "README.md").write_text(card(head), encoding="utf-8")
    (folder / NAME).write_text(json.dumps(head, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _read_header(path: Path) -> dict[str, Any]:
    kinds = {"precision": str, "dim": int, "users": int, "items": int, "seen": bool, "metrics": dict, "about": dict}
    with reading(path, "the header of an export"):
        head = read_json(path, "the header of an export")
        if head["format"] not in (FORMAT, WITHOUT_USERS):
            raise UserError(
                f"{shown(path)}: has format {head['format']!r}, and this version of htd-jax reads {FORMAT} and "
                f"{WITHOUT_USERS}; update it"
            )
        if not all(isinstance(head[name], kind) for name, kind in kinds.items()) or head["precision"] not in PRECISIONS:
            raise ValueError("its entries are of other types")
    return head


def _read_tables(path: Path, head: dict[str, Any]) -> tuple[list[Rows], dict[str, RowMap], Pooling | None]:
    with reading(path, "the tables of an export"):
        arrays = open_arrays(path)
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
        stored = list(expected)
        pools = side == "user" and head["format"] == WITHOUT_USERS
        if pools:
            shapes = {"map": (dim, dim), "bias": (dim,), "power": (1,)}
            expected, stored = {f"pooling_{name}": ("float32", shape) for name, shape in shapes.items()}, []
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
            tables.append(Rows(jnp.zeros((0, dim))))
            continue
        on_device = {name: jnp.asarray(parts[name]) for name in stored}
        scales, steps = on_device.get(f"{side}_scales"), on_device.get(f"{side}_steps")
        tables.append(Rows(on_device[f"{side}s"], scales, steps, bits))
    return tables, row_maps, pooling


def _read_seen(path: Path, user_ids: Ids, item_ids: Ids) -> Interactions:
    with reading(path, "the seen pairs of an export"):
        with open_parquet(path) as file:
            table = file.read(columns=["user", "item"])
        table.validate(full=True)
        users, items = (table[name].to_numpy() for name in ("user", "item"))
        try:
            return Interactions.from_pairs(users, items, len(user_ids), len(item_ids))
        except UserError as error:
            raise UserError(f"{shown(path)}: {error}") from None
