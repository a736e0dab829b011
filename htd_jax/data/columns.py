"""Columns of a file in any format, or of a table in memory, with errors in the terms of the file."""

import contextlib
import csv
import dataclasses
import decimal
import glob
import itertools
import json
import os
import re
import sys
import urllib.parse
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from htd_jax.data.files import open_inflated, open_parquet
from htd_jax.errors import UserError, reading, shown

# The format of a file, by its suffix, which `.gz` or `.zst` may follow.
FORMATS = {
    **dict.fromkeys((".csv", ".tsv", ".tab", ".inter", ".txt", ".dat", ".data"), "csv"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "json"),
}
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
CONTENT = {"csv": "a text file", "parquet": "a Parquet file", "json": "a JSON file"}
SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".inter": "\t"}
NAMES = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars", " ": "spaces"}

# Usual names of columns, in lower case and without separators between words.
USUAL = {
    role: names.split()
    for role, names in {
        "id": "id ids",
        "user": "user userid useridx users uid customer customerid visitor visitorid reviewer reviewerid member "
        "memberid account accountid person personid session sessionid",
        "item": "item itemid itemidx items iid product productid movie movieid track trackid article articleid song "
        "songid artist artistid book bookid business businessid asin parentasin sku isbn",
        "time": "timestamp time ts datetime date eventtime createdat unixreviewtime",
        "rating": "rating ratings stars score overall preference",
        "score": "score scores rating prediction pred relevance predictedrating predictedscore predrating predscore "
        "est estimate estimatedrating similarity sim",
        "rank": "rank ranking position pos",
    }.items()
}

# Bytes that are read at once, and so the longest line of a text or JSON file.
BLOCK = 2**24

# Rows of a Parquet file that are read at once: few enough that encoding their ids stays in a processor's cache.
PARQUET_ROWS = 2**18

# Objects of a JSON file whose names are those of its columns.
HEAD = 1000

# Types of ids in a column of Python objects.
ID_TYPES = (str, bytes, int, float, decimal.Decimal, uuid.UUID, np.integer, np.floating)

# Tables whose folder also holds files of earlier versions.
VERSIONED = {"_delta_log": "a Delta table", ".hoodie": "a Hudi table"}


@dataclasses.dataclass(frozen=True)
class Columns:
    """Columns of a file or a table.

    Attributes:
      by_role: columns by their roles (`user`, `time`, ...); the columns of a text file are strings.
      names: each one's name in the source.
      place: returns the place of row r in the source: `line 7`.
      skipped: number of lines that were left out, such as those whose number of fields differs from the first line's.
      notes: remarks on how it was read, a line each.
    """

    by_role: dict[str, pa.ChunkedArray]
    names: dict[str, str]
    place: Callable[[int], str]
    skipped: int = 0
    notes: tuple[str, ...] = ()


# Maps the names of all columns to those of the wanted ones, by role.
Choose = Callable[[Sequence[str]], dict[str, str]]


def pick(
    names: Sequence[str],
    wanted: Mapping[str, str | None],
    source: str,
    *,
    optional: Collection[str] = (),
    advice: Callable[[str], str] = lambda role: "",
) -> dict[str, str]:
    """Returns the names of columns by their roles: the given names, or the usual ones.

    Args:
      names: names of all columns.
      wanted: by role the given name, or None.
      source: name of the source, for messages.
      optional: roles that may be missing, unless a name is given.
      advice: returns what to do about a role without a column, or with several.

    Raises:
      UserError: if a role has no column, or could have several; a line per role.
    """
    existing = f"columns: {', '.join(map(_short, names[:12])) or 'none'}{', ...' if len(names) > 12 else ''}"
    chosen: dict[str, str] = {}
    problems = []
    plain = [_plain(name) for name in names]
    for role, name in wanted.items():
        matches = [n for n, like in zip(names, plain) if (n == name if name else like in USUAL[role])]
        if len(matches) == 1:
            chosen[role] = matches[0]
        elif name and not matches:
            problems.append(f"{source}: no column {name!r} ({existing})")
        elif role in optional:
            continue
        elif not matches:
            problems.append(f"{source}: no {role} column found ({existing}){advice(role)}")
        else:
            several = " and ".join(map(_short, matches[:4])) + " and more" * (len(matches) > 4)
            problems.append(f"{source}: columns {several} could be the {role} column{advice(role)}")
    if not problems and "user" in chosen and chosen["user"] == chosen.get("item"):
        problems.append(f"{source}: users and items are one column, {chosen['user']!r}; choose one for each")
    if problems:
        raise UserError(*problems)
    return chosen


def is_usual(name: str, role: str) -> bool:
    """Returns whether a column's name is a usual one of a role, see `USUAL`."""
    return _plain(name) in USUAL[role]


