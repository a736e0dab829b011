"""A teacher's tables from files of any framework: two arrays of numbers, and the ids of their rows."""

import contextlib
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa

from htd_jax.data.columns import read_id_column
from htd_jax.data.dataset import Ids
from htd_jax.data.torchfile import BFLOAT16, Checkpoint
from htd_jax.errors import UserError, reading, shown

# Suffixes of files with tables; `.npy` needs two files.
TORCH = (".pth", ".pt", ".ckpt", ".bin")
TABLES = (".npy", ".npz", ".safetensors", *TORCH)

# The largest compression ratio of deflate: an archive that claims more is damaged.
INFLATED = 1032

# The largest number of names in a message.
LISTED = 8


class Tables(NamedTuple):
    """A teacher's representations: users `[n, d]` and items `[m, d]`, float32, in the order of their files."""

    users: np.ndarray
    items: np.ndarray


class LazyArray(NamedTuple):
    """An array in a file, which is read on demand."""

    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def read_tables(paths: Sequence[Path | str]) -> Tables:
    """Reads the tables of two `.npy` files, users first, or of one `.npz`, `.safetensors` or `.pth` (torch) file.

    A single file must hold exactly one pair of arrays whose names contain `user` and `item` (`user_factors`,
    `item_embedding.weight`). float16, bfloat16 and float64 become float32. Nothing is unpickled.

    Raises:
      UserError: if a file is missing, damaged or has another format; there is no such pair, or several; or an array is
        not of floats, has not two axes, is empty, differs in width, or holds numbers that are not finite or too large
        for float32. A line per problem.
    """
    files = [Path(path) for path in paths]
    problems: list[str] = []
    arrays: dict[str, LazyArray] = {}
    if len(files) == 2:
        first, second = (path.stem.lower() for path in files)
        if "item" in first and "user" in second and "user" not in first and "item" not in second:
            raise UserError(f"{shown(files[0])} {shown(files[1])}: the users' file comes first, then the items'")
        if files[0] == files[1]:
            raise UserError(f"{shown(files[0])}: is given for both users and items; give one file for each")
        for path in files:
            try:
                arrays[shown(path)] = _npy(path)
            except UserError as error:
                problems += error.args
        if problems:
            raise UserError(*problems)
    elif len(files) == 1:
        (path,) = files
        named = _arrays(path)
        arrays = {f"{shown(path)}: {shown(name)}": named[name] for name in _pair(path, named)}
    else:
        raise UserError(f"a teacher's tables are one file or two, users and items, not {len(files)}")
    if problems := _check_arrays(arrays):
        raise UserError(*problems)
    tables = []
    for name, array in arrays.items():
        table, wrong = _as_float32(name, array)
        tables.append(table)
        problems += wrong
    if problems:
        raise UserError(*problems)
    return Tables(*tables)


def read_id_file(path: Path | str, kind: str) -> Ids:
    """Reads the ids of a table's rows, in their order, from a `.npy` file of one axis or a file for `read_id_column`.

    Strings stay as they are: `007` is not 7. Rows of no user, such as RecBole's `[PAD]`, may have any unused id.

    Raises:
      UserError: if the file cannot be read, is damaged, or has no such column; or an id is missing or occurs twice.
    """
    path = Path(path)
    with reading(path, "a file of ids"):
        if path.suffix.lower() == ".npy":
            ids = _npy(path, ids=True).read()
            ids = np.char.decode(ids, "utf-8") if ids.dtype.kind == "S" else ids
            column = pa.array(ids.tolist() if ids.dtype.kind == "U" else ids)
        else:
            column, place = read_id_column(path, kind)
            if column.null_count:
                empty = place(int(np.argmax(column.is_null().to_numpy(zero_copy_only=False))))
                raise UserError(f"{shown(path)}: {empty} is empty; give one id per row")
    if not len(column):
        raise UserError(f"{shown(path)}: it holds no id")
    try:
        return Ids.from_values(column, kind)
    except UserError as error:
        raise UserError(f"{shown(path)}: {error}") from None


