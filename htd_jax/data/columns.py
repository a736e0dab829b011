"""Columns of a file in any format, or of a table in memory, with errors in the terms of the file."""

import contextlib
import csv
import dataclasses
import gzip
import io
import itertools
import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

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
        "score": "score scores rating prediction pred relevance",
        "rank": "rank ranking position pos",
    }.items()
}

# Bytes that are read at once, and so the longest line of a JSON file.
BLOCK = 2**24


@dataclasses.dataclass(frozen=True)
class Columns:
    """Columns of a file or a table.

    Attributes:
      by_role: columns by their roles (`user`, `time`, ...); the columns of a text file are strings.
      names: each one's name in the source.
      place: returns the place of row r in the source: `line 7`.
      skipped: number of lines that were left out because their number of fields differs from the first line's.
    """

    by_role: dict[str, pa.ChunkedArray]
    names: dict[str, str]
    place: Callable[[int], str]
    skipped: int = 0


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
    existing = f"columns: {', '.join(map(repr, names[:12])) or 'none'}{', ...' if len(names) > 12 else ''}"
    chosen: dict[str, str] = {}
    problems = []
    for role, name in wanted.items():
        matches = [n for n in names if (n == name if name else is_usual(n, role))]
        if len(matches) == 1:
            chosen[role] = matches[0]
        elif name and not matches:
            problems.append(f"{source}: no column {name!r} ({existing})")
        elif role in optional:
            continue
        elif not matches:
            problems.append(f"{source}: no {role} column found ({existing}){advice(role)}")
        else:
            several = " and ".join(map(repr, matches))
            problems.append(f"{source}: columns {several} could be the {role} column{advice(role)}")
    if not problems and "user" in chosen and chosen["user"] == chosen.get("item"):
        problems.append(f"{source}: users and items are one column, {chosen['user']!r}; choose one for each")
    if problems:
        raise UserError(*problems)
    return chosen


def is_usual(name: str, role: str) -> bool:
    """Returns whether a column's name is a usual one of a role, see `USUAL`."""
    return _plain(name) in USUAL[role]


