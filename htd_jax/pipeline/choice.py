"""The choice of a run's teacher and student: by measurement in validation, within a budget."""

import contextlib
import dataclasses
import functools
import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from htd_jax import processes
from htd_jax.data import hold_out
from htd_jax.errors import UserError
from htd_jax.evaluation import shown_metrics
from htd_jax.evaluation.users import held_out_users
from htd_jax.models import IALSSettings, ModelOf
from htd_jax.pipeline.candidates import VARIANTS, Candidate, search_teacher, students
from htd_jax.pipeline.experiment import Experiment
from htd_jax.pipeline.fitted import Fitted
from htd_jax.pipeline.progress import ProgressLine, Show, silent
from htd_jax.pipeline.request import RunSpec
from htd_jax.pipeline.run_folder import RunFolder
from htd_jax.pipeline.spec import STUDENT, TEACHER, PhaseSpec
from htd_jax.pipeline.trials import Trial, Trials, key_of, read_trials
from htd_jax.training import best_record, copy_checkpoints

# The share of a budget that the search for a teacher may take.
TEACHER_SHARE = 0.5

# The users that a teacher's trial is evaluated on; more of them cost more than they tell.
EVALUATED = 10_000

Measured = tuple[dict[str, float], int]


@dataclasses.dataclass
class Choice:
    """The choice of a run: its trials, and what they decide.

    Without a validation part, trials are trained on nine tenths of the training pairs and measured on the others; the
    chosen phases are then trained on all. There, a given teacher may know what the choice would be measured on, so that
    the recipe is trained as it is.

    Attributes:
      spec: the run, which has a `choice`.
      experiment: its data and evaluation.
      folder: its folder, which keeps the trials.
      progress: the progress line.
    """

    spec: RunSpec
    experiment: Experiment
    folder: RunFolder
    progress: ProgressLine = silent

    def __post_init__(self) -> None:
        choice, evaluation = self.spec.choice, self.experiment.evaluation
        assert choice is not None
        self.budget, self.metric = choice.budget, evaluation.metric
        self.held_out = not len(self.experiment.data.valid)
        self.chooses = self.budget != 0 and not (self.held_out and self.spec.teacher is None)
        self.trying = self.experiment
        if self.chooses and self.held_out:
            split = hold_out(self.experiment.data.split)
            data = dataclasses.replace(self.experiment.data, split=split)
            self.trying = Experiment(data, evaluation, self.experiment.partitioning)
        users = min(len(held_out_users(self.trying.data.split)[0]), evaluation.eval_users or EVALUATED)
        self.trials = Trials(self.folder.trials, self.metric, shown_metrics(evaluation.cutoffs), users)
        self.best: dict[str, Trial] = {}
        self.factors: IALSSettings | None = None

    def teacher(self) -> PhaseSpec | None:
        """Returns the phase of the best teacher in validation; that of the run if there is nothing to choose."""
        base, choice = self.spec.teacher, self.spec.choice
        assert choice is not None
        if base is None or not choice.teacher or not self.chooses:
            return base
        train, evaluation = self.trying.data.train, self.trying.evaluation
        if evaluation.eval_users is None and train.num_users > EVALUATED:
            evaluation = dataclasses.replace(evaluation, eval_users=EVALUATED)
        trying = Experiment(self.trying.data, evaluation, self.trying.partitioning)
        limit = None if self.budget is None else TEACHER_SHARE * self.budget
        decided, known = self._decided(TEACHER), self._known()
        tried: dict[str, PhaseSpec] = {}

        def fit(phase: PhaseSpec) -> Measured:
            fitted = trying.train(phase, progress=silent, title=TEACHER, in_full=False)
            return _measured(best_record(fitted.records, self.metric))

        with self.progress("choice of teacher", 0, self.metric) as show:

            def measure(candidate: Candidate) -> float | None:
                phase = candidate.phase
                settings = {**phase.describe(), "data": trying.fingerprint}
                tried[key_of(settings)] = phase
                return self._try(TEACHER, candidate, settings, lambda: fit(phase), show, limit, known, bool(decided))

            starts = {phase.start for phase in (self.spec.student, self.spec.distilled) if phase}
            rows: int | None = min(train.num_users, train.num_items)
            if "svd" in starts or trying.data.new_users is not None:  # EASE has no factors, and its dual no new users
                rows = None
            search_teacher(base, rows if choice.kinds else None, measure, fixed_width=choice.fixed_width)
        if not self.trials.of(TEACHER, tried):
            return base
        best = self._decide(TEACHER, tried, decided)
        with_factors = [t for t in self.trials.of(TEACHER, tried) if t.settings["model"]["name"] == "ials"]
        if with_factors:
            model = tried[key_of(max(with_factors, key=self.trials.value).settings)].make_model
            assert isinstance(model, ModelOf) and isinstance(model.settings, IALSSettings)
            self.factors = model.settings
        training = dataclasses.replace(base.training, epochs=best.epoch + 1)
        return dataclasses.replace(tried[key_of(best.settings)], training=training)

    def student(self, phases: Mapping[str, Fitted]) -> PhaseSpec:
        """Returns the phase of the best student in validation: the recipe, a variant of it, or one without a teacher.

        Its checkpoints are where the phase looks for them, so that it is not trained again.

        Args:
          phases: the trained teacher and plain student of the run.
        """
        base, choice = self.spec.distilled, self.spec.choice
        assert base is not None and choice is not None
        if not self.chooses:
            return base
        teacher = phases[TEACHER]
        if self.held_out:  # one that has not seen what the choice is measured on
            assert self.spec.teacher is not None
            folder = self.folder.trial(TEACHER)
            teacher = self.trying.train(self.spec.teacher, folder=folder, progress=silent, title=TEACHER)
        widest: int = teacher.settings["model"]["dim"] or 2 * (self.spec.settings.bytes or 1)
        taught_by = hashlib.sha256(key_of(teacher.settings).encode()).hexdigest()[:16]
        decided = self._decided(STUDENT)
        tried: dict[str, tuple[PhaseSpec, Path | None]] = {}

        def measure(
            candidate: Candidate, fit: Callable[[], Measured], folder: Path | None, limit: float | None
        ) -> None:
            settings = {**candidate.phase.describe(), "data": self.trying.fingerprint}
            settings["teacher"] = taught_by if candidate.phase.needs_teacher else None
            tried[key_of(settings)] = candidate.phase, folder
            self._try(STUDENT, candidate, settings, fit, lambda _: None, limit, {}, bool(decided))

        if not self.held_out:
            plain = Candidate("the plain student", dataclasses.replace(self.spec.student, name=base.name))
            known = _measured(phases[STUDENT].chosen)
            measure(plain, lambda: known, self.folder.checkpoints(STUDENT), None)
        trainings = 0
        size = self.spec.settings.bytes
        for number, candidate in enumerate(students(base, self.factors, size, widest, variants=choice.variants)):
            gradual = bool(candidate.phase.methods)
            if gradual and self.budget is None and trainings > VARIANTS + candidate.coarser:
                break
            checkpoints = self.folder.trial(str(number)) if gradual else None
            line = self.progress if gradual else silent
            fit = functools.partial(self._fit, candidate, teacher, checkpoints, line)
            # The recipe itself is trained whatever it takes.
            measure(candidate, fit, checkpoints, self.budget if trainings else None)
            trainings += gradual
        best = self._decide(STUDENT, tried, decided)
        chosen, kept = tried[key_of(best.settings)]
        target = self.folder.checkpoints(base.name)
        if kept is None:  # a closed form, at its best sweep
            training = dataclasses.replace(chosen.training, epochs=best.epoch + 1, patience=base.training.patience)
            chosen = dataclasses.replace(chosen, training=training)
        else:
            processes.from_first("chosen", lambda: self._copy(kept, target))
        return chosen

    def _copy(self, kept: Path, target: Path) -> None:
        """Copies the checkpoints of the chosen trial to where the phase looks for them."""
        if kept.is_dir() and not self.held_out and not target.exists():
            copy_checkpoints(kept, target)

    def _fit(self, candidate: Candidate, teacher: Fitted, folder: Path | None, line: ProgressLine) -> Measured:
        """Trains a student, and returns what it measures."""
        fitted = self.trying.train(candidate.phase, teacher, folder=folder, progress=line, title=candidate.name)
        return _measured(fitted.chosen)

    def clear(self) -> None:
        """Removes the checkpoints of trials, which the chosen phases do not need once they are trained."""
        if processes.is_first():
            shutil.rmtree(self.folder.trial(TEACHER).parent, ignore_errors=True)

    def chosen(self) -> dict[str, Any]:
        """Returns what was chosen, as JSON: the names and the models of teacher and student."""
        named = {part: trial.name for part, trial in self.best.items()}
        models = {f"{part}_model": trial.settings["model"] for part, trial in self.best.items()}
        return {"metric": self.metric, **named, **models}

    def summary(self) -> dict[str, Any]:
        """Returns the choice as JSON: for teacher and student, what was chosen and what else was measured."""
        summary: dict[str, Any] = {"metric": self.metric, "seconds": self.trials.seconds}
        for part, best in self.best.items():
            others = [[trial.name, trial.valid.get(self.metric)] for trial in self.trials.of(part)]
            summary[part] = {"name": best.name, "settings": best.settings, "valid": best.valid, "tried": others}
        return summary

    def _decided(self, part: str) -> Trial | None:
        """Returns the trial that was chosen when the run was last here; None if none was."""
        decision = self.folder.read_decision(part)
        return self.trials.find(part, decision) if decision else None

    def _decide(self, part: str, tried: Mapping[str, Any], decided: Trial | None) -> Trial:
        """Returns the best trial of a part, or that which was decided before; the decision is kept."""
        earlier = decided if decided and key_of(decided.settings) in tried else None
        best = earlier or self.trials.best(part, tried)
        self.best[part] = best
        self.folder.keep_decision(part, best.settings)
        self.trials.write({own.name for own in self.best.values()})
        return best

    def _try(
        self,
        part: str,
        candidate: Candidate,
        settings: Mapping[str, Any],
        fit: Callable[[], Measured],
        show: Show,
        limit: float | None,
        known: Mapping[str, Trial],
        decided: bool,
    ) -> float | None:
        """Returns a candidate's metric, from the trials or measured now; None if so many seconds are spent, or if the
        choice is made and does not need it."""
        trial = self.trials.find(part, settings)
        if trial is None:
            if decided or (limit is not None and self.trials.seconds >= limit):
                return None
            if trial := known.get(key_of(settings)):
                self.trials.reuse(trial)
            else:
                show(f"{len(self.trials.of(part)) + 1}: {candidate.name}")
                trial = self.trials.run(part, candidate.name, settings, fit)
        return self.trials.value(trial)

    def _known(self) -> dict[str, Trial]:
        """Returns the trials of teachers in other runs, by their settings: students of several sizes share a search."""

        def find() -> list[dict[str, Any]]:
            found = []
            for path in sorted(self.spec.runs.glob(f"*/{self.folder.trials.name}")):
                with contextlib.suppress(UserError):  # another run's trouble
                    found += [dataclasses.asdict(trial) for trial in read_trials(path) if trial.part == TEACHER]
            return found

        trials = [Trial(**trial) for trial in processes.from_first("known trials", find)]
        return {key_of(trial.settings): trial for trial in trials}


def _measured(record: Mapping[str, Any]) -> Measured:
    """Returns the metrics in validation of a record, and its epoch."""
    return {name: float(x) for name, x in record["valid"].items()}, int(record["epoch"])
