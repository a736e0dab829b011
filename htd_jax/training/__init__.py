"""Training: one compiled epoch, the loop around it, and the checkpoints it leaves."""

from htd_jax.distillers import Representations
from htd_jax.training.checkpoint import Checkpoints, copy_checkpoints
from htd_jax.training.loop import (
    Diverged,
    EarlyStopping,
    Phase,
    PhaseResult,
    Progress,
    best_record,
    choose,
    is_finished,
    run_phase,
    run_phases,
)
from htd_jax.training.many import together
from htd_jax.training.objectives import Objective, objective_of, own, sampled_softmax, softmax
from htd_jax.training.settings import Training
from htd_jax.training.solve import make_solving_trainer
from htd_jax.training.step import (
    Prepared,
    Trainer,
    TrainState,
    adam,
    cosine,
    make_trainer,
    no_teacher,
    represent_all,
)
from htd_jax.training.trained import Trained, read_trained

__all__ = [
    "Checkpoints",
    "Diverged",
    "EarlyStopping",
    "Objective",
    "Phase",
    "PhaseResult",
    "Prepared",
    "Progress",
    "Representations",
    "TrainState",
    "Trained",
    "Trainer",
    "Training",
    "adam",
    "best_record",
    "choose",
    "copy_checkpoints",
    "cosine",
    "is_finished",
    "make_solving_trainer",
    "make_trainer",
    "no_teacher",
    "objective_of",
    "own",
    "read_trained",
    "represent_all",
    "run_phase",
    "run_phases",
    "sampled_softmax",
    "softmax",
    "together",
]
