"""Compares each phase with the machine's limits, on CiteULike with the default settings.

    python benchmarks/roofline.py --data-dir DIR

Two rates are measured: a product of large matrices, and a pass over memory too large for any cache. The operations
and bytes that an epoch needs, however it is written, are counted by hand: an entity's own expert (all K at T = 1), each
pair of one group once, the optimiser's state read and written once and the gradient written and read. An epoch takes at
least the longer of the two times; the share is that limit over the measured seconds. The last columns are XLA's count
for its program, in which a loop of unknown length counts once.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from measure import BATCH, GROUPS, STUDENT_DIM, TEACHER_DIM, Phases

from htd_jax import data
from htd_jax.data import Interactions, distinct, shuffle, unseen_items
from htd_jax.ops.products import dot

HIDDEN = (TEACHER_DIM + STUDENT_DIM) // 2
EXPERT = STUDENT_DIM * HIDDEN + HIDDEN * TEACHER_DIM  # multiplications of one expert for one row


@dataclasses.dataclass
class Options:
    data_dir: Path | None = None
    """Folder of the citeulike files; by default they are searched for as by the main command."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    split = data.load("citeulike", options.data_dir)
    product, copy = product_rate(), copy_rate()
    phases = Phases(split)
    seconds = phases.seconds()
    print(f"{jax.devices()[0].device_kind}: products {product / 1e9:.0f} GFLOP/s, memory {copy / 1e9:.1f} GB/s\n")
    print("| | seconds | GFLOP | GB | limit, seconds | share | XLA: GFLOP | GB |\n|---|---|---|---|---|---|---|---|")
    for name, (flops, moved) in counts(split.train).items():
        limit = max(flops / product, moved / copy)
        epoch = phases.epochs.get(name.split()[0])
        cost = epoch.compiled.cost_analysis() if epoch else {}
        print(
            f"| {name} | {seconds[name]:.3f} | {flops / 1e9:.1f} | {moved / 1e9:.1f} | {limit:.3f} |"
            f" {limit / seconds[name]:.0%} | {cost.get('flops', 0) / 1e9:.1f} |"
            f" {cost.get('bytes accessed', 0) / 1e9:.1f} |",
            flush=True,
        )


def counts(train: Interactions) -> dict[str, tuple[float, float]]:
    """Returns the operations and bytes that an epoch of each phase, and an evaluation, need at least."""
    steps = -(-len(train) // BATCH)
    users, items = entities_per_batch(train)
    n, entities = users + items, train.num_users + train.num_items
    experts = 2 * GROUPS * (EXPERT + HIDDEN + TEACHER_DIM) + 2 * GROUPS * (TEACHER_DIM + 1)
    adam = lambda parameters: 8 * 4 * parameters
    gathered = 4 * n * TEACHER_DIM

    ftd = 2 * n * (TEACHER_DIM**2 / 2 + 2 * TEACHER_DIM * STUDENT_DIM + 1.5 * STUDENT_DIM**2)  # T'T is symmetric
    pairs = (users**2 + items**2) / GROUPS / 2  # groups of equal size, as on a random teacher
    topology = 2 * pairs * (TEACHER_DIM + 3 * STUDENT_DIM)
    topology += 2 * n * (2 * GROUPS + 1) * (TEACHER_DIM + 2 * STUDENT_DIM)
    gate = 2 * 2 * n * TEACHER_DIM * GROUPS
    assignment = 3 * 2 * n * EXPERT

    student = adam(entities * STUDENT_DIM)
    htd = topology + gate
    htd_moved = student + adam(experts) + gathered
    per_step = {
        "teacher epoch": (0, adam(entities * TEACHER_DIM)),
        "student epoch": (0, student),
        "FTD epoch": (ftd, student + gathered),
        "HTD epoch, T = 1": (htd + GROUPS * assignment, htd_moved),
        "HTD epoch, T < 0.01": (htd + assignment, htd_moved),
    }
    scores = train.num_users * train.num_items
    per_epoch = {name: (float(steps * flops), float(steps * moved)) for name, (flops, moved) in per_step.items()}
    return per_epoch | {"evaluation, valid + test": (2.0 * scores * TEACHER_DIM, 4.0 * entities * TEACHER_DIM)}


def entities_per_batch(train: Interactions) -> tuple[float, float]:
    """Returns the numbers of distinct users and items per batch, averaged over ten batches."""
    negatives, order = unseen_items(jax.random.key(0), train), shuffle(jax.random.key(1), len(train))
    count = lambda ids, size: int(distinct(ids, jnp.ones(len(ids), bool), size)[1].sum())
    users, items = [], []
    for rows in order[: 10 * BATCH].reshape(10, BATCH):
        users.append(count(train.users[rows], train.num_users))
        items.append(count(jnp.concatenate([train.items[rows], negatives[rows]]), train.num_items))
    return float(np.mean(users)), float(np.mean(items))


def product_rate(size: int = 2048) -> float:
    """Returns operations per second of a product of two square matrices in float32."""
    x = jax.random.normal(jax.random.key(0), (size, size))
    multiply = jax.jit(lambda x: dot(x, x))
    return 2 * size**3 / median_seconds(lambda: multiply(x))


def copy_rate(size: int = 2**26, times: int = 10) -> float:
    """Returns bytes read and written per second by a pass over `size` floats in place."""
    scale = jax.jit(lambda x: jax.lax.fori_loop(0, times, lambda i, x: 1.0001 * x, x), donate_argnums=0)
    buffer = [jnp.ones(size)]

    def run():
        buffer[0] = scale(buffer[0])
        return buffer[0]

    return 2 * 4 * size * times / median_seconds(run)


def median_seconds(run: Callable[[], object], times: int = 7) -> float:
    jax.block_until_ready(run())
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
