"""Training and ranking on several devices give what one device gives, and move little between them."""

import dataclasses
import functools
import math
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

import htd_jax
from htd_jax.data import Dataset, Interactions, make_split
from htd_jax.distillers import METHODS, Distiller, none, scale
from htd_jax.evaluation import make_evaluator
from htd_jax.losses import ftd_loss
from htd_jax.models import BPRSettings, LightGCNSettings, ModelOf, NeuMFSettings, Representations
from htd_jax.ops import shards
from htd_jax.ops.largest import top_k
from htd_jax.teacher import Lists, Teacher
from htd_jax.training import Partitioning, adam, lazy_adam, make_trainer, softmax
from htd_jax.training.partitioning import LEAST_JAX

DEVICES = 8
MESHES = [(1, 8), (2, 4), (4, 2), (8, 1)]
TRAINED = [name for name, method in METHODS.items() if method.trains and not (method.closed_form or method.for_updates)]
MODELS = {"bpr": BPRSettings(), "neumf": NeuMFSettings(), "lightgcn": LightGCNSettings()}

pytestmark = [
    pytest.mark.skipif(jax.device_count() < DEVICES, reason=f"needs {DEVICES} devices: JAX_NUM_CPU_DEVICES"),
    pytest.mark.skipif(jax.__version_info__ < LEAST_JAX, reason="needs a later JAX"),
]


@functools.cache
def partitioning(sizes: tuple[int, int]) -> Partitioning:
    names, auto = (shards.DATA, shards.ROWS), (jax.sharding.AxisType.Auto,) * 2
    return Partitioning(jax.make_mesh(sizes, names, axis_types=auto, devices=jax.devices()[: math.prod(sizes)]))


def data(users: int, items: int, seed: int = 0) -> tuple[Interactions, Representations]:
    rng = np.random.default_rng(seed)
    seen = rng.random((users, items)) < 0.15
    seen[:, 0], seen[0] = True, np.arange(items) % 3 == 0
    train = Interactions.from_pairs(*np.nonzero(seen), users, items)
    teacher = (jnp.asarray(rng.normal(size=(size, 6)), jnp.float32) for size in (users, items))
    return train, Representations(*teacher)


def an_epoch(part, train, teacher, distiller, model="bpr", optimizer=None, objective=None, batch_size=24, epochs=1):
    """The parameters and terms after an epoch, and what its steps are compiled to."""
    optimizer, make_model = optimizer or optax.sgd(1e-3), ModelOf(MODELS[model], 3)
    trainer = make_trainer(
        make_model, distiller, optimizer, batch_size=batch_size, objective=objective, partitioning=part
    )
    keys = jax.random.split(jax.random.key(0))
    train, keys = (train, keys) if part is None else part.copy((train, keys))
    guidance = trainer.guide(train, teacher)
    state = trainer.init(keys[0], train, guidance)
    for _ in range(epochs):
        state, terms = trainer.epoch(state, keys[1], train, guidance)
    params = state.params
    if part is not None:
        params = part.whole(params, part.extents(params, train, by_name=True, held=True))
    return params, terms


def distiller_of(name: str) -> Distiller:
    return none() if name == "none" else scale(METHODS[name]().make(3), METHODS[name].weight)


def check_alike(found, expected, rtol=2e-5):
    """Parameters after steps of gradient descent: they differ as little as the gradients."""
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * max(np.abs(other).max(), 1e-6))


def compare(mesh, name, **options):
    train, teacher = data(options.pop("users", 37), options.pop("items", 53))
    teacher = None if name == "none" else teacher
    plain, terms = an_epoch(None, train, teacher, distiller_of(name), **options)
    divided, found = an_epoch(partitioning(mesh), train, teacher, distiller_of(name), **options)
    check_alike(divided, plain)
    for term in terms:
        np.testing.assert_allclose(found[term], terms[term], rtol=1e-4, err_msg=term)


@pytest.mark.parametrize(
    ("mesh", "name"), [pytest.param((2, 4), "rrd", marks=pytest.mark.slow), ((8, 1), "ftd"), ((1, 8), "best")]
)
def test_an_epoch_is_that_of_one_device(mesh, name):
    compare(mesh, name)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", ["none", *TRAINED])
def test_every_method_is_that_of_one_device(mesh, name):
    # In their second epoch, DE's gates are so cold that a gradient is a rounding error times 10^5.
    compare(mesh, name, epochs=1 if name in ("de", "pckd") else 2)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["neumf", "lightgcn"])
