"""A run: a teacher, a plain student and the distilled student, in a run folder."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from htd_jax import processes
from htd_jax.errors import UserError, as_flags
from htd_jax.ops.codes import row_bytes
from htd_jax.pipeline.baselines import measure_baselines
from htd_jax.pipeline.choice import Choice
from htd_jax.pipeline.experiment import Experiment, hash_of
from htd_jax.pipeline.fitted import Fitted
from htd_jax.pipeline.progress import MakeCallback, ProgressLine, no_callback, progress_line
from htd_jax.pipeline.request import RunRequest, RunSpec, resolve_run
from htd_jax.pipeline.run_folder import RunFolder, claimed
from htd_jax.pipeline.spec import STUDENT, TEACHER, PhaseSpec, label
from htd_jax.training import Progress, best_record, find_partitioning, in_full


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
      spec: the run.
      phases: `teacher`, `student` and the method, each trained.
      results: what `results.json` holds.
      experiment: data and evaluation.
    """

    spec: RunSpec
    phases: dict[str, Fitted]
    results: dict[str, Any]
    experiment: Experiment

    @property
    def records(self) -> dict[str, list[dict[str, Any]]]:
        """The records of every phase."""
        return {name: phase.records for name, phase in self.phases.items()}


def run(
    spec: RunSpec,
    experiment: Experiment,
    teacher: Fitted | None = None,
    *,
    progress: ProgressLine = progress_line,
    callback: MakeCallback = no_callback,
    baselines: bool = False,
    until: str | None = None,
    plain_student: bool = True,
) -> RunResult:
    """Trains the phases of a run that are not yet trained, and writes its run folder, see `RunFolder`.

    Args:
      spec: the run, from `prepare_run`.
      experiment: the data and evaluation that its phases share.
      teacher: the given teacher, from `open_teacher`, if there is one.
      progress: the progress line.
      callback: makes the callback of each phase.
      baselines: whether to measure baselines of the student's size, see `measure_baselines`.
      until: `teacher` to train the teacher alone; the run is not finished then.
      plain_student: whether to train the plain student too, with which the distilled one is compared.

    Raises:
      UserError: if the folder holds something else; then nothing is written.
    """
    if until and teacher:
        raise UserError("`until` teacher trains the teacher alone, and one is given; leave out `teacher` or `until`")
    if not plain_student and (spec.distilled is None or spec.choice or spec.distilled.start == "student"):
        raise UserError(f"`method` {spec.settings.method} needs the plain student; leave out `plain_student=False`")
    folder = RunFolder(spec.folder)
    identity = run_identity(spec, experiment, teacher)
    if identity["student_dim"] > identity["teacher_dim"]:
        print(f"note: the student ({identity['student_dim']}) is wider than its teacher ({identity['teacher_dim']})")
    processes.from_first("check", lambda: folder.check(identity))
    callback = callback if processes.is_first() else no_callback
    with claimed(folder.path):
        folder.begin(identity, experiment.data)
        records: dict[str, list[dict[str, Any]]] = {TEACHER: teacher.records} if teacher else {}

        def train(phase: PhaseSpec, *teachers: Fitted, **options: Any) -> Fitted:
            with callback(spec, phase.name) as called:

                def on_epoch(news: Progress) -> None:
                    if news.records and news.records[-1]["epoch"] == news.epoch:
                        folder.write_metrics({**records, phase.name: news.records})
                    called.on_epoch(news)

                fitted = experiment.train(
                    phase,
                    *teachers,
                    **options,
                    folder=folder.checkpoints(phase.name),
                    runs=spec.runs,
                    progress=progress,
                    title=label(phase.name),
                    on_epoch=on_epoch,
                )
                called.on_end(fitted)
            records[phase.name] = fitted.records
            return fitted

        choice = Choice(spec, experiment, folder, progress) if spec.choice else None
        if choice:
            spec = choice.spec = dataclasses.replace(spec, teacher=choice.teacher())
        if until:
            assert spec.teacher is not None
            alone: dict[str, Fitted] = {TEACHER: train(spec.teacher)}
            folder.write_metrics(records)
            return RunResult(spec, alone, summarise(spec, alone), experiment)
        phases = train_phases(spec, teacher, train, plain=plain_student, distilled=not choice)
        if choice and spec.distilled:
            chosen = spec.distilled if spec.settings.prefixes else choice.student(phases)
            spec = dataclasses.replace(spec, distilled=chosen)
            phases[chosen.name] = train(chosen, phases[TEACHER], start=phases[STUDENT])
            choice.clear()
        results = summarise(spec, phases)
        if choice and choice.trials.done:
            results["choice"] = choice.summary()
            folder.keep_choice(choice.chosen())
        if spec.distilled and spec.settings.prefixes:
            results["sizes"] = measure_sizes(phases[spec.distilled.name], spec.settings.prefixes)
        if baselines:
            results["baselines"] = measure_baselines(spec, experiment, phases[TEACHER])
        folder.write_metrics(records)
        folder.write_results(results)
        return RunResult(spec, phases, results, experiment)


