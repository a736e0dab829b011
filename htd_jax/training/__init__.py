"""Training: one compiled epoch, the loop around it, and the checkpoints it leaves."""

from htd_jax.training.checkpoint import Checkpoints, copy_checkpoints
from htd_jax.training.loop import EarlyStopping, PhaseResult, Progress, best_record, choose, run_phase
from htd_jax.training.step import (
    Representations,
    Trainer,
    TrainState,
    adam,
    make_trainer,
    no_teacher,
    represent_all,
)

__all__ = [
    "Checkpoints",
    "EarlyStopping",
    "PhaseResult",
    "Progress",
    "Representations",
    "TrainState",
    "Trainer",
    "adam",
    "best_record",
    "choose",
    "copy_checkpoints",
    "make_trainer",
    "no_teacher",
    "represent_all",
    "run_phase",
]
