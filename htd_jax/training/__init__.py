"""Training: one compiled epoch, the loop around it, and the checkpoints it leaves."""

from htd_jax.training.checkpoint import Checkpoints, copy_checkpoints
from htd_jax.training.loop import PhaseResult, Progress, run_phase
from htd_jax.training.step import Representations, Trainer, TrainState, adam, make_trainer, no_teacher

__all__ = [
    "Checkpoints",
    "PhaseResult",
    "Progress",
    "Representations",
    "TrainState",
    "Trainer",
    "adam",
    "copy_checkpoints",
    "make_trainer",
    "no_teacher",
    "run_phase",
]
