"""A plan: variants of a run, at every size, over seeds, beside plain student and teacher; and what they came to."""

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from htd_jax.distillers import METHODS
from htd_jax.evaluation import make_user_evaluator
from htd_jax.pipeline import NO_METHOD, Config, Experiment, is_made_by, open_teacher
from htd_jax.serving import Opened, open_run
from htd_jax.settings import override
from htd_jax.studies.report import of_seeds
from htd_jax.studies.runs import Job, Outcome, execute
from htd_jax.studies.variants import PLAIN, Variant
from htd_jax.training import Training
from htd_jax.writing import whole


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
      config: what all runs have in common; its method, student's width and seed are put in.
      flags: the same, as flags of `htd-jax train`.
      variants: what is told from the plain student, which is always run.
      student_dims: the students' widths.
    """

    config: Config
    flags: tuple[str, ...]
    variants: tuple[Variant, ...]
    student_dims: tuple[int, ...]
    seeds: tuple[int, ...]

    def stages(self) -> list[list[Job]]:
        """Every run. Those of a stage need what the stage before has trained: teachers; plain students; then the rest.

        Raises:
          UserError: one of them cannot be.
        """
        first, *others = self.student_dims
        teachers = [self.job(PLAIN, first, seed) for seed in self.seeds]
        plain = [self.job(PLAIN, dim, seed) for dim in others for seed in self.seeds]
        helped = [
            self.job(variant, dim, seed)
            for seed in self.seeds
            for dim in self.student_dims
            for variant in self.variants
        ]
        once = lambda jobs: list({job.folder: job for job in jobs}.values())
        return [once(stage) for stage in (teachers, plain, helped) if stage]

    def job(self, variant: Variant, dim: int, seed: int) -> Job:
        """One of the runs. A plain student's has the teacher too, trained there or found in the plain run of another
        width; it is given to the students that are helped."""
        given = self.config.places.teacher
        if not given and variant.method != NO_METHOD:
            given = (self.job(PLAIN, dim, seed).folder,)
        varied = variant.of(self.config)
        config = dataclasses.replace(
            varied,
            what=override(varied.what, student_dim=dim, seed=seed),
            places=override(self.config.places, teacher=given),
        ).filled()
        words = (*self.flags, *variant.flags(), "--student-dim", str(dim), "--seed", str(seed))
        if given and not self.config.places.teacher:
            words += ("--teacher", str(given[0]))
        if not variant.is_usual:
            folder = config.folder.with_name(f"{config.folder.name}-{variant.suffix()}")
            config = dataclasses.replace(config, places=override(config.places, run=folder))
            words += ("--run", str(folder))
        return Job(config, words)

    def job_of(self, row: "Row", seed: int) -> Job:
        """The run that a row's model of this seed is of."""
        return self.job(row.variant, row.dim or self.student_dims[0], seed)

    @property
    def caveat(self) -> str:
        """What is to be said of an answer that one seed gives."""
        return " One seed does not tell what is chance." if len(self.seeds) == 1 else ""

    @property
    def metrics(self) -> tuple[str, str]:
        """Those that are shown, recall first."""
        largest = max(self.config.filled().evaluation.cutoffs)
        return f"recall@{largest}", f"ndcg@{largest}"


