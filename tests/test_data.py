"""Where data comes from, what is refused, and what is sampled."""

import hashlib
import os
import pickle
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from htd_jax import data
from htd_jax.data import citeulike, lists, published
from htd_jax.data import tags as tags_of
from htd_jax.data.ids import Ids
from htd_jax.data.interactions import Interactions
from htd_jax.data.order import order
from htd_jax.errors import UserError

# --- the published split


def test_citeulike_is_the_published_split(citeulike_dir):
    split = data.load("citeulike", citeulike_dir)
    assert [len(part) for part in split] == [115142, 5219, 5219]
    assert (split.train.num_users, split.train.num_items) == (5219, 25181)
    raw = pickle.loads((citeulike_dir / "Train").read_bytes())
    for user in (0, 1, 5218):
        start, stop = split.train.offsets[user : user + 2]
        assert sorted(raw[user]) == split.train.items[start:stop].tolist()
        assert set(split.train.users[start:stop].tolist()) == {user}


def test_citeulike_is_found_through_the_environment(citeulike_dir, monkeypatch):
    monkeypatch.setenv("HTD_DATA_DIR", str(citeulike_dir.parent))
    assert len(data.load("citeulike").train) == 115142


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_a_file_that_is_not_the_published_one_is_refused(citeulike_dir, tmp_path, damage):
    for name in citeulike.PUBLISHED.sha256:
        shutil.copy(citeulike_dir / name, tmp_path)
    raw = (citeulike_dir / "Valid").read_bytes()
    (tmp_path / "Valid").unlink()
    (tmp_path / "Valid").write_bytes(raw[:-100] if damage == "truncated" else raw[:-3] + b"\x01" + raw[-2:])
    with pytest.raises(UserError, match=r"Valid: damaged or not the published file .*delete it"):
        data.load("citeulike", tmp_path)


def test_a_folder_with_some_of_the_files_says_which_are_missing(tmp_path):
    (tmp_path / "Train").touch()
    with pytest.raises(UserError, match="Valid, Test missing"):
        data.load("citeulike", tmp_path)


def test_without_files_and_connection_one_line_says_what_to_do(tmp_path, monkeypatch):
    import requests

    def refuse(*args, **kwargs):
        raise requests.ConnectionError("no route")

    monkeypatch.delenv("HTD_DATA_DIR", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "cache")
    monkeypatch.setattr(requests, "get", refuse)
    with pytest.raises(UserError) as error:
        data.load("citeulike", tmp_path / "given")
    message = str(error.value)
    assert "\n" not in message
    for part in ("given", "cache", "Train, Valid, Test", "set `dataset` to synthetic", "raw.githubusercontent.com"):
        assert part in message


@pytest.mark.parametrize("home", [RuntimeError("no home"), Path("~/.cache/htd_jax")])
def test_a_user_without_a_home_is_told_where_to_put_the_files(tmp_path, monkeypatch, home):
    def cache(name):
        if isinstance(home, Exception):
            raise home
        return home

    monkeypatch.delenv("HTD_DATA_DIR", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_path", cache)
    monkeypatch.chdir(tmp_path)
    assert len(data.load("synthetic").test) == 1000  # needs none
    for folder in (None, tmp_path / "given"):
        with pytest.raises(
            UserError, match=r"no home folder to download to; set `data_dir` .*`dataset` to synthetic"
        ) as error:
            data.load("citeulike", folder)
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []  # and no folder named "~"


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("HTD_DATA_DIR", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "file" / name)
    with pytest.raises(UserError, match=r"no download .*file/htd_jax/citeulike: ") as error:
        data.load("citeulike")
    assert "\n" not in str(error.value)


class Trap:
    def __reduce__(self):
        return print, ("the trap was sprung",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps(Trap()), "names builtins.print"),
        (pickle.dumps({0: np.int64(3)}), "names numpy"),
        (pickle.dumps({0: 1})[:-3], "not a pickle of dicts and ints"),
        (b"", "not a pickle"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f", "for the memory of this machine, or damaged"),
        (pickle.dumps([1, 2]), "not a pickle of dicts and ints"),
        (pickle.dumps({0: "one"}), "not a pickle of dicts and ints"),
        (pickle.dumps({0: {"a": 1}}), "not a pickle of dicts and ints"),
        (pickle.dumps({0: {1: "x"}}), "not a pickle of dicts and ints"),
        (pickle.dumps({0: {1: {2: 3}}}), "not a pickle of dicts and ints"),
        (pickle.dumps({}), "not a pickle of dicts and ints"),
    ],
)
def test_only_dicts_of_ints_are_unpickled(tmp_path, capsys, content, reason):
    path = tmp_path / "Train"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason):
        citeulike.read_numbers(path)
    assert capsys.readouterr().out == ""


