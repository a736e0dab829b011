"""One phase from its first epoch, or its last checkpoint, to its end."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax

from htd_jax.data import Split
from htd_jax.errors import UserError
from htd_jax.training.checkpoint import Checkpoints
from htd_jax.training.step import Representations, Trainer, TrainState

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


class PhaseResult(NamedTuple):
    """Where a phase ended: its state, one record an evaluation, and the seconds of training of every epoch."""

    state: TrainState
    records: list[Record]
    seconds: list[float]


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
    on_epoch: Callable[[Progress], None] = lambda progress: None,
) -> PhaseResult:
    """Trains for `epochs` epochs and evaluates at epoch 0, every `eval_every`-th and the last.

    A record is `{"epoch", "terms", "valid", "test", "seconds"}`, `seconds` the training time of that epoch without
    compilation. A checkpoint follows every evaluation, and any minute that passes without one. If `checkpoints`
    holds a step made under the same `settings`, the phase goes on from there, and ends with the same bits.

    Raises:
      UserError: the checkpoints were made under other settings.
    """
    init_key, epochs_key = jax.random.split(key)
    state, records, seconds = trainer.init(init_key), [], []
    if checkpoints.latest is not None:
        history = checkpoints.history()
        if history["settings"] != settings:
            raise UserError(f"{checkpoints.folder}: made by other settings; name another run folder or delete this one")
        state, records, seconds = checkpoints.state(state), history["records"], history["seconds"]
    if len(seconds) < epochs:
        epoch_fn = trainer.epoch.lower(state, epochs_key, split.train, teacher).compile()
    saved = time.monotonic()
    for epoch in range(len(seconds), epochs):
        start = time.perf_counter()
        state, terms = jax.block_until_ready(epoch_fn(state, epochs_key, split.train, teacher))
        seconds.append(time.perf_counter() - start)
        terms = {name: float(value) for name, value in terms.items()}
        evaluated = epoch % eval_every == 0 or epoch == epochs - 1
        if evaluated:
            metrics = jax.tree.map(float, evaluate(state.params["model"]))
            records.append({"epoch": epoch, "terms": terms, **metrics, "seconds": seconds[-1]})
        if evaluated or time.monotonic() - saved > CHECKPOINT_SECONDS:
            checkpoints.save(epoch + 1, state, {"settings": settings, "records": records, "seconds": seconds})
            saved = time.monotonic()
        on_epoch(Progress(epoch, terms, seconds[-1], records))
    return PhaseResult(state, records, seconds)
