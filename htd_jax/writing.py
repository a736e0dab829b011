"""Files and folders that are written atomically: complete, or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not POSIX: no locks
    fcntl = None  # type: ignore[assignment]

_PARTIAL = ".partial-"


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to `path` to write a file or a folder to, which then replaces `path`.

    The content is flushed to disk before it replaces `path`, so that a power cut leaves no empty file. After an error
    the temporary path is removed; after a kill it stays, is recognised by `is_partial`, and is removed by the next
    write to `path`. Only one writer may be active at a time.

    Raises:
      OSError: if it cannot be written.
    """
    partial = path.with_name(_PARTIAL + path.name)
    remove(partial)
    try:
        yield partial
        _flush(partial)
        os.replace(partial, path)
        _flush_one(path.parent)
    finally:
        with contextlib.suppress(OSError):  # report the error that led here, not this one
            remove(partial)


def is_partial(path: Path) -> bool:
    """Returns whether this file or folder is temporary, and so incomplete if nothing writes to it."""
    return path.name.startswith(_PARTIAL)


def remove(path: Path) -> None:
    """Deletes a file or a folder if it exists. A folder is renamed first, so that no part of it stays under its name.

    Raises:
      OSError: if it cannot be deleted.
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
    """Locks a folder against other processes that call this; the lock ends with the process.

    On file systems without locks, nothing is locked.

    Raises:
      BlockingIOError: if another process holds the lock.
      OSError: if the folder cannot be opened.
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
    """Waits until a file, or a folder with all its content, is on disk."""
    if path.is_dir():
        for folder, _, names in os.walk(path):
            for name in names:
                _flush_one(Path(folder, name))
            _flush_one(Path(folder))
    else:
        _flush_one(path)


def _flush_one(path: Path) -> None:
    if os.name != "posix":  # elsewhere folders, and files opened for reading, cannot be flushed
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
