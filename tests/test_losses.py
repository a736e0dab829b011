"""Each loss against its definition; each property that its docstring claims."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from htd_jax import losses
from htd_jax.ops import experts as routing
from htd_jax.ops.lanes import accumulate

# Sizes on both sides of a tile, and no multiple of one.
SIZES = (1, 2, 31, 32, 33, 63, 64, 65, 150)


def draw(seed, rows, dim, groups=5):
    """Student `[rows, dim]`, teacher `[rows, dim + 3]`, groups, mask: with zero and repeated rows among them."""
    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(size=(rows, dim)), rng.normal(size=(rows, dim + 3))
    teacher += rng.normal(size=dim + 3)  # cosines more often positive than not, as a recommender's are
    if rows > 4:
        student[1], student[2], teacher[2], teacher[3] = 0, student[0], teacher[0], 0
    where = rng.random(rows) < 0.8
    where[0] = True
    return student, teacher, rng.integers(groups, size=rows), where


def f32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else None), tree)


def check(function, definition, student, rtol=2e-5, atol=1e-4):
    """`function` (float32 JAX) against `definition` (float64 NumPy) at `student`: value, and slope on three lines."""
    value, gradient = jax.jit(jax.value_and_grad(function))(f32(student))
    expected = definition(student)
    np.testing.assert_allclose(value, expected, rtol=rtol, atol=atol * max(1, len(student)))
    assert np.isfinite(gradient).all()
    rng = np.random.default_rng(7)
    moving = np.any(student != 0, axis=-1, keepdims=True)  # at zero a cosine has no slope
    for _ in range(3):
        direction = rng.normal(size=student.shape) * moving
        np.testing.assert_allclose(
            np.sum(np.asarray(gradient, float) * direction),
            oracle.slope(definition, student, direction),
            rtol=1e-3,
            atol=1e-3 * np.linalg.norm(gradient) + 1e-4,
        )


# --- against the definitions


@pytest.mark.parametrize("rows", [0, 1, 7, 300])
def test_bpr_is_its_definition(rng, rows):
    positive, negative, where = rng.normal(size=rows) * 5, rng.normal(size=rows) * 5, rng.random(rows) < 0.7
    check(
        lambda x: losses.bpr_loss(x, f32(negative), where=jnp.asarray(where)),
        lambda x: oracle.bpr(x, negative, where),
        positive,
    ) if rows else None
    np.testing.assert_allclose(
        losses.bpr_loss(f32(positive), f32(negative), where=jnp.asarray(where)),
        oracle.bpr(positive, negative, where),
        rtol=1e-5,
    )


def test_bpr_neither_overflows_nor_vanishes():
    scores = jnp.array([1e4, -1e4, 0.0])
    value, gradient = jax.value_and_grad(losses.bpr_loss)(scores, jnp.zeros(3))
    np.testing.assert_allclose(value, 1e4 + np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient, [0, -1, -0.5], atol=1e-6)


@pytest.mark.parametrize("shapes", [(5, 7, 3), (1, 1, 1), (0, 4, 2)])
def test_pairwise_cosine_is_its_definition(rng, shapes):
    n, m, d = shapes
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    found = losses.pairwise_cosine(f32(x), f32(y))
    np.testing.assert_allclose(found, oracle.cosines(x, y), atol=1e-6)


@pytest.mark.parametrize("rows", SIZES)
def test_ftd_is_its_definition(rows):
    student, teacher, _, where = draw(rows, rows, 4)
    check(
        lambda s: losses.ftd_loss(s, f32(teacher), where=jnp.asarray(where)),
        lambda s: oracle.ftd(s, teacher, where),
        student,
    )


@pytest.mark.parametrize("pairs", ["positive", "all"])
@pytest.mark.parametrize("rows", SIZES)
def test_entity_level_is_its_definition(rows, pairs):
    student, teacher, groups, where = draw(rows, rows, 4)
    check(
        lambda s: losses.entity_level_loss(
            s, f32(teacher), jnp.asarray(groups), num_groups=6, where=jnp.asarray(where), pairs=pairs
        ),
        lambda s: oracle.entity_level(s, teacher, groups, where, pairs),
        student,
    )


@pytest.mark.parametrize("pairs", ["positive", "all"])
@pytest.mark.parametrize("layout", ["one", "each", "skewed", "empty"])
def test_entity_level_however_rows_fall_into_groups(layout, pairs):
    rows = 150
    student, teacher, _, where = draw(3, rows, 4)
    groups, num_groups = {
        "one": (np.zeros(rows, int), 1),
        "each": (np.arange(rows)[::-1].copy(), rows),
        "skewed": (np.minimum(np.random.default_rng(0).geometric(0.5, rows) - 1, 9), 10),
        "empty": (np.where(np.arange(rows) % 2, 3, 17), 40),
    }[layout]
    check(
        lambda s: losses.entity_level_loss(
            s, f32(teacher), jnp.asarray(groups), num_groups=num_groups, where=jnp.asarray(where), pairs=pairs
        ),
        lambda s: oracle.entity_level(s, teacher, groups, where, pairs),
        student,
    )


@pytest.mark.parametrize("level", ["prototype-entity", "prototype-prototype"])
@pytest.mark.parametrize("rows", [1, 7, 65])
def test_group_level_is_its_definition(rows, level):
    student, teacher, groups, where = draw(rows, rows, 4)
    constant = oracle.prototypes_of(student[where], groups[where]) if level == "prototype-entity" else None
    check(
        lambda s: losses.group_level_loss(
            s, f32(teacher), jnp.asarray(groups), num_groups=8, where=jnp.asarray(where), group_level=level
        ),
        lambda s: oracle.group_level(s, teacher, groups, where, level, constant),
        student,
    )


@pytest.mark.slow
@pytest.mark.parametrize("level", ["prototype-entity", "prototype-prototype"])
def test_both_group_levels_train_something(level):
    student, teacher, groups, _ = draw(0, 40, 4)
    gradient = jax.grad(losses.group_level_loss)(
        f32(student), f32(teacher), jnp.asarray(groups), num_groups=5, group_level=level
    )
    assert np.abs(gradient).max() > 1e-3


@pytest.mark.slow
def test_htd_is_entity_plus_group_level():
    student, teacher, groups, where = draw(5, 70, 4)
    for level in ("prototype-entity", "prototype-prototype"):
        for pairs in ("positive", "all"):
            loss = functools.partial(losses.htd_loss, num_groups=5, group_level=level, pairs=pairs)
            found = jax.jit(loss)(*f32((student, teacher, groups)), where=jnp.asarray(where))
            expected = oracle.entity_level(student, teacher, groups, where, pairs)
            expected += oracle.group_level(student, teacher, groups, where, level)
            np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_positive_pairs_are_those_of_the_teacher():
    teacher = jnp.array([[1.0, 0.0], [-1.0, 0.1]])  # a negative pair
    student = jnp.array([[1.0], [1.0]])
    level = functools.partial(losses.entity_level_loss, student, teacher, jnp.zeros(2, int), num_groups=1)
    assert level(pairs="positive") == 0
    assert level(pairs="all") > 7


# --- the mixture of experts


def draw_experts(rng, experts=4, student_dim=3, width=5, teacher_dim=6):
    layer = lambda *shape: {
        "kernel": rng.normal(size=(experts, *shape)),
        "bias": rng.normal(size=(experts, shape[1])),
    }
    return {"hidden": layer(student_dim, width), "output": layer(width, teacher_dim)}


def test_group_assignment_is_its_definition(rng):
    rows = 20
    experts = draw_experts(rng)
    student, teacher = rng.normal(size=(rows, 3)), rng.normal(size=(rows, 6))
    mixture, where = oracle.softmax(rng.normal(size=(rows, 4))), rng.random(rows) < 0.8
    loss = lambda s, z: losses.group_assignment_loss(s, f32(teacher), z, f32(experts), where=jnp.asarray(where))
    check(lambda s: loss(s, f32(mixture)), lambda s: oracle.assignment(s, teacher, mixture, experts, where), student)
    check(lambda z: loss(f32(student), z), lambda z: oracle.assignment(student, teacher, z, experts, where), mixture)
    for layer in ("hidden", "output"):
        for name in ("kernel", "bias"):
            put = lambda x: {**experts, layer: {**experts[layer], name: x}}
            check(
                lambda x: losses.group_assignment_loss(
                    f32(student), f32(teacher), f32(mixture), f32(put(x)), where=jnp.asarray(where)
                ),
                lambda x: oracle.assignment(student, teacher, mixture, put(x), where),
                experts[layer][name],
            )


def dense_assignment(student, logits, experts, teacher, temperature, where=None):
    """The plain form of `routed_assignment_loss`, in the precision of its arguments."""
    largest = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    mixture = jax.nn.softmax((logits - largest) / temperature, axis=-1)
    return losses.group_assignment_loss(student, teacher, mixture, experts, where=where)


def routed_assignment(student, logits, experts, teacher, temperature, where=None):
    return losses.routed_assignment_loss(student, teacher, logits, experts, where=where, temperature=temperature)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [3, 200])
def test_routed_assignment_is_the_dense_one_at_every_temperature(rows):
    """Loss and gradients, to rounding, of the softmax that float32 can represent."""
    rng = np.random.default_rng(rows)
    experts, logits = draw_experts(rng, experts=7), np.asarray(rng.normal(size=(rows, 7)), np.float32)
    logits[0] = logits[0, 0]  # a tie stays a tie at every temperature
    student, teacher, where = rng.normal(size=(rows, 3)), rng.normal(size=(rows, 6)), rng.random(rows) < 0.8
    where[0] = True
    temperatures = np.float32([1.0, 0.3, 0.1, 0.03, 1e-2, 1e-3, 1e-5, 1e-7, 1e-10])

    with jax.enable_x64(True):
        exact = jax.jit(jax.value_and_grad(dense_assignment, (0, 1, 2)))
        inputs = jax.tree.map(jnp.asarray, (student, logits.astype(float), experts, teacher))
        expected = [exact(*inputs, np.float64(t), jnp.asarray(where)) for t in temperatures]
    differentiate = jax.jit(jax.value_and_grad(routed_assignment, (0, 1, 2)))
    for temperature, wanted in zip(temperatures, expected):
        mixture = oracle.softmax((logits - logits.max(-1, keepdims=True)).astype(float) / float(temperature))
        np.testing.assert_allclose(wanted[0], oracle.assignment(student, teacher, mixture, experts, where), rtol=1e-7)
        found = differentiate(*f32((student, logits, experts, teacher)), temperature, jnp.asarray(where))
        np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
        for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(wanted[1])):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5 * np.abs(b).max())


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.16, 0.1, 0.03, 1e-2, 1e-3])
def test_weights_left_out_are_lost_in_rounding(temperature, rng):
    rows, num = 300, 30
    experts, logits = draw_experts(rng, experts=num), np.asarray(rng.gumbel(size=(rows, num)) * 2, np.float32)
    student, teacher = rng.normal(size=(rows, 3)), rng.normal(size=(rows, 6))
    weights = oracle.softmax(logits.astype(float) / temperature)
    lost = 2.0**-24 / num
    assert (weights >= lost).mean() < 1 / routing.ROUTING_COST  # it is routed
    assert ((weights < lost) & (weights > 0)).sum() > 100
    assert_near_as_the_dense_one(experts, logits, student, teacher, temperature)


@pytest.mark.slow
def test_many_weights_that_are_each_lost_next_to_1_are_not_left_out(rng):
    """600 of about 1e-8: together they are a hundred roundings."""
    num = 600
    experts, logits = draw_experts(rng, experts=num), np.asarray(rng.normal(size=(50, num)) * 0.1 - 18, np.float32)
    logits[:, 7] = 0
    assert (np.exp(logits).sum(1) - 1 > 100 * 2.0**-24).all() and (np.sort(np.exp(logits))[:, -2] < 2.0**-24).all()
    student, teacher = rng.normal(size=(50, 3)), rng.normal(size=(50, 6))
    assert_near_as_the_dense_one(experts, logits, student, teacher, 1.0)


def assert_near_as_the_dense_one(experts, logits, student, teacher, temperature):
    """Checks that the routed loss and gradients are as near to float64's as the dense mixture's in float32."""
    inputs = *f32((student, logits, experts, teacher)), np.float32(temperature)
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), inputs)
        expected = jax.tree.map(np.asarray, jax.value_and_grad(dense_assignment, (0, 1, 2))(*exact))

    def errors(loss):
        error = lambda a, b: np.linalg.norm(np.asarray(a, float) - b) / np.linalg.norm(b)
        found = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*inputs)
        return jax.tree.leaves(jax.tree.map(error, found, expected))

    for routed, dense in zip(errors(routed_assignment), errors(dense_assignment)):
        assert routed < 2 * dense + 3e-7  # a sum alone may be off by that


@pytest.mark.slow
def test_even_weights_under_the_rounding_are_not_left_out(rng):
    """In bfloat16 600 even weights are each lost next to a 1, yet the row must not count as masked."""
    num = 600
    experts = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), draw_experts(rng, experts=num))
    student, teacher = (jnp.asarray(rng.normal(size=(5, d)), jnp.bfloat16) for d in (3, 6))
    even = jnp.zeros((5, num), jnp.bfloat16)
    assert 1 / num < jnp.finfo(jnp.bfloat16).eps / 2
    expected, found = (
        jax.value_and_grad(loss, (0, 2))(student, even, experts, teacher, 1.0)
        for loss in (dense_assignment, routed_assignment)
    )
    chex.assert_trees_all_close(
        *jax.tree.map(lambda x: np.asarray(x, np.float32), (found, expected)), rtol=0.05, atol=0.05
    )


@pytest.mark.parametrize("crowded", [False, True])
def test_routed_assignment_when_experts_are_idle_or_overrun(crowded):
    """All rows to one expert, and more rows than a chunk; and both branches beyond one block of rows."""
    rng = np.random.default_rng(0)
    rows = 1300
    experts = draw_experts(rng, experts=3)
    logits = rng.normal(size=(rows, 3)) * 0.01 + (0 if crowded else np.array([0, 100, 0]))
    student, teacher = rng.normal(size=(rows, 3)), rng.normal(size=(rows, 6))
    check(
        lambda s: losses.routed_assignment_loss(s, f32(teacher), f32(logits), f32(experts), temperature=1.0),
        lambda s: oracle.assignment(s, teacher, oracle.softmax(logits), experts, np.ones(rows, bool)),
        student,
    )


@pytest.mark.parametrize("over", [0, 1])
def test_routed_assignment_about_its_fullest(over):
    """The most pairs that are routed, each expert's last block nearly empty, and one pair more: densely computed."""
    rng = np.random.default_rng(1)
    rows, num = 3 * routing.BLOCK, 40
    pairs = int(rows * num / routing.ROUTING_COST) + over
    used = (np.arange(rows)[:, None] - 7 * np.arange(num)) % rows < routing.BLOCK + 1
    spare = rng.permutation(np.flatnonzero(~used))[: pairs - used.sum()]
    used.ravel()[spare] = True
    assert used.sum() == pairs and used.any(1).all()
    experts = draw_experts(rng, experts=num)
    logits = np.where(used, rng.normal(size=used.shape), -1e3)
    student, teacher = rng.normal(size=(rows, 3)), rng.normal(size=(rows, 6))
    check(
        lambda s: losses.routed_assignment_loss(s, f32(teacher), f32(logits), f32(experts), temperature=1.0),
        lambda s: oracle.assignment(s, teacher, oracle.softmax(logits), experts, np.ones(rows, bool)),
        student,
    )