def as_arrow(values: Any, ids: bool = False) -> pa.ChunkedArray:
    """Converts a column of any library to Arrow, in its order; whatever its labels. Columns of mixed types become text.

    Args:
      values: the column.
      ids: whether a mixed column may hold numbers and text only, not booleans, dates and the like.

    Returns:
      The column, in which all text is `string`, or a dictionary of strings, and NaN of a float column may remain.

    Raises:
      UserError: if a text cannot be written as UTF-8, or a value is no id.
      TypeError: if it is not a column.
    """
    column: Any = None
    with contextlib.suppress(pa.ArrowException, ValueError, TypeError, OverflowError, NotImplementedError):
        if isinstance(values, pa.Array | pa.ChunkedArray):
            column = values
        elif hasattr(values, "__arrow_c_stream__") and not hasattr(values, "iloc"):
            column = pa.chunked_array(values)
        else:
            values = values if hasattr(values, "dtype") or isinstance(values, list | tuple) else list(values)
            column = pa.array(values, from_pandas=True)
    mixed = column is None or pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if ids and mixed and (column is None or isinstance(values, list | tuple) or _kind(values) == "O"):
        _check_ids(values)
    if ids and column is not None and getattr(column.type, "extension_name", "") == "pandas.period":
        raise UserError("holds periods, not numbers or text; convert them to text")
    if column is None:
        texts = [_text(value) for value in values]
        try:
            column = pa.array(texts, pa.string())
        except UnicodeEncodeError:
            row = next(r for r, text in enumerate(texts) if text is not None and not _encodable(text))
            raise UserError(f"row {row} holds half of a surrogate pair ({_short(ascii(texts[row]))})") from None
    if isinstance(column, pa.Array):
        column = pa.chunked_array([column])
    return _plain_type(column)


def _kind(values: Any) -> str:
    """Returns the kind of a NumPy type, empty for values of other libraries."""
    dtype = getattr(values, "dtype", None)
    return dtype.kind if isinstance(dtype, np.dtype) else ""


def _check_ids(values: Iterable[Any]) -> None:
    """Refuses a Python object that is neither a number nor text; missing ones pass."""
    if all(kind is not bool and issubclass(kind, (*ID_TYPES, type(None))) for kind in set(map(type, values))):
        return
    for row, value in enumerate(values):
        if isinstance(value, bool) or not (_text(value) is None or isinstance(value, ID_TYPES)):
            held = f"row {row} holds {_short(ascii(value))} of type {type(value).__name__}"
            raise UserError(f"{held}, neither a number nor text; convert it to text")


