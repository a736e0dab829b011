"""A phase: a recommender trained, alone or with a teacher's help; in memory, or in a folder where it is taken up."""

import contextlib
import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from htd_jax import data as datasets
from htd_jax.data import Dataset, Interactions, Split
from htd_jax.distillers import (
    METHODS,
    Distiller,
    Lists,
    Representations,
    Run,
    Teacher,
    chain,
    is_alone,
    model_scores,
    none,
    scale,
    svd_factors,
    usual_training,
)
from htd_jax.distillers.teacher import check_lists
from htd_jax.errors import UserError
from htd_jax.evaluation import Evaluation, Evaluator, make_evaluator
from htd_jax.models import MODELS, InnerProduct, Listed, MakeModel, ModelOf, usual_epochs
from htd_jax.pipeline.config import NO_METHOD, early_stopping
from htd_jax.pipeline.progress import ProgressLine, progress_line, silent
from htd_jax.serving import PRECISIONS, Recommendations, Retriever, retriever_of
from htd_jax.settings import Settings, as_json, check, flag_name, override
from htd_jax.training import (
    Checkpoints,
    EarlyStopping,
    Phase,
    Progress,
    Trainer,
    Training,
    adam,
    copy_checkpoints,
    cosine,
    is_finished,
    make_solving_trainer,
    make_trainer,
    objective_of,
    represent_all,
    run_phases,
)

# Of the checkpoints; one of another format is not taken up.
FORMAT = 5

# What a phase's random key is folded from. A helped student starts where the plain one does, on the same batches.
TEACHER_KEY, STUDENT_KEY = 0, 1

# Where a student may start.
STARTS = ("random", "svd")

AnyMethod = str | Settings | Distiller


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A trained recommender, and how it came about.

    Attributes:
      make_model: its Flax module for the training interactions.
      variables: the module's, at the last epoch or, with early stopping, at the best.
      data: what it was trained on, and what users and items are called.
      settings: what made it, as JSON.
      records: one for every evaluation: `{"epoch", "terms", "valid", "test", "seconds", "peak_memory"}`, and `beside`,
        of a teacher that learns too.
      seconds: of training, of every epoch.
      chosen: the record of the epoch that `variables` are of.
    """

    make_model: MakeModel
    variables: Any
    data: Dataset
    settings: dict[str, Any]
    records: list[dict[str, Any]]
    seconds: list[float]
    chosen: dict[str, Any]

    @property
    def metrics(self) -> dict[str, float]:
        """In test: `{"recall@50": ..., ...}`; those in validation are `chosen["valid"]`."""
        test: dict[str, float] = self.chosen["test"]
        return test

    @property
    def train(self) -> Interactions:
        """The interactions that it was trained on."""
        return self.data.train

    @property
    def parameters(self) -> int:
        """How many numbers it is made of."""
        return sum(x.size for x in jax.tree.leaves(self.variables))

    def representations(self) -> Representations:
        """Of every user `[num_users, d]` and item `[num_items, d]`."""
        return represent_all(self.make_model, self.variables, self.train)

    def scores(self, users: Any) -> jax.Array:
        """Scores `[n, num_items]` of every item for the users `[n]`."""
        of = jax.jit(lambda variables, train, users: model_scores(self.make_model, variables, train)(users))
        scores: jax.Array = of(self.variables, self.train, jnp.asarray(users, jnp.int32))
        return scores

    def retriever(self, precision: str | None = None) -> Retriever:
        """Ready to serve: to recommend, to find neighbours, to be saved; see `htd_jax.Retriever`.

        Args:
          precision: of the tables: `float32`, `float16`, `int8` with a scale a row, or `int4` with a step a dimension;
            that which it was trained in if None.
        """
        about = {
            "dataset": self.data.name,
            "interactions": {name: len(part) for name, part in zip(Split._fields, self.data.split)},
            "model": self.settings["model"]["name"],
            "method": "+".join(self.settings["methods"]),
            "evaluation": self.settings["evaluation"],
            "metrics": self.metrics,
            "settings": self.settings,
        }
        return retriever_of(self.make_model, self.variables, self.data, precision, about=about)

    def recommend(self, users: Any = None, k: int = 20, **how: Any) -> Recommendations:
        """The k best items of users, which they have not seen, see `Retriever.recommend`."""
        return self._served.recommend(users, k, **how)

    def similar(self, items: Any, k: int = 20, **how: Any) -> Recommendations:
        """The k nearest items, see `Retriever.similar`."""
        return self._served.similar(items, k, **how)

    def fold_in(self, items: Any, **how: float) -> np.ndarray:
        """Rows `[n, d]` of new users from the items that they have seen, see `Retriever.fold_in`."""
        return self._served.fold_in(items, **how)

    def recommend_vectors(self, vectors: Any, k: int = 20, **how: Any) -> Recommendations:
        """The k best items of the rows that `fold_in` gives, see `Retriever.recommend_vectors`."""
        return self._served.recommend_vectors(vectors, k, **how)

    def save(self, folder: Path | str, precision: str = "float32", *, seen: bool = False) -> None:
        """Writes a folder that `htd_jax.load` opens, see `Retriever.save`."""
        self.retriever(precision).save(folder, seen=seen)

    @functools.cached_property
    def _served(self) -> Retriever:
        return self.retriever()

    def teacher(self) -> Teacher:
        """All that it can teach: representations, and scores, which are their products where the model's are."""
        model = self.make_model(self.train)
        if isinstance(model, Listed):
            return Teacher.of(Lists(self.variables["params"]["items"]))
        teacher = Teacher.of(self.representations())
        if isinstance(model, InnerProduct):
            return teacher
        return dataclasses.replace(teacher, scores=model_scores(self.make_model, self.variables, self.train))


