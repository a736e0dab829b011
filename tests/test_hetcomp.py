"""HetComp: its losses, ensembles, stages and curriculum against slow forms in NumPy; kills, and runs of several
teachers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import runs
from rankings import Student, ranked, seen_by, table_of

import htd_jax
from htd_jax.data import make_split
from htd_jax.distillers import EpochStart, HetComp, Lists, Teacher, none
from htd_jax.distillers.hetcomp import Context, best_unseen, distances, hetcomp
from htd_jax.distillers.sampling import unseen_ranks
from htd_jax.ensembles import Stages, ensemble_lists, join_stages, rank_power
from htd_jax.errors import UserError
from htd_jax.evaluation import make_evaluator
from htd_jax.losses import coarse_ranking_loss, fine_ranking_loss
from htd_jax.models import BPRSettings, ModelOf
from htd_jax.ops.products import dot
from htd_jax.pipeline import open_run
from htd_jax.teacher import combine
from htd_jax.training import Checkpoints, EarlyStopping, adam, make_trainer, run_phase

USERS, ITEMS, TEACHERS, STAGES, LISTED = 40, 90, 3, 4, 12
TRAINER = make_trainer(ModelOf(BPRSettings(), 4), none(), adam(0.05, 1e-3), batch_size=64)


@pytest.fixture(scope="module")
def train():
    rng = np.random.default_rng(5)
    pairs = np.array([(u, i) for u in range(USERS) for i in rng.permutation(ITEMS)[: rng.integers(2, 9)]])
    parts = pairs[2:].T, pairs[:1].T, pairs[1:2].T
    return make_split(*map(tuple, parts), USERS, ITEMS).train


@pytest.fixture(scope="module")
def stages(train):
    rng = np.random.default_rng(6)
    items = [[ranked(rng.normal(size=(USERS, ITEMS)), train, LISTED) for _ in range(STAGES)] for _ in range(TEACHERS)]
    items = np.array(items, np.int32)
    items[0, 1, 3, 8:] = -1
    return Stages(jnp.asarray(items), jnp.asarray(rng.exponential(40, size=items.shape), jnp.float32))


# --- losses


def log(x):
    return math.log(max(x, 1e-5))


def coarse(s, listed, own, unseen):
    power = np.exp(s)
    rest = sum(power[j] for j in unseen if j not in listed)
    return -sum(s[i] - log(power[i] + rest) for i in [*listed, *own])


def plackett_luce(s, order, rest):
    return -sum(s[i] - log(sum(np.exp(s[j]) for j in order[k:]) + rest) for k, i in enumerate(order))


def fine(s, listed, own, unseen):
    rest = [sum(np.exp(s[j]) for j in unseen if j not in listed[:n]) for n in (4, 2)]
    halves = sum(plackett_luce(s, listed[:n], r) for n, r in zip((4, 2), rest))
    return plackett_luce(s, own, rest[0]) + halves / 2


LOSSES = {"coarse": (coarse_ranking_loss, coarse, {}), "fine": (fine_ranking_loss, fine, {"first": (4, 2)})}


@pytest.fixture
def case(rng):
    """Scores of 7 users, some with fewer listed or own items, one with none, and two that do not count."""
    scores, seen = rng.normal(size=(7, 15)) * 3, np.zeros((7, 15), bool)
    listed, own = np.full((7, 6), -1), np.full((7, 3), -1)
    for u in range(7):
        order = rng.permutation(15)
        seen[u, order[:4]] = True
        own[u, : u % 4] = order[: u % 4]
        listed[u, : 6 - u % 3] = order[4 : 10 - u % 3]
    listed[5] = -1
    return scores, listed, own, seen, np.arange(7) < 6


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_a_loss_and_its_gradient_are_their_definitions(case, name, scale, rng):
    loss, definition, options = LOSSES[name]
    scores, listed, own, seen, where = case

    def slow(scores):
        clipped, total = np.clip(scores, -40, 40), 0.0
        for u in np.flatnonzero(where):
            lists = [[i for i in items[u] if i >= 0] for items in (listed, own)]
            total += definition(clipped[u], *lists, np.flatnonzero(~seen[u]))
        return total

    found = lambda scores: loss(scores, listed, own, jnp.asarray(seen), where=jnp.asarray(where), **options)
    value, gradient = jax.value_and_grad(found)(jnp.asarray(scores * scale, jnp.float32))
    np.testing.assert_allclose(value, slow(scores * scale), rtol=1e-5)
    direction = rng.normal(size=scores.shape)
    expected = oracle.slope(slow, scores * scale, direction)
    np.testing.assert_allclose(np.sum(np.asarray(gradient) * direction), expected, rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_and_masked_scores_have_finite_losses_and_gradients(case, name):
    loss, _, options = LOSSES[name]
    scores, listed, own, seen, where = case
    found = jax.value_and_grad(lambda s: loss(s, listed, own, jnp.asarray(seen), where=jnp.asarray(where), **options))
    for scale in (0.0, 1e4, 1e30):
        assert all(np.isfinite(x).all() for x in found(jnp.asarray(np.sign(scores) * scale, jnp.float32)))
    for low in (-1e30, 1e30):
        assert all(np.isfinite(x).all() for x in found(jnp.full(scores.shape, low)))
    usual = found(jnp.asarray(scores, jnp.float32))
    junk = jnp.where(jnp.asarray(where)[:, None], jnp.asarray(scores, jnp.float32), np.nan)
    jax.tree.map(np.testing.assert_array_equal, found(junk), usual)
    with pytest.raises(AssertionError, match="listed"):
        loss(jnp.zeros((2, 3)), jnp.zeros((2, 1)), jnp.zeros((2, 1), int), jnp.zeros((2, 3), bool))


# --- ensembles


def slow_ensemble(items, deviations, at, user, k):
    scores = {}
    for x in range(len(items)):
        for r, item in enumerate(items[x, at[x, user], user]):
            if item >= 0:
                weight = math.exp(-r / 10) + math.exp(-deviations[x, at[x, user], user, r] / 100)
                scores[item] = scores.get(item, 0) + weight
    return sorted(scores, key=lambda item: (-scores[item], item))[:k]


def test_the_ensemble_ranks_by_rank_and_steadiness(stages, rng):
    at = rng.integers(0, STAGES, size=(TEACHERS, USERS))
    items, deviations = np.asarray(stages.items), np.asarray(stages.deviations, float)
    for k in (10, 50):
        found = np.asarray(jax.jit(ensemble_lists, static_argnums=2)(stages, jnp.asarray(at), k))
        for user in range(USERS):
            expected = slow_ensemble(items, deviations, at, user, k)
            assert found[user].tolist() == expected + [-1] * (k - len(expected))


def test_rank_power_is_the_mean_of_powers_of_ranks(train, rng):
    tables = rng.normal(size=(3, USERS, ITEMS))
    found = np.asarray(rank_power([table_of(table).scores for table in tables], train, 20))
    for user, seen in enumerate(seen_by(train)):
        total = np.zeros(ITEMS)
        for table in tables:
            order = [i for i in np.argsort(-table[user]) if i not in seen]
            total[order] += (1 + np.arange(len(order))) ** -0.05
        assert found[user].tolist() == np.argsort(-total, kind="stable")[:20].tolist()


def test_teachers_are_joined_and_one_without_stages_has_one(train, stages, rng):
    lists = jnp.asarray(ranked(rng.normal(size=(USERS, ITEMS)), train, LISTED), jnp.int32)
    one = combine([Teacher(stages=stages), Teacher.of(Lists(lists))], train)
    assert one.stages.items.shape == (TEACHERS + 1, STAGES, USERS, ITEMS)
    for stage in range(STAGES):
        np.testing.assert_array_equal(one.stages.items[-1, stage, :, :LISTED], lists)
    assert (one.stages.items[:, :, :, LISTED:] == -1).all()
    last = ensemble_lists(one.stages, jnp.full((TEACHERS + 1, USERS), STAGES - 1))
    np.testing.assert_array_equal(one.lists.items, last)
    with pytest.raises(UserError, match=r"3 and 4 stages.*keep_stages"):
        join_stages([stages, jax.tree.map(lambda x: x[:, :3], stages)])
    with pytest.raises(UserError, match=r"needs the teacher's stages, but this teacher has none"):
        combine([Teacher()], train)
    with pytest.raises(UserError, match=r"stages have shape"):
        combine([Teacher(stages=jax.tree.map(lambda x: x[0], stages))], train)


# --- the curriculum


def slow_distance(own, listed):
    gain = [(2 ** math.exp(-t / 10) - 1) / math.log2(t + 2) for t in range(50)]
    return 1 - sum(gain[t] for t, item in enumerate(own) if item in set(listed[:50])) / sum(gain)


def test_the_distance_is_one_less_ndcg(train, stages, rng):
    own = best_unseen(Student(rng.normal(size=(USERS, ITEMS))), train)
    at = rng.integers(0, STAGES, size=(TEACHERS, USERS))
    found = distances(own, stages, jnp.asarray(at))
    for x in range(TEACHERS):
        for u in range(USERS):
            listed = [i for i in np.asarray(stages.items)[x, at[x, u], u] if i >= 0]
            np.testing.assert_allclose(found[x, u], slow_distance(np.asarray(own)[u].tolist(), listed), rtol=1e-5)


def test_the_curriculum_is_its_definition(train, stages):
    """Students come nearer to the teachers, or not, by epoch; every v, and every list, is that of plain Python."""
    rng = np.random.default_rng(3)
    method, context = hetcomp(HetComp(best=10)), Context(train, stages)
    items, deviations = np.asarray(stages.items), np.asarray(stages.deviations, float)
    sampled = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(lambda: method.refresh(EpochStart({}, context, None, None, jax.random.key(0), 0))),
    )
    refresh = jax.jit(
        lambda sampled, scores, key, epoch: method.refresh(
            EpochStart({}, context, sampled, Student(scores), key, epoch)
        )
    )
    v, last, moved, ended = np.zeros((TEACHERS, USERS), int), np.zeros((TEACHERS, USERS)), 0, False
    for epoch in [*range(0, 90, 10), 5]:
        scores = rng.normal(size=(USERS, ITEMS))
        for u in range(USERS):  # nearer to the next stages, for some users
            near = items[:, np.minimum(v[:, u] + 1, 3), u]
            scores[u, near[near >= 0]] += rng.random() * 3
        sampled = refresh(sampled, jnp.asarray(scores, jnp.float32), jax.random.key(epoch), jnp.int32(epoch))
        own = ranked(scores.astype(np.float32), train, 50)
        distance = lambda x, u, stage: slow_distance(own[u], [i for i in items[x, stage, u] if i >= 0])
        for x in range(TEACHERS):
            for u in range(USERS):
                if epoch == 10:
                    last[x, u] = distance(x, u, 1)
                if epoch <= 10 or epoch % 10 or v[x, u] == 3:
                    continue
                d = distance(x, u, v[x, u] + 1)
                if d == 0 or last[x, u] / d > 1.05 * 0.995 ** (epoch // 10) or last[x, u] / d < 1:
                    v[x, u] += 1
                    moved += 1
                    last[x, u] = distance(x, u, min(3, v[x, u] + 1))
        np.testing.assert_array_equal(sampled.at, v)
        ended |= sum(round(row.mean(), 2) for row in v) == 3 * TEACHERS
        assert sampled.fine == ended
        for u in range(USERS):
            assert [i for i in np.asarray(sampled.listed)[u].tolist() if i >= 0] == slow_ensemble(
                items, deviations, v, u, 10
            )
            assert set(np.asarray(sampled.own)[u].tolist()) <= seen_by(train)[u] | {-1}
    assert ended and 0 < moved


# --- stages


def test_deep_ranks_are_not_told_apart(train, rng):
    scores, items = (
        jnp.asarray(rng.normal(size=(USERS, ITEMS)), jnp.float32),
        jnp.asarray(rng.integers(0, 90, (USERS, 30))),
    )
    ranks = np.asarray(unseen_ranks(Student(scores).score_all, train, items))
    for deepest in (2, 20, 90, 91, 200):
        found = unseen_ranks(Student(scores).score_all, train, items, deepest)
        np.testing.assert_array_equal(found, np.minimum(ranks, deepest))


def phase(split, folder=None, epochs=12, stop=None, evaluate=None, **options):
    """A phase, killed after the epoch `stop`."""

    def on_epoch(progress):
        if progress.epoch == stop:
            raise KeyboardInterrupt

    checkpoints = None if folder is None else Checkpoints(folder)
    fixed = dict(epochs=epochs, eval_every=1, checkpoints=checkpoints, settings={}, on_epoch=on_epoch)
    return run_phase(TRAINER, evaluate or make_evaluator(split), split, None, jax.random.key(1), **fixed, **options)


def test_a_stage_is_the_ranking_of_its_epoch_and_deviations_are_over_the_last_evaluations(small_split):
    tables = []

    def evaluate(make_model, variables):
        users, items = (variables["params"][name] for name in ("users", "items"))
        tables.append(np.asarray(jax.jit(dot)(users, items.T)))
        return {}

    stages = phase(small_split, evaluate=evaluate, keep_stages=4).stages
    assert stages.items.shape == (1, 4, 60, 90)
    same = []
    # Twelve evaluations in eight slots: those of even epochs, and the last; wanted are 2.75, 5.5, 8.25 and 11.
    for stage, epoch in enumerate([2, 6, 8, 11]):
        orders = [ranked(tables[epoch - age], small_split.train, 90) for age in range(min(epoch + 1, 5))]
        for user in range(60):
            own = [i for i in np.asarray(stages.items)[0, stage, user].tolist() if i >= 0]
            assert own == orders[0][user]
            ranks = [[order[user].index(item) for item in own] for order in orders]
            found = np.asarray(stages.deviations)[0, stage, user]
            same += [*np.isclose(found[: len(own)], np.std(ranks, axis=0), atol=1e-4), *(found[len(own) :] == 0)]
    assert np.mean(same) > 0.999  # scores may be equal but for rounding


@pytest.mark.parametrize("stopping", [None, EarlyStopping("recall@10", 6)])
def test_a_killed_phase_keeps_the_same_stages(small_split, tmp_path, stopping, a_checkpoint_every_epoch):
    options = dict(keep_stages=2, epochs=20, early_stopping=stopping)
    unbroken = phase(small_split, **options)
    assert len(unbroken.records) > 6
    for stop in (1, 4, 5):
        with pytest.raises(KeyboardInterrupt):
            phase(small_split, tmp_path / "broken", stop=stop, **options)
    broken = phase(small_split, tmp_path / "broken", **options)
    again = phase(small_split, tmp_path / "broken", **options)
    for result in (broken, again):
        jax.tree.map(np.testing.assert_array_equal, result.stages, unbroken.stages)
        jax.tree.map(np.testing.assert_array_equal, result.variables, unbroken.variables)
    alike = phase(small_split, **(options | {"keep_stages": 0}))
    assert alike.stages is None
    jax.tree.map(np.testing.assert_array_equal, alike.variables, unbroken.variables)


# --- runs


@pytest.mark.slow
def test_several_runs_teach_one_student(tmp_path):
    run = lambda name, *more: runs.trained("--run", tmp_path / name, *more)
    for name, model in (("a", "bpr"), ("b", "lightgcn")):
        run(name, "--method", "none", "--model", model, "--until", "teacher", "--keep-stages", 2, "--epochs", 6)
        assert open_run(tmp_path / name, "teacher").stages.items.shape == (1, 2, 60, 100)
        assert not (tmp_path / name / "results.json").exists()
    both = "--teacher", tmp_path / "a", tmp_path / "b"
    assert "HetComp" in run("het", "--method", "hetcomp", *both, "--epochs", 4, "--hetcomp.period", 1).out
    training = open_run(tmp_path / "het").settings["training"]
    assert (training["loss"], training["patience"]) == ("none", 50)
    run("a", "--method", "none", "--keep-stages", 2, "--epochs", 6)  # continues to the student
    assert (tmp_path / "a" / "results.json").exists()
    run("c", "--method", "none", "--until", "teacher", "--keep-stages", 3, "--epochs", 6)
    refused = lambda *more: runs.refused("--run", tmp_path / "x", *more)
    assert "2 and 3 stages" in refused("--method", "hetcomp", "--teacher", tmp_path / "a", tmp_path / "c")
    assert "--loss none leaves nothing" in refused("--method", "none", "--loss", "none")
    assert "leave out --teacher" in refused("--method", "none", "--until", "teacher", "--teacher", tmp_path / "a")


def test_a_list_of_teachers_teaches(data, teacher):
    other = htd_jax.fit(data, dim=8, epochs=6, eval_every=1, keep_stages=2, progress=False)
    student = htd_jax.distill([teacher, other], data, method="hetcomp", dim=3, epochs=2, progress=False)
    terms = student.records[-1]["terms"]
    assert terms["base"] == 0 < terms["hetcomp"] == terms["loss"]
    assert student.settings["training"]["loss"] == "none"
    with pytest.raises(UserError, match="`loss` none"):
        htd_jax.fit(data, loss="none", progress=False)
