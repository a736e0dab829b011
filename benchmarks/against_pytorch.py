"""Seconds an epoch of every phase, against a plain PyTorch program doing the same work, measured in turn.

    python benchmarks/against_pytorch.py --data-dir DIR --baseline PROGRAM --baseline-python PYTHON

PROGRAM takes `--data DIR --phases NAME ...` and prints one line of JSON, seconds by phase (teacher, student, ftd,
htd, eval); PYTHON is an interpreter that can import torch. Both sides run CiteULike, 200 -> 20 dimensions, batches of
1,024, on random teacher tables. Each round runs every phase of one and then of the other, so that a machine whose
speed drifts is compared with itself; quoted are medians over rounds, and the median of the rounds' ratios.

Without --baseline, only this program's side is measured.
"""

import dataclasses
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import tyro
from measure import BATCH, COLD, EPOCHS, HTD_EPOCHS, STUDENT_DIM, TEACHER_DIM, WEIGHT, Epoch, make_bpr, random_teacher
from rich.console import Console
from rich.table import Table

from htd_jax import data, distillers
from htd_jax.evaluation import make_evaluator
from htd_jax.training import no_teacher

# What is measured here -> the baseline's phase that does the same work.
SAME_WORK = {
    "teacher epoch": "teacher",
    "student epoch": "student",
    "FTD epoch": "ftd",
    "HTD epoch, T = 1": "htd",
    "HTD epoch, T < 0.01": "htd",
    "HTD epoch, mean of 101": "htd",
    "evaluation, valid + test": "eval",
}


@dataclasses.dataclass
class Options:
    data_dir: Path | None = None
    """Folder of the citeulike files; else they are found as the main command finds them."""
    baseline: Path | None = None
    """The PyTorch program."""
    baseline_python: str = sys.executable
    """An interpreter that can import torch."""
    baseline_device: str | None = None
    """Passed on to the PyTorch program as `--device`."""
    rounds: int = 3
    """How often each side runs."""
    output: Path | None = None
    """Where to write every figure, as JSON."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    split = data.load("citeulike", options.data_dir)
    measure = prepare(split)
    ours, theirs = [], []
    for number in range(options.rounds):
        ours.append(measure())
        if options.baseline:
            phases = list(dict.fromkeys(SAME_WORK.values()))
            command = [options.baseline_python, options.baseline, "--data", data_folder(options), "--phases", *phases]
            command += ["--device", options.baseline_device] if options.baseline_device else []
            done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
            theirs.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    report(ours, theirs)
    if options.output:
        options.output.write_text(json.dumps({"ours": ours, "baseline": theirs}, indent=2) + "\n")


def prepare(split: data.Split) -> Callable[[], dict[str, float]]:
    """Compiles everything; returns a function that measures every phase once."""
    train = split.train
    teacher = random_teacher(train, TEACHER_DIM)
    evaluate = functools.partial(make_evaluator(split), make_bpr(TEACHER_DIM))
    variables = {"params": teacher._asdict()}
    jax.block_until_ready(evaluate(variables))

    none, scale = distillers.none, distillers.scale
    teacher_epoch = Epoch(train, none(), TEACHER_DIM, no_teacher(train), BATCH)
    student_epoch = Epoch(train, none(), STUDENT_DIM, no_teacher(train), BATCH)
    ftd_epoch = Epoch(train, scale(distillers.ftd(), WEIGHT), STUDENT_DIM, teacher, BATCH)
    htd_epoch = Epoch(train, scale(distillers.htd(epochs=EPOCHS), WEIGHT), STUDENT_DIM, teacher, BATCH)
    median = lambda epoch: statistics.median(epoch.seconds(range(1, 6)))

    def measure() -> dict[str, float]:
        htd = htd_epoch.seconds(HTD_EPOCHS)
        start = time.perf_counter()
        jax.block_until_ready(evaluate(variables))
        evaluation = time.perf_counter() - start
        return {
            "teacher epoch": median(teacher_epoch),
            "student epoch": median(student_epoch),
            "FTD epoch": median(ftd_epoch),
            "HTD epoch, T = 1": htd[0],
            "HTD epoch, T < 0.01": statistics.median(htd[COLD:]),
            "HTD epoch, mean of 101": float(np.interp(np.arange(EPOCHS), HTD_EPOCHS, htd).mean()),
            "evaluation, valid + test": evaluation,
        }

    return measure


def data_folder(options: Options) -> Path:
    return data.find_citeulike(options.data_dir)[0].parent


def report(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    table = Table(
        title=f"{jax.devices()[0].device_kind}, JAX {jax.__version__}: seconds, medians of {len(ours)} rounds"
    )
    for name in ("", "this program", "PyTorch", "ratio", "ratio, least to most"):
        table.add_column(name, justify="left" if not name else "right")
    for name, phase in SAME_WORK.items():
        row = [name, f"{statistics.median(figures[name] for figures in ours):.3f}"]
        if theirs:
            ratios = sorted(b[phase] / a[name] for a, b in zip(ours, theirs, strict=True))
            row += [f"{statistics.median(b[phase] for b in theirs):.2f}", f"{statistics.median(ratios):.1f}"]
            row += [f"{ratios[0]:.1f} to {ratios[-1]:.1f}"]
        table.add_row(*row)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
