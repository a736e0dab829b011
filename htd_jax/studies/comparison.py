"""The comparison: every method, at every size, over seeds, beside the plain student and the teacher."""

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from htd_jax.data import fingerprint
from htd_jax.distillers import METHODS
from htd_jax.errors import UserError
from htd_jax.pipeline import NO_METHOD, Config, describe, is_made_by, load_data
from htd_jax.settings import override
from htd_jax.studies.runs import Job, Outcome, execute
from htd_jax.studies.spread import spread


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
      config: what all runs have in common; its method, student's width and seed are put in.
      flags: the same, as flags of `htd-jax train`.
      methods: their names, `none` left out; pairs too, `htd+rrd`.
      student_dims: the students' widths.
    """

    config: Config
    flags: tuple[str, ...]
    methods: tuple[str, ...]
    student_dims: tuple[int, ...]
    seeds: tuple[int, ...]

    def stages(self) -> list[list[Job]]:
        """Every run. Those of a stage need what the stage before has trained: teachers; plain students; then the rest.

        Raises:
          UserError: one of them cannot be.
        """
        first, *others = self.student_dims
        teachers = [self.job(NO_METHOD, first, seed) for seed in self.seeds]
        plain = [self.job(NO_METHOD, dim, seed) for dim in others for seed in self.seeds]
        helped = [
            self.job(method, dim, seed) for seed in self.seeds for dim in self.student_dims for method in self.methods
        ]
        return [stage for stage in (teachers, plain, helped) if stage]

    def job(self, method: str, dim: int, seed: int) -> Job:
        """One of the runs. A plain student's has the teacher too, trained there or found in the plain run of another
        width; it is given to the students that are helped."""
        given = self.config.places.teacher
        if not given and method != NO_METHOD:
            given = (self.job(NO_METHOD, dim, seed).folder,)
        config = dataclasses.replace(
            self.config,
            what=override(self.config.what, method=method, student_dim=dim, seed=seed),
            places=override(self.config.places, teacher=given),
        ).filled()
        chosen = ("--method", method, "--student-dim", str(dim), "--seed", str(seed))
        taught = ("--teacher", str(given[0])) if given and not self.config.places.teacher else ()
        return Job(config, (*self.flags, *chosen, *taught))


def compare(
    comparison: Comparison,
    *,
    at_once: int = 1,
    started: Callable[[Job], None] = lambda job: None,
    ended: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Makes every run that is not there yet. One that fails is passed over, with what needs it.

    Raises:
      UserError: a run that cannot be, before any is begun.
    """
    stages = comparison.stages()
    data = fingerprint(load_data(stages[0][0].config))
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


@dataclasses.dataclass(frozen=True)
class Row:
    """What one model came to, by seed.

    Attributes:
      name: the phase: `teacher`, `student`, a method.
      dim: the students' width; None for the teacher.
      test: metrics by seed.
      seconds: of an epoch, by seed; none where nothing is trained.
      memory: the most bytes, by seed.
      errors: of the seeds that failed.
    """

    name: str
    dim: int | None
    test: dict[int, dict[str, float]]
    seconds: dict[int, float]
    memory: dict[int, int]
    errors: dict[int, str]

    def values(self, metric: str) -> list[float]:
        return [test[metric] for test in self.test.values()]

    def above(self, other: "Row", metric: str) -> list[float]:
        """By how much, in the seeds that both have."""
        return [self.test[seed][metric] - other.test[seed][metric] for seed in self.test if seed in other.test]


def rows(comparison: Comparison, outcomes: Sequence[Outcome]) -> list[Row]:
    """Teacher, and at every width the plain student and each method."""
    failed = {outcome.job.folder: outcome.error for outcome in outcomes if outcome.error}

    def row(method: str, phase: str, dim: int, beside: bool = False) -> Row:
        found = Row(f"{phase}, beside" if beside else phase, None if phase == "teacher" else dim, {}, {}, {}, {})
        for seed in comparison.seeds:
            job = comparison.job(method, dim, seed)
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

    made = [row(NO_METHOD, "teacher", comparison.student_dims[0])]
    for dim in comparison.student_dims:
        made.append(row(NO_METHOD, "student", dim))
        for method in comparison.methods:
            made.append(row(method, method, dim))
            if any(getattr(METHODS[name], "warm", False) for name in method.split("+")):
                made.append(row(method, method, dim, beside=True))
    return made


