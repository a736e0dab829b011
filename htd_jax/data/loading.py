"""Data sets from any source: by name, from a file, or from memory."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from htd_jax.data import columns
from htd_jax.data.citeulike import CiteULike
from htd_jax.data.dataset import Dataset
from htd_jax.data.interactions import Split, codes_of
from htd_jax.data.lists import CiteULikeT, Foursquare
from htd_jax.data.logs import Reading, read_log, read_matrix, read_pairs, read_table
from htd_jax.data.source import Source
from htd_jax.data.synthetic import Synthetic
from htd_jax.settings import Registry, check, override

SOURCES = Registry(
    "dataset",
    {"citeulike": CiteULike, "citeulike-t": CiteULikeT, "foursquare": Foursquare, "synthetic": Synthetic},
    base=Source,
)
register = SOURCES.register


def is_path(name: str) -> bool:
    """Returns whether a data set's name is the path of a file or folder; a name in `SOURCES` is not."""
    return name not in list(SOURCES) and columns.is_path(name)


def with_name(split: Split, name: str) -> Dataset:
    """Returns a named data set, with a note if a file or a folder with files has its name, too."""
    both = f"{name}: the data set of this name is read, not the file or folder here, which is ./{name}"
    return dataclasses.replace(Dataset.from_split(split, name), notes=(both,) if columns.is_path(name) else ())


def load(name: str, data_dir: Path | None = None, **settings: Any) -> Split:
    """Returns a named data set.

    Args:
      name: one of `SOURCES`, or `package.module:Class`, which is imported.
      data_dir: the folder that is searched first for its files.
      settings: settings of its class: `data.load("citeulike-t", split="ratio")`.

    Raises:
      UserError: if the name is unknown, a setting is invalid, or a file is not found or cannot be read.
      TypeError: if a setting is unknown.
    """
    source = override(SOURCES.load(name)(), **settings)
    check(source, f"{name}.")
    split: Split = source.load(data_dir)
    return split


def read(source: Any, **settings: Any) -> Dataset:
    """Reads interactions from any source as a data set.

    Args:
      source: a `Dataset`, which is returned unchanged; a `Split`; a data set's name, see `load`; the path of a file,
        see `read_log`; a table (pandas, polars, pyarrow); a SciPy sparse matrix `[users, items]`; or a pair of columns
        (users, items).
      settings: settings of `Reading`, which finds, filters and splits columns: `user_column="who", split="last"`; for a
        named data set, its own settings.

    Raises:
      UserError: if the source is invalid, with a line per problem.
      TypeError: if a setting is unknown, or the source is none of the above.

    >>> import htd_jax
    >>> users, items = ["ann", "ann", "ann", "bob", "bob"], ["tea", "jam", "bun", "tea", "rye"]
    >>> data = htd_jax.read((users, items))
    >>> len(data.train), data.items.values.to_pylist()
    (3, ['bun', 'jam', 'rye', 'tea'])
    """
    if isinstance(source, Dataset | Split):
        if settings:
            raise TypeError(f"a {type(source).__name__} is already split: {next(iter(settings))} has no effect")
        return source if isinstance(source, Dataset) else Dataset.from_split(source)
    if isinstance(source, str) and not is_path(source):
        return with_name(load(source, **settings), source)
    for part in ("valid_file", "test_file"):
        if isinstance(settings.get(part), str):
            settings[part] = Path(settings[part])
    reading = override(Reading(), **settings)
    if isinstance(source, str | Path):
        return read_log(Path(source), reading)
    if hasattr(source, "tocoo"):
        return read_matrix(source, reading)
    if isinstance(source, tuple) and len(source) == 2:
        return read_pairs(*source, reading)
    if hasattr(source, "__arrow_c_stream__") or hasattr(source, "column_names") or isinstance(source, dict):
        return read_table(source, reading)
    raise TypeError(
        "expected a data set, a split, a name, a path, a table, a sparse matrix or a pair of columns, not "
        f"{type(source).__name__}"
    )


def fingerprint(data: Dataset | Split) -> str:
    """Returns a short hash of the contents, including ids: equal data have equal fingerprints."""
    split = data.split if isinstance(data, Dataset) else data
    digest = hashlib.sha256()
    for part in split:
        digest.update(np.asarray([part.num_users, part.num_items], np.int64).tobytes())
        digest.update(np.ascontiguousarray(part.users))
        digest.update(np.ascontiguousarray(part.items))
    if isinstance(data, Dataset) and data.new_users is not None:
        digest.update(b"new users" + np.ascontiguousarray(data.new_users).tobytes())
    if isinstance(data, Dataset) and data.block is not None:
        digest.update(b"block" + codes_of(data.block).tobytes())
    for ids in (data.users, data.items) if isinstance(data, Dataset) else ():
        if not ids.numbered:
            texts = ids.values.cast(pa.string())
            if pc.any(pc.match_substring(texts, "\n")).as_py():
                digest.update(json.dumps(texts.to_pylist()).encode())
            else:
                digest.update("\n".join(texts.to_pylist()).encode())
    return digest.hexdigest()[:16]
