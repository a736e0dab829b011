"""Optimisers of rows, and the steps that read only their rows."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from htd_jax import distillers
from htd_jax.data import Interactions
from htd_jax.distillers import METHODS, Distiller, Listwise, RowIds, no_rows
from htd_jax.models import BPR, ModelOf, NeuMFSettings, Representations
from htd_jax.training import (
    TrainingSpec,
    adam,
    cosine,
    lazy_adam,
    make_trainer,
    objective_of,
    optimizer_of,
    own,
    rows,
    sampled_softmax,
    softmax,
)
from htd_jax.training.optimizers import Moments

USERS, ITEMS, DIM = 12, 9, 3
B1, B2 = 0.9, 0.999


class DenseLazyAdam:
    """The rule of lazy Adam, applied to every row in every step, in float64."""

    def __init__(self, table, rate, l2):
        self.rows, self.rate, self.l2 = np.array(table, np.float64), rate, l2
        self.m, self.v, self.owed = np.zeros_like(self.rows), np.zeros_like(self.rows), np.zeros(len(table))
        self.kept = np.zeros_like(self.rows)  # v after the last step that read a row

    def shrink(self, row, step, steps):
        root = np.sqrt(self.kept[row])
        strength = self.rate(step) * self.l2 * np.sqrt(1 - B2 ** (step + 1)) * steps
        self.rows[row] *= np.exp(-np.divide(strength, root, out=np.zeros_like(root), where=root > 0))

    def pay(self, which, step):
        for row in which:
            for _ in range(int(self.owed[row])):  # one step at a time, not in closed form
                self.m[row] *= B1
                self.v[row] *= B2
                root = np.sqrt(self.v[row])
                self.rows[row] -= np.divide(self.m[row], root, out=np.zeros_like(root), where=root > 0)
            self.shrink(row, step, self.owed[row])
            self.owed[row] = 0

    def update(self, which, gradient, step):
        for row in which:
            g = gradient[row]
            scale = self.rate(step) * np.sqrt(1 - B2 ** (step + 1)) / (1 - B1 ** (step + 1))
            self.m[row] = B1 * self.m[row] + (1 - B1) * scale * g
            self.v[row] = self.kept[row] = B2 * self.v[row] + (1 - B2) * g**2
            root = np.sqrt(self.v[row])
            self.shrink(row, step, 1)
            self.rows[row] -= np.divide(self.m[row], root, out=np.zeros_like(root), where=root > 0)
        for row in set(range(len(self.rows))) - set(which):
            self.owed[row] += 1


@functools.cache
def compiled_step(l2, falling):
    """A step whose gradients are given, and the end of an epoch: a row that stands twice in a batch gets the sum."""
    rate = cosine(0.05, 60) if falling else 0.05
    optimizer = lazy_adam(rate, l2, optax.sgd(0.1))

    @jax.jit
    def step(carry, ids, pulls, index, first):
        def loss(params, places):
            local = params["model"]["params"]
            read = lambda side: local[side][getattr(places, side).find(ids[side])[0]]
            return sum(jnp.sum(read(side) * pulls[side]) for side in ids), ()

        return rows.step(optimizer, carry, RowIds(**ids), loss, index, first)[0]

    return optimizer, step, jax.jit(lambda carry, first: rows.end(optimizer, carry, 10, first))


@pytest.mark.parametrize("l2", [0.0, 0.01, 3.0])
def test_rows_follow_the_rule_that_is_applied_to_all_of_them(l2):
    """Over six epochs of ten steps: rows read twice in a step, in every step, rarely and never."""
    falling = l2 == 0.01
    optimizer, step, end = compiled_step(l2, falling)
    rng = np.random.default_rng(1)
    sizes = {"users": USERS, "items": ITEMS}
    tables = {side: rng.normal(size=(size, DIM)).astype(np.float32) for side, size in sizes.items()}
    params = {"model": {"params": {**tables, "other": jnp.ones(2)}}, "distiller": {}}
    rate = (lambda t: 0.05 * 0.5 * (1 + np.cos(np.pi * t / 60))) if falling else (lambda t: 0.05)
    oracle = {side: DenseLazyAdam(table, rate, l2) for side, table in tables.items()}
    state = rows.begin_state(optimizer, params)
    for epoch in range(6):
        carry = rows.begin(params, state)
        for index in range(10):
            number = 10 * epoch + index
            ids = {"users": rng.integers(0, USERS - 2, 3), "items": np.append(rng.integers(0, 2, 3), 5)}
            ids["users"] = np.append(ids["users"], ids["users"][0])
            pulls = {side: rng.normal(size=(4, DIM)).astype(np.float32) for side in ids}
            on_device = {side: jnp.asarray(x, jnp.int32) for side, x in ids.items()}
            carry = step(carry, on_device, pulls, jnp.int32(index), jnp.int32(10 * epoch))
            for side, dense in oracle.items():
                gradient = np.zeros_like(dense.rows)
                np.add.at(gradient, ids[side], pulls[side])
                dense.pay(set(ids[side]), number - 1)
                dense.update(set(ids[side]), gradient, number)
        params, state = end(carry, jnp.int32(10 * epoch))
        for side, dense in oracle.items():
            dense.pay(range(len(dense.rows)), 10 * epoch + 9)
            np.testing.assert_allclose(params["model"]["params"][side], dense.rows, rtol=2e-4, atol=2e-5)
    np.testing.assert_array_equal(params["model"]["params"]["users"][-2:], tables["users"][-2:])  # never read


def test_a_gap_costs_the_same_wherever_epochs_end():
    """Ten thousand steps that do not read a row, in one epoch or in three, fade and shrink it alike."""
    optimizer, step, _ = compiled_step(1e-6, False)
    end = jax.jit(lambda carry, steps, first: rows.end(optimizer, carry, steps, first))
    tables = {"users": jnp.full((USERS, DIM), 0.3), "items": jnp.full((ITEMS, DIM), 0.3)}
    start = {"model": {"params": tables}, "distiller": {}}
    read, pulls = {"users": jnp.zeros(1, int), "items": jnp.zeros(1, int)}, np.full((1, DIM), 0.05, np.float32)
    found = []
    for steps in ([10_000], [10, 4990, 5000]):
        params, state, first = start, rows.begin_state(optimizer, start), 0
        for number in steps:
            carry = rows.begin(params, state)
            if not first:
                carry = step(carry, read, {"users": pulls, "items": pulls}, jnp.int32(0), jnp.int32(0))
            params, state = end(carry, jnp.int32(number), jnp.int32(first))
            first += number
        found.append(np.asarray(params["model"]["params"]["users"][0]))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3)
    series, shrinkage = 1 / (1 - B1 / B2**0.5), 0.05 * 1e-6 / np.sqrt((1 - B2) * 0.05**2)
    np.testing.assert_allclose(found[0], (0.3 - 0.05 * series) * np.exp(-1e4 * shrinkage), rtol=0.01)


def scaled_by(**settings):
    """The rate and the penalty of `optimizer_of`, measured on a row: its first step's length, and its shrinkage."""
    training = TrainingSpec(**{**TRAINING, **settings})
    optimizer = optimizer_of(training, 10, 4 * 30_400)
    row, state, zero = jnp.full((1, 1), 1.0), optimizer.init(jnp.zeros((1, 1))), jnp.zeros((1, 1))
    moved, state = optimizer.update(jnp.full((1, 1), 2.0), row * 0, state, zero, jnp.int32(0))
    kept = optimizer.pay(row, Moments(zero, state.square), zero + 400, zero + 1, jnp.int32(0))
    return -float(moved[0, 0]), -np.log(float(kept[0, 0])) * 2


