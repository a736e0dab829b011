"""A given teacher: trained here before, or anywhere, as tables or as lists."""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from htd_jax.data import Dataset, load_dataset, read
from htd_jax.data.arrays import SUFFIXES, TORCH
from htd_jax.data.columns import is_table_folder, without_advice, without_settings
from htd_jax.data.idfiles import read_row_ids
from htd_jax.data.ranked import read_lists, to_lists
from htd_jax.data.tables import Tables, match_rows, read_tables_and_notes
from htd_jax.errors import UserError, as_flags, shown
from htd_jax.models import BPRSettings, MakeModel, ModelOf, Representations, listed, popularity
from htd_jax.pipeline.experiment import FORMAT, Experiment, hash_of
from htd_jax.pipeline.fitted import Fitted
from htd_jax.pipeline.request import Paths, RunSpec
from htd_jax.pipeline.run_folder import RunFolder, about_of, open_phase
from htd_jax.pipeline.spec import TEACHER
from htd_jax.pipeline.teacher_checks import notes_on_fit
from htd_jax.serve.storage import is_export, read_export
from htd_jax.settings import as_json
from htd_jax.teacher import Lists, Teacher, combine
from htd_jax.training import choose, evaluation_record, in_full


def open_teacher(paths: Paths, spec: RunSpec, experiment: Experiment) -> Fitted | None:
    """Returns the teacher that `paths.teacher` names: a run folder, tables, or lists; None if it names none.

    Two `.npy` files are the tables of one teacher; any other several paths are a teacher each, see
    `htd_jax.teacher.combine`.

    Raises:
      UserError: if it is missing, cannot be read, is not of this data, or lacks what the run needs.
    """
    files, ids = paths.teacher, [paths.teacher_user_ids, paths.teacher_item_ids]
    if not files:
        return None
    if len(files) > 1 and not any(path.suffix.lower() == ".npy" for path in files):
        if any(ids):
            raise UserError("`teacher_user_ids` is for the tables of one teacher; write lists with ids for several")
        each = [open_teacher(dataclasses.replace(paths, teacher=(path,)), spec, experiment) for path in files]
        combined = combine([fitted.teacher() for fitted in each if fitted], experiment.data.train)
        _check_needs(combined, spec, experiment)
        return given_teacher(combined, spec, experiment)
    if len(files) == 1 and (files[0].is_dir() or not files[0].suffix) and not _is_given(files[0]):
        if any(ids):
            raise UserError("`teacher_user_ids` is for tables; a run folder already contains its ids")
        fitted = _trained_teacher(files[0], spec, experiment)
        _check_needs(fitted.teacher(), spec, experiment)
        return fitted
    teacher, notes = read_given(files, experiment.data, *ids, setting="teacher_{}_ids")
    for note in notes:
        print(f"note: {as_flags(note)}")
    fitted = given_teacher(teacher, spec, experiment)
    _check_needs(teacher, spec, experiment)
    named = ", ".join(shown(path) for path in files)
    for note in notes_on_fit(teacher, experiment.data.split):
        print(f"note: {named}: {as_flags(note)}")
    metric = experiment.evaluation.metric
    popular, by_popularity = popularity(experiment.data.train)
    kept = next(record for record in fitted.records if record["epoch"] == fitted.chosen["epoch"])
    value, bar = kept["valid"][metric], experiment.evaluate(popular, by_popularity)["valid"][metric]
    if value <= float(bar) < 1:  # where popularity finds all, nothing can be better
        figures = f"validation {metric} {value:.4f}, popularity {float(bar):.4f}"
        print(f"note: {named}: ranks no better than popularity ({figures})")
    return fitted


def _is_given(folder: Path) -> bool:
    """Returns whether a folder is an export or a table of lists: no run, nor its checkpoints, which hold JSON too."""
    own = (RunFolder(folder).config, folder / "history.json", *folder.glob("*/history.json"))
    return is_export(folder) or (is_table_folder(folder) and not any(path.is_file() for path in own))


