"""A teacher's ranked lists from a file: rows of a user, an item and, optionally, a score or a rank."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from htd_jax.data.columns import as_numbers, pick, read_file, undictionary
from htd_jax.data.dataset import Ids, as_column
from htd_jax.errors import UserError, shown

NEEDED = ("user", "item")

# The largest length of a list; methods read some hundreds of items.
LONGEST = 1000


class RankedLists(NamedTuple):
    """Rows of ranked lists, in the order of their file.

    Attributes:
      users, items: `[n]` ids, int64 or string.
      scores: `[n]` float64, larger is better, or None.
      ranks: `[n]` int64, smaller is better, or None.
      name: name of the file, for messages.
    """

    users: pa.Array
    items: pa.Array
    scores: np.ndarray | None = None
    ranks: np.ndarray | None = None
    name: str = "lists"


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

    Columns are found by their usual names (`user_id`, `itemId`, `score`, `rank`), or by the given ones. Strings stay as
    they are: `007` is not 7.

    Raises:
      UserError: if the file cannot be read, is damaged or empty; a column, an id, a score or a rank is missing; a score
        is not finite; a rank is not a whole number; or two ranks of a user are equal. A line per problem.
    """
    path = Path(path)
    named = {"user": user_column, "item": item_column, "score": score_column, "rank": rank_column}
    choose = lambda names: pick(names, named, shown(path), optional=("score", "rank"))
    source = read_file(path, choose, separator=separator)
    if not len(source.by_role["user"]):
        raise UserError(f"{shown(path)}: it holds no row")
    problems: list[str] = []
    columns: dict[str, Any] = {}
    for role, column in source.by_role.items():
        values = undictionary(column)
        missing = values.is_null().to_numpy()
        if missing.any():
            problems.append(
                f"{shown(path)}: {_count(missing, 'row')} without {'an' if role == 'item' else 'a'} {role}, the first "
                f"in {source.place(int(np.argmax(missing)))}"
            )
        if role in NEEDED:
            try:
                columns[role] = as_column(values, role)
            except UserError as error:
                problems.append(f"{shown(path)}: {error}")
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
            example = shown(str(values[at].as_py())[:40])
            what = "not a finite number" if role == "score" else "not a whole number"
            problems.append(f"{shown(path)}: {_count(wrong, role)} {what}, the first {example!r} in {source.place(at)}")
        columns[role] = numbers
    if not problems and "rank" in columns:
        problems += _equal_ranks(path, columns, source.place)
    if problems:
        raise UserError(*problems)
    return RankedLists(columns["user"], columns["item"], columns.get("score"), columns.get("rank"), shown(path))


def to_lists(ranked: RankedLists, users: Ids, items: Ids, *, longest: int = LONGEST) -> RowLists:
    """Returns lists over the rows of a data set, sorted by rank, or by descending score, or as in the file.

    Equal scores stay in the order of rows. If a user's item repeats, the best is kept.

    Args:
      users, items: the ids of the data set.
      longest: lists are cut to this length, as all users' lists are padded to the longest.

    Raises:
      UserError: if none of the users, or none of the items, is in the data.
    """
    rows, notes = [], []
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


def _equal_ranks(path: Path, columns: dict[str, Any], place: Callable[[int], str]) -> list[str]:
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
        f"{shown(path)}: {many} user{'s have' if many > 1 else ' has'} a rank twice, for example user "
        f"{columns['user'][int(order[at])].as_py()!r} rank {ranks[at]} in {place(int(order[at]))}"
    ]


def _count(which: np.ndarray, what: str) -> str:
    number = int(which.sum())
    return f"{number} {what}{'s' if number > 1 else ''}"
