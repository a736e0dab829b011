"""Tuning: the search for a method's settings with the best student in validation."""

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

from htd_jax.distillers import Method
from htd_jax.errors import UserError, shown
from htd_jax.pipeline import (
    STUDENT,
    TEACHER,
    Experiment,
    Fitted,
    PhaseSpec,
    RunFolder,
    RunSpec,
    flat,
    label,
    run_identity,
    silent,
    train_phases,
)
from htd_jax.settings import check, flag_name, flag_words, override
from htd_jax.studies.tables import Table
from htd_jax.training import Diverged, Progress

# A setting's default range is from this many times less than its default to this many times more.
FACTOR, WEIGHT_FACTOR = 10, 100

# The number of trials that end before any is pruned, and the share of the epochs that every trial completes.
UNPRUNED, WARM_SHARE = 5, 0.2

# The number of trials in the table.
SHOWN = 10

# The number of complete trials from which the importance of settings is computed.
LEAST_FOR_IMPORTANCE = 8


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, inclusive; integers if these are."""

    low: float
    high: float
    log: bool = True

    def suggest(self, trial: Any, name: str) -> Any:
        """Returns the value that a trial chooses."""
        choose = trial.suggest_int if isinstance(self.low, int) else trial.suggest_float
        return choose(name, self.low, self.high, log=self.log)

    def __contains__(self, value: Any) -> bool:
        return value is not None and self.low <= value <= self.high

    @property
    def ends(self) -> tuple[Any, ...]:
        return self.low, self.high

    def __str__(self) -> str:
        return f"{self.low:g}:{self.high:g}" + ":log" * self.log


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several values."""

    ends: tuple[Any, ...]

    def suggest(self, trial: Any, name: str) -> Any:
        """Returns the value that a trial chooses."""
        return trial.suggest_categorical(name, self.ends)

    def __contains__(self, value: Any) -> bool:
        return value in self.ends

    def __str__(self) -> str:
        return ",".join(map(str, self.ends))


Space = dict[str, Range | Choice]


@dataclasses.dataclass(frozen=True)
class Trial:
    """The result of some settings.

    Attributes:
      number: its number, from 0.
      settings: the settings by name: `{"htd.groups": 10}`.
      value: the validation metric; of a pruned trial, at its last evaluation; None if it failed.
      pruned: the epoch after which it was pruned.
      error: why it failed.
    """

    number: int
    settings: dict[str, Any]
    value: float | None
    pruned: int | None = None
    error: str | None = None


def default_space(methods: Mapping[str, Method]) -> Space:
    """Returns the default ranges by the names of settings: `htd.groups`.

    A positive number has a range of a factor of 10 around its default (100 for `weight`), within its limits, on a log
    scale; a number with two limits has all values between them. A Literal or a bool has all its values. Other settings
    are not searched.
    """
    space: Space = {}
    for method, settings in methods.items():
        hints = typing.get_type_hints(type(settings), include_extras=True)
        for field in dataclasses.fields(settings):  # type: ignore[arg-type]
            found = _default_range(hints[field.name], getattr(settings, field.name), field.name)
            if found is not None:
                space[f"{flag_name(method)}.{field.name}"] = found
    return space