def read_teacher(
    *paths: Path | str, data: Any, user_ids: Path | str | None = None, item_ids: Path | str | None = None
) -> Teacher:
    """Reads a teacher trained anywhere, from files, over the rows of a data set.

    Args:
      paths: two `.npy` tables, of users and of items; one `.npz`, `.safetensors` or torch `.pth` with both; an export,
        whose ids are used; or a file or folder of lists: user, item, and score or rank; or user and items. Biases
        become dimensions.
      data: the data set, or anything that `htd_jax.read` takes.
      user_ids: a file of the ids of the users' rows, in their order; without it, rows are in the order of the data's
        ids, or at the numbers that ids are, see `htd_jax.data.tables.match_rows`.
      item_ids: the same for items.

    Warns of what was decided or left out, a line each.

    Raises:
      UserError: if a file cannot be read, or is not of this data.
    """
    id_files = [None if file is None else Path(file) for file in (user_ids, item_ids)]
    teacher, notes = read_given([Path(path) for path in paths], read(data), *id_files, setting="{}_ids")
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return teacher


def _of_export(folder: Path) -> Tables:
    """Returns the tables of an export.

    Raises:
      UserError: if it cannot be read, or has no table of users.
    """
    export = read_export(folder)
    if export.pooling:
        raise UserError(f"{shown(folder)}: has no table of users; a teacher needs one")
    return Tables(np.asarray(export.users.floats()), np.asarray(export.items.floats()))


def read_given(
    paths: Sequence[Path], data: Dataset, user_ids: Path | None, item_ids: Path | None, *, setting: str
) -> tuple[Teacher, tuple[str, ...]]:
    """Returns the teacher, and notes for the user, one line each.

    Args:
      setting: the name that the caller gives to `user_ids` and `item_ids`, for messages, with `{}` for the kind.
    """
    settings = {kind: setting.format(kind) for kind in ("user", "item")}
    folder = paths[0] if len(paths) == 1 and is_export(paths[0]) else None
    if folder:
        user_ids, item_ids = user_ids or folder / "users.parquet", item_ids or folder / "items.parquet"
    if len(paths) == 1 and not folder and paths[0].suffix.lower() not in SUFFIXES:
        if user_ids or item_ids:
            raise UserError(f"`{settings['user']}` is for tables; lists name their users and items")
        with without_settings():
            items, scores, notes = to_lists(read_lists(paths[0]), data.users, data.items)
        lists = Lists(jnp.asarray(items), None if scores is None else jnp.asarray(scores))
        return Teacher.of(lists), tuple(map(without_advice, notes))
    tables, notes = (_of_export(folder), ()) if folder else read_tables_and_notes(paths)
    named = ", ".join(shown(path) for path in paths)
    rows = []
    for table, file, ids in zip(tables, (user_ids, item_ids), (data.users, data.items)):
        row_ids = None
        if file is not None:
            row_ids, remarks = read_row_ids(file, ids.kind, ids, len(table))
            notes += remarks
        rows.append(match_rows(table, row_ids, ids, ids.kind, setting=settings[ids.kind]))
        if file is None and ids.numbered and len(table) == len(ids) + 1:
            notes += (
                f"{named}: {len(table)} rows of {ids.kind}s, one more than the data has; row r is read as that of id "
                f"r; if row 0 stands for no {ids.kind}, set `{settings[ids.kind]}`",
            )
    if paths[0].suffix.lower() in TORCH and None in (user_ids, item_ids):
        notes += (
            f"{named}: row r is read as that of the r-th id; if a program numbered them in another order, as RecBole "
            f"does, give its order with `{settings['user']}` and `{settings['item']}`",
        )
    return Teacher.of(Representations(*map(jnp.asarray, rows))), notes


def open_given(
    folder: Path | str, paths: Sequence[Path], user_ids: Path | None = None, item_ids: Path | None = None
) -> Fitted:
    """Returns the teacher that a run was given, which keeps no copy of it, from its files.

    Args:
      folder: the run folder.
      paths, user_ids, item_ids: the files, see `read_teacher`.

    Raises:
      UserError: if the run is not finished, was given no tables, or the files hold another teacher.
    """
    run = RunFolder(Path(folder))
    config, results = run.read_config(), run.read_results()
    entry = results["phases"].get(TEACHER) or {"settings": {}}
    if entry["settings"].get("start") != "given":
        raise UserError(
            f"{shown(run.path)}: its teacher was trained by a run; leave out `teacher`, and set `run` to that"
        )
    data = load_dataset(run.split, str(config.get("dataset", "data")))
    teacher, notes = read_given(paths, data, user_ids, item_ids, setting="teacher_{}_ids")
    for note in notes:
        print(f"note: {as_flags(note)}")
    make_model, variables, _ = _model_of(teacher)
    chosen = {"epoch": 0, "terms": {}, "seconds": 0.0, **entry["final"]}
    fitted = Fitted(make_model, variables, data, entry["settings"], [chosen], [], chosen)
    if hash_of(fitted.teacher()) != config.get("teacher"):
        named = ", ".join(shown(path) for path in paths)
        raise UserError(
            f"`teacher` {named}: is another teacher than {shown(run.path)} was given; set its files and ids"
        )
    return dataclasses.replace(fitted, about=about_of(fitted, TEACHER, config, results))


