"""Writes the training, validation and test parts of a data set to files in your own ids, so that a teacher of your own
is trained on the training part alone.

htd-jax train --split-files FOLDER, and htd-jax evaluate, then use this very split.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from htd_jax.command.flags import parse_with_data
from htd_jax.data import check_split_target, fingerprint, write_split
from htd_jax.errors import as_flags


@dataclasses.dataclass(frozen=True)
class Options:
    """Writes train, valid and test (user, item), users and items (every id, in the order of the rows of tables) and
    split.json."""

    to: Path
    """Folder to write: new, empty, or an earlier split, which is replaced."""
    format: Literal["parquet", "csv"] = "parquet"
    """Format of the files."""


def split(arguments: Sequence[str], prog: str = "htd-jax split") -> None:
    options, request = parse_with_data(Options, arguments, prog=prog, description=__doc__ or "")
    check_split_target(options.to)
    data = request.load_dataset()
    for note in data.notes:
        print(f"note: {as_flags(note)}")
    write_split(options.to, data, options.format)
    for name, part in data.split._asdict().items():
        print(f"{options.to / name}.{options.format}: {len(part):,} interactions")
    print(f"users {len(data.users):,}, items {len(data.items):,}, fingerprint {fingerprint(data)}")
