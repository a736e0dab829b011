"""Topology: the relations between representations, as cosines, and how a student is held to its teacher's.

The symbols of the paper (Kang et al., "Topology Distillation for Recommender System", KDD'21): `s_a` and `t_a` are
the student's and the teacher's representation of entity `a` (a user or an item of the batch), `A` the topology,
`A_ab = cos(a, b)`. Everywhere here the teacher is given: no gradient flows into it. Products are in full float32
on every backend, since a cosine in a shorter format would move the losses.
"""

import functools

import chex
import jax
import jax.numpy as jnp

from htd_jax.losses.checks import check_choice, check_dtype, check_floats, check_ints, check_where, keep_rows
from htd_jax.losses.lanes import accumulate
from htd_jax.products import einsum

GROUP_LEVELS = ("prototype-entity", "prototype-prototype")
PAIRS = ("positive", "all")

# Rows in a tile of the entity-level topology: wide enough for a good matrix product, narrow enough that a small
# group does not pay for much of its neighbours. And how many pairs of tiles a lane meets at once.
TILE, MEETINGS = 32, 8

# Rows in a tile of `_within_groups`: it writes a [d_t, d_t] matrix a tile, so fewer, and a group's last is part empty.
PRODUCT_TILE = 64

# By how much an operation of `_within_groups` costs more than one of `_meet`.
PRODUCT_COST = 2


def pairwise_cosine(x: chex.Array, y: chex.Array) -> jax.Array:
    """The cosine of every row of `x` with every row of `y`.

    A row of zeros has no direction: its cosine with anything is 0, and so is the gradient.

    Source: the topology `A` of the paper.

    Args:
      x: `[n, d]` floats.
      y: `[m, d]` floats.

    Returns:
      `[n, m]`, in [-1, 1] up to rounding.

    Raises:
      AssertionError: an argument of a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[3.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    >>> print(pairwise_cosine(x, x[:2]).round(3))
    [[1.    0.707]
     [0.707 1.   ]
     [0.    0.   ]]
    """
    check_floats("x", x, None, None)
    check_floats("y", y, None, x.shape[1])
    return einsum("ad,bd->ab", _directions(x), _directions(y))


def ftd_loss(student: chex.Array, teacher: chex.Array, *, where: chex.Array | None = None) -> jax.Array:
    r"""Full Topology Distillation: all the pairs of a batch.

    .. math:: \sum_{a, b} (\cos(t_a, t_b) - \cos(s_a, s_b))^2 = |T^\top T|^2 - 2 |T^\top S|^2 + |S^\top S|^2

    with S `[n, d_s]` and T `[n, d_t]` the rows scaled to length one and Frobenius norms on the right: the
    right-hand side needs O(n d^2) operations and no `[n, n]` matrix. Its terms grow as n^2, so the value carries
    an absolute rounding error of 1e-7 n^2, at worst 1e-6 n^2; the gradient is not the difference of large terms.
    Reverse mode only, as with every loss here that takes its gradient along with its value.

    Source: the paper's Full Topology Distillation.

    Args:
      student: `[n, d_s]` floats, the representations of the batch's entities, users and items in one set.
      teacher: `[n, d_t]` floats, of the same entities; a constant.
      where: `[n]` bool; a masked row changes nothing, whatever it holds.

    Returns:
      A scalar: the sum over the `n^2` ordered pairs.

    Raises:
      AssertionError: an argument of a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> teacher = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> student = jnp.array([[1.0], [1.0]])
    >>> print(ftd_loss(student, teacher))  # the pair's cosine is 1, not 0, and counts both ways
    2.0
    """
    _check_pair(student, teacher, where)
    t = _directions(jax.lax.stop_gradient(teacher))
    return _full_topology(_directions(keep_rows(student, where)), keep_rows(t, where))