def _model_of(teacher: Teacher) -> tuple[MakeModel, Any, dict[str, Any]]:
    """Returns a teacher of tables or lists as a model: what makes it, its variables, and its settings."""
    if teacher.representations is not None:
        tables = {"params": teacher.representations._asdict()}
        return ModelOf(BPRSettings(), teacher.dim), tables, {"name": "tables", "dim": teacher.dim}
    assert teacher.lists is not None
    return *listed(teacher.lists.items), {"name": "lists", "dim": 0}


def given_teacher(teacher: Teacher, spec: RunSpec, experiment: Experiment) -> Fitted:
    """Returns a teacher that was trained elsewhere as a `Fitted`, evaluated on this split."""
    teacher.check(experiment.data.train)
    make_model, variables, model = _model_of(teacher)
    sampled = experiment.evaluation.eval_users is not None
    record = {"epoch": 0, "terms": {}, **evaluation_record(experiment.evaluate, make_model, variables), "seconds": 0.0}
    if sampled:
        record |= {"sampled": True, "full": evaluation_record(experiment.evaluate_in_full, make_model, variables)}
    settings = {
        "format": FORMAT,
        "data": experiment.fingerprint,
        "model": model,
        "training": as_json(spec.student.training) | {"epochs": 0},
        "evaluation": experiment.evaluation.describe(),
        "seed": spec.settings.seed,
        "start": "given",
        "methods": {},
        "teacher": None,
    }
    chosen = in_full(record)
    fitted = Fitted(make_model, variables, experiment.data, settings, [record], [], chosen, stages=teacher.stages)
    settings["hash"] = hash_of(fitted.teacher())  # nothing else tells two of one size apart
    return fitted


def _check_needs(teacher: Teacher, spec: RunSpec, experiment: Experiment) -> None:
    """Refuses a teacher that a method or a start cannot use, before anything is trained.

    Raises:
      UserError: if it lacks something.
    """
    phases = [phase for phase in (spec.student, spec.distilled) if phase]
    if any(phase.start == "svd" for phase in phases) and not teacher.inner_product:
        raise UserError("`teacher`: svd needs a teacher whose scores are inner products of its representations")
    for phase in phases:
        for name, method in phase.methods:
            try:
                teacher.check(experiment.data.train, method.make(phase.training.epochs).needs)
            except UserError as error:
                raise UserError(f"`method` {name}: {error}") from None


def _trained_teacher(path: Path, spec: RunSpec, experiment: Experiment) -> Fitted:
    """Returns the teacher in a run folder, in its `checkpoints/teacher`, or in a step of that.

    Raises:
      UserError: if there is no such checkpoint, or it was trained on other data or evaluated in another way.
    """
    run = RunFolder(path)
    folder = next((p for p in (run.checkpoints("teacher"), path) if p.is_dir()), None)
    if folder is None:
        raise UserError(f"`teacher`: no folder {shown(path)}")
    if run.config.is_file() and folder == path:
        raise UserError(
            f"`teacher`: {shown(folder)}: that run was given a teacher and trained none; set `teacher` to the files "
            "that it was given"
        )
    folder = folder.parent if folder.name.isdecimal() else folder
    try:
        fitted = open_phase(folder, experiment.data)
    except UserError as error:
        raise UserError(f"`teacher`: {error}") from None
    settings = fitted.settings
    if settings["data"] != experiment.fingerprint:
        raise UserError(f"`teacher`: {shown(folder)} was trained on other data than this run's")
    was = settings["evaluation"] | {"patience": settings["training"]["patience"]}
    requested = as_json(experiment.evaluation) | {"patience": spec.student.training.patience}
    for name, now in requested.items():
        if was.get(name) != now and (name, experiment.evaluation.protocol) != ("candidates", "full"):
            raise UserError(
                f"`teacher`: {shown(folder)} was evaluated with {name} {was.get(name)}, this run with {now}"
            )
    return dataclasses.replace(fitted, chosen=in_full(choose(fitted.records, spec.student.early_stopping)))