AnyTeacher = Fitted | Teacher | Representations | Lists


def fit(
    data: Any,
    *,
    model: str | Settings | MakeModel = "bpr",
    dim: int | None = None,
    seed: int = 0,
    folder: Path | str | None = None,
    progress: bool = True,
    **settings: Any,
) -> Fitted:
    """Trains a recommender: a teacher, or a plain student.

    Args:
      data: a `Dataset`, or whatever `htd_jax.read` takes: a data set's name, the path of a file, a table, a sparse
        matrix, a `Split`, a pair of columns (users, items).
      model: the name of a base model, its settings (`LightGCNSettings(layers=2)`), or what makes a module of one's own.
      dim: the width of its tables; the model's usual one if None.
      seed: of everything random. The same seed gives the same bits, on a CPU.
      folder: where checkpoints are kept. The same call goes on at the last one. Without, nothing is written.
      progress: whether a line shows how far it is.
      settings: any of `Training` and `Evaluation`: `epochs=50, cutoffs=(5, 10), patience=20`.

    Returns:
      The recommender, with its metrics and records.

    Raises:
      UserError: a value that cannot be, or a folder that holds something else.
      TypeError: a setting that there is not.

    >>> import htd_jax
    >>> data = htd_jax.data.make_synthetic(num_users=100, num_items=200)
    >>> teacher = htd_jax.fit(data, dim=8, epochs=2, progress=False)
    >>> student = htd_jax.distill(teacher, data, method="ftd", dim=2, epochs=2, progress=False)
    >>> sorted(student.metrics)[:3], student.representations().users.shape
    (['map@10', 'map@20', 'map@50'], (100, 2))
    """
    with numerics():
        experiment = Experiment.of(data, seed, **settings)
        return experiment.phase("teacher", model, dim, folder=folder, progress=progress)


def distill(
    teacher: AnyTeacher,
    data: Any,
    *,
    method: AnyMethod | list[AnyMethod] = "htd",
    model: str | Settings | MakeModel = "bpr",
    dim: int | None = None,
    precision: str = "float32",
    seed: int = 0,
    start: str | Fitted = "random",
    folder: Path | str | None = None,
    progress: bool = True,
    **settings: Any,
) -> Fitted:
    """Trains a student with a teacher's help.

    Args:
      teacher: what `fit` returned, or what there is of a teacher of any origin: its `Representations` (whose products
        are then its scores), its `Lists`, or a `Teacher` that has several of these. A method refuses a teacher that
        lacks what it needs.
      data: what the student is trained on, see `fit`.
      method: a name (`"htd"`, `"htd+fitnet"`), settings (`HTD(groups=60)`), a `Distiller`, or a list of them.
      dim: the width of the student; a tenth of the model's usual teacher if None.
      precision: of the student's rows, which is trained knowing it: `float32`, `float16`, `int8` or `int4`.
      start: `random`; `svd`, at the best factors of the teacher's scores (bpr); or a student of the same model that was
        trained before, where it ended.
      model, seed, folder, progress, settings: see `fit`.

    Returns:
      The student, with its metrics and records.

    Raises:
      UserError: a value that cannot be, a teacher that lacks what the method needs, or a folder of something else.
      TypeError: a setting that there is not.
    """
    with numerics():
        experiment = Experiment.of(data, seed, **settings)
        given = teacher.teacher() if isinstance(teacher, Fitted) else Teacher.of(teacher)
        its = teacher.settings if isinstance(teacher, Fitted) else {}
        methods = resolve(method)
        return experiment.phase(
            method_name(methods),
            model,
            dim,
            given,
            its,
            methods,
            precision=precision,
            start=start,
            folder=folder,
            progress=progress,
        )


