"""A teacher from files: what is read is what was written, and what is wrong is said in a line."""

import gzip
import json
import pickle
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import fuzz
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

import htd_jax
from htd_jax.data import Ids, write_ids
from htd_jax.data.arrays import open_arrays, safetensors_bytes
from htd_jax.data.columns import is_table_folder
from htd_jax.data.idfiles import read_id_column, read_id_file, read_row_ids
from htd_jax.data.ranked import RankedLists, read_lists, to_lists
from htd_jax.data.tables import match_rows, read_tables, read_tables_and_notes
from htd_jax.data.torchfile import Checkpoint
from htd_jax.errors import UserError
from htd_jax.evaluation import Full, Sampled, make_evaluator
from htd_jax.models.listed import listed, popularity

FILES = Path(__file__).parent / "files"
USERS = np.arange(12, dtype=np.float32).reshape(4, 3)
ITEMS = -np.arange(15, dtype=np.float32).reshape(5, 3)


def refused(call, *arguments, **named) -> list[str]:
    """The lines that tell why it cannot be."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **named)
    lines = [str(line) for line in caught.value.args]
    assert lines and all("\n" not in line and line.isprintable() for line in lines)
    return lines


def line_of(call, *arguments, **named) -> str:
    (line,) = refused(call, *arguments, **named)
    return line


def saved(folder: Path, name: str, table) -> Path:
    path = folder / name
    np.save(path, table)
    return path


def check(tables, users=USERS, items=ITEMS):
    for table, expected in zip(tables, (users, items)):
        assert table.dtype == np.float32 and table.flags.c_contiguous
        np.testing.assert_array_equal(table, expected)


class TestTables:
    @pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8", ">f8"])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_two_npy(self, tmp_path, dtype, order):
        paths = [
            saved(tmp_path, f"{i}.npy", table.astype(dtype, order=order)) for i, table in enumerate((USERS, ITEMS))
        ]
        check(read_tables(paths))

    @pytest.mark.parametrize(
        "names",
        [("users", "items"), ("user_factors", "item_factors"), ("User.weight", "Item.weight"), ("P_user", "x_item")],
    )
    @pytest.mark.parametrize("kind", ["npz", "compressed.npz", "safetensors"])
    def test_one_file(self, tmp_path, names, kind):
        path = tmp_path / f"tables.{kind}"
        tables = dict(zip(names, (USERS, ITEMS))) | {"user_bias": np.zeros(4, np.float32), "steps": np.arange(3)}
        if kind == "safetensors":
            safetensors.numpy.save_file(tables, path)
        else:
            (np.savez_compressed if "comp" in kind else np.savez)(path, **tables)
        check(read_tables([path]))

    def test_bfloat16(self, tmp_path):
        path = tmp_path / "tables.safetensors"
        half = {"users": np.asarray(jnp.asarray(USERS, jnp.bfloat16)), "items": ITEMS.astype(np.float16)}
        safetensors.numpy.save_file(half, path)
        check(read_tables([path]))

    def test_pair_by_name_among_others(self, tmp_path):
        np.savez(tmp_path / "t.npz", user_emb=USERS, item_emb=ITEMS, user_side=USERS)
        check(read_tables([tmp_path / "t.npz"]))

    def test_an_export_is_a_pair_of_tables(self, tmp_path):
        maps = {
            f"{side}_{what}": np.zeros((2, 2), np.float32) for side in ("user", "item") for what in ("map", "knots")
        }
        safetensors.numpy.save_file({"users": USERS, "items": ITEMS, **maps}, tmp_path / "t.safetensors")
        check(read_tables([tmp_path / "t.safetensors"]))

    def test_several_pairs(self, tmp_path):
        np.savez(tmp_path / "t.npz", user_mf=USERS, item_mf=ITEMS, user_mlp=USERS, item_mlp=ITEMS)
        line = line_of(read_tables, [tmp_path / "t.npz"])
        assert "more than one pair" in line and "user_mf and item_mf; user_mlp and item_mlp" in line

    def test_no_pair(self, tmp_path):
        np.savez(tmp_path / "t.npz", P=USERS, Q=ITEMS)
        line = line_of(read_tables, [tmp_path / "t.npz"])
        assert "no users' table and no items' table" in line and "P [4, 3], Q [5, 3]" in line

    def test_all_that_is_wrong_at_once(self, tmp_path):
        users = saved(tmp_path, "users.npy", np.zeros((4, 3), np.int64))
        items = saved(tmp_path, "items.npy", np.zeros((5, 2)))
        lines = refused(read_tables, [users, items])
        assert len(lines) == 2 and "users.npy: holds int64, not floats" in lines[0] and "has width 2, but" in lines[1]
        assert len(refused(read_tables, [tmp_path / "a.npy", tmp_path / "b.npy"])) == 2

    def test_numbers_that_cannot_be(self, tmp_path):
        users, items = USERS.astype(np.float64), ITEMS.astype(np.float64)
        users[2, 1], users[3, 0], items[1, 1] = np.nan, np.inf, 1e39
        lines = refused(read_tables, [saved(tmp_path, "u.npy", users), saved(tmp_path, "i.npy", items)])
        assert "2 of 4 rows hold numbers that are not finite, the first is row 2" in lines[0]
        assert "one of 5 rows holds numbers too large for float32, row 1" in lines[1]

    @pytest.mark.parametrize(
        "table, says",
        [
            (np.zeros(4), "has shape [4]; expected two axes"),
            (np.zeros((0, 3)), "empty, with shape [0, 3]"),
            (np.zeros((4, 3), complex), "holds complex128"),
            (np.zeros((4, 3), bool), "holds bool"),
            (np.array([[None]]), "holds Python objects, which are not read"),
            (np.zeros(3, [("a", "f4")]), "not floats"),
        ],
    )
    def test_arrays_that_are_no_tables(self, tmp_path, table, says):
        path, items = saved(tmp_path, "users.npy", table), saved(tmp_path, "items.npy", ITEMS)
        assert any(says in line for line in refused(read_tables, [path, items]))
        np.savez(tmp_path / "t.npz", users=table, items=ITEMS)
        assert any(says in line for line in refused(read_tables, [tmp_path / "t.npz"]))

    def test_header_that_says_more_than_there_is(self, tmp_path):
        path = saved(tmp_path, "users.npy", USERS)
        data = path.read_bytes()
        path.write_bytes(data[:-1])
        assert "cut off" in line_of(read_tables, [path, saved(tmp_path, "items.npy", ITEMS)])
        path.write_bytes(data.replace(b"(4, 3), }     ", b"(9999999999, 3)").replace(b", 3)", b", 3)}", 1))
        assert len(refused(read_tables, [path, tmp_path / "items.npy"])) == 1

    @pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".pth", ".pt"])
    def test_missing_damaged_and_empty(self, tmp_path, suffix):
        path = tmp_path / f"t{suffix}"
        paths = [path, saved(tmp_path, "i.npy", ITEMS)] if suffix == ".npy" else [path]
        assert "t" + suffix in line_of(read_tables, paths)
        for data in (b"", b"PK\3\4 nothing", b"\x93NUMPY\1\0\xff\xff"):
            path.write_bytes(data)
            assert "t" + suffix in line_of(read_tables, paths)
        path.unlink()
        path.mkdir()
        assert "t" + suffix in line_of(read_tables, paths)

    def test_files_that_are_none_of_these(self, tmp_path):
        (tmp_path / "t.h5").write_bytes(b"1")
        assert ".safetensors" in line_of(read_tables, [tmp_path / "t.h5"])
        path = saved(tmp_path, "users.npy", USERS)
        assert "give two" in line_of(read_tables, [path])
        assert "one file for each" in line_of(read_tables, [path, path])
        items = saved(tmp_path, "items.npy", ITEMS)
        assert "the users' file comes first" in line_of(read_tables, [items, path])
        assert "one file or two" in line_of(read_tables, [items, path, path])


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def torch_file(path: Path, program: bytes, **members: bytes) -> Path:
    """A zip archive as torch writes it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        for name, data in members.items():
            archive.writestr(f"archive/data/{name.strip('_')}", data)
    return path


