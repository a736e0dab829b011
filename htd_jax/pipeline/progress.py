"""Progress of a phase: the line that shows it, and callbacks."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from htd_jax.pipeline.fitted import Fitted
from htd_jax.pipeline.request import RunSpec
from htd_jax.training import Progress

# (title, number of epochs, metric to show) -> a function to call after every epoch
ProgressLine = Callable[[str, int, str], AbstractContextManager[Callable[[Progress], None]]]


@contextlib.contextmanager
def silent(title: str, epochs: int, metric: str) -> Iterator[Callable[[Progress], None]]:
    """Shows nothing."""
    yield lambda progress: None


@contextlib.contextmanager
def progress_line(title: str, epochs: int, metric: str) -> Iterator[Callable[[Progress], None]]:
    """Shows a bar in a terminal or a notebook, and elsewhere prints a line per evaluation."""
    console = Console()
    live = console.is_terminal or console.is_jupyter
    columns = TextColumn("{task.description:15}"), BarColumn(20), TextColumn("{task.fields[news]}")
    bar = Bar(*columns, TimeRemainingColumn(), console=console, disable=not live)
    task = bar.add_task(title, total=epochs, news="compiling")

    def show(progress: Progress) -> None:
        epoch, records = progress.epoch, progress.records
        text = f"epoch {epoch:3}/{epochs - 1}  loss {progress.terms['loss']:9.2f}  {progress.seconds:6.3f} s/epoch"
        if records:
            text += f"  valid {metric} {records[-1]['valid'][metric]:.4f}"
        if live:
            bar.update(task, completed=epoch + 1, news=text)
        elif records and records[-1]["epoch"] == epoch:
            print(f"{title:15} {text}", flush=True)

    with bar:
        yield show


class Callback:
    """Called during a phase of a run; this one does nothing."""

    def on_epoch(self, progress: Progress) -> None:
        """Called after every epoch; a resumed phase starts at a later one than the first."""

    def on_end(self, fitted: Fitted) -> None:
        """Called at the end of the phase, also if it was finished before."""


# (run, name of the phase) -> its callback
MakeCallback = Callable[[RunSpec, str], AbstractContextManager[Callback]]


@contextlib.contextmanager
def no_callback(spec: RunSpec, phase: str) -> Iterator[Callback]:
    """Calls nothing."""
    yield Callback()
