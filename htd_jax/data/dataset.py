"""A data set: interactions in three parts, and the ids of its users and items."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from htd_jax.data.files import open_parquet
from htd_jax.data.interactions import Interactions, Split
from htd_jax.errors import UserError, reading, shown
from htd_jax.writing import whole


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
        """Converts a column, an array or a list, in its order.

        Raises:
          UserError: if an id is missing, occurs twice, or is neither a number nor a string.
        """
        column = as_column(values, kind)
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
        """Returns the rows `[m]` int64 of ids `[m]`, -1 for unknown ids; `"7"` and 7 are one id."""
        column = as_column(ids, self.kind)
        if column.type != self.values.type:
            column = _as_type(column, self.values.type)
        rows = pc.index_in(column, value_set=self.values, skip_nulls=True)
        return pc.fill_null(rows, -1).to_numpy(zero_copy_only=False).astype(np.int64)

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


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Interactions in three parts, and the ids of users and items.

    Attributes:
      split: train, valid and test over rows.
      users, items: the ids of the rows.
      name: name for output, and for the run's folder.
      notes: remarks on how it was read, a line each.
      span: first and last time, in the log's own unit, dates in seconds since 1970; None if unknown.
    """

    split: Split
    users: Ids
    items: Ids
    name: str = "data"
    notes: tuple[str, ...] = ()
    span: tuple[float, float] | None = None

    @classmethod
    def from_split(cls, split: Split, name: str = "data") -> "Dataset":
        """Returns a split's data set, in which ids are row numbers."""
        return cls(split, Ids.numbers(split.train.num_users, "user"), Ids.numbers(split.train.num_items, "item"), name)

    @property
    def train(self) -> Interactions:
        return self.split.train

    @property
    def valid(self) -> Interactions:
        return self.split.valid

    @property
    def test(self) -> Interactions:
        return self.split.test


def as_column(values: Any, kind: str) -> pa.Array:
    """Converts `[n]` ids of any kind to int64 if all are whole numbers, else to strings.

    Raises:
      UserError: if it is not a column of ids.
    """
    if isinstance(values, pa.ChunkedArray):
        column = values.combine_chunks()
    elif isinstance(values, pa.Array):
        column = values
    else:
        if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
            values = [values]
        if getattr(values, "ndim", 1) != 1:
            raise UserError(f"{kind} ids must be one column, not an array of shape {values.shape}")
        try:
            column = pa.array(values if hasattr(values, "__arrow_c_array__") else _plain(values), from_pandas=True)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            try:
                column = pa.array([None if x is None else str(x) for x in values])  # a column of numbers and strings
            except TypeError:
                raise UserError(f"{kind} ids must be one column, which this {type(values).__name__} is not") from None
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return _normal(column, kind)


def write_ids(path: Path, ids: Ids) -> None:
    """Writes a Parquet file with the columns `row` and `id`.

    Raises:
      OSError: if it cannot be written.
    """
    table = pa.table({"row": pa.array(np.arange(len(ids))), "id": ids.values})
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


def _plain(values: Any) -> Any:
    return values if hasattr(values, "dtype") or isinstance(values, (list, tuple)) else list(values)


def _normal(column: pa.Array, kind: str) -> pa.Array:
    given = column.type
    if pa.types.is_dictionary(given):
        return _normal(column.dictionary_decode(), kind)
    if pa.types.is_integer(given) and not pa.types.is_uint64(given):
        return column.cast(pa.int64())
    try:
        if pa.types.is_uint64(given) or pa.types.is_floating(given):
            return column.cast(pa.int64())  # fails if a number is not whole, or too large
    except pa.ArrowInvalid:
        pass
    if pa.types.is_nested(given):
        raise UserError(f"{kind} ids must be numbers or strings, not {given}")
    try:
        return column.cast(pa.string())
    except pa.ArrowException:
        raise UserError(f"{kind} ids must be numbers or strings, not {given}") from None


def _as_type(column: pa.Array, type_: pa.DataType) -> pa.Array:
    if pa.types.is_string(type_):
        return column.cast(type_)
    numbers = []
    for text in column.to_pylist():
        try:
            numbers.append(None if text is None or str(int(text)) != text else int(text))
        except ValueError:
            numbers.append(None)
    return pa.array([x if x is not None and abs(x) < 2**63 else None for x in numbers], type_)
