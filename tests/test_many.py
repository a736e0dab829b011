"""Several seeds as one program: each is what it is alone."""

import functools
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import untimed

import htd_jax
from htd_jax import distillers, training
from htd_jax.distillers import HTD, Distiller, Teacher
from htd_jax.distillers.base import learns_nothing
from htd_jax.errors import UserError
from htd_jax.models import ModelOf
from htd_jax.models.bpr import BPRSettings
from htd_jax.pipeline import seeds as pipeline_seeds
from htd_jax.pipeline.experiment import Experiment
from htd_jax.training import Checkpoints, many, together

FEW = {"epochs": 3, "eval_every": 2, "batch_size": 256, "progress": False}
SEEDS = (0, 3, 7)

fit = functools.partial(htd_jax.fit, dim=6, **FEW)
fit_seeds = functools.partial(htd_jax.fit_seeds, dim=6, **FEW)
distil = functools.partial(htd_jax.distill, dim=4, **FEW)
distil_seeds = functools.partial(htd_jax.distill_seeds, dim=4, **FEW)


def same(found, alone):
    """The same bits, records and settings."""
    assert len(found) == len(alone)
    for one, other in zip(found, alone):
        chex.assert_trees_all_equal(one.variables, other.variables)
        assert untimed(one.records) == untimed(other.records)
        assert one.chosen in one.records and untimed(one.chosen) == untimed(other.chosen)
        assert one.settings == other.settings
        assert len(one.seconds) == len(other.seconds)


def bits(folder):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(Checkpoints(folder).tree())]


@pytest.fixture(scope="module")
def teachers(data):
    return fit_seeds(data, seeds=SEEDS)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": "softmax", "batch_size": 32, "epochs": 2},
        {"model": "lightgcn"},
        {"model": "ials"},
    ],
    ids=lambda settings: settings.get("model") or settings.get("loss", "bpr"),
)
def test_each_seed_is_the_recommender_of_its_own(data, settings):
    alone = [fit(data, seed=seed, **{**FEW, **settings}) for seed in SEEDS]
    same(fit_seeds(data, seeds=SEEDS, **{**FEW, **settings}), alone)


@pytest.mark.parametrize("method", ["none", "ftd", HTD(groups=3), "rrd", "bd"])
def test_each_seed_is_the_student_of_its_own(data, teacher, method):
    """One teacher for all; `rrd` draws anew each epoch, `bd` trains its teacher too."""
    alone = [distil(teacher, data, method=method, seed=seed) for seed in SEEDS[:2]]
    same(distil_seeds(teacher, data, method=method, seeds=SEEDS[:2]), alone)


@pytest.mark.parametrize("method", ["ftd", "rrd", "svd"])
def test_each_seed_may_have_a_teacher_of_its_own(data, teachers, method):
    alone = [distil(teacher, data, method=method, seed=seed) for seed, teacher in zip(SEEDS, teachers)]
    same(distil_seeds(teachers, data, method=method, seeds=SEEDS), alone)


def test_each_seed_may_start_where_its_student_ended(data, teachers):
    plain = distil_seeds(teachers, data, method="none", seeds=SEEDS)
    each = zip(SEEDS, teachers, plain)
    alone = [distil(teacher, data, method="ftd", seed=seed, start=start) for seed, teacher, start in each]
    same(distil_seeds(teachers, data, method="ftd", seeds=SEEDS, start=plain), alone)


@pytest.mark.parametrize("method", [distillers.none(), distillers.scale(distillers.htd(num_groups=3, epochs=3), 1e-3)])
def test_side_by_side_they_are_the_same_but_for_rounding(data, teacher, method):
    """The form of a GPU or TPU; seeds at different epochs, and one that stays where it is."""
    train, tables = data.train, teacher.representations()
    trainer = training.make_trainer(
        ModelOf(BPRSettings(), 4), method, training.adam(1e-3, 1e-3), batch_size=256, objective=training.own()
    )
    known = trainer.prepare(train, tables)
    keys = [jax.random.key(seed) for seed in SEEDS]
    states = [trainer.init(key, train, known) for key in keys]
    states[0], _ = trainer.epoch(states[0], keys[0], train, known)
    copies = jax.tree.map(jnp.copy, states)
    goes = jnp.array([True, True, False])
    epoch = together(trainer, shared=True)
    held = many.stack(states)
    for _ in range(3):
        held, terms = epoch(held, jnp.stack(keys), goes, train, known)
    for number, (state, key) in enumerate(zip(copies, keys)):
        of_one = None
        for _ in range(3 if goes[number] else 0):
            state, of_one = trainer.epoch(state, key, train, known)
        found = jax.tree.map(lambda x, number=number: x[number], held)
        chex.assert_trees_all_equal(found.epoch, state.epoch)
        # Adam's step is as long for a gradient of rounding errors as for any other: of the width of a few steps.
        chex.assert_trees_all_close(found.params, state.params, rtol=2e-5, atol=2e-5)
        for name, value in (of_one or {}).items():
            np.testing.assert_allclose(terms[name][number], value, rtol=2e-5)


