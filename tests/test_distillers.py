"""Each method against its definition in float64 NumPy; what holds for all of them; fixed groups."""

import types
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from htd_jax import distillers
from htd_jax.distillers import (
    DE,
    HTD,
    PHR,
    Batch,
    Entities,
    EpochStart,
    Representations,
    Shapes,
    Side,
    Step,
    Teacher,
    Triples,
)
from htd_jax.losses import hint_loss, personalised, perturb, routed_assignment_loss

USERS, ITEMS, NARROW, WIDE, GROUPS, EPOCHS = 40, 70, 4, 9, 3, 11
SIDES = ("users", "items")

GIVEN = distillers.random_groups(0, USERS, ITEMS, GROUPS)


def htd(groups=None, **options):
    return distillers.htd(HTD(groups=GROUPS, **options), epochs=EPOCHS, group_ids=groups)


def de():
    return distillers.de(DE(experts=GROUPS), epochs=EPOCHS)


def phr():
    return distillers.phr(PHR(width=5))


# HTD without noise, on one level, or with fixed groups is less of the same; the chain has each of the other methods.
METHODS = {
    "none": distillers.none,
    "ftd": distillers.ftd,
    "htd": htd,
    "chain": lambda: distillers.chain(
        distillers.scale(de(), 1e-2), distillers.scale(phr(), 1e-3), distillers.fitnet(), htd(groups=GIVEN)
    ),
}


@pytest.fixture(scope="module", params=METHODS)
def method(request):
    """A method, and its loss and gradients by parameters and entities, compiled once for all tests."""
    method = METHODS[request.param]()

    def loss(params, entities, key, epoch):
        return method.loss(step_of(method, params, entities, key, epoch))

    return method, jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True, allow_int=True))


@pytest.fixture(scope="module")
def entities():
    """The sides of a batch: ids in order, some of them masked."""
    rng = np.random.default_rng(3)
    tables = {
        "users": (rng.normal(size=(USERS, NARROW)), rng.normal(size=(USERS, WIDE))),
        "items": (rng.normal(size=(ITEMS, NARROW)), rng.normal(size=(ITEMS, WIDE))),
    }

    def side(name, rows):
        student, teacher = (jnp.asarray(table, jnp.float32) for table in tables[name])
        ids = jnp.asarray(np.sort(rng.choice(len(student), rows, replace=False)), jnp.int32)
        return Side(student[ids], teacher[ids], jnp.asarray(rng.random(rows) < 0.8), ids)

    return Entities(side("users", 25), side("items", 50), side("items", 30), side("items", 35))


def context_of(method):
    """The context of a teacher of width WIDE; none of these methods reads its rows."""
    tables = Representations(jnp.zeros((USERS, WIDE)), jnp.zeros((ITEMS, WIDE)))
    sizes = types.SimpleNamespace(num_users=USERS, num_items=ITEMS)
    return method.prepare(Teacher.of(tables), sizes)


def step_of(method, params, entities, key, epoch):
    """A step on a batch of these entities, of methods that sample nothing; a chain holds that for every link."""
    ids, context = jnp.zeros(1, jnp.int32), context_of(method)
    score = lambda users, items: jnp.zeros(jnp.broadcast_shapes(users.shape, items.shape))
    batch = Batch(entities, Triples(ids, ids, ids, jnp.ones(1, bool)), score)
    sampled = method.refresh(EpochStart(params, context, None, None, key, epoch))
    return Step(params, context, sampled, batch, key, epoch)


def start(method, key=1):
    return method.init(jax.random.key(key), Shapes(USERS, ITEMS, NARROW), context_of(method))


def run(method, entities, params=None, key=2, epoch=4):
    params = start(method) if params is None else params
    return method.loss(step_of(method, params, entities, jax.random.key(key), jnp.int32(epoch)))


