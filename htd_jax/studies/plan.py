"""Plans: variants of a run at several widths and seeds, with the plain student and the teacher; and their results."""

import contextlib
import dataclasses
import functools
import statistics
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from htd_jax.data import Dataset
from htd_jax.errors import UserError
from htd_jax.evaluation import make_user_evaluator, shown_metrics
from htd_jax.pipeline import (
    NO_METHOD,
    STUDENT,
    TEACHER,
    Experiment,
    Fitted,
    RunFolder,
    RunRequest,
    RunSpec,
    open_run,
    open_teacher,
    resolve_run,
)
from htd_jax.settings import flag_words, override
from htd_jax.studies.report import mean_and_band
from htd_jax.studies.runs import Job, Outcome, execute
from htd_jax.studies.tables import Values
from htd_jax.studies.variants import PLAIN, Variant
from htd_jax.writing import whole


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The runs of a study.

    Attributes:
      request: what all runs have in common; method, student width and seed are filled in.
      flags: the same as flags of `htd-jax train`.
      dataset: the data.
      variants: the methods to compare with the plain student, which is always trained.
      student_dims: the students' widths.
      seeds: the seeds.
    """

    request: RunRequest
    flags: tuple[str, ...]
    dataset: Dataset
    variants: tuple[Variant, ...]
    student_dims: tuple[int, ...]
    seeds: tuple[int, ...]

    def stages(self) -> list[list[Job]]:
        """Returns all runs in stages: teachers; plain students; the others. A stage needs the models of the one before.

        Raises:
          UserError: if a run is invalid.
        """
        first, *others = self.student_dims
        teachers = [self.job(PLAIN, first, seed) for seed in self.seeds]
        plain = [self.job(PLAIN, dim, seed) for dim in others for seed in self.seeds]
        distilled = [
            self.job(variant, dim, seed)
            for seed in self.seeds
            for dim in self.student_dims
            for variant in self.variants
        ]
        unique = lambda jobs: list({job.folder: job for job in jobs}.values())
        return [unique(stage) for stage in (teachers, plain, distilled) if stage]

    def job(self, variant: Variant, dim: int, seed: int) -> Job:
        """Returns the run of a variant. The plain student's run trains the teacher, which other variants reuse."""
        teacher = self.request.paths.teacher
        request = variant.apply(self.request)
        words = [*_used(self.flags, request.used), *variant.flags()]
        words += [*flag_words("student_dim", dim), *flag_words("seed", seed)]
        if not teacher and variant.method != NO_METHOD:
            teacher = (self.job(PLAIN, dim, seed).folder,)
            words += flag_words("teacher", teacher)
        request = dataclasses.replace(
            request,
            settings=override(request.settings, student_dim=dim, seed=seed),
            paths=override(request.paths, teacher=teacher),
        )
        spec = resolve_run(request, self.dataset)
        if variant.changes:
            spec = dataclasses.replace(spec, folder=spec.folder.with_name(f"{spec.folder.name}-{variant.suffix()}"))
            words += flag_words("run", spec.folder)
        return Job(spec, tuple(words))

    def job_of(self, row: "Row", seed: int) -> Job:
        """Returns the run of a row's model."""
        return self.job(row.variant, row.dim or self.student_dims[0], seed)

    @functools.cached_property
    def spec(self) -> RunSpec:
        """The run of the plain student, of the first width and seed."""
        return self.job(PLAIN, self.student_dims[0], self.seeds[0]).spec

    @property
    def dataset_name(self) -> str:
        return self.spec.settings.dataset

    @property
    def caveat(self) -> str:
        """The caveat of an answer that rests on one seed."""
        return " One seed does not show what is due to chance." if len(self.seeds) == 1 else ""

    @property
    def metrics(self) -> list[str]:
        """The metrics that tables show, at the largest cutoff; first the one that charts draw."""
        evaluation = self.spec.evaluation
        return list(dict.fromkeys([evaluation.drawn, *shown_metrics([max(evaluation.cutoffs)])]))


def _used(flags: Sequence[str], prefixes: Container[str]) -> list[str]:
    """Returns the flags of a run: common ones, and those of the data set, models and methods that it uses."""
    kept: list[str] = []
    keeps = True
    for word in flags:
        if word.startswith("--"):
            prefix, dot, _ = word.removeprefix("--").partition("=")[0].partition(".")
            keeps = not dot or prefix.replace("_", "-") in prefixes
        if keeps:
            kept.append(word)
    return kept


