"""The forms of the operations, each by itself on this machine: what a GPU runs and what a CPU runs agree with the
definitions in float64, however the work is cut up."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.sharding import PartitionSpec as P
from test_losses import check, draw, draw_experts, f32

from htd_jax import losses
from htd_jax.ops import blocks, experts, groups, manual, platforms, products, rows

FORMS = {
    "cpu": lambda cpu, default, *operands: cpu(*operands),
    "default": lambda cpu, default, *operands: default(*operands),
}


@pytest.fixture(params=["cpu", "default", "default, cut up"])
def form(request, monkeypatch):
    """A form, whatever this machine is; the default one also in as many pieces as there are."""
    name, *cut_up = request.param.split(", ")
    monkeypatch.setattr(platforms, "by_platform", FORMS[name])
    if cut_up:
        monkeypatch.setattr(groups, "ELEMENTS", 200)
        monkeypatch.setattr(experts, "LARGE_BLOCK", 4)
        monkeypatch.setattr(experts, "ROWS_TIMES_UNITS", 100)
    return request.param


# --- against the definitions


@pytest.mark.parametrize("pairs", ["positive", "all"])
@pytest.mark.parametrize("rows", [1, 33, 64, 150])
def test_pairs_within_groups(form, rows, pairs):
    student, teacher, of, where = draw(rows, rows, 4)
    check(
        lambda s: losses.entity_level_loss(
            s, f32(teacher), jnp.asarray(of), num_groups=6, where=jnp.asarray(where), pairs=pairs
        ),
        lambda s: oracle.entity_level(s, teacher, of, where, pairs),
        student,
    )


@pytest.mark.parametrize("pairs", ["positive", "all"])
@pytest.mark.parametrize("sides", [(60, 90), (150, 0), (0, 1, 149)])
def test_sides_that_share_no_group_change_nothing(form, sides, pairs):
    student, teacher, of, where = draw(11, 150, 4)
    of = of + 5 * np.repeat(np.arange(len(sides)), sides)
    level = functools.partial(
        losses.entity_level_loss, num_groups=5 * len(sides), where=jnp.asarray(where), pairs=pairs, sides=sides
    )
    check(
        lambda s: level(s, f32(teacher), jnp.asarray(of)),
        lambda s: oracle.entity_level(s, teacher, of, where, pairs),
        student,
    )


def test_sides_must_be_all_rows():
    with pytest.raises(AssertionError, match="sides"):
        losses.entity_level_loss(jnp.ones((3, 2)), jnp.ones((3, 2)), jnp.zeros(3, int), num_groups=1, sides=(1, 1))


@pytest.mark.parametrize("rows", [0, 1, 255, 256, 257, 1000])
def test_a_product_over_many_rows(form, rows):
    rng = np.random.default_rng(rows)
    x, y = rng.normal(size=(rows, 5)), rng.normal(size=(rows, 3))
    np.testing.assert_allclose(products.over_rows(*f32((x, y))), x.T @ y, rtol=1e-4, atol=1e-4)
    small, upstream = rng.normal(size=(5, 2)), rng.normal(size=(rows, 2))
    found, pull = jax.vjp(products.rows_dot, *f32((x, small)))
    np.testing.assert_allclose(found, x @ small, rtol=1e-4, atol=1e-4)
    d_x, d_small = pull(f32(upstream))
    np.testing.assert_allclose(d_x, upstream @ small.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(d_small, x.T @ upstream, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["one", "each", "skewed", "empty"])
def test_products_however_rows_fall_into_groups(layout):
    """The form of all pairs, with blocks that are full, part empty and unused."""
    count = 150
    student, teacher, _, where = draw(3, count, 4)
    of, num_groups = {
        "one": (np.zeros(count, int), 1),
        "each": (np.arange(count)[::-1].copy(), count),
        "skewed": (np.minimum(np.random.default_rng(0).geometric(0.5, count) - 1, 9), 10),
        "empty": (np.where(np.arange(count) % 2, 3, 17), 40),
    }[layout]
    s, t = (rows.unit_rows(x) for x in f32((student, teacher)))
    kept = jnp.where(jnp.asarray(where), of, num_groups).astype(jnp.int32)
    plain = groups.rows_against_all(s, t, kept, num_groups=num_groups, positive=False)
    products_of = jax.jit(groups.products, static_argnames=("num_groups", "size"))
    for size in (1, 8, 64):
        found = products_of(s, t, kept, num_groups=num_groups, size=size)
        np.testing.assert_allclose(found[0], plain[0], rtol=1e-4, atol=1e-2)
        np.testing.assert_allclose(found[1], plain[1], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(plain[0], oracle.entity_level(student, teacher, of, where, "all"), rtol=1e-5)


@pytest.mark.parametrize("level", ["prototype-entity", "prototype-prototype"])
@pytest.mark.parametrize("rows", [1, 7, 65])
def test_prototypes(form, rows, level):
    student, teacher, of, where = draw(rows, rows, 4)
    constant = oracle.prototypes_of(student[where], of[where]) if level == "prototype-entity" else None
    check(
        lambda s: losses.group_level_loss(
            s, f32(teacher), jnp.asarray(of), num_groups=8, where=jnp.asarray(where), group_level=level
        ),
        lambda s: oracle.group_level(s, teacher, of, where, level, constant),
        student,
    )


@pytest.mark.slow
@pytest.mark.parametrize("sides", [(3,), (90, 110), (0, 40), (31, 1, 8)])
def test_mixtures_of_experts(form, sides):
    """Loss and all gradients: several sides at once, each with experts of its own, rows that count more or less."""
    count, num = sum(sides), 7
    rng = np.random.default_rng(count)
    of_sides = [draw_experts(rng, experts=num) for _ in sides]
    student, teacher = rng.normal(size=(count, 3)), rng.normal(size=(count, 6))
    logits = np.asarray(rng.normal(size=(count, num)), np.float32).astype(float)
    where, weight = rng.random(count) < 0.8, rng.uniform(0.2, 2, count)
    stacked = jax.tree.map(lambda *x: np.stack(x), *of_sides)

    def dense(student, logits, stacked, temperature):
        starts, total = np.cumsum((0, *sides)), 0
        mixture = jax.nn.softmax((logits - logits.max(-1, keepdims=True)) / temperature, axis=-1)
        for i, (a, b) in enumerate(itertools.pairwise(starts)):
            own = jax.tree.map(lambda x: x[i], stacked)
            y = experts.mixed_outputs(student[a:b], mixture[a:b], own)
            total += jnp.sum(jnp.where(where[a:b, None], weight[a:b, None] * (teacher[a:b] - y) ** 2, 0))
        return total

    temperatures = np.float32([1.0, 0.3, 0.1, 0.03, 1e-2, 1e-5, 1e-10])
    with jax.enable_x64(True):
        exact = jax.jit(jax.value_and_grad(dense, (0, 1, 2)))
        inputs = jax.tree.map(jnp.asarray, (student, logits, stacked))
        expected = [jax.tree.map(np.asarray, exact(*inputs, np.float64(t))) for t in temperatures]
    student[~where], teacher[~where] = np.nan, np.inf
    routed = lambda s, z, e, temperature: losses.routed_assignment_loss(
        s, f32(teacher), z, e, where=jnp.asarray(where), weights=f32(weight), temperature=temperature, sides=sides
    )
    differentiate = jax.jit(jax.value_and_grad(routed, (0, 1, 2)))
    for temperature, wanted in zip(temperatures, expected):
        found = differentiate(*f32((student, logits, stacked)), temperature)
        np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
        for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(wanted[1])):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5 * np.abs(b).max(initial=1))


def test_the_parts_of_the_mixtures_form_for_a_gpu_agree(rng):
    """The routed products at their fullest against the dense ones."""
    count, num, sides = 300, 9, (100, 200)
    student, teacher, mixture = (
        f32(rng.normal(size=(count, 3))),
        f32(rng.normal(size=(count, 6))),
        rng.random((count, num)),
    )
    used = np.zeros((count, num), bool)
    used[np.arange(count), 0] = used[np.arange(count), 3] = True
    used[:10, :4], used[290:] = True, False
    stacked = jax.tree.map(lambda *x: jnp.concatenate(x), *(f32(draw_experts(rng, experts=num)) for _ in sides))
    rows_of = f32((student, teacher, mixture * used))
    of = experts.Regression(*rows_of, stacked, jnp.asarray(used), f32(rng.random(count)))
    forms = experts._routed_products, experts._dense_products
    routed, dense = (jax.jit(f, static_argnums=1)(of, sides) for f in forms)
    in_use = lambda total: (*total[:2], total[2] * used, total[3])
    chex.assert_trees_all_close(in_use(routed), in_use(dense), rtol=1e-4, atol=1e-3)


# --- blocks


@pytest.mark.parametrize("sides", [(7,), (40, 60), (0, 5), (33, 0, 1)])
def test_blocks_hold_every_pair_once(rng, sides):
    count, owners, size = sum(sides), 3, 4
    active = rng.random((count, owners)) < 0.4
    most = owners * len(sides) + active.sum() // size
    into_blocks = jax.jit(blocks.into_blocks, static_argnums=(1, 2, 3))
    row_of, owner, slots, used = map(np.asarray, into_blocks(jnp.asarray(active), sides, size, int(most)))
    side = np.repeat(np.arange(len(sides)), sides)
    pairs = [(row, own) for block, own in zip(row_of, owner) for row in block if row < count]
    assert sorted(pairs) == [(row, side[row] * owners + k) for row, k in np.argwhere(active)]
    assert (row_of[:used] < count).any(1).all() and (row_of[used:] == count).all()
    np.testing.assert_array_equal(row_of.ravel()[slots[active]], np.nonzero(active)[0])
    assert (slots[~active] == most * size).all()


@pytest.mark.parametrize("count", [1, 2, 3, 64, 1000])
def test_a_running_count_is_exact(rng, count):
    active = rng.random((count, 3)) < 0.5
    np.testing.assert_array_equal(blocks.running_count(jnp.asarray(active)), np.cumsum(active, axis=0))


# --- how JAX may be used with them

CALLS = {
    "ftd": lambda s, t, g, z, e: losses.ftd_loss(s, t),
    "positive": lambda s, t, g, z, e: losses.entity_level_loss(s, t, g, num_groups=5),
    "all": lambda s, t, g, z, e: losses.entity_level_loss(s, t, g, num_groups=5, pairs="all"),
    "P-e": lambda s, t, g, z, e: losses.group_level_loss(s, t, g, num_groups=5),
    "P-P": lambda s, t, g, z, e: losses.group_level_loss(s, t, g, num_groups=5, group_level="prototype-prototype"),
    "cold": lambda s, t, g, z, e: losses.routed_assignment_loss(s, t, z, e, temperature=1e-3),
    "dense": lambda s, t, g, z, e: losses.group_assignment_loss(s, t, jax.nn.softmax(z), e),
    "hint": lambda s, t, g, z, e: losses.hint_loss(s @ jnp.ones((4, 7), s.dtype), t),
    "bpr": lambda s, t, g, z, e: losses.bpr_loss(s[:, 0], s[:, 1]),
    "bce": lambda s, t, g, z, e: losses.bce_loss(s[:, 0], s[:, 1]),
    "cosine": lambda s, t, g, z, e: losses.pairwise_cosine(s, s[:9]).sum(),
}
TRAINED = (0, 4)
OF_FORMS = ("ftd", "positive", "all", "P-e", "P-P", "cold")


@pytest.fixture(params=[(name, form) for name in CALLS for form in FORMS if name in OF_FORMS or form == "cpu"], ids=str)
def call(request, monkeypatch):
    """A loss as a function of `inputs()`, in every form that it has."""
    name, form = request.param
    monkeypatch.setattr(platforms, "by_platform", FORMS[form])
    return CALLS[name]


def inputs(count=64):
    student, teacher, of, _ = draw(1, count, 4)
    rng = np.random.default_rng(0)
    return student, teacher, of, rng.normal(size=(count, 5)), draw_experts(rng, 5, 4, 5, 7)


@pytest.mark.slow
def test_one_program_for_many_seeds(call):
    """Value and gradient of a stack are those one by one."""
    many = [f32(x) for x in inputs(3 * 64)[:4]]
    stacked = [x.reshape(3, 64, *x.shape[1:]) for x in many]
    given = f32(inputs()[4])
    own = jax.tree.map(lambda x: jnp.stack([x, 2 * x, -x]), given)
    of = jax.jit(jax.value_and_grad(call, TRAINED))
    found = jax.jit(jax.vmap(of))(*stacked, own)
    for i in range(3):
        one = of(*(x[i] for x in stacked), jax.tree.map(lambda x: x[i], own))
        chex.assert_trees_all_close(jax.tree.map(lambda x: x[i], found), one, rtol=2e-3, atol=2e-3)


def test_no_rank_is_promoted(call):
    if call is CALLS["hint"]:
        call = lambda s, t, g, z, e: losses.hint_loss(s, t[:, :4])
    with jax.numpy_rank_promotion("raise"):
        jax.jit(jax.value_and_grad(call, TRAINED))(*f32(inputs()))


@pytest.mark.slow
def test_short_floats_are_summed_in_float32(call):
    """To what float32 gives at the same, rounded, numbers; the gradient comes back in the argument's type."""
    for dtype in (jnp.float16, jnp.bfloat16):
        short = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == np.float32 else x, f32(inputs()))
        long = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == dtype else x, short)
        value, gradient = jax.jit(jax.value_and_grad(call, TRAINED))(*short)
        assert value.dtype == jnp.float32
        assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype(dtype)}
        rtol = 1e-2 if call is CALLS["hint"] or call is CALLS["dense"] else 1e-5  # where the test itself rounds
        np.testing.assert_allclose(value, jax.jit(call)(*long), rtol=rtol)


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", CALLS)
def test_numpys_float64_is_float32(name):
    """Tables as `np.load` gives them: what float32 gives, with no warning, and a gradient too."""
    call = CALLS[name] if name != "hint" else lambda s, t, g, z, e: losses.hint_loss(s, t[:, :4])
    wide = inputs()
    found = call(*wide), jax.value_and_grad(call, TRAINED)(*wide)
    value, gradient = jax.jit(jax.value_and_grad(call, TRAINED))(*f32(wide))
    chex.assert_trees_all_close(found, (value, (value, gradient)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1e-30, 1e38, 3e38])
