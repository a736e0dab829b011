"""One phase from its first epoch, or its last checkpoint, to its end."""

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from htd_jax.data import Split
from htd_jax.errors import UserError
from htd_jax.models import MakeModel
from htd_jax.training.checkpoint import Checkpoints
from htd_jax.training.step import AnyTeacher, Trainer

# Seconds after which a checkpoint is written: the most that a kill can lose, and an epoch.
CHECKPOINT_SECONDS = 20

Record = dict[str, Any]


class Progress(NamedTuple):
    """What a phase tells its caller after every epoch.

    Attributes:
      epoch: the epoch just done, from 0.
      terms: the loss and its parts, means over the epoch's batches.
      seconds: of this epoch's training.
      records: one for every evaluation so far.
    """

    epoch: int
    terms: dict[str, float]
    seconds: float
    records: list[Record]


class EarlyStopping(NamedTuple):
    """Stops a phase, and goes back to its best epoch.

    Attributes:
      metric: of validation, higher is better, by which the best epoch is chosen: `recall@10`.
      patience: the phase ends once this many epochs have passed since the best one.
    """

    metric: str
    patience: int


class PhaseResult(NamedTuple):
    """Where a phase ended.

    Attributes:
      variables: the model's, at the last epoch or, with early stopping, at the best.
      records: one for every evaluation.
      seconds: of training, of every epoch.
      chosen: the record of the epoch that `variables` are of.
    """

    variables: Any
    records: list[Record]
    seconds: list[float]
    chosen: Record


class Diverged(UserError):
    """A training whose loss is no longer a number."""


