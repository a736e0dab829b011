"""Runs: the resolution of requests, the training of phases, run folders, and the Python API."""

from htd_jax.pipeline.api import choose, distill, fit
from htd_jax.pipeline.experiment import Experiment, hash_of, numerics
from htd_jax.pipeline.fitted import Fitted
from htd_jax.pipeline.progress import Callback, MakeCallback, no_callback, progress_line, silent
from htd_jax.pipeline.request import Devices, Paths, RunRequest, RunSettings, RunSpec, resolve_run, run_name
from htd_jax.pipeline.run import RunResult, gap_closed, prepare_run, run, run_identity, train_phases
from htd_jax.pipeline.run_folder import RunFolder, claimed, flat, load, open_phases, open_run, write_json
from htd_jax.pipeline.spec import NO_METHOD, STUDENT, TEACHER, PhaseRequest, PhaseSpec, label, resolve
from htd_jax.pipeline.teachers import open_teacher, read_teacher
from htd_jax.pipeline.trials import Trial, Trials

__all__ = [
    "NO_METHOD",
    "STUDENT",
    "TEACHER",
    "Callback",
    "Devices",
    "Experiment",
    "Fitted",
    "MakeCallback",
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
    "choose",
    "claimed",
    "distill",
    "fit",
    "flat",
    "gap_closed",
    "hash_of",
    "label",
    "load",
    "no_callback",
    "numerics",
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
    "silent",
    "train_phases",
    "write_json",
]
