"""Settings: frozen dataclasses that carry their defaults, help and limits; flags, checks and JSON follow from them.

A field's type holds its limits: `Annotated[int, Ge(1)]` (of `annotated_types`), `Literal["positive", "all"]`, or either
of them or None. Every float must be finite. The string under a field is its help.
"""

import dataclasses
import importlib
import itertools
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import annotated_types

from htd_jax.errors import UserError, nearest, shown

# Settings are any frozen dataclass; a registry may ask for a base class.
Settings = Any


T = TypeVar("T")


class Registry(Mapping[str, type[T]], Generic[T]):
    """Classes of settings by name: those that are registered, and any other of this process as `package.module:Class`.

    Looking up a name never imports anything, because names also stand in files that somebody else may have made; `load`
    imports, and is called with names that the user gave.

    Attributes:
      kind: the kind of component that is registered, and the setting that chooses one: `method`.
      reserved: names that users may choose too, but that are no class: `none`.
      base: the class that every registered one inherits.
    """

    def __init__(self, kind: str, known: dict[str, type[T]], reserved: tuple[str, ...] = (), *, base: type[T]):
        self.kind = kind
        self.base = base
        self.reserved = reserved
        self._known = dict(known)

    def register(self, name: str, settings: type[T]) -> None:
        """Adds `settings` as `name`, with the same standing as the classes of this package.

        Raises:
          ValueError: if the name is invalid (it takes lower-case letters, digits and dashes) or another class has it,
            or the class is no frozen dataclass with defaults that inherits `base`.
        """
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
            raise ValueError(f"{name!r} is no name of a {self.kind}: use lower-case letters, digits and dashes")
        if name in self.reserved or self._known.get(name, settings) is not settings:
            raise ValueError(f"another {self.kind} is registered as {name!r}")
        self._check(name, settings)
        self._known[name] = settings

    def name_of(self, settings: Settings) -> str:
        """Returns the name of a class's instance: as registered, else `package.module:Class`."""
        kind = type(settings)
        registered = (name for name, known in self._known.items() if known is kind)
        return next(registered, f"{kind.__module__}:{kind.__name__}")

    def __getitem__(self, name: str) -> type[T]:
        """Returns the class of this name.

        Raises:
          UserError: if the name is neither registered nor that of a class whose module is imported.
        """
        if not isinstance(name, str):
            raise UserError(f"the name of a {self.kind} must be a text, not {name!r}")
        if name in self._known:
            return self._known[name]
        named = [kind for kind in _subclasses(self.base) if f"{kind.__module__}:{kind.__name__}" == name]
        if named:
            try:
                self._check(name, named[-1])  # the newest, where a notebook defines it again
            except ValueError as error:
                raise UserError(f"cannot use {self.kind} {name} ({error}); set `{self.kind}`") from None
            return named[-1]
        if ":" in name:
            raise UserError(
                f"{self.kind} {shown(name)!r} is code from outside this package, which is not run because a file names "
                f"it; if you trust it, set `trust_code` {shown(name)} (in Python, import its module first)"
            )
        known = [*self.reserved, *self._known]
        meant = nearest(name, known) or f"; set `{self.kind}`"
        raise UserError(f"unknown {self.kind} {name!r} (known: {', '.join(known)}){meant}")

    def load(self, name: str) -> type[T]:
        """Returns the class of a name that the user gave; that of `package.module:Class` is imported.

        Raises:
          UserError: if the name is unknown, or no class of settings can be imported by it.
        """
        module, colon, attribute = name.partition(":")
        if not colon or name in self._known:
            return self[name]
        try:
            settings = getattr(importlib.import_module(module), attribute)
            self._check(name, settings)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(f"cannot import {self.kind} {name} ({error}); set `{self.kind}`") from None
        return typing.cast(type[T], settings)

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def _check(self, name: str, settings: Any) -> None:
        parameters = getattr(settings, "__dataclass_params__", None)
        if not isinstance(settings, type) or parameters is None or not parameters.frozen:
            raise ValueError(f"the settings of {self.kind} {name!r} must be a frozen dataclass")
        if not issubclass(settings, self.base):
            raise ValueError(f"the settings of {self.kind} {name!r} must inherit {self.base.__name__}")
        missing = dataclasses.MISSING
        fields_of: Any = settings
        if bare := [f.name for f in dataclasses.fields(fields_of) if f.default is f.default_factory is missing]:
            raise ValueError(f"the setting {bare[0]!r} of {self.kind} {name!r} must have a default")


def _subclasses(kind: type[T]) -> Iterator[type[T]]:
    for own in type.__subclasses__(kind):
        yield own
        yield from _subclasses(own)


