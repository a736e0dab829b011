"""The error for input that a user can correct."""

import contextlib
import difflib
import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

# The largest number of characters of a message.
LONGEST = 2000

# What the extra `train` installs.
TRAINING = {"jax", "jaxlib", "flax", "optax", "orbax", "chex", "scipy", "matplotlib", "platformdirs", "pooch"}


class UserError(ValueError):
    """Invalid input: the message is one line that says what is wrong, where, and what to do.

    A setting or argument is named in backquotes, as a caller in Python writes it: "`dim` must be at least 1". Nothing
    else in a message is in backquotes. Several errors at once are several arguments, one line each.

    Names and values in a message may come from any file: characters that are not printable are escaped, and the middle
    of a line of more than `LONGEST` characters is left out.
    """

    def __init__(self, *lines: object) -> None:
        super().__init__(*(_shortened(shown(str(line))) for line in lines))

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


def as_flags(message: str) -> str:
    """Returns a message with every setting named as its flag, for who typed flags.

    >>> as_flags("`htd.group_level` is unknown; set `header=False`")
    '--htd.group-level is unknown; set --no-header'
    """
    message = re.sub(r"`((?:[\w-]+\.)?)(\w+)=False`", r"`\1no-\2`", message)
    return re.sub(r"`([a-z][\w.-]*)`", lambda name: "--" + name[1].replace("_", "-"), message)


def shown(text: str | os.PathLike[str]) -> str:
    """Returns a path, or another program's message, on one line and printable anywhere.

    Paths may hold line breaks, and bytes that are not UTF-8, which Python keeps as lone surrogates that terminals
    reject. Both are written as escapes.

    >>> print(shown("caf\\udce9/two\\nlines"))
    caf\\udce9/two\\nlines
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in os.fspath(text))


def _shortened(line: str) -> str:
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 + 5 :]}"


def missing(error: ModuleNotFoundError) -> str | None:
    """Returns what to install for a missing module of training; None for any other module.

    >>> missing(ModuleNotFoundError(name="flax.struct"))
    "dependencies of training are missing (flax); pip install 'htd-jax[train]'"
    """
    name = (error.name or "").partition(".")[0]
    return f"dependencies of training are missing ({name}); pip install 'htd-jax[train]'" if name in TRAINING else None


def nearest(name: object, known: Iterable[str]) -> str:
    """Returns a question for a message about an unknown name; nothing if no known one is near.

    >>> nearest("hdt", ["ftd", "htd", "rrd"]), nearest("x", ["ftd"])
    ('; did you mean htd?', '')
    """
    found = difflib.get_close_matches(str(name), list(known), 1)
    return f"; did you mean {found[0]}?" if found else ""


def reason(error: BaseException) -> str:
    """Returns the first line of an error's message, shortened and printable; its type if it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return shown(lines[0][:160].rstrip(". "))


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turns errors of reading a file into a `UserError`.

    Args:
      path: the file, for the message.
      what: the expected content with its article, for the message: `a split`.

    Raises:
      UserError: if the file cannot be opened, is a pipe or a device, which may never end, or is damaged. Any exception
        counts as damage, since the bytes of a damaged file can mean anything to a parser; a `UserError` passes
        unchanged.
    """
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder raises an error of its own
            raise UserError(f"{shown(path)}: is a pipe or a device; write its content to a file, and give that")
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{shown(path)}: there is no such file") from None
    except IsADirectoryError:
        raise UserError(f"{shown(path)}: is a folder, not a file") from None
    except MemoryError:
        raise UserError(f"{shown(path)}: too large for the memory of this machine, or damaged") from None
    except Exception as error:
        if isinstance(error, OSError) and error.strerror and error.errno != errno.EINVAL:  # EINVAL: a damaged offset
            raise UserError(f"{shown(path)}: cannot be read ({error.strerror})") from None
        raise UserError(f"{shown(path)}: damaged, cut off, or not {what} ({reason(error)})") from None
