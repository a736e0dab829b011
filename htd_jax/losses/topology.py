"""Topology: the cosines between representations, in the student and in the teacher.

The symbols of the paper (Kang et al., "Topology Distillation for Recommender System", KDD'21): `s_a` and `t_a` are
the student's and the teacher's representation of entity `a` (a user or an item of the batch), `A` the topology,
`A_ab = cos(a, b)`. No gradient flows into the teacher. The equations are in the paper's order: FTD; the group level;
the entity level; HTD, the sum of both levels. For the group assignment see `assignment`.
"""

import chex
import jax
import jax.numpy as jnp

from htd_jax.losses.checks import check_choice, check_dtype, check_floats, check_ints, check_where
from htd_jax.ops.grams import all_pairs
from htd_jax.ops.groups import within_groups
from htd_jax.ops.products import einsum
from htd_jax.ops.rows import group_directions, group_sizes, keep_rows, unit_rows

GROUP_LEVELS = ("prototype-entity", "prototype-prototype")
PAIRS = ("positive", "all")


def pairwise_cosine(x: chex.Array, y: chex.Array) -> jax.Array:
    """Computes the cosine of every row of `x` with every row of `y`.

    A row of zeros has no direction: its cosine with any row is 0, and so is its gradient.

    Source: the topology `A` of the paper.

    Args:
      x: `[n, d]` floats.
      y: `[m, d]` floats.

    Returns:
      `[n, m]`, in [-1, 1] up to rounding.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[3.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    >>> print(pairwise_cosine(x, x[:2]).round(3))
    [[1.    0.707]
     [0.707 1.   ]
     [0.    0.   ]]
    """
    x = check_floats("x", x, None, None)
    y = check_floats("y", y, None, x.shape[1])
    return _products(unit_rows(x), unit_rows(y))


def ftd_loss(student: chex.Array, teacher: chex.Array, *, where: chex.Array | None = None) -> jax.Array:
    r"""Computes Full Topology Distillation, over all pairs of a batch.

    .. math:: \sum_{a, b} (\cos(t_a, t_b) - \cos(s_a, s_b))^2 = |T^\top T|^2 - 2 |T^\top S|^2 + |S^\top S|^2

    with S `[n, d_s]` and T `[n, d_t]` the rows scaled to length one, and Frobenius norms. The right-hand side needs
    O(n d^2) operations and no `[n, n]` matrix. Its terms grow as n^2, so the value has an absolute rounding error of
    1e-7 n^2, at worst 1e-6 n^2; the gradient is not the difference of large terms. Supports reverse mode only, like
    every loss here that computes its gradient along with its value.

    Source: the paper's Full Topology Distillation.

    Args:
      student: `[n, d_s]` floats, the representations of the batch's entities, users and items in one set.
      teacher: `[n, d_t]` floats, of the same entities, constants.
      where: `[n]` bool; a masked row changes nothing, whatever it holds.

    Returns:
      A scalar: the sum over the `n^2` ordered pairs.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> teacher = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> student = jnp.array([[1.0], [1.0]])
    >>> print(ftd_loss(student, teacher))  # the pair's cosine is 1, not 0, and counts both ways
    2.0
    """
    s, t, where = _check_pair(student, teacher, where)
    return all_pairs(unit_rows(keep_rows(s, where)), keep_rows(unit_rows(t), where))


def group_level_loss(
    student: chex.Array,
    teacher: chex.Array,
    groups: chex.Array,
    *,
    where: chex.Array | None = None,
    num_groups: int,
    group_level: str = "prototype-entity",
) -> jax.Array:
    r"""Computes the topology across groups, represented by prototypes: the mean of a group's representations.

    `prototype-entity`, Group(P, e): the sum over the prototypes P of all nonempty groups and all entities e of
    `(cos(T_P, t_e) - cos(S_P, s_e))^2`; the student's prototypes are constants, only its entities are trained.
    `prototype-prototype`, Group(P, P): the same over pairs of prototypes, which here are trained.

    Source: the paper's group-level topology and its two variants.

    Args, returns, raises: as `htd_loss`.
    """
    s, t, groups, where = _check_groups(student, teacher, groups, num_groups, where)
    check_choice("group_level", group_level, GROUP_LEVELS)
    s = keep_rows(s, where)
    S, T = (group_directions(x, groups, num_groups) for x in (s, t))  # prototypes of unit length
    present = group_sizes(groups, num_groups) > 0
    if group_level == "prototype-prototype":
        s, t, counted = S, T, present
    else:
        S = jax.lax.stop_gradient(S)
        s, t, counted = unit_rows(s), unit_rows(t), groups < num_groups
    gap = _products(t, T) - _products(s, S)
    return jnp.sum(jnp.where(counted[:, None] & present[None], gap, 0) ** 2)


