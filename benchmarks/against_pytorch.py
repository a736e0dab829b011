"""Compares the seconds per epoch of every phase with a plain PyTorch program that does the same work.

    python benchmarks/against_pytorch.py --data-dir DIR --baseline PROGRAM --baseline-python PYTHON

PROGRAM takes `--data DIR --phases NAME ...` and prints one line of JSON, seconds by phase (teacher, student, ftd,
htd, eval); PYTHON is an interpreter that can import torch. Both sides run CiteULike, 200 -> 20 dimensions, batches of
1,024, on random teacher tables. Each round runs every phase of one and then of the other, so that drifts of the
machine's speed affect both; reported are medians over rounds, and the median of the rounds' ratios.

Without --baseline, only this program is measured.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
from pathlib import Path

import jax
import tyro
from measure import Phases
from rich.console import Console
from rich.table import Table

from htd_jax import data

# The measurements here -> the baseline's phase that does the same work.
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
    """Folder of the citeulike files; by default they are searched for as by the main command."""
    baseline: Path | None = None
    """The PyTorch program."""
    baseline_python: str = sys.executable
    """An interpreter that can import torch."""
    baseline_device: str | None = None
    """Passed to the PyTorch program as `--device`."""
    rounds: int = 3
    """Number of rounds."""
    output: Path | None = None
    """JSON file to write every figure to."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    split = data.load("citeulike", options.data_dir)
    phases = Phases(split)
    ours, theirs = [], []
    for number in range(options.rounds):
        ours.append(phases.seconds())
        if options.baseline:
            theirs.append(measure_pytorch(options))
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    report(ours, theirs)
    if options.output:
        options.output.write_text(json.dumps({"ours": ours, "baseline": theirs}, indent=2) + "\n")


def measure_pytorch(options: "Options") -> dict[str, float]:
    """Runs the baseline, and returns its seconds by its names of the phases."""
    phases = list(dict.fromkeys(SAME_WORK.values()))
    command = [options.baseline_python, options.baseline, "--data", data_folder(options), "--phases", *phases]
    command += ["--device", options.baseline_device] if options.baseline_device else []
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


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
