"""The topology within groups: the sum over all pairs of rows of one group, value and gradient together.

Shapes: n rows in g groups, d = d_t + d_s dimensions of teacher and student.

| form | where | operations | bytes in addition to arguments and gradient |
|---|---|---|---|
| tiles | CPU | 2 (d_t + 3 d_s) per pair, each once, rounded up to tiles of 32 rows | O(n d_s) |
| rows against all | elsewhere, one side at a time | 2 n^2 (d + d_s) | 16 ELEMENTS, 0.5 GB, or 16 n^2 if that is less |
| products | all pairs | 2 (n + g size) d (d + d_s), and 2 g d^2 (n / size + g) to sum them | 4 (n / size + g) d^2 |

Rows against all compute every pair of a side, g times as many as needed, in three products: 2.5 GFLOP at 1,024 users,
2,048 items and 220 dimensions, which take a GPU less time than starting a few hundred iterations of a loop over tiles.
From 2^25 pairs (5,793 rows of a side) on, it loops over blocks of rows: 128 iterations at 65,536 rows.

On a mesh, devices divide the tiles or the rows, and exchange n d_s numbers; `products` is computed on all of them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.ops import platforms
from htd_jax.ops.blocks import into_blocks
from htd_jax.ops.lanes import accumulate
from htd_jax.ops.manual import alike, axes_of, vary
from htd_jax.ops.mapped import in_blocks
from htd_jax.ops.products import dot, einsum, in_chunks
from htd_jax.ops.rows import take_rows
from htd_jax.ops.shards import all_parts, devices, own_part, total

# Rows per tile: enough for an efficient matrix product, and few enough that a small group does not pay for much of its
# neighbours; and the number of pairs of tiles that a lane computes at a time.
TILE, MEETINGS = 32, 8

# Rows per block of `products`, which writes a [d, d] matrix per block, on a CPU and elsewhere; and the cost of one of
# its operations relative to one of `tiles`, on a CPU.
SMALL_BLOCK, LARGE_BLOCK = 64, 128
PRODUCT_COST = 2

# Pairs of rows, or entries of the blocks' matrices, in memory at a time.
ELEMENTS = 2**25


def within_groups(
    s: jax.Array, t: jax.Array, groups: jax.Array, num_groups: int, positive: bool, sides: tuple[int, ...]
) -> jax.Array:
    """Returns the sum of (t_a . t_b - s_a . s_b)^2 over the ordered pairs of rows of one group.

    Args:
      s: `[n, d_s]` floats.
      t: `[n, d_t]` floats, a constant.
      groups: `[n]` integers in [0, num_groups]; rows in `num_groups` are in no pair, and their `t` may be anything.
      num_groups: static.
      positive: whether only pairs with t_a . t_b > 0 count; static.
      sides: the number of rows of each side, in the order of the rows; no two sides share a group. Static.

    Returns:
      A scalar.
    """
    if not len(s):
        return jnp.zeros((), s.dtype)
    return _within_groups(*alike(s, t, groups), num_groups, positive, sides)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _within_groups(
    s: jax.Array, t: jax.Array, groups: jax.Array, num_groups: int, positive: bool, sides: tuple[int, ...]
) -> jax.Array:
    return _value_and_gradient(s, t, groups, num_groups, positive, sides)[0]


def _value_and_gradient(
    s: jax.Array, t: jax.Array, groups: jax.Array, num_groups: int, positive: bool, sides: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    small = functools.partial(in_small_tiles, num_groups=num_groups, positive=positive)
    large = functools.partial(in_large_products, num_groups=num_groups, positive=positive, sides=sides)
    return platforms.by_platform(small, large, s, t, groups)


_within_groups.defvjp(
    _value_and_gradient,
    lambda num_groups, positive, sides, gradient, cotangent: (cotangent * gradient, None, None),
)


def in_small_tiles(
    s: jax.Array, t: jax.Array, groups: jax.Array, *, num_groups: int, positive: bool
) -> tuple[jax.Array, jax.Array]:
    """Computes value and gradient on a CPU, from pairs of tiles of rows in the order of their groups."""
    rows = len(s)
    order = _sorted_by(groups, num_groups)
    num_tiles = -(-rows // TILE)
    tiled = lambda x: in_blocks(x[order], TILE)
    tile_groups = in_blocks(groups[order], TILE, num_groups)
    # A tile is compared with itself, and with the later tiles that begin with the group in which it ends.
    first, last = tile_groups[:, 0], tile_groups[:, -1]
    meets = jnp.sum(first[None] <= last[:, None], axis=1) - jnp.arange(num_tiles)
    meets = jnp.where(last == num_groups, 1, meets)

    def by_tiles(s: jax.Array, t: jax.Array, groups: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss, pull = _meet(tiled(s), tiled(t), tile_groups, meets, num_groups, positive)
        return loss, jnp.zeros_like(s).at[order].set(pull.reshape(num_tiles * TILE, -1)[:rows])

    product_cost = PRODUCT_COST * _blocks(rows, num_groups, SMALL_BLOCK) * SMALL_BLOCK * (s.shape[1] + t.shape[1])
    if positive or product_cost >= (num_tiles * TILE) ** 2:
        return by_tiles(s, t, groups)
    by_products = functools.partial(products, num_groups=num_groups, size=SMALL_BLOCK)
    tile_cost = meets.sum().astype(jnp.float32) * TILE**2
    return jax.lax.cond(tile_cost < product_cost, by_tiles, by_products, s, t, groups)


def _sorted_by(groups: jax.Array, num_groups: int) -> jax.Array:
    """Returns the stable order by group, `[n]`; groups in [0, num_groups]."""
    rows = len(groups)
    if (num_groups + 1) * rows < 2**31:  # one sort of single integers is several times faster than an argsort
        return jnp.sort(groups * rows + jnp.arange(rows, dtype=jnp.int32)) % rows
    return jnp.argsort(groups, stable=True)


def _meet(
    s: jax.Array, t: jax.Array, groups: jax.Array, meets: jax.Array, num_groups: int, positive: bool
) -> tuple[jax.Array, jax.Array]:
    """Computes loss and gradient over tiles `[tiles, TILE, d]`: tile i against the `meets[i]` tiles from itself on,
    MEETINGS pairs of tiles at a time. Both orders of a pair of rows count."""
    num_tiles = len(groups)
    end = jnp.cumsum(meets)

    def meet(chunk: jax.Array) -> Any:
        number = chunk * MEETINGS + jnp.arange(MEETINGS)
        i = jnp.minimum(jnp.sum(end[None] <= number[:, None], axis=1), num_tiles - 1)
        j = jnp.minimum(i + number - (end[i] - meets[i]), num_tiles - 1)
        ours, theirs = (s[i], t[i], groups[i]), (s[j], t[j], groups[j])
        target = einsum("iad,ibd->iab", ours[1], theirs[1])
        own = ours[2][:, :, None]
        counted = (own == theirs[2][:, None, :]) & (own < num_groups) & (number < end[-1])[:, None, None]
        if positive:
            counted &= target > 0
        cosine = einsum("iad,ibd->iab", ours[0], theirs[0])
        gap = jnp.where(counted, cosine - target, 0)
        orders = jnp.where(i == j, 1, 2).astype(s.dtype)[:, None, None]  # within a tile, both occur already
        force = 2 * orders * gap
        part = jnp.sum(orders * gap**2)
        pulls = einsum("iab,ibd->iad", force, theirs[0]), einsum("iab,iad->ibd", force, ours[0])
        return i, j, part, pulls, (ours, theirs, target, cosine, gap, force)

    def add(total: Any, met: Any) -> Any:
        loss, pull = total
        i, j, part, pulls, _ = met
        return loss + part, pull.at[i].add(pulls[0]).at[j].add(pulls[1])

    zero, pieces = (jnp.zeros((), s.dtype), jnp.zeros_like(s)), -(-end[-1] // MEETINGS)
    if not (axes := devices()):
        return accumulate(meet, add, vary(zero, axes_of(s)), pieces)
    parts, number = jax.lax.axis_size(axes), jax.lax.axis_index(axes)
    own = accumulate(lambda piece: meet(piece * parts + number), add, vary(zero, frozenset(axes)), -(-pieces // parts))
    return total(own[0]), total(own[1])


def in_large_products(
    s: jax.Array, t: jax.Array, groups: jax.Array, *, num_groups: int, positive: bool, sides: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Computes value and gradient on a GPU or TPU, with a deterministic order of additions."""
    rows, student_dim, dim = len(s), s.shape[1], s.shape[1] + t.shape[1]
    blocks = _blocks(rows, num_groups, LARGE_BLOCK)
    cost = blocks * (LARGE_BLOCK * dim * (dim + student_dim) + num_groups * dim**2)
    if not positive and cost < rows**2 * (dim + student_dim) and blocks * dim**2 <= ELEMENTS:
        return products(s, t, groups, num_groups=num_groups, size=LARGE_BLOCK)
    sides = tuple(size for size in sides if size)
    split = lambda x: jnp.split(x, np.cumsum(sides)[:-1])
    one_side = functools.partial(rows_against_all, num_groups=num_groups, positive=positive)
    values, gradients = zip(*map(one_side, split(s), split(t), split(groups)))
    return sum(values, jnp.zeros((), s.dtype)), jnp.concatenate(gradients)


