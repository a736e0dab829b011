"""One's own interactions: every format, what is refused and told, filters and splits, and a run on them."""

import datetime
import gzip
import json
import os
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import line_of, results, start, start_command, trained

import htd_jax
from htd_jax.data import Ids, Reading, columns, read_ids, read_log
from htd_jax.errors import UserError

ROWS = [
    (f"u{u}", f"i{i}", 1 + (u * i) % 5, 1000 + (7 * u + 13 * i) % 97) for u in range(20) for i in range(u % 3, 30, 3)
]
HEADER = "user_id,item_id,rating,timestamp\n"
TEXT = HEADER + "".join(f"{u},{i},{r},{t}\n" for u, i, r, t in ROWS)


def pairs_of(data):
    """The named pairs of each part."""
    users, items = data.users.values.to_pylist(), data.items.values.to_pylist()
    return [{(users[u], items[i]) for u, i in zip(part.users.tolist(), part.items.tolist())} for part in data.split]


def table():
    return pa.table(dict(zip(("user_id", "item_id", "rating", "timestamp"), map(list, zip(*ROWS)))))


def write(path):
    """The rows in the format that the file's name tells."""
    name = path.name
    if name.endswith(".parquet"):
        pq.write_table(table(), path)
    elif ".jsonl" in name:
        path.write_text("".join(json.dumps(row) + "\n" for row in table().to_pylist()))
    else:
        text = TEXT
        if ".inter" in name:
            text = text.replace("user_id,item_id", "user_id:token,item_id:token").replace("rating,", "rating:float,")
        if ".csv" not in name:
            text = text.replace(",", "\t")
        data = text.encode()
        packed = {".gz": gzip.compress, ".zst": lambda x: pa.compress(x, "zstd", asbytes=True)}.get(path.suffix)
        path.write_bytes(packed(data) if packed else data)
    return path


@pytest.mark.parametrize(
    "name", ["a.csv", "a.tsv", "a.inter", "a.txt", "a.parquet", "a.jsonl", "a.csv.gz", "a.tsv.zst"]
)
def test_every_format_holds_the_same(name, tmp_path):
    data = read_log(write(tmp_path / name), Reading(split="last"))
    assert pairs_of(data) == pairs_of(htd_jax.read(table(), split="last"))
    assert data.name == "a" and data.users.values.to_pylist()[:3] == ["u0", "u1", "u10"] and data.notes == ()
    assert data.span == (min(row[3] for row in ROWS), max(row[3] for row in ROWS))


def test_every_table_in_memory_holds_the_same():
    frame = table().to_pandas()
    expected = pairs_of(htd_jax.read(table()))
    assert pairs_of(htd_jax.read(frame)) == expected
    assert pairs_of(htd_jax.read(frame.sample(frac=1, random_state=1))) == expected  # neither labels nor order count
    assert pairs_of(htd_jax.read((frame.user_id, frame.item_id))) == expected
    assert pairs_of(htd_jax.read((frame.user_id.tolist(), frame.item_id.to_numpy()))) == expected
    frame.user_id = frame.user_id.astype("category")
    assert pairs_of(htd_jax.read(frame)) == expected


def test_a_sparse_matrix_keeps_its_numbers():
    dense = np.zeros((9, 8))
    dense[:8, :5] = np.arange(40).reshape(8, 5) % 4
    data = htd_jax.read(scipy.sparse.csr_matrix(dense))
    assert data.users.numbered and (len(data.users), len(data.items)) == (9, 8)
    assert set.union(*pairs_of(data)) == set(zip(*map(list, np.nonzero(dense))))
    some = htd_jax.read(scipy.sparse.csr_matrix(dense), min_rating=2, min_per_user=2)
    assert set.union(*pairs_of(some)) <= set(zip(*map(list, np.nonzero(dense >= 2))))
    assert not some.users.values.to_pylist().count(8)


def test_entries_of_a_sparse_matrix_are_summed_and_nan_is_told():
    rows, columns = np.nonzero(1 - np.eye(5))
    half = scipy.sparse.coo_matrix(([100] * 40, ([*rows] * 2, [*columns] * 2)), shape=(5, 5), dtype=np.int8)
    expected = htd_jax.read(scipy.sparse.coo_matrix(1 - np.eye(5)))
    assert pairs_of(htd_jax.read(half, min_rating=150)) == pairs_of(expected)
    assert half.nnz == 40 and expected.notes == ()
    broken = scipy.sparse.csr_matrix(1 - np.eye(5))
    broken.data[3] = np.nan
    assert "the matrix: 1 of 20 stored numbers are NaN and left out" in htd_jax.read(broken).notes


NO_IDS = [True, np.True_, 2j, datetime.date(2024, 1, 1), pd.Timestamp(0), pd.Period("2024"), [1], {"a": 1}]


@pytest.mark.parametrize("value", NO_IDS, ids=repr)
@pytest.mark.parametrize("others", [["a", "b"], [1, 2], [1.0, None]])
def test_a_column_with_a_value_that_is_no_id_is_refused(value, others):
    column = [*others, value]
    objects = np.empty(3, object)
    objects[:] = column
    for users in (column, objects, pd.Series(objects)):
        assert "convert" in error_of({"user": users, "item": [1, 2, 3]}, skip_bad_rows=True)
        assert "convert" in error_of((users, [1, 2, 3]))
    with pytest.raises(UserError, match="convert"):
        Ids.from_values(column, "user")