def test_an_unknown_dataset_lists_the_known_ones():
    known = "unknown dataset 'movies' (known: citeulike, citeulike-t, foursquare, synthetic); set `dataset`"
    with pytest.raises(UserError, match=re.escape(known)):
        data.load("movies")


# --- lists of items


@pytest.mark.parametrize(
    ("name", "users", "items", "interactions"),
    [("citeulike-t", 5219, 25181, 125580), ("foursquare", 14617, 28593, 572840)],
)
@pytest.mark.parametrize("kind", data.SPLITS)
def test_published_lists_are_filtered_and_split(name, users, items, interactions, kind):
    root = os.environ.get("HTD_DATA_DIR")
    if not root or not (Path(root) / name / "users.dat").is_file():
        pytest.skip(f"needs {name}/users.dat: set HTD_DATA_DIR to the folder that holds {name}/")
    split = data.load(name, split=kind)
    assert (split.train.num_users, split.train.num_items) == (users, items)
    assert sum(map(len, split)) == interactions
    seen = np.unique(np.concatenate([part.items for part in split]))
    assert len(seen) == items
    if kind == "leave-one-out":
        assert len(split.valid) == len(split.test) == users


@pytest.fixture
def source(tmp_path):
    """A made-up `users.dat` and what publishes it; the users have 3, 0, 4, 2 and 5 items."""
    content = b"4 70 10 10 20\n0\n4 10 20 30 40\n2 90 91\n6 70 20 30 50 10 70\n"
    (tmp_path / "users.dat").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    return lists.UserLists(published.Published("made-up", "https://nowhere/", {"users.dat": digest}), 3)


def test_users_with_few_items_are_dropped_and_ids_renumbered(source, tmp_path):
    split = data.load_lists(source, tmp_path)
    assert (split.train.num_users, split.train.num_items) == (3, 6)
    found = sorted((u, i) for part in split for u, i in zip(part.users.tolist(), part.items.tolist()))
    renumbered = {10: 0, 20: 1, 30: 2, 40: 3, 50: 4, 70: 5}
    rows = [(70, 10, 20), (10, 20, 30, 40), (70, 20, 30, 50, 10)]
    assert found == sorted((user, renumbered[item]) for user, row in enumerate(rows) for item in row)
    assert [len(part) for part in split] == [6, 3, 3]
    assert data.load_lists(source, tmp_path, min_interactions=5).train.num_users == 1
    with pytest.raises(UserError, match="no user of made-up has 6 items"):
        data.load_lists(source, tmp_path, min_interactions=6)
    with pytest.raises(UserError, match="`made-up.min_interactions` must be at least 3"):
        data.load_lists(source, tmp_path, min_interactions=2)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"3 1 2", "its count says 3 items, but 2 follow"),
        (b"1 1 2", "its count says 1 items, but 2 follow"),
        (b"", "it is empty"),
        (b"2 1 x", "'x' is not a whole number from 0"),
        (b"2 1 -4", "'-4' is not a whole number from 0"),
        (b"2 1 4.5", "'4.5' is not a whole number from 0"),
        (b"1 99999999999999999999", "'99999999999999999999' is not a whole number from 0"),
        (b"1 \xff\x00", "is not a whole number from 0"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, reason):
    (tmp_path / "users.dat").write_bytes(b"1 5\n" + line + b"\n1 6\n")
    with pytest.raises(UserError, match=f"users.dat: line 2: .*{reason}") as error:
        lists.read_users_dat(tmp_path / "users.dat")
    assert "\n" not in str(error.value)


