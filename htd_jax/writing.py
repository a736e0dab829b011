"""Files and folders that are there whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not POSIX: no locks there
    fcntl = None  # type: ignore[assignment]

_PARTIAL = ".partial-"


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file or a folder to, which then takes its place; after an error, nothing stays.

    What takes the place is on the disk by then, so a power cut leaves no empty file under the name of a full one. What
    a kill leaves there is known by `is_partial`, and removed by the next to write to `path`. One writer at a time.

    Raises:
      OSError: it cannot be written.
    """
    partial = path.with_name(_PARTIAL + path.name)
    remove(partial)
    try:
        yield partial
        _flush(partial)
        os.replace(partial, path)
        _flush_one(path.parent)
    finally:
        with contextlib.suppress(OSError):  # the error that led here is the one to tell
            remove(partial)


def is_partial(path: Path) -> bool:
    """Whether a kill left this file or folder half-written."""
    return path.name.startswith(_PARTIAL)


def remove(path: Path) -> None:
    """Deletes a file or a folder, if it is there; of a folder that is not `is_partial`, never a part.

    Raises:
      OSError: it cannot be deleted.
    """
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    if not is_partial(path):
        partial = path.with_name(_PARTIAL + path.name)
        remove(partial)
        path = path.rename(partial)
    shutil.rmtree(path)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps other processes that ask for the same out of a folder; a kill opens it again.

    Where the file system has no locks, nobody is kept out.

    Raises:
      BlockingIOError: another process is inside.
      OSError: the folder cannot be opened.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def _flush(path: Path) -> None:
    """Waits until a file, or a folder with all that is in it, is on the disk."""
    if path.is_dir():
        for folder, _, names in os.walk(path):
            for name in names:
                _flush_one(Path(folder, name))
            _flush_one(Path(folder))
    else:
        _flush_one(path)


def _flush_one(path: Path) -> None:
    if os.name != "posix":  # a folder, or a file opened to be read, can be flushed nowhere else
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
