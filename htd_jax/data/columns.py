"""Columns of a file or of a table in memory, whatever its format, and what is wrong with it in its owner's words."""

import contextlib
import dataclasses
import gzip
import io
import itertools
import json
import re
import sys
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from htd_jax.errors import UserError, shown

# What a file is, by the end of its name; `.gz` or `.zst` may follow.
FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".inter": "csv",
    ".txt": "csv",
    ".dat": "csv",
    ".data": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
}
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".inter": "\t"}
NAMES = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars", " ": "spaces"}

# What columns are usually called, in small letters and without what stands between words.
USUAL = {
    "user": [
        "user",
        "userid",
        "useridx",
        "users",
        "uid",
        "customer",
        "customerid",
        "visitor",
        "visitorid",
        "reviewer",
        "reviewerid",
        "member",
        "memberid",
        "account",
        "accountid",
        "person",
        "personid",
        "session",
        "sessionid",
    ],
    "item": [
        "item",
        "itemid",
        "itemidx",
        "items",
        "iid",
        "product",
        "productid",
        "movie",
        "movieid",
        "track",
        "trackid",
        "article",
        "articleid",
        "song",
        "songid",
        "artist",
        "artistid",
        "book",
        "bookid",
        "business",
        "businessid",
        "asin",
        "parentasin",
        "sku",
        "isbn",
    ],
    "time": ["timestamp", "time", "ts", "datetime", "date", "eventtime", "createdat", "unixreviewtime"],
    "rating": ["rating", "ratings", "stars", "score", "overall", "preference"],
    "score": ["score", "scores", "rating", "prediction", "pred", "relevance"],
    "rank": ["rank", "ranking", "position", "pos"],
}

# How much of a file is read at once, and how long a line of a JSON file can be.
BLOCK = 2**24


@dataclasses.dataclass(frozen=True)
class Columns:
    """Columns as they were found.

    Attributes:
      of: each by its role (`user`, `time`, ...); of a text file, strings as they stand there.
      names: each one's name in the source.
      place: says where row r is: `line 7`.
      skipped: how many lines were left out, since they had other numbers of fields than the first.
    """

    of: dict[str, pa.ChunkedArray]
    names: dict[str, str]
    place: Callable[[int], str]
    skipped: int = 0


# From the names of all columns, to those wanted by their roles.
Choose = Callable[[Sequence[str]], dict[str, str]]


def pick(
    names: Sequence[str],
    wanted: Mapping[str, str | None],
    source: str,
    *,
    optional: Collection[str] = (),
    advice: Callable[[str], str] = lambda role: "",
) -> dict[str, str]:
    """The names of columns by their roles: those that were given, else those that are usual.

    Args:
      names: of all columns.
      wanted: by role the name that was given, or None.
      source: for messages.
      optional: roles that may be missing, if no name was given.
      advice: what to do about a role whose column was not found, or not the only one.

    Raises:
      UserError: every role that has no column, or could have several.
    """
    there = f"it has {', '.join(map(repr, names[:12])) or 'none'}{', ...' if len(names) > 12 else ''}"
    chosen: dict[str, str] = {}
    problems = []
    for role, name in wanted.items():
        found = [n for n in names if (n == name if name else _plain(n) in USUAL[role])]
        if len(found) == 1:
            chosen[role] = found[0]
        elif name and not found:
            problems.append(f"{source}: no column {name!r}; {there}")
        elif role in optional:
            continue
        elif not found:
            problems.append(f"{source}: no column is called like {role}s; {there}{advice(role)}")
        else:
            several = " and ".join(map(repr, found))
            problems.append(f"{source}: columns {several} could be the {role}s{advice(role)}")
    if not problems and "user" in chosen and chosen["user"] == chosen.get("item"):
        problems.append(f"{source}: users and items are one column, {chosen['user']!r}; name one each")
    if problems:
        raise UserError(*problems)
    return chosen