def test_columns_of_periods_and_complex_numbers_are_no_ids():
    for users in (pd.Series(pd.period_range("2024", periods=3)), np.array([1j, 2, 3])):
        assert "convert" in error_of({"user": users, "item": [1, 2, 3]})


def test_columns_of_json_need_not_be_in_the_first_line(tmp_path):
    lines = [json.dumps(dict(zip(("user", "item", "rating", "time"), row))) for row in ROWS]
    lines[0] = json.dumps({"item": ROWS[0][1], "user": ROWS[0][0], "rating": None})
    path = put(tmp_path / "a.jsonl", "\n".join(lines))
    assert "1 of 200 rows: no value in column 'time', first in line 1" in error_of(path, split="last")
    assert "first in line 1; left out" in htd_jax.read(path, split="last", skip_bad_rows=True).notes[0]
    assert "column 'time' is not read: 1 of 200 rows hold no date or number" in htd_jax.read(path).notes[0]
    assert "no value in column 'rating', first in line 1" in error_of(path, min_rating=1)


def test_what_read_does_not_take():
    with pytest.raises(TypeError, match="not int"):
        htd_jax.read(3)
    with pytest.raises(TypeError, match="has no setting 'colour'"):
        htd_jax.read(table(), colour="red")
    with pytest.raises(TypeError, match="already split"):
        htd_jax.read(htd_jax.read(table()), split="last")
    with pytest.raises(UserError, match="as many users as items"):
        htd_jax.read(([1, 2], [3]))


# --- what is refused, each in the user's words, before anything is written


def csv(text):
    return "log.csv", text.encode()


LATIN = TEXT.replace("u1,", "é1,", 1).encode("latin-1")
PARQUET = pa.BufferOutputStream()
pq.write_table(table(), PARQUET)
PARQUET = PARQUET.getvalue().to_pybytes()