@pytest.mark.parametrize("name", ["none", *TRAINED])
def test_every_model_is_that_of_one_device(model, name):
    compare((2, 4), name, model=model)


@pytest.mark.slow
@settings(max_examples=int(os.environ.get("HTD_EXAMPLES", 12)), deadline=None, derandomize=True)
@given(
    st.sampled_from(MESHES),
    st.sampled_from(["none", *TRAINED]),
    st.sampled_from([*MODELS]),
    st.integers(9, 45),
    st.integers(11, 70),
    st.integers(3, 40),
)
def test_sizes_that_devices_do_not_divide(mesh, name, model, users, items, batch_size):
    compare(mesh, name, model=model, users=users, items=items, batch_size=batch_size)


@pytest.mark.parametrize("name", ["none", pytest.param("htd", marks=pytest.mark.slow)])
def test_optimisers_of_rows(name):
    """Lazy Adam's look-ups and writes of rows stay on the devices that hold them."""
    compare((2, 4), name, optimizer=lazy_adam(1e-2, 1e-2, adam(1e-2, 1e-2)))


@pytest.mark.parametrize("objective", [softmax(0.1), pytest.param(softmax(0.1), id="listwise", marks=pytest.mark.slow)])
def test_softmax_over_all_items(objective, request):
    """Columns are divided, and a user's sum over items is one over devices."""
    compare((2, 4), "listwise" if "listwise" in request.node.name else "none", objective=objective, batch_size=8)


@pytest.mark.parametrize("mesh", [(2, 4)])
def test_adam_pads_no_table_with_anything_but_zeros(mesh):
    part = partitioning(mesh)
    train, _ = data(37, 53)
    trainer = make_trainer(ModelOf(BPRSettings(), 3), none(), adam(1e-2, 1e-2), batch_size=24, partitioning=part)
    train, keys = part.copy((train, jax.random.split(jax.random.key(0))))
    guidance = trainer.guide(train, None)
    state, _ = trainer.epoch(trainer.init(keys[0], train, guidance), keys[1], train, guidance)
    users, items = (np.asarray(state.params["model"]["params"][name]) for name in ("users", "items"))
    assert not users[37:].any() and not items[53:].any() and users[:37].any(1).all()
    assert len(users) % mesh[1] == 0 and users.shape[0] - 37 < mesh[1]


@pytest.mark.parametrize("mesh", [(1, 8), (4, 2)])
def test_look_up_and_its_gradient_are_exact(mesh, rng):
    part = partitioning(mesh)
    table = jnp.asarray(rng.normal(size=(16, 3)), jnp.float32)
    ids, pulls = jnp.asarray([[0, 15, 3], [3, 3, 8]]), jnp.asarray(rng.normal(size=(2, 3, 3)), jnp.float32)

    def value(table):
        found, scores = shards.look_up(table, ids), shards.at_owner(lambda rows: rows.sum(-1), table, ids)
        return jnp.sum(found * pulls), (found, scores)

    plain = jax.grad(value, has_aux=True)(table)
    run = jax.shard_map(
        lambda table: jax.grad(value, has_aux=True)(table),
        mesh=part.mesh,
        in_specs=P(shards.ROWS),
        out_specs=(P(shards.ROWS), P()),
    )
    jax.tree.map(np.testing.assert_array_equal, jax.jit(run)(table), plain)


def test_the_gradient_of_a_look_up_moves_nothing():
    part = partitioning((1, 8))
    value = lambda table: jnp.sum(shards.look_up(table, jnp.arange(5)) ** 2)
    run = jax.shard_map(jax.grad(value), mesh=part.mesh, in_specs=P(shards.ROWS), out_specs=P(shards.ROWS))
    text = jax.jit(run).lower(jnp.zeros((4096, 3))).compile().as_text()
    assert [size for size, _ in collectives(text)] == [4 * 5 * 3]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.sampled_from([(3, 40, 5), (30, 11, 4), (5, 9, 9), (1, 17, 1)]), st.integers(0, 99))
def test_top_k_on_all_devices_is_exact(shape, seed):
    rows, columns, k = shape
    rng = np.random.default_rng(seed)
    scores = jnp.asarray(rng.integers(0, 5, (rows, columns)), jnp.float32)  # with many ties
    scores = jnp.where(jnp.asarray(rng.random(scores.shape) < 0.2), -jnp.inf, scores)
    search = partitioning((2, 4)).by_compiler(lambda scores: top_k(scores, k))
    found = jax.jit(search)(partitioning((2, 4)).copy(scores))
    jax.tree.map(np.testing.assert_array_equal, found, top_k(scores, k))


