"""Time and memory to read a log of interactions: `python benchmarks/reading.py --rows 20000000`.

Writes a log with ids like `user-0012345`, ratings, timestamps and long-tailed popularity to a temporary folder, and
reads it in each format in a separate process: columns, ids, repeated rows, filters and the split.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

FORMATS = ("csv", "csv.gz", "csv.zst", "parquet", "jsonl")


def write(folder: Path, rows: int, formats: list[str]) -> None:
    """Writes one log in each format."""
    users, items = max(rows // 100, 100), max(rows // 400, 100)
    csv = folder / "log.csv"
    parquet = None
    with open(csv, "wb") as file:
        for start in range(0, rows, 10**6):
            rng, size = np.random.default_rng(start), min(10**6, rows - start)
            user, item = (rng.random(size) ** 2 * users).astype(int), (rng.random(size) ** 3 * items).astype(int)
            columns = {
                "user_id": pa.array(np.char.add("user-", np.char.zfill(user.astype(str), 7))),
                "item_id": pa.array(np.char.add("item-", np.char.zfill(item.astype(str), 7))),
                "rating": pa.array(rng.integers(1, 6, size)),
                "timestamp": pa.array(1_600_000_000 + start + rng.integers(0, 10**7, size)),
            }
            table = pa.table(columns)
            pyarrow.csv.write_csv(table, file, pyarrow.csv.WriteOptions(include_header=not start))
            parquet = parquet or pq.ParquetWriter(folder / "log.parquet", table.schema)
            parquet.write_table(table)
            if "jsonl" in formats:
                form = '{{"user_id": "{}", "item_id": "{}", "rating": {}, "timestamp": {}}}\n'
                with open(folder / "log.jsonl", "a") as lines:
                    lines.writelines(map(form.format, *(column.to_pylist() for column in columns.values())))
    parquet.close()
    for suffix, compression in ((".gz", "gzip"), (".zst", "zstd")):
        if f"csv{suffix}" in formats:
            with open(csv, "rb") as file, pa.output_stream(str(csv) + suffix, compression=compression) as packed:
                while block := file.read(2**24):
                    packed.write(block)


def read(path: Path, split: str) -> None:
    """Reads one file in this process, and prints the seconds, the peak memory and the result."""
    import htd_jax  # imported before the clock starts

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    data = htd_jax.read(path, split=split, min_per_user=5, min_per_item=5)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = path.stat().st_size / 2**20
    counts = f"{len(data.users):,} users, {len(data.items):,} items, {len(data.train):,} in train"
    memory = f"{peak / 2**20:.2f} ({before / 2**20:.2f} before)"
    print(f"| {path.name.removeprefix('log.')} | {size:,.0f} | {seconds:.1f} | {memory} | {counts} |", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=20_000_000)
    options.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    options.add_argument("--split", default="last")
    options.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.read:
        read(given.read, given.split)
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), given.rows, given.formats)
        print(f"{given.rows:,} rows, --split {given.split}, k-core of 5 for users and items")
        print("| format | MiB | seconds | peak GiB | |\n|---|---|---|---|---|", flush=True)
        for name in given.formats:
            path = Path(folder) / f"log.{name}"
            subprocess.run([sys.executable, __file__, "--read", path, "--split", given.split], check=True)


if __name__ == "__main__":
    main()
