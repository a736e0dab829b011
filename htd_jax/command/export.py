"""Write a run's student to a folder that serves: tables, ids, and a model card."""

import dataclasses
import importlib.metadata
import os
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import htd_jax
from htd_jax.command.flags import COMMON, REGISTRIES, parse
from htd_jax.errors import UserError, shown
from htd_jax.models import MODELS, usual_epochs
from htd_jax.ops.precision import Precision
from htd_jax.settings import as_json, check, typed
from htd_jax.training import Training


@dataclasses.dataclass(frozen=True)
class Options:
    """Writes tables.safetensors, users.npy, items.npy, users.parquet, items.parquet, htd_jax.json and README.md, which
    `htd-jax recommend --model`, `htd_jax.load` and other programs open."""

    run: Path
    """Folder of the run."""
    to: Path
    """Folder to write: new, empty, or an earlier export, which is replaced."""
    phase: str | None = None
    """Whose tables: teacher, student or the method. Default: the student that was helped."""
    precision: Precision | None = None
    """Of the tables; int8: a scale a row; int4: half a byte a number. The table shown says what each costs. Default:
    that which the student was trained in, float32 unless it was said."""
    seen: bool = False
    """Write the known pairs too, which recommend leaves out. They are training data."""


def export(arguments: Sequence[str], prog: str = "htd-jax export") -> None:
    from htd_jax.command import use_devices
    from htd_jax.serving import check_target, open_run

    options = parse(Options, arguments, prog=prog, description=__doc__)
    check(options)
    check_target(options.to)
    if options.run.absolute() == options.to.absolute():
        raise UserError(f"--to: {shown(options.to)} is the run's own folder; name another")
    use_devices()
    opened = open_run(options.run, options.phase)
    if not opened.has_products:
        raise UserError(
            f"--run: {shown(options.run)}: the scores of {opened.config.get('model')} are no products of two rows, so "
            "no table can be exported; recommend --run works, or distil it into a bpr student"
        )
    retriever = opened.retriever()
    rows = costs(retriever, opened)
    about = opened.about | {
        "command": train_command(opened.config),
        "versions": versions(),
        "precisions": rows,
    }
    chosen = retriever.with_precision(options.precision or retriever.precision)
    about["metrics"] = rows[chosen.precision]["metrics"]
    chosen = dataclasses.replace(chosen, about=about)
    chosen.save(options.to, seen=options.seen)
    show(rows, chosen.precision)
    print(f"{opened.phase} of {opened.folder}, {chosen.precision}: {options.to}")


def costs(retriever: Any, opened: Any) -> dict[str, Any]:
    """By precision: bytes a row, megabytes of both tables, and test metrics on the run's split by its protocol."""
    from htd_jax.evaluation import make_evaluator
    from htd_jax.models import BPRSettings, ModelOf
    from htd_jax.serving import PRECISIONS

    evaluation = opened.evaluation
    evaluate = make_evaluator(opened.dataset.split, cutoffs=evaluation.cutoffs, protocol=evaluation.make())
    names = [f"{name}@{k}" for name in ("recall", "ndcg") for k in evaluation.cutoffs]
    found: dict[str, Any] = {}
    for precision in PRECISIONS:
        try:
            rounded = retriever.with_precision(precision)
        except UserError:  # numbers beyond float16, an odd width
            continue
        users, items = rounded.users, rounded.items
        tables = {"users": users.floats(), "items": items.floats()}
        test = evaluate(ModelOf(BPRSettings(), users.dim), {"params": tables})["test"]
        found[precision] = {
            "row_bytes": users.row_bytes,
            "megabytes": users.row_bytes * (len(users) + len(items)) / 1e6,
            "metrics": {name: float(test[name]) for name in names},
        }
    return found


def show(rows: dict[str, Any], chosen: str) -> None:
    names = list(next(iter(rows.values()))["metrics"])
    table = Table()
    for name in ("", "bytes a row", "MB in all", *names):
        table.add_column(name, justify="right" if name else "left")
    for precision, entry in rows.items():
        figures = [f"{entry['metrics'][name]:.4f}" for name in names]
        mark = " *" if precision == chosen else ""
        table.add_row(precision + mark, str(entry["row_bytes"]), f"{entry['megabytes']:.2f}", *figures)
    Console(width=None if os.isatty(1) else 120).print(table)


def train_command(config: dict[str, Any]) -> str:
    """The command that a run's `config.json` tells of: what differs from the defaults. It does not tell where files of
    one's own were: they stand there in capitals."""
    usual: dict[str, Any] = {name: x for of in COMMON.values() for name, x in as_json(of()).items()}
    epochs = usual_epochs(dict(MODELS).get(config.get("model", "")))
    usual |= as_json(Training(loss=config.get("loss")).filled(epochs)) | {"loss": Training().filled(epochs).loss}
    own = {name: as_json(of()) for registry in REGISTRIES.values() for name, of in registry.items()}
    reading = config.get("reading") or {}
    words = ["htd-jax", "train"]
    for name, value in {**config, **reading}.items():
        if name == "dataset" and reading:
            words += ["--dataset", "FILE"]
        elif name == "split" and value == "files":
            words += ["--valid-file", "FILE", "--test-file", "FILE"]
        elif name == "teacher" and value is not None:
            words += ["--teacher", "FILES"]
        elif isinstance(value, dict) and name != "reading":
            for setting, its in value.items():
                words += _flag(f"{name}.{setting}", its, own.get(name, {}).get(setting))
        elif name in usual:
            words += _flag(name, value, usual[name])
    return shlex.join(words)


def versions() -> dict[str, str]:
    return {
        "htd-jax": htd_jax.__version__,
        "jax": importlib.metadata.version("jax"),
        "numpy": importlib.metadata.version("numpy"),
        "python": platform.python_version(),
    }


def _flag(name: str, value: Any, usual: Any) -> list[str]:
    return [] if value == usual or value is None else typed(name, value)