@pytest.fixture
def tagged(source, tmp_path, monkeypatch):
    """A made-up `tag-item.dat` in the folder of the `users.dat`: item 5 has no row, tag 1 no item."""
    content = b"3 70 5 10\n1 99\n2 30 30\n2 10 40\n"
    (tmp_path / "tag-item.dat").write_bytes(content)
    made = source.published.sha256 | {"tag-item.dat": hashlib.sha256(content).hexdigest()}
    monkeypatch.setattr(tags_of, "PUBLISHED", published.Published("made-up", "https://nowhere/", made))
    return tmp_path


def test_tags_are_of_the_rows_of_a_data_set(tagged):
    """With four items a user the items are 10, 20, 30, 40, 50, 70; with five, 40 is of nobody."""
    found = data.load_tags("citeulike-t", tagged, min_interactions=4)
    assert (found.num_items, found.num_tags) == (6, 4)
    renumbered = {10: 0, 20: 1, 30: 2, 40: 3, 50: 4, 70: 5}
    pairs = [(70, 0), (10, 0), (30, 2), (10, 3), (40, 3)]
    assert list(zip(found.items.tolist(), found.tags.tolist())) == sorted((renumbered[i], t) for i, t in pairs)
    of_five = data.load_tags("citeulike", tagged)
    assert of_five.num_items == 5 and list(zip(of_five.items.tolist(), of_five.tags.tolist())) == [
        (0, 0),
        (0, 3),
        (2, 2),
        (4, 0),
    ]


def test_tags_of_another_data_set_are_refused(tagged):
    with pytest.raises(UserError, match="items of 'foursquare' have no tags, only those of citeulike and citeulike-t"):
        data.load_tags("foursquare", tagged)
    (tagged / "tag-item.dat").write_bytes(b"1 5\n2 1\n")
    with pytest.raises(UserError, match="tag-item.dat: damaged or not the published file"):
        data.load_tags("citeulike-t", tagged)
    with pytest.raises(UserError, match="tag-item.dat: line 2: its count says 2 items, but 1 follow"):
        data.read_tag_items(tagged / "tag-item.dat")
    (tagged / "tag-item.dat").write_bytes(b"0\n")
    with pytest.raises(UserError, match="it holds no item of any tag"):
        data.read_tag_items(tagged / "tag-item.dat")
    with pytest.raises(UserError, match="nothing.dat: there is no such file"):
        data.read_tag_items(tagged / "nothing.dat")


def test_the_published_tags(citeulike_dir, monkeypatch):
    """The order in which citeulike numbers its items: with it, every user has in citeulike-t what it has there."""
    folder = citeulike_dir.parent / "citeulike-t"
    if not (folder / "tag-item.dat").is_file():
        pytest.skip("needs the citeulike-t files in the folder that contains citeulike/")
    split = data.load("citeulike", citeulike_dir)
    users, items = lists.read_users_dat(folder / "users.dat")
    kept = (np.bincount(users) >= 5)[users]
    ids, first = np.unique(items[kept], return_index=True)
    rows = np.argsort(np.argsort(first))[np.searchsorted(ids, items[kept])]
    users = np.unique(users[kept], return_inverse=True)[1]
    pairs = np.concatenate([np.stack([part.users, part.items], 1) for part in split])
    assert set(map(tuple, pairs.tolist())) == set(zip(users.tolist(), rows.tolist()))
    found, other = (data.load_tags(name, folder) for name in ("citeulike", "citeulike-t"))
    assert found.num_items == other.num_items == 25181 and found.num_tags == other.num_tags == 52946
    assert len(found.items) == len(other.items) == 285709
    raw = {int(item): int(row) for item, row in zip(ids, np.argsort(np.argsort(first)))}
    line = (folder / "tag-item.dat").read_text().splitlines()[8].split()[1:]
    assert sorted(raw[int(i)] for i in line if int(i) in raw) == found.items[found.tags == 8].tolist()


@pytest.mark.parametrize("content", [b"", b"0\n0\n"])
def test_a_file_without_items_is_refused(tmp_path, content):
    (tmp_path / "users.dat").write_bytes(content)
    with pytest.raises(UserError, match="it holds no item"):
        lists.read_users_dat(tmp_path / "users.dat")


