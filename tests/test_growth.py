"""Data and models that grow, and the replay of earlier models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import htd_jax
from htd_jax.data import Interactions, grow, load_dataset, save_dataset
from htd_jax.distillers import Replay, Teacher, in_scale_of, remember, with_falls
from htd_jax.distillers.replay import sample_memory
from htd_jax.errors import UserError
from htd_jax.models import BPRSettings, ModelOf, grow_variables
from htd_jax.teacher import Memory


def pairs_of(part):
    return set(zip(np.asarray(part.users).tolist(), np.asarray(part.items).tolist()))


def named(dataset, part):
    users, items = dataset.users.values.to_pylist(), dataset.items.values.to_pylist()
    return {(users[u], items[i]) for u, i in pairs_of(part)}


def log(rng, users, items, size):
    found = {(f"u{rng.integers(users)}", f"i{rng.integers(items)}") for _ in range(size)}
    return list(map(list, zip(*sorted(found))))


def test_old_rows_keep_their_numbers_and_no_pair_is_lost():
    rng = np.random.default_rng(0)
    old, new = (htd_jax.read(tuple(log(rng, *sizes))) for sizes in ((20, 30, 200), (30, 40, 200)))
    grown = grow(old, new)
    whole = grown.dataset
    assert whole.users.values.to_pylist()[: len(old.users)] == old.users.values.to_pylist()
    assert whole.items.values.to_pylist()[: len(old.items)] == old.items.values.to_pylist()
    before = set().union(*(named(old, part) for part in old.split))
    after = set().union(*(named(whole, part) for part in whole.split))
    assert after == before | set().union(*(named(new, part) for part in new.split))
    assert named(whole, whole.block) == named(new, new.train) - before
    assert named(whole, grown.new.test) == named(new, new.test) - before
    assert named(whole, grown.old.test) == named(old, old.test)
    assert grown.old.train is grown.new.train is whole.train


def test_only_an_update_learns_the_block_alone(tmp_path):
    rng = np.random.default_rng(0)
    old, new = (htd_jax.read(tuple(log(rng, *sizes))) for sizes in ((20, 30, 200), (30, 40, 200)))
    whole = grow(old, new).dataset
    plain = htd_jax.data.Dataset(whole.split, whole.users, whole.items)
    assert htd_jax.data.fingerprint(plain) != htd_jax.data.fingerprint(whole)
    save_dataset(tmp_path, whole)
    again = load_dataset(tmp_path / "split.npz", whole.name)
    assert again.block is None and htd_jax.data.fingerprint(again) == htd_jax.data.fingerprint(plain)


def test_ids_of_another_kind_are_remarked():
    old = htd_jax.read((["ann"] * 3, ["tea", "jam", "bun"]))
    notes = grow(old, htd_jax.read(([7, 7, 7], ["tea", "jam", "rye"]))).dataset.notes
    assert any("none of its users is known; ids here are like 7, and those of the model like 'ann'" in x for x in notes)


def test_numbers_and_texts_are_one_id():
    old = htd_jax.read(([1, 1, 1, 2], [10, 11, 12, 10]))
    grown = grow(old, htd_jax.read((["1", "x", "x", "x"], ["99", "10", "a", "11"]))).dataset
    assert grown.users.values.to_pylist() == ["1", "2", "x"]
    assert grown.items.values.to_pylist()[:3] == ["10", "11", "12"]


def test_a_log_without_news_is_refused():
    old = htd_jax.read((["ann"] * 3, ["tea", "jam", "bun"]))
    with pytest.raises(UserError, match="no new interaction"):
        grow(old, old)


def slow_row(table, other, pairs, new, num_old, num_other, peers):
    """One new user's row, by the definition."""
    own_items = [i for u, i in pairs if u == new and i < num_other]
    activity = {u: sum(v == u for v, _ in pairs) for u, _ in pairs}
    friends = sorted({u for u, i in pairs if u < num_old and i in own_items}, key=lambda u: (-activity[u], u))[:peers]
    means = [rows[ids].mean(0) for rows, ids in ((other, own_items), (table, friends)) if ids]
    return np.mean(means, axis=0) if means else table.mean(0)


