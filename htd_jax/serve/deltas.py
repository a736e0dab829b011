"""The folder of a delta: what changed from one version of an export, its parent, to another.

    htd_jax_delta.json     {"format", "parent", "version", "changed", "new", "export"}: both versions, numbers of rows
                           per side, and the `htd_jax.json` of the export that it gives; written last
    rows.safetensors       users, items: the changed rows and then the new ones, encoded, with their user_scales and
                           item_scales in int8; user_rows, item_rows: the numbers of the changed rows, ascending; all
                           arrays without a row per user or item, whole
    new_users.parquet, new_items.parquet   row, id: of the new rows
    changed_seen.parquet   user, item: pairs that one of both holds and the other does not; only if the export has pairs

Rows keep their numbers, so a delta is exact: it gives the bytes of the whole export, whose version it checks. In int4,
int3 and int2 the steps are stored whole, and a row has changed if its codes have: if the steps differ from the
parent's, many have. `precision.kept_steps` avoids that.
"""

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from htd_jax import processes
from htd_jax.data.arrays import open_arrays, safetensors_bytes
from htd_jax.data.files import open_parquet, read_json
from htd_jax.data.ids import Ids, write_ids
from htd_jax.errors import UserError, reading, shown
from htd_jax.serve import storage
from htd_jax.serve.fold import Pooling, RowMap
from htd_jax.serve.storage import Export, Pairs
from htd_jax.serve.table import Table
from htd_jax.writing import whole

FORMAT = 1
NAME = storage.DELTA
ROWS, SEEN = "rows.safetensors", "changed_seen.parquet"
IDS = {"user": "new_users.parquet", "item": "new_items.parquet"}
FILES = {NAME, ROWS, SEEN, *IDS.values()}


def is_delta(folder: Path) -> bool:
    """Returns whether the folder holds a delta."""
    return (folder / NAME).is_file()


def check_delta_target(folder: Path, parent: Path) -> None:
    """Raises UserError if no delta from this parent can be written there: the parent is no export, or see
    `storage.check_target`."""
    if parent.is_dir() and not storage.is_export(parent):
        raise UserError(f"`delta_from` {shown(parent)}: not an exported model (no {storage.NAME}); export that first")
    if os.path.realpath(folder) == os.path.realpath(parent):
        raise UserError(f"{shown(folder)}: is the export that the delta starts from; name another folder for the delta")
    storage.check_target(folder, NAME, FILES)


def write_delta(folder: Path, export: Export, parent: Path) -> None:
    """Writes what an export changes in an earlier one, atomically; in several processes, all call this.

    Args:
      folder: new, empty, or an earlier delta, which is replaced.
      export: the whole new content, all of whose rows this process holds.
      parent: the folder of the earlier export.

    Raises:
      UserError: if the parent is no export, has another width or precision, or other ids in the same rows; or if the
        folder holds other files or cannot be written.
    """

    def write() -> str:
        arrays = [rows.values for rows in (export.users, export.items)]
        if not all(getattr(x, "is_fully_addressable", True) for x in arrays):
            raise UserError("`delta_from` needs tables that one process holds whole; save the whole export")
        if processes.is_first():
            check_delta_target(folder, parent)
            before = storage.read_export(parent)
            _check(export, before, parent)
            made = export._replace(version=storage.version_of(before), parent=before.parent)
            Path(os.path.realpath(folder)).parent.mkdir(parents=True, exist_ok=True)
            with whole(folder) as partial:
                partial.mkdir()
                _write(partial, made, before)
                check_delta_target(folder, parent)  # nothing else was put there meanwhile
        return ""

    storage.together(write, folder)


def apply_deltas(export: Export, deltas: Sequence[Path], parent: Path) -> Export:
    """Returns the export to which deltas lead, one after the other.

    Args:
      export: the content of the first one's parent.
      deltas: folders, each made from the version that those before it lead to.
      parent: the folder of `export`, for messages.

    Raises:
      UserError: if a folder holds no delta, or is damaged, or was made from another version.
    """
    version = storage.version_of(export) if deltas else None
    for folder in deltas:
        export = storage.read_whole(folder, functools.partial(_applied, export, version, parent))
        version, parent = export.version, folder
    return export


