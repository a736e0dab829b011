"""The choice of a run's teacher and student: by measurement in validation, within a budget."""

import contextlib
import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from htd_jax.data import hold_out
from htd_jax.errors import UserError
from htd_jax.evaluation import shown_metrics
from htd_jax.evaluation.users import held_out_users
from htd_jax.pipeline.candidates import VARIANTS, Candidate, search_teacher, students
from htd_jax.pipeline.experiment import Experiment, hash_of
from htd_jax.pipeline.fitted import Fitted
from htd_jax.pipeline.progress import ProgressLine, Show, silent
from htd_jax.pipeline.request import RunSpec
from htd_jax.pipeline.run_folder import RunFolder
from htd_jax.pipeline.spec import STUDENT, TEACHER, PhaseSpec
from htd_jax.pipeline.trials import Trial, Trials, read_trials
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
    chosen phases are then trained on all.

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
        assert self.spec.choice is not None
        self.held_out = not len(self.experiment.data.valid)
        self.trying = self.experiment
        if self.held_out:
            split = hold_out(self.experiment.data.split)
            self.trying = Experiment(dataclasses.replace(self.experiment.data, split=split), self.experiment.evaluation)
        self.metric = self.experiment.evaluation.metric
        self.budget = self.spec.choice.budget
        cutoffs = self.experiment.evaluation.cutoffs
        users = len(held_out_users(self.trying.data.split)[0])
        self.trials = Trials(self.folder.trials, self.metric, shown_metrics(cutoffs), min(users, EVALUATED))

    def teacher(self) -> PhaseSpec | None:
        """Returns the phase of the best teacher in validation; that of the run if there is nothing to choose."""
        base, choice = self.spec.teacher, self.spec.choice
        assert choice is not None
        if base is None or not choice.teacher or self.budget == 0:
            return base
        train, evaluation = self.trying.data.train, self.trying.evaluation
        if evaluation.eval_users is None and train.num_users > EVALUATED:
            evaluation = dataclasses.replace(evaluation, eval_users=EVALUATED)
        trying = Experiment(self.trying.data, evaluation)
        tried: dict[str, PhaseSpec] = {}
        known = self._known()

        def fit(phase: PhaseSpec) -> Measured:
            return self._measured(trying.train(phase, progress=silent, title=TEACHER))

        with self.progress("choice of teacher", 0, self.metric) as show:

            def measure(candidate: Candidate) -> float | None:
                phase = candidate.phase
                settings = {**phase.describe(), "data": trying.fingerprint}
                tried[_key(settings)] = phase
                if (other := known.get(_key(settings))) and self.trials.find(TEACHER, settings) is None:
                    self.trials.reuse(other)
                limit = None if self.budget is None else TEACHER_SHARE * self.budget
                return self._try(TEACHER, candidate, settings, lambda: fit(phase), show, limit)

            starts = {phase.start for phase in (self.spec.student, self.spec.distilled) if phase}
            rows: int | None = min(train.num_users, train.num_items)
            if "svd" in starts or trying.data.new_users is not None:  # EASE has no factors, and its dual no new users
                rows = None
            search_teacher(base, rows, measure)
        if not self.trials.of(TEACHER):
            return base
        best = self.trials.best(TEACHER)
        chosen = tried[_key(best.settings)]
        training = dataclasses.replace(base.training, epochs=best.epoch + 1)
        return dataclasses.replace(chosen, training=training)

    def student(self, phases: Mapping[str, Fitted]) -> PhaseSpec:
        """Returns the phase of the best student in validation: the recipe, a variant of it, or one without a teacher.

        Its checkpoints are where the phase looks for them, so that it is not trained again.

        Args:
          phases: the trained teacher and plain student of the run.
        """
        base, choice = self.spec.distilled, self.spec.choice
        assert base is not None and choice is not None
        if self.budget == 0:
            return base
        teacher = phases[TEACHER]
        if self.held_out and self.spec.teacher is not None:  # one that has not seen what the choice is measured on
            teacher = self.trying.train(self.spec.teacher, progress=silent)
        widest: int = teacher.settings["model"]["dim"] or 2 * (self.spec.settings.bytes or 1)
        taught_by = hash_of(teacher.teacher())
        tried: dict[str, tuple[PhaseSpec, Path | None]] = {}
        with self.progress("choice of student", 0, self.metric) as show:

            def measure(
                candidate: Candidate, fit: Callable[[], Measured], folder: Path | None, limit: float | None
            ) -> None:
                settings = {**candidate.phase.describe(), "data": self.trying.fingerprint}
                settings["teacher"] = taught_by if candidate.phase.needs_teacher else None
                tried[_key(settings)] = candidate.phase, folder
                self._try(STUDENT, candidate, settings, fit, show, limit)

            if not self.held_out:
                plain = Candidate("the plain student", dataclasses.replace(self.spec.student, name=base.name))
                known = self._measured(phases[STUDENT], kept=True)
                measure(plain, lambda: known, self.folder.checkpoints(STUDENT), None)
            trainings = 0
            size = self.spec.settings.bytes
            candidates = students(base, self.spec.teacher, size, widest, variants=choice.variants)
            for number, candidate in enumerate(candidates):
                gradual = bool(candidate.phase.methods)
                if gradual and self.budget is None and trainings > VARIANTS:
                    break
                folder = self.folder.trial(number) if gradual else None
                train = functools.partial(self.trying.train, candidate.phase, teacher, folder=folder, progress=silent)
                fit = lambda train=train, gradual=gradual: self._measured(train(), kept=gradual)
                # The recipe itself is trained whatever it takes.
                measure(candidate, fit, folder, self.budget if trainings else None)
                trainings += gradual
        best = self.trials.best(STUDENT)
        chosen, checkpoints = tried[_key(best.settings)]
        target = self.folder.checkpoints(base.name)
        if checkpoints is None:  # a closed form, at its best sweep
            training = dataclasses.replace(chosen.training, epochs=best.epoch + 1, patience=base.training.patience)
            chosen = dataclasses.replace(chosen, training=training)
        elif checkpoints.is_dir() and not self.held_out and not target.exists():
            copy_checkpoints(checkpoints, target)
        return chosen

    def clear(self) -> None:
        """Removes the checkpoints of trials, which the chosen phases do not need once they are trained."""
        shutil.rmtree(self.folder.trial(0).parent, ignore_errors=True)

    def chosen(self) -> dict[str, Any]:
        """Returns the names of what was chosen, as JSON."""
        parts = [part for part in (TEACHER, STUDENT) if self.trials.of(part)]
        return {"metric": self.metric, **{part: self.trials.best(part).name for part in parts}}

    def summary(self) -> dict[str, Any]:
        """Returns the choice as JSON: for teacher and student, what was chosen and what else was measured."""
        chosen: dict[str, Any] = {"metric": self.metric, "seconds": self.trials.seconds}
        for part in (TEACHER, STUDENT):
            if tried := self.trials.of(part):
                best = self.trials.best(part)
                others = {trial.name: trial.valid[self.metric] for trial in tried}
                chosen[part] = {"name": best.name, "settings": best.settings, "trials": len(tried), "valid": others}
        return chosen

    def _try(
        self,
        part: str,
        candidate: Candidate,
        settings: Mapping[str, Any],
        fit: Callable[[], Measured],
        show: Show,
        limit: float | None,
    ) -> float | None:
        """Returns a candidate's metric, from the trials or measured now; None if so many seconds are spent."""
        trial = self.trials.find(part, settings)
        if trial is None:
            if limit is not None and self.trials.seconds >= limit:
                return None
            show(f"{len(self.trials.of(part)) + 1}: {candidate.name}")
            trial = self.trials.run(part, candidate.name, settings, fit)
        return self.trials.value(trial)

    def _known(self) -> dict[str, Trial]:
        """Returns the trials of teachers in other runs, by their settings: students of several sizes share a search."""
        found: dict[str, Trial] = {}
        for path in sorted(self.spec.runs.glob(f"*/{self.folder.trials.name}")):
            with contextlib.suppress(UserError):  # another run's trouble
                found |= {_key(trial.settings): trial for trial in read_trials(path) if trial.part == TEACHER}
        return found

    def _measured(self, fitted: Fitted, *, kept: bool = False) -> Measured:
        """Returns the metrics in validation of the epoch that is kept, or else of the best."""
        record = fitted.chosen if kept else best_record(fitted.records, self.metric)
        return {name: float(x) for name, x in record["valid"].items()}, int(record["epoch"])


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)