def tensor(key="0", offset=0, shape=(4, 3), strides=(3, 1), storage="FloatStorage") -> bytes:
    """The opcodes that make a tensor."""

    def numbers(values):
        return b"(" + b"".join(b"L%dL\n" % value for value in values) + b"t"

    pid = b"(X\7\0\0\0storagectorch\n%s\nX\1\0\0\0%sX\3\0\0\0cpuK\x0ctQ" % (storage.encode(), key.encode())
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + b"L%dL\n" % offset + numbers(shape) + numbers(strides)
    return call + b"\x89ccollections\nOrderedDict\n)RtR"


def tables_program(users: bytes, items: bytes) -> bytes:
    return b"\x80\2}(X\5\0\0\0users" + users + b"X\5\0\0\0items" + items + b"u."


class TestTorch:
    """`files/` were written by torch, see the README there."""

    def test_a_checkpoint_of_recbole(self):
        with np.load(FILES / "recbole.npz") as expected:
            check(read_tables([FILES / "recbole.pth"]), **expected)

    def test_views_and_types(self):
        file = Checkpoint(FILES / "views.pth")
        base = np.arange(60.0).reshape(6, 10)
        expected = {"users": base.T[:4], "items": base[::2, 1:9:2], "n": np.array([1, 2]), "p": base[1:3, :4]}
        assert set(file.tensors) == set(expected)
        for name, table in expected.items():
            np.testing.assert_array_equal(file.read(name).astype(float), table)

    def test_reads_without_torch(self):
        code = "import sys, htd_jax.data.tables as t; t.read_tables(sys.argv[1:]); assert 'torch' not in sys.modules"
        subprocess.run([sys.executable, "-c", code, FILES / "recbole.pth"], check=True)

    def test_what_torch_wrote_otherwise(self):
        assert "before 1.6; save it again" in line_of(read_tables, [FILES / "legacy.pth"])
        assert "save its state_dict() instead" in line_of(read_tables, [FILES / "whole.pth"])

    @pytest.mark.parametrize("protocol", range(6))
    def test_nothing_in_it_runs(self, tmp_path, protocol):
        left = tmp_path / "left"
        pickle.loads(pickle.dumps(Bomb(left)))
        left.unlink()  # so it would
        program = pickle.dumps({"config": Bomb(left), "users": [Bomb(left)]}, protocol=protocol)
        line_of(read_tables, [torch_file(tmp_path / "t.pth", program)])
        made = tables_program(b"cos\nsystem\n(X\4\0\0\0exittR0" + tensor(), tensor())
        path = torch_file(tmp_path / "t.pth", made, _0=USERS.tobytes())
        check(read_tables([path]), USERS, USERS)
        assert not left.exists()

    def test_made_by_hand(self, tmp_path):
        made = tables_program(tensor(), tensor("1", 3, (4, 3), (1, 4)))
        path = torch_file(tmp_path / "t.pth", made, _0=USERS.tobytes(), _1=np.arange(15, dtype="<f4").tobytes())
        check(read_tables([path]), USERS, np.arange(3, 15).reshape(3, 4).T)

    @pytest.mark.parametrize(
        "users, says",
        [
            (dict(offset=1), "past the end"),
            (dict(offset=-1), "damaged"),
            (dict(shape=(5, 3)), "past the end"),
            (dict(shape=(-4, 3)), "damaged"),
            (dict(strides=(3, 2)), "past the end"),
            (dict(strides=(-3, 1)), "damaged"),
            (dict(shape=(10**9, 3), strides=(0, 0)), "past the end"),
            (dict(shape=(2**70, 3)), "damaged"),
            (dict(shape=(2**61, 3)), "past the end"),
            (dict(shape=(4, 3, 1)), "damaged"),
            (dict(key="7"), "damaged"),
            (dict(storage="LongStorage"), "not floats"),
            (dict(storage="NoStorage"), "no users' table"),
        ],
    )
    def test_tensors_that_do_not_lie_in_their_storage(self, tmp_path, users, says):
        made = tables_program(tensor(**users), tensor())
        path = torch_file(tmp_path / "t.pth", made, _0=USERS.tobytes())
        assert any(says in line for line in refused(read_tables, [path]))

    @pytest.mark.parametrize(
        "program",
        [
            b"",
            b"\x80\2",
            b"\x80\2N",
            b".",
            b"t.",
            b"\x85.",
            b"(\x85.",
            b"h\0.",
            b"}r\xff\xff\xff\xff.",  # a memo of 2^32 places
            b"\x96\0\0\0\0\0\0\0\x7f.",  # a bytearray of 2^62
            b"\x80\2" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
            b"\x80\2" + b"(" * 10**5 + b"t" * 10**5 + b".",
            b"\x80\2}" + b"(" * 10**4 + b"t" * 10**4 + b"Ns.",  # a key that takes long to hash
            b"\x80\2]r\0\0\0\0" + b"h\0a" * 1000 + b".",  # a list of itself
            b"\x80\2I" + b"9" * 10**5 + b"\n.",
        ],
    )
    def test_pickles_that_are_none(self, tmp_path, program):
        line_of(read_tables, [torch_file(tmp_path / "t.pth", program)])

    def test_zip_bomb(self, tmp_path):
        path = tmp_path / "t.pth"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", b"\0" * 10**7)
        assert "compressed" in line_of(read_tables, [path])