def check_seed(seed: Any) -> int:
    """A seed as it is; raises UserError for what is none."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UserError(f"seed: must be a whole number in [0, 2^32), not {seed!r}")
    return seed


@contextlib.contextmanager
def numerics() -> Iterator[None]:
    """Everything here is in float32, whatever JAX is set to for other work in the same process."""
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        yield


def resolve(method: AnyMethod | list[AnyMethod]) -> dict[str, Settings | Distiller]:
    """The methods by name; a `Distiller` has none, and is called by its number.

    Raises:
      UserError: an unknown name, or one method twice.
    """
    methods: dict[str, Settings | Distiller] = {}
    given = list(method) if isinstance(method, list | tuple) and not isinstance(method, Distiller) else [method]
    named = [part for one in given for part in (one.split("+") if isinstance(one, str) else [one])]
    for one in named:
        if one == NO_METHOD and len(named) == 1:
            return {}
        if isinstance(one, str):
            name, settings = one, METHODS[one]() if one != NO_METHOD else None
        elif isinstance(one, Distiller):
            name, settings = f"distiller{len(methods)}", one
        elif hasattr(one, "make"):
            of = type(one)
            name = next((name for name, known in METHODS.items() if known is of), f"{of.__module__}:{of.__name__}")
            settings = one
        else:
            raise TypeError(f"expected a method's name, its settings or a Distiller, not {type(one).__name__}")
        if name in methods:
            raise UserError(f"--method: {name} stands twice")
        if len(named) > 1 and (settings is None or is_alone(settings)):
            raise UserError(f"--method: {name} is joined with no other")
        methods[name] = settings
    return methods


def method_name(methods: Mapping[str, Any]) -> str:
    return "+".join(methods) or NO_METHOD


class _Watched(Run):
    """A run that notes what a method is made of."""

    @property
    def asked(self) -> set[str]:
        """Which of `seed` and `teacher` were read."""
        found: set[str] = self.__dict__.setdefault("_asked", set())
        return found

    def __getattribute__(self, name: str) -> Any:
        if name in ("seed", "teacher"):
            self.asked.add(name)
        return super().__getattribute__(name)

    def __getitem__(self, number: Any) -> Any:
        self.asked.update(("seed", "teacher"))
        return super().__getitem__(number)

    def __iter__(self) -> Iterator[Any]:
        self.asked.update(("seed", "teacher"))
        return super().__iter__()


@dataclasses.dataclass(frozen=True)
class Plan:
    """A phase that is about to be trained.

    Attributes:
      maker: makes its module.
      trainer: of the phase.
      phase: what it does not share with the same phase under another seed.
      made_by: its settings in full.
      epochs, eval_every, stopping: of its loop.
      asked: what its method was made of, of `seed` and `teacher`.
    """

    maker: MakeModel
    trainer: Trainer
    phase: Phase
    made_by: dict[str, Any]
    epochs: int
    eval_every: int
    stopping: EarlyStopping | None
    asked: frozenset[str]

    def goes_with(self, other: "Plan") -> bool:
        """Whether one program trains both, if they differ in seed, teacher and start alone."""
        same_teacher = self.phase.teacher is other.phase.teacher
        return "seed" not in self.asked and (same_teacher or "teacher" not in self.asked)

    def bytes(self, train: Interactions) -> int:
        """About what a seed takes beside its teacher: parameters, their gradient, and Adam's two moments of them."""
        one = jnp.zeros(1, jnp.int32)
        model = jax.eval_shape(lambda: self.maker(train).init(jax.random.key(0), one, one, method="score"))
        return 4 * size_of(model)


