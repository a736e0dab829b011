"""Tags of articles, published with citeulike-t: one line per tag, a count, then that many item ids."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from htd_jax.data.lists import CITEULIKE_T, read_users_dat
from htd_jax.data.published import Published, find_files
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
    """Distinct pairs (item, tag), in the order of items.

    Attributes:
      items: `[n]` int64, rows of the data set.
      tags: `[n]` int64, lines of the file from 0.
      num_items, num_tags: counts, including items and tags without a pair.
    """

    items: np.ndarray
    tags: np.ndarray
    num_items: int
    num_tags: int

    @classmethod
    def from_pairs(cls, items: np.ndarray, tags: np.ndarray, num_items: int, num_tags: int) -> "Tags":
        """Sorts pairs `[n]`, and drops repeated ones."""
        pairs = np.unique(np.asarray(items, np.int64) * num_tags + np.asarray(tags, np.int64))
        return cls(*np.divmod(pairs, num_tags), num_items, num_tags)


def load_tags(name: str, data_dir: Path | None = None, *, min_interactions: int | None = None) -> Tags:
    """Returns the tags of a data set's items, by its rows.

    citeulike numbers items by their first occurrence in citeulike-t's `users.dat` among users with five items or more;
    citeulike-t as `load_lists` does.

    Args:
      name: `citeulike` or `citeulike-t`.
      data_dir: the folder that is searched first for `users.dat` and `tag-item.dat`, see `find_files`.
      min_interactions: the value that citeulike-t was loaded with; its default if None.

    Raises:
      UserError: if the data set has no tags, or a file is not found or cannot be read.
    """
    if name not in TAGGED:
        raise UserError(f"the items of {name!r} have no tags, only those of {' and '.join(TAGGED)}")
    users_path, tags_path = find_files(PUBLISHED, data_dir)
    users, items = read_users_dat(users_path)
    least = CITEULIKE_T.min_interactions if min_interactions is None else min_interactions
    ids, first = np.unique(items[(np.bincount(users) >= least)[users]], return_index=True)
    rows = np.arange(len(ids))
    if name == "citeulike":
        rows = np.argsort(np.argsort(first))
    return match_tags(*read_tag_items(tags_path), ids, rows)


def read_tag_items(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct pairs (line from 0, item id) in a `tag-item.dat`: `[n]` ascending tags and `[n]` ids.

    Raises:
      UserError: if the file cannot be read, or a line is not a count and that many ids.
    """
    return read_users_dat(path, "tag")


def match_tags(tags: np.ndarray, ids: np.ndarray, known: np.ndarray, rows: np.ndarray) -> Tags:
    """Replaces item ids by rows, and drops pairs of unknown ids.

    Args:
      tags, ids: `[n]` each, as `read_tag_items` returns them.
      known: `[m]` ids in ascending order.
      rows: `[m]`, the row of each, a permutation of 0 .. m - 1.

    >>> match_tags(np.array([0, 0, 1]), np.array([7, 9, 5]), np.array([5, 9]), np.array([1, 0])).items.tolist()
    [0, 1]
    """
    at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    matched = known[at] == ids
    return Tags.from_pairs(rows[at[matched]], tags[matched], len(known), int(tags.max()) + 1)