class TestBiases:
    """Scores are the product plus the biases, as in LightFM."""

    RNG = np.random.default_rng(0)
    USERS, ITEMS = RNG.normal(size=(4, 3)).astype(np.float32), RNG.normal(size=(5, 3)).astype(np.float32)
    OF_USERS, OF_ITEMS = RNG.normal(size=4).astype(np.float32), RNG.normal(size=5).astype(np.float32)

    @pytest.mark.parametrize("suffix", ["npz", "safetensors"])
    @pytest.mark.parametrize("names", [("user_biases", "item_biases"), ("users.bias.weight", "item_bias.weight")])
    @pytest.mark.parametrize("axes", [1, 2])
    def test_they_are_dimensions(self, tmp_path, suffix, names, axes):
        biases = [bias.reshape(-1, *[1] * (axes - 1)) for bias in (self.OF_USERS, self.OF_ITEMS)]
        arrays = {"user_embeddings": self.USERS, "item_embeddings": self.ITEMS, **dict(zip(names, biases))}
        path = tmp_path / f"t.{suffix}"
        np.savez(path, **arrays) if suffix == "npz" else safetensors.numpy.save_file(arrays, path)
        (users, items), notes = read_tables_and_notes([path])
        assert users.shape == (4, 5) and items.shape == (5, 5)
        expected = self.USERS @ self.ITEMS.T + self.OF_USERS[:, None] + self.OF_ITEMS
        np.testing.assert_allclose(users @ items.T, expected, atol=1e-5)
        assert [sum(name in note for note in notes) for name in names] == [1, 1]

    @pytest.mark.parametrize("name", ["item_embedding_bias", "bi", "i_bias", "item_intercept", "items.bias"])
    def test_other_names_count(self, tmp_path, name):
        np.savez(tmp_path / "t.npz", user_factors=self.USERS, item_factors=self.ITEMS, **{name: self.OF_ITEMS})
        users, items = read_tables([tmp_path / "t.npz"])
        np.testing.assert_allclose(users @ items.T, self.USERS @ self.ITEMS.T + self.OF_ITEMS, atol=1e-5)

    @pytest.mark.parametrize("name", ["user_item_bias", "old.item_bias", "bias"])
    def test_what_could_be_a_bias_is_refused_by_name(self, tmp_path, name):
        np.savez(tmp_path / "t.npz", user_factors=self.USERS, item_factors=self.ITEMS, **{name: self.OF_ITEMS})
        assert f"{name} could be the biases of items; name it item_bias" in line_of(read_tables, [tmp_path / "t.npz"])

    def test_of_torch(self, tmp_path):
        bias = tensor("1", 0, (5, 1), (1, 1))
        made = tables_program(tensor(), tensor("2", 0, (5, 3)))[:-2] + b"X\x10\0\0\0item_bias.weight" + bias + b"u."
        data = {"_0": USERS.tobytes(), "_1": self.OF_ITEMS.tobytes(), "_2": ITEMS.tobytes()}
        users, items = read_tables([torch_file(tmp_path / "t.pth", made, **data)])
        np.testing.assert_allclose(users @ items.T, USERS @ ITEMS.T + self.OF_ITEMS)

    def test_zeros_are_left_out_and_other_arrays_are_named(self, tmp_path):
        other = {"item_biases": np.zeros(5), "mlp.weight": np.zeros((2, 2))}
        np.savez(tmp_path / "t.npz", users=USERS, items=ITEMS, **other)
        tables, notes = read_tables_and_notes([tmp_path / "t.npz"])
        check(tables)
        assert len(notes) == 1 and "users, items are read, other arrays are not: mlp.weight [2, 2]" in notes[0]

    @pytest.mark.parametrize(
        "biases, says",
        [
            (dict(item_bias=np.zeros(4)), "item_bias has shape [4], but items has 5 rows"),
            (dict(item_bias=np.zeros(5), item_biases=np.zeros(5)), "could be the biases of items; save only one"),
            (
                dict(item_bias=np.array([0, np.nan, 0, 0, 0])),
                "item_bias: one of 5 rows holds numbers that are",
            ),
            (dict(item_bias=np.zeros(5, int)), "item_bias: holds int64, not floats"),
        ],
    )
    def test_refused(self, tmp_path, biases, says):
        np.savez(tmp_path / "t.npz", users=USERS, items=ITEMS, **biases)
        assert says in line_of(read_tables, [tmp_path / "t.npz"])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, ">f4", ">f2"])