@pytest.mark.parametrize("pieces", range(6))
def test_accumulate_adds_every_piece_once(pieces):
    """Whether the pieces fill the last turn of the loop or not, and if there are none."""

    def work(index):  # what is not added may be anything
        return index, jnp.where(index < pieces, index + 1.0, 0), jnp.full(3, jnp.nan)

    add = lambda total, done: (total[0].at[done[0]].add(done[1], mode="drop"), total[1] + done[1])
    start = jnp.zeros(8), jnp.zeros(())
    expected = np.where(np.arange(8) < pieces, np.arange(8) + 1.0, 0)
    for run in (accumulate, jax.jit(accumulate, static_argnums=(0, 1))):
        chex.assert_trees_all_equal(run(work, add, start, jnp.int32(pieces)), (expected, np.float32(expected.sum())))


def test_gumbel_softmax_samples_its_categories():
    probabilities = np.array([0.1, 0.2, 0.7])
    logits = jnp.tile(jnp.log(probabilities), (20000, 1))
    sample = losses.gumbel_softmax(jax.random.key(0), logits, 0.5)
    np.testing.assert_allclose(sample.sum(-1), 1, rtol=1e-5)
    shares = np.bincount(np.argmax(sample, -1), minlength=3) / len(logits)
    np.testing.assert_allclose(shares, probabilities, atol=0.015)


