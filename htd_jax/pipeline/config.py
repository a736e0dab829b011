"""Every choice of a run, checked, and as JSON."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

from htd_jax.data import SOURCES, Reading, is_path
from htd_jax.data.columns import stem
from htd_jax.distillers import METHODS, is_alone, usual_training
from htd_jax.errors import UserError
from htd_jax.evaluation import Evaluation
from htd_jax.models import MODELS, usual_epochs
from htd_jax.ops.precision import Precision, for_bytes
from htd_jax.settings import Settings, as_json, check, flag_name, override
from htd_jax.training import EarlyStopping, Training

NO_METHOD = "none"


@dataclasses.dataclass(frozen=True)
class What:
    """What is trained, on what."""

    dataset: str = "synthetic"
    """A data set's name (citeulike is the paper's), or the path of a CSV, TSV, Parquet, JSON lines or .inter file."""
    model: str = "bpr"
    """The base model of teacher and student."""
    method: str = "htd"
    """How the student is helped; best: the recipe; several at once: htd+fitnet; svd trains nothing, none helps not at
    all; one of your own: package.module:Class."""
    seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0
    """Of everything random. The same seed gives the same bits."""
    teacher_model: str | None = None
    """Of the teacher, if it is another: ials for bpr students. Default: --model; of --method best, ials."""
    teacher_dim: Annotated[int, Ge(1)] | None = None
    """Width of the teacher's tables. Default: 200, neumf 250."""
    student_dim: Annotated[int, Ge(1)] | None = None
    """Width of the student's. Default: 20, neumf 25."""
    precision: Precision | None = None
    """Of the student's rows, which is trained knowing it. int8: a scale a row; int4: half a byte a number. Default:
    float32."""
    bytes: Annotated[int, Ge(1)] | None = None
    """Of a student's row; width and precision follow."""
    student_init: Literal["random", "svd"] = "random"
    """Where students start; svd: at the best factors of the teacher's scores (bpr)."""