@pytest.mark.parametrize(
    "layout",
    [
        np.asfortranarray,
        lambda x: x[::-1],
        lambda x: x[:, ::-1],
        lambda x: x[::2, 1:],
        lambda x: np.array(x, order="K").T,
    ],
    ids=["columns", "rows reversed", "columns reversed", "slices", "transposed"],
)
def test_any_layout_in_memory_is_saved_as_the_array(tmp_path, layout, dtype):
    table = layout((np.arange(24).reshape(6, 4) - 12).astype(dtype))
    table.flags.writeable = False
    (tmp_path / "t.safetensors").write_bytes(safetensors_bytes({"x": table}, {}))
    read = open_arrays(tmp_path / "t.safetensors")["x"].read()
    assert read.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(read, table)


class TestRows:
    DATA = Ids.from_values(["a", "b", "c", "d"], "user")

    def test_by_id(self):
        ids = Ids.from_values(["[PAD]", "d", "x", "c", "b", "a"], "user")
        table = np.arange(12.0).reshape(6, 2)
        np.testing.assert_array_equal(match_rows(table, ids, self.DATA, "user"), table[[5, 4, 3, 1]])

    def test_numbers_by_id_file_of_texts(self):
        table = np.arange(6.0).reshape(3, 2)
        matched = match_rows(
            table, Ids.from_values(["[PAD]", "20", "10"], "item"), Ids.from_values([10, 20], "item"), "item"
        )
        np.testing.assert_array_equal(matched, table[[2, 1]])

    def test_without_ids(self):
        table = np.arange(8.0).reshape(4, 2)
        assert match_rows(table, None, self.DATA, "user") is table
        np.testing.assert_array_equal(match_rows(table, None, Ids.from_values([0, 3], "user"), "user"), table[[0, 3]])
        assert (
            match_rows(table, None, Ids.from_values([1, 2, 3, 4], "user"), "user") is table
        )  # one of them is past the end

    def test_what_cannot_be_matched(self):
        table = np.zeros((3, 2))
        line = line_of(match_rows, table, None, self.DATA, "user")
        assert (
            "3 rows of users, and the data 4 users" in line
            and "'a'" in line
            and "set `teacher_user_ids` to a file" in line
        )
        line = line_of(match_rows, table, Ids.from_values(["a", "b", "x"], "user"), self.DATA, "user")
        assert "the file's 3 ids lack 2 of the data's 4 users, for example 'c'" in line
        assert "2 ids, but" in line_of(match_rows, table, Ids.from_values(["a", "b"], "user"), self.DATA, "user")

    @pytest.mark.parametrize(
        "name, data",
        [
            ("ids.txt", b"[PAD]\n007\n\xc3\xa9\n"),
            ("ids.txt", b"\xef\xbb\xbf[PAD]\r\n007\r\n\xc3\xa9"),
            ("ids.csv", b"id\n[PAD]\n007\n\xc3\xa9\n"),
            ("ids.csv", b"[PAD]\n007\n\xc3\xa9\n"),
            ("ids.csv", b"n,user_id:token\n1,[PAD]\n1,007\n1,\xc3\xa9\n"),
            ("ids.tsv", b"n\tUSER\n1\t[PAD]\n1\t007\n1\t\xc3\xa9\n"),
        ],
    )
    def test_id_files(self, tmp_path, name, data):
        (tmp_path / name).write_bytes(data)
        assert read_id_file(tmp_path / name, "user").values.to_pylist() == ["[PAD]", "007", "é"]

    def test_id_files_of_arrays_and_runs(self, tmp_path):
        for values in ([3, 1, 2], ["b", "a"]):
            np.save(tmp_path / "ids.npy", values)
            assert read_id_file(tmp_path / "ids.npy", "user").values.to_pylist() == values
            write_ids(tmp_path / "users.parquet", Ids.from_values(values, "user"))
            assert read_id_file(tmp_path / "users.parquet", "user").values.to_pylist() == values
        pq.write_table(pa.table({"row": [2, 0, 1], "id": [30, 10, 20]}), tmp_path / "shuffled.parquet")
        assert read_id_file(tmp_path / "shuffled.parquet", "user").values.to_pylist() == [10, 20, 30]

    @pytest.mark.parametrize(
        "name, data, says",
        [
            ("ids.txt", b"", "no id"),
            ("ids.txt", b"a\n\nb\n", "line 2 is empty"),
            ("ids.txt", b"a\na\n", "'a' occurs more than once"),
            ("ids.txt", b"\xff\n", "not UTF-8"),
            ("ids.csv", b"", "empty"),
            ("ids.csv", b"id\n", "no id"),
            ("ids.csv", b"item_id\nx\n", "its column is named 'item_id', and ids of users are expected"),
            ("ids.txt", b"item_id\nx\n", "its column is named 'item_id', and ids of users are expected"),
            ("ids.csv", b"a,b\n1,2\n", "no single user id column found (columns: 'a', 'b')"),
            ("ids.parquet", b"PAR1", "ids.parquet"),
            ("ids.npy", b"", "ids.npy"),
        ],
    )
    def test_id_files_that_are_none(self, tmp_path, name, data, says):
        (tmp_path / name).write_bytes(data)
        assert says in line_of(read_id_file, tmp_path / name, "user")

    @pytest.mark.parametrize("name", ["deny.csv", "deny.tsv", "deny.inter", "deny.txt", "deny.csv.gz", "deny"])
    def test_the_first_line_is_a_header_if_it_names_a_column(self, tmp_path, name):
        path = tmp_path / name

        def found(text, known=None):
            path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
            return read_id_column(path, "item", known and Ids.from_values(known, "item")).values.to_pylist()

        deny = ["tin-soldier", "blue valley", "7"]
        assert found("\n".join(deny)) == found("\ufeff" + "\r\n".join(deny) + "\r\n") == deny
        for header in ("item", "item_id", "ItemId", "id", "track_id"):
            assert found("\n".join([header, *deny])) == deny
        assert found("book\nlamp\n") == ["lamp"]
        assert "'book', is the name of a column and the id of an item" in line_of(found, "book\nlamp", ["lamp", "book"])

    @pytest.mark.parametrize("header", ["name", "0"])
    def test_a_line_more_than_rows_is_a_header(self, tmp_path, header):
        path = tmp_path / "ids.csv"
        path.write_text(f"{header}\n0\n1\n2\n")
        ids, (note,) = read_row_ids(path, "user", Ids.numbers(3, "user"), 3)
        assert ids.values.to_pylist() == [0, 1, 2] and f"the first line, '{header}', is read as the name" in note
        known = Ids.from_values(["name", "0"], "user")
        if header == "name":
            assert "4 ids for 3 rows; the first line, 'name', was read" in line_of(read_row_ids, path, "user", known, 3)
            assert "unlike the others" in read_row_ids(path, "user", None, 4)[1][0]
        else:
            assert "'0' occurs more than once; the first line" in line_of(read_row_ids, path, "user", None, 4)

    def test_id_files_advise_no_setting_of_the_data(self, tmp_path):
        (tmp_path / "ids.csv").write_text("id,x\n1,2\n1,2,3\n")
        line = line_of(read_id_file, tmp_path / "ids.csv", "user")
        assert "; correct the file" in line and "`" not in line

    def test_id_arrays_that_are_none(self, tmp_path):
        for values in (np.array([{}]), np.zeros((2, 2), int), np.zeros(2)):
            np.save(tmp_path / "ids.npy", values, allow_pickle=True)
            line_of(read_id_file, tmp_path / "ids.npy", "user")


