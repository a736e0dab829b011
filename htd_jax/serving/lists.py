"""Lists of recommendations in the user's own ids: as arrays, tables and files."""

import contextlib
import dataclasses
import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from htd_jax.data import Ids
from htd_jax.errors import UserError, shown
from htd_jax.writing import whole

SUFFIXES = (".csv", ".parquet")


@dataclasses.dataclass(frozen=True, eq=False)
class Recommendations:
    """Lists, the best first.

    Attributes:
      of: `[n]` ids of those that the lists are for.
      rows: `[n, k]` int32, rows of what is listed, -1 where a list is shorter.
      scores: `[n, k]` float32, -infinity there.
      ids: what the rows are called.
      names: the columns of a table: whose list, and what is in it.
    """

    of: pa.Array
    rows: np.ndarray
    scores: np.ndarray
    ids: Ids
    names: tuple[str, str] = ("user", "item")

    @property
    def users(self) -> np.ndarray:
        """`[n]` ids of those that the lists are for, as integers or as objects."""
        return _as_numpy(self.of)

    @property
    def items(self) -> np.ndarray:
        """`[n, k]` ids of what is listed; objects, None where a list is shorter, if one is."""
        return _as_numpy(self.ids.take(self.rows)).reshape(self.rows.shape)

    @property
    def ranks(self) -> np.ndarray:
        """`[n, k]` int32 from 1."""
        return np.broadcast_to(np.arange(1, 1 + self.rows.shape[1], dtype=np.int32), self.rows.shape)

    def __len__(self) -> int:
        return len(self.of)

    def to_table(self) -> pa.Table:
        """A pyarrow table, a row a recommendation: `user`, `item`, `score` (float32), `rank` (int32, from 1)."""
        there = self.rows >= 0
        whose = np.broadcast_to(np.arange(len(self.of))[:, None], self.rows.shape)[there]
        columns = [self.of.take(pa.array(whose)), self.ids.take(self.rows[there])]
        columns += [pa.array(self.scores[there]), pa.array(self.ranks[there])]
        return pa.table(columns, schema=schema(self.of.type, self.ids.values.type, self.names))

    def to_pandas(self) -> Any:
        """A pandas DataFrame of `to_table`.

        Raises:
          UserError: pandas is not installed.
        """
        _imported("pandas")
        return self.to_table().to_pandas()

    def to_polars(self) -> Any:
        """A polars DataFrame of `to_table`.

        Raises:
          UserError: polars is not installed.
        """
        return _imported("polars").from_arrow(self.to_table())

    def write(self, path: Path | str) -> None:
        """A CSV or Parquet file of `to_table`, by the path's suffix, whole or not at all.

        Raises:
          UserError: another suffix, or the file cannot be written.
        """
        table = self.to_table()
        with writer(Path(path), table.schema) as write:
            write(table)


def schema(of: pa.DataType, listed: pa.DataType, names: tuple[str, str] = ("user", "item")) -> pa.Schema:
    """Of `Recommendations.to_table`."""
    return pa.schema([(names[0], of), (names[1], listed), ("score", pa.float32()), ("rank", pa.int32())])


def check_path(path: Path) -> None:
    """Raises UserError if lists cannot be written there: a suffix that says no format, a folder that is not there."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{shown(path)}: lists are written as {' or '.join(SUFFIXES)}, so name a file that ends so")
    if path.is_dir():
        raise UserError(f"{shown(path)}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise UserError(f"{shown(path)}: there is no folder {shown(path.parent)}; make it first")


@contextlib.contextmanager
def writer(path: Path, columns: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Writes tables one after the other to a CSV or Parquet file, which is there whole or not at all.

    Raises:
      UserError: see `check_path`; or it cannot be written.
    """
    check_path(path)
    make = pyarrow.csv.CSVWriter if path.suffix.lower() == ".csv" else pq.ParquetWriter
    try:
        with whole(path) as partial, make(partial, columns) as file:
            yield file.write_table
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else error  # pyarrow's own text tells of a partial file
        raise UserError(f"{shown(path)}: cannot be written ({why})") from None


def _as_numpy(column: pa.Array) -> np.ndarray:
    if column.null_count:
        return np.array([*column.to_pylist(), None], object)[:-1]
    return column.to_numpy(zero_copy_only=False)


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{name} is not installed: pip install {name}, or use to_table()") from None
