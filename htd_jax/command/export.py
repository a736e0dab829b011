"""Writes a run's student for serving: tables, ids and a model card; or what changed since an export."""

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
from htd_jax.command.parsing import import_trusted, parse
from htd_jax.errors import UserError, shown
from htd_jax.ops.codes import Precision, row_bytes
from htd_jax.settings import as_json, check, flag_words


@dataclasses.dataclass(frozen=True)
class Options:
    """Writes tables.safetensors, users.parquet, items.parquet, htd_jax.json and README.md, for `htd-jax recommend
    --model`, `htd-jax serve`, `htd_jax.load` and other programs."""

    to: Path
    """Folder to write: new, empty, or an earlier export, which is replaced."""
    run: Path | None = None
    """Folder of the run; give this or --model."""
    model: Path | None = None
    """Folder of an export, to write it with the deltas of --apply; give this or --run."""
    apply: tuple[Path, ...] = ()
    """Folders of deltas that lead from --model to a later version, in their order."""
    delta_from: Path | None = None
    """Folder of an earlier export: a delta is written, the rows that changed since then and the new ones. Default: all
    rows."""
    phase: str | None = None
    """Phase to export: teacher, student, or the method's name. Default: the distilled student."""
    teacher: tuple[Path, ...] = ()
    """Files of the teacher that the run was given, for --phase teacher: the run keeps no copy. Default: a trained
    teacher."""
    teacher_user_ids: Path | None = None
    """File with the user ids of the rows of --teacher."""
    teacher_item_ids: Path | None = None
    """File with the item ids of the rows of --teacher."""
    precision: Precision | None = None
    """Precision of the tables; the size and the test metrics of each are printed. Default: the precision that the
    student was trained for, or that of --delta-from."""
    bytes: Annotated[int, Ge(1)] | None = None
    """Bytes per row of the student to cut out of one that was trained for several sizes (--prefixes). Default: the
    whole student."""
    shard_size: Annotated[int, Ge(1)] = 5000
    """Megabytes of tables from which on they are written in shards of this size, tables-00001-of-00008.safetensors and
    so on, with an index in the layout of Hugging Face."""
    npy: bool = False
    """Whether to also write users.npy and items.npy, the tables as floats, for programs that read no codes."""
    seen: bool = False
    """Whether to also write the known pairs, so that recommend can leave them out; they contain the training data."""
    trust_code: tuple[str, ...] = ()
    """Modules, or package.module:Class, that are imported because runs name models or methods of theirs, and
    package.module:function, a metric to add. Their code runs; without this flag, a file's name runs none."""


def export(arguments: Sequence[str], prog: str = "htd-jax export") -> None:
    options = parse(Options, arguments, prog=prog, description=__doc__)
    check(options)
    import_trusted(arguments)
    given = sum(argument.partition("=")[0] == "--apply" for argument in arguments)
    if given > 1 or given > len(options.apply):
        raise UserError("give the folders of all deltas after one `apply`, in their order; at least one")
    _check(options)
    from htd_jax import serve  # an export needs no JAX
    from htd_jax.command import use_devices

    if options.run:
        use_devices()
    before = serve.load(options.delta_from) if options.delta_from else None
    if options.model:
        chosen: Any = serve.load(options.model, *options.apply)
        seen, source = options.seen or chosen.seen is not None, str(options.model)
    else:
        rows, chosen, phase = _from_run(options, before)
        seen, source = options.seen, f"{phase} of {options.run}"
    how: dict[str, Any] = {"shard_size": options.shard_size, "delta_from": options.delta_from, "npy": options.npy}
    chosen.save(options.to, seen=seen, **how)
    if options.run:
        show(rows, chosen.precision)
    if before:
        _tell(options, before, chosen)
    print(f"{source}, {chosen.precision}: {options.to}")


