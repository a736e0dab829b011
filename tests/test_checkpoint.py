"""Checkpoints: found again wherever they lie, whole whatever happens, and errors in one line."""

import errno
import functools
import json
import os
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import htd_jax
from htd_jax.errors import UserError, shown
from htd_jax.training import Checkpoints, checkpoint, copy_checkpoints
from htd_jax.training.checkpoint import BackgroundSaves, to_host

HISTORY = {"settings": {}, "records": [], "seconds": [], "finished": False}


def state(value):
    return {"train": {"x": jnp.full((2, 3), value, jnp.float32), "count": jnp.int32(value), "none": {}}, "best": {}}


def save(folder, *epochs):
    checkpoints = Checkpoints(folder)
    for epoch in epochs:
        checkpoints.save(epoch, state(epoch), HISTORY | {"seconds": [1.0] * epoch})
    return checkpoints


def holds(folder, epoch):
    """Whether the folder holds that step, readable, and nothing else."""
    checkpoints = Checkpoints(folder)
    found = checkpoints.state(state(0))
    assert checkpoints.tree()["train"].keys() == {"x", "count", "none"}
    assert jax.tree.structure(found) == jax.tree.structure(state(0))
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype and bool((a == b).all()), found, state(epoch))
    listed = [path.name for path in folder.iterdir()] == [str(epoch)]
    return listed and jax.tree.all(same) and len(checkpoints.history()["seconds"]) == checkpoints.latest == epoch


def one_line(error):
    return str(error.value).count("\n") == 0 and str(error.value).isprintable()


NAMES = ["exp[1]", "a*b?", "{c,d}", " a b ", "50%20#1", "ü日", "~", "$HOME", "a:b", "'q\"", "two\nlines", "file:"]


@pytest.mark.parametrize("name", NAMES)
def test_the_path_is_a_path_and_no_pattern(tmp_path, name):
    save(tmp_path / name / "teacher", 1, 3)
    assert holds(tmp_path / name / "teacher", 3)
    copy_checkpoints(tmp_path / name / "teacher", tmp_path / "copies" / name)
    assert holds(tmp_path / "copies" / name, 3)


def test_only_the_newest_step_stays_and_what_kills_left_is_removed(tmp_path):
    folder = tmp_path / "run"
    save(folder, 9)
    for name in (".partial-abcdefgh", ".partial-12345678"):
        (folder / name / "state").mkdir(parents=True)
    os.rename(folder / "9", folder / "8")  # killed after 9 was there and before 8 was deleted
    save(folder, 11)
    assert holds(folder, 11)


@pytest.mark.parametrize("moment", ["os.replace", "htd_jax.training.checkpoint._save_state"])
def test_a_save_that_is_killed_leaves_the_step_before(tmp_path, monkeypatch, moment):
    save(tmp_path / "run", 1)

    def kill(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(moment, kill)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "run", 2)
    monkeypatch.undo()
    assert holds(tmp_path / "run", 1)
    save(tmp_path / "run", 2)
    assert holds(tmp_path / "run", 2)


def test_a_kill_before_the_older_step_is_deleted_leaves_the_newer(tmp_path, monkeypatch):
    checkpoints = save(tmp_path / "run", 1)

    def kill(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "remove", kill)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(2, state(2), HISTORY)
    monkeypatch.undo()
    assert Checkpoints(tmp_path / "run").latest == 2
    save(tmp_path / "run", 3)
    assert holds(tmp_path / "run", 3)


def test_a_save_is_read_back_before_the_older_step_is_deleted(tmp_path, monkeypatch):
    checkpoints = save(tmp_path / "run", 1)
    monkeypatch.setattr(checkpoint, "_read_history", lambda step: {})
    with pytest.raises(UserError, match="cannot be read back"):
        checkpoints.save(2, state(2), HISTORY)
    assert (tmp_path / "run" / "1").is_dir()


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_history_that_json_does_not_have_is_refused(tmp_path, number):
    checkpoints = save(tmp_path / "run", 1)
    with pytest.raises(UserError, match="epoch 2 cannot be saved") as error:
        checkpoints.save(2, state(2), HISTORY | {"records": [{"loss": float(number)}]})
    assert one_line(error) and holds(tmp_path / "run", 1)