def wide(tree):
    """Returns the tree in float64 NumPy."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def hint(prediction, teacher, where):
    return sum(np.sum((t - y) ** 2) for t, y, w in zip(teacher, prediction, where) if w)


# --- the methods against their definitions


def test_hint_loss_is_its_definition(rng):
    prediction, teacher, where = rng.normal(size=(7, 3)), rng.normal(size=(7, 3)), rng.random(7) < 0.6
    of = lambda y: hint_loss(y, jnp.asarray(teacher, jnp.float32), where=jnp.asarray(where))
    value, gradient = jax.value_and_grad(of)(jnp.asarray(prediction, jnp.float32))
    np.testing.assert_allclose(value, hint(prediction, teacher, where), rtol=1e-5)
    np.testing.assert_allclose(gradient, 2 * (prediction - teacher) * where[:, None], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [0, 1, 13])
def test_personalised_is_the_product_with_weights_of_ones_own(rng, rows):
    """Values, and gradients in all arguments, against every row's weights built and applied one by one."""
    x, mixture = rng.normal(size=(rows, 4)), rng.normal(size=(rows, 3))
    maps = rng.normal(size=(3, 4, 5))
    upstream = rng.normal(size=(rows, 5))
    f32 = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (x, mixture, maps))
    found, pull = jax.vjp(personalised, *f32)
    d_x, d_mixture, d_maps = np.zeros_like(x), np.zeros_like(mixture), np.zeros_like(maps)
    for a in range(rows):
        weights = sum(c * kernel for c, kernel in zip(mixture[a], maps))
        np.testing.assert_allclose(found[a], x[a] @ weights, rtol=1e-4, atol=1e-5)
        d_x[a] = weights @ upstream[a]
        for k in range(3):
            d_mixture[a, k] = x[a] @ maps[k] @ upstream[a]
            d_maps[k] += mixture[a, k] * np.outer(x[a], upstream[a])
    expected = (d_x, d_mixture, d_maps)
    close = lambda found, wanted: np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, pull(jnp.asarray(upstream, jnp.float32)), expected)


def test_what_the_hints_refuse():
    x = jnp.zeros((2, 3))
    maps = jnp.zeros((4, 3, 5))
    for refused, name in (
        (lambda: hint_loss(x, jnp.zeros((2, 4))), "teacher"),
        (lambda: hint_loss(x.astype(int), x), "prediction"),
        (lambda: hint_loss(x, x, where=jnp.zeros(3, bool)), "where"),
        (lambda: personalised(x, jnp.zeros((3, 4)), maps), "mixture"),
        (lambda: personalised(x, jnp.zeros((2, 3)), maps), "maps"),
    ):
        with pytest.raises(AssertionError, match=name):
            refused()


@pytest.mark.usefixtures("no_implicit_broadcasting")
def test_fitnet_is_its_definition(entities):
    method = distillers.fitnet()
    params, sides = wide(start(method)), wide(entities)
    expected = 0
    for name in SIDES:
        side = getattr(sides, name)
        expected += hint(side.student @ params[name]["kernel"] + params[name]["bias"], side.teacher, side.where)
    value, terms = run(method, entities)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(terms["fitnet"], expected, rtol=1e-5)


@pytest.mark.usefixtures("no_implicit_broadcasting")
def test_phr_is_its_definition(entities):
    method = phr()
    params, sides = wide(start(method)), wide(entities)
    expected = 0
    for name in SIDES:
        side, own = getattr(sides, name), params[name]
        units = np.maximum(side.teacher @ own["network"]["kernel"] + own["network"]["bias"], 0)
        predictions = []
        for s, c in zip(side.student, units):
            weights = own["maps"][0] + np.tensordot(c, own["maps"][1:], 1)
            predictions.append(s @ weights)
        expected += hint(predictions, side.teacher, side.where)
    np.testing.assert_allclose(run(method, entities)[0], expected, rtol=1e-5)


