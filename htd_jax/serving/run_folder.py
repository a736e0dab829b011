"""A run folder, opened to serve what was trained there."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from htd_jax.data import Dataset, Interactions, load_dataset
from htd_jax.distillers import Representations
from htd_jax.errors import UserError, shown
from htd_jax.evaluation import Evaluation
from htd_jax.models import InnerProduct, MakeModel
from htd_jax.serving.retriever import Retriever, load_export, retriever_of
from htd_jax.serving.storage import is_export
from htd_jax.training import Checkpoints, read_trained, represent_all

# Of a phase's settings, what tells it from another of its name.
_MADE = ("data", "model", "training", "seed", "start", "methods", "teacher")


@dataclasses.dataclass(frozen=True, eq=False)
class Opened:
    """A phase of a run, trained to its end.

    Attributes:
      folder: of the run.
      phase: whose model it is: `teacher`, `student` or the method.
      make_model, variables: the model.
      dataset: what it was trained and evaluated on.
      evaluation: how it was evaluated.
      results: what `results.json` holds; {} if the run has not come so far.
      config: what `config.json` holds.
      distiller: what the method had to learn beside the student, at the last epoch: HTD's gate, see
        `htd_jax.distillers.learned_groups`; {} if nothing.
    """

    folder: Path
    phase: str
    make_model: MakeModel
    variables: Any
    dataset: Dataset
    evaluation: Evaluation
    results: dict[str, Any]
    config: dict[str, Any]
    distiller: Any

    @property
    def has_products(self) -> bool:
        """Whether its scores are products of two rows."""
        return isinstance(self.make_model(self.dataset.train), InnerProduct)

    def representations(self) -> Representations:
        """Of every user `[num_users, d]` and item `[num_items, d]`."""
        return represent_all(self.make_model, self.variables, self.dataset.train)

    @property
    def about(self) -> dict[str, Any]:
        """What the model is made of, as JSON, for `Retriever.about` and the model card."""
        phases = {
            name: {"parameters": entry["parameters"], "test": entry["final"]["test"]}
            for name, entry in self.results.get("phases", {}).items()
        }
        split = self.dataset.split
        return {
            "dataset": self.dataset.name,
            "interactions": {name: len(part) for name, part in zip(split._fields, split)},
            "model": self.config.get("model"),
            "method": self.config.get("method"),
            "phase": self.phase,
            "evaluation": {"protocol": self.evaluation.protocol, "candidates": self.evaluation.candidates},
            "phases": phases,
            "gap_closed": self.results.get("gap_closed", {}),
            "metrics": phases.get(self.phase, {}).get("test", {}),
            "config": self.config,
        }

    def retriever(self, precision: str | None = None, *, seen: Interactions | None = None) -> Retriever:
        """See `retriever_of`."""
        how: Any = {"seen": seen, "about": self.about}
        return retriever_of(self.make_model, self.variables, self.dataset, precision, **how)


def load(folder: Path | str) -> Retriever:
    """Opens an export (`Retriever.save`, `htd-jax export`) or a run folder.

    Raises:
      UserError: see `load_export` and `open_run`.
    """
    folder = Path(folder)
    if (folder / "config.json").is_file() and not is_export(folder):
        return open_run(folder).retriever()
    return load_export(folder)


def open_run(folder: Path | str, phase: str | None = None) -> Opened:
    """Opens a run folder.

    Args:
      folder: with `config.json`, `split.npz`, `checkpoints/<phase>`; users and items are called as `users.parquet` and
        `items.parquet` say, by numbers if they are not there.
      phase: `teacher`, `student` or the method; if None the helped student, else the plain one.

    Raises:
      UserError: no run folder, a phase that is not there, unfinished or damaged, or files that do not fit together.
    """
    folder = Path(folder)
    config = _json(folder / "config.json", f"{shown(folder)}: no run folder: there is no config.json in it")
    phases = _phases(folder, config)
    if phase is None:
        phase = next((name for name in (config.get("method"), "student") if name in phases), None)
    if phase not in phases:
        known = ", ".join(phases) or "none"
        raise UserError(f"{shown(folder)}: no phase {phase or 'student'!r} is trained there; there is {known}")
    trained = read_trained(folder / "checkpoints" / phase)
    fields = {field.name for field in dataclasses.fields(Evaluation)}
    evaluation = Evaluation(**{name: x for name, x in trained.settings["evaluation"].items() if name in fields})
    evaluation = dataclasses.replace(evaluation, cutoffs=tuple(evaluation.cutoffs))
    dataset = load_dataset(folder / "split.npz", str(config.get("dataset", "data")))
    results = {}
    if (folder / "results.json").is_file():
        results = _json(folder / "results.json", f"{shown(folder)}: results.json cannot be read")
    of_phase = trained.make_model, trained.variables
    return Opened(folder, phase, *of_phase, dataset, evaluation, results, config, trained.distiller)


def open_phases(folders: Iterable[Path | str]) -> dict[str, Opened]:
    """Every phase that is trained in run folders, by its name: `teacher`, `student`, methods.

    The runs are of one comparison: of the same data, students' width and seed. A phase that several have must be the
    same in all, and is the first's.

    Args:
      folders: see `open_run`; at least one.

    Raises:
      UserError: see `open_run`; no phase, runs of different data, or two phases of one name that were made differently.
    """
    found: dict[str, tuple[Opened, Any]] = {}
    data = None
    for folder in map(Path, folders):
        config = _json(folder / "config.json", f"{shown(folder)}: no run folder: there is no config.json in it")
        for phase in _phases(folder, config):
            opened = open_run(folder, phase)
            settings = Checkpoints(folder / "checkpoints" / phase).history()["settings"]
            made = {name: settings.get(name) for name in _MADE}
            data = data or (folder, made["data"])
            if made["data"] != data[1]:
                raise UserError(f"{shown(folder)}: of other data than {shown(data[0])}")
            if phase in found and found[phase][1] != made:
                other = shown(found[phase][0].folder)
                raise UserError(
                    f"{shown(folder)}: its {phase} is another than that of {other}; name runs of one width and seed"
                )
            found.setdefault(phase, (opened, made))
    if not found:
        raise UserError("no phase is trained in the run folders that were named")
    return {phase: opened for phase, (opened, _) in found.items()}


def _phases(folder: Path, config: dict[str, Any]) -> list[str]:
    known = ["teacher", "student", str(config.get("method"))]
    return [name for name in known if (folder / "checkpoints" / name).is_dir()]


def _json(path: Path, missing: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(missing) from None
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{shown(path)}: damaged ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{shown(path)}: damaged")
    return found