@pytest.mark.parametrize("name", ["citeulike", "synthetic"])
@pytest.mark.parametrize("choice", [{"min_interactions": 5}, {"split": "ratio"}, {"split_seed": 1}])
def test_a_fixed_split_takes_no_choices(name, choice):
    with pytest.raises(TypeError, match=f"has no setting '{next(iter(choice))}'"):
        data.load(name, **choice)


# --- splits


def pairs(*rows):
    return tuple(np.array(rows, int).reshape(-1, 2).T)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ((pairs((0, 0)), pairs((0, 1)), pairs((0, 9))), r"item ids must lie in \[0, 4\)"),
        ((pairs((-1, 0)), pairs((0, 1)), pairs((0, 2))), r"user ids must lie in \[0, 2\)"),
        ((pairs((0, 0)), pairs((0, 1)), pairs((0, 0))), "user 0 and item 0 are in more than one"),
        ((pairs((0, 0)), pairs((0, 2)), pairs()), "the test part holds no interaction"),
        ((pairs((0, 0)), pairs((0, 2)), (np.array([]), np.array([]))), "the test part holds no interaction"),
        ((pairs(), pairs(), pairs((0, 2))), "the train part holds no interaction"),
        ((pairs((0, 0)), (np.array([0]), np.array([1.5])), pairs((0, 2))), "item ids must be integers, not float64"),
        ((pairs((0, 0), (0, 1), (0, 2), (0, 3)), pairs((1, 1)), pairs((1, 2))), "has all 4 items"),
    ],
)
def test_an_impossible_split_is_refused(parts, reason):
    with pytest.raises(UserError, match=reason):
        data.make_split(*parts, 2, 4)


def test_more_users_or_items_than_an_id_can_name_are_refused():
    for sizes, name in (((2**31, 5), "2147483648 users"), ((1, 2**31), "2147483648 items")):
        with pytest.raises(UserError, match=name):
            Interactions.from_pairs(*pairs((0, 4)), *sizes)


USERS, ITEMS = np.repeat(np.arange(6), 5), np.concatenate([np.arange(k, k + 5) for k in range(6)])


def the_same(users, items):
    """Whether every way in takes these for the pairs (USERS, ITEMS)."""
    of = lambda users, items: data.fingerprint(data.split_pairs(users, items))
    parts = [(users, items), ([0], [9]), ((1,), (9,))]
    found = data.make_split(*parts, 6, 10).train, Interactions.from_pairs(users, items, 6, 10)
    return of(users, items) == of(USERS, ITEMS) and all(
        one.users.tolist() == USERS.tolist() and one.items.tolist() == ITEMS.tolist() for one in found
    )


@pytest.mark.parametrize("kind", [list, tuple, jnp.asarray, np.uint8, np.int16, np.uint64, lambda x: x.astype(object)])
def test_pairs_are_values_in_their_order(kind):
    assert the_same(kind(USERS), kind(ITEMS))
    assert the_same(USERS, kind(ITEMS))


@pytest.mark.parametrize("kind", ["int64", "Int64", "category"])
def test_labels_of_a_column_do_not_count(kind):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"user": USERS, "item": ITEMS}).astype(kind)
    frame.index = np.random.default_rng(0).permutation(len(frame))
    assert the_same(frame.user, frame.item)
    shuffled = frame.sample(frac=1, random_state=1)
    found, wanted = (data.split_pairs(f(shuffled.user), f(shuffled.item)) for f in (lambda x: x, np.asarray))
    assert data.fingerprint(found) == data.fingerprint(wanted)


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ([0], "as many .* not (1 and 3|3 and 1)"),
        ([], "as many .* not (0 and 3|3 and 0)"),
        (0, r"one column of integers, not an array of shape \(\)"),
        ([[0, 1, 2]], r"one column of integers, not an array of shape \(1, 3\)"),
        ([[0], [1, 2], [0]], "one column of integers, which this list is not"),
        ({0, 1, 2}, "one column of integers, not an array of shape"),
        ([0.0, 1.0, 2.0], "must be integers, not float64; convert"),
        ([0.0, np.nan, 2.0], "some are missing"),
        (np.ma.masked_array([0, 1, 2], [False, True, False]), "some are missing"),
        ([0, None, 2], "must be integers, not object; number them"),
        (["a", "b", "c"], "must be integers, not <U1; number them"),
        ([True, False, True], "must be integers, not bool"),
        ([0, -1, 2], "must lie in .*, but go from -1 to 2"),
        (np.array([0, 1, 2**63], np.uint64), r"must lie in \[0, \d+\), but go from 0 to 9223372036854775808"),
        ([0, 1, 2**70], "must be integers, not object|must lie in"),
        (np.array(["2020-01-01"] * 3, "datetime64[D]"), "must be integers, not datetime64"),
    ],
)
def test_what_are_no_pairs_is_refused_by_name(ids, reason):
    good = [0, 1, 2]
    ways = [
        data.split_pairs,
        lambda users, items: Interactions.from_pairs(users, items, 3, 5),
        lambda users, items: data.make_split((users, items), ([0], [3]), ([1], [3]), 3, 5),
        lambda users, items: data.make_split((good, good), (users, items), ([1], [3]), 3, 5),
    ]
    for way in ways:
        for name, pair in (("user", (ids, good)), ("item", (good, ids))):
            with pytest.raises(UserError, match=reason) as error:
                way(*pair)
            assert "\n" not in str(error.value) and (name in str(error.value))


