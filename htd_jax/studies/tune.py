"""Tuning: a method's settings, searched by what its student reaches in validation."""

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import math
import shlex
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types
import numpy as np

from htd_jax.errors import UserError, shown
from htd_jax.pipeline import Config, Experiment, Fitted, describe, flat, hash_of, plain_phases
from htd_jax.pipeline.progress import silent
from htd_jax.settings import Settings, check, flag_name, override, typed
from htd_jax.training import Diverged, Progress

# A setting is searched from so many times less than its default to so many times more.
FACTOR, FACTOR_OF_WEIGHT = 10, 100

# Trials that end before any is pruned, and the share of the epochs that every trial has.
UNPRUNED, WARM_SHARE = 5, 0.2

# Trials in the table.
SHOWN = 10

# Fewer whole trials tell nothing of what matters.
LEAST_OF_IMPORTANCE = 8


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both among them; whole ones if these are."""

    low: float
    high: float
    log: bool = True

    def suggest(self, trial: Any, name: str) -> Any:
        of = trial.suggest_int if isinstance(self.low, int) else trial.suggest_float
        return of(name, self.low, self.high, log=self.log)

    @property
    def ends(self) -> tuple[Any, ...]:
        return self.low, self.high

    def __str__(self) -> str:
        return f"{self.low:g}:{self.high:g}" + ":log" * self.log


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Any, ...]

    def suggest(self, trial: Any, name: str) -> Any:
        return trial.suggest_categorical(name, self.values)

    @property
    def ends(self) -> tuple[Any, ...]:
        return self.values

    def __str__(self) -> str:
        return ",".join(map(str, self.values))


Space = dict[str, Range | Choice]


@dataclasses.dataclass(frozen=True)
class Trial:
    """What some settings came to.

    Attributes:
      number: from 0.
      settings: by the names of their flags.
      value: in validation; of one that was pruned, at its last evaluation; None if it failed.
      pruned: the epoch after which it was given up.
      error: why it failed.
    """

    number: int
    settings: dict[str, Any]
    value: float | None
    pruned: int | None = None
    error: str | None = None


def space_of(methods: Mapping[str, Settings]) -> Space:
    """What is searched if nothing is said, by the names of flags: `htd.groups`.

    Numbers with a default over 0, within a factor of ten of it (of `weight`, a hundred) and their limits, evenly in
    their logarithms; of those that lie between two limits, all; and the values of a Literal and of what is true or
    false. The others keep what they are set to.
    """
    space: Space = {}
    for method, settings in methods.items():
        hints = typing.get_type_hints(type(settings), include_extras=True)
        for field in dataclasses.fields(settings):
            found = _derived(hints[field.name], getattr(settings, field.name), field.name)
            if found is not None:
                space[f"{flag_name(method)}.{field.name}"] = found
    return space


def _derived(hint: Any, value: Any, name: str) -> Range | Choice | None:
    hint, limits = _bare(hint)
    if typing.get_origin(hint) is Literal:
        return Choice(typing.get_args(hint))
    if hint is bool:
        return Choice((True, False))
    if hint not in (int, float) or value is None or value <= 0:
        return None
    factor = FACTOR_OF_WEIGHT if name == "weight" else FACTOR
    low, high, bounded = value / factor, value * factor, False
    for limit in limits:
        under, over = getattr(limit, "ge", None), getattr(limit, "le", None)
        if getattr(limit, "lt", None) is not None:
            over = math.nextafter(limit.lt, -math.inf)
        low, high = max(low, under or 0), high if over is None else min(high, over)
        if hint is float and isinstance(limit, annotated_types.Interval) and None not in (under, over):
            low, high, bounded = under, over, True
    if hint is int:
        low, high = math.ceil(low), math.floor(high)
    return Range(hint(low), hint(high), log=not bounded) if low < high else None


def _bare(hint: Any) -> tuple[Any, list[Any]]:
    """A type without what it is annotated with, nor None beside it; and its limits."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return _bare(next(x for x in typing.get_args(hint) if x is not type(None)))
    if typing.get_origin(hint) is Annotated:
        bare, *limits = typing.get_args(hint)
        return bare, limits
    return hint, []