def rows_against_all(
    s: jax.Array, t: jax.Array, groups: jax.Array, *, num_groups: int, positive: bool
) -> tuple[jax.Array, jax.Array]:
    """Computes value and gradient from the cosines of blocks of rows with all rows, ELEMENTS pairs at a time."""
    rows = len(s)
    own_rows = own_part(s), own_part(t), own_part(groups, num_groups)
    number = len(own_rows[0])
    size = min(max(ELEMENTS // rows, 1), number)
    turns = -(-number // size)

    fills = 0, 0, num_groups

    def meet(block: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        s_block, t_block, own = block
        target = einsum("ad,bd->ab", t_block, t)
        counted = (own[:, None] == groups[None]) & (own < num_groups)[:, None]
        if positive:
            counted &= target > 0
        gap = jnp.where(counted, einsum("ad,bd->ab", s_block, s) - target, 0)
        return jnp.sum(gap**2), 4 * in_chunks(gap, s)  # both rows of a pair, in both orders

    if turns == 1:
        value, gradient = meet(own_rows)
    else:
        values, gradients = jax.lax.map(meet, tuple(in_blocks(x, size, fill) for x, fill in zip(own_rows, fills)))
        value, gradient = values.sum(), gradients.reshape(turns * size, -1)[:number]
    return total(value), all_parts(gradient, rows)


def products(
    s: jax.Array, t: jax.Array, groups: jax.Array, *, num_groups: int, size: int
) -> tuple[jax.Array, jax.Array]:
    """Computes value and gradient over all pairs: |T'T|^2 - 2 |T'S|^2 + |S'S|^2 and 4 (S S'S - T T'S), group by group.

    Each block holds rows of one group; a group's products are the sums of its blocks'.
    """
    rows, teacher_dim = t.shape
    most = _blocks(rows, num_groups, size)
    member = groups[:, None] == jnp.arange(num_groups, dtype=groups.dtype)[None]
    row_of, owner, slots, _ = into_blocks(member, (rows,), size, most)
    both = jnp.concatenate([take_rows(t, row_of), take_rows(s, row_of)], axis=2)
    owns = (jnp.arange(num_groups)[:, None] == owner[None]).astype(s.dtype)
    tt = _summed(owns, both[..., :teacher_dim], both[..., :teacher_dim])
    ts, ss = jnp.split(_summed(owns, both, both[..., teacher_dim:]), [teacher_dim], axis=1)
    loss = jnp.sum(tt**2) - 2 * jnp.sum(ts**2) + jnp.sum(ss**2)
    force = jnp.concatenate([-ts, ss], axis=1)[owner]
    pull = 4 * einsum("bnd,bde->bne", both, force).reshape(most * size, -1)
    return loss, take_rows(pull, slots.min(axis=1))


def _summed(owns: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the products X'Y of blocks `[b, size, d]`, `[b, size, e]`, summed over each group's blocks as given by
    `owns` `[g, b]`: `[g, d, e]`."""
    block = einsum("bnd,bne->bde", x, y)
    return dot(owns, block.reshape(len(block), -1)).reshape(len(owns), *block.shape[1:])


def _blocks(rows: int, num_groups: int, size: int) -> int:
    """Returns a number of blocks for `products` that is enough for any grouping of the rows."""
    return -(-rows // size) + min(num_groups, rows)
