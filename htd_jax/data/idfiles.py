"""Files of ids: the one reader of the rows' ids of a teacher, and of the ids that a command is asked about."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from htd_jax.data.arrays import read_id_array, short
from htd_jax.data.columns import (
    COMPRESSED,
    FORMATS,
    SEPARATORS,
    is_usual,
    read_file,
    reading_text,
    undictionary,
    without_advice,
    without_settings,
)
from htd_jax.data.files import open_inflated
from htd_jax.data.ids import Ids
from htd_jax.errors import UserError, shown

KINDS = ("user", "item")


class IdColumn(NamedTuple):
    """The ids of a file, in its order.

    Attributes:
      values: `[n]` ids, null for an empty line or field.
      place: returns the place of row r in the file: `line 7`.
      first: the first line of a text file if it was read as an id, though it could be the name of a column; else None.
      notes: remarks on how it was read, a line each.
    """

    values: pa.Array
    place: Callable[[int], str]
    first: str | None = None
    notes: tuple[str, ...] = ()


class _NoHeader(UserError):
    """Raised when the first line of a text file is an id."""


def read_id_column(path: Path, kind: str, known: Ids | None = None) -> IdColumn:
    """Reads the ids in a file.

    A text file with a single column needs no header: its first line is one if it names a column (`id`, `user_id`,
    `itemId`), and an id otherwise. A file with several columns has one that is named so. Strings stay as they are:
    `007` is not 7.

    Args:
      path: a text file with one id per line, a `.npy` of one axis, or a table in any format of `read_file`.
      kind: `user` or `item`.
      known: the ids that can be meant. A first line that names a column and is one of them is refused.

    Raises:
      UserError: if the file cannot be read, has no such column or one of the other kind, or the first line could be
        either a name or an id.
    """
    bare = Path(path.stem) if path.suffix.lower() in COMPRESSED else path
    suffix = bare.suffix.lower()
    if suffix == ".npy":
        return IdColumn(read_id_array(path), lambda row: f"row {row}")
    if suffix not in FORMATS or suffix in (".txt", ".dat", ".data"):
        lines = _lines(path)
        header = bool(lines) and _names_column(path, lines[0], kind, known)
        values = pa.array([line or None for line in lines[header:]], pa.string())
        return IdColumn(values, lambda row: f"line {row + 1 + header}", lines[0] if lines and not header else None)

    def choose(names: Sequence[str]) -> dict[str, str]:
        if suffix in SEPARATORS and len(names) == 1 and not _names_column(path, names[0], kind, known):
            raise _NoHeader(names[0])
        named = [name for name in names if is_usual(name, kind) or is_usual(name, "id")]
        other = [name for name in names if _kind_of(name) not in (None, kind)]
        if len(named) != 1 and (len(names) != 1 or other):
            existing = ", ".join(repr(short(name)) for name in names[:12]) or "none"
            raise UserError(f"{shown(path)}: no single {kind} id column found (columns: {existing}); name it 'id'")
        row = {"row": "row"} if sorted(names) == ["id", "row"] else {}  # as `write_ids` writes them
        return {kind: named[0] if named else names[0], **row}

    first = None
    with without_settings():
        try:
            columns = read_file(path, choose)
        except _NoHeader as error:
            first = str(error)
            columns = read_file(path, lambda names: {kind: "1"}, separator=SEPARATORS[suffix], header=False)
    column = undictionary(columns.by_role[kind]).combine_chunks()
    if "row" in columns.by_role:
        try:
            rows = columns.by_role["row"].cast(pa.int64()).to_numpy()
        except pa.ArrowException:
            rows = np.zeros(0)
        if not np.array_equal(np.sort(rows), np.arange(len(column))):
            raise UserError(f"{shown(path)}: its column 'row' does not number the rows from 0")
        column = column.take(pa.array(np.argsort(rows)))
    notes = tuple(f"{shown(path)}: {without_advice(note)}" for note in columns.notes)
    return IdColumn(column, columns.place, first, notes)


def read_id_file(path: Path | str, kind: str, known: Ids | None = None) -> Ids:
    """Reads the ids of a table's rows, see `read_row_ids`."""
    return read_row_ids(path, kind, known)[0]


def read_row_ids(
    path: Path | str, kind: str, known: Ids | None = None, rows: int | None = None
) -> tuple[Ids, tuple[str, ...]]:
    """Reads the ids of a table's rows, in their order, see `read_id_column`; returns them with remarks, a line each.

    Rows of no user, such as RecBole's `[PAD]`, may have any unused id.

    Args:
      rows: the number of the table's rows. If the file has one line more, the first is the name of its column, unless
        it is one of the `known` ids.

    Raises:
      UserError: see `read_id_column`; or if an id is missing or occurs twice.
    """
    path = Path(path)
    column, place, first, notes = read_id_column(path, kind, known)
    if first is not None and len(column) > 1:
        line = f"the first line, {short(first)!r},"
        numbers = lambda values: all(str(value).isdecimal() for value in values.to_pylist())
        # pandas names a column without a name 0: then it is the id of another line too, or not of the data.
        again = first in column[1:].to_pylist()
        if len(column) - 1 == rows and (again or known is None or known.find([first])[0] < 0):
            column, of = column[1:], place
            place = lambda row: of(row + 1)
            notes += (f"{shown(path)}: {line} is read as the name of its column, not as an id",)
        elif again or len(column) - 1 == rows:
            wrong = f"{short(first)!r} occurs more than once" if again else f"{len(column)} ids for {rows} rows"
            raise UserError(
                f"{shown(path)}: {kind} ids: {wrong}; {line} was read as an id: delete it if it names the column, or "
                "name it 'id'"
            )
        elif not first.isdecimal() and numbers(column[1:]):
            notes += (
                f"{shown(path)}: {line} is read as an id, unlike the others, which are numbers; if it names the "
                "column, name it 'id'",
            )
    if not len(column):
        raise UserError(f"{shown(path)}: it holds no id")
    if column.null_count:
        empty = place(int(np.argmax(column.is_null().to_numpy(zero_copy_only=False))))
        raise UserError(f"{shown(path)}: {empty} is empty; give one id per row")
    try:
        return Ids.from_values(column, kind), notes
    except UserError as error:
        raise UserError(f"{shown(path)}: {error}") from None


def _lines(path: Path) -> list[str]:
    """Returns the lines of a text file without surrounding blanks, and without empty lines at its end."""
    with reading_text(path, "a text file"), open_inflated(path, COMPRESSED.get(path.suffix.lower())) as file:
        lines = [line.decode().removeprefix("\ufeff").strip() for line in file]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _kind_of(name: str) -> str | None:
    """Returns `user` or `item` if a column's name is a usual one of them."""
    return next((kind for kind in KINDS if is_usual(name, kind)), None)


def _names_column(path: Path, first: str, kind: str, known: Ids | None) -> bool:
    """Returns whether the first line of a file with one column is a header.

    Raises:
      UserError: if it could be either, or names ids of the other kind.
    """
    if not is_usual(first, "id") and _kind_of(first) is None:
        return False
    if known is not None and known.find([first])[0] >= 0:
        raise UserError(
            f"{shown(path)}: the first line, {short(first)!r}, is the name of a column and the id of {_an(kind)}; give "
            "the ids as a Parquet file"
        )
    if _kind_of(first) not in (None, kind):
        raise UserError(
            f"{shown(path)}: its column is named {short(first)!r}, and ids of {kind}s are expected; name it 'id'"
        )
    return True


def _an(kind: str) -> str:
    return f"an {kind}" if kind == "item" else f"a {kind}"
