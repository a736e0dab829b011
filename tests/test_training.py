"""The compiled epoch, the loop, resumption, and the interface of a method."""

import functools
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from htd_jax import distillers
from htd_jax.data import shuffle, unseen_items
from htd_jax.distillers import HTD, Distiller, Lists, Step, Teacher
from htd_jax.distillers.base import no_params
from htd_jax.errors import UserError
from htd_jax.evaluation import make_evaluator
from htd_jax.losses import bpr_loss
from htd_jax.models import BPR, ModelOf, NeuMFSettings, Representations, model_scores
from htd_jax.training import (
    Checkpoints,
    Diverged,
    EarlyStopping,
    adam,
    make_trainer,
    no_teacher,
    run_phase,
)
from htd_jax.training.loop import STAGES

BATCH, DIM, WIDE = 50, 4, 9


@pytest.fixture(scope="module")
def teacher(small_split):
    keys = jax.random.split(jax.random.key(9))
    sizes = (small_split.train.num_users, small_split.train.num_items)
    return Representations(*(jax.random.normal(key, (size, WIDE)) for key, size in zip(keys, sizes, strict=True)))


def make_model(train):
    return BPR(train.num_users, train.num_items, DIM)


def make(distiller, optimizer=None, **options):
    return make_trainer(make_model, distiller, optimizer or adam(1e-2, 1e-3), **{"batch_size": BATCH, **options})


METHODS = {
    "none": distillers.none,
    "ftd": lambda: distillers.scale(distillers.ftd(), 1e-3),
    "both": lambda: distillers.chain(
        distillers.scale(distillers.ftd(), 1e-3), distillers.scale(distillers.htd(HTD(groups=3), epochs=4), 1e-3)
    ),
}


@functools.cache
def trainer_of(method):
    """One for all tests: what it is traced to is kept."""
    return make(METHODS[method]())


@pytest.mark.slow
def test_an_epoch_is_the_plain_loop_over_shuffled_batches(small_split):
    """Every pair once, a fresh negative each, the last batch short, L2 on every parameter at every step."""
    train = small_split.train
    trainer = trainer_of("none")
    key = jax.random.key(5)
    state = trainer.init(key, train, no_teacher(train))
    params = jax.tree.map(np.asarray, state.params["model"]["params"])
    found, terms = trainer.epoch(state, key, train, no_teacher(train))

    shuffle_key, negative_key, _ = jax.random.split(jax.random.fold_in(key, 0), 3)
    order, negatives = shuffle(shuffle_key, len(train)), unseen_items(negative_key, train)
    assert len(train) % BATCH
    moments = {name: (np.zeros_like(p), np.zeros_like(p)) for name, p in params.items()}
    losses = []

    @jax.jit
    @jax.value_and_grad
    def differentiate(p, users, items, others):
        score = lambda i: jnp.sum(p["users"][users] * p["items"][i], -1)
        return bpr_loss(score(items), score(others))

    for step, start in enumerate(range(0, len(train), BATCH), 1):
        rows = order[start : start + BATCH]
        users, items, others = train.users[rows], train.items[rows], negatives[rows]

        value, gradient = differentiate(jax.tree.map(jnp.asarray, params), users, items, others)
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


@pytest.mark.slow
@pytest.mark.parametrize("method", ["none", "ftd"])
def test_a_step_adds_the_distillation_of_the_batchs_entities(small_split, teacher, method):
    """One batch of everything: the entities are then all users and items in it, each once."""
    train = small_split.train
    distiller = METHODS[method]()
    trainer = make(distiller, adam(0.0, 0.0), batch_size=2 * len(train))
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
        batch = distillers.Batch(distillers.Entities(*sides), None, None)
        extra, _ = distiller.loss(Step(params["distiller"], None, (), batch, step_key, 0))
        np.testing.assert_allclose(terms["loss"], base + extra, rtol=1e-4)
    assert method == "none" or terms["loss"] > terms["base"]


EVALUATORS = {}


def fit(split, teacher, method, folder=None, epochs=4, on_epoch=lambda news: None, settings=None, **options):
    """`method`: the name of one, or a distiller."""
    evaluate = EVALUATORS.setdefault(id(split), make_evaluator(split))
    return run_phase(
        trainer_of(method) if isinstance(method, str) else make(method),
        evaluate,
        split,
        teacher,
        jax.random.key(3),
        epochs=epochs,
        checkpoints=Checkpoints(folder) if folder else None,
        settings=settings or {"method": str(method)},
        on_epoch=on_epoch,
        **{"eval_every": 2, **options},
    )