def undictionary(column: Any) -> Any:
    """Decodes a dictionary-encoded column."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def as_numbers(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Converts a column to `[n]` float64, and returns where it is not a finite number, or missing: `[n]` bool."""
    column = undictionary(column)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    try:
        numbers = column.cast(pa.float64(), safe=False)
    except pa.ArrowException:
        texts = pc.utf8_trim_whitespace(column.cast(pa.string()))
        valid = pc.match_substring_regex(texts, r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
        numbers = pc.if_else(valid, texts, None).cast(pa.float64())
    values = pc.fill_null(numbers, np.nan).to_numpy()
    return values, ~np.isfinite(values)


def is_path(name: str) -> bool:
    """Returns whether a data set's name is the path of a file."""
    return "/" in name or "\\" in name or bool(_suffixes(Path(name))[0]) or Path(name).is_file()


def is_text(path: Path) -> bool:
    """Returns whether a file is text with separated fields, by its name."""
    return FORMATS.get(_suffixes(path)[0]) == "csv"


def stem(path: Path) -> str:
    """Returns a file's name without its suffixes."""
    suffix, compressed = _suffixes(path)
    name = path.name.removesuffix(compressed)
    return name[: len(name) - len(suffix)]


def read_file(
    path: Path, choose: Choose, *, separator: str | None = None, header: bool = True, skip_bad_rows: bool = False
) -> Columns:
    """Reads columns of a CSV, TSV, Parquet, JSON lines or RecBole `.inter` file; `.gz` and `.zst` are decompressed.

    Args:
      path: the file; its suffix tells its format.
      choose: picks columns by their names.
      separator: separator of a text file; the format's own if None, which is detected in the first line of `.txt` and
        `.dat` files.
      header: whether the first line of a text file holds names; otherwise columns are named `1`, `2`, and so on.
      skip_bad_rows: whether to leave out lines whose number of fields differs from the first line's.

    Raises:
      UserError: if the file cannot be read, is damaged or has no known format, or lines differ in their number of
        fields.
    """
    suffix, compressed = _suffixes(path)
    if not suffix:
        known = ", ".join(FORMATS)
        raise UserError(f"{shown(path)}: unknown format; the name must end in one of {known} (+ .gz, .zst)")
    kind = FORMATS[suffix]
    with reading_text(path, f"a {COMPRESSED[compressed.lower()]} file" if compressed else CONTENT[kind]):
        if path.stat().st_size == 0:
            raise UserError(f"{shown(path)}: the file is empty")
        if kind == "csv":
            return _read_text(path, suffix, choose, separator, header, skip_bad_rows)
        if kind == "json":
            return _read_json(path, choose)
        if compressed:
            raise UserError(f"{shown(path)}: Parquet is compressed inside; decompress the file, and name it .parquet")
        return _read_parquet(path, choose)


def from_table(table: Any, choose: Choose) -> Columns:
    """Returns columns of a table in memory: pandas, polars, pyarrow, or any that supports Arrow.

    Raises:
      UserError: if a column has mixed types, or two have one name.
    """
    try:
        arrow = pa.table(table)
    except (pa.ArrowException, TypeError, ValueError) as error:
        why = shown("; ".join(map(str, error.args)) or type(error).__name__)[:160].rstrip(". ")
        raise UserError(f"the table cannot be read ({why}); a column must be of one type and have one name") from None
    names = choose(arrow.column_names)
    by_role = {role: arrow[arrow.column_names.index(name)] for role, name in names.items()}
    return Columns(by_role, names, lambda row: f"row {row}")


def _suffixes(path: Path) -> tuple[str, str]:
    """Returns the suffix of the format, in lower case, and that of the compression, as written; empty if unknown."""
    name, compressed = path.name, ""
    if path.suffix.lower() in COMPRESSED:
        name, compressed = name[: -len(path.suffix)], path.suffix
    suffix = Path(name).suffix.lower()
    return (suffix if suffix in FORMATS else "", compressed)


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
    compression = COMPRESSED.get(path.suffix.lower())
    if compression == "gzip":
        return gzip.open(path)  # type: ignore[return-value]
    return pa.input_stream(str(path), compression=compression, buffer_size=2**20)


def _lines(path: Path) -> Iterator[bytes]:
    with _open(path) as raw, io.BufferedReader(raw, 2**20) as file:  # type: ignore[type-var]
        yield from file


def _find_separator(path: Path, suffix: str, first: str, separator: str | None, header: bool) -> str:
    """Returns the separator of a text file with the given first line."""
    if separator is None:
        present = [s for s in NAMES if s in first]
        separator = SEPARATORS.get(suffix) or (present[0] if present else ",")
        if separator not in first and present and not (present == [" "] and header):
            raise UserError(
                f"{shown(path)}: the first line ({_short(first)}) holds no {NAMES[separator]}, but "
                f"{NAMES[present[0]]}; set `separator` to {present[0]!r}"
            )
    elif separator == r"\t":  # as typed in a shell
        separator = "\t"
    elif len(separator) != 1 or not separator.isascii():
        way = "; with ':' and `header=False`, columns 1, 3, 5, ... are those between '::'" * (separator == "::")
        raise UserError(f"`separator` must be one character, not {separator!r}{way}")
    return separator


def _read_text(
    path: Path, suffix: str, choose: Choose, separator: str | None, header: bool, skip_bad_rows: bool
) -> Columns:
    number, line = next(_numbered(path), (0, b""))
    if not number:
        raise UserError(f"{shown(path)}: the file is blank")
    first = line.removeprefix(b"\xef\xbb\xbf").decode().rstrip("\r\n")
    separator = _find_separator(path, suffix, first, separator, header)
    fields = _fields(first, separator)
    names = [name.strip() for name in fields] if header else [str(i) for i in range(1, len(fields) + 1)]
    if suffix == ".inter":
        names = [name.partition(":")[0] for name in names]
    chosen = choose(names)
    if header and next(itertools.islice(_numbered(path), 1, None), None) is None:
        return Columns({role: pa.chunked_array([], pa.string()) for role in chosen}, chosen, lambda row: "line 1")
    at = {role: names.index(name) for role, name in chosen.items()}
    unique = [f"{i}" for i in range(len(names))]  # names may repeat
    skipped = 0

    def skip(row: Any) -> str:
        nonlocal skipped
        skipped += 1
        return "skip"

    def read(threads: bool) -> pa.Table:
        with _no_tracebacks(), pa.input_stream(str(path), compression=COMPRESSED.get(path.suffix.lower())) as file:
            return pa.csv.read_csv(
                file,
                pa.csv.ReadOptions(
                    use_threads=threads,
                    block_size=BLOCK,
                    column_names=unique,
                    skip_rows=number if header else number - 1,
                ),
                pa.csv.ParseOptions(delimiter=separator, invalid_row_handler=skip if skip_bad_rows else None),
                pa.csv.ConvertOptions(
                    column_types={
                        unique[i]: pa.dictionary(pa.int32(), pa.string()) if role in ("user", "item") else pa.string()
                        for role, i in at.items()
                    },
                    include_columns=[unique[i] for i in dict.fromkeys(at.values())],
                    null_values=[""],
                    strings_can_be_null=True,
                ),
            )

    try:
        table = read(True)
        if skip_bad_rows:
            table.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" in str(error):
            raise UserError(_not_utf8(path)) from None
        if "columns, got" not in str(error):
            raise
        try:
            read(False)  # single-threaded, the error names the row
        except pa.ArrowInvalid as where:
            row = re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+): (.*)", str(where), re.DOTALL)
            if row is None:
                raise
            number_at, expected, got, text = row.groups()
            raise UserError(
                f"{shown(path)}: line {number_at} has {got} field{'s' * (got != '1')} ({_short(text.strip())}), the "
                f"first {expected}; set `skip_bad_rows` to leave such lines out"
            ) from None
        raise

    def place(row: int) -> str:
        if skipped:
            return f"row {row + 1} of those read"
        return f"line {_line_of(path, row + header)}"

    return Columns({role: table[unique[i]] for role, i in at.items()}, chosen, place, skipped)