def read_id_column(path: Path, kind: str) -> tuple[pa.Array, Callable[[int], str]]:
    """Ids in a file as they stand there, null for an empty line or field, and where each is.

    Args:
      path: a table with a column called `id` or like the users (or items), or with one column alone; or a text of any
        other name, an id a line.
      kind: `user` or `item`.

    Raises:
      UserError: a file that cannot be read, or that has no such column.
    """
    suffix, _ = _suffixes(path)
    if suffix not in ("", ".txt", ".dat", ".data"):

        def choose(names: Sequence[str]) -> dict[str, str]:
            known = [name for name in names if _plain(name) in ("id", *USUAL[kind])]
            if len(names) != 1 and len(known) != 1:
                held = ", ".join(map(repr, names[:12])) or "none"
                raise UserError(f"{shown(path)}: no single column of {kind} ids among {held}; call it 'id'")
            row = {"row": "row"} if sorted(names) == ["id", "row"] else {}  # as a run keeps them
            return {kind: known[0] if known else names[0], **row}

        found = read_file(path, choose)
        column = found.of[kind]
        column = (
            column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        ).combine_chunks()
        if "row" in found.of:
            try:
                rows = found.of["row"].cast(pa.int64()).to_numpy()
            except pa.ArrowException:
                rows = np.zeros(0)
            if not np.array_equal(np.sort(rows), np.arange(len(column))):
                raise UserError(f"{shown(path)}: its column 'row' does not number the rows from 0")
            column = column.take(pa.array(np.argsort(rows)))
        return column, found.place
    try:
        _check_there(path)
        lines = [line.decode().strip() for line in _lines(path)]
    except UnicodeDecodeError:
        raise UserError(_not_utf8(path)) from None
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise UserError(
            f"{shown(path)}: cannot be read ({getattr(error, 'strerror', None) or _reason(error)})"
        ) from None
    lines = [line.removeprefix("\ufeff") for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    return pa.array([line or None for line in lines], pa.string()), lambda row: f"line {row + 1}"


def is_path(name: str) -> bool:
    """Whether a data set's name is the path of a file."""
    return "/" in name or "\\" in name or bool(_suffixes(Path(name))[0]) or Path(name).is_file()


def is_text(path: Path) -> bool:
    """Whether a file is one of lines and fields, by its name."""
    return FORMATS.get(_suffixes(path)[0]) == "csv"


def stem(path: Path) -> str:
    """A file's name without its format."""
    suffix, compressed = _suffixes(path)
    name = path.name.removesuffix(compressed)
    return name[: len(name) - len(suffix)]


def read_file(
    path: Path, choose: Choose, *, separator: str | None = None, header: bool = True, skip_bad_rows: bool = False
) -> Columns:
    """Columns of a CSV, TSV, Parquet or JSON lines file, or of RecBole's `.inter`; by gzip or zstd if so named.

    Args:
      path: the file; its format follows from its name.
      choose: picks columns by their names.
      separator: of a text file; that of its format if None, which of `.txt` and `.dat` is looked up in the first line.
      header: whether the first line of a text file holds names; else columns are called `1`, `2`, and so on.
      skip_bad_rows: lines of other numbers of fields than the first are left out, not refused.

    Raises:
      UserError: a file that cannot be read, that is damaged or of no known format, or whose lines are not alike.
    """
    suffix, compressed = _suffixes(path)
    if not suffix:
        known = ", ".join(FORMATS)
        raise UserError(
            f"{shown(path)}: its format is told by its name, which must end in one of {known} (+ .gz, .zst)"
        )
    try:
        _check_there(path)
        if path.stat().st_size == 0:
            raise UserError(f"{shown(path)}: the file is empty")
        if FORMATS[suffix] == "csv":
            return _read_text(path, suffix, choose, separator, header, skip_bad_rows)
        if FORMATS[suffix] == "json":
            return _read_json(path, choose)
        if compressed:
            raise UserError(f"{shown(path)}: Parquet is compressed inside; decompress the file, and name it .parquet")
        return _read_parquet(path, choose)
    except UnicodeDecodeError:
        raise UserError(_not_utf8(path)) from None
    except (pa.ArrowException, OSError, EOFError, MemoryError, RuntimeError, zlib.error) as error:
        raise UserError(_damaged(path, error)) from None


def from_table(table: Any, choose: Choose) -> Columns:
    """Columns of a table in memory: pandas, polars, pyarrow, or whatever speaks Arrow.

    Raises:
      UserError: a column of mixed types.
    """
    try:
        arrow = pa.table(table)
    except (pa.ArrowException, TypeError, ValueError) as error:
        why = shown("; ".join(map(str, error.args)) or type(error).__name__)[:160].rstrip(". ")
        raise UserError(f"the table cannot be read ({why}); a column must be of one type and have one name") from None
    names = choose(arrow.column_names)
    of = {role: arrow[arrow.column_names.index(name)] for role, name in names.items()}
    return Columns(of, names, lambda row: f"row {row}")


def _check_there(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{shown(path)}: there is no such file")
    if path.is_dir():
        raise UserError(f"{shown(path)}: is a folder, not a file")


def _suffixes(path: Path) -> tuple[str, str]:
    """The part of the name that tells the format, lower-case, and the one that tells the compression as it stands."""
    name, compressed = path.name, ""
    if path.suffix.lower() in COMPRESSED:
        name, compressed = name[: -len(path.suffix)], path.suffix
    suffix = Path(name).suffix.lower()
    return (suffix if suffix in FORMATS else "", compressed)


def _open(path: Path) -> BinaryIO:
    """The bytes of a file, decompressed."""
    compression = COMPRESSED.get(path.suffix.lower())
    if compression == "gzip":
        return gzip.open(path)  # type: ignore[return-value]
    return pa.input_stream(str(path), compression=compression, buffer_size=2**20)


def _lines(path: Path) -> Iterator[bytes]:
    with _open(path) as raw, io.BufferedReader(raw, 2**20) as file:  # type: ignore[type-var]
        yield from file


def _read_text(
    path: Path, suffix: str, choose: Choose, separator: str | None, header: bool, skip_bad_rows: bool
) -> Columns:
    number, line = next(_numbered(path), (0, b""))
    if not number:
        raise UserError(f"{shown(path)}: the file holds nothing")
    first = line.removeprefix(b"\xef\xbb\xbf").decode().rstrip("\r\n")
    if separator is None:
        found = [s for s in NAMES if s in first]
        separator = SEPARATORS.get(suffix) or (found[0] if found else ",")
        if separator not in first and found and not (found == [" "] and header):
            raise UserError(
                f"{shown(path)}: the first line ({_short(first)}) holds no {NAMES[separator]}, but "
                f"{NAMES[found[0]]}: say --separator {found[0]!r}"
            )
    elif separator == r"\t":  # as a shell gives it
        separator = "\t"
    elif len(separator) != 1 or not separator.isascii():
        way = ": with : and --no-header, columns 1, 3, 5, ... are those between ::" if separator == "::" else ""
        raise UserError(f"--separator: must be one character, not {separator!r}{way}")
    fields = _fields(first, separator)
    names = [name.strip() for name in fields] if header else [str(i) for i in range(1, len(fields) + 1)]
    if suffix == ".inter":
        names = [name.partition(":")[0] for name in names]
    chosen = choose(names)
    if header and next(itertools.islice(_numbered(path), 1, None), None) is None:
        return Columns({role: pa.chunked_array([], pa.string()) for role in chosen}, chosen, lambda row: "line 1")
    at = {role: names.index(name) for role, name in chosen.items()}
    called = [f"{i}" for i in range(len(names))]  # names may stand twice
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
                    column_names=called,
                    skip_rows=number if header else number - 1,
                ),
                pa.csv.ParseOptions(delimiter=separator, invalid_row_handler=skip if skip_bad_rows else None),
                pa.csv.ConvertOptions(
                    column_types={
                        called[i]: pa.dictionary(pa.int32(), pa.string()) if role in ("user", "item") else pa.string()
                        for role, i in at.items()
                    },
                    include_columns=[called[i] for i in dict.fromkeys(at.values())],
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
            read(False)  # in one thread it knows where
        except pa.ArrowInvalid as where:
            row = re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+): (.*)", str(where), re.DOTALL)
            if row is None:
                raise
            number_at, expected, got, text = row.groups()
            raise UserError(
                f"{shown(path)}: line {number_at} has {got} field{'s' * (got != '1')} ({_short(text.strip())}), the "
                f"first {expected}; --skip-bad-rows leaves such lines out"
            ) from None
        raise

    def place(row: int) -> str:
        if skipped:
            return f"row {row + 1} of those read"
        return f"line {_line_of(path, row + header)}"

    return Columns({role: table[called[i]] for role, i in at.items()}, chosen, place, skipped)


def _read_parquet(path: Path, choose: Choose) -> Columns:
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        names = choose(schema.names)
        texts = [n for n in names.values() if pa.types.is_string(schema.field(schema.names.index(n)).type)]
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        table = file.read(columns=list(dict.fromkeys(names.values())))
        table.validate(full=True)
    of = {role: table[name] for role, name in names.items()}
    return Columns(of, names, lambda row: f"row {row + 1}")


def _read_json(path: Path, choose: Choose) -> Columns:
    """By pyarrow where every line holds values of one kind; else line by line, which also finds the line at fault."""
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
                    f"{shown(path)}: line {number}: {name!r} is {_short(json.dumps(value))}, no number or text"
                )
            column.append(value)
    of = {role: pa.chunked_array([_mixed(values[name])]) for role, name in names.items()}
    return Columns(of, names, place)