ROWS = "user_id,itemId,Score\n007,x,1.5\n007,y,2.5\n8,x,1\n"


def read(folder: Path, text: str | bytes, name: str = "lists.csv", **named):
    data = text.encode() if isinstance(text, str) else text
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return read_lists(folder / name, **named)


class TestLists:
    @pytest.mark.parametrize(
        "name, text",
        [
            ("l.csv", ROWS),
            ("l.csv.gz", ROWS),
            ("l.tsv", ROWS.replace(",", "\t")),
            ("l.csv", ROWS.replace("\n", "\r\n")),
            ("l.csv", ROWS.replace("itemId", "item_id:token").replace("user_id", "user_id:token")),
            ("l.csv", ROWS.replace("\n", ",more\n")),
            ("l.jsonl", '{"user": "007", "item": "x", "score": 1.5, "more": {"a": 1}}\n'
             '{"user": "007", "item": "y", "score": 2.5}\n{"user": "8", "item": "x", "score": 1}\n'),
        ],
    )  # fmt: skip
    def test_texts(self, tmp_path, name, text):
        lists = read(tmp_path, text, name)
        assert lists.users.to_pylist() == ["007", "007", "8"] and lists.items.to_pylist() == ["x", "y", "x"]
        assert lists.scores.tolist() == [1.5, 2.5, 1.0] and lists.ranks is None

    def test_parquet_and_named_columns(self, tmp_path):
        table = pa.table(
            {"a": [1, 1, 2], "b": ["x", "y", "x"], "c": np.array([1, 2, 1], np.int8), "d": [1.0, 2.0, 3.0]}
        )
        pq.write_table(table, tmp_path / "l.parquet")
        lists = read_lists(tmp_path / "l.parquet", user_column="a", item_column="b", rank_column="c")
        assert lists.users.to_pylist() == [1, 1, 2] and lists.ranks.tolist() == [1, 2, 1] and lists.scores is None
        assert len(refused(read_lists, tmp_path / "l.parquet")) == 2

    def test_a_folder_of_parts_of_whole_lists(self, tmp_path):
        for part, line in enumerate(['{"user": 1, "items": [7]}', '{"user": 0, "items": [2, 9]}']):
            (tmp_path / f"{part}.jsonl").write_text(line + "\n")
        found = to_lists(read_lists(tmp_path), Ids.numbers(2, "user"), Ids.numbers(10, "item"))
        assert found.items.tolist() == [[2, 9], [7, -1]] and is_table_folder(tmp_path)
        (tmp_path / "checkpoint").write_text("1")
        assert not is_table_folder(tmp_path)

    def test_dates_in_json_stay_texts(self, tmp_path):
        lists = read(tmp_path, '{"user": 1, "item": "2020-01-02"}\n', "l.jsonl")
        assert lists.users.to_pylist() == [1] and lists.items.to_pylist() == ["2020-01-02"]

    @pytest.mark.parametrize(
        "head, best",
        [
            ("userID,itemID,rating,prediction", [2, 9, 5]),
            ("user,item,score,rating", [5, 9, 2]),
            ("user,item,x,y", [5, 2, 9]),
        ],
    )
    def test_predictions_come_before_ratings(self, tmp_path, head, best):
        lists = read(tmp_path, f"{head}\n0,5,3,.1\n0,2,1,.9\n0,9,2,.5\n")
        found = to_lists(lists, Ids.numbers(1, "user"), Ids.numbers(10, "item"))
        assert found.items.tolist() == [best]
        says = "the scores are those in" if "rating" in head else "of its columns 'x', 'y', none is known as a score"
        assert [says in note for note in found.notes] == [True]

    @pytest.mark.parametrize("name", ["predicted_rating", "est", "similarity"])
    def test_other_names_of_scores(self, tmp_path, name):
        lists = read(tmp_path, f"user,item,{name}\n0,5,.1\n0,2,.9\n")
        assert lists.scores.tolist() == [0.1, 0.9] and not lists.notes

    def test_ranks_that_contradict_the_scores(self, tmp_path):
        lists = read(tmp_path, "user,item,rank,score\n0,5,1,.1\n0,2,2,.9\n1,1,1,2\n1,2,2,1\n")
        found = to_lists(lists, Ids.numbers(2, "user"), Ids.numbers(10, "item"))
        assert found.items.tolist() == [[5, 2], [1, 2]]
        assert "ordered by rank; by score, 1 of 2 would be in another order" in " ".join(found.notes)

    ORDER = ([2, 9, 5], [7])

    @pytest.mark.parametrize("format", ["parquet", "jsonl"])
    @pytest.mark.parametrize(
        "columns",
        [
            {"items": ORDER},
            {"item_ids": ORDER},
            {"items": ([5, 2, 9], [7]), "scores": ([0.1, 0.9, 0.5], [1.0])},
            {"recommendations": [[{"item": i, "rating": 1 - r / 9} for r, i in enumerate(own)] for own in ORDER]},
            {"recs": [[{"movieId": i, "rank": r} for r, i in enumerate(own)][::-1] for own in ORDER]},
        ],
        ids=lambda columns: " ".join(columns),
    )
    def test_a_row_per_user(self, tmp_path, format, columns):
        table = pa.table({"user": [1, 0], **columns})
        path = tmp_path / f"lists.{format}"
        if format == "parquet":
            pq.write_table(table, path)
        else:
            path.write_text("\n".join(map(json.dumps, table.to_pylist())))
        found = to_lists(read_lists(path), Ids.numbers(3, "user"), Ids.numbers(10, "item"))
        assert found.items.tolist() == [[7, -1, -1], [2, 9, 5], [-1, -1, -1]]

    @pytest.mark.parametrize(
        "columns, says",
        [
            ({"items": [[1, 2]], "scores": [[0.5]]}, "row 1 has 2 items, but 1 entries in column 'scores'"),
            ({"items": [[1, 2]], "score": [0.5]}, "column 'score' holds double, and 'items' whole lists"),
            ({"items": [[1, None]]}, "1 row without an item, the first in row 1"),
            ({"items": [[[1]]]}, "item ids must be numbers or strings, not list"),
            ({"recs": [[{"a": 1}]]}, "'recs': no item column found (columns: 'a')"),
        ],
    )
    def test_rows_that_are_no_lists(self, tmp_path, columns, says):
        pq.write_table(pa.table({"user": [1], **columns}), tmp_path / "l.parquet")
        assert says in line_of(read_lists, tmp_path / "l.parquet")

    def test_another_separator(self, tmp_path):
        text = ROWS.replace(",", ";")
        assert "holds no commas, but semicolons; set `separator` to ';'" in refused(read, tmp_path, text)[0]
        assert read(tmp_path, text, separator=";").scores.tolist() == [1.5, 2.5, 1.0]
        assert read(tmp_path, text, "l.dat", separator=";").users.to_pylist() == ["007", "007", "8"]

    @pytest.mark.parametrize(
        "text, says",
        [
            ("", ["the file is empty"]),
            ("user,item\n", ["no row"]),
            ("a,b\n1,2\n", ["no user column found (columns: 'a', 'b')", "no item column found"]),
            ("user,item,user\n1,2,3\n", ["columns 'user' and 'user' could be the user column"]),
            ("user,item,score,prediction\n1,2,3,4\n", ["columns 'score' and 'prediction' could be the score"]),
            ("user,item,rank,position\n1,2,3,4\n", ["columns 'rank' and 'position' could be the rank"]),
            ("user,item\n1,2\n1,2,3\n", ["line 3 has 3 fields ('1,2,3'), the first 2"]),
            ("user,item,score\n,2,1\n1,,2\n1,3,\n1,4,nan\n1,5,1e39\n1,6,good\n",
             ["1 row without a user, the first in line 2", "1 row without an item, the first in line 3",
              "1 row without a score, the first in line 4", "3 scores not a finite number, the first 'nan' in line 5"]),
            ("user,item,rank\na,x,1\na,y,1\nb,x,1\n", ["1 user has a rank twice, for example user 'a'"]),
            ("user,item,rank\na,x,1.5\n", ["1 rank not a whole number, the first '1.5' in line 2"]),
            (b"user,item\n\xff,1\n", ["line 2 is not UTF-8"]),
        ],
    )  # fmt: skip
    def test_what_is_wrong(self, tmp_path, text, says):
        lines = refused(read, tmp_path, text)
        assert len(lines) == len(says)
        for line, part in zip(lines, says):
            assert "lists.csv: " in line and part in line

    @pytest.mark.parametrize(
        "name, data",
        [
            ("l.csv.gz", b"\x1f\x8b nothing"),
            ("l.parquet", b"PAR1 nothing PAR1"),
            ("l.jsonl", b"[1]\n"),
            ("l.jsonl", b'{"user": "1", "item": 2}\n{"user": "\xff", "item": 2}\n'),
        ],
    )
    def test_damaged(self, tmp_path, name, data):
        (tmp_path / name).write_bytes(data)
        assert name in line_of(read_lists, tmp_path / name)

    def test_missing(self, tmp_path):
        assert "no such file" in line_of(read_lists, tmp_path / "l.csv")
        cut = gzip.compress(ROWS.encode())[:-12]
        (tmp_path / "l.csv.gz").write_bytes(cut)
        assert "cut off" in line_of(read_lists, tmp_path / "l.csv.gz")

    USERS, ITEMS = Ids.from_values(["a", "b", "c"], "user"), Ids.from_values(["x", "y", "z"], "item")

    @pytest.mark.parametrize(
        "more, expected",
        [
            ({}, [[1, 0, 2], [2, -1, -1], [-1, -1, -1]]),
            (dict(scores=np.array([1, 3, 2, 0, 1.0])), [[0, 1, 2], [2, -1, -1], [-1, -1, -1]]),
            (dict(ranks=np.array([9, 7, 0, 0, 8])), [[0, 2, 1], [2, -1, -1], [-1, -1, -1]]),
        ],
    )
    def test_order(self, more, expected):
        lists = RankedLists(pa.array(list("aabaa")), pa.array(list("yxzxz")), **more)
        found = to_lists(lists, self.USERS, self.ITEMS)
        assert found.items.dtype == np.int32 and found.items.tolist() == expected
        assert (found.scores is None) == ("scores" not in more)
        assert any("1 of the data's 3 users have no list, for example 'c'" in note for note in found.notes)
        assert any("1 rows repeat a user's item" in note for note in found.notes)
        if found.scores is not None:
            assert found.scores.tolist() == [[3, 1, 1], [2, 0, 0], [0, 0, 0]]

    def test_unknown(self):
        lists = RankedLists(pa.array(list("aqaa")), pa.array(list("xyzw")))
        found = to_lists(lists, self.USERS, self.ITEMS)
        assert found.items.tolist() == [[0, 2], [-1, -1], [-1, -1]]
        notes = " ".join(found.notes)
        assert (
            "1 of 2 users are not in the data and were left out, for example 'q'" in notes and "1 of 4 items" in notes
        )
        nobody = RankedLists(pa.array([1, 2]), pa.array(["x", "y"]))
        assert "none of the file's 2 users is among the data's 3" in line_of(to_lists, nobody, self.USERS, self.ITEMS)
        apart = RankedLists(pa.array(["a", "q"]), pa.array(["w", "x"]))
        assert "no row has both" in line_of(to_lists, apart, self.USERS, self.ITEMS)

    def test_long_lists_are_cut_and_that_is_told(self):
        lists = RankedLists(pa.array(list("aaab")), pa.array(list("zyxz")))
        found = to_lists(lists, self.USERS, self.ITEMS, longest=2)
        assert found.items.tolist() == [[2, 1], [2, -1], [-1, -1]]
        assert "1 rows past place 2 of a list were left out" in " ".join(found.notes)

    def test_against_plain_python(self, rng):
        n = 400
        users, items, scores = rng.integers(0, 12, n), rng.integers(0, 20, n), rng.integers(0, 5, n).astype(float)
        found = to_lists(
            RankedLists(pa.array(users), pa.array(items), scores), Ids.numbers(10, "user"), Ids.numbers(18, "item")
        )
        for user in range(10):
            rows = sorted((row for row in range(n) if users[row] == user and items[row] < 18), key=lambda r: -scores[r])
            expected = list(dict.fromkeys(items[rows].tolist()))
            assert found.items[user].tolist() == expected + [-1] * (found.items.shape[1] - len(expected))


