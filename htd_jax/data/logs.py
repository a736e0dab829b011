"""Anyone's interactions, from a file or a table, as a data set: columns, filters, and the split."""

import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from annotated_types import Ge, Interval

from htd_jax.data.columns import Columns, from_table, is_text, pick, read_file, stem
from htd_jax.data.dataset import Dataset, Ids, as_column
from htd_jax.data.interactions import Pairs, make_split
from htd_jax.data.splits import SPLITS, TEST, TRAIN, VALID, deal
from htd_jax.errors import UserError, shown
from htd_jax.settings import check


@dataclasses.dataclass(frozen=True)
class Reading:
    """How your own file is read and split, with --dataset PATH: CSV, TSV, Parquet, JSON lines or RecBole's .inter, an
    interaction a row; .gz and .zst too."""

    user_column: str | None = None
    """Its name. Default: the one that is called user, user_id, uid, customer_id or alike; so for the others."""
    item_column: str | None = None
    """Its name."""
    time_column: str | None = None
    """Its name; numbers or dates."""
    rating_column: str | None = None
    """Its name. Read with --min-rating."""
    min_rating: float | None = None
    """Rows below it are no interactions."""
    separator: str | None = None
    """Between the fields of a text file."""
    header: bool = True
    """Whether a text file begins with names; else columns are called 1, 2, ..., and users are 1, items 2."""
    skip_bad_rows: bool = False
    """Leaves out rows that cannot be read, and counts them."""
    clean_ids: bool = False
    """Takes ids for one that differ in white space at their ends or in case alone."""
    min_per_user: Annotated[int, Ge(1)] = 1
    """Users with fewer different items are dropped, in turn with"""
    min_per_item: Annotated[int, Ge(1)] = 1
    """items with fewer users, until both hold (k-core)."""
    split: Literal["leave-one-out", "last", "ratio", "time", "files"] = "leave-one-out"
    """Held out for validation and test: an item each of every user, at random or the last in time; a share of every
    user's items; what came last of all; or what --valid-file and --test-file hold."""
    split_seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0
    """Of what is held out at random. The runs of one comparison share it, whatever their --seed."""
    held_out: Annotated[float, Interval(ge=0.001, le=0.45)] = 0.2
    """The share of each of validation and test, with --split ratio or time."""
    valid_file: Path | None = None
    """Interactions for validation; --dataset holds those for training."""
    test_file: Path | None = None
    """Interactions for test."""

    @property
    def needs_time(self) -> bool:
        return self.time_column is not None or self.split in ("last", "time")

    def filled(self) -> "Reading":
        """The same, checked as a whole.

        Raises:
          UserError: choices that do not go together.
        """
        check(self)
        given = [self.valid_file, self.test_file]
        if any(given) and not all(given):
            raise UserError("--valid-file and --test-file: both, or neither")
        if all(given) and self.split not in ("leave-one-out", "files"):
            raise UserError(f"--split: {self.split} has no use for --valid-file")
        if self.split == "files" and not all(given):
            raise UserError("--split: files needs --valid-file and --test-file")
        return dataclasses.replace(self, split="files" if all(given) else self.split)


