"""The command `htd-jax`: what a user types, and what can go wrong there."""

import contextlib
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

from htd_jax.errors import UserError, as_flags

USAGE = """usage: htd-jax COMMAND ...

commands:
  train      train a wide recommender, a narrow one, and the narrow one with the wide one's help
  recommend  the best items of users, or the neighbours of items, from a run or an export
  export     write a run's student to a folder that serves: tables, ids, and a model card
  summary    what a data set looks like: counts, long tail, and a picture
  study      many runs from one command, and a page that shows what they say together
  table      tabulate finished runs, mean and spread over seeds
  compare    finished runs side by side: what differs in their settings, and what each came to

htd-jax COMMAND --help tells more."""


COMMANDS = ("train", "recommend", "export", "summary", "study", "table", "compare")


def main(arguments: Sequence[str] | None = None) -> None:
    """`htd-jax`, `python -m htd_jax`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        enter(lambda _: print(USAGE), arguments)
    elif name not in COMMANDS:
        enter(_unknown, arguments)
    else:  # what the others need is not imported
        command = getattr(importlib.import_module(f"htd_jax.command.{name}"), name)
        enter(command, arguments[1:], resumes=name in ("train", "study"))


def _unknown(arguments: Sequence[str]) -> None:
    raise UserError(f"unknown command {arguments[0]!r}; htd-jax --help tells which there are")


def enter(
    command: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None, *, resumes: bool = False
) -> None:
    """Runs a command as a user meets it: an error is a line and status 2, a stop leaves the terminal as it was.

    Args:
      resumes: whether the same command goes on where it was stopped, which is then said.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    _quieten_readers()
    sys.path.append(os.getcwd())  # where a method of one's own is looked for, as `python` does
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace" if stream is sys.stderr else "replace")  # type: ignore[union-attr]
    before = None
    with contextlib.suppress(ValueError):  # not in the main thread
        before = signal.signal(signal.SIGTERM, _terminate)
    try:
        command(arguments)
        sys.stdout.flush()
    except UserError as error:
        for line in error.args:
            print(f"error: {as_flags(str(line))}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `| head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print("stopped" + "; the same command goes on at the last checkpoint" * resumes, file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    """As an exception, so that what was begun is ended: a hidden cursor is shown, a half-written file removed."""
    sys.exit(128 + number)


def use_devices() -> None:
    """Sees that there is a device, and keeps what is compiled.

    Raises:
      UserError: the device that JAX was told to use is not there.
    """
    import jax

    from htd_jax.data.files import user_cache

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"JAX finds no device: {reason}; see JAX_PLATFORMS and `pip install -U jax[cuda13]`") from None
    cache = user_cache()
    if jax.config.jax_compilation_cache_dir is None and cache is not None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(cache / "compiled"))


def _quieten_readers() -> None:
    """Reading a damaged checkpoint ends at its first bad part, and that error is the one we report: what the readers of
    the other parts log after it, or raise in threads and finalisers where none can catch it, is no news."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda raised: None