class TestListed:
    """A slow oracle: counts, one pair at a time, who does not score lower."""

    @pytest.mark.parametrize("sampled", [False, True])
    def test_metrics(self, small_split, rng, sampled):
        train = small_split.train
        lists = np.array([rng.permutation(train.num_items)[:30] for _ in range(train.num_users)], np.int32)
        lists[:, 20:] = np.where(rng.random((train.num_users, 10)) < 0.5, -1, lists[:, 20:])
        protocol = Sampled(candidates=5) if sampled else Full()
        found = make_evaluator(small_split, cutoffs=(5, 20), protocol=protocol)(*listed(lists))
        scores = np.zeros((train.num_users, train.num_items))
        for user, items in enumerate(lists):
            for place, item in enumerate(items):
                if item >= 0:
                    scores[user, item] = max(scores[user, item], 30 - place)
        prepared = protocol.prepare(small_split)
        for part, other in (("valid", "test"), ("test", "valid")):
            held = getattr(small_split, part)
            ranks = []
            for user, item in zip(np.asarray(held.users), np.asarray(held.items)):
                hidden = [item]
                for one in (train, getattr(small_split, other)):
                    hidden += np.asarray(one.items)[np.asarray(one.users) == user].tolist()
                against = np.setdiff1d(np.arange(train.num_items), hidden)
                if sampled:
                    against = np.asarray(prepared["candidates"])[user]
                ranks.append(1 + int((scores[user, against] >= scores[user, item]).sum()))
            for k in (5, 20):
                recall = np.mean(np.array(ranks) <= k)
                assert found[part][f"recall@{k}"] == pytest.approx(recall, abs=1e-6)

    def test_scores_agree(self, small_split, rng):
        train = small_split.train
        lists = rng.integers(-1, train.num_items, (train.num_users, 7)).astype(np.int32)
        make_model, variables = listed(lists)
        model, users, items = make_model(train), jnp.arange(train.num_users), jnp.arange(train.num_items)
        pairs = model.apply(variables, users[:, None], items[None, :], method="score")
        np.testing.assert_array_equal(model.apply(variables, users, method="score_all"), pairs)
        for method, arguments in (("represent", (users, items)), ("loss", (users, users, users, users > 0))):
            with pytest.raises(NotImplementedError):
                model.apply(variables, *arguments, method=method)

    def test_popularity(self, small_split):
        train = small_split.train
        make_model, variables = popularity(train)
        scores = make_model(train).apply(variables, jnp.arange(3), method="score_all")
        counts = np.bincount(train.items, minlength=train.num_items)
        np.testing.assert_array_equal(scores, np.tile(counts, (3, 1)))


