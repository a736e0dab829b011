"""A retriever on disk: a folder of plain files, which any version of JAX on any device opens, and other programs too.

    htd_jax.json          {"format": 1, "precision", "dim", "users", "items", "seen", "metrics", "about"}
    tables.safetensors    users [num_users, dim], items [num_items, dim]; of int8 also user_scales, item_scales; of
                          int4, two numbers a byte, user_steps, item_steps: see `htd_jax.ops.precision.Rows`
    users.npy, items.npy  the same tables as plain arrays; of int8 and int4 what the codes stand for, in float32
    users.parquet, items.parquet   row, id
    seen.parquet          user, item: rows of pairs that are not recommended; only if it was asked for
    README.md             a model card

The `.npy` files are for other programs: `load` reads the others.
"""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from safetensors import SafetensorError

from htd_jax.data import Ids, Interactions, read_ids, write_ids
from htd_jax.errors import UserError, shown
from htd_jax.ops.precision import PRECISIONS, Rows
from htd_jax.serving.card import card
from htd_jax.serving.retriever import Retriever
from htd_jax.serving.run_folder import open_run
from htd_jax.writing import is_partial, remove, whole

FORMAT = 1
NAME = "htd_jax.json"
FILES = {
    NAME,
    "README.md",
    "items.npy",
    "items.parquet",
    "seen.parquet",
    "tables.safetensors",
    "users.npy",
    "users.parquet",
}


def is_saved(folder: Path) -> bool:
    """Whether a retriever was saved there."""
    return (folder / NAME).is_file()


def check_target(folder: Path) -> None:
    """Raises UserError if a retriever cannot be saved there: another thing's folder, or a path that cannot be."""
    try:
        if folder.is_dir():
            others = [path for path in folder.iterdir() if not is_partial(path)]
            others = [path for path in others if not is_saved(folder) or path.name not in FILES]
            if others:
                name = shown(min(others).name)
                raise UserError(f"{shown(folder)}: holds something else, {name}; name a new folder, or empty this one")
        elif folder.exists() or folder.is_symlink():
            raise UserError(f"{shown(folder)}: is no folder; name another")
    except OSError as error:
        raise UserError(f"{shown(folder)}: cannot be used ({error.strerror}); name another") from None


