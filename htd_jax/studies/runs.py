"""The execution of runs, each in its own process: a failure stops no other run, and a finished run is not repeated."""

import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import htd_jax
from htd_jax.pipeline import RunSpec

# The program of a run's process. It ends with its parent, however that ends: the parent has the other end of its input.
_PROGRAM = """
import os, threading
threading.Thread(target=lambda: os.read(0, 1) or os._exit(1), daemon=True).start()
from htd_jax.command import main
main()
"""

# Seconds between looks at the processes.
POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Job:
    """A run to execute.

    Attributes:
      spec: the run.
      arguments: the same as flags of `htd-jax train`.
    """

    spec: RunSpec
    arguments: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.spec.folder


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a job: its duration, 0 if it was finished before; and its last line of output if it failed."""

    job: Job
    seconds: float
    error: str | None = None


def execute(
    jobs: Sequence[Job],
    *,
    finished: Callable[[Job], bool],
    at_once: int = 1,
    started: Callable[[Job], None] = lambda job: None,
) -> Iterator[Outcome]:
    """Executes jobs, and yields the outcome of each as soon as it ends.

    The output of a run goes to a file next to its folder, see `log_path`. Several at once have separate processor
    cores, so that their times can be compared. If the caller stops, they stop at their last checkpoints.

    Args:
      jobs: the runs, in order.
      finished: whether a job needs no run; called when its turn comes.
      at_once: the number of processes.
      started: a callback, called when a process starts.
    """
    waiting, running = list(jobs), dict[int, tuple[Job, float, "subprocess.Popen[bytes]"]]()
    shares = _shares(at_once)
    try:
        while waiting or running:
            for share in range(at_once):
                if share not in running and waiting:
                    job = waiting.pop(0)
                    if finished(job):
                        yield Outcome(job, 0.0)
                        continue
                    started(job)
                    running[share] = (job, time.monotonic(), _start(job, shares[share]))
            for share, (job, begin, process) in list(running.items()):
                if process.poll() is not None:
                    del running[share]
                    yield Outcome(job, time.monotonic() - begin, _error(job, process.returncode))
            time.sleep(POLL_SECONDS if running else 0)
    finally:
        for _, _, process in running.values():
            process.terminate()
        for _, _, process in running.values():
            process.wait()


def log_path(job: Job) -> Path:
    """Returns the file of a run's output; it is next to the run folder, which belongs to the run."""
    return job.folder.with_name(job.folder.name + ".log")


def _start(job: Job, cores: set[int]) -> "subprocess.Popen[bytes]":
    here = str(Path(htd_jax.__file__).parent.parent)  # also works in a checkout that is not installed
    paths = os.pathsep.join(part for part in (here, os.environ.get("PYTHONPATH")) if part)
    command = [sys.executable, "-P", "-c", _PROGRAM, "train", *job.arguments]  # -P: imports nothing from this folder
    with _pinned(cores), log_path(job).open("wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": paths}
        )


def _error(job: Job, status: int) -> str | None:
    if status == 0:
        return None
    with contextlib.suppress(OSError):
        lines = log_path(job).read_text(errors="replace").strip().splitlines()
        if lines:
            return lines[-1].removeprefix("error: ")
    return f"exit status {status}"


def _shares(number: int) -> list[set[int]]:
    """Returns this process's cores divided among jobs; empty sets where a platform cannot assign them."""
    if not hasattr(os, "sched_getaffinity") or number == 1:
        return [set() for _ in range(number)]
    cores = sorted(os.sched_getaffinity(0))
    return [set(cores[share::number]) or {cores[share % len(cores)]} for share in range(number)]


@contextlib.contextmanager
def _pinned(cores: set[int]) -> Iterator[None]:
    """Restricts processes started inside to these cores; an empty set restricts nothing."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
