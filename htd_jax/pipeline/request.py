"""The request for a run, as flags state it, and its resolution into the phases of the run."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

from htd_jax import data
from htd_jax.data import SOURCES, Dataset, Reading, is_path
from htd_jax.distillers import METHODS, Method
from htd_jax.errors import UserError
from htd_jax.evaluation import Evaluation, EvaluationSpec
from htd_jax.models import MODELS, IALSSettings, ModelSettings
from htd_jax.ops.codes import Precision
from htd_jax.ops.precision import for_bytes
from htd_jax.pipeline.spec import (
    NO_METHOD,
    STUDENT,
    TEACHER,
    PhaseRequest,
    PhaseSpec,
    Role,
    Start,
    find_methods,
    resolve,
)
from htd_jax.pipeline.trials import parse_budget
from htd_jax.settings import Settings, as_json, check, flag_name
from htd_jax.training import Training


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Settings of a run: the models and the method to train, and the data."""

    dataset: str = "synthetic"
    """Name of a data set (citeulike is the paper's), or path of a CSV, TSV, Parquet, JSON lines or .inter file, a
    folder or a pattern."""
    model: str = "bpr"
    """Base model of teacher and student."""
    method: str = "htd"
    """Distillation method: best is the recommended recipe, a+b combines methods, none trains the plain student,
    package.module:Class loads your own."""
    seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0
    """Random seed; the same seed gives the same bits."""
    teacher_model: str | None = None
    """Base model of the teacher. Default: --model, or ials with --method best."""
    teacher_dim: Annotated[int, Ge(1)] | None = None
    """Width of the teacher's tables. Default: 200; neumf 250."""
    student_dim: Annotated[int, Ge(1)] | None = None
    """Width of the student's tables. Default: 20; neumf 25."""
    precision: Precision | None = None
    """Precision of the student's tables, to which rows are rounded in training too. int8 has a scale per row; int4,
    int3 and int2 have so many bits per number. Default: float32."""
    bytes: Annotated[int, Ge(1)] | None = None
    """Bytes per row of the student, in place of --student-dim and --precision; several train one student for all."""
    budget: str | None = None
    """Time for choosing teacher and student of --method best in validation, such as 90s, 5m or 2h; 0 uses the defaults
    alone. What the command line sets is not searched. Default: a fixed list of trials, about three times the training
    of one student."""
    users: Literal["table", "folded"] = "table"
    """Rows of the student's users: a table, or folded, made from the items that each user has seen. Then only items
    take memory, and a new user has a row at once."""
    prefixes: tuple[Annotated[int, Ge(1)], ...] = ()
    """Widths that one distilled student is trained for at once, ascending, the last of them its own: its first 10, 20
    and 40 numbers are students too (bpr only). Replaces --student-dim; export --bytes cuts one out. Default: none."""
    student_init: Literal["random", "svd"] = "random"
    """Initial tables of the students: random, or the best low-rank factors of the teacher's scores (bpr only)."""


