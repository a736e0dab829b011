"""One phase from its first epoch, or its last checkpoint, to its end."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from htd_jax.data import Split
from htd_jax.errors import UserError
from htd_jax.training.checkpoint import Checkpoints
from htd_jax.training.step import Representations, Trainer

# Seconds after which a checkpoint is written between two evaluations: the most that a kill can lose, and an epoch.
CHECKPOINT_SECONDS = 60

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


def run_phase(
    trainer: Trainer,
    evaluate: Callable[[Any], dict[str, dict[str, jax.Array]]],
    split: Split,
    teacher: Representations,
    key: chex.PRNGKey,
    *,
    epochs: int,
    eval_every: int,
    checkpoints: Checkpoints,
    settings: dict[str, Any],
    early_stopping: EarlyStopping | None = None,
    start: Any = None,
    on_epoch: Callable[[Progress], None] = lambda progress: None,
) -> PhaseResult:
    """Trains for at most `epochs` epochs and evaluates at epoch 0, every `eval_every`-th and the last.

    A record is `{"epoch", "terms", "valid", "test", "seconds"}`, `seconds` the training time of that epoch without
    compilation. A checkpoint follows every evaluation, and any minute that passes without one; with early stopping,
    where evaluations may be many, only the latter. If `checkpoints` holds a step made under the same `settings`, the
    phase goes on from there, and ends with the same bits.

    Args:
      start: the model's variables to begin with, instead of random ones.

    Raises:
      UserError: the checkpoints were made under other settings.
    """
    init_key, epochs_key = jax.random.split(key)
    state, records, seconds = trainer.init(init_key, split.train, teacher), [], []
    if start is not None:
        state = state.replace(params={**state.params, "model": jax.tree.map(jnp.copy, start)})
    best = jax.tree.map(jnp.copy, state.params["model"]) if early_stopping else {}
    finished = False
    if checkpoints.latest is not None:
        history = checkpoints.history()
        if history["settings"] != settings:
            raise UserError(f"{checkpoints.folder}: made by other settings; name another run folder or delete this one")
        found = checkpoints.state({"train": state, "best": best})
        state, best = found["train"], found["best"]
        records, seconds, finished = history["records"], history["seconds"], history["finished"]
    if not finished:
        epoch_fn = trainer.epoch.lower(state, epochs_key, split.train, teacher).compile()
    saved = time.monotonic()
    while not finished:
        epoch = len(seconds)
        begun = time.perf_counter()
        state, terms = jax.block_until_ready(epoch_fn(state, epochs_key, split.train, teacher))
        seconds.append(time.perf_counter() - begun)
        terms = {name: float(value) for name, value in terms.items()}
        finished = epoch == epochs - 1
        evaluated = epoch % eval_every == 0 or finished
        if evaluated:
            metrics = jax.tree.map(float, evaluate(state.params["model"]))
            records.append({"epoch": epoch, "terms": terms, **metrics, "seconds": seconds[-1]})
            if early_stopping:
                best_epoch = choose(records, early_stopping)["epoch"]
                if best_epoch == epoch:
                    best = jax.tree.map(jnp.copy, state.params["model"])
                finished |= epoch - best_epoch >= early_stopping.patience
        if finished or (evaluated and not early_stopping) or time.monotonic() - saved > CHECKPOINT_SECONDS:
            history = {"settings": settings, "records": records, "seconds": seconds, "finished": finished}
            checkpoints.save(epoch + 1, {"train": state, "best": best}, history)
            saved = time.monotonic()
        on_epoch(Progress(epoch, terms, seconds[-1], records))
    variables = best if early_stopping else state.params["model"]
    return PhaseResult(variables, records, seconds, choose(records, early_stopping))


def choose(records: list[Record], early_stopping: EarlyStopping | None) -> Record:
    """The record of the epoch whose model counts: the last, or the first of the best."""
    if early_stopping is None:
        return records[-1]
    return best_record(records, early_stopping.metric)


def best_record(records: list[Record], metric: str) -> Record:
    """The first of the records that are best by a metric of validation."""
    return max(records, key=lambda record: record["valid"][metric])