def match_rows(
    table: np.ndarray, row_ids: Ids | None, data_ids: Ids, kind: str, *, name: str = "the teacher"
) -> np.ndarray:
    """Returns the rows of a teacher's table `[m, d]` in the data's order: `[len(data_ids), d]`.

    Rows are matched by the table's ids, if given; other rows are dropped. Otherwise, if the data's ids are whole
    numbers in [0, m), they are row numbers; otherwise rows are in the data's order, if there are as many.

    Args:
      row_ids: the ids of the table's rows, or None.
      kind: `user` or `item`.
      name: name of the teacher, for messages.

    Raises:
      UserError: if there are more or fewer ids than rows, an id of the data has no row, or rows cannot be matched.
    """
    rows, size = len(table), len(data_ids)
    setting = f"`teacher_{kind}_ids`"
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


def _arrays(path: Path) -> dict[str, LazyArray]:
    """Returns the arrays of one file by name."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        raise UserError(f"{shown(path)}: an .npy file holds one table; give two, users.npy items.npy")
    if suffix == ".npz":
        return _npz(path)
    if suffix == ".safetensors":
        return _safetensors(path)
    if suffix in TORCH:
        checkpoint = Checkpoint(path)
        if not checkpoint.tensors:
            raise UserError(
                f"{shown(path)}: its dicts hold no tensor; if it is a whole module, save its state_dict() instead"
            )
        read = lambda name: lambda: checkpoint.read(name)
        return {name: LazyArray(x.dtype, x.shape, read(name)) for name, x in checkpoint.tensors.items()}
    raise UserError(
        f"{shown(path)}: tables are read from {', '.join(TABLES)}, not from {suffix or 'a file without a suffix'!r}"
    )


def _pair(path: Path, arrays: Mapping[str, LazyArray]) -> tuple[str, str]:
    """Returns the names of the users' and the items' table."""
    side = lambda name, one, other: one in name.lower() and other not in name.lower()
    users = [name for name in arrays if side(name, "user", "item")]
    items = [name for name in arrays if side(name, "item", "user")]
    matrices = lambda names: [name for name in names if len(arrays[name].shape) == 2]
    # Biases and counters have one axis: they count only if there are no matrices, for the message.
    users, items = matrices(users) or users, matrices(items) or items
    item_like = lambda name: re.sub("user", "item", name, flags=re.IGNORECASE).lower()
    by_name = [(u, i) for u in users for i in items if item_like(u) == i.lower()]
    pairs = by_name or [(u, i) for u in users for i in items]
    if len(pairs) == 1:
        return pairs[0]
    if pairs:
        named = "; ".join(f"{shown(u)} and {shown(i)}" for u, i in pairs[:LISTED])
        more = f" and {len(pairs) - LISTED} more" if len(pairs) > LISTED else ""
        raise UserError(f"{shown(path)}: more than one pair of tables: {named}{more}; save only one pair")
    lacking = " and ".join(f"no {kind}s' table" for kind, names in (("user", users), ("item", items)) if not names)
    held = ", ".join(f"{shown(name)} {list(array.shape)}" for name, array in [*arrays.items()][:LISTED])
    more = f" and {len(arrays) - LISTED} more" if len(arrays) > LISTED else ""
    raise UserError(
        f"{shown(path)}: {lacking} found by name ('user' or 'item' in it); the file holds {held or 'nothing'}{more}"
    )


def _check_arrays(arrays: Mapping[str, LazyArray]) -> list[str]:
    """Returns the problems of two tables that their shapes and types show."""
    problems = []
    for name, (dtype, shape, _) in arrays.items():
        if not (dtype.kind == "f" or dtype == BFLOAT16):
            problems.append(
                f"{name}: holds {dtype}, not floats; representations are float32, or float16, float64, bfloat16"
            )
        if len(shape) != 2:
            problems.append(f"{name}: has shape {list(shape)}; expected two axes, rows and dimensions")
        elif 0 in shape:
            problems.append(f"{name}: empty, with shape {list(shape)}")
    (first, second), shapes = arrays, [array.shape for array in arrays.values()]
    if all(len(shape) == 2 for shape in shapes) and shapes[0][1] != shapes[1][1]:
        problems.append(f"{second}: has width {shapes[1][1]}, but {first} has {shapes[0][1]}; they must be equal")
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


def _npy(path: Path, *, ids: bool = False) -> LazyArray:
    """Opens the array of an `.npy` file."""
    if path.suffix.lower() != ".npy":
        raise UserError(f"{shown(path)}: two files of tables must be .npy files, users.npy items.npy")
    with reading(path, "an .npy file"):
        array = _lazy(path, shown(path), path.stat().st_size, lambda: path.open("rb"))
    if ids and (array.dtype.kind not in "iuUS" or len(array.shape) != 1):
        held = f"{array.dtype} of shape {list(array.shape)}"
        raise UserError(f"{shown(path)}: holds {held}; ids are one axis of numbers or strings")
    return array


def _npz(path: Path) -> dict[str, LazyArray]:
    """Opens the arrays of an `.npz` file, whose claimed sizes are compared with the file's."""

    def opener(info: zipfile.ZipInfo) -> Callable[[], contextlib.AbstractContextManager[IO[bytes]]]:
        @contextlib.contextmanager
        def open_member() -> Iterator[IO[bytes]]:
            with zipfile.ZipFile(path) as archive, archive.open(info) as file:
                yield file

        return open_member

    arrays = {}
    with reading(path, "an .npz file"):
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        for info in members:
            name = info.filename.removesuffix(".npy")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(f"{shown(path)}: {shown(name)}: compressed in a way that numpy does not use")
            if info.file_size > INFLATED * path.stat().st_size:
                raise UserError(f"{shown(path)}: damaged: {shown(name)} claims to have {info.file_size} bytes")
            arrays[name] = _lazy(path, f"{shown(path)}: {shown(name)}", info.file_size, opener(info))
    return arrays