@dataclasses.dataclass
class Experiment:
    """What phases that are compared have in common: data, training, evaluation and seed."""

    data: Dataset
    training: Training
    evaluation: Evaluation
    seed: int

    @classmethod
    def of(cls, data: Any, seed: int = 0, **settings: Any) -> "Experiment":
        """Of settings by name.

        Raises:
          UserError: a value that cannot be.
          TypeError: a setting that there is not.
        """
        of_training = {field.name for field in dataclasses.fields(Training)}
        of_evaluation = {field.name for field in dataclasses.fields(Evaluation)}
        if unknown := [name for name in settings if name not in of_training | of_evaluation]:
            known = ", ".join(sorted(of_training | of_evaluation))
            raise TypeError(f"there is no setting {unknown[0]!r}; there are {known}")
        training = override(Training(), **{name: value for name, value in settings.items() if name in of_training})
        evaluation = override(Evaluation(), **{n: value for n, value in settings.items() if n in of_evaluation})
        check(training)
        check(evaluation)
        return cls(datasets.read(data), training, evaluation.filled(), check_seed(seed))

    @property
    def split(self) -> Split:
        return self.data.split

    @functools.cached_property
    def fingerprint(self) -> str:
        return datasets.fingerprint(self.data)

    @functools.cached_property
    def evaluate(self) -> Evaluator:
        """Compiled once for all phases of one model and width."""
        return make_evaluator(self.split, cutoffs=self.evaluation.cutoffs, protocol=self.evaluation.make())

    def phase(
        self,
        name: str,
        model: str | Settings | MakeModel,
        dim: int | None = None,
        teacher: Teacher | None = None,
        teacher_settings: dict[str, Any] | None = None,
        methods: Mapping[str, Settings | Distiller] | None = None,
        *,
        precision: str = "float32",
        start: str | Fitted = "random",
        folder: Path | str | None = None,
        runs: Path | None = None,
        progress: bool | ProgressLine = True,
        title: str | None = None,
        on_epoch: Callable[[Progress], None] = lambda news: None,
    ) -> Fitted:
        """A phase from wherever it stands: to be begun, to be gone on with, done, or done in another run.

        Args:
          name: `teacher`, or what the student is helped by; a teacher's key is another than its students'.
          model, dim: of the recommender that is trained.
          teacher, teacher_settings: who helps, and what made it, if that is known.
          methods: how; none for a plain phase.
          precision: of its rows, see `distill`.
          start: see `distill`.
          folder: of its checkpoints.
          runs: a folder of run folders, where a plain phase of the same settings may have been trained before.
          title: for the line of progress, if not `name`.
          on_epoch: told of every epoch.
        """
        plan = self.plan(
            name,
            model,
            dim,
            teacher,
            teacher_settings,
            methods,
            precision=precision,
            start=start,
            folder=folder,
            runs=runs,
        )
        (fitted,) = self.carry_out([plan], progress=progress, title=title or name, on_epoch=on_epoch)
        return fitted

    def plan(
        self,
        name: str,
        model: str | Settings | MakeModel,
        dim: int | None = None,
        teacher: Teacher | None = None,
        teacher_settings: dict[str, Any] | None = None,
        methods: Mapping[str, Settings | Distiller] | None = None,
        *,
        precision: str = "float32",
        start: str | Fitted = "random",
        folder: Path | str | None = None,
        runs: Path | None = None,
        seed: int | None = None,
    ) -> Plan:
        """What a phase will be, checked; nothing is trained. Arguments are those of `phase`; the seed is the
        experiment's if None."""
        seed = self.seed if seed is None else seed
        if isinstance(start, str) and start not in STARTS:
            raise UserError(f"start: unknown value {start!r}; known: {', '.join(STARTS)}")
        maker, of_model = _model(model, dim, precision, is_teacher=name == "teacher")
        methods = methods or {}
        trained = all(getattr(settings, "trained", True) for settings in methods.values())
        scheduled = any(
            getattr(settings, "scheduled", isinstance(settings, Distiller)) for settings in methods.values()
        )
        if not trained and isinstance(maker, ModelOf) and isinstance(maker(self.split.train), InnerProduct):
            maker, of_model = _model(
                "bpr", maker.dim, precision, is_teacher=False
            )  # two tables, whatever their teacher is
        solver = maker.settings.solver() if isinstance(maker, ModelOf) and hasattr(maker.settings, "solver") else None
        of_solved = [name for name, one in methods.items() if getattr(one, "solved", False)]
        if solver and trained and len(of_solved) < len(methods):
            raise UserError(f"{of_model['name']} is solved for, and takes pseudo alone; give students another model")
        if of_solved and not solver:
            raise UserError(f"{of_solved[0]} is for a model that is solved for: ials")
        training = self._training(maker, methods, is_solved=bool(solver))
        assert training.loss and training.batch_size and training.learning_rate is not None and training.l2 is not None
        epochs = training.epochs or 0 if trained else 0
        scheduled |= training.schedule == "cosine"
        if training.loss == "softmax" and not isinstance(maker(self.split.train), InnerProduct):
            raise UserError("--loss: softmax needs scores that are products of two vectors")
        start = start if trained else "svd"
        if isinstance(start, Fitted):
            if start.settings["model"] != of_model:
                raise UserError(f"start: a student of {start.settings['model']} is not one of {of_model}")
            first = start.variables
        else:
            first = _svd_start(maker, teacher, self.split.train) if start == "svd" else None
        helped = bool(methods) or first is not None
        stopping = early_stopping(training, self.evaluation)
        trained_by = as_json(training) | {"epochs": epochs}  # of which one that is not scheduled may go on to more
        settings = {
            "format": FORMAT,
            "data": self.fingerprint,
            "model": of_model,
            "training": trained_by if scheduled else {n: x for n, x in trained_by.items() if n != "epochs"},
            "evaluation": as_json(self.evaluation),
            "seed": seed,
            "start": start if isinstance(start, str) else "student",
            "methods": {name: _describe(one) for name, one in methods.items()},
            "teacher": {"hash": hash_of(teacher), **(teacher_settings or {})} if helped else None,
        }
        if isinstance(start, Fitted):
            settings["start_hash"] = hash_of(first)
        if folder is not None and any(isinstance(one, Distiller) for one in methods.values()):
            raise UserError("a Distiller has no settings to know its checkpoints by: give settings, or no folder")
        if folder is not None and of_model["name"] is None:
            raise UserError("a function has no settings to know checkpoints by: give a model's settings, or no folder")
        if teacher is not None and teacher.lists is not None:
            check_lists(teacher.lists, self.split.train.num_items)
        checkpoints = None
        if folder is not None:
            if runs and not helped and not Path(folder).exists():
                found = find_phase(runs, name, settings, epochs, stopping)
                if found:
                    print(f"{name}: found trained, in {found}")
                    copy_checkpoints(found, Path(folder))
            checkpoints = Checkpoints(Path(folder))
        run = _Watched(epochs, seed, teacher)
        helper = _distiller(methods, run)
        if solver and trained:
            trainer = make_solving_trainer(maker, solver, helper if methods else None)
        else:
            objective = objective_of(training)
            rate: Any = training.learning_rate
            if training.schedule == "cosine":
                rate = cosine(rate, epochs * objective.steps(self.split.train, training.batch_size)[0])
            trainer = make_trainer(
                maker,
                helper,
                adam(rate, training.l2),
                batch_size=training.batch_size,
                objective=objective,
            )
        return Plan(
            maker,
            trainer,
            Phase(
                jax.random.fold_in(jax.random.key(seed), TEACHER_KEY if name == "teacher" else STUDENT_KEY),
                teacher if methods else None,
                checkpoints,
                settings,
                first,
            ),
            {**settings, "training": trained_by},
            epochs,
            training.eval_every,
            stopping,
            frozenset(run.asked),
        )

    def carry_out(
        self,
        plans: Sequence[Plan],
        *,
        progress: bool | ProgressLine = True,
        title: str,
        on_epoch: Callable[[Progress], None] = lambda news: None,
    ) -> list[Fitted]:
        """Trains phases that differ in seed, teacher and start alone, as one program.

        Args:
          plans: by `plan`, of which any two go together, see `Plan.goes_with`.
          title: for the line of progress, which follows whichever of them is furthest.
          on_epoch: told of every epoch of each.
        """
        plan, *others = plans
        line = progress if callable(progress) else progress_line if progress and plan.epochs else silent
        assert self.evaluation.metric is not None
        furthest = -1
        try:
            with line(title, plan.epochs, self.evaluation.metric) as show:

                def told(news: Progress) -> None:
                    nonlocal furthest
                    if news.epoch > furthest:
                        furthest = news.epoch
                        show(news)
                    on_epoch(news)

                called = lambda plan: f"the training of seed {plan.made_by['seed']}" if others else "the training"
                results = run_phases(
                    plan.trainer,
                    functools.partial(self.evaluate, plan.maker),
                    self.split,
                    [plan.phase._replace(on_epoch=told, training=called(plan)) for plan in plans],
                    epochs=plan.epochs,
                    eval_every=plan.eval_every,
                    early_stopping=plan.stopping,
                    evaluate_beside=self.evaluate,
                )
        except UserError as error:
            error.args = (f"{title}: {error}",) if str(error).startswith("the ") else error.args
            raise
        return [
            Fitted(plan.maker, result.variables, self.data, plan.made_by, *result[1:])
            for plan, result in zip(plans, results)
        ]

    def _training(self, maker: MakeModel, methods: Mapping[str, Settings | Distiller], *, is_solved: bool) -> Training:
        """Every choice of how a phase is trained, see `Training.filled`."""
        of_phase = override(self.training, loss="own") if is_solved else self.training
        epochs = usual_epochs(getattr(maker, "settings", None))
        return of_phase.filled(epochs, usual_training(methods.values()), self.split.train)


