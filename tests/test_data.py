"""Where data comes from, what is refused, and what is sampled."""

import pickle
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from htd_jax import data
from htd_jax.data import citeulike
from htd_jax.data.interactions import Interactions
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
    for name in citeulike.SHA256:
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
    for part in ("given", "cache", "Train, Valid, Test", "--dataset synthetic", "raw.githubusercontent.com"):
        assert part in message


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
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f", "not a pickle"),
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
    with pytest.raises(UserError, match="unknown dataset 'movies'; known datasets: citeulike, synthetic"):
        data.load("movies")


# --- splits


def pairs(*rows):
    return tuple(np.array(rows, int).reshape(-1, 2).T)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ((pairs((0, 0)), pairs((0, 1)), pairs((0, 9))), r"item ids must lie in \[0, 4\)"),
        ((pairs((-1, 0)), pairs((0, 1)), pairs((0, 2))), r"user ids must lie in \[0, 2\)"),
        ((pairs((0, 0)), pairs((0, 1)), pairs((0, 0))), "user 0 and item 0 stand in more than one"),
        ((pairs((0, 0)), pairs(), pairs((0, 2))), "the valid part holds no interaction"),
        ((pairs((0, 0), (0, 1), (0, 2), (0, 3)), pairs((1, 1)), pairs((1, 2))), "has all 4 items"),
    ],
)
def test_an_impossible_split_is_refused(parts, reason):
    with pytest.raises(UserError, match=reason):
        data.make_split(*parts, 2, 4)


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


# --- sampling


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
