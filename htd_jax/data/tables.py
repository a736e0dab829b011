"""A teacher's tables from files of any framework: two arrays of numbers, biases if there are any, and rows by id."""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from htd_jax.data.arrays import LISTED, LazyArray, listed, open_array, open_arrays, short
from htd_jax.data.ids import Ids
from htd_jax.data.torchfile import BFLOAT16
from htd_jax.errors import UserError, shown

# The last part of the name of a bias, in lower case: `user_biases`, `u_bias`, `item_intercept`, and Surprise's `bu`;
# and the plain names, which nothing but a bias has.
BIAS = re.compile(r".*(?:bias(?:es)?|intercepts?)|b_?[ui]")
PLAIN = re.compile(r"(?:user|item)s?_?bias(?:es)?")


class Tables(NamedTuple):
    """A teacher's representations: users `[n, d]` and items `[m, d]`, float32, in the order of their files."""

    users: np.ndarray
    items: np.ndarray


def read_tables(paths: Sequence[Path | str]) -> Tables:
    """Reads the tables of two `.npy` files, users first, or of one `.npz`, `.safetensors` or `.pth` (torch) file.

    A single file must hold `users` and `items`, or exactly one pair of arrays whose names contain `user` and `item`
    (`user_factors`, `item_embedding.weight`). float16, bfloat16 and float64 become float32. Nothing is unpickled.

    Biases in the same file (`user_biases`, `item_bias.weight`) become dimensions: scores are the inner product plus the
    biases. A bias of zeros is left out.

    Raises:
      UserError: if a file is missing, damaged or has another format; there is no such pair, or several; or an array is
        not of floats, has not two axes, is empty, differs in width, or holds numbers that are not finite or too large
        for float32. A line per problem.
    """
    return read_tables_and_notes(paths)[0]


def read_tables_and_notes(paths: Sequence[Path | str]) -> tuple[Tables, tuple[str, ...]]:
    """Reads tables as `read_tables` does; returns them with remarks on the file's other arrays, a line each."""
    files = [Path(path) for path in paths]
    problems: list[str] = []
    arrays: dict[str, LazyArray] = {}
    biases: dict[str, tuple[str, LazyArray]] = {}
    notes: tuple[str, ...] = ()
    if len(files) == 2:
        first, second = (path.stem.lower() for path in files)
        if "item" in first and "user" in second and "user" not in first and "item" not in second:
            raise UserError(f"{shown(files[0])} {shown(files[1])}: the users' file comes first, then the items'")
        if files[0] == files[1]:
            raise UserError(f"{shown(files[0])}: is given for both users and items; give one file for each")
        for path in files:
            try:
                arrays[shown(path)] = open_array(path)
            except UserError as error:
                problems += error.args
        if problems:
            raise UserError(*problems)
    elif len(files) == 1:
        (path,) = files
        named = open_arrays(path)
        pair = _pair(path, named)
        arrays = {f"{shown(path)}: {short(name)}": named[name] for name in pair}
        biases = _biases(path, named, pair)
        others = {name: array for name, array in named.items() if name not in pair and name not in _names(biases)}
        if others:
            notes = (f"{shown(path)}: {', '.join(map(short, pair))} are read, other arrays are not: {listed(others)}",)
    else:
        raise UserError(f"a teacher's tables are one file or two, users and items, not {len(files)}")
    if problems := _check_arrays(arrays):
        raise UserError(*problems)
    tables, columns = [], {}
    for name, array in arrays.items():
        table, wrong = _as_float32(name, array)
        tables.append(table)
        problems += wrong
    for kind, (name, array) in biases.items():
        columns[kind], wrong = _as_float32(f"{shown(files[0])}: {short(name)}", array)
        problems += wrong
    if problems:
        raise UserError(*problems)
    columns = {kind: column for kind, column in columns.items() if column.any()}
    for kind in columns:
        notes += (f"{shown(files[0])}: {short(biases[kind][0])} is added to the scores, as one more dimension",)
    users, items = tables
    return _with_biases(users, items, columns), notes