def test_gumbel_softmax_is_the_tempered_softmax_of_the_noisy_logits(rng):
    logits = f32(rng.normal(size=(5, 4)))
    key = jax.random.key(3)
    noisy = np.asarray(losses.perturb(key, logits), float)
    for temperature in (5.0, 1.0, 0.1):
        np.testing.assert_allclose(
            losses.gumbel_softmax(key, logits, temperature), oracle.softmax(noisy / temperature), rtol=1e-4, atol=1e-7
        )


def test_gumbel_softmax_has_a_slope_in_its_temperature(rng):
    logits, key = f32(rng.normal(size=(5, 4))), jax.random.key(0)
    first = lambda temperature: losses.gumbel_softmax(key, logits, temperature)[:, 0].sum()
    np.testing.assert_allclose(jax.grad(first)(0.7), (first(0.701) - first(0.699)) / 0.002, rtol=1e-2)


@pytest.mark.slow
def test_groups_may_be_narrow_integers_and_numpy_arrays():
    student, teacher, groups, _ = draw(0, 40, 4)
    call = lambda g: jax.jit(lambda s: losses.htd_loss(s, f32(teacher), g, num_groups=200))(f32(student))
    np.testing.assert_allclose(call(groups.astype(np.int8)), call(jnp.asarray(groups)), rtol=1e-6)


