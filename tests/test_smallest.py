"""The recipe and its parts: the softmax over all items, batches of users, rows of few bits, trained for them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import slope

import htd_jax
from htd_jax import distillers
from htd_jax.data import Interactions, seen_mask
from htd_jax.distillers import Best
from htd_jax.errors import UserError
from htd_jax.losses import sampled_softmax_loss, softmax_loss
from htd_jax.models import BPRSettings, IALSSettings, LightGCNSettings, ModelOf, NeuMFSettings
from htd_jax.ops.codes import BITS, row_bytes
from htd_jax.ops.precision import encoded, for_bytes, forms_for_bytes, pack, rounded, unpack
from htd_jax.pipeline import Experiment, PhaseRequest, RunRequest, RunSettings, resolve, resolve_run, silent
from htd_jax.serving import Rows, to_precision
from htd_jax.training import (
    Training,
    adam,
    cosine,
    make_trainer,
    own,
    resolve_training,
    sampled_softmax,
    softmax,
)


def plain_softmax(scores, seen, where, temperature):
    """In float64, a user at a time."""
    total = 0.0
    for s, own_items, counts in zip(np.asarray(scores, float) / temperature, seen, where):
        if counts and own_items.any():
            total += np.sum(s.max() + np.log(np.exp(s - s.max()).sum()) - s[own_items])
    return total


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_softmax_loss_against_float64(scale):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(7, 12)) * scale
    seen, where = rng.random((7, 12)) < 0.3, np.arange(7) != 2
    seen[4] = False
    of = lambda x: softmax_loss(x, jnp.asarray(seen), where=jnp.asarray(where), temperature=0.5)
    value, gradient = jax.value_and_grad(of)(jnp.asarray(scores, jnp.float32))
    np.testing.assert_allclose(value, plain_softmax(scores, seen, where, 0.5), rtol=1e-5)
    for _ in range(3):
        direction = rng.normal(size=scores.shape)
        numeric = slope(lambda x: plain_softmax(x, seen, where, 0.5), scores, direction)
        np.testing.assert_allclose(np.sum(np.asarray(gradient, float) * direction), numeric, rtol=1e-3, atol=1e-4)
    assert not np.asarray(gradient)[[2, 4]].any()


def test_softmax_loss_at_the_extremes():
    seen = jnp.array([[True, False], [True, True], [False, False]])
    for scores in (jnp.full((3, 2), 1e4), jnp.array([[-1e4, 1e4]] * 3)):
        value, gradient = jax.value_and_grad(lambda x: softmax_loss(x, seen))(scores)
        assert np.isfinite(value) and np.isfinite(gradient).all()
    hidden = jnp.array([[jnp.nan, 0.0]] * 3)
    of = lambda x: softmax_loss(x, seen, where=jnp.zeros(3, bool))
    value, gradient = jax.value_and_grad(of)(hidden)
    assert value == 0 and not gradient.any()


def plain_sampled(positives, sampled, counts, where, there, temperature):
    """In float64, a pair at a time."""
    total = 0.0
    for positive, scores, kept, counted in zip(positives / temperature, sampled / temperature, there, where):
        if counted:
            others = np.exp(scores[kept] - positive) / counts[kept]
            total += np.log1p(others.sum())
    return total


def test_sampled_softmax_loss_against_float64():
    rng = np.random.default_rng(0)
    positives, sampled, counts = rng.normal(size=7), rng.normal(size=(7, 9)), rng.uniform(0.1, 3, 9)
    where, there = np.arange(7) != 2, rng.random((7, 9)) < 0.8
    there[4] = False  # only the positive is left
    mask = jnp.asarray(where[:, None] & there)
    of = lambda p, s: sampled_softmax_loss(p, s, jnp.asarray(counts, jnp.float32), where=mask, temperature=0.2)
    arrays = jnp.asarray(positives, jnp.float32), jnp.asarray(sampled, jnp.float32)
    value, gradients = jax.value_and_grad(of, argnums=(0, 1))(*arrays)
    plain = lambda p, s: plain_sampled(p, s, counts, where, there, 0.2)
    np.testing.assert_allclose(value, plain(positives, sampled), rtol=1e-5)
    for _ in range(3):
        ahead = rng.normal(size=7), rng.normal(size=(7, 9))
        numeric = slope(lambda x: plain(positives + x * ahead[0], sampled + x * ahead[1]), 0.0, 1.0)
        exact = sum(np.sum(np.asarray(g, float) * d) for g, d in zip(gradients, ahead))
        np.testing.assert_allclose(exact, numeric, rtol=1e-3)
    hidden = jnp.full(7, jnp.nan), jnp.full((7, 9), jnp.nan)
    found = jax.grad(lambda p, s: sampled_softmax_loss(p, s, jnp.ones(9), where=jnp.zeros(7, bool)), (0, 1))(*hidden)
    assert not any(np.asarray(gradient).any() for gradient in found)


@pytest.mark.slow
def test_drawn_items_stand_for_all(small_split):
    """With many sampled items, the loss of a batch of pairs is that over all items; with few, the sum over all is right
    on average (400 samples, 5 standard errors)."""
    train = small_split.train
    module = ModelOf(BPRSettings(), 4)(train)
    sizes = train.num_users, train.num_items
    tables = [0.5 * jax.random.normal(jax.random.key(size), (size, 4)) for size in sizes]
    model = module.bind({"params": dict(zip(("users", "items"), tables))})
    triples = jax.tree.map(lambda x: x[0], own().sample(list(jax.random.split(jax.random.key(2))), train, 64))
    batch = distillers.Batch(None, triples, model.score)
    scores = np.asarray(tables[0] @ tables[1].T, float)[triples.users]
    pairs = scores[np.arange(64), triples.positives]
    exact = np.log(np.exp(scores).sum(1)) - pairs

    def of(number, key):
        objective = sampled_softmax(1.0, number)
        return objective.loss(model, batch, objective.constants(train), key)

    np.testing.assert_allclose(of(200_000, jax.random.key(0)), exact.sum(), rtol=0.01)
    one = batch._replace(triples=jax.tree.map(lambda x: x[:1], triples))  # exp(loss) is linear in the sum
    objective = sampled_softmax(1.0, 32)
    drawn = lambda key: jnp.exp(objective.loss(model, one, objective.constants(train), key))
    found = np.asarray(jax.vmap(drawn)(jax.random.split(jax.random.key(1), 400)))
    assert abs(found.mean() - np.exp(exact[0])) < 5 * found.std() / 20


@pytest.mark.slow
def test_a_student_of_drawn_items_learns():
    data = htd_jax.data.make_synthetic(num_users=100, num_items=200)
    given = {"dim": 8, "loss": "softmax", "sampled_items": 64, "epochs": 100, "progress": False}
    of = lambda **how: htd_jax.fit(data, **given, **how).metrics["recall@50"]
    assert of() > of(learning_rate=0.0) + 0.1
    with pytest.raises(UserError, match="`sampled_items` needs the softmax loss"):
        resolved(Training(sampled_items=5))


@pytest.fixture(scope="module")
def uneven():
    """One user has seen nothing, one all but one item, one every item."""
    rng = np.random.default_rng(1)
    lists = [[], list(range(11)), list(range(12)), *(sorted(rng.choice(12, 4, replace=False)) for _ in range(17))]
    users, items = np.array([(u, i) for u, items in enumerate(lists) for i in items]).T
    return Interactions.from_pairs(users, items, 20, 12)


@pytest.mark.slow
def test_batches_of_users(uneven):
    """Every user is in an epoch once; its samples are uniform over its seen and its unseen items (chi-square
    of 4,000 epochs, false alarms 1e-4 each)."""
    draw = jax.jit(lambda key: softmax(1.0).sample(list(jax.random.split(key)), uneven, 6))
    triples = draw(jax.random.key(0))
    assert triples.users.shape == (4, 6) and softmax(1.0).steps(uneven, 6) == (4, 6)
    counted = np.asarray(triples.users)[np.asarray(triples.where)]
    assert sorted(counted) == [1, *range(3, 20)]  # neither who has seen nothing nor who has seen all
    seen = np.asarray(seen_mask(uneven, jnp.arange(20)))
    times = {True: np.zeros((20, 12)), False: np.zeros((20, 12))}
    many = jax.jit(jax.vmap(lambda key: softmax(1.0).sample(list(jax.random.split(key)), uneven, 6)))
    found = many(jax.random.split(jax.random.key(1), 4000))
    where = np.asarray(found.where)
    for drawn, of_seen in ((found.positives, True), (found.negatives, False)):
        np.add.at(times[of_seen], (np.asarray(found.users)[where], np.asarray(drawn)[where]), 1)
        assert not times[of_seen][seen != of_seen].any()
        for user in (1, 5, 12):
            own_items = seen[user] == of_seen
            expected = 4000 / own_items.sum()
            chi = np.sum((times[of_seen][user][own_items] - expected) ** 2) / expected
            assert chi < 38  # of at most 10 degrees of freedom


@pytest.mark.slow
def test_an_epoch_of_softmax_is_the_plain_loop(small_split):
    """Against its definition, a batch of users at a time, and the cosine along all steps."""
    train = small_split.train
    model = ModelOf(BPRSettings(), 4)
    objective = softmax(0.5)
    steps = objective.steps(train, 32)[0]
    rate = cosine(0.01, 2 * steps)
    trainer = make_trainer(model, distillers.none(), adam(rate, 1e-3), batch_size=32, objective=objective)
    key = jax.random.key(3)
    state = trainer.init(key, train, None)
    params = jax.tree.map(jnp.copy, state.params["model"])
    opt = adam(rate, 1e-3)
    mine, moments = params, opt.init(params)
    for epoch in range(2):
        state, _ = trainer.epoch(state, key, train, None)
        triples = objective.sample(list(jax.random.split(jax.random.fold_in(key, epoch), 3)[:2]), train, 32)
        for users, where in zip(triples.users, triples.where):
            seen = seen_mask(train, users)

            def loss(variables, users=users, seen=seen, where=where):
                tables = variables["params"]
                return softmax_loss(tables["users"][users] @ tables["items"].T, seen, where=where, temperature=0.5)

            updates, moments = opt.update(jax.grad(loss)(mine), moments, mine)
            mine = jax.tree.map(jnp.add, mine, updates)
    for name, table in mine["params"].items():
        np.testing.assert_allclose(state.params["model"]["params"][name], table, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_methods_work_beside_the_softmax(small_split):
    """Scores that are made once for all who ask, and methods of other kinds on batches of users."""
    data = small_split
    teacher = htd_jax.fit(data, model="ials", dim=8, epochs=3, progress=False)
    for method in ("best", "htd+best", "rrd"):
        student = htd_jax.distill(teacher, data, method=method, dim=4, loss="softmax", epochs=2, progress=False)
        assert np.isfinite(list(student.metrics.values())).all()
        assert student.settings["training"]["schedule"] == "cosine"


# Rows in fewer bytes


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.sampled_from(list(BITS)), st.integers(0, 2**32 - 1), st.floats(-30, 36), st.integers(1, 30))
def test_rows_stand_for_the_middle_of_their_step(precision, seed, exponent, dim):
    table = (np.random.default_rng(seed).normal(size=(20, dim)) * 10.0**exponent).astype(np.float32).astype(float)
    table[:, 0] = 0
    rows = to_precision(table, precision)
    size = math.ceil(BITS[precision] * dim / 8)
    assert (rows.dim, rows.precision, rows.row_bytes, rows.values.nbytes) == (dim, precision, size, 20 * size)
    step = {"int4": 0.3352, "int3": 0.5860, "int2": 0.9957}[precision] * np.sqrt((table**2).mean(0))
    half = 2 ** (BITS[precision] - 1)
    whole = np.clip(np.floor(table / np.where(step > 0, step, 1)), -half, half - 1) + 0.5
    off = np.abs(np.asarray(rows.floats(), float) - whole * step)
    # A number at the edge of two steps may fall to either side in float32.
    edge = np.abs(table / np.where(step > 0, step, 1) - np.rint(table / np.where(step > 0, step, 1))) < 1e-4
    assert (off[~edge] <= 1e-5 * (np.abs(whole * step).max() + 1e-38)).all()
    assert not np.asarray(rows.floats())[:, 0].any()
    again = rounded(rows.floats(), precision, rows.steps)
    np.testing.assert_array_equal(again, rows.floats())


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_codes_are_packed_as_documented(bits):
    """Into as few bytes as hold them, in which each code has its own bits."""
    rng = np.random.default_rng(bits)
    for dim in (1, 5, 26, 27):
        codes = rng.integers(0, 2**bits, (5, dim), dtype=np.uint8)
        packed = np.asarray(pack(jnp.asarray(codes), bits))
        width = -(-bits * dim // 8)
        rest = dim - 8 // bits * width
        oracle = np.zeros((5, width), int)
        for j in range(min(dim, 8 // bits * width)):
            oracle[:, j % width] |= codes[:, j].astype(int) << bits * (j // width)
        for i in range(rest):
            high = rest + i % (width - rest), 6 + i // (width - rest)
            oracle[:, i] |= (codes[:, 2 * width + i].astype(int) & 3) << 6
            oracle[:, high[0]] |= (codes[:, 2 * width + i].astype(int) >> 2) << high[1]
        np.testing.assert_array_equal(packed, oracle)
        np.testing.assert_array_equal(unpack(jnp.asarray(packed), dim, bits), codes)
        columns = Rows(jnp.asarray(packed.T), None, jnp.ones(dim), bits)
        for j in {0, dim - 1}:
            np.testing.assert_array_equal(columns.codes(j), codes[:, j] - (2**bits - 1) / 2)


def test_int4_is_packed_as_ever():
    """Exports of version 0.4 hold dimension j in the low half of a byte and dimension j + d / 2 in the high half."""
    codes = np.random.default_rng(0).integers(0, 16, (4, 10), dtype=np.uint8)
    np.testing.assert_array_equal(pack(jnp.asarray(codes), 4), codes[:, :5] | codes[:, 5:] << 4)


@pytest.mark.parametrize("precision", BITS)
def test_rows_are_taken_cut_and_packed(precision):
    table = jnp.asarray(np.random.default_rng(0).normal(size=(9, 7)), jnp.float32)
    rows = to_precision(table, precision)
    floats = np.asarray(rows.floats())
    np.testing.assert_array_equal(rows.take(jnp.array([3, 3, 0])).floats(), floats[[3, 3, 0]])
    np.testing.assert_array_equal(rows.slice(jnp.int32(2), 4).floats(), floats[2:6])
    np.testing.assert_array_equal(rows.padded(3).floats()[:9], floats)
    assert to_precision(table[:1], precision).floats().shape == (1, 7)
    assert to_precision(table[:0], precision).floats().shape == (0, 7)


@pytest.mark.parametrize("precision", ["float16", "int8", *BITS])
def test_rounding_is_passed_straight_through(precision):
    table = jnp.asarray(np.random.default_rng(2).normal(size=(500, 4)), jnp.float32)
    np.testing.assert_array_equal(rounded(table, precision), encoded(table, precision).floats())
    gradient = np.asarray(jax.grad(lambda x: jnp.sum(rounded(x, precision) * 2))(table))
    beyond = np.zeros(table.shape, bool)
    if precision in BITS:
        clipped = {"int4": 8 * 0.3352, "int3": 4 * 0.5860, "int2": 2 * 0.9957}[precision]
        beyond = np.abs(np.asarray(table)) > clipped * np.sqrt(np.mean(np.asarray(table) ** 2, axis=0))
        assert beyond.any()
    np.testing.assert_array_equal(gradient, np.where(beyond, 0, 2))


@pytest.mark.slow
@pytest.mark.parametrize("model", [BPRSettings(), LightGCNSettings()])
@pytest.mark.parametrize("precision", ["int8", "int4", "int3", "int2"])
def test_a_student_is_served_in_the_bytes_that_it_was_trained_in(small_split, model, precision, tmp_path):
    """The scores that were evaluated are those that are served, through a file too."""
    student = htd_jax.distill(
        htd_jax.fit(small_split, dim=8, epochs=2, progress=False),
        small_split,
        method="ftd",
        model=model,
        dim=5,
        precision=precision,
        epochs=2,
        progress=False,
    )
    retriever = student.retriever()
    assert retriever.precision == precision and retriever.users.row_bytes == row_bytes(5, precision)
    users, items = (np.asarray(rows.floats()) for rows in (retriever.users, retriever.items))
    np.testing.assert_allclose(student.scores(jnp.arange(9)), users[:9] @ items.T, rtol=1e-5, atol=1e-6)
    assert retriever.with_precision("float32").precision == "float32"
    retriever.save(tmp_path / "saved", seen=True)
    opened = htd_jax.load(tmp_path / "saved")
    for before, after in ((retriever.users, opened.users), (retriever.items, opened.items)):
        np.testing.assert_array_equal(before.floats(), after.floats())
    assert opened.recommend(k=5).rows.tolist() == student.recommend(k=5).rows.tolist()


@pytest.mark.slow
def test_training_for_a_precision_beats_rounding_afterwards():
    """The loss that is trained is that of the rounded rows: it ends lower than that of rows rounded afterwards."""
    train = htd_jax.data.make_synthetic(num_users=200, num_items=300).train
    objective = softmax(0.05)

    def trained(precision):
        rate = cosine(0.01, 200 * objective.steps(train, 32)[0])
        how = {"batch_size": 32, "objective": objective}
        trainer = make_trainer(ModelOf(BPRSettings(), 8, precision), distillers.none(), adam(rate, 1e-3), **how)
        state = trainer.init(jax.random.key(0), train, None)
        for _ in range(200):
            state, _ = trainer.epoch(state, jax.random.key(0), train, None)
        return state.params["model"]["params"]

    def loss(tables):
        users, items = (rounded(tables[name], "int4") for name in ("users", "items"))
        seen = seen_mask(train, jnp.arange(train.num_users))
        return float(softmax_loss(users @ items.T, seen, temperature=0.05))

    assert loss(trained("int4")) < 0.99 * loss(trained("float32"))


# What is asked for


def test_bytes_are_counted():
    for size in (1, 5, 10, 20, 39, 40, 50, 100, 1000):
        dim, precision = for_bytes(size, 200)
        assert 1 <= row_bytes(dim, precision) <= size and dim <= 200
        forms = forms_for_bytes(size, 200)
        assert forms[0] == (dim, precision) and len(set(forms)) == len(forms)
        assert all(1 <= row_bytes(*form) <= size and form[0] <= 200 for form in forms)
        # No number more would fit, unless it is as wide as the teacher.
        assert all(row_bytes(form[0] + 1, form[1]) > size for form in forms if form[0] < 200)
    assert for_bytes(10, 200) == (20, "int4") and for_bytes(50, 200) == (46, "int8")
    assert forms_for_bytes(10, 200) == ((20, "int4"), (6, "int8"), (26, "int3"), (40, "int2"))
    assert forms_for_bytes(5, 8) == ((8, "int4"),)  # no coarser one is wider
    assert forms_for_bytes(50, 60) == ((46, "int8"), (60, "int4"))


@pytest.mark.slow
def test_a_recipe_that_is_stopped_ends_at_the_same_bits(small_split, tmp_path, a_checkpoint_every_epoch):
    teacher = htd_jax.fit(small_split, model="ials", dim=8, epochs=3, progress=False)
    request = PhaseRequest(dim=4, method=Best(), precision="int4", training=Training(epochs=6, eval_every=2))
    spec = resolve(request, small_split)
    experiment = Experiment(htd_jax.data.Dataset.from_split(small_split), spec.evaluation)

    def student(folder, on_epoch=lambda news: None):
        return experiment.train(spec, teacher.teacher(), folder=folder, on_epoch=on_epoch, progress=silent)

    def stop(news):
        if news.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        student(tmp_path / "stopped", stop)
    whole, again = student(tmp_path / "whole"), student(tmp_path / "stopped")
    assert len(again.seconds) == 6 and again.metrics == whole.metrics
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), whole.variables, again.variables)
    assert jax.tree.all(same)


SYNTHETIC = htd_jax.data.Dataset.from_split(htd_jax.data.make_synthetic(num_users=60, num_items=150), "synthetic")


def resolved(training=Training(), **settings):  # noqa: B008 (frozen)
    return resolve_run(RunRequest(RunSettings(**settings), training), SYNTHETIC)


def test_defaults_of_the_recipe():
    best = resolved(method="best")
    assert best.settings.teacher_model == "ials" and best.teacher.make_model.settings == IALSSettings()
    assert best.distilled.training.loss == "softmax" and best.identity["loss"] is None  # each phase has its own
    assert resolved(method="best", teacher_model="bpr").settings.teacher_model == "bpr"
    sized = resolved(method="best", bytes=10)
    assert (sized.settings.student_dim, sized.settings.precision) == (20, "int4")
    assert resolved(method="best", bytes=10, student_dim=20, precision="int4").settings == sized.settings
    assert sized.folder.name == "synthetic-by-ials-best-20-int4-seed0"
    plain = resolved(method="htd").distilled.training
    assert (plain.loss, plain.epochs, plain.batch_size, plain.learning_rate) == ("own", 101, 1024, 1e-3)
    of = lambda users, items=9: htd_jax.data.Interactions.from_pairs(range(users), [0] * users, users, items)
    resolve = lambda training, train=None, **defaults: resolve_training(training, train, epochs=101, defaults=defaults)
    found = resolve(Training(l2=0.5), loss="softmax")
    assert (found.epochs, found.batch_size, found.l2, found.schedule) == (20, 128, 0.5, "cosine")
    assert [resolve(Training(loss="softmax"), of(n)).epochs for n in (60, 1_000, 50_000)] == [800, 100, 20]
    assert resolve(Training(loss="softmax", epochs=5), of(60)).epochs == 5
    many = resolve(Training(loss="softmax"), of(50_000, 100_001))
    assert (many.sampled_items, many.batch_size, many.epochs) == (2048, 1024, 20)
    recipe = resolve(Training(), of(50_000, 100_001), **Best.training_defaults)
    assert (recipe.sampled_items, recipe.batch_size) == (0, 128)
    other = resolve(Training(loss="own"), loss="softmax", l2=0.02)
    assert (other.epochs, other.l2) == (101, 1e-3)  # a method's defaults apply to its loss only


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bytes": 20, "student_dim": 30}, "`bytes` determines `student_dim` and `precision`"),
        ({"precision": "int8", "model": "neumf"}, "`precision` int8 needs a model whose scores are inner products"),
    ],
)
def test_invalid_settings(settings, message):
    with pytest.raises(UserError, match=message):
        resolved(**settings)
    with pytest.raises(UserError, match="`bytes` must be at least 1"):
        RunRequest(RunSettings(bytes=0)).load_dataset()


def test_a_softmax_needs_gradients_and_inner_products(small_split):
    softmax_of = lambda model: resolved(Training(loss="softmax"), model=model, method="none")
    with pytest.raises(UserError, match="`loss` softmax is for models trained by gradients"):
        softmax_of("ials")
    with pytest.raises(UserError, match="`loss` softmax needs a model whose scores are inner products"):
        softmax_of("neumf")
    with pytest.raises(UserError, match="`precision` must be float32"):
        ModelOf(NeuMFSettings(), 5, "int8")(small_split.train)
    with pytest.raises(UserError, match="`loss` softmax needs a model whose scores are inner products"):
        htd_jax.fit(small_split, model="neumf", dim=4, loss="softmax", epochs=1, progress=False)
    assert own().steps(small_split.train, 50)[1] == 50