def tables(comparison: Comparison, outcomes: Sequence[Outcome]) -> str:
    """The comparison in Markdown: a row a model; then the pairs beside their parts; then what failed."""
    every = rows(comparison, outcomes)
    filled = comparison.config.filled()
    recall, ndcg = (f"{name}@{max(filled.evaluation.cutoffs)}" for name in ("recall", "ndcg"))
    teacher = every[0]
    lines = [
        f"| dimensions | | {recall} | {ndcg} | above the student | gap closed | s/epoch | x student's | GiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    doubted = False
    for row in every:
        student = next((r for r in every if r.dim == row.dim and r.name == "student"), None)
        if not row.test:
            what = "failed" if row.errors else "not run"
            lines.append(f"| {row.dim or ''} | {title(row.name)} | {what} | | | | | | |")
            continue
        gain, closed, mark = "", "", ""
        if student is not None and row is not student and student.test and not row.name.endswith(", beside"):
            above = row.above(student, recall)
            gain = spread(above, "+.4f")
            if closed_by_seed := _closed(row, student, teacher, recall):
                closed = spread(closed_by_seed, ".0%")
            mark = "" if is_above(row, student, recall) else " (a)"
            doubted |= bool(mark)
        seconds = list(row.seconds.values())
        own = list(student.seconds.values()) if student else []
        ratio = f"{statistics.mean(seconds) / statistics.mean(own):.1f}" if seconds and own else ""
        most = f"{max(row.memory.values()) / 2**30:.2f}" if row.memory else ""
        width = str(row.dim or filled.what.teacher_dim)
        cells = [spread(row.values(recall)), spread(row.values(ndcg)), gain + mark, closed]
        cells += [f"{statistics.mean(seconds):.3g}" if seconds else "", ratio, most]
        lines.append("| " + " | ".join([width, title(row.name), *cells]) + " |")
    text = "\n".join(lines) + "\n"
    if doubted:
        text += f"\n(a) not above the plain student by more than twice the larger spread of the two, in {recall}.\n"
    if pairs := _pairs(every, recall):
        text += f"\n{pairs}"
    failures = [f"- {title(row.name)}, {row.dim}, seed {s}: {e}" for row in every for s, e in row.errors.items()]
    if failures:
        text += "\nFailed:\n\n" + "\n".join(failures) + "\n"
    return text


def is_above(row: Row, student: Row, metric: str) -> bool:
    """Whether the mean is above the student's by more than twice the larger standard deviation of the two."""
    deviation = max(
        (statistics.stdev(x) for x in (row.values(metric), student.values(metric)) if len(x) > 1), default=0
    )
    return statistics.mean(row.values(metric)) - statistics.mean(student.values(metric)) > 2 * deviation


def title(name: str) -> str:
    """A row's name for people."""
    if name.endswith(", beside"):
        return "the teacher that learned beside it"
    return describe(name).removeprefix("student ") if name != "student" else "student"


def _closed(row: Row, student: Row, teacher: Row, metric: str) -> list[float]:
    """The share of the gap to the teacher that is closed, of the seeds where there is one."""
    closed = []
    for seed, test in row.test.items():
        if seed in student.test and seed in teacher.test:
            low, high = student.test[seed][metric], teacher.test[seed][metric]
            if high > low:
                closed.append((test[metric] - low) / (high - low))
    return closed


def _pairs(every: Sequence[Row], metric: str) -> str:
    """What methods that are joined reach above the best of their parts that was run alone too."""
    lines = []
    for row in every:
        parts = [r for r in every if r.dim == row.dim and r.test and r.name in row.name.split("+") and r is not row]
        if "+" not in row.name or not row.test or not parts or row.name.endswith(", beside"):
            continue
        best = max(parts, key=lambda part: statistics.mean(part.values(metric)))
        above = row.above(best, metric)
        helps = "yes" if is_above(row, best, metric) else "no" if statistics.mean(above) <= 0 else "not told apart"
        cells = [
            str(row.dim),
            title(row.name).removeprefix("+ "),
            spread(row.values(metric)),
            title(best.name).removeprefix("+ "),
        ]
        lines.append("| " + " | ".join([*cells, spread(best.values(metric)), spread(above, "+.4f"), helps]) + " |")
    if not lines:
        return ""
    head = (
        f"| dimensions | joined | {metric} | best part | {metric} | above it | helps |\n|---|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(lines) + "\n"


def draw(comparison: Comparison, outcomes: Sequence[Outcome], figure: Any) -> None:
    """A bar a method, with the spread over seeds, the plain student and the teacher as lines; a panel a width."""
    every = rows(comparison, outcomes)
    metric = f"recall@{max(comparison.config.filled().evaluation.cutoffs)}"
    panels = figure.subplots(1, len(comparison.student_dims), sharex=True, squeeze=False)[0]
    teacher = every[0].values(metric)
    for panel, dim in zip(panels, comparison.student_dims):
        here = [row for row in every if row.dim == dim and row.test and not row.name.endswith(", beside")]
        helped = sorted(
            (row for row in here if row.name != "student"), key=lambda row: statistics.mean(row.values(metric))
        )
        means = [statistics.mean(row.values(metric)) for row in helped]
        errors = [statistics.stdev(x) if len(x := row.values(metric)) > 1 else 0.0 for row in helped]
        panel.barh([title(row.name).removeprefix("+ ") for row in helped], means, xerr=errors, color="#0072b2")
        student = [x for row in here if row.name == "student" for x in row.values(metric)]
        levels = [(statistics.mean(x), name) for x, name in ((student, "student"), (teacher, "teacher")) if x]
        for (level, name), side in zip(sorted(levels), ("right", "left")):  # words away from one another
            colour = {"student": "#d55e00", "teacher": "#555555"}[name]
            panel.axvline(level, color=colour, linewidth=1.5)
            above: Any = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
            panel.annotate(f"{name} {level:.4f}", (level, 1), (0, 4), ha=side, color=colour, **above)
        panel.set_xlim(0, 1.12 * panel.get_xlim()[1])
        panel.set(xlabel=f"test {metric}", title=f"{dim} dimensions\n")
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="x", alpha=0.3)
        panel.set_axisbelow(True)


def parse_methods(names: Sequence[str]) -> tuple[str, ...]:
    """Methods by name; `all` stands for every one that there is, and `none` need not be said.

    Raises:
      UserError: an unknown one.
    """
    every = [known for name in names for known in (METHODS if name == "all" else [name])]
    for name in every:
        for part in name.split("+"):
            if part != NO_METHOD:
                METHODS[part]
    chosen = tuple(name for name in dict.fromkeys(every) if name != NO_METHOD)
    if not chosen:
        raise UserError("--methods: names none to compare")
    return chosen


def size(comparison: Comparison) -> tuple[float, float]:
    """Of the picture, in inches."""
    return 1.5 + 4.5 * len(comparison.student_dims), 1.4 + 0.28 * max(len(comparison.methods), 4)
