"""The model that answers, and how another takes its place while requests go on."""

import contextlib
import dataclasses
import datetime
import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from htd_jax.errors import UserError
from htd_jax.serve import Model

log = logging.getLogger("htd_jax.service")

# What lies in folders: two of it are equal if no file was replaced or written to.
State = Any


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model and when it was opened."""

    model: Model
    at: datetime.datetime


class Current:
    """Holds the model that answers. A request takes `loaded` once, so that another model may take its place meanwhile;
    the earlier one goes when its last request ends.

    Attributes:
      loaded: the model, opened and asked once, so that no request finds it cold.
      refused: why the last reload kept the earlier model; None if it did not.
      outcomes: how many reloads ended in another model (`replaced`), and how many kept the earlier one (`refused`).
    """

    def __init__(self, open_model: Callable[[], Model], folders: Sequence[Path] = ()):
        """Opens the model.

        Args:
          open_model: reads it, whenever it is called, as it is then.
          folders: where it is read from, for `watch`.

        Raises:
          UserError: if it cannot be opened.
        """
        self._open, self._folders = open_model, folders
        self._lock = threading.Lock()
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()  # its `put` may be called in a signal's handler
        self._opened_in = self.state()
        self.loaded = self._load()
        self.refused: str | None = None
        self.outcomes = {"replaced": 0, "refused": 0}

    def reload(self) -> Loaded:
        """Opens the model again and lets it answer from then on.

        Raises:
          UserError: if it cannot be opened; the earlier one goes on answering.
        """
        with self._lock:
            self._opened_in = self.state()
            before = self.loaded.model.version
            try:
                self.loaded = self._load()
            except Exception as error:  # whatever is wrong with the new model, there is one that works
                self.refused = str(error) or type(error).__name__
                self.outcomes["refused"] += 1
                log.error("reload refused, version %s stays: %s", before, self.refused)
                raise error if isinstance(error, UserError) else UserError(self.refused) from error
            self.refused = None
            self.outcomes["replaced"] += 1
            log.info("version %s in place of %s", self.loaded.model.version, before)
            return self.loaded

    def ask_reload(self) -> None:
        """Has the thread of `watch` reload; returns at once, and may be called in a signal's handler."""
        self._asked.put(True)

    def watch(self, seconds: float) -> Callable[[], None]:
        """Starts a thread that reloads when it is asked to, and when the content of the folders has changed.

        Args:
          seconds: how often to look; if 0, never. What changes is read when it has not changed for so long.

        Returns:
          What ends the thread.
        """
        thread = threading.Thread(target=self._watch, args=(seconds,), name="reload", daemon=True)
        thread.start()

        def end() -> None:
            self._asked.put(False)
            thread.join()

        return end

    def state(self) -> State:
        """Returns what tells the content of the folders now from another: names, times and sizes of their files."""
        found: list[Any] = []
        for folder in self._folders:
            try:
                with os.scandir(folder) as files:
                    stats = [(file.name, file.stat()) for file in files]
            except OSError:
                found.append(None)
            else:
                found.append(sorted((name, x.st_ino, x.st_mtime_ns, x.st_size) for name, x in stats))
        return found

    def _watch(self, seconds: float) -> None:
        last = self._opened_in
        while True:
            try:
                if not self._asked.get(timeout=seconds or None):
                    return
                while not self._asked.empty():  # one reload answers all who asked before it
                    if not self._asked.get():
                        return
            except queue.Empty:
                state, before = self.state(), last
                last = state
                if state == self._opened_in or state != before:
                    continue
            with contextlib.suppress(UserError):  # it is logged
                self.reload()

    def _load(self) -> Loaded:
        model = self._open()
        # Asks once for everything, so that what a model computes at its first request is not left to a user's.
        if len(model.item_ids):
            item = model.item_ids.take([0])
            if model.dim:
                model.similar(item, 1)
                model.recommend_vectors(model.fold_in(item), 1, seen=item)
        if len(model.user_ids) and (model.pooling is None or model.seen is not None):
            model.recommend(model.user_ids.take([0]), 1)
        return Loaded(model, datetime.datetime.now(datetime.UTC))