@pytest.mark.parametrize("part", [np.arange(3), ([0],), None, {"user": [0], "item": [1]}])
def test_a_part_that_is_no_pair_is_refused(part):
    with pytest.raises(UserError, match="the valid part must be a pair of users and items"):
        data.make_split(([0], [0]), part, ([0], [1]), 2, 4)


def test_unsigned_ids_will_do():
    found = Interactions.from_pairs(*np.array([[1, 0], [3, 4]], np.uint64), 2, 5)
    assert found.users.tolist() == [0, 1] and found.items.tolist() == [4, 3]


def test_interactions_are_sorted_and_each_once():
    found = Interactions.from_pairs(*pairs((2, 1), (0, 3), (2, 0), (0, 3)), 4, 5)
    assert found.users.tolist() == [0, 2, 2]
    assert found.items.tolist() == [3, 0, 1]
    assert found.offsets.tolist() == [0, 1, 1, 3, 3]
    assert found.max_degree == 2


def test_synthetic_is_the_same_for_the_same_seed_and_has_a_long_tail():
    one, two, other = data.make_synthetic(3), data.make_synthetic(3), data.make_synthetic(4)
    assert data.fingerprint(one) == data.fingerprint(two) != data.fingerprint(other)
    degree = np.sort(np.bincount(np.asarray(one.train.items), minlength=one.train.num_items))[::-1]
    tenth = len(degree) // 10
    assert degree[:tenth].sum() > 0.3 * degree.sum()
    assert all(len(part) == one.train.num_users for part in (one.valid, one.test))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(3, 30), min_size=2, max_size=8), st.integers(0, 2**32 - 1), st.sampled_from([*data.SPLITS]))
def test_every_user_is_split_for_itself(degrees, seed, kind):
    users = np.repeat(np.arange(len(degrees)), degrees)
    items = np.concatenate([np.random.default_rng(user).permutation(40)[:d] for user, d in enumerate(degrees)])
    split = data.split_pairs(users, items, split=kind, seed=seed)
    counts = [np.bincount(part.users, minlength=len(degrees)) for part in split]
    held_out = np.ones(len(degrees)) if kind == "leave-one-out" else np.round(np.array(degrees) / 5)
    assert (counts[1] == held_out).all() and (counts[2] == held_out).all() and (counts[0] >= 1).all()
    assert sum(counts).tolist() == degrees
    found = np.concatenate([np.stack([part.users, part.items]) for part in split], 1)
    assert sorted(map(tuple, found.T.tolist())) == sorted(zip(users.tolist(), items.tolist()))
    assert data.fingerprint(split) == data.fingerprint(data.split_pairs(users, items, split=kind, seed=seed))


def test_what_is_held_out_is_uniform():
    users, items = np.repeat(np.arange(4000), 8), np.tile(np.arange(8), 4000)
    users, items = np.append(users, 0), np.append(items, 8)  # an item that not everyone has
    for kind in data.SPLITS:
        split, other = (data.split_pairs(users, items, split=kind, seed=seed) for seed in (0, 1))
        assert data.fingerprint(split) != data.fingerprint(other)
        for part in (split.valid, split.test):
            count = np.bincount(part.items)[:8]
            assert np.abs(count / count.sum() - 1 / 8).max() < 0.03


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({"split": "half"}, "unknown `split` 'half'; known: leave-one-out, ratio"),
        ({"seed": -1}, "`seed` must be at least 0"),
    ],
)
def test_an_impossible_way_to_split_is_refused(choice, reason):
    with pytest.raises(UserError, match=reason):
        data.split_pairs(np.zeros(3, int), np.arange(3), **choice)


