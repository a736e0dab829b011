"""Flags from dataclasses of settings, with help, and errors in a line."""

import ast
import contextlib
import dataclasses
import inspect
import io
import itertools
import re
import textwrap
import typing
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import tyro

from htd_jax.data import SOURCES, Reading, is_path
from htd_jax.distillers import METHODS
from htd_jax.errors import UserError
from htd_jax.evaluation import Evaluation
from htd_jax.models import MODELS
from htd_jax.pipeline import Config, Places, What
from htd_jax.settings import Registry, flag_name
from htd_jax.training import Training

T = TypeVar("T")

COMMON = {"what": What, "training": Training, "evaluation": Evaluation, "places": Places, "reading": Reading}

# What `--help` shows, a screen of it; `--help TOPIC` shows the rest.
FIRST = {
    "what": ("dataset", "model", "method", "seed", "teacher_dim", "student_dim", "bytes"),
    "training": ("epochs", "patience"),
    "evaluation": ("protocol", "cutoffs"),
    "places": ("teacher", "runs", "run"),
}
ALL = {part: tuple(field.name for field in dataclasses.fields(of)) for part, of in COMMON.items()}
TOPICS = {
    "data": {"reading": ALL["reading"], "places": ("data_dir", "split_file")},
    "teacher": {
        "places": ("teacher", "teacher_user_ids", "teacher_item_ids"),
        "what": ("teacher_model", "teacher_dim"),
    },
    "training": {
        "training": ALL["training"],
        "what": ("seed", "precision", "student_init"),
        "places": ("tensorboard",),
    },
    "evaluation": {"evaluation": ALL["evaluation"]},
    "all": ALL,
}

REGISTRIES: dict[str, Registry] = {"dataset": SOURCES, "model": MODELS, "method": METHODS}

# Flags of before: now, by the component that has them. One that no chosen component has is let be.
MOVED = {
    "--weight": {name: "weight" for name in METHODS if name != "svd"},
    "--groups": {"htd": "groups", "de": "experts"},
    "--alpha": {"htd": "alpha"},
    "--group-level": {"htd": "group-level"},
    "--pairs": {"htd": "pairs"},
    "--levels": {"htd": "levels"},
    "--grouping": {"htd": "grouping"},
    "--noise": {"htd": "noise"},
    "--no-noise": {"htd": "no-noise"},
    "--layers": {"lightgcn": "layers", "neumf": "layers"},
    "--min-interactions": {"citeulike-t": "min-interactions", "foursquare": "min-interactions"},
    "--split": {"citeulike-t": "split", "foursquare": "split"},
    "--split-seed": {"citeulike-t": "split-seed", "foursquare": "split-seed"},
}


def parse(settings: type[T], arguments: Sequence[str], *, prog: str, description: str | None = None) -> T:
    """A dataclass from flags.

    Raises:
      UserError: what tyro has against them, which it would put in a box.
      SystemExit: after `--help`, which tells of the dataclass's own flags, not of those of its parts.
    """
    if {"--help", "-h"} & set(arguments):
        hints = typing.get_type_hints(settings)
        own = [f.name for f in dataclasses.fields(settings) if not dataclasses.is_dataclass(hints[f.name])]  # type: ignore[arg-type]
        _parse(_helped(settings, tuple(own)), ["--help"], prog=prog, description=description)
    return _parse(settings, arguments, prog=prog, description=description)


def parse_known(
    settings: type[T], arguments: Sequence[str], *, prog: str, description: str | None = None
) -> tuple[T, list[str]]:
    """As `parse`; and the arguments that are not among its flags, in their order."""
    known = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(settings)]  # type: ignore[arg-type]
    own: list[str] = []
    rest: list[str] = []
    into = rest
    for argument in itertools.chain.from_iterable(map(_split_equals, arguments)):
        if argument[:2] == "--" or argument == "-h":
            into = own if argument in (*known, "--help", "-h") else rest
        into.append(argument)
    return parse(settings, own, prog=prog, description=description), rest