def undictionary(column: Any) -> Any:
    """Decodes a dictionary-encoded column."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def value_of(column: Any, row: int) -> Any:
    """Returns a value for a message; text if Python has no such value, as for dates past the year 9999."""
    try:
        return column[row].as_py()
    except (OverflowError, ValueError):
        return "a value that cannot be shown"


def as_numbers(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Converts a column to `[n]` float64, and returns where it is not a finite number, or missing: `[n]` bool."""
    column = undictionary(column)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    try:
        numbers = column.cast(pa.float64(), safe=False)
    except pa.ArrowException:
        try:
            texts = pc.utf8_trim_whitespace(column.cast(pa.string()))
        except pa.ArrowException:  # a struct, a list, bytes
            texts = pa.nulls(len(column), pa.string())
        valid = pc.match_substring_regex(texts, r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
        numbers = pc.if_else(valid, texts, None).cast(pa.float64())
    values = pc.fill_null(numbers, np.nan).to_numpy(zero_copy_only=False)
    return values, ~np.isfinite(values)


def is_path(name: str) -> bool:
    """Returns whether a data set's name is the path of a file, or of a folder with files of a table."""
    path = Path(name)
    if "/" in name or "\\" in name or _suffixes(path)[0] or is_pattern(path) or path.is_file():
        return True
    return path.is_dir() and any(_suffixes(part)[0] or "=" in part.name for part in path.iterdir())


def is_pattern(path: Path) -> bool:
    """Returns whether a path is a pattern of several paths, such as `logs/part-*.parquet`, and no file's own name."""
    return glob.has_magic(str(path)) and not path.exists()


def is_text(path: Path) -> bool:
    """Returns whether a file is text with separated fields, by its name."""
    return FORMATS.get(_suffixes(path)[0]) == "csv"


def stem(path: Path) -> str:
    """Returns a file's name without its suffixes; of a pattern, that of the folder that holds all of its files."""
    if is_pattern(path):
        path = _folder_of(path)
        return stem(path) if path.name else "data"
    suffix, compressed = _suffixes(path)
    name = path.name.removesuffix(compressed)
    return name[: len(name) - len(suffix)]


def read_file(
    path: Path,
    choose: Choose,
    *,
    separator: str | None = None,
    header: bool = True,
    quoting: str = "auto",
    skip_bad_rows: bool = False,
) -> Columns:
    """Reads columns of a CSV, TSV, Parquet, JSON lines or RecBole `.inter` file; `.gz` and `.zst` are decompressed.

    Args:
      path: the file; its suffix tells its format. Or a folder of such files of one format, or a pattern of their paths
        (`logs/part-*.parquet`), which are read as one table in the order of their paths: names that begin with `.` or
        `_` are left out, and a folder named `key=value` adds a column.
      choose: picks columns by their names.
      separator: separator of a text file; the format's own if None, which is detected in the first line of `.txt` and
        `.dat` files.
      header: whether the first line of a text file holds names; otherwise columns are named `1`, `2`, and so on.
      quoting: whether fields of a text file may be in double quotes: `yes`, `no`, or `auto`, which is `no` if it is
        separated by tabs.
      skip_bad_rows: whether to leave out lines that are not a JSON object, or whose number of fields differs from the
        first line's.

    Raises:
      UserError: if the file cannot be read, is damaged or has no known format, or lines differ in their number of
        fields.
    """
    if path.is_dir() or is_pattern(path):
        how: Any = {"separator": separator, "header": header, "quoting": quoting, "skip_bad_rows": skip_bad_rows}
        return read_folder(path, choose, lambda file, choose: read_file(file, choose, **how))
    suffix, compressed = _suffixes(path)
    if not suffix:
        known = ", ".join(FORMATS)
        raise UserError(f"{shown(path)}: unknown format; the name must end in one of {known} (+ .gz, .zst)")
    kind = FORMATS[suffix]
    with reading_text(path, f"a {COMPRESSED[compressed.lower()]} file" if compressed else CONTENT[kind]):
        if path.stat().st_size == 0:
            raise UserError(f"{shown(path)}: the file is empty")
        if kind == "csv":
            return _read_text(path, suffix, choose, separator, header, quoting, skip_bad_rows)
        if kind == "json":
            return _read_json(path, choose, skip_bad_rows)
        if compressed:
            raise UserError(f"{shown(path)}: Parquet is compressed inside; decompress the file, and name it .parquet")
        return read_parquet(path, choose)


def from_table(table: Any, choose: Choose) -> Columns:
    """Returns columns of a table in memory: pandas, polars, pyarrow, a dict, or any that supports Arrow.

    The other columns are not converted. The named levels of a pandas index are columns too.

    Raises:
      UserError: if it, or a chosen column, cannot be read.
    """
    try:
        existing, column_at = _named_columns(table)
    except (pa.ArrowException, TypeError, ValueError) as error:
        why = shown("; ".join(map(str, error.args)) or type(error).__name__)[:160].rstrip(". ")
        raise UserError(f"the table cannot be read ({why}); a column must be of one type and have one name") from None
    names = choose(existing)
    by_role = {}
    for role, name in names.items():
        try:
            by_role[role] = as_arrow(column_at(existing.index(name)), ids=role in ("user", "item"))
        except (UserError, TypeError) as error:
            raise UserError(f"the table: column {name!r}: {error}") from None
    if len({len(column) for column in by_role.values()}) > 1:
        sizes = " and ".join(f"{name!r} has {len(by_role[role])} rows" for role, name in names.items())
        raise UserError(f"the table: columns differ in length: {sizes}")
    return Columns(by_role, names, lambda row: f"row {row}")


def _named_columns(table: Any) -> tuple[list[str], Callable[[int], Any]]:
    """Returns a table's names, and a function that returns the k-th column."""
    if isinstance(table, Mapping):
        columns = list(table.values())
        return [*map(str, table)], lambda k: columns[k]
    if hasattr(table, "iloc") and hasattr(table, "columns"):  # pandas
        names = [*map(str, table.columns)]
        levels = [name for name in table.index.names if name is not None and str(name) not in names]
        of_index = lambda k: table.index.get_level_values(levels[k])
        return [*map(str, levels), *names], lambda k: of_index(k) if k < len(levels) else table.iloc[:, k - len(levels)]
    if hasattr(table, "get_columns"):  # polars
        return [*table.columns], lambda k: table.get_columns()[k]
    arrow = pa.table(table)
    return arrow.column_names, arrow.column


def _plain_type(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Converts Arrow's many types of text to `string`, or a dictionary of it, and decodes other dictionaries."""
    if isinstance(column.type, pa.BaseExtensionType):
        boolean = column.type.extension_name == "arrow.bool8"
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
        column = column.cast(pa.bool_()) if boolean else column
    if pa.types.is_run_end_encoded(column.type):
        column = pa.chunked_array([pc.run_end_decode(chunk) for chunk in column.chunks], column.type.value_type)
    kind = column.type
    if pa.types.is_dictionary(kind):
        if pa.types.is_string(kind.value_type):
            return column
        decoded = [_plain_type(pa.chunked_array([chunk.dictionary])).combine_chunks() for chunk in column.chunks]
        if decoded and all(pa.types.is_string(values.type) for values in decoded):
            pairs = [(chunk.indices, values) for chunk, values in zip(column.chunks, decoded)]
            return pa.chunked_array([pa.DictionaryArray.from_arrays(indices, values) for indices, values in pairs])
        return pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], kind.value_type)
    text = (pa.types.is_string_view, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if any(is_kind(kind) for is_kind in (*text, pa.types.is_binary_view)):
        with contextlib.suppress(pa.ArrowInvalid):  # bytes that are not text
            short = (chunk.slice(r, 2**20) for chunk in column.chunks for r in range(0, len(chunk), 2**20))
            return pa.chunked_array([part.cast(pa.string()) for part in short], pa.string())
    return column


def _text(value: Any) -> str | None:
    """Returns a value of a mixed column as text; None if it is missing."""
    if value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value):
        return None
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _suffixes(path: Path) -> tuple[str, str]:
    """Returns the suffix of the format, in lower case, and that of the compression, as written; empty if unknown."""
    name, compressed = path.name, ""
    if path.suffix.lower() in COMPRESSED:
        name, compressed = name[: -len(path.suffix)], path.suffix
    suffix = Path(name).suffix.lower()
    return (suffix if suffix in FORMATS else "", compressed)