def bits(folder):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(Checkpoints(folder).tree())]


def timeless(records):
    return [
        {name: value for name, value in record.items() if not name.startswith(("seconds", "peak"))}
        for record in records
    ]


class Killed(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("method", ["none", "both"])
def test_equal_seeds_give_equal_bits_and_so_does_a_run_killed_and_resumed(
    small_split, teacher, method, tmp_path, a_checkpoint_every_epoch
):
    whole = fit(small_split, teacher, method, tmp_path / "whole")

    def kill(news):
        if news.epoch == 1:  # after its checkpoint
            raise Killed

    with pytest.raises(Killed):
        fit(small_split, teacher, method, tmp_path / "killed", on_epoch=kill)
    epochs = []
    resumed = fit(small_split, teacher, method, tmp_path / "killed", on_epoch=lambda news: epochs.append(news.epoch))
    assert epochs == [2, 3]
    assert bits(tmp_path / "whole") == bits(tmp_path / "killed")
    assert timeless(whole.records) == timeless(resumed.records)
    assert [record["epoch"] for record in whole.records] == [0, 2, 3]
    again = fit(small_split, teacher, method, tmp_path / "killed", on_epoch=kill)  # nothing left to do
    assert bits(tmp_path / "whole") == bits(tmp_path / "killed")
    chex.assert_trees_all_equal(again.variables, whole.variables)
    assert again.seconds == resumed.seconds


@pytest.mark.slow
def test_a_run_compiles_its_epoch_once(small_split, teacher, tmp_path):
    compiled = []

    def listen(event, duration, **kwargs):
        if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":  # comes before any cache is asked
            compiled.append(event)

    counts = []
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        count = lambda news: counts.append(len(compiled))
        fit(small_split, teacher, METHODS["both"](), tmp_path / "run", epochs=7, on_epoch=count)
    finally:
        jax.monitoring.clear_event_listeners()
    # The first epoch may compile the evaluation and the first save; after that nothing does.
    assert counts[0] > 0
    assert len(set(counts)) == 1


@pytest.mark.slow
def test_distillation_moves_the_student_towards_its_teachers_topology(small_split, teacher, tmp_path):
    losses = []
    fit(
        small_split, teacher, "ftd", tmp_path / "run", epochs=25, on_epoch=lambda news: losses.append(news.terms["ftd"])
    )
    assert losses[-1] < 0.8 * losses[0]


def test_other_settings_are_refused(small_split, teacher, tmp_path):
    fit(small_split, teacher, "none", tmp_path / "run", epochs=1)
    with pytest.raises(UserError, match="made with other settings"):
        fit(small_split, teacher, "none", tmp_path / "run", epochs=1, settings={"method": "another"})


def test_a_checkpoint_of_another_format_names_the_version(small_split, teacher, tmp_path):
    fit(small_split, teacher, "none", tmp_path / "run", epochs=1, settings={"format": 5})
    with pytest.raises(UserError, match=r"another version of htd-jax \(format 5, not 6\)"):
        fit(small_split, teacher, "none", tmp_path / "run", epochs=1, settings={"format": 6})


@pytest.mark.slow
def test_early_stopping_keeps_the_best_epoch_even_if_killed_after_it(
    small_split, teacher, tmp_path, a_checkpoint_every_epoch
):
    """The metric is handed in: it rises to epoch 3 and falls from there."""
    stopping = EarlyStopping("recall@10", 3)
    seen = []

    def evaluate(make_model, variables):
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

    seen.clear()
    with pytest.raises(Killed):
        train("killed", on_epoch=kill)
    resumed = train("killed")
    assert len(resumed.seconds) == 7
    chex.assert_trees_all_equal(resumed.variables, result.variables)
    assert timeless(resumed.records) == timeless(result.records)


def test_a_phase_starts_from_given_variables(small_split, teacher, tmp_path):
    train = small_split.train
    start = {"params": {"users": jnp.ones((train.num_users, DIM)), "items": jnp.ones((train.num_items, DIM))}}
    untrained = lambda distiller: make(distiller, adam(0.0, 0.0))
    result = run_phase(
        untrained(distillers.none()),
        make_evaluator(small_split),
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


# --- the interface of a method


def method(**changes):
    """A method that adds nothing, except for `changes`."""
    loss = lambda step: (jnp.zeros(()), {})
    return Distiller(**{"init": no_params, "loss": loss, "needs": (), **changes})


def logs(value_of):
    """A loss that trains nothing, with a term `seen` computed from its step."""
    return lambda step: (jnp.zeros(()), {"seen": value_of(step)})


def terms_of(split, teacher, distiller, epochs=4, **options):
    terms = []
    fit(split, teacher, distiller, epochs=epochs, on_epoch=lambda news: terms.append(news.terms), **options)
    return terms


@pytest.mark.slow
def test_each_epoch_samples_from_the_last_sample(small_split):
    def refresh(start):
        last = jnp.zeros((), jnp.int32) if start.sampled is None else start.sampled["count"]
        return {"count": last + 1, "epoch": jnp.asarray(start.epoch), "random": jax.random.uniform(start.key)}

    loss = lambda step: (jnp.zeros(()), {name: x * 1.0 for name, x in step.sampled.items()})
    found = terms_of(small_split, None, method(refresh=refresh, loss=loss))
    assert [terms["count"] for terms in found] == [1, 2, 3, 4]
    assert [terms["epoch"] for terms in found] == [0, 1, 2, 3]
    assert len({terms["random"] for terms in found}) == 4


@pytest.mark.slow
def test_a_student_is_seen_as_it_is_when_the_epoch_begins(small_split):
    """Its scores in `refresh`, against those of the variables after the epoch before."""
    refresh = lambda start: start.student.score_all(jnp.arange(5))
    distiller = method(refresh=refresh)
    trainer, key, train = make(distiller), jax.random.key(5), small_split.train
    state = trainer.init(key, train, None)
    assert not np.any(state.sampled)
    for _ in range(3):
        before = jax.tree.map(np.asarray, state.params["model"])["params"]
        state, _ = trainer.epoch(state, key, train, None)
        np.testing.assert_allclose(state.sampled, before["users"][:5] @ before["items"].T, rtol=1e-5, atol=1e-6)


def test_the_links_of_a_chain_sample_separately(small_split):
    """One that draws, one that does not, and one that draws another thing, in one epoch of two."""
    by = lambda factor: method(
        refresh=lambda start: jnp.full(3, factor * start.epoch, float),
        loss=lambda step: (jnp.zeros(()), {f"seen{factor}": step.sampled.sum()}),
    )
    chain = distillers.chain(by(1), method(), distillers.every(2, by(10)))
    found = terms_of(small_split, None, chain)
    assert [terms["seen1"] for terms in found] == [0, 3, 6, 9]
    assert [terms["seen10"] for terms in found] == [0, 0, 60, 60]


def test_samples_are_resumed_to_the_bit(small_split, tmp_path, monkeypatch, a_checkpoint_every_epoch):
    """What every third epoch draws is there again after a kill in between."""
    refresh = lambda start: jax.random.normal(start.key, (4,))
    loss = lambda step: (
        jnp.sum(step.sampled) * jnp.sum(step.batch.entities.users.masked().student),
        {"sampled": jnp.sum(step.sampled)},
    )
    trainer = make(distillers.every(3, method(refresh=refresh, loss=loss)))
    monkeypatch.setattr(sys.modules[__name__], "trainer_of", lambda method: trainer)

    def kill(news):
        if news.epoch == 1:
            raise Killed

    whole = fit(small_split, None, "drawing", tmp_path / "whole")
    with pytest.raises(Killed):
        fit(small_split, None, "drawing", tmp_path / "killed", on_epoch=kill)
    again = []
    fit(small_split, None, "drawing", tmp_path / "killed", on_epoch=lambda news: again.append(news))
    assert [news.epoch for news in again] == [2, 3]
    assert bits(tmp_path / "whole") == bits(tmp_path / "killed")
    assert again[0].terms["sampled"] == whole.records[1]["terms"]["sampled"] != again[1].terms["sampled"]


def test_prepare_is_called_once_and_its_result_is_the_context(small_split, teacher):
    calls = []

    def prepare(given, train):
        calls.append((type(given), train.num_users))
        return {"mean": given.representations.users.mean()}

    distiller = method(prepare=prepare, loss=logs(lambda step: step.context["mean"]))
    found = terms_of(small_split, teacher, distiller, epochs=3)
    assert calls == [(Teacher, small_split.train.num_users)]
    np.testing.assert_allclose([terms["seen"] for terms in found], np.mean(teacher.users), rtol=1e-5)


@pytest.mark.slow
def test_score_is_the_models_and_differentiable(small_split):
    """A loss that pushes one pair's score up does so, and what it reads is the model's own score."""
    train = small_split.train
    users, items = jnp.array([[0], [7]]), jnp.array([[3, 4, 5], [5, 4, 3]])

    def loss(step):
        scores = step.batch.score(users, items)
        return -jnp.sum(scores), {"seen": scores[1, 0]}

    trainer = make(method(loss=loss), adam(0.0, 0.0), batch_size=2 * len(train))
    key = jax.random.key(1)
    params = jax.tree.map(jnp.copy, trainer.init(key, train, None).params["model"]["params"])
    _, terms = trainer.epoch(trainer.init(key, train, None), key, train, None)
    np.testing.assert_allclose(terms["seen"], params["users"][7] @ params["items"][5], rtol=1e-5)
    pushed = terms_of(small_split, None, method(loss=loss), epochs=3)
    assert pushed[0]["seen"] < pushed[1]["seen"] < pushed[2]["seen"]


@pytest.mark.parametrize(
    ("needs", "given", "message"),
    [
        (("representations",), None, "the method needs the teacher's representations, but this teacher has none"),
        (("lists",), None, "the method needs the teacher's lists, but this teacher has none"),
        (("scores",), "lists", "the method needs the teacher's scores, but this teacher has only lists"),
        (("lists", "representations"), "lists", "needs the teacher's representations, but this teacher has only lists"),
    ],
)
def test_a_teacher_that_lacks_what_is_needed_is_refused(small_split, needs, given, message):
    lists = Lists(jnp.tile(jnp.arange(3), (small_split.train.num_users, 1))) if given else None
    with pytest.raises(UserError, match=message):
        fit(small_split, lists, method(needs=needs), epochs=1)
    with pytest.raises(UserError, match=message):
        fit(small_split, lists, distillers.chain(distillers.none(), method(needs=needs)), epochs=1)


def test_a_teacher_of_lists_alone_will_do_where_no_more_is_needed(small_split):
    best = np.tile(np.arange(7), (small_split.train.num_users, 1))

    def prepare(given, train):
        return given.top(train, 5)

    distiller = method(prepare=prepare, needs=("lists",), loss=logs(lambda step: step.context.max() * 1.0))
    (terms,) = terms_of(small_split, Lists(jnp.asarray(best, jnp.int32)), distiller, epochs=1)
    assert 0 <= terms["seen"] <= 6


# --- teachers


def best_unseen(scores, train, k):
    """By NumPy: the best items that a user has not seen, ties in the order of items."""
    result = np.full((train.num_users, k), -1)
    users, items = np.asarray(train.users), np.asarray(train.items)
    for user in range(train.num_users):
        order = [i for i in np.argsort(-scores[user], kind="stable") if i not in set(items[users == user])][:k]
        result[user, : len(order)] = order
    return result


@pytest.mark.parametrize("at_once", [2**22, 7 * 90, 1])
def test_the_best_unseen_items_by_scores(small_split, rng, monkeypatch, at_once):
    """User 0 has few left; some scores are equal; in blocks of all users, of seven and of one."""
    train = small_split.train
    monkeypatch.setattr("htd_jax.teacher.SCORES", at_once)
    tables = [rng.integers(-2, 3, size=(size, 3)).astype(np.float32) for size in (train.num_users, train.num_items)]
    given = Teacher.of(Representations(*map(jnp.asarray, tables)))
    found = given.top(train, 20)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, best_unseen(tables[0] @ tables[1].T, train, 20))
    assert (np.asarray(found[0]) == -1).any()


def test_the_best_unseen_items_of_lists(small_split, rng):
    train = small_split.train
    lists = np.stack([rng.permutation(train.num_items)[:12] for _ in range(train.num_users)])
    lists[3, 5:] = -1
    scores = np.full((train.num_users, train.num_items), -np.inf)
    for user, row in enumerate(lists):
        scores[user, row[row >= 0]] = -np.arange((row >= 0).sum())
    wanted = best_unseen(scores, train, 90)
    wanted = np.where(np.take_along_axis(scores, np.maximum(wanted, 0), 1) > -np.inf, wanted, -1)
    for k in (4, 12, 20):
        found = Teacher.of(Lists(jnp.asarray(lists, jnp.int32))).top(train, k)
        np.testing.assert_array_equal(found, wanted[:, :k])


def test_a_teachers_scores_need_be_no_products(small_split):
    """NeuMF's, against the module's own."""
    train = small_split.train
    maker = ModelOf(NeuMFSettings(), 3)
    model, ids = maker(train), jnp.zeros(1, jnp.int32)
    variables = model.init(jax.random.key(0), ids, ids, method="score")
    variables = jax.tree.map(lambda x: x + 0.1, variables)
    given = Teacher(scores=model_scores(maker, variables, train))
    users = jnp.array([4, 0, 4])
    scores = model.apply(variables, users, method="score_all")
    np.testing.assert_allclose(given.scores(users), scores, rtol=1e-5)
    every = np.asarray(model.apply(variables, jnp.arange(train.num_users), method="score_all"))
    np.testing.assert_array_equal(jax.jit(lambda t, train: t.top(train, 6))(given, train), best_unseen(every, train, 6))
    with pytest.raises(UserError, match="needs the teacher's representations, but this teacher has only scores"):
        fit(small_split, given, distillers.ftd(), epochs=1)


def test_groups_of_other_lengths_are_refused_before_training(small_split, teacher):
    train = small_split.train
    users, items = np.zeros(train.num_users, int), np.zeros(train.num_items, int)
    for groups in ((items, users), (users[:10], items[:10])):
        with pytest.raises(AssertionError, match="groups of users"):
            make(distillers.htd(HTD(groups=4), group_ids=groups)).init(jax.random.key(0), train, teacher)


@pytest.mark.parametrize("rate", [1e30])
def test_a_loss_that_is_no_number_ends_the_phase_with_its_epoch(small_split, rate):
    trainer = make(distillers.none(), adam(rate, 0.0))
    evaluate = lambda make_model, variables: {"valid": {}, "test": {}}
    told_of = []
    with pytest.raises(Diverged, match=r"diverged in epoch \d: its loss is (nan|inf); lower `learning_rate`"):
        run_phase(
            trainer,
            evaluate,
            small_split,
            None,
            jax.random.key(3),
            epochs=9,
            eval_every=1,
            on_epoch=lambda news: told_of.append(news.epoch),
        )
    assert len(told_of) < 9


def test_a_finished_phase_goes_on_to_more_epochs(small_split, tmp_path):
    fit(small_split, None, "none", tmp_path / "run", epochs=3, eval_every=1)
    on = fit(small_split, None, "none", tmp_path / "run", epochs=5, eval_every=1)
    whole = fit(small_split, None, "none", tmp_path / "whole", epochs=5, eval_every=1)
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")
    assert timeless(on.records) == timeless(whole.records)
    with pytest.raises(UserError, match="already trained for 5 epochs, more than the requested 4"):
        fit(small_split, None, "none", tmp_path / "run", epochs=4, eval_every=1)


def test_the_time_of_a_phase_is_kept_by_stage(small_split, tmp_path):
    """Over resumes too; a finished phase keeps what it took."""
    stages = []
    prepared = lambda teacher, train: time.sleep(0.2)
    slow = distillers.none()._replace(prepare=prepared)
    trainer = make(slow)
    metrics = {"recall@1": jnp.zeros(())}
    run = lambda epochs: run_phase(
        trainer,
        lambda *model: {"valid": metrics, "test": metrics},
        small_split,
        None,
        jax.random.key(0),
        epochs=epochs,
        eval_every=1,
        checkpoints=Checkpoints(tmp_path / "run"),
        on_stage=stages.append,
    )
    first = run(1)
    assert stages == ["preparing", "compiling", "training"]
    assert set(first.spent) == set(STAGES) and 0.2 <= first.spent["preparation"] < 2
    assert first.spent["epochs"] == sum(first.seconds)
    second = run(2)
    assert second.spent["preparation"] > first.spent["preparation"] + 0.15
    assert second.spent["epochs"] == pytest.approx(sum(second.seconds)) and len(second.seconds) == 2
    assert run(2).spent == second.spent
