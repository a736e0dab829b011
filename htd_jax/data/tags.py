"""Tags of articles, published beside citeulike-t: a line for every tag, a count, then that many item ids."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from htd_jax.data.files import Published, find_files
from htd_jax.data.lists import CITEULIKE_T, read_users_dat
from htd_jax.errors import UserError

PUBLISHED = Published(
    CITEULIKE_T.published.name,
    CITEULIKE_T.published.url,
    {
        **CITEULIKE_T.published.sha256,
        "tag-item.dat": "e2b80fc0e023780b63c00a397a2d0934eff6dbaf8a1b918778698361dae7ce6b",
    },
)

# Data sets whose items have tags.
TAGGED = ("citeulike", "citeulike-t")


class Tags(NamedTuple):
    """Which items carry which tags, each pair once, in the order of items.

    Attributes:
      items: `[n]` int64, rows of the data set.
      tags: `[n]` int64, lines of the file from 0; a tag may be of no item of the data set.
      num_items, num_tags: how many there are, with or without a pair.
    """

    items: np.ndarray
    tags: np.ndarray
    num_items: int
    num_tags: int

    @classmethod
    def from_pairs(cls, items: np.ndarray, tags: np.ndarray, num_items: int, num_tags: int) -> "Tags":
        """Of pairs `[n]` in any order, some of them twice."""
        pairs = np.unique(np.asarray(items, np.int64) * num_tags + np.asarray(tags, np.int64))
        return cls(*np.divmod(pairs, num_tags), num_items, num_tags)


def load_tags(name: str, data_dir: Path | None = None, *, min_interactions: int | None = None) -> Tags:
    """The tags of a data set's items, by its own rows.

    citeulike numbers the items in the order in which they first stand in citeulike-t's `users.dat`, where only users
    with five items or more count; citeulike-t as `load_lists` does.

    Args:
      name: `citeulike` or `citeulike-t`.
      data_dir: where `users.dat` and `tag-item.dat` are looked for first, see `find_files`.
      min_interactions: with which citeulike-t was loaded; its usual number if None.

    Raises:
      UserError: a data set without tags, or a file that cannot be had or read.
    """
    if name not in TAGGED:
        raise UserError(f"there are no tags of the items of {name!r}, only of {' and '.join(TAGGED)}")
    of_users, of_tags = find_files(PUBLISHED, data_dir)
    users, items = read_users_dat(of_users)
    least = CITEULIKE_T.min_interactions if min_interactions is None else min_interactions
    ids, first = np.unique(items[(np.bincount(users) >= least)[users]], return_index=True)
    rows = np.arange(len(ids))
    if name == "citeulike":
        rows = np.argsort(np.argsort(first))
    return of_items(*read_tag_items(of_tags), ids, rows)


def read_tag_items(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The different pairs (line from 0, item id) in a `tag-item.dat`: `[n]` tags in ascending order, and `[n]` ids.

    Raises:
      UserError: a file that cannot be read, or a line that is not a count and that many ids.
    """
    return read_users_dat(path, "tag")


def of_items(tags: np.ndarray, ids: np.ndarray, known: np.ndarray, rows: np.ndarray) -> Tags:
    """Pairs of `[n]` tags and `[n]` item ids by rows; an id that is not known is left out.

    Args:
      tags, ids: as `read_tag_items` gives them.
      known: `[m]` ids in ascending order.
      rows: `[m]`, the row of each, a permutation of 0 .. m - 1.

    >>> of_items(np.array([0, 0, 1]), np.array([7, 9, 5]), np.array([5, 9]), np.array([1, 0])).items.tolist()
    [0, 1]
    """
    at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    found = known[at] == ids
    return Tags.from_pairs(rows[at[found]], tags[found], len(known), int(tags.max()) + 1)
