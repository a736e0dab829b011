"""Distil a wide recommender into a narrow one, and show how much of the gap between the two was closed."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import logging
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a plain checkout will do, installed or not

import jax
import numpy as np
import platformdirs
import tyro
from config import MODELS, Config, label
from report import (
    PhaseProgress,
    draw_curves,
    gap_closed,
    print_table,
    summarise,
    write_json,
    write_metrics,
)

from htd_jax import data
from htd_jax.data import Split
from htd_jax.distillers import none, svd_factors
from htd_jax.errors import UserError
from htd_jax.evaluation import Evaluator, make_evaluator
from htd_jax.models import BPR, MakeModel
from htd_jax.training import (
    Checkpoints,
    PhaseResult,
    Representations,
    adam,
    choose,
    copy_checkpoints,
    make_trainer,
    no_teacher,
    represent_all,
    run_phase,
)
from htd_jax.writing import is_partial

# What a phase's random key is folded from. A helped student starts where the plain one does, on the same batches.
TEACHER_KEY, STUDENT_KEY = 0, 1


def main() -> None:
    quieten_readers()
    config = parse()
    try:
        config = config.check()
        run(config)
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
    split = load_split(config)
    fingerprint = data.fingerprint(split)
    given = open_teacher(config, split, fingerprint) if config.teacher else None
    if given:
        config = dataclasses.replace(config, teacher_dim=given.dim)
    if config.student_dim > config.teacher_dim:
        print(f"note: the student ({config.student_dim}) is wider than its teacher ({config.teacher_dim})")
    # A protocol that cannot be on this split is refused here, before anything is written.
    evaluate = make_evaluator(split, cutoffs=config.cutoffs, protocol=config.make_protocol())
    claim_folder(config, split, fingerprint)
    job = Job(config, split, fingerprint, evaluate, {"teacher": given.result.records} if given else {})

    phases: dict[str, PhaseResult] = {}
    phases["teacher"] = given.result if given else job.train("teacher", config.teacher_dim)
    make_teacher = given.make_model if given else config.make_model(config.teacher_dim)
    teacher = represent_all(make_teacher, phases["teacher"].variables, split.train)
    start = svd_student(config, teacher) if config.student_init == "svd" else None
    phases["student"] = job.train("student", config.student_dim, teacher, start=start)
    if config.method == "svd":
        phases["svd"] = job.evaluate_only(svd_student(config, teacher))
    elif config.method != "none":
        phases[config.method] = job.train(config.method, config.student_dim, teacher, config.methods, start)

    entries = {name: summarise(phase, config.metric) for name, phase in phases.items()}
    results = {
        "dataset": config.dataset,
        "model": config.model,
        "method": config.method,
        "protocol": config.protocol,
        "seed": config.seed,
        "phases": entries,
        "gap_closed": gap_closed(entries, config.method),
    }
    records = {name: phase.records for name, phase in phases.items()}
    write_metrics(config.folder, records)
    draw_curves(config, records)
    write_json(config.folder / "results.json", results)
    print_table(config, results)
    print(f"run folder: {config.folder}")
    return results


def load_split(config: Config) -> Split:
    if config.split_file:
        return data.load_split(config.split_file)
    return data.load(
        config.dataset,
        config.data_dir,
        min_interactions=config.min_interactions,
        split=config.split,
        split_seed=config.split_seed,
    )


def svd_student(config: Config, teacher: Representations) -> dict[str, Any]:
    """The variables of a BPR student that scores with the best factors of the teacher's scores."""
    users, items = svd_factors(*teacher, config.student_dim)
    return {"params": {"users": users, "items": items}}


