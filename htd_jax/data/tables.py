"""A teacher's tables from files of any framework: two arrays of numbers, and whose rows they are."""

import contextlib
import errno
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv

from htd_jax.data.columns import read_id_column
from htd_jax.data.dataset import Ids
from htd_jax.data.torchfile import BFLOAT16, Checkpoint
from htd_jax.errors import UserError, shown

# The files that hold tables, by suffix; of `.npy`, two.
TORCH = (".pth", ".pt", ".ckpt", ".bin")
TABLES = (".npy", ".npz", ".safetensors", *TORCH)

# Deflate makes a byte of no more bytes than this: an archive that says otherwise is damaged.
INFLATED = 1032

# Names that a message lists.
LISTED = 8


class Tables(NamedTuple):
    """A teacher's representations: users `[n, d]` and items `[m, d]`, float32, in the order of their files."""

    users: np.ndarray
    items: np.ndarray


class Found(NamedTuple):
    """An array of a file: what is known of it before it is read, and how it is read."""

    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def read_tables(paths: Sequence[Path | str]) -> Tables:
    """The tables of two `.npy` files, users' first, or of one `.npz`, `.safetensors` or `.pth` (torch) file.

    Of the arrays of one file, those count whose names hold `user` or `item` (`user_factors`, `item_embedding.weight`):
    there must be one such pair. float16, bfloat16 and float64 become float32. Nothing is unpickled.

    Raises:
      UserError: a file that is missing, damaged or of another format; none or several pairs; arrays that are not of two
        axes, of unlike widths, empty, not of floats, with numbers that are not finite or too large for float32. A line
        for each that can be told at once.
    """
    files = [Path(path) for path in paths]
    problems: list[str] = []
    found: dict[str, Found] = {}
    if len(files) == 2:
        first, second = (path.stem.lower() for path in files)
        if "item" in first and "user" in second and "user" not in first and "item" not in second:
            raise UserError(f"{shown(files[0])} {shown(files[1])}: the users' file comes first, then the items'")
        if files[0] == files[1]:
            raise UserError(f"{shown(files[0])}: one file for both, users and items; give one of each")
        for path in files:
            try:
                found[shown(path)] = _npy(path)
            except UserError as error:
                problems += error.args
        if problems:
            raise UserError(*problems)
    elif len(files) == 1:
        (path,) = files
        arrays = _arrays(path)
        found = {f"{shown(path)}: {shown(name)}": arrays[name] for name in _pair(path, arrays)}
    else:
        raise UserError(f"a teacher's tables are one file or two, users and items, not {len(files)}")
    if problems := _before_reading(found):
        raise UserError(*problems)
    tables = []
    for name, one in found.items():
        table, wrong = _as_float32(name, one)
        tables.append(table)
        problems += wrong
    if problems:
        raise UserError(*problems)
    return Tables(*tables)


def read_id_file(path: Path | str, kind: str) -> Ids:
    """What a table's rows are called, in their order: a `.npy` of one axis, or what `read_id_column` takes.

    Strings stay as they are: `007` is not 7. A row that is nobody's may be called anything that no user is, such as
    RecBole's `[PAD]`.

    Raises:
      UserError: a file that cannot be read, is damaged, or holds no such column; an id that is missing or stands twice.
    """
    path = Path(path)
    with reading(path):
        if path.suffix.lower() == ".npy":
            found = _npy(path, what="ids", kinds="iuUS").read()
            if found.dtype.kind == "S":
                found = np.char.decode(found, "utf-8")
            column = pa.array(found.tolist()) if found.dtype.kind == "U" else pa.array(found)
        else:
            column, place = read_id_column(path, kind)
            if column.null_count:
                empty = place(int(np.argmax(column.is_null().to_numpy(zero_copy_only=False))))
                raise UserError(f"{shown(path)}: {empty} is empty: one id a row")
        if not len(column):
            raise UserError(f"{shown(path)}: it holds no id")
        try:
            return Ids.of(column, kind)
        except UserError as error:
            raise UserError(f"{shown(path)}: {error}") from None


