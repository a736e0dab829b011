"""The Python API: `fit`, `distill` and `choose`."""

import contextlib
import dataclasses
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from htd_jax import data as datasets
from htd_jax.distillers import METHODS
from htd_jax.errors import nearest
from htd_jax.evaluation import Evaluation, load_metric
from htd_jax.models import MODELS, MakeModel, ModelSettings, Representations
from htd_jax.pipeline.experiment import Experiment, numerics
from htd_jax.pipeline.fitted import Fitted
from htd_jax.pipeline.progress import progress_line, silent
from htd_jax.pipeline.request import Devices, Paths, RunRequest, RunSettings, resolve_run
from htd_jax.pipeline.run import run
from htd_jax.pipeline.spec import STUDENT, TEACHER, AnyMethod, PhaseRequest, resolve
from htd_jax.pipeline.teacher_checks import notes_on_fit
from htd_jax.pipeline.teachers import given_teacher
from htd_jax.settings import check, override
from htd_jax.teacher import Lists, Teacher, combine
from htd_jax.training import Training, find_partitioning

OneTeacher = Fitted | Teacher | Representations | Lists
AnyTeacher = OneTeacher | Sequence[OneTeacher]


def fit(
    data: Any,
    *,
    model: str | ModelSettings | MakeModel = "bpr",
    dim: int | None = None,
    seed: int = 0,
    folder: Path | str | None = None,
    mesh: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> Fitted:
    """Trains a recommender: a teacher, or a plain student.

    Several seeds compile once: `[fit(data, seed=seed) for seed in range(5)]`.

    Args:
      data: a `Dataset`, or anything that `htd_jax.read` takes: a data set's name, the path of a file, a table, a sparse
        matrix, a `Split`, a pair of columns (users, items).
      model: the name of a base model, its settings (`LightGCNSettings(layers=2)`), or a function that makes a module
        for the training interactions.
      dim: the width of its tables; the model's default width of a teacher if None.
      seed: the seed of everything random. On a CPU, the same seed gives bit-identical results.
      folder: where checkpoints are written, from which the same call resumes; none are if None.
      mesh: the devices to split tables over: `8`, `2x4` or `auto`, see `htd_jax.training.make_partitioning`. None for
        one device; where several processes are joined by `jax.distributed.initialize()`, for all.
      progress: whether to show a progress line.
      settings: any field of `Training` and `Evaluation`: `epochs=50, cutoffs=(5, 10), patience=20`.

    Returns:
      The recommender, with its metrics and records.

    Raises:
      UserError: if a value is invalid, or the folder holds something else.
      TypeError: if a setting is unknown.

    >>> import htd_jax
    >>> data = htd_jax.data.make_synthetic(num_users=100, num_items=200)
    >>> teacher = htd_jax.fit(data, dim=8, epochs=2, progress=False)
    >>> student = htd_jax.distill(teacher, data, method="ftd", dim=2, epochs=2, progress=False)
    >>> sorted(student.metrics)[:3], student.representations().users.shape
    (['map@10', 'map@20', 'map@50'], (100, 2))
    """
    request = PhaseRequest(TEACHER, model, dim, seed=seed, **_settings(settings))
    return _train(request, data, None, None, folder, mesh, progress)


def distill(
    teacher: AnyTeacher,
    data: Any,
    *,
    method: AnyMethod | Sequence[AnyMethod] = "htd",
    model: str | ModelSettings | MakeModel = "bpr",
    dim: int | None = None,
    precision: str = "float32",
    prefixes: Sequence[int] = (),
    seed: int = 0,
    start: str | Fitted = "random",
    folder: Path | str | None = None,
    mesh: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> Fitted:
    """Trains a student with a teacher.

    Args:
      teacher: the result of `fit`; or the `Representations` of any model (whose products are its scores), its `Lists`,
        or a `Teacher` with several of these; or a list of any of them, an ensemble, see `htd_jax.teacher.combine`. A
        method refuses a teacher that lacks what it needs.
      data: the data to train on, see `fit`.
      method: a name (`"htd"`, `"htd+fitnet"`), settings (`HTD(groups=60)`), a `Distiller`, or a list of them.
      model: see `fit`.
      dim: the width of the student; a tenth of the model's default teacher if None.
      precision: the precision to which the student's rows are rounded, in training too: `float32`, `float16`, `int8`,
        `int4`, `int3` or `int2`.
      prefixes: the numbers of leading dimensions that are trained as students too, in the same training, ascending, the
        last of them `dim`: `prefixes=(10, 20, 40, 80)`; `student.prefix(10)` is the student of 10 dimensions.
      start: the initial student: `random`; `svd`, the best low-rank factors of the teacher's scores (bpr); or a trained
        student of the same model.
      seed: see `fit`.
      folder: see `fit`.
      mesh: see `fit`.
      progress: see `fit`.
      settings: see `fit`.

    Returns:
      The student, with its metrics and records.

    Raises:
      UserError: if a value is invalid, the teacher lacks what the method needs or holds numbers that are not finite, or
        the folder holds something else.
      TypeError: if a setting is unknown.

    Warns if the rows of a given teacher seem to be in another order than the data's, or if it seems to have been
    trained on held-out items.
    """
    first = start if isinstance(start, Fitted) else None
    request = PhaseRequest(
        STUDENT,
        model,
        dim,
        method,
        precision,
        "student" if first else start,  # type: ignore[arg-type]
        seed,
        prefixes=tuple(prefixes),
        **_settings(settings),
    )
    return _train(request, data, teacher, first, folder, mesh, progress)


def choose(
    data: Any,
    *,
    bytes: int = 10,
    users: Literal["table", "folded"] = "table",
    teacher: AnyTeacher | None = None,
    budget: str | None = None,
    seed: int = 0,
    folder: Path | str | None = None,
    mesh: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> Fitted:
    """Trains the best student of a size: teacher and student are chosen by measurement in validation.

    Does what `htd-jax train --method best --bytes 10` does.

    Args:
      data: see `fit`.
      bytes: the bytes per row of the student, at least 1.
      users: `table`, or `folded` for a student without a table of users, see `htd_jax.models.FoldedSettings`.
      teacher: see `distill`; chosen if None.
      budget: the time of the choice, such as `"5m"`; `"0"` uses the defaults alone. A fixed list of trials, about three
        times the training of one student, if None.
      seed: see `fit`.
      folder: the run folder, from which the same call resumes; none is kept if None. Several processes need one.
      mesh: see `fit`.
      progress: see `fit`.
      settings: see `fit`; `metric="ndcg@10"` is what is chosen by.

    Returns:
      The student. Its `about["choice"]` names the choice and its alternatives.

    Raises:
      UserError, TypeError: see `distill`.

    >>> import htd_jax
    >>> data = htd_jax.data.make_synthetic(num_users=100, num_items=200)
    >>> student = htd_jax.choose(data, bytes=4, budget="0", epochs=2, progress=False)
    >>> student.settings["model"]["dim"], student.settings["model"]["precision"]
    (8, 'int4')
    """
    with contextlib.ExitStack() as stack, numerics():
        dataset = datasets.read(data).tested()
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        path = Path(folder)
        request = RunRequest(
            RunSettings(method="best", bytes=bytes, users=users, budget=budget, seed=seed),
            paths=Paths(
                split_file=path / "split.npz",  # where the run keeps the data
                runs=path.parent,
                run=path,
                teacher=() if teacher is None else (path,),
            ),
            devices=Devices(mesh),
            **_settings(settings),
        )
        check(request)
        for note in dataset.notes:
            warnings.warn(note, stacklevel=2)
        spec = resolve_run(request, dataset)
        experiment = Experiment(dataset, spec.evaluation, find_partitioning(mesh))
        given = None
        if teacher is not None:
            one = as_one(teacher, dataset)
            given = one if isinstance(one, Fitted) else given_teacher(one, spec, experiment)
        result = run(spec, experiment, given, progress=progress_line if progress else silent)
        return dataclasses.replace(result.phases["best"], about={"choice": result.results.get("choice")})


def _train(
    request: PhaseRequest,
    data: Any,
    teacher: AnyTeacher | None,
    start: Fitted | None,
    folder: Path | str | None,
    mesh: str | None,
    progress: bool,
) -> Fitted:
    _import_named(request)
    with numerics():
        dataset = datasets.read(data).tested()
        spec = resolve(request, dataset.split)
        experiment = Experiment(dataset, spec.evaluation, find_partitioning(mesh))
        teacher = None if teacher is None else as_one(teacher, dataset)
        given = teacher.teacher() if isinstance(teacher, Fitted) else Teacher.of(teacher)
        here = isinstance(teacher, Fitted) and teacher.settings["data"] == experiment.fingerprint
        if teacher is not None and not here:
            given.check(dataset.train)
            advice = "put its rows in the order of data.users.values and data.items.values"
            for note in notes_on_fit(given, dataset.split, advice=advice):
                warnings.warn(f"the teacher: {note}", stacklevel=3)
        return experiment.train(
            spec,
            teacher if isinstance(teacher, Fitted) else given,
            start=start,
            folder=None if folder is None else Path(folder),
            progress=progress_line if progress else silent,
        )


def as_one(teacher: AnyTeacher, data: datasets.Dataset) -> Fitted | Teacher:
    """Returns one teacher, or several as one."""
    if isinstance(teacher, Fitted):
        return teacher
    if isinstance(teacher, list) or type(teacher) is tuple:
        each = [one.teacher() if isinstance(one, Fitted) else Teacher.of(one) for one in teacher]
        return combine(each, data.train)
    return Teacher.of(teacher)  # type: ignore[arg-type]


def _import_named(request: PhaseRequest) -> None:
    """Imports the model, the methods and the metric that the caller names as `package.module:name`.

    Raises:
      UserError: if one cannot be imported.
    """
    methods = request.method if isinstance(request.method, list | tuple) else [request.method]
    names = [(METHODS, part) for method in methods if isinstance(method, str) for part in method.split("+")]
    for registry, name in [(MODELS, request.model), *names]:
        if isinstance(name, str) and ":" in name:
            registry.load(name)  # type: ignore[attr-defined]
    if request.evaluation.metric and ":" in request.evaluation.metric:
        load_metric(request.evaluation.metric)


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns `training` and `evaluation` from their fields by name.

    Raises:
      TypeError: if one is unknown.
    """
    kinds = {"training": Training, "evaluation": Evaluation}
    fields = {kind: {field.name for field in dataclasses.fields(of)} for kind, of in kinds.items()}
    if unknown := [name for name in settings if not any(name in names for names in fields.values())]:
        known = sorted(set().union(*fields.values()))
        owners = {method.__name__ for method in METHODS.values() if unknown[0] in method.__dataclass_fields__}  # type: ignore[attr-defined]
        if owners:
            one = f"{'HTD' if 'HTD' in owners else min(owners)}({unknown[0]}=...)"
            raise TypeError(f"{unknown[0]!r} is a setting of a method; pass it as method=htd_jax.distillers.{one}")
        meant = nearest(unknown[0], known) or ";"
        raise TypeError(f"unknown setting {unknown[0]!r}{meant} known: {', '.join(known)}")
    return {
        kind: override(of(), **{name: x for name, x in settings.items() if name in fields[kind]})
        for kind, of in kinds.items()
    }
