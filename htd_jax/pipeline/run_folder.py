"""The run folder: its layout, and all reading and writing of it.

config.json                   all settings except paths, and the hashes of data and teacher
split.npz                     the split; users.parquet and items.parquet the ids, unless they are row numbers
metrics.jsonl                 one line per evaluation, phase by phase
trials.jsonl, trials.md       what was tried to choose teacher and student, a line each, and the same as a table
choice.json                   the trials that were chosen; trials/ has checkpoints of students until the run is finished
results.json                  the results of the finished run
curves.png                    test recall against epochs
checkpoints/<phase>/<epochs>  the newest checkpoint of each phase
tensorboard/<phase>           event files, if they were requested
"""

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from htd_jax import processes
from htd_jax.data import Dataset, load_dataset, save_dataset
from htd_jax.data.files import read_json
from htd_jax.ensembles import Stages
from htd_jax.errors import UserError, reason, shown
from htd_jax.models import MODELS, ModelOf
from htd_jax.ops.codes import PRECISIONS
from htd_jax.pipeline.fitted import Fitted
from htd_jax.pipeline.spec import STUDENT, TEACHER
from htd_jax.serving import Retriever, load_export
from htd_jax.settings import check, override
from htd_jax.training import Checkpoints, EarlyStopping, choose, in_full, is_finished, trim_tables
from htd_jax.writing import alone, clean, is_partial, whole

