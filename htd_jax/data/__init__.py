"""Data sets as `Split` values, by name, and what is sampled from them.

A data set is one file: its settings, with a method `load(data_dir) -> Split`, which a line here makes known.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from htd_jax.data.citeulike import CiteULike, find_citeulike, load_citeulike
from htd_jax.data.dataset import Dataset, Ids, read_ids, write_ids
from htd_jax.data.interactions import Interactions, Split, make_split
from htd_jax.data.lists import CITEULIKE_T, FOURSQUARE, CiteULikeT, Foursquare, UserLists, load_lists
from htd_jax.data.sampling import distinct, nth_unseen, seen_before, shuffle, unseen_items
from htd_jax.data.splits import SPLITS, load_split, save_split, split_pairs
from htd_jax.data.synthetic import Synthetic, make_synthetic
from htd_jax.settings import Registry, check, override

SOURCES = Registry(
    "dataset",
    {"citeulike": CiteULike, "citeulike-t": CiteULikeT, "foursquare": Foursquare, "synthetic": Synthetic},
    function="load",
)
register = SOURCES.register


def load(name: str, data_dir: Path | None = None, **settings: Any) -> Split:
    """The data set called `name`.

    Args:
      name: one of `SOURCES`.
      data_dir: the folder that its files are looked for in first.
      settings: the data set's own, see its class: `data.load("citeulike-t", split="ratio")`.

    Raises:
      UserError: an unknown name, a value that cannot be, or a file that cannot be had or read.
      TypeError: a setting that the data set does not have.
    """
    source = override(SOURCES[name](), **settings)
    check(source, f"{name}.")
    split: Split = source.load(data_dir)
    return split


def fingerprint(split: Split) -> str:
    """A short hash of the split's contents: two runs with the same one have seen the same data."""
    digest = hashlib.sha256()
    for part in split:
        digest.update(np.asarray([part.num_users, part.num_items], np.int64).tobytes())
        digest.update(np.asarray(part.users).tobytes() + np.asarray(part.items).tobytes())
    return digest.hexdigest()[:16]


__all__ = [
    "CITEULIKE_T",
    "FOURSQUARE",
    "SOURCES",
    "SPLITS",
    "CiteULike",
    "CiteULikeT",
    "Dataset",
    "Foursquare",
    "Ids",
    "Interactions",
    "Split",
    "Synthetic",
    "UserLists",
    "distinct",
    "find_citeulike",
    "fingerprint",
    "load",
    "load_citeulike",
    "load_lists",
    "load_split",
    "make_split",
    "make_synthetic",
    "nth_unseen",
    "read_ids",
    "register",
    "save_split",
    "seen_before",
    "shuffle",
    "split_pairs",
    "unseen_items",
    "write_ids",
]
