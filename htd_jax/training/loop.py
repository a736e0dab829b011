"""One phase from its first epoch, or its last checkpoint, to its end."""

import contextlib
import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from htd_jax.data import Split
from htd_jax.errors import UserError
from htd_jax.models import MakeModel
from htd_jax.training.checkpoint import Checkpoints
from htd_jax.training.many import hold
from htd_jax.training.step import AnyTeacher, Prepared, Trainer, TrainState

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


class Phase(NamedTuple):
    """What a phase has of its own among those that are trained together.

    Attributes:
      key: of everything random.
      teacher: whatever there is of one, see `Teacher.of`. One that phases share is held once.
      checkpoints: none are written without.
      settings: what made this phase, as JSON.
      start: the model's variables to begin with, instead of random ones.
      on_epoch: told of every epoch.
      training: what it is called where it went wrong.
    """

    key: chex.PRNGKey
    teacher: AnyTeacher = None
    checkpoints: Checkpoints | None = None
    settings: dict[str, Any] | None = None
    start: Any = None
    on_epoch: Callable[[Progress], None] = lambda progress: None
    training: str = "the training"


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
    (result,) = run_phases(
        trainer,
        evaluate,
        split,
        [Phase(key, teacher, checkpoints, settings, start, on_epoch)],
        epochs=epochs,
        eval_every=eval_every,
        early_stopping=early_stopping,
        evaluate_beside=evaluate_beside,
    )
    return result


def run_phases(
    trainer: Trainer,
    evaluate: Callable[[Any], dict[str, dict[str, jax.Array]]],
    split: Split,
    phases: Sequence[Phase],
    *,
    epochs: int,
    eval_every: int,
    early_stopping: EarlyStopping | None = None,
    evaluate_beside: Callable[[MakeModel, Any], dict[str, dict[str, jax.Array]]] | None = None,
) -> list[PhaseResult]:
    """Trains phases that differ in key, teacher and start alone, as one program, see `hold`.

    Each comes to what `run_phase` would bring it to, and leaves the same records and checkpoints; so either takes up
    what the other has begun. A phase that is finished, or stopped early, stands still while the others go on, and each
    goes on from where it is, however far the others are. An epoch's `seconds` are its share of the time of all.

    Args:
      phases: where what is prepared of their teachers differs in shape, they are trained one after another.

    Raises:
      UserError, Diverged: see `run_phase`; the checkpoints of all phases stay as they are.
    """
    knowns = _prepared(trainer, split, phases)
    if any(_shape(known) != _shape(knowns[0]) for known in knowns):  # a solver's rows are as long as its labels say
        alone = functools.partial(
            run_phases,
            trainer,
            evaluate,
            split,
            epochs=epochs,
            eval_every=eval_every,
            early_stopping=early_stopping,
            evaluate_beside=evaluate_beside,
        )
        return [alone([phase._replace(teacher=known)])[0] for phase, known in zip(phases, knowns)]
    begun = [_begin(trainer, split, *each, epochs, early_stopping) for each in zip(phases, knowns)]
    runs, states = [run for run, _ in begun], [state for _, state in begun]
    del begun

    def measure(params: Any, known: Prepared) -> dict[str, Any]:
        metrics: dict[str, Any] = {**evaluate(params["model"])}
        if trainer.beside and evaluate_beside:
            metrics["beside"] = evaluate_beside(*trainer.beside(params["distiller"], known.known))
        numbers: dict[str, Any] = jax.tree.map(float, metrics)
        return numbers

    def note(
        run: _Running, terms: dict[str, float], seconds: float, state: Callable[[], TrainState], number: int
    ) -> None:
        """What follows an epoch."""
        epoch = len(run.seconds)
        run.seconds.append(seconds)
        if not math.isfinite(terms["loss"]):
            raise Diverged(
                f"{run.phase.training} diverged in epoch {epoch}: its loss is {terms['loss']}; lower --learning-rate"
            )
        run.finished = epoch == epochs - 1
        if run.finished or epoch % eval_every == 0:
            params = state().params
            cost = {"seconds": seconds, "peak_memory": peak_memory()}
            run.records.append({"epoch": epoch, "terms": terms, **measure(params, knowns[number]), **cost})
            if early_stopping and choose(run.records, early_stopping)["epoch"] == epoch:
                run.best = jax.tree.map(jnp.copy, params["model"])
            run.finished = is_finished(run.records, len(run.seconds), epochs, early_stopping)
        if run.finished or time.monotonic() - run.saved > CHECKPOINT_SECONDS:
            run.save(state())
        run.phase.on_epoch(Progress(epoch, terms, seconds, run.records))

    numbers = [number for number, run in enumerate(runs) if not run.finished]
    ends = {number: run.kept(states[number]) for number, run in enumerate(runs) if run.finished}
    for number in ends:
        if not epochs and not runs[number].records:
            metrics = jax.tree.map(float, evaluate(ends[number]))
            runs[number].records.append(
                {"epoch": 0, "terms": {}, **metrics, "seconds": 0.0, "peak_memory": peak_memory()}
            )
            runs[number].save(states[number])
    if numbers:
        states = [states[number] for number in numbers]
        keys, their_knowns = [runs[number].key for number in numbers], [knowns[number] for number in numbers]
        held = hold(trainer, split.train, states, keys, their_knowns)
        for number in numbers:  # compiled by now
            runs[number].saved = time.monotonic()
    while any(goes := [not runs[number].finished for number in numbers]):
        start = time.perf_counter()
        terms_of_all = jax.block_until_ready(held.advance(goes))
        seconds = (time.perf_counter() - start) / sum(goes)
        for place, (number, terms) in enumerate(zip(numbers, terms_of_all)):
            if terms is not None:
                state = functools.partial(held.state, place)
                note(runs[number], {name: float(x) for name, x in terms.items()}, seconds, state, number)
    ends |= {number: runs[number].kept(held.state(place)) for place, number in enumerate(numbers)}
    return [
        PhaseResult(ends[number], run.records, run.seconds, choose(run.records, early_stopping))
        for number, run in enumerate(runs)
    ]