@dataclasses.dataclass
class Job:
    """What the phases of a run share."""

    config: Config
    split: Split
    fingerprint: str
    evaluate: Evaluator
    records: dict[str, list[dict[str, Any]]]

    def train(
        self,
        name: str,
        dim: int,
        teacher: Representations | None = None,
        methods: list[str] | None = None,
        start: dict[str, Any] | None = None,
    ) -> PhaseResult:
        """A phase, from wherever it stands: to be begun, to be gone on with, done, or done in another run."""
        config = self.config
        owed_to = _hash(teacher) if methods or start else None
        settings = config.phase(methods or ["none"], dim, self.fingerprint, owed_to)
        settings["init"] = "svd" if start else "random"
        folder = config.folder / "checkpoints" / name
        if not methods and not folder.exists() and (found := find_phase(config.runs, name, settings)):
            print(f"{name}: found trained, in {found}")
            copy_checkpoints(found, folder)
        make_model = config.make_model(dim)
        trainer = make_trainer(
            make_model,
            config.distiller(teacher) if methods else none(),
            adam(config.learning_rate, config.l2),
            batch_size=config.batch_size,
        )
        with PhaseProgress(label(name), config.epochs, config.metric) as progress:

            def on_epoch(news):
                progress.show(news)
                if news.records and news.records[-1]["epoch"] == news.epoch:
                    write_metrics(config.folder, {**self.records, name: news.records})

            result = run_phase(
                trainer,
                functools.partial(self.evaluate, make_model),
                self.split,
                teacher if methods else no_teacher(self.split.train),
                jax.random.fold_in(jax.random.key(config.seed), TEACHER_KEY if name == "teacher" else STUDENT_KEY),
                epochs=config.epochs,
                eval_every=config.eval_every,
                checkpoints=Checkpoints(folder),
                settings=settings,
                early_stopping=config.early_stopping,
                start=start,
                on_epoch=on_epoch,
            )
        self.records[name] = result.records
        return result

    def evaluate_only(self, variables: dict[str, Any]) -> PhaseResult:
        """A phase of no epochs: tables scored as BPR scores."""
        make_model = lambda train: BPR(train.num_users, train.num_items, variables["params"]["users"].shape[1])
        metrics = jax.tree.map(float, self.evaluate(make_model, variables))
        record = {"epoch": 0, "terms": {}, **metrics, "seconds": 0.0}
        return PhaseResult(variables, [record], [], record)


class GivenTeacher(NamedTuple):
    """The teacher that `--teacher` names: how its model is made, its width, and what its training came to."""

    make_model: MakeModel
    dim: int
    result: PhaseResult


def open_teacher(config: Config, split: Split, fingerprint: str) -> GivenTeacher:
    """The teacher in a run folder, its `checkpoints/teacher`, or a step in that; of any base model.

    Raises:
      UserError: there is no such checkpoint, or it was trained on other data, or evaluated in another way.
    """
    path = config.teacher
    folder = next((p for p in (path / "checkpoints" / "teacher", path) if p.is_dir()), None)
    if folder is None:
        raise UserError(f"--teacher: no folder {path}")
    if folder.name.isdecimal():
        folder = folder.parent
    checkpoints = Checkpoints(folder)
    history, tree = checkpoints.history(), checkpoints.tree()
    settings = history["settings"]
    try:
        variables = tree.get("best") or tree["train"]["params"]["model"]
        its_data, finished, dim = settings["data"], history["finished"], settings["dim"]
        its = dataclasses.replace(config, model=settings["model"], layers=settings.get("layers", config.layers))
        make_model = MODELS[its.model].make(its, dim)
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"--teacher: {folder} is a checkpoint, but of no teacher") from None
    if its_data != fingerprint:
        raise UserError(f"--teacher: {folder} was trained on other data than this run's")
    if not finished:
        raise UserError(f"--teacher: {folder} stopped after {checkpoints.latest} epochs, unfinished; finish it first")
    if its.model == "neumf" and "svd" in (config.method, config.student_init):
        raise UserError("--teacher: svd needs scores that are products of two vectors, which neumf's are not")
    asked = config.phase(["none"], dim, fingerprint)
    for name in ("protocol", "candidates", "cutoffs", "patience", "metric"):
        if settings.get(name) != asked[name]:
            raise UserError(
                f"--teacher: {folder} was evaluated with {name} {settings.get(name)}, this run with {asked[name]}"
            )
    records = history["records"]
    chosen = choose(records, config.early_stopping)
    return GivenTeacher(make_model, dim, PhaseResult(variables, records, history["seconds"], chosen))


def find_phase(runs: Path, name: str, settings: dict[str, Any]) -> Path | None:
    """The checkpoints of a finished phase `name` with these settings in any run folder under `runs`."""
    for folder in sorted(runs.glob(f"*/checkpoints/{name}")):
        try:
            checkpoints = Checkpoints(folder)
            history = checkpoints.history()
            if history["finished"] and history["settings"] == settings:
                checkpoints.tree()  # whole, or not found
                return folder
        except UserError:
            continue  # another run's trouble
    return None


def claim_folder(config: Config, split: Split, fingerprint: str) -> None:
    """Makes the run folder, or takes up the one that these settings made.

    Raises:
      UserError: the folder holds something else.
    """
    places = ("data_dir", "split_file", "runs", "run", "teacher")
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in places}
    settings |= {"data": fingerprint, "teacher": config.teacher and str(config.teacher.resolve())}
    settings = json.loads(json.dumps(settings))  # as they are read back: tuples are lists
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
        if not (folder / "split.npz").exists():  # new, or killed between the two
            data.save_split(folder / "split.npz", split)
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