def _lazy(
    path: Path, name: str, size: int, open_file: Callable[[], contextlib.AbstractContextManager[IO[bytes]]]
) -> LazyArray:
    """Opens an array in the `.npy` format, and compares its header with the size in bytes."""
    with open_file() as file:
        dtype, shape, fortran = _header(file)
        start = file.tell()
    _check_size(name, dtype, shape, size - start)

    def read() -> np.ndarray:
        with reading(path, f"an {path.suffix} file"), open_file() as file:
            data = file.read()  # to the end, where zip archives check the checksum
            return np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape, order="F" if fortran else "C")

    return LazyArray(dtype, shape, read)


def _header(file: IO[bytes]) -> tuple[np.dtype, tuple[int, ...], bool]:
    """Reads the header of an `.npy` file at its start: dtype, shape, and whether it is in Fortran order."""
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about headers written by Python 2
        try:
            # Version 3.0 is for names of fields, which tables have none of.
            shape, fortran, dtype = read[np.lib.format.read_magic(file)](file)
        except Exception:  # numpy's own messages are about its internals
            raise ValueError("its header cannot be read") from None
    return dtype, shape, fortran


def _check_size(name: str, dtype: np.dtype, shape: tuple[int, ...], left: int) -> None:
    if dtype.hasobject:
        raise UserError(f"{name}: holds Python objects, which are not read; save numbers: array.astype('float32')")
    if any(size < 0 for size in shape):
        raise UserError(f"{name}: damaged: its header says shape {list(shape)}")
    if math.prod(shape) * dtype.itemsize > left:
        raise UserError(
            f"{name}: cut off: its header says {list(shape)} of {dtype}, more than the {left} bytes that follow"
        )


def _safetensors(path: Path) -> dict[str, LazyArray]:
    """Opens the arrays of a `.safetensors` file, whose library compares its header with its size."""
    import safetensors

    # All that matters about other types is that they are not floats.
    types: dict[str, Any] = {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": BFLOAT16,
        "BOOL": np.bool_,
    }
    types |= {f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)}
    types |= {f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)}
    open_file = lambda: safetensors.safe_open(path, framework="numpy")

    def reader(name: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            with reading(path, "a .safetensors file"), open_file() as file:
                return file.get_tensor(name)

        return read

    arrays = {}
    with reading(path, "a .safetensors file"), open_file() as file:
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            part = file.get_slice(name)
            dtype = np.dtype(types.get(part.get_dtype(), np.void))
            arrays[name] = LazyArray(dtype, tuple(part.get_shape()), reader(name))
    return arrays