def _check(options: Options) -> None:
    """Raises UserError if flags do not go together, or the folder cannot be written to."""
    from htd_jax.serve.deltas import check_delta_target
    from htd_jax.serve.storage import check_target

    if (options.run is None) == (options.model is None):
        raise UserError("set either `run` to a run folder, or `model` to an exported model")
    if options.apply and not options.model:
        raise UserError("`apply` needs `model`, the export that the deltas start from; a run has no deltas")
    for name in ("phase", "precision", "bytes"):
        if options.model and getattr(options, name) is not None:
            raise UserError(f"`{name}` needs `run`; an exported model stays as it is")
    if options.teacher and options.phase != "teacher":
        raise UserError("`teacher` is for `phase` teacher of a run; set it, or leave out `teacher`")
    if (options.teacher_user_ids or options.teacher_item_ids) and not options.teacher:
        raise UserError("`teacher_user_ids` and `teacher_item_ids` need `teacher`")
    if options.npy and options.delta_from:
        raise UserError("`npy` needs whole tables; leave out `delta_from`")
    for other in options.apply:
        if os.path.realpath(other) == os.path.realpath(options.to):
            raise UserError(f"`to` {shown(options.to)} is the folder of a delta to apply; choose another")
    if options.delta_from:
        check_delta_target(options.to, options.delta_from)
    else:
        check_target(options.to)
    if options.run and options.run.absolute() == options.to.absolute():
        raise UserError(f"`to` {shown(options.to)} is the run's own folder; choose another")


def _from_run(options: Options, before: Any) -> tuple[dict[str, Any], Any, str]:
    """Returns the costs of each precision, the retriever to write, and the name of its phase.

    Args:
      before: the retriever of the export that a delta starts from, or None.
    """
    from htd_jax.pipeline import open_given, open_run

    assert options.run
    if before and options.precision not in (None, before.precision):
        raise UserError(
            f"`precision` {options.precision}: the export of `delta_from` is in {before.precision}; "
            "leave `precision` out, or export all rows"
        )
    ids = options.teacher_user_ids, options.teacher_item_ids
    given = options.teacher
    fitted = open_given(options.run, given, *ids) if given else open_run(options.run, options.phase)
    if options.bytes is not None:
        fitted = prefix_of_bytes(fitted, options.bytes)
    if not fitted.inner_product:
        raise UserError(
            f"`run` {shown(options.run)}: no tables to export, because scores of {fitted.about['model']} are not inner "
            "products; use htd-jax recommend, or distil it into a bpr student"
        )
    retriever = fitted.retriever(like=before)
    rows = costs(retriever, fitted, before)
    about = {
        **retriever.about,
        "command": train_command(fitted.about["config"]),
        "versions": versions(),
        "precisions": rows,
    }
    precision = options.precision or (before.precision if before else retriever.precision)
    chosen = retriever.with_precision(precision, before)
    about["metrics"] = rows[chosen.precision]["metrics"]
    return rows, dataclasses.replace(chosen, about=about), fitted.about["phase"]


def _tell(options: Options, before: Any, now: Any) -> None:
    """Prints what a delta holds."""
    from htd_jax.serve.deltas import read_delta

    head = read_delta(options.to)
    for side, changed in head["changed"].items():
        rows, steps = len(getattr(before, side)), getattr(before, side).steps
        print(f"{side}: {changed:,} of {rows:,} rows changed, {head['new'][side]:,} new")
        if steps is not None and (steps != getattr(now, side).steps).any():
            print(f"note: the steps of {side} have changed, and with them codes of rows that have not")
        elif steps is not None and options.run:
            print(f"note: {side} keep the steps of {options.delta_from}, and so unchanged rows keep their codes")
    written = sum((now.items.row_bytes + 4) * count for count in head["changed"].values())
    if written > now.items.row_bytes * sum(len(getattr(before, side)) for side in head["changed"]):
        print("note: with their numbers, the changed rows take more bytes than all rows; a whole export is smaller")
    size = sum(path.stat().st_size for path in options.to.iterdir())
    print(f"delta from version {head['parent']} to {head['version']}: {size:,} bytes")


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


def costs(retriever: Any, fitted: Any, like: Any = None) -> dict[str, Any]:
    """Returns bytes per row, megabytes of both tables and test metrics on the run's split, by precision.

    Args:
      like: an earlier version, see `Retriever.with_precision`.
    """
    from htd_jax.evaluation import make_evaluator, shown_metrics
    from htd_jax.models import BPRSettings, FoldedSettings, ModelOf, ModelSettings
    from htd_jax.ops.codes import PRECISIONS
    from htd_jax.pipeline.fitted import evaluation_of

    evaluation = evaluation_of(fitted).resolve()
    evaluate = make_evaluator(fitted.data.split, cutoffs=evaluation.cutoffs, protocol=evaluation.make())
    names = shown_metrics(evaluation.cutoffs)
    found: dict[str, Any] = {}
    model: ModelSettings
    for precision in PRECISIONS:
        try:
            rounded = retriever.with_precision(precision, like)
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
    from htd_jax.command.flags import REGISTRIES, default_settings

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