@dataclasses.dataclass(frozen=True)
class Paths:
    """Where a run reads and writes."""

    data_dir: Path | None = None
    """Folder with the data set's files. Default: $HTD_DATA_DIR/<dataset>, else the user's cache, else a download."""
    split_file: Path | None = None
    """Split to use in place of a data set: the split.npz of a run folder."""
    split_files: Path | None = None
    """Split to use in place of a data set: the folder that htd-jax split wrote."""
    runs: Path = Path("runs")
    """Folder of run folders; a teacher or plain student trained there with the same settings is reused."""
    run: Path | None = None
    """Folder of this run; a stopped run resumes there. Default: <runs>/<dataset>-<method>-<student dim>-seed<seed>;
    model and protocol are added unless they are bpr and full."""
    teacher: tuple[Path, ...] = ()
    """Trained teacher to use: a run folder; two .npy tables (users, items), or one .npz, .safetensors or .pth; or a
    file of top-k lists (user, item, and score or rank). Its width replaces --teacher-dim. Several are an ensemble."""
    teacher_user_ids: Path | None = None
    """File with the user ids of the rows of the teacher's tables, one per line. Default: rows are in the order of the
    data's ids."""
    teacher_item_ids: Path | None = None
    """File with the item ids of the rows of the teacher's tables, one per line. Default: rows are in the order of the
    data's ids."""
    trust_code: tuple[str, ...] = ()
    """Modules, or package.module:Class, that are imported because runs name models or methods of theirs, and
    package.module:function, a metric to add. Their code runs; without this flag, a file's name runs none."""
    until: Literal["teacher"] | None = None
    """Phase after which to stop: teacher trains the teacher alone. The same command without this flag continues.
    Default: train all."""
    plain_student: bool = True
    """Whether to train the plain student too, with which the distilled one is compared. Without it, no gap closed is
    shown; the same command with it adds it."""
    tensorboard: bool = False
    """Whether to write event files for TensorBoard to <run>/tensorboard/<phase>; needs tensorboardX."""
    curves: Literal["png", "pdf", "svg"] = "png"
    """Format of the picture of learning curves in the run folder."""
    baselines: bool = False
    """Whether to compare the students with the teacher's SVD and with iALS in as many bytes per row; takes seconds."""


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices and processes of a run. They are no part of what it trains: any of them resume it."""

    mesh: str | None = None
    """Devices to split tables over: a number such as 8, or 2x4 for two copies of tables that are split over four
    devices each, or auto for all. Default: one device; auto in several processes."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where the processes of one run find one another. Needed unless a launcher tells it:
    Slurm, Open MPI and TPU slices do."""
    processes: Annotated[int, Ge(1)] | Literal["auto"] | None = None
    """Number of processes that run this command, each with its own --process; auto asks Kubernetes or Cloud TPU.
    Default: those that Slurm, Open MPI or a TPU slice has started; 1 ignores them."""
    process: Annotated[int, Ge(0)] | None = None
    """Number of this process, from 0. Process 0 prints, and writes the files."""


@dataclasses.dataclass(frozen=True)
class RunRequest:
    """All choices of a run, as requested.

    Attributes:
      settings: what is trained.
      training: how every phase is trained.
      evaluation: how every phase is evaluated.
      paths: where files are.
      reading: how the file that `settings.dataset` names is read.
      devices: where it is trained.
      components: settings of data set, model and methods, by the prefix of their flags; defaults if missing.
    """

    settings: RunSettings = dataclasses.field(default_factory=RunSettings)
    training: Training = dataclasses.field(default_factory=Training)
    evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
    paths: Paths = dataclasses.field(default_factory=Paths)
    reading: Reading = dataclasses.field(default_factory=Reading)
    devices: Devices = dataclasses.field(default_factory=Devices)
    components: Mapping[str, Settings] = dataclasses.field(default_factory=dict)

    @property
    def data_file(self) -> Path | None:
        """The file of interactions, if the data set is one."""
        if self.split_given or not is_path(self.settings.dataset):
            return None
        return Path(self.settings.dataset)

    @property
    def split_given(self) -> bool:
        """Whether a split is given in place of a data set."""
        return self.paths.split_file is not None or self.paths.split_files is not None

    def component(self, registry: Mapping[str, type], name: str) -> Settings:
        """Returns the settings of a data set, model or method."""
        kind = registry[name]  # refuses an unknown name
        found = self.components.get(flag_name(name))
        return kind() if found is None else found

    @property
    def methods(self) -> dict[str, Method]:
        """The settings of each method, by name.

        Raises:
          UserError: if one is unknown, or they cannot be joined.
        """
        return {name: self.component(METHODS, name) for name in find_methods(self.settings.method)}

    @property
    def used(self) -> set[str]:
        """The prefixes of the flags of the data set, models and methods that the run uses."""
        settings = self.settings
        methods = [name for name in settings.method.split("+") if name != NO_METHOD]
        models = [settings.model, settings.teacher_model or "", settings.users]
        if not settings.teacher_model and not self.paths.teacher:
            models += [METHODS[name].teacher_model or "" for name in methods]
        return {flag_name(name) for name in (settings.dataset, *models, *methods)}

    def load_dataset(self) -> Dataset:
        """Checks the request, and reads its data set.

        Raises:
          UserError: if a value is out of its limits, or the data set is unknown or cannot be read.
        """
        check(self)
        if self.data_file:
            return data.read_log(self.data_file, self.reading.filled()).tested()
        name = self.settings.dataset
        if self.paths.split_files:
            if self.paths.split_file:
                raise UserError("`split_file` and `split_files` exclude each other; give one")
            return data.read_split_folder(self.paths.split_files)
        if self.paths.split_file:
            return data.load_dataset(self.paths.split_file, self.paths.split_file.stem, keep_first=True)
        source = self.component(SOURCES, name)
        return data.with_name(source.load(self.paths.data_dir), name)


@dataclasses.dataclass(frozen=True)
class ChoiceSpec:
    """What a run chooses by measurement in validation.

    Attributes:
      budget: the seconds after which no other trial starts; None for the default list of trials, 0 for none.
      teacher: whether the teacher's settings are chosen.
      kinds: whether teachers other than iALS are tried.
      fixed_width: whether all teachers that are tried have the requested width.
      variants: whether the settings of student and method are; else only whether the method is better than a model
        without a teacher.
    """

    budget: float | None
    teacher: bool
    kinds: bool
    fixed_width: bool
    variants: bool


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """The resolved phases of a run; made by `resolve_run`.

    Attributes:
      settings: what is trained, with every default filled in.
      evaluation: how every phase is evaluated.
      folder: the run folder.
      runs: the folder of run folders.
      teacher: the teacher's phase; None if a trained teacher is given.
      student: the plain student's phase.
      distilled: the distilled student's phase; None without a method.
      choice: what is chosen in validation before it is trained; None for nothing.
      identity: the contents of `config.json` without the hashes of data and teacher: all settings except paths.
    """

    settings: RunSettings
    evaluation: EvaluationSpec
    folder: Path
    runs: Path
    teacher: PhaseSpec | None
    student: PhaseSpec
    distilled: PhaseSpec | None
    choice: ChoiceSpec | None
    identity: Mapping[str, Any]


def resolve_run(request: RunRequest, dataset: Dataset) -> RunSpec:
    """Returns the phases of a run.

    Raises:
      UserError: if a value is invalid, or two do not go together.
    """
    settings, paths, split = request.settings, request.paths, dataset.split
    methods = request.methods
    default_teacher = next((method.teacher_model for method in methods.values() if method.teacher_model), None)
    teacher_model = settings.teacher_model or (None if paths.teacher else default_teacher)
    folds = settings.users == "folded"
    if folds and settings.model not in ("bpr", "folded"):
        raise UserError(f"`users` folded is a model of its own; leave out `model` {settings.model}")
    model = request.component(MODELS, "folded" if folds else settings.model)
    teacher_settings = request.component(MODELS, teacher_model or settings.model)
    common = PhaseRequest(seed=settings.seed, training=request.training, evaluation=request.evaluation)

    def phase(role: Role, **asked: Any) -> PhaseSpec:
        try:
            return resolve(dataclasses.replace(common, role=role, **asked), split)
        except UserError as error:  # a run has two widths
            error.args = tuple(str(line).replace("`dim`", f"`{role}_dim`") for line in error.args)
            raise

    teacher_dim = settings.teacher_dim or teacher_settings.teacher_dim
    dim, precision = settings.student_dim, settings.precision
    if settings.bytes:
        sized = for_bytes(settings.bytes, teacher_dim)
        if dim not in (None, sized[0]) or precision not in (None, sized[1]):
            raise UserError("`bytes` determines `student_dim` and `precision`; leave out `bytes`, or the other two")
        dim, precision = sized
    if settings.prefixes:
        if settings.bytes or not methods or dim not in (None, settings.prefixes[-1]):
            raise UserError(
                "`prefixes` gives the widths of a student with a `method`; leave out `bytes` and `student_dim`, and "
                "set `precision`"
            )
        dim = settings.prefixes[-1]
    plain = request.training  # for phases without a method, to which its defaults do not apply
    if methods and plain.loss == "none":
        plain = dataclasses.replace(plain, loss=None)
    if methods and plain.loss is None:
        plain = dataclasses.replace(plain, sampled_items=None)
    teacher = None
    if not paths.teacher:
        own_loss = teacher_settings.closed_form and not model.closed_form
        training = dataclasses.replace(plain, loss=None, sampled_items=None) if own_loss else plain
        if teacher_settings.closed_form or not teacher_settings.module.row_local:
            training = dataclasses.replace(training, optimizer=None)
        teacher = phase(TEACHER, model=teacher_settings, dim=teacher_dim, training=training)
    student_request: dict[str, Any] = {"model": model, "dim": dim, "precision": precision or "float32"}
    start: Start = settings.student_init
    student = phase(STUDENT, **student_request, start=start, training=plain)
    distilled = None
    if methods:
        start = "student" if any(method.warm_start for method in methods.values()) else start
        distilled = phase(STUDENT, **student_request, method=methods, start=start, prefixes=settings.prefixes)
    if (
        teacher
        and not teacher_settings.module.inner_product
        and "svd" in (student.start, distilled and distilled.start)
    ):
        raise UserError("svd needs a teacher whose scores are inner products, such as bpr; set `teacher_model`")
    assert student.dim is not None  # of a model with settings
    settings = dataclasses.replace(
        settings,
        dataset=dataset.name,
        teacher_model=None if teacher_model == settings.model and not default_teacher else teacher_model,
        teacher_dim=teacher_dim,
        student_dim=student.dim,
        precision=None if precision == "float32" else precision,
    )
    phases = [spec for spec in (teacher, student, distilled) if spec]
    return RunSpec(
        settings=settings,
        evaluation=student.evaluation,
        folder=paths.run or paths.runs / run_name(settings, student.evaluation),
        runs=paths.runs,
        teacher=teacher,
        student=student,
        distilled=distilled,
        choice=_choice(request, model, teacher_settings),
        identity=_identity(request, settings, phases),
    )


def _choice(request: RunRequest, model: ModelSettings, teacher: ModelSettings) -> ChoiceSpec | None:
    """Returns what the run chooses: what its method searches, and the request leaves open."""
    budget = parse_budget(request.settings.budget)
    methods = request.methods
    if len(methods) != 1 or not all(method.searched for method in methods.values()):
        if budget is not None:
            raise UserError("`budget` is for a `method` that chooses its settings, which is best; leave it out")
        return None
    settings = request.settings
    default_teacher = teacher == IALSSettings() and settings.teacher_model in (None, "ials")
    training = dataclasses.replace(request.training, eval_every=Training.eval_every, patience=None)
    as_default = model == MODELS["bpr"]() and training == Training() and settings.student_init == "random"
    own = all(method == type(method)() for method in methods.values())
    return ChoiceSpec(
        budget,
        teacher=default_teacher and not request.paths.teacher,
        kinds=settings.teacher_model is None,
        fixed_width=settings.teacher_dim is not None,
        variants=own and as_default,
    )


def run_name(settings: RunSettings, evaluation: EvaluationSpec) -> str:
    """Returns the default name of a run's folder."""
    method = "+".join(flag_name(name) for name in settings.method.split("+"))
    teacher = "" if settings.teacher_model in (None, settings.model) else f"by-{settings.teacher_model}"
    dims = "-".join(map(str, settings.prefixes or [settings.student_dim]))
    size = [dims, settings.precision or "", "folded" if settings.users == "folded" else ""]
    name = [settings.dataset, settings.model, teacher, evaluation.protocol, method, *size, f"seed{settings.seed}"]
    return "-".join(part for part in name if part not in ("", "bpr", "full"))