def htd_loss(
    student: chex.Array,
    teacher: chex.Array,
    groups: chex.Array,
    *,
    num_groups: int,
    where: chex.Array | None = None,
    group_level: str = "prototype-entity",
    pairs: str = "positive",
) -> jax.Array:
    r"""Hierarchical Topology Distillation: the entity level within groups plus the group level across them.

    Source: the topology part of the paper's Hierarchical Topology Distillation; `entity_level_loss` and
    `group_level_loss` are its two terms.

    Args:
      student: `[n, d_s]` floats, the representations of the batch's entities, users and items in one set.
      teacher: `[n, d_t]` floats, of the same entities; a constant.
      groups: `[n]` integers in [0, num_groups), users' and items' groups already told apart.
      num_groups: how many groups there are; some may be empty.
      where: `[n]` bool; a masked row changes nothing, whatever it and its group hold.
      group_level: `prototype-entity` or `prototype-prototype`, see `group_level_loss`.
      pairs: `positive` or `all`, see `entity_level_loss`.

    Returns:
      A scalar, at least 0 up to rounding.

    Raises:
      AssertionError: an argument of a wrong rank, shape or dtype.
      ValueError: an unknown `group_level` or `pairs`, or `num_groups` under 1.

    >>> import jax.numpy as jnp
    >>> teacher = jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    >>> student = jnp.array([[1.0], [1.0], [1.0]])
    >>> print(f"{htd_loss(student, teacher, jnp.array([0, 0, 1]), num_groups=2):.4f}")
    1.5767
    """
    entity = entity_level_loss(student, teacher, groups, num_groups=num_groups, where=where, pairs=pairs)
    group = group_level_loss(student, teacher, groups, num_groups=num_groups, where=where, group_level=group_level)
    return entity + group


def entity_level_loss(
    student: chex.Array,
    teacher: chex.Array,
    groups: chex.Array,
    *,
    num_groups: int,
    where: chex.Array | None = None,
    pairs: str = "positive",
) -> jax.Array:
    r"""The full topology within each group.

    .. math:: \sum_{a, b:\, g_a = g_b} (\cos(t_a, t_b) - \cos(s_a, s_b))^2

    `pairs="all"` is that sum, the paper's equation. `pairs="positive"` keeps the pairs with `cos(t_a, t_b) > 0`,
    which is what the published figures were measured with.

    Neither builds an `[n, n]` matrix. Only tiles with a group in common are computed, O(sum of squared group sizes);
    and over all pairs, where the groups are large, the identity of `ftd_loss` group by group, O(n d^2).

    Args, returns, raises: as `htd_loss`.
    """
    _check_groups(student, teacher, groups, num_groups, where)
    check_choice("pairs", pairs, PAIRS)
    if not len(student):
        return jnp.zeros((), student.dtype)
    s, t = _directions(keep_rows(student, where)), _directions(jax.lax.stop_gradient(teacher))
    groups = _kept_groups(groups, num_groups, where)
    order = _sorted_by(groups, num_groups)
    return _entity_level(s[order], t[order], groups[order], num_groups, pairs == "positive")


def group_level_loss(
    student: chex.Array,
    teacher: chex.Array,
    groups: chex.Array,
    *,
    num_groups: int,
    where: chex.Array | None = None,
    group_level: str = "prototype-entity",
) -> jax.Array:
    r"""The topology of the groups, through their prototypes: the mean representation of a group's entities.

    `prototype-entity`, Group(P, e): the sum over all present prototypes P and all entities e of
    `(cos(T_P, t_e) - cos(S_P, s_e))^2`; the student's prototypes are constants, and its entities are trained.
    `prototype-prototype`, Group(P, P): the same over pairs of present prototypes; here the gradient flows through
    the student's prototypes, since there is nothing else to train.

    Source: the paper's group-level topology and its two variants.

    Args, returns, raises: as `htd_loss`.
    """
    _check_groups(student, teacher, groups, num_groups, where)
    check_choice("group_level", group_level, GROUP_LEVELS)
    teacher = jax.lax.stop_gradient(teacher)
    student = keep_rows(student, where)
    groups = _kept_groups(groups, num_groups, where)
    size = jnp.bincount(groups, length=num_groups)
    mean = lambda x: jax.ops.segment_sum(x, groups, num_groups) / jnp.maximum(size, 1)[:, None]
    present = size > 0
    student_prototypes, teacher_prototypes = mean(student), mean(teacher)
    if group_level == "prototype-prototype":
        student, teacher, counted = student_prototypes, teacher_prototypes, present
    else:
        student_prototypes = jax.lax.stop_gradient(student_prototypes)
        counted = jnp.ones(len(student), bool) if where is None else where
    gap = pairwise_cosine(teacher, teacher_prototypes) - pairwise_cosine(student, student_prototypes)
    return jnp.sum(jnp.where(counted[:, None] & present, gap, 0) ** 2)