def flag_name(name: str) -> str:
    """Returns the prefix of a component's flags: `htd` for `htd`, `my-method` for `package.module:MyMethod`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name.rpartition(":")[2]).replace("_", "-").lower()


def flag_words(name: str, value: Any) -> list[str]:
    """Returns the words of a command line that set a setting.

    >>> flag_words("htd.group_level", "prototype-entity")
    ['--htd.group-level', 'prototype-entity']
    >>> flag_words("htd.noise", False), flag_words("cutoffs", [5, 10])
    (['--htd.no-noise'], ['--cutoffs', '5', '10'])
    >>> flag_words("model", "-x"), flag_words("teacher", (Path("users.npy"), Path("-items.npy")))
    (['--model=-x'], ['--teacher', 'users.npy', './-items.npy'])
    """
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        head, dot, last = flag.rpartition(".")
        return [f"--{flag}" if value else f"--{head}{dot}no-{last}"]
    parts = value if isinstance(value, list | tuple) else [value]
    words = [f"./{part}" if isinstance(part, Path) and str(part)[0] == "-" else str(part) for part in parts]
    if words and words[0].startswith("-"):  # a word of its own that begins with a dash is another flag
        return [f"--{flag}={words[0]}", *words[1:]]
    return [f"--{flag}", *words]


def check(settings: Settings, prefix: str = "") -> None:
    """Checks every field against the limits in its type, and those of settings in a field.

    Args:
      settings: a dataclass.
      prefix: what precedes the fields' names in the message: `htd.`.

    Raises:
      UserError: if a value is invalid: "`htd.groups` must be at least 1, not 0".
    """
    hints = typing.get_type_hints(type(settings), include_extras=True)
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            check(value, prefix)
        elif isinstance(value, Mapping):
            for name, part in value.items():
                check(part, f"{prefix}{name}.")
        elif problem := _problem(value, hints[field.name]):
            raise UserError(f"`{prefix}{field.name}` {problem}")


def as_json(settings: Settings) -> dict[str, Any]:
    """Returns the fields as JSON values: tuples become lists, paths become strings."""
    return {name: _as_json(value) for name, value in dataclasses.asdict(settings).items()}


def override(settings: Settings, **changes: Any) -> Settings:
    """Does what `dataclasses.replace` does, with an error that lists the known settings.

    Raises:
      TypeError: if a setting is unknown.
    """
    known = [field.name for field in dataclasses.fields(settings)]
    if unknown := [name for name in changes if name not in known]:
        meant = nearest(unknown[0], known)
        raise TypeError(
            f"{type(settings).__name__} has no setting {unknown[0]!r}{meant or ';'} it has {', '.join(known)}"
        )
    return dataclasses.replace(settings, **changes)


def _as_json(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_as_json(x) for x in value]
    if isinstance(value, dict):
        return {name: _as_json(x) for name, x in value.items()}
    return str(value) if isinstance(value, Path) else value


def _problem(value: Any, hint: Any) -> str | None:
    """Returns what is wrong with a value of type `hint`, as the end of a sentence; None for a valid one."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _problem(value, next(x for x in arguments if x is not type(None)))
    if origin is typing.Annotated:
        problems = itertools.chain([_problem(value, arguments[0])], (_beyond(value, limit) for limit in arguments[1:]))
        return next(filter(None, problems), None)
    if origin is Literal:
        return None if value in arguments else f"must be one of {', '.join(map(str, arguments))}, not {value!r}"
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return f"must be a sequence of values, not {value!r}"
        return next(filter(None, (_problem(part, arguments[0]) for part in value)), None)
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"must be a number, not {value!r}"
        return None if math.isfinite(value) else f"must be finite, not {value}"
    if hint is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return None if whole else f"must be a whole number, not {value!r}"
    if hint is Path and isinstance(value, Path):
        try:
            str(value).encode()
        except UnicodeEncodeError:
            return f"must be a path in UTF-8, which checkpoints need, not {shown(value)}"
    elif isinstance(hint, type) and not isinstance(value, hint):
        return f"must be of type {hint.__name__}, not {value!r}"
    return None


def _beyond(value: Any, limit: Any) -> str | None:
    """Returns how a number exceeds a limit, as the end of a sentence; None within it."""
    if isinstance(limit, annotated_types.Ge) and not value >= limit.ge:
        return f"must be at least {limit.ge}, not {value}"
    if isinstance(limit, annotated_types.Gt) and not value > limit.gt:
        return f"must be more than {limit.gt}, not {value}"
    if isinstance(limit, annotated_types.Interval):
        low, high = limit.ge, limit.le if limit.le is not None else limit.lt
        inside = value >= low and (value <= high if limit.le is not None else value < high)
        if not inside:
            return f"must lie in [{low}, {high}{']' if limit.le is not None else ')'}, not {value}"
    return None