def _identity(request: RunRequest, settings: RunSettings, phases: list[PhaseSpec]) -> dict[str, Any]:
    """Returns the choices of a run as JSON: of training, what all phases agree on, else what was requested."""
    components = _components(request, settings)
    training = as_json(request.training)
    if request.training.keep_stages is None:  # which earlier versions do not have
        del training["keep_stages"]
    for name in as_json(phases[0].training):
        values = [getattr(spec.training, name) for spec in phases if spec.training.epochs]
        if values and all(value == values[0] for value in values):
            training[name] = values[0]
    if request.data_file:
        reading = as_json(request.reading.filled())
        components["reading"] = {name: x for name, x in reading.items() if name not in ("valid_file", "test_file")}
    chosen = as_json(settings)
    for name, default in (("users", "table"), ("prefixes", [])):  # which earlier versions do not have
        if chosen[name] == default:
            del chosen[name]
    return {**chosen, **training, **as_json(phases[-1].evaluation), **components}


def _components(request: RunRequest, settings: RunSettings) -> dict[str, Any]:
    """Returns the settings of data set, models and methods as JSON, by the prefix of their flags.

    Raises:
      UserError: if two have the same prefix, or one has the name of a flag.
    """
    used: list[tuple[Mapping[str, type], str]] = []
    if not (request.split_given or request.data_file):
        used.append((SOURCES, settings.dataset))
    models = [settings.model, settings.teacher_model or settings.model, *["folded"] * (settings.users == "folded")]
    used += [(MODELS, name) for name in dict.fromkeys(models)]
    used += [(METHODS, name) for name in settings.method.split("+") if settings.method != NO_METHOD]
    common = {field.name for kind in (RunSettings, Training, Evaluation, Reading) for field in dataclasses.fields(kind)}
    taken = {name.replace("_", "-") for name in (*common, "data", "reading", "teacher")}
    found: dict[str, Any] = {}
    for registry, name in used:
        prefix, component = flag_name(name), request.component(registry, name)
        if prefix in taken or prefix in found:
            raise UserError(f"{type(component).__name__}: the name {prefix!r} is taken; rename the class")
        found[prefix] = as_json(component)
    return found
