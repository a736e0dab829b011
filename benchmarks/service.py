"""Requests per second and milliseconds per request of `htd-jax serve` on this machine, and what survives a long load.

    apt-get install wrk
    python benchmarks/service.py [--items 25000 --dim 20 --requests 100000] [--json OUT]

Tables are random, in int4, with 24 seen items per user; the service runs as the command starts it. First, wrk asks for
each kind of answer, over one connection and over 16. Then it sends 100,000 requests over 8 connections while, every
second, the export is replaced and the signal HUP sent, every third time by a damaged export, and somebody else sends
what is not JSON. Lost are requests without an answer, or with another status than 200. The service's own counters, and
its memory before and after, are shown too.

wrk and the service share the cores.
"""

import contextlib
import dataclasses
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tyro
from rich.console import Console
from rich.table import Table

from htd_jax.data import Ids, Interactions
from htd_jax.serving import Retriever, to_precision
from htd_jax.serving.fold import RowMap

# Sends bodies in turn, and prints what came of it in JSON.
LUA = """
local bodies, turn = {}, 0
for line in io.lines("%s") do
  bodies[#bodies + 1] = wrk.format("POST", "%s", {["Content-Type"]="application/json"}, line)
end
request = function()
  turn = turn %% #bodies + 1
  return bodies[turn]
end
done = function(summary, latency, requests)
  local e = summary.errors
  local form = '\\n{"requests": %%d, "seconds": %%f, "p50_ms": %%f, "p99_ms": %%f, "max_ms": %%f, "lost": %%d}\\n'
  io.write(string.format(form,
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    latency.max / 1e3, e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclasses.dataclass
class Options:
    items: int = 25_000
    """Number of items."""
    users: int = 5000
    """Number of users."""
    dim: int = 20
    """Width of the tables."""
    k: int = 20
    """Length of a list."""
    seen: int = 24
    """Seen items per user, and per visitor."""
    precision: str = "int4"
    """Precision of the tables."""
    seconds: int = 5
    """Seconds per measurement."""
    requests: int = 100_000
    """Requests under reloads, at least. 0 leaves them out."""
    json: Path | None = None
    """File for all figures."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed, export in enumerate("ab"):
            make(folder / export, seed, options)
        shutil.copytree(folder / "a", folder / "served")
        with service(folder / "served") as (process, port, started):
            figures: dict[str, Any] = {"cores": os.cpu_count(), "load": os.getloadavg(), "start_seconds": started}
            figures["start_mib"] = resident_mib(process)
            figures["answers"] = measure(folder, port, options)
            console.print(shown(figures["answers"]))
            if options.requests:
                rate = figures["answers"]["one user, 16 connections"]
                seconds = int(1.2 * options.requests * rate["seconds"] / rate["requests"]) + 1
                figures["under reloads"] = endure(folder, process, port, seconds, options)
    console.print({name: value for name, value in figures.items() if name != "answers"})
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def make(folder: Path, seed: int, options: Options) -> None:
    """Writes an export of random tables."""
    rng = np.random.default_rng(seed)
    users, items, dim = options.users, options.items, options.dim
    tables = (to_precision(rng.normal(size=(n, dim)).astype(np.float32), options.precision) for n in (users, items))
    ids = (
        Ids(pa.array([f"{kind}-{n}" for n in range(size)]), kind) for kind, size in (("user", users), ("item", items))
    )
    pairs = np.repeat(np.arange(users), options.seen), rng.integers(0, items, users * options.seen)
    some = RowMap(rng.normal(size=(2 + 4 * dim, dim)).astype(np.float32), np.ones((2, 1), np.float32))
    maps = {"users": some, "items": some}
    Retriever(*tables, *ids, Interactions.from_pairs(*pairs, users, items), row_maps=maps).save(folder, seen=True)


@contextlib.contextmanager
def service(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int, float]]:
    """Starts `htd-jax serve`; yields its process, its port, and the seconds until it answered."""
    command = [sys.executable, "-m", "htd_jax", "serve", "--model", str(folder), "--port", "0", "--watch", "0"]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout
        port = int(process.stdout.readline().rpartition(":")[2])
        while ask(port, "GET", "/health")[0] != 200:
            time.sleep(0.01)
        yield process, port, time.perf_counter() - begin
    finally:
        process.send_signal(signal.SIGTERM)
        print(f"status after SIGTERM: {process.wait(timeout=30)}")


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
        except ConnectionRefusedError:
            return 0, b""
        answer = connection.getresponse()
        return answer.status, answer.read()