def parse_search(texts: Sequence[str], methods: Mapping[str, Settings]) -> Space:
    """The space that `--search` describes: `htd.groups`, `weight=1e-4:1e-1:log`, `htd.pairs=positive,all`.

    A name alone has the range that it has if nothing is said; the method's may be left out if there is one method.

    Raises:
      UserError: no such setting, or a value that it cannot have.
    """
    usual, space = space_of(methods), Space()
    owner = {flag_name(method): settings for method, settings in methods.items()}
    known = [f"{method}.{field.name}" for method, own in owner.items() for field in dataclasses.fields(own)]
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.removeprefix("--").replace("-", "_") if "." not in name else _dotted(name)
        name = f"{next(iter(owner))}.{name}" if "." not in name and len(owner) == 1 else name
        if name not in known:
            raise UserError(f"--search: no setting {name!r}; there are {', '.join(known)}")
        if not equals and name not in usual:
            raise UserError(f"--search: {name} has no range of its own; say one: {name}=LOW:HIGH[:log]")
        method, _, setting = name.partition(".")
        space[name] = _parsed(name, value, owner[method], setting) if equals else usual[name]
    return space or usual


def _dotted(name: str) -> str:
    method, _, setting = name.removeprefix("--").partition(".")
    return f"{method}.{setting.replace('-', '_')}"


def _parsed(name: str, text: str, settings: Settings, setting: str) -> Range | Choice:
    kind, _ = _bare(typing.get_type_hints(type(settings), include_extras=True)[setting])
    parts = text.split(":")
    log = len(parts) == 3 and parts[2] == "log"
    try:
        if len(parts) == 1:
            found: Range | Choice = Choice(tuple(dict.fromkeys(_value(kind, part) for part in text.split(","))))
        elif (len(parts) == 2 or log) and kind in (int, float):
            found = Range(kind(parts[0]), kind(parts[1]), log)
        else:
            raise ValueError
        if isinstance(found, Range) and not (found.low < found.high and (found.low > 0 or not log)):
            raise ValueError
    except ValueError:
        raise UserError(f"--search: {text!r} is no range of {name}: LOW:HIGH, LOW:HIGH:log or A,B,C") from None
    for end in found.ends:
        try:
            check(override(settings, **{setting: end}), f"{name.partition('.')[0]}.")
        except UserError as error:
            raise UserError(f"--search: {error}") from None
    return found


def _value(kind: Any, text: str) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError
        return text.lower() == "true"
    return kind(text) if kind in (int, float) else text


