"""Measures a GPU or a TPU in a few minutes, and prints Markdown.

    python benchmarks/on_device.py --data-dir DIR --baseline PROGRAM --baseline-python PYTHON

It measures an epoch of every phase and an evaluation, on CiteULike with the default settings, and compares each with a
plain PyTorch program that does the same work on the same device (PROGRAM: see `against_pytorch.py`) and with the limit
of the device's measured rates (`roofline.py`); the time to trace and to compile every phase; and the whole job,
`--dataset citeulike --method htd`, in a new process with an empty compilation cache, with its recall.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import tyro
from against_pytorch import SAME_WORK, data_folder, measure_pytorch
from measure import Phases
from roofline import copy_rate, counts, product_rate

from htd_jax import data

MAIN = Path(__file__).resolve().parent.parent / "experiments" / "main.py"


@dataclasses.dataclass
class Options:
    data_dir: Path | None = None
    """Folder of the citeulike files; by default they are searched for as by the main command."""
    baseline: Path | None = None
    """The PyTorch program."""
    baseline_python: str = sys.executable
    """An interpreter that can import torch."""
    baseline_device: str | None = "cuda"
    """Passed to the PyTorch program as `--device`."""
    job: bool = True
    """Runs the whole job too."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), JAX {jax.__version__}\n", flush=True)
    whole_job(options) if options.job else None  # first, while this process uses little of the device's memory
    split = data.load("citeulike", options.data_dir)
    phases = Phases(split)
    seconds = phases.seconds()
    theirs = measure_pytorch(options) if options.baseline else {}
    report(seconds, theirs, counts(split.train), product_rate(4096), copy_rate(2**28))
    print("\n| compiled | trace, seconds | compile, seconds |\n|---|---|---|")
    for name, epoch in phases.epochs.items():
        print(f"| {name} | {epoch.trace_seconds:.1f} | {epoch.compile_seconds:.1f} |")


def report(
    seconds: dict[str, float],
    theirs: dict[str, float],
    limits: dict[str, tuple[float, float]],
    product: float,
    copy: float,
) -> None:
    print(f"products {product / 1e12:.1f} TFLOP/s in float32, memory {copy / 1e12:.2f} TB/s\n")
    print("| | ms | PyTorch, ms | ratio | GFLOP | GB | limit, ms | share |\n|---|---|---|---|---|---|---|---|")
    for name, found in seconds.items():
        cells = [f"{1e3 * found:.1f}"]
        other = theirs.get(SAME_WORK[name])
        cells += [f"{1e3 * other:.0f}", f"{other / found:.1f}"] if other else ["", ""]
        if name in limits:
            flops, moved = limits[name]
            limit = max(flops / product, moved / copy)
            cells += [f"{flops / 1e9:.1f}", f"{moved / 1e9:.2f}", f"{1e3 * limit:.1f}", f"{limit / found:.0%}"]
        else:
            cells += [""] * 4
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def whole_job(options: Options) -> None:
    """Times a run from a cold start: imports, compilation, three phases, evaluations, checkpoints, the picture."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, MAIN, "--dataset", "citeulike", "--method", "htd", "--run", Path(folder) / "run"]
        command += ["--data-dir", data_folder(options)]
        nothing = {"JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        start = time.perf_counter()
        subprocess.run([str(part) for part in command], check=True, env={**os.environ, **nothing}, stdout=sys.stderr)
        seconds = time.perf_counter() - start
        phases = json.loads((Path(folder) / "run" / "results.json").read_text())["phases"]
    print(f"the whole job, from a cold start: {seconds:.1f} s\n")
    print("| phase | seconds in epochs | ms an epoch | test recall@50 |\n|---|---|---|---|")
    for name, entry in phases.items():
        each = entry["seconds_per_epoch"]
        recall = entry["final"]["test"]["recall@50"]
        print(f"| {name} | {each * entry['epochs']:.1f} | {1e3 * each:.1f} | {recall:.4f} |")
    print(flush=True)


if __name__ == "__main__":
    main()