@pytest.mark.parametrize("mesh", [(1, 8), (4, 2)])
@pytest.mark.parametrize("lowest", [-np.inf, np.nan])
def test_ranks_on_all_devices_are_exact(mesh, lowest):
    rng = np.random.default_rng(0)
    users, items = 21, 45
    parts = np.array_split(rng.permutation(users * items)[:300], 3)
    split = make_split(*((np.sort(x) // items, np.sort(x) % items) for x in parts), users, items)
    table = lambda size: jnp.asarray(rng.integers(-1, 2, (size, 3)), jnp.float32)  # with many ties
    tables = {"users": table(users), "items": table(items).at[7].set(lowest)}
    make_model, part = ModelOf(BPRSettings(), 3), partitioning(mesh)
    expected = make_evaluator(split)(make_model, {"params": tables})
    variables = part.put({"params": tables}, part.extents({"params": tables}, split.train, by_name=True))
    jax.tree.map(np.testing.assert_array_equal, make_evaluator(split, mesh=part)(make_model, variables), expected)


SIZES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "s8": 1, "u8": 1}


def collectives(text: str, within: str = "") -> list[tuple[int, str]]:
    """The bytes and the kind of what devices exchange, by a compiled program, in operations whose names hold a text."""
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
    found = []
    for line in text.splitlines():
        if (match := re.search(rf"= (.*?) ({kinds})(-start)?\(", line)) and within in line:
            arrays = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
            sizes = (SIZES[kind] * math.prod(map(int, filter(None, shape.split(",")))) for kind, shape in arrays)
            found.append((sum(sizes), match[2]))
    return found


def compiled(mesh, name, users, items, **options):
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, users, 6 * users), rng.integers(0, items, 6 * users)
    train = Interactions.from_pairs(*pairs, users, items)
    tables = (jnp.asarray(rng.normal(size=(size, 6)), jnp.float32) for size in (users, items))
    teacher = Representations(*tables) if name != "none" else None
    part = partitioning(mesh)
    make_model = ModelOf(MODELS[options.pop("model", "bpr")], 3)
    optimizer = options.pop("optimizer", adam(1e-3, 1e-3))
    trainer = make_trainer(make_model, distiller_of(name), optimizer, partitioning=part, **{"batch_size": 32} | options)
    train, keys = part.copy((train, jax.random.split(jax.random.key(0))))
    guidance = trainer.guide(train, teacher)
    state = trainer.init(keys[0], train, guidance)
    return trainer.epoch.lower(state, keys[1], train, guidance).compile(), state


def moved(program) -> int:
    """The bytes that devices exchange in a step: in the loop of the part that each runs by itself."""
    return sum(size for size, _ in collectives(program.as_text(), within="jit(epoch)/shard_map/while"))


# Two tables in every step, see docs/devices.md.
READS_TABLES = {"freqd"}


def check_moves_little(name, **options):
    small, large = (moved(compiled((1, 8), name, size, size + 100, **options)[0]) for size in (1000, 4000))
    assert small and large <= 1.02 * small, f"{small} bytes with 1,000 users and items, {large} with 4,000"


@pytest.mark.parametrize("name", ["ftd"])
def test_a_step_moves_what_its_batch_reads(name):
    check_moves_little(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", *(name for name in TRAINED if name not in READS_TABLES)])
def test_a_step_of_every_method_moves_what_its_batch_reads(name):
    check_moves_little(name)


@pytest.mark.slow
def test_objectives_and_optimisers_move_what_a_batch_reads():
    check_moves_little("none", objective=softmax(0.1))
    check_moves_little("none", optimizer=lazy_adam(1e-2, 1e-2, adam(1e-2, 1e-2)))
    check_moves_little("none", model="neumf")


def test_memory_of_tables_and_moments_is_divided():
    """Of every device, as the compiled program counts it: 3 tables of 3 numbers, and the training pairs."""
    sizes = {}
    for parts in (1, 2, 8):
        program, state = compiled((1, parts), "none", 4000, 4000)
        tables = jax.tree.leaves((state.params["model"], state.opt_state))
        held = sum(x.addressable_shards[0].data.nbytes for x in tables)
        sizes[parts] = program.memory_analysis().argument_size_in_bytes, held
    assert sizes[1][1] == pytest.approx(3 * 8000 * 3 * 4, rel=1e-3)
    for parts in (2, 8):
        assert sizes[parts][1] == pytest.approx(sizes[1][1] / parts, rel=1e-3)
        assert sizes[1][0] - sizes[parts][0] == pytest.approx(sizes[1][1] * (1 - 1 / parts), rel=1e-2)


def custom(divided: bool, read) -> Distiller:
    """A method from outside, whose loss reads its context by `read`."""

    def loss(step):
        users = step.batch.entities.users
        value = ftd_loss(users.student, read(step.context, users.ids), where=users.where)
        return value, {"custom": value}

    prepare = lambda teacher, train: jnp.asarray(2 * np.asarray(teacher.representations.users))
    traceable = lambda teacher, train: 2 * teacher.representations.users
    return Distiller(lambda *_: {}, loss, prepare=traceable if divided else prepare, divided=divided)


@pytest.mark.parametrize(("divided", "read"), [(False, lambda context, ids: context[ids]), (True, shards.look_up)])
def test_custom_methods(divided, read):
    """They are given whole arrays, in NumPy's reach, unless they say that they take shards."""
    train, teacher = data(37, 53)
    plain, terms = an_epoch(None, train, teacher, custom(divided, read))
    found, divided_terms = an_epoch(partitioning((2, 4)), train, teacher, custom(divided, read))
    check_alike(found, plain)
    np.testing.assert_allclose(divided_terms["custom"], terms["custom"], rtol=1e-5)


def test_a_declared_method_that_indexes_a_shard_is_refused():
    train, teacher = data(37, 53)
    read = lambda step: (jnp.sum(step.context[step.batch.entities.users.ids]), {})
    wrong = Distiller(lambda *_: {}, read, prepare=lambda teacher, _: teacher.representations.users, divided=True)
    with pytest.raises(htd_jax.UserError, match="look_up"):
        an_epoch(partitioning((1, 8)), train, teacher, wrong)


def test_a_teacher_keeps_its_own_lists():
    train, tables = data(37, 53)
    lists = Lists(jnp.argsort(jax.random.uniform(jax.random.key(1), (37, 53)), axis=1)[:, :9].astype(jnp.int32))
    teacher = dataclasses.replace(Teacher.of(tables), lists=lists)
    plain, _ = an_epoch(None, train, teacher, distiller_of("rrd"))
    check_alike(an_epoch(partitioning((2, 4)), train, teacher, distiller_of("rrd"))[0], plain)


def custom_scores(users_table, items_table, users):
    return users_table[users] @ items_table.T / 3


def test_scores_from_outside_take_whole_arrays():
    train, tables = data(37, 53)
    teacher = Teacher(scores=jax.tree_util.Partial(custom_scores, *tables))
    plain, terms = an_epoch(None, train, teacher, distiller_of("listwise"))
    found, divided = an_epoch(partitioning((2, 4)), train, teacher, distiller_of("listwise"))
    check_alike(found, plain)
    np.testing.assert_allclose(divided["listwise"], terms["listwise"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["bpr", "neumf", "lightgcn", "ials", "ease", "folded"])
@pytest.mark.parametrize("mesh", ["2x4", "8"])
def test_a_whole_training_is_that_of_one_device(small_split, model, mesh):
    data = Dataset.from_split(small_split)
    train = functools.partial(htd_jax.fit, data, model=model, dim=8, epochs=3, progress=False)
    plain, divided = train(), train(mesh=mesh)
    assert divided.metrics["recall@50"] == pytest.approx(plain.metrics["recall@50"], abs=2e-3)
    teach = functools.partial(htd_jax.distill, data=data, method="htd+rrd", dim=4, epochs=3, progress=False)
    if model not in ("ease", "folded"):
        one, other = teach(plain), teach(divided, mesh=mesh)
        assert other.metrics["recall@50"] == pytest.approx(one.metrics["recall@50"], abs=2e-3)


@pytest.mark.slow
def test_a_run_resumes_on_other_meshes(small_split, tmp_path):
    """Tables in 4, 2, 8 parts, and whole."""
    train = functools.partial(htd_jax.fit, Dataset.from_split(small_split), dim=8, progress=False)
    for epochs, mesh in enumerate(["2x4", "4x2", "8", None], 1):
        found = train(epochs=epochs, mesh=mesh, folder=tmp_path / "run")
        assert len(found.seconds) == epochs
    check_alike(found.variables, train(epochs=4).variables)