def check_library() -> None:
    """Raises UserError if Optuna is not there."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError("study tune: needs optuna: pip install optuna")


@dataclasses.dataclass(frozen=True)
class Tuning:
    """A search, in memory and in its folder.

    Attributes:
      config: of the run whose settings are searched, with every default in place.
      experiment: what its phases have in common.
      given: the teacher, if it need not be trained.
      space: what is searched.
    """

    config: Config
    experiment: Experiment
    given: Fitted | None
    space: Space

    @property
    def folder(self) -> Path:
        return self.config.places.runs / f"{self.config.folder.name}-tune"

    @property
    def metric(self) -> str:
        assert self.experiment.evaluation.metric is not None
        return self.experiment.evaluation.metric

    def with_settings(self, found: Mapping[str, Any]) -> dict[str, Settings]:
        """The methods, with what a trial has found.

        Raises:
          UserError: settings that cannot be.
        """
        methods = {}
        for method, settings in self.config.methods.items():
            own = flag_name(method)
            chosen = {name.partition(".")[2]: x for name, x in found.items() if name.partition(".")[0] == own}
            methods[method] = override(settings, **chosen)
            check(methods[method], f"{own}.")
        return methods


def search(
    tuning: Tuning, trials: int, *, told: Callable[[str, Fitted], None] = lambda name, fitted: None
) -> Iterator[Trial]:
    """The trials, those of before first, until there are so many; the first has the settings that the run has.

    Teacher and plain student are trained once, and found again in the folder, or in another run's. What a trial is
    tried with depends on those before it and the run's seed alone, so that one that was stopped is the same again.

    Args:
      told: of teacher and plain student.

    Raises:
      UserError: the folder holds another search; or the first trial cannot be.
    """
    optuna: Any = importlib.import_module("optuna")  # of those who want it
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = _open(optuna, tuning)
    for stale in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(stale.number, state=optuna.trial.TrialState.FAIL)  # by a kill
    done = [trial for trial in map(_trial, study.get_trials(deepcopy=False)) if trial]

    def phase(name: str, dim: int, **arguments: Any) -> Fitted:
        fitted = tuning.experiment.phase(
            name,
            tuning.config.teacher_model if name == "teacher" else tuning.config.model,
            dim,
            folder=tuning.folder / "checkpoints" / name,
            runs=tuning.config.places.runs,
            progress=silent,
            **arguments,
        )
        told(name, fitted)
        return fitted

    if tuning.given:
        told("teacher", tuning.given)
    plain, helps = plain_phases(tuning.config, tuning.given, phase)
    yield from done
    warm = int(WARM_SHARE * len(plain["student"].seconds))
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED, n_warmup_steps=warm)
    for number in range(len(done), trials):
        seed = np.random.SeedSequence([tuning.config.what.seed, number]).generate_state(1)
        study.sampler = optuna.samplers.TPESampler(seed=int(seed[0]))
        if not number:
            study.enqueue_trial(_as_set(tuning))
        trial = study.ask()
        _try(optuna, study, trial, tuning, helps, is_first=not number)
        found = _trial(study.get_trials(deepcopy=False)[trial.number])
        assert found is not None
        yield found


def _open(optuna: Any, tuning: Tuning) -> Any:
    """The study in the folder: a database that Optuna's own tools read too."""
    from sqlalchemy.engine import URL  # comes with Optuna

    path = tuning.folder / "tune.db"
    tuning.folder.mkdir(parents=True, exist_ok=True)
    made_by = flat(tuning.config.as_json()) | {"data": tuning.experiment.fingerprint}
    made_by["teacher"] = hash_of(tuning.given.teacher()) if tuning.given else None
    made_by |= {f"search {name}": str(of) for name, of in tuning.space.items()}
    made_by = json.loads(json.dumps(made_by))
    try:
        storage = optuna.storages.RDBStorage(URL.create("sqlite", database=str(path)).render_as_string())
        study = optuna.create_study(
            storage=storage, study_name="tune", direction="maximize", load_if_exists=True, sampler=None
        )
        was = study.user_attrs.get("made_by")
    except Exception as error:  # of SQLite, through two libraries
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{shown(path)}: cannot be used ({shown(reason[0])}); name another folder with --runs"
        ) from None
    if was is None:
        study.set_user_attr("made_by", made_by)
        return study
    for name in dict.fromkeys([*was, *made_by]):
        if was.get(name) != made_by.get(name):
            raise UserError(
                f"{shown(tuning.folder)}: another search ({name} was {was.get(name)!r}, is {made_by.get(name)!r}); "
                "name another folder with --runs or delete this one"
            )
    return study


def _as_set(tuning: Tuning) -> dict[str, Any]:
    """What the run has where it lies in the space; the rest is drawn."""
    found = {}
    for name, of in tuning.space.items():
        method, _, setting = name.partition(".")
        value = getattr(tuning.config.own[method], setting)
        inside = of.low <= value <= of.high if isinstance(of, Range) and value is not None else value in of.ends
        if inside:
            found[name] = value
    return found


