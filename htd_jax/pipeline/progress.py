"""Progress of a phase: the line that shows it, and callbacks."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Column

from htd_jax.pipeline.fitted import Fitted
from htd_jax.pipeline.request import RunSpec
from htd_jax.training import Progress, duration

# To call after every epoch, and with the name of each stage, such as `preparing`, before it.
Show = Callable[[Progress | str], None]

# (title, number of epochs, metric to show) -> `Show`
ProgressLine = Callable[[str, int, str], AbstractContextManager[Show]]

# Where the line is not live, a stage that takes longer than so many seconds is printed, and an epoch without an
# evaluation if nothing was for `QUIET` seconds.
LONG, QUIET = 2.0, 30.0

# A phase that takes longer than so many seconds, as far as its first epoch and evaluation tell, says so after them.
LONG_PHASE = 60.0


@contextlib.contextmanager
def silent(title: str, epochs: int, metric: str) -> Iterator[Show]:
    """Shows nothing."""
    yield lambda progress: None


@contextlib.contextmanager
def progress_line(title: str, epochs: int, metric: str) -> Iterator[Show]:
    """Shows a bar in a terminal or a notebook, and elsewhere prints a line per evaluation.

    A preparation, a compilation or the first epoch shows its name and, in a bar, the time since the phase began; where
    lines are printed, one is if it takes longer than `LONG` seconds, and another at its end. Every later line has the
    time that is left. After the first epoch and evaluation of a long phase, a line says how long the whole of it takes.
    """
    console = Console()
    live = console.is_terminal or console.is_jupyter
    # In a narrow terminal, the news lose their end, and nothing else does.
    kept, cut = Column(no_wrap=True, min_width=max(15, len(title))), Column(no_wrap=True, ratio=1)
    columns = TextColumn("{task.description}", table_column=kept), BarColumn(10), TimeElapsedColumn()
    texts = TextColumn("{task.fields[left]}{task.fields[news]}", table_column=cut)
    bar = Bar(*columns, texts, console=console, disable=not live, expand=True)
    task = bar.add_task(title, total=epochs, news="", left="")
    ends = contextlib.ExitStack()
    told, printed = False, time.monotonic()

    def show(progress: Progress | str) -> None:
        nonlocal told, printed
        ends.close()
        if isinstance(progress, str):
            stage = "first epoch and evaluation" if progress == "training" else progress
            if live:
                bar.update(task, news=stage)
            else:
                ends.enter_context(_printed(f"{title:15} {stage}"))
            return
        epoch, records = progress.epoch, progress.records
        text = f"epoch {epoch:3}/{epochs - 1}  loss {progress.terms['loss']:9.2f}  {progress.seconds:6.3f} s/epoch"
        if records:
            took = duration(records[-1].get("seconds_evaluation", 0.0))
            text += f"  valid {metric} {records[-1]['valid'][metric]:.4f} in {took}"
        seconds, most = progress.estimate.left(epoch), "at most " * progress.estimate.at_most
        left = f"{most}{duration(seconds)} left" if epoch + 1 < epochs and seconds >= 1 else ""
        if live:
            bar.update(task, completed=epoch + 1, news=text, left=f"{left}  " if left else "")
        elif (records and records[-1]["epoch"] == epoch) or time.monotonic() - printed > QUIET:
            print(f"{title:15} {text}  {left}".rstrip(), flush=True)
            printed = time.monotonic()
        if not told and progress.estimate.whole > LONG_PHASE and epoch + 1 < epochs:
            bar.console.print(f"{title:15} {progress.estimate}", markup=False, highlight=False, soft_wrap=True)
        told = True

    with bar, ends:
        yield show


@contextlib.contextmanager
def _printed(text: str) -> Iterator[None]:
    """Prints a line once a stage takes long, and its time at its end."""
    timer = threading.Timer(LONG, lambda: print(text, flush=True))
    timer.daemon = True
    started = time.monotonic()
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if (seconds := time.monotonic() - started) > LONG:
            print(f"{text}: {seconds:.0f} s", flush=True)


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
