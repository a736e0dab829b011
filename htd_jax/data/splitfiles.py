"""A split in files of the user's own ids, for programs that train a model on the training part alone.

split.json                            the format, and the number of rows of each part
train.parquet, valid, test            user, item: a row per interaction
users.parquet, items.parquet          row, id: every id, in the order of the rows of tables

With `csv` in place of `parquet`, the five files are CSV. What is read back is what was written, to the fingerprint.
"""

import json
import os
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from htd_jax.data.columns import pick, read_file, without_settings
from htd_jax.data.dataset import Dataset
from htd_jax.data.files import read_json
from htd_jax.data.idfiles import read_row_ids
from htd_jax.data.ids import Ids
from htd_jax.data.interactions import Split, make_split
from htd_jax.errors import UserError, shown
from htd_jax.writing import check_free, whole

MARKER, FORMAT = "split.json", 1

Suffix = Literal["parquet", "csv"]


def is_split_folder(path: Path) -> bool:
    """Returns whether `write_split` wrote this folder."""
    return (path / MARKER).is_file()


def check_split_target(folder: Path) -> None:
    """Raises UserError if no split can be written there: the folder holds other files, or the path is unusable."""
    names = [*Split._fields, "users", "items"]
    own = {MARKER, *(f"{name}.{suffix}" for name in names for suffix in get_args(Suffix))}
    check_free(folder, MARKER, own.__contains__)


def write_split(folder: Path | str, data: Dataset, suffix: Suffix = "parquet") -> None:
    """Writes train, valid and test as files in the user's ids, atomically; `htd_jax.read(folder)` reads them.

    Args:
      folder: new, empty, or an earlier split, which is replaced.
      data: the data set.
      suffix: the format of the files, `parquet` or `csv`.

    Raises:
      UserError: if the folder holds other files or cannot be written, nothing is held out for test, the data have grown
        by new interactions, or an id with a line break is to be written as CSV.
      ValueError: if the format is unknown.
    """
    if suffix not in get_args(Suffix):
        raise ValueError(f"`suffix` must be one of {', '.join(get_args(Suffix))}, not {suffix!r}")
    folder = Path(folder)
    check_split_target(folder)
    data.tested()
    if data.block is not None:
        raise UserError(f"{data.name}: the data have grown by new interactions; split all of them anew")
    for ids in (data.users, data.items):
        broken = pa.types.is_string(ids.values.type) and pc.match_substring_regex(ids.values, r"[\r\n\x00]")
        if suffix == "csv" and broken is not False and pc.any(broken).as_py():
            raise UserError(f"{data.name}: {ids.kind} ids with line breaks are not written as CSV; write Parquet")
    about: dict[str, Any] = {"format": FORMAT, "name": data.name, "files": suffix}
    about["rows"] = {name: len(part) for name, part in data.split._asdict().items()}
    if data.new_users is not None:
        about["new_users"] = data.new_users.tolist()
    try:
        Path(os.path.realpath(folder)).parent.mkdir(parents=True, exist_ok=True)
        with whole(folder) as partial:
            partial.mkdir()
            for name, part in data.split._asdict().items():
                columns = {"user": data.users.take(part.users), "item": data.items.take(part.items)}
                _write(pa.table(columns), partial / f"{name}.{suffix}")
            for ids in (data.users, data.items):
                rows = pa.array(np.arange(len(ids)))
                _write(pa.table({"row": rows, "id": ids.values}), partial / f"{ids.kind}s.{suffix}")
            (partial / MARKER).write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    except OSError as error:
        raise UserError(f"{shown(folder)}: cannot be written ({error.strerror or error})") from None


def read_split_folder(folder: Path) -> Dataset:
    """Reads a folder that `write_split` wrote: the same data, to the fingerprint.

    Raises:
      UserError: if it is none, a file is missing or damaged, an interaction has an unknown id, or a pair is in two
        parts.
    """
    if not is_split_folder(folder):
        raise UserError(f"{shown(folder)}: is no folder that htd-jax split wrote: it has no {MARKER}")
    about = read_json(folder / MARKER, "the marker of a split")
    try:
        suffix, rows, name = about["files"], about["rows"], str(about["name"])
        new_users = np.asarray(about["new_users"], np.int64) if "new_users" in about else None
        if about["format"] != FORMAT or suffix not in get_args(Suffix) or set(rows) != set(Split._fields):
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"{shown(folder / MARKER)}: damaged, or of a later format") from None
    users, items = (read_row_ids(folder / f"{kind}s.{suffix}", kind)[0] for kind in ("user", "item"))
    if new_users is not None:
        within = new_users.ndim == 1 and np.isin(new_users, np.arange(len(users))).all()
        if not within or (np.diff(new_users) <= 0).any():
            raise UserError(f"{shown(folder / MARKER)}: its new users are not rows in ascending order")
    parts = {part: _read_part(folder / f"{part}.{suffix}", users, items) for part in Split._fields}
    try:
        split = make_split(parts["train"], parts["valid"], parts["test"], len(users), len(items))
    except UserError as error:
        raise UserError(f"{shown(folder)}: {error}") from None
    changed = [part for part in parts if len(getattr(split, part)) != rows[part]]
    note = f"{shown(folder)}: {' and '.join(changed)} changed since the folder was written, so this is another split"
    return Dataset(split, users, items, name, (note,) if changed else (), new_users=new_users)


def _write(table: pa.Table, path: Path) -> None:
    if path.suffix == ".csv":
        csv.write_csv(table, path)
    else:
        pq.write_table(table, path, compression="zstd")


def _read_part(path: Path, users: Ids, items: Ids) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of the users and of the items of a part."""
    wanted = {"user": "user", "item": "item"}
    with without_settings():
        columns = read_file(path, lambda names: pick(names, wanted, shown(path))).by_role
    try:
        return users.rows(columns["user"]), items.rows(columns["item"])
    except UserError as error:
        raise UserError(f"{shown(path)}: {error}") from None
