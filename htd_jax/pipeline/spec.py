"""Resolution of a phase: from what a caller requests to a frozen specification with nothing left open."""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from htd_jax.data import Interactions, Split
from htd_jax.distillers import METHODS, Distiller, Method
from htd_jax.errors import UserError, shown
from htd_jax.evaluation import Evaluation, EvaluationSpec
from htd_jax.models import MODELS, MakeModel, ModelOf, ModelSettings, Recommender, batches_of
from htd_jax.ops.codes import PRECISIONS
from htd_jax.settings import as_json, check, flag_name, override
from htd_jax.training import EarlyStopping, Training, TrainingSpec, resolve_training

Role = Literal["teacher", "student"]
TEACHER: Literal["teacher"] = "teacher"
STUDENT: Literal["student"] = "student"
NO_METHOD = "none"

AnyModel = str | ModelSettings | MakeModel
AnyMethod = str | Method | Distiller
Start = Literal["random", "svd", "student"]


@dataclasses.dataclass(frozen=True)
class Custom(Method):
    """A `Distiller` in the place of a method's settings, which it has none of."""

    distiller: Distiller

    scheduled = True  # nothing tells

    def make(self, epochs: int) -> Distiller:
        return self.distiller


@dataclasses.dataclass(frozen=True)
class PhaseRequest:
    """The settings of a phase, as requested. None stands for a default.

    Attributes:
      role: whether a teacher or a student is trained.
      model: the name of a base model, its settings, or a function that makes a module.
      dim: the width of its tables.
      method: a name (`"htd"`, `"htd+fitnet"`, `"none"`), a method's settings, a `Distiller`, a list of these, or
        settings by name.
      precision: the precision of its rows.
      prefixes: the numbers of leading dimensions that are trained as models too, see `ModelOf`.
      start: the initial student: random, the SVD of the teacher's scores, or a student trained before.
      seed: the seed of everything random.
      training, evaluation: settings.
    """

    role: Role = STUDENT
    model: AnyModel = "bpr"
    dim: int | None = None
    method: AnyMethod | Sequence[AnyMethod] | Mapping[str, Method] = NO_METHOD
    precision: str = "float32"
    start: Start = "random"
    seed: int = 0
    training: Training = dataclasses.field(default_factory=Training)
    evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
    prefixes: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class PhaseSpec:
    """All that decides what a phase computes from its data and teacher; made by `resolve`.

    Attributes:
      name: `teacher`, `student`, or the names of the methods joined by `+`.
      make_model: makes the module.
      dim: the width of its tables; None for a custom function.
      methods: the methods by name.
      training: the training; without epochs if the methods do not train.
      evaluation: the evaluation.
      seed: the seed of everything random.
      start: the initial model.
      keep_stages: the number of stages that are kept, see `Training`; 0 for none.
    """

    name: str
    make_model: MakeModel
    dim: int | None
    methods: tuple[tuple[str, Method], ...]
    training: TrainingSpec
    evaluation: EvaluationSpec
    seed: int
    start: Start
    keep_stages: int = 0

    @property
    def early_stopping(self) -> EarlyStopping | None:
        patience = self.training.patience
        return None if patience is None else EarlyStopping(self.evaluation.metric, patience)

    @property
    def needs_teacher(self) -> bool:
        """Whether the phase depends on a teacher."""
        return bool(self.methods) or self.start != "random"

    @property
    def scheduled(self) -> bool:
        """Whether what is computed depends on the number of epochs."""
        scheduled = self.training.schedule == "cosine" or any(method.scheduled for _, method in self.methods)
        return scheduled or self.keep_stages > 0

    @property
    def reproducible(self) -> bool:
        """Whether the specification tells the phase from every other: it holds no custom functions."""
        return isinstance(self.make_model, ModelOf) and not any(isinstance(m, Custom) for _, m in self.methods)

    def describe_model(self) -> dict[str, Any]:
        """Returns the model as JSON."""
        if not isinstance(self.make_model, ModelOf):
            return {"name": None, "dim": self.dim}
        settings, precision = self.make_model.settings, self.make_model.precision
        rounded: dict[str, Any] = {} if precision == "float32" else {"precision": precision}
        if prefixes := self.make_model.prefixes:
            rounded["prefixes"] = list(prefixes)
        return {"name": MODELS.name_of(settings), "dim": self.dim, **rounded, **as_json(settings)}

    def describe(self) -> dict[str, Any]:
        """Returns the specification as JSON."""
        methods = {name: {} if isinstance(method, Custom) else as_json(method) for name, method in self.methods}
        stages = {"keep_stages": self.keep_stages} if self.keep_stages else {}
        return {
            "model": self.describe_model(),
            "training": as_json(self.training) | stages,
            "evaluation": self.evaluation.describe(),
            "seed": self.seed,
            "start": self.start,
            "methods": methods,
        }


