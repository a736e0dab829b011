"""Every public loss in float32 and float64, whether or not JAX has 64 bits enabled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from htd_jax import losses

ROWS, ITEMS, FEW, GROUPS, NARROW, WIDE = 40, 12, 5, 4, 3, 6
RNG = np.random.default_rng(3)


def normal(*shape):
    return RNG.normal(size=shape)


STUDENT, TEACHER, LOGITS = normal(ROWS, NARROW), normal(ROWS, WIDE), normal(ROWS, GROUPS)
GROUP_OF = RNG.integers(GROUPS, size=ROWS)
EXPERTS = {
    "hidden": {"kernel": normal(GROUPS, NARROW, 5), "bias": normal(GROUPS, 5)},
    "output": {"kernel": normal(GROUPS, 5, WIDE), "bias": normal(GROUPS, WIDE)},
}
STACKED = jax.tree.map(lambda x: np.stack([x, x[::-1]]), EXPERTS)
SCORES, GUIDE, SEEN = normal(ROWS, ITEMS), normal(ROWS, ITEMS), RNG.random((ROWS, ITEMS)) < 0.3
SHORT, SHORT_GUIDE, SHARE = normal(ROWS, FEW), normal(ROWS, FEW), RNG.random(ROWS)
LISTED = np.where(SEEN, -1, np.arange(ITEMS)[None])[:, :FEW]
OWN = np.where(SEEN, np.arange(ITEMS)[None], -1)[:, :FEW]
UNIT = RNG.random((ROWS, ITEMS)) / ITEMS
WHERE = RNG.random(ROWS) < 0.8


def key():
    return jax.random.key(0)


def routed(temperature, **options):
    return lambda s, t, z, e: losses.routed_assignment_loss(s, t, z, e, temperature=temperature, **options)


# By case: the function, differentiated by its first argument, and its floats; a case's name begins with the function's.
CASES = {
    "bce_loss": (losses.bce_loss, SCORES[0], GUIDE[0]),
    "bpr_loss": (losses.bpr_loss, SCORES[0], GUIDE[0]),
    "coarse_ranking_loss": (lambda s: losses.coarse_ranking_loss(s, LISTED, OWN, SEEN, where=WHERE), SCORES),
    "cosine_hint_loss": (losses.cosine_hint_loss, TEACHER, TEACHER[::-1]),
    "discrepancy_weights": (
        lambda x, y: losses.discrepancy_weights(x, y, num_items=99, sharpness=0.1),
        SHORT,
        SCORES,
    ),
    "entity_level_loss": (lambda s, t: losses.entity_level_loss(s, t, GROUP_OF, num_groups=GROUPS), STUDENT, TEACHER),
    "entity_level_loss all": (
        lambda s, t: losses.entity_level_loss(
            s, t, GROUP_OF + GROUPS * (np.arange(ROWS) > 9), num_groups=2 * GROUPS, pairs="all", sides=(10, 30)
        ),
        STUDENT,
        TEACHER,
    ),
    "entity_level_loss many": (
        lambda s, t: losses.entity_level_loss(s, t, np.tile(GROUP_OF, 10), num_groups=GROUPS, pairs="all"),
        np.tile(STUDENT, (10, 1)),
        np.tile(TEACHER, (10, 1)),
    ),
    "fine_ranking_loss": (lambda s: losses.fine_ranking_loss(s, LISTED, OWN, SEEN, first=(3, 1)), SCORES),
    "ftd_loss": (losses.ftd_loss, STUDENT, TEACHER),
    "ftd_loss masked": (lambda s, t: losses.ftd_loss(s, t, where=WHERE), STUDENT, TEACHER),
    "gaussian_divergence": (losses.gaussian_divergence, STUDENT, 0.1 * STUDENT),
    "group_assignment_loss": (losses.group_assignment_loss, STUDENT, TEACHER, UNIT[:, :GROUPS], EXPERTS),
    "group_level_loss": (lambda s, t: losses.group_level_loss(s, t, GROUP_OF, num_groups=GROUPS), STUDENT, TEACHER),
    "group_level_loss prototypes": (
        lambda s, t: losses.group_level_loss(
            s, t, GROUP_OF, num_groups=GROUPS, where=WHERE, group_level="prototype-prototype"
        ),
        STUDENT,
        TEACHER,
    ),
    "gumbel_softmax": (lambda x: losses.gumbel_softmax(key(), x, 0.5), LOGITS),
    "hinge_loss": (losses.hinge_loss, SCORES[0], GUIDE[0]),
    "hint_loss": (losses.hint_loss, TEACHER, TEACHER[::-1]),
    "htd_loss": (
        lambda s, t: losses.htd_loss(s, t, GROUP_OF, num_groups=GROUPS, where=WHERE),
        STUDENT,
        TEACHER,
    ),
    "listed_loss": (lambda s, p: losses.listed_loss(s, LISTED, p, SEEN), SCORES, UNIT[:, :FEW]),
    "listwise_loss": (lambda s, t: losses.listwise_loss(s, t, SEEN, where=WHERE), SCORES, GUIDE),
    "log_partition": (lambda x: losses.log_partition(x, SEEN, 0.7), SCORES),
    "pair_loss": (losses.pair_loss, SHORT, SHORT_GUIDE),
    "pairwise_cosine": (losses.pairwise_cosine, STUDENT, TEACHER[:, :NARROW]),
    "personalised": (losses.personalised, STUDENT, LOGITS, normal(GROUPS, NARROW, WIDE)),
    "perturb": (lambda x: losses.perturb(key(), x), LOGITS),
    "preference_loss": (losses.preference_loss, SCORES, GUIDE),
    "rejuvenated_loss": (losses.rejuvenated_loss, SCORES, GUIDE, SHORT, SHORT_GUIDE, SHARE),
    "relaxed_ranking_loss": (losses.relaxed_ranking_loss, SHORT, SCORES),
    "routed_assignment_loss warm": (routed(1.0, where=WHERE), STUDENT, TEACHER, LOGITS, EXPERTS),
    "routed_assignment_loss cool": (routed(0.1), STUDENT, TEACHER, LOGITS, EXPERTS),
    "routed_assignment_loss cold": (routed(1e-6), STUDENT, TEACHER, LOGITS, EXPERTS),
    "routed_assignment_loss sides": (routed(0.02, sides=(25, 15)), STUDENT, TEACHER, LOGITS, STACKED),
    "sampled_cross_entropy": (
        lambda s, p, x, w: losses.sampled_cross_entropy(s, p, x, w, rest=p[:, 0]),
        *(SHORT, np.abs(SHORT_GUIDE), SCORES, SCORES[0]),
    ),
    "sampled_softmax_loss": (losses.sampled_softmax_loss, SCORES[:, 0], SHORT, SHARE[:FEW] + 0.1),
    "soft_bce_loss": (lambda s, g: losses.soft_bce_loss(s, g, temperature=5.0), SCORES, GUIDE),
    "soft_label_loss": (losses.soft_label_loss, SCORES, UNIT),
    "softmax_loss": (lambda s: losses.softmax_loss(s, SEEN, where=WHERE, temperature=np.float64(0.5)), SCORES),
    "weighted_log_loss": (lambda s, w: losses.weighted_log_loss(s, weights=w), SCORES, UNIT),
}


def value_and_gradient(case):
    """Returns a function: floats -> the value, and the gradient of its sum with fixed weights."""

    def total(*floats):
        value = CASES[case][0](*floats)
        return jnp.sum(value * jnp.cos(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape)), value

    def both(*floats):
        (_, value), gradient = jax.value_and_grad(total, has_aux=True)(*floats)
        return value, gradient

    return both


def test_every_loss_is_tried():
    tried = {case.split()[0] for case in CASES} | {"Experts", "position_weights"}
    assert tried == set(losses.__all__)


@pytest.mark.parametrize("case", CASES)
def test_a_loss_has_the_format_of_its_arguments(case):
    """With 64 bits enabled, float64 gives float64, and float32 nothing wider, on every platform."""
    with jax.enable_x64(True):
        for dtype in ("float32", "float64"):
            floats = jax.tree.map(lambda x, dtype=dtype: jax.ShapeDtypeStruct(x.shape, dtype), CASES[case][1:])
            for x in jax.eval_shape(value_and_gradient(case), *floats):
                assert x.dtype == dtype


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_loss_has_one_value_in_both_formats(case):
    floats, found = CASES[case][1:], []
    for enabled in (False, True):
        with jax.enable_x64(enabled):
            found.append(jax.jit(value_and_gradient(case))(*jax.tree.map(jnp.asarray, floats)))
    for x, expected in zip(*found):
        assert x.dtype == "float32" and expected.dtype == "float64"
        np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max() + 1e-6)


@pytest.mark.parametrize("enabled", [False, True])
def test_position_weights_are_float32(enabled):
    with jax.enable_x64(enabled):
        weights = losses.position_weights(4, np.float64(1.5))
    assert weights.dtype == "float32"
    np.testing.assert_allclose(weights, np.exp(-np.arange(4) / 1.5) / np.exp(-np.arange(4) / 1.5).sum(), rtol=1e-6)