def _sides(export: Export) -> list[tuple[str, Any, Ids]]:
    sides = [("user", export.users, export.user_ids), ("item", export.items, export.item_ids)]
    return sides[1:] if export.pooling else sides


def _check(export: Export, before: Export, parent: Path) -> None:
    """Raises UserError if the rows of both do not stand for the same users and items, or are of another kind."""
    kinds = [
        f"{x.items.precision} rows of {x.items.dim} numbers" + (", of items alone" if x.pooling else "")
        for x in (before, export)
    ]
    if kinds[0] != kinds[1]:
        raise UserError(f"`delta_from` {shown(parent)}: has {kinds[0]}, and this model {kinds[1]}; save it whole")
    for old, new in ((before.user_ids, export.user_ids), (before.item_ids, export.item_ids)):
        size = min(len(old), len(new))
        same = pc.equal(*(x.values[:size].cast(pa.string()) for x in (old, new))).to_numpy(zero_copy_only=False)
        if not same.all():
            row = int(np.argmin(same))
            is_now = f"{old.kind} {shown(str(old.values[row]))}, and here {shown(str(new.values[row]))}"
            raise UserError(f"`delta_from` {shown(parent)}: its row {row} is {is_now}; save it whole")
        if len(old) > size:
            raise UserError(
                f"`delta_from` {shown(parent)}: has {len(old)} {old.kind}s, and this model {size}; save it whole"
            )


def _write(folder: Path, export: Export, before: Export) -> None:
    arrays, earlier = storage.whole_arrays(export), storage.whole_arrays(before)
    found = storage.others(export)
    changed, new = {}, {}
    for side, _, _ in _sides(export):
        names = [name for name in (f"{side}s", f"{side}_scales") if name in arrays]
        size = len(earlier[names[0]])
        differs = np.zeros(size, bool)
        for name in names:
            differs |= (_bytes(arrays[name][:size]) != _bytes(earlier[name])).any(axis=1)
        rows = np.flatnonzero(differs).astype(np.int32)
        found[f"{side}_rows"] = rows
        for name in names:
            found[name] = np.concatenate([arrays[name][rows], arrays[name][size:]])
        changed[f"{side}s"], new[f"{side}s"] = len(rows), len(arrays[names[0]]) - size
    (folder / ROWS).write_bytes(safetensors_bytes(found, {"format": "htd_jax"}))
    for old, ids in ((before.user_ids, export.user_ids), (before.item_ids, export.item_ids)):
        write_ids(folder / IDS[ids.kind], Ids(ids.values[len(old) :], ids.kind), len(old))
    if export.seen is not None:  # else the parent's pairs, which are training data, stay out of the delta
        users, items = _in_one([x.seen for x in (before, export) if x.seen is not None])
        pq.write_table(pa.table({"user": users, "item": items}), folder / SEEN, compression="zstd")
    head = storage.header(export, storage.version_of(export))
    told = {
        "format": FORMAT,
        "parent": export.version,
        "version": head["version"],
        "changed": changed,
        "new": new,
        "export": head,
    }
    (folder / NAME).write_text(json.dumps(told, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _bytes(rows: np.ndarray) -> np.ndarray:
    """Returns the bytes of each row: -0 and 0 differ."""
    return np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), rows[:1].nbytes)


