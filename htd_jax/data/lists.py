"""Data sets published as one file `users.dat`, a line for every user: a count, then that many item ids."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Interval

from htd_jax.data.files import Published, find_files
from htd_jax.data.interactions import Split
from htd_jax.data.source import Source
from htd_jax.data.splits import split_pairs
from htd_jax.errors import UserError, shown


class UserLists(NamedTuple):
    """A published `users.dat`, and the fewest items with which a user is usually kept."""

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
    """The data set of one `users.dat`: users with few items dropped, ids renumbered from 0, split at random.

    Args:
      source: which.
      data_dir: where the file is looked for first, see `find_files`.
      min_interactions: users with fewer different items are dropped; the source's own number if None.
      split, split_seed: see `split_pairs`.

    Raises:
      UserError: a file that cannot be had or read, a choice that cannot be, or one that leaves nobody.
    """
    least = source.min_interactions if min_interactions is None else min_interactions
    if least < 3:
        raise UserError(f"--min-interactions: must be at least 3, one each for train, valid and test, not {least}")
    (path,) = find_files(source.published, data_dir)
    users, items = read_users_dat(path)
    kept = (np.bincount(users) >= least)[users]
    if not kept.any():
        raise UserError(f"--min-interactions: no user of {source.published.name} has {least} items")
    users, items = (np.unique(ids[kept], return_inverse=True)[1] for ids in (users, items))
    return split_pairs(users, items, split=split, seed=split_seed)


def read_users_dat(path: Path, of: str = "user") -> tuple[np.ndarray, np.ndarray]:
    """The different pairs (line from 0, item) in the file: `[n]` users in ascending order, and `[n]` items.

    Args:
      of: what a line is of, for messages.

    Raises:
      UserError: a file that cannot be read, or a line that is not a count and that many ids.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read ({error.strerror})") from None
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
        raise UserError(f"{shown(path)}: it holds no item of any {of}")
    return np.repeat(np.arange(len(rows)), [len(row) for row in rows]), np.concatenate(rows)


@dataclasses.dataclass(frozen=True)
class CiteULikeT(Source):
    """Users of CiteULike and the articles in their libraries, split here."""

    min_interactions: Annotated[int, Ge(3)] = CITEULIKE_T.min_interactions
    """Users with fewer are dropped."""
    split: Literal["leave-one-out", "ratio"] = "leave-one-out"
    """What is held out for each of validation and test: one item a user, or a fifth of its items."""
    split_seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0
    """Of the split. The runs of one comparison share it, whatever their --seed."""

    def load(self, data_dir: Path | None = None) -> Split:
        return load_lists(CITEULIKE_T, data_dir, **dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Foursquare(CiteULikeT):
    """Users of Foursquare and the places they have been to, split here."""

    min_interactions: Annotated[int, Ge(3)] = FOURSQUARE.min_interactions
    """Users with fewer are dropped."""

    def load(self, data_dir: Path | None = None) -> Split:
        return load_lists(FOURSQUARE, data_dir, **dataclasses.asdict(self))
