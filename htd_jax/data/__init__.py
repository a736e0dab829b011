"""Data sets as `Split` values, by name, and what is sampled from them."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from htd_jax.data.citeulike import find_citeulike, load_citeulike
from htd_jax.data.interactions import Interactions, Split, make_split
from htd_jax.data.sampling import distinct, shuffle, unseen_items
from htd_jax.data.synthetic import make_synthetic
from htd_jax.errors import UserError

# name -> (data_dir) -> Split. The synthetic set is the same in every run: a run's seed is not the data's.
SOURCES: dict[str, Callable[[Path | None], Split]] = {
    "citeulike": load_citeulike,
    "synthetic": lambda data_dir: make_synthetic(),
}


def load(name: str, data_dir: Path | None = None) -> Split:
    """The data set called `name`.

    Raises:
      UserError: an unknown name, or a file that cannot be had or read.
    """
    if name not in SOURCES:
        raise UserError(f"unknown dataset {name!r}; known datasets: {', '.join(SOURCES)}")
    return SOURCES[name](data_dir)


def fingerprint(split: Split) -> str:
    """A short hash of the split's contents: two runs with the same one have seen the same data."""
    digest = hashlib.sha256()
    for part in split:
        digest.update(np.asarray([part.num_users, part.num_items], np.int64).tobytes())
        digest.update(np.asarray(part.users).tobytes() + np.asarray(part.items).tobytes())
    return digest.hexdigest()[:16]


__all__ = [
    "SOURCES",
    "Interactions",
    "Split",
    "distinct",
    "find_citeulike",
    "fingerprint",
    "load",
    "load_citeulike",
    "make_split",
    "make_synthetic",
    "shuffle",
    "unseen_items",
]