def match_rows(
    table: np.ndarray, ids_of_rows: Ids | None, data_ids: Ids, kind: str, *, name: str = "the teacher"
) -> np.ndarray:
    """The rows of a teacher's table `[m, d]` in the data's order: `[len(data_ids), d]`.

    With ids of the table's rows, by id; rows of nobody in the data are left out. Without, where the data's ids are
    whole numbers from 0 that are all below `m`, the row of that number; else row by row, if there are as many.

    Args:
      kind: `user` or `item`.
      name: of the teacher, for messages.

    Raises:
      UserError: more or fewer ids than rows, an id of the data without a row, or no way to tell whose rows are whose.
    """
    rows, size = len(table), len(data_ids)
    flag = f"--teacher-{kind}-ids"
    if ids_of_rows is not None:
        if len(ids_of_rows) != rows:
            raise UserError(f"{flag}: {len(ids_of_rows)} ids, but {name} has {rows} rows of {kind}s; give one a row")
        at = ids_of_rows.find(data_ids.values)
        if missing := int((at < 0).sum()):
            example = data_ids.values[int(np.argmax(at < 0))].as_py()
            raise UserError(
                f"{flag}: {missing} of the data's {size} {kind}s are not among its {rows} ids, {example!r} for one; "
                f"its ids are like {ids_of_rows.values[0].as_py()!r}"
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
        f"{name} has {rows} rows of {kind}s, and the data {size} {kind}s, which are called like {example!r}: expected "
        f"a row for each, in the order of their ids, or the rows' ids in a file, {flag} FILE"
    )


