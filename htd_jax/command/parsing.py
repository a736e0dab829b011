"""Command lines parsed into dataclasses of settings, whose strings are the help.

Imports no JAX, so that a command that needs none answers at once.
"""

import ast
import contextlib
import dataclasses
import importlib
import inspect
import io
import itertools
import os
import re
import sys
import textwrap
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypeVar

import tyro

from htd_jax.errors import UserError

T = TypeVar("T")


def import_trusted(arguments: Sequence[str]) -> None:
    """Imports what `--trust-code` names in the arguments of any command; a function is registered as a metric.

    Raises:
      UserError: if it cannot be imported.
    """
    with working_directory():
        for flag, name in typed(arguments):
            if flag == "--trust-code":
                try:
                    module = importlib.import_module(name.partition(":")[0])
                except (ImportError, ValueError) as error:
                    raise UserError(f"`trust_code`: cannot import {name} ({error})") from None
                if inspect.isfunction(getattr(module, name.partition(":")[2], None)):
                    from htd_jax.evaluation import load_metric  # imports JAX

                    load_metric(name)


def typed(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields each flag's values."""
    flag = ""
    for word in arguments:
        if not word.startswith("--"):
            yield flag, word
            continue
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        if equals:
            yield flag, value


@contextlib.contextmanager
def working_directory() -> Iterator[None]:
    """Imports modules of the working directory too, after all others; elsewhere they are never imported, because the
    folder may hold somebody's files."""
    here = None
    with contextlib.suppress(OSError):  # it is deleted
        sys.path.append(here := os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = [folder for folder in sys.path if folder is not here]  # an equal one before it stays


def parse(settings: type[T], arguments: Sequence[str], *, prog: str, description: str | None = None) -> T:
    """Returns a dataclass of settings from flags.

    Raises:
      UserError: if a flag or a value is invalid.
      SystemExit: after `--help`, which shows the dataclass's own flags, not those of nested dataclasses.
    """
    if {"--help", "-h"} & set(arguments):
        hints = typing.get_type_hints(settings)
        own = [f.name for f in dataclasses.fields(settings) if not dataclasses.is_dataclass(hints[f.name])]  # type: ignore[arg-type]
        parse_flags(with_help(settings, tuple(own)), ["--help"], prog=prog, description=description)
    return parse_flags(settings, arguments, prog=prog, description=description)


def parse_known(
    settings: type[T], arguments: Sequence[str], *, prog: str, description: str | None = None
) -> tuple[T, list[str]]:
    """Returns the same, and the arguments that are not among its flags, in their order.

    A flag's value that begins with a dash is `--name=-value`.
    """
    known = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(settings)]  # type: ignore[arg-type]
    own: list[str] = []
    rest: list[str] = []
    into = rest
    for argument in arguments:
        if argument[:2] == "--" or argument == "-h":
            into = own if argument.partition("=")[0] in (*known, "--help", "-h") else rest
        into.append(argument)
    return parse(settings, own, prog=prog, description=description), rest


def parse_flags(settings: type[T], arguments: Sequence[str], *, prog: str, description: str | None = None) -> T:
    """Returns a dataclass of settings, whose help is in its types, from flags; see `parse`."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            config = (tyro.conf.DisallowNone,)
            return tyro.cli(settings, args=list(arguments), prog=prog, description=description, config=config)
    except SystemExit as stop:
        if stop.code == 2:  # tyro prints its error in a box
            lines = [line.strip("│|+ ") for line in box.getvalue().splitlines() if line[:1] not in "╭╰+"]
            rule = next((i for i, line in enumerate(lines) if line[:3] in ("───", "---")), None)
            reason = " ".join(lines[:rule]).rstrip(". ")
            wanted = r"(<class '\w+'>|typing\.Annotated\[.*?\)\])"
            reason = re.sub(rf"no type matching .* Got errors: - {wanted}: ", "", reason)
            after = lines[lines.index("Perhaps you meant:") :] if "Perhaps you meant:" in lines else []
            meant = next((line.split()[0] for line in after if line[:2] == "--"), None)  # the nearest is the first
            advice = f"did you mean {meant}? --help lists all flags" if meant else "--help lists the flags"
            raise UserError(f"{reason}; {advice}") from None
        raise


def with_help(settings: type, names: tuple[str, ...] | None = None) -> Any:
    """Returns a dataclass of some fields, or all, each with the string under it as its help."""
    hints = typing.get_type_hints(settings, include_extras=True)
    docs = _docs(settings)
    fields: list[Any] = []
    for field in dataclasses.fields(settings):
        if names is None or field.name in names:
            none: dict[str, Any] = {"help_behavior_hint": ""} if field.default in (None, ()) else {}
            hint: Any = hints[field.name]
            hint = Annotated[hint, tyro.conf.arg(help=docs.get(field.name, ""), **none)]
            fields.append((field.name, hint, _default(field)))
    return dataclasses.make_dataclass(settings.__name__, fields, frozen=True)


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory)
    return dataclasses.field(default=field.default) if field.default is not dataclasses.MISSING else dataclasses.field()


def _docs(settings: type) -> dict[str, str]:
    """Returns the string under each field, on one line."""
    docs: dict[str, str] = {}
    for kind in reversed(settings.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
        for field, under in itertools.pairwise(body):
            is_text = isinstance(under, ast.Expr) and isinstance(under.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and is_text:
                docs[field.target.id] = " ".join(str(under.value.value).split())  # type: ignore[union-attr]
    return docs


def value_of(arguments: Sequence[str], name: str) -> str | None:
    """Returns the value of a flag, the last if it is given several times."""
    return next((value for flag, value in reversed([*typed(arguments)]) if flag == f"--{name}"), None)