@contextlib.contextmanager
def without_settings() -> Iterator[None]:
    """Turns advice to set how a file is read into advice to correct it, where the settings are those of other files."""
    try:
        yield
    except UserError as error:
        raise UserError(*map(without_advice, error.args)) from None


def without_advice(line: object) -> str:
    """Returns a line of `read_file` as `without_settings` raises it."""
    return re.sub("; set `(separator|quoting|skip_bad_rows)` .*", "; correct the file", str(line))


@contextlib.contextmanager
def reading_text(path: Path, what: str) -> Iterator[None]:
    """Turns errors into a `UserError` as `errors.reading` does, and names the line that is not UTF-8."""
    with reading(path, what):
        open(path, "rb").close()  # a missing file or a folder is reported by its own error
        try:
            yield
        except UnicodeDecodeError:
            raise UserError(_not_utf8(path)) from None


def _open(path: Path) -> BinaryIO:
    """Opens a file, decompressed."""
    return open_inflated(path, COMPRESSED.get(path.suffix.lower()))


def _lines(path: Path) -> Iterator[bytes]:
    """Yields lines with their ends, which are those of any system; without a byte order mark of UTF-8.

    Raises:
      UserError: if a line is longer than `BLOCK`.
    """
    number, rest = 0, b""
    with _open(path) as file:
        while block := file.read(2**20):
            lines = (rest + block if number or rest else block.removeprefix(b"\xef\xbb\xbf")).splitlines(True)
            # The last line may go on, and a carriage return may be half of a line's end.
            rest = lines.pop() if lines and (not lines[-1].endswith(b"\n")) else b""
            number += len(lines)
            yield from lines
            if len(rest) > BLOCK:
                raise UserError(_too_long(path, f"line {number + 1}"))
    if rest:
        yield rest


class _Row(NamedTuple):
    """A row of a text file: the number of its first line, its lines, and its fields, of Latin-1 characters."""

    line: int
    lines: tuple[str, ...]
    fields: list[str]


def _rows(path: Path, separator: str, quoted: bool) -> Iterator[_Row]:
    """Yields the rows of a text file that are not empty, as pyarrow reads them; fields in quotes may hold line ends."""
    lines: list[str] = []

    def feed() -> Iterator[str]:
        for line in _lines(path):
            lines.append(line.decode("latin-1"))
            yield lines[-1]

    number = 1
    for fields in _parse(feed(), separator, quoted):
        if fields:
            yield _Row(number, tuple(lines), fields)
        number += len(lines)
        lines.clear()


def _parse(lines: Iterable[str], separator: str, quoted: bool, strict: bool = False) -> Iterator[list[str]]:
    """Yields the fields of rows, which may be longer than csv's own limit."""
    reader = csv.reader(
        lines, delimiter=separator, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=strict
    )
    while True:
        most = csv.field_size_limit(2**31 - 1)
        try:
            fields = next(reader, None)
        finally:
            csv.field_size_limit(most)
        if fields is None:
            return
        yield fields


def _find_separator(path: Path, suffix: str, first: str, separator: str | None, header: bool) -> str:
    """Returns the separator of a text file with the given first line."""
    if separator is None:
        present = [s for s in NAMES if s in first]
        separator = SEPARATORS.get(suffix) or (present[0] if present else ",")
        if separator not in first and present and not (present == [" "] and header):
            raise UserError(_other_separator(path, first, separator, present[0]))
    elif separator == r"\t":  # as typed in a shell
        separator = "\t"
    elif separator in ('"', "\r", "\n"):
        raise UserError(f"`separator` must not be {separator!r}, which has another meaning in text files")
    elif len(separator) != 1 or not separator.isascii():
        way = "; with ':' and `header=False`, columns 1, 3, 5, ... are those between '::'" * (separator == "::")
        raise UserError(f"`separator` must be one character, not {separator!r}{way}")
    return separator


def _other_separator(path: Path, first: str, separator: str, present: str) -> str:
    missing = NAMES.get(separator, repr(separator))
    return (
        f"{shown(path)}: the first line ({_short(first)}) holds no {missing}, but {NAMES[present]}; set `separator` to "
        f"{present!r}"
    )


