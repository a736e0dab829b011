"""Data sets published as one file `users.dat` with one line per user: a count, then that many item ids."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Interval

from htd_jax.data.interactions import Split
from htd_jax.data.published import Published, find_files
from htd_jax.data.source import Source
from htd_jax.data.splits import split_pairs
from htd_jax.errors import UserError, reading, shown


class UserLists(NamedTuple):
    """A published `users.dat`, and the default minimum of items per user."""

    published: Published
    min_interactions: int


def _users_dat(name: str, url: str, sha256: str, min_interactions: int) -> UserLists:
    url = f"https://raw.githubusercontent.com/{url}/"
    return UserLists(Published(name, url, {"users.dat": sha256}), min_interactions)


CITEULIKE_T = _users_dat(
    "citeulike-t",
    "js05212/citeulike-t/4f103c6ea0fe407b23be230837b65517e613c34a",
    "02d5d429b2c0362e0ed79f6ef204666b4092563d21493abf4dfb521e8a7078bf",
    min_interactions=5,
)
FOURSQUARE = _users_dat(
    "foursquare",
    "hieunm44/hyperkdma/2b4c38b881549d3b09e551a2ba77c695e22cf55d/datasets/Foursquare",
    "808c42ee414bdef5990e4f61143e2e02f1d266c59b303f37b4050a99d2536c78",
    min_interactions=20,
)


def load_lists(
    source: UserLists,
    data_dir: Path | None = None,
    *,
    min_interactions: int | None = None,
    split: str = "leave-one-out",
    split_seed: int = 0,
) -> Split:
    """Reads a `users.dat`: drops users with few items, renumbers ids from 0, and splits at random.

    Args:
      source: the data set.
      data_dir: the folder that is searched first, see `find_files`.
      min_interactions: users with fewer distinct items are dropped; the source's default if None.
      split, split_seed: see `split_pairs`.

    Raises:
      UserError: if the file is not found or cannot be read, a setting is invalid, or no user is left.
    """
    setting = f"`{source.published.name}.min_interactions`"
    least = source.min_interactions if min_interactions is None else min_interactions
    if least < 3:
        raise UserError(f"{setting} must be at least 3, one each for train, valid and test, not {least}")
    (path,) = find_files(source.published, data_dir)
    users, items = read_users_dat(path)
    kept = (np.bincount(users) >= least)[users]
    if not kept.any():
        raise UserError(f"{setting} must be lower: no user of {source.published.name} has {least} items")
    users, items = (np.unique(ids[kept], return_inverse=True)[1] for ids in (users, items))
    return split_pairs(users, items, split=split, seed=split_seed)


def read_users_dat(path: Path, owner: str = "user") -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct pairs (line from 0, item) in the file: `[n]` users in ascending order, and `[n]` items.

    Args:
      owner: what a line stands for, for messages.

    Raises:
      UserError: if the file cannot be read, or a line is not a count and that many ids.
    """
    with reading(path, "a text file"):
        lines = path.read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if wrong := next((word for word in words if not word.isdigit() or len(word) > 9), None):
            text = wrong[:20].decode("ascii", "replace")
            raise UserError(f"{shown(path)}: line {number}: {text!r} is not a whole number from 0 to 999999999")
        if not words or int(words[0]) != len(words) - 1:
            says = f"its count says {int(words[0])} items, but {len(words) - 1} follow" if words else "it is empty"
            raise UserError(f"{shown(path)}: line {number}: {says}")
        rows.append(np.unique(np.array(words[1:], np.int64)))
    if not any(map(len, rows)):
        raise UserError(f"{shown(path)}: it holds no item of any {owner}")
    return np.repeat(np.arange(len(rows)), [len(row) for row in rows]), np.concatenate(rows)


@dataclasses.dataclass(frozen=True)
class CiteULikeT(Source):
    """Users of CiteULike and the articles in their libraries, split by this package."""

    min_interactions: Annotated[int, Ge(3)] = CITEULIKE_T.min_interactions
    """Drops users with fewer distinct items."""
    split: Literal["leave-one-out", "ratio"] = "leave-one-out"
    """What validation and test each hold out: one item per user, or a fifth of each user's items."""
    split_seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0
    """Seed of the split. It is independent of the run's seed, so that runs are compared on one split."""

    def load(self, data_dir: Path | None = None) -> Split:
        return load_lists(CITEULIKE_T, data_dir, **dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Foursquare(CiteULikeT):
    """Users of Foursquare and the places they visited, split by this package."""

    min_interactions: Annotated[int, Ge(3)] = FOURSQUARE.min_interactions
    """Drops users with fewer distinct items."""

    def load(self, data_dir: Path | None = None) -> Split:
        return load_lists(FOURSQUARE, data_dir, **dataclasses.asdict(self))