@pytest.mark.parametrize("peers", [2, 20])
def test_new_rows_follow_the_definition(peers):
    rng = np.random.default_rng(1)
    pairs = sorted({(int(rng.integers(12)), int(rng.integers(15))) for _ in range(60)} | {(12, 15)})
    block = Interactions.from_pairs(*map(list, zip(*pairs)), 14, 16)
    users, items = rng.normal(size=(9, 3)).astype(np.float32), rng.normal(size=(11, 3)).astype(np.float32)
    variables = {"params": {"users": jnp.asarray(users), "items": jnp.asarray(items)}}
    grown = grow_variables(ModelOf(BPRSettings(), 3), variables, block, 9, 11, peers=peers)["params"]
    assert (np.asarray(grown["users"])[:9] == users).all() and (np.asarray(grown["items"])[:11] == items).all()
    turned = [(i, u) for u, i in pairs]
    for user in range(9, 14):  # 12 knows only a new item, and 13 none
        expected = slow_row(users.astype(float), items.astype(float), pairs, user, 9, 11, peers)
        np.testing.assert_allclose(grown["users"][user], expected, rtol=1e-5, atol=1e-6)
    for item in range(11, 16):
        expected = slow_row(items.astype(float), users.astype(float), turned, item, 11, 9, peers)
        np.testing.assert_allclose(grown["items"][item], expected, rtol=1e-5, atol=1e-6)


def test_memory_is_the_best_unseen_items_and_how_far_they_have_fallen():
    split = htd_jax.data.make_synthetic(num_users=13, num_items=50)
    rng = np.random.default_rng(2)
    tables = [htd_jax.distillers.Representations(rng.normal(size=(13, 4)), rng.normal(size=(50, 4))) for _ in range(3)]
    teachers = [Teacher.of(table) for table in tables]
    memory = remember([teachers[0].scores, teachers[1].scores], split.train, 6)
    assert not memory.behind.any()
    memory = with_falls(memory, teachers[2].scores, split.train)
    first, second, own = (np.asarray(t.users @ t.items.T, np.float64) for t in tables)
    for user in range(13):
        seen = {i for u, i in pairs_of(split.train) if u == user}
        unseen = [i for i in range(50) if i not in seen]
        ranked = sorted(unseen, key=lambda i: -own[user, i])
        for model, scores in enumerate((first, second)):
            best = sorted(unseen, key=lambda i: -scores[user, i])[:6]
            assert memory.items[model, user].tolist() == best
            np.testing.assert_allclose(memory.logits[model, user], scores[user, best], rtol=1e-5)
            fallen = [ranked.index(item) - place for place, item in enumerate(best)]
            assert memory.behind[model, user].tolist() == fallen
            scaled = in_scale_of(memory, teachers[2].scores, split.train)
            assert scaled.items[model, user].tolist() == best
            np.testing.assert_allclose(scaled.logits[model, user], own[user, ranked[:6]], rtol=1e-5)


def test_replay_is_sampled_by_weight_and_keeps_the_larger_of_equal_pairs():
    items = jnp.array([[[0, 1, 2, -1]], [[0, 5, 6, 7]]])
    logits = jnp.array([[[1.0, 0.5, 0.2, 0.0]], [[2.0, 0.1, 0.1, 0.1]]])
    behind = jnp.array([[[0, 1000, 2000, 0]], [[0, 0, 0, 0]]])
    memory = Memory(items, logits, behind)
    draw = jax.jit(jax.vmap(lambda key: sample_memory(key, memory, 1, 1e-3)))
    sampled = draw(jax.random.split(jax.random.key(0), 20_000))
    of_first = np.bincount(np.asarray(sampled.items[:, 0]), minlength=3) / 20_000
    weights = np.exp([0.0, 1.0, 2.0])
    np.testing.assert_allclose(of_first, weights / weights.sum(), atol=0.012)
    both = np.asarray((sampled.items == 0).all(1))
    assert both.any() and not np.asarray(sampled.where)[both][:, 0].any()  # the first model's score of item 0 is lower
    assert np.asarray(sampled.where)[~both].all() and np.asarray(sampled.where)[:, 1].all()


def test_replay_keeps_scores():
    """Of users without a new interaction, a student that replays keeps lists that it loses otherwise."""
    split = htd_jax.data.make_synthetic(num_users=200, num_items=100)
    old = htd_jax.fit(split, dim=8, epochs=20, learning_rate=0.01, progress=False)
    pairs = [(u, i) for u, i in pairs_of(split.train) if u < 40]
    block = Interactions.from_pairs(*map(list, zip(*pairs)), 200, 100)
    data = htd_jax.data.Dataset(split, old.data.users, old.data.items, block=block)
    memory = remember([old.teacher().scores], split.train, 20)
    best = lambda fitted: np.asarray(fitted.teacher().top(split.train, 10))[40:]
    kept = []
    for weight in (0.0, 0.5):
        student = htd_jax.distill(
            Teacher(memory=memory),
            data,
            method=Replay(weight, decay=100.0),
            dim=8,
            start=old,
            epochs=20,
            learning_rate=0.01,
            progress=False,
        )
        kept.append(np.mean([len(set(a) & set(b)) for a, b in zip(best(student), best(old))]))
    assert kept[1] > kept[0] + 0.5