def _try(optuna: Any, study: Any, trial: Any, tuning: Tuning, helps: Mapping[str, Any], *, is_first: bool) -> None:
    """Trains a student with what the trial draws, and tells the study what it came to.

    Raises:
      UserError: of the first, whose settings are the run's; of the others it is a failed trial.
    """
    state = optuna.trial.TrialState
    found = {name: of.suggest(trial, name) for name, of in tuning.space.items()}

    behind = False

    def report(news: Progress) -> None:
        nonlocal behind
        if behind:  # and there was an epoch more: one that has ended is not given up
            raise optuna.TrialPruned
        if news.records and news.records[-1]["epoch"] == news.epoch:
            trial.report(news.records[-1]["valid"][tuning.metric], news.epoch)
            behind = trial.should_prune()

    what = tuning.config.what
    assert what.student_dim
    try:
        methods = tuning.with_settings(found)
        fitted = tuning.experiment.phase(
            what.method,
            tuning.config.model,
            what.student_dim,
            **helps,
            methods=methods,
            progress=silent,
            on_epoch=report,
        )
    except optuna.TrialPruned:
        study.tell(trial, state=state.PRUNED)
    except UserError as error:
        if is_first and not isinstance(error, Diverged):
            raise
        trial.set_user_attr("error", str(error))
        study.tell(trial, state=state.FAIL)
    else:
        study.tell(trial, fitted.chosen["valid"][tuning.metric])


def _trial(frozen: Any) -> Trial | None:
    """As we have it; None of one that did not end."""
    state = frozen.state.name
    if state == "COMPLETE":
        return Trial(frozen.number, frozen.params, frozen.value)
    if state == "PRUNED":
        return Trial(frozen.number, frozen.params, frozen.value, frozen.last_step)
    error = frozen.user_attrs.get("error")
    return Trial(frozen.number, frozen.params, None, error=error) if error else None


def best_first(trials: Sequence[Trial]) -> list[Trial]:
    """Those that were trained to their end."""
    whole = [trial for trial in trials if trial.pruned is None and trial.value is not None]
    return sorted(whole, key=lambda trial: -(trial.value or 0.0))


def table(tuning: Tuning, trials: Sequence[Trial], plain: Mapping[str, float]) -> str:
    """The best trials in Markdown, under teacher and plain student; and what became of the others."""
    names = list(tuning.space)
    lines = [f"| trial | valid {tuning.metric} | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    lines += [f"| {describe(name)} | {value:.4f} | " + " | " * len(names) for name, value in plain.items()]
    for trial in best_first(trials)[:SHOWN]:
        cells = [shown_value(trial.settings[name]) for name in names]
        lines.append(f"| {trial.number} | {trial.value:.4f} | " + " | ".join(cells) + " |")
    pruned, failed = sum(t.pruned is not None for t in trials), sum(t.error is not None for t in trials)
    lines += ["", f"{len(trials)} trials, {pruned} of them given up early, {failed} failed."]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def importance(tuning: Tuning, trials: Sequence[Trial]) -> dict[str, float]:
    """How much each setting decides, the most first, of 1 in all (PED-ANOVA, Watanabe et al., IJCAI'23).

    {} of too few trials.
    """
    if len(best_first(trials)) < LEAST_OF_IMPORTANCE or len(tuning.space) < 2:
        return {}
    optuna: Any = importlib.import_module("optuna")
    with contextlib.suppress(ValueError, RuntimeError):  # all trials alike
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found: dict[str, float] = optuna.importance.get_param_importances(_open(optuna, tuning), evaluator=evaluator)
        return found
    return {}


def command(flags: Sequence[str], settings: Mapping[str, Any]) -> str:
    """The command that trains a run with these settings: the flags, and what was found after them, which wins."""
    found = [word for name, value in settings.items() for word in typed(name, value)]
    return shlex.join(["htd-jax", "train", *flags, *found])


def shown_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
