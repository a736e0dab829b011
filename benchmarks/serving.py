"""Seconds to recommend, to all users at CiteULike's size or to a part of a million users with a million items.

    python benchmarks/serving.py [--users 5219 --items 25181 --precision float32]

Tables are random, since times depend on their content only through hidden pairs. The first call includes compilation
and is reported separately. Memory is the increase of the process's peak.
"""

import dataclasses
import resource
import time

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from htd_jax.data import Interactions
from htd_jax.serving import best_items, to_precision
from htd_jax.serving.topk import MEMORY, Hidden


@dataclasses.dataclass
class Options:
    users: int = 5219
    """Number of users."""
    items: int = 25181
    """Number of items."""
    part: int | None = None
    """Number of users to recommend to. Default: all."""
    dim: int = 20
    """Width of the tables."""
    k: int = 20
    """Length of a list."""
    seen: int = 24
    """Average number of hidden pairs per user."""
    precision: tuple[str, ...] = ("float32", "float16", "int8")
    """Precisions of the tables."""
    memory: int = MEMORY
    """MiB for scores."""
    rounds: int = 5
    """Number of timed calls per precision."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    rng = np.random.default_rng(0)
    tables = [rng.normal(size=(n, options.dim)).astype(np.float32) for n in (options.users, options.items)]
    count = options.seen * options.users
    pairs = rng.integers(0, options.users, count), rng.integers(0, options.items, count)
    hidden = Hidden.from_interactions(Interactions.from_pairs(*pairs, options.users, options.items))
    part = np.arange(options.users)[: options.part]
    table = Table(title=f"{jax.devices()[0].device_kind}, JAX {jax.__version__}: {len(part):,} users, k {options.k}")
    for name in ("", "first call, s", "later calls, s", "users per second", "MiB in addition to tables"):
        table.add_column(name, justify="right" if name else "left")
    for precision in options.precision:
        users, items = (jax.block_until_ready(to_precision(x, precision)) for x in tables)
        before, seconds = most_mib(), []
        for _ in range(1 + options.rounds):
            start = time.perf_counter()
            for _block in best_items(users, items, options.k, rows=part, hidden=hidden, memory=options.memory):
                pass
            seconds.append(time.perf_counter() - start)
        first, *later = seconds
        least = min(later, default=first)
        figures = f"{first:.3f}", f"{least:.3f} to {max(later):.3f}", f"{len(part) / least:,.0f}"
        table.add_row(precision, *figures, f"{most_mib() - before:.0f}")
    Console(width=110).print(table)


def most_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
