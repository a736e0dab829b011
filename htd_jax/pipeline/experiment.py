"""The training of phases that share data and evaluation."""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from htd_jax import processes
from htd_jax.data import Dataset, fingerprint
from htd_jax.distillers import Method, chain, none, scale, svd_factors
from htd_jax.errors import UserError
from htd_jax.evaluation import EvaluationSpec, Evaluator
from htd_jax.models import MakeModel, ModelOf, batches_of
from htd_jax.pipeline.evaluators import evaluator_of
from htd_jax.pipeline.fitted import Fitted
from htd_jax.pipeline.progress import ProgressLine, progress_line, silent
from htd_jax.pipeline.run_folder import find_phase
from htd_jax.pipeline.spec import TEACHER, PhaseSpec
from htd_jax.teacher import Teacher
from htd_jax.training import (
    Checkpoints,
    Partitioning,
    Progress,
    Trainer,
    TrainingSpec,
    copy_checkpoints,
    host_device,
    make_solving_trainer,
    make_trainer,
    objective_of,
    optimizer_of,
    run_phase,
)

# The format of checkpoints; those of another format are not resumed.
FORMAT = 8

# The random key of a phase is folded from these: a distilled student starts where the plain one does, on the same
# batches.
TEACHER_KEY, STUDENT_KEY = 0, 1


@contextlib.contextmanager
def numerics() -> Iterator[None]:
    """Computes in float32, whatever JAX is set to in the rest of the process."""
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        yield


def _in_host_memory(method: Callable[..., Fitted]) -> Callable[..., Fitted]:
    """Keeps on the host what a method of `Experiment` does not place on a mesh: a teacher may outgrow one device."""

    @functools.wraps(method)
    def call(self: "Experiment", *arguments: Any, **options: Any) -> Fitted:
        if self.partitioning is None:
            return method(self, *arguments, **options)
        with jax.default_device(host_device()):
            return method(self, *arguments, **options)

    return call


@dataclasses.dataclass
class Experiment:
    """The data and the compiled evaluation that phases share, and their training.

    Attributes:
      data: the data set.
      evaluation: how models are evaluated.
      partitioning: where arrays live on several devices; None on one.
    """

    data: Dataset
    evaluation: EvaluationSpec
    partitioning: Partitioning | None = None

    @functools.cached_property
    def fingerprint(self) -> str:
        """The hash of the data."""
        return fingerprint(self.data)

    @functools.cached_property
    def evaluate(self) -> Evaluator:
        """The compiled evaluation during training, of all users or a sample.

        Raises:
          UserError: if the protocol is impossible on this split.
        """
        return self._evaluator(self.evaluation.eval_users)

    @functools.cached_property
    def evaluate_in_full(self) -> Evaluator:
        """The compiled evaluation of all users.

        Raises:
          UserError: see `evaluate`.
        """
        return self.evaluate if self.evaluation.eval_users is None else self._evaluator(None)

    def _evaluator(self, users: int | None) -> Evaluator:
        return evaluator_of(self.data, self.evaluation, users, self.partitioning)

    @_in_host_memory
    def train(
        self,
        spec: PhaseSpec,
        teacher: Fitted | Teacher | None = None,
        *,
        start: Fitted | None = None,
        folder: Path | None = None,
        runs: Path | None = None,
        progress: ProgressLine = progress_line,
        title: str | None = None,
        on_epoch: Callable[[Progress], None] = lambda progress: None,
        in_full: bool = True,
    ) -> Fitted:
        """Runs one phase: starts it, resumes it, or reuses a finished one.

        Args:
          spec: the phase.
          teacher: its teacher, if it needs one.
          start: the student that it starts from, if `spec.start` is `student`.
          folder: where its checkpoints are; none are written if None.
          runs: a folder of run folders, in which the same phase without a teacher may have been trained before.
          progress: the progress line.
          title: the name on the progress line; the phase's if None.
          on_epoch: a callback, called after every epoch.
          in_full: whether to evaluate the kept model on all users, if evaluations during training sample them.

        Raises:
          UserError: if the folder holds another phase, or the teacher lacks what the method needs.
          Diverged: if the loss is not finite.
        """
        title = title or spec.name
        teacher_settings = teacher.settings if isinstance(teacher, Fitted) else {}
        teacher = teacher.teacher() if isinstance(teacher, Fitted) else teacher
        if teacher is not None:
            teacher.check(self.data.train)
        if spec.keep_stages and self.partitioning:
            raise UserError("`keep_stages` ranks on one device; leave out `mesh`, or `keep_stages`")
        initial = self._initial(spec, teacher, start)
        settings = {"format": FORMAT, "data": self.fingerprint, **spec.describe(), "teacher": None}
        if spec.needs_teacher:
            settings["teacher"] = {"hash": hash_of(teacher), **teacher_settings}
        if spec.start == "student":
            settings["start_hash"] = hash_of(initial)
        identity = dict(settings)
        if not spec.scheduled:  # then more epochs continue fewer
            identity["training"] = {name: x for name, x in settings["training"].items() if name != "epochs"}
        checkpoints = None
        if folder is not None:
            if not spec.reproducible:
                raise UserError("a custom function has no settings that identify its checkpoints; leave out `folder`")
            if runs and not spec.needs_teacher:
                processes.from_first("phase", lambda: _reuse(runs, spec, identity, folder))
            checkpoints = Checkpoints(folder)
        key = phase_key(spec)
        trainer = self.trainer(spec)
        line = progress if spec.training.epochs and processes.is_first() else silent
        try:
            with line(title, spec.training.epochs, self.evaluation.metric) as show:

                def notify(news: Progress) -> None:
                    show(news)
                    on_epoch(news)

                def stage(name: str) -> None:
                    processes.barrier(name)  # what comes next may be a first collective
                    show(name)

                result = run_phase(
                    trainer,
                    self.evaluate,
                    self.data.split._replace(train=self.data.learned),
                    teacher if spec.methods else None,
                    key,
                    epochs=spec.training.epochs,
                    eval_every=spec.training.eval_every,
                    checkpoints=checkpoints,
                    settings=identity,
                    early_stopping=spec.early_stopping,
                    evaluate_in_full=self.evaluate_in_full if self.evaluation.eval_users and in_full else None,
                    start=initial,
                    partitioning=self.partitioning,
                    keep_stages=spec.keep_stages,
                    on_epoch=notify,
                    on_stage=stage,
                )
        except UserError as error:
            error.args = (f"{title}: {error}",) if str(error).startswith("the ") else error.args
            raise
        return Fitted(spec.make_model, result.variables, self.data, settings, *result[1:])

    def gradient_norms(
        self, spec: PhaseSpec, teacher: Fitted, variables: Sequence[Any] = (None,)
    ) -> list[dict[str, float]]:
        """Returns the norms of the gradients of the `base` loss and of the `method`'s, of the student's parameters.

        Args:
          spec: the phase of a distilled student.
          teacher: its teacher.
          variables: the student's variables at each state that is measured; those of the first step if None. All else
            is as in the first step.

        Raises:
          UserError: if the teacher lacks what the method needs, or nothing is trained by gradients.
        """
        trainer = self.trainer(spec)
        if trainer.norms is None or not spec.training.epochs:
            raise UserError("nothing is trained by gradients")
        init_key, epochs_key = jax.random.split(phase_key(spec))
        train = self.data.learned
        guidance = trainer.guide(train, teacher.teacher())
        state = trainer.init(init_key, train, guidance)
        states = [
            state if own is None else dataclasses.replace(state, params={**state.params, "model": own})
            for own in variables
        ]
        return [jax.tree.map(float, trainer.norms(one, epochs_key, train, guidance)) for one in states]

    def trainer(self, spec: PhaseSpec) -> Trainer:
        """Returns the computation of a phase."""
        objective = objective_of(spec.training, batches_of(spec.make_model))
        steps, _ = objective.steps(self.data.learned, spec.training.batch_size)
        num_rows = self.data.train.num_users + self.data.train.num_items
        return _trainer(spec.make_model, spec.methods, spec.training, steps, num_rows, self.partitioning)

    def _initial(self, spec: PhaseSpec, teacher: Teacher | None, start: Fitted | None) -> Any:
        """Returns the variables that the phase starts from; None if they are random."""
        if spec.start == "random":
            return None
        if spec.start == "student":
            assert start is not None
            if start.settings["model"] != spec.describe_model():
                raise UserError(
                    f"`start` is a student of model {start.settings['model']}, but the new student has model "
                    f"{spec.describe_model()}"
                )
            return start.variables
        if teacher is None or teacher.representations is None or not teacher.inner_product:
            raise UserError("svd needs a teacher whose scores are inner products of its representations")
        teacher.check(self.data.train)
        assert spec.dim is not None
        users, items = svd_factors(*teacher.representations, spec.dim)
        return {"params": {"users": users, "items": items}}


