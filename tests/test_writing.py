"""Files and folders that are there whole or not at all."""

import os
import signal
import subprocess
import sys

import pytest

from htd_jax import writing
from htd_jax.writing import is_partial, remove, whole


def test_a_file_takes_its_place_at_the_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole(path) as partial:
        partial.write_text("new")
        assert partial.parent.parent == tmp_path and is_partial(partial.parent)
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
    assert not is_partial(path)


@pytest.mark.parametrize("write", [lambda path: path.write_text("half"), lambda path: (path / "b").mkdir(parents=True)])
def test_after_an_error_what_was_there_is_there(tmp_path, write):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole(path) as partial:
        write(partial)
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def write_folder(path, text):
    with whole(path) as partial:
        partial.mkdir()
        for name in "ab":
            (partial / name).write_text(text)


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


# Replaces a folder, and is killed before its n-th call of the system.
KILLED = """
import os, runpy, shutil, signal, sys
from pathlib import Path
writing = runpy.run_path(sys.argv[1])
path, left = Path(sys.argv[2]), int(sys.argv[3])
if sys.argv[4] == "no exchange":
    writing["_replace"].__globals__["_exchange"] = lambda first, second: False
def killing(real):
    def call(*args, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    return call
for name in ("mkdir", "replace", "rename", "fsync", "rmdir", "unlink", "open", "close"):
    setattr(os, name, killing(getattr(os, name)))
with writing["whole"](path) as partial:
    partial.mkdir()
    for name in "ab":
        (partial / name).write_text("new")
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["exchange", "no exchange"])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path, way):
    path, old, new = tmp_path / "folder", {"a": "old", "b": "old"}, {"a": "new", "b": "new"}
    seen = set()
    for number in range(100):
        write_folder(path, "old")
        args = [sys.executable, "-c", KILLED, writing.__file__, str(path), str(number), way]
        status = subprocess.run(args, timeout=60).returncode
        if way == "exchange":
            assert contents(path) in (old, new)
        with whole(tmp_path / "other") as partial:  # the next write of any name removes what is left
            partial.write_text("")
        assert contents(path) in (old, new)
        assert {child.name for child in tmp_path.iterdir()} == {"folder", "other"}
        seen.add(contents(path)["a"])
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert status == 0 and number > 10 and seen == {"old", "new"}


def test_two_writers_of_a_name_do_not_mix(tmp_path):
    path = tmp_path / "a.txt"
    with whole(path) as slow:
        slow.write_text("slow, ")
        with whole(path) as fast:
            fast.write_text("fast")
        assert path.read_text() == "fast"
        with slow.open("a") as file:
            file.write("and whole")
    assert path.read_text() == "slow, and whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_followed(tmp_path):
    (tmp_path / "there").mkdir()
    for name, write in {"file": lambda path: path.write_text("new"), "folder": lambda path: path.mkdir()}.items():
        link = tmp_path / name
        link.symlink_to(tmp_path / "there" / name)
        for _ in range(2):  # the first time it leads nowhere yet
            with whole(link) as partial:
                write(partial)
            assert link.is_symlink() and (tmp_path / "there" / name).exists()
    assert {path.name for path in (tmp_path / "there").iterdir()} == {"file", "folder"}


def test_a_pipe_or_a_device_is_not_replaced(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OSError, match="is a device or a pipe"), whole(path):
        pass
    assert path.is_fifo()


def test_what_only_looks_left_is_not_followed(tmp_path):
    """A temporary folder that came with somebody's files leads nowhere else."""
    mine = tmp_path / "mine"
    mine.mkdir()
    write_folder(mine / "kept", "mine")
    theirs = tmp_path / "theirs"
    (theirs / ".partial-abcdefgh").mkdir(parents=True)
    (theirs / ".partial-abcdefgh" / "before").symlink_to(mine)
    (theirs / ".partial-ijklmnop").symlink_to(mine)
    with whole(theirs / "a") as partial:
        partial.write_text("a")
    assert contents(mine / "kept") == {"a": "mine", "b": "mine"} and not (theirs / "kept").exists()


def test_a_folder_is_removed_whole(tmp_path):
    write_folder(tmp_path / "a", "old")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for name in ("link", "a", "missing"):
        remove(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