def carry_out(
    plan: Plan,
    data: str,
    *,
    at_once: int = 1,
    started: Callable[[Job], None] = lambda job: None,
    ended: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Executes every run that is not finished. A failed run is skipped, with the runs that need it.

    Args:
      plan: the runs.
      data: the fingerprint of the data.
      at_once: the number of runs at once.
      started: a callback, called when a run starts.
      ended: a callback, called when a run ends.

    Raises:
      UserError: if a run is invalid, before any starts.
    """

    def finished(job: Job) -> bool:
        identity = {**job.spec.identity, "data": data}
        is_same = RunFolder(job.folder).is_of(identity, given_teacher=job.spec.teacher is None)
        return is_same and results_of(job) is not None

    outcomes = []
    for stage in plan.stages():
        for outcome in execute(stage, finished=finished, at_once=at_once, started=started):
            outcomes.append(outcome)
            ended(outcome)
    return outcomes


def results_of(job: Job) -> dict[str, Any] | None:
    """Returns the results of a run; None if it has not ended."""
    with contextlib.suppress(UserError):
        return RunFolder(job.folder).read_results()
    return None


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """The results of one model by seed.

    Attributes:
      variant: the variant of its run.
      phase: the phase: `teacher`, `student`, or the method.
      dim: the students' width; None for the teacher.
      second_model: whether it is the second model that the method trains with the student.
      test: the test metrics.
      seconds: the seconds per epoch; none where nothing is trained.
      memory: the peak memory in bytes.
      errors: the errors of failed seeds.
    """

    variant: Variant
    phase: str
    dim: int | None
    second_model: bool = False
    test: dict[int, dict[str, float]] = dataclasses.field(default_factory=dict)
    seconds: dict[int, float] = dataclasses.field(default_factory=dict)
    memory: dict[int, int] = dataclasses.field(default_factory=dict)
    errors: dict[int, str] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name shown to people."""
        if self.second_model:
            return f"second model of {self.short_name}"
        return self.phase if self.phase in (TEACHER, STUDENT) else self.variant.name

    @property
    def short_name(self) -> str:
        """The name without the plus sign."""
        return (self.variant.name if self.second_model else self.name).removeprefix("+ ")

    @property
    def is_student(self) -> bool:
        """Whether it is a student, plain or distilled, that has results."""
        return self.dim is not None and not self.second_model and bool(self.test)

    @property
    def is_distilled(self) -> bool:
        """Whether it is a distilled student that has results."""
        return self.is_student and self.phase != STUDENT

    def values(self, metric: str) -> list[float]:
        """Returns a metric of every seed."""
        return [test[metric] for test in self.test.values()]

    def cell(self, metric: str) -> Values:
        """Returns a metric as a cell of a table."""
        return Values(tuple(self.values(metric)))

    def point(self, metric: str, **more: Any) -> dict[str, Any]:
        """Returns a metric as a record of a chart."""
        return {"name": self.name, **more, **mean_and_band(self.values(metric))}

    def mean(self, metric: str) -> float:
        """Returns the mean over seeds."""
        return statistics.mean(self.values(metric))

    def deviation(self, metric: str) -> float:
        """Returns the sample standard deviation over seeds; 0 for a single one."""
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def above(self, other: "Row", metric: str) -> list[float]:
        """Returns the differences from another row in the seeds that both have."""
        return [self.test[seed][metric] - other.test[seed][metric] for seed in self.test if seed in other.test]

    def is_above(self, other: "Row", metric: str) -> bool:
        """Returns whether the mean exceeds the other's by more than twice the larger of their standard deviations."""
        difference = self.mean(metric) - other.mean(metric)
        return difference > 2 * max(self.deviation(metric), other.deviation(metric))

    def closed(self, student: "Row", teacher: "Row", metric: str) -> list[float]:
        """Returns the share of the gap to the teacher that is closed, by seed.

        It is empty if a seed has no gap, because a mean over the others would not match the means over all seeds.
        """
        seeds = [seed for seed in self.test if seed in student.test and seed in teacher.test]
        gaps = [teacher.test[seed][metric] - student.test[seed][metric] for seed in seeds]
        if any(gap <= 0 for gap in gaps):
            return []
        return [self.test[seed][metric] / gap - student.test[seed][metric] / gap for seed, gap in zip(seeds, gaps)]


def rows(plan: Plan, outcomes: Sequence[Outcome]) -> list[Row]:
    """Returns the results of the teacher, and at every width of the plain student and each variant."""
    failed = {outcome.job.folder: outcome.error for outcome in outcomes if outcome.error}

    def row(variant: Variant, phase: str, dim: int, second_model: bool = False) -> Row:
        found = Row(variant, phase, None if phase == TEACHER else dim, second_model)
        for seed in plan.seeds:
            job = plan.job(variant, dim, seed)
            if job.folder in failed:
                found.errors[seed] = failed[job.folder] or ""
            elif results := results_of(job):
                entry = results["phases"][phase]
                final = entry["final"].get("second_model") if second_model else entry["final"]
                if not final:
                    continue
                found.test[seed] = final["test"]
                if entry["epochs"] and not second_model:
                    found.seconds[seed] = entry["seconds_per_epoch"]
                if entry.get("peak_memory") and not second_model:
                    found.memory[seed] = entry["peak_memory"]
        return found

    made = [row(PLAIN, TEACHER, plan.student_dims[0])]
    for dim in plan.student_dims:
        made.append(row(PLAIN, STUDENT, dim))
        for variant in plan.variants:
            made.append(row(variant, variant.method, dim))
            if (second := row(variant, variant.method, dim, second_model=True)).test:
                made.append(second)
    return made


def plain_student(row: Row, every: Sequence[Row]) -> Row | None:
    """Returns the plain student of a row's width, if it has results."""
    return next((r for r in every if r.dim == row.dim and r.phase == STUDENT and r.test), None)


def curves(plan: Plan, every: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns the learning curves: records of `name`, `dim`, epoch `x`, and mean, `low` and `high` over seeds."""
    metric = plan.metrics[0]
    found = []
    for row in every:
        by_epoch: dict[int, list[float]] = {}
        for seed in () if row.second_model else row.test:
            for line in RunFolder(plan.job_of(row, seed).folder).read_metrics():
                if line["phase"] == row.phase and line["terms"]:
                    by_epoch.setdefault(line["epoch"], []).append(line["test"][metric])
        for epoch, values in sorted(by_epoch.items()):
            if len(values) == len(row.test):
                found.append({"name": row.name, "dim": row.dim, "x": epoch, **mean_and_band(values)})
    return found


def open_row(plan: Plan, row: Row, seed: int) -> Fitted:
    """Returns the trained model of a row for one of its seeds.

    Raises:
      UserError: if it cannot be read.
    """
    job = plan.job_of(row, seed)
    if row.phase == TEACHER:
        experiment = Experiment(plan.dataset, job.spec.evaluation)
        if given := open_teacher(plan.request.paths, job.spec, experiment):
            return given
    return open_run(job.folder, row.phase)


def metric_by_user(plan: Plan, every: Sequence[Row], log: Callable[[str], None]) -> dict[Row, dict[int, np.ndarray]]:
    """Returns the first test metric of each user `[users]`, of every student by row and seed; run folders keep it."""
    metric, evaluate = plan.metrics[0], None
    found: dict[Row, dict[int, np.ndarray]] = {}
    for row in every:
        for seed in row.test if row.is_student else ():
            folder = RunFolder(plan.job_of(row, seed).folder)
            path = folder.user_metrics(row.phase)
            values = _kept_users(path, metric, row.test[seed][metric])
            if values is None:
                log(f"reading each user's {metric}: {row.name}, {row.dim} dimensions, seed {seed}")
                model, evaluation = folder.open(row.phase), plan.spec.evaluation
                if evaluate is None:  # compiled once per width: all runs have the same split
                    split = plan.dataset.split
                    evaluate = make_user_evaluator(split, cutoffs=evaluation.cutoffs, protocol=evaluation.make())
                values = evaluate(model.make_model, model.variables)["test"].values[metric]
                with whole(path) as partial, partial.open("wb") as file:
                    np.savez(file, **{metric: values})  # type: ignore[arg-type]
            found.setdefault(row, {})[seed] = values
    return found


def _kept_users(path: Path, metric: str, mean: float) -> np.ndarray | None:
    """Returns the values in a file, if they are of the model with this mean."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            values: np.ndarray = kept[metric]
    except (OSError, ValueError, KeyError):
        return None
    return values if abs(float(values.mean(dtype=np.float64)) - mean) < 1e-6 else None
