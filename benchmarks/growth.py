"""How time and memory grow with the batch, the data, the groups and the dimensions, on random data.

    python benchmarks/growth.py [--tables entities users groups dims]

Every row runs in a separate process: 200 -> 20 dimensions, 30 groups and a batch of 1,024 triples of 20,000 users and
20,000 items, except for the size that the table varies; HTD at its lowest temperature. Reported are milliseconds per
step (the median epoch of a few steps, over its steps: negatives and shuffle included) and the process's peak resident
memory with, in brackets, the part that XLA allocates for the epoch's temporaries.
"""

import dataclasses
import json
import resource
import statistics
import subprocess
import sys
from typing import Any

import tyro
from measure import BATCH, EPOCHS, GROUPS, STUDENT_DIM, TEACHER_DIM, WEIGHT, Epoch, random_interactions, random_teacher

from htd_jax import distillers
from htd_jax.distillers import HTD
from htd_jax.training import no_teacher

STEPS = 8

METHODS = {
    "none": lambda case: distillers.none(),
    "ftd": lambda case: distillers.ftd(),
    "htd, all pairs": lambda case: distillers.htd(HTD(groups=case.groups, pairs="all")),
    "htd, positive pairs": lambda case: distillers.htd(HTD(groups=case.groups)),
}


@dataclasses.dataclass(frozen=True)
class Case:
    method: str
    entities: int = 3 * BATCH
    users: int = 20_000
    groups: int = GROUPS
    teacher_dim: int = TEACHER_DIM
    student_dim: int = STUDENT_DIM


DISTILLED = ("ftd", "htd, all pairs", "htd, positive pairs")
TABLES = {
    "entities": (DISTILLED, [{"entities": 1024 * 4**i, "users": 100_000} for i in range(4)]),
    "users": (("none", *DISTILLED), [{"users": 10**i} for i in (4, 5, 6)]),
    "groups": (DISTILLED[1:], [{"groups": groups} for groups in (5, 30, 100, 300)]),
    "dims": (DISTILLED, [{"teacher_dim": 10 * dim, "student_dim": dim} for dim in (10, 20, 40, 80)]),
}


@dataclasses.dataclass
class Options:
    tables: tuple[str, ...] = tuple(TABLES)
    """Tables to measure."""
    case: str | None = None
    """One row as JSON, for which the program starts itself."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.case:
        print(json.dumps(measure(Case(**json.loads(options.case)))))
        return
    for name in options.tables:
        methods, rows = TABLES[name]
        print(f"\n| {name} | {' | '.join(methods)} |\n|---|{'---|' * len(methods)}")
        for row in rows:
            cells = [in_a_process(Case(method, **row)) for method in methods]
            print(f"| {', '.join(f'{value:,}' for value in row.values())} | {' | '.join(cells)} |", flush=True)


def in_a_process(case: Case) -> str:
    command = [sys.executable, __file__, "--case", json.dumps(dataclasses.asdict(case))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return f"{found['milliseconds']:.1f} ms, {found['peak']:,.0f} MiB ({found['temporaries']:,.0f})"


def measure(case: Case) -> dict[str, Any]:
    batch = case.entities // 3  # a triple has three entities
    train = random_interactions(case.users, case.users, STEPS * batch)
    plain = case.method == "none"
    teacher = no_teacher(train) if plain else random_teacher(train, case.teacher_dim)
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
