"""An epoch on several devices: seconds, memory, and the bytes that devices exchange.

    JAX_NUM_CPU_DEVICES=8 python benchmarks/devices.py [--meshes 1 8] [--users 1000000] [--items 1000000]
                          [--pairs 20] [--methods none ftd htd softmax best] [--batch-size 8192]

The data are random: so many interactions per user. The teacher has 200 random dimensions, or random lists of 300 items
for `best`; the student has 20. `softmax` is the plain student under a softmax over sampled items. HTD is measured in
its 31st epoch, when few experts are left. Each cell runs in a separate process, and shows the seconds of the first
epoch without compilation, the peak memory of the process with all of its devices, the bytes of the epoch's arguments
per device, and the bytes of the collectives of a step, read from the compiled program. The mesh 1 is one device.
"""

import dataclasses
import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a checkout without installation

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from htd_jax.data import Dataset, Interactions, Split
from htd_jax.models import Representations
from htd_jax.pipeline import Experiment, PhaseRequest, resolve
from htd_jax.teacher import Lists, Teacher
from htd_jax.training import Training, make_partitioning

TEACHER_DIM, STUDENT_DIM, LISTED = 200, 20, 300

# The epoch in which HTD is measured.
COLD = 30

BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "s8": 1, "u8": 1}
KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


@dataclasses.dataclass
class Options:
    meshes: tuple[str, ...] = ("1", "8")
    """Meshes to measure; 1 is one device."""
    methods: tuple[str, ...] = ("none", "ftd", "htd", "softmax", "best")
    """Methods of a BPR student; none is the plain one."""
    users: int = 1_000_000
    """Number of users."""
    items: int = 1_000_000
    """Number of items."""
    pairs: int = 20
    """Interactions per user."""
    batch_size: int = 8192
    """Triples per step, or users for best."""
    case: tuple[str, str] | None = None
    """A method and a mesh, for which the program starts itself."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.case:
        print(json.dumps(measure(options, *options.case)))
        return
    print(f"| | mesh | seconds | memory, MiB | arguments per device, MiB | exchanged per step, KiB |\n|{'---|' * 6}")
    for method in options.methods:
        for mesh in options.meshes:
            command = [sys.executable, __file__, *sys.argv[1:], "--case", method, mesh]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                print(f"| {method} | {mesh} | failed ({done.returncode}) | | | |", flush=True)
                continue
            cell = json.loads(done.stdout.splitlines()[-1])
            sizes = f"{cell['peak'] / 2**20:,.0f} | {cell['arguments'] / 2**20:,.1f} | {cell['moved'] / 2**10:,.0f}"
            print(f"| {method} | {mesh} | {cell['seconds']:.1f} | {sizes} |", flush=True)


def measure(options: Options, method: str, mesh: str) -> dict[str, float]:
    """Returns the figures of one cell."""
    rng = np.random.default_rng(0)
    users, items = options.users, options.items
    pairs = np.repeat(np.arange(users), options.pairs), rng.integers(0, items, users * options.pairs)
    few = [(pairs[0][i::1000][:100], pairs[1][i::1000][:100]) for i in range(2)]
    split = Split(*(Interactions.from_pairs(*part, users, items) for part in (pairs, *few)))
    del pairs
    training = Training(batch_size=options.batch_size, loss="softmax" if method == "softmax" else None)
    named = "none" if method == "softmax" else method
    spec = resolve(PhaseRequest(model="bpr", dim=STUDENT_DIM, method=named, training=training), split)
    partitioning = make_partitioning(mesh) if mesh != "1" else None
    trainer = Experiment(Dataset.from_split(split), spec.evaluation, partitioning).trainer(spec)
    teacher: Any = None
    if method == "best":
        first = rng.integers(0, items, (users, 1), dtype=np.int32)
        teacher = Teacher(lists=Lists((first + 37 * np.arange(LISTED, dtype=np.int32)) % np.int32(items)))
    elif named != "none":
        sample = lambda size: rng.standard_normal((size, TEACHER_DIM), dtype=np.float32)
        teacher = Teacher.of(Representations(sample(users), sample(items)))
    keys = jax.random.split(jax.random.key(0))
    train = split.train
    if partitioning:
        train, keys = partitioning.copy((train, keys))
    guidance = jax.block_until_ready(trainer.guide(train, teacher))
    del teacher
    state = trainer.init(keys[0], train, guidance)
    if method == "htd":
        state = state.replace(epoch=state.epoch + jnp.int32(COLD))
    program = trainer.epoch.lower(state, keys[1], train, guidance).compile()
    begun = time.perf_counter()
    jax.block_until_ready(program(state, keys[1], train, guidance))
    return {
        "seconds": time.perf_counter() - begun,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "arguments": program.memory_analysis().argument_size_in_bytes,
        "moved": sum(map(moved, program.as_text().splitlines())),
    }


def moved(line: str) -> int:
    """Returns the bytes of the result of a collective operation of a step; 0 for any other line."""
    match = re.search(rf"= (.*?) ({KINDS})(-start)?\(", line)
    if not match or "shard_map/while" not in line:
        return 0
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
    return sum(BYTES[kind] * int(np.prod([int(size) for size in shape.split(",") if size])) for kind, shape in arrays)


if __name__ == "__main__":
    main()
