"""The loop over a phase's epochs: training, evaluation, early stopping, checkpoints."""

import contextlib
import dataclasses
import math
import operator
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import chex
import jax
import jax.numpy as jnp

from htd_jax import processes
from htd_jax.data import Split
from htd_jax.ensembles import Stages
from htd_jax.errors import UserError, shown
from htd_jax.models import MakeModel
from htd_jax.training.checkpoint import BackgroundSaves, Checkpoints, to_host
from htd_jax.training.estimate import Estimate, estimate
from htd_jax.training.partitioning import Partitioning
from htd_jax.training.stages import Kept, begin_stages, choose_stages, observe
from htd_jax.training.step import AnyTeacher, Trainer, compile_epoch

# The time between two checkpoints: a kill loses at most this, an epoch, what the checkpoint before took to write, and
# the evaluation that is under way.
CHECKPOINT_SECONDS = 20

# Where the time of a phase goes, in seconds: `PhaseResult.spent`.
STAGES = ("preparation", "compilation", "epochs", "evaluation", "saving")

Record = dict[str, Any]
Evaluate = Callable[[MakeModel, Any], dict[str, dict[str, jax.Array]]]


@runtime_checkable
class CompilesFirst(Protocol):
    """An evaluation that can be compiled before it is called, see `htd_jax.evaluation.CompiledEvaluation`.

    Attributes:
      users: the number of users that it scores.
    """

    users: int

    def compile(self, make_model: MakeModel, variables: Any, /) -> Any: ...


class Progress(NamedTuple):
    """The argument of a callback, after every epoch.

    Attributes:
      epoch: the number of the epoch just finished, from 0.
      terms: the loss and its terms, averaged over the epoch's batches.
      seconds: the training time of this epoch.
      records: one record per evaluation so far.
      estimate: the time of the whole phase, as far as is known.
    """

    epoch: int
    terms: dict[str, float]
    seconds: float
    records: list[Record]
    estimate: Estimate


class EarlyStopping(NamedTuple):
    """Stops a phase, and restores its best epoch.

    Attributes:
      metric: the validation metric, higher is better, that selects the best epoch: `recall@10`.
      patience: the phase ends when this many epochs have passed since the best one.
    """

    metric: str
    patience: int


class PhaseResult(NamedTuple):
    """The end of a phase.

    Attributes:
      variables: the model's variables at the last epoch or, with early stopping, at the best.
      records: one record per evaluation.
      seconds: the training time of every epoch.
      chosen: the record of the epoch that `variables` are from.
      distiller: the method's own parameters at the last epoch.
      spent: the seconds of each of `STAGES`, over all processes that worked on the phase since its first checkpoint.
        `preparation` is what a method computes from its teacher before training. `saving` is the time that training
        stops for checkpoints; the last is not counted.
      stages: what the model ranked best on the way, if the phase keeps stages.
    """

    variables: Any
    records: list[Record]
    seconds: list[float]
    chosen: Record
    distiller: Any
    spent: dict[str, float]
    stages: Stages | None = None


class Diverged(UserError):
    """The loss of a phase is not finite."""


