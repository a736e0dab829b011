"""What a run is: one phase, or a teacher, a student and the student that it helps; in memory or in a folder."""

from htd_jax.pipeline.config import NO_METHOD, Config, Places, What, describe
from htd_jax.pipeline.experiment import Experiment, Fitted, distill, fit, hash_of
from htd_jax.pipeline.run import (
    RunResult,
    claimed,
    flat,
    is_made_by,
    load_data,
    plain_phases,
    prepare,
    run,
    write_json,
)
from htd_jax.pipeline.seeds import distill_seeds, fit_seeds
from htd_jax.pipeline.teachers import open_teacher, read_teacher
from htd_jax.pipeline.watching import Watch, Watcher, unwatched

__all__ = [
    "NO_METHOD",
    "Config",
    "Experiment",
    "Fitted",
    "Places",
    "RunResult",
    "Watch",
    "Watcher",
    "What",
    "claimed",
    "describe",
    "distill",
    "distill_seeds",
    "fit",
    "fit_seeds",
    "flat",
    "hash_of",
    "is_made_by",
    "load_data",
    "open_teacher",
    "plain_phases",
    "prepare",
    "read_teacher",
    "run",
    "unwatched",
    "write_json",
]
