"""A data set in a folder: `split.npz`, and the ids of its rows in `users.parquet` and `items.parquet`."""

import dataclasses
from pathlib import Path

from htd_jax.data.dataset import Dataset
from htd_jax.data.ids import read_ids, write_ids
from htd_jax.data.splits import load_new_users, read_split, save_split
from htd_jax.errors import UserError, shown

SPLIT = "split.npz"


def save_dataset(folder: Path, dataset: Dataset) -> None:
    """Writes the three files, unless they exist. The split is written last: if it exists, so do the others.

    Raises:
      OSError, UserError: if a file cannot be written.
    """
    if (folder / SPLIT).exists():
        return
    for ids in (dataset.users, dataset.items):
        write_ids(folder / f"{ids.kind}s.parquet", ids)
    save_split(folder / SPLIT, dataset.split, dataset.new_users)


def load_dataset(path: Path, name: str, *, keep_first: bool = False) -> Dataset:
    """Reads a split, and the ids in the files next to it; without these, ids are row numbers.

    Args:
      path: the split.
      name: the data set's name.
      keep_first: see `read_split`; a note says how many pairs are dropped.

    Raises:
      UserError: if a file cannot be read, is damaged, or does not match the others.
    """
    split, repeated = read_split(path, keep_first=keep_first)
    dataset = Dataset.from_split(split, name)
    if repeated:
        note = f"{shown(path)}: {repeated:,} repeated pairs dropped; one in several parts stays in the first of them"
        dataset = dataclasses.replace(dataset, notes=(note,))
    dataset = dataclasses.replace(dataset, new_users=load_new_users(path, len(dataset.users)))
    files = {ids.kind: path.parent / f"{ids.kind}s.parquet" for ids in (dataset.users, dataset.items)}
    if not all(file.is_file() for file in files.values()):
        return dataset
    users, items = (read_ids(file, kind) for kind, file in files.items())
    for ids, size in ((users, len(dataset.users)), (items, len(dataset.items))):
        if len(ids) != size:
            raise UserError(f"{shown(files[ids.kind])}: {len(ids)} ids, and {path.name} has {size} {ids.kind}s")
    return dataclasses.replace(dataset, users=users, items=items)