def test_the_history_is_strict_json(tmp_path):
    save(tmp_path / "run", 2)
    assert json.loads((tmp_path / "run" / "2" / "history.json").read_text()) == HISTORY | {"seconds": [1.0, 1.0]}


# --- two processes


def test_who_saves_after_another_process_is_told(tmp_path):
    early = Checkpoints(tmp_path / "run")  # both find nothing
    first = save(tmp_path / "run", 1)
    with pytest.raises(UserError, match="another process is using") as error:
        early.save(1, state(1), HISTORY)
    assert one_line(error) and holds(tmp_path / "run", 1)
    second = Checkpoints(tmp_path / "run")  # goes on from 1, while the first saves 3
    first.save(3, state(3), HISTORY | {"seconds": [1.0] * 3})
    with pytest.raises(UserError, match="another process is using"):
        second.save(3, state(2), HISTORY)
    assert holds(tmp_path / "run", 3)


def test_a_step_that_is_replaced_while_it_is_read_is_read_anew(tmp_path, monkeypatch):
    first = save(tmp_path / "run", 1)
    second = Checkpoints(tmp_path / "run")
    first.save(2, state(2), HISTORY | {"seconds": [1.0] * 2})
    assert len(second.history()["seconds"]) == 2  # listed again
    latest = iter([2, 3, 3])
    monkeypatch.setattr(Checkpoints, "latest", property(lambda self: next(latest)))
    os.rename(tmp_path / "run" / "2", tmp_path / "run" / "3")  # between the listing and the reading
    assert second.tree()["train"]["count"] == 2


def test_who_read_one_step_does_not_save_over_another(tmp_path):
    first = save(tmp_path / "run", 1)
    second = Checkpoints(tmp_path / "run")
    second.history()
    first.save(2, state(2), HISTORY)
    second.state(state(0))  # of step 2, which the history read before is not of
    with pytest.raises(UserError, match="another process is using"):
        second.save(3, state(3), HISTORY)


def test_two_processes_do_not_save_at_once(tmp_path):
    pytest.importorskip("fcntl")
    checkpoints = save(tmp_path / "run", 1)
    code = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], 0), fcntl.LOCK_EX); print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], **pipes) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match="another process is using"):
            checkpoints.save(2, state(2), HISTORY)
        other.kill()
    checkpoints.save(2, state(2), HISTORY | {"seconds": [1.0] * 2})
    assert holds(tmp_path / "run", 2)


# --- the disk


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes: No space left on device [os_error_code='28']"),
    ],
)
def test_a_full_disk_is_said_in_one_line(tmp_path, monkeypatch, error):
    checkpoints = save(tmp_path / "run", 1)

    def fail(folder, state):
        folder.mkdir()
        raise error

    monkeypatch.setattr(checkpoint, "_save_state", fail)
    with pytest.raises(
        UserError, match=r"run: epoch 2 .*No space left.* the same command resumes once there"
    ) as raised:
        checkpoints.save(2, state(2), HISTORY)
    monkeypatch.undo()
    assert one_line(raised) and holds(tmp_path / "run", 1)
    checkpoints.save(2, state(2), HISTORY | {"seconds": [1.0] * 2})
    assert holds(tmp_path / "run", 2)


def test_a_really_full_disk_is_recognised(tmp_path):
    """Whatever the arrays' store makes of it: /dev/full says of every write that the disk is full."""
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    with open("/dev/full", "wb", buffering=0) as file:
        with pytest.raises(OSError) as raised:
            file.write(b"x")
        assert checkpoint._error_number(raised.value) == errno.ENOSPC


def test_a_mistake_of_the_caller_is_no_fault_of_the_disk(tmp_path):
    checkpoints = save(tmp_path / "run", 2)
    with pytest.raises(ValueError, match="epoch 2 is saved after epoch 2"):
        checkpoints.save(2, state(2), HISTORY)
    with pytest.raises(ValueError):
        checkpoints.save(3, {"x": object()}, HISTORY)
    assert holds(tmp_path / "run", 2)


def denied(path, *args, **kwargs):
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


