"""A teacher that is given: trained here before, or anywhere, as tables or as lists."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from htd_jax.data import Dataset, read
from htd_jax.data.ranked import read_lists, to_lists
from htd_jax.data.tables import TABLES, TORCH, match_rows, read_id_file, read_tables
from htd_jax.distillers import Lists, Representations, Run, Teacher
from htd_jax.errors import UserError, shown
from htd_jax.models import USUAL_EPOCHS, BPRSettings, MakeModel, ModelOf, listed, popularity
from htd_jax.pipeline.config import Config, early_stopping
from htd_jax.pipeline.experiment import FORMAT, Experiment, Fitted, hash_of
from htd_jax.settings import as_json
from htd_jax.training import choose, read_trained


def open_teacher(config: Config, experiment: Experiment) -> Fitted:
    """The teacher that `--teacher` names: a run folder, tables, or lists.

    Raises:
      UserError: it is not there, cannot be read, is not of this data, or lacks what the run needs of it.
    """
    paths = config.places.teacher
    ids = [config.places.teacher_user_ids, config.places.teacher_item_ids]
    if len(paths) == 1 and (paths[0].is_dir() or not paths[0].suffix):
        if any(ids):
            raise UserError("--teacher-user-ids: a teacher that was trained here knows its rows")
        return trained_teacher(paths[0], config, experiment)
    teacher, notes = _read(paths, experiment.data, *ids)
    for note in notes:
        print(f"note: {note}")
    fitted = given_teacher(teacher, experiment)
    check_needs(teacher, config, experiment)
    metric = experiment.evaluation.metric
    assert metric is not None
    popular, by_popularity = popularity(experiment.split.train)
    theirs, least = fitted.chosen["valid"][metric], experiment.evaluate(popular, by_popularity)["valid"][metric]
    if theirs <= float(least) < 1:  # where popularity finds all, nothing can be better
        named = ", ".join(shown(path) for path in paths)
        rows = ": are its rows those of this data? See --teacher-user-ids, --teacher-item-ids"
        print(
            f"note: {named} ranks no better than popularity (validation {metric} {theirs:.4f}, popularity "
            f"{float(least):.4f}){rows if teacher.representations is not None else ''}"
        )
    return fitted


def read_teacher(
    *paths: Path | str, data: Any, user_ids: Path | str | None = None, item_ids: Path | str | None = None
) -> Teacher:
    """A teacher that was trained anywhere, from files, over the rows of a data set.

    Args:
      paths: two `.npy` tables, of users and of items; one `.npz`, `.safetensors` or torch `.pth` that holds both; or a
        file of lists: user, item, and score or rank.
      data: whose users and items it ranks; whatever `htd_jax.read` takes.
      user_ids, item_ids: files of the ids of the tables' rows, in their order; without, rows are the numbers that ids
        are, or in the order of the data's ids, see `htd_jax.data.tables.match_rows`.

    Raises:
      UserError: a file that cannot be read, or that is not of this data.
    """
    of = [None if file is None else Path(file) for file in (user_ids, item_ids)]
    return _read([Path(path) for path in paths], read(data), *of)[0]


def _read(
    paths: Sequence[Path], data: Dataset, user_ids: Path | None, item_ids: Path | None
) -> tuple[Teacher, tuple[str, ...]]:
    """The teacher, and what a person should know of it, a line each."""
    if len(paths) == 1 and paths[0].suffix.lower() not in (*TABLES, *TORCH):
        if user_ids or item_ids:
            raise UserError("--teacher-user-ids: lists name their users and items themselves")
        items, scores, notes = to_lists(read_lists(paths[0]), data.users, data.items)
        lists = Lists(jnp.asarray(items), None if scores is None else jnp.asarray(scores))
        return Teacher.of(lists), notes
    users, items = read_tables(paths)
    files = {"user": user_ids, "item": item_ids}
    ids = {kind: read_id_file(file, kind) if file else None for kind, file in files.items()}
    rows = match_rows(users, ids["user"], data.users, "user"), match_rows(items, ids["item"], data.items, "item")
    rows_of_torch = paths[0].suffix.lower() in TORCH and None in ids.values()
    note = (
        f"{shown(paths[0])}: row r is taken for the r-th id; where a program numbered them in another order, as "
        "RecBole does, give its order with --teacher-user-ids and --teacher-item-ids"
    )
    return Teacher.of(Representations(*map(jnp.asarray, rows))), (note,) if rows_of_torch else ()


def given_teacher(teacher: Teacher, experiment: Experiment) -> Fitted:
    """What is known of a teacher that was trained elsewhere: how it ranks on this split."""
    teacher.check(experiment.split.train)
    if teacher.representations is not None:
        dim = teacher.dim
        maker: MakeModel = ModelOf(BPRSettings(), dim)
        variables = {"params": teacher.representations._asdict()}
        model = {"name": "tables", "dim": dim}
    else:
        assert teacher.lists is not None
        maker, variables = listed(teacher.lists.items)
        model = {"name": "lists", "dim": 0}
    metrics = jax.tree.map(float, experiment.evaluate(maker, variables))
    record = {"epoch": 0, "terms": {}, **metrics, "seconds": 0.0}
    settings = {
        "format": FORMAT,
        "data": experiment.fingerprint,
        "model": model,
        "training": as_json(experiment.training) | {"epochs": 0},
        "evaluation": as_json(experiment.evaluation),
        "seed": experiment.seed,
        "start": "given",
        "methods": {},
        "teacher": None,
    }
    fitted = Fitted(maker, variables, experiment.data, settings, [record], [], record)
    settings["hash"] = hash_of(fitted.teacher())  # nothing else tells two of one size apart
    return fitted


def check_needs(teacher: Teacher, config: Config, experiment: Experiment) -> None:
    """Refuses, before anything is trained, a teacher that a method or a start can do nothing with.

    Raises:
      UserError: what it lacks.
    """
    what = config.what
    if teacher.representations is None and "svd" in (what.method, what.student_init):
        raise UserError("--teacher: svd needs a teacher's representations, which lists are not")
    for name, settings in config.methods.items():
        try:
            made = settings.make(Run(config.training.epochs or USUAL_EPOCHS, what.seed, teacher))
            teacher.check(experiment.split.train, made.needs)
        except UserError as error:
            raise UserError(f"--method: {name}: {error}") from None


def trained_teacher(path: Path, config: Config, experiment: Experiment) -> Fitted:
    """The teacher in a run folder, its `checkpoints/teacher`, or a step in that; of any base model.

    Raises:
      UserError: there is no such checkpoint, or it was trained on other data, or evaluated in another way.
    """
    folder = next((p for p in (path / "checkpoints" / "teacher", path) if p.is_dir()), None)
    if folder is None:
        raise UserError(f"--teacher: no folder {shown(path)}")
    if (folder / "config.json").is_file():
        raise UserError(f"--teacher: {shown(folder)}: no teacher was trained in that run; name what it was given")
    folder = folder.parent if folder.name.isdecimal() else folder
    try:
        trained = read_trained(folder)
    except UserError as error:
        raise UserError(f"--teacher: {error}") from None
    settings = trained.settings
    if settings["data"] != experiment.fingerprint:
        raise UserError(f"--teacher: {shown(folder)} was trained on other data than this run's")
    if settings["model"]["name"] == "neumf" and "svd" in (config.what.method, config.what.student_init):
        raise UserError("--teacher: svd needs scores that are products of two vectors, which neumf's are not")
    was = settings["evaluation"] | {"patience": settings["training"]["patience"]}
    asked = as_json(config.evaluation) | {"patience": config.training.patience}
    for name, now in asked.items():
        if was.get(name) != now and (name, config.evaluation.protocol) != ("candidates", "full"):
            raise UserError(
                f"--teacher: {shown(folder)} was evaluated with {name} {was.get(name)}, this run with {now}"
            )
    chosen = choose(trained.records, early_stopping(config.training, config.evaluation))
    settings["training"]["epochs"] = len(trained.seconds)
    return Fitted(
        trained.make_model, trained.variables, experiment.data, settings, trained.records, trained.seconds, chosen
    )