class _Counting:
    """A file that counts the lines of what is read, and notices quotes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.closed, self.ends, self.last, self.quotes = file, False, 0, b"", False

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if data:
            self.ends += data.count(b"\n") - (self.last == b"\r" and data[:1] == b"\n")
            if returns := data.count(b"\r"):
                self.ends += returns - data.count(b"\r\n")
            self.last, self.quotes = data[-1:], self.quotes or b'"' in data
        return data

    @property
    def lines(self) -> int:
        return self.ends + (self.last not in (b"", b"\n", b"\r"))

    def close(self) -> None:
        self.closed = True


def _read_text(
    path: Path, suffix: str, choose: Choose, separator: str | None, header: bool, quoting: str, skip_bad_rows: bool
) -> Columns:
    """Reads with pyarrow, which is told of line ends in quotes only if there are some, as it is slower then."""
    first = next(filter(bytes.strip, _lines(path)), b"").decode().strip("\r\n")
    if not first:
        raise UserError(f"{shown(path)}: the file is blank")
    if "\0" in first:
        raise UserError(f"{shown(path)}: the first line holds zero bytes, as UTF-16 does; save it as UTF-8")
    separator = _find_separator(path, suffix, first, separator, header)
    quoted = quoting == "yes" or (quoting == "auto" and separator != "\t")
    rows = _rows(path, separator, quoted)
    row = next(rows)
    fields = [field.encode("latin-1").decode() for field in row.fields]
    names = [name.strip() for name in fields] if header else [str(i) for i in range(1, len(fields) + 1)]
    if suffix == ".inter":
        names = [name.partition(":")[0] for name in names]
    try:
        chosen = choose(names)
    except UserError:
        if len(names) > 1 or suffix not in SEPARATORS or " " not in first.strip():
            raise
        raise UserError(_other_separator(path, first, separator, " ")) from None
    rows.close()  # type: ignore[attr-defined]
    of_header = sum(bool(line.strip()) for line in row.lines)
    if header and next(itertools.islice(filter(bytes.strip, _lines(path)), of_header, None), None) is None:
        return Columns({role: pa.chunked_array([], pa.string()) for role in chosen}, chosen, lambda row: "line 1")
    at = {role: names.index(name) for role, name in chosen.items()}
    width, before = len(names), row.line - 1 + header * len(row.lines)
    data_rows = lambda: itertools.islice(_rows(path, separator, quoted), int(header), None)
    skipped = 0
    counted: Any = None

    def skip(row: Any) -> str:
        nonlocal skipped
        skipped += 1
        return "skip"

    def read(line_ends: bool) -> pa.Table:
        nonlocal skipped, counted
        skipped = 0
        with _no_tracebacks(), _open(path) as file:
            counted = _Counting(file)
            batches = pa.csv.open_csv(
                pa.PythonFile(counted, "r"),
                pa.csv.ReadOptions(block_size=BLOCK, column_names=list(map(str, range(width))), skip_rows=before),
                pa.csv.ParseOptions(
                    delimiter=separator,
                    quote_char='"' if quoted else False,
                    newlines_in_values=line_ends,
                    invalid_row_handler=skip if skip_bad_rows else None,
                ),
                pa.csv.ConvertOptions(
                    column_types={str(i): pa.string() for i in at.values()},
                    include_columns=[str(i) for i in dict.fromkeys(at.values())],
                    null_values=[""],
                    strings_can_be_null=True,
                ),
            )
            ids = [str(i) for role, i in at.items() if role in ("user", "item")]
            return _table(batches, batches.schema, ids)

    notes = []
    try:
        table = error = None
        try:
            table = read(False)
        except pa.ArrowInvalid as invalid:
            error = invalid
        if quoted and counted.quotes and (table is None or len(table) + skipped + before != counted.lines):
            total, note = _check_quotes(path, separator, data_rows(), width if quoting == "auto" else None)
            if note:
                table, notes = read(True), [note]
            elif table is None:
                raise error  # type: ignore[misc]
            if len(table) + skipped != total:
                raise UserError(f"{shown(path)}: has {total:,} rows, and {len(table):,} could be read")
        elif table is None:
            raise error  # type: ignore[misc]
        if skip_bad_rows:
            table.validate(full=True)
    except pa.ArrowInvalid as invalid:
        if "UTF8" in str(invalid):
            raise UserError(_not_utf8(path)) from None
        for row in data_rows():
            if not skip_bad_rows and len(row.fields) != width:
                text = "".join(row.lines).strip().encode("latin-1").decode(errors="replace")
                mark = ", or `quoting` to yes if fields in quotes hold tabs" if not quoted and '"' in text else ""
                raise UserError(
                    f"{shown(path)}: line {row.line} has {len(row.fields)} field{'s' * (len(row.fields) != 1)} "
                    f"({_short(text)}), the first {width}; set `skip_bad_rows` to leave such lines out{mark}"
                ) from None
            if sum(map(len, row.lines)) > BLOCK:
                raise UserError(_too_long(path, f"the row in line {row.line}")) from None
        raise
    by_role = {role: table[str(i)] for role, i in at.items()}
    if quoting != "no" and counted.quotes:
        notes += _note_quotes(chosen, by_role, quoted)

    def place(number: int) -> str:
        lines = (row.line for row in data_rows() if not skipped or len(row.fields) == width)
        return f"line {next(itertools.islice(lines, number, None), number + 1)}"

    return Columns(by_role, chosen, place, skipped, tuple(notes))


def _check_quotes(path: Path, separator: str, rows: Iterator[_Row], width: int | None) -> tuple[int, str]:
    """Returns the number of rows, and a note if some have line breaks in quotes.

    Args:
      width: number of fields, if such a row is refused whose lines would mostly be rows without quotes; or None.

    Raises:
      UserError: if the quotes of such a row are not those of a field, so that several rows may have been taken as one.
    """
    total = several = longest = first = 0
    for row in rows:
        total += 1
        if len(row.lines) > 1:
            start = f"{shown(path)}: line {row.line}: a quote opens a field ({_short(row.lines[0].strip())})"
            advice = "set `quoting` to no if quotes are part of the text"
            try:
                list(_parse(row.lines, separator, True, strict=True))
            except csv.Error:
                raise UserError(f"{start} and does not close it; {advice}") from None
            alone = sum(line.count(separator) == width - 1 for line in row.lines) if width else 0
            if 2 * alone > len(row.lines):
                what = "which" if alone == len(row.lines) else f"{alone:,} of which"
                raise UserError(f"{start} of {len(row.lines):,} lines, {what} are rows without it; {advice}, or to yes")
            several, longest, first = several + 1, max(longest, len(row.lines)), first or row.line
    if not several:
        return total, ""
    return total, (
        f"{several:,} row{'s' * (several != 1)} with line breaks in quotes, of up to {longest} lines, first in line "
        f"{first}; set `quoting` to no if quotes are part of the text"
    )


def _note_quotes(names: dict[str, str], columns: dict[str, pa.ChunkedArray], quoted: bool) -> list[str]:
    """Returns a note for each column of ids in which some are in quotes, also if only white space hides a field's."""
    notes = []
    pattern, advice = r'(?s)^\s*".*"\s*$', "set `quoting` to yes if they are not"
    if quoted:
        pattern, advice = r'(?s)^\s+".*"\s*$', "remove the white space before them if they are not"
    for role, column in columns.items():
        if role in ("user", "item") and column.num_chunks:
            ids = [chunk.dictionary.filter(pc.match_substring(chunk.dictionary, '"')) for chunk in column.chunks]
            marked = pc.unique(pa.chunked_array(ids))  # few, and the pattern is slow
            if number := pc.sum(pc.match_substring_regex(marked, pattern)).as_py():
                total = len(column.unify_dictionaries().chunk(0).dictionary)
                of = f"{number:,} of {total:,} ids in column {names[role]!r}"
                notes.append(f"{of} are in quotes, which are read as part of them; {advice}")
    return notes