def test_phrs_maps_start_at_the_usual_scale():
    teacher = Teacher.of(Representations(jnp.zeros((1, 200)), jnp.zeros((1, 200))))
    maps = distillers.phr().init(jax.random.key(0), Shapes(1, 1, 20), teacher)["users"]["maps"]
    assert maps.shape == (17, 20, 200)
    units = np.abs(np.random.default_rng(0).normal(size=16))
    weights = maps[0] + np.tensordot(units, maps[1:], 1)
    usual = 1 / np.sqrt(3 * 20)
    assert usual < weights.std() < 1.7 * usual


def side_params(params, name):
    """Returns a side's gate and experts, which are stacked, users' first."""
    return jax.tree.map(lambda x: x[SIDES.index(name)], params)


def gumbel(key, shape):
    return np.asarray(perturb(key, jnp.zeros(shape)), float)


def gate(params, teacher):
    return np.log(oracle.softmax(teacher @ params["gate"]["kernel"] + params["gate"]["bias"]) + 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [0, 4, EPOCHS - 1])
def test_de_is_its_definition(entities, epoch):
    """Users, and half of positives and negatives, each under its own noise; the last epoch is the coldest."""
    method = de()
    params, sides = wide(start(method)), wide(entities)
    key = jax.random.key(2)
    rows = len(entities.positives.where)
    both = rows + len(entities.negatives.where)
    item_noise = gumbel(jax.random.fold_in(key, 1), (both, GROUPS))
    noise = {
        "users": gumbel(jax.random.fold_in(key, 0), (len(sides.users.where), GROUPS)),
        "positives": item_noise[:rows],
        "negatives": item_noise[rows:],
    }
    expected = 0
    for name, share in (("users", 1), ("positives", 0.5), ("negatives", 0.5)):
        side, own = getattr(sides, name), side_params(params, "users" if name == "users" else "items")
        mixture = oracle.softmax((gate(own, side.teacher) + noise[name]) / 1e-10 ** (epoch / (EPOCHS - 1)))
        expected += share * oracle.assignment(side.student, side.teacher, mixture, own["experts"], side.where)
    np.testing.assert_allclose(run(method, entities, epoch=epoch)[0], expected, rtol=1e-4)


@pytest.mark.slow
def test_cold_de_is_the_regression_of_the_chosen_experts(entities):
    """With no user that counts and no negative: half of the positives' regression, each through one expert."""
    method = de()
    none = lambda side: side._replace(where=jnp.zeros_like(side.where))
    found, _ = run(
        method,
        entities._replace(users=none(entities.users), negatives=none(entities.negatives)),
        epoch=EPOCHS - 1,
    )
    own, side = side_params(wide(start(method)), "items"), wide(entities.positives)
    rows = len(side.where) + len(entities.negatives.where)
    noise = gumbel(jax.random.fold_in(jax.random.key(2), 1), (rows, GROUPS))
    chosen = np.argmax(gate(own, side.teacher) + noise[: len(side.where)], -1)
    assert len(set(chosen)) > 1
    expected = oracle.assignment(side.student, side.teacher, np.eye(GROUPS)[chosen], own["experts"], side.where) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_de_anneals_from_the_first_epoch_to_the_last():
    temperature = distillers.annealing(EPOCHS, first=0)
    found = [temperature(jnp.int32(epoch)) for epoch in range(EPOCHS)]
    np.testing.assert_allclose(found, 10.0 ** -np.arange(EPOCHS), rtol=1e-4)


# --- what holds for all


@pytest.mark.slow
def test_gradients_are_finite_and_none_flows_to_the_teacher(method, entities):
    method, differentiate = method
    warmest = 0  # every expert is in use
    (_, terms), (for_params, for_entities) = differentiate(start(method), entities, jax.random.key(2), warmest)
    chex.assert_tree_all_finite((for_params, [side.student for side in for_entities]))
    for side in for_entities:
        assert not np.any(side.teacher)
    assert all(np.any(x) for x in jax.tree.leaves(for_params))
    assert np.any(for_entities.users.student) == bool(terms)