@pytest.mark.slow
def test_a_student_of_lists_in_a_file(tmp_path):
    split = htd_jax.data.make_synthetic(num_users=60, num_items=150)
    users, items = np.divmod(np.random.default_rng(0).permutation(60 * 150)[:3000], 150)
    table = pa.table({"user_id": users, "item_id": items, "rank": np.arange(3000)})
    pq.write_table(table, tmp_path / "lists.parquet")
    found = to_lists(read_lists(tmp_path / "lists.parquet"), Ids.numbers(60, "user"), Ids.numbers(150, "item"))
    teacher = htd_jax.Lists(jnp.asarray(found.items))
    student = htd_jax.distill(teacher, split, method="rrd", dim=4, epochs=2, progress=False)
    assert np.isfinite(student.metrics["recall@50"])
    assert student.recommend_vectors(student.fold_in([1, 2]), 3, seen=[[1, 2]]).items.shape == (1, 3)


@pytest.mark.parametrize("name", sorted(fuzz.FORMATS))
def test_any_file_is_read_or_refused_in_bounded_time_and_memory(tmp_path, name, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 10 * fuzz.SECONDS)  # the bound is of a machine that does nothing else
    for seed in range(20):
        outcome = fuzz.attempt(name, seed, tmp_path)
        assert outcome.kind != "failed", f"--format {name} --seed {seed}: {outcome.message}"


def test_fuzz_sees_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "MEMORY", 2**25)

    def fails(path):
        raise ValueError("no UserError")

    def takes_long(path):
        begin, size = time.process_time(), path.stat().st_size / 2**20
        while time.process_time() < begin + 1.1 * (fuzz.SECONDS + fuzz.SECONDS_PER_MIB * size):
            pass

    def takes_much(path):
        assert np.ones((fuzz.MEMORY + fuzz.MEMORY_PER_BYTE * path.stat().st_size) // 4).sum()

    for read, says, seconds in ((fails, "ValueError", 60), (takes_long, "more than", 0.1), (takes_much, "MiB for", 60)):
        monkeypatch.setattr(fuzz, "SECONDS", seconds)
        outcome = fuzz.attempt("toml", 0, tmp_path, read)
        assert outcome.kind == "failed" and says in outcome.message