@dataclasses.dataclass
class _Running:
    """How far a phase is; beside its state, all that a checkpoint holds.

    Attributes:
      key: of its epochs.
      best: the model's variables at the best epoch so far, `{}` without early stopping.
      saved: when it was last, on the clock that only rises.
    """

    phase: Phase
    key: chex.PRNGKey
    best: Any
    records: list[Record] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    finished: bool = False
    saved: float = 0.0

    def save(self, state: TrainState) -> None:
        """Writes a checkpoint, if there is a place for it."""
        if self.phase.checkpoints:
            history = {
                "settings": self.phase.settings,
                "records": self.records,
                "seconds": self.seconds,
                "finished": self.finished,
            }
            self.phase.checkpoints.save(len(self.seconds), {"train": state, "best": self.best}, history)
            self.saved = time.monotonic()

    def kept(self, state: TrainState) -> Any:
        """The variables that count."""
        return self.best or state.params["model"]


def _prepared(trainer: Trainer, split: Split, phases: Sequence[Phase]) -> list[Prepared]:
    """What is known of every phase's teacher; of one that phases share, once."""
    found: dict[int, Prepared] = {}
    for phase in phases:
        if id(phase.teacher) not in found:
            found[id(phase.teacher)] = trainer.prepare(split.train, phase.teacher)
    return [found[id(phase.teacher)] for phase in phases]


def _shape(tree: Any) -> Any:
    """What trees that can be stacked have in common."""
    return jax.tree.structure(tree), [(jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(tree)]


def _begin(
    trainer: Trainer, split: Split, phase: Phase, known: Prepared, epochs: int, early_stopping: EarlyStopping | None
) -> tuple[_Running, TrainState]:
    """A phase at its start, or at its last checkpoint."""
    init_key, epochs_key = jax.random.split(phase.key)
    state = trainer.init(init_key, split.train, known)
    if phase.start is not None:
        state = dataclasses.replace(state, params={**state.params, "model": jax.tree.map(jnp.copy, phase.start)})
    best = jax.tree.map(jnp.copy, state.params["model"]) if early_stopping else {}
    run = _Running(phase, epochs_key, best)
    checkpoints = phase.checkpoints
    if checkpoints and checkpoints.latest is not None:
        history = checkpoints.history()
        if history["settings"] != phase.settings:
            raise UserError(f"{checkpoints.folder}: made by other settings; name another run folder or delete this one")
        run.records, run.seconds = history["records"], history["seconds"]
        if len(run.seconds) > epochs:
            raise UserError(f"{checkpoints.folder}: has {len(run.seconds)} epochs done, more than {epochs}")
        found = checkpoints.state({"train": state, "best": best})
        state, run.best = found["train"], found["best"]
    run.finished = is_finished(run.records, len(run.seconds), epochs, early_stopping)
    return run, state


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
