"""The ids of rows: any numbers or texts, in memory and in files."""

import dataclasses
import functools
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from htd_jax.data.columns import as_arrow
from htd_jax.data.files import open_parquet
from htd_jax.errors import UserError, reading, shown
from htd_jax.writing import whole

# A whole number: `7`, `-7` and `7.0`, but not `007` or `+7`.
WHOLE = r"^-?(?:0|[1-9][0-9]{0,18})(?:\.0+)?$"

# Ids are searched one by one if there are this many times as many rows: a hash table of all ids takes longer.
FEW = 50

# Ids whose keys are computed at once.
CHUNK = 2**16


@dataclasses.dataclass(frozen=True)
class Ids:
    """The ids of rows: row r of users (or of items) has the id `values[r]`.

    Attributes:
      values: `[n]` int64 or string, distinct.
      kind: `user` or `item`, for messages.
    """

    values: pa.Array
    kind: str

    @classmethod
    def numbers(cls, size: int, kind: str) -> "Ids":
        """Returns ids that are row numbers."""
        return cls(pa.array(np.arange(size)), kind)

    @classmethod
    def from_values(cls, values: Any, kind: str) -> "Ids":
        """Converts a column, an array or a list, in its order; see `whole_numbers`.

        Raises:
          UserError: if an id is missing, occurs twice, or is neither a whole number nor a string.
        """
        column = whole_numbers(as_column(values, kind))
        if column.null_count:
            raise UserError(f"{kind} ids: row {int(np.argmax(column.is_null().to_numpy(False)))} is missing")
        if len(pc.unique(column)) < len(column):
            counts = pc.value_counts(column)
            twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
            raise UserError(f"{kind} ids: {twice!r} occurs more than once")
        return cls(column, kind)

    @property
    def numbered(self) -> bool:
        """Whether ids are row numbers."""
        if not pa.types.is_integer(self.values.type):
            return False
        return np.array_equal(self.values.to_numpy(), np.arange(len(self)))

    def find(self, ids: Any) -> np.ndarray:
        """Returns the rows `[m]` int64 of ids `[m]`, -1 for unknown ids; `"7"` and 7 are one id.

        Raises:
          UserError: see `as_column`.
        """
        given = [ids] if isinstance(ids, str | int) else ids
        if isinstance(given, list) and len(given) * FEW < len(self) and {*map(type, given)} in ({str}, {int}):
            return self._search(map(self._typed, given))
        column = as_column(ids, self.kind)
        if column.type != self.values.type:
            column = column.cast(pa.string()) if pa.types.is_string(self.values.type) else _each_whole(column)
        if len(column) * FEW < len(self):
            return self._search(column.to_pylist())
        rows = pc.index_in(column, value_set=self.values, skip_nulls=True)
        return pc.fill_null(rows, -1).to_numpy(zero_copy_only=False).astype(np.int64)

    def _typed(self, given: str | int) -> str | int | None:
        """Returns an id in the type of `values`; None if there is none."""
        if pa.types.is_string(self.values.type):
            return str(given) or None
        if isinstance(given, str):
            return int(given.partition(".")[0]) if re.fullmatch(WHOLE, given) else None
        return given

    @functools.cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """The keys of the ids in ascending order, and the row of each."""
        chunks = (self.values.slice(first, CHUNK).to_pylist() for first in range(0, len(self), CHUNK))
        keys = np.fromiter((_key(value) for chunk in chunks for value in chunk), np.int64, len(self))
        order = np.argsort(keys, kind="stable")
        return keys[order], order

    def _search(self, ids: Iterable[Any]) -> np.ndarray:
        """Returns the rows of ids in the type of `values`, or None, by bisection of their keys."""
        keys, order = self._sorted
        rows = []
        for value in ids:
            key, row = _key(value), -1
            at = int(keys.searchsorted(key))
            while at < len(keys) and keys[at] == key:  # ids of one key are rare
                if self.values[order[at]].as_py() == value:
                    row = int(order[at])
                    break
                at += 1
            rows.append(row)
        return np.array(rows, np.int64)

    def rows(self, ids: Any) -> np.ndarray:
        """Returns the rows `[m]` int64 of ids `[m]`.

        Raises:
          UserError: if an id is unknown.
        """
        rows = self.find(ids)
        if (rows < 0).any():
            unknown = as_column(ids, self.kind)[int(np.argmax(rows < 0))].as_py()
            number = int((rows < 0).sum())
            others = f" and {number - 1} more" if number > 1 else ""
            raise UserError(
                f"{self.kind} {unknown!r}{others}: not among the {len(self)} {self.kind}s, whose ids are like "
                f"{self.values[0].as_py()!r}"
            )
        return rows

    def take(self, rows: Any) -> pa.Array:
        """Returns the ids of rows `[m]`, null for rows below 0."""
        rows = np.asarray(rows).ravel()
        return self.values.take(pa.array(rows, mask=rows < 0))

    def __len__(self) -> int:
        return len(self.values)


