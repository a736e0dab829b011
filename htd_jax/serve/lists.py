"""Lists of recommendations in the user's own ids: as arrays, tables and files."""

import contextlib
import dataclasses
import importlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from htd_jax.data.ids import Ids
from htd_jax.errors import UserError, shown
from htd_jax.showing import Look, Shown
from htd_jax.writing import whole

SUFFIXES = (".csv", ".parquet")

# Recommendations that a notebook shows.
SHOWN = 10

# The files of a folder of lists, and their rows. No log is named so, which would be replaced.
PART, PART_ROWS = r"lists-\d{5,}\.parquet", 10**7


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Recommendations(Shown):
    """Ranked lists, the best first.

    Attributes:
      queries: `[n]` ids that the lists are for: users, or items with `Retriever.similar`.
      rows: `[n, k]` int32, rows of the listed items, -1 past the end of a shorter list.
      scores: `[n, k]` float32, -infinity past the end.
      ids: the ids of the rows.
      names: the first two columns of a table: the query's and the listed item's.
    """

    queries: pa.Array
    rows: np.ndarray
    scores: np.ndarray
    ids: Ids
    names: tuple[str, str] = ("user", "item")

    def look(self) -> Look:
        some = self.queries[:SHOWN], self.rows[:SHOWN], self.scores[:SHOWN]
        columns = (*self.names, "score", "rank")
        table = Recommendations(*some, self.ids, self.names).to_table().slice(0, SHOWN)
        listed = zip(*(table[name].to_pylist() for name in columns))
        rows = [(str(query), str(item), score, rank) for query, item, score, rank in listed]
        more = int((self.rows >= 0).sum()) - len(rows)
        lines = [f"the first {len(rows)}; to_table(), to_pandas() and write(path) have all"] if more > 0 else []
        title = f"Recommendations: up to {self.rows.shape[1]} items for {len(self):,} {self.names[0]}s"
        return Look(title, lines, columns, rows)

    @property
    def users(self) -> np.ndarray:
        """`[n]` ids that the lists are for, as integers or as objects."""
        return _as_numpy(self.queries)

    @property
    def items(self) -> np.ndarray:
        """`[n, k]` ids of the listed items; objects, None past the end, if a list is shorter."""
        return _as_numpy(self.ids.take(self.rows)).reshape(self.rows.shape)

    @property
    def ranks(self) -> np.ndarray:
        """`[n, k]` int32 from 1."""
        return np.broadcast_to(np.arange(1, 1 + self.rows.shape[1], dtype=np.int32), self.rows.shape)

    def __len__(self) -> int:
        return len(self.queries)

    def to_table(self) -> pa.Table:
        """Returns a pyarrow table, one row per recommendation: `user`, `item`, `score` (float32), `rank` (int32)."""
        listed = self.rows >= 0
        query = np.broadcast_to(np.arange(len(self))[:, None], self.rows.shape)[listed]
        columns = [self.queries.take(pa.array(query)), self.ids.take(self.rows[listed])]
        columns += [pa.array(self.scores[listed]), pa.array(self.ranks[listed])]
        return pa.table(columns, names=[*self.names, "score", "rank"])

    def to_pandas(self) -> Any:
        """Returns `to_table` as a pandas DataFrame.

        Raises:
          UserError: if pandas is not installed.
        """
        _import("pandas")
        return self.to_table().to_pandas()

    def to_polars(self) -> Any:
        """Returns `to_table` as a polars DataFrame.

        Raises:
          UserError: if polars is not installed.
        """
        return _import("polars").from_arrow(self.to_table())

    def write(self, path: Path | str) -> None:
        """Writes `to_table` to a CSV or Parquet file, by the path's suffix, or to a folder of Parquet, atomically.

        Raises:
          UserError: if the suffix is another, or the file cannot be written.
        """
        table = self.to_table()
        with writer(Path(path), table.schema) as write:
            write(table)


def check_path(path: Path) -> None:
    """Raises UserError if lists cannot be written to the path: an unknown suffix, or a missing folder.

    A path without a suffix is a folder of Parquet files: new, empty, or one that `writer` wrote, which is replaced.
    """
    if path.suffix and path.suffix.lower() not in SUFFIXES:
        known = " or ".join(SUFFIXES)
        raise UserError(
            f"{shown(path)}: lists are written as {known}, or to a folder; choose a name with such a suffix"
        )
    if path.suffix and path.is_dir():
        raise UserError(f"{shown(path)}: is a folder; name a file in it, or a folder without a suffix")
    if not path.suffix and os.path.lexists(path):
        if not path.is_dir():
            raise UserError(f"{shown(path)}: is not a folder; name another, or a file that ends in {SUFFIXES[1]}")
        if others := sorted(file.name for file in path.iterdir() if not re.fullmatch(PART, file.name)):
            raise UserError(f"{shown(path)}: holds something else, {shown(others[0])}; name a new folder")
    if not path.parent.is_dir():
        raise UserError(f"{shown(path)}: there is no folder {shown(path.parent)}; create it first")


@contextlib.contextmanager
def writer(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Opens a CSV or Parquet file, or a folder of Parquet files, to which tables are appended; it appears when it is
    complete, or not at all.

    A folder gets a new file when one has `PART_ROWS` rows or more, so that a list is never in two.

    Raises:
      UserError: see `check_path`; or if it cannot be written.
    """
    check_path(path)
    make = pyarrow.csv.CSVWriter if path.suffix.lower() == ".csv" else pq.ParquetWriter
    try:
        with whole(path) as partial, contextlib.ExitStack() as stack:
            if path.suffix:
                yield stack.enter_context(make(partial, schema)).write_table
                return
            partial.mkdir()
            file: Any = None
            rows = parts = 0

            def write(table: pa.Table) -> None:
                nonlocal file, rows, parts
                if file is None or rows >= PART_ROWS:
                    stack.close()
                    parts, rows = parts + 1, 0
                    file = stack.enter_context(make(partial / f"lists-{parts:05}.parquet", schema))
                file.write_table(table)
                rows += len(table)

            yield write
            check_path(path)  # nothing else was put there meanwhile
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else error  # pyarrow's own text names the temporary file
        raise UserError(f"{shown(path)}: cannot be written ({why})") from None


def _as_numpy(column: pa.Array) -> np.ndarray:
    if column.null_count:
        return np.array([*column.to_pylist(), None], object)[:-1]
    return column.to_numpy(zero_copy_only=False)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{name} is not installed: pip install {name}, or use to_table()") from None
