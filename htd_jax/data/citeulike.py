"""The CiteULike split of the topology distillation paper: 5,219 users, 25,181 items."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from htd_jax.data.interactions import Split, make_split
from htd_jax.data.published import Published, find_files
from htd_jax.data.source import Source
from htd_jax.errors import UserError, reading, shown

PUBLISHED = Published(
    "citeulike",
    "https://raw.githubusercontent.com/SeongKu-Kang/Topology_Distillation_KDD21/"
    "44a694a724d9a483249a77874980ea05450b35fa/dataset/",
    {
        "Train": "4ff316eb275346131c38b218f281d944552c1de61d7bf7008134ba82262bf16b",
        "Valid": "9f7920c83158f69c69e5887b1a01f7346087f3690fb54e8930861ba0765b93b9",
        "Test": "b1375faa9e1fcccf7f8e481d9e350c11604be41f330b3fd4c663576ce71175c5",
    },
)


@dataclasses.dataclass(frozen=True)
class CiteULike(Source):
    """The paper's split of CiteULike, leave-one-out: 5,219 users, 25,181 items."""

    def load(self, data_dir: Path | None = None) -> Split:
        return load_citeulike(data_dir)


def load_citeulike(data_dir: Path | None = None) -> Split:
    """Returns the published split: one item per user is held out for validation, one for test.

    Args:
      data_dir: the folder that is searched first for the three files, see `find_files`.

    Raises:
      UserError: if a file is not found, or is not the published one.
    """
    train, valid, test = (read_numbers(path) for path in find_citeulike(data_dir))
    pairs = lambda held_out: (np.array(list(held_out)), np.array(list(held_out.values())))
    users = np.repeat(np.array(list(train)), [len(items) for items in train.values()])
    items = np.concatenate([list(items) for items in train.values()])
    parts = [(users, items), pairs(valid), pairs(test)]
    num_users, num_items = (1 + max(int(part[i].max()) for part in parts) for i in (0, 1))
    return make_split(parts[0], parts[1], parts[2], num_users, num_items)


def find_citeulike(data_dir: Path | None) -> list[Path]:
    """Returns the paths of Train, Valid and Test, see `find_files`."""
    return find_files(PUBLISHED, data_dir)


class _Numbers(pickle.Unpickler):
    """Unpickler of containers and numbers, which imports no class and no function."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to an object outside itself")


def read_numbers(path: Path) -> dict[int, Any]:
    """Reads a pickled dict of ints, or of dicts of ints.

    Raises:
      UserError: if the file is damaged, or holds anything else.
    """

    def is_numbers(table: Any, depth: int) -> bool:
        return type(table) is dict and all(
            type(key) is int and (type(value) is int or (depth > 1 and is_numbers(value, depth - 1)))
            for key, value in table.items()
        )

    with reading(path, "a pickle of dicts and ints"):
        with open(path, "rb") as file:
            table: dict[int, Any] = _Numbers(file).load()
        if not table or not is_numbers(table, 2):
            raise UserError(f"{shown(path)}: not a pickle of dicts and ints")
    return table
