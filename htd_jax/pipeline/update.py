"""The update of a trained recommender by new interactions: no new start, and old ids keep their rows."""

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from htd_jax import data as datasets
from htd_jax.data import Dataset, Growth, Interactions, Reading, Split, fingerprint, grow, read_new
from htd_jax.distillers import Listwise, Method, Replay, remember
from htd_jax.errors import UserError
from htd_jax.evaluation import make_evaluator
from htd_jax.models import BPRSettings, IALSSettings, ModelOf, batches_of, grow_variables, model_scores
from htd_jax.pipeline.api import AnyTeacher, as_one
from htd_jax.pipeline.experiment import FORMAT, Experiment, hash_of, numerics
from htd_jax.pipeline.fitted import Fitted, evaluation_of
from htd_jax.pipeline.progress import ProgressLine, progress_line, silent
from htd_jax.pipeline.run import entries_of
from htd_jax.pipeline.run_folder import RunFolder, claimed
from htd_jax.pipeline.spec import NO_METHOD, STUDENT, PhaseRequest, find_methods, resolve
from htd_jax.serving import Retriever
from htd_jax.settings import as_json, flag_name, override
from htd_jax.training import Checkpoints, Training, evaluation_record

# Epochs over the new interactions, and sweeps of a model in closed form.
EPOCHS, SWEEPS = 10, 1

# An epoch has at least so many steps, unless its batches would be smaller than this.
STEPS, SMALLEST_BATCH = 20, 32

# Training settings that an update takes from its parent, where they are not set anew.
KEPT = ("loss", "temperature", "sampled_items", "batch_size", "learning_rate", "optimizer", "schedule")


class Updated(NamedTuple):
    """The result of an update.

    Attributes:
      fitted: the updated recommender.
      before: the parent, with rows of new users and items, and nothing trained.
      growth: the data.
      parts: test metrics of `before` and `after`, on `old` and `new` held-out interactions.
    """

    fitted: Fitted
    before: Fitted
    growth: Growth
    parts: dict[str, dict[str, dict[str, float]]]


def update(
    parent: Fitted | Retriever,
    data: Any,
    *,
    method: str | Method | list[Any] | None = None,
    teacher: AnyTeacher | None = None,
    sweeps: int = SWEEPS,
    seed: int = 0,
    folder: Path | str | None = None,
    progress: bool = True,
    **settings: Any,
) -> Fitted:
    """Returns a recommender that knows new interactions too; does what `htd-jax update` does.

    Users and items that are new get rows, and the model is trained on the new interactions alone, while it keeps what
    it was, see `default_method`. A model in closed form, iALS, is solved instead.

    Args:
      parent: a trained recommender, or an export, which `htd_jax.load` opens.
      data: the new interactions, or a log that holds them, see `fit`; those that the parent knows are left out.
      method: of keeping the old, in place of `default_method`; or several: `[Replay(samples=5), "rrd"]`.
      teacher: a teacher over the rows of old and new users and items; the model itself, as it was, if None.
      sweeps: of iALS: full sweeps after the rows of new users and items are solved for.
      seed: see `fit`.
      folder: where checkpoints are written, from which the same call resumes; none are if None.
      progress: see `fit`.
      settings: see `fit`. Defaults are the parent's, with `epochs` 10 and no L2.

    Returns:
      The recommender. Its data are all interactions; its `about["update"]` has the test metrics of before and after, on
      old and on new held-out interactions.

    Raises:
      UserError: if there is no new interaction, the model cannot grow, or a value is invalid.

    >>> import htd_jax
    >>> old = htd_jax.read((["ann", "ann", "ann", "bob"], ["tea", "jam", "bun", "tea"]))
    >>> model = htd_jax.fit(old, dim=2, epochs=2, progress=False)
    >>> newer = htd_jax.update(model, (["cat", "cat", "ann"], ["tea", "rye", "rye"]), progress=False)
    >>> newer.data.users.values.to_pylist(), newer.recommend("cat", 1).items.shape
    (['ann', 'bob', 'cat'], (1, 1))
    """
    line = progress_line if progress else silent
    with numerics():
        fitted = parent if isinstance(parent, Fitted) else fitted_of(parent)
        growth = grow(fitted.data, _read(data))
        for note in growth.dataset.notes:
            warnings.warn(note, stacklevel=2)
        found = run_update(
            fitted,
            growth,
            method=method,
            teacher=teacher,
            sweeps=sweeps,
            seed=seed,
            folder=None if folder is None else Path(folder),
            progress=line,
            settings=settings,
        )
    return found.fitted