def _numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    return ((number, line) for number, line in enumerate(_lines(path), 1) if line.strip())


def _line_of(path: Path, row: int) -> int:
    """The number of the row-th line, from 0, that is not empty."""
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
        raise UserError(f"{shown(path)}: line {number}: no JSON object ({text}); a line is one {{...}}")
    return entry


def _mixed(values: list[Any]) -> pa.Array:
    """Numbers where all are; else texts."""
    if any(isinstance(value, str) for value in values):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    try:
        return pa.array(values, pa.int64() if all(type(v) is int for v in values if v is not None) else pa.float64())
    except (pa.ArrowException, OverflowError):
        return pa.array([None if value is None else str(value) for value in values], pa.string())


def _plain(name: str) -> str:
    """Without RecBole's type behind a colon."""
    return "".join(c for c in name.partition(":")[0].lower() if c.isalnum())


def _fields(line: str, separator: str) -> list[str]:
    """The fields of one line, quoted ones as they are meant."""
    import csv

    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:
        return line.split(separator)


@contextlib.contextmanager
def _no_tracebacks() -> Iterator[None]:
    """A line that is left out and is no UTF-8 raises where nobody can catch it."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda raised: None
    try:
        yield
    finally:
        sys.unraisablehook = hook


def _not_utf8(path: Path) -> str:
    try:
        for number, line in enumerate(_lines(path), 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    return f"{shown(path)}: it is UTF-16; save it as UTF-8"
                text = line[max(0, error.start - 15) : error.end + 15].decode("ascii", "backslashreplace").strip()
                return f"{shown(path)}: line {number} is not UTF-8 ({shown(text)}); save the file as UTF-8"
    except (OSError, EOFError, pa.ArrowException, zlib.error):
        pass
    return f"{shown(path)}: it is not UTF-8; save it as UTF-8"


def _damaged(path: Path, error: BaseException) -> str:
    suffix, compressed = _suffixes(path)
    if isinstance(error, OSError) and error.errno and error.strerror:
        return f"{shown(path)}: cannot be read ({error.strerror})"
    what = {"gzip": "gzip file", "zstd": "zstd file"}.get(COMPRESSED.get(compressed.lower(), ""))
    what = what or {"parquet": "Parquet file", "json": "JSON file", "csv": "text file"}[FORMATS[suffix]]
    return f"{shown(path)}: damaged, cut off, or no {what} ({_reason(error)})"


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return shown(lines[0][:160].rstrip(". "))


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
