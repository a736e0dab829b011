"""What a student keeps, against pairs one by one, NumPy's correlation and loops over items."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from htd_jax.data import Tags
from htd_jax.models import Representations
from htd_jax.studies import topology
from htd_jax.studies.topology import (
    entity_level,
    group_level,
    kept,
    neighbour_overlap,
    relations,
    tag_retrieval,
)


def entities(rng, rows=90, groups=5):
    """A teacher, a student that is near it, and groups, one of them of one row and the last of none."""
    teacher = rng.normal(size=(rows, 8)) + 0.5
    student = teacher[:, :3] + 0.2 * rng.normal(size=(rows, 3))
    teacher[7] = 0
    own = rng.integers(groups - 2, size=rows)
    own[3] = groups - 2
    return teacher.astype(np.float32), student.astype(np.float32), own


def by_pairs(teacher, student, groups):
    near, far = (oracle.cosines(x.astype(float), x.astype(float)) for x in (teacher, student))
    a, b = np.triu_indices(len(groups), 1)
    for chosen in (groups[a] == groups[b], groups[a] != groups[b]):
        t, s = near[a, b][chosen], far[a, b][chosen]
        yield len(t), np.corrcoef(t, s)[0, 1], np.abs(t - s).mean()


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [topology.PAIRS, 90 * 7])
def test_the_entity_level_is_its_definition(rng, pairs, monkeypatch):
    jax.clear_caches()
    monkeypatch.setattr(topology, "PAIRS", pairs)
    teacher, student, groups = entities(rng)
    found = entity_level(teacher, student, groups, num_groups=5)
    for agreement, (count, correlation, error) in zip(found, by_pairs(teacher, student, groups)):
        assert agreement.pairs == count
        assert agreement.correlation == pytest.approx(correlation, abs=1e-6)
        assert agreement.error == pytest.approx(error, abs=1e-6)


@pytest.mark.slow
def test_the_error_of_a_sample_is_that_of_its_pairs(rng):
    teacher, student, groups = entities(rng)
    rows = np.sort(np.random.default_rng(3).choice(90, 40, replace=False))
    found = entity_level(teacher, student, groups, num_groups=5, sample=40, seed=3)
    whole = entity_level(teacher, student, groups, num_groups=5)
    for agreement, every, wanted in zip(found, whole, by_pairs(teacher[rows], student[rows], groups[rows])):
        assert agreement.error == pytest.approx(wanted[2], abs=1e-6) != every.error
        assert (agreement.pairs, agreement.correlation) == (every.pairs, every.correlation)
    shared = kept(teacher, student, groups, num_groups=5, sample=40, seed=3, neighbours=4).neighbours
    assert shared == pytest.approx(neighbour_overlap(teacher, student, 4)[rows].mean())


def test_a_student_that_is_its_teacher_keeps_all(rng):
    teacher, _, groups = entities(rng)
    teacher = teacher + (teacher == 0)
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0].astype(np.float32)
    found = kept(teacher, 3 * teacher @ turn, groups, num_groups=5)
    for agreement in (found.within, found.across, found.groups.agreement):
        assert agreement.correlation == pytest.approx(1, abs=1e-5) and agreement.error == pytest.approx(0, abs=1e-5)
    assert found.neighbours > 0.99
    np.testing.assert_allclose(found.groups.teacher, found.groups.student, atol=1e-5)


def test_what_has_no_correlation(rng):
    teacher, student, _ = entities(rng)
    alone, across = entity_level(teacher, student, np.arange(90), num_groups=90)
    assert (alone.pairs, alone.correlation, alone.error) == (0, None, None) and across.correlation is not None
    within, none = entity_level(teacher, np.ones((90, 3), np.float32), np.zeros(90, int), num_groups=1)
    assert within.correlation is None and none.pairs == 0 and none.error is None
    nobody = kept(teacher[:0], student[:0], np.zeros(0, int), num_groups=2)
    assert nobody.groups.groups == () and nobody.within.pairs == nobody.groups.agreement.pairs == 0


@pytest.mark.parametrize("k", [1, 10, 500])
def test_neighbours_are_those_of_sorted_cosines(rng, k):
    teacher, student, _ = entities(rng)
    teacher[7] = 1
    sets = []
    for table in (teacher, student):
        near = oracle.cosines(table.astype(float), table.astype(float))
        np.fill_diagonal(near, -np.inf)
        sets.append([set(np.argsort(-row, kind="stable")[: min(k, 89)].tolist()) for row in near])
    wanted = [len(a & b) / min(k, 89) for a, b in zip(*sets)]
    np.testing.assert_allclose(neighbour_overlap(teacher, student, k), wanted)
    some = np.sort(rng.permutation(90)[:20])
    np.testing.assert_allclose(neighbour_overlap(teacher, student, k, rows=some), np.array(wanted)[some])


def test_the_group_level_is_its_definition(rng):
    teacher, student, groups = entities(rng)
    found = group_level(teacher, student, groups, num_groups=5)
    assert found.groups == (0, 1, 2, 3) and sum(found.sizes) == 90 and found.sizes[3] == 1
    heat = []
    for table, its in ((teacher, found.teacher), (student, found.student)):
        prototypes = oracle.prototypes_of(table.astype(float), groups)
        heat.append(oracle.cosines(prototypes, prototypes))
        np.testing.assert_allclose(its, heat[-1], atol=1e-6)
    t, s = (x[np.triu_indices(4, 1)] for x in heat)
    assert found.agreement.pairs == 6
    assert found.agreement.correlation == pytest.approx(np.corrcoef(t, s)[0, 1], abs=1e-5)
    assert found.agreement.error == pytest.approx(np.abs(t - s).mean(), abs=1e-6)


@pytest.mark.slow
def test_users_items_and_both_together(rng):
    make = lambda dim: Representations(*(jnp.asarray(rng.normal(size=(n, dim)), jnp.float32) for n in (40, 70)))
    teacher, student = make(6), make(2)
    groups = rng.integers(3, size=40), rng.integers(3, size=70)
    found = relations(teacher, student, groups=groups, num_groups=3, neighbours=4)
    assert found["items"] == kept(teacher.items, student.items, groups[1], num_groups=3, neighbours=4)
    assert found["both"].groups.groups == tuple(range(6))
    assert found["both"].within.pairs == found["users"].within.pairs + found["items"].within.pairs
    assert found["both"].within.pairs + found["both"].across.pairs == 110 * 109 // 2
    by_kmeans = relations(teacher, student, num_groups=3, neighbours=4)
    assert by_kmeans == relations(teacher, student, num_groups=3, neighbours=4)
    text = json.dumps({name: dataclasses.asdict(one) for name, one in by_kmeans.items()}, allow_nan=False)
    assert json.loads(text)["users"]["neighbours"] == by_kmeans["users"].neighbours


def retrieval_by_loops(table, tags, k):
    near = oracle.cosines(table.astype(float), table.astype(float))
    own = [set(tags.tags[tags.items == item].tolist()) for item in range(tags.num_items)]
    found, chance = [], []
    for item, row in enumerate(near):
        relevant = {other for other in range(tags.num_items) if other != item and own[other] & own[item]}
        if not relevant:
            continue
        order = [other for other in np.argsort(-row, kind="stable") if other != item][:k]
        hits = [rank for rank, other in enumerate(order, 1) if other in relevant]
        found.append(sum(j / rank for j, rank in enumerate(hits, 1)) / min(len(relevant), k))
        chance.append(len(relevant) / (tags.num_items - 1))
    return np.mean(found), np.mean(chance), len(found)


@pytest.mark.parametrize("k", [1, 7, 200])
def test_retrieval_by_tags_is_its_definition(rng, k, monkeypatch):
    table = rng.normal(size=(80, 4)).astype(np.float32)
    items, of = rng.integers(70, size=90), rng.integers(25, size=90)  # ten without a tag, tags of one item and of many
    tags = Tags.from_pairs(np.append(items, [1, 2, 1]), np.append(of, [25, 26, 25]), 80, 30)
    for pairs in (topology.PAIRS, 80 * 9):
        monkeypatch.setattr(topology, "PAIRS", pairs)
        found = tag_retrieval(table, tags, k)
        precision, chance, count = retrieval_by_loops(table, tags, k)
        assert (found.items, found.k) == (count, k)
        assert found.precision == pytest.approx(precision) and found.by_chance == pytest.approx(chance)


def test_items_that_share_a_tag_and_a_place_are_all_found(rng):
    of = np.repeat(np.arange(4), 6)
    table = np.eye(4, dtype=np.float32)[of] + 0.01 * rng.normal(size=(24, 4)).astype(np.float32)
    tags = Tags.from_pairs(np.arange(24), of, 24, 4)
    assert tag_retrieval(table, tags, 5).precision == tag_retrieval(table, tags, 3).precision == 1
    nothing = Tags.from_pairs(np.zeros(0, int), np.zeros(0, int), 24, 1)
    assert tag_retrieval(table, nothing).precision == 0 and tag_retrieval(table, nothing).items == 0


def test_what_cannot_be_is_refused(rng):
    teacher, student, groups = entities(rng)
    with pytest.raises(AssertionError, match="student: expected floats of shape"):
        kept(teacher, student[:-1], groups, num_groups=5)
    with pytest.raises(AssertionError, match="groups: expected integers"):
        kept(teacher, student, groups.astype(float), num_groups=5)
    with pytest.raises(ValueError, match=r"groups: expected integers in \[0, 3\)"):
        kept(teacher, student, groups, num_groups=3)
    with pytest.raises(ValueError, match="sample"):
        entity_level(teacher, student, groups, num_groups=5, sample=0)
    with pytest.raises(ValueError, match="k: expected at least 1"):
        neighbour_overlap(teacher, student, 0)
    with pytest.raises(AssertionError, match="items: expected floats"):
        tag_retrieval(teacher, Tags.from_pairs(np.zeros(1, int), np.zeros(1, int), 3, 1))
