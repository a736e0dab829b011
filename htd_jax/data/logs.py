"""Interactions in a file or a table, read as a data set: columns, filters, and the split."""

import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from annotated_types import Ge, Interval

from htd_jax.data.columns import Columns, as_numbers, from_table, is_text, pick, read_file, stem, undictionary, value_of
from htd_jax.data.dataset import Dataset
from htd_jax.data.ids import Ids, as_column, is_whole, whole_numbers
from htd_jax.data.interactions import Interactions, Pairs, Split, make_split
from htd_jax.data.order import order
from htd_jax.data.splitfiles import is_split_folder, read_split_folder
from htd_jax.data.splits import SPLITS, TEST, TRAIN, VALID, deal
from htd_jax.errors import UserError, shown
from htd_jax.settings import check

# Text that programs write for a missing value. Among whole numbers it is one; among other text it may be an id.
MARKERS = [
    "NULL",
    "Null",
    "null",
    "\\N",
    "NA",
    "N/A",
    "n/a",
    "#N/A",
    "<NA>",
    "None",
    "none",
    "NaN",
    "nan",
    "NaT",
    "nil",
]


@dataclasses.dataclass(frozen=True)
class Reading:
    """Settings of reading and splitting a file of interactions, one per row: CSV, TSV, Parquet, JSON lines or RecBole's
    .inter, also as .gz or .zst, or a folder or a pattern of them."""

    user_column: str | None = None
    """Name of the user column. Default: the one named user, user_id, uid, customer_id or similar."""
    item_column: str | None = None
    """Name of the item column. Default: the one named item, item_id, product_id, movie_id or similar."""
    time_column: str | None = None
    """Name of the column of times, which are numbers or dates. Default: the one named timestamp, date or similar."""
    rating_column: str | None = None
    """Name of the rating column, read only with --min-rating. Default: the one named rating, stars or similar."""
    min_rating: float | None = None
    """Leaves out rows with a lower rating. Default: reads no ratings."""
    separator: str | None = None
    """Separator between the fields of a text file. Default: by the file's suffix, or detected in its first line."""
    header: bool = True
    """Whether the first line of a text file holds column names. If not, columns are named 1, 2, ..., with users in
    column 1 and items in column 2."""
    quoting: Literal["auto", "yes", "no"] = "auto"
    """Whether fields of a text file may be in double quotes, which are then not part of them. auto: yes, but no in
    files separated by tabs, such as RecBole's."""
    skip_bad_rows: bool = False
    """Leaves out rows that cannot be read, and reports their number."""
    clean_ids: bool = False
    """Merges ids that differ only in case or in white space at their ends."""
    min_per_user: Annotated[int, Ge(1)] = 1
    """Drops users with fewer distinct items than this, repeatedly, until users and items reach their minima
    (k-core)."""
    min_per_item: Annotated[int, Ge(1)] = 1
    """Drops items with fewer distinct users than this, repeatedly, until users and items reach their minima
    (k-core)."""
    split: Literal["leave-one-out", "last", "ratio", "time", "new-users", "files", "none"] = "leave-one-out"
    """What is held out for validation and for test. leave-one-out: a random item of each user; last: the latest items
    of each user; ratio: a share of each user's items; time: the latest interactions of all users; new-users: a fifth of
    the items of a share of the users, whose other items are known but not learned from; files: two files; none:
    nothing, for htd-jax update."""
    split_seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0
    """Seed of random splits. It is independent of the run's seed, so that runs are compared on one split."""
    held_out: Annotated[float, Interval(ge=0.001, le=0.45)] = 0.2
    """Share of interactions in each of validation and test, if the split is ratio or time; of users, if it is
    new-users."""
    valid_file: Path | None = None
    """File of the interactions for validation; the data set's file then holds those for training."""
    test_file: Path | None = None
    """File of the interactions for test."""

    @property
    def needs_time(self) -> bool:
        return self.time_column is not None or self.split in ("last", "time")

    def filled(self) -> "Reading":
        """Returns the checked settings, with `split` resolved.

        Raises:
          UserError: if settings are invalid, or contradict each other.
        """
        check(self)
        given = [self.valid_file, self.test_file]
        if any(given) and not all(given):
            raise UserError("set both `valid_file` and `test_file`, or neither")
        if all(given) and self.split not in ("leave-one-out", "files"):
            raise UserError(f"`split` {self.split} does not read `valid_file`; leave out one of them")
        if self.split == "files" and not all(given):
            raise UserError("`split` files needs `valid_file` and `test_file`")
        return dataclasses.replace(self, split="files" if all(given) else self.split)


