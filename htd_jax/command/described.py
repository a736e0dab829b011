"""Flags that stand in a TOML file: `--file study.toml`."""

import contextlib
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from htd_jax.errors import UserError, shown
from htd_jax.settings import typed

FLAG = "--file"


@contextlib.contextmanager
def described(arguments: Sequence[str]) -> Iterator[list[str]]:
    """The arguments, with the flags of the file that they name before them, so that those that are typed win.

    What is wrong with a flag of the file is said as it would be of the same flag typed, and names the file.

    Raises:
      UserError: a file that cannot be read, or holds what is no flag.
    """
    path, typed = _named(arguments)
    if path is None:
        yield typed
        return
    flags = read_flags(path)
    own = {flag for flag in flags if flag.startswith("--")} - {argument.partition("=")[0] for argument in typed}
    try:
        yield [*flags, *typed]
    except UserError as error:
        if own & set(re.findall(r"--[\w.-]*\w", str(error))):
            error.args = tuple(f"{shown(path)}: {line}" for line in error.args)
        raise


def _named(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The file, and the other arguments."""
    rest = [part for argument in arguments for part in _split(argument)]
    path = None
    while FLAG in rest:
        at = rest.index(FLAG)
        if rest[at + 1 : at + 2] in ([], [FLAG]):
            raise UserError(f"{FLAG}: needs the path of a TOML file")
        path = Path(rest[at + 1])
        del rest[at : at + 2]
    return path, rest


def _split(argument: str) -> list[str]:
    return [FLAG, argument.removeprefix(f"{FLAG}=")] if argument.startswith(f"{FLAG}=") else [argument]


def read_flags(path: Path) -> list[str]:
    """`groups = 60` in a table `[htd]` is `--htd.groups 60`; a list several values; true and false a flag and its no.

    Raises:
      UserError: it cannot be read, is no TOML, or holds what is no flag.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{FLAG}: {shown(path)}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{FLAG}: {shown(path)}: no TOML ({shown(str(error))})") from None
    try:
        return list(_flags(found))
    except ValueError as error:
        raise UserError(f"{FLAG}: {shown(path)}: {error}") from None


def _flags(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        name = prefix + key.replace("_", "-")
        if isinstance(value, dict):
            yield from _flags(value, f"{name}.")
        elif isinstance(value, bool):
            yield from typed(name, value)
        else:
            parts = value if isinstance(value, list) else [value]
            yield from typed(name, [_text(name, part) for part in parts])


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{name}: a flag's value is a text, a number, true, false, or a list of texts or numbers")
    if isinstance(value, str) and value.startswith("--"):
        raise ValueError(f"{name}: {value!r} is a flag, not its value")
    return str(value)