def test_a_masked_row_changes_nothing_whatever_it_holds(method, entities):
    method, differentiate = method

    def spoil(side):
        hidden = ~side.where[:, None]
        return side._replace(
            student=jnp.where(hidden, jnp.nan, side.student),
            teacher=jnp.where(hidden, jnp.inf, side.teacher),
            ids=jnp.where(side.where, side.ids, 0),
        )

    def of(entities):
        value, (for_params, for_entities) = differentiate(start(method), entities, jax.random.key(2), 4)
        return value, for_params, [side.student for side in for_entities]

    spoilt = Entities(*map(spoil, entities))
    assert np.isnan(spoilt.users.student).any()
    chex.assert_trees_all_close(of(spoilt), of(entities), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_equal_keys_give_equal_bits(method, entities):
    method, differentiate = method
    of = start(method), entities, jax.random.key(5), 3
    (value, terms), gradients = differentiate(*of)
    again = differentiate(start(method), *of[1:])
    chex.assert_trees_all_equal((value, terms, gradients[0]), (*again[0], again[1][0]))
    chex.assert_trees_all_close((value, terms), run(method, entities, key=5, epoch=3), rtol=1e-4)


def test_a_chain_is_the_weighted_sum_of_its_links(entities):
    links = [(distillers.fitnet(), 0.1), (phr(), 0.01), (de(), 0.001)]
    whole = distillers.chain(*(distillers.scale(*link) for link in links))
    params = start(whole)
    value, terms = run(whole, entities, params)
    keys = jax.random.split(jax.random.key(2), len(links))
    loss = lambda link, own, key: link.loss(step_of(link, own, entities, key, jnp.int32(4)))[0]
    parts = [loss(link, own, key) for (link, _), own, key in zip(links, params, keys)]
    np.testing.assert_allclose(value, sum(weight * part for (_, weight), part in zip(links, parts)), rtol=1e-5)
    np.testing.assert_allclose([terms[name] for name in ("fitnet", "phr", "de")], parts, rtol=1e-5)


def test_together_is_users_and_items(entities):
    every = entities.together()
    for whole, users, items in zip(every[:4], entities.users, entities.items):
        chex.assert_trees_all_equal(whole, jnp.concatenate([users, items]))


# --- HTD's variants


@pytest.mark.slow
@pytest.mark.parametrize("groups", [None, GIVEN])
def test_the_levels_sum_to_both(entities, groups):
    _, both = run(htd(groups=groups), entities)
    for level, other in (("entity", "group"), ("group", "entity")):
        value, terms = run(htd(groups=groups, levels=level, alpha=0.3), entities)
        assert other not in terms
        assert ("assignment" in terms) == (groups is None)
        np.testing.assert_allclose(terms[level], both[level], rtol=1e-6)
        np.testing.assert_allclose(value, 0.3 * terms[level] + 0.7 * terms.get("assignment", 0), rtol=1e-6)
    value, _ = run(htd(groups=groups, alpha=0.3), entities)
    expected = 0.3 * (both["entity"] + both["group"]) + 0.7 * both.get("assignment", 0)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.slow
def test_fixed_at_the_learned_groups_the_topology_is_the_same(entities):
    learned, params = htd(), start(htd())
    groups = []
    for name, size in (("users", USERS), ("items", ITEMS)):
        side = getattr(entities, name)
        assigned = np.argmax(gate(side_params(wide(params), name), wide(side.teacher)), -1)
        assert len(set(assigned)) > 1
        groups.append(jnp.zeros(size, jnp.int32).at[side.ids].set(assigned))
    _, found = run(htd(groups=tuple(groups)), entities)
    _, expected = run(learned, entities, params)
    assert set(found) == {"entity", "group"}
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)


