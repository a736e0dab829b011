"""Runs: the resolution of requests, the training of phases, run folders, and the Python API."""

from htd_jax.pipeline.api import choose, distill, fit
from htd_jax.pipeline.experiment import Experiment, hash_of, numerics
from htd_jax.pipeline.fitted import Fitted, evaluation_of
from htd_jax.pipeline.measure import Measured, evaluate
from htd_jax.pipeline.progress import Callback, MakeCallback, no_callback, progress_line, silent
from htd_jax.pipeline.request import Devices, Paths, RunRequest, RunSettings, RunSpec, resolve_run, run_name
from htd_jax.pipeline.run import RunResult, gap_closed, prepare_run, run, run_identity, train_phases
from htd_jax.pipeline.run_folder import RunFolder, claimed, flat, load, open_phases, open_run, write_json
from htd_jax.pipeline.spec import NO_METHOD, STUDENT, TEACHER, PhaseRequest, PhaseSpec, label, resolve
from htd_jax.pipeline.teachers import open_given, open_teacher, read_teacher
from htd_jax.pipeline.trials import Trial, Trials
from htd_jax.pipeline.update import (
    Updated,
    default_method,
    fitted_of,
    grown,
    run_update,
    training_of,
    update,
    update_run,
)

__all__ = [
    "NO_METHOD",
    "STUDENT",
    "TEACHER",
    "Callback",
    "Devices",
    "Experiment",
    "Fitted",
    "MakeCallback",
    "Measured",
    "Paths",
    "PhaseRequest",
    "PhaseSpec",
    "RunFolder",
    "RunRequest",
    "RunResult",
    "RunSettings",
    "RunSpec",
    "Trial",
    "Trials",
    "Updated",
    "choose",
    "claimed",
    "default_method",
    "distill",
    "evaluate",
    "evaluation_of",
    "fit",
    "fitted_of",
    "flat",
    "gap_closed",
    "grown",
    "hash_of",
    "label",
    "load",
    "no_callback",
    "numerics",
    "open_given",
    "open_phases",
    "open_run",
    "open_teacher",
    "prepare_run",
    "progress_line",
    "read_teacher",
    "resolve",
    "resolve_run",
    "run",
    "run_identity",
    "run_name",
    "run_update",
    "silent",
    "train_phases",
    "training_of",
    "update",
    "update_run",
    "write_json",
]
