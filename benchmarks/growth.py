"""How time and memory grow with the data; and with the batch, the groups and the dimensions.

    python benchmarks/growth.py [--tables data entities groups dims] [--users 5000 50000 200000]
                                [--methods none htd ...]
                                [--optimizer adam] [--save growth.json] [--before before.json --draw docs/growth.png]

The table `data` grows data as data grow: users, a fifth as many items, and 20 interactions per user, for every model
and method with the settings that the command would choose; student of 20 dimensions, teacher of 64 random ones. It
shows the seconds of an epoch and the process's peak memory, and the exponent by which seconds grow with the data from
the second size to the last; then the seconds of the preparation, which a training does once. HTD and DE are measured
in their tenth epoch, when few experts are left. `--optimizer adam` measures Adam over whole tables.

The other tables hold the data and vary a step of 200 -> 20 dimensions, 30 groups and a batch of 1,024 triples, with HTD
at its lowest temperature: milliseconds per step (the median epoch of a few steps, over its steps), and the peak memory
with, in brackets, the part that XLA allocates for the epoch's temporaries. Every row runs in a separate process.
"""

import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from measure import BATCH, EPOCHS, GROUPS, STUDENT_DIM, TEACHER_DIM, WEIGHT, Epoch, random_interactions, random_teacher

from htd_jax import distillers
from htd_jax.data import Dataset, Interactions, Split
from htd_jax.distillers import HTD
from htd_jax.pipeline import Experiment, PhaseRequest, resolve
from htd_jax.teacher import Teacher
from htd_jax.training import Training, no_teacher

STEPS = 8

# Of the table `data`.
PAIRS, ITEM_SHARE, WIDTH, WIDE = 20, 5, 20, 64

# An epoch of more than so many seconds is measured once, without a warm-up.
LONG = 15