def is_table_folder(path: Path) -> bool:
    """Returns whether a folder holds the files of one table, or is named like a table."""
    if not path.is_dir() or _suffixes(path)[0]:
        return path.is_dir()
    try:
        return bool(part_files(path))
    except UserError:
        return False


def read_folder(path: Path, choose: Choose, read: Callable[[Path, Choose], Columns]) -> Columns:
    """Reads the files of a folder, or of a pattern, as one table, each by `read`, see `read_file`.

    Raises:
      UserError: if they are not parts of one table.
    """
    parts: list[Columns] = []
    files = part_files(path)
    root = _folder_of(path)
    for file in files:
        folders = (part.partition("=") for part in file.relative_to(root).parts[:-1])
        keys = {key: urllib.parse.unquote(value) for key, equal, value in folders if equal}
        fixed: dict[str, str] = {}

        def choose_part(
            names: Sequence[str], file: Path = file, keys: Any = keys, fixed: Any = fixed
        ) -> dict[str, str]:
            try:
                chosen = choose([*names, *(key for key in keys if key not in names)])
            except UserError as error:  # which names the folder
                raise UserError(*(text.replace(shown(path), shown(file), 1) for text in error.args)) from None
            fixed |= {role: name for role, name in chosen.items() if name not in names}
            return {role: name for role, name in chosen.items() if name in names}

        part = read(file, choose_part)
        if not part.by_role:
            raise UserError(f"{shown(path)}: none of the columns is in its files")
        size = len(next(iter(part.by_role.values())))
        for role, name in fixed.items():
            value = None if keys[name] == "__HIVE_DEFAULT_PARTITION__" else keys[name]
            part.by_role[role] = pa.chunked_array([pa.repeat(pa.scalar(value, pa.string()), size)])
        parts.append(dataclasses.replace(part, names=part.names | fixed))
    roles = [role for role in parts[0].by_role if all(role in part.by_role for part in parts)]
    notes = [f"{file.name}: {note}" for file, part in zip(files, parts) for note in part.notes]
    for role in sorted({role for part in parts for role in part.by_role} - set(roles)):
        name = next(part.names[role] for part in parts if role in part.by_role)
        without = [file for file, part in zip(files, parts) if role not in part.by_role]
        more = f" and {len(without) - 1} more" if len(without) > 1 else ""
        which = f"{shown(without[0].relative_to(root))}{more} of its {len(parts)} files"
        notes.append(f"column {name!r} is not read, because it is missing in {which}")
    for role in roles:
        _check_alike(path, role, files, parts)
    ends = np.cumsum([len(part.by_role["user"]) for part in parts])

    def place(row: int) -> str:
        k = int(np.searchsorted(ends, row, side="right"))
        return f"{shown(files[k].relative_to(root))}, {parts[k].place(row - int(ends[k - 1] if k else 0))}"

    by_role = {role: _concatenate([part.by_role[role] for part in parts]) for role in roles}
    return Columns(by_role, parts[0].names, place, sum(part.skipped for part in parts), tuple(notes))


