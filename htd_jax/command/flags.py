"""Flags and help from dataclasses of settings."""

import dataclasses
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import tyro

from htd_jax.command.parsing import import_trusted, parse, parse_flags, typed, value_of, with_help, working_directory
from htd_jax.data import SOURCES, Reading, is_path
from htd_jax.distillers import METHODS
from htd_jax.errors import UserError, nearest
from htd_jax.evaluation import Evaluation, load_metric
from htd_jax.models import MODELS, ModelSettings
from htd_jax.pipeline import Devices, Paths, RunRequest, RunSettings
from htd_jax.settings import Registry, as_json, check, flag_name
from htd_jax.training import Training, resolve_training
from htd_jax.training.settings import Loss

T = TypeVar("T")

COMMON = {
    "settings": RunSettings,
    "training": Training,
    "evaluation": Evaluation,
    "paths": Paths,
    "reading": Reading,
    "devices": Devices,
}

# The flags that `--help` shows, a screenful; `--help TOPIC` shows others.
FIRST = {
    "settings": ("dataset", "model", "method", "seed", "teacher_dim", "student_dim", "bytes"),
    "training": ("epochs", "patience"),
    "evaluation": ("protocol", "cutoffs"),
    "paths": ("teacher", "runs", "run"),
}
ALL = {part: tuple(field.name for field in dataclasses.fields(kind)) for part, kind in COMMON.items()}
TOPICS = {
    "data": {"reading": ALL["reading"], "paths": ("data_dir", "split_file", "split_files")},
    "teacher": {
        "paths": ("teacher", "teacher_user_ids", "teacher_item_ids", "until", "trust_code"),
        "settings": ("teacher_model", "teacher_dim"),
        "training": ("keep_stages",),
    },
    "training": {
        "training": ALL["training"],
        "settings": ("seed", "precision", "prefixes", "student_init", "budget"),
        "paths": ("plain_student", "tensorboard", "curves"),
    },
    "evaluation": {"evaluation": ALL["evaluation"]},
    "devices": {"devices": ALL["devices"]},
    "all": ALL,
}

# The paths of a command that reads a data set and trains nothing.
DATA_PATHS = ("data_dir", "split_file", "split_files", "trust_code")

REGISTRIES: dict[str, Registry[Any]] = {"dataset": SOURCES, "model": MODELS, "method": METHODS}

# Earlier names of flags, and the settings that they set, by component.
RENAMED = {
    "--weight": {name: "weight" for name, method in METHODS.items() if method.trains},
    "--groups": {"htd": "groups", "de": "experts"},
    **{
        f"--{name}": {"htd": name}
        for name in ("alpha", "group-level", "pairs", "levels", "grouping", "noise", "no-noise")
    },
    "--layers": {"lightgcn": "layers", "neumf": "layers"},
    **{f"--{name}": dict.fromkeys(("citeulike-t", "foursquare"), name) for name in ("min-interactions", "split-seed")},
}

# The flags of a run that may name a class as `package.module:Class`.
NAMING: dict[str, Registry[Any]] = {
    "--dataset": SOURCES,
    "--model": MODELS,
    "--teacher-model": MODELS,
    "--method": METHODS,
    "--methods": METHODS,
}


def import_typed(arguments: Sequence[str]) -> None:
    """Imports the classes and the metric that the user's own words name, and what `--trust-code` names.

    Names that stand in files, also in that of `--file`, are looked up among what is imported then, see `Registry`.

    Args:
      arguments: of a run or a study, as typed.

    Raises:
      UserError: if one cannot be imported.
    """
    import_trusted(arguments)
    with working_directory():
        for flag, word in typed(arguments):
            for name in word.split("+") if NAMING.get(flag) is METHODS else [word]:
                if flag in NAMING and ":" in name and not is_path(name):
                    NAMING[flag].load(name)
            if flag == "--metric" and ":" in word:
                load_metric(word)