def test_with_fixed_groups_there_is_nothing_to_learn():
    assert start(htd(groups=GIVEN)) == {}


def test_fixed_groups_may_be_numpy_arrays(entities):
    numpys = tuple(map(np.asarray, GIVEN))
    chex.assert_trees_all_equal(*(run(htd(groups=groups), entities) for groups in (numpys, GIVEN)))


@pytest.mark.slow
def test_without_noise_the_key_changes_nothing(entities):
    quiet, noisy = htd(noise=False), htd()
    assert run(quiet, entities, key=1)[0] == run(quiet, entities, key=2)[0]
    assert run(noisy, entities, key=1)[0] != run(noisy, entities, key=2)[0]
    _, cold = run(quiet, entities, epoch=EPOCHS)
    expected = 0
    for name in SIDES:
        side, own = wide(getattr(entities, name)), side_params(wide(start(quiet)), name)
        chosen = np.eye(GROUPS)[np.argmax(gate(own, side.teacher), -1)]
        expected += oracle.assignment(side.student, side.teacher, chosen, own["experts"], side.where)
    np.testing.assert_allclose(cold["assignment"], expected, rtol=1e-5)


@pytest.mark.slow
def test_the_assignment_of_htd_is_the_routed_mixture_of_its_sides(entities):
    """The noise of users is sampled with the key folded with 0, that of items with 1."""
    params, key = start(htd()), jax.random.key(2)
    expected = 0
    for i, name in enumerate(SIDES):
        side, own = getattr(entities, name), side_params(params, name)
        logits = jnp.asarray(gate(wide(own), wide(side.teacher)), jnp.float32)
        noise = gumbel(jax.random.fold_in(key, i), logits.shape)
        heat = distillers.annealing(EPOCHS)(jnp.int32(4))
        arguments = side.student, side.teacher, logits + noise, own["experts"]
        expected += routed_assignment_loss(*arguments, where=side.where, temperature=heat)
    np.testing.assert_allclose(run(htd(), entities)[1]["assignment"], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"levels": "all"}, ValueError, "`levels` must be one of both, entity, group, not 'all'"),
        ({"groups": (GIVEN[0], GIVEN[1] + 1)}, ValueError, r"groups of items: expected integers in \[0, 3\)"),
        ({"groups": (GIVEN[0] - 1, GIVEN[1])}, ValueError, "groups of users"),
        ({"groups": (GIVEN[0].astype(float), GIVEN[1])}, AssertionError, "groups of users"),
    ],
)
def test_what_htd_refuses(options, error, message):
    with pytest.raises(error, match=message):
        start(htd(**options))


