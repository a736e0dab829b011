"""What vector indexes keep of our lists: exact ones, and those that round the decoded rows once more.

    python benchmarks/indexes.py RUN [RUN ...] [--precisions int4 int2] [--json OUT]

Every index gets the decoded rows of a run's student and searches all items, without a graph. The table shows its bytes
per item; the share of its 10 and 50 best items that are in `recommend`'s list, where an item whose score in float64 is
that of the list's last counts too; and the test recall@50 of its lists without the items of train and valid.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from usearch.index import Index

from htd_jax.data import Interactions, Split
from htd_jax.ops.precision import unpack
from htd_jax.pipeline import open_run
from htd_jax.serve.rank import concatenate
from htd_jax.serving import Rows, best_items

# Returns the rows of the k best items of users `[n, k]`.
Search = Callable[[int], np.ndarray]

CUTOFFS = 10, 50


@dataclasses.dataclass
class Options:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs."""
    phase: str | None = None
    """Phase of the runs. Default: the distilled student."""
    precisions: tuple[str, ...] = ()
    """Precisions to round to. Default: the one that each run was trained for."""
    users: int = 1000
    """Number of users, sampled."""
    json: Path | None = None
    """File for all figures."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    figures = []
    for run in options.runs:
        fitted = open_run(run, options.phase)
        model = fitted.retriever()
        for precision in options.precisions or (model.precision,):
            rounded = model.with_precision(precision)
            found = compare(rounded.users, rounded.items, fitted.data.split, options.users)
            figures.append({"run": run.name, "dim": model.dim, "precision": precision, "indexes": found})
            Console(width=None if os.isatty(1) else 120).print(shown(figures[-1]))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def compare(users: Rows, items: Rows, split: Split, most_users: int) -> dict[str, dict[str, float]]:
    """Returns bytes per item, shares of lists and recall of each index."""
    tested = np.flatnonzero(np.diff(np.asarray(split.test.offsets)))
    some = np.sort(np.random.default_rng(0).permutation(tested)[:most_users])
    users = users.take(jnp.asarray(some))
    exact = np.asarray(users.floats(), np.float64) @ np.asarray(items.floats(), np.float64).T
    train, valid, tests = (by_user(part, some) for part in split)
    hidden = [np.concatenate(both) for both in zip(train, valid)]
    least = {k: np.partition(exact, -k, axis=1)[:, -k, None] for k in CUTOFFS}
    most = CUTOFFS[-1] + max(map(len, hidden))
    found = {}
    for name, (size, search) in indexes(users, items).items():
        lists = search(most)
        scores = np.take_along_axis(exact, lists, axis=1)
        shares = {f"share@{k}": float(np.mean(scores[:, :k] >= x - 1e-6 * np.abs(x))) for k, x in least.items()}
        unseen = [x[~np.isin(x, own)][: CUTOFFS[-1]] for x, own in zip(lists, hidden)]
        recall = np.mean([np.isin(own, x).mean() for x, own in zip(unseen, tests)])
        found[name] = {"bytes": size, **shares, f"recall@{CUTOFFS[-1]}": float(recall)}
    return found


def indexes(users: Rows, items: Rows) -> dict[str, tuple[int, Search]]:
    """Returns bytes per item and the search of each index, by name."""
    x, y, dim = np.array(users.floats()), np.array(items.floats()), items.dim
    ours = lambda k: concatenate(best_items(users, items, k), k).rows
    found: dict[str, tuple[int, Search]] = {"recommend": (items.row_bytes, ours)}

    def add_faiss(name: str, size: int, index: Any, queries: np.ndarray, table: np.ndarray) -> None:
        index.train(table)
        index.add(table)
        found[f"faiss {name}"] = size, lambda k: index.search(queries, k)[1]

    def add_usearch(name: str, size: int, dtype: str, queries: np.ndarray, table: np.ndarray) -> None:
        index = Index(ndim=dim, metric="ip", dtype=dtype)
        index.add(np.arange(len(table)), table)
        found[f"usearch {name}"] = size, lambda k: index.search(queries, k, exact=True).keys.astype(np.int64)

    quantizer = lambda kind: faiss.IndexScalarQuantizer(
        dim, getattr(faiss.ScalarQuantizer, kind), faiss.METRIC_INNER_PRODUCT
    )
    add_faiss("IndexFlatIP", 4 * dim, faiss.IndexFlatIP(dim), x, y)
    add_faiss("QT_fp16", 2 * dim, quantizer("QT_fp16"), x, y)
    add_faiss("QT_8bit", dim, quantizer("QT_8bit"), x, y)
    add_faiss("QT_4bit", -(-dim // 2), quantizer("QT_4bit"), x, y)
    for dtype, size in (("f32", 4), ("f16", 2), ("bf16", 2), ("i8", 1)):
        add_usearch(dtype, size * dim, dtype, x, y)
    if items.bits is None or items.steps is None:
        per_row = whole(x, np.abs(x).max(1, keepdims=True))
        add_usearch("i8, whole numbers", dim, "i8", per_row, whole(y, np.abs(y).max()))
        return found
    # The codes themselves, times 2 and centred, so that they are whole numbers; the steps go to the users' side.
    codes = 2 * np.asarray(unpack(items.values, dim, items.bits)).astype(np.float32) - (2**items.bits - 1)
    queries = x * np.asarray(items.steps)
    add_faiss("QT_8bit_direct_signed, codes", dim, quantizer("QT_8bit_direct_signed"), queries, codes)
    per_row = whole(queries, np.abs(queries).max(1, keepdims=True))
    add_usearch("i8, codes", dim, "i8", per_row, codes.astype(np.int8))
    return found


def whole(table: np.ndarray, largest: Any) -> np.ndarray:
    """Rounds to int8, with `largest` at 127."""
    return np.rint(table / np.maximum(largest, 1e-30) * 127).astype(np.int8)


def by_user(pairs: Interactions, users: np.ndarray) -> list[np.ndarray]:
    items, offsets = np.asarray(pairs.items), np.asarray(pairs.offsets)
    return [items[offsets[user] : offsets[user + 1]] for user in users]


def shown(entry: dict[str, Any]) -> Table:
    table = Table(title=f"{entry['run']}, {entry['dim']} numbers, {entry['precision']}")
    names = list(next(iter(entry["indexes"].values())))
    for name in ("", *names):
        table.add_column(name, justify="right" if name else "left")
    for name, figures in entry["indexes"].items():
        table.add_row(name, str(figures["bytes"]), *(f"{figures[x]:.4f}" for x in names[1:]))
    return table


if __name__ == "__main__":
    main()