def _key(value: Any) -> int:
    """Returns a number that stands for an id when ids are sorted, the same in every process."""
    if isinstance(value, str):
        return zlib.crc32(value.encode("utf-8", "surrogatepass"))
    return value if value is not None and -(2**63) <= value < 2**63 else -1


def as_column(values: Any, kind: str) -> pa.Array:
    """Converts `[n]` ids of any library to int64 or string, as they are: the text `7` is a string.

    Empty text and NaN stand for missing ids, and become null.

    Raises:
      UserError: if it is not a column of whole numbers or text; floats of 2^53 and more may have lost digits.
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        values = [values]
    if getattr(values, "ndim", 1) != 1:
        raise UserError(f"{kind} ids must be one column, not an array of shape {values.shape}")
    try:
        column = as_arrow(values, ids=True)
    except TypeError:
        raise UserError(f"{kind} ids must be one column, which this {type(values).__name__} is not") from None
    except UserError as error:
        raise UserError(f"{kind} ids: {error}") from None
    return _int64_or_string(column, kind).combine_chunks()


def whole_numbers(ids: pa.Array) -> pa.Array:
    """Converts strings to int64 if all are whole numbers (`7` or `7.0`, but not `007`) that int64 holds.

    This one rule makes ids independent of where they come from: a text file has only text, a column of a table with
    missing values has floats.
    """
    if not pa.types.is_string(ids.type) or ids.null_count == len(ids):
        return ids
    if not pc.all(is_whole(ids)).as_py():  # skips missing ids
        return ids
    try:
        return _digits(ids).cast(pa.int64())
    except pa.ArrowInvalid:
        return ids


def is_whole(ids: pa.Array) -> pa.Array:
    """Returns which strings `[n]` are whole numbers of up to 19 digits."""
    return pc.match_substring_regex(ids, WHOLE)


def write_ids(path: Path, ids: Ids, first: int = 0) -> None:
    """Writes a Parquet file with the columns `row`, numbers from `first` on, and `id`.

    Raises:
      OSError: if it cannot be written.
    """
    table = pa.table({"row": pa.array(np.arange(first, first + len(ids))), "id": ids.values})
    with whole(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def read_ids(path: Path, kind: str) -> Ids:
    """Reads ids that `write_ids` wrote.

    Raises:
      UserError: if the file cannot be read, is damaged, or holds something else.
    """
    with reading(path, "saved ids"):
        with open_parquet(path) as file:
            table = file.read(columns=["row", "id"])
        table.validate(full=True)
        rows = table["row"].to_numpy()
        if not np.array_equal(rows, np.arange(len(rows))):
            raise ValueError("its rows are not numbered from 0")
        try:
            return Ids.from_values(table["id"], kind)
        except UserError as error:
            raise UserError(f"{shown(path)}: {error}") from None


def _int64_or_string(column: pa.ChunkedArray, kind: str) -> pa.ChunkedArray:
    given = column.type
    if pa.types.is_dictionary(given):
        column = pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], given.value_type)
    elif pa.types.is_null(given):
        return column.cast(pa.string())
    if pa.types.is_string(column.type):
        return pc.if_else(pc.equal(column, ""), None, column)
    if pa.types.is_floating(given):
        column = column.cast(pa.float64())
        column = pc.if_else(pc.is_nan(column), None, column)
        wrong = pc.or_(pc.not_equal(pc.trunc(column), column), pc.greater_equal(pc.abs(column), 2.0**53))
        if pc.any(wrong).as_py():
            example = column.filter(wrong)[0].as_py()
            why = "may have lost digits" if abs(example) >= 2**53 else "is not a whole number"
            raise UserError(f"{kind} ids must be numbers or strings, but {example!r} {why}; convert them to strings")
    elif not (pa.types.is_integer(given) or pa.types.is_decimal(given)):
        raise UserError(f"{kind} ids must be numbers or strings, not {given}; convert them to strings")
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:  # beyond int64, or with decimals
        return column.cast(pa.string())


def _each_whole(ids: pa.Array) -> pa.Array:
    """Converts each string that is a whole number to int64, and others to null."""
    texts = _digits(pc.if_else(is_whole(ids), ids, None))
    try:
        return texts.cast(pa.int64())
    except pa.ArrowInvalid:
        numbers = (None if text is None else int(text) for text in texts.to_pylist())
        return pa.array([x if x is not None and -(2**63) <= x < 2**63 else None for x in numbers], pa.int64())


def _digits(ids: pa.Array) -> pa.Array:
    """Drops `.0` at the ends of whole numbers."""
    return pc.replace_substring_regex(ids, r"\.0+$", "") if pc.any(pc.match_substring(ids, ".")).as_py() else ids