def _parse(settings: type[T], arguments: Sequence[str], *, prog: str, description: str | None = None) -> T:
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            config = (tyro.conf.DisallowNone,)
            return tyro.cli(settings, args=list(arguments), prog=prog, description=description, config=config)
    except SystemExit as stop:
        if stop.code == 2:
            lines = [line.strip("│|+ ") for line in box.getvalue().splitlines() if line[:1] not in "╭╰+"]
            rule = next((i for i, line in enumerate(lines) if line[:3] in ("───", "---")), None)
            reason = " ".join(lines[:rule]).rstrip(". ")
            wanted = r"(<class '\w+'>|typing\.Annotated\[.*?\)\])"
            reason = re.sub(rf"no type matching .* Got errors: - {wanted}: ", "", reason)
            raise UserError(f"{reason}; --help lists every flag") from None
        raise


def parse_config(arguments: Sequence[str], *, prog: str, description: str) -> Config:
    """A run from its flags: the common ones, and each data set's, model's and method's own, `--htd.groups 60`.

    Raises:
      UserError: a flag or a value that cannot be.
      SystemExit: after `--help`.
    """
    arguments = [part for argument in arguments for part in _split_equals(argument)]
    chosen = {what: value for what in REGISTRIES if (value := _value(arguments, what))}
    names = {what: value.split("+") if what == "method" else [value] for what, value in chosen.items()}
    own: dict[str, type] = {}
    for what, registry in REGISTRIES.items():
        for name in dict.fromkeys(
            [*registry, *(name for name in names.get(what, []) if ":" in name and not is_path(name))]
        ):
            own[flag_name(name)] = registry[name]
    if asked := next((i for i, argument in enumerate(arguments, 1) if argument in ("--help", "-h")), None):
        topic = arguments[asked] if asked < len(arguments) and arguments[asked][:1] != "-" else None
        show_help(topic, names, own, prog=prog, description=description)
    flags: Any = parse(_flags(COMMON, own), _moved(arguments, names), prog=prog)
    parts = {name: getattr(flags, name) for name in COMMON}
    default = {name: settings() for name, settings in own.items()}
    given = {name: getattr(flags, _field(name)) for name, of in own.items() if dataclasses.fields(of)}
    config = Config(**parts, own={name: value for name, value in given.items() if value != default[name]})
    used = {
        flag_name(name)
        for name in (
            *config.what.method.split("+"),
            config.what.model,
            config.what.teacher_model or "",
            config.what.dataset,
        )
    }
    if idle := [name for name in config.own if name not in used]:
        print(f"note: --{idle[0]}... changes nothing here: this run has no {idle[0]}")
    if config.places.split_file and "--dataset" in arguments:
        print("note: --dataset changes nothing here: --split-file names the data")
    if config.reading != Reading() and (config.places.split_file or not is_path(config.what.dataset)):
        print("note: how a file is read changes nothing here: --dataset names none")
    return config


def show_help(
    topic: str | None, names: dict[str, list[str]], own: dict[str, type], *, prog: str, description: str
) -> None:
    """Prints what there is to say, and exits: of the flags that most users need; of a topic; or of a method, a model or
    a data set, one that is named in the same command too.

    Raises:
      SystemExit: always.
      UserError: there is no such topic.
    """
    named = [flag_name(name) for of in names.values() for name in of if flag_name(name) in own]
    if topic is None and names.get("dataset") and is_path(names["dataset"][0]):
        topic = "data"
    common: dict[str, tuple[str, ...]] = {}
    if topic in TOPICS:
        common, shown = TOPICS[topic], list(own) if topic == "all" else []
    elif topic in own or (topic is None and named):
        shown = [topic] if topic else named
    elif topic is None:
        common, shown = FIRST, []
    else:
        raise UserError(f"--help: no topic {topic!r}; there are {', '.join([*TOPICS, *own])}")
    here = tyro.conf.arg(name="")
    groups: list[tuple[str, Any, Any]] = [
        (part, Annotated[helped, here], helped())
        for part, of in common.items()
        for helped in [_helped(COMMON[part], of)]
    ]
    groups += [
        (_field(name), helped, helped())
        for name in shown
        for helped in [_helped(own[name])]
        if dataclasses.fields(helped)
    ]
    told = f"The flags of {topic or ' and '.join(named)}; --help lists the most needed ones, --help all every one."
    if common is FIRST:
        known = "\n".join(f"  --{what}: {', '.join([*of.besides, *of])}" for what, of in REGISTRIES.items())
        others = f"--help TOPIC: {', '.join(TOPICS)}, or a method, model or data set"
        told = f"{description}\n\n{known} (several: htd+fitnet)\n\nMore flags: {others}."
    fields: list[Any] = [(name, of, dataclasses.field(default=default)) for name, of, default in groups]
    _parse(dataclasses.make_dataclass("Help", fields), ["--help"], prog=prog, description=told)


