"""Runs of the command in this process, on a data set so small that an epoch takes a moment, and what they leave."""

import contextlib
import dataclasses
import functools
import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from htd_jax.command import enter, main
from htd_jax.command.table import table
from htd_jax.command.train import train

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
DATA = ["--synthetic.users", "60", "--synthetic.items", "150"]
SIZES = ["--epochs", "3", "--eval-every", "2", "--teacher-dim", "12", "--student-dim", "4"]
SMALL = [*DATA, *SIZES]


@dataclasses.dataclass(frozen=True)
class Done:
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str


def start(*arguments: Any) -> Done:
    """`main.py` with these arguments; a later one of a name replaces those of `SMALL`."""
    return _enter(functools.partial(train, prog="main.py"), [*SMALL, *arguments])


def start_table(*arguments: Any) -> Done:
    return _enter(functools.partial(table, prog="table.py"), arguments)


def start_command(*arguments: Any) -> Done:
    """`htd-jax` with these arguments, as they are."""
    return _enter(main, arguments)


def trained(*arguments: Any) -> Done:
    """`start`, of a run that must end well."""
    done = start(*arguments)
    assert done.status == 0, done.err
    return done


def refused(*arguments: Any) -> str:
    """The one line that tells why these arguments cannot be."""
    return line_of(start(*arguments))


def line_of(done: Done) -> str:
    assert done.status == 2, done
    assert done.err.startswith("error: ") and done.err.count("\n") == 1, done.err
    return done.err


def process(*arguments: Any, script: str = "main.py", **environment: str) -> subprocess.CompletedProcess[str]:
    """The same in an interpreter of its own."""
    command = [sys.executable, str(EXPERIMENTS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | environment)


def results(folder: Path) -> Any:
    return strict(folder / "results.json")


def strict(path: Path) -> Any:
    """What a parser reads that takes NaN and Infinity for the mistakes that they are; of `.jsonl`, every line."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    read = functools.partial(json.loads, parse_constant=refuse)
    return [read(line) for line in path.read_text().splitlines()] if path.suffix == ".jsonl" else read(path.read_text())


def untimed(value: Any) -> Any:
    """JSON without what depends on the clock."""
    if isinstance(value, dict):
        return {name: untimed(x) for name, x in value.items() if not name.startswith(("seconds", "peak"))}
    return [untimed(x) for x in value] if isinstance(value, list) else value


def _enter(command: Any, arguments: Any) -> Done:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    status = 0
    with _unchanged(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            enter(command, [*map(str, arguments)])
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 0
    return Done(status, *(stream.buffer.getvalue().decode() for stream in (out, err)))  # type: ignore[attr-defined]


@contextlib.contextmanager
def _unchanged() -> Iterator[None]:
    """What the command sets for its process is as before after it."""
    hook, handler = sys.unraisablehook, signal.getsignal(signal.SIGTERM)
    levels = {name: logging.getLogger(name).level for name in ("absl", "asyncio")}
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
