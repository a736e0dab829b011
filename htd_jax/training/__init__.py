"""Training: the compiled epoch, the loop around it, and its checkpoints."""

from htd_jax.training.checkpoint import Checkpoints, copy_checkpoints, host_device
from htd_jax.training.estimate import Estimate, duration, estimate
from htd_jax.training.loop import (
    Diverged,
    EarlyStopping,
    PhaseResult,
    Progress,
    best_record,
    choose,
    evaluation_record,
    in_full,
    is_finished,
    run_phase,
)
from htd_jax.training.objectives import Objective, objective_of, own, sampled_softmax, softmax
from htd_jax.training.optimizers import RowOptimizer, adam, cosine, lazy_adam, optimizer_of
from htd_jax.training.partitioning import Partitioning, find_partitioning, make_partitioning, trim_tables
from htd_jax.training.settings import Training, TrainingSpec, resolve_training
from htd_jax.training.solve import make_solving_trainer
from htd_jax.training.step import (
    Guidance,
    Trainer,
    TrainState,
    compile_epoch,
    make_trainer,
    no_teacher,
)

__all__ = [
    "Checkpoints",
    "Diverged",
    "EarlyStopping",
    "Estimate",
    "Guidance",
    "Objective",
    "Partitioning",
    "PhaseResult",
    "Progress",
    "RowOptimizer",
    "TrainState",
    "Trainer",
    "Training",
    "TrainingSpec",
    "adam",
    "best_record",
    "choose",
    "compile_epoch",
    "copy_checkpoints",
    "cosine",
    "duration",
    "estimate",
    "evaluation_record",
    "find_partitioning",
    "host_device",
    "in_full",
    "is_finished",
    "lazy_adam",
    "make_partitioning",
    "make_solving_trainer",
    "make_trainer",
    "no_teacher",
    "objective_of",
    "optimizer_of",
    "own",
    "resolve_training",
    "run_phase",
    "sampled_softmax",
    "softmax",
    "trim_tables",
]