def entity_level_loss(
    student: chex.Array,
    teacher: chex.Array,
    groups: chex.Array,
    *,
    where: chex.Array | None = None,
    num_groups: int,
    pairs: str = "positive",
    sides: tuple[int, ...] | None = None,
) -> jax.Array:
    r"""Computes the full topology within each group.

    .. math:: \sum_{a, b:\, g_a = g_b} (\cos(t_a, t_b) - \cos(s_a, s_b))^2

    `pairs="all"` is that sum, the paper's equation. `pairs="positive"` keeps the pairs with `cos(t_a, t_b) > 0`,
    as the published figures were measured.

    An `[n, n]` matrix is formed only where that is cheapest; for operations and memory see `htd_jax.ops.groups`.

    Source: the paper's entity-level topology.

    Args, returns, raises: as `htd_loss`; and `sides`, the numbers of rows of consecutive sets that share no group, such
    as users and items. They sum to n. They do not change the result, but let a GPU skip the pairs across sets.
    """
    s, t, groups, where = _check_groups(student, teacher, groups, num_groups, where)
    check_choice("pairs", pairs, PAIRS)
    if sides is not None and sum(sides) != len(s):
        raise AssertionError(f"sides: expected sizes that sum to {len(s)}, got {tuple(sides)}")
    s, t = unit_rows(keep_rows(s, where)), unit_rows(t)
    return within_groups(s, t, groups, num_groups, pairs == "positive", sides or (len(s),))


def htd_loss(
    student: chex.Array,
    teacher: chex.Array,
    groups: chex.Array,
    *,
    where: chex.Array | None = None,
    num_groups: int,
    group_level: str = "prototype-entity",
    pairs: str = "positive",
) -> jax.Array:
    r"""Computes Hierarchical Topology Distillation: the entity level within groups plus the group level across them.

    Source: the topology part of the paper's Hierarchical Topology Distillation; `entity_level_loss` and
    `group_level_loss` are its two terms.

    Args:
      student: `[n, d_s]` floats, the representations of the batch's entities, users and items in one set.
      teacher: `[n, d_t]` floats, of the same entities, constants.
      groups: `[n]` integers in [0, num_groups); users and items have different groups.
      where: `[n]` bool; a masked row changes nothing, whatever it and its group hold.
      num_groups: the number of groups; some may be empty.
      group_level: `prototype-entity` or `prototype-prototype`, see `group_level_loss`.
      pairs: `positive` or `all`, see `entity_level_loss`.

    Returns:
      A scalar, at least 0 up to rounding.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.
      ValueError: if `group_level` or `pairs` is unknown, or `num_groups` under 1.

    >>> import jax.numpy as jnp
    >>> teacher = jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    >>> student = jnp.array([[1.0], [1.0], [1.0]])
    >>> print(f"{htd_loss(student, teacher, jnp.array([0, 0, 1]), num_groups=2):.4f}")
    1.5767
    """
    entity = entity_level_loss(student, teacher, groups, num_groups=num_groups, where=where, pairs=pairs)
    group = group_level_loss(student, teacher, groups, num_groups=num_groups, where=where, group_level=group_level)
    return entity + group


def _products(x: jax.Array, y: jax.Array) -> jax.Array:
    """Computes the inner product of every row of `x` with every row of `y`."""
    return einsum("ad,bd->ab", x, y)


def _check_pair(
    student: chex.Array, teacher: chex.Array, where: chex.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Checks the arguments, and returns the teacher without gradient."""
    s = check_floats("student", student, None, None)
    t = check_floats("teacher", teacher, len(s), None)
    check_dtype("teacher", teacher, student.dtype)
    return s, jax.lax.stop_gradient(t), check_where(where, len(s))


def _check_groups(
    student: chex.Array, teacher: chex.Array, groups: chex.Array, num_groups: int, where: chex.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """Checks the arguments. Groups are returned in int32, masked rows with group `num_groups`, which is not summed."""
    s, t, where = _check_pair(student, teacher, where)
    groups = check_ints("groups", groups, len(s)).astype(jnp.int32)
    if num_groups < 1:
        raise ValueError(f"num_groups: expected at least 1, got {num_groups}")
    return s, t, groups if where is None else jnp.where(where, groups, num_groups), where
