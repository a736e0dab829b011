"""Arrays in files of any framework: opened by name, sizes checked against the file's, read on demand.

`.npy`, `.npz` and `.safetensors` files, and torch checkpoints. Nothing is unpickled.
"""

import contextlib
import math
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa

from htd_jax.data.files import MOST_ARRAYS, check_inflated
from htd_jax.errors import UserError, reading, shown

# Suffixes of files with arrays; `.npy` has one.
TORCH = (".pth", ".pt", ".ckpt", ".bin")
SUFFIXES = (".npy", ".npz", ".safetensors", *TORCH)

# The largest number of names in a message, and the largest length of one.
LISTED, LONGEST_NAME = 8, 80


class LazyArray(NamedTuple):
    """An array in a file, which is read on demand."""

    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def open_arrays(path: Path) -> dict[str, LazyArray]:
    """Returns the arrays of an `.npz`, `.safetensors` or torch file by name.

    Raises:
      UserError: if the file cannot be read, is damaged or has another format, or holds more than `MOST_ARRAYS`.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        raise UserError(f"{shown(path)}: an .npy file holds one table; give two, users.npy items.npy")
    if suffix == ".npz":
        return open_npz(path)
    if suffix == ".safetensors":
        return _safetensors(path)
    if suffix in TORCH:
        from htd_jax.data.torchfile import Checkpoint

        checkpoint = Checkpoint(path)
        if not checkpoint.tensors:
            raise UserError(
                f"{shown(path)}: its dicts hold no tensor; if it is a whole module, save its state_dict() instead"
            )
        read = lambda name: lambda: checkpoint.read(name)
        return {name: LazyArray(x.dtype, x.shape, read(name)) for name, x in checkpoint.tensors.items()}
    raise UserError(
        f"{shown(path)}: tables are read from {', '.join(SUFFIXES)}, not from {suffix or 'a file without a suffix'!r}"
    )


def open_array(path: Path) -> LazyArray:
    """Opens the array of an `.npy` file.

    Raises:
      UserError: if it cannot be read, is damaged or has another format.
    """
    if path.suffix.lower() != ".npy":
        raise UserError(f"{shown(path)}: two files of tables must be .npy files, users.npy items.npy")
    with reading(path, "an .npy file"), path.open("rb") as file:
        dtype, shape, fortran, start = _header(file, shown(path), path.stat().st_size)
    return LazyArray(dtype, shape, _reader(path, lambda: path.open("rb"), dtype, shape, fortran, start))


def open_npz(path: Path) -> dict[str, LazyArray]:
    """Opens the arrays of an `.npz` file, whatever its suffix.

    Raises:
      UserError: if it cannot be read or is damaged, or its arrays become larger than `files.INFLATION` allows.
    """

    def opener(info: zipfile.ZipInfo) -> Callable[[], contextlib.AbstractContextManager[IO[bytes]]]:
        @contextlib.contextmanager
        def open_member() -> Any:
            with zipfile.ZipFile(path) as archive, archive.open(info) as file:
                yield file

        return open_member

    arrays = {}
    with reading(path, "an .npz file"), zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        _check_number(path, len(members))
        for info in members:
            name = info.filename.removesuffix(".npy")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(f"{shown(path)}: {short(name)}: compressed in a way that numpy does not use")
            check_inflated(path, info.file_size, short(name))
            with archive.open(info) as file:
                dtype, shape, fortran, start = _header(file, f"{shown(path)}: {short(name)}", info.file_size)
            arrays[name] = LazyArray(dtype, shape, _reader(path, opener(info), dtype, shape, fortran, start))
    return arrays


def read_id_array(path: Path) -> pa.Array:
    """Reads the ids in an `.npy` file of one axis, of numbers or strings.

    Raises:
      UserError: if it cannot be read or holds something else.
    """
    array = open_array(path)
    if array.dtype.kind not in "iuUS" or len(array.shape) != 1:
        held = f"{array.dtype} of shape {list(array.shape)}"
        raise UserError(f"{shown(path)}: holds {held}; ids are one axis of numbers or strings")
    with reading(path, "a file of ids"):
        ids = array.read()
        ids = np.char.decode(ids, "utf-8") if ids.dtype.kind == "S" else ids
        column = pa.array(ids.tolist() if ids.dtype.kind == "U" else ids.astype(ids.dtype.newbyteorder("=")))
        column.validate(full=True)
        return column


def safetensors_bytes(arrays: Mapping[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    """Returns arrays in the format of `.safetensors`, whatever their layout in memory.

    The library writes the memory of an array as it lies: an array in column order, or one with big-endian numbers,
    would be read as another one.
    """
    import safetensors.numpy

    plain = {name: np.ascontiguousarray(x, x.dtype.newbyteorder("<")) for name, x in arrays.items()}
    return safetensors.numpy.save(plain, metadata)


def short(name: str) -> str:
    """Returns a name from a file, printable and of a limited length."""
    return shown(name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "...")


def listed(names: Mapping[str, LazyArray]) -> str:
    """Returns the first names of arrays with their shapes, for a message."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(f"{short(name)} {list(array.shape)}" for name, array in [*names.items()][:LISTED]) + more


def _check_number(path: Path, arrays: int) -> None:
    if arrays > MOST_ARRAYS:
        raise UserError(f"{shown(path)}: holds {arrays} arrays; at most {MOST_ARRAYS} are read")


def _reader(
    path: Path,
    open_file: Callable[[], contextlib.AbstractContextManager[IO[bytes]]],
    dtype: np.dtype,
    shape: tuple[int, ...],
    fortran: bool,
    start: int,
) -> Callable[[], np.ndarray]:
    """Returns what reads an array in the `.npy` format that begins at `start`."""

    def read() -> np.ndarray:
        with reading(path, f"an {path.suffix} file"), open_file() as file:
            data = file.read()  # to the end, where zip archives check the checksum
            return np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape, order="F" if fortran else "C")

    return read


def _header(file: IO[bytes], name: str, size: int) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    """Reads the header of an array in the `.npy` format: dtype, shape, whether it is in Fortran order, and its length.

    Raises:
      UserError: if it says more than the `size` bytes hold. Arrays of Python objects may have any size.
    """
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about headers written by Python 2
        try:
            # Version 3.0 is for names of fields, which tables have none of.
            shape, fortran, dtype = read[np.lib.format.read_magic(file)](file)
        except Exception:  # numpy's own messages are about its internals
            raise ValueError("its header cannot be read") from None
    if len(shape) > 32:
        raise ValueError(f"its header says {len(shape)} axes")
    start = file.tell()
    if any(size < 0 for size in shape):
        raise UserError(f"{name}: damaged: its header says shape {list(shape)}")
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize > size - start:
        raise UserError(
            f"{name}: cut off: its header says {list(shape)} of {dtype}, more than the {size - start} bytes that follow"
        )
    return dtype, shape, fortran, start


def _safetensors(path: Path) -> dict[str, LazyArray]:
    """Opens the arrays of a `.safetensors` file, whose library compares its header with its size."""
    import safetensors

    # All that matters about other types is that they are not floats.
    types: dict[str, Any] = {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
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
        _check_number(path, len(file.keys()))
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            part = file.get_slice(name)
            if part.get_dtype() == "BF16":
                import ml_dtypes  # comes with JAX, which reading an export does not need

                types["BF16"] = ml_dtypes.bfloat16
            dtype = np.dtype(types.get(part.get_dtype(), np.void))
            arrays[name] = LazyArray(dtype, tuple(part.get_shape()), reader(name))
    return arrays
