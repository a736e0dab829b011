"""A teacher's lists from a file: rows of a user, an item and, if they are known, a score or a rank."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from htd_jax.data.columns import pick, read_file
from htd_jax.data.dataset import Ids, as_column
from htd_jax.errors import UserError, shown

NEEDED = ("user", "item")

# Places of a list that count: methods read some hundreds.
LONGEST = 1000


class RankedLists(NamedTuple):
    """Rows of lists, in the order of their file.

    Attributes:
      users, items: `[n]` ids, int64 or string.
      scores: `[n]` float64, the larger the better, or None.
      ranks: `[n]` int64, the smaller the better, or None.
      name: of the file, for messages.
    """

    users: pa.Array
    items: pa.Array
    scores: np.ndarray | None = None
    ranks: np.ndarray | None = None
    name: str = "lists"


class ListsOf(NamedTuple):
    """Lists over the rows of a data set.

    Attributes:
      items: `[num_users, k]` int32, each user's items, the best first, -1 where it has fewer.
      scores: `[num_users, k]` float32, 0 where there is no item, or None.
      notes: what a person should know of what was left out, a line each.
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
    """The lists in a file, of any format that `read_file` takes.

    Columns are found by their usual names (`user_id`, `itemId`, `score`, `rank`), or named. Text stays text: `007` is
    not 7.

    Raises:
      UserError: a file that cannot be read, is damaged or empty; a missing column; rows that lack an id, a score or a
        rank; scores that are not finite; ranks that are not whole, or two of one user that are equal. A line for each.
    """
    path = Path(path)
    named = {"user": user_column, "item": item_column, "score": score_column, "rank": rank_column}
    found = read_file(
        path, lambda names: pick(names, named, shown(path), optional=("score", "rank")), separator=separator
    )
    if not len(found.of["user"]):
        raise UserError(f"{shown(path)}: it holds no row")
    problems: list[str] = []
    columns: dict[str, Any] = {}
    for role, column in found.of.items():
        values = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        missing = values.is_null().to_numpy()
        if missing.any():
            problems.append(
                f"{shown(path)}: {_count(missing, 'row')} without {'an' if role == 'item' else 'a'} {role}, "
                f"{found.place(int(np.argmax(missing)))} for one"
            )
        if role in NEEDED:
            try:
                columns[role] = as_column(values, role)
            except UserError as error:
                problems.append(f"{shown(path)}: {error}")
            continue
        numbers, wrong, what = _numbers(values.combine_chunks(), role)
        wrong &= ~missing
        if wrong.any():
            at = int(np.argmax(wrong))
            example = shown(str(values[at].as_py())[:40])
            problems.append(f"{shown(path)}: {_count(wrong, role)} {what}, {example!r} in {found.place(at)} for one")
        columns[role] = numbers
    if not problems and "rank" in columns:
        problems += _equal_ranks(path, columns, found.place)
    if problems:
        raise UserError(*problems)
    return RankedLists(columns["user"], columns["item"], columns.get("score"), columns.get("rank"), shown(path))


def to_lists(ranked: RankedLists, users: Ids, items: Ids, *, longest: int = LONGEST) -> ListsOf:
    """Lists over the rows of a data set: by rank if there is one, else by score, the highest first, else as they stand.

    Equal scores stay in the order of rows. Of a user's rows of one item the best is kept.

    Args:
      users, items: of the data set.
      longest: what is past so many places of a list is left out, as it is held in as many places for every user.

    Raises:
      UserError: none of the users, or none of the items, is in the data.
    """
    found, notes = [], []
    for ids, column in ((users, ranked.users), (items, ranked.items)):
        coded = column.dictionary_encode()
        of_values = ids.find(coded.dictionary)
        unknown = int((of_values < 0).sum())
        if unknown == len(of_values):
            example = coded.dictionary[0].as_py() if unknown else None
            raise UserError(
                f"{ranked.name}: none of its {unknown} {ids.kind}s is among the data's {len(ids)}: they are called "
                f"like {example!r}, and the data's like {ids.values[0].as_py()!r}"
            )
        if unknown:
            example = coded.dictionary[int(np.argmax(of_values < 0))].as_py()
            notes.append(
                f"{ranked.name}: {unknown} of {len(of_values)} {ids.kind}s are not in the data and were left out, "
                f"{example!r} for one"
            )
        found.append(of_values[coded.indices.to_numpy()])
    of_users, of_items = found
    kept = np.flatnonzero((of_users >= 0) & (of_items >= 0))
    if not len(kept):
        raise UserError(f"{ranked.name}: no row has both a user and an item of the data")
    of_users, of_items = of_users[kept], of_items[kept]
    if ranked.ranks is not None:
        order = np.lexsort((ranked.ranks[kept], of_users))
    elif ranked.scores is not None:
        order = np.lexsort((-ranked.scores[kept], of_users))
    else:
        order = np.argsort(of_users, kind="stable")
    of_users, of_items, kept = of_users[order], of_items[order], kept[order]
    _, first = np.unique(of_users * len(items) + of_items, return_index=True)
    if twice := len(of_users) - len(first):
        notes.append(f"{ranked.name}: {twice} rows repeat a user's item; the best of each was kept")
    first.sort()
    of_users, of_items, kept = of_users[first], of_items[first], kept[first]
    degree = np.bincount(of_users, minlength=len(users))
    if without := int((degree == 0).sum()):
        example = users.values[int(np.argmin(degree))].as_py()
        notes.append(f"{ranked.name}: {without} of the data's {len(users)} users have no list, {example!r} for one")
    place = np.arange(len(of_users)) - (np.cumsum(degree) - degree)[of_users]
    if cut := int((place >= longest).sum()):
        notes.append(f"{ranked.name}: {cut} rows past the place {longest} of a list were left out")
        near = place < longest
        of_users, of_items, kept, place = of_users[near], of_items[near], kept[near], place[near]
    lists = np.full((len(users), min(int(degree.max()), longest)), -1, np.int32)
    lists[of_users, place] = of_items
    scores = None
    if ranked.scores is not None:
        scores = np.zeros(lists.shape, np.float32)
        scores[of_users, place] = ranked.scores[kept]
    return ListsOf(lists, scores, tuple(notes))


def _numbers(values: pa.Array, role: str) -> tuple[np.ndarray, np.ndarray, str]:
    """The numbers of a column of scores or ranks, which of them are none that can be, and what is wrong with these."""
    try:
        column = pc.cast(values, pa.float64(), safe=False)
    except pa.ArrowException:
        column = pa.array([_number(x) for x in values.to_pylist()], pa.float64())
    numbers = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
    if role == "score":
        wrong = ~(np.abs(numbers) <= np.finfo(np.float32).max)
        return numbers, wrong, "not finite or no number"
    wrong = ~((np.abs(numbers) < 2**53) & (numbers == np.round(numbers)))
    return np.where(wrong, 0, numbers).astype(np.int64), wrong, "no whole number"


def _number(value: Any) -> float:
    try:
        return float(value) if value is not None else 0.0
    except (ValueError, TypeError, OverflowError):
        return float("nan")


def _equal_ranks(path: Path, columns: dict[str, Any], place: Callable[[int], str]) -> list[str]:
    """What is wrong with ranks: a user has two different items of one."""
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
        f"{shown(path)}: {many} user{'s have' if many > 1 else ' has'} one rank twice, user "
        f"{columns['user'][int(order[at])].as_py()!r} rank {ranks[at]} in {place(int(order[at]))} for one"
    ]


def _count(which: np.ndarray, what: str) -> str:
    number = int(which.sum())
    return f"{number} {what}{'s' if number > 1 else ''}"
