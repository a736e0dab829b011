"""Users per second and seconds per request of exact search, next to faiss and NumPy on the same cores.

    python benchmarks/serving.py [--json OUT] [--items 25000 200000 1000000 --dims 20 64 --requests 100000]

In batches: `best_items` with tables from float32 to int2, with and without 24 seen items per user that are left out;
faiss's IndexFlatIP and IndexHNSWFlat with its recall against exact search; and NumPy, a product and argpartition per
block of users. One user: the same searches by row, and `Retriever.recommend` by id with seen items left out. Rounds
alternate between all of them, and medians are compared, so that other work on the machine slows all alike. The last
part sends many requests in a row, and measures the process's memory before and after.

Tables are random, so faiss's HNSW finds less than in a trained table; the times of exact search do not depend on it.
Compilation and the building of indexes are not counted.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from htd_jax import serve
from htd_jax.data import Ids, Interactions
from htd_jax.serve.rank import Hidden, concatenate
from htd_jax.serve.storage import Pairs
from htd_jax.serving import Retriever, best_items, to_precision
from htd_jax.serving.topk import Searched

PRECISIONS = "float32", "int8", "int4", "int3", "int2"


@dataclasses.dataclass
class Options:
    items: tuple[int, ...] = (25_000, 200_000, 1_000_000)
    """Numbers of items."""
    dims: tuple[int, ...] = (20, 64)
    """Widths of the tables."""
    scores: int = 200_000_000
    """Scores per batch: the number of users is this divided by the number of items, at most 5,000."""
    k: int = 20
    """Length of a list."""
    seen: int = 24
    """Seen items per user."""
    rounds: int = 3
    """Timed rounds of batches, and of requests."""
    requests: int = 100_000
    """Requests in a row, of the first number of items and width. 0 leaves them out."""
    hnsw_items: int = 200_000
    """HNSW is built for at most this many items: a million takes minutes."""
    json: Path | None = None
    """File for all figures."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    machine = {"cores": os.cpu_count(), "load": os.getloadavg(), "jax": jax.__version__, "faiss": faiss.__version__}
    figures: dict[str, Any] = {"machine": machine | {"copy_GB_per_s": copy_speed()}, "k": options.k, "tables": []}
    console = Console(width=120)
    for dim in options.dims:
        for items in options.items:
            measured = measure(items, dim, options)
            figures["tables"].append(measured)
            console.print(shown(measured))
    if options.requests:
        figures["requests"] = many_requests(options)
        console.print(figures["requests"])
    console.print(figures["machine"])
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def measure(num_items: int, dim: int, options: Options) -> dict[str, Any]:
    """Returns users per second in batches, and milliseconds per request, of every way to search."""
    rng = np.random.default_rng(0)
    num_users, k = min(5000, options.scores // num_items), options.k
    users, items = (rng.normal(size=(n, dim)).astype(np.float32) for n in (num_users, num_items))
    seen = random_pairs(rng, num_users, num_items, options.seen)
    hidden = Hidden.from_interactions(seen)
    every = np.arange(num_users)
    batches: dict[str, Callable[[], Any]] = {}
    requests: dict[str, Callable[[int], Any]] = {}
    for precision in PRECISIONS:
        mine, theirs = to_precision(users, precision), to_precision(items, precision)
        searched = Searched(theirs)
        retriever = Retriever(mine, theirs, Ids.numbers(num_users, "user"), Ids.numbers(num_items, "item"), seen)
        search = lambda rows, hidden, mine=mine, searched=searched: concatenate(
            best_items(mine, searched, k, rows=rows, hidden=hidden), k
        )
        batches[precision] = lambda search=search: search(every, None)
        batches[f"{precision}, seen left out"] = lambda search=search: search(every, hidden)
        requests[precision] = lambda user, search=search: search(np.array([user]), None)
        requests[f"{precision}, seen left out"] = lambda user, search=search: search(np.array([user]), hidden)
        requests[f"{precision}, by id, seen left out"] = lambda user, r=retriever: r.recommend(user, k)
        table = serve.Table.of(theirs)
        columns = serve.Table.by_columns(table.values, table.scales, table.steps, table.bits)
        ids = Ids.numbers(num_users, "user"), Ids.numbers(num_items, "item")
        pairs = Pairs.of(np.asarray(seen.users), np.asarray(seen.items), num_users, num_items)
        model = serve.Model(serve.Table.of(mine), columns, *ids, pairs)
        batches[f"{precision}, without JAX, seen left out"] = lambda m=model: m.recommend(None, k)
        requests[f"{precision}, without JAX, by id, seen left out"] = lambda user, m=model: m.recommend(user, k)
    flat = faiss.IndexFlatIP(dim)
    flat.add(items)
    indexes = {"faiss flat": flat}
    recall = None
    if num_items <= options.hnsw_items:
        graph = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efSearch = 128
        graph.add(items)
        indexes["faiss HNSW"] = graph
        some = users[:200]
        exact, found = (index.search(some, k)[1] for index in (flat, graph))
        recall = float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(exact, found)]))
    for name, index in indexes.items():
        batches[name] = lambda index=index: index.search(users, k)
        requests[name] = lambda user, index=index: index.search(users[user : user + 1], k)
    batches["NumPy"] = lambda: [numpy_search(part, items, k) for part in np.array_split(users, -(-num_users // 64))]
    requests["NumPy"] = lambda user: numpy_search(users[user : user + 1], items, k)
    rates = {name: num_users / seconds for name, seconds in alternate(batches, options.rounds).items()}
    return {
        "items": num_items,
        "dim": dim,
        "users_per_batch": num_users,
        "users_per_second": rates,
        "request_ms": latencies(requests, num_users, 200 if num_items <= 200_000 else 50, options.rounds),
        "hnsw_recall": recall,
    }


def alternate(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Returns median seconds; the first call of each, which compiles, is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(1 + rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(times)) for name, times in seconds.items()}


def latencies(
    ways: dict[str, Callable[[int], Any]], num_users: int, requests: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Returns percentiles of milliseconds per request, each round a run of requests per way."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(0)
    for turn in range(rounds):
        for name, way in ways.items():
            for request in range(requests // rounds):
                start = time.perf_counter()
                way((turn * requests + request) % num_users)
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: {f"p{p}": float(np.percentile(x, p)) for p in (50, 99)} for name, x in times.items()}


def many_requests(options: Options) -> dict[str, Any]:
    """Sends requests of single users by id to an int8 retriever, and measures memory at the start and at the end."""
    rng = np.random.default_rng(1)
    num_users, num_items, dim = 5000, options.items[0], options.dims[0]
    tables = (to_precision(rng.normal(size=(n, dim)), "int8") for n in (num_users, num_items))
    seen = random_pairs(rng, num_users, num_items, options.seen)
    retriever = Retriever(*tables, Ids.numbers(num_users, "user"), Ids.numbers(num_items, "item"), seen)
    for user in range(100):
        retriever.recommend(user, options.k)
    before, times = resident_mib(), np.zeros(options.requests)
    for request in range(options.requests):
        start = time.perf_counter()
        retriever.recommend(request % num_users, options.k)
        times[request] = time.perf_counter() - start
    p50, p99 = (1e3 * np.percentile(times, [50, 99])).tolist()
    figures = {"requests": options.requests, "p50_ms": p50, "p99_ms": p99, "max_ms": 1e3 * float(times.max())}
    return figures | {"start_mib": before, "end_mib": resident_mib(), "items": num_items, "dim": dim}


def numpy_search(users: np.ndarray, items: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = users @ items.T
    some = np.argpartition(scores, -k, axis=1)[:, -k:]
    order = np.argsort(-np.take_along_axis(scores, some, axis=1), axis=1)
    rows = np.take_along_axis(some, order, axis=1)
    return rows, np.take_along_axis(scores, rows, axis=1)


def random_pairs(rng: np.random.Generator, users: int, items: int, each: int) -> Interactions:
    return Interactions.from_pairs(
        np.repeat(np.arange(users), each), rng.integers(0, items, users * each), users, items
    )


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def copy_speed() -> float:
    """Returns GB per second, read and written, of copying 256 MB in one thread."""
    table = np.ones(2**25)
    target = np.empty_like(table)
    seconds = alternate({"copy": lambda: np.copyto(target, table)}, 5)["copy"]
    return 2 * table.nbytes / seconds / 1e9


def shown(measured: dict[str, Any]) -> Table:
    title = (
        f"{measured['items']:,} items, {measured['dim']} dimensions, {measured['users_per_batch']:,} users per batch"
    )
    if measured["hnsw_recall"] is not None:
        title += f"; HNSW recall {measured['hnsw_recall']:.3f}"
    table = Table(title=title)
    for name in ("", "users per second", "of faiss flat", "one user p50, ms", "p99, ms"):
        table.add_column(name, justify="right" if name else "left")
    rates, times = measured["users_per_second"], measured["request_ms"]
    for name in dict.fromkeys([*rates, *times]):
        rate = [f"{rates[name]:,.0f}", f"{rates[name] / rates['faiss flat']:.1f}"] if name in rates else ["", ""]
        request = [f"{times[name][p]:.2f}" for p in ("p50", "p99")] if name in times else ["", ""]
        table.add_row(name, *rate, *request)
    return table


if __name__ == "__main__":
    main()