def _default_range(hint: Any, value: Any, name: str) -> Range | Choice | None:
    hint, limits = _bare(hint)
    if typing.get_origin(hint) is Literal:
        return Choice(typing.get_args(hint))
    if hint is bool:
        return Choice((True, False))
    if hint not in (int, float) or value is None or value <= 0:
        return None
    factor = WEIGHT_FACTOR if name == "weight" else FACTOR
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
    """Returns a type without annotations and None, and its limits."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return _bare(next(x for x in typing.get_args(hint) if x is not type(None)))
    if typing.get_origin(hint) is Annotated:
        bare, *limits = typing.get_args(hint)
        return bare, limits
    return hint, []


def parse_search(texts: Sequence[str], methods: Mapping[str, Method]) -> Space:
    """Returns the space that texts describe: `htd.groups`, `weight=1e-4:1e-1:log`, `htd.pairs=positive,all`.

    A name alone has its default range; the method's name is optional if there is one method. No texts stand for
    `default_space`.

    Raises:
      UserError: if a setting is unknown, or a value invalid.
    """
    defaults, space = default_space(methods), Space()
    owner = {flag_name(method): settings for method, settings in methods.items()}
    known = [f"{method}.{field.name}" for method, own in owner.items() for field in dataclasses.fields(own)]  # type: ignore[arg-type]
    for text in texts:
        name, equals, value = text.partition("=")
        method, _, setting = name.removeprefix("--").rpartition(".")
        method = method or (next(iter(owner)) if len(owner) == 1 else "")
        name = f"{method}.{setting.replace('-', '_')}".removeprefix(".")
        if name not in known:
            raise UserError(f"`search` has an unknown setting {name!r} (known: {', '.join(known)})")
        if not equals and name not in defaults:
            raise UserError(f"`search`: {name} has no default range; give one: {name}=LOW:HIGH[:log]")
        space[name] = _parse_range(name, value, owner[method], name.partition(".")[2]) if equals else defaults[name]
    return space or defaults


def _parse_range(name: str, text: str, settings: Method, setting: str) -> Range | Choice:
    kind, _ = _bare(typing.get_type_hints(type(settings), include_extras=True)[setting])
    parts = text.split(":")
    log = len(parts) == 3 and parts[2] == "log"
    try:
        if len(parts) == 1:
            found: Range | Choice = Choice(tuple(dict.fromkeys(_parse_value(kind, part) for part in text.split(","))))
        elif (len(parts) == 2 or log) and kind in (int, float):
            found = Range(kind(parts[0]), kind(parts[1]), log)
        else:
            raise ValueError
        if isinstance(found, Range) and not (found.low < found.high and (found.low > 0 or not log)):
            raise ValueError
    except ValueError:
        message = f"`search`: {text!r} is not a range of {name}; give LOW:HIGH, LOW:HIGH:log or A,B,C"
        raise UserError(message) from None
    for end in found.ends:
        try:
            check(override(settings, **{setting: end}), f"{name.partition('.')[0]}.")
        except UserError as error:
            raise UserError(f"`search`: {error}") from None
    return found


def _parse_value(kind: Any, text: str) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError
        return text.lower() == "true"
    return kind(text) if kind in (int, float) else text


def check_library() -> None:
    """Raises UserError if Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError("tune needs optuna: pip install optuna")


@dataclasses.dataclass(frozen=True)
class Tuning:
    """A search.

    Attributes:
      spec: the run whose method is searched.
      experiment: data and evaluation.
      given: the teacher, if it is given.
      space: the ranges that are searched.
      storage: where trials are that several processes share: a database's URL, or a file of Optuna's journal; those of
        this process alone, in its folder, if None.
    """

    spec: RunSpec
    experiment: Experiment
    given: Fitted | None
    space: Space
    storage: str | None = None

    @property
    def folder(self) -> Path:
        """The folder of the search."""
        return self.spec.runs / f"{self.spec.folder.name}-tune"

    @property
    def metric(self) -> str:
        """The validation metric."""
        return self.spec.evaluation.metric

    @property
    def distilled(self) -> PhaseSpec:
        """The phase whose method is searched."""
        assert self.spec.distilled is not None
        return self.spec.distilled

    def with_settings(self, found: Mapping[str, Any]) -> PhaseSpec:
        """Returns the phase with the settings of a trial.

        Raises:
          UserError: if a setting is invalid.
        """
        methods = []
        for method, settings in self.distilled.methods:
            prefix = flag_name(method) + "."
            chosen = {name.removeprefix(prefix): x for name, x in found.items() if name.startswith(prefix)}
            methods.append((method, override(settings, **chosen)))
            check(methods[-1][1], prefix)
        return dataclasses.replace(self.distilled, methods=tuple(methods))


