"""Data sets as `Split` values, by name, and what is sampled from them."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from htd_jax.data.citeulike import find_citeulike, load_citeulike
from htd_jax.data.interactions import Interactions, Split, make_split
from htd_jax.data.lists import CITEULIKE_T, FOURSQUARE, UserLists, load_lists
from htd_jax.data.sampling import distinct, shuffle, unseen_items
from htd_jax.data.splits import SPLITS, load_split, save_split, split_pairs
from htd_jax.data.synthetic import make_synthetic
from htd_jax.errors import UserError

# name -> a file to be split, or (data_dir) -> Split where the split is fixed. The synthetic set is the same in every
# run: a run's seed is not the data's.
SOURCES: dict[str, UserLists | Callable[[Path | None], Split]] = {
    "citeulike": load_citeulike,
    "citeulike-t": CITEULIKE_T,
    "foursquare": FOURSQUARE,
    "synthetic": lambda data_dir: make_synthetic(),
}


def load(
    name: str,
    data_dir: Path | None = None,
    *,
    min_interactions: int | None = None,
    split: str = "leave-one-out",
    split_seed: int = 0,
) -> Split:
    """The data set called `name`.

    Args:
      name: one of `SOURCES`.
      data_dir: the folder that its files are looked for in first.
      min_interactions, split, split_seed: see `load_lists`; to be left alone where the split is fixed.

    Raises:
      UserError: an unknown name, a file that cannot be had or read, or a choice that the data set does not have.
    """
    if name not in SOURCES:
        raise UserError(f"unknown dataset {name!r}; known datasets: {', '.join(SOURCES)}")
    source = SOURCES[name]
    if isinstance(source, UserLists):
        return load_lists(source, data_dir, min_interactions=min_interactions, split=split, split_seed=split_seed)
    if (min_interactions, split, split_seed) != (None, "leave-one-out", 0):
        raise UserError(f"{name} has a fixed split, leave-one-out: it takes no other, no seed and no min-interactions")
    return source(data_dir)


def fingerprint(split: Split) -> str:
    """A short hash of the split's contents: two runs with the same one have seen the same data."""
    digest = hashlib.sha256()
    for part in split:
        digest.update(np.asarray([part.num_users, part.num_items], np.int64).tobytes())
        digest.update(np.asarray(part.users).tobytes() + np.asarray(part.items).tobytes())
    return digest.hexdigest()[:16]


__all__ = [
    "SOURCES",
    "SPLITS",
    "Interactions",
    "Split",
    "distinct",
    "find_citeulike",
    "fingerprint",
    "load",
    "load_citeulike",
    "load_lists",
    "load_split",
    "make_split",
    "make_synthetic",
    "save_split",
    "shuffle",
    "split_pairs",
    "unseen_items",
]