def _helped(settings: type, names: tuple[str, ...] | None = None) -> type:
    """A dataclass of some of the fields, or all, each with the string under it as its help."""
    hints = typing.get_type_hints(settings, include_extras=True)
    docs = _docs(settings)
    fields: list[Any] = []
    for field in dataclasses.fields(settings):
        if names is None or field.name in names:
            none = {"help_behavior_hint": ""} if field.default in (None, ()) else {}
            of: Any = hints[field.name]
            hint = Annotated[of, tyro.conf.arg(help=docs.get(field.name, ""), **none)]
            fields.append((field.name, hint, _default(field)))
    return dataclasses.make_dataclass(settings.__name__, fields, frozen=True)


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory)
    return dataclasses.field(default=field.default) if field.default is not dataclasses.MISSING else dataclasses.field()


def _docs(settings: type) -> dict[str, str]:
    """The string under each field, on one line."""
    docs: dict[str, str] = {}
    for of in reversed(settings.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(of))).body[0].body  # type: ignore[attr-defined]
        for field, under in itertools.pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(under, ast.Expr)
                and isinstance(under.value, ast.Constant)
            ):
                docs[field.target.id] = " ".join(str(under.value.value).split())  # type: ignore[union-attr]
    return docs


def _flags(common: dict[str, type], own: dict[str, type]) -> type:
    """One dataclass of all of them: common flags without a prefix, the others after their component's name."""
    here = tyro.conf.arg(name="")
    fields: list[Any] = [(name, Annotated[of, here], dataclasses.field(default=of())) for name, of in common.items()]
    fields += [
        (_field(name), of, dataclasses.field(default=of())) for name, of in own.items() if dataclasses.fields(of)
    ]
    return dataclasses.make_dataclass("Flags", fields, frozen=True)


def _field(name: str) -> str:
    return name.replace("-", "_")


def _split_equals(argument: str) -> list[str]:
    name, equals, value = argument.partition("=")
    return [name, value] if equals and name.startswith("--") else [argument]


def _value(arguments: Sequence[str], what: str) -> str | None:
    flag = f"--{what}"
    places = [i for i, argument in enumerate(arguments[:-1]) if argument == flag]
    return arguments[places[-1] + 1] if places else None


def _moved(arguments: list[str], names: dict[str, list[str]]) -> list[str]:
    """The arguments with flags of before as they are called now; each is said in a line."""
    defaults = {"dataset": ["synthetic"], "model": ["bpr"], "method": ["htd"]}
    chosen = {flag_name(name) for what in REGISTRIES for name in names.get(what, defaults[what])}
    result: list[str] = []
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if flag not in MOVED or (flag in ("--split", "--split-seed") and not chosen & set(MOVED[flag])):
            result.append(flag)
            continue
        places = MOVED[flag]
        values = [] if flag.endswith("noise") else rest[:1]
        rest = rest[len(values) :]
        now = {name: f"--{name}.{setting}" for name, setting in places.items() if name in chosen}
        by_name = dict(part.partition("=")[::2] for part in values[0].split(",")) if values and "=" in values[0] else {}
        said = " and ".join(now.values()) or " or ".join(f"--{name}.{setting}" for name, setting in places.items())
        if now and (unknown := [name for name in by_name if name not in now]):
            raise UserError(f"{flag}: {unknown[0]!r} is no method of this run; it has {', '.join(now)}")
        print(f"note: {flag} is now {said}")
        for name, new in now.items():
            if not by_name or name in by_name:
                result += [new, *([by_name[name]] if by_name else values)]
    return result