def match_rows(
    table: np.ndarray,
    row_ids: Ids | None,
    data_ids: Ids,
    kind: str,
    *,
    name: str = "the teacher",
    setting: str | None = None,
) -> np.ndarray:
    """Returns the rows of a teacher's table `[m, d]` in the data's order: `[len(data_ids), d]`.

    Rows are matched by the table's ids, if given; other rows are dropped. Otherwise, if the data's ids are whole
    numbers in [0, m), they are row numbers; otherwise rows are in the data's order, if there are as many.

    Args:
      row_ids: the ids of the table's rows, or None.
      kind: `user` or `item`.
      name: name of the teacher, for messages.
      setting: name of the setting of `row_ids`, for messages; `teacher_user_ids` or `teacher_item_ids` if None.

    Raises:
      UserError: if there are more or fewer ids than rows, an id of the data has no row, or rows cannot be matched.
    """
    rows, size = len(table), len(data_ids)
    setting = f"`{setting or f'teacher_{kind}_ids'}`"
    if row_ids is not None:
        if len(row_ids) != rows:
            raise UserError(f"{setting}: {len(row_ids)} ids, but {name} has {rows} rows of {kind}s; give one per row")
        at = row_ids.find(data_ids.values)
        if missing := int((at < 0).sum()):
            example = data_ids.values[int(np.argmax(at < 0))].as_py()
            raise UserError(
                f"{setting}: the file's {rows} ids lack {missing} of the data's {size} {kind}s, for example "
                f"{example!r}; the file has ids like {row_ids.values[0].as_py()!r}"
            )
        return table[at]
    if pa.types.is_integer(data_ids.values.type) and size:
        numbers = data_ids.values.to_numpy()
        if numbers.min() >= 0 and numbers.max() < rows:
            return table if np.array_equal(numbers, np.arange(rows)) else table[numbers]
    if rows == size:
        return table
    example = data_ids.values[0].as_py() if size else None
    raise UserError(
        f"{name} has {rows} rows of {kind}s, and the data {size} {kind}s with ids like {example!r}; give one row for "
        f"each, in the order of the data's ids, or set {setting} to a file of the rows' ids"
    )


def _pair(path: Path, arrays: Mapping[str, LazyArray]) -> tuple[str, str]:
    """Returns the names of the users' and the items' table."""
    if "users" in arrays and "items" in arrays:  # as exports name them
        return "users", "items"
    side = lambda name, one, other: one in name.lower() and other not in name.lower()
    # Biases and counters count only if there is no matrix, for the message.
    tables = [name for name, array in arrays.items() if len(array.shape) == 2 and "bias" not in name.lower()]
    users = [name for name in tables if side(name, "user", "item")] or [n for n in arrays if side(n, "user", "item")]
    items = [name for name in tables if side(name, "item", "user")] or [n for n in arrays if side(n, "item", "user")]
    by_name: dict[str, list[str]] = {}
    for name in items:
        by_name.setdefault(name.lower(), []).append(name)
    item_like = lambda name: re.sub("user", "item", name.lower())
    pairs = [(user, item) for user in users for item in by_name.get(item_like(user), [])[: LISTED + 1]]
    count = len(pairs)
    if not pairs:  # no pairs by name: any user's with any item's
        count = len(users) * len(items)
        pairs = [*itertools.islice(itertools.product(users, items), LISTED)]
    if count == 1:
        return pairs[0]
    if pairs:
        named = "; ".join(f"{short(u)} and {short(i)}" for u, i in pairs[:LISTED])
        more = f" and {count - LISTED} more" if count > LISTED else ""
        raise UserError(f"{shown(path)}: more than one pair of tables: {named}{more}; save only one pair")
    lacking = " and ".join(f"no {kind}s' table" for kind, names in (("user", users), ("item", items)) if not names)
    raise UserError(
        f"{shown(path)}: {lacking} found by name ('user' or 'item' in it); the file holds {listed(arrays) or 'nothing'}"
    )


def _biases(path: Path, arrays: Mapping[str, LazyArray], pair: tuple[str, str]) -> dict[str, tuple[str, LazyArray]]:
    """Returns the biases `[rows, 1]` of `user` and `item` with their names, if there are any.

    Raises:
      UserError: if there are several of one kind, one has another number of entries than its table has rows, or it is
        unclear whose an array is that could be one.
    """
    found: dict[str, tuple[str, LazyArray]] = {}
    tables = dict(zip(("user", "item"), pair))
    rows = {kind: arrays[table].shape[0] if arrays[table].shape else 0 for kind, table in tables.items()}
    for name, array in arrays.items():
        named = _named_bias(name) if len(name) < 1000 and name not in pair else None
        if named is None:
            continue
        prefix, last, kinds = named
        fits = [k for k, n in rows.items() if n and array.shape in ((n,), (n, 1), (1, n)) and k in (kinds or rows)]
        kind = kinds[0] if len(kinds) == 1 and prefix == _prefix(tables[kinds[0]]) else None
        if kind is None or not (fits or PLAIN.fullmatch(last)):
            if fits:
                raise UserError(
                    f"{shown(path)}: {short(name)} could be the biases of {fits[0]}s; name it "
                    f"{'.'.join([*_prefix(tables[fits[0]]), fits[0]])}_bias if it is, or leave it out"
                )
            continue
        if kind in found:
            raise UserError(
                f"{shown(path)}: {short(found[kind][0])} and {short(name)} could be the biases of {kind}s; save only "
                "one"
            )
        if not fits:
            raise UserError(
                f"{shown(path)}: {short(name)} has shape {list(array.shape)}, but {short(tables[kind])} has "
                f"{rows[kind]} rows; a bias has one number per row"
            )
        if not _is_float(array.dtype):
            raise UserError(f"{shown(path)}: {short(name)}: holds {array.dtype}, not floats")
        read = lambda array=array: array.read().reshape(-1, 1)
        found[kind] = name, LazyArray(array.dtype, (rows[kind], 1), read)
    return found