def run_phase(
    trainer: Trainer,
    evaluate: Callable[[Any], dict[str, dict[str, jax.Array]]],
    split: Split,
    teacher: AnyTeacher,
    key: chex.PRNGKey,
    *,
    epochs: int,
    eval_every: int,
    checkpoints: Checkpoints | None = None,
    settings: dict[str, Any] | None = None,
    early_stopping: EarlyStopping | None = None,
    start: Any = None,
    evaluate_beside: Callable[[MakeModel, Any], dict[str, dict[str, jax.Array]]] | None = None,
    on_epoch: Callable[[Progress], None] = lambda progress: None,
) -> PhaseResult:
    """Trains for at most `epochs` epochs and evaluates at epoch 0, every `eval_every`-th and the last.

    A record is `{"epoch", "terms", "valid", "test", "seconds", "peak_memory"}`, `seconds` the training time of that
    epoch without compilation, the last in bytes, see `peak_memory`. With no epochs at all, the one record is of the
    model as it starts. A checkpoint is written every `CHECKPOINT_SECONDS` and at the end. If `checkpoints` holds a step
    made under the same `settings`, the phase goes on from there, and ends with the same bits; one that ended after
    fewer epochs goes on to `epochs`.

    Args:
      teacher: whatever there is of one, see `Teacher.of`.
      checkpoints: none are written without.
      settings: what made this phase, as JSON.
      start: the model's variables to begin with, instead of random ones.
      evaluate_beside: of any model, the one that learns beside the student, if there is one: every record then holds
        its `{"valid", "test"}` under `beside`.

    Raises:
      UserError: the checkpoints were made under other settings, or hold more epochs; or the teacher lacks what the
        method needs.
      Diverged: the loss is no longer a number.
    """
    init_key, epochs_key = jax.random.split(key)
    known = trainer.prepare(split.train, teacher)
    state, records, seconds = trainer.init(init_key, split.train, known), [], []
    if start is not None:
        state = dataclasses.replace(state, params={**state.params, "model": jax.tree.map(jnp.copy, start)})
    best = jax.tree.map(jnp.copy, state.params["model"]) if early_stopping else {}
    if checkpoints and checkpoints.latest is not None:
        history = checkpoints.history()
        if history["settings"] != settings:
            raise UserError(f"{checkpoints.folder}: made by other settings; name another run folder or delete this one")
        records, seconds = history["records"], history["seconds"]
        if len(seconds) > epochs:
            raise UserError(f"{checkpoints.folder}: has {len(seconds)} epochs done, more than {epochs}")
        found = checkpoints.state({"train": state, "best": best})
        state, best = found["train"], found["best"]
    if not epochs and not records:
        metrics = jax.tree.map(float, evaluate(state.params["model"]))
        records.append({"epoch": 0, "terms": {}, **metrics, "seconds": 0.0, "peak_memory": peak_memory()})
        if checkpoints:
            history = {"settings": settings, "records": records, "seconds": seconds, "finished": True}
            checkpoints.save(0, {"train": state, "best": best}, history)

    def measure(params: Any) -> dict[str, Any]:
        metrics: dict[str, Any] = {**evaluate(params["model"])}
        if trainer.beside and evaluate_beside:
            metrics["beside"] = evaluate_beside(*trainer.beside(params["distiller"], known.known))
        numbers: dict[str, Any] = jax.tree.map(float, metrics)
        return numbers

    finished = is_finished(records, len(seconds), epochs, early_stopping)
    if not finished:
        epoch_fn = _compiled(trainer.epoch, state, epochs_key, split.train, known)
    saved = time.monotonic()
    while not finished:
        epoch = len(seconds)
        begun = time.perf_counter()
        state, terms = jax.block_until_ready(epoch_fn(state, epochs_key, split.train, known))
        seconds.append(time.perf_counter() - begun)
        terms = {name: float(value) for name, value in terms.items()}
        if not math.isfinite(terms["loss"]):
            raise Diverged(
                f"the training diverged in epoch {epoch}: its loss is {terms['loss']}; lower --learning-rate"
            )
        finished = epoch == epochs - 1
        if finished or epoch % eval_every == 0:
            metrics = measure(state.params)
            cost = {"seconds": seconds[-1], "peak_memory": peak_memory()}
            records.append({"epoch": epoch, "terms": terms, **metrics, **cost})
            if early_stopping and choose(records, early_stopping)["epoch"] == epoch:
                best = jax.tree.map(jnp.copy, state.params["model"])
            finished = is_finished(records, len(seconds), epochs, early_stopping)
        if checkpoints and (finished or time.monotonic() - saved > CHECKPOINT_SECONDS):
            history = {"settings": settings, "records": records, "seconds": seconds, "finished": finished}
            checkpoints.save(epoch + 1, {"train": state, "best": best}, history)
            saved = time.monotonic()
        on_epoch(Progress(epoch, terms, seconds[-1], records))
    variables = best if early_stopping else state.params["model"]
    return PhaseResult(variables, records, seconds, choose(records, early_stopping))


def _compiled(epoch: Any, *inputs: Any) -> Any:
    """Compiled before the clock starts; with `jax_disable_jit` there is nothing to compile."""
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        return epoch
    return epoch.lower(*inputs).compile()


def peak_memory() -> int | None:
    """The most bytes that were in use so far: of the first device, or where that is the processor, of this process."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    with contextlib.suppress(ImportError):  # not POSIX
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most
    return None


def is_finished(records: list[Record], done: int, epochs: int, early_stopping: EarlyStopping | None) -> bool:
    """Whether all of `epochs` are done, or the last evaluation lies `patience` of them behind the best one."""
    if done >= epochs or not early_stopping or not records:
        return done >= epochs
    return bool(records[-1]["epoch"] - choose(records, early_stopping)["epoch"] >= early_stopping.patience)


def choose(records: list[Record], early_stopping: EarlyStopping | None) -> Record:
    """The record of the epoch whose model counts: the last, or the first of the best."""
    if early_stopping is None:
        return records[-1]
    return best_record(records, early_stopping.metric)


def best_record(records: list[Record], metric: str) -> Record:
    """The first of the records that are best by a metric of validation."""
    return max(records, key=lambda record: record["valid"][metric])