class NothingHeldOutError(UserError):
    """A log of which nothing can be held out for validation or test."""


class Log(NamedTuple):
    """Interactions in the order of their source, without invalid rows.

    Attributes:
      users, items: `[n]` int32, positions in the ids.
      times: `[n]` float64, or None.
      user_ids, item_ids: distinct ids, as written.
      notes: remarks on what was left out or is unusual, a line each.
      keep_ids: whether ids without an interaction are kept.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray | None
    user_ids: pa.Array
    item_ids: pa.Array
    notes: tuple[str, ...] = ()
    keep_ids: bool = False


def read_log(path: Path, reading: Reading | None = None) -> Dataset:
    """Reads a file of interactions as a data set.

    Rows follow the order of the ids, numbers by value and strings by their characters, so neither the data set nor its
    split depends on the order or the format of the file. If a user and an item meet more than once, the first time
    counts.

    Args:
      path: CSV, TSV, `.inter`, Parquet or JSON lines, also as `.gz` or `.zst`, or a folder or a pattern of them
        (`logs/part-*.parquet`); in `.txt` and `.dat` files the separator is detected. Or a folder that `write_split`
        wrote, which is read as it was split.
      reading: columns, filters and split.

    Raises:
      UserError: if the file is invalid, with a line per problem.
    """
    if is_split_folder(path):
        if reading not in (None, Reading()):
            raise UserError(f"{shown(path)}: is already split; leave out the settings of reading and splitting")
        return read_split_folder(path)
    reading = (reading or Reading()).filled()
    parts = [path, reading.valid_file, reading.test_file] if reading.split == "files" else [path]
    logs = []
    for part in filter(None, parts):
        how: Any = {name: getattr(reading, name) for name in ("separator", "header", "quoting", "skip_bad_rows")}
        choose = chooser(reading, shown(part), is_text(part))
        logs.append(make_log(read_file(part, choose, **how), reading, shown(part)))  # whose columns are freed here
    return make_dataset(logs, reading, stem(path))


def read_table(table: Any, reading: Reading | None = None) -> Dataset:
    """Does what `read_log` does for a table in memory: pandas, polars, pyarrow, or any that supports Arrow."""
    reading = (reading or Reading()).filled()
    if reading.split == "files":
        raise UserError("`valid_file` and `test_file` need a file for training too, not a table")
    columns = from_table(table, chooser(reading, "the table"))
    return make_dataset([make_log(columns, reading, "the table")], reading, "data")


def read_pairs(users: Any, items: Any, reading: Reading | None = None) -> Dataset:
    """Does what `read_log` does for two columns of ids of any kind."""
    columns = {"user": as_column(users, "user"), "item": as_column(items, "item")}
    if len(columns["user"]) != len(columns["item"]):
        raise UserError(f"pairs need as many users as items, not {len(columns['user'])} and {len(columns['item'])}")
    reading = dataclasses.replace(reading or Reading(), user_column=None, item_column=None)
    return read_table(columns, reading)


def read_matrix(matrix: Any, reading: Reading | None = None) -> Dataset:
    """Does what `read_log` does for a SciPy sparse matrix `[users, items]`.

    Interactions are the numbers above zero, or of at least `min_rating`; entries of one place are summed. Without
    filters, ids are the numbers of rows and columns."""
    reading = (reading or Reading()).filled()
    if reading.split not in (*SPLITS, "none"):
        raise UserError(f"`split` {reading.split} needs times or files, which a matrix does not have")
    entries = matrix.astype(np.float64).tocoo(copy=True)
    entries.sum_duplicates()
    least = reading.min_rating
    kept = entries.data > 0 if least is None else entries.data >= least
    if not kept.any():
        raise UserError(f"the matrix holds no number {'above 0' if least is None else f'of at least {least:g}'}")
    user_ids, item_ids = (pa.array(np.arange(size)) for size in matrix.shape)
    keep_ids = reading.min_per_user == reading.min_per_item == 1
    users, items = entries.row[kept].astype(np.int32), entries.col[kept].astype(np.int32)
    none = int(np.isnan(entries.data).sum())
    notes = (f"the matrix: {none:,} of {len(kept):,} stored numbers are NaN and left out",) if none else ()
    return make_dataset([Log(users, items, None, user_ids, item_ids, notes, keep_ids)], reading, "data")


def make_log(columns: Columns, reading: Reading, source: str, *, part: bool = False) -> Log:
    """Returns the valid interactions in columns.

    Args:
      columns: a table with an interaction per row.
      reading: columns and filters.
      source: name of the table, for messages.
      part: whether it is a part of a log. It may hold no interaction, and keeps ids such as `NULL`: only the whole log
        tells whether they are missing, see `MARKERS`.

    Raises:
      UserError: if values are missing, ratings or times are invalid, or no interaction is left; a line per problem.
    """
    notes = [*columns.notes]
    problems: list[str] = []
    if columns.skipped:
        notes.append(f"{plural(columns.skipped, 'line')} left out: another number of fields, or not a JSON object")
    size = len(columns.by_role["user"])
    if not size and not part:
        raise UserError(f"{source}: it holds no interactions")
    bad = np.zeros(size, bool)

    def report(role: str, wrong: np.ndarray, what: str) -> None:
        if not wrong.any():
            return
        row = int(np.argmax(wrong))
        value = value_of(columns.by_role[role], row)
        example = "" if value is None else f" ({_short(value)})"
        where = f"in column {columns.names[role]!r}, first in {columns.place(row)}{example}"
        message = f"{int(wrong.sum()):,} of {plural(size, 'row')}: {what} {where}"
        if reading.skip_bad_rows:
            notes.append(f"{message}; left out")
            bad[wrong] = True
        else:
            problems.append(f"{source}: {message}; set `skip_bad_rows` to leave such rows out")

    numbers: dict[str, np.ndarray] = {}
    encoded: dict[str, tuple[np.ndarray, pa.Array]] = {}
    for role, column in columns.by_role.items():
        if role in ("user", "item"):
            try:
                encoded[role] = _encode(column, role)
            except UserError as error:
                problems.append(f"{source}: column {columns.names[role]!r}: {error}")
            continue
        numbers[role], wrong = (_times if role == "time" else as_numbers)(column)
        if role == "time" and not reading.needs_time:
            if wrong.any():
                del numbers[role]
                few = f"{int(wrong.sum()):,} of {plural(size, 'row')} hold no date or number"
                notes.append(f"column {columns.names[role]!r} is not read: {few}")
            continue
        empty = column.is_null().to_numpy()
        report(role, wrong & ~empty, "not a date or number" if role == "time" else "not a number")
        report(role, empty, "no value")
    low = np.zeros(size, bool)
    if "rating" in numbers and reading.min_rating is not None:
        low = numbers["rating"] < reading.min_rating
    if len(encoded) == 2 and not part:
        encoded, marked = _without_markers(encoded, bad | low)
        notes += [f"{plural(rows, 'row')} with the {role} {name!r}, kept as an id" for role, name, rows in marked]
    for role, (codes, _) in encoded.items():
        report(role, codes < 0, "no value")
    if problems:
        raise UserError(*problems)
    low &= ~bad
    notes += [f"{plural(int(low.sum()), 'row')} rated below {reading.min_rating:g} left out"] if low.any() else []
    bad |= low
    if bad.all() and not part:
        raise UserError(f"{source}: no interaction is left of {plural(size, 'row')} ({'; '.join(notes)})")
    kept = slice(None) if not bad.any() else ~bad
    (users, user_ids), (items, item_ids) = encoded["user"], encoded["item"]
    times = numbers["time"][kept] if "time" in numbers else None
    told = tuple(f"{source}: {note}" for note in notes)
    return compact(Log(users[kept], items[kept], times, user_ids, item_ids, told))


def make_dataset(logs: Sequence[Log], reading: Reading, name: str) -> Dataset:
    """Returns the data set of one log, which is split, or of three, for train, valid and test.

    Raises:
      UserError: if a part is empty.
    """
    log, parts = _join(logs, reading)
    rows_out: dict[str, int] = {}

    def keep(rows: np.ndarray, why: str) -> None:
        nonlocal log, parts
        if left_out := len(log.users) - (int(rows.sum()) if rows.dtype == bool else len(rows)):
            rows_out[why] = rows_out.get(why, 0) + left_out
        if left_out or rows.dtype != bool:  # a copy costs memory
            log, parts = take_rows(log, rows), parts[rows]

    first = "in time" if log.times is not None else "in the file"
    merged = f"merged as repeats of a user and item; the first {first} counts"
    least = f"{plural(reading.min_per_user, 'item')} per user and {plural(reading.min_per_item, 'user')} per item"
    untrained = "left out of validation and test: the user or item is not in training"
    while True:
        keep(distinct_pairs(log, parts), merged)
        keep(_core(log, parts, reading), f"left out to reach {least}")
        if not len(log.users):
            raise UserError(f"{name}: nothing is left with {least}; lower `min_per_user` or `min_per_item`")
        if reading.split == "files":
            keep(_akin(log, parts), untrained)
        log, changed = _ruled(log, reading.clean_ids)
        if not changed:
            break
    few = 0
    if len(logs) == 1:
        if reading.split != "none":
            parts = deal(log.users, reading.split, seed=reading.split_seed, share=reading.held_out, times=log.times)
        if reading.split in ("leave-one-out", "last"):
            few = int((np.bincount(log.users) < 3).sum())
    if reading.split in ("time", "files"):
        keep(_trained(log, parts), untrained)
        log, _ = _ruled(log, reading.clean_ids)
        keep(distinct_pairs(log, parts), merged)
    if reading.split == "new-users":
        keep(_learned_items(log, parts), "left out of new users: the item has no other users")
        log, _ = _ruled(log, reading.clean_ids)
        keep(distinct_pairs(log, parts), merged)
    notes = [*log.notes, *_remarks(log.user_ids, "user"), *_remarks(log.item_ids, "item")]
    notes += [f"{plural(rows, 'row')} {why}" for why, rows in rows_out.items()]
    if few:
        notes.append(f"{plural(few, 'user')} with fewer than 3 items: all items are kept for training")
    pairs: list[Pairs] = [(log.users[parts == p], log.items[parts == p]) for p in (TRAIN, VALID, TEST)]
    empty = [part for part, pair in zip(("training", "validation", "test"), pairs) if not len(np.asarray(pair[0]))]
    if empty and reading.split != "none":
        raise NothingHeldOutError(f"{name}: nothing is left for {' and '.join(empty)}: {advice_on_empty(reading)}")
    sizes = len(log.user_ids), len(log.item_ids)
    if reading.split == "none":
        split = Split(*(Interactions.from_pairs(*pair, *sizes) for pair in pairs))
    else:
        train, valid, test = pairs
        split = make_split(train, valid, test, *sizes)
    span = None if log.times is None else (float(log.times.min()), float(log.times.max()))
    new_users = np.unique(log.users[parts != TRAIN]).astype(np.int64) if reading.split == "new-users" else None
    return Dataset(split, Ids(log.user_ids, "user"), Ids(log.item_ids, "item"), name, tuple(notes), span, new_users)


def chooser(reading: Reading, source: str, text: bool = False) -> Any:
    """Returns a function that picks columns by the given names, or by usual ones; `text`: names are the first line."""
    wanted: dict[str, str | None] = {"user": reading.user_column, "item": reading.item_column}
    wanted["time"] = reading.time_column
    if reading.rating_column or reading.min_rating is not None:
        wanted["rating"] = reading.rating_column
    if not reading.header:
        wanted |= {role: wanted[role] or number for role, number in (("user", "1"), ("item", "2"))}

    def advice(role: str) -> str:
        hint = ", or set `header=False` if the first line holds no names" if role == "user" and text else ""
        return f"; set `{role}_column`{hint}"

    optional = () if reading.needs_time else ("time",)
    return lambda names: pick(names, wanted, source, optional=optional, advice=advice)


def plural(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _encode(column: pa.ChunkedArray, role: str) -> tuple[np.ndarray, pa.Array]:
    """Returns positions `[n]` int32 in the distinct ids, -1 if missing; and these."""
    kind = column.type
    if not any(test(kind) for test in (pa.types.is_dictionary, pa.types.is_string, pa.types.is_signed_integer)):
        column = pa.chunked_array([as_column(column, role)])
    column = column.dictionary_encode().unify_dictionaries()
    ids = as_column(column.chunk(0).dictionary if column.num_chunks else pa.array([], pa.string()), role)
    codes = np.empty(len(column), np.int32)
    start = 0
    for chunk in column.chunks:
        indices = chunk.indices if not chunk.null_count else pc.fill_null(chunk.indices, len(ids))
        codes[start : start + len(chunk)] = indices.to_numpy(zero_copy_only=False)
        start += len(chunk)
    missing = ids.is_null().to_numpy(zero_copy_only=False)
    if missing.any() or (codes == len(ids)).any():
        return _without(codes, ids, missing)
    return codes, ids


def _without(codes: np.ndarray, ids: pa.Array, missing: np.ndarray) -> tuple[np.ndarray, pa.Array]:
    """Makes ids missing; `codes` may be -1 or `len(ids)`, and becomes -1."""
    new = np.where(missing, -1, np.cumsum(~missing) - 1).astype(np.int32)
    return np.append(new, np.int32(-1))[codes], ids.filter(pa.array(~missing))


def _without_markers(
    encoded: dict[str, tuple[np.ndarray, pa.Array]], gone: np.ndarray
) -> tuple[dict[str, tuple[np.ndarray, pa.Array]], list[tuple[str, str, int]]]:
    """Makes `MARKERS` missing where all other ids are whole numbers; also returns the others: role, id, rows.

    Ids count that occur in rows that are not `gone`: a row without an item has no say in what is a user.
    """
    encoded = dict(encoded)
    gone = gone | (encoded["user"][0] < 0) | (encoded["item"][0] < 0)
    kept: dict[str, tuple[np.ndarray, pa.Array]] = {}
    again = True
    while again:
        again = False
        for role, (codes, ids) in encoded.items():
            kept.pop(role, None)
            if not pa.types.is_string(ids.type):
                continue
            marked = pc.is_in(ids, pa.array(MARKERS)).to_numpy(zero_copy_only=False)
            if not marked.any():
                continue
            used = np.bincount(codes[~gone], minlength=len(ids)) > 0
            rest = ids.filter(pa.array(used & ~marked))
            if len(rest) and pa.types.is_integer(whole_numbers(rest).type):
                encoded[role] = _without(codes, ids, marked)
                gone = gone | (encoded[role][0] < 0)
                again = True
            else:
                kept[role] = np.flatnonzero(marked & used), np.bincount(codes[~gone], minlength=len(ids))
    found = [
        (role, encoded[role][1][int(k)].as_py(), int(rows[k])) for role, (places, rows) in kept.items() for k in places
    ]
    return encoded, found


def _one_rule(ids: pa.Array, role: str, clean: bool) -> tuple[pa.Array, list[str]]:
    """Returns ids `[n]` as numbers if all are whole numbers, see `whole_numbers`, and cleaned if `clean`; and notes."""
    notes = []
    numbers = whole_numbers(ids)
    if clean and pa.types.is_string(numbers.type):
        trimmed = pc.utf8_trim_whitespace(ids)
        encoded = pc.utf8_lower(trimmed).dictionary_encode()
        places = encoded.indices.to_numpy()
        alike = np.bincount(places)[places] > 1
        padded = pc.sum(pc.not_equal(trimmed, ids)).as_py()
        if number := len(ids) - len(encoded.dictionary):
            notes.append(f"{plural(number, f'{role} id')} differing from another only in case or white space: merged")
        elif padded:
            notes.append(f"{plural(padded, f'{role} id')} with white space at an end: removed")
        numbers = whole_numbers(pc.if_else(pa.array(alike), pc.utf8_lower(trimmed), trimmed))
    if pa.types.is_integer(numbers.type) and (merged := len(pc.unique(ids)) - len(pc.unique(numbers))) and not notes:
        notes.append(f"{plural(merged, f'{role} id')} written in two ways, such as '7' and '7.0': merged")
    return numbers, notes


def _remarks(ids: pa.Array, role: str) -> list[str]:
    """Returns notes on distinct ids that are unusual."""
    if not pa.types.is_string(ids.type):
        return []
    notes = []
    whole = is_whole(ids).to_numpy(zero_copy_only=False)
    if len(ids) > (numbers := int(whole.sum())) >= len(ids) / 2:
        example, others = _short(ids[int(np.argmin(whole))].as_py()), len(ids) - numbers - 1
        but = f"not {example}{f' and {others:,} more' if others else ''}"
        notes.append(
            f"{numbers:,} of {len(ids):,} {role} ids are whole numbers, but {but}: all are text, sorted by characters"
        )
    rounded = ids.filter(pc.match_substring_regex(ids, r"^\d\.\d+[eE]\+?\d+$"))
    if len(rounded):
        example = _short(rounded[0].as_py())
        notes.append(f"{plural(len(rounded), f'{role} id')} like {example}, which may have lost digits: kept as text")
    trimmed = pc.utf8_trim_whitespace(ids)
    encoded = pc.utf8_lower(trimmed).dictionary_encode()
    if number := len(ids) - len(encoded.dictionary):
        places = encoded.indices.to_numpy()
        order = np.argsort(places, kind="stable")
        second = int(order[1:][places[order][1:] == places[order][:-1]][0])
        first = int(np.argmax(places == places[second]))
        example = f"{_short(ids[first].as_py())}, {_short(ids[second].as_py())}"
        what = f"{plural(number, f'{role} id')} differing from another only in case or white space ({example})"
        notes.append(f"{what}: kept apart; `clean_ids` merges them")
    elif padded := pc.sum(pc.not_equal(trimmed, ids)).as_py():
        example = _short(ids.filter(pc.not_equal(trimmed, ids))[0].as_py())
        what = f"{plural(padded, f'{role} id')} with white space at an end ({example})"
        notes.append(f"{what}: kept; `clean_ids` removes it")
    return notes


def _times(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Does what `as_numbers` does for times: numbers are unchanged, dates are in seconds."""
    column = undictionary(column)
    if pa.types.is_string(column.type):
        numbers, wrong = as_numbers(column)
        if not wrong.all():
            return numbers, wrong
        for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
            try:
                column = column.cast(kind)
                break
            except pa.ArrowException:
                continue
        else:
            return _iso_times(column)
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    if pa.types.is_timestamp(column.type):
        micros = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
        times = pc.fill_null(micros.cast(pa.float64(), safe=False), np.nan).to_numpy() / 1e6
        return times, ~np.isfinite(times)
    return as_numbers(column)