def test_a_folder_that_cannot_be_read_is_said_to_be_one(tmp_path, monkeypatch):
    checkpoints = save(tmp_path / "run", 1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_read_history", denied)
        with pytest.raises(UserError, match=r"run/1: cannot be read .Permission denied.$") as error:
            checkpoints.history()
        assert one_line(error)
    monkeypatch.setattr(os, "scandir", denied)
    for use in (Checkpoints, lambda folder: copy_checkpoints(folder, tmp_path / "copy")):
        with pytest.raises(UserError, match=r"run: cannot be read .Permission denied.$"):
            use(tmp_path / "run")


def test_a_folder_that_cannot_be_written_is_said_to_be_one(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"cannot be saved .*Not a directory") as error:
        Checkpoints(tmp_path / "file" / "teacher").save(1, state(1), HISTORY)
    assert one_line(error)
    save(tmp_path / "run", 1)
    with pytest.raises(UserError, match="cannot be copied from") as error:
        copy_checkpoints(tmp_path / "run", tmp_path / "file" / "teacher")
    assert one_line(error)
    with pytest.raises(UserError, match="not a checkpoint"):
        copy_checkpoints(tmp_path / "none", tmp_path / "copy")


def test_a_path_that_is_no_utf8_is_refused_in_one_line(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(UserError, match=r"caf\\udce9.*not UTF-8") as error:
        Checkpoints(folder)
    assert one_line(error)
    str(error.value).encode("utf-8")


def test_what_is_shown_can_be_printed():
    assert shown("/tmp/exp[1]/ü日 x") == "/tmp/exp[1]/ü日 x"
    assert shown("a\udce9\n\x1b[31m") == r"a\udce9\n\x1b[31m"


# --- damage


def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path):
    with pytest.raises(UserError, match="not a checkpoint"):
        Checkpoints(tmp_path).history()
    for name in ("7", "08", "x", "-1", "²"):
        (tmp_path / name).mkdir()
    (tmp_path / "9").write_text("a file")
    (tmp_path / "7" / "notes.txt").write_text("hello")
    assert Checkpoints(tmp_path).latest == 7
    for read in (Checkpoints.history, Checkpoints.tree):
        with pytest.raises(UserError, match="not a checkpoint") as error:
            read(Checkpoints(tmp_path))
        assert one_line(error)


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b""])
def test_a_damaged_checkpoint_is_said_to_be_one_and_what_to_delete(tmp_path, damage):
    folder = tmp_path / "run"
    save(folder, 1)
    for path in (folder / "1").rglob("*"):
        if path.is_file():
            path.write_bytes(damage(path.read_bytes()))
    for read in (Checkpoints.history, Checkpoints.tree, lambda checkpoints: checkpoints.state(state(0))):
        with pytest.raises(UserError, match=r"1: not a checkpoint of htd-jax, or damaged .*; delete .*run/1 ") as e:
            read(Checkpoints(folder))
        assert one_line(e)


