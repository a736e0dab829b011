"""The line that moves while a phase runs."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from htd_jax.training import Progress as News

# (the phase's name, how many epochs, the metric to show) -> what is told of every epoch while it runs
ProgressLine = Callable[[str, int, str], AbstractContextManager[Callable[[News], None]]]


@contextlib.contextmanager
def silent(name: str, epochs: int, metric: str) -> Iterator[Callable[[News], None]]:
    yield lambda news: None


@contextlib.contextmanager
def progress_line(name: str, epochs: int, metric: str) -> Iterator[Callable[[News], None]]:
    """A bar in a terminal or a notebook; elsewhere a line an evaluation."""
    console = Console()
    live = console.is_terminal or console.is_jupyter
    columns = TextColumn("{task.description:15}"), BarColumn(20), TextColumn("{task.fields[news]}")
    bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not live)
    task = bar.add_task(name, total=epochs, news="compiling")

    def show(news: News) -> None:
        text = f"epoch {news.epoch:3}/{epochs - 1}  loss {news.terms['loss']:9.2f}  {news.seconds:6.3f} s/epoch"
        if news.records:
            text += f"  valid {metric} {news.records[-1]['valid'][metric]:.4f}"
        if live:
            bar.update(task, completed=news.epoch + 1, news=text)
        elif news.records and news.records[-1]["epoch"] == news.epoch:
            print(f"{name:15} {text}", flush=True)

    with bar:
        yield show
