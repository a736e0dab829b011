"""A teacher's ranked lists from a file: rows of a user and an item, or of a user and all items of the list."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from htd_jax.data.columns import (
    BLOCK,
    COMPRESSED,
    FORMATS,
    Columns,
    as_numbers,
    from_table,
    is_usual,
    pick,
    read_file,
    read_folder,
    undictionary,
    value_of,
)
from htd_jax.data.files import open_inflated
from htd_jax.data.ids import Ids, as_column
from htd_jax.errors import UserError, reading, shown

NEEDED = ("user", "item")

# Usual names of a column that holds a user's whole list, besides those of items: Spark's, and those of others.
WHOLE = ("recommendations", "recs", "item_ids", "itemids", "predictions", "topk")

# The largest length of a list; methods read some hundreds of items.
LONGEST = 1000


class RankedLists(NamedTuple):
    """Rows of ranked lists, in the order of their file.

    Attributes:
      users, items: `[n]` ids, int64 or string.
      scores: `[n]` float64, larger is better, or None.
      ranks: `[n]` int64, smaller is better, or None.
      name: name of the file, for messages.
      notes: remarks on how it was read, a line each.
    """

    users: pa.Array
    items: pa.Array
    scores: np.ndarray | None = None
    ranks: np.ndarray | None = None
    name: str = "lists"
    notes: tuple[str, ...] = ()


class RowLists(NamedTuple):
    """Ranked lists over the rows of a data set.

    Attributes:
      items: `[num_users, k]` int32, each user's items, the best first, -1 past the end.
      scores: `[num_users, k]` float32, 0 past the end, or None.
      notes: remarks on what was left out, a line each.
    """

    items: np.ndarray
    scores: np.ndarray | None
    notes: tuple[str, ...]


def read_lists(
    path: Path | str,
    *,
    user_column: str | None = None,
    item_column: str | None = None,
    score_column: str | None = None,
    rank_column: str | None = None,
    separator: str | None = None,
) -> RankedLists:
    """Reads ranked lists from a file in any format of `read_file`.

    Columns are found by their usual names (`user_id`, `itemId`, `score`, `rank`), or by the given ones. A row is a user
    and an item; or, in Parquet and JSON lines, a user and a list: of items, the best first, with an optional list of
    scores, or of structs `{item, score}`, as Spark writes them. Strings stay as they are: `007` is not 7.

    Raises:
      UserError: if the file cannot be read, is damaged or empty; a column, an id, a score or a rank is missing, or
        could be one of several; a score is not finite; a rank is not a whole number; or two ranks of a user are equal.
        A line per problem.
    """
    path = Path(path)
    named = {"user": user_column, "item": item_column, "score": score_column, "rank": rank_column}
    notes: list[str] = []
    unread: list[str] = []
    choose = lambda names: _choose(names, named, shown(path), notes, unread)
    read = lambda file, choose: _read_lines(file, choose) or read_file(file, choose, separator=separator)
    source = read_folder(path, choose, read) if path.is_dir() else read(path, choose)
    return _ranked(source, shown(path), notes, unread)


def lists_of_table(table: Any, name: str = "the lists") -> RankedLists:
    """Does what `read_lists` does for a table in memory: pandas, polars, pyarrow, or any that supports Arrow."""
    named = dict.fromkeys(("user", "item", "score", "rank"))
    notes: list[str] = []
    unread: list[str] = []
    source = from_table(table, lambda names: _choose(names, named, name, notes, unread))
    return _ranked(source, name, notes, unread)


def _ranked(source: Columns, name: str, notes: list[str], unread: list[str]) -> RankedLists:
    """Returns checked lists.

    Args:
      name: the name of the source, for messages.
      notes, unread: the notes so far, and the columns that are not read.
    """
    notes += [f"{name}: {note}" for note in source.notes]
    if pa.types.is_nested(source.by_role["item"].type):
        source = _unnested(source, name, notes, unread)
    if unread and not {"score", "rank"} & set(source.by_role):
        others = list(dict.fromkeys(unread))
        listed = ", ".join(repr(name[:40]) for name in others[:4]) + ", ..." * (len(others) > 4)
        notes.append(
            f"{name}: lists are in the order of the file; of its columns {listed}, none is known as a score or "
            "a rank; if one is, name it 'score' (the largest is best) or 'rank'"
        )
    if not len(source.by_role["user"]):
        raise UserError(f"{name}: it holds no row")
    problems: list[str] = []
    columns: dict[str, Any] = {}
    for role, column in source.by_role.items():
        values = undictionary(column)
        missing = values.is_null().to_numpy()
        if missing.any():
            problems.append(
                f"{name}: {_count(missing, 'row')} without {'an' if role == 'item' else 'a'} {role}, the first "
                f"in {source.place(int(np.argmax(missing)))}"
            )
        if role in NEEDED:
            try:
                columns[role] = as_column(values, role)
            except UserError as error:
                problems.append(f"{name}: {error}")
            continue
        numbers, wrong = as_numbers(values)
        if role == "score":
            wrong |= np.abs(numbers) > np.finfo(np.float32).max
        else:
            wrong |= ~((np.abs(numbers) < 2**53) & (numbers == np.round(numbers)))
            numbers = np.where(wrong, 0, numbers).astype(np.int64)
        wrong &= ~missing
        if wrong.any():
            at = int(np.argmax(wrong))
            example = shown(str(value_of(values, at))[:40])
            what = "not a finite number" if role == "score" else "not a whole number"
            problems.append(f"{name}: {_count(wrong, role)} {what}, the first {example!r} in {source.place(at)}")
        columns[role] = numbers
    if not problems and "rank" in columns:
        problems += _equal_ranks(name, columns, source.place)
    if problems:
        raise UserError(*problems)
    return RankedLists(
        columns["user"],
        columns["item"],
        columns.get("score"),
        columns.get("rank"),
        name,
        tuple(dict.fromkeys(notes)),
    )


def to_lists(ranked: RankedLists, users: Ids, items: Ids, *, longest: int = LONGEST) -> RowLists:
    """Returns lists over the rows of a data set, sorted by rank, or by descending score, or as in the file.

    Equal scores stay in the order of rows. If a user's item repeats, the best is kept.

    Args:
      users, items: the ids of the data set.
      longest: lists are cut to this length, as all users' lists are padded to the longest.

    Raises:
      UserError: if none of the users, or none of the items, is in the data.
    """
    rows, notes = [], [*ranked.notes]
    for ids, column in ((users, ranked.users), (items, ranked.items)):
        encoded = column.dictionary_encode()
        row_of_value = ids.find(encoded.dictionary)
        unknown = int((row_of_value < 0).sum())
        if unknown == len(row_of_value):
            example = encoded.dictionary[0].as_py() if unknown else None
            raise UserError(
                f"{ranked.name}: none of the file's {unknown} {ids.kind}s is among the data's {len(ids)}; the file "
                f"has ids like {example!r}, the data like {ids.values[0].as_py()!r}"
            )
        if unknown:
            example = encoded.dictionary[int(np.argmax(row_of_value < 0))].as_py()
            notes.append(
                f"{ranked.name}: {unknown} of {len(row_of_value)} {ids.kind}s are not in the data and were left out, "
                f"for example {example!r}"
            )
        rows.append(row_of_value[encoded.indices.to_numpy()])
    kept = np.flatnonzero((rows[0] >= 0) & (rows[1] >= 0))
    if not len(kept):
        raise UserError(f"{ranked.name}: no row has both a user and an item of the data")
    worse = ranked.ranks if ranked.ranks is not None else None if ranked.scores is None else -ranked.scores
    kept = kept[np.lexsort((rows[0][kept],) if worse is None else (worse[kept], rows[0][kept]))]
    _, first = np.unique(rows[0][kept] * len(items) + rows[1][kept], return_index=True)
    if repeated := len(kept) - len(first):
        notes.append(f"{ranked.name}: {repeated} rows repeat a user's item; the best of each was kept")
    kept = kept[np.sort(first)]
    owner = rows[0][kept]
    if ranked.ranks is not None and ranked.scores is not None:
        other = (np.diff(ranked.scores[kept]) > 0) & (np.diff(owner) == 0)
        if other.any():
            notes.append(
                f"{ranked.name}: lists are ordered by rank; by score, {len(np.unique(owner[1:][other]))} of "
                f"{len(np.unique(owner))} would be in another order"
            )
    degree = np.bincount(owner, minlength=len(users))
    if without := int((degree == 0).sum()):
        example = users.values[int(np.argmin(degree))].as_py()
        notes.append(f"{ranked.name}: {without} of the data's {len(users)} users have no list, for example {example!r}")
    place = np.arange(len(kept)) - (np.cumsum(degree) - degree)[owner]
    near = place < longest
    if cut := int((~near).sum()):
        notes.append(f"{ranked.name}: {cut} rows past place {longest} of a list were left out")
    kept, owner, place = kept[near], owner[near], place[near]
    lists = np.full((len(users), min(int(degree.max()), longest)), -1, np.int32)
    lists[owner, place] = rows[1][kept]
    scores = None
    if ranked.scores is not None:
        scores = np.zeros(lists.shape, np.float32)
        scores[owner, place] = ranked.scores[kept]
    return RowLists(lists, scores, tuple(notes))


def _choose(
    names: Sequence[str], named: dict[str, str | None], source: str, notes: list[str], unread: list[str]
) -> dict[str, str]:
    """Returns the names of columns by their roles, see `pick`; adds a note if the score was one of several, and the
    names of the others to `unread`."""
    named = dict(named)
    usual = lambda role: [name for name in names if is_usual(name, role)]
    if named["item"] is None and not usual("item"):
        whole = [name for name in names if name.lower() in WHOLE]
        named["item"] = whole[0] if len(whole) == 1 else None
    for role in ("score", "rank"):
        several = usual(role)
        if named[role] is not None or len(several) < 2:
            continue
        # Ratings next to predictions are those that users gave.
        predicted = [name for name in several if not name.lower().startswith("rating")]
        if role == "rank" or len(predicted) != 1:
            could = " and ".join(repr(name[:40]) for name in several[:4])
            raise UserError(f"{source}: columns {could} could be the {role}; leave only one in the file")
        named[role] = predicted[0]
        others = " and ".join(repr(name[:40]) for name in several if name != predicted[0])
        notes.append(f"{source}: the scores are those in column {predicted[0]!r}, not in {others}")
    chosen = pick(
        names, named, source, optional=("score", "rank"), advice=lambda role: f"; name one column {role!r} and no other"
    )
    unread += [name for name in names if name not in chosen.values()]
    return chosen


def _read_lines(path: Path, choose: Callable[[Sequence[str]], dict[str, str]]) -> Columns | None:
    """Reads JSON lines of a user and a list; None if the first line, or the format, is another."""
    bare = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    if FORMATS.get(bare.suffix.lower()) != "json" or path.is_dir():
        return None
    values: dict[str, list[Any]] = {}
    numbers: list[int] = []
    names: dict[str, str] = {}
    with reading(path, "a JSON file"), open_inflated(path, COMPRESSED.get(path.suffix.lower())) as file:
        number = 0
        while line := file.readline(BLOCK):
            number += 1
            if not line.strip():
                continue
            try:
                entry = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
            except (ValueError, RecursionError):
                entry = None
            if not numbers and not (isinstance(entry, dict) and any(isinstance(x, list) for x in entry.values())):
                return None
            if not isinstance(entry, dict):
                raise UserError(f"{shown(path)}: line {number}: not a JSON object; each line must be one {{...}}")
            if not numbers:
                names = choose(list(entry))
                if not isinstance(entry[names["item"]], list):
                    return None
                values = {role: [] for role in names}
            numbers.append(number)
            for role, name in names.items():
                values[role].append(entry.get(name))
        columns = {}
        for role, column in values.items():
            try:
                columns[role] = pa.chunked_array([pa.array(column)])
            except (pa.ArrowException, OverflowError):
                texts = [[str(x) for x in row] if isinstance(row, list) else row and str(row) for row in column]
                columns[role] = pa.chunked_array([pa.array(texts)])
    return Columns(columns, names, lambda row: f"line {numbers[row]}") if numbers else None


def _unnested(source: Columns, name: str, notes: list[str], unread: list[str]) -> Columns:
    """Returns a row per entry of lists.

    Raises:
      UserError: if a column is not of lists, or lists of one row differ in length.
    """
    lists = {role: column.combine_chunks() for role, column in source.by_role.items() if role != "user"}
    is_list = lambda kind: pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    for role, column in lists.items():
        if not is_list(column.type):
            raise UserError(
                f"{name}: column {source.names[role]!r} holds {str(column.type)[:60]}, and {source.names['item']!r} "
                "whole lists or structs; each row is a user, a list of items and, optionally, a list of scores"
            )
    lengths = {role: pc.fill_null(pc.list_value_length(column), 0).to_numpy() for role, column in lists.items()}
    for role, length in lengths.items():
        if (differ := length != lengths["item"]).any():
            row = int(np.argmax(differ))
            raise UserError(
                f"{name}: {source.place(row)} has {lengths['item'][row]} items, but {length[row]} entries in column "
                f"{source.names[role]!r}"
            )
    parents = np.repeat(np.arange(len(lists["item"])), lengths["item"])
    columns = {role: pc.list_flatten(column) for role, column in lists.items()}
    if pa.types.is_struct(columns["item"].type):
        structs = columns.pop("item")
        unnamed: dict[str, str | None] = {"item": None, "score": None, "rank": None}
        fields = [field.name for field in structs.type]
        chosen = _choose(fields, unnamed, f"{name}: {source.names['item']!r}", notes, unread)
        columns |= {role: pc.struct_field(structs, [field]) for role, field in chosen.items()}
    columns["user"] = source.by_role["user"].take(pa.array(parents))
    by_role = {
        role: column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
        for role, column in columns.items()
    }
    return dataclasses.replace(source, by_role=by_role, place=lambda row: source.place(int(parents[row])))


def _equal_ranks(name: str, columns: dict[str, Any], place: Callable[[int], str]) -> list[str]:
    """Returns the problem of a user who has two items with one rank, if there is one."""
    users, items = (columns[role].dictionary_encode().indices.to_numpy().astype(np.int64) for role in NEEDED)
    ranks = columns["rank"]
    order = np.lexsort((items, ranks, users))
    users, items, ranks = users[order], items[order], ranks[order]
    equal = (users[1:] == users[:-1]) & (ranks[1:] == ranks[:-1]) & (items[1:] != items[:-1])
    if not equal.any():
        return []
    at = int(np.argmax(equal)) + 1
    many = len(np.unique(users[1:][equal]))
    return [
        f"{name}: {many} user{'s have' if many > 1 else ' has'} a rank twice, for example user "
        f"{columns['user'][int(order[at])].as_py()!r} rank {ranks[at]} in {place(int(order[at]))}"
    ]


def _count(which: np.ndarray, what: str) -> str:
    number = int(which.sum())
    return f"{number} {what}{'s' if number > 1 else ''}"
