"""Limits of the files that are read. Time and memory are linear in a file's bytes, or the file is refused in a line.

A few bytes can ask for any amount of memory: a compressed file of zeros, a header that names a size, one value that is
repeated. Every such size is compared with the file's own before it is used. `htd_jax.errors.reading`, through which all
readers go, also refuses pipes and devices, which may never end.
"""

import contextlib
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from htd_jax.errors import UserError, reading, shown

# The largest JSON or TOML file: settings, results, histories. A history of 100,000 epochs has about 40 MiB.
MOST_JSON = 2**26

# The largest pickle in a torch checkpoint. It holds no tensor data: large checkpoints need some hundred kilobytes.
MOST_PICKLE = 2**24

# The largest number of arrays in one file. Checkpoints of large models have some thousands.
MOST_ARRAYS = 2**17

# A compressed file may become this many times larger, and this many bytes (or rows of Parquet) in any case. Tables of
# trained numbers shrink to 9 tenths, text to a tenth, and what shrinks further is either small or made to harm.
INFLATION = 64
SLACK = 2**22


def most_inflated(size: int) -> int:
    """Returns the largest number of bytes, or rows of Parquet, that `size` compressed bytes may stand for."""
    return INFLATION * size + SLACK


def check_inflated(path: Path, inflated: int, name: str = "", unit: str = "bytes") -> None:
    """Raises UserError if a compressed file, or a part `name` of it, says that it becomes too large."""
    size = path.stat().st_size
    if inflated > most_inflated(size):
        part = f" {name}:" if name else ""
        advice = "write it without dictionaries" if unit == "rows" else "save it uncompressed"
        raise UserError(
            f"{shown(path)}:{part} its {size} bytes stand for {inflated} {unit}, more than {INFLATION} each; {advice}"
        )


def read_text(path: Path, what: str) -> str:
    """Returns the content of a text file of at most `MOST_JSON` bytes, see `read_json`."""
    with reading(path, what):
        size = path.stat().st_size
        if size > MOST_JSON:
            raise UserError(f"{shown(path)}: has {size} bytes; {what} has at most {MOST_JSON}")
        return path.read_bytes().decode()


def read_json(path: Path, what: str = "a JSON file") -> Any:
    """Returns the content of a JSON file.

    Args:
      what: the expected content with its article, for messages.

    Raises:
      UserError: if it cannot be read, is damaged, or is larger than `MOST_JSON`.
    """
    with reading(path, what):
        return json.loads(read_text(path, what))


@contextlib.contextmanager
def open_parquet(path: Path, **options: Any) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file whose number of rows is in proportion to its bytes; see `INFLATION`.

    Raises:
      UserError: if it claims more rows.
      pa.ArrowException, OSError: if it cannot be read or is damaged.
    """
    with pq.ParquetFile(path, **options) as file:
        check_inflated(path, file.metadata.num_rows, unit="rows")
        yield file


def open_inflated(path: Path, compression: str | None) -> BinaryIO:
    """Opens a file of bytes, decompressed; reading raises UserError past `most_inflated`.

    Args:
      compression: `gzip`, `zstd` or None.
    """
    if compression is None:
        return open(path, "rb")
    zipped = compression == "gzip"
    raw: Any = gzip.open(path) if zipped else pa.input_stream(str(path), compression=compression)  # noqa: SIM115
    return io.BufferedReader(_Inflated(raw, path), 2**20)


class _Inflated(io.RawIOBase):
    """A decompressed file that counts its bytes."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self._path, self._read = file, path, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        self._read += len(data)
        check_inflated(self._path, self._read)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