@pytest.mark.slow
def test_experts_may_be_numpy_arrays(rng):
    experts, rows = draw_experts(rng), np.float32(rng.normal(size=(9, 3)))
    teacher, logits = np.float32(rng.normal(size=(9, 6))), np.float32(rng.normal(size=(9, 4)))
    arguments = rows, teacher, logits, jax.tree.map(np.float32, experts)
    found, expected = (losses.routed_assignment_loss(*x, temperature=0.3) for x in (arguments, f32(arguments)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("pairs", ["positive", "all"])
def test_a_loss_of_no_rows_is_0(rng, pairs):
    student, teacher, experts = jnp.zeros((0, 3)), jnp.zeros((0, 6)), f32(draw_experts(rng))
    groups = jnp.zeros(0, int)
    for loss in (
        lambda s: losses.ftd_loss(s, teacher),
        lambda s: losses.htd_loss(s, teacher, groups, num_groups=5, pairs=pairs),
        lambda s: losses.routed_assignment_loss(s, teacher, jnp.zeros((0, 4)), experts, temperature=0.1),
        lambda s: losses.group_assignment_loss(s, teacher, jnp.zeros((0, 4)), experts),
    ):
        value, gradient = jax.value_and_grad(loss)(student)
        assert value == 0 and gradient.shape == (0, 3)


def test_gumbel_softmax_is_one_hot_and_finite_at_the_lowest_temperature(rng):
    logits = f32(rng.normal(size=(50, 4)))
    sample, pull = jax.vjp(jax.jit(lambda x: losses.gumbel_softmax(jax.random.key(0), x, 1e-10)), logits)
    np.testing.assert_array_equal(np.sort(np.asarray(sample), -1), np.tile([0, 0, 0, 1], (50, 1)))
    assert np.isfinite(pull(sample)[0]).all()


# --- properties

LOSSES = {
    "ftd": lambda s, t, g, w: losses.ftd_loss(s, t, where=w),
    "htd positive": lambda s, t, g, w: losses.htd_loss(s, t, g, num_groups=5, where=w),
    "htd all": lambda s, t, g, w: losses.htd_loss(s, t, g, num_groups=5, where=w, pairs="all"),
    "htd P-P": lambda s, t, g, w: losses.htd_loss(s, t, g, num_groups=5, where=w, group_level="prototype-prototype"),
}
VALUE_AND_GRADIENT = {name: jax.jit(jax.value_and_grad(loss)) for name, loss in LOSSES.items()}
MANY = pytest.mark.parametrize("loss", VALUE_AND_GRADIENT.values(), ids=VALUE_AND_GRADIENT.keys())


@MANY
def test_a_masked_row_equals_a_removed_one_whatever_it_holds(loss):
    student, teacher, groups, where = draw(0, 100, 4)
    full = loss(*f32((student, teacher, groups)), jnp.asarray(where))
    short = loss(*f32((student[where], teacher[where], groups[where])), None)
    np.testing.assert_allclose(full[0], short[0], rtol=1e-5)
    np.testing.assert_allclose(full[1][where], short[1], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(full[1][~where], 0)
    student[~where], teacher[~where], groups[~where] = np.nan, np.inf, 10**6
    foul = loss(*f32((student, teacher, groups)), jnp.asarray(where))
    np.testing.assert_array_equal(full[0], foul[0])
    np.testing.assert_array_equal(full[1], foul[1])


@MANY
def test_the_order_of_rows_does_not_matter(loss):
    student, teacher, groups, where = draw(1, 100, 4)
    order = np.random.default_rng(0).permutation(100)
    one = loss(*f32((student, teacher, groups)), jnp.asarray(where))
    other = loss(*f32((student[order], teacher[order], groups[order])), jnp.asarray(where[order]))
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
    np.testing.assert_allclose(one[1][order], other[1], rtol=1e-3, atol=1e-4)


@MANY
def test_the_length_of_rows_does_not_matter_to_a_topology(loss):
    """Nor do squares overflow or vanish. (A prototype is a mean of rows, so all are scaled alike.)"""
    student, teacher, groups, where = draw(2, 100, 4)
    groups, where = jnp.asarray(groups), jnp.asarray(where)
    plain, _ = loss(*f32((student, teacher)), groups, where)
    for size in (1e-30, 1e-10, 1e10, 1e30):
        value, gradient = loss(*f32((size * student, teacher / size)), groups, where)
        np.testing.assert_allclose(value, plain, rtol=1e-4)
        assert np.isfinite(gradient).all()


@MANY
@pytest.mark.parametrize("rows", ["zero", "equal", "one zero"])
def test_gradients_are_finite_on_degenerate_rows(loss, rows):
    student, teacher, groups, _ = draw(3, 70, 4)
    student[{"zero": slice(None), "equal": slice(0), "one zero": slice(1)}[rows]] = 0
    if rows == "equal":
        student[:] = student[5]
        teacher[:] = teacher[5]
    value, gradient = loss(*f32((student, teacher, groups)), None)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["ftd", "htd positive", "htd all"])
def test_a_zero_row_has_no_gradient(name):
    """It has no direction. (As part of a prototype it has a gradient.)"""
    student, teacher, groups, _ = draw(3, 70, 4)
    _, gradient = VALUE_AND_GRADIENT[name](*f32((student, teacher, groups)), None)
    np.testing.assert_array_equal(gradient[1], 0)
    assert (gradient[2:] != 0).any(1).all()


def test_a_zero_row_has_no_gradient_in_a_cosine():
    x = jnp.array([[0.0, 0.0], [3.0, 1.0]])
    gradient = jax.grad(lambda x: losses.pairwise_cosine(x, jnp.array([[1.0, 0.0]])).sum())(x)
    np.testing.assert_array_equal(gradient[0], 0)
    assert gradient[1, 1] != 0


@pytest.mark.parametrize("size", [8e37, 9e37, 3.4e38])
def test_rows_up_to_the_largest_number_have_a_direction(size):
    rows = jnp.array([[size, -size, 0], [1, 0, 0]])
    half = 0.5**0.5
    np.testing.assert_allclose(losses.pairwise_cosine(rows, jnp.eye(3)), [[half, -half, 0], [1, 0, 0]], rtol=1e-6)
    value, gradient = jax.value_and_grad(losses.ftd_loss)(rows, jnp.eye(2))
    np.testing.assert_allclose(value, 1, rtol=1e-5)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", LOSSES)
def test_no_gradient_reaches_the_teacher(name):
    student, teacher, groups, where = draw(4, 40, 4)
    gradient = jax.jit(jax.grad(LOSSES[name], 1))(*f32((student, teacher, groups)), jnp.asarray(where))
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.slow
@MANY
def test_losses_map_over_a_batch_of_batches(loss):
    batches = [draw(seed, 80, 4) for seed in range(3)]
    stacked = [jnp.asarray(np.stack(x), jnp.float32 if i < 2 else None) for i, x in enumerate(zip(*batches))]
    values, gradients = jax.vmap(loss)(*stacked)
    for i in range(3):
        value, gradient = loss(*(x[i] for x in stacked))
        np.testing.assert_allclose(values[i], value, rtol=1e-5)
        np.testing.assert_allclose(gradients[i], gradient, rtol=1e-3, atol=1e-4)


def test_the_other_losses_map_too(rng):
    positive, negative = f32(rng.normal(size=(2, 3, 8)))
    np.testing.assert_allclose(
        jax.vmap(losses.bpr_loss)(positive, negative),
        [losses.bpr_loss(p, n) for p, n in zip(positive, negative)],
        rtol=1e-6,
    )
    x = f32(rng.normal(size=(3, 4, 2)))
    assert jax.vmap(losses.pairwise_cosine)(x, x).shape == (3, 4, 4)
    experts, teacher = f32(draw_experts(rng, student_dim=2)), f32(rng.normal(size=(3, 4, 6)))
    logits = f32(rng.normal(size=(3, 4, 4)))
    temperatures = jnp.array([1.0, 0.1, 1e-3])
    dense = jax.jit(jax.vmap(jax.value_and_grad(losses.group_assignment_loss), (0, 0, 0, None)))(
        x, teacher, jax.nn.softmax(logits / temperatures[:, None, None]), experts
    )
    routed_of = lambda s, t, z, temperature: routed_assignment(s, z, experts, t, temperature)
    routed = jax.jit(jax.vmap(jax.value_and_grad(routed_of)))(x, teacher, logits, temperatures)
    chex.assert_trees_all_close(routed, dense, rtol=1e-4, atol=1e-3)
    keys = jax.random.split(jax.random.key(0), 3)
    assert jax.vmap(losses.gumbel_softmax, (0, 0, 0))(keys, logits, temperatures).shape == (3, 4, 4)


@functools.partial(jax.jit, static_argnames="pairs")
@jax.value_and_grad
def plain_entity_level(student, teacher, groups, where, pairs):
    """The entity level as one masked [n, n] matrix."""
    target = losses.pairwise_cosine(teacher, teacher)
    keep = (groups[:, None] == groups) & where[:, None] & where
    if pairs == "positive":
        keep &= target > 0
    return jnp.sum(jnp.where(keep, losses.pairwise_cosine(student, student) - target, 0) ** 2)


@functools.partial(jax.jit, static_argnames="pairs")
@jax.value_and_grad
def fast_entity_level(student, teacher, groups, where, pairs):
    return losses.entity_level_loss(student, teacher, groups, num_groups=9, where=where, pairs=pairs)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), groups=st.integers(1, 9), pairs=st.sampled_from(["positive", "all"]))
