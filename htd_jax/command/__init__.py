"""The command `htd-jax`: its entry, and the form of its errors."""

import contextlib
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

import htd_jax
from htd_jax.command.processes import complain, ending_at_once
from htd_jax.errors import UserError, as_flags, missing, nearest, shown

USAGE = """usage: htd-jax COMMAND ...

commands:
  train      train a teacher, a plain student, and a student distilled from the teacher
  update     update a student by new interactions, without a new start
  recommend  show the best items of users, or the neighbours of items, from a run or an export
  export     write a run's student to a folder for serving: tables, ids, and a model card
  serve      answer requests over HTTP from an export
  split      write the training, validation and test parts of a data set to files
  evaluate   measure any model, yours too, with intervals, and against another one
  summary    describe a data set: counts, long tail, and a picture
  study      run a study of many runs, and write a report of what they show
  table      tabulate finished runs: mean and spread over seeds
  compare    compare finished runs side by side: their settings and results

htd-jax COMMAND --help describes a command and its flags; htd-jax --version prints the version."""


COMMANDS = (
    "train",
    "update",
    "recommend",
    "export",
    "serve",
    "split",
    "evaluate",
    "summary",
    "study",
    "table",
    "compare",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `htd-jax` or `python -m htd_jax`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        enter(lambda _: print(USAGE), arguments)
    elif name == "--version":
        enter(lambda _: print(f"htd-jax {htd_jax.__version__}"), arguments)
    elif name not in COMMANDS:
        enter(_unknown, arguments)
    else:

        def command(arguments: Sequence[str]) -> None:  # imports what this command needs, and no other
            getattr(importlib.import_module(f"htd_jax.command.{name}"), name)(arguments)

        enter(command, arguments[1:], resumes=name in ("train", "study", "update"))


def _unknown(arguments: Sequence[str]) -> None:
    meant = nearest(arguments[0], COMMANDS) or ";"
    raise UserError(f"unknown command {arguments[0]!r}{meant} htd-jax --help lists the commands")


def enter(
    command: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None, *, resumes: bool = False
) -> None:
    """Runs a command so that an error prints one line and exits with status 2, and a stop restores the terminal.

    Args:
      command: the command.
      arguments: its arguments; those of the process if None.
      resumes: whether the same command resumes after a stop, for the message.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    _silence_readers()
    _open_streams()
    with ending_at_once(resumes):
        _enter(command, arguments, resumes)


def _enter(command: Callable[[Sequence[str]], None], arguments: Sequence[str], resumes: bool) -> None:
    before = None
    with contextlib.suppress(ValueError):  # not in the main thread
        before = signal.signal(signal.SIGTERM, _terminate)
    try:
        command(arguments)
        sys.stdout.flush()
    except UserError as error:
        for line in error.args:
            complain(f"error: {as_flags(str(line))}")
        sys.exit(2)
    except ModuleNotFoundError as error:
        if (line := missing(error)) is None:
            raise
        complain(f"error: {line}")
        sys.exit(2)
    except BrokenPipeError:  # the reader has left, as in `| head`
        sys.exit(141)
    except KeyboardInterrupt:
        complain("stopped" + "; the same command resumes at the last checkpoint" * resumes)
        sys.exit(130)
    except OSError as error:
        place = f"{shown(os.fsdecode(error.filename))}: " if isinstance(error.filename, str | bytes) else ""
        complain(f"error: {place}{error.strerror or error}")
        sys.exit(2)
    finally:
        _close_streams()
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _open_streams() -> None:
    """Makes sure that something takes what is printed.

    What a character set lacks is written as an escape. A stream that the caller has closed, as a daemon does, leads
    nowhere, so that no file that is opened later takes its place.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # has the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace" if stream is sys.stderr else "replace")  # type: ignore[union-attr]


def _close_streams() -> None:
    """Drops what a full or closed stream has not taken, so that Python does not try again, and complain, as it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _terminate(number: int, frame: FrameType | None) -> None:
    """Exits by an exception, so that a hidden cursor is shown and partial files are removed."""
    sys.exit(128 + number)


def use_devices() -> None:
    """Checks that there is a device, and keeps compiled programs in a cache.

    Raises:
      UserError: if JAX finds no device.
    """
    import jax

    from htd_jax.data.published import user_cache

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"JAX finds no device ({reason}); check JAX_PLATFORMS, or pip install -U jax[cuda13]") from None
    cache = user_cache()
    if jax.config.jax_compilation_cache_dir is None and cache is not None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(cache / "compiled"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # a run has dozens of small programs


def _silence_readers() -> None:
    """Silences the threads that read other parts of a damaged checkpoint; the first error is reported as ours."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda raised: None