def _arrays(path: Path) -> dict[str, Found]:
    """The arrays of one file by name."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        raise UserError(f"{shown(path)}: an .npy file is one table; give two, users.npy items.npy")
    if suffix == ".npz":
        return _npz(path)
    if suffix == ".safetensors":
        return _safetensors(path)
    if suffix in TORCH:
        checkpoint = Checkpoint(path)
        if not checkpoint.tensors:
            raise UserError(
                f"{shown(path)}: no tensor in its dicts; if a module was saved whole, save its state_dict() instead"
            )
        read = lambda name: lambda: checkpoint.read(name)
        return {name: Found(of.dtype, of.shape, read(name)) for name, of in checkpoint.tensors.items()}
    raise UserError(
        f"{shown(path)}: tables are read from {', '.join(TABLES)}, not from {suffix or 'a file without a suffix'!r}"
    )


def _pair(path: Path, arrays: Mapping[str, Found]) -> tuple[str, str]:
    """The names of the users' and of the items' table."""
    side = lambda name, one, other: one in name.lower() and other not in name.lower()
    users = [name for name in arrays if side(name, "user", "item")]
    items = [name for name in arrays if side(name, "item", "user")]
    tables_of = lambda names: [name for name in names if len(arrays[name].shape) == 2]
    # Biases and counters are of one axis: they count only where there is nothing else to say what is wrong with.
    users, items = tables_of(users) or users, tables_of(items) or items
    item_like = lambda name: re.sub("user", "item", name, flags=re.IGNORECASE).lower()
    by_name = [(u, i) for u in users for i in items if item_like(u) == i.lower()]
    pairs = by_name or [(u, i) for u in users for i in items]
    if len(pairs) == 1:
        return pairs[0]
    if pairs:
        named = "; ".join(f"{shown(u)} and {shown(i)}" for u, i in pairs[:LISTED])
        more = f" and {len(pairs) - LISTED} more" if len(pairs) > LISTED else ""
        raise UserError(f"{shown(path)}: more than one pair of tables: {named}{more}; save the right one alone")
    lacking = " and ".join(f"no {kind}s' table" for kind, names in (("user", users), ("item", items)) if not names)
    held = ", ".join(f"{shown(name)} {list(of.shape)}" for name, of in [*arrays.items()][:LISTED])
    more = f" and {len(arrays) - LISTED} more" if len(arrays) > LISTED else ""
    raise UserError(
        f"{shown(path)}: {lacking}, an array with 'user' or 'item' in its name; it holds {held or 'nothing'}{more}"
    )


def _before_reading(found: Mapping[str, Found]) -> list[str]:
    """What is wrong with two tables, as far as their shapes and types tell."""
    problems = []
    for name, (dtype, shape, _) in found.items():
        if not (dtype.kind == "f" or dtype == BFLOAT16):
            problems.append(
                f"{name}: holds {dtype}, no floats; representations are float32, or float16, float64, bfloat16"
            )
        if len(shape) != 2:
            problems.append(f"{name}: of shape {list(shape)}; expected two axes, rows and dimensions")
        elif 0 in shape:
            problems.append(f"{name}: empty, of shape {list(shape)}")
    (first, of_first), (second, of_second) = found.items()
    shapes = of_first.shape, of_second.shape
    if all(len(shape) == 2 for shape in shapes) and shapes[0][1] != shapes[1][1]:
        problems.append(f"{second}: of width {shapes[1][1]}, but {first} of width {shapes[0][1]}; they must be equal")
    return problems


def _as_float32(name: str, found: Found) -> tuple[np.ndarray, list[str]]:
    """The table, and what is wrong with its numbers."""
    try:
        given = found.read()
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
            of = f"{count} of {len(rows)} rows hold" if count > 1 else f"one of {len(rows)} rows holds"
            problems.append(
                f"{name}: {of} {what}, {'the first is ' if count > 1 else ''}row {int(np.argmax(rows))}, counted from 0"
            )
    return table, problems


def _npy(path: Path, *, what: str = "table", kinds: str = "") -> Found:
    """The array of an `.npy` file. Its header is compared with the file's size before anything is read."""
    if path.suffix.lower() != ".npy":
        raise UserError(f"{shown(path)}: two files of tables are two .npy files, users.npy items.npy")
    with reading(path):
        size = path.stat().st_size
        with open(path, "rb") as file:
            dtype, shape, fortran = _header(file)
            start = file.tell()
        _check_size(f"{shown(path)}", dtype, shape, size - start)
        if kinds and (dtype.kind not in kinds or len(shape) != 1):
            raise UserError(
                f"{shown(path)}: holds {dtype} of shape {list(shape)}; {what} are one axis of numbers or texts"
            )

    def read() -> np.ndarray:
        with reading(path), open(path, "rb") as file:
            file.seek(start)
            count = math.prod(shape)
            return _shaped(file.read(count * dtype.itemsize), dtype, shape, fortran)

    return Found(dtype, shape, read)


def _npz(path: Path) -> dict[str, Found]:
    """The arrays of an `.npz` file. Each member's header is compared with its size, and that with the file's."""
    found = {}
    with reading(path), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.filename.endswith(".npy"):
                continue
            name = info.filename.removesuffix(".npy")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(f"{shown(path)}: {shown(name)}: compressed in a way that numpy does not write")
            if info.file_size > INFLATED * path.stat().st_size:
                raise UserError(f"{shown(path)}: damaged: {shown(name)} is said to be of {info.file_size} bytes")
            with archive.open(info) as file:
                dtype, shape, fortran = _header(file)
                start = file.tell()
            _check_size(f"{shown(path)}: {shown(name)}", dtype, shape, info.file_size - start)
            found[name] = Found(dtype, shape, _of_member(path, info, start, dtype, shape, fortran))
    return found


def _of_member(
    path: Path, info: zipfile.ZipInfo, start: int, dtype: np.dtype, shape: tuple[int, ...], fortran: bool
) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        with reading(path), zipfile.ZipFile(path) as archive:
            return _shaped(archive.read(info), dtype, shape, fortran, start)  # whole, so that its checksum is seen

    return read