def parse_request(arguments: Sequence[str], *, prog: str, description: str, refuses: bool = False) -> RunRequest:
    """Returns a run from its flags: the common ones, and those of each data set, model and method: `--htd.groups 60`.

    Args:
      arguments: the flags.
      prog, description: the head of the help.
      refuses: whether flags of a method, model or data set that is not used are an error, in place of a note.

    Raises:
      UserError: if a flag or a value is invalid, or, if `refuses`, not used.
      SystemExit: after `--help`.
    """
    arguments = _with_prefixes(arguments)
    chosen = {kind: value for kind in REGISTRIES if (value := value_of(arguments, kind))}
    names = {kind: value.split("+") if kind == "method" else [value] for kind, value in chosen.items()}
    components: dict[str, type] = {}
    for kind, registry in REGISTRIES.items():
        custom = [name for name in names.get(kind, []) if ":" in name and not is_path(name)]
        components |= {flag_name(name): registry[name] for name in dict.fromkeys([*registry, *custom])}
    if at := next((i for i, argument in enumerate(arguments, 1) if argument in ("--help", "-h")), None):
        topic = arguments[at] if at < len(arguments) and arguments[at][:1] != "-" else None
        show_help(topic, names, components, prog=prog, description=description)
    flags: Any = parse(_flags(COMMON, components), _rename(arguments, names), prog=prog)
    given = {name: getattr(flags, _field(name)) for name, kind in components.items() if dataclasses.fields(kind)}
    request = RunRequest(
        **{name: getattr(flags, name) for name in COMMON},
        components={name: value for name, value in given.items() if value != components[name]()},
    )
    if refuses and (ignored := unused(request)):
        own = request.components[ignored[0]]
        setting = next(n for n, x in as_json(own).items() if x != as_json(type(own)())[n])
        raise UserError(f"no run uses {ignored[0]}, of which `{ignored[0]}.{setting}` is set; leave it out")
    _note_ignored(request, arguments)
    return request


def parse_with_data(
    settings: type[T], arguments: Sequence[str], *, prog: str, description: str
) -> tuple[T, RunRequest]:
    """Returns a command's own settings, and a request of its data alone: the flags of `train` for reading a data set.

    Raises:
      UserError: if a flag or a value is invalid.
      SystemExit: after `--help`, which shows the flags for reading only if a data set is named.
    """
    import_typed(arguments)
    name = value_of(arguments, "dataset")
    custom = [name] if name and ":" in name and not is_path(name) else []
    sources: dict[str, type] = {flag_name(name): SOURCES[name] for name in [*SOURCES, *custom]}
    common = {"settings": with_help(RunSettings, ("dataset",)), "paths": with_help(Paths, DATA_PATHS)}
    unnamed = tyro.conf.arg(name="")
    if {"--help", "-h"} & set(arguments):
        kinds = [with_help(settings), *common.values(), *([with_help(Reading)] if name else [])]
        fields: list[Any] = [(f"part{k}", Annotated[kind, unnamed]) for k, kind in enumerate(kinds)]
        about = f"{description}\n\nMore flags, for reading and splitting a file: --help with --dataset FILE."
        parse_flags(dataclasses.make_dataclass("Help", fields), ["--help"], prog=prog, description=about)
    others = _flags({**common, "reading": Reading}, sources)
    own: list[Any] = [("own", Annotated[settings, unnamed])]
    both = dataclasses.make_dataclass("Flags", own, bases=(others,), frozen=True, kw_only=True)
    flags: Any = parse(both, arguments, prog=prog)
    given = {name: getattr(flags, _field(name)) for name, kind in sources.items() if dataclasses.fields(kind)}
    request = RunRequest(
        RunSettings(dataset=flags.settings.dataset),
        paths=Paths(**{name: getattr(flags.paths, name) for name in DATA_PATHS}),
        reading=flags.reading,
        components={name: value for name, value in given.items() if value != sources[name]()},
    )
    check(flags.own)
    _note_ignored(request, arguments)
    return flags.own, request


def _with_prefixes(arguments: Sequence[str]) -> Sequence[str]:
    """Replaces several values of `--bytes` by the prefixes of one student in int4 that take so many bytes.

    Raises:
      UserError: if a value is not a whole number of at least 1, or width or precision are given too.
    """
    words = [*typed(arguments)]
    sizes = [value for flag, value in words if flag == "--bytes"]
    if len(sizes) < 2:
        return arguments
    if any(flag in ("--precision", "--student-dim", "--prefixes") for flag, _ in words):
        raise UserError("several values of `bytes` determine `precision` and `prefixes`; leave out one or the other")
    if not all(size.isascii() and size.isdecimal() and int(size) > 0 for size in sizes):
        raise UserError(f"`bytes` must be whole numbers of at least 1, not {' '.join(sizes)}")
    rest: list[str] = []
    inside = False
    for word in arguments:
        inside = word.partition("=")[0] == "--bytes" if word.startswith("--") else inside
        rest += [] if inside else [word]
    widths = sorted({2 * int(size) for size in sizes})  # two numbers per byte
    return [*rest, "--precision", "int4", "--prefixes", *map(str, widths)]


