"""Trials: what was tried for a run, and what it gave in validation."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from htd_jax import processes
from htd_jax.errors import UserError, shown
from htd_jax.training import Diverged
from htd_jax.writing import whole


@dataclasses.dataclass(frozen=True)
class Trial:
    """The result of some settings.

    Attributes:
      part: what was tried: `teacher` or `student`.
      name: the settings, as shown to people.
      settings: the settings, as JSON.
      valid: metrics in validation.
      epoch: the epoch of these metrics, the best of the trial.
      seconds: how long it took.
    """

    part: str
    name: str
    settings: dict[str, Any]
    valid: dict[str, float]
    epoch: int
    seconds: float


class Trials:
    """The trials of a run, in the order in which they ended; those of a run that was killed are not repeated.

    Args:
      path: the file that keeps them, one JSON object per line; none is kept if None.
      metric: the metric of the choice.
      averaged: the metrics that decide where that one does not, see `best`.
      users: the number of users whom the metrics are averages of.
    """

    def __init__(self, path: Path | None, metric: str, averaged: Sequence[str] = (), users: int = 1):
        self.path = path
        self.metric = metric
        self.averaged = tuple(averaged) or (metric,)
        self.users = max(users, 1)
        kept = lambda: [dataclasses.asdict(trial) for trial in read_trials(path)] if path and path.is_file() else []
        self.done = [Trial(**trial) for trial in processes.from_first("trials", kept)]

    @property
    def seconds(self) -> float:
        """The time of all trials."""
        return sum(trial.seconds for trial in self.done)

    def of(self, part: str, among: Container[str] | None = None) -> list[Trial]:
        """Returns the trials of a part, or those whose settings have a key `among` some, see `key_of`."""
        of_part = [trial for trial in self.done if trial.part == part]
        return of_part if among is None else [trial for trial in of_part if key_of(trial.settings) in among]

    def value(self, trial: Trial) -> float:
        """Returns the metric of the choice; a number that is not finite counts as the worst."""
        value = trial.valid.get(self.metric, 0.0)
        return value if math.isfinite(value) else -1.0

    def best(self, part: str, among: Container[str] | None = None) -> Trial:
        """Returns the best trial of a part: of those whose metric is lower than the highest by less than a standard
        error of the difference, the one with the best average of all metrics that tables show.

        A small difference in one metric is chance, and must not cost another metric much: the order of the first ten
        items says more about a model than one hit more at the fiftieth place.
        """
        tried = self.of(part, among)
        highest = max(map(self.value, tried))
        # Of two averages of numbers from 0 to 1, as if they were independent.
        error = math.sqrt(2 * max(highest * (1 - highest), 0.0) / self.users)
        near = [trial for trial in tried if self.value(trial) >= highest - error]
        averages = {name: max(trial.valid.get(name, 0.0) for trial in near) or 1.0 for name in self.averaged}
        average = lambda trial: sum(trial.valid.get(name, 0.0) / most for name, most in averages.items())
        return max(near, key=average)

    def find(self, part: str, settings: Mapping[str, Any]) -> Trial | None:
        """Returns the trial of these settings; None if there is none."""
        settings = _as_read(settings)
        return next((trial for trial in self.done if (trial.part, trial.settings) == (part, settings)), None)

    def reuse(self, trial: Trial) -> None:
        """Adds a trial of another run."""
        self.done.append(trial)
        self.write()

    def run(
        self, part: str, name: str, settings: Mapping[str, Any], measure: Callable[[], tuple[dict[str, float], int]]
    ) -> Trial:
        """Runs a trial, and returns it. One that diverges ranks nothing.

        Args:
          part, name, settings: see `Trial`.
          measure: returns metrics in validation, and their epoch.
        """
        started = time.monotonic()
        try:
            valid, epoch = measure()
        except Diverged:
            valid, epoch = {self.metric: 0.0}, 0
        seconds = processes.from_first("trial", lambda: round(time.monotonic() - started, 3))  # a budget is of all
        trial = Trial(part, name, _as_read(settings), valid, epoch, seconds)
        self.done.append(trial)
        self.write()
        return trial

    def table(self, chosen: Container[str] = ()) -> str:
        """Returns the trials as a Markdown table, the highest metric of a part first; a star marks `chosen` names."""
        metrics = [name for name in (self.done[0].valid if self.done else ())]
        shown_metrics = [self.metric, *(name for name in ("recall@10", "ndcg@10", "recall@50") if name in metrics)]
        columns = ["part", "tried", "epoch", *dict.fromkeys(shown_metrics), "seconds"]
        lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        for part in dict.fromkeys(trial.part for trial in self.done):
            for trial in sorted(self.of(part), key=self.value, reverse=True):
                figures = [f"{trial.valid.get(name, 0):.4f}" for name in dict.fromkeys(shown_metrics)]
                name = trial.name + " *" * (trial.name in chosen)
                cells = [part, name, str(trial.epoch), *figures, f"{trial.seconds:.1f}"]
                lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"

    def write(self, chosen: Container[str] = ()) -> None:
        """Writes the trials, and the table, in which a star marks what is chosen."""
        if self.path is None or not processes.is_first():
            return
        lines = (json.dumps(dataclasses.asdict(trial)) + "\n" for trial in self.done)
        for path, text in ((self.path, "".join(lines)), (self.path.with_suffix(".md"), self.table(chosen))):
            with whole(path) as partial:
                partial.write_text(text, encoding="utf-8")


def read_trials(path: Path) -> list[Trial]:
    """Returns the trials that a file keeps.

    Raises:
      UserError: if it cannot be read, or is damaged.
    """
    try:
        trials = [Trial(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        for trial in trials:
            numbers = [*trial.valid.values(), trial.seconds, trial.epoch]
            if not isinstance(trial.settings, dict) or not all(isinstance(x, int | float) for x in numbers):
                raise ValueError
        return trials
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{shown(path)}: damaged; delete it to repeat its trials") from None


def key_of(settings: Mapping[str, Any]) -> str:
    """Returns settings as a text that equal ones share, whatever their order."""
    return json.dumps(settings, sort_keys=True)


def _as_read(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings as they are read back: tuples are lists."""
    read: dict[str, Any] = json.loads(json.dumps(settings))
    return read


def parse_budget(text: str | None) -> float | None:
    """Returns the seconds of a budget such as `90s`, `5m`, `1.5h` or `0`; None for None.

    Raises:
      UserError: if the text is not a time.

    >>> parse_budget("5m"), parse_budget("1.5h"), parse_budget("0")
    (300.0, 5400.0, 0.0)
    """
    if text is None:
        return None
    if not isinstance(text, str):
        raise UserError(f"`budget` must be a time as a text, such as 5m, not {text!r}")
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1.0)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf") or (text[-1:] not in units and seconds):
        raise UserError(f"`budget` must be a time such as 90s, 5m or 2h, or 0 for the defaults alone, not {text!r}")
    return seconds