class Log(NamedTuple):
    """Interactions as they were logged, without those that cannot be read.

    Attributes:
      users, items: `[n]` int32, places in the ids.
      times: `[n]` float64, if they are known.
      user_ids, item_ids: each different.
      notes: what was left out or looks odd, a line each.
      whole: whether ids without an interaction are kept.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray | None
    user_ids: pa.Array
    item_ids: pa.Array
    notes: tuple[str, ...] = ()
    whole: bool = False


def read_log(path: Path, reading: Reading | None = None) -> Dataset:
    """A file of interactions as a data set.

    Rows are in the order of the ids, numbers by size and texts by their characters, so the order of the file's lines
    does not matter, nor does it to what is held out. Of a user and item that meet more than once the first time counts.

    Args:
      path: CSV, TSV, `.inter`, Parquet or JSON lines, by gzip or zstd; `.txt` and `.dat` are text of any separator.
      reading: columns, filters and split.

    Raises:
      UserError: what is wrong with the file, all that is found of it, a line each.
    """
    reading = (reading or Reading()).filled()
    parts = [path, reading.valid_file, reading.test_file] if reading.split == "files" else [path]
    logs = [log_of(_read(p, reading), reading, shown(p)) for p in parts if p]
    return make_dataset(logs, reading, stem(path))


def read_table(table: Any, reading: Reading | None = None) -> Dataset:
    """The same of a table in memory: pandas, polars, pyarrow, whatever speaks Arrow."""
    reading = (reading or Reading()).filled()
    if reading.split == "files":
        raise UserError("--valid-file: a table has none")
    return make_dataset(
        [log_of(from_table(table, _chooser(reading, "the table")), reading, "the table")], reading, "data"
    )


def read_pairs(users: Any, items: Any, reading: Reading | None = None) -> Dataset:
    """The same of two columns of ids of any kind."""
    columns = [as_column(users, "user"), as_column(items, "item")]
    if len(columns[0]) != len(columns[1]):
        raise UserError(f"pairs need as many users as items, not {len(columns[0])} and {len(columns[1])}")
    return read_table(
        pa.table(columns, ["user", "item"]),
        dataclasses.replace(reading or Reading(), user_column=None, item_column=None),
    )


def read_matrix(matrix: Any, reading: Reading | None = None) -> Dataset:
    """The same of a SciPy sparse matrix `[users, items]`, whose stored numbers above zero are the interactions, or with
    `min_rating` those that reach it. Without a filter, its rows and columns keep their numbers."""
    reading = (reading or Reading()).filled()
    if reading.split not in SPLITS:
        raise UserError(f"--split: {reading.split} needs times or files, which a matrix has not")
    entries = matrix.tocoo()
    least = reading.min_rating
    kept = entries.data > 0 if least is None else entries.data >= least
    if not kept.any():
        raise UserError(f"the matrix: it holds no number {'above 0' if least is None else f'from {least:g} on'}")
    user_ids, item_ids = (pa.array(np.arange(size)) for size in matrix.shape)
    whole = reading.min_per_user == reading.min_per_item == 1
    users, items = entries.row[kept].astype(np.int32), entries.col[kept].astype(np.int32)
    log = Log(users, items, None, user_ids, item_ids, whole=whole)
    return make_dataset([log], reading, "data")


def log_of(columns: Columns, reading: Reading, source: str) -> Log:
    """The interactions in columns.

    Raises:
      UserError: missing values, ratings or times that are none, or nothing left, a line each.
    """
    notes: list[str] = []
    problems: list[str] = []
    if columns.skipped:
        notes.append(f"{_some(columns.skipped, 'line')} of another number of fields left out")
    size = len(columns.of["user"])
    if not size:
        raise UserError(f"{source}: it holds no interaction")
    bad = np.zeros(size, bool)

    def judge(role: str, wrong: np.ndarray, what: str, example: bool = True) -> None:
        if not wrong.any():
            return
        row = int(np.argmax(wrong))
        value = f" ({columns.of[role][row].as_py()!r})" if example else ""
        where = f"in column {columns.names[role]!r}, first {columns.place(row)}{value}"
        told = f"{int(wrong.sum()):,} of {_some(size, 'row')}: {what} {where}"
        if reading.skip_bad_rows:
            notes.append(f"{told}; left out")
            bad[wrong] = True
        else:
            problems.append(f"{source}: {told}; --skip-bad-rows leaves such rows out")

    numbers: dict[str, np.ndarray] = {}
    encoded: dict[str, tuple[np.ndarray, pa.Array]] = {}
    for role, column in columns.of.items():
        empty = column.is_null().to_numpy()
        if role in ("time", "rating"):
            numbers[role], wrong = (_times if role == "time" else _numbers)(column)
            if role == "time" and not reading.needs_time:
                if wrong.any():
                    del numbers[role]
                continue
            judge(role, wrong & ~empty, "no date or number" if role == "time" else "no number")
        judge(role, empty, "nothing", example=False)
        if role in ("user", "item"):
            try:
                encoded[role] = _encode(column, role)
            except UserError as error:
                problems.append(f"{source}: column {columns.names[role]!r}: {error}")
    if problems:
        raise UserError(*problems)
    if "rating" in numbers and reading.min_rating is not None:
        low = ~bad & (numbers["rating"] < reading.min_rating)
        notes += [f"{_some(int(low.sum()), 'row')} rated below {reading.min_rating:g} left out"] if low.any() else []
        bad |= low
    if bad.all():
        raise UserError(f"{source}: no interaction is left of {_some(size, 'row')} ({'; '.join(notes)})")
    kept = slice(None) if not bad.any() else ~bad
    coded = []
    for role in ("user", "item"):
        codes, ids = encoded[role]
        codes, ids, told = _alike(codes, ids, role, reading.clean_ids)
        notes += [told] if told else []
        coded.append((codes[kept], ids))
    (users, user_ids), (items, item_ids) = coded
    times = numbers["time"][kept] if "time" in numbers else None
    return Log(users, items, times, user_ids, item_ids, tuple(f"{source}: {note}" for note in notes))


def make_dataset(logs: Sequence[Log], reading: Reading, name: str) -> Dataset:
    """A data set of one log, which is split here, or of three, for train, valid and test.

    Raises:
      UserError: nothing is left, or nothing can be held out.
    """
    notes = [note for log in logs for note in log.notes]
    log, parts = _join(logs)

    def keep(rows: np.ndarray, told: str) -> None:
        nonlocal log, parts
        if left_out := len(log.users) - (int(rows.sum()) if rows.dtype == bool else len(rows)):
            notes.append(f"{_some(left_out, 'row')} {told}")
            log, parts = _rows(log, rows), parts[rows]

    which = "in time" if log.times is not None else "in the file"
    order = _first_of_each(log, parts)
    if len(order) == len(log.users):
        log, parts = _rows(log, order), parts[order]
    keep(order, f"merged, which repeat a user and item; the first {which} counts")
    least = f"{_some(reading.min_per_user, 'item')} a user and {_some(reading.min_per_item, 'user')} an item"
    keep(_core(log, parts, reading), f"left out, until there were {least}")
    if not len(log.users):
        raise UserError(f"{name}: there are never {least}; lower --min-per-user or --min-per-item")
    log = _compact(log)
    if len(logs) == 1:
        parts = deal(log.users, reading.split, seed=reading.split_seed, share=reading.held_out, times=log.times)
        if reading.split in ("leave-one-out", "last") and (few := int((np.bincount(log.users) < 3).sum())):
            notes.append(f"{_some(few, 'user')} with fewer than 3 items: all are kept for training, none is held out")
    if reading.split in ("time", "files"):
        keep(_known(log, parts), "held out of users or items that are not in training: left out")
        log = _compact(log)
    pairs: list[Pairs] = [(log.users[parts == p], log.items[parts == p]) for p in (TRAIN, VALID, TEST)]
    if empty := [part for part, its in zip(("training", "validation", "test"), pairs) if not len(np.asarray(its[0]))]:
        raise UserError(f"{name}: nothing is left for {' and '.join(empty)}: {_advice(reading)}")
    train, valid, test = pairs
    split = make_split(train, valid, test, len(log.user_ids), len(log.item_ids))
    span = None if log.times is None else (float(log.times.min()), float(log.times.max()))
    return Dataset(split, Ids(log.user_ids, "user"), Ids(log.item_ids, "item"), name, tuple(notes), span)


def _read(path: Path, reading: Reading) -> Columns:
    choose = _chooser(reading, shown(path), is_text(path))
    return read_file(
        path, choose, separator=reading.separator, header=reading.header, skip_bad_rows=reading.skip_bad_rows
    )


def _chooser(reading: Reading, source: str, text: bool = False) -> Any:
    """Picks columns by the names that were given, else by usual ones; of a text file, whose first line they are."""
    wanted: dict[str, str | None] = {"user": reading.user_column, "item": reading.item_column}
    wanted["time"] = reading.time_column
    if reading.rating_column or reading.min_rating is not None:
        wanted["rating"] = reading.rating_column
    if not reading.header:
        wanted |= {role: wanted[role] or number for role, number in (("user", "1"), ("item", "2"))}

    def advice(role: str) -> str:
        hint = " (--no-header: if the first line is no line of names)" if role == "user" and text else ""
        return f"; say --{role}-column NAME{hint}"

    optional = () if reading.needs_time else ("time",)
    return lambda names: pick(names, wanted, source, optional=optional, advice=advice)


def _some(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _encode(column: pa.ChunkedArray, role: str) -> tuple[np.ndarray, pa.Array]:
    """Places `[n]` int32 in the different ids, 0 where one is missing, and these."""
    if not pa.types.is_dictionary(column.type):
        column = pa.chunked_array([as_column(column, role)]).dictionary_encode()
    column = column.unify_dictionaries()
    ids = column.chunk(0).dictionary if column.num_chunks else pa.array([], pa.string())
    codes = [pc.fill_null(chunk.indices, 0).to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate(codes).astype(np.int32, copy=False), as_column(_whole_numbers(ids), role)


def _whole_numbers(ids: pa.Array) -> pa.Array:
    """Texts that all are whole numbers as one writes them, "7" but not "007", as these numbers."""
    if not pa.types.is_string(ids.type) or not len(ids):
        return ids
    if not pc.all(pc.match_substring_regex(ids, "^(0|-?[1-9][0-9]{0,17})$")).as_py():
        return ids
    return ids.cast(pa.int64())


def _alike(codes: np.ndarray, ids: pa.Array, role: str, clean: bool) -> tuple[np.ndarray, pa.Array, str]:
    """Ids that differ in white space at their ends or in case alone: made one, or told of."""
    if not pa.types.is_string(ids.type):
        return codes, ids, ""
    plain = pc.utf8_lower(pc.utf8_trim_whitespace(ids))
    encoded = plain.dictionary_encode()
    number = len(ids) - len(encoded.dictionary)
    if not number:
        return codes, ids, ""
    places = encoded.indices.to_numpy()
    told = f"{_some(number, f'{role} id')} of white space or case alone beside another"
    if clean:
        return places.astype(np.int32)[codes], _whole_numbers(encoded.dictionary), f"{told}: made one"
    order = np.argsort(places, kind="stable")
    second = int(order[1:][places[order][1:] == places[order][:-1]][0])
    first = int(np.argmax(places == places[second]))
    example = f"{ids[first].as_py()!r}, {ids[second].as_py()!r}"
    return codes, ids, f"{told} ({example}): kept apart; --clean-ids makes them one"


def _numbers(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """`[n]` float64, and where there is none."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    try:
        numbers = column.cast(pa.float64(), safe=False)
    except pa.ArrowException:
        texts = column.cast(pa.string())
        fine = pc.match_substring_regex(pc.utf8_trim_whitespace(texts), r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
        numbers = pc.if_else(fine, pc.utf8_trim_whitespace(texts), None).cast(pa.float64())
    found = pc.fill_null(numbers, np.nan).to_numpy()
    return found, ~np.isfinite(found)


def _times(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The same of moments: numbers as they are, dates in seconds."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        found, wrong = _numbers(column)
        if not wrong.all():
            return found, wrong
        for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
            try:
                column = column.cast(kind)
                break
            except pa.ArrowException:
                continue
        else:
            return _moments(column)
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    if pa.types.is_timestamp(column.type):
        micros = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
        found = pc.fill_null(micros.cast(pa.float64(), safe=False), np.nan).to_numpy() / 1e6
        return found, ~np.isfinite(found)
    return _numbers(column)


def _moments(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The same of ISO texts that are not all alike: some with a zone, some in nanoseconds, some no dates."""
    coded = column.combine_chunks().dictionary_encode()
    of_values = np.array([_moment(text) for text in coded.dictionary.to_pylist()] or [np.nan])
    places = pc.fill_null(coded.indices, 0).to_numpy(zero_copy_only=False)
    found = np.where(coded.is_null().to_numpy(zero_copy_only=False), np.nan, of_values[places])
    return found, ~np.isfinite(found)


def _moment(text: str) -> float:
    """Seconds since 1970 of one ISO text, in UTC unless it says a zone; else no number."""
    try:
        moment = datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        return float("nan")
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


def _join(logs: Sequence[Log]) -> tuple[Log, np.ndarray]:
    """One log over the ids of all of them, in order, and which one each row is of."""
    users, user_ids = _join_ids([(log.users, log.user_ids) for log in logs])
    items, item_ids = _join_ids([(log.items, log.item_ids) for log in logs])
    known = [log.times for log in logs if log.times is not None]
    times = np.concatenate(known) if len(known) == len(logs) else None
    parts = np.repeat(np.arange(len(logs), dtype=np.int8), [len(log.users) for log in logs])
    return Log(users, items, times, user_ids, item_ids, whole=all(log.whole for log in logs)), parts


def _join_ids(coded: Sequence[tuple[np.ndarray, pa.Array]]) -> tuple[np.ndarray, pa.Array]:
    """Places in all ids, in order, of rows after rows."""
    values = [ids for _, ids in coded]
    if len({str(ids.type) for ids in values}) > 1:
        values = [ids.cast(pa.string()) for ids in values]
    every = pc.unique(pa.chunked_array(values)) if len(values) > 1 else values[0]
    every = every.take(pc.sort_indices(every))
    places = [pc.index_in(ids, every).to_numpy().astype(np.int32) for ids in values]
    return np.concatenate([of[codes] for of, (codes, _) in zip(places, coded)]), every


def _first_of_each(log: Log, parts: np.ndarray) -> np.ndarray:
    """Of every pair the row that counts, in the order of users and items: of the first part, and there the first."""
    codes = log.users.astype(np.int64) * len(log.item_ids) + log.items
    order = np.argsort(codes, kind="stable")
    new = np.diff(codes[order], prepend=-1) > 0
    if log.times is not None and not new.all():
        order = np.lexsort((log.times, parts, codes))
    first: np.ndarray = order[new]
    return first


def _core(log: Log, parts: np.ndarray, reading: Reading) -> np.ndarray:
    """Where users and items have enough of one another in what is not held out."""
    kept = np.ones(len(log.users), bool)
    while reading.min_per_user > 1 or reading.min_per_item > 1:
        counted = kept & (parts == TRAIN)
        of_user = np.bincount(log.users[counted], minlength=len(log.user_ids)) >= reading.min_per_user
        of_item = np.bincount(log.items[counted], minlength=len(log.item_ids)) >= reading.min_per_item
        still = kept & of_user[log.users] & of_item[log.items]
        if still.sum() == kept.sum():
            break
        kept = still
    return kept


def _known(log: Log, parts: np.ndarray) -> np.ndarray:
    """The rows whose user and item stand in training."""
    train = parts == TRAIN
    user = np.bincount(log.users[train], minlength=len(log.user_ids)) > 0
    item = np.bincount(log.items[train], minlength=len(log.item_ids)) > 0
    return user[log.users] & item[log.items]


def _rows(log: Log, kept: np.ndarray) -> Log:
    return log._replace(
        users=log.users[kept], items=log.items[kept], times=None if log.times is None else log.times[kept]
    )


def _compact(log: Log) -> Log:
    """Without ids that have no interaction."""
    if log.whole:
        return log
    users, user_ids = _used(log.users, log.user_ids)
    items, item_ids = _used(log.items, log.item_ids)
    return log._replace(users=users, items=items, user_ids=user_ids, item_ids=item_ids)


def _used(codes: np.ndarray, ids: pa.Array) -> tuple[np.ndarray, pa.Array]:
    used = np.bincount(codes, minlength=len(ids)) > 0
    if used.all():
        return codes, ids
    return (np.cumsum(used, dtype=np.int32) - 1)[codes], ids.filter(pa.array(used))


def _advice(reading: Reading) -> str:
    if reading.split == "files":
        return "no row of that file has a user and an item that training has"
    if reading.split in ("leave-one-out", "last"):
        return "no user has 3 different items, one for each part; try --split ratio or time"
    return "too few interactions; raise --held-out, or give more data"