def _rename(arguments: Sequence[str], names: Mapping[str, list[str]]) -> list[str]:
    """Replaces earlier names of flags by today's, for the components of this run; prints a note for each."""
    defaults = RunSettings()
    chosen = {flag_name(name) for kind in REGISTRIES for name in names.get(kind, [getattr(defaults, kind)])}
    renamed: list[str] = []
    rest = list(arguments)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if flag not in RENAMED:
            renamed.append(flag + equals + value)
            continue
        values = [value] if equals else [] if flag.endswith("noise") else [rest.pop(0)] if rest else []
        flags = {name: f"--{name}.{setting}" for name, setting in RENAMED[flag].items()}
        now = [new for name, new in flags.items() if name in chosen]
        print(f"note: {flag} is now {' and '.join(now) or ' or '.join(flags.values()) + ', and is ignored'}")
        renamed += [word for new in now for word in (new, *values)]
    return renamed


def default_settings(model: str, loss: Any = None, methods: Iterable[str] = ()) -> dict[str, Any]:
    """Returns the defaults of all common settings by name, with those of a model, loss and methods."""
    common = {name: x for kind in COMMON.values() for name, x in as_json(kind()).items()}
    settings = MODELS[model] if model in [*MODELS] else ModelSettings
    own = {name: x for method in methods if method in METHODS for name, x in METHODS[method].training_defaults.items()}
    training = Training(loss=loss if loss in typing.get_args(Loss) else None)  # what a file holds may be anything
    return common | as_json(
        resolve_training(training, None, epochs=settings.epochs, defaults=own, batches=settings.batches)
    )


def unused(request: RunRequest) -> list[str]:
    """Returns the prefixes of the flags that are given and that the run does not use."""
    used = request.used
    return [name for name in request.components if name not in used]


def _note_ignored(request: RunRequest, arguments: Sequence[str]) -> None:
    """Prints a line for flags that the run does not use."""
    for name in unused(request):
        print(f"note: --{name}.* is ignored, because this run does not use {name}")
    if request.split_given and value_of(arguments, "dataset"):
        flag = "--split-files" if request.paths.split_files else "--split-file"
        print(f"note: --dataset is ignored, because {flag} names the data")
    if request.reading != Reading() and request.data_file is None:
        print("note: flags for reading a file are ignored, because --dataset names no file")


def show_help(
    topic: str | None, names: dict[str, list[str]], components: dict[str, type], *, prog: str, description: str
) -> None:
    """Prints the most common flags, or those of a topic or a component, which may be named by other flags; then exits.

    Raises:
      SystemExit: always.
      UserError: if the topic is unknown.
    """
    named = [flag_name(name) for own in names.values() for name in own if flag_name(name) in components]
    if topic is None and not named and names.get("dataset") and is_path(names["dataset"][0]):
        topic = "data"
    common: dict[str, tuple[str, ...]] = {}
    if topic in TOPICS:
        common, shown = TOPICS[topic], list(components) if topic == "all" else []
    elif topic in components or (topic is None and named):
        shown = [topic] if topic else named
    elif topic is None:
        common, shown = FIRST, []
    else:
        topics = [*TOPICS, *components]
        raise UserError(f"--help has no topic {topic!r} (known: {', '.join(topics)}){nearest(topic, topics)}")
    unnamed = tyro.conf.arg(name="")
    kinds = [(part, with_help(COMMON[part], fields), True) for part, fields in common.items()]
    kinds += [(_field(name), with_help(components[name]), False) for name in shown]
    fields: list[Any] = [
        (name, Annotated[kind, unnamed] if is_common else kind, dataclasses.field(default=kind()))
        for name, kind, is_common in kinds
        if dataclasses.fields(kind)
    ]
    about = f"Flags: {topic or ' and '.join(named)}. --help shows the most common flags, --help all shows every flag."
    if common is FIRST:
        known = "\n".join(f"  --{kind}: {', '.join([*own.reserved, *own])}" for kind, own in REGISTRIES.items())
        others = f"--help TOPIC, where TOPIC is {', '.join(TOPICS)}, or a method, model or data set"
        about = f"{description}\n\n{known} (several: htd+fitnet)\n\nMore flags: {others}."
    parse_flags(dataclasses.make_dataclass("Help", fields), ["--help"], prog=prog, description=about)


def _flags(common: dict[str, type], components: dict[str, type]) -> type:
    """Returns one dataclass of all flags: common ones without a prefix, others after their component's name."""
    unnamed = tyro.conf.arg(name="")
    kinds: list[Any] = [(name, kind, Annotated[kind, unnamed]) for name, kind in common.items()]
    kinds += [(_field(name), kind, kind) for name, kind in components.items() if dataclasses.fields(kind)]
    fields: list[Any] = [(name, hint, dataclasses.field(default=kind())) for name, kind, hint in kinds]
    return dataclasses.make_dataclass("Flags", fields, frozen=True)


def _field(name: str) -> str:
    return name.replace("-", "_")