REFUSED = {
    "no such file": (None, (), ["there is no such file"]),
    "format": (("log.xyz", b"a"), (), ["unknown format; the name must end in one of .csv, .tsv"]),
    "empty": (csv(""), (), ["the file is empty"]),
    "blank": (csv("\n\n"), (), ["the file is blank"]),
    "header alone": (csv(HEADER), (), ["it holds no interactions"]),
    "header without an end": (csv(HEADER.strip()), (), ["log.csv: it holds no interactions"]),
    "one column for both": (csv(TEXT), ("--item-column", "user_id"), ["users and items are one column, 'user_id'"]),
    "no user column": (
        csv(TEXT.replace("user_id", "who")),
        (),
        ["no user column found (columns: 'who', 'item_id', 'rating', 'timestamp'); set --user-column"],
    ),
    "two wrong columns": (
        csv(TEXT.replace("item_id", "what")),
        ("--user-column", "whom"),
        ["no column 'whom' (columns: 'user_id', 'what'", "no item column found"],
    ),
    "two item columns": (
        csv("user,item,product_id\n1,2,3\n"),
        (),
        ["'item' and 'product_id' could be the item column"],
    ),
    "separator": (csv(TEXT.replace(",", ";")), (), ["holds no commas, but semicolons; set --separator to ';'"]),
    "fields": (
        csv(TEXT.replace("u1,i1,", "u1,", 1)),
        (),
        ["line 12 has 3 fields ('u1,", ", the first 4; set --skip-bad-rows to leave such lines out"],
    ),
    "missing values": (
        csv(TEXT.replace("u1,", ",", 2).replace(",i2,", ",,", 1)),
        (),
        [
            "2 of 200 rows: no value in column 'user_id', first in line 12",
            "no value in column 'item_id', first in line 22",
        ],
    ),
    "not UTF-8": (("log.csv", LATIN), (), ["line 12 is not UTF-8 (\\xe91,i1,", "save the file as UTF-8"]),
    "UTF-16": (("log.csv", TEXT.encode("utf-16")), (), ["it is UTF-16; save it as UTF-8"]),
    "ratings of text": (
        csv(TEXT.replace(",3,", ",good,")),
        ("--min-rating", "2"),
        ["rows: not a number in column 'rating', first in line", "('good'); set --skip-bad-rows to leave such rows"],
    ),
    "times of text": (
        csv(TEXT.replace(",10", ",in spring 10")),
        ("--split", "last"),
        ["not a date or number in column 'timestamp'"],
    ),
    "a date of text": (
        csv("user,item,time\n1,2,2024-02-29T10:00:00Z\n1,3,2024-02-30\n2,3,2024-03-01\n"),
        ("--split", "last"),
        ["1 of 3 rows: not a date or number in column 'time', first in line 3 ('2024-02-30')"],
    ),
    "no time": (csv("user,item\n1,2\n"), ("--split", "time"), ["no time column found"]),
    "nothing left": (csv(TEXT), ("--min-rating", "9"), ["no interaction is left of 200 rows (200 rows rated below 9"]),
    "no core": (
        csv(TEXT),
        ("--min-per-user", "50"),
        ["nothing is left with 50 items per user and 1 user per item; lower --min-per-user or --min-per-item"],
    ),
    "nobody to hold out": (
        csv("user,item\na,x\nb,y\n"),
        (),
        ["nothing is left for validation and test: no user has 3 different items", "set --split to ratio or time"],
    ),
    "gzip cut off": (("log.csv.gz", gzip.compress(TEXT.encode())[:-40]), (), ["damaged, cut off, or not a gzip file"]),
    "no gzip": (("log.csv.gz", TEXT.encode()), (), ["damaged, cut off, or not a gzip file"]),
    "zstd cut off": (("log.csv.zst", b"(\xb5/\xfd" + bytes(9)), (), ["damaged, cut off, or not a zstd file"]),
    "Parquet cut off": (("log.parquet", PARQUET[:-50]), (), ["damaged, cut off, or not a Parquet file"]),
    "JSON": (("log.jsonl", b'{"user": 1, "item": 2}\n{"user": 1'), (), ["line 2: not a JSON object"]),
    "JSON of lists": (
        ("log.jsonl", b'{"user": 1, "item": [2]}\n'),
        (),
        ["line 1: 'item' is '[2]', not a number or text"],
    ),
    "one file of two": (csv(TEXT), ("--valid-file", "x.csv"), ["set both --valid-file and --test-file, or neither"]),
    "separator of two": (csv(TEXT), ("--separator", "::"), ["--separator must be one character"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_bad_files_are_refused_in_their_owners_words_and_leave_nothing(case, tmp_path):
    file, flags, expected = REFUSED[case]
    name, content = file or ("nowhere.csv", None)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = start("--dataset", tmp_path / name, *flags, "--runs", tmp_path / "runs")
    assert done.status == 2 and all(line.startswith("error: ") for line in done.err.splitlines()), done
    for words in expected:
        assert words in done.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("of", "settings", "expected"),
    [
        (scipy.sparse.eye(4), {"split": "last"}, ["`split` last needs times"]),
        (scipy.sparse.eye(4), {"valid_file": "a.csv", "test_file": "b.csv"}, ["`split` files needs times or files"]),
        (-scipy.sparse.eye(4), {}, ["the matrix holds no number above 0"]),
        (scipy.sparse.eye(4), {"min_rating": 2}, ["the matrix holds no number of at least 2"]),
        (
            {"user": [[1], [2]], "item": [{"a": 1}, {"a": 2}]},
            {},
            ["column 'user': user ids must be numbers or strings", "column 'item': item ids must be"],
        ),
        (pd.DataFrame([[1, 2, 3]], columns=["user", "item", "user"]), {}, ["'user' and 'user' could be"]),
    ],
)
def test_bad_tables_are_refused_too(of, settings, expected):
    with pytest.raises(UserError) as error:
        htd_jax.read(of, **settings)
    assert all(words in str(error.value) for words in expected)


# --- what is told


def notes(text, tmp_path, **settings):
    (tmp_path / "log.csv").write_text(text)
    data = read_log(tmp_path / "log.csv", Reading(**settings))
    return data, "\n".join(data.notes)


def test_repeated_rows_are_merged_and_counted(tmp_path):
    data, told = notes(TEXT + "u1,i1,5,1\nu1,i1,5,2\n", tmp_path)
    assert "2 rows merged as repeats of a user and item; the first in time counts" in told
    assert set.union(*pairs_of(data)) == {row[:2] for row in ROWS}


def test_the_first_meeting_counts(tmp_path):
    """Else what is repeated last would be held out as the last that is new."""
    rows = [("a", "x", 1), ("a", "y", 2), ("a", "z", 3), ("a", "x", 9), ("b", "x", 1), ("b", "y", 2), ("b", "z", 3)]
    text = "user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows)
    data, _ = notes(text, tmp_path, split="last")
    assert ("a", "z") in pairs_of(data)[2]


def test_users_with_few_items_are_kept_for_training(tmp_path):
    data, told = notes(TEXT + "once,i1,5,1\n", tmp_path)
    assert "1 user with fewer than 3 items: all items are kept for training" in told
    train, valid, test = pairs_of(data)
    assert ("once", "i1") in train and "once" not in {user for user, _ in valid | test}


def test_bad_rows_are_left_out_if_one_says_so(tmp_path):
    text = TEXT.replace("u1,", ",", 2).replace("u2,i2,", "u2,i2,x,", 1)
    data, told = notes(text, tmp_path, skip_bad_rows=True)
    assert "1 line left out: another number of fields" in told
    assert "2 of 199 rows: no value in column 'user_id'" in told and "left out" in told
    assert len(set.union(*pairs_of(data))) == len(ROWS) - 3


def test_ids_that_look_alike_are_told_or_made_one(tmp_path):
    text = TEXT.replace("u1,", "U1,", 3).replace(",i2,", ",i2 ,", 1)
    data, told = notes(text, tmp_path)
    assert "1 user id differing from another only in case or white space ('U1', 'u1'): kept apart" in told
    assert "1 item id differing from another only in case or white space" in told and len(data.users) == 21
    data, told = notes(text, tmp_path, clean_ids=True)
    assert ": merged" in told and set.union(*pairs_of(data)) == {row[:2] for row in ROWS}


def test_numbers_are_numbers_and_007_is_not_7(tmp_path):
    data, _ = notes("user,item\n" + "".join(f"{u},{i}\n" for u in (10, 9, -2) for i in range(5)), tmp_path)
    assert data.users.values.to_pylist() == [-2, 9, 10] and data.items.numbered
    assert data.users.rows(["9", 10]).tolist() == [1, 2]
    data, _ = notes("user,item\n" + "".join(f"{u},{i}\n" for u in ("007", "7") for i in range(5)), tmp_path)
    assert data.users.values.to_pylist() == ["007", "7"]


@pytest.mark.parametrize("odd", ["007", "7.0", "x", "", "-0", "99999999999999999999"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_ids_of_all_batches_follow_one_rule(odd, suffix, tmp_path, monkeypatch):
    """A file is read in batches, of which most may hold whole numbers only; its ids are those of a table in memory."""
    users = [str(row % 40) for row in range(1200)]
    items = [str(100 + row // 40) for row in range(1200)]
    users[1100] = odd
    whole = pa.table({"user": users, "item": items})
    expected = htd_jax.read(whole, skip_bad_rows=True)
    monkeypatch.setattr(columns, "BLOCK", 2**10)
    monkeypatch.setattr(columns, "PARQUET_ROWS", 100)
    path = tmp_path / f"log.{suffix}"
    (pa.csv.write_csv if suffix == "csv" else pq.write_table)(whole, path)
    if odd == "":
        with pytest.raises(UserError, match="1 of 1,200 rows: no value.* (line 1102|row 1101)"):
            htd_jax.read(path)
    read = htd_jax.read(path, skip_bad_rows=True)
    assert read.users.values.equals(expected.users.values)
    assert htd_jax.data.fingerprint(read) == htd_jax.data.fingerprint(expected)


def test_times_may_be_dates(tmp_path):
    dates = ["2020-01-02", "2020-01-01T10:00:00", "2019-12-31 23:59:59"]
    text = "user,item,date\n" + "".join(f"{u},{i},{d}\n" for u in "ab" for i, d in zip("xyz", dates))
    data, _ = notes(text, tmp_path, split="last")
    assert pairs_of(data)[2] == {("a", "x"), ("b", "x")} and data.span == (1577836799.0, 1577923200.0)


def test_columns_may_be_named_and_headers_missing(tmp_path):
    data, _ = notes(TEXT.replace("user_id", "who"), tmp_path, user_column="who", item_column="item_id")
    assert len(data.users) == 20
    data, _ = notes(TEXT.removeprefix(HEADER), tmp_path, header=False, split="last", time_column="4")
    assert pairs_of(data) == pairs_of(htd_jax.read(table(), split="last"))


# --- what files are like


def put(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def error_of(source, **settings):
    with pytest.raises(UserError) as error:
        htd_jax.read(source, **settings)
    return str(error.value)


@pytest.mark.parametrize("name", ["a.tsv", "a.inter", "a.dat"])
def test_a_quote_is_a_character_between_tabs(name, tmp_path):
    lines = [f"u{u}\ti{i}\t{chr(34) * (k in (5, 60))}title" for k, (u, i, *_) in enumerate(ROWS)]
    path = put(tmp_path / name, "user\titem\ttitle\n" + "\n".join(lines))
    data = htd_jax.read(path)
    assert len(set.union(*pairs_of(data))) == len(ROWS) and data.notes == ()
    told = error_of(path, quoting="yes")
    assert "line 7: a quote opens a field" in told and "does not close it; set `quoting` to no" in told


def test_quotes_around_ids_between_tabs_are_told(tmp_path):
    text = "user\titem\n" + "".join(f'"{u}"\t{i}\n' for u, i, *_ in ROWS)
    data = htd_jax.read(put(tmp_path / "a.tsv", text))
    assert "20 of 20 ids in column 'user' are in quotes" in data.notes[0] and data.users.values[0].as_py() == '"u0"'
    assert htd_jax.read(tmp_path / "a.tsv", quoting="yes").users.values[0].as_py() == "u0"


@pytest.mark.parametrize("second", ['"x', 'x"'])
def test_a_quote_in_a_csv_takes_no_rows_away(second, tmp_path):
    titles = {5: '"x', 60: second}
    lines = [f"{u},{i},{titles.get(k, 'x')}" for k, (u, i, *_) in enumerate(ROWS)]
    path = put(tmp_path / "a.csv", "user,item,title\n" + "\n".join(lines))
    assert "line 7: a quote opens a field" in error_of(path)
    assert len(set.union(*pairs_of(htd_jax.read(path, quoting="no")))) == len(ROWS)


def test_a_quote_takes_no_rows_away_if_a_line_between_has_another_comma(tmp_path):
    titles = {3: '"x', 6: "a; b, c", 9: 'x"'}
    lines = [f"{u},{i},{titles.get(k, 'x')}" for k, (u, i, *_) in enumerate(ROWS[:20])]
    path = put(tmp_path / "a.csv", "user,item,title\n" + "\n".join(lines))
    for skip in (False, True):
        told = error_of(path, skip_bad_rows=skip)
        assert "line 5: a quote opens a field" in told and "of 7 lines, 6 of which are rows without it" in told
    assert len(htd_jax.read(path, quoting="no", skip_bad_rows=True).items) == 19


def test_white_space_before_a_quote_is_told(tmp_path):
    path = put(tmp_path / "a.csv", '"user", "item"\n' + "".join(f'"{u}", "{i}"\n' for u, i, *_ in ROWS))
    told = htd_jax.read(path).notes[0]
    assert "30 of 30 ids in column '\"item\"' are in quotes, which are read as part of them; remove the white" in told


def test_separators_that_a_csv_may_not_have(tmp_path):
    path = put(tmp_path / "a.csv", TEXT.replace(",", " "))
    told = error_of(path)
    assert "holds no commas, but spaces; set `separator` to ' '" in told and "\n" not in told
    assert len(htd_jax.read(path, separator=" ").users) == 20
    assert "`separator` must not be '\"'" in error_of(path, separator='"')


def test_a_folder_needs_no_slash_and_known_names_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("clicks", "synthetic"):
        put(tmp_path / folder / "a.csv", TEXT)
    assert htd_jax.read("clicks").notes == () and len(htd_jax.read("clicks").users) == 20
    data = htd_jax.read("synthetic")
    assert len(data.users) == 1000 and "not the file or folder here, which is ./synthetic" in data.notes[0]
    assert len(htd_jax.read("./synthetic").users) == 20
    (tmp_path / "empty").mkdir()
    assert "unknown dataset 'empty'" in error_of("empty")
    put(tmp_path / "clicks" / "b.csv", "who,what\na,b\n")
    assert error_of("clicks").startswith("clicks/b.csv: no user column found (columns: 'who', 'what')")


def test_line_breaks_in_quotes(tmp_path, monkeypatch):
    """In a file of many blocks, which begin anywhere, and with the right numbers of lines in messages."""
    monkeypatch.setattr(columns, "BLOCK", 2**10)
    row = lambda u, i, r, t: f'{u},{i},{r},{t},"good\r\n""book"", {i}\n"\n'
    lines = [row(*line) for line in ROWS]
    path = put(tmp_path / "a.csv", HEADER.replace("\n", ",review\n") + "".join(lines))
    data = htd_jax.read(path, split="last")
    assert pairs_of(data) == pairs_of(htd_jax.read(table(), split="last"))
    assert "200 rows with line breaks in quotes, of up to 3 lines, first in line 2" in data.notes[0]
    lines[150] = lines[150].replace(ROWS[150][1] + ",", ",", 1)
    lines[100] = lines[100].replace(",", ";", 1)
    put(path, HEADER.replace("\n", ",review\n") + "".join(lines))
    assert "line 302 has 4 fields" in error_of(path)
    assert (
        "no value in column 'item_id', first in line 452; left out" in htd_jax.read(path, skip_bad_rows=True).notes[2]
    )


def test_lines_of_any_system_and_what_is_no_text(tmp_path):
    expected = pairs_of(htd_jax.read(table(), split="last"))
    for end in ("\r", "\r\n", "\n\n"):
        path = put(tmp_path / "a.csv", "\ufeff" + TEXT.replace("\n", end))
        assert pairs_of(htd_jax.read(path, split="last")) == expected
    assert "as UTF-16 does; save it as UTF-8" in error_of(put(tmp_path / "b.csv", TEXT.encode("utf-16-le")))


def test_lines_have_a_limit(tmp_path):
    for name, text in (("a.csv", "user,item\n1,"), ("a.jsonl", '{"user": "')):
        assert "is longer than 16 MiB" in error_of(put(tmp_path / name, text + "x" * 2**24))
    assert "stand for" in error_of(put(tmp_path / "a.csv.gz", gzip.compress(bytes(2**25))))
    path = put(tmp_path / "b.csv.gz", gzip.compress(b"user,item\n" + b"1,1\n" * 2**23))
    assert "stand for" in error_of(path)
    os.mkfifo(tmp_path / "pipe.csv")
    assert "is a pipe or a device" in error_of(tmp_path / "pipe.csv")


def test_missing_ids_are_nobody():
    users = [1.0, 2.0] * 6 + [np.nan]
    for column in (pa.array(users, from_pandas=False), pd.Series(users), [*map(str, users)], [*users[:-1], None]):
        source = {"user": column, "item": range(13)}
        assert "1 of 13 rows: no value in column 'user', first in row 12" in error_of(source)
        data = htd_jax.read(source, skip_bad_rows=True)
        assert data.users.values.to_pylist() == [1, 2] and "left out" in data.notes[0]


@pytest.mark.parametrize("marker", ["NULL", "\\N", "NA", "nan"])
def test_markers_of_missing_values(marker, tmp_path):
    text = "user,item\n" + "".join(f"{marker if k % 9 == 0 else k % 7},{k}\n" for k in range(90))
    path = put(tmp_path / "a.csv", text)
    assert f"10 of 90 rows: no value in column 'user', first in line 2 ({marker!r})" in error_of(path)
    assert htd_jax.read(path, skip_bad_rows=True).users.values.to_pylist() == [*range(7)]
    data = htd_jax.read(put(tmp_path / "b.csv", text + "ann,1\n"))
    assert marker in data.users.values.to_pylist()
    assert f"b.csv: 10 rows with the user {marker!r}, kept as an id" in data.notes[0]


def test_numbers_of_spreadsheets_are_told(tmp_path):
    data, told = notes("user,item\n" + "".join(f"{k % 3}.2345E+18,{k}\n" for k in range(9)), tmp_path)
    assert "3 user ids like '0.2345E+18', which may have lost digits: kept as text" in told
    data, told = notes("user,item\n" + "".join(f"{k % 3}, {k}\n" for k in range(9)), tmp_path)
    assert "9 item ids with white space at an end (' 0'): kept" in told
    data, told = notes("user,item\n" + "".join(f"{k % 3}, {k}\n" for k in range(9)), tmp_path, clean_ids=True)
    assert data.items.numbered
    data, told = notes("user,item\n" + "".join(f"{k % 3}{'.0' * (k == 8)},{k}\n" for k in range(9)), tmp_path)
    assert "1 user id written in two ways" in told and data.users.numbered


def test_columns_that_nobody_needs_are_not_read(tmp_path):
    more = {"timestamp": [{"$date": 5}] * 200, "rating": [[4.0]] * 200}
    nested = table().drop(["timestamp", "rating"]).append_column("timestamp", [more["timestamp"]])
    pq.write_table(nested.append_column("rating", [more["rating"]]), tmp_path / "a.parquet")
    expected = pairs_of(htd_jax.read(table()))
    data = htd_jax.read(tmp_path / "a.parquet")
    assert pairs_of(data) == expected and "column 'timestamp' is not read: 200 of 200 rows" in data.notes[0]
    assert "not a date or number in column 'timestamp'" in error_of(tmp_path / "a.parquet", split="last")
    assert "not a number in column 'rating'" in error_of(tmp_path / "a.parquet", min_rating=1)
    frame = table().to_pandas().assign(remark=[1, "x"] * 100)
    assert pairs_of(htd_jax.read(frame)) == expected


def test_json_with_half_of_a_surrogate_pair(tmp_path):
    lines = [json.dumps({"user": u, "item": i}) for u, i, *_ in ROWS]
    lines[7] = lines[7].replace('"u0"', r'"u0\ud83d"')
    path = put(tmp_path / "a.jsonl", "\n".join(["oops", *lines]))
    assert "line 1: not a JSON object" in error_of(path)
    path.write_text("\n".join(lines))
    assert "line 8: 'user' is '\"u0\\\\ud83d\"', has half of a surrogate pair" in error_of(path)
    path.write_text("\n".join(["oops", *lines]))
    data = htd_jax.read(path, skip_bad_rows=True)
    assert "2 lines left out" in data.notes[0] and len(set.union(*pairs_of(data))) == len(ROWS) - 1


def test_a_folder_of_files_is_a_table(tmp_path):
    expected = pairs_of(htd_jax.read(table(), split="last"))
    folder = tmp_path / "clicks.parquet"
    for k in range(2):
        part = folder / f"time={k}" / f"part-{k}.parquet"
        part.parent.mkdir(parents=True)
        pq.write_table(table().slice(100 * k, 100), part)
    for name in ("_SUCCESS", ".part-0.parquet.crc"):
        put(folder / name, b"x")
    data = htd_jax.read(folder, split="last", time_column="timestamp")
    assert pairs_of(data) == expected and data.name == "clicks"
    assert htd_jax.read(folder, split="last", time_column="time").span == (0, 1)
    for k in range(2):
        part = TEXT.splitlines(True)[1 + 100 * k : 101 + 100 * k]
        put(tmp_path / "csv" / f"part-{k}.csv", HEADER + "".join(part))
    put(tmp_path / "csv" / "part-2.csv", "")
    assert pairs_of(htd_jax.read(tmp_path / "csv", split="last")) == expected
    put(tmp_path / "csv" / "part-2.csv", HEADER + "u1,,1,1\n")
    assert "1 of 201 rows: no value in column 'item_id', first in part-2.csv, line 2" in error_of(tmp_path / "csv")
    put(tmp_path / "csv" / "a.jsonl", "{}")
    assert "must all be parts of one table, unlike 'a.jsonl' and 'part-0.csv'" in error_of(tmp_path / "csv")
    (folder / "_delta_log").mkdir()
    assert "is a Delta table, with files of earlier versions" in error_of(folder)


def test_ids_with_line_breaks_have_fingerprints_of_their_own():
    data = [
        htd_jax.read(([x for x in users for _ in range(3)], [*range(6)])) for users in (["a\nb", "c"], ["a", "b\nc"])
    ]
    assert htd_jax.data.fingerprint(data[0]) != htd_jax.data.fingerprint(data[1])


def test_files_of_parts_share_one_rule(tmp_path):
    """Ids that one file writes as text and another as numbers are the same; `clean_ids` holds across files."""
    train = "".join(f"{u}.0,x{i}\n" for u in range(3) for i in range(5) if u == 2 or i < 3)
    files = [put(tmp_path / "train.csv", "user,item\n" + train + "3.0,x5\n")]
    for name, items in (("valid", ["X3", "x4"]), ("test", ["x4", "X3"])):
        pq.write_table(pa.table({"user": [0, 1], "item": items}), tmp_path / f"{name}.parquet")
        files.append(tmp_path / f"{name}.parquet")
    data = htd_jax.read(files[0], valid_file=files[1], test_file=files[2], clean_ids=True)
    assert data.users.numbered and data.items.values.to_pylist() == [f"x{i}" for i in range(6)]
    assert pairs_of(data)[1:] == [{(0, "x3"), (1, "x4")}, {(0, "x4"), (1, "x3")}]


# --- rows that are left out change nothing

NUMBERED = [(u, i, 5) for u in range(12) for i in range(8) if (u + i) % 8]


@pytest.mark.parametrize(
    ("extra", "settings"),
    [
        (("total", None, None), {"skip_bad_rows": True}),
        (("guest", 3, 1), {"min_rating": 4}),
        (("guest", 3, 5), {"min_per_user": 2}),
        (("guest", "extra", 1), {"min_rating": 4}),
        (("guest", "extra", None), {"min_rating": 4, "skip_bad_rows": True}),
        ((3, "extra", 5), {"min_per_item": 2}),
    ],
)
def test_rows_that_are_left_out_do_not_rename_the_others(extra, settings, tmp_path):
    table = lambda rows: dict(zip(("user", "item", "rating"), map(list, zip(*rows))))
    expected = htd_jax.read(table(NUMBERED))
    cells = lambda row: ",".join("" if value is None else str(value) for value in row)
    path = put(tmp_path / "a.csv", "user,item,rating\n" + "".join(cells(row) + "\n" for row in [*NUMBERED, extra]))
    for source in (path, pd.DataFrame(table([*NUMBERED, extra]), dtype=object)):
        data = htd_jax.read(source, **settings)
        assert data.users.values.to_pylist() == [*range(12)] and data.items.values.to_pylist() == [*range(8)]
        assert htd_jax.data.fingerprint(data) == htd_jax.data.fingerprint(expected)
    htd_jax.data.save_dataset(tmp_path, data)
    assert htd_jax.data.fingerprint(
        htd_jax.data.load_dataset(tmp_path / "split.npz", "saved")
    ) == htd_jax.data.fingerprint(data)


IDS = st.sampled_from([1, 2, 3, 10, "1.0", "2", "-0", "NA", "\\N", "guest", "Ann", "ann", " ann", "07"])


@pytest.mark.parametrize("clean_ids", [False, True])
@given(rows=st.lists(st.tuples(IDS, IDS, st.sampled_from([1, 5])), max_size=12))
@settings(max_examples=60, deadline=None)
def test_rows_that_are_left_out_change_nothing(clean_ids, rows):
    """Against the same rows without them; whatever is refused is refused both times."""
    rows = [*((1, i, 5) for i in range(4)), *rows]

    def outcome(rows, **settings):
        columns = {name: [str(row[k]) for row in rows] for k, name in enumerate(("user", "item", "rating"))}
        try:
            data = htd_jax.read(columns, skip_bad_rows=True, clean_ids=clean_ids, **settings)
        except UserError as error:
            return str(error)
        return htd_jax.data.fingerprint(data), pairs_of(data)

    assert outcome(rows, min_rating=4) == outcome([row for row in rows if row[2] >= 4])


def test_parts_are_numbered_by_the_ids_of_training(tmp_path):
    files = [put(tmp_path / "train.csv", "user,item\n" + "".join(f"{u},{i}\n" for u, i, _ in NUMBERED))]
    for name, row in (("valid", "1,7"), ("test", "3.0,5")):
        files.append(put(tmp_path / f"{name}.csv", f"user,item\nguest,9\nguest,1\n{row}\n"))
    data = htd_jax.read(files[0], valid_file=files[1], test_file=files[2])
    assert pairs_of(data)[1:] == [{(1, 7)}, {(3, 5)}]
    assert data.users.values.to_pylist() == [*range(12)] and data.items.values.to_pylist() == [*range(8)]


def test_ids_that_keep_numbers_from_being_numbers_are_told(tmp_path):
    lines = [f"{u},{i}\n" for u in range(60) for i in range(3)]
    for stray in ("-", "missing"):
        _, told = notes("user,item\n" + "".join(lines) + f"{stray},1\n", tmp_path)
        assert f"60 of 61 user ids are whole numbers, but not {stray!r}: all are text, sorted by characters" in told
    _, told = notes("user,item\n" + "".join(lines) + "a,1\nb,1\n", tmp_path)
    assert "60 of 62 user ids are whole numbers, but not 'a' and 1 more" in told
    _, told = notes("user,item\n" + "".join(f"u{line}" for line in lines) + "7,1\n", tmp_path)
    assert "whole numbers" not in told


# --- filters and splits, against the plain way


def test_the_core_is_what_is_left_when_both_limits_hold(rng):
    pairs = {(int(u), int(i)) for u, i in zip(rng.integers(40, size=300), rng.integers(40, size=300))}
    data = htd_jax.read(tuple(zip(*pairs)), min_per_user=5, min_per_item=4, split="ratio")
    while True:
        of_user, of_item = Counter(u for u, _ in pairs), Counter(i for _, i in pairs)
        kept = {(u, i) for u, i in pairs if of_user[u] >= 5 and of_item[i] >= 4}
        if kept == pairs:
            break
        pairs = kept
    assert pairs and set.union(*pairs_of(data)) == pairs


@pytest.mark.parametrize("split", ["leave-one-out", "last", "ratio", "time"])
def test_splits(split):
    train, valid, test = pairs_of(htd_jax.read(table(), split=split))
    time = {row[:2]: row[3] for row in ROWS}
    assert not (train & valid or train & test or valid & test)
    if split != "time":
        assert train | valid | test == set(time)
    for user in {row[0] for row in ROWS}:
        its = [[pair for pair in part if pair[0] == user] for part in (train, valid, test)]
        if split in ("leave-one-out", "last"):
            assert len(its[1]) == len(its[2]) == 1
        if split == "last":
            latest = [max(time[pair] for pair in part) for part in its]
            assert latest == sorted(latest)
        if split == "ratio":
            assert len(its[1]) == len(its[2]) == 2
    if split == "time":
        moments = [[time[pair] for pair in part] for part in (train, valid, test)]
        assert max(moments[0]) < min(moments[1]) and max(moments[1]) < min(moments[2])
    if split in ("leave-one-out", "ratio"):
        assert pairs_of(htd_jax.read(table(), split=split, split_seed=1)) != [train, valid, test]


def test_parts_may_come_in_three_files(tmp_path):
    of = lambda k: [row for n, row in enumerate(ROWS) if (n + n // 30) % 3 == k]
    for k, name in enumerate(("train", "valid", "test")):
        extra = "" if k < 2 else f"stranger,i1,1,1\nu0,novelty,1,1\n{','.join(map(str, ROWS[0]))}\n"
        (tmp_path / f"{name}.csv").write_text(HEADER + "".join(f"{u},{i},{r},{t}\n" for u, i, r, t in of(k)) + extra)
    reading = Reading(valid_file=tmp_path / "valid.csv", test_file=tmp_path / "test.csv")
    data = read_log(tmp_path / "train.csv", reading)
    assert pairs_of(data) == [{row[:2] for row in of(k)} for k in range(3)]
    told = "\n".join(data.notes)
    assert (
        "2 rows left out of validation and test: the user or item is not in training" in told and "1 row merged" in told
    )


# --- ids


def test_ids_are_kept_in_a_file(tmp_path):
    for values in (["b", "a", "é"], [5, -3, 9]):
        ids = Ids.from_values(values, "user")
        htd_jax.data.write_ids(tmp_path / "ids.parquet", ids)
        assert read_ids(tmp_path / "ids.parquet", "user").values.equals(ids.values)
    whole = (tmp_path / "ids.parquet").read_bytes()
    for broken in (b"", whole[:-20], whole[: len(whole) // 2], b"PAR1" * 9):
        (tmp_path / "ids.parquet").write_bytes(broken)
        with pytest.raises(UserError, match="damaged, cut off, or not saved ids"):
            read_ids(tmp_path / "ids.parquet", "user")
    with pytest.raises(UserError, match="ids.parquet: there is no such file"):
        read_ids(tmp_path / "no" / "ids.parquet", "user")


def test_ids_of_all_kinds():
    ids = Ids.from_values(["ann", "7", "bob"], "user")
    assert ids.find(["bob", 7, "x", None]).tolist() == [2, 1, -1, -1] and ids.rows("ann").tolist() == [0]
    assert ids.take([2, -1]).to_pylist() == ["bob", None]
    assert Ids.from_values(pd.Series([3.0, 4.0]), "item").values.to_pylist() == [3, 4]
    with pytest.raises(UserError, match="user 'x' and 1 more: not among the 3 users, whose ids are like 'ann'"):
        ids.rows(["x", "ann", "y"])
    for wrong, why in (
        ([1, 1], "1 occurs more than once"),
        ([1, None], "row 1 is missing"),
        ([[1]], "numbers or strings"),
    ):
        with pytest.raises(UserError, match=why):
            Ids.from_values(wrong, "item")


# --- runs


@pytest.mark.slow
def test_a_run_on_a_file_keeps_its_ids_and_is_taken_up(tmp_path):
    path = write(tmp_path / "my log.csv")
    arguments = ("--dataset", path, "--htd.groups", 3, "--runs", tmp_path / "runs")
    trained(*arguments)
    folder = tmp_path / "runs" / "my log-htd-4-seed0"
    assert results(folder)["dataset"] == "my log"
    assert read_ids(folder / "users.parquet", "user").values.to_pylist() == sorted({row[0] for row in ROWS})
    moved = path.rename(tmp_path / "my log.dat")  # what counts is what is in it
    moved.write_text(TEXT)
    again = trained("--dataset", moved, "--htd.groups", 3, "--run", folder)
    assert "epoch" not in again.out.split("\n")[0]
    other = start("--dataset", moved, "--htd.groups", 3, "--run", folder, "--split", "last")
    assert "made with other settings" in line_of(other)
    trained("--split-file", folder / "split.npz", "--method", "none", "--run", tmp_path / "again")
    assert read_ids(tmp_path / "again" / "users.parquet", "user").values.to_pylist()[0] == "u0"


def test_summary(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = start_command("summary", "--dataset", write(tmp_path / "log.csv"))
    assert done.status == 0 and (tmp_path / "log-summary.png").stat().st_size > 10_000
    for words in ("interactions", "200", "33.3333%", "160, 20, 20", "1000", "picture: log-summary.png"):
        assert words in done.out
    assert "1,500" in start_command("summary", "--picture", "x.png").out
    assert "unknown dataset 'movies'" in line_of(start_command("summary", "--dataset", "movies"))


def test_dates_need_not_be_written_alike(tmp_path):
    moments = ["2024-01-01T00:00:00Z", "2024-01-01 00:00:01", "2024-01-01T01:00:02.000000001+01:00", "2024-01-02"]
    text = "user,item,time\n" + "".join(f"a,{i},{moment}\n" for i, moment in enumerate(moments))
    data, _ = notes(text, tmp_path, split="last")
    assert pairs_of(data)[1:] == [{("a", 2)}, {("a", 3)}]
    assert data.span[1] - data.span[0] == 86400


def test_a_separator_as_a_message_writes_it_and_files_by_name(tmp_path):
    (tmp_path / "log.csv").write_text(TEXT.replace(",", "\t"))
    with pytest.raises(UserError, match="holds no commas, but tabs; set `separator` to '.t'"):
        htd_jax.read(tmp_path / "log.csv")
    assert len(htd_jax.read(tmp_path / "log.csv", separator=r"\t").users) == 20
    path = str(write(tmp_path / "a.tsv"))
    for part, rows in (("valid", ROWS[:9]), ("test", ROWS[9:20])):
        (tmp_path / f"{part}.csv").write_text(HEADER + "".join(f"{u},x{i},{r},{t}\n" for u, i, r, t in rows))
    with pytest.raises(UserError, match="nothing is left for validation and test"):
        htd_jax.read(path, valid_file=str(tmp_path / "valid.csv"), test_file=str(tmp_path / "test.csv"))