def carry_out(
    plan: Plan,
    data: str,
    *,
    at_once: int = 1,
    started: Callable[[Job], None] = lambda job: None,
    ended: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Makes every run that is not there yet. One that fails is passed over, with what needs it.

    Args:
      data: the fingerprint of what they are trained on.

    Raises:
      UserError: a run that cannot be, before any is begun.
    """
    stages = plan.stages()
    finished = lambda job: is_made_by(job.config, data) and results_of(job) is not None
    outcomes = []
    for stage in stages:
        for outcome in execute(stage, finished=finished, at_once=at_once, started=started):
            outcomes.append(outcome)
            ended(outcome)
    return outcomes


def results_of(job: Job) -> dict[str, Any] | None:
    """What the run came to, if it has ended."""
    try:
        found: dict[str, Any] = json.loads((job.folder / "results.json").read_text())
        return found if found["phases"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """What one model came to, by seed.

    Attributes:
      variant: of the run.
      phase: of it: `teacher`, `student`, a method.
      dim: the students' width; None for the teacher.
      beside: whether it is the teacher that learned beside the student.
      test: metrics by seed.
      seconds: of an epoch, by seed; none where nothing is trained.
      memory: the most bytes, by seed.
      errors: of the seeds that failed.
    """

    variant: Variant
    phase: str
    dim: int | None
    beside: bool = False
    test: dict[int, dict[str, float]] = dataclasses.field(default_factory=dict)
    seconds: dict[int, float] = dataclasses.field(default_factory=dict)
    memory: dict[int, int] = dataclasses.field(default_factory=dict)
    errors: dict[int, str] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """For people."""
        if self.beside:
            return "the teacher that learned beside it"
        return self.phase if self.phase in ("teacher", "student") else self.variant.name

    @property
    def is_helped(self) -> bool:
        return self.phase not in ("teacher", "student") and not self.beside

    def values(self, metric: str) -> list[float]:
        return [test[metric] for test in self.test.values()]

    def mean(self, metric: str) -> float:
        return statistics.mean(self.values(metric))

    def deviation(self, metric: str) -> float:
        """The sample standard deviation over seeds; 0 of a single one."""
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def above(self, other: "Row", metric: str) -> list[float]:
        """By how much, in the seeds that both have."""
        return [self.test[seed][metric] - other.test[seed][metric] for seed in self.test if seed in other.test]

    def is_above(self, other: "Row", metric: str) -> bool:
        """Whether the mean is above the other's by more than twice the larger standard deviation of the two."""
        difference = self.mean(metric) - other.mean(metric)
        return difference > 2 * max(self.deviation(metric), other.deviation(metric))

    def closed(self, student: "Row", teacher: "Row", metric: str) -> list[float]:
        """The share of the gap to the teacher that is closed, by seed; none if a seed has no gap, since the mean of the
        others would not go with the means of all."""
        seeds = [seed for seed in self.test if seed in student.test and seed in teacher.test]
        gaps = [teacher.test[seed][metric] - student.test[seed][metric] for seed in seeds]
        if any(gap <= 0 for gap in gaps):
            return []
        return [self.test[seed][metric] / gap - student.test[seed][metric] / gap for seed, gap in zip(seeds, gaps)]


def rows(plan: Plan, outcomes: Sequence[Outcome]) -> list[Row]:
    """Teacher, and at every width the plain student and each variant."""
    failed = {outcome.job.folder: outcome.error for outcome in outcomes if outcome.error}

    def row(variant: Variant, phase: str, dim: int, beside: bool = False) -> Row:
        found = Row(variant, phase, None if phase == "teacher" else dim, beside)
        for seed in plan.seeds:
            job = plan.job(variant, dim, seed)
            if job.folder in failed:
                found.errors[seed] = failed[job.folder] or ""
            elif results := results_of(job):
                entry = results["phases"][phase]
                final = entry["final"]["beside"] if beside else entry["final"]
                found.test[seed] = final["test"]
                if entry["epochs"] and not beside:
                    found.seconds[seed] = entry["seconds_per_epoch"]
                if entry.get("peak_memory") and not beside:
                    found.memory[seed] = entry["peak_memory"]
        return found

    made = [row(PLAIN, "teacher", plan.student_dims[0])]
    for dim in plan.student_dims:
        made.append(row(PLAIN, "student", dim))
        for variant in plan.variants:
            made.append(row(variant, variant.method, dim))
            if any(getattr(METHODS[name], "warm", False) for name in variant.method.split("+")):
                made.append(row(variant, variant.method, dim, beside=True))
    return made


def student_of(row: Row, every: Sequence[Row]) -> Row | None:
    """The plain student of its width, if it has one and has been run."""
    return next((r for r in every if r.dim == row.dim and r.phase == "student" and r.test), None)


def curves(plan: Plan, every: Sequence[Row]) -> list[dict[str, Any]]:
    """How every row learned: records of `name`, `dim`, epoch `x`, and mean, `low` and `high` over its seeds."""
    metric = plan.metrics[0]
    found = []
    for row in every:
        of_epoch: dict[int, list[float]] = {}
        for seed in row.test:
            job = plan.job_of(row, seed)
            for line in _lines(job):
                if line["phase"] == row.phase and line["terms"] and not row.beside:
                    of_epoch.setdefault(line["epoch"], []).append(line["test"][metric])
        for epoch, values in sorted(of_epoch.items()):
            if len(values) == len(row.test):
                found.append({"name": row.name, "dim": row.dim, "x": epoch, **of_seeds(values)})
    return found


def _lines(job: Job) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return []


def opened(plan: Plan, row: Row, seed: int) -> Opened:
    """The model of a row, for one of its seeds.

    Raises:
      UserError: it cannot be read.
    """
    job = plan.job_of(row, seed)
    if row.phase != "teacher" or not plan.config.places.teacher:
        return open_run(job.folder, row.phase)
    student = open_run(job.folder, "student")  # of a run that was given its teacher
    experiment = Experiment(student.dataset, Training(), student.evaluation, seed)
    given = open_teacher(job.config, experiment)
    return dataclasses.replace(student, phase="teacher", make_model=given.make_model, variables=given.variables)


def users_of(plan: Plan, every: Sequence[Row], told: Callable[[str], None]) -> dict[Row, dict[int, np.ndarray]]:
    """A metric of each user in test, of every student, by row and seed: `[users]`, of the same users everywhere.

    What was found before is kept in the runs' folders.
    """
    metric, evaluate = plan.metrics[0], None
    found: dict[Row, dict[int, np.ndarray]] = {}
    for row in every:
        for seed in row.test:
            if row.beside or row.phase == "teacher":
                continue
            folder = plan.job_of(row, seed).folder
            path = folder / f"users-{row.phase}.npz"
            values = _kept_users(path, metric, row.test[seed][metric])
            if values is None:
                told(f"reading each user's {metric}: {row.name}, {row.dim} dimensions, seed {seed}")
                model = open_run(folder, row.phase)
                if evaluate is None:  # compiled once a width: all runs are of one split
                    how: Any = {"cutoffs": model.evaluation.cutoffs, "protocol": model.evaluation.make()}
                    evaluate = make_user_evaluator(model.dataset.split, **how)
                values = evaluate(model.make_model, model.variables)["test"].values[metric]
                with whole(path) as partial, partial.open("wb") as file:
                    np.savez(file, **{metric: values})  # type: ignore[arg-type]
            found.setdefault(row, {})[seed] = values
    return found


def _kept_users(path: Path, metric: str, mean: float) -> np.ndarray | None:
    """What was kept, if it is of the model that the run came to."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            values: np.ndarray = kept[metric]
    except (OSError, ValueError, KeyError):
        return None
    return values if abs(float(values.mean(dtype=np.float64)) - mean) < 1e-6 else None
