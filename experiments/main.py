"""Distil a wide recommender into a narrow one, and show how much of the gap between the two was closed."""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a plain checkout will do, installed or not

import jax
import numpy as np
import platformdirs
import tyro
from config import Config
from report import (
    PhaseProgress,
    draw_curves,
    gap_closed,
    is_partial,
    print_table,
    summarise,
    write_json,
    write_metrics,
)

from htd_jax import data
from htd_jax.data import Split
from htd_jax.distillers import Distiller, none
from htd_jax.errors import UserError
from htd_jax.evaluation import make_evaluator
from htd_jax.models import BPR
from htd_jax.training import (
    Checkpoints,
    PhaseResult,
    Representations,
    adam,
    copy_checkpoints,
    make_trainer,
    no_teacher,
    run_phase,
)

# What a phase's random key is folded from. A helped student starts where the plain one does, on the same batches.
TEACHER_KEY, STUDENT_KEY = 0, 1


def main() -> None:
    quieten_readers()
    config = parse()
    try:
        run(config.check())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on at the last checkpoint in {config.folder}", file=sys.stderr)
        sys.exit(130)


def parse() -> Config:
    """The command line; what tyro has against it, it puts in a box, and we on a line."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(Config, description=__doc__)
    except SystemExit as stop:
        if stop.code == 2:
            lines = [line.strip("│ ") for line in box.getvalue().splitlines() if line[:1] not in "╭╰"]
            reason = " ".join(lines[: next((i for i, line in enumerate(lines) if line.startswith("──")), None)])
            print(f"error: {reason}; --help lists every flag", file=sys.stderr)
        raise


def quieten_readers() -> None:
    """Reading a damaged checkpoint ends at its first bad part, and that error is the one we report: what the readers of
    the other parts log after it, or raise in threads and finalisers where none can catch it, is no news."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda raised: None


def run(config: Config) -> dict[str, Any]:
    """The whole job; returns what `results.json` holds."""
    jax.config.update("jax_compilation_cache_dir", str(platformdirs.user_cache_path("htd_jax") / "compiled"))
    split = data.load(config.dataset, config.data_dir)
    fingerprint = data.fingerprint(split)
    given = open_teacher(config.teacher, split, fingerprint) if config.teacher else None
    if given:
        config = dataclasses.replace(config, teacher_dim=given.state["users"].shape[1])
    if config.student_dim > config.teacher_dim:
        print(f"note: the student ({config.student_dim}) is wider than its teacher ({config.teacher_dim})")
    claim_folder(config, fingerprint)
    job = Job(config, split, fingerprint, {"teacher": given.records} if given else {})

    phases: dict[str, PhaseResult] = {}
    phases["teacher"] = given or job.train("teacher", none(), config.teacher_dim, TEACHER_KEY)
    phases["student"] = job.train("student", none(), config.student_dim, STUDENT_KEY)
    if config.method != "none":
        tables = phases["teacher"].state if given else phases["teacher"].state.params["model"]["params"]
        teacher = Representations(tables["users"], tables["items"])
        phases[config.method] = job.train(config.method, config.distiller(), config.student_dim, STUDENT_KEY, teacher)

    dims = {"teacher": config.teacher_dim}
    parameters = lambda name: (split.train.num_users + split.train.num_items) * dims.get(name, config.student_dim)
    entries = {name: summarise(phase.records, phase.seconds, parameters(name)) for name, phase in phases.items()}
    results = {
        "dataset": config.dataset,
        "method": config.method,
        "seed": config.seed,
        "phases": entries,
        "gap_closed": gap_closed(entries, config.method),
    }
    records = {name: phase.records for name, phase in phases.items()}
    write_metrics(config.folder, records)
    draw_curves(config.folder / "curves.png", config.dataset, records)
    write_json(config.folder / "results.json", results)
    print_table(results)
    print(f"run folder: {config.folder}")
    return results


