"""What a run is: one phase, or a teacher, a student and the student that it helps; in memory or in a folder."""

from htd_jax.pipeline.config import NO_METHOD, Config, Places, What, describe
from htd_jax.pipeline.experiment import Experiment, Fitted, distill, fit, hash_of
from htd_jax.pipeline.run import RunResult, claimed, is_made_by, load_data, run, write_json
from htd_jax.pipeline.seeds import distill_seeds, fit_seeds
from htd_jax.pipeline.teachers import read_teacher

__all__ = [
    "NO_METHOD",
    "Config",
    "Experiment",
    "Fitted",
    "Places",
    "RunResult",
    "What",
    "claimed",
    "describe",
    "distill",
    "distill_seeds",
    "fit",
    "fit_seeds",
    "hash_of",
    "is_made_by",
    "load_data",
    "read_teacher",
    "run",
    "write_json",
]
