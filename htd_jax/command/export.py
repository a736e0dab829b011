"""Writes a run's student to a folder for serving: tables, ids, and a model card."""

import dataclasses
import importlib.metadata
import os
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from rich.console import Console
from rich.table import Table

import htd_jax
from htd_jax.command.flags import REGISTRIES, default_settings, import_trusted, parse
from htd_jax.errors import UserError, shown
from htd_jax.ops.precision import Precision, row_bytes
from htd_jax.settings import as_json, check, flag_words


@dataclasses.dataclass(frozen=True)
class Options:
    """Writes tables.safetensors, users.npy, items.npy, users.parquet, items.parquet, htd_jax.json and README.md, for
    `htd-jax recommend --model`, `htd_jax.load` and other programs."""

    run: Path
    """Folder of the run."""
    to: Path
    """Folder to write: new, empty, or an earlier export, which is replaced."""
    phase: str | None = None
    """Phase to export: teacher, student, or the method's name. Default: the distilled student."""
    precision: Precision | None = None
    """Precision of the tables; int8 has a scale per row; int4, int3 and int2 have so many bits per number. The command
    prints the size and the test metrics of each. Default: the precision that the student was trained for."""
    bytes: Annotated[int, Ge(1)] | None = None
    """Bytes per row of the student to cut out of one that was trained for several sizes (--prefixes). Default: the
    whole student."""
    shard_size: Annotated[int, Ge(1)] = 5000
    """Megabytes of tables from which on they are written in shards of this size, tables-00001-of-00008.safetensors and
    so on, with an index in the layout of Hugging Face and without .npy files."""
    seen: bool = False
    """Whether to also write the known pairs, so that recommend can leave them out; they contain the training data."""
    trust_code: tuple[str, ...] = ()
    """Modules, or package.module:Class, that are imported because runs name models or methods of theirs. Their code
    runs; without this flag, a file's name runs none."""


def export(arguments: Sequence[str], prog: str = "htd-jax export") -> None:
    from htd_jax.command import use_devices
    from htd_jax.pipeline import open_run
    from htd_jax.serving import check_target

    options = parse(Options, arguments, prog=prog, description=__doc__)
    check(options)
    import_trusted(arguments)
    check_target(options.to)
    if options.run.absolute() == options.to.absolute():
        raise UserError(f"`to` {shown(options.to)} is the run's own folder; choose another")
    use_devices()
    fitted = open_run(options.run, options.phase)
    if options.bytes is not None:
        fitted = prefix_of_bytes(fitted, options.bytes)
    if not fitted.inner_product:
        raise UserError(
            f"`run` {shown(options.run)}: no tables to export, because scores of {fitted.about['model']} are not inner "
            "products; use htd-jax recommend, or distil it into a bpr student"
        )
    retriever = fitted.retriever()
    rows = costs(retriever, fitted)
    about = {
        **fitted.about,
        "command": train_command(fitted.about["config"]),
        "versions": versions(),
        "precisions": rows,
    }
    chosen = retriever.with_precision(options.precision or retriever.precision)
    about["metrics"] = rows[chosen.precision]["metrics"]
    chosen = dataclasses.replace(chosen, about=about)
    chosen.save(options.to, seen=options.seen, shard_size=options.shard_size)
    show(rows, chosen.precision)
    print(f"{fitted.about['phase']} of {options.run}, {chosen.precision}: {options.to}")


def prefix_of_bytes(fitted: Any, size: int) -> Any:
    """Returns the student of `size` bytes per row that a student of several sizes holds.

    Raises:
      UserError: if it holds none.
    """
    sizes = {row_bytes(dim, fitted.make_model.precision): dim for dim in getattr(fitted.make_model, "prefixes", ())}
    if size not in sizes:
        held = f"it was trained for {', '.join(map(str, sizes))}" if sizes else "it was trained for one size"
        raise UserError(f"`bytes` {size}: no such prefix: {held}; set `prefixes` in training")
    return fitted.prefix(sizes[size])


def costs(retriever: Any, fitted: Any) -> dict[str, Any]:
    """Returns bytes per row, megabytes of both tables and test metrics on the run's split, by precision."""
    from htd_jax.evaluation import make_evaluator, shown_metrics
    from htd_jax.models import BPRSettings, FoldedSettings, ModelOf, ModelSettings
    from htd_jax.pipeline.fitted import evaluation_of
    from htd_jax.serving import PRECISIONS

    evaluation = evaluation_of(fitted).resolve()
    evaluate = make_evaluator(fitted.data.split, cutoffs=evaluation.cutoffs, protocol=evaluation.make())
    names = shown_metrics(evaluation.cutoffs)
    found: dict[str, Any] = {}
    model: ModelSettings
    for precision in PRECISIONS:
        try:
            rounded = retriever.with_precision(precision)
        except UserError:  # numbers beyond float16
            continue
        users, items = rounded.users, rounded.items
        if rounded.pooling:
            model, tables = FoldedSettings(), {"items": items.floats(), **rounded.pooling._asdict()}
        else:
            model, tables = BPRSettings(), {"users": users.floats(), "items": items.floats()}
        test = evaluate(ModelOf(model, items.dim), {"params": tables})["test"]
        found[precision] = {
            "row_bytes": items.row_bytes,
            "megabytes": items.row_bytes * (len(users) + len(items)) / 1e6,
            "metrics": {name: float(test[name]) for name in names},
        }
    return found


def show(rows: dict[str, Any], chosen: str) -> None:
    """Prints what each precision costs."""
    names = list(next(iter(rows.values()))["metrics"])
    table = Table()
    for name in ("", "bytes per row", "MB in all", *names):
        table.add_column(name, justify="right" if name else "left")
    for precision, entry in rows.items():
        figures = [f"{entry['metrics'][name]:.4f}" for name in names]
        mark = " *" if precision == chosen else ""
        table.add_row(precision + mark, str(entry["row_bytes"]), f"{entry['megabytes']:.2f}", *figures)
    Console(width=None if os.isatty(1) else 120).print(table)


def train_command(config: dict[str, Any]) -> str:
    """Returns the command of a run from its `config.json`: what differs from the defaults. Paths are not recorded, and
    stand as FILE or FILES."""
    defaults = default_settings(config.get("model", ""), config.get("loss")) | {"loss": "own"}
    own = {name: as_json(kind()) for registry in REGISTRIES.values() for name, kind in registry.items()}
    reading = config.get("reading") or {}
    words = ["htd-jax", "train"]
    for name, value in {**config, **reading}.items():
        if name == "dataset" and reading:
            words += ["--dataset", "FILE"]
        elif name == "split" and value == "files":
            words += ["--valid-file", "FILE", "--test-file", "FILE"]
        elif name == "teacher" and value is not None:
            words += ["--teacher", "FILES"]
        elif isinstance(value, dict) and name not in ("reading", "choice"):
            for setting, x in value.items():
                words += _flag(f"{name}.{setting}", x, own.get(name, {}).get(setting))
        elif name in defaults:
            words += _flag(name, value, defaults[name])
    return shlex.join(words)


def versions() -> dict[str, str]:
    """Returns the versions of the programs that made an export."""
    return {
        "htd-jax": htd_jax.__version__,
        "jax": importlib.metadata.version("jax"),
        "numpy": importlib.metadata.version("numpy"),
        "python": platform.python_version(),
    }


def _flag(name: str, value: Any, default: Any) -> list[str]:
    return [] if value == default or value is None else flag_words(name, value)
