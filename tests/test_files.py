"""Files are regular and no larger in memory than their bytes justify, or they are refused in a line."""

import contextlib
import gzip
import io
import json
import os
import struct
import time
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from htd_jax.data.arrays import open_arrays
from htd_jax.data.files import INFLATION, MOST_JSON, open_inflated, open_parquet, read_json
from htd_jax.data.splits import load_split
from htd_jax.data.tables import read_tables
from htd_jax.errors import UserError, reading


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_pipes_and_devices_are_refused_before_they_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/null"):
        with pytest.raises(UserError, match="is a pipe or a device"), reading(path, "a file"):
            raise AssertionError("opened")
    with pytest.raises(UserError, match="is a folder"):
        read_json(tmp_path)


def test_json_has_a_stated_size_and_depth(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": [1, 2]}')
    assert read_json(path) == {"a": [1, 2]}
    for text in ("[" * 10**6, "9" * 10**5, "{", "\x00"):
        path.write_text(text)
        with pytest.raises(UserError, match="damaged"):
            read_json(path)
    with path.open("wb") as file:
        file.truncate(MOST_JSON + 1)
    with pytest.raises(UserError, match=f"a JSON file has at most {MOST_JSON}"):
        read_json(path)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_compressed_bytes_become_so_many_times_more(tmp_path, compression):
    def write(data: bytes):
        if compression == "gzip":
            (tmp_path / "x").write_bytes(gzip.compress(data))
        else:
            with pa.CompressedOutputStream(str(tmp_path / "x"), "zstd") as file:
                file.write(data)

    text = "".join(f"user{i % 999},item{i}\n" for i in range(10**5)).encode()
    write(text)
    with open_inflated(tmp_path / "x", compression) as file:
        assert file.read() == text
    write(bytes(10**8))
    with pytest.raises(UserError, match=f"more than {INFLATION} each"), open_inflated(tmp_path / "x", compression) as f:
        f.read()


def test_parquet_rows_are_in_proportion_to_bytes(tmp_path):
    pq.write_table(pa.table({"a": np.zeros(3 * 10**7, np.int8)}), tmp_path / "x.parquet", compression="zstd")
    with pytest.raises(UserError, match="30000000 rows, more than"), open_parquet(tmp_path / "x.parquet"):
        pass


def test_a_split_says_sizes_that_its_bytes_justify(tmp_path):
    pairs = np.array([[0, 0]])
    for sizes in ([5, 2 * 10**9], [2 * 10**9, 5]):
        np.savez(tmp_path / "split.npz", train=pairs, valid=pairs + 1, test=pairs + 2, sizes=np.array(sizes))
        with pytest.raises(UserError, match="more than its .* bytes justify"):
            load_split(tmp_path / "split.npz")
    np.savez(tmp_path / "split.npz", train=pairs, valid=pairs + 1, test=pairs + 2, sizes=np.array([5, 9]))
    assert load_split(tmp_path / "split.npz").train.num_items == 9


def test_an_archive_of_arrays_becomes_so_many_times_more(tmp_path):
    np.savez_compressed(tmp_path / "t.npz", users=np.zeros((10**6, 8), np.float32), items=np.ones((4, 8), np.float32))
    with pytest.raises(UserError, match=f"users: .* more than {INFLATION} each; save it uncompressed"):
        open_arrays(tmp_path / "t.npz")


def took(make, read, size: int) -> float:
    """Returns the seconds of CPU of reading a file of this size, at best of three."""
    path = make(size)
    times = []
    for _ in range(3):
        begin = time.process_time()
        with contextlib.suppress(UserError):
            read(path)
        times.append(time.process_time() - begin)
    return min(times)


def lists_again(path):
    """A pickle that makes a dict of one long list again and again."""

    def make(size: int):
        items = b"K\x01K\x02\x86q\x02" + b"h\x02" * size
        program = b"\x80\x02ccollections\nOrderedDict\nq\x010](" + items + b"eq\x030" + b"h\x01(h\x03tR0" * size + b"}."
        with zipfile.ZipFile(path / "t.pth", "w") as archive:
            archive.writestr("a/data.pkl", program)
        return path / "t.pth"

    return make


def many_names(path):
    """Tables of many names: users and items that do not belong to each other."""

    def make(size: int):
        empty = {"dtype": "F32", "shape": [0, 1], "data_offsets": [0, 0]}
        head = json.dumps({name: empty for i in range(size) for name in (f"user{i}", f"item_{i}_")}).encode()
        (path / "t.safetensors").write_bytes(struct.pack("<Q", len(head)) + head)
        return path / "t.safetensors"

    return make


def many_members(path):
    def make(size: int):
        data = io.BytesIO()
        np.save(data, np.zeros(1))
        with zipfile.ZipFile(path / "t.npz", "w") as archive:
            for i in range(size):
                archive.writestr(f"{i}.npy", data.getvalue())
        return path / "t.npz"

    return make


@pytest.mark.parametrize(
    "make, size",
    [(lists_again, 2000), (many_names, 1000), (many_members, 500)],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_four_times_the_file_takes_no_more_than_ten_times_as_long(tmp_path, make, size):
    small, large = (took(make(tmp_path), lambda path: read_tables([path]), times * size) for times in (1, 4))
    assert large < 10 * small + 0.1  # quadratic: 16