def _in_one(parts: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pairs that occur in one of the parts alone, as int32."""
    users, items = (
        np.concatenate([np.asarray(getattr(x, name), np.int64) for x in parts]) for name in ("users", "items")
    )
    codes, counts = np.unique(users << 32 | items, return_counts=True)
    codes = codes[counts == 1]
    return (codes >> 32).astype(np.int32), codes.astype(np.int32)


def read_delta(folder: Path) -> dict[str, Any]:
    """Returns the content of `htd_jax_delta.json`.

    Raises:
      UserError: if the folder holds no delta, or it is damaged or of an unknown format.
    """
    path = folder / NAME
    if not folder.is_dir():
        raise UserError(f"{shown(folder)}: there is no such folder")
    if not is_delta(folder):
        kind = "an export, not a delta" if storage.is_export(folder) else f"not a delta (no {NAME})"
        raise UserError(f"{shown(folder)}: {kind}; pass a folder that was saved with `delta_from`")
    with reading(path, "the header of a delta"):
        head: dict[str, Any] = read_json(path, "the header of a delta")
        if head["format"] != FORMAT:
            raise UserError(
                f"{shown(path)}: has format {head['format']!r}, and this version of htd-jax reads {FORMAT}; update it"
            )
        given = head["export"]
        kinds = {"about": dict, "metrics": dict, "seen": bool, "parent": str | None}
        fits = all(isinstance(given[name], kind) for name, kind in kinds.items())
        if not fits or not all(isinstance(head[name], str) for name in ("parent", "version")):
            raise ValueError("its entries are of other types")
        return head


def _applied(export: Export, version: str | None, parent: Path, folder: Path) -> Export:
    head = read_delta(folder)
    if head["parent"] != version:
        applied = " already" if head["version"] == version else ""
        raise UserError(
            f"{shown(folder)}: leads from version {shown(head['parent'])} to {shown(head['version'])}, and "
            f"{shown(parent)} has{applied} version {version}; apply each delta to its parent, once"
        )
    path, given = folder / ROWS, head["export"]
    with reading(path, "the rows of a delta"):
        arrays = {name: array.read() for name, array in open_arrays(path).items()}
        earlier = storage.whole_arrays(export)
        tables = {"user": export.users, "item": export.items}
        for side, rows, _ in _sides(export):

            def merged(name: str, of_side: str = side) -> np.ndarray:
                changed, old = arrays[f"{of_side}_rows"], earlier[name]
                table = np.concatenate([old, arrays[name][len(changed) :].astype(old.dtype)])
                table[changed] = arrays[name][: len(changed)]
                return table

            scales = None if rows.scales is None else merged(f"{side}_scales")
            steps = None if rows.steps is None else arrays[f"{side}_steps"]
            tables[side] = Table(merged(f"{side}s"), scales, steps, rows.bits)
        maps = {
            f"{side}s": RowMap(arrays[f"{side}_map"], arrays[f"{side}_knots"])
            for side in tables
            if f"{side}_map" in arrays
        }
        pooling = None
        if export.pooling:
            pooling = Pooling(arrays["pooling_map"], arrays["pooling_bias"], arrays["pooling_power"][0])
    ids = {old.kind: _appended(old, folder / IDS[old.kind]) for old in (export.user_ids, export.item_ids)}
    seen = _seen(export, folder / SEEN, ids) if given["seen"] else None
    about = {**given["about"], "metrics": given["metrics"]}
    versions = head["version"], given["parent"]
    made = Export(tables["user"], tables["item"], ids["user"], ids["item"], seen, about, maps, pooling, *versions)
    if storage.version_of(made) != head["version"]:
        raise UserError(f"{shown(folder)}: damaged: it does not give version {shown(head['version'])}; save it again")
    return made


def _appended(ids: Ids, path: Path) -> Ids:
    """Returns the ids with those of the new rows; a new text id makes texts of numbers."""
    with reading(path, "the new ids of a delta"):
        with open_parquet(path) as file:
            column = file.read(columns=["id"])["id"].combine_chunks()
        column.validate(full=True)
        return Ids(pa.concat_arrays([ids.values.cast(column.type), column]), ids.kind)


def _seen(export: Export, path: Path, ids: dict[str, Ids]) -> Pairs:
    with reading(path, "the seen pairs of a delta"):
        with open_parquet(path) as file:
            table = file.read(columns=["user", "item"])
        table.validate(full=True)
        sizes = len(ids["user"]), len(ids["item"])
        changed = Pairs.of(table["user"].to_numpy(), table["item"].to_numpy(), *sizes)
        return Pairs.of(*_in_one([changed, *([export.seen] if export.seen else [])]), *sizes)
