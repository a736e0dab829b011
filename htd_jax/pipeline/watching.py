"""Who is told of a run while it goes on, beside the line that moves."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from htd_jax.pipeline.config import Config
from htd_jax.pipeline.experiment import Fitted
from htd_jax.training import Progress


class Watcher:
    """Is told of a phase; this one lets all of it pass."""

    def epoch(self, news: Progress) -> None:
        """Of every epoch that is trained; what is taken up begins at a later one than the first."""

    def end(self, fitted: Fitted) -> None:
        """What the phase came to, trained now or before."""


# (the run, the phase's name) -> who is told of it while it runs
Watch = Callable[[Config, str], AbstractContextManager[Watcher]]


@contextlib.contextmanager
def unwatched(config: Config, phase: str) -> Iterator[Watcher]:
    yield Watcher()