def search(
    tuning: Tuning, trials: int, *, log: Callable[[str, Fitted], None] = lambda name, fitted: None
) -> Iterator[Trial]:
    """Yields trials, earlier ones first, up to a total number; the first has the settings of the run.

    Teacher and plain student are trained once, or reused. The settings of a trial depend only on the trials before it
    and on the run's seed, so that a resumed search equals an unbroken one. Processes that share a storage sample by
    themselves, and stop once all together have ended so many trials; each yields those of all.

    Args:
      tuning: the search.
      trials: the number of trials.
      log: a callback, called with teacher and plain student.

    Raises:
      UserError: if the folder holds another search, or the first trial is invalid.
    """
    optuna: Any = importlib.import_module("optuna")  # optional
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = _open(optuna, tuning)
    if not tuning.storage:
        for stale in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(stale.number, state=optuna.trial.TrialState.FAIL)  # the process was killed
    yielded: set[int] = set()

    def ended() -> Iterator[Trial]:
        for trial in filter(None, map(_trial, study.get_trials(deepcopy=False))):
            if trial.number not in yielded:
                yielded.add(trial.number)
                yield trial

    def train(phase: PhaseSpec, *teachers: Fitted, **options: Any) -> Fitted:
        folder = RunFolder(tuning.folder).checkpoints(phase.name)
        fitted = tuning.experiment.train(
            phase, *teachers, **options, folder=folder, runs=tuning.spec.runs, progress=silent, title=label(phase.name)
        )
        log(phase.name, fitted)
        return fitted

    if tuning.given:
        log(TEACHER, tuning.given)
    plain = train_phases(tuning.spec, tuning.given, train, distilled=False)
    yield from ended()
    warm = int(WARM_SHARE * len(plain[STUDENT].seconds))
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED, n_warmup_steps=warm)
    while (number := len(yielded)) < trials:
        seed = np.random.SeedSequence([tuning.spec.settings.seed, number]).generate_state(1)
        study.sampler = optuna.samplers.TPESampler(seed=None if tuning.storage else int(seed[0]))
        if not number:
            study.enqueue_trial(_initial(tuning), skip_if_exists=tuning.storage is not None)
        _try(optuna, study, study.ask(), tuning, plain, is_first=not number)
        yield from ended()


def _open(optuna: Any, tuning: Tuning) -> Any:
    """Opens the study: in the folder, a database that Optuna's own tools also read, or in the storage."""
    tuning.folder.mkdir(parents=True, exist_ok=True)
    identity = flat(run_identity(tuning.spec, tuning.experiment, tuning.given))
    identity |= {f"search {name}": str(values) for name, values in tuning.space.items()}
    identity = json.loads(json.dumps(identity))
    place, other = f"{shown(tuning.folder / 'tune.db')}:", "set `runs` to another folder"
    if tuning.storage:
        place, other = "`storage`", "set another"
    try:
        study = optuna.create_study(
            storage=_storage(optuna, tuning),
            study_name="tune",
            direction="maximize",
            load_if_exists=True,
            sampler=None,
        )
        was = study.user_attrs.get("made_by")
    except Exception as error:  # SQLite's, through two libraries
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{place} cannot be used ({shown(reason[0])}); {other}") from None
    if was is None:
        study.set_user_attr("made_by", identity)
        return study
    for name in dict.fromkeys([*was, *identity]):
        if was.get(name) != identity.get(name):
            place = "`storage`" if tuning.storage else f"{shown(tuning.folder)}:"
            raise UserError(
                f"{place} holds another search ({name} was {was.get(name)!r}, is {identity.get(name)!r}); {other}, or "
                "delete this one"
            )
    return study


def _storage(optuna: Any, tuning: Tuning) -> Any:
    """Returns the storage of the trials."""
    if tuning.storage and "://" not in tuning.storage:
        journal = optuna.storages.journal.JournalFileBackend(tuning.storage)
        return optuna.storages.JournalStorage(journal)
    from sqlalchemy.engine import URL  # comes with Optuna

    own = URL.create("sqlite", database=str(tuning.folder / "tune.db")).render_as_string()
    return optuna.storages.RDBStorage(tuning.storage or own)