def _check_alike(path: Path, role: str, files: Sequence[Path], parts: Sequence[Columns]) -> None:
    """Raises UserError if a column has another name in one file than in the first, or holds times in another form.

    Ids and ratings may be of any types, since one rule reads them all."""
    first = parts[0]
    kind = lambda part: "dates" if pa.types.is_temporal(part.by_role[role].type) else "numbers or text"
    for file, part in zip(files, parts):
        where = f"{shown(file)}: the {role} column"
        if part.names[role] != first.names[role]:
            names = f"{part.names[role]!r}, and {first.names[role]!r} in {shown(files[0].name)}"
            raise UserError(f"{where} is named {names}; give it one name in all files of {shown(path)}")
        if role == "time" and len(part.by_role[role]) and len(first.by_role[role]) and kind(part) != kind(first):
            kinds = f"{kind(part)}, and {kind(first)} in {shown(files[0].name)}"
            raise UserError(f"{where} {part.names[role]!r} holds {kinds}; write it alike in all files of {shown(path)}")


def _folder_of(path: Path) -> Path:
    """Returns the folder itself, or the one above a file, or above all files that a pattern may match."""
    while is_pattern(path) or path.is_file():
        path = path.parent
    return path


def part_files(path: Path) -> list[Path]:
    """Returns the files of a folder, or of a pattern, that are a table, sorted by their paths; a file itself.

    Raises:
      UserError: if it holds no table, or one of several versions.
    """
    for name, what in VERSIONED.items():
        if (path / name).is_dir():
            raise UserError(f"{shown(path)}: is {what}, with files of earlier versions; write it as plain Parquet")
    hidden = lambda name: name.startswith((".", "_")) and "=" not in name
    matches = [path]
    if is_pattern(path):
        matches = [match for match in map(Path, glob.glob(str(path), recursive=True)) if not hidden(match.name)]
        if not matches:
            raise UserError(f"{shown(path)}: no file matches this pattern, or only those named like '_...'")
    found = [match for match in matches if not match.is_dir()]
    for folder in matches:
        for root, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if not hidden(name)]
            found += [Path(root, name) for name in names if not hidden(name)]
    found = sorted({file for file in found if not file.is_file() or file.stat().st_size})
    kinds: dict[str, Path] = {}
    for file in found:
        kinds.setdefault(FORMATS.get(_suffixes(file)[0], ""), file)
    if not found:
        raise UserError(
            f"{shown(path)}: is a {'pattern of empty folders' if is_pattern(path) else 'folder without files'}"
        )
    if len(kinds) > 1 or "" in kinds:
        files = " and ".join(_short(shown(file.name)) for file in kinds.values())
        kind = "pattern" if is_pattern(path) else "folder"
        raise UserError(f"{shown(path)}: is a {kind}, whose files must all be parts of one table, unlike {files}")
    return found


def _concatenate(columns: list[pa.ChunkedArray]) -> pa.ChunkedArray:
    """Concatenates columns; as text if their types have no other in common."""
    columns = [column for column in columns if len(column)] or columns[:1]
    if len({column.type for column in columns}) == 1:
        return pa.chunked_array([chunk for column in columns for chunk in column.chunks], columns[0].type)
    tables = [pa.table([undictionary(column)], ["x"]) for column in columns]
    try:
        return pa.concat_tables(tables, promote_options="permissive")["x"]
    except pa.ArrowException:
        texts = [pa.chunked_array([pa.array([_text(v) for v in t["x"].to_pylist()], pa.string())]) for t in tables]
        return pa.chunked_array([chunk for text in texts for chunk in text.chunks])


def read_parquet(path: Path, choose: Choose, groups: Sequence[int] | None = None) -> Columns:
    """Reads columns of a Parquet file, see `read_file`; only successive row groups if `groups` are given."""
    with reading(path, CONTENT["parquet"]), open_parquet(path) as file:
        schema = file.schema_arrow
        names = choose(schema.names)
        chosen = list(dict.fromkeys(names.values()))
        texts = [name for name in chosen if pa.types.is_string(schema.field(name).type)]
        sizes = [file.metadata.row_group(k).num_rows for k in range(groups[0])] if groups else []
        batches = file.iter_batches(PARQUET_ROWS, row_groups=groups, columns=chosen)
        table = _table(batches, pa.schema([schema.field(name) for name in chosen]), texts)
    by_role = {role: _plain_type(table[name]) for role, name in names.items()}
    return Columns(by_role, names, lambda row: f"row {sum(sizes) + row + 1}")


def _table(batches: Iterable[pa.RecordBatch], schema: pa.Schema, texts: Collection[str]) -> pa.Table:
    """Collects a table; columns of `texts` become dictionaries, batch by batch, so that few rows are text at once."""
    columns: dict[str, list[pa.Array]] = {name: [] for name in schema.names}
    for batch in batches:
        batch.validate(full=True)
        for name, column in zip(schema.names, batch.columns):
            columns[name].append(_dictionary(column) if name in texts else column)
    types = [pa.dictionary(pa.int32(), pa.string()) if name in texts else schema.field(name).type for name in columns]
    return pa.table([pa.chunked_array(c, t) for c, t in zip(columns.values(), types)], names=list(columns))