def test_tiles_agree_with_the_plain_matrix_for_any_groups_and_mask(seed, groups, pairs):
    student, teacher, _, _ = draw(seed, 130, 3)
    rng = np.random.default_rng(seed)
    labels = jnp.asarray(np.minimum(rng.geometric(rng.uniform(0.1, 0.9), 130) - 1, groups - 1))
    where = jnp.asarray(rng.random(130) < rng.uniform(0, 1))
    a, b = (f(*f32((student, teacher)), labels, where, pairs) for f in (fast_entity_level, plain_entity_level))
    np.testing.assert_allclose(a[0], b[0], rtol=1e-5, atol=1e-2)
    np.testing.assert_allclose(a[1], b[1], rtol=1e-3, atol=1e-4 * (1 + np.abs(b[1]).max()))


# --- what is refused

X, Y, G = np.zeros((4, 2), np.float32), np.zeros((4, 3), np.float32), np.zeros(4, np.int32)
E = {
    "hidden": {"kernel": np.zeros((2, 2, 5), np.float32), "bias": np.zeros((2, 5), np.float32)},
    "output": {"kernel": np.zeros((2, 5, 3), np.float32), "bias": np.zeros((2, 3), np.float32)},
}
Z = np.zeros((4, 2), np.float32)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("positive_scores", lambda: losses.bpr_loss(X, X)),
        ("positive_scores", lambda: losses.bpr_loss(G, X[:, 0])),
        ("positive_scores", lambda: losses.bpr_loss([1.0], X[:1, 0])),
        ("negative_scores", lambda: losses.bpr_loss(X[:, 0], X[:3, 0])),
        ("where", lambda: losses.bpr_loss(X[:, 0], X[:, 0], where=G)),
        ("x", lambda: losses.pairwise_cosine(X[0], X)),
        ("y", lambda: losses.pairwise_cosine(X, Y)),
        ("student", lambda: losses.ftd_loss(X[0], Y)),
        ("teacher", lambda: losses.ftd_loss(X, Y[:3])),
        ("teacher", lambda: losses.ftd_loss(X, Y.astype(np.float16))),
        ("where", lambda: losses.ftd_loss(X, Y, where=np.ones(3, bool))),
        ("groups", lambda: losses.htd_loss(X, Y, G[:3], num_groups=1)),
        ("groups", lambda: losses.htd_loss(X, Y, G.astype(np.float32), num_groups=1)),
        ("logits", lambda: losses.gumbel_softmax(jax.random.key(0), G, 1.0)),
        ("temperature", lambda: losses.gumbel_softmax(jax.random.key(0), X, np.ones(4, np.float32))),
        ("mixture", lambda: losses.group_assignment_loss(X, Y, Z[:3], E)),
        ("logits", lambda: losses.routed_assignment_loss(X, Y, Z[0], E, temperature=1.0)),
        ('experts["hidden"]["kernel"]', lambda: losses.group_assignment_loss(Y, Y, Z, E)),
        ('experts["output"]["kernel"]', lambda: losses.group_assignment_loss(X, X, Z, E)),
        (
            'experts["output"]["bias"]',
            lambda: losses.group_assignment_loss(X, Y, Z, {**E, "output": {**E["output"], "bias": Y}}),
        ),
    ],
)
@pytest.mark.parametrize("jit", [False, True])
def test_a_wrong_argument_is_named(name, call, jit):
    with pytest.raises(AssertionError, match=f"(^|[^a-z_]){name.replace('[', '.').replace(']', '.')}: expected"):
        (jax.jit(call) if jit else call)()


@pytest.mark.parametrize(
    ("name", "options"),
    [("pairs", {"pairs": "some"}), ("group_level", {"group_level": "none"}), ("num_groups", {"num_groups": 0})],
)
def test_an_unknown_option_lists_the_known_ones(name, options):
    with pytest.raises(ValueError, match=name):
        losses.htd_loss(X, Y, G, **{"num_groups": 1, **options})
