"""Data that keeps coming: the old data set and a new log as one, in which old rows keep their numbers."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from htd_jax.data.dataset import Dataset
from htd_jax.data.ids import Ids
from htd_jax.data.interactions import Interactions, Split, codes_of
from htd_jax.data.logs import NothingHeldOutError, Reading
from htd_jax.errors import UserError


class Growth(NamedTuple):
    """An old data set, and what is new in another one, over the users and items of both.

    Attributes:
      dataset: all pairs; models are trained on the new training pairs alone, its `block`.
      old: the old split. Its training part holds all training pairs, so that no item is ranked that is known now.
      new: the new pairs that are held out, with the same training part.
    """

    dataset: Dataset
    old: Split
    new: Split


def grow(old: Dataset, new: Dataset) -> Growth:
    """Returns a data set with the pairs of a new one that it does not hold yet.

    Row r of the old users and items stays row r; those that only the new data have follow, in their order there. A pair
    that the old data hold in any part is dropped from the new.

    Raises:
      UserError: if the new data hold no new training pair, or `old` has users of its `new_users`.

    >>> import htd_jax
    >>> old = htd_jax.read((["ann", "ann", "ann", "bob"], ["tea", "jam", "bun", "tea"]))
    >>> new = htd_jax.read((["cat", "cat", "cat", "ann"], ["rye", "tea", "jam", "tea"]))
    >>> grown = grow(old, new)
    >>> grown.dataset.users.values.to_pylist(), len(grown.dataset.block), len(grown.dataset.train)
    (['ann', 'bob', 'cat'], 1, 3)
    """
    if old.new_users is not None or new.new_users is not None:
        raise UserError("a model of data that are split by new-users cannot be updated; train one with another `split`")
    users, user_rows = _joined(old.users, new.users)
    items, item_rows = _joined(old.items, new.items)
    sizes = len(users), len(items)
    kept = resized(old.split, *sizes)
    known = np.concatenate([codes_of(part) for part in kept])
    parts = []
    for part in new.split:
        rows, columns = user_rows[np.asarray(part.users)], item_rows[np.asarray(part.items)]
        fresh = ~np.isin(rows * sizes[1] + columns, known)
        parts.append(Interactions.from_pairs(rows[fresh], columns[fresh], *sizes))
    block, valid, test = parts
    if not len(block):
        raise UserError(f"{new.name}: holds no new interaction to train on")
    train = joined(kept.train, block)
    if train.max_degree >= sizes[1]:
        raise UserError(f"a user has all {sizes[1]} items, which leaves none to sample as a negative")
    kept = kept._replace(train=train)
    split = Split(train, joined(kept.valid, valid), joined(kept.test, test))
    dropped = sum(map(len, new.split)) - sum(map(len, parts))
    notes = new.notes + ((f"{new.name}: {dropped:,} interactions are not new, and left out",) if dropped else ())
    for ids, rows in ((old.users, user_rows), (old.items, item_rows)):
        if len(ids) and (rows >= len(ids)).all():
            known, found = ids.values[0].as_py(), new.users if ids is old.users else new.items
            notes += (
                f"{new.name}: none of its {ids.kind}s is known; ids here are like {found.values[0].as_py()!r}, and "
                f"those of the model like {known!r}",
            )
    dataset = Dataset(split, users, items, old.name, notes, new.span, block=block)
    return Growth(dataset, kept, Split(train, valid, test))


def read_new(read: Callable[[Reading], Dataset], reading: Reading) -> Dataset:
    """Reads new interactions, of which nothing is held out if there are too few per user.

    Args:
      read: reads them as settings say.
      reading: the settings.

    Raises:
      UserError: if they cannot be read.
    """
    try:
        return read(reading)
    except NothingHeldOutError:
        dataset = read(dataclasses.replace(reading, split="none"))
        note = f"{dataset.name}: too few interactions per user to hold some out; all are trained on"
        return dataclasses.replace(dataset, notes=(*dataset.notes, note))


def joined(first: Interactions, second: Interactions) -> Interactions:
    """Returns the pairs of both, over the same users and items."""
    users, items = (np.concatenate([getattr(x, name) for x in (first, second)]) for name in ("users", "items"))
    return Interactions.from_pairs(users, items, first.num_users, first.num_items)


def resized(split: Split, num_users: int, num_items: int) -> Split:
    """Returns a split over more users and items, or over the first of them if the others have no pair."""
    return Split(*(Interactions.from_pairs(part.users, part.items, num_users, num_items) for part in split))


def _joined(old: Ids, new: Ids) -> tuple[Ids, np.ndarray]:
    """Returns the old ids and after them the new ones, and the row there of each of the new data's rows."""
    rows = old.find(new.values)
    fresh = np.flatnonzero(rows < 0)
    rows[fresh] = len(old) + np.arange(len(fresh))
    columns = [old.values, new.take(fresh)]
    if columns[0].type != columns[1].type:  # whole numbers on one side, text on the other
        columns = [column.cast(pa.string()) for column in columns]
    values = pa.concat_arrays(columns)
    return dataclasses.replace(old, values=values), rows
