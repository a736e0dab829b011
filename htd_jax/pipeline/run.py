"""The whole job in a run folder: a teacher, a plain student, and the student that the teacher helps."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from htd_jax import data
from htd_jax.data import Dataset
from htd_jax.errors import UserError, shown
from htd_jax.models import USUAL_EPOCHS
from htd_jax.pipeline.config import NO_METHOD, Config, describe
from htd_jax.pipeline.experiment import Experiment, Fitted, hash_of, numerics
from htd_jax.pipeline.progress import ProgressLine, progress_line
from htd_jax.pipeline.teachers import open_teacher
from htd_jax.pipeline.watching import Watch, unwatched
from htd_jax.settings import override
from htd_jax.training import best_record
from htd_jax.writing import alone, is_partial, whole


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
      config: with every default in place.
      phases: `teacher`, `student` and the method, each trained.
      results: what `results.json` holds.
    """

    config: Config
    phases: dict[str, Fitted]
    results: dict[str, Any]

    @property
    def records(self) -> dict[str, list[dict[str, Any]]]:
        """Of every phase."""
        return {name: phase.records for name, phase in self.phases.items()}


def run(config: Config, *, progress: ProgressLine = progress_line, watch: Watch = unwatched) -> RunResult:
    """Trains what is not yet trained, and leaves `config.json`, `split.npz`, `metrics.jsonl`, `results.json` and the
    checkpoints in the run's folder.

    Args:
      progress: the line that shows how far a phase is.
      watch: who is told of each phase too.

    Raises:
      UserError: a value that cannot be, or a folder that holds something else; then nothing is written.
    """
    with numerics():
        config, experiment, given = prepare(config)
        identity = _identity(config, experiment, given)
        check_folder(config, identity)
        with claimed(config.folder):
            claim_folder(config, identity, experiment.data)
            return _train(config, experiment, given, progress, watch)


def prepare(config: Config) -> tuple[Config, Experiment, Fitted | None]:
    """A run before anything of it is trained or written: itself with every default in place, what its phases have in
    common, and the teacher if one is given.

    Raises:
      UserError: a value that cannot be.
    """
    config = config.filled()
    dataset = load_data(config)
    for note in dataset.notes:
        print(f"note: {note}")
    experiment = Experiment(dataset, config.training, config.evaluation, config.what.seed)
    # A protocol that cannot be on this split is refused here, before anything is written.
    _ = experiment.evaluate
    given = open_teacher(config, experiment) if config.places.teacher else None
    if given and (dim := given.settings["model"]["dim"]):
        config = dataclasses.replace(config, what=override(config.what, teacher_dim=dim))
    what = config.what
    assert what.student_dim and what.teacher_dim
    if what.student_dim > what.teacher_dim:
        print(f"note: the student ({what.student_dim}) is wider than its teacher ({what.teacher_dim})")
    return config, experiment, given