@dataclasses.dataclass
class Job:
    """What the phases of a run share."""

    config: Config
    split: Split
    fingerprint: str
    records: dict[str, list[dict[str, Any]]]

    def train(
        self, name: str, distiller: Distiller, dim: int, key: int, teacher: Representations | None = None
    ) -> PhaseResult:
        """A phase, from wherever it stands: to be begun, to be gone on with, done, or done in another run."""
        config, train = self.config, self.split.train
        method = "none" if teacher is None else config.method
        settings = config.phase(method, dim, self.fingerprint, teacher and _hash(teacher))
        folder = config.folder / "checkpoints" / name
        if teacher is None and not folder.exists() and (found := find_phase(config.runs, name, settings)):
            print(f"{name}: found trained, in {found}")
            copy_checkpoints(found, folder)
        teacher = teacher or no_teacher(train)
        model = BPR(train.num_users, train.num_items, dim)
        trainer = make_trainer(
            model,
            distiller,
            adam(config.learning_rate, config.l2),
            batch_size=config.batch_size,
            student_dim=dim,
            teacher_dim=teacher.users.shape[1],
        )
        with PhaseProgress(name, config.epochs) as progress:

            def on_epoch(news):
                progress.show(news)
                if news.records and news.records[-1]["epoch"] == news.epoch:
                    write_metrics(config.folder, {**self.records, name: news.records})

            result = run_phase(
                trainer,
                make_evaluator(model, self.split),
                self.split,
                teacher,
                jax.random.fold_in(jax.random.key(config.seed), key),
                epochs=config.epochs,
                eval_every=config.eval_every,
                checkpoints=Checkpoints(folder),
                settings=settings,
                on_epoch=on_epoch,
            )
        self.records[name] = result.records
        return result


def open_teacher(path: Path, split: Split, fingerprint: str) -> PhaseResult:
    """The teacher that `--teacher` names: a run folder, its `checkpoints/teacher`, or a step in that.

    Raises:
      UserError: there is no such checkpoint, or it was trained on other data.
    """
    folder = next((p for p in (path / "checkpoints" / "teacher", path) if p.is_dir()), None)
    if folder is None:
        raise UserError(f"--teacher: no folder {path}")
    if folder.name.isdecimal():
        folder = folder.parent
    checkpoints = Checkpoints(folder)
    history, tree = checkpoints.history(), checkpoints.tree()
    try:
        data_of_teacher, epochs = history["settings"]["data"], history["settings"]["epochs"]
        tables = tree["params"]["model"]["params"]
    except (KeyError, TypeError):
        raise UserError(f"--teacher: {folder} is a checkpoint, but of no teacher") from None
    if data_of_teacher != fingerprint:
        raise UserError(f"--teacher: {folder} was trained on other data than this run's")
    if checkpoints.latest != epochs:
        raise UserError(f"--teacher: {folder} stopped after {checkpoints.latest} of {epochs} epochs; finish it first")
    return PhaseResult(tables, history["records"], history["seconds"])


def find_phase(runs: Path, name: str, settings: dict[str, Any]) -> Path | None:
    """The checkpoints of a finished phase `name` with these settings in any run folder under `runs`."""
    for folder in sorted(runs.glob(f"*/checkpoints/{name}")):
        try:
            checkpoints = Checkpoints(folder)
            if checkpoints.latest == settings["epochs"] and checkpoints.history()["settings"] == settings:
                checkpoints.tree()  # whole, or not found
                return folder
        except UserError:
            continue  # another run's trouble
    return None


def claim_folder(config: Config, fingerprint: str) -> None:
    """Makes the run folder, or takes up the one that these settings made.

    Raises:
      UserError: the folder holds something else.
    """
    places = ("data_dir", "runs", "run", "teacher")
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in places}
    settings |= {"data": fingerprint, "teacher": config.teacher and str(config.teacher.resolve())}
    folder, path = config.folder, config.folder / "config.json"
    try:
        if path.is_file():
            found = json.loads(path.read_text())
            if not isinstance(found, dict):
                raise ValueError("not an object")
            for name in sorted(settings | found):
                was, now = found.get(name), settings.get(name)
                if was != now:
                    raise UserError(
                        f"{folder}: made by other settings ({name} was {was!r}, is {now!r}); "
                        "name another folder with --run or delete this one"
                    )
        elif folder.exists() and (not folder.is_dir() or any(not is_partial(path) for path in folder.iterdir())):
            raise UserError(f"{folder}: exists and is not a run folder; name another with --run")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, settings)
    except ValueError as error:
        raise UserError(f"{path}: not the settings of a run ({error}); name another folder with --run") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be used ({error.strerror}); name another with --run") from None


def _hash(teacher: Representations) -> str:
    digest = hashlib.sha256()
    for table in teacher:
        digest.update(np.asarray(table).tobytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    main()