def _named_bias(name: str) -> tuple[list[str], str, list[str]] | None:
    """Returns the prefix of a bias's name, its last part, and the kinds that this names; None for other names.

    >>> _named_bias("model.user_embedding.bias"), _named_bias("b_i"), _named_bias("user_item_bias")[2]
    ((['model'], 'user_embedding_bias', ['user']), ([], 'b_i', ['item']), ['user', 'item'])
    """
    parts = re.split(r"[./]", name.lower())
    parts = parts[:-1] if parts[-1] == "weight" and len(parts) > 1 else parts
    if len(parts) > 1 and re.fullmatch("bias(?:es)?", parts[-1]):  # of a module: `users.bias`
        parts[-2:] = ["_".join(parts[-2:])]
    last = parts[-1].removesuffix("_weight")
    if not BIAS.fullmatch(last):
        return None
    words = "_".join(last).split("_") if len(last) == 2 else last.split("_")
    return parts[:-1], last, [kind for kind in ("user", "item") if kind in last or kind[0] in words]


def _prefix(table: str) -> list[str]:
    """Returns the parts of a table's name before the one that names its kind."""
    parts = re.split(r"[./]", table.lower())
    return parts[: next((n for n, part in enumerate(parts) if "user" in part or "item" in part), 0)]


def _names(biases: Mapping[str, tuple[str, LazyArray]]) -> list[str]:
    return [name for name, _ in biases.values()]


def _with_biases(users: np.ndarray, items: np.ndarray, biases: Mapping[str, np.ndarray]) -> Tables:
    """Returns tables whose inner products are those of the given ones plus the biases `[rows, 1]`."""
    one = {"user": np.ones((len(users), 1), np.float32), "item": np.ones((len(items), 1), np.float32)}
    if "item" in biases:
        users, items = np.hstack([users, one["user"]]), np.hstack([items, biases["item"]])
    if "user" in biases:
        users, items = np.hstack([users, biases["user"]]), np.hstack([items, one["item"]])
    return Tables(users, items)


def _is_float(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype == BFLOAT16


def _check_arrays(arrays: Mapping[str, LazyArray]) -> list[str]:
    """Returns the problems of two tables that their shapes and types show."""
    problems = []
    for name, (dtype, shape, _) in arrays.items():
        if dtype.hasobject:
            problems.append(f"{name}: holds Python objects, which are not read; save numbers: array.astype('float32')")
        elif not _is_float(dtype):
            problems.append(
                f"{name}: holds {dtype}, not floats; representations are float32, or float16, float64, bfloat16"
            )
        if len(shape) != 2:
            problems.append(f"{name}: has shape {list(shape)}; expected two axes, rows and dimensions")
        elif 0 in shape:
            problems.append(f"{name}: empty, with shape {list(shape)}")
    (first, second), shapes = arrays, [array.shape for array in arrays.values()]
    if all(len(shape) == 2 for shape in shapes) and shapes[0][1] != shapes[1][1]:
        advice = "; if they have a column per user or item, save them transposed" * (shapes[0][0] == shapes[1][0])
        problems.append(
            f"{second}: has width {shapes[1][1]}, but {first} has {shapes[0][1]}; they must be equal{advice}"
        )
    return problems


def _as_float32(name: str, array: LazyArray) -> tuple[np.ndarray, list[str]]:
    """Reads a table; returns it with the problems of its numbers."""
    try:
        given = array.read()
        with np.errstate(over="ignore", invalid="ignore"):
            table = np.ascontiguousarray(given, np.float32)
        if np.isfinite(table).all():
            return table, []
        wrong = ~np.isfinite(given.astype(np.float32) if given.dtype == BFLOAT16 else given).all(axis=1)
        large = ~np.isfinite(table).all(axis=1) & ~wrong
    except MemoryError:
        raise UserError(f"{name}: too large for the memory of this machine") from None
    problems = []
    for rows, what in ((wrong, "numbers that are not finite"), (large, "numbers too large for float32")):
        if count := int(rows.sum()):
            hold = f"{count} of {len(rows)} rows hold" if count > 1 else f"one of {len(rows)} rows holds"
            first = f"{'the first is ' if count > 1 else ''}row {int(np.argmax(rows))}, counted from 0"
            problems.append(f"{name}: {hold} {what}, {first}")
    return table, problems