def _model(
    model: str | Settings | MakeModel, dim: int | None, precision: str = "float32", *, is_teacher: bool
) -> tuple[MakeModel, dict[str, Any]]:
    """What makes the module, and what it is, as JSON."""
    if isinstance(model, ModelOf):
        return _model(model.settings, model.dim, precision, is_teacher=is_teacher)
    if not isinstance(model, str) and not hasattr(model, "build"):
        return model, {"name": None, "dim": dim}
    if precision not in PRECISIONS:
        raise UserError(f"precision: unknown value {precision!r}; known: {', '.join(PRECISIONS)}")
    settings: Any = MODELS[model]() if isinstance(model, str) else model
    of = type(settings)
    known = next((name for name, known in MODELS.items() if known is of), f"{of.__module__}:{of.__name__}")
    name = model if isinstance(model, str) else known
    check(settings, f"{flag_name(name)}.")
    usual = settings.teacher_dim if is_teacher else max(1, settings.teacher_dim // 10)
    width = usual if dim is None else dim
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise UserError(f"dim: must be a whole number of at least 1, not {width!r}")
    if precision == "int4" and width % 2:
        raise UserError(f"precision: int4 holds two numbers a byte, and a width of {width} is odd")
    rounded = {} if precision == "float32" else {"precision": precision}
    return ModelOf(settings, width, precision), {"name": name, "dim": width, **rounded, **as_json(settings)}


def _distiller(methods: Mapping[str, Settings | Distiller], run: Run) -> Distiller:
    """The methods, weighted."""
    parts = []
    for name, one in methods.items():
        if isinstance(one, Distiller):
            parts.append(one)
        else:
            check(one, f"{flag_name(name)}.")
            parts.append(scale(one.make(run), getattr(one, "weight", 1.0)))
    return none() if not parts else parts[0] if len(parts) == 1 else chain(*parts)


def _describe(method: Settings | Distiller) -> dict[str, Any]:
    return {} if isinstance(method, Distiller) else as_json(method)


def _svd_start(maker: MakeModel, teacher: Teacher | None, train: Interactions) -> dict[str, Any]:
    """The variables of a BPR student that scores with the best factors of the teacher's scores."""
    if not (isinstance(maker, ModelOf) and type(maker.settings) is MODELS["bpr"]):
        raise UserError("svd starts a bpr student, no other")
    if teacher is None or teacher.representations is None:
        raise UserError("svd needs a teacher's representations")
    teacher.check(train)
    users, items = svd_factors(*teacher.representations, maker.dim)
    return {"params": {"users": users, "items": items}}


def find_phase(
    runs: Path, name: str, settings: dict[str, Any], epochs: int, stopping: EarlyStopping | None
) -> Path | None:
    """The checkpoints of a finished phase `name` with these settings in any run folder under `runs`."""
    for folder in sorted(runs.glob(f"*/checkpoints/{name}")):
        try:
            checkpoints = Checkpoints(folder)
            history = checkpoints.history()
            epochs_done = len(history["seconds"])
            done = epochs_done <= epochs and is_finished(history["records"], epochs_done, epochs, stopping)
            if done and history["settings"] == settings:
                checkpoints.tree()  # whole, or not found
                return folder
        except (UserError, OSError):
            continue  # another run's trouble
    return None


def size_of(arrays: Any) -> int:
    """Bytes of all of them."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(arrays))


def hash_of(arrays: Any) -> str:
    """Of all that a teacher, or a model's variables, are."""
    digest = hashlib.sha256()
    for path, table in jax.tree_util.tree_leaves_with_path(arrays):
        table = np.asarray(table)
        digest.update(f"{jax.tree_util.keystr(path)} {table.dtype}{table.shape}".encode() + table.tobytes())
    return digest.hexdigest()[:16]
