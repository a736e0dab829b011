"""Time and memory to read a log of interactions: `python benchmarks/reading.py --rows 20000000`.

Writes a log with ids like `user-0012345` (or numbers, with `--ids numbers`), ratings, timestamps and long-tailed
popularity to a temporary folder, and reads it in each format in a separate process: columns, ids, repeated rows,
filters, the split and its fingerprint. `--files 16` also reads the log from a folder of 16 Parquet
files, and `--processes 1 2 4` reads that folder by so many processes at once, see `htd_jax.data.partitioned`.
`--before FOLDER` also reads with an earlier version in a checkout, and checks that it finds the same.
"""

import argparse
import json
import resource
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

FORMATS = ("csv", "csv.gz", "csv.zst", "parquet", "jsonl")


def write(
    folder: Path, rows: int, formats: list[str], ids: str, times: bool, users: int, items: int, files: int
) -> None:
    """Writes one log in each format, and in so many Parquet files."""
    named = lambda name, codes: np.char.add(f"{name}-", np.char.zfill(codes.astype(str), 7)) if ids == "text" else codes
    csv = folder / "log.csv"
    parquet = None
    with open(csv, "wb") as file:
        for start in range(0, rows, 10**6):
            rng, size = np.random.default_rng(start), min(10**6, rows - start)
            user, item = (rng.random(size) ** 2 * users).astype(int), (rng.random(size) ** 3 * items).astype(int)
            columns = {
                "user_id": pa.array(named("user", user)),
                "item_id": pa.array(named("item", item)),
                "rating": pa.array(rng.integers(1, 6, size)),
                "timestamp": pa.array(1_600_000_000 + start + rng.integers(0, 10**7, size)),
            }
            if not times:
                del columns["rating"], columns["timestamp"]
            table = pa.table(columns)
            pyarrow.csv.write_csv(table, file, pyarrow.csv.WriteOptions(include_header=not start))
            parquet = parquet or pq.ParquetWriter(folder / "log.parquet", table.schema)
            parquet.write_table(table)
            if "jsonl" in formats:
                with open(folder / "log.jsonl", "a") as lines:
                    lines.writelines(f"{json.dumps(row)}\n" for row in table.to_pylist())
    parquet.close()
    if files:
        (folder / "log.parts").mkdir()
        with pq.ParquetFile(folder / "log.parquet") as whole:
            of_file = np.arange(whole.num_row_groups) * files // whole.num_row_groups
            for k in range(files):
                table = whole.read_row_groups(np.flatnonzero(of_file == k).tolist())
                pq.write_table(table, folder / "log.parts" / f"part-{k:05}.parquet")
    for suffix, compression in ((".gz", "gzip"), (".zst", "zstd")):
        if f"csv{suffix}" in formats:
            with open(csv, "rb") as file, pa.output_stream(str(csv) + suffix, compression=compression) as packed:
                while block := file.read(2**24):
                    packed.write(block)


def read(path: Path, split: str, least: int) -> None:
    """Reads one file in this process, and prints the seconds, the peak memory and the result."""
    import htd_jax  # imported before the clock starts

    most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    before, start, processor = most(), time.perf_counter(), time.process_time()
    data = htd_jax.read(path, split=split, min_per_user=least, min_per_item=least)
    found = htd_jax.data.fingerprint(data)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir())) / 2**20
    counts = f"{len(data.users):,} users, {len(data.items):,} items, {len(data.train):,} in train, {found}"
    memory = f"{most():,.0f} ({before:,.0f} before)"
    name = path.name.removeprefix("log.")
    print(f"| {name} | {size:,.0f} | {seconds:.1f} | {processor:.1f} | {memory} | {counts} |", flush=True)


def read_part(path: Path, split: str, least: int, process: int, processes: int, port: int) -> None:
    """Reads the part of one of several processes, and prints the seconds, the peak memory and the sizes."""
    import jax

    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
    from htd_jax.data import Reading
    from htd_jax.data.partitioned import read_partitioned

    jax.devices()
    most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    before, start, processor = most(), time.perf_counter(), time.process_time()
    log = read_partitioned(path, Reading(split=split, min_per_user=least, min_per_item=least))
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    counts = f"{len(log.users):,} of {log.num_users:,} users, {len(log.train[0]):,} of {log.sizes[0]:,} in train"
    name, memory = f"process {process} of {processes}", f"{most():,.0f} ({before:,.0f} before)"
    print(f"| {name} | | {seconds:.1f} | {processor:.1f} | {memory} | {counts} |", flush=True)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=20_000_000)
    options.add_argument("--users", type=int, help="default: a hundredth of the rows")
    options.add_argument("--items", type=int, help="default: a quarter of a hundredth of the rows")
    options.add_argument("--ids", default="text", choices=("text", "numbers"))
    options.add_argument("--no-times", action="store_true", help="writes no ratings and timestamps")
    options.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    options.add_argument("--files", type=int, default=0, help="Parquet files to also write the log to")
    options.add_argument(
        "--processes", type=int, nargs="*", default=[], help="numbers of processes that read the files"
    )
    options.add_argument("--split", default="last")
    options.add_argument("--least", type=int, default=5, help="the k of the k-core")
    options.add_argument("--before", type=Path, help="a checkout of an earlier version")
    options.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--version", help=argparse.SUPPRESS)
    options.add_argument("--part", type=int, nargs=3, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.read:
        sys.path.insert(0, given.version)
        if given.part:
            read_part(given.read, given.split, given.least, *given.part)
        else:
            read(given.read, given.split, given.least)
        return
    users, items = given.users or max(given.rows // 100, 100), given.items or max(given.rows // 400, 100)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), given.rows, given.formats, given.ids, not given.no_times, users, items, given.files)
        print(f"{given.rows:,} rows, ids are {given.ids}, --split {given.split}, k-core of {given.least}")
        print("| format | MiB | seconds | processor | peak MiB | |\n|---|---|---|---|---|---|", flush=True)
        here = Path(__file__).resolve().parent.parent
        for name in [*given.formats, *["parts"] * (given.files > 0)]:
            for version in filter(None, (given.before, here)):
                how = ["--split", given.split, "--least", str(given.least), "--version", version]
                subprocess.run([sys.executable, __file__, "--read", Path(folder) / f"log.{name}", *how], check=True)
        for processes in given.processes:
            port = free_port()
            command = [sys.executable, __file__, "--read", Path(folder) / "log.parts", *how, "--part"]
            parts = [[*command, str(k), str(processes), str(port)] for k in range(processes)]
            for running in [subprocess.Popen(part, stderr=subprocess.DEVNULL) for part in parts]:
                if running.wait():
                    sys.exit("a process failed")


if __name__ == "__main__":
    main()
