"""Event files of a run, for TensorBoard: `tensorboard --logdir runs`."""

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from htd_jax.errors import UserError
from htd_jax.pipeline import Config, Fitted, Places, Watch, Watcher, flat, unwatched
from htd_jax.training import Progress

FOLDER = "tensorboard"


def watch_of(places: Places) -> Watch:
    """Who watches a run: a writer of event files if `--tensorboard` asks for them, else nobody.

    Raises:
      UserError: it does, and the library is not there.
    """
    if not places.tensorboard:
        return unwatched
    if importlib.util.find_spec("tensorboardX") is None:
        raise UserError("--tensorboard: needs tensorboardX: pip install tensorboardX")
    return writing


def say_unheeded(places: Places) -> None:
    """Says that `--tensorboard` is not for what leaves no run folder."""
    if places.tensorboard:
        print("note: --tensorboard changes nothing here: there is no run folder")


@contextlib.contextmanager
def writing(config: Config, phase: str) -> Iterator[Watcher]:
    """Writes `<run>/tensorboard/<phase>`."""
    events = Events(config.folder / FOLDER / phase, settings_text(flat(config.as_json())))
    try:
        yield events
    finally:
        events.close()


class Events(Watcher):
    """The event files of a phase. None is made before there is something to write.

    What a run wrote after the checkpoint that it goes on from is taken back, by the mark that TensorBoard knows
    (`purge_step`); what it did before it was watched is written from its records.
    """

    def __init__(self, folder: Path, about: str):
        self._folder, self._about = folder, about
        self._writer: Any = None

    def epoch(self, news: Progress) -> None:
        self._open(news.epoch, [record for record in news.records if record["epoch"] < news.epoch])
        self._add(news.epoch, {f"train/{name}": value for name, value in news.terms.items()})
        self._add(news.epoch, {"seconds an epoch": news.seconds})
        if news.records and news.records[-1]["epoch"] == news.epoch:
            self._evaluated(news.records[-1])
            self._writer.flush()

    def end(self, fitted: Fitted) -> None:
        if self._writer is None and not self._is_begun():
            self._open(0, fitted.records)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _is_begun(self) -> bool:
        return any(self._folder.glob("events.*"))

    def _open(self, epoch: int, before: list[dict[str, Any]]) -> None:
        """Once: the file, and in the first of a phase what it is and what was recorded `before`."""
        if self._writer is not None:
            return
        begun = self._is_begun()
        library: Any = importlib.import_module("tensorboardX")  # of those who want it
        self._writer = library.SummaryWriter(str(self._folder), purge_step=epoch if begun else None)
        if not begun or not epoch:  # begun anew, the text was taken back too
            self._writer.add_text("settings", self._about, 0)
        if not begun:
            for record in before:
                self._add(record["epoch"], {f"train/{name}": value for name, value in record["terms"].items()})
                self._evaluated(record)

    def _evaluated(self, record: dict[str, Any]) -> None:
        beside = {f"beside {part}": metrics for part, metrics in record.get("beside", {}).items()}
        for part, metrics in {"valid": record["valid"], "test": record["test"], **beside}.items():
            self._add(record["epoch"], {f"{part}/{name}": value for name, value in metrics.items()})

    def _add(self, epoch: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(tag(name), value, epoch)


def tag(name: str) -> str:
    """As event files have it: letters, digits, and few signs; `recall@50` is `recall_50`.

    >>> tag("valid/recall@50")
    'valid/recall_50'
    """
    return name.replace("@", "_").replace(" ", "_")


def settings_text(settings: dict[str, Any]) -> str:
    """A table in Markdown, which TensorBoard shows as one."""
    shown = {name: value for name, value in settings.items() if value is not None}
    return "| setting | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in shown.items())
