"""A command that several processes run together: who prints, and how one that fails leaves the others."""

import contextlib
import itertools
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence

from htd_jax import processes
from htd_jax.errors import reason

# The time that the first process, without which the others abort, leaves them to print an error of their own.
LAST_WORDS_SECONDS = 2


def number_of(arguments: Sequence[str]) -> int:
    """Returns the number of this process, as far as flags or a launcher tell before processes are joined."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    given = dict(itertools.pairwise(words))
    if given.get("--processes") == "1":
        return 0
    number = given.get("--process", "")
    return int(number) if number.isdecimal() else processes.started() or 0


def silence() -> None:
    """Drops what this process prints from now on, but for errors; also what libraries print."""
    sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def complain(line: str) -> None:
    """Prints an error; in one of several processes, with its number."""
    with contextlib.suppress(OSError):  # the status tells it too
        print(f"process {processes.number()}: {line}" if _several() else line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def ending_at_once(resumes: bool) -> Iterator[None]:
    """Ends one of several processes as soon as the block fails. A usual exit would wait for the others, which may wait
    for this one; so they find it gone, and end too. One that succeeds waits for the others: as it leaves, its
    connections close, through which another may still receive the end of the last collective.

    Args:
      resumes: whether the same command resumes, for the message.
    """
    try:
        yield
        if _several():
            processes.leave()
    except BaseException as error:
        status = error.code if isinstance(error, SystemExit) else 1
        if not status or not _several():
            raise
        import jax

        if isinstance(error, jax.errors.JaxRuntimeError):
            complain(
                f"error: stopped ({reason(error)}); if another process has ended, see its error"
                + "; the same command resumes at the last checkpoint" * resumes
            )
        elif not isinstance(error, SystemExit):
            complain("error:")
            traceback.print_exception(error)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        if processes.is_first():
            time.sleep(LAST_WORDS_SECONDS)
        os._exit(status if isinstance(status, int) else 1)


def _several() -> bool:
    return "jax" in sys.modules and processes.several()