def _directions(x: jax.Array) -> jax.Array:
    """Rows scaled to length one; zero rows stay zero, with a zero gradient.

    A direction does not depend on the row's scale, so each row is first divided by its largest entry, a constant:
    squares then neither overflow nor vanish. Nor does the reciprocal that a compiler makes of it, of a number up to
    `1 / tiny`.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0))
    zero = largest == 0
    x = x / jnp.where(zero, 1, jnp.minimum(largest, 1 / jnp.finfo(x.dtype).tiny))
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    return x * jnp.where(zero, 0, jax.lax.rsqrt(jnp.where(zero, 1, square)))


def _kept_groups(groups: jax.Array, num_groups: int, where: jax.Array | None) -> jax.Array:
    """The groups as int32, `num_groups` for a masked row: a group that meets none and is not summed, so what the
    teacher holds there is never counted."""
    groups = jnp.asarray(groups, jnp.int32)
    return groups if where is None else jnp.where(where, groups, num_groups)


def _sorted_by(groups: jax.Array, num_groups: int) -> jax.Array:
    """`[n]`: the stable order by group, groups in [0, num_groups]."""
    rows = len(groups)
    if (num_groups + 1) * rows < 2**31:  # one sort of single integers is several times faster than an argsort
        return jnp.sort(groups * rows + jnp.arange(rows, dtype=jnp.int32)) % rows
    return jnp.argsort(groups, stable=True)


@jax.custom_vjp
def _full_topology(s: jax.Array, t: jax.Array) -> jax.Array:
    """The sum over all pairs, for unit rows."""
    return _full_topology_and_gradient(s, t)[0]


def _full_topology_and_gradient(s, t):
    """One product, U'U with U = [T | S], holds the three of the loss; and one more is the gradient, 4 (S S'S - T T'S).
    Derived by JAX they would be seven, most of them small."""
    both = jnp.concatenate([t, s], axis=1)
    products = _gram(both)
    tt, (ts, ss) = products[: t.shape[1], : t.shape[1]], jnp.split(products[:, t.shape[1] :], [t.shape[1]])
    loss = jnp.sum(tt**2) - 2 * jnp.sum(ts**2) + jnp.sum(ss**2)
    return loss, 4 * einsum("nd,de->ne", both, jnp.concatenate([-ts, ss]))


_full_topology.defvjp(
    _full_topology_and_gradient,
    lambda gradient, cotangent: (cotangent * gradient, None),
)


def _gram(x: jax.Array) -> jax.Array:
    """X'X: it is symmetric, so the product of its two halves of columns is computed once."""
    left, right = jnp.split(x, [x.shape[1] // 2], axis=1)
    product = functools.partial(einsum, "nd,ne->de")
    across = product(left, right)
    return jnp.block([[product(left, left), across], [across.T, product(right, right)]])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _entity_level(s: jax.Array, t: jax.Array, groups: jax.Array, num_groups: int, positive: bool) -> jax.Array:
    """The sum over the pairs of one group, for unit rows in the order of their groups; group `num_groups` is none.

    The gradient is taken along with the loss: a loop of unknown length has no other, and a choice between two ways
    would keep the residuals of both.
    """
    return _entity_level_and_gradient(s, t, groups, num_groups, positive)[0]


def _entity_level_and_gradient(s, t, groups, num_groups, positive):
    rows = len(s)
    num_tiles = -(-rows // TILE)
    pad = num_tiles * TILE - rows
    tiled = lambda x: jnp.pad(x, [(0, pad), (0, 0)]).reshape(num_tiles, TILE, -1)
    tile_groups = jnp.pad(groups, (0, pad), constant_values=num_groups).reshape(num_tiles, TILE)
    # A tile meets itself, and the tiles behind it that begin with the group in which it ends.
    first, last = tile_groups[:, 0], tile_groups[:, -1]
    meets = jnp.searchsorted(first, last, side="right") - jnp.arange(num_tiles)
    meets = jnp.where(last == num_groups, 1, meets)

    def by_tiles():
        loss, pull = _meet(tiled(s), tiled(t), tile_groups, meets, num_groups, positive)
        return loss, pull.reshape(num_tiles * TILE, -1)[:rows]

    def by_products():
        return jax.value_and_grad(_within_groups)(s, t, groups, num_groups)

    if positive:
        return by_tiles()
    tile_cost = meets.sum().astype(jnp.float32) * TILE**2
    product_cost = _product_tiles(rows, num_groups) * PRODUCT_TILE * (s.shape[1] + t.shape[1])
    return jax.lax.cond(tile_cost < PRODUCT_COST * product_cost, by_tiles, by_products)


_entity_level.defvjp(
    _entity_level_and_gradient,
    lambda num_groups, positive, gradient, cotangent: (cotangent * gradient, None, None),
)


def _meet(s, t, groups, meets, num_groups, positive):
    """Loss and gradient over tiles `[tiles, TILE, d]`: tile i against the `meets[i]` tiles from itself on, both
    orders of a pair counted, MEETINGS at a time."""
    num_tiles = len(groups)
    end = jnp.cumsum(meets)

    def meet(chunk):
        number = chunk * MEETINGS + jnp.arange(MEETINGS)
        i = jnp.minimum(jnp.sum(end <= number[:, None], axis=1), num_tiles - 1)
        j = jnp.minimum(i + number - (end[i] - meets[i]), num_tiles - 1)
        ours, theirs = (s[i], t[i], groups[i]), (s[j], t[j], groups[j])
        target = einsum("iad,ibd->iab", ours[1], theirs[1])
        own = ours[2][:, :, None]
        counted = (own == theirs[2][:, None, :]) & (own < num_groups) & (number < end[-1])[:, None, None]
        if positive:
            counted &= target > 0
        cosine = einsum("iad,ibd->iab", ours[0], theirs[0])
        gap = jnp.where(counted, cosine - target, 0)
        orders = jnp.where(i == j, 1, 2).astype(s.dtype)[:, None, None]  # within a tile, both are there already
        force = 2 * orders * gap
        part = jnp.sum(orders * gap**2)
        pulls = einsum("iab,ibd->iad", force, theirs[0]), einsum("iab,iad->ibd", force, ours[0])
        return i, j, part, pulls, (ours, theirs, target, cosine, gap, force)

    def add(total, met):
        loss, pull = total
        i, j, part, pulls, _ = met
        return loss + part, pull.at[i].add(pulls[0]).at[j].add(pulls[1])

    return accumulate(meet, add, (jnp.zeros((), s.dtype), jnp.zeros_like(s)), -(-end[-1] // MEETINGS))


def _within_groups(s: jax.Array, t: jax.Array, groups: jax.Array, num_groups: int) -> jax.Array:
    """|T_g'T_g|^2 - 2 |T_g'S_g|^2 + |S_g'S_g|^2 summed over the groups g, rows in the order of their groups.

    Each group's rows are laid out in tiles of their own; a group's products are the sums of its tiles'.
    """
    num_tiles = _product_tiles(len(s), num_groups)
    sizes = jnp.bincount(groups, length=num_groups + 1).at[num_groups].set(0)
    tiles = -(-sizes // PRODUCT_TILE)
    first_tile, first_row = jnp.cumsum(tiles) - tiles, jnp.cumsum(sizes) - sizes
    slot = first_tile[groups] * PRODUCT_TILE + jnp.arange(len(s)) - first_row[groups]
    slot = jnp.where(groups < num_groups, slot, num_tiles * PRODUCT_TILE)
    lay = lambda x: jnp.zeros((num_tiles * PRODUCT_TILE, x.shape[1]), x.dtype).at[slot].set(x, mode="drop")
    s, t = (lay(x).reshape(num_tiles, PRODUCT_TILE, -1) for x in (s, t))
    owner = jnp.searchsorted(jnp.cumsum(tiles), jnp.arange(num_tiles), side="right")

    def square(x, y):
        products = einsum("bnd,bne->bde", x, y)
        return jnp.sum(jax.ops.segment_sum(products, owner, num_groups, indices_are_sorted=True) ** 2)

    return square(t, t) - 2 * square(t, s) + square(s, s)


def _product_tiles(rows: int, num_groups: int) -> int:
    """Tiles of `_within_groups`: enough, however the rows fall into groups."""
    return -(-rows // PRODUCT_TILE) + min(num_groups, rows)


def _check_pair(student, teacher, where):
    check_floats("student", student, None, None)
    check_floats("teacher", teacher, student.shape[0], None)
    check_dtype("teacher", teacher, student.dtype)
    check_where(where, len(student))


def _check_groups(student, teacher, groups, num_groups, where):
    _check_pair(student, teacher, where)
    check_ints("groups", groups, len(student))
    if num_groups < 1:
        raise ValueError(f"num_groups: expected at least 1, got {num_groups}")