Fitted.update = update


def _read(data: Any) -> Dataset:
    """Returns new interactions as a data set; a log of few of them has nothing held out."""
    if isinstance(data, Dataset | Split) or (isinstance(data, str) and not datasets.is_path(data)):
        return datasets.read(data)
    return read_new(lambda reading: datasets.read(data, split=reading.split), Reading())


def run_update(
    parent: Fitted,
    growth: Growth,
    *,
    method: Any,
    teacher: AnyTeacher | None = None,
    sweeps: int = SWEEPS,
    seed: int = 0,
    folder: Path | None = None,
    progress: ProgressLine = silent,
    settings: Mapping[str, Any] | None = None,
) -> Updated:
    """Updates a recommender; see `update` for the arguments."""
    before = grown(parent, growth, sweeps=0)
    if _closed_form(parent):
        if given := [name for name, x in (("method", method), ("teacher", teacher), *(settings or {}).items()) if x]:
            raise UserError(f"`{given[0]}` is for models trained by gradients; iALS is solved, so set `sweeps` alone")
        after = _evaluated(grown(parent, growth, sweeps=sweeps))
    else:
        after = _trained(parent, before, growth, method, teacher, seed, folder, progress, settings or {})
    parts = {name: _measure_parts(fitted, growth) for name, fitted in (("before", before), ("after", after))}
    about = {**parent.about, "update": parts, "parent": hash_of(parent.variables)}
    whole = dataclasses.replace(growth.dataset, block=None)  # so that a training on it learns all interactions
    return Updated(dataclasses.replace(after, data=whole, about=about), before, growth, parts)


def update_run(
    parent: Fitted,
    growth: Growth,
    folder: RunFolder,
    config: Mapping[str, Any],
    *,
    method: Any = None,
    seed: int = 0,
    progress: ProgressLine = silent,
    **options: Any,
) -> dict[str, Any]:
    """Updates a recommender into a run folder, from which the same call resumes, and returns its `results.json`.

    Args:
      parent, growth, method, seed, progress, options: see `update` and `run_update`.
      folder: a new folder.
      config: facts for its `config.json`, in addition to those of the update.

    Raises:
      UserError: if the folder holds something else, or the update is invalid.
    """
    settings, evaluation = options.get("settings") or {}, evaluation_of(parent).resolve(growth.dataset.split)
    methods = {} if _closed_form(parent) else find_methods(default_method(parent) if method is None else method)
    name = "+".join(methods) or NO_METHOD
    given = options.get("teacher")
    identity = {
        **config,
        "method": name,
        "seed": seed,
        **(as_json(training_of(parent, settings, growth.dataset)) if methods else {}),
        **evaluation.describe(),
        **{flag_name(own): as_json(kind) for own, kind in methods.items()},
        "sweeps": options.get("sweeps", SWEEPS) if not methods else None,
        "data": fingerprint(growth.dataset),
        "parent": hash_of(parent.variables),
        "teacher": None if given is None else hash_of(given),
    }
    try:
        folder.check(identity)
    except UserError as error:  # here, `run` is the parent
        raise UserError(*(str(line).replace("`run`", "`to`") for line in error.args)) from None
    with claimed(folder.path):
        folder.begin(identity, growth.dataset)
        phase = name if methods else STUDENT
        target = folder.checkpoints(phase)
        found = run_update(
            parent, growth, method=method, seed=seed, folder=target if methods else None, progress=progress, **options
        )
        if not methods:
            _keep(target, found.fitted)
        results = {
            "dataset": growth.dataset.name,
            "model": parent.settings["model"]["name"],
            "method": name,
            "protocol": evaluation.protocol,
            "eval_users": evaluation.eval_users,
            "seed": seed,
            "phases": entries_of({phase: found.fitted}, evaluation.metric),
            "gap_closed": {},
            "update": found.parts,
            "parent": config.get("parent_run"),
        }
        folder.write_metrics({phase: found.fitted.records})
        folder.write_results(results)
    return results


