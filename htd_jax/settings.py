"""Settings: frozen dataclasses that carry their defaults, help and limits; flags, checks and JSON follow from them.

A field's limits stand in its type: `Annotated[int, Ge(1)]` (of `annotated_types`), `Literal["positive", "all"]`, or
None beside either. Every float must be finite. Its help is the string under it.
"""

import dataclasses
import importlib
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import annotated_types

from htd_jax.errors import UserError, shown

# Settings are any frozen dataclass: no base class is inherited.
Settings = Any


T = TypeVar("T")


class Registry(Mapping[str, type[T]], Generic[T]):
    """Classes of settings by name; a name of the form `package.module:Class` is imported.

    Args:
      what: what a name stands for, in the user's words: `method`.
      known: the classes that come with this package.
      besides: names that a user may give too, and that stand for no class: `none`.
      base: the class that every one of them inherits, with the capabilities that it may declare.
    """

    def __init__(self, what: str, known: dict[str, type[T]], besides: tuple[str, ...] = (), *, base: type[T]):
        self.what = what
        self.base = base
        self.besides = besides
        self._known = dict(known)

    def register(self, name: str, settings: type[T]) -> None:
        """Makes `settings` known as `name`, with the same standing as those that come with this package.

        Raises:
          ValueError: another class has that name, or it is no name: lower-case letters, digits and dashes.
        """
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
            raise ValueError(f"{name!r}: a {self.what}'s name is of lower-case letters, digits and dashes")
        if name in self.besides or self._known.get(name, settings) is not settings:
            raise ValueError(f"{self.what} {name!r} is known already")
        self._check(name, settings)
        self._known[name] = settings

    def name_of(self, settings: Settings) -> str:
        """Returns the name of a class's instance: as registered, else `package.module:Class`."""
        kind = type(settings)
        registered = (name for name, known in self._known.items() if known is kind)
        return next(registered, f"{kind.__module__}:{kind.__name__}")

    def __getitem__(self, name: str) -> type[T]:
        """Raises UserError for a name that is neither known nor that of a class that can be imported."""
        if name in self._known:
            return self._known[name]
        module, colon, attribute = name.partition(":")
        if not colon:
            known = ", ".join([*self.besides, *self._known])
            raise UserError(f"--{self.what}: unknown {self.what} {name!r}; known: {known}")
        try:
            settings = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(f"--{self.what}: {name}: cannot be imported ({error})") from None
        try:
            self._check(name, settings)
        except ValueError as error:
            raise UserError(f"--{self.what}: {error}") from None
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
            raise ValueError(f"{name}: a {self.what} is a class of settings, a frozen dataclass")
        if not issubclass(settings, self.base):
            raise ValueError(f"{name}: a {self.what}'s settings inherit {self.base.__name__}")
        missing = dataclasses.MISSING
        fields_of: Any = settings
        if bare := [f.name for f in dataclasses.fields(fields_of) if f.default is f.default_factory is missing]:
            raise ValueError(f"{name}: its setting {bare[0]} has no default")


def flag_name(name: str) -> str:
    """The name that a component's flags begin with: `htd`; of `package.module:MyMethod`, `my-method`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name.rpartition(":")[2]).replace("_", "-").lower()


def typed(name: str, value: Any) -> list[str]:
    """A setting as it is typed: its flag and value, or values; of what is true or false the flag, or its no.

    >>> typed("htd.group_level", "prototype-entity"), typed("htd.noise", False), typed("cutoffs", [5, 10])
    (['--htd.group-level', 'prototype-entity'], ['--htd.no-noise'], ['--cutoffs', '5', '10'])
    """
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        head, dot, last = flag.rpartition(".")
        return [f"--{flag}" if value else f"--{head}{dot}no-{last}"]
    return [f"--{flag}", *map(str, value if isinstance(value, list | tuple) else [value])]


def check(settings: Settings, prefix: str = "") -> None:
    """Checks every field against the limits in its type.

    Args:
      settings: a dataclass.
      prefix: what its flags begin with, for the message: `htd.`.

    Raises:
      UserError: the first value that is not possible, by its flag.
    """
    hints = typing.get_type_hints(type(settings), include_extras=True)
    for field in dataclasses.fields(settings):
        _check(f"--{prefix}{field.name.replace('_', '-')}", getattr(settings, field.name), hints[field.name])


def as_json(settings: Settings) -> dict[str, Any]:
    """The fields as JSON has them: tuples are lists, paths are strings."""
    return {name: _as_json(value) for name, value in dataclasses.asdict(settings).items()}


def override(settings: Settings, **changes: Any) -> Settings:
    """`dataclasses.replace`, whose error names what there is.

    Raises:
      TypeError: there is no such setting.
    """
    known = [field.name for field in dataclasses.fields(settings)]
    if unknown := [name for name in changes if name not in known]:
        raise TypeError(f"{type(settings).__name__} has no setting {unknown[0]!r}; it has {', '.join(known)}")
    return dataclasses.replace(settings, **changes)


def _as_json(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_as_json(x) for x in value]
    if isinstance(value, dict):
        return {name: _as_json(x) for name, x in value.items()}
    return str(value) if isinstance(value, Path) else value


def _check(flag: str, value: Any, hint: Any) -> None:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return
        return _check(flag, value, next(x for x in arguments if x is not type(None)))
    if origin is typing.Annotated:
        _check(flag, value, arguments[0])
        for limit in arguments[1:]:
            _check_limit(flag, value, limit)
    elif origin is Literal:
        if value not in arguments:
            raise UserError(f"{flag}: unknown value {value!r}; known: {', '.join(map(str, arguments))}")
    elif origin is tuple:
        if not isinstance(value, tuple | list):
            raise UserError(f"{flag}: must be several values, not {value!r}")
        for part in value:
            _check(flag, part, arguments[0])
    elif hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{flag}: must be a number, not {value!r}")
        if not math.isfinite(value):
            raise UserError(f"{flag}: must be finite, not {value}")
    elif hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"{flag}: must be a whole number, not {value!r}")
    elif hint is Path and isinstance(value, Path):
        try:
            str(value).encode()
        except UnicodeEncodeError:
            raise UserError(f"{flag}: {shown(value)}: the path is no UTF-8, which the checkpoints need") from None
    elif isinstance(hint, type) and not isinstance(value, hint):
        raise UserError(f"{flag}: must be of type {hint.__name__}, not {value!r}")


def _check_limit(flag: str, value: Any, limit: Any) -> None:
    if isinstance(limit, annotated_types.Ge):
        if not value >= limit.ge:
            raise UserError(f"{flag}: must be at least {limit.ge}, not {value}")
    elif isinstance(limit, annotated_types.Gt):
        if not value > limit.gt:
            raise UserError(f"{flag}: must be more than {limit.gt}, not {value}")
    elif isinstance(limit, annotated_types.Interval):
        low, high = limit.ge, limit.le if limit.le is not None else limit.lt
        inside = value >= low and (value <= high if limit.le is not None else value < high)
        if not inside:
            raise UserError(f"{flag}: must lie in [{low}, {high}{']' if limit.le is not None else ')'}, not {value}")