def test_htd_starts_its_layers_at_the_published_bounds():
    params = start(htd(), key=0)
    for side in range(len(SIDES)):
        for layer, fan_in in (
            (params["gate"], WIDE),
            (params["experts"]["hidden"], NARROW),
            (params["experts"]["output"], (NARROW + WIDE) // 2),
        ):
            for weights in layer.values():
                largest = np.abs(weights[side]).max()
                assert 0.5 / np.sqrt(fan_in) < largest <= 1 / np.sqrt(fan_in)


@pytest.mark.parametrize("epochs", [1, 2, 11, 101])
def test_the_temperature_falls_from_one_to_its_floor(epochs):
    found = np.array(jax.vmap(distillers.annealing(epochs))(jnp.arange(epochs)), float)
    last = max(epochs - 1, 1)
    wanted = [1.0 if epoch < 2 else max(1e-10 ** ((epoch - 1) / last), 1e-10) for epoch in range(epochs)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert (found >= np.float32(1e-10)).all()


@pytest.mark.parametrize("given", [(GIVEN[1], GIVEN[0]), (GIVEN[0][:10], GIVEN[1]), (GIVEN[0], GIVEN[1][:-1])])
def test_groups_of_other_lengths_than_the_data_are_refused(given):
    with pytest.raises(AssertionError, match="groups of (users|items)"):
        start(htd(groups=given))


# --- groups


def test_random_groups_are_all_used_and_follow_the_seed():
    users, items = distillers.random_groups(0, 3000, 3000, 30)
    for groups in (users, items):
        assert groups.shape == (3000,) and groups.dtype == jnp.int32
        assert np.bincount(groups, minlength=30).min() > 50 and groups.max() == 29
    assert (users != items).any()
    chex.assert_trees_all_equal((users, items), distillers.random_groups(0, 3000, 3000, 30))
    assert (users != distillers.random_groups(1, 3000, 3000, 30)[0]).any()


def test_kmeans_finds_planted_directions_whatever_the_lengths(rng):
    tables, planted = [], []
    for rows in (60, 90):
        own = rng.integers(4, size=rows)
        centres = np.linalg.qr(rng.normal(size=(WIDE, WIDE)))[0][:4]
        near = centres[own] + 0.05 * rng.normal(size=(rows, WIDE))
        tables.append(jnp.asarray(near * 10 ** rng.uniform(-2, 2, size=(rows, 1)), jnp.float32))
        planted.append(own)
    found = distillers.kmeans_groups(0, *tables, 4)
    for groups, own in zip(found, planted):
        assert groups.dtype == jnp.int32
        assert len({*zip(groups.tolist(), own.tolist())}) == 4 == len(set(groups.tolist()))
    chex.assert_trees_all_equal(found, distillers.kmeans_groups(0, *tables, 4))


def test_kmeans_is_quiet_about_empty_groups():
    rows = jnp.asarray([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0], [0.0, 3.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        groups, _ = distillers.kmeans_groups(0, rows, rows[:1], 6)
    assert groups[0] == groups[1] and len(set(groups.tolist())) == 3
    assert 0 <= groups.min() and groups.max() < 6


# --- the best factors


@pytest.mark.parametrize(("num_users", "num_items", "rank"), [(30, 50, 4), (30, 50, WIDE), (50, 30, 12), (5, 40, 8)])
def test_svd_factors_are_the_best_of_their_rank(rng, num_users, num_items, rank):
    users, items = rng.normal(size=(num_users, WIDE)), rng.normal(size=(num_items, WIDE)) + 1
    scores = users @ items.T
    left, right = distillers.svd_factors(jnp.asarray(users, jnp.float32), jnp.asarray(items, jnp.float32), rank)
    assert left.shape == (num_users, rank) and right.shape == (num_items, rank)
    u, values, v = np.linalg.svd(scores, full_matrices=False)
    available = min(rank, WIDE, num_users)
    best = (u[:, :available] * values[:available]) @ v[:available]
    np.testing.assert_allclose(wide(left) @ wide(right).T, best, atol=1e-4 * values[0])
    lost = np.sum((scores - wide(left) @ wide(right).T) ** 2)
    np.testing.assert_allclose(lost, np.sum(values[available:] ** 2), rtol=1e-3, atol=1e-6 * values[0] ** 2)
    for factor in (left, right):
        np.testing.assert_allclose(np.linalg.norm(factor, axis=0)[:available] ** 2, values[:available], rtol=1e-4)
        assert not np.any(factor[:, available:])


@pytest.mark.usefixtures("no_implicit_broadcasting")
def test_svd_of_nothing_is_nothing():
    for factor in distillers.svd_factors(jnp.zeros((6, 3)), jnp.ones((7, 3)), 2):
        np.testing.assert_allclose(factor, 0, atol=1e-6)


def test_what_svd_refuses():
    with pytest.raises(ValueError, match="rank: expected at least 1"):
        distillers.svd_factors(jnp.zeros((6, 3)), jnp.ones((7, 3)), 0)
    with pytest.raises(AssertionError, match="items"):
        distillers.svd_factors(jnp.zeros((6, 3)), jnp.ones((7, 4)), 2)