# The settings that distinguish phases of the same name.
_IDENTITY = ("data", "model", "training", "seed", "start", "methods", "teacher")


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A run folder, which may not exist yet."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def split(self) -> Path:
        return self.path / "split.npz"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    @property
    def decisions(self) -> Path:
        return self.path / "choice.json"

    @property
    def trials(self) -> Path:
        return self.path / "trials.jsonl"

    def trial(self, name: str) -> Path:
        """Returns the folder of the checkpoints of a trial, which are removed at the end of the run."""
        return self.path / "trials" / _part(name)

    def read_decision(self, part: str) -> dict[str, Any] | None:
        """Returns the settings of the trial that was chosen for teacher or student; None if none is yet."""

        def read() -> dict[str, Any] | None:
            if not self.decisions.is_file():
                return None
            decision = _read_json(self.decisions, f"{shown(self.decisions)}: missing").get(part)
            return decision if isinstance(decision, dict) else None

        return processes.from_first("decision", read)

    def keep_decision(self, part: str, settings: Mapping[str, Any]) -> None:
        """Keeps the settings of the trial that was chosen for teacher or student."""
        if not processes.is_first():
            return
        earlier = _read_json(self.decisions, "") if self.decisions.is_file() else {}
        write_json(self.decisions, {**earlier, part: settings})

    def checkpoints(self, phase: str) -> Path:
        """Returns the folder of a phase's checkpoints, see `_part` for what it raises."""
        return self.path / "checkpoints" / _part(phase)

    def tensorboard(self, phase: str) -> Path:
        """Returns the folder of a phase's event files."""
        return self.path / "tensorboard" / _part(phase)

    def user_metrics(self, phase: str) -> Path:
        """Returns the file in which a study keeps a metric of each user."""
        return self.path / f"users-{_part(phase)}.npz"

    def begin(self, identity: Mapping[str, Any], data: Dataset) -> None:
        """Writes the settings and the data of the run; of several processes, the first does.

        Raises:
          UserError: see `check`.
        """
        processes.from_first("begin", lambda: self._begin(identity, data))

    def _begin(self, identity: Mapping[str, Any], data: Dataset) -> None:
        self.check(identity)
        if self.config.is_file() and (choice := self.read_config().get("choice")):
            identity = {**identity, "choice": choice}
        for path in (self.path, *self.path.glob("checkpoints"), *self.path.glob("checkpoints/*")):
            clean(path)  # what kills left where nothing is written again
        write_json(self.config, identity)
        save_dataset(self.path, data)

    def keep_choice(self, choice: Mapping[str, Any]) -> None:
        """Adds what was chosen for the run to its settings."""
        if processes.is_first():
            write_json(self.config, {**self.read_config(), "choice": choice})

    def check(self, identity: Mapping[str, Any]) -> None:
        """Checks that the folder is free, or holds this run.

        A request for more epochs resumes the folder's run, unless that distilled a student.

        Raises:
          UserError: if the folder holds something else, or cannot be read.
        """
        folder = shown(self.path)
        try:
            if not self.config.is_file():
                if self.path.exists() and (
                    not self.path.is_dir() or any(not is_partial(path) for path in self.path.iterdir())
                ):
                    raise UserError(f"{folder}: exists and is not a run folder; choose another with `run`")
                return
            found = json.loads(self.config.read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise ValueError("not an object")
        except UserError:
            raise
        except ValueError as error:
            raise UserError(
                f"{shown(self.config)}: not the settings of a run ({error}); choose another folder with `run`"
            ) from None
        except OSError as error:
            raise UserError(f"{folder}: cannot be used ({error.strerror}); choose another with `run`") from None
        found.pop("choice", None)  # a result
        was, now = flat(found), flat(identity)
        for name in sorted(was | now):
            if was.get(name) == now.get(name):
                continue
            if name == "epochs" and isinstance(was.get(name), int) and (now.get(name) or math.inf) > was[name]:
                if identity["method"] == "none":
                    continue
                raise UserError(
                    f"{folder}: was trained for {was[name]} epochs; with more epochs the teacher changes, and the "
                    "student must be trained again; choose another folder with `run`"
                )
            raise UserError(
                f"{folder}: made with other settings ({name} was {was.get(name)!r}, is {now.get(name)!r}); choose "
                "another folder with `run`, or delete this one"
            )

    def is_of(self, identity: Mapping[str, Any], *, given_teacher: bool) -> bool:
        """Returns whether the folder holds a run of these settings.

        Args:
          identity: what `config.json` holds, with the hash of the data.
          given_teacher: whether the run has a given teacher, of any hash and width.
        """
        try:
            found = self.read_config()
            found.pop("choice", None)
            expected = {**identity, "teacher": None}
            if given_teacher:
                expected |= {name: found[name] for name in ("teacher", "teacher_dim") if found[name] is not None}
        except (UserError, KeyError):
            return False
        was, now = flat(found), flat(expected)
        return all(was.get(name) == now.get(name) for name in was | now)

    def read_config(self) -> dict[str, Any]:
        """Returns what `config.json` holds.

        Raises:
          UserError: if it is missing or damaged.
        """
        return _read_json(self.config, f"{shown(self.path)}: not a run folder: it has no config.json")

    def read_results(self) -> dict[str, Any]:
        """Returns what `results.json` holds.

        Raises:
          UserError: if the run is not finished, or the file is damaged.
        """
        results = _read_json(self.results, f"{shown(self.path)}: not finished; the command that started it resumes it")
        try:
            _check_results(results)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{shown(self.results)}: not the results of a run ({reason(error)})") from None
        return results

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns the lines of `metrics.jsonl`; none if it is missing or damaged."""
        try:
            return [json.loads(line) for line in self.metrics.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError, RecursionError):
            return []

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Writes `results.json`."""
        if processes.is_first():
            write_json(self.results, results)

    def write_metrics(self, records: Mapping[str, list[dict[str, Any]]]) -> None:
        """Writes `metrics.jsonl` from the records of each phase."""
        if not processes.is_first():
            return
        lines = [{"phase": phase, **record} for phase, of_phase in records.items() for record in of_phase]
        with whole(self.metrics) as partial:
            partial.write_text("".join(json.dumps(_finite(line), allow_nan=False) + "\n" for line in lines), "utf-8")

    def phases(self) -> list[str]:
        """Returns the names of the phases that have checkpoints.

        Raises:
          UserError: if it is not a run folder.
        """
        names = [TEACHER, STUDENT, str(self.read_config().get("method"))]
        return [name for name in names if self.checkpoints(name).is_dir()]

    def open(self, phase: str | None = None) -> Fitted:
        """Returns the trained model of a phase.

        Args:
          phase: `teacher`, `student` or the method; the distilled student if None, else the plain one.

        Raises:
          UserError: if it is not a run folder, the phase is missing, unfinished or damaged, or files do not match.
        """
        config, phases = self.read_config(), self.phases()
        if phase is None:
            phase = next((name for name in (config.get("method"), STUDENT) if name in phases), None)
        if phase == TEACHER not in phases and config.get("teacher"):
            raise UserError(
                f"{shown(self.path)}: its teacher was given, and no copy is kept; set `teacher` to its files where "
                "htd-jax export writes it, or use them as they are"
            )
        if phase not in phases:
            known = ", ".join(phases) or "none"
            raise UserError(f"{shown(self.path)}: no phase {phase or STUDENT!r} is trained there; trained: {known}")
        data = load_dataset(self.split, str(config.get("dataset", "data")))
        results = self.read_results() if self.results.is_file() else {}
        fitted = open_phase(self.checkpoints(phase), data)
        return dataclasses.replace(fitted, about=about_of(fitted, phase, config, results))


def open_run(folder: Path | str, phase: str | None = None) -> Fitted:
    """Returns the trained model of a phase in a run folder, see `RunFolder.open`."""
    return RunFolder(Path(folder)).open(phase)


def open_phases(folders: Iterable[Path | str]) -> dict[str, Fitted]:
    """Returns every trained phase of runs of one comparison, by name: `teacher`, `student`, methods.

    Args:
      folders: run folders of the same data, student width and seed. Phases that several of them have must be equal.

    Raises:
      UserError: see `RunFolder.open`; if no phase is trained, the data differ, or two phases of one name differ.
    """
    found: dict[str, tuple[Path, Fitted]] = {}
    for folder in map(RunFolder, map(Path, folders)):
        for phase in folder.phases():
            fitted = folder.open(phase)
            first, other = found.get(phase) or next(iter(found.values()), (folder.path, fitted))
            if fitted.settings["data"] != other.settings["data"]:
                raise UserError(f"{shown(folder.path)}: its data differ from those of {shown(first)}")
            if phase in found and any(fitted.settings.get(name) != other.settings.get(name) for name in _IDENTITY):
                raise UserError(
                    f"{shown(folder.path)}: its {phase} differs from that of {shown(first)}; name runs of one width "
                    "and seed"
                )
            found.setdefault(phase, (folder.path, fitted))
    if not found:
        raise UserError("no phase is trained in these run folders")
    return {phase: fitted for phase, (_, fitted) in found.items()}


def load(folder: Path | str, *deltas: Path | str) -> Retriever:
    """Opens a folder written by `Retriever.save` or `htd-jax export`, or a run folder.

    Args:
      folder: the export, or the run.
      *deltas: folders of deltas that lead from the export to a later version, in their order.

    Raises:
      UserError: if it is neither, or damaged, or of a later format; or if a delta was made from another version.
    """
    run = RunFolder(Path(folder))
    if run.config.is_file():
        if deltas:
            raise UserError(f"{shown(run.path)}: is a run folder, to which no delta applies; pass an export")
        return run.open().retriever()
    return load_export(run.path, *deltas)


def open_phase(checkpoints: Path, data: Dataset) -> Fitted:
    """Returns the finished phase in a folder of checkpoints, trained on `data`.

    Raises:
      UserError: if there is none, or it is unfinished, damaged, or of an unknown model.
    """
    steps = Checkpoints(checkpoints)
    history, tree = steps.history(), steps.tree()
    settings = history["settings"]
    try:
        variables = tree.get("best") or tree["train"]["params"]["model"]
        distiller = tree["train"]["params"].get("distiller") or {}
        fields = dict(settings["model"])
        name, dim, precision = fields.pop("name"), fields.pop("dim"), fields.pop("precision", "float32")
        prefixes = tuple(fields.pop("prefixes", ()))
        model = override(MODELS[name](), **fields)
        check(model, f"{name}.")
        if precision not in PRECISIONS or not isinstance(dim, int) or dim < 1:
            raise TypeError
        make_model = ModelOf(model, dim, precision, prefixes)
        if model.module.divided:
            variables = trim_tables(variables, data.train)
        patience, metric = settings["training"]["patience"], settings["evaluation"]["metric"]
        settings["data"], settings["evaluation"]["cutoffs"]
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{shown(checkpoints)}: the checkpoint is of an unknown model") from None
    except UserError as error:
        raise UserError(f"{shown(checkpoints)}: {error}") from None
    if not history["finished"]:
        raise UserError(f"{shown(checkpoints)}: stopped after {steps.latest} epochs, unfinished; resume the run first")
    settings["training"]["epochs"] = len(history["seconds"])
    stopping = None if patience is None else EarlyStopping(metric, patience)
    chosen = in_full(choose(history["records"], stopping))
    records, seconds, spent = (history.get(name, {}) for name in ("records", "seconds", "spent"))
    stages = Stages(**tree["stages"]) if "stages" in tree else None
    return Fitted(make_model, variables, data, settings, records, seconds, chosen, distiller, spent, stages)


def find_phase(
    runs: Path, name: str, settings: Mapping[str, Any], epochs: int, stopping: EarlyStopping | None
) -> Path | None:
    """Returns the checkpoints of a finished phase with these settings in any run folder under `runs`."""
    for folder in sorted(RunFolder(path).checkpoints(name) for path in _folders(runs)):
        try:
            checkpoints = Checkpoints(folder)
            if checkpoints.latest is None:
                continue
            history = checkpoints.history()
            done = len(history["seconds"])
            finished = done <= epochs and is_finished(history["records"], done, epochs, stopping)
            if finished and history["settings"] == settings:
                checkpoints.tree()  # refuses a damaged one
                return folder
        except (UserError, OSError):
            continue  # another run's trouble
    return None


@contextlib.contextmanager
def claimed(folder: Path, by: str = "process", setting: str = "run") -> Iterator[None]:
    """Makes a folder if it is missing, and keeps the processes of other runs out of it.

    Args:
      folder: the folder.
      by: what works there, for the message.
      setting: the setting that chooses the folder.

    Raises:
      UserError: if another process works there, or the folder cannot be made.
    """
    with contextlib.ExitStack() as stack:

        def claim() -> None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(alone(folder))
            except BlockingIOError:
                raise UserError(
                    f"{shown(folder)}: another {by} is using it; wait for it, or choose another folder with `{setting}`"
                ) from None
            except OSError as error:
                raise UserError(
                    f"{shown(folder)}: cannot be used ({error.strerror}); choose another with `{setting}`"
                ) from None

        processes.from_first("claim", claim)
        yield


def write_json(path: Path, value: Any) -> None:
    """Writes strict JSON, whole or not at all; numbers that are not finite become null."""
    with whole(path) as partial:
        partial.write_text(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n", "utf-8")


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `config.json` holds by the names of settings: `htd.groups`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found.update({f"{name}.{n}": x for n, x in value.items()} if isinstance(value, dict) else {name: value})
    return found


def _check_results(results: dict[str, Any]) -> None:
    """Raises KeyError, TypeError or AttributeError if `results.json` is not what tables and cards show."""
    texts = [results[name] for name in ("dataset", "method")]
    figures = [results["gap_closed"]]
    numbers = [results["seed"]]
    for entry in results["phases"].values():
        texts += [entry["settings"]["model"]["name"], entry["settings"]["evaluation"]["protocol"]]
        figures += [entry["final"]["test"], *[x["test"] for x in [entry["final"].get("second_model")] if x]]
        numbers += [entry["parameters"], entry.get("seconds_per_epoch"), entry.get("epochs"), entry.get("peak_memory")]
        numbers += entry.get("seconds", {}).values()
    for names in figures:
        if wrong := [name for name in names if not re.fullmatch(r"[\w-]+@\d{1,9}", name)]:
            raise TypeError(f"{wrong[0]!r} is no metric")
        numbers += names.values()
    if wrong := [text for text in texts if not isinstance(text, str | None)]:
        raise TypeError(f"{wrong[0]!r} is no name")
    if wrong := [number for number in numbers if not isinstance(number, int | float | None)]:
        raise TypeError(f"{wrong[0]!r} is no number")


def _part(phase: str) -> str:
    """Returns the name of a phase, which `config.json` may hold, as that of a file.

    Raises:
      UserError: if it leads to another folder.
    """
    if phase in ("", ".", "..") or "/" in phase or "\\" in phase or not phase.isprintable():
        raise UserError(f"{shown(phase)!r} is no name of a phase; known: {TEACHER}, {STUDENT}, and methods")
    return phase


def about_of(fitted: Fitted, phase: str, config: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """Returns the facts for the model card."""
    phases = {
        name: {"parameters": entry["parameters"], "test": entry["final"]["test"]}
        for name, entry in results.get("phases", {}).items()
    }
    evaluation = fitted.settings["evaluation"]
    return {
        "model": config.get("model"),
        "method": config.get("method"),
        "phase": phase,
        "evaluation": {name: evaluation[name] for name in ("protocol", "candidates")},
        "phases": phases,
        "gap_closed": results.get("gap_closed", {}),
        "metrics": phases.get(phase, {}).get("test", {}),
        "config": config,
    }


def _folders(runs: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [path for path in runs.iterdir() if path.is_dir()]
    return []


def _read_json(path: Path, missing: str) -> dict[str, Any]:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(missing) from None
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read ({error.strerror})") from None
    found = read_json(path, "a JSON object")
    if not isinstance(found, dict):
        raise UserError(f"{shown(path)}: damaged")
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