def test_a_group_of_huge_or_tiny_rows_has_a_direction(form, size):
    student, teacher, of, _ = f32(inputs())[:4]
    student, teacher = (x / jnp.abs(x).max() for x in (student, teacher))
    for level in ("prototype-entity", "prototype-prototype"):
        loss = jax.jit(functools.partial(losses.group_level_loss, num_groups=5, group_level=level))
        expected = loss(student, teacher, of)
        np.testing.assert_allclose(loss(size * student, teacher, of), expected, rtol=1e-4)
        np.testing.assert_allclose(loss(student, size * teacher, of), expected, rtol=1e-4)
        assert np.isfinite(jax.grad(loss)(size * student, teacher, of)).all()


@pytest.mark.slow
def test_losses_within_shard_map(call):
    """Types of what loops carry are right where arrays differ from device to device; one device is enough to tell."""
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    *tables, given = f32(inputs())
    one = lambda *args: jax.tree.map(lambda x: x[None], jax.value_and_grad(call, TRAINED)(*args))
    specs = *(P("x") for _ in tables), P()
    sharded = jax.shard_map(one, mesh=mesh, in_specs=specs, out_specs=P("x"))
    found = jax.tree.map(lambda x: x[0], jax.jit(sharded)(*tables, given))
    plain = jax.jit(jax.value_and_grad(call, TRAINED))(*tables, given)
    chex.assert_trees_all_close(found, plain, rtol=1e-3, atol=1e-3)