def _initial(tuning: Tuning) -> dict[str, Any]:
    """Returns the run's settings that lie in the space; the trial samples the others."""
    methods = {flag_name(method): settings for method, settings in tuning.distilled.methods}
    found = {name: getattr(methods[name.partition(".")[0]], name.partition(".")[2]) for name in tuning.space}
    return {name: value for name, value in found.items() if value in tuning.space[name]}


def _try(optuna: Any, study: Any, trial: Any, tuning: Tuning, plain: Mapping[str, Fitted], *, is_first: bool) -> None:
    """Trains a student with a trial's settings, and reports the result to the study.

    Raises:
      UserError: if the first trial, which has the run's settings, is invalid; another then counts as failed.
    """
    state = optuna.trial.TrialState
    found = {name: values.suggest(trial, name) for name, values in tuning.space.items()}
    behind = False

    def on_epoch(news: Progress) -> None:
        nonlocal behind
        if behind:  # pruned one epoch later, so that a finished trial never is
            raise optuna.TrialPruned
        if news.records and news.records[-1]["epoch"] == news.epoch:
            trial.report(news.records[-1]["valid"][tuning.metric], news.epoch)
            behind = trial.should_prune()

    try:
        fitted = tuning.experiment.train(
            tuning.with_settings(found), plain[TEACHER], start=plain[STUDENT], progress=silent, on_epoch=on_epoch
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
    """Returns one of Optuna's trials as a `Trial`; None if it did not end."""
    state = frozen.state.name
    if state == "COMPLETE":
        return Trial(frozen.number, frozen.params, frozen.value)
    if state == "PRUNED":
        return Trial(frozen.number, frozen.params, frozen.value, frozen.last_step)
    error = frozen.user_attrs.get("error")
    return Trial(frozen.number, frozen.params, None, error=error) if error else None


def best_first(trials: Sequence[Trial]) -> list[Trial]:
    """Returns the complete trials, the best first."""
    complete = [trial for trial in trials if trial.pruned is None and trial.value is not None]
    return sorted(complete, key=lambda trial: -(trial.value or 0.0))


def table(tuning: Tuning, trials: Sequence[Trial], plain: Mapping[str, float]) -> Table:
    """Returns a table of the best trials, under teacher and plain student, and the number of the others."""
    names = list(tuning.space)
    lines = [(label(name), f"{value:.4f}", *[""] * len(names)) for name, value in plain.items()]
    for trial in best_first(trials)[:SHOWN]:
        lines.append((str(trial.number), f"{trial.value:.4f}", *(short(trial.settings[name]) for name in names)))
    pruned, failed = sum(t.pruned is not None for t in trials), sum(t.error is not None for t in trials)
    note = f"{len(trials)} trials, {pruned} of them pruned, {failed} failed."
    return Table("tune", "Trials", ("trial", f"valid {tuning.metric}", *names), tuple(lines), note)


def importance(tuning: Tuning, trials: Sequence[Trial]) -> dict[str, float]:
    """Returns the share of each setting in the result, the largest first (PED-ANOVA, Watanabe et al., IJCAI'23).

    It is empty if there are too few trials.
    """
    if len(best_first(trials)) < LEAST_FOR_IMPORTANCE or len(tuning.space) < 2:
        return {}
    optuna: Any = importlib.import_module("optuna")
    with contextlib.suppress(ValueError, RuntimeError):  # all results are equal
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found: dict[str, float] = optuna.importance.get_param_importances(_open(optuna, tuning), evaluator=evaluator)
        return found
    return {}


def command(flags: Sequence[str], settings: Mapping[str, Any]) -> str:
    """Returns the command that trains a run with these settings: the flags, and the found ones last, which win."""
    found = [word for name, value in settings.items() for word in flag_words(name, value)]
    return shlex.join(["htd-jax", "train", *flags, *found])


def short(value: Any) -> str:
    """Returns a setting's value for a table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