def prepare_run(request: RunRequest) -> tuple[RunSpec, Experiment]:
    """Reads the data of a run, and returns its phases and what they share; nothing is trained or written.

    Raises:
      UserError: if a value is invalid, or a file cannot be read.
    """
    data = request.load_dataset()
    for note in data.notes:
        print(f"note: {as_flags(note)}")
    spec = resolve_run(request, data)
    experiment = Experiment(data, spec.evaluation, find_partitioning(request.devices.mesh))
    _ = experiment.evaluate  # refuses a protocol that is impossible on this split
    return spec, experiment


def train_phases(
    spec: RunSpec,
    teacher: Fitted | None,
    train: Callable[..., Fitted],
    *,
    plain: bool = True,
    distilled: bool = True,
) -> dict[str, Fitted]:
    """Returns the phases of a run, trained one after another.

    Args:
      spec: the run.
      teacher: the teacher, if it is given.
      train: `(phase, teacher, start=...) -> Fitted`, see `Experiment.train`.
      plain: whether to train the plain student.
      distilled: whether to train the distilled student.
    """
    if teacher is None:
        assert spec.teacher is not None
        teacher = train(spec.teacher)
    phases: dict[str, Fitted] = {TEACHER: teacher}
    if plain:
        phases[STUDENT] = train(spec.student, teacher)
    if spec.distilled and distilled:
        phases[spec.distilled.name] = train(spec.distilled, teacher, start=phases.get(STUDENT))
    return phases


def measure_sizes(fitted: Fitted, prefixes: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Returns the bytes per row and the metrics of each prefix of a student, in its last epoch or the one that early
    stopping keeps: by its number of dimensions, `{"row_bytes", "valid", "test"}`."""
    found = {}
    for dim in prefixes:
        small = fitted.prefix(dim)
        size = row_bytes(dim, small.settings["model"].get("precision", "float32"))
        found[str(dim)] = {"row_bytes": size, **{part: small.chosen[part] for part in ("valid", "test")}}
    return found


def run_identity(spec: RunSpec, experiment: Experiment, teacher: Fitted | None) -> dict[str, Any]:
    """Returns what `config.json` holds; the width of a given teacher replaces the requested one."""
    identity = {**spec.identity, "data": experiment.fingerprint, "teacher": None}
    if teacher:
        identity["teacher"] = hash_of(teacher.teacher())
        identity["teacher_dim"] = teacher.settings["model"]["dim"] or identity["teacher_dim"]
    return identity


def summarise(spec: RunSpec, phases: Mapping[str, Fitted]) -> dict[str, Any]:
    """Returns what `results.json` holds: the `final` model, the `best` epoch in validation and the settings of each
    phase.

    If users are sampled, `final` is of all users. So is `best` where it is `final` in every phase; else it is `sampled`
    in every phase, because figures of a sample are not compared with figures of all.
    """
    entries = entries_of(phases, spec.evaluation.metric)
    return {
        "dataset": spec.settings.dataset,
        "model": spec.settings.model,
        "method": spec.settings.method,
        "protocol": spec.evaluation.protocol,
        "eval_users": spec.evaluation.eval_users,
        "seed": spec.settings.seed,
        "phases": entries,
        "gap_closed": gap_closed(entries, spec.settings.method),
    }


def entries_of(phases: Mapping[str, Fitted], metric: str) -> dict[str, dict[str, Any]]:
    """Returns the `phases` of `results.json`, see `summarise`; the best epoch is that of a metric in validation."""
    names = ("epoch", "sampled", "valid", "test", "second_model")
    best = {name: best_record(phase.records, metric) for name, phase in phases.items()}
    if all("full" in record for record in best.values()):
        best = {name: in_full(record) for name, record in best.items()}
    measured = lambda record: {name: record[name] for name in names if name in record}
    return {
        name: {
            "parameters": phase.parameters,
            "epochs": len(phase.seconds),
            "seconds_per_epoch": sum(phase.seconds) / max(len(phase.seconds), 1),
            "seconds": {**phase.spent, "whole": sum(phase.spent.values())},
            "peak_memory": phase.records[-1].get("peak_memory"),
            "final": measured(phase.chosen),
            "best": measured(best[name]),
            "settings": phase.settings,
        }
        for name, phase in phases.items()
    }


def gap_closed(phases: Mapping[str, Any], method: str, record: str = "final") -> dict[str, float | None]:
    """Returns (distilled - student) / (teacher - student) by test metric, of each phase's `record`, `final` or `best`;
    None where the teacher is not better. It is empty without a plain or a distilled student."""
    closed: dict[str, float | None] = {}
    for name in phases[TEACHER][record]["test"] if {method, STUDENT} <= phases.keys() else ():
        teacher, student, distilled = (phases[p][record]["test"][name] for p in (TEACHER, STUDENT, method))
        closed[name] = (distilled - student) / (teacher - student) if teacher > student else None
    return closed
