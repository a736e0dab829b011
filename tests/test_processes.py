"""Checkpoints of sharded states, on other meshes and in several processes; and how several processes start and end."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from htd_jax import processes
from htd_jax.command.processes import number_of
from htd_jax.errors import UserError

ROOT = Path(__file__).parent.parent

# A state with a table of 10 rows and its flat moments, split over the first `n` devices, and padded.
STATE = """
import os, sys, time
import jax, numpy as np
from pathlib import Path
from jax.sharding import Mesh
from htd_jax import processes
from htd_jax.training import Checkpoints, Partitioning
from htd_jax.training.checkpoint import BackgroundSaves, to_host

def partitioning(n, data=1):
    return Partitioning(Mesh(np.array(jax.devices()[:n]).reshape(data, -1), ("data", "rows")))

def state(part, value):
    table = np.zeros((-(-10 // part.mesh.shape["rows"]) * part.mesh.shape["rows"], 3), np.float32)
    table[:10] = value + np.arange(30, dtype=np.float32).reshape(10, 3)
    put = lambda x, sharding: jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])
    whole = {"weights": np.float32([value] * 5), "count": np.int32(value)}
    split = {"table": table, "flat": table.reshape(-1)}
    split = {name: put(x, part.by_rows) for name, x in split.items()}
    return {"train": split | {name: put(x, part.everywhere) for name, x in whole.items()} | {"none": {}}, "best": {}}

def same(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.sharding == b.sharding and a.dtype == b.dtype, (a.sharding, b.sharding)
        for x, y in zip(a.addressable_shards, b.addressable_shards, strict=True):
            np.testing.assert_array_equal(x.data, y.data)

HISTORY = {"settings": {}, "records": [], "seconds": [], "finished": False}
"""


def start(
    code: str, *arguments: object, number: int = 1, devices: int = 1, **variables: str
) -> list[subprocess.Popen[str]]:
    """Starts processes that run the code. Each has its number, their number, a port and `arguments` as words; `#` in a
    variable of its environment is its number."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    words = [[str(word) for word in (me, number, port, *arguments)] for me in range(number)]
    options: dict = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    running = []
    for own in words:
        options["env"] = environment | {name: value.replace("#", own[0]) for name, value in variables.items()}
        running.append(subprocess.Popen([sys.executable, "-u", "-c", STATE + code, *own], **options))
    return running


def finish(running: list[subprocess.Popen[str]], seconds: float = 120) -> list[str]:
    """Returns what processes that must end well print."""
    printed = [process.communicate(timeout=seconds)[0] for process in running]
    for process, text in zip(running, printed):
        assert process.returncode == 0, text
    return printed


RESHARDED = """
from htd_jax.errors import UserError
folder, value = Path(sys.argv[4]), 1
Checkpoints(folder).save(value, state(partitioning(4), 1), HISTORY)
for n, data in ((2, 1), (8, 1), (8, 2), (1, 1), (8, 1)):
    like = state(partitioning(n, data), 1)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
    found = Checkpoints(folder).state(shapes)
    same(found, like)
    value += 1
    checkpoints = Checkpoints(folder)
    saves = BackgroundSaves(checkpoints)
    copied = to_host(found)
    assert copied["train"]["table"].sharding.spec == like["train"]["table"].sharding.spec
    [x.delete() for x in jax.tree.leaves(found)]  # as donation does
    saves.save(value, copied, HISTORY)
    saves.wait()
alone = {"train": {name: np.asarray(x)[:size] for (name, x), size in zip(
    state(partitioning(8), 1)["train"].items(), (10, 30, 5, None)) if name != "count" and name != "none"}}
alone["train"] |= {"count": np.int32(1), "none": {}}
found = Checkpoints(folder).state(alone | {"best": {}})
for name in ("table", "flat", "weights", "count"):
    np.testing.assert_array_equal(found["train"][name], alone["train"][name])
    assert len(found["train"][name].sharding.device_set) == 1
for name, shape in (("table", (10, 4)), ("table", (30, 3)), ("weights", (6,)), ("flat", (2, 15))):
    try:
        Checkpoints(folder).state({"train": alone["train"] | {name: np.zeros(shape, np.float32)}, "best": {}})
    except UserError as error:
        assert f"train.{name} has shape" in str(error) and "damaged" in str(error), error
    else:
        raise AssertionError(name)
"""


def test_a_state_is_restored_onto_another_mesh(tmp_path):
    finish(start(RESHARDED, tmp_path / "run", devices=8))


TOGETHER = """
me, number, port, folder, moment, epoch = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:6], int(sys.argv[6])
from htd_jax.training import checkpoint
processes.HEARTBEAT_SECONDS = 5
processes.join(f"127.0.0.1:{port}", number, me)
assert processes.number() == me and jax.process_count() == number
assert processes.from_first("number", processes.number) == 0
part = partitioning(4, 2) if moment == "none" else partitioning(4)
checkpoints = Checkpoints(Path(folder))
with BackgroundSaves(checkpoints) as saves:
    saves.save(epoch - 2, to_host(state(part, epoch - 2)), HISTORY)
    saves.save(epoch - 1, to_host(state(part, epoch - 1)), HISTORY)
assert os.listdir(folder) == [str(epoch - 1)]
same(Checkpoints(Path(folder)).state(state(part, 0)), state(part, epoch - 1))
processes.barrier("read")

def die(*args):
    os.kill(os.getpid(), 9)

barrier = processes.barrier
if moment == "1 unwritten" and me == 1:
    checkpoint._save_state = die
elif moment.startswith(str(me)):
    processes.barrier = lambda name: die() if name.split()[1] == moment.split()[1] else barrier(name)
checkpoints.save(epoch, state(part, epoch), HISTORY)
"""

READ = """
folder, value = Path(sys.argv[4]), int(sys.argv[5])
same(Checkpoints(folder).state(state(partitioning(1), 0)), state(partitioning(1), value))
"""


@pytest.mark.slow
def test_processes_save_and_restore_their_shards(tmp_path):
    finish(start(TOGETHER, tmp_path, "none", 3, number=2, devices=2))
    written = [path.name for path in (tmp_path / "3" / "state" / "train.weights").iterdir()]
    assert sorted(written) == [".zarray", "0"]  # once, though every device has it


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment, left", [("1 unwritten", 2), ("1 written", 2), ("0 written", 2), ("1 saved", 3), ("0 saved", 3)]
)
def test_a_process_that_is_killed_in_a_save_ends_the_other_and_leaves_a_whole_step(tmp_path, moment, left):
    running = start(TOGETHER, tmp_path, moment, 3, number=2, devices=2)
    killed = int(moment.split()[0])
    assert running[killed].wait(120) == -signal.SIGKILL
    begin = time.monotonic()
    other = running[1 - killed]
    text = other.communicate(timeout=60)[0]
    assert time.monotonic() - begin < 20
    assert other.returncode != 0 and "another task died" in text, text
    finish(start(READ, tmp_path, left))
    finish(start(TOGETHER, tmp_path, "none", 6, number=2, devices=2))
    finish(start(READ, tmp_path, 6))


SLOW = """
processes.join(f"127.0.0.1:{sys.argv[3]}", int(sys.argv[2]), int(sys.argv[1]))
from htd_jax.training import find_partitioning
part, ones = find_partitioning("4"), np.ones(4, np.float32)
total = jax.jit(lambda x: x.sum(), out_shardings=part.everywhere)
if processes.number():
    time.sleep(35)  # longer than Gloo waits for a first collective
total(jax.make_array_from_callback((4,), part.by_rows, lambda at: ones[at])).block_until_ready()
"""


@pytest.mark.slow
def test_a_process_may_be_slow_before_its_first_collective():
    finish(start(SLOW, number=2, devices=2))


SLURM = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_PROCID": "#", "SLURM_LOCALID": "#"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "#", "OMPI_COMM_WORLD_LOCAL_RANK": "#"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        SLURM | {"SLURM_JOB_ID": "1234", "SLURM_STEP_NODELIST": "localhost"},
        OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "5046272.0;tcp://127.0.0.1:40000"},
    ],
)
def test_processes_that_a_launcher_has_started_find_one_another(launcher):
    printed = finish(start("processes.join(); print(processes.number(), jax.process_count())", number=2, **launcher))
    assert [text.splitlines()[-1] for text in printed] == ["0 2", "1 2"]


