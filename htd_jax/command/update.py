"""Updates a trained student by new interactions, without a new start: new users and items get rows, and old ids keep
theirs. Evaluates it before and after, on old and on new held-out interactions, and writes a run folder."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from annotated_types import Ge, Interval
from rich.console import Console
from rich.table import Table

from htd_jax.command.flags import import_typed
from htd_jax.command.parsing import import_trusted, parse
from htd_jax.data import Reading, grow, is_path, read_log, read_new
from htd_jax.distillers import METHODS, Replay
from htd_jax.errors import UserError, as_flags, shown
from htd_jax.evaluation import shown_metrics
from htd_jax.settings import as_json, check, override
from htd_jax.training import Training


@dataclasses.dataclass(frozen=True)
class Options:
    """Updates a run's student, or an exported one, by new interactions."""

    dataset: str
    """File of the new interactions, or of a log that holds them: what the model knows is left out. Flags for reading a
    file are those of htd-jax train; their defaults are those of the run."""
    run: Path | None = None
    """Folder of the run to update; give this or --model."""
    model: Path | None = None
    """Folder of the export to update; give this or --run. Only with its known pairs (export --seen) is it known what is
    new, and what may be recommended."""
    phase: str | None = None
    """Phase of the run: teacher, student, or the method's name. Default: the distilled student."""
    to: Path | None = None
    """Run folder to write; the same command resumes there. Default: the run's, with the file's name added."""
    teacher: tuple[Path, ...] = ()
    """Teacher to learn from, too, over old and new ids: an export, tables or lists, as for htd-jax train."""
    method: str | None = None
    """Methods that keep what the model was. Default: replay, or listwise if it was trained with the softmax loss; with
    a teacher, the run's own method."""
    sweeps: Annotated[int, Ge(0)] = 1
    """Full sweeps of iALS after the rows of new users and items are solved for; 0 keeps old rows as they are."""
    seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0
    """Random seed; the same seed gives the same bits."""
    replay: Replay = dataclasses.field(default_factory=Replay)
    reading: Annotated[Reading, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Reading)
    training: Annotated[Training, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Training)
    trust_code: tuple[str, ...] = ()
    """Modules, or package.module:Class, that are imported because runs name models or methods of theirs, and
    package.module:function, a metric to add. Their code runs; without this flag, a file's name runs none."""


def update(arguments: Sequence[str], prog: str = "htd-jax update") -> None:
    from htd_jax.command import use_devices
    from htd_jax.pipeline import (
        RunFolder,
        evaluation_of,
        fitted_of,
        numerics,
        open_run,
        progress_line,
        read_teacher,
        update_run,
    )
    from htd_jax.serving import load_export

    options = parse(Options, arguments, prog=prog, description=__doc__)
    import_trusted(arguments)
    import_typed(arguments)
    check(options)
    source = options.run or options.model
    if source is None or (options.run and options.model):
        raise UserError("set either `run` to a run folder, or `model` to an exported model")
    if options.model and options.phase:
        raise UserError("`phase` needs `run`; an exported model has one phase")
    if options.to and options.to.resolve() == source.resolve():
        raise UserError(f"`to` {shown(options.to)} is what is updated; choose another folder")
    if folders := [path for path in options.teacher if RunFolder(path).config.is_file()]:
        raise UserError(
            f"`teacher` {shown(folders[0])} is a run; export its teacher (htd-jax export, with `phase` teacher), and "
            "give the export"
        )
    if not is_path(options.dataset):
        raise UserError(f"`dataset` {options.dataset}: no such file; name a file of interactions")
    use_devices()
    with numerics():
        config: dict[str, Any] = {}
        if options.run:
            config = RunFolder(options.run).read_config()
            config.pop("choice", None)
            parent = open_run(options.run, options.phase)
        else:
            parent = fitted_of(load_export(source))
            config = {"dataset": parent.data.name, "model": "bpr", "student_dim": parent.settings["model"]["dim"]}
        reading = _reading(options.reading, config.get("reading"))
        growth = grow(parent.data, read_new(lambda how: read_log(Path(options.dataset), how), reading))
        for note in growth.dataset.notes:
            print(f"note: {as_flags(note)}")
        old, new = parent.data, growth.dataset
        fresh = f"{len(new.users) - len(old.users):,} new users and {len(new.items) - len(old.items):,} new items"
        print(f"{len(new.learned.learned):,} new interactions to train on, {fresh}")
        folder = options.to or _beside(source, options)
        teacher = read_teacher(*options.teacher, data=growth.dataset) if options.teacher else None
        results = update_run(
            parent,
            growth,
            RunFolder(folder),
            {**config, "reading": as_json(reading), "parent_run": str(source)},
            method=_methods(options, parent.settings.get("methods") or {}),
            teacher=teacher,
            sweeps=options.sweeps,
            seed=options.seed,
            settings=_given(options.training),
            progress=progress_line,
        )
    print_parts(results, evaluation_of(parent).cutoffs)
    print(f"run folder: {folder}")


def _reading(given: Reading, known: Any) -> Reading:
    """Returns how the new file is read: as the run's was, where flags do not say otherwise."""
    fields = {field.name for field in dataclasses.fields(Reading)}
    kept = {name: x for name, x in (known or {}).items() if name in fields and x is not None}
    if kept.get("split") in ("files", "new-users"):
        del kept["split"]
    changed = {name: x for name, x in vars(given).items() if x != getattr(Reading(), name)}
    return override(Reading(), **{**kept, **changed}).filled()


def _given(training: Training) -> dict[str, Any]:
    """Returns the training settings that were set."""
    return {name: x for name, x in vars(training).items() if x != getattr(Training(), name)}


def _methods(options: Options, known: Any) -> list[Any] | None:
    """Returns the methods of the update, in their settings; None for the default.

    Raises:
      UserError: if settings of replay are given, and another method.
    """
    if options.method is None and options.replay == Replay():
        if not options.teacher:
            return None
        own = {name: METHODS[name]() for name in known if not METHODS[name].for_updates}
        composed = [override(method, **known[name]) for name, method in own.items() if method.composes]
        return composed or [METHODS["listwise"]()]
    names = (options.method or "replay").split("+")
    if "replay" not in names and options.replay != Replay():
        raise UserError("settings of `replay` need the `method` replay")
    return [options.replay if name == "replay" else name for name in names]


def _beside(source: Path, options: Options) -> Path:
    """Returns the default run folder."""
    stem = Path(options.dataset).resolve().name.partition(".")[0] or "update"
    parent = source.resolve().parent if options.run else Path("runs")
    return parent / f"{source.resolve().name}-{stem}"


def print_parts(results: dict[str, Any], cutoffs: Sequence[int]) -> None:
    """Prints the test metrics before and after, on old and on new held-out interactions."""
    parts = results["update"]
    if not parts["after"]:
        print("note: nothing is held out, so nothing is measured; set --split")
        return
    names = shown_metrics(cutoffs)
    table = Table()
    table.add_column("test")
    for name in names:
        table.add_column(name, justify="right")
    for part in parts["after"]:
        for when in ("before", "after"):
            cells = [f"{parts[when][part][name]:.4f}" for name in names]
            table.add_row(f"{part} interactions, {when}", *cells, end_section=when == "after")
    print(f"{shown(results['dataset'])}: before the update, new users and items have only their initial rows")
    Console(width=None if os.isatty(1) else 100).print(table)