@pytest.mark.parametrize("own", [False, True])
def test_an_accelerators_form_comes_to_the_same_students(data, teachers, own, tmp_path, monkeypatch):
    """One teacher for all, or each its own; one student has an epoch done, which is gone on with."""
    monkeypatch.setattr(many, "at_once", lambda cpu, default: default)
    given = teachers if own else teachers[:1] * len(SEEDS)
    alone = [distil(teacher, data, method="ftd", seed=seed) for seed, teacher in zip(SEEDS, given)]
    distil(given[1], data, method="ftd", seed=SEEDS[1], folder=tmp_path / "seed3", epochs=1)
    found = distil_seeds(given if own else given[0], data, method="ftd", seeds=SEEDS, folder=tmp_path)
    for one, other in zip(found, alone):
        chex.assert_trees_all_close(one.variables, other.variables, rtol=2e-5, atol=2e-5)
        assert [record["epoch"] for record in one.records] == [record["epoch"] for record in other.records]
        np.testing.assert_allclose(one.records[-1]["terms"]["loss"], other.records[-1]["terms"]["loss"], rtol=2e-5)
        assert one.settings == other.settings


# --- folders


def test_what_was_trained_among_many_is_found_alone_and_the_reverse(data, tmp_path):
    whole = fit_seeds(data, seeds=SEEDS, folder=tmp_path / "many")
    for seed, one in zip(SEEDS, whole):
        again = fit(data, seed=seed, folder=tmp_path / "many" / f"seed{seed}")
        assert (again.records, again.seconds) == (one.records, one.seconds)  # nothing was trained
        fit(data, seed=seed, folder=tmp_path / "alone" / f"seed{seed}")
        assert bits(tmp_path / "alone" / f"seed{seed}") == bits(tmp_path / "many" / f"seed{seed}")
    again = fit_seeds(data, seeds=SEEDS, folder=tmp_path / "many")
    assert [one.seconds for one in again] == [one.seconds for one in whole]
    shutil.rmtree(tmp_path / "alone" / "seed3")
    fit(data, seed=7, folder=tmp_path / "alone" / "seed7")
    fit(data, seed=3, folder=tmp_path / "alone" / "seed3", **{**FEW, "epochs": 1})
    mixed = fit_seeds(data, seeds=SEEDS, folder=tmp_path / "alone")  # one goes on, two are done
    chex.assert_trees_all_equal([one.variables for one in mixed], [one.variables for one in whole])
    with pytest.raises(UserError, match=r"alone/seed0: made by other settings"):
        fit_seeds(data, seeds=SEEDS, folder=tmp_path / "alone", **{**FEW, "batch_size": 128})


class Killed(Exception):
    pass


def test_many_that_were_killed_go_on_from_where_each_is(data, tmp_path, monkeypatch):
    """Killed between two seeds' checkpoints: they are then at different epochs."""
    monkeypatch.setattr("htd_jax.training.loop.CHECKPOINT_SECONDS", 0)
    whole = fit_seeds(data, seeds=SEEDS)
    save = Checkpoints.save

    def save_and_die(self, epoch, *rest):
        save(self, epoch, *rest)
        if epoch == 2 and self.folder.name == "seed3":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        with pytest.raises(Killed):
            fit_seeds(data, seeds=SEEDS, folder=tmp_path)
    assert [Checkpoints(tmp_path / f"seed{seed}").latest for seed in SEEDS] == [2, 2, 1]
    same(fit_seeds(data, seeds=SEEDS, folder=tmp_path), whole)


