"""The same interactions in every format and layout: the same data set, or refused everywhere.

`HTD_EXAMPLES=5000 pytest -n 0 tests/test_formats.py::test_every_layout_holds_the_same` is the long run.
"""

import csv
import datetime
import gzip
import io
import itertools
import json
import os
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import htd_jax
from htd_jax.errors import UserError

try:
    import polars
except ImportError:
    polars = None

# Ids of one column, by how people number their users and items.
TEXT = st.text(
    st.sampled_from("ab17\"',;\t\n\r |\\#éß\u00a0\u2028\U0001f600") | st.characters(exclude_categories=["Cs", "Cc"]),
    max_size=4,
)
KINDS = {
    "small": st.integers(-20, 20),
    "nineteen digits": st.integers(10**18 - 3, 10**18 + 3) | st.integers(2**63 - 4, 2**63 - 1),
    "beyond int64": st.integers(2**63 - 3, 2**63 + 3),
    "floats": st.integers(-9, 30).map(float),
    "padded": st.integers(0, 20).map("{:03d}".format) | st.integers(90, 110).map(str),
    "numbers as text": st.integers(-9, 30).map(str) | st.integers(-9, 30).map("{}.0".format),
    "text": TEXT,
    "text with markers": TEXT | st.sampled_from(["NULL", "\\N", "nan", "NA"]) | st.integers(-5, 5).map(str),
}
MOMENT = datetime.datetime(2024, 2, 28, tzinfo=datetime.UTC)
SPELLINGS = [
    lambda moment: moment.strftime("%Y-%m-%d %H:%M:%S"),
    lambda moment: moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
    lambda moment: moment.astimezone(datetime.timezone(datetime.timedelta(hours=5))).isoformat(),
]


@st.composite
def logs(draw):
    """Rows of (user, item, time), some without a user or an item, and how they are laid out."""
    ids = [
        draw(st.lists(KINDS[draw(st.sampled_from(list(KINDS)))], min_size=n, max_size=n + 2, unique=True))
        for n in (3, 6)
    ]
    rows = []
    for user in ids[0]:
        chosen = draw(st.lists(st.sampled_from(ids[1]), min_size=3, max_size=len(ids[1]) - 1, unique=True))
        rows += [[user, item] for item in chosen]
    for side in draw(st.lists(st.integers(0, 1), max_size=2)):
        rows.append([*rows[0]])
        rows[-1][side] = None
    minutes = draw(st.lists(st.integers(0, 10**5), min_size=len(rows), max_size=len(rows)))
    moments = [MOMENT + datetime.timedelta(minutes=m) for m in minutes]
    if draw(st.booleans()):
        times = [int(moment.timestamp()) for moment in moments]
    else:
        spell = draw(st.sampled_from(SPELLINGS))
        times = [spell(moment) for moment in moments]
    rows = [(*row, time) for row, time in zip(rows, times)]
    order = draw(st.permutations(range(len(rows))))
    columns = draw(st.permutations(["user", "item", "time"]))
    return rows, order, columns, draw(st.sampled_from(["last", "leave-one-out", "ratio"])), draw(st.booleans())


def table_of(rows, columns):
    return {name: [row[("user", "item", "time").index(name)] for row in rows] for name in columns}


def text_of(table, quoting=csv.QUOTE_MINIMAL, end="\n", **options):
    file = io.StringIO()
    writer = csv.writer(file, quoting=quoting, lineterminator=end, **options)
    writer.writerow(table)
    for row in zip(*table.values()):
        writer.writerow(["" if value is None else value for value in row])
    return file.getvalue().encode()


def arrow_of(table):
    """Columns as a database holds them: whole numbers as integers, floats as floats, the rest as text."""
    columns = {}
    for name, values in table.items():
        kinds = {type(value) for value in values if value is not None}
        try:
            if len(kinds) > 1:
                raise OverflowError
            columns[name] = pa.array(values, pa.int64() if kinds == {int} else None)
        except OverflowError:
            positive = all(value is None or (isinstance(value, int) and value >= 0) for value in values)
            columns[name] = pa.array(values, pa.uint64()) if positive else texts_of(values)
    return pa.table(columns)


def texts_of(values):
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def as_text(table):
    return pa.table({name: texts_of(values) for name, values in table.items()})


def cast(table, kind):
    return pa.table([column.cast(kind) for column in table.columns], table.column_names)