def _dictionary(texts: pa.Array) -> pa.DictionaryArray:
    """Encodes strings `[n]`, as numbers if all are written as numbers are: that takes a third of the time."""
    try:
        texts[:100].cast(pa.int64())  # fails at once; each text that is no number takes longer than to encode it
        numbers = texts.cast(pa.int64())
    except pa.ArrowInvalid:
        return texts.dictionary_encode()
    if not pc.all(pc.equal(numbers.cast(pa.string()), texts)).as_py():  # `007`; skips missing ones
        return texts.dictionary_encode()
    encoded = numbers.dictionary_encode()
    return pa.DictionaryArray.from_arrays(encoded.indices, encoded.dictionary.cast(pa.string()))


def _read_json(path: Path, choose: Choose, skip_bad_rows: bool) -> Columns:
    """Reads with pyarrow if every column has one type; otherwise line by line, which also finds the invalid line."""
    entry = _first_values(path, skip_bad_rows)
    names = choose(list(entry))
    example = {name: value for name, value in entry.items() if name in names.values()}
    kinds = {int: pa.int64(), str: pa.string(), float: pa.float64()}
    if all(type(value) in kinds for value in example.values()):
        schema = pa.schema([(name, kinds[type(value)]) for name, value in example.items()])
        parse = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        try:
            with _open(path) as file:
                table = pa.json.read_json(pa.PythonFile(file, "r"), pa.json.ReadOptions(block_size=BLOCK), parse)
            table.validate(full=True)
            at_line = lambda row: f"line {next(itertools.islice(_numbered(path), row, None), (row + 1, b''))[0]}"
            return Columns({role: table[name] for role, name in names.items()}, names, at_line)
        except (pa.ArrowException, MemoryError):
            pass
    values: dict[str, list[Any]] = {name: [] for name in names.values()}
    lines: list[int] = []
    skipped = 0
    for number, line in _numbered(path):
        try:
            entry = _object(path, number, line)
            row = {name: _json_value(path, number, name, entry.get(name)) for name in values}
        except UserError:
            if not skip_bad_rows:
                raise
            skipped += 1
            continue
        lines.append(number)
        for name, column in values.items():
            column.append(row[name])
    by_role = {role: pa.chunked_array([_mixed(values[name])]) for role, name in names.items()}
    return Columns(by_role, names, lambda row: f"line {lines[row]}", skipped)


def _first_values(path: Path, skip_bad_rows: bool) -> dict[str, Any]:
    """Returns the names in the first `HEAD` objects, in their order, with the first value that is not null."""
    values: dict[str, Any] = {}
    found = 0
    for number, line in _numbered(path):
        try:
            entry = _object(path, number, line)
        except UserError:
            if not skip_bad_rows:
                raise
            continue
        values |= {name: value for name, value in entry.items() if values.get(name) is None}
        found += 1
        if found == HEAD:
            break
    return values if found else _object(path, 1, b"")


def _json_value(path: Path, number: int, name: str, value: Any) -> Any:
    """Returns a number, a text or None.

    Raises:
      UserError: if it is something else.
    """
    if isinstance(value, dict | list | bool) or (isinstance(value, str) and not _encodable(value)):
        text = _short(json.dumps(value))
        what = "has half of a surrogate pair" if isinstance(value, str) else "not a number or text"
        raise UserError(
            f"{shown(path)}: line {number}: {name!r} is {text}, {what}; set `skip_bad_rows` to leave such lines out"
        )
    return value


def _numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields lines that are not blank, with their numbers from 1."""
    return ((number, line) for number, line in enumerate(_lines(path), 1) if line.strip())


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line.decode(), parse_constant=lambda name: None)
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        text = _short(line.decode(errors="replace"))
        raise UserError(f"{shown(path)}: line {number}: not a JSON object ({text}); each line must be one {{...}}")
    return entry


def _mixed(values: list[Any]) -> pa.Array:
    """Converts values to numbers if all are numbers, else to strings."""
    if any(isinstance(value, str) for value in values):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    try:
        return pa.array(values, pa.int64() if all(type(v) is int for v in values if v is not None) else pa.float64())
    except (pa.ArrowException, OverflowError):
        return pa.array([None if value is None else str(value) for value in values], pa.string())


def _plain(name: str) -> str:
    """Normalises a column's name, without RecBole's type behind a colon."""
    return "".join(c for c in name.partition(":")[0].lower() if c.isalnum())


@contextlib.contextmanager
def _no_tracebacks() -> Iterator[None]:
    """Hides the error of a skipped line that is not UTF-8, which is raised where it cannot be caught."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda raised: None
    try:
        yield
    finally:
        sys.unraisablehook = hook


def _not_utf8(path: Path) -> str:
    """Returns a message with the first line that is not UTF-8."""
    with contextlib.suppress(Exception):
        for number, line in enumerate(_lines(path), 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    return f"{shown(path)}: it is UTF-16; save it as UTF-8"
                text = line[max(0, error.start - 15) : error.end + 15].decode("ascii", "backslashreplace").strip()
                return f"{shown(path)}: line {number} is not UTF-8 ({shown(text)}); save the file as UTF-8"
    return f"{shown(path)}: it is not UTF-8; save it as UTF-8"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _too_long(path: Path, place: str) -> str:
    return f"{shown(path)}: {place} is longer than {BLOCK // 2**20} MiB"