def _header(file: IO[bytes]) -> tuple[np.dtype, tuple[int, ...], bool]:
    """The type, the shape and whether columns come first, of an `.npy` file that stands at its start."""
    with warnings.catch_warnings(), _plainly("its header cannot be read"):
        warnings.simplefilter("ignore")  # of headers that Python 2 wrote
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:  # 3.0 is of names of fields, which no table has
            raise ValueError
    return dtype, shape, fortran


def _check_size(name: str, dtype: np.dtype, shape: tuple[int, ...], left: int) -> None:
    if dtype.hasobject:
        raise UserError(
            f"{name}: holds Python objects, which are not read; save plain numbers: array.astype('float32')"
        )
    if any(size < 0 for size in shape):
        raise UserError(f"{name}: damaged: its header says shape {list(shape)}")
    if math.prod(shape) * dtype.itemsize > left:
        raise UserError(
            f"{name}: cut off: its header says {list(shape)} of {dtype}, more than the {left} bytes that follow"
        )


def _shaped(data: bytes, dtype: np.dtype, shape: tuple[int, ...], fortran: bool, start: int = 0) -> np.ndarray:
    numbers = np.frombuffer(data, dtype, math.prod(shape), start)
    return numbers.reshape(shape, order="F" if fortran else "C")


def _safetensors(path: Path) -> dict[str, Found]:
    """The arrays of a `.safetensors` file, whose library has compared its header with its size."""
    import safetensors

    types = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": BFLOAT16}
    whole = {
        f"{of}{bits}": f"{of.lower().replace('i', 'int').replace('u', 'uint')}{bits}"
        for of in "IU"
        for bits in (8, 16, 32, 64)
    }

    def read(name: str) -> Callable[[], np.ndarray]:
        def of_name() -> np.ndarray:
            with reading(path), safetensors.safe_open(path, framework="numpy") as file:
                return file.get_tensor(name)

        return of_name

    found = {}
    with reading(path), safetensors.safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            of = file.get_slice(name)
            kind = of.get_dtype()
            # Of any other type all that matters is that it is no float.
            dtype = np.dtype(types.get(kind, whole.get(kind, np.bool_ if kind == "BOOL" else np.void)))
            found[name] = Found(dtype, tuple(of.get_shape()), read(name))
    return found


@contextlib.contextmanager
def _plainly(what: str) -> Iterator[None]:
    """Errors in words of ours, where a library's are of its own parts."""
    try:
        yield
    except Exception:
        raise ValueError(what) from None


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Errors of reading a file as a `UserError`: a damaged file raises whatever its bytes happen to mean."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{shown(path)}: there is no such file") from None
    except IsADirectoryError:
        raise UserError(f"{shown(path)}: a folder, where a file is expected") from None
    except MemoryError:
        raise UserError(f"{shown(path)}: too large for the memory of this machine") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path)}: not UTF-8, at byte {error.start}; save it as UTF-8") from None
    except OSError as error:
        why = None if error.errno == errno.EINVAL else error.strerror  # a place before a file's start, of an archive
        raise UserError(f"{shown(path)}: cannot be read ({why or 'damaged or cut off'})") from None
    except Exception as error:
        said = str(error)
        if "Empty CSV" in said:
            raise UserError(f"{shown(path)}: it is empty") from None
        if "invalid utf8" in said.lower():
            row = re.search(r"Row #(\d+)", said)
            where = f", line {row[1]}" if row else ""
            raise UserError(f"{shown(path)}: not UTF-8{where}; save it as UTF-8") from None
        if wrong := re.search(r"(?s)(?:Row #(\d+): )?Expected (\d+) columns, got (\d+): (.*)", said):
            number, expected, got, text = wrong.groups()
            where = f"line {number}" if number else "a line"
            raise UserError(
                f"{shown(path)}: {where} has {got} columns, the header {expected}: {shown(text[:40])!r}"
            ) from None
        said = shown(said.split("\n")[0])[:100]
        raise UserError(f"{shown(path)}: damaged, or no {path.suffix} file ({said})") from None
