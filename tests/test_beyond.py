"""What is behind a mean, against loops over users and items."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from test_overlaps import lists_of, rbo_by_loops

from htd_jax import data
from htd_jax.data.interactions import Interactions
from htd_jax.data.summary import gini
from htd_jax.evaluation import make_evaluator, make_ranker
from htd_jax.models import BPR
from htd_jax.studies.beyond import (
    activity_thirds,
    by_activity,
    by_popularity,
    character,
    likeness,
    popularity_thirds,
)


@pytest.fixture
def split(rng):
    """50 users over 40 items, of which some are far more popular, one of none; up to three held out."""
    weights = 1 / np.arange(1, 40) ** 1.5
    rows = [[], [], []]
    for user in range(50):
        items = rng.choice(39, rng.integers(6, 16), replace=False, p=weights / weights.sum()).tolist()
        cut = int(rng.integers(0 if user else 1, 4))
        for part, its in zip(rows, (items[cut + 1 :], items[:1], items[1 : cut + 1])):
            part.extend((user, item) for item in its)
    return data.make_split(*(tuple(np.array(part).T) for part in rows), 50, 40)


def test_thirds_of_popularity_hold_thirds_of_the_interactions(split):
    train = split.train
    counts = np.bincount(train.items, minlength=40)
    thirds = popularity_thirds(train)
    order = sorted(range(40), key=lambda item: (-counts[item], item))
    held = 0
    for item in order:
        wanted = 0 if held < len(train) / 3 else 1 if held < 2 * len(train) / 3 else 2
        assert thirds[item] == (wanted if counts[item] else 2)
        held += counts[item]
    assert thirds[39] == 2
    for above in (0, 1):  # the fewest that do
        its = [item for item in order if thirds[item] <= above]
        assert counts[its].sum() >= (above + 1) * len(train) / 3 > counts[its[:-1]].sum()


def test_thirds_of_activity_are_of_one_size(split):
    train = split.train
    degrees = np.diff(train.offsets)
    for count in (1, 2, 3, 7, 50):
        users = np.arange(50)[-count:]
        thirds = activity_thirds(train, users)
        sizes = np.bincount(thirds, minlength=3)
        assert sizes.max() - sizes.min() <= 1 and sizes.sum() == count
        for third in (0, 1):
            if sizes[third] and sizes[third + 1]:
                assert degrees[users[thirds == third]].max() <= degrees[users[thirds == third + 1]].min()
    assert len(activity_thirds(train, np.zeros(0, int))) == 0


def test_metrics_by_popularity_and_activity_are_their_definition(split, rng):
    test, cutoffs = split.test, (1, 5)
    ranks = rng.integers(1, 12, size=len(test), dtype=np.int32)
    users, items = np.asarray(test.users), np.asarray(test.items)
    thirds = popularity_thirds(split.train)
    for number, part in enumerate(by_popularity(split.train, test, ranks, cutoffs)):
        own = thirds[items] == number
        recalls = [np.mean(ranks[own & (users == user)] <= 5) for user in np.unique(users[own])]
        assert (part.size, part.users, part.pairs) == ((thirds == number).sum(), len(recalls), own.sum())
        assert part.metrics["recall@5"] == pytest.approx(np.mean(recalls), abs=1e-6)
        firsts = [min(ranks[own & (users == user)]) for user in np.unique(users[own])]
        assert part.metrics["mrr@1"] == pytest.approx(np.mean([r == 1 for r in firsts]), abs=1e-6)
    who = np.unique(users)
    of_user = dict(zip(who.tolist(), activity_thirds(split.train, who).tolist()))
    parts = by_activity(split.train, test, ranks, cutoffs)
    for number, part in enumerate(parts):
        recalls = [np.mean(ranks[users == user] <= 5) for user in who if of_user[user] == number]
        assert part.size == part.users == len(recalls)
        assert part.metrics["recall@5"] == pytest.approx(np.mean(recalls), abs=1e-6)
    assert [part.name for part in parts] == ["least", "middle", "most"]


@pytest.mark.slow
def test_the_thirds_of_users_make_the_mean_of_an_evaluation(split, rng):
    make_model = lambda train: BPR(train.num_users, train.num_items, 4)
    tables = {name: jnp.asarray(rng.normal(size=(n, 4)), jnp.float32) for name, n in (("users", 50), ("items", 40))}
    metrics = make_evaluator(split)(make_model, {"params": tables})["test"]
    ranks = make_ranker(split)(make_model, {"params": tables})["test"]
    parts = by_activity(split.train, split.test, ranks)
    for name, value in metrics.items():
        mean = sum(part.users * part.metrics[name] for part in parts) / sum(part.users for part in parts)
        assert mean == pytest.approx(float(value), abs=1e-6)
    pairs = sum(part.pairs for part in by_popularity(split.train, split.test, ranks))
    assert pairs == len(split.test)


def test_the_character_of_lists_is_its_definition(split, rng):
    lists = lists_of(rng, 50, 6, 40)
    train = split.train
    counts = np.bincount(train.items, minlength=40)
    seen = [np.asarray(train.items)[np.asarray(train.users) == user] for user in range(50)]
    found = character(lists, train)
    own = [row[row >= 0] for row in lists]
    users = [user for user in range(50) if len(own[user]) and len(seen[user])]
    assert found.k == 6
    assert found.coverage == len({int(item) for row in own for item in row}) / 40
    assert found.popularity == pytest.approx(np.mean([counts[own[user]].mean() for user in users]))
    assert found.history_popularity == pytest.approx(np.mean([counts[seen[user]].mean() for user in users]))
    assert found.catalogue_popularity == pytest.approx(counts.mean())
    assert found.above_history == pytest.approx(found.popularity / found.history_popularity)
    assert found.above_catalogue == pytest.approx(found.popularity / found.catalogue_popularity)
    shown = np.bincount(np.concatenate(own), minlength=40)
    pairs = np.abs(shown[:, None] - shown[None]).sum() / (2 * 40 * shown.sum())
    assert found.gini == pytest.approx(pairs)
    some = rng.permutation(50)[:20]
    assert character(lists[some], train, some) == character(lists[some], train, some.tolist())
    assert json.loads(json.dumps(dataclasses.asdict(found), allow_nan=False))["k"] == 6


def test_lists_of_one_item_and_of_all():
    train = Interactions.from_pairs([0, 1, 1], [0, 0, 1], 3, 10)
    same = character(np.zeros((3, 1), int), train)
    assert same.coverage == 0.1 and same.gini == pytest.approx(0.9) and same.popularity == 2
    every = character(np.tile(np.arange(10), (3, 1)), train)
    assert (every.coverage, every.gini, every.above_catalogue) == (1, 0, pytest.approx(1))
    nothing = character(np.full((3, 2), -1), train)
    assert (nothing.coverage, nothing.gini, nothing.popularity, nothing.above_history) == (0, 0, 0, None)


def test_gini_of_known_shares():
    assert gini(np.zeros(3)) == gini(np.ones(7)) == 0
    assert gini(np.array([1, 2, 3, 4])) == pytest.approx(0.25)
    assert gini(np.array([4, 1, 3, 2]) * 100) == pytest.approx(0.25)


def test_two_models_side_by_side(rng):
    first, second = (lists_of(rng, 40, 8, 30) for _ in range(2))
    found = likeness(first, second, p=0.8)
    assert found.rank_biased == pytest.approx(np.mean([rbo_by_loops(a, b, 0.8) for a, b in zip(first, second)]))
    assert (likeness(first, first).overlap, likeness(first, first).rank_biased) == (1, pytest.approx(1))
    assert likeness(first[:0], second[:0]).overlap == 0


@pytest.mark.parametrize(
    ("lists", "users", "reason"),
    [
        ([[0.5]], None, "expected integers"),
        ([0], None, "expected integers"),
        ([[10], [0], [0]], None, r"items in \[-1, 10\)"),
        ([[0]], None, r"one per list, \[1\], got \[3\]"),
    ],
)
def test_what_are_no_lists_is_refused(lists, users, reason):
    train = Interactions.from_pairs([0, 1, 1], [0, 0, 1], 3, 10)
    with pytest.raises(ValueError, match=reason):
        character(np.array(lists), train, users)