@pytest.mark.parametrize(
    "variables, number",
    [
        ({}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({name: x for name, x in SLURM.items() if name != "SLURM_STEP_NUM_TASKS"}, None),  # the script of a batch job
        (SLURM, 3),
        (OPEN_MPI, 3),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "#"}, 3),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
)
def test_a_process_knows_whether_a_launcher_has_started_others(monkeypatch, variables, number):
    for name in {*SLURM, *OPEN_MPI, "TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID"}:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("#", "3"))
    assert processes.started() == number
    assert number_of(["--run", "x"]) == (number or 0)
    assert number_of(["--processes=1"]) == 0 and number_of(["--process", "2"]) == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("host:1", 2, None), "go together"),
        (("host:1", None, 0), "go together"),
        ((None, 2, 1), "go together"),
        (("host:1", "auto", 1), "go together"),
        (("host:1", 2, 2), "`process` must be from 0 to 1, not 2"),
        (("host", 2, 1), "must be HOST:PORT"),
    ],
)
def test_a_wrong_address_or_number_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        processes.join(*arguments)


def test_one_process_joins_none_and_agrees_with_itself():
    processes.join()
    processes.join(processes=1)
    processes.barrier("here")
    assert not processes.several() and processes.is_first() and processes.from_first("one", lambda: 1) == 1