def _keep(folder: Path, fitted: Fitted) -> None:
    """Writes the checkpoint of a model that was solved."""
    checkpoints = Checkpoints(folder)
    if checkpoints.latest is not None:
        return
    history = {"settings": fitted.settings, "records": fitted.records, "seconds": [], "spent": {}, "finished": True}
    tree = {"train": {"params": {"model": fitted.variables, "distiller": {}}}, "best": {}}
    checkpoints.save(0, tree, history)


def grown(parent: Fitted, growth: Growth, *, sweeps: int = 0) -> Fitted:
    """Returns a recommender with rows of new users and items, neither trained nor evaluated, on the grown data.

    Raises:
      UserError: if the model cannot grow.
    """
    data = growth.dataset
    make_model = parent.make_model
    if isinstance(make_model, ModelOf) and isinstance(make_model.settings, IALSSettings):
        variables, _ = make_model.settings.grow(parent.variables, data.train, sweeps)
    elif _closed_form(parent):
        label = make_model.settings.label  # type: ignore[attr-defined]
        raise UserError(f"{label} is solved as a whole, so an update is a new training; train it on all interactions")
    else:
        assert data.block is not None
        old = parent.data.train
        variables = grow_variables(make_model, parent.variables, data.block, old.num_users, old.num_items)
    return Fitted(make_model, variables, data, parent.settings, [], [], {})


def _evaluated(fitted: Fitted) -> Fitted:
    """Returns a recommender that no phase has trained, with the record of its evaluation."""
    evaluate = make_evaluator(fitted.data.split, cutoffs=evaluation_of(fitted).cutoffs)
    metrics = evaluation_record(evaluate, fitted.make_model, fitted.variables)
    record = {"epoch": 0, "terms": {}, **metrics, "seconds": 0.0}
    return dataclasses.replace(fitted, records=[record], chosen=record)


def fitted_of(retriever: Retriever) -> Fitted:
    """Returns an export as a recommender that can be updated: its rows, decoded, and the pairs it knows.

    Raises:
      UserError: if it has no table of users.
    """
    if retriever.pooling is not None:
        raise UserError("an export without a table of users cannot be updated; give the run that it is from")
    known = retriever.seen
    sizes = len(retriever.user_ids), len(retriever.item_ids)
    nothing = Interactions.from_pairs([], [], *sizes)
    split = Split(nothing if known is None else known, nothing, nothing)
    data = Dataset(split, retriever.user_ids, retriever.item_ids, str(retriever.about.get("dataset", "data")))
    settings = {"evaluation": {}, "training": {}, **(retriever.about.get("settings") or {})}
    model = dict(settings.get("model") or {})
    temper = model.get("precision", "float32")
    make_model = ModelOf(BPRSettings(), retriever.dim, temper if temper == retriever.precision else "float32")
    settings["model"] = {"name": "bpr", "dim": retriever.dim}
    settings |= {"format": FORMAT, "data": None}
    if make_model.precision != "float32":
        settings["model"]["precision"] = make_model.precision
    tables = {"users": retriever.users.floats(), "items": retriever.items.floats()}
    variables = {"params": {name: jnp.asarray(table, jnp.float32) for name, table in tables.items()}}
    about = {**retriever.about, "version": retriever.version}  # which an export of the update names as its parent
    return Fitted(make_model, variables, data, settings, [], [], {}, about=about)