@pytest.mark.parametrize("text", ["[]", "{}", "1", '{"settings": 1}', "\udcff"])
def test_a_history_of_something_else_is_damaged(tmp_path, text):
    save(tmp_path, 1)
    (tmp_path / "1" / "history.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match="damaged"):
        Checkpoints(tmp_path).history()


def test_arrays_that_claim_more_than_their_files_hold_are_not_read(tmp_path):
    """What an array's files do not hold reads as zeros: a kilobyte could ask for any amount of memory."""
    save(tmp_path, 1)
    described = next(path for path in (tmp_path / "1").rglob(".zarray") if json.loads(path.read_text())["shape"])
    described.write_text(json.dumps(json.loads(described.read_text()) | {"shape": [10**9, 3]}))
    with pytest.raises(UserError, match=r"damaged \(its \d+ bytes stand for 12000000"):
        Checkpoints(tmp_path).tree()


def test_another_structure_is_not_read_into(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(UserError, match="not a checkpoint of htd-jax"):
        Checkpoints(tmp_path).state({"train": {"y": jnp.ones(3)}})


def test_a_copy_of_checkpoints_is_whole_or_absent(tmp_path, monkeypatch):
    source, target = tmp_path / "run", tmp_path / "other" / "teacher"
    save(source, 1)

    def kill(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", kill)
    with pytest.raises(KeyboardInterrupt):
        copy_checkpoints(source, target)
    assert list(target.parent.iterdir()) == []
    monkeypatch.undo()
    copy_checkpoints(source, target)
    assert holds(target, 1)


# --- beside training


def test_a_step_is_saved_while_the_caller_goes_on(tmp_path, monkeypatch):
    """What is donated or changed meanwhile is saved as it was."""
    write, may_write = checkpoint._save_state, threading.Event()

    def slow(folder, state):
        assert may_write.wait(60)
        write(folder, state)

    monkeypatch.setattr(checkpoint, "_save_state", slow)
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    trained, history = state(1), {**HISTORY, "seconds": [1.0]}
    with BackgroundSaves(Checkpoints(tmp_path / "run")) as saves:
        assert saves.idle
        saves.save(1, to_host(trained), history)
        assert not saves.idle
        trained = step(trained)
        history["seconds"].append(2.0)
        jax.block_until_ready(trained)
        may_write.set()
    assert saves.idle and holds(tmp_path / "run", 1)


def test_one_step_is_saved_at_a_time(tmp_path, monkeypatch):
    write, saving = checkpoint._save_state, []

    def alone(folder, state):
        saving.append(threading.current_thread())
        time.sleep(0.02)
        write(folder, state)
        assert saving[-1] is threading.current_thread()

    monkeypatch.setattr(checkpoint, "_save_state", alone)
    with BackgroundSaves(Checkpoints(tmp_path / "run")) as saves:
        for epoch in (1, 2, 3):
            saves.save(epoch, state(epoch), {**HISTORY, "seconds": [1.0] * epoch})
    assert holds(tmp_path / "run", 3) and threading.main_thread() not in saving


@pytest.mark.parametrize("when", ["the next", "the end"])
def test_an_error_beside_training_is_raised_at_the_next_save_or_the_end(tmp_path, monkeypatch, when):
    def fail(folder, state):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_save_state", fail)
    with (
        pytest.raises(UserError, match="epoch 1 cannot be saved .No space left") as error,
        BackgroundSaves(Checkpoints(tmp_path / "run")) as saves,
    ):
        saves.save(1, state(1), HISTORY)
        if when == "the next":
            saves.save(2, state(2), HISTORY)
    assert one_line(error)


def test_an_error_of_the_training_is_not_hidden_by_that_of_a_save(tmp_path, monkeypatch):
    def fail(folder, state):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_save_state", fail)
    with pytest.raises(KeyboardInterrupt), BackgroundSaves(Checkpoints(tmp_path / "run")) as saves:
        saves.save(1, state(1), HISTORY)
        raise KeyboardInterrupt


KILLED_BESIDE_TRAINING = """
import sys, threading
import numpy as np
import htd_jax
from htd_jax.training import checkpoint, loop

loop.CHECKPOINT_SECONDS = -1
write, writing, saved = checkpoint._save_state, threading.Event(), []

def slow(folder, state):
    write(folder, state)
    saved.append(folder)
    if len(saved) == 2:
        print("writing", flush=True)
        writing.wait()  # for the kill

checkpoint._save_state = slow
data = htd_jax.data.make_synthetic(num_users=60, num_items=90)
htd_jax.fit(data, dim=4, epochs=10**6, eval_every=10**6, folder=sys.argv[1], progress=False)
"""


@pytest.mark.slow
def test_a_kill_while_a_step_is_saved_beside_training_loses_that_step_alone(tmp_path):
    """The phase resumes from the step before, and ends at the bits of one that was never killed."""
    folder = tmp_path / "run"
    code = [sys.executable, "-c", KILLED_BESIDE_TRAINING, str(folder)]
    with subprocess.Popen(code, stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout.readline() == "writing\n"
        first = Checkpoints(folder).latest
        time.sleep(0.2)  # more epochs are trained meanwhile
        training.kill()
    assert Checkpoints(folder).latest == first
    data = htd_jax.data.make_synthetic(num_users=60, num_items=90)
    fit = functools.partial(htd_jax.fit, data, dim=4, epochs=first + 5, eval_every=10**6, progress=False)
    resumed, whole = fit(folder=folder), fit()
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, whole.variables)
    assert [path.name for path in folder.iterdir()] == [str(first + 5)]