def save(retriever: Retriever, folder: Path, *, seen: bool = False, readme: str | None = None) -> None:
    """Writes a retriever to a folder, whole or not at all.

    Args:
      retriever: of a model whose scores are products.
      folder: see `Retriever.save`.
      seen: whether `seen.parquet` is written.
      readme: the model card; a short one if None.

    Raises:
      UserError: see `Retriever.save`.
    """
    if retriever.scores is not None:
        raise UserError(
            "this model cannot be saved for serving: its scores are no products of two rows, as neumf's are not; "
            "distil it into a bpr student, whose are"
        )
    if seen and retriever.seen is None:
        raise UserError("seen pairs are not known here, so they cannot be saved")
    folder = folder.absolute()
    check_target(folder)
    before = folder.with_name(f".partial-before-{folder.name}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove(before)
        try:
            with whole(folder) as partial:
                partial.mkdir()
                _write(retriever, partial, seen=seen, readme=readme)
                if folder.is_dir():  # a folder takes the place of an empty one alone
                    folder.rename(before)
        except BaseException:
            if before.is_dir() and not folder.exists():
                before.rename(folder)
            raise
        remove(before)
    except OSError as error:
        raise UserError(f"{shown(folder)}: cannot be written ({error.strerror or error})") from None


def load(folder: Path | str) -> Retriever:
    """Opens what `Retriever.save`, `htd-jax export` or a run has left in a folder.

    Raises:
      UserError: there is nothing of that kind, a file is missing or damaged, sizes do not fit, or the format is of a
        later version.
    """
    folder = Path(folder)
    if (folder / "config.json").is_file() and not is_saved(folder):
        return open_run(folder).retriever()
    return load_saved(folder)


def load_saved(folder: Path) -> Retriever:
    """`load`, of a saved one alone."""
    if is_saved(folder):
        return _read(folder)
    if not folder.is_dir():
        raise UserError(f"{shown(folder)}: there is no such folder")
    if (folder / "config.json").is_file():
        raise UserError(f"{shown(folder)}: a run folder, not an exported model; name it with --run")
    raise UserError(f"{shown(folder)}: neither an exported model (no {NAME}) nor a run folder (no config.json)")


def header(retriever: Retriever, *, seen: bool) -> dict[str, Any]:
    """What `htd_jax.json` holds."""
    about = dict(retriever.about)
    if retriever.scores is None and (lengths := retriever.lengths()):
        about["lengths"] = lengths
    return {
        "format": FORMAT,
        "precision": retriever.precision,
        "dim": retriever.dim,
        "users": len(retriever.users),
        "items": len(retriever.items),
        "seen": seen,
        "metrics": about.pop("metrics", {}),
        "about": about,
    }


def _write(retriever: Retriever, folder: Path, *, seen: bool, readme: str | None) -> None:
    head = header(retriever, seen=seen)
    tables = {}
    for side, rows in (("user", retriever.users), ("item", retriever.items)):
        tables[f"{side}s"] = np.asarray(rows.values)
        for name in ("scales", "steps"):
            if (numbers := getattr(rows, name)) is not None:
                tables[f"{side}_{name}"] = np.asarray(numbers)
        is_plain = rows.precision in ("float32", "float16")
        np.save(folder / f"{side}s.npy", np.asarray(rows.values if is_plain else rows.floats()))
    # Not `save_file`, whose files nobody else may read.
    (folder / "tables.safetensors").write_bytes(safetensors.numpy.save(tables, {"format": "htd_jax"}))
    write_ids(folder / "users.parquet", retriever.user_ids)
    write_ids(folder / "items.parquet", retriever.item_ids)
    if seen:
        assert retriever.seen is not None
        pairs = {"user": np.asarray(retriever.seen.users), "item": np.asarray(retriever.seen.items)}
        pq.write_table(pa.table(pairs), folder / "seen.parquet", compression="zstd")
    (folder / "README.md").write_text(readme or card(head), encoding="utf-8")
    (folder / NAME).write_text(json.dumps(head, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _read(folder: Path) -> Retriever:
    head = _header(folder)
    users, items = _tables(folder / "tables.safetensors", head)
    user_ids, item_ids = (read_ids(_there(folder / f"{side}s.parquet"), side) for side in ("user", "item"))
    for its, rows in ((user_ids, users), (item_ids, items)):
        if len(its) != len(rows):
            raise UserError(f"{shown(folder)}: {len(its)} {its.kind} ids for {len(rows)} rows; export it anew")
    seen = _seen(folder / "seen.parquet", user_ids, item_ids) if head["seen"] else None
    return Retriever(users, items, user_ids, item_ids, seen, {**head["about"], "metrics": head["metrics"]})


def _header(folder: Path) -> dict[str, Any]:
    path = folder / NAME
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
        version = head["format"]
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{shown(path)}: damaged, or of another program") from None
    if version != FORMAT:
        raise UserError(f"{shown(path)}: of format {version!r}, and this version of htd-jax reads {FORMAT}; update it")
    kinds = {"precision": str, "dim": int, "users": int, "items": int, "seen": bool, "metrics": dict, "about": dict}
    if not all(isinstance(head.get(name), kind) for name, kind in kinds.items()) or head["precision"] not in PRECISIONS:
        raise UserError(f"{shown(path)}: damaged: not what this program writes there")
    return head


def _tables(path: Path, head: dict[str, Any]) -> list[Rows]:
    try:
        found = safetensors.numpy.load_file(_there(path))
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read ({error.strerror or 'damaged'})") from None
    except (SafetensorError, ValueError, KeyError, TypeError, MemoryError):
        raise UserError(f"{shown(path)}: damaged; export it anew") from None
    rows = []
    for side in ("user", "item"):
        precision, size, dim = head["precision"], head[f"{side}s"], head["dim"]
        shapes: dict[str, Any] = {f"{side}s": (precision, (size, dim))}
        if precision == "int8":
            shapes[f"{side}_scales"] = ("float32", (size,))
        if precision == "int4":
            shapes = {f"{side}s": ("uint8", (size, dim // 2)), f"{side}_steps": ("float32", (dim,))}
        for name, (dtype, shape) in shapes.items():
            if name not in found:
                raise UserError(f"{shown(path)}: no table {name} in it; export it anew")
            its = found[name]
            if str(its.dtype) != dtype or its.shape != shape:
                raise UserError(
                    f"{shown(path)}: {name} is {its.dtype}{list(its.shape)}, and {NAME} says {dtype}{list(shape)}"
                )
            if its.dtype.kind == "f" and not np.isfinite(its).all():
                raise UserError(f"{shown(path)}: {name} holds numbers that are not finite; export it anew")
        read = {name: jnp.asarray(found[name]) for name in shapes}
        rows.append(Rows(read[f"{side}s"], read.get(f"{side}_scales"), read.get(f"{side}_steps")))
    return rows


def _seen(path: Path, user_ids: Ids, item_ids: Ids) -> Interactions:
    try:
        table = pq.read_table(_there(path), columns=["user", "item"], partitioning=None)
        table.validate(full=True)
        users, items = (table[name].to_numpy() for name in ("user", "item"))
        return Interactions.from_pairs(users, items, len(user_ids), len(item_ids))
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read ({error.strerror or 'damaged'})") from None
    except (pa.ArrowException, ValueError, KeyError):
        raise UserError(f"{shown(path)}: damaged; export it anew with --seen") from None
    except UserError as error:
        raise UserError(f"{shown(path)}: {error}") from None


def _there(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{shown(path)}: is missing; export it anew")
    return path