def training_of(parent: Fitted, settings: Mapping[str, Any], data: Dataset) -> Training:
    """Returns the training of an update on data that have grown: settings as given, else the parent's, but for batches
    of pairs that are small enough for `STEPS` steps per epoch.

    Raises:
      TypeError: if a setting is unknown.
    """
    names = {field.name for field in dataclasses.fields(Training)} - {"keep_stages"}
    if unknown := [name for name in settings if name not in names]:
        raise TypeError(f"unknown setting {unknown[0]!r}; known: {', '.join(sorted(names))}")
    known = parent.settings.get("training") or {}
    kept = {name: known[name] for name in KEPT if known.get(name) is not None}
    if kept.get("loss") == "none":  # an update has a base loss
        kept = {}
    if kept.get("loss") != "softmax":  # whose batches are of users, and small
        size = len(data.learned.learned) // STEPS
        kept["batch_size"] = min(kept.get("batch_size", 1024), max(SMALLEST_BATCH, size))
    # Without L2, a row that no step reads stays as it is; Adam would shrink it as fast as any gradient moves others.
    chosen = {"epochs": EPOCHS, "l2": 0.0, **kept, **settings}
    return override(Training(), **{"eval_every": chosen["epochs"], **chosen})


def default_method(parent: Fitted) -> Method:
    """Returns how an update keeps what the parent was: `Replay` of its scores; or, if it was trained with a softmax,
    whose scores are no logits of single pairs, `Listwise` with its own best items."""
    own = (parent.settings.get("training") or {}).get("loss") != "softmax"
    if not own or batches_of(parent.make_model) != "pairs":
        return Listwise(weight=3.0, top=100, perplexity=100 / 3)
    return Replay()


def _trained(
    parent: Fitted,
    before: Fitted,
    growth: Growth,
    method: Any,
    teacher: AnyTeacher | None,
    seed: int,
    folder: Path | None,
    progress: ProgressLine,
    settings: Mapping[str, Any],
) -> Fitted:
    data = growth.dataset
    methods = find_methods(default_method(parent) if method is None else method)
    model = parent.settings["model"]
    request = PhaseRequest(
        STUDENT,
        before.make_model,
        method=methods,
        precision=model.get("precision", "float32"),
        start="student",
        seed=seed,
        prefixes=tuple(model.get("prefixes", ())),
        training=training_of(parent, settings, data),
        evaluation=evaluation_of(parent),
    )
    spec = resolve(request, data.split)
    one = as_one(before if teacher is None else teacher, data)
    given = one.teacher() if isinstance(one, Fitted) else one
    memories = [own for own in methods.values() if isinstance(own, Replay)]
    if memories:
        scores = model_scores(before.make_model, before.variables, data.train)
        size = max(own.top for own in memories)
        given = dataclasses.replace(given, memory=remember([scores], data.train, size))
    experiment = Experiment(data, spec.evaluation)
    start = dataclasses.replace(before, settings={**parent.settings, "model": spec.describe_model()})
    return experiment.train(spec, given, start=start, folder=folder, progress=progress, title="update")


def _measure_parts(fitted: Fitted, growth: Growth) -> dict[str, dict[str, float]]:
    """Returns the test metrics on old and on new held-out interactions; those that there are."""
    cutoffs = evaluation_of(fitted).cutoffs
    found = {}
    for name, split in (("old", growth.old), ("new", growth.new)):
        if len(split.test):
            metrics = make_evaluator(split, cutoffs=cutoffs)(fitted.make_model, fitted.variables)["test"]
            found[name] = jax.tree.map(float, metrics)
    return found


def _closed_form(fitted: Fitted) -> bool:
    return isinstance(fitted.make_model, ModelOf) and fitted.make_model.settings.closed_form
