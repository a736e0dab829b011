"""Flags from dataclasses of settings, with help, and errors in a line."""

import contextlib
import dataclasses
import io
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
      SystemExit: after `--help`.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(settings, args=list(arguments), prog=prog, description=description)
    except SystemExit as stop:
        if stop.code == 2:
            lines = [line.strip("│|+ ") for line in box.getvalue().splitlines() if line[:1] not in "╭╰+"]
            rule = next((i for i, line in enumerate(lines) if line[:3] in ("───", "---")), None)
            reason = " ".join(lines[:rule]).rstrip(". ")
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
    if "--help" in arguments or "-h" in arguments:
        own = _shown(names, own)
        common = {} if "method" in names else COMMON
    else:
        common = COMMON
        arguments = _moved(arguments, names)
    flags: Any = parse(_flags(common, own), arguments, prog=prog, description=_description(description, names, common))
    parts = {name: getattr(flags, name) for name in COMMON}
    default = {name: settings() for name, settings in own.items()}
    given = {name: getattr(flags, _field(name)) for name, of in own.items() if dataclasses.fields(of)}
    config = Config(**parts, own={name: value for name, value in given.items() if value != default[name]})
    used = {flag_name(name) for name in (*config.what.method.split("+"), config.what.model, config.what.dataset)}
    if idle := [name for name in config.own if name not in used]:
        print(f"note: --{idle[0]}... changes nothing here: this run has no {idle[0]}")
    if config.reading != Reading() and (config.places.split_file or not is_path(config.what.dataset)):
        print("note: how a file is read changes nothing here: --dataset names none")
    return config


def _flags(common: dict[str, type], own: dict[str, type]) -> type:
    """One dataclass of all of them: common flags without a prefix, the others after their component's name."""
    here = tyro.conf.arg(name="")
    fields: list[Any] = [(name, Annotated[of, here], dataclasses.field(default=of())) for name, of in common.items()]
    fields += [
        (_field(name), of, dataclasses.field(default=of())) for name, of in own.items() if dataclasses.fields(of)
    ]
    return dataclasses.make_dataclass("Flags", fields, frozen=True)


def _shown(names: dict[str, list[str]], own: dict[str, type]) -> dict[str, type]:
    """What `--help` shows of the components' own flags: of those that were named, if any were."""
    named = [flag_name(name) for names_of in names.values() for name in names_of]
    return {name: own[name] for name in named if name in own} if named else own


def _description(description: str, names: dict[str, list[str]], common: dict[str, type]) -> str:
    if not common:
        named = " and ".join(name for of in names.values() for name in of)
        return f"The flags of {named} alone; --help lists the others too."
    known = "\n".join(f"  --{what}: {', '.join([*of.besides, *of])}" for what, of in REGISTRIES.items())
    return f"{description}\n\n{known} (several: htd+fitnet)"


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