def phase_key(spec: PhaseSpec) -> jax.Array:
    """Returns the random key of a phase."""
    return jax.random.fold_in(jax.random.key(spec.seed), TEACHER_KEY if spec.name == TEACHER else STUDENT_KEY)


def _reuse(runs: Path, spec: PhaseSpec, settings: Any, folder: Path) -> None:
    """Copies the checkpoints of a finished phase of these settings, if there is one, and none in the folder."""
    if folder.exists():
        return
    if found := find_phase(runs, spec.name, settings, spec.training.epochs, spec.early_stopping):
        print(f"{spec.name}: reused from {found}")
        copy_checkpoints(found, folder)


@functools.lru_cache(maxsize=8)
def _trainer(
    make_model: MakeModel,
    methods: tuple[tuple[str, Method], ...],
    training: TrainingSpec,
    num_steps: int,
    num_rows: int,
    partitioning: Partitioning | None,
) -> Trainer:
    """Returns the trainer of a phase; that of an equal phase is reused, with what was compiled for it."""
    parts = [scale(method.make(training.epochs), method.weight) for _, method in methods]
    distiller = none() if not parts else parts[0] if len(parts) == 1 else chain(*parts)
    if isinstance(make_model, ModelOf) and make_model.settings.closed_form:
        return make_solving_trainer(
            make_model, make_model.settings.solver(), distiller if methods else None, partitioning
        )
    optimizer = optimizer_of(training, training.epochs * num_steps, num_rows)
    objective = objective_of(training, batches_of(make_model))
    return make_trainer(
        make_model,
        distiller,
        optimizer,
        batch_size=training.batch_size,
        objective=objective,
        partitioning=partitioning,
    )


def hash_of(arrays: Any) -> str:
    """Returns a hash of a pytree of arrays, such as a teacher or a model's variables."""
    digest = hashlib.sha256()
    for path, table in jax.tree_util.tree_leaves_with_path(arrays):
        table = np.asarray(table)
        digest.update(f"{jax.tree_util.keystr(path)} {table.dtype}{table.shape}".encode() + table.tobytes())
    return digest.hexdigest()[:16]