def test_a_callers_own_axis_is_the_callers_to_sum():
    """Each device has the loss of its own rows, as any function of arrays has."""
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    student, teacher = f32(inputs())[:2]
    rows = len(student) // 2 * 2
    parts = [(student[:rows][half], teacher[:rows][half]) for half in (slice(rows // 2), slice(rows // 2, None))]
    one = lambda *tables: jax.tree.map(lambda x: x[None], jax.value_and_grad(losses.ftd_loss)(*tables))
    sharded = jax.jit(jax.shard_map(one, mesh=mesh, in_specs=P("x"), out_specs=P("x")))
    found = sharded(student[:rows], teacher[:rows])
    for number, part in enumerate(parts):
        own = jax.tree.map(lambda x, number=number: x[number], found)
        chex.assert_trees_all_close(own, jax.value_and_grad(losses.ftd_loss)(*part), rtol=1e-4, atol=1e-4)


def test_outside_shard_map_nothing_varies():
    x = jnp.ones(3)
    assert manual.axes_of((x, {"a": x})) == frozenset()
    assert manual.vary(x, frozenset()) is x


def test_a_brief_compilation_changes_no_bit(monkeypatch):
    """An initialisation is compiled with less optimisation, unless XLA_FLAGS has a level."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    assert platforms.brief_options() == {}
    monkeypatch.setenv("XLA_FLAGS", "")
    lowered = jax.jit(lambda key: 0.01 * jax.random.normal(key, (1000, 20))).lower(jax.random.key(0))
    full, brief = {"xla_backend_optimization_level": 3}, platforms.brief_options()
    assert brief
    tables = [lowered.compile(compiler_options=options)(jax.random.key(0)) for options in (full, brief)]
    np.testing.assert_array_equal(*map(np.asarray, tables))