def layouts(table, folder):
    """Yields (name, source, settings)."""

    def put(name, data):
        path = folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(data) if isinstance(data, bytes) else pq.write_table(data, path, row_group_size=3)
        return path

    typed, text = arrow_of(table), as_text(table)
    texts = [str(value) for values in table.values() for value in values]
    rows_in_quotes = any("\n" in value or "\r" in value for value in texts) and any(
        set(value) & set(",;\t") for value in texts
    )
    stated = {"quoting": "yes"} if rows_in_quotes else {}
    yield "csv", put("a.csv", text_of(table)), stated
    yield "csv, all quoted", put("b.csv", text_of(table, csv.QUOTE_ALL, "\r\n")), stated
    yield "csv, byte order mark", put("c.csv", b"\xef\xbb\xbf" + text_of(table)), stated
    yield "csv, semicolons", put("d.csv", text_of(table, delimiter=";")), {"separator": ";", **stated}
    yield "csv.gz", put("e.csv.gz", gzip.compress(text_of(table))), stated
    no_header = text_of(table).partition(b"\n")[2]
    numbers = {f"{name}_column": str(k) for k, name in enumerate(table, 1)}
    yield "csv without a header", put("f.csv", no_header), {"header": False, **numbers, **stated}
    yield "tsv, quoted", put("g.tsv", text_of(table, delimiter="\t")), {"quoting": "yes"}
    if not any(set(value) & set("\t\n\r") for value in texts):
        lines = [table, *([("" if v is None else str(v)) for v in row] for row in zip(*table.values()))]
        plain = "".join("\t".join(line) + "\n" for line in lines).encode()
        yield "tsv", put("h.tsv", plain), {}
        yield (
            "inter",
            put("i.inter", re.sub(rb"^(.*)\t(.*)\t(.*)\n", rb"\1:token\t\2:token\t\3:float\n", plain, count=1)),
            {},
        )
    yield "parquet", put("a.parquet", typed), {}
    yield "parquet of text", put("b.parquet", text), {}
    yield "parquet of large strings", put("c.parquet", cast(text, pa.large_string())), {}
    yield "parquet of bytes", put("d.parquet", cast(text, pa.binary())), {}
    yield "parquet of dictionaries", put("e.parquet", cast(text, pa.dictionary(pa.int32(), pa.string()))), {}
    half = len(typed) // 2
    put("parts.parquet/_SUCCESS", b"")
    for k, part in enumerate((typed.slice(0, half), typed.slice(half))):
        put(f"parts.parquet/part-{k}.snappy.parquet", part)
    yield "a folder of parquet", folder / "parts.parquet", {}
    put("mixed/a.parquet", typed.slice(0, half)), put("mixed/b.parquet", text.slice(half))
    yield "a folder of other types", folder / "mixed", {}
    lines = [dict(zip(table, row)) for row in zip(*table.values())]
    for k, part in enumerate((lines[:half], lines[half:])):
        put(f"json/{k}.jsonl", "".join(json.dumps(line) + "\n" for line in part).encode())
    yield "a folder of json", folder / "json", {}
    yield "json", put("a.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode()), {}
    yield "json of text", put("b.jsonl", "".join(json.dumps(line) + "\n" for line in text.to_pylist()).encode()), {}
    yield "arrow", typed, {}
    yield "arrow of views", cast(text, pa.string_view()), {}
    yield "lists", table, {}
    frame = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in table.items()})
    yield "pandas of objects", frame, {}
    yield "pandas of text", text.to_pandas(), {}
    yield "pandas of categories", text.to_pandas().astype("category"), {}
    yield "pandas with an index", frame.set_index("user"), {}
    yield "pandas of numbers", typed.to_pandas(types_mapper=pd.ArrowDtype), {}
    if polars:
        yield "polars", polars.from_arrow(typed), {}
        yield "polars of text", polars.from_arrow(text), {}
        yield "polars of categories", polars.from_arrow(text).with_columns(polars.all().cast(polars.Categorical)), {}
    yield "a pair of lists", (table["user"], table["item"]), {}
    yield "a pair of arrays", (np.array(table["user"], object), np.array(table["item"], object)), {}
    yield "a pair of columns", (frame.user, text["item"]), {}


def outcome(source, options):
    """The fingerprint and the named pairs, or None."""
    try:
        data = htd_jax.read(source, **options)
    except UserError:
        return None
    users, items = data.users.values.to_pylist(), data.items.values.to_pylist()
    parts = [list(zip(part.users.tolist(), part.items.tolist())) for part in data.split]
    return htd_jax.data.fingerprint(data), [{(users[u], items[i]) for u, i in part} for part in parts]


def by_the_rule(values):
    """Ids by their text: numbers if all are whole, otherwise text; None if missing."""
    texts = [None if value is None or value == "" else str(value) for value in values]
    number = lambda text: re.fullmatch(r"-?(0|[1-9][0-9]*)(\.0+)?", text)
    markers = {"NULL", "\\N", "nan", "NA"}
    real = [text for text in texts if text is not None and text not in markers]
    if real and all(number(text) and -(2**63) <= int(text.split(".")[0]) < 2**63 for text in real):
        return [None if text is None or text in markers else int(text.split(".")[0]) for text in texts]
    return texts


@settings(
    max_examples=int(os.environ.get("HTD_EXAMPLES", 15)),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(log=logs())
def test_every_layout_holds_the_same(log, tmp_path_factory):
    rows, order, columns, split, skip = log
    folder = tmp_path_factory.mktemp("log")
    table = table_of([rows[k] for k in order], columns)
    found = {}
    for name, source, options in layouts(table, folder):
        if isinstance(source, tuple) and split == "last":
            continue
        found[name] = outcome(source, {"split": split, "skip_bad_rows": skip, **options})
    first = found["csv"]
    other = {name: result for name, result in found.items() if result != first}
    assert not other, (first, other)
    pairs = list(zip(by_the_rule([row[0] for row in rows]), by_the_rule([row[1] for row in rows])))
    if first:
        assert set.union(*first[1]) == {pair for pair in pairs if None not in pair}
    if not skip and any(None in pair for pair in pairs):
        assert first is None


def test_the_rule_in_words():
    """The examples of the documentation."""
    read = lambda users: htd_jax.read((users, list(range(len(users)))), split="ratio")
    users = lambda values: read([*itertools.chain.from_iterable([v] * 3 for v in values)]).users.values.to_pylist()
    assert users(["10", "9.0"]) == [9, 10] and users([10, 9.0]) == [9, 10]
    assert users(["007", "7"]) == ["007", "7"] and users(["a", 7]) == ["7", "a"]
    assert users([2**63, 1]) == ["1", str(2**63)] and users([10**18, 2]) == [2, 10**18]
    for wrong, why in (
        ([1.5, 2.0], "1.5 is not a whole number"),
        ([1.0, 2.0**53], "may have lost digits"),
        ([True, False], "not bool"),
    ):
        with pytest.raises(UserError, match=re.escape(why)):
            users(wrong)
