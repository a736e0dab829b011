"""Runs, each in a process of its own: one that fails takes no other down, and one that is finished is not repeated."""

import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import htd_jax
from htd_jax.pipeline import Config

# How often the processes are looked after, in seconds.
POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Job:
    """A run.

    Attributes:
      config: what it is, with every default in place.
      arguments: the same, as flags of `htd-jax train`.
    """

    config: Config
    arguments: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return self.config.folder


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
      seconds: it took; 0 if it was finished before.
      error: the last line that it wrote, if it failed.
    """

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
    """Runs every job, and gives what became of each as soon as it has ended.

    What a run prints goes to a file beside its folder, see `log_of`. With several at once, each has its share of the
    processor's cores for itself, so that their times can be compared. If the caller stops, so do they, at their last
    checkpoints.

    Args:
      finished: whether a job need not be run; asked when its turn has come.
      at_once: how many processes.
      started: told of each that is begun.
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
            for share, (job, begun, process) in list(running.items()):
                if process.poll() is not None:
                    del running[share]
                    yield Outcome(job, time.monotonic() - begun, _error(job, process.returncode))
            time.sleep(POLL_SECONDS if running else 0)
    finally:
        for _, _, process in running.values():
            process.terminate()
        for _, _, process in running.values():
            process.wait()


def log_of(job: Job) -> Path:
    """What the run printed; beside its folder, which belongs to the run."""
    return job.folder.with_name(job.folder.name + ".log")


def _start(job: Job, cores: set[int]) -> "subprocess.Popen[bytes]":
    here = str(Path(htd_jax.__file__).parent.parent)  # a plain checkout will do, installed or not
    paths = os.pathsep.join(part for part in (here, os.environ.get("PYTHONPATH")) if part)
    command = [sys.executable, "-m", "htd_jax", "train", *job.arguments]
    with _on(cores), log_of(job).open("wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": paths}
        )


def _error(job: Job, status: int) -> str | None:
    if status == 0:
        return None
    with contextlib.suppress(OSError):
        lines = log_of(job).read_text(errors="replace").strip().splitlines()
        if lines:
            return lines[-1].removeprefix("error: ")
    return f"exit status {status}"


def _shares(number: int) -> list[set[int]]:
    """The cores that this process may use, dealt out; none are named where they cannot be."""
    if not hasattr(os, "sched_getaffinity") or number == 1:
        return [set() for _ in range(number)]
    cores = sorted(os.sched_getaffinity(0))
    return [set(cores[share::number]) or {cores[share % len(cores)]} for share in range(number)]


@contextlib.contextmanager
def _on(cores: set[int]) -> Iterator[None]:
    """What is started inside may use these cores; all that there are, if none is named."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