def run_phase(
    trainer: Trainer,
    evaluate: Evaluate,
    split: Split,
    teacher: AnyTeacher,
    key: chex.PRNGKey,
    *,
    epochs: int,
    eval_every: int,
    checkpoints: Checkpoints | None = None,
    settings: dict[str, Any] | None = None,
    early_stopping: EarlyStopping | None = None,
    evaluate_in_full: Evaluate | None = None,
    start: Any = None,
    partitioning: Partitioning | None = None,
    keep_stages: int = 0,
    on_epoch: Callable[[Progress], None] = lambda progress: None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> PhaseResult:
    """Trains for at most `epochs` epochs; evaluates at epoch 0, every `eval_every`-th epoch and the last.

    A record is `{"epoch", "terms", "valid", "test", "seconds", "seconds_evaluation", "peak_memory"}`: `seconds` is the
    training time of that epoch without compilation, `seconds_evaluation` that of the evaluation, `peak_memory` is in
    bytes, see `peak_memory`. If the trainer has a second model, a record also holds its `{"valid", "test"}` as
    `second_model`. With no epochs, the one record evaluates the initial model. With `evaluate_in_full`, records are
    `sampled`, and that of the model that is kept also holds the figures of all users, as `full`.

    A checkpoint is written every `CHECKPOINT_SECONDS`, while training continues on a copy of the state, and at the end.
    If `checkpoints` holds a step written under the same `settings`, the phase resumes there, with bit-identical
    results; a phase that ended after fewer epochs continues to `epochs`.

    Args:
      trainer: the computation.
      evaluate: `(make_model, variables) -> {"valid": metrics, "test": metrics}`.
      split: the data.
      teacher: a teacher in any form, see `Teacher.of`.
      key: the random key of the phase.
      epochs: the number of epochs, at least 0.
      eval_every: the number of epochs between evaluations.
      checkpoints: where checkpoints are written; none are if None.
      settings: the settings of the phase, as JSON.
      early_stopping: when to stop; None to train all epochs and keep the last.
      evaluate_in_full: evaluates the kept model on all users, if `evaluate` does so on a sample; at the end.
      start: the initial variables of the model; random if None.
      partitioning: that of the trainer, where arrays live on several devices; None on one. The result is in the memory
        of every process.
      keep_stages: the number of moments whose rankings are kept, see `htd_jax.training.stages`; 0 for none. Such a
        phase is not continued to more epochs.
      on_epoch: a callback, called after every epoch.
      on_stage: a callback, called with `preparing`, `compiling`, `training` and `evaluating all users` before each.

    Raises:
      UserError: if the checkpoints were written under other settings, or hold more epochs; or if the teacher lacks what
        the method needs.
      Diverged: if the loss is not finite.
    """
    spent = dict.fromkeys(STAGES, 0.0)
    on_stage("preparing")
    train = split.train
    keys = jax.random.split(key)
    if partitioning:
        train, keys = partitioning.copy((train, keys))
    init_key, epochs_key = keys
    with _timed(spent, "preparation"):
        guidance = jax.block_until_ready(trainer.guide(train, teacher))
    on_stage("compiling")
    with _timed(spent, "compilation"):
        state = jax.block_until_ready(trainer.init(init_key, train, guidance))
    if start is not None:
        if partitioning:
            start = partitioning.put_like(start, state.params["model"])
        state = dataclasses.replace(state, params={**state.params, "model": jax.tree.map(jnp.copy, start)})
    best: Any = jax.tree.map(jnp.copy, state.params["model"]) if early_stopping else {}
    kept: Kept | Stages | None = None
    if keep_stages:
        kept = begin_stages(state.params["model"], train, keep_stages, early_stopping=early_stopping is not None)
    saves = BackgroundSaves(checkpoints) if checkpoints else None
    records: list[Record] = []
    seconds: list[float] = []

    def held() -> dict[str, Any]:
        """Returns what checkpoints hold besides the training state."""
        stages = {} if kept is None else {"kept" if isinstance(kept, Kept) else "stages": kept}
        return {"best": best, **stages}

    if checkpoints and checkpoints.latest is not None:
        history = checkpoints.history()
        _check_settings(checkpoints, history["settings"], settings)
        records, seconds = history["records"], history["seconds"]
        earlier = history.get("spent", {"epochs": sum(seconds)})
        if is_finished(records, len(seconds), epochs, early_stopping):
            spent = dict.fromkeys(STAGES, 0.0)  # what a finished phase took is known
        spent = {name: earlier.get(name, 0.0) + x for name, x in spent.items()}
        if len(seconds) > epochs:
            raise UserError(
                f"{shown(checkpoints.folder)}: already trained for {len(seconds)} epochs, more than the requested "
                f"{epochs}; name another run folder"
            )
        if isinstance(kept, Kept) and history["finished"]:
            kept = jax.tree.map(lambda x: x[:, :keep_stages], kept.stages)
        restored = checkpoints.state({"train": state, **held()})
        state, best, kept = restored["train"], restored["best"], restored.get("stages", restored.get("kept"))

    def measure(evaluate: Evaluate, variables: Any, second: bool = True) -> Record:
        with _timed(spent, "compilation"):
            _compile(evaluate, trainer.make_model, variables)
        with _timed(spent, "evaluation"):
            record = evaluation_record(evaluate, trainer.make_model, variables)
        if trainer.second_model and second:
            with _timed(spent, "evaluation"):
                other = trainer.second_model(state.params["distiller"], guidance.context)
                found = evaluation_record(evaluate, *other)
            record["seconds_evaluation"] += found.pop("seconds_evaluation")
            record["second_model"] = found
        return {**record, "peak_memory": peak_memory()}

    def evaluated(epoch: int, terms: Mapping[str, float], seconds: float) -> Record:
        record = {"epoch": epoch, "terms": terms, **measure(evaluate, state.params["model"]), "seconds": seconds}
        return {**record, "sampled": True} if evaluate_in_full else record

    def keep(epoch: int) -> None:
        """Keeps the model of an evaluation if it is the best, and its stage."""
        nonlocal best, kept
        is_best = early_stopping is not None and choose(records, early_stopping)["epoch"] == epoch
        if is_best:
            best = jax.tree.map(jnp.copy, state.params["model"])
        if isinstance(kept, Kept):
            with _timed(spent, "evaluation"):
                variables, number = state.params["model"], len(records) - 1
                kept = jax.block_until_ready(
                    observe(kept, trainer.make_model, variables, train, number, is_best=is_best)
                )

    def complete() -> None:
        """Evaluates the model that is kept on all users, and chooses the stages."""
        nonlocal kept
        chosen = choose(records, early_stopping)
        if isinstance(kept, Kept):
            with _timed(spent, "evaluation"):
                kept = jax.block_until_ready(choose_stages(kept, trainer.make_model, train, records, chosen))
        if evaluate_in_full and "full" not in chosen:
            on_stage("evaluating all users")
            of_last = chosen is records[-1]  # the second model of an earlier epoch is not kept
            chosen["full"] = measure(evaluate_in_full, best or state.params["model"], second=of_last)

    def save(finished: bool) -> float:
        if checkpoints and saves:
            history: dict[str, Any] = {"settings": settings, "records": records, "seconds": seconds, "spent": spent}
            history["finished"] = finished
            with contextlib.nullcontext() if finished else _timed(spent, "saving"):
                if finished:  # the state is not donated any more
                    saves.wait()
                    checkpoints.save(len(seconds), {"train": state, **held()}, history)
                else:
                    saves.save(len(seconds), {"train": to_host(state), **held()}, history)
        return time.monotonic()

    def due() -> bool:
        return (saves is None or saves.idle) and time.monotonic() - saved > CHECKPOINT_SECONDS

    def expected() -> Estimate:
        scored = (of.users if isinstance(of, CompilesFirst) else 1 for of in (evaluate_in_full, evaluate))
        return estimate(
            seconds,
            [record.get("seconds_evaluation", 0.0) for record in records],
            epochs=epochs,
            eval_every=eval_every,
            full=operator.truediv(*scored) if evaluate_in_full else 0.0,
            before=spent["preparation"] + spent["compilation"],
            at_most=early_stopping is not None,
        )

    finished = is_finished(records, len(seconds), epochs, early_stopping)
    if not epochs and not records:
        records.append(evaluated(0, {}, 0.0))
        keep(0)
        complete()
        save(finished)
    elif finished:
        complete()
    else:
        for record in records:
            record.pop("full", None)  # another model may be kept now
        with _timed(spent, "compilation"):
            train_epoch = compile_epoch(trainer, state, epochs_key, train, guidance)
        on_stage("training")
    saved = time.monotonic()
    with saves or contextlib.nullcontext():
        while not finished:
            started = time.perf_counter()
            state, terms = jax.block_until_ready(train_epoch(state, epochs_key, train, guidance))
            seconds.append(time.perf_counter() - started)
            spent["epochs"] += seconds[-1]
            terms = {name: float(term) for name, term in terms.items()}
            epoch = len(seconds) - 1
            if not math.isfinite(terms["loss"]):
                raise Diverged(
                    f"the training diverged in epoch {epoch}: its loss is {terms['loss']}; lower `learning_rate`"
                )
            finished = epoch == epochs - 1
            if finished or epoch % eval_every == 0:
                records.append(evaluated(epoch, terms, seconds[-1]))
                keep(epoch)
                finished = is_finished(records, len(seconds), epochs, early_stopping)
            if finished:
                complete()
            if saves:
                saves.check()  # in every process: the others wait for the shards of one that failed
            if finished or processes.from_first("due", due):
                saved = save(finished)
            on_epoch(Progress(epoch, terms, seconds[-1], records, expected()))
    chosen = in_full(choose(records, early_stopping))
    variables, learned = best or state.params["model"], state.params["distiller"]
    if partitioning:
        variables, learned = (partitioning.whole_tables(tree, train) for tree in (variables, learned))
    stages = kept if isinstance(kept, Stages) else None
    return PhaseResult(variables, records, seconds, chosen, learned, spent, stages)


def evaluation_record(evaluate: Evaluate, make_model: MakeModel, variables: Any) -> Record:
    """Returns the metrics of a model as a record, and the seconds of their computation."""
    started = time.perf_counter()
    metrics = jax.tree.map(float, {**evaluate(make_model, variables)})
    return {**metrics, "seconds_evaluation": time.perf_counter() - started}


def in_full(record: Record) -> Record:
    """Returns a record with the figures of all users, if it has them in addition to those of a sample."""
    if "full" not in record:
        return record
    sampled = ("sampled", "full", "second_model")
    return {**{name: x for name, x in record.items() if name not in sampled}, **record["full"]}


def _compile(evaluate: Evaluate, make_model: MakeModel, variables: Any) -> None:
    """Compiles an evaluation, so that its time is not that of its first call."""
    if isinstance(evaluate, CompilesFirst):
        evaluate.compile(make_model, variables)


@contextlib.contextmanager
def _timed(spent: dict[str, float], stage: str) -> Iterator[None]:
    """Adds the seconds of a block to a stage."""
    started = time.perf_counter()
    yield
    spent[stage] += time.perf_counter() - started


def _check_settings(checkpoints: Checkpoints, found: Any, settings: dict[str, Any] | None) -> None:
    """Raises UserError if checkpoints were written under other settings."""
    if found == settings:
        return
    folder = shown(checkpoints.folder)
    was, now = (x.get("format") if isinstance(x, dict) else None for x in (found, settings))
    if was != now:
        raise UserError(
            f"{folder}: written by another version of htd-jax (format {was}, not {now}); resume it with that version, "
            "or name another run folder"
        )
    raise UserError(f"{folder}: made with other settings; name another run folder or delete this one")


def peak_memory() -> int | None:
    """Returns the most bytes in use so far: by this process's first device, or by it if that is the processor."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    with contextlib.suppress(ImportError):  # not POSIX
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most
    return None


def is_finished(records: list[Record], done: int, epochs: int, early_stopping: EarlyStopping | None) -> bool:
    """Returns whether all of `epochs` are done, or the last evaluation is `patience` epochs behind the best one."""
    if done >= epochs or not early_stopping or not records:
        return done >= epochs
    return bool(records[-1]["epoch"] - choose(records, early_stopping)["epoch"] >= early_stopping.patience)


def choose(records: list[Record], early_stopping: EarlyStopping | None) -> Record:
    """Returns the record of the epoch whose model is kept: the last, or with early stopping the first of the best."""
    if early_stopping is None:
        return records[-1]
    return best_record(records, early_stopping.metric)


def best_record(records: list[Record], metric: str) -> Record:
    """Returns the first of the records with the best value of a validation metric; the last if all are 0, as they are
    without a validation part."""
    best = max(records, key=lambda record: record["valid"][metric])
    return best if best["valid"][metric] else records[-1]