@contextlib.contextmanager
def claimed(folder: Path, by: str = "process", flag: str = "--run") -> Iterator[None]:
    """The folder, made if need be, is this process's alone.

    Args:
      by: what is at work there, for the message.
      flag: which names another folder.

    Raises:
      UserError: another process is at work there, or the folder cannot be made.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(alone(folder))
        except BlockingIOError:
            raise UserError(
                f"{shown(folder)}: another {by} is at work there; wait for it, or name another folder with {flag}"
            ) from None
        except OSError as error:
            raise UserError(f"{shown(folder)}: cannot be used ({error.strerror}); name another with {flag}") from None
        yield


def _train(
    config: Config, experiment: Experiment, given: Fitted | None, progress: ProgressLine, watch: Watch
) -> RunResult:
    what, folder = config.what, config.folder
    records = {"teacher": given.records} if given else {}

    def phase(name: str, dim: int, **arguments: Any) -> Fitted:
        def note(news: Any) -> None:
            if news.records and news.records[-1]["epoch"] == news.epoch:
                write_metrics(folder, {**records, name: news.records})
            watcher.epoch(news)

        with watch(config, name) as watcher:
            fitted = experiment.phase(
                name,
                config.teacher_model if name == "teacher" else config.model,
                dim,
                folder=folder / "checkpoints" / name,
                runs=config.places.runs,
                progress=progress,
                title=describe(name),
                on_epoch=note,
                **arguments,
            )
            watcher.end(fitted)
        records[name] = fitted.records
        return fitted

    phases, helps = plain_phases(config, given, phase)
    if what.method != NO_METHOD:
        assert what.student_dim
        phases[what.method] = phase(what.method, what.student_dim, **helps, methods=config.methods)
    results = summarise(config, phases)
    write_metrics(folder, records)
    write_json(folder / "results.json", results)
    return RunResult(config, phases, results)


def plain_phases(
    config: Config, given: Fitted | None, phase: Callable[..., Fitted]
) -> tuple[dict[str, Fitted], dict[str, Any]]:
    """The teacher and the plain student; and whatever a helped student has of them, but for the method.

    Args:
      given: the teacher, if it need not be trained.
      phase: trains one: its name, width, and the other arguments of `Experiment.phase`.
    """
    what = config.what
    assert what.student_dim and what.teacher_dim
    teacher = given or phase("teacher", what.teacher_dim)
    helps: dict[str, Any] = {"teacher": teacher.teacher(), "teacher_settings": teacher.settings}
    helps["precision"] = what.precision or "float32"
    student = phase("student", what.student_dim, **helps, start=what.student_init)
    warm = any(getattr(settings, "warm", False) for settings in config.methods.values())
    return {"teacher": teacher, "student": student}, {**helps, "start": student if warm else what.student_init}


def load_data(config: Config) -> Dataset:
    """The data set of a run: of a file; of a split in a file, with the ids that a run folder keeps beside it; or known
    by name.

    Raises:
      UserError: it cannot be had or read.
    """
    if config.data_file:
        return data.read_log(config.data_file, config.reading)
    if config.places.split_file:
        return data.load_dataset(config.places.split_file, config.what.dataset)
    return Dataset.from_split(config.source.load(config.places.data_dir), config.what.dataset)


def summarise(config: Config, phases: dict[str, Fitted]) -> dict[str, Any]:
    """`final` is of the model that counts, `best` the best epoch in validation; `settings` are what made a phase."""
    metric = config.evaluation.metric
    assert metric is not None
    of_epoch = lambda record: {name: record[name] for name in ("epoch", "valid", "test", "beside") if name in record}
    entries = {
        name: {
            "parameters": phase.parameters,
            "epochs": len(phase.seconds),
            "seconds_per_epoch": sum(phase.seconds) / max(len(phase.seconds), 1),
            "peak_memory": phase.records[-1].get("peak_memory"),
            "final": of_epoch(phase.chosen),
            "best": of_epoch(best_record(phase.records, metric)),
            "settings": phase.settings,
        }
        for name, phase in phases.items()
    }
    return {
        "dataset": config.what.dataset,
        "model": config.what.model,
        "method": config.what.method,
        "protocol": config.evaluation.protocol,
        "seed": config.what.seed,
        "phases": entries,
        "gap_closed": gap_closed(entries, config.what.method),
    }


def gap_closed(phases: dict[str, Any], method: str) -> dict[str, float | None]:
    """By test metric: (distilled - student) / (teacher - student); None where there is no gap."""
    closed: dict[str, float | None] = {}
    for name in phases["teacher"]["final"]["test"] if method in phases else ():
        teacher, student, helped = (phases[p]["final"]["test"][name] for p in ("teacher", "student", method))
        closed[name] = (helped - student) / (teacher - student) if teacher > student else None
    return closed


def write_json(path: Path, value: Any) -> None:
    """Strict JSON, whole or not at all: a number that is none is null."""
    with whole(path) as partial:
        partial.write_text(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def write_metrics(folder: Path, records: dict[str, list[dict[str, Any]]]) -> None:
    """`metrics.jsonl`: a line an evaluation, phase by phase."""
    lines = [{"phase": phase, **record} for phase, of_phase in records.items() for record in of_phase]
    with whole(folder / "metrics.jsonl") as partial:
        partial.write_text("".join(json.dumps(_finite(line), allow_nan=False) + "\n" for line in lines))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_folder(config: Config, settings: dict[str, Any]) -> None:
    """Raises UserError if the run's folder holds something else than this run."""
    folder, path = config.folder, config.folder / "config.json"
    try:
        if path.is_file():
            found = json.loads(path.read_text())
            if not isinstance(found, dict):
                raise ValueError("not an object")
            was, now = flat(found), flat(settings)
            for name in sorted(was | now):
                if was.get(name) == now.get(name) or (name == "epochs" and _goes_on(config, was.get(name))):
                    continue
                raise UserError(
                    f"{folder}: made by other settings ({name} was {was.get(name)!r}, is {now.get(name)!r}); "
                    "name another folder with --run or delete this one"
                )
        elif folder.exists() and (not folder.is_dir() or any(not is_partial(path) for path in folder.iterdir())):
            raise UserError(f"{folder}: exists and is not a run folder; name another with --run")
    except ValueError as error:
        raise UserError(f"{path}: not the settings of a run ({error}); name another folder with --run") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be used ({error.strerror}); name another with --run") from None


def is_made_by(config: Config, data: str) -> bool:
    """Whether the run's folder is there, and was made by these settings on the data of this fingerprint.

    What is asked of a teacher is not whether it is the same, but whether one was given.
    """
    try:
        found = json.loads((config.folder / "config.json").read_text())
        asked = {**config.as_json(), "data": data, "teacher": None}
        if config.places.teacher:  # its width is its own
            asked |= {name: found[name] for name in ("teacher", "teacher_dim") if found[name] is not None}
        was, now = flat(found), flat(asked)
        return all(was.get(name) == now.get(name) for name in was | now)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def claim_folder(config: Config, settings: dict[str, Any], dataset: Dataset) -> None:
    """Makes the run folder, or takes up the one that these settings made."""
    check_folder(config, settings)
    write_json(config.folder / "config.json", settings)
    data.save_dataset(config.folder, dataset)


def _identity(config: Config, experiment: Experiment, given: Fitted | None) -> dict[str, Any]:
    teacher = hash_of(given.teacher()) if given else None
    return {**config.as_json(), "data": experiment.fingerprint, "teacher": teacher}


def _goes_on(config: Config, epochs: Any) -> bool:
    """Whether a run of so many epochs can go on to the present ones.

    Raises:
      UserError: it could, but for a student that learns from its teacher.
    """
    if not isinstance(epochs, int) or epochs >= (config.training.epochs or USUAL_EPOCHS):
        return False
    if config.methods:
        raise UserError(
            f"{config.folder}: was made with {epochs} epochs; trained on, its teacher is another, whose student begins "
            "anew: name another folder with --run"
        )
    return True


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """What `config.json` holds by the names of flags: `htd.groups`."""
    found = {}
    for name, value in settings.items():
        found.update({f"{name}.{n}": x for n, x in value.items()} if isinstance(value, dict) else {name: value})
    return found