@dataclasses.dataclass(frozen=True)
class Places:
    """Where things are."""

    data_dir: Path | None = None
    """Folder with the data set's files. Else $HTD_DATA_DIR/<dataset>, the user's cache, and a download, in turn."""
    split_file: Path | None = None
    """A split to use as it is, in place of a data set: the split.npz of a run folder."""
    runs: Path = Path("runs")
    """Folder of run folders; a teacher (or a plain student) already trained there under the same settings is used."""
    run: Path | None = None
    """This run's folder; a killed run goes on there. Default: <runs>/<dataset>-<method>-<student dim>-seed<seed>, with
    model and protocol if they are not bpr and full."""
    teacher: tuple[Path, ...] = ()
    """A trained teacher to use: a run folder; two .npy tables (users, items), or one .npz, .safetensors or .pth; or
    lists of the best items, a table of user, item, and score or rank. --teacher-dim is then its own."""
    teacher_user_ids: Path | None = None
    """The ids of the rows of the teacher's tables, one a line. Default: numbers, or the data's ids in order; so for"""
    teacher_item_ids: Path | None = None
    """the items'."""
    tensorboard: bool = False
    """Whether <run>/tensorboard/<phase> holds event files, for `tensorboard --logdir`: needs tensorboardX."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Every choice of a run.

    Attributes:
      reading: how a file of one's own is read; counts where `what.dataset` is a path.
      own: the settings of data set, model and methods by the name that their flags begin with; what is missing has its
        defaults.
      data_file: that path, once it is filled in; the data set is then called as the file.
    """

    what: What = dataclasses.field(default_factory=What)
    training: Training = dataclasses.field(default_factory=Training)
    evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
    places: Places = dataclasses.field(default_factory=Places)
    reading: Reading = dataclasses.field(default_factory=Reading)
    own: Mapping[str, Settings] = dataclasses.field(default_factory=dict)
    data_file: Path | None = None

    def filled(self) -> "Config":
        """Itself with every default in place, if every value is possible.

        Raises:
          UserError: the first one that is not.
        """
        what = self.what
        for settings in (what, self.training, self.evaluation, self.places):
            check(settings)
        if self.data_file is None and not self.places.split_file and is_path(what.dataset):
            given = Path(what.dataset)
            named = dataclasses.replace(what, dataset=stem(given))
            return dataclasses.replace(self, what=named, data_file=given, reading=self.reading.filled()).filled()
        names = what.method.split("+")
        alone = [name for name in names if name == NO_METHOD or is_alone(METHODS[name])]
        if len(names) > 1 and (alone or len(set(names)) < len(names)):
            which = alone[0] if alone else "twice the same"
            raise UserError(f"--method: {what.method!r} must join different methods, and not {which}")
        usual = usual_training(METHODS[name] for name in names if name != NO_METHOD)
        if what.teacher_model is None and not self.places.teacher and "teacher_model" in usual:
            what = override(what, teacher_model=usual["teacher_model"])
        own = {name: settings for name, settings in dataclasses.replace(self, what=what)._own()}
        for name, settings in own.items():
            check(settings, f"{name}.")
        if "neumf" in (what.model, what.teacher_model) and what.method == "svd":
            raise UserError("--method: svd needs scores that are products of two vectors, which neumf's are not")
        if what.model != "bpr" and what.student_init == "svd":
            raise UserError(f"--student-init: svd starts a bpr student, not one of {what.model}")
        teachers = own[flag_name(what.teacher_model or what.model)]
        is_solved = hasattr(own[flag_name(what.model)], "solver")
        if self.training.loss == "softmax" and is_solved:
            raise UserError(f"--loss: {what.model} is solved for, by a loss of its own")
        if is_solved and not alone:
            raise UserError(
                f"--method: {what.model} is solved for, and takes pseudo alone, or none; "
                f"--teacher-model {what.model} teaches"
            )
        if not is_solved and what.method in METHODS and getattr(METHODS[what.method], "solved", False):
            raise UserError(f"--method: {what.method} is for a model that is solved for: --model ials")
        teacher_dim = what.teacher_dim or teachers.teacher_dim
        student_dim = what.student_dim or max(1, own[flag_name(what.model)].teacher_dim // 10)
        precision = what.precision
        if what.bytes:
            student_dim, precision = for_bytes(what.bytes, teacher_dim)
            # What is filled in may be filled in again.
            if what.student_dim not in (None, student_dim) or what.precision not in (None, precision):
                raise UserError("--bytes: says what --student-dim and --precision would; give either")
        if precision not in (None, "float32") and what.model == "neumf":
            raise UserError("--precision: neumf's rows are float32; a bpr student's may be in fewer bytes")
        if precision == "int4" and student_dim % 2:
            raise UserError(f"--precision: int4 holds two numbers a byte; --student-dim {student_dim} is odd")
        what = dataclasses.replace(
            what,
            precision=None if precision == "float32" else precision,
            dataset=self.places.split_file.stem if self.places.split_file else what.dataset,
            teacher_model=None if what.teacher_model == what.model and not usual else what.teacher_model,
            teacher_dim=teacher_dim,
            student_dim=student_dim,
        )
        models = [own[flag_name(name)] for name in dict.fromkeys([what.model, what.teacher_model or what.model])]
        training = self.training
        if (training.loss or usual.get("loss")) == "softmax" and what.model == "neumf":
            raise UserError("--loss: softmax needs scores that are products of two vectors, which neumf's are not")
        if training.sampled_items and (training.loss or usual.get("loss")) != "softmax":
            raise UserError("--sampled-items: goes with --loss softmax")
        if len(models) == 1 and not usual and training.loss != "softmax":  # else each phase has its own
            training = training.filled(usual_epochs(models[0]))
        return dataclasses.replace(self, what=what, training=training, evaluation=self.evaluation.filled(), own=own)

    def _own(self) -> list[tuple[str, Settings]]:
        """What data set, model and methods are set to, in that order."""
        what = self.what
        registries = [] if self.places.split_file or self.data_file else [(SOURCES, what.dataset)]
        registries += [(MODELS, name) for name in dict.fromkeys([what.model, what.teacher_model or what.model])]
        registries += [(METHODS, name) for name in what.method.split("+") if what.method != NO_METHOD]
        made = []
        for registry, name in registries:
            settings = registry[name]
            made.append((flag_name(name), self.own.get(flag_name(name)) or settings()))
        common = {field.name for of in (What, Training, Evaluation, Reading) for field in dataclasses.fields(of)}
        taken: dict[str, type | None] = {
            name.replace("_", "-"): None for name in (*common, "data", "reading", "teacher")
        }
        for name, settings in made:
            if taken.setdefault(name, type(settings)) is not type(settings):
                raise UserError(f"{type(settings).__name__}: --{name} is taken; give the class another name")
        return made

    @property
    def source(self) -> Settings:
        return self.own[flag_name(self.what.dataset)]

    @property
    def model(self) -> Settings:
        return self.own[flag_name(self.what.model)]

    @property
    def teacher_model(self) -> Settings:
        return self.own[flag_name(self.what.teacher_model or self.what.model)]

    @property
    def methods(self) -> dict[str, Settings]:
        """The settings of each method, by its name as it was given."""
        names = [] if self.what.method == NO_METHOD else self.what.method.split("+")
        return {name: self.own[flag_name(name)] for name in names}

    @property
    def folder(self) -> Path:
        what, protocol = self.what, self.evaluation.protocol
        method = "+".join(flag_name(name) for name in what.method.split("+"))
        taught = "" if what.teacher_model in (None, what.model) else f"by-{what.teacher_model}"
        size = [str(what.student_dim), what.precision or ""]
        name = [what.dataset, what.model, taught, protocol, method, *size, f"seed{what.seed}"]
        return self.places.run or self.places.runs / "-".join(part for part in name if part not in ("", "bpr", "full"))

    def as_json(self) -> dict[str, Any]:
        """What `config.json` holds: everything but places, which a run may be moved between."""
        common = [as_json(part) for part in (self.what, self.training, self.evaluation)]
        own = {name: as_json(settings) for name, settings in self.own.items()}
        if self.data_file:
            files = ("valid_file", "test_file")
            own["reading"] = {name: x for name, x in as_json(self.reading).items() if name not in files}
        return {key: value for part in (*common, own) for key, value in part.items()}


def early_stopping(training: Training, evaluation: Evaluation) -> EarlyStopping | None:
    """By the evaluation's metric, which must be filled in."""
    assert evaluation.metric is not None
    return None if training.patience is None else EarlyStopping(evaluation.metric, training.patience)


def describe(phase: str) -> str:
    """A phase's name for people: `htd+fitnet` is `student + HTD + FitNet`."""
    if phase in ("teacher", "student"):
        return phase
    labels = [getattr(METHODS[name], "label", METHODS[name].__name__) for name in phase.split("+")]
    return labels[0] if phase == "svd" else " + ".join(["student", *labels])
