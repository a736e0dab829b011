"""Event files of a run, for TensorBoard: `tensorboard --logdir runs`."""

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from htd_jax.errors import UserError
from htd_jax.escaping import markdown
from htd_jax.pipeline import Callback, Fitted, MakeCallback, Paths, RunFolder, RunSpec, flat, no_callback
from htd_jax.training import Progress


def choose_callback(paths: Paths) -> MakeCallback:
    """Returns a callback that writes event files if `paths.tensorboard` requests them, else one that does nothing.

    Raises:
      UserError: if the library is missing.
    """
    if not paths.tensorboard:
        return no_callback
    if importlib.util.find_spec("tensorboardX") is None:
        raise UserError("`tensorboard` needs tensorboardX: pip install tensorboardX")
    return event_files


def note_ignored(paths: Paths) -> None:
    """Prints a line if `paths.tensorboard` is set for a command without run folders."""
    if paths.tensorboard:
        print("note: --tensorboard is ignored, because this command writes no run folder")


@contextlib.contextmanager
def event_files(spec: RunSpec, phase: str) -> Iterator[Callback]:
    """Writes the event files of a phase."""
    events = Events(RunFolder(spec.folder).tensorboard(phase), settings_text(flat(spec.identity)))
    try:
        yield events
    finally:
        events.close()


class Events(Callback):
    """The event files of a phase, created with the first event.

    Events after the checkpoint from which a run resumes are withdrawn by TensorBoard's `purge_step`; records from
    before the first event are written from the run's metrics.
    """

    def __init__(self, folder: Path, about: str):
        self._folder, self._about = folder, about
        self._writer: Any = None

    def on_epoch(self, progress: Progress) -> None:
        self._open(progress.epoch, [record for record in progress.records if record["epoch"] < progress.epoch])
        self._add(progress.epoch, {f"train/{name}": value for name, value in progress.terms.items()})
        self._add(progress.epoch, {"seconds per epoch": progress.seconds})
        if progress.records and progress.records[-1]["epoch"] == progress.epoch:
            self._add_metrics(progress.records[-1])
            self._writer.flush()

    def on_end(self, fitted: Fitted) -> None:
        if self._writer is None and not self._has_events():
            self._open(0, fitted.records)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _has_events(self) -> bool:
        return any(self._folder.glob("events.*"))

    def _open(self, epoch: int, before: list[dict[str, Any]]) -> None:
        """Opens the file once; the first of a phase begins with its settings and the records `before`."""
        if self._writer is not None:
            return
        resumes = self._has_events()
        library: Any = importlib.import_module("tensorboardX")  # optional
        self._writer = library.SummaryWriter(str(self._folder), purge_step=epoch if resumes else None)
        if not resumes or not epoch:  # a purge from epoch 0 also withdraws the text
            self._writer.add_text("settings", self._about, 0)
        if not resumes:
            for record in before:
                self._add(record["epoch"], {f"train/{name}": value for name, value in record["terms"].items()})
                self._add_metrics(record)

    def _add_metrics(self, record: dict[str, Any]) -> None:
        second = {f"second model {part}": metrics for part, metrics in record.get("second_model", {}).items()}
        for part, metrics in {"valid": record["valid"], "test": record["test"], **second}.items():
            self._add(record["epoch"], {f"{part}/{name}": value for name, value in metrics.items()})

    def _add(self, epoch: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(tag(name), value, epoch)


def tag(name: str) -> str:
    """Returns a name in the characters that event files allow.

    >>> tag("valid/recall@50")
    'valid/recall_50'
    """
    return name.replace("@", "_").replace(" ", "_")


def settings_text(settings: dict[str, Any]) -> str:
    """Returns settings as a table in Markdown."""
    known = {name: value for name, value in settings.items() if value is not None}
    return "| setting | |\n|---|---|\n" + "".join(
        f"| {markdown(name)} | {markdown(value)} |\n" for name, value in known.items()
    )