def _read_parquet(path: Path, choose: Choose) -> Columns:
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        names = choose(schema.names)
        texts = [n for n in names.values() if pa.types.is_string(schema.field(schema.names.index(n)).type)]
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        table = file.read(columns=list(dict.fromkeys(names.values())))
        table.validate(full=True)
    return Columns({role: table[name] for role, name in names.items()}, names, lambda row: f"row {row + 1}")


def _read_json(path: Path, choose: Choose) -> Columns:
    """Reads with pyarrow if every column has one type; otherwise line by line, which also finds the invalid line."""
    entry = _object(path, *next(_numbered(path), (1, b"")))
    names = choose(list(entry))
    example = {name: value for name, value in entry.items() if name in names.values()}
    kinds = {int: pa.int64(), str: pa.string(), float: pa.float64()}
    place = lambda row: f"line {_line_of(path, row)}"
    if all(type(value) in kinds for value in example.values()):
        schema = pa.schema([(name, kinds[type(value)]) for name, value in example.items()])
        parse = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        try:
            with pa.input_stream(str(path), compression=COMPRESSED.get(path.suffix.lower())) as file:
                table = pa.json.read_json(file, pa.json.ReadOptions(block_size=BLOCK), parse)
            table.validate(full=True)
            return Columns({role: table[name] for role, name in names.items()}, names, place)
        except (pa.ArrowException, MemoryError):
            pass
    values: dict[str, list[Any]] = {name: [] for name in names.values()}
    for number, line in _numbered(path):
        entry = _object(path, number, line)
        for name, column in values.items():
            value = entry.get(name)
            if isinstance(value, (dict, list, bool)):
                raise UserError(
                    f"{shown(path)}: line {number}: {name!r} is {_short(json.dumps(value))}, not a number or text"
                )
            column.append(value)
    return Columns({role: pa.chunked_array([_mixed(values[name])]) for role, name in names.items()}, names, place)


def _numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields lines that are not blank, with their numbers from 1."""
    return ((number, line) for number, line in enumerate(_lines(path), 1) if line.strip())


def _line_of(path: Path, row: int) -> int:
    """Returns the number of the row-th line, from 0, that is not blank."""
    return next(itertools.islice(_numbered(path), row, None), (row + 1, b""))[0]


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line.removeprefix(b"\xef\xbb\xbf").decode(), parse_constant=lambda name: None)
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


def _fields(line: str, separator: str) -> list[str]:
    """Splits a line, respecting quotes."""
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:
        return line.split(separator)


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
