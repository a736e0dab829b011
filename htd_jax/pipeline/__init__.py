"""What a run is: one phase, or a teacher, a student and the student that it helps; in memory or in a folder."""

from htd_jax.pipeline.config import Config, Places, What, describe
from htd_jax.pipeline.experiment import Experiment, Fitted, distill, fit
from htd_jax.pipeline.run import RunResult, run
from htd_jax.pipeline.teachers import read_teacher

__all__ = [
    "Config",
    "Experiment",
    "Fitted",
    "Places",
    "RunResult",
    "What",
    "describe",
    "distill",
    "fit",
    "read_teacher",
    "run",
]
