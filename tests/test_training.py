"""The compiled epoch, the loop, and what resumes it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from htd_jax import distillers
from htd_jax.data import shuffle, unseen_items
from htd_jax.errors import UserError
from htd_jax.evaluation import make_evaluator
from htd_jax.losses import bpr_loss
from htd_jax.models import BPR
from htd_jax.training import (
    Checkpoints,
    EarlyStopping,
    Representations,
    adam,
    make_trainer,
    no_teacher,
    run_phase,
)

BATCH, DIM, WIDE = 50, 4, 9


@pytest.fixture(scope="module")
def teacher(small_split):
    keys = jax.random.split(jax.random.key(9))
    sizes = (small_split.train.num_users, small_split.train.num_items)
    return Representations(*(jax.random.normal(key, (size, WIDE)) for key, size in zip(keys, sizes, strict=True)))


def make(distiller, optimizer=None):
    return make_trainer(make_model, distiller, optimizer or adam(1e-2, 1e-3), batch_size=BATCH)


def make_model(train):
    return BPR(train.num_users, train.num_items, DIM)


METHODS = {
    "none": distillers.none,
    "ftd": lambda: distillers.scale(distillers.ftd(), 1e-3),
    "htd": lambda: distillers.scale(distillers.htd(num_groups=3, epochs=4), 1e-3),
    "both": lambda: distillers.chain(
        distillers.scale(distillers.ftd(), 1e-3), distillers.scale(distillers.htd(num_groups=3, epochs=4), 1e-3)
    ),
}


def test_an_epoch_is_the_plain_loop_over_shuffled_batches(small_split):
    """Every pair once, a fresh negative each, the last batch short, L2 on every parameter at every step."""
    train = small_split.train
    trainer = make(distillers.none())
    key = jax.random.key(5)
    state = trainer.init(key, train, no_teacher(train))
    params = jax.tree.map(np.asarray, state.params["model"]["params"])
    found, terms = trainer.epoch(state, key, train, no_teacher(train))

    shuffle_key, negative_key, _ = jax.random.split(jax.random.fold_in(key, 0), 3)
    order, negatives = shuffle(shuffle_key, len(train)), unseen_items(negative_key, train)
    assert len(train) % BATCH
    moments = {name: (np.zeros_like(p), np.zeros_like(p)) for name, p in params.items()}
    losses = []
    for step, start in enumerate(range(0, len(train), BATCH), 1):
        rows = order[start : start + BATCH]
        users, items, others = train.users[rows], train.items[rows], negatives[rows]

        def loss(p, users=users, items=items, others=others):
            score = lambda i: jnp.sum(p["users"][users] * p["items"][i], -1)
            return bpr_loss(score(items), score(others))

        value, gradient = jax.value_and_grad(loss)(jax.tree.map(jnp.asarray, params))
        losses.append(value)
        for name, p in params.items():
            g = np.asarray(gradient[name]) + 1e-3 * p
            m, v = moments[name]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            moments[name] = m, v
            params[name] = p - 1e-2 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    np.testing.assert_allclose(terms["loss"], np.mean(losses), rtol=1e-4)
    for name, p in params.items():
        np.testing.assert_allclose(found.params["model"]["params"][name], p, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_adds_the_distillation_of_the_batchs_entities(small_split, teacher, method):
    """One batch of everything: the entities are then all users and items in it, each once."""
    train = small_split.train
    distiller = METHODS[method]()
    trainer = make_trainer(make_model, distiller, adam(0.0, 0.0), batch_size=2 * len(train))
    key = jax.random.key(1)
    params = jax.tree.map(jnp.copy, trainer.init(key, train, teacher).params)
    _, terms = trainer.epoch(trainer.init(key, train, teacher), key, train, teacher)

    epoch_key = jax.random.fold_in(key, 0)
    _, negative_key, step_key = jax.random.split(epoch_key, 3)
    negatives = unseen_items(negative_key, train)
    tables = params["model"]["params"]
    score = lambda i: jnp.sum(tables["users"][train.users] * tables["items"][i], -1)
    base = bpr_loss(score(train.items), score(negatives))
    np.testing.assert_allclose(terms["base"], base, rtol=1e-5)
    if method == "ftd":
        both = jnp.concatenate([train.items, negatives])
        sides = (
            distillers.Side(tables[name][ids], getattr(teacher, name)[ids], jnp.ones(len(ids), bool), ids)
            for name, some in (("users", train.users), ("items", both), ("items", train.items), ("items", negatives))
            for ids in [jnp.unique(some)]
        )
        extra, _ = distiller.loss(params["distiller"], distillers.Entities(*sides), step_key, 0)
        np.testing.assert_allclose(terms["loss"], base + extra, rtol=1e-4)
    assert method == "none" or terms["loss"] > terms["base"]


def fit(split, teacher, method, folder, epochs=4, on_epoch=lambda news: None, settings=None, **options):
    return run_phase(
        make(METHODS[method]()),
        functools.partial(make_evaluator(split), make_model),
        split,
        teacher,
        jax.random.key(3),
        epochs=epochs,
        checkpoints=Checkpoints(folder),
        settings=settings or {"method": method},
        on_epoch=on_epoch,
        **{"eval_every": 2, **options},
    )


def bits(folder):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(Checkpoints(folder).tree())]


def timeless(records):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", METHODS)
def test_equal_seeds_give_equal_bits_and_so_does_a_run_killed_and_resumed(small_split, teacher, method, tmp_path):
    whole = fit(small_split, teacher, method, tmp_path / "whole")

    def kill(news):
        if news.epoch == 1:  # after the checkpoint of epoch 0
            raise Killed

    with pytest.raises(Killed):
        fit(small_split, teacher, method, tmp_path / "killed", on_epoch=kill)
    epochs = []
    resumed = fit(small_split, teacher, method, tmp_path / "killed", on_epoch=lambda news: epochs.append(news.epoch))
    assert epochs == [1, 2, 3]
    assert bits(tmp_path / "whole") == bits(tmp_path / "killed")
    assert timeless(whole.records) == timeless(resumed.records)
    assert [record["epoch"] for record in whole.records] == [0, 2, 3]
    again = fit(small_split, teacher, method, tmp_path / "killed", on_epoch=kill)  # nothing left to do
    assert bits(tmp_path / "whole") == bits(tmp_path / "killed")
    chex.assert_trees_all_equal(again.variables, whole.variables)
    assert again.seconds == resumed.seconds


def test_a_run_compiles_its_epoch_once(small_split, teacher, tmp_path):
    compiled = []

    def listen(event, duration, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    counts = []
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        fit(small_split, teacher, "htd", tmp_path / "run", epochs=7, on_epoch=lambda news: counts.append(len(compiled)))
    finally:
        jax.monitoring.clear_event_listeners()
    # The first epoch may compile the evaluation and the first save; after that nothing does.
    assert counts[0] > 0
    assert len(set(counts)) == 1


def test_distillation_moves_the_student_towards_its_teachers_topology(small_split, teacher, tmp_path):
    losses = []
    fit(
        small_split, teacher, "ftd", tmp_path / "run", epochs=25, on_epoch=lambda news: losses.append(news.terms["ftd"])
    )
    assert losses[-1] < 0.8 * losses[0]


def test_other_settings_are_refused(small_split, teacher, tmp_path):
    fit(small_split, teacher, "none", tmp_path / "run", epochs=1)
    with pytest.raises(UserError, match="made by other settings"):
        fit(small_split, teacher, "none", tmp_path / "run", epochs=1, settings={"method": "another"})


def test_early_stopping_keeps_the_best_epoch_even_if_killed_after_it(small_split, teacher, tmp_path, monkeypatch):
    """The metric is handed in: it rises to epoch 3 and falls from there."""
    stopping = EarlyStopping("recall@10", 3)
    seen = []

    def evaluate(variables):
        seen.append(jax.tree.map(jnp.copy, variables))
        metrics = {"recall@10": jnp.float32(1 - abs(len(seen) - 4) / 10)}
        return {"valid": metrics, "test": metrics}

    def train(folder, **options):
        return run_phase(
            make(METHODS["ftd"]()),
            evaluate,
            small_split,
            teacher,
            jax.random.key(3),
            eval_every=1,
            checkpoints=Checkpoints(tmp_path / folder),
            settings={},
            early_stopping=stopping,
            **{"epochs": 20, **options},
        )

    result = train("run")
    assert len(result.seconds) == len(result.records) == 7  # epochs 0 to 6: three after the best
    assert result.chosen == result.records[3]
    chex.assert_trees_all_equal(result.variables, seen[3])
    assert Checkpoints(tmp_path / "run").history()["finished"]
    again = train("run")
    assert len(seen) == 7
    chex.assert_trees_all_equal(again.variables, result.variables)
    assert again.chosen == result.chosen

    def kill(news):
        if news.epoch == 5:
            raise Killed

    monkeypatch.setattr("htd_jax.training.loop.CHECKPOINT_SECONDS", 0)  # so at every epoch
    seen.clear()
    with pytest.raises(Killed):
        train("killed", on_epoch=kill)
    resumed = train("killed")
    assert len(resumed.seconds) == 7
    chex.assert_trees_all_equal(resumed.variables, result.variables)
    assert timeless(resumed.records) == timeless(result.records)


def test_a_phase_starts_where_it_is_told(small_split, teacher, tmp_path):
    train = small_split.train
    start = {"params": {"users": jnp.ones((train.num_users, DIM)), "items": jnp.ones((train.num_items, DIM))}}
    untrained = lambda distiller: make(distiller, adam(0.0, 0.0))
    result = run_phase(
        untrained(distillers.none()),
        functools.partial(make_evaluator(small_split), make_model),
        small_split,
        teacher,
        jax.random.key(3),
        epochs=1,
        eval_every=1,
        checkpoints=Checkpoints(tmp_path / "run"),
        settings={},
        start=start,
    )
    chex.assert_trees_all_equal(result.variables, start)
    chex.assert_trees_all_equal(start["params"]["users"], jnp.ones((train.num_users, DIM)))  # still there to be used


def test_adam_decays_every_parameter_into_its_gradient():
    optimizer = adam(0.1, 0.5)
    params = {"touched": jnp.array([2.0]), "untouched": jnp.array([-3.0])}
    gradient = {"touched": jnp.array([1.0]), "untouched": jnp.array([0.0])}
    updates, state = optimizer.update(gradient, optimizer.init(params), params)
    new = optax.apply_updates(params, updates)
    np.testing.assert_allclose(new["touched"], 2 - 0.1, rtol=1e-5)  # Adam's first step has length one
    np.testing.assert_allclose(new["untouched"], -3 + 0.1, rtol=1e-5)
    moment = optax.tree.get(state, "mu")
    np.testing.assert_allclose(moment["touched"], 0.1 * (1 + 0.5 * 2), rtol=1e-5)


@pytest.mark.parametrize("epochs", [1, 2, 11, 101])
def test_the_temperature_falls_from_one_to_its_floor(epochs):
    temperature = distillers.annealing(epochs)
    found = np.array([temperature(jnp.int32(epoch)) for epoch in range(epochs)], float)
    last = max(epochs - 1, 1)
    wanted = [1.0 if epoch < 2 else max(1e-10 ** ((epoch - 1) / last), 1e-10) for epoch in range(epochs)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert (found >= np.float32(1e-10)).all()


def test_htd_starts_its_layers_at_the_published_bounds():
    params = distillers.htd(num_groups=3).init(jax.random.key(0), 4, 9)
    for side in ("users", "items"):
        for layer, fan_in in (
            (params[side]["gate"], 9),
            (params[side]["experts"]["hidden"], 4),
            (params[side]["experts"]["output"], 6),
        ):
            for weights in layer.values():
                largest = np.abs(weights).max()
                assert 0.5 / np.sqrt(fan_in) < largest <= 1 / np.sqrt(fan_in)