def _iso_times(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Does what `_times` does for ISO strings in mixed forms: with a time zone, in nanoseconds, or invalid."""

    def parse(text: str) -> float:  # UTC unless it names a zone
        try:
            moment = datetime.datetime.fromisoformat(text.strip())
        except ValueError:
            return float("nan")
        return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()

    encoded = column.combine_chunks().dictionary_encode()
    values = np.array([*map(parse, encoded.dictionary.to_pylist()), np.nan])
    times = values[pc.fill_null(encoded.indices, len(values) - 1).to_numpy(zero_copy_only=False)]
    return times, ~np.isfinite(times)


def _join(logs: Sequence[Log], reading: Reading) -> tuple[Log, np.ndarray]:
    """Concatenates logs over the sorted union of their ids; also returns each row's log."""
    users, user_ids, of_users = _join_ids([(log.users, log.user_ids) for log in logs], "user", reading.clean_ids)
    items, item_ids, of_items = _join_ids([(log.items, log.item_ids) for log in logs], "item", reading.clean_ids)
    known = [log.times for log in logs if log.times is not None]
    times = np.concatenate(known) if len(known) == len(logs) else None
    parts = np.repeat(np.arange(len(logs), dtype=np.int8), [len(log.users) for log in logs])
    notes = (*(note for log in logs for note in log.notes), *of_users, *of_items)
    return Log(users, items, times, user_ids, item_ids, notes, all(log.keep_ids for log in logs)), parts


def _join_ids(
    coded: Sequence[tuple[np.ndarray, pa.Array]], role: str, clean: bool
) -> tuple[np.ndarray, pa.Array, list[str]]:
    """Concatenates codes as positions in the sorted union of ids, and returns that union and notes."""
    values = [ids for _, ids in coded]
    if len({str(ids.type) for ids in values}) > 1:
        values = [ids.cast(pa.string()) for ids in values]
    written = pc.unique(pa.chunked_array(values)) if len(values) > 1 else values[0]
    union, rows, notes = _sorted(written, role, clean)
    places = [
        rows if len(values) == 1 else rows[pc.index_in(v, written).to_numpy(zero_copy_only=False)] for v in values
    ]
    return np.concatenate([place[codes] for place, (codes, _) in zip(places, coded)]), union, notes


def _sorted(written: pa.Array, role: str, clean: bool) -> tuple[pa.Array, np.ndarray, list[str]]:
    """Returns ids by the rule, sorted and distinct; the place of each written one in them; and notes."""
    ids, notes = _one_rule(written, role, clean)
    union = pc.unique(ids)
    union = union.take(pc.sort_indices(union))
    return union, pc.index_in(ids, union).to_numpy(zero_copy_only=False).astype(np.int32), notes


def _ruled(log: Log, clean: bool) -> tuple[Log, bool]:
    """Drops ids without an interaction; returns whether those left became numbers, which text had kept from it."""
    kept = compact(log)
    changed = False
    for role in ("user", "item"):
        ids = getattr(kept, f"{role}_ids")
        if len(ids) < len(getattr(log, f"{role}_ids")) and pa.types.is_string(ids.type):
            union, rows, notes = _sorted(ids, role, clean)
            if pa.types.is_integer(union.type):
                codes = rows[getattr(kept, f"{role}s")]
                kept = kept._replace(**{f"{role}s": codes, f"{role}_ids": union}, notes=(*kept.notes, *notes))
                changed = True
    return kept, changed


def distinct_pairs(log: Log, parts: np.ndarray) -> np.ndarray:
    """Returns one row per pair, sorted by user and item: the first of the first part."""
    codes = log.users.astype(np.int64)
    codes *= len(log.item_ids)
    codes += log.items
    rows = order(codes)
    codes = codes[rows]
    new = np.append(True, codes[1:] != codes[:-1])[: len(codes)]
    if log.times is not None and not new.all():
        repeated = ~new
        repeated[:-1] |= ~new[1:]
        several = rows[repeated]
        rows[repeated] = several[order(codes[repeated], parts[several], log.times[several])]
    return rows[new]


def _core(log: Log, parts: np.ndarray, reading: Reading) -> np.ndarray:
    """Returns which rows are in the k-core, which counts training rows only."""
    kept = np.ones(len(log.users), bool)
    while reading.min_per_user > 1 or reading.min_per_item > 1:
        counted = kept & (parts == TRAIN)
        user = np.bincount(log.users[counted], minlength=len(log.user_ids)) >= reading.min_per_user
        item = np.bincount(log.items[counted], minlength=len(log.item_ids)) >= reading.min_per_item
        still = kept & user[log.users] & item[log.items]
        if still.sum() == kept.sum():
            break
        kept = still
    return kept


def _akin(log: Log, parts: np.ndarray) -> np.ndarray:
    """Returns which rows are of the kind of training: without text if all of its users, or items, are numbers."""
    kept = np.ones(len(log.users), bool)
    for codes, ids in ((log.users, log.user_ids), (log.items, log.item_ids)):
        train = ids.filter(pa.array(np.bincount(codes[parts == TRAIN], minlength=len(ids)) > 0))
        if pa.types.is_string(ids.type) and pa.types.is_integer(whole_numbers(train).type):
            kept &= is_whole(ids).to_numpy(zero_copy_only=False)[codes]
    return kept


def _trained(log: Log, parts: np.ndarray) -> np.ndarray:
    """Returns which rows have both a user and an item of training."""
    train = parts == TRAIN
    user = np.bincount(log.users[train], minlength=len(log.user_ids)) > 0
    item = np.bincount(log.items[train], minlength=len(log.item_ids)) > 0
    return user[log.users] & item[log.items]


def _learned_items(log: Log, parts: np.ndarray) -> np.ndarray:
    """Returns which rows have an item of a user of whom nothing is held out."""
    new = np.bincount(log.users[parts != TRAIN], minlength=len(log.user_ids)) > 0
    item = np.bincount(log.items[~new[log.users]], minlength=len(log.item_ids)) > 0
    return item[log.items]


def take_rows(log: Log, kept: np.ndarray) -> Log:
    return log._replace(
        users=log.users[kept], items=log.items[kept], times=None if log.times is None else log.times[kept]
    )


def compact(log: Log) -> Log:
    """Drops ids without an interaction."""
    if log.keep_ids:
        return log
    users, user_ids = _used(log.users, log.user_ids)
    items, item_ids = _used(log.items, log.item_ids)
    return log._replace(users=users, items=items, user_ids=user_ids, item_ids=item_ids)


def _used(codes: np.ndarray, ids: pa.Array) -> tuple[np.ndarray, pa.Array]:
    used = np.bincount(codes, minlength=len(ids)) > 0
    if used.all():
        return codes, ids
    return (np.cumsum(used, dtype=np.int32) - 1)[codes], ids.filter(pa.array(used))


def advice_on_empty(reading: Reading) -> str:
    if reading.split == "files":
        return "no row of that file has both a user and an item of training"
    if reading.split in ("leave-one-out", "last"):
        return "no user has 3 different items, one for each part; set `split` to ratio or time"
    return "too few interactions; raise `held_out`, or give more data"