def test_nothing_cannot_be_split():
    with pytest.raises(UserError, match="no interactions to split"):
        data.split_pairs(np.array([]), np.array([]))


def test_a_split_is_saved_and_loaded(small_split, tmp_path):
    path = tmp_path / "split.npz"
    data.save_split(path, small_split)
    assert [p.name for p in tmp_path.iterdir()] == ["split.npz"]
    found = data.load_split(path)
    assert data.fingerprint(found) == data.fingerprint(small_split)
    assert [part.max_degree for part in found] == [part.max_degree for part in small_split]
    first = path.read_bytes()
    data.save_split(path, found)
    assert path.read_bytes() == first


def test_a_split_is_saved_whole_or_not_at_all(small_split, tmp_path, monkeypatch):
    path = tmp_path / "split.npz"
    path.write_text("before")

    def full(file, **arrays):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match=r"split\.npz: cannot be written .No space left"):
        data.save_split(path, small_split)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["before"]


def test_a_damaged_or_foreign_file_is_no_split(small_split, tmp_path):
    good = tmp_path / "good.npz"
    data.save_split(good, small_split)
    raw, arrays = good.read_bytes(), dict(np.load(good))
    path = tmp_path / "bad.npz"
    damages = [b"", b"text", raw[:-50], raw[: len(raw) // 2], raw[:100] + b"\0\1\2\3" * 9 + raw[136:]]
    foreign = [
        {"train": arrays["train"]},
        arrays | {"train": arrays["train"].astype(float)},
        arrays | {"valid": arrays["valid"].ravel()},
        arrays | {"sizes": np.array(3)},
        arrays | {"test": np.array([[{}, None]], object)},
        arrays | {"test": arrays["test"] + 100},
        arrays | {"sizes": np.array([-1, 90])},
        arrays | {"sizes": np.array([2**60, 90])},
        arrays | {"valid": arrays["train"][:5]},
    ]
    for damage in (*damages, *foreign):
        if isinstance(damage, bytes):
            path.write_bytes(damage)
        else:
            np.savez(path, **damage)
        with pytest.raises(UserError, match=r"bad\.npz: ") as error:
            data.load_split(path)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"nowhere\.npz: there is no such file"):
        data.load_split(tmp_path / "nowhere.npz")
    with pytest.raises(UserError, match="cannot be written"):
        data.save_split(tmp_path / "nowhere" / "split.npz", small_split)


def test_a_path_that_cannot_be_printed_is_shown_in_escapes(small_split, tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9\n")
    data.save_split(path, small_split)
    assert data.fingerprint(data.load_split(path)) == data.fingerprint(small_split)
    for use in (data.load_split, lambda path: data.save_split(path, small_split)):
        with pytest.raises(UserError, match=r"caf\\udce9\\n/x\.npz: cannot be") as error:
            use(path / "x.npz")
        assert str(error.value).isprintable()


# --- sampling


def test_sampling_needs_no_rank_promotion(small_split):
    with jax.numpy_rank_promotion("raise"):
        data.unseen_items(jax.random.key(0), small_split.train)
        data.distinct(jnp.array([1, 2, 2]), jnp.ones(3, bool), 5)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**31))
def test_shuffle_is_a_permutation_of_any_size(size, seed):
    order = data.shuffle(jax.random.key(seed), size)
    assert sorted(order.tolist()) == list(range(size))


def test_shuffles_are_uniform_and_differ():
    """Where an element lands, and which two land side by side, over many keys, against the chi-squared law."""
    size, draws = 37, 20000
    orders = np.asarray(jax.vmap(lambda key: data.shuffle(key, size))(jax.random.split(jax.random.key(0), draws)))
    for counts in (
        np.stack([np.bincount(orders[:, i], minlength=size) for i in (0, 17, 36)]),
        np.bincount((orders[:, 1] - orders[:, 0]) % size, minlength=size)[None, 1:],
    ):
        expected = draws / counts.shape[1]
        chi2 = ((counts - expected) ** 2 / expected).sum(1)
        freedom = counts.shape[1] - 1
        assert (np.abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)).all(), chi2
    assert len(np.unique(orders, axis=0)) == draws


