"""What `htd_jax.serve` costs: import, memory, and the times of requests. Needs no JAX.

    python benchmarks/runtime.py --model student [--requests 2000 --k 20]

A fresh process imports the module, opens the export, and answers: lists of one user by id, with seen items left out if
the export knows them; new visitors of ten items, folded in and ranked; similar items; and all users at once. The first
request of each kind is timed by itself, since it makes what later ones reuse.
"""

import dataclasses
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def resident() -> float:
    """Returns the process's memory in MB; its peak where the system does not tell."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


start, memory = time.perf_counter(), resident()

from htd_jax import serve  # noqa: E402 (it is timed)

figures: dict[str, Any] = {
    "import, s": time.perf_counter() - start,
    "Python, MB": memory,
    "imported, MB": resident(),
    "imports JAX": "jax" in sys.modules,
}

import numpy as np  # noqa: E402
import tyro  # noqa: E402


@dataclasses.dataclass
class Options:
    model: Path
    """Folder of an export."""
    requests: int = 2000
    """Requests of each kind."""
    k: int = 20
    """Length of a list."""
    json: Path | None = None
    """File for all figures."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    begin = time.perf_counter()
    model = serve.load(options.model)
    figures["open, s"] = time.perf_counter() - begin
    figures["opened, MB"] = resident()
    tables = [model.users, model.items]
    figures["tables, MB"] = (
        sum(x.nbytes for table in tables for x in vars(table).values() if hasattr(x, "nbytes")) / 1e6
    )
    rng = np.random.default_rng(0)
    users, items = (ids.values.to_pylist() for ids in (model.user_ids, model.item_ids))
    some = lambda names: names[rng.integers(len(names))]

    def visit(visit: list[Any]) -> Any:
        return model.recommend_vectors(model.fold_in(visit), options.k, seen=visit)

    kinds: dict[str, tuple[Callable[[Any], Any], Callable[[], Any]]] = {
        "one user": (lambda user: model.recommend(user, options.k), lambda: some(users)),
        "one visitor": (visit, lambda: [some(items) for _ in range(10)]),
        "similar": (lambda item: model.similar(item, options.k), lambda: some(items)),
    }
    for kind, (ask, about) in kinds.items():
        if not len(users) and kind == "one user":
            continue
        asked = [about() for _ in range(options.requests)]
        times = []
        for one in asked:
            begin = time.perf_counter()
            ask(one)
            times.append(1e3 * (time.perf_counter() - begin))
        p50, p99 = np.percentile(times[1:], [50, 99])
        figures[kind] = {"first, ms": times[0], "p50, ms": p50, "p99, ms": p99}
    begin = time.perf_counter()
    for _ in model.recommend_in_blocks(None, options.k):
        pass
    figures["all users, per second"] = len(users) / (time.perf_counter() - begin)
    figures["at the end, MB"] = resident()
    print(json.dumps(figures, indent=1, default=float))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1, default=float))


if __name__ == "__main__":
    main()