METHODS = {
    "ftd": lambda case: distillers.ftd(),
    "htd, all pairs": lambda case: distillers.htd(HTD(groups=case.groups, pairs="all")),
    "htd, positive pairs": lambda case: distillers.htd(HTD(groups=case.groups)),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of a table with fixed data."""

    method: str
    entities: int = 3 * BATCH
    users: int = 20_000
    groups: int = GROUPS
    teacher_dim: int = TEACHER_DIM
    student_dim: int = STUDENT_DIM


@dataclasses.dataclass(frozen=True)
class Data:
    """A cell of the table of growing data: a model, or a method of a BPR student."""

    users: int
    name: str
    optimizer: str | None = None


MODELS = ("bpr", "neumf", "lightgcn", "ials")
TRAINED = [name for name in distillers.METHODS if distillers.METHODS[name].trains and name != "pseudo"]
TABLES = {
    "entities": [{"entities": 1024 * 4**i, "users": 100_000} for i in range(4)],
    "groups": [{"groups": groups} for groups in (5, 30, 100, 300)],
    "dims": [{"teacher_dim": 10 * dim, "student_dim": dim} for dim in (10, 20, 40, 80)],
}


@dataclasses.dataclass
class Options:
    tables: tuple[str, ...] = ("data", *TABLES)
    """Tables to measure."""
    users: tuple[int, ...] = (5_000, 50_000, 200_000)
    """Sizes of the table `data`."""
    methods: tuple[str, ...] = (*MODELS, *TRAINED)
    """Models and methods of the table `data`."""
    optimizer: str | None = None
    """Optimiser of the table `data`; by default that of the command."""
    save: Path | None = None
    """File to which the figures of `data` are written."""
    before: Path | None = None
    """File of earlier figures, which the picture shows too."""
    draw: Path | None = None
    """Picture of the figures of `data`."""
    case: str | None = None
    """One row as JSON, for which the program starts itself."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.case:
        asked = json.loads(options.case)
        print(json.dumps(measure_data(Data(**asked)) if "name" in asked else measure(Case(**asked))))
        return
    for table in options.tables:
        if table == "data":
            grow(options)
            continue
        print(f"\n| {table} | {' | '.join(METHODS)} |\n|---|{'---|' * len(METHODS)}")
        for row in TABLES[table]:
            cells = [in_a_process(Case(method, **row)) for method in METHODS]
            shown = [f"{x['milliseconds']:.1f} ms, {x['peak']:,.0f} MiB ({x['temporaries']:,.0f})" for x in cells]
            print(f"| {', '.join(f'{value:,}' for value in row.values())} | {' | '.join(shown)} |", flush=True)


def grow(options: Options) -> None:
    """Measures the table of growing data, and prints it."""
    sizes = [f"{users:,} users" for users in options.users]
    print(f"\n| | {' | '.join(sizes)} | exponent | preparation |\n|---|{'---|' * (len(sizes) + 2)}")
    found: dict[str, dict[str, Any]] = {}
    for name in options.methods:
        cells = {users: in_a_process(Data(users, name, options.optimizer)) for users in options.users}
        found[name] = {str(users): cell for users, cell in cells.items()}
        row = [f"{x['epoch']:.2f} s, {x['peak']:,.0f} MiB" for x in cells.values()]
        prepared = f"{cells[options.users[-1]]['preparation']:.1f} s"
        print(f"| {name} | {' | '.join(row)} | {exponent(cells):.2f} | {prepared} |", flush=True)
        if options.save:
            options.save.write_text(json.dumps(found, indent=1))
    if options.draw:
        draw(options.draw, found, json.loads(options.before.read_text()) if options.before else {})


def exponent(cells: dict[Any, dict[str, float]]) -> float:
    """Returns e of seconds ~ users^e, from the second size to the last; the first hardly leaves a cache."""
    sizes = sorted(map(int, cells))
    first, last = sizes[min(1, len(sizes) - 2)], sizes[-1]
    at = lambda size: cells.get(size, cells.get(str(size)))["epoch"]
    return float(np.log(at(last) / at(first)) / np.log(last / first)) if len(sizes) > 1 else float("nan")


def draw(path: Path, found: dict[str, Any], before: dict[str, Any]) -> None:
    """Draws seconds per epoch against users, before in grey."""
    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    for part, when, style in ((before, ", before", {"color": "#b0b0b0", "linestyle": "--"}), (found, "", {})):
        for name, cells in part.items():
            users = [int(size) for size in cells]
            seconds = [cell["epoch"] for cell in cells.values()]
            axes.plot(users, seconds, marker="o", markersize=3, label=name + when, **style)
    users = np.array([int(size) for size in next(iter(found.values()))])
    axes.plot(users, users / users[0] * 0.05, color="black", linewidth=0.8, label="proportional to the data")
    axes.set(xscale="log", yscale="log", xlabel="users (20 interactions each)", ylabel="seconds per epoch")
    axes.legend(fontsize=7, ncols=2)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def in_a_process(case: Case | Data) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", json.dumps(dataclasses.asdict(case))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_data(case: Data) -> dict[str, float]:
    users, items = case.users, case.users // ITEM_SHARE
    rng = np.random.default_rng(0)
    popular = (items * rng.random(PAIRS * users) ** 2).astype(np.int64)  # the density of an item falls as its rank^-1/2
    pairs = (np.repeat(np.arange(users), PAIRS), popular)
    few = [(pairs[0][i::1000][:100], pairs[1][i::1000][:100]) for i in range(2)]
    split = Split(*(Interactions.from_pairs(*part, users, items) for part in (pairs, *few)))
    is_model = case.name in MODELS
    request = PhaseRequest(
        model=case.name if is_model else "bpr",
        dim=WIDTH,
        method="none" if is_model else case.name,
        training=Training(optimizer=None if case.name in ("lightgcn", "ials") else case.optimizer),
    )
    spec = resolve(request, split)
    experiment = Experiment(Dataset.from_split(split), spec.evaluation)
    trainer = experiment.trainer(spec)
    teacher = no_teacher(split.train) if is_model else Teacher.of(random_teacher(split.train, WIDE))
    begun = time.perf_counter()
    guidance = jax.block_until_ready(trainer.guide(split.train, teacher))
    preparation = time.perf_counter() - begun
    key = jax.random.key(0)
    state = trainer.init(jax.random.key(1), split.train, guidance)
    epoch = trainer.epoch.lower(state, key, split.train, guidance).compile()
    seconds = []
    for _ in range(3):
        state = jax.block_until_ready(state.replace(epoch=jnp.int32(10)))
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(epoch(state, key, split.train, guidance))
        seconds.append(time.perf_counter() - begun)
        if seconds[-1] > LONG:
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"epoch": min(seconds), "preparation": preparation, "peak": peak}


def measure(case: Case) -> dict[str, float]:
    batch = case.entities // 3  # a triple has three entities
    train = random_interactions(case.users, case.users, STEPS * batch)
    teacher = random_teacher(train, case.teacher_dim)
    method = distillers.scale(METHODS[case.method](case), WEIGHT)
    epoch = Epoch(train, method, case.student_dim, teacher, batch)
    seconds = statistics.median(epoch.seconds([EPOCHS - 1] * 5))
    return {
        "milliseconds": 1000 * seconds / STEPS,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "temporaries": epoch.compiled.memory_analysis().temp_size_in_bytes / 2**20,
    }


if __name__ == "__main__":
    main()
