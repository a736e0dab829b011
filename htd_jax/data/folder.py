"""A data set in a run's folder: `split.npz`, and `users.parquet` and `items.parquet`, what their rows are called."""

import dataclasses
from pathlib import Path

from htd_jax.data.dataset import Dataset, read_ids, write_ids
from htd_jax.data.splits import load_split, save_split
from htd_jax.errors import UserError, shown

SPLIT = "split.npz"


def save_dataset(folder: Path, dataset: Dataset) -> None:
    """Writes the three files, unless they are there: the split comes last, so where it is the others are too.

    Raises:
      OSError, UserError: they cannot be written.
    """
    if (folder / SPLIT).exists():
        return
    for ids in (dataset.users, dataset.items):
        write_ids(folder / f"{ids.kind}s.parquet", ids)
    save_split(folder / SPLIT, dataset.split)


def load_dataset(path: Path, name: str) -> Dataset:
    """A split in a file, and what the files beside it say of ids; without these, rows are called by their numbers.

    Raises:
      UserError: a file that cannot be read, is damaged, or does not fit the others.
    """
    dataset = Dataset.of_split(load_split(path), name)
    files = {ids.kind: path.parent / f"{ids.kind}s.parquet" for ids in (dataset.users, dataset.items)}
    if not all(file.is_file() for file in files.values()):
        return dataset
    users, items = (read_ids(file, kind) for kind, file in files.items())
    for found, size in ((users, len(dataset.users)), (items, len(dataset.items))):
        if len(found) != size:
            raise UserError(f"{shown(files[found.kind])}: {len(found)} ids, and {path.name} has {size} {found.kind}s")
    return dataclasses.replace(dataset, users=users, items=items)