def resolve(request: PhaseRequest, split: Split) -> PhaseSpec:
    """Returns the specification of a phase, the only place that checks a request and fills in its defaults.

    Raises:
      UserError: if a value is invalid, or two do not go together.
      TypeError: if model or method is of another type.
    """
    check(request.training)
    check(request.evaluation)
    if request.start not in typing.get_args(Start):
        raise UserError(f"`start` {request.start!r} is unknown; known: random, svd, or a student")
    if isinstance(request.seed, bool) or not isinstance(request.seed, int) or not 0 <= request.seed < 2**32:
        raise UserError(f"`seed` must be an integer in [0, 2^32), not {request.seed!r}")
    methods = find_methods(request.method)
    for name, method in methods.items():
        check(method, f"{flag_name(name)}.")
        method.make(1)  # refuses settings that do not go together
    names = "+".join(methods)
    trains = all(method.trains for method in methods.values())
    make_model, dim = _model(request, split.train)
    if not trains and isinstance(make_model, ModelOf) and make_model.settings.module.inner_product:
        make_model = dataclasses.replace(make_model, settings=MODELS["bpr"]())  # two tables, whatever the model's are
    module, closed_form = _capabilities(make_model, split.train)
    inner_product = module.inner_product
    if not trains and not inner_product:
        raise UserError(f"`method` {names} needs a model whose scores are inner products, such as bpr")
    if closed_form and trains and not all(method.closed_form for method in methods.values()):
        raise UserError(
            f"`method` {names} trains by gradients, and the model is fitted in closed form; use pseudo, or give the "
            "student another `model`"
        )
    if not closed_form and any(method.closed_form for method in methods.values()):
        raise UserError(f"`method` {names} needs a model that is fitted in closed form; set `model` to ials")
    row_local = module.row_local and not closed_form
    training = _training(
        request,
        methods,
        make_model,
        split.train,
        closed_form=closed_form,
        row_local=row_local,
        has_valid=len(split.valid) > 0,
    )
    if training.patience is not None and not len(split.valid):
        raise UserError("`patience` needs a validation part, which this split does not have; leave it out")
    if training.loss == "softmax" and not inner_product:
        raise UserError("`loss` softmax needs a model whose scores are inner products, such as bpr")
    if training.loss == "none" and not methods:
        raise UserError("`loss` none leaves nothing to learn without a `method`; set one, or leave out `loss`")
    start = request.start if trains else "svd"
    if start == "svd" and (not module.params_are_tables or (closed_form and trains)):
        raise UserError("the svd start needs a bpr student, whose parameters are its two tables")
    return PhaseSpec(
        name=names or request.role,
        make_model=make_model,
        dim=dim,
        methods=tuple(methods.items()),
        training=training if trains else dataclasses.replace(training, epochs=0),
        evaluation=request.evaluation.resolve(split),
        seed=request.seed,
        start=start,
        keep_stages=(request.training.keep_stages or 0) if request.role == TEACHER else 0,
    )


def find_methods(method: AnyMethod | Sequence[AnyMethod] | Mapping[str, Method]) -> dict[str, Method]:
    """Returns methods by name; a `Distiller` is named by its position.

    Raises:
      UserError: if a name is unknown or stands twice, or if a method cannot be joined with others.
      TypeError: if one is of another type.
    """
    if isinstance(method, Mapping):
        return dict(method)
    given = list(method) if isinstance(method, list | tuple) and not isinstance(method, Distiller) else [method]
    parts = [part for one in given for part in (one.split("+") if isinstance(one, str) else [one])]
    if parts == [NO_METHOD]:
        return {}
    methods: dict[str, Method] = {}
    for part in parts:
        if isinstance(part, str):
            if part == NO_METHOD:
                raise UserError(f"`method` {NO_METHOD} cannot be joined with others")
            name, found = part, METHODS[part]()
        elif isinstance(part, Distiller):
            name, found = f"distiller{len(methods)}", Custom(part)
        elif isinstance(part, Method):
            name, found = METHODS.name_of(part), part
        else:
            raise TypeError(f"expected a method's name, its settings or a Distiller, not {type(part).__name__}")
        if name in methods:
            raise UserError(f"`method` {name} is given twice")
        if len(parts) > 1 and not found.composes:
            raise UserError(f"`method` {name} cannot be joined with others")
        methods[name] = found
    return methods