TRAINING = dict(epochs=1, loss="own", temperature=1.0, sampled_items=None, batch_size=1024, learning_rate=0.1)
TRAINING |= dict(optimizer="lazy-adam", schedule="constant", l2=0.4, eval_every=1, patience=None)


def test_rate_and_penalty_follow_the_part_of_all_rows_in_a_batch():
    assert scaled_by() == pytest.approx((0.05, 0.05 * 0.1), rel=1e-3)  # a quarter of the usual part
    assert scaled_by(batch_size=4096) == pytest.approx((0.1, 0.1 * 0.4), rel=1e-3)
    assert scaled_by(loss="softmax") == pytest.approx((0.1, 0.1 * 0.4), rel=1e-3)


# --- epochs


@pytest.fixture(scope="module")
def train():
    rng = np.random.default_rng(3)
    codes = rng.permutation(60 * 45)[:500]
    return Interactions.from_pairs(codes // 45, codes % 45, 60, 45)


@pytest.fixture(scope="module")
def teacher(train):
    keys = jax.random.split(jax.random.key(9))
    return Representations(*(jax.random.normal(k, (n, 6)) for k, n in zip(keys, (train.num_users, train.num_items))))


@pytest.fixture
def reads_by_rows(monkeypatch):
    """Steps read the declared rows even where the whole table has fewer."""
    places = lambda ids, table: rows.Places(None if ids is None else jnp.sort(ids), len(table), len(table))
    monkeypatch.setattr("htd_jax.training.rows._places", places)


def test_more_reads_than_rows_take_the_whole_table():
    places = [rows._places(jnp.arange(9) % 4, jnp.zeros((size, 2))) for size in (9, 10)]
    assert places[0].ids is None and places[1].number == 9


def bpr(train):
    return BPR(train.num_users, train.num_items, 4)


def by_rows(l2=0.0):
    return lazy_adam(0.02, l2, adam(0.02, l2))


def after(trainer, train, teacher, epochs=2, state=None):
    guidance = trainer.guide(train, teacher)
    state = state or trainer.init(jax.random.key(0), train, guidance)
    for _ in range(epochs):
        state, terms = trainer.epoch(state, jax.random.key(1), train, guidance)
    return state, {name: float(term) for name, term in terms.items()}


def test_lazy_adam_is_nearly_adam():
    """Without L2 they differ by the learning rate's place alone, on the same gradients of a third of the rows."""
    optimizer, step, end = compiled_step(0.0, False)
    dense = adam(0.05, 0.0)
    rng = np.random.default_rng(2)
    goal = rng.normal(size=(USERS, DIM))
    table = {"users": jnp.zeros((USERS, DIM)), "items": jnp.zeros((ITEMS, DIM))}
    params = {"model": {"params": table}, "distiller": {}}
    state, plain = rows.begin_state(optimizer, params), table["users"]
    plain_state = dense.init(plain)
    update = jax.jit(dense.update)
    for epoch in range(20):
        carry = rows.begin(params, state)
        for index in range(10):
            ids = rng.choice(USERS, 4, replace=False)
            pulls = (goal[ids] + rng.normal(size=(4, DIM))).astype(np.float32)
            none = np.zeros((1, DIM), np.float32)
            places = {"users": jnp.asarray(ids), "items": jnp.zeros(1, int)}
            pulled = {"users": pulls, "items": none}
            carry = step(carry, places, pulled, jnp.int32(index), jnp.int32(10 * epoch))
            gradient = jnp.zeros_like(plain).at[ids].set(pulls)
            updates, plain_state = update(gradient, plain_state, plain)
            plain = optax.apply_updates(plain, updates)
        params, state = end(carry, jnp.int32(10 * epoch))
    found = params["model"]["params"]["users"]
    assert np.corrcoef(np.ravel(found), np.ravel(plain))[0, 1] > 0.99
    np.testing.assert_allclose(jnp.std(found), jnp.std(plain), rtol=0.05)


def undeclared(train):
    """A loss that scores item 7, whoever is in the batch."""

    def loss(step):
        users = step.batch.triples.users
        return step.batch.score(users, jnp.full_like(users, 7)).sum() * 1e-3, {}

    return Distiller(distillers.no_params, loss, needs=(), reads=no_rows)


def test_a_row_that_was_not_declared_makes_the_loss_nan(train):
    trainer = make_trainer(bpr, undeclared(train), by_rows(), batch_size=4)
    assert np.isnan(after(trainer, train, None, epochs=1)[1]["loss"])
    declared = undeclared(train)._replace(reads=distillers.all_rows)
    trainer = make_trainer(bpr, declared, by_rows(), batch_size=4)
    assert np.isfinite(after(trainer, train, None, epochs=1)[1]["loss"])


def test_all_items_are_scored_only_if_they_are_read(train, teacher):
    method = distillers.listwise()._replace(reads=no_rows)
    trainer = make_trainer(bpr, method, by_rows(), batch_size=16)
    with pytest.raises(TypeError, match="must declare"):
        after(trainer, train, teacher)


def test_a_model_that_mixes_rows_is_refused(train):
    from htd_jax.models import LightGCNSettings

    trainer = make_trainer(ModelOf(LightGCNSettings(), 4), distillers.none(), by_rows(), batch_size=16)
    with pytest.raises(ValueError, match="LightGCN reads more rows"):
        after(trainer, train, None)


READERS = ("ftd", "fitnet", "rrd", "rd", "unkd", "cd", "rce-kd", "ir-rrd", "dcd", "pckd")


def of_name(name):
    method = METHODS[name]()
    return distillers.scale(method.make(4), min(method.weight, 1e-2))


def together(distiller, train, teacher, objective=None, make_model=bpr):
    """The state after two epochs whose steps read the declared rows, and whose steps read all of them."""
    everything = (objective or own())._replace(reads=lambda constants, triples, key: RowIds(None, None))
    return [
        after(make_trainer(make_model, distiller, by_rows(), batch_size=32, objective=how), train, teacher)
        for how in (objective, everything)
    ]


def assert_alike(few, all_rows):
    for name, term in few[1].items():
        assert term == pytest.approx(all_rows[1][name], rel=2e-4, abs=1e-6), name
    chex.assert_trees_all_close(few[0].params, all_rows[0].params, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_methods_read_the_rows_that_they_declare(train, teacher, reads_by_rows):
    """All methods joined: without L2, rows that are left out of a step and rows with a gradient of 0 end alike."""
    assert_alike(*together(distillers.chain(*map(of_name, READERS)), train, teacher))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bd", "htd", "listwise"])
def test_other_methods_read_the_rows_that_they_declare(name, train, teacher, reads_by_rows):
    assert_alike(*together(of_name(name), train, teacher))


@pytest.mark.parametrize("objective", [softmax(0.1), sampled_softmax(0.1, 16)], ids=["softmax", "sampled"])
def test_objectives_read_the_rows_that_they_declare(objective, train, reads_by_rows):
    assert_alike(*together(distillers.none(), train, None, objective))


@pytest.mark.slow
def test_sampled_softmax_and_lists_read_the_rows_that_they_declare(train, teacher, monkeypatch, reads_by_rows):
    monkeypatch.setattr("htd_jax.data.sampling.MANY_SCORES", 100)
    assert_alike(*together(distillers.listwise(Listwise(top=5, users=8)), train, teacher, softmax(0.1)))


@pytest.mark.slow
@pytest.mark.parametrize("make_model", [ModelOf(NeuMFSettings(), 4)], ids=["neumf"])
def test_a_model_with_a_network_trains_by_rows(make_model, train, reads_by_rows):
    assert_alike(*together(distillers.none(), train, None, make_model=make_model))


@pytest.mark.parametrize("precision", ["int4", "int3", "int2"])
def test_rows_have_the_steps_of_the_whole_table(train, precision):
    model = BPR(train.num_users, train.num_items, 4, precision=precision)
    variables = model.init(jax.random.key(0), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32))
    users, items = jnp.array([3, 8]), jnp.array([1, 7, 2])
    few = {"params": {"users": variables["params"]["users"][users], "items": variables["params"]["items"][items]}}
    expected = model.apply(variables, users, items, method="represent")
    found = model.of_rows(variables)(2, 3).apply(few, jnp.arange(2), jnp.arange(3), method="represent")
    chex.assert_trees_all_equal(found, expected)


def test_an_epoch_continues_from_the_state_alone(train):
    """Nothing is owed between epochs: a state that was stored and read back continues to the bit."""
    trainer = make_trainer(bpr, distillers.none(), by_rows(0.01), batch_size=16)
    unbroken, _ = after(trainer, train, None, epochs=3)
    half, _ = after(trainer, train, None, epochs=1)
    stored = jax.tree.map(np.array, half)
    resumed, _ = after(trainer, train, None, epochs=2, state=jax.tree.map(jnp.asarray, stored))
    chex.assert_trees_all_equal(resumed, unbroken)


@pytest.mark.parametrize("name", ["none", "ftd"])
def test_a_step_makes_no_array_of_a_tables_size(name):
    """In the compiled loop over steps, only the writes of rows, in place, have a table's shape."""
    users, items, dim = 3001, 2003, 7
    pairs = np.arange(4000)
    train = Interactions.from_pairs(pairs % users, pairs * 7 % items, users, items)
    teacher = Representations(jnp.ones((users, 5)), jnp.ones((items, 5)))
    make_model = lambda train: BPR(train.num_users, train.num_items, dim)
    method = distillers.none() if name == "none" else distillers.ftd()
    trainer = make_trainer(make_model, method, by_rows(0.01), batch_size=64)
    guidance = trainer.guide(train, teacher)
    state = jax.eval_shape(trainer.init, jax.random.key(0), train, guidance)
    text = trainer.epoch.lower(state, jax.random.key(1), train, guidance).compile().as_text()
    bodies = {body for body in re.findall(r"while\(.*?body=%?([\w.\-]+)", text)}
    computations = dict(re.findall(r"^%?([\w.\-]+) \(.*?\{\n(.*?)^\}", text, re.DOTALL | re.MULTILINE))
    shapes = rf"(?:f32|s32)\[(?:{users}|{items})(?:,{dim})?\]"
    loops = [computations[body] for body in bodies if re.search(shapes, computations[body])]
    assert loops  # the loop over steps is found
    for loop in loops:
        made = re.findall(rf"= {shapes}\S* (\S+?)\(", loop)
        assert made and not {"copy", "broadcast", "add", "multiply", "pad", "concatenate"} & set(made), made


def test_settings_choose_the_optimizer(train):
    from htd_jax.training import Training, resolve_training

    def spec(train, row_local=True, **asked):
        return resolve_training(Training(**asked), train, epochs=3, defaults={}, row_local=row_local)

    large = Interactions(train.users, train.items, train.offsets, 90_000, 20_000, train.max_degree)
    assert spec(train).optimizer == "adam"
    assert spec(large).optimizer == "lazy-adam"
    assert spec(large, row_local=False).optimizer == "adam"
    assert spec(large, loss="softmax", sampled_items=0).optimizer == "adam"  # 1.8e9 scores
    assert spec(large, loss="softmax", sampled_items=64).optimizer == "lazy-adam"
    larger = Interactions(train.users, train.items, train.offsets, 90_000, 30_000, train.max_degree)
    assert spec(larger, loss="softmax", sampled_items=0).optimizer == "lazy-adam"
    assert spec(train, optimizer="lazy-adam").optimizer == "lazy-adam"
    with pytest.raises(ValueError, match="`optimizer` lazy-adam needs a model"):
        spec(train, row_local=False, optimizer="lazy-adam")
    assert isinstance(optimizer_of(spec(large), 10), type(by_rows()))
    assert not isinstance(optimizer_of(spec(train), 10), type(by_rows()))
    assert objective_of(spec(large)).reads is not None