def measure(folder: Path, port: int, options: Options) -> dict[str, dict[str, float]]:
    """Returns what wrk measures per kind of answer and number of connections."""
    found = {}
    for name, (path, bodies) in kinds(options).items():
        for connections in (1, 16):
            if name != "100 users" or connections == 1:
                label = f"{name}, {connections} connection{'s' * (connections > 1)}"
                found[label] = wrk(folder, port, path, bodies, connections, options.seconds)
    return found


def kinds(options: Options) -> dict[str, tuple[str, list[str]]]:
    """Returns the path and the bodies of requests, by name."""
    rng, k = np.random.default_rng(2), options.k
    some = lambda kind, size, n: [f"{kind}-{x}" for x in rng.integers(0, size, n)]
    users = lambda n: json.dumps({"users": some("user", options.users, n), "k": k})
    seen = lambda: json.dumps({"visitors": [some("item", options.items, options.seen)], "k": k})
    return {
        "one user": ("/recommend", [users(1) for _ in range(1000)]),
        "a visitor": ("/visitors", [seen() for _ in range(1000)]),
        "similar": ("/similar", [json.dumps({"items": some("item", options.items, 1), "k": k}) for _ in range(1000)]),
        "100 users": ("/recommend", [users(100) for _ in range(100)]),
    }


def wrk(folder: Path, port: int, path: str, bodies: list[str], connections: int, seconds: int) -> dict[str, float]:
    (folder / "bodies").write_text("\n".join(bodies) + "\n")
    (folder / "wrk.lua").write_text(LUA % (folder / "bodies", path))
    load = ["-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(folder / "wrk.lua")]
    done = subprocess.run(["wrk", *load, f"http://127.0.0.1:{port}"], capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def endure(folder: Path, process: subprocess.Popen[str], port: int, seconds: int, options: Options) -> dict[str, Any]:
    """Returns what came of a long load under reloads, damaged exports and requests that are not JSON."""
    path, bodies = kinds(options)["one user"]
    wrk(folder, port, path, bodies, 8, 2)
    before, answered = resident_mib(process), counter(port, path, 200)
    found: dict[str, Any] = {"replaced": 0, "damaged": 0, "not_json": 0, "most_mib": 0.0}
    done = threading.Event()

    def disturb() -> None:
        while not done.wait(1):
            turn = found["replaced"] + found["damaged"]
            swap(folder, "ab"[turn % 2], damaged=turn % 3 == 2)
            found["damaged" if turn % 3 == 2 else "replaced"] += 1
            process.send_signal(signal.SIGHUP)
            for body in (b'{"users": [', b"\xff\xfe", b"[" * 10_000, b'{"users": [{}]}'):
                status, _ = ask(port, "POST", path, body)
                assert 400 <= status < 500, status
                found["not_json"] += 1
            found["most_mib"] = max(found["most_mib"], resident_mib(process))

    thread = threading.Thread(target=disturb)
    thread.start()
    figures = wrk(folder, port, path, bodies, 8, seconds)
    done.set()
    thread.join()
    time.sleep(1)
    text = ask(port, "GET", "/metrics")[1].decode()
    told = {name: int(float(number)) for name, number in re.findall(r'reloads_total{outcome="(\w+)"} (\S+)', text)}
    return {
        **found,
        **figures,
        "answered_200": counter(port, path, 200) - answered,
        "reloads_of_the_service": told,
        "before_mib": before,
        "after_mib": resident_mib(process),
    }


def swap(folder: Path, export: str, damaged: bool) -> None:
    """Puts an export in the served one's place, as a careless script does."""
    new = folder / "new"
    shutil.copytree(folder / export, new)
    if damaged:
        tables = new / "tables.safetensors"
        os.truncate(tables, tables.stat().st_size - 100)
    old, served = folder / "old", folder / "served"
    served.rename(old)  # a moment without one, which a reload must survive, too
    new.rename(served)
    shutil.rmtree(old)


def counter(port: int, path: str, status: int) -> int:
    text = ask(port, "GET", "/metrics")[1].decode()
    found = re.search(rf'htd_jax_requests_total{{path="{path}",status="{status}"}} (\S+)', text)
    return int(float(found[1])) if found else 0


def resident_mib(process: subprocess.Popen[str]) -> float:
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def shown(answers: dict[str, dict[str, float]]) -> Table:
    table = Table()
    for name in ("", "requests per second", "p50, ms", "p99, ms", "lost"):
        table.add_column(name, justify="right" if name else "left")
    for name, x in answers.items():
        rate = f"{x['requests'] / x['seconds']:,.0f}"
        table.add_row(name, rate, f"{x['p50_ms']:.2f}", f"{x['p99_ms']:.2f}", str(x["lost"]))
    return table


if __name__ == "__main__":
    main()
