"""Files and folders that are there whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_PARTIAL = ".partial-"


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file or a folder to, which then takes its place; after an error, nothing stays.

    What a kill leaves there is known by `is_partial`, and removed by the next to write to `path`. One writer at a time.
    """
    partial = path.with_name(_PARTIAL + path.name)
    _remove(partial)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        _remove(partial)


def is_partial(path: Path) -> bool:
    """Whether a kill left this file or folder half-written."""
    return path.name.startswith(_PARTIAL)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