def label(phase: str) -> str:
    """Returns the name of a phase as shown to people.

    >>> label("htd+fitnet"), label("teacher"), label("svd")
    ('student + HTD + FitNet', 'teacher', 'SVD of the teacher')

    A method that is unknown here, of a run made elsewhere, keeps its name.

    >>> label("ftd+somebodys:Method")
    'student + FTD + somebodys:Method'
    """
    if phase in (TEACHER, STUDENT):
        return phase
    labels, trains = [], True
    for name in phase.split("+"):
        try:
            method = METHODS[name]
        except UserError:
            labels.append(shown(name))
        else:
            labels.append(method.label)
            trains &= method.trains
    return " + ".join([STUDENT, *labels] if trains else labels)


def _model(request: PhaseRequest, train: Interactions) -> tuple[MakeModel, int | None]:
    """Returns what makes the module, and its width."""
    model, dim, precision = request.model, request.dim, request.precision
    if isinstance(model, ModelOf):
        settings, dim = model.settings, model.dim
    elif isinstance(model, str):
        settings = MODELS[model]()
    elif isinstance(model, ModelSettings):
        settings = model
    elif callable(model):
        return model, dim
    else:
        raise TypeError(f"expected a model's name, its settings or a function, not {type(model).__name__}")
    check(settings, f"{flag_name(MODELS.name_of(settings))}.")
    if precision not in PRECISIONS:
        raise UserError(f"`precision` {precision!r} is unknown; known: {', '.join(PRECISIONS)}")
    if settings.teacher_only and request.role == STUDENT:
        raise UserError(
            f"`model` {settings.label} is no smaller at any width, so it is no student; give it as `teacher_model`, "
            "and another `model`"
        )
    settings.check_size(train)
    if dim is None and request.prefixes:
        dim = request.prefixes[-1]
    if dim is None:
        dim = settings.teacher_dim if request.role == TEACHER else max(1, settings.teacher_dim // 10)
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise UserError(f"`dim` must be an integer of at least 1, not {dim!r}")
    if precision != "float32" and not settings.module.inner_product:
        raise UserError(f"`precision` {precision} needs a model whose scores are inner products, such as bpr")
    _check_prefixes(request, settings, dim)
    return ModelOf(settings, dim, precision, tuple(request.prefixes)), dim


def _check_prefixes(request: PhaseRequest, settings: ModelSettings, dim: int) -> None:
    """Raises UserError if prefixes are invalid, or the model has none."""
    prefixes = tuple(request.prefixes)
    if not prefixes:
        return
    whole = all(isinstance(size, int) and not isinstance(size, bool) for size in prefixes)
    if not whole or list(prefixes) != sorted(set(prefixes)) or prefixes[0] < 1 or prefixes[-1] != dim:
        raise UserError(
            f"`prefixes` must be different numbers of dimensions, ascending, the last of them `dim` {dim}, not "
            f"{', '.join(map(str, prefixes))}"
        )
    if settings.closed_form or not settings.module.params_are_tables:
        raise UserError(
            f"`prefixes` needs a model of two tables that is trained by gradients, which is bpr, not {settings.label}"
        )


def _capabilities(make_model: MakeModel, train: Interactions) -> tuple[type[Recommender], bool]:
    """Returns the class of a model's module, and whether it is fitted in closed form."""
    if isinstance(make_model, ModelOf):
        return make_model.settings.module, make_model.settings.closed_form
    return type(make_model(train)), False


def _training(
    request: PhaseRequest,
    methods: Mapping[str, Method],
    make_model: MakeModel,
    train: Interactions,
    *,
    closed_form: bool,
    row_local: bool,
    has_valid: bool,
) -> TrainingSpec:
    training = request.training
    if closed_form and training.loss == "softmax":
        raise UserError("`loss` softmax is for models trained by gradients; this model is fitted in closed form")
    epochs = make_model.settings.epochs if isinstance(make_model, ModelOf) else ModelSettings.epochs
    defaults = {name: value for method in methods.values() for name, value in method.training_defaults.items()}
    if not has_valid:
        defaults.pop("patience", None)
    if closed_form:
        training = override(training, loss="own")
    batches = batches_of(make_model)
    return resolve_training(training, train, epochs=epochs, defaults=defaults, row_local=row_local, batches=batches)
