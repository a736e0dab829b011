"""Flags from a TOML file: `--file study.toml`."""

import contextlib
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from htd_jax.data.files import read_text
from htd_jax.errors import UserError, as_flags, shown
from htd_jax.settings import flag_words

FLAG = "--file"


@contextlib.contextmanager
def described(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Yields the arguments, after the flags of the file that they name, so that typed flags win.

    An error about a flag of the file also names the file.

    Raises:
      UserError: if the file cannot be read, or holds something that is not a flag.
    """
    path, rest = _find_file(arguments)
    if path is None:
        yield rest
        return
    flags = read_flags(path)
    own = {flag for flag in flags if flag.startswith("--")} - {argument.partition("=")[0] for argument in rest}
    try:
        yield [*flags, *rest]
    except UserError as error:
        if own & set(re.findall(r"--[\w.-]*\w", as_flags(str(error)))):
            error.args = tuple(f"{shown(path)}: {line}" for line in error.args)
        raise


def _find_file(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Returns the file, and the other arguments."""
    start = f"{FLAG}="
    rest = [part for word in arguments for part in ([FLAG, word[len(start) :]] if word.startswith(start) else [word])]
    path = None
    while FLAG in rest:
        at = rest.index(FLAG)
        if rest[at + 1 : at + 2] in ([], [FLAG]):
            raise UserError("`file` needs the path of a TOML file")
        path = Path(rest[at + 1])
        del rest[at : at + 2]
    return path, rest


def read_flags(path: Path) -> list[str]:
    """Returns the flags in a TOML file: `groups = 60` in a table `[htd]` is `--htd.groups 60`.

    Raises:
      UserError: if it cannot be read, is not TOML, or holds something that is not a flag.
    """
    try:
        return list(_flags(tomllib.loads(read_text(path, "a TOML file"))))
    except UserError as error:
        raise UserError(*(f"`file` {line}" for line in error.args)) from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"`file` {shown(path)}: not TOML ({shown(str(error))})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"`file` {shown(path)}: {shown(str(error))}") from None


def _flags(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        name = prefix + key.replace("_", "-")
        if name == "trust-code":
            raise ValueError(f"{name} cannot stand in a file; type it, because it runs code")
        if isinstance(value, dict):
            yield from _flags(value, f"{name}.")
        elif isinstance(value, bool):
            yield from flag_words(name, value)
        else:
            parts = value if isinstance(value, list) else [value]
            yield from flag_words(name, [_text(name, part) for part in parts])


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{name} must be a text, a number, true, false, or a list of texts or numbers")
    if isinstance(value, str) and value.startswith("--"):
        raise ValueError(f"{name}: {value!r} is a flag, not its value")
    return str(value)
