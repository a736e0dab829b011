"""Files are regular and no larger in memory than their bytes justify, or they are refused in a line."""

import gzip
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from htd_jax.data.files import INFLATION, MOST_JSON, open_inflated, open_parquet, read_json
from htd_jax.errors import UserError, reading


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_pipes_and_devices_are_refused_before_they_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/null"):
        with pytest.raises(UserError, match="is a pipe or a device"), reading(path, "a file"):
            open(path, "rb").read()
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
