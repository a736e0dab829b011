"""Files and folders that are written atomically: complete, or not at all."""

import contextlib
import ctypes
import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from htd_jax.errors import UserError, shown

try:
    import fcntl
except ImportError:  # not POSIX: no locks
    fcntl = None  # type: ignore[assignment]

_PARTIAL = ".partial-"
_BEFORE = "before"
_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of Linux


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write a file or a folder to, which then replaces `path`.

    At every moment, also after a kill or a power cut, `path` is what it was or what it becomes: the content is flushed
    to disk first, and a folder changes places with the earlier one in one step, where the system can do that (Linux, on
    local disks); elsewhere the next write restores an earlier folder that a kill left aside. A link is followed, and
    stays. Several may write to one path: each has a temporary path of its own, and the last to end wins.

    The temporary path lies in a temporary folder next to the target. After an error that folder is removed; after a
    kill it stays, is recognised by `is_partial`, and is removed by the next write to any path of the same folder.

    Raises:
      OSError: if it cannot be written.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and stat.S_IFMT(path.stat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
        raise OSError(errno.ENOTSUP, "is a device or a pipe, which a file would replace", str(path))
    with _room(path.parent) as room:
        partial = room / path.name
        yield partial
        _flush(partial)
        _replace(partial, path, room)
        _flush_one(path.parent)


def is_partial(path: Path) -> bool:
    """Returns whether this file or folder is temporary, and so incomplete if nothing writes to it."""
    return path.name.startswith(_PARTIAL)


def check_free(folder: Path, marker: str, is_own: Callable[[str], bool]) -> None:
    """Checks that a folder may be written as a whole: it is new, empty, or an earlier one of its kind.

    Args:
      folder: where to.
      marker: the file that tells an earlier folder of this kind, which is replaced, from another.
      is_own: whether a folder of this kind holds a file of this name.

    Raises:
      UserError: if the folder holds other files, or the path is unusable.
    """
    try:
        folder = Path(os.path.realpath(folder))
        if folder.is_dir():
            replaced = (folder / marker).is_file()
            others = [path for path in folder.iterdir() if not is_partial(path)]
            others = [path for path in others if not (replaced and is_own(path.name))]
            if others:
                other = shown(min(others).name)
                raise UserError(f"{shown(folder)}: holds something else, {other}; name a new folder, or empty this one")
        elif os.path.lexists(folder):
            raise UserError(f"{shown(folder)}: is not a folder; name another")
    except OSError as error:
        raise UserError(f"{shown(folder)}: cannot be used ({error.strerror}); name another") from None


def remove(path: Path) -> None:
    """Deletes a file or a folder if it exists. A folder is renamed first, so that no part of it stays under its name.

    Raises:
      OSError: if it cannot be deleted.
    """
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    with _room(path.parent) as room:
        path.rename(room / path.name)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Locks a folder against other processes that call this; the lock ends with the process.

    On file systems without locks, nothing is locked.

    Raises:
      BlockingIOError: if another process holds the lock.
      OSError: if the folder cannot be opened.
    """
    with _lock(folder):
        yield


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Locks a folder, and yields whether the file system has locks."""
    if fcntl is None:
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        locked = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            locked = False
        yield locked
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _room(parent: Path) -> Iterator[Path]:
    """Yields a new temporary folder in `parent`, locked while it is used; removes those that dead processes left."""
    clean(parent)
    with contextlib.ExitStack() as stack:
        while True:
            room = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=parent))
            stack.callback(shutil.rmtree, room, ignore_errors=True)
            try:
                stack.enter_context(_lock(room))
                room.stat()
                break
            except (BlockingIOError, FileNotFoundError):  # another process took it for one that is left
                continue
        yield room


def clean(parent: Path) -> None:
    """Removes the temporary folders of dead processes, and restores an earlier folder that one of them left aside.

    Nothing is raised, because what comes next does not need it.
    """
    with contextlib.suppress(OSError):
        for room in _folders(parent):
            if re.fullmatch(r"\.partial-\w{8}", room.name):
                with contextlib.suppress(OSError), _lock(room) as locked:
                    for aside in _folders(room) if locked else ():
                        for before in _folders(aside) if aside.name == _BEFORE else ():
                            if not os.path.lexists(parent / before.name):
                                before.rename(parent / before.name)
                    if locked:
                        shutil.rmtree(room)


def _folders(parent: Path) -> list[Path]:
    """Returns the folders in a folder, without links, which may lead anywhere."""
    with os.scandir(parent) as entries:
        return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]


def _replace(partial: Path, path: Path, room: Path) -> None:
    """Moves a file or a folder to `path`; what was there may end up in the temporary folder `room`."""
    if not (partial.is_dir() and path.is_dir()):
        os.replace(partial, path)
    elif not _exchange(partial, path):
        before = room / _BEFORE / path.name
        before.parent.mkdir()
        path.rename(before)
        try:
            os.replace(partial, path)
        except BaseException:
            before.rename(path)
            raise


def _exchange(first: Path, second: Path) -> bool:
    """Lets two folders change places in one step, and returns whether the system can do so."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # not Linux
        return False
    return rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0


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