def test_each_seed_stops_early_by_itself(data, tmp_path):
    settings = {**FEW, "epochs": 14, "eval_every": 1, "patience": 2, "learning_rate": 0.05}
    alone = [fit(data, seed=seed, **settings) for seed in SEEDS]
    assert len({len(one.seconds) for one in alone}) > 1  # they stop at different epochs
    same(fit_seeds(data, seeds=SEEDS, folder=tmp_path, **settings), alone)


# --- groups


def test_groups_are_as_all_at_once(data, teachers, capsys):
    trained = fit_seeds(data, seeds=SEEDS, at_once=2, **{**FEW, "progress": True})
    assert "teacher: 3 seeds in 2 groups of at most 2 at once" in capsys.readouterr().out
    same(trained, teachers)


def test_as_many_go_together_as_there_is_room_for(data, monkeypatch):
    experiment = Experiment.of(data, 0, epochs=1)
    plans = [experiment.plan("teacher", "bpr", 6, seed=seed) for seed in SEEDS]
    numbers = 6 * (data.train.num_users + data.train.num_items)
    assert plans[0].bytes(data.train) == 4 * 4 * numbers
    monkeypatch.setattr(pipeline_seeds.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 2 * 4 * 4 * numbers}.get(name, 2))
    assert pipeline_seeds.room_for(plans, data.train) == 2
    helped = [
        experiment.plan("ftd", "bpr", 6, Teacher.of(teacher), {}, {"ftd": distillers.FTD()})
        for teacher in [jax.tree.map(lambda x: x + i, plain_tables(data)) for i in range(2)]
    ]
    assert pipeline_seeds.room_for(helped[:1] * 2, data.train) == 2
    assert pipeline_seeds.room_for(helped, data.train) == 1


def plain_tables(data):
    return htd_jax.Representations(*(jnp.ones((n, 6)) for n in (data.train.num_users, data.train.num_items)))


@pytest.mark.parametrize(
    ("method", "own", "groups"),
    [
        (HTD(groups=3, grouping="random"), False, 2),  # drawn from the seed
        (HTD(groups=3, grouping="kmeans"), True, 2),
        (HTD(groups=3), True, 1),
    ],
)
def test_a_method_that_is_made_of_seed_or_teacher_is_trained_alone(data, teachers, method, own, groups, capsys):
    given = teachers[:2] if own else [teachers[0]] * 2
    alone = [distil(teacher, data, method=method, seed=seed) for seed, teacher in zip(SEEDS, given)]
    options = {**FEW, "progress": True}
    same(distil_seeds(given if own else given[0], data, method=method, seeds=SEEDS[:2], **options), alone)
    assert ("in 2 groups of at most 1" in capsys.readouterr().out) == (groups == 2)


def test_labels_of_different_teachers_are_solved_for_in_turn(data, teachers):
    options = {"model": "ials", "method": "pseudo"}
    alone = [distil(teacher, data, seed=seed, **options) for seed, teacher in zip(SEEDS, teachers)]
    same(distil_seeds(teachers, data, seeds=SEEDS, **options), alone)


# --- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": (1, 1)}, "seeds: must be different ones"),
        ({"seeds": ()}, "seeds: must be different ones, and one at least"),
        ({"seeds": (0, -1)}, r"seed: must be a whole number in \[0, 2\^32\), not -1"),
        ({"seeds": (0, 1), "at_once": 0}, "at_once: must be a whole number of at least 1, not 0"),
    ],
)
def test_what_seeds_cannot_be(data, arguments, message):
    with pytest.raises(UserError, match=message):
        fit_seeds(data, **arguments)


def test_there_is_one_teacher_or_one_a_seed(data, teachers):
    with pytest.raises(UserError, match="teachers: 3 of them for 2 seeds"):
        distil_seeds(teachers, data, seeds=(0, 1))
    with pytest.raises(UserError, match="start: 3 of them for 2 seeds"):
        distil_seeds(teachers[0], data, seeds=(0, 1), start=teachers)


def test_the_seed_that_diverges_is_named(data, teacher):
    worse = lambda params, drawn, batch, key, epoch: (jnp.where(epoch == 1, jnp.nan, 0.0), {})
    method = Distiller(learns_nothing, worse, needs=())
    with pytest.raises(UserError, match="the training of seed 0 diverged in epoch 1: its loss is nan"):
        distil_seeds(teacher, data, method=method, seeds=(0, 1))
