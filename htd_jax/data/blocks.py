"""Interactions that arrive in blocks: splits whose users and items grow."""

import dataclasses
from pathlib import Path

import numpy as np

from htd_jax.data.columns import is_text, read_file, stem
from htd_jax.data.dataset import Dataset
from htd_jax.data.growth import resized
from htd_jax.data.interactions import Interactions, Split
from htd_jax.data.logs import Reading, chooser, distinct_pairs, make_log, take_rows
from htd_jax.data.splits import TEST, TRAIN, VALID, deal, in_first_parts, read_split
from htd_jax.errors import UserError, shown

# The share of a block's interactions of each user in each of validation and test, where a log is cut into blocks.
HELD_OUT = 0.1


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Interactions in blocks.

    Attributes:
      name: of the data.
      splits: the parts of each block, over the users and items known after it.
    """

    name: str
    splits: tuple[Split, ...]

    def sizes(self, k: int) -> tuple[int, int]:
        """Returns the numbers of users and items after block k."""
        return self.splits[k].train.num_users, self.splits[k].train.num_items

    def part(self, i: int, k: int) -> Split:
        """Returns block i over the users and items known after block k."""
        return resized(self.splits[i], *self.sizes(k))

    def dataset(self, k: int) -> Dataset:
        """Returns what is known after block k, of which a model learns block k alone; its held-out items are those of
        block k."""
        split = self.splits[k]
        known = self.known(k)
        data = Dataset.from_split(split._replace(train=known), self.name)
        return data if k == 0 else dataclasses.replace(data, block=split.train)

    def whole(self, k: int) -> Dataset:
        """Returns all interactions up to block k as one data set; a pair that comes again in a later block stays in the
        first part that has it."""
        parts = in_first_parts([self._pairs(name, k) for name in Split._fields])
        return Dataset.from_split(Split(*(Interactions.from_pairs(*part, *self.sizes(k)) for part in parts)), self.name)

    def known(self, k: int) -> Interactions:
        """Returns the training interactions up to block k."""
        users, items = self._pairs("train", k).T
        return Interactions.from_pairs(users, items, *self.sizes(k))

    def _pairs(self, name: str, k: int) -> np.ndarray:
        """Returns the pairs `[n, 2]` of a part, of all blocks up to k."""
        own = (getattr(split, name) for split in self.splits[: k + 1])
        return np.concatenate([np.stack([part.users, part.items], 1) for part in own])


def read_blocks(folder: Path) -> Blocks:
    """Reads the splits `block-0.npz`, `block-1.npz`, ... of a folder, in which ids are row numbers that grow.

    A pair that stands in several parts of one block stays in the first of train, validation and test; a block may
    repeat a pair of an earlier one.

    Raises:
      UserError: if there are less than two, or one cannot be read.
    """
    paths = sorted(folder.glob("block-*.npz"), key=lambda path: int(path.stem.removeprefix("block-") or 0))
    if len(paths) < 2:
        raise UserError(f"{shown(folder)}: a study of blocks needs block-0.npz, block-1.npz and so on")
    splits, sizes = [], [0, 0]
    for path in paths:
        split, _ = read_split(path, keep_first=True)
        for axis, name in enumerate(("users", "items")):
            largest = max(int(np.asarray(getattr(part, name)).max(initial=-1)) for part in split)
            sizes[axis] = max(sizes[axis], largest + 1)
        splits.append(resized(split, *sizes))
    return Blocks(folder.resolve().name, tuple(splits))


def cut_log(path: Path, count: int, reading: Reading | None = None, *, base: float = 0.5) -> Blocks:
    """Reads a log with times as a first block of a share of its interactions, and `count` later ones of equal size.

    A tenth of each user's interactions in a block, rounded, is held out for each of validation and test. Users and
    items are numbered in the order of their first block.

    Args:
      path: see `htd_jax.data.read_log`.
      count: at least 1.
      reading: columns and filters; the minima and the split are not used.
      base: the share of the first block, over 0 and under 1.

    Raises:
      UserError: if the file is invalid, or a block holds no interaction.
    """
    reading = dataclasses.replace((reading or Reading()).filled(), split="time")
    how = {name: getattr(reading, name) for name in ("separator", "header", "quoting", "skip_bad_rows")}
    columns = read_file(path, chooser(reading, shown(path), is_text(path)), **how)
    log = make_log(columns, reading, shown(path))
    log = take_rows(log, distinct_pairs(log, np.zeros(len(log.users), np.int8)))
    assert log.times is not None
    cuts = np.quantile(log.times, base + (1 - base) * np.arange(count) / count, method="lower")
    number = np.searchsorted(cuts, log.times, side="left")
    users, items = (_by_block(ids, number) for ids in (log.users, log.items))
    splits = []
    for k in range(count + 1):
        sizes = [int(ids[number <= k].max(initial=-1)) + 1 for ids in (users, items)]
        own = users[number == k], items[number == k]
        if not len(own[0]):
            raise UserError(f"{shown(path)}: block {k} of {count} holds no interaction; set fewer `cuts`")
        parts = deal(own[0], "ratio", share=HELD_OUT)
        pairs = ((own[0][parts == part], own[1][parts == part]) for part in (TRAIN, VALID, TEST))
        splits.append(Split(*(Interactions.from_pairs(*pair, *sizes) for pair in pairs)))
        if not len(splits[-1].test):
            raise UserError(f"{shown(path)}: block {k} of {count} has too few interactions per user; set fewer `cuts`")
    return Blocks(stem(path), tuple(splits))


def _by_block(ids: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Returns ids `[n]` numbered anew, in the order of the first block that each is in, and then of their numbers."""
    known, place = np.unique(ids, return_inverse=True)
    first = np.full(len(known), number.max() + 1)
    np.minimum.at(first, place, number)
    order = np.argsort(first, kind="stable")
    renumbered = np.empty(len(known), np.int64)
    renumbered[order] = np.arange(len(known))
    return renumbered[place]