def test_unseen_items_are_unseen_and_uniform_over_the_unseen(small_split):
    train = small_split.train
    draws = jax.jit(jax.vmap(lambda key: data.unseen_items(key, train)))(jax.random.split(jax.random.key(0), 3000))
    draws = np.asarray(draws)
    users, items = np.asarray(train.users), np.asarray(train.items)
    for user in (0, 1, 59):  # the first has seen nearly everything
        seen = set(items[users == user].tolist())
        drawn = draws[:, users == user].ravel()
        count = np.bincount(drawn, minlength=train.num_items)
        assert not seen & set(drawn.tolist())
        unseen = np.array(sorted(set(range(train.num_items)) - seen))
        expected = len(drawn) / len(unseen)
        chi2 = ((count[unseen] - expected) ** 2 / expected).sum()
        assert abs(chi2 - len(unseen) + 1) < 5 * np.sqrt(2 * len(unseen))


def test_every_item_is_drawn_almost_equally_often():
    """With few seen items, as often as there are packs; independent draws would spread by the root of that."""
    pairs = np.stack([np.repeat(np.arange(1000), 10), np.tile(np.arange(10), 1000)])
    pairs[1] += 50 * (pairs[0] % 40)
    train = Interactions.from_pairs(*pairs, 1000, 2000)
    count = np.bincount(data.unseen_items(jax.random.key(0), train), minlength=2000)
    assert count.sum() == 10000 and count.std() < 0.2 * np.sqrt(5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=40))
def test_distinct_marks_every_counted_value_once(drawn):
    drawn += [(20, False)] * (40 - len(drawn))  # one shape, one compilation
    ids, where = (np.array(x) for x in zip(*drawn, strict=True))
    found, first = data.distinct(jnp.asarray(ids), jnp.asarray(where), 21)
    assert found.shape == first.shape == ids.shape
    assert found[first].tolist() == sorted(set(ids[where].tolist()))
    assert (found < 21).all()


# --- order of rows


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_order_is_that_of_lexsort(given_data):
    """Also where differences overflow, and for zeros of both signs and infinities."""
    size = given_data.draw(st.integers(0, 30))
    numbers = [
        st.integers(-(2**63), 2**63 - 1).map(np.int64),
        st.integers(0, 3).map(np.int64),
        st.integers(0, 2**31 - 1).map(np.int32),
        st.floats(allow_nan=False).map(np.float64),
        st.sampled_from([-0.0, 0.0, 1.5, -np.inf, np.inf]).map(np.float64),
    ]
    kinds = given_data.draw(st.lists(st.sampled_from(numbers), min_size=1, max_size=3))
    draw = lambda kind: np.array(given_data.draw(st.lists(kind, min_size=size, max_size=size)))
    keys = [draw(kind) if size else np.zeros(0, np.int64) for kind in kinds]
    np.testing.assert_array_equal(order(*keys), np.lexsort(keys[::-1]))


@pytest.mark.parametrize("collide", [False, True])
@pytest.mark.parametrize(
    "values", [[f"u{i}" for i in range(600)], list(range(-5, 595)), [7 * i for i in range(599)] + [2**62]]
)
def test_few_ids_are_found_as_many_are(monkeypatch, values, collide):
    if collide:
        monkeypatch.setattr("htd_jax.data.ids._key", lambda value: 0)
    ids = Ids(pa.array(values), "user")
    for asked in (values[3], values[-1], "nope", "", 5, "5", "5.0", "007", 2**63 - 1, 2**70, -1, "-1", "7\n", "\ud800"):
        many = ids.find(np.array([asked] * 20, object)) if asked != "\ud800" else [-1]
        assert ids.find(asked).tolist() == ids.find([asked]).tolist() == [many[0]], asked
    copy = pickle.loads(pickle.dumps(ids))  # with its keys
    assert copy.find([values[9], values[0]]).tolist() == [9, 0]
