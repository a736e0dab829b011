"""The relations of a teacher that a student keeps: cosines of entities, neighbours, prototypes of groups, tags."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from htd_jax.data import Tags
from htd_jax.distillers.grouping import kmeans_groups
from htd_jax.losses.checks import check_floats, check_ints
from htd_jax.models import Representations
from htd_jax.ops.mapped import map_rows
from htd_jax.ops.products import dot
from htd_jax.ops.rows import group_directions, unit_rows
from htd_jax.serve.rank import Hidden, concatenate
from htd_jax.serving import Rows, best_items
from htd_jax.studies.overlaps import overlap

# The default groups per side, as in HTD.
GROUPS = 30

# The neighbours of an entity, and the items retrieved by tags.
NEIGHBOURS, RETRIEVED = 10, 100

# The largest number of entities whose errors and neighbours are computed; from more, this many are sampled.
SAMPLE = 2**14

# The number of pairs in memory at once, 4 bytes each.
PAIRS = 2**22


@dataclasses.dataclass(frozen=True)
class Agreement:
    """The agreement of a student's cosines of pairs with its teacher's.

    Attributes:
      pairs: the number of pairs, each counted once.
      correlation: Pearson's, in [-1, 1]; None if all cosines of one side are equal, or for fewer than two pairs.
      error: the mean of |cos(t_a, t_b) - cos(s_a, s_b)|, in [0, 2], over the pairs of a sample; None for no pair.
    """

    pairs: int
    correlation: float | None
    error: float | None


@dataclasses.dataclass(frozen=True)
class GroupLevel:
    """The relations of groups through their prototypes, the means of their entities.

    Attributes:
      groups: the k groups that have an entity, ascending.
      sizes: `[k]`, the number of entities of each.
      teacher, student: `[k, k]`, the cosines of prototypes.
      agreement: the agreement of the two, over pairs of different groups.
    """

    groups: tuple[int, ...]
    sizes: tuple[int, ...]
    teacher: tuple[tuple[float, ...], ...]
    student: tuple[tuple[float, ...], ...]
    agreement: Agreement


@dataclasses.dataclass(frozen=True)
class Kept:
    """The relations among some entities that a student keeps.

    Attributes:
      within, across: the entity level, for pairs within a group and across groups.
      neighbours: the mean share of an entity's nearest neighbours that are the same in both; 0 for no entities.
      groups: the group level.
    """

    within: Agreement
    across: Agreement
    neighbours: float
    groups: GroupLevel


def relations(
    teacher: Representations,
    student: Representations,
    *,
    groups: tuple[chex.Array, chex.Array] | None = None,
    num_groups: int = GROUPS,
    seed: int = 0,
    neighbours: int = NEIGHBOURS,
    sample: int = SAMPLE,
) -> dict[str, Kept]:
    """Returns the relations that a student keeps among `users`, among `items`, and among `both` together.

    Args:
      teacher, student: tables of the same users and items, of any widths.
      groups: the group of every user `[num_users]` and item `[num_items]`, integers in [0, num_groups); by k-means of
        the teacher's directions if None, see `kmeans_groups`. Users and items never share a group.
      num_groups: K, the groups per side.
      seed: the seed of k-means and of the sample.
      neighbours, sample: see `kept`.

    Raises:
      AssertionError, ValueError: see `kept`.
    """
    if groups is None:
        groups = kmeans_groups(seed, teacher.users, teacher.items, num_groups)
    users, items = map(np.asarray, groups)
    options: dict[str, Any] = {"seed": seed, "neighbours": neighbours, "sample": sample}
    join = lambda tables: jnp.concatenate([jnp.asarray(table) for table in tables])
    both = np.concatenate([users, num_groups + items])
    return {
        "users": kept(teacher.users, student.users, users, num_groups=num_groups, **options),
        "items": kept(teacher.items, student.items, items, num_groups=num_groups, **options),
        "both": kept(join(teacher), join(student), both, num_groups=2 * num_groups, **options),
    }


def kept(
    teacher: chex.Array,
    student: chex.Array,
    groups: chex.Array,
    *,
    num_groups: int,
    neighbours: int = NEIGHBOURS,
    sample: int = SAMPLE,
    seed: int = 0,
) -> Kept:
    """Returns the relations among n entities that a student keeps.

    Args:
      teacher: `[n, d_t]` floats; a row of zeros has a cosine of 0 with every other.
      student: `[n, d_s]` floats.
      groups: `[n]` integers in [0, num_groups).
      num_groups: the number of groups, which may be empty.
      neighbours: the number of neighbours, see `neighbour_overlap`.
      sample: the largest number of entities whose errors, among each other, and neighbours, among all, are computed;
        of more, so many are sampled from `seed`. Correlations and groups are over all.
      seed: the seed of the sample.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.
      ValueError: if a group is out of range, or a number is less than 1.
    """
    within, across = entity_level(teacher, student, groups, num_groups=num_groups, sample=sample, seed=seed)
    shared = neighbour_overlap(teacher, student, neighbours, rows=_sample(len(teacher), sample, seed))
    level = group_level(teacher, student, groups, num_groups=num_groups)
    return Kept(within, across, float(shared.mean()) if len(shared) else 0.0, level)


def entity_level(
    teacher: chex.Array,
    student: chex.Array,
    groups: chex.Array,
    *,
    num_groups: int,
    sample: int = SAMPLE,
    seed: int = 0,
) -> tuple[Agreement, Agreement]:
    r"""Returns the agreement of cosines of pairs within a group, and across groups, see `kept`.

    Correlations are over all n (n - 1) / 2 pairs, in float64 and O(n d^2) operations, without computing a pair: with T
    and S the rows of length one, the sums over pairs of t_ab, t_ab^2, t_ab s_ab follow from :math:`|T^\top 1|^2`,
    :math:`|T^\top T|^2`, :math:`|T^\top S|^2`, for pairs within groups group by group. The error has no such form; it
    is over the pairs of at most `sample` entities.

    >>> teacher = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> entity_level(teacher, 2 * teacher, jnp.array([0, 0, 1]), num_groups=2)[1]
    Agreement(pairs=2, correlation=None, error=0.0)
    """
    t, s, groups = _check(teacher, student, groups, num_groups)
    rows = _sample(len(groups), sample, seed)
    units = [np.asarray(unit_rows(x), np.float64) for x in (t, s)]
    every = _moments(*units)
    within = sum((_moments(*(x[groups == g] for x in units)) for g in np.unique(groups)), np.zeros(6))
    errors = _mean_errors(t[rows], s[rows], jnp.asarray(groups[rows], jnp.int32))
    within_all, across_all = (
        Agreement(round(moments[0]), _correlation(moments), error)
        for moments, error in zip((within, every - within), errors)
    )
    return within_all, across_all


def neighbour_overlap(
    teacher: chex.Array, student: chex.Array, k: int = NEIGHBOURS, *, rows: np.ndarray | None = None
) -> np.ndarray:
    """Returns the share of an entity's k nearest others by cosine that are the same in both: `[m]` float64 in [0, 1].

    The entities are those of `rows` `[m]`, all if None. Ties are broken by row. See `kept`.

    >>> teacher = jnp.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> neighbour_overlap(teacher, jnp.array([[1.0], [1.0], [-1.0]]), 1).tolist()
    [1.0, 1.0, 0.0]
    """
    t, s, _ = _check(teacher, student, None, 1)
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    return overlap(*(nearest(x, min(k, max(1, len(x) - 1)), rows=rows) for x in (t, s)))


def nearest(table: chex.Array, k: int, *, rows: np.ndarray | None = None) -> np.ndarray:
    """Returns the k other rows of a table `[n, d]` that are nearest by cosine to each of `rows` `[m]`: `[m, k]` int32,
    the nearest first, -1 for none."""
    size = len(table)
    if not size:
        return np.zeros((0, k), np.int32)
    unit = Rows(unit_rows(jnp.asarray(table, jnp.float32)))
    itself = Hidden(np.arange(size + 1), np.arange(size, dtype=np.int32))
    return concatenate(best_items(unit, unit, k, rows=rows, hidden=itself), k).rows


def group_level(teacher: chex.Array, student: chex.Array, groups: chex.Array, *, num_groups: int) -> GroupLevel:
    """Returns the cosines of the groups' prototypes in teacher and student, without empty groups, see `kept`.

    >>> teacher = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> group_level(teacher, -teacher, jnp.array([2, 0]), num_groups=3).student
    ((1.0, 0.0), (0.0, 1.0))
    """
    t, s, groups = _check(teacher, student, groups, num_groups)
    sizes = np.bincount(groups, minlength=num_groups)
    present = np.flatnonzero(sizes)

    def cosines(x: jax.Array) -> np.ndarray:
        prototypes = np.asarray(group_directions(x, jnp.asarray(groups, jnp.int32), num_groups), np.float64)
        return prototypes[present] @ prototypes[present].T

    matrices = cosines(t), cosines(s)
    a, b = (matrix[np.triu_indices(len(present), 1)] for matrix in matrices)
    moments = np.array([len(a), a.sum(), b.sum(), a @ a, b @ b, a @ b])
    agreement = Agreement(len(a), _correlation(moments), float(np.abs(a - b).mean()) if len(a) else None)
    in_teacher, in_student = (tuple(map(tuple, matrix.tolist())) for matrix in matrices)
    return GroupLevel(tuple(present.tolist()), tuple(sizes[present].tolist()), in_teacher, in_student, agreement)


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """The retrieval of items that share a tag.

    Attributes:
      precision: the mean average precision at k, in [0, 1].
      by_chance: the expected precision of a random order: the share of other items that share a tag, on average.
      items: the number of items that share a tag with another.
      k: the number of retrieved items.
    """

    precision: float
    by_chance: float
    items: int
    k: int


def tag_retrieval(items: chex.Array, tags: Tags, k: int = RETRIEVED) -> Retrieval:
    """Returns the mean average precision of an item's k nearest by cosine, where those that share a tag are relevant.

    The k nearest are among all other items, with tags or without; those with a tag in common are hits, at ranks
    r_1 < r_2 < ..., out of R. AP@k is the sum of j / r_j over the hits, divided by min(R, k); the mean is over the
    items with R > 0.

    Args:
      items: `[num_items, d]` floats.
      tags: the tags of the same items.
      k: the number of items, at least 1.

    Raises:
      AssertionError: if `items` is not a table of this many items.
      ValueError: if k is less than 1.

    >>> tags = Tags.from_pairs(np.array([0, 1, 2]), np.array([0, 0, 1]), 3, 2)
    >>> tag_retrieval(jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.5]]), tags).precision
    0.5
    """
    table = check_floats("items", items, tags.num_items, None)
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    shape = (tags.num_items, tags.num_tags)
    carries = sparse.csr_array((np.ones(len(tags.items), np.int32), (tags.items, tags.tags)), shape)
    found = nearest(table, k)
    total, chance, counted = 0.0, 0.0, 0
    width = max(1, PAIRS // max(1, tags.num_items))
    for first in range(0, tags.num_items, width):
        own = np.arange(first, min(first + width, tags.num_items))
        shares = (carries[own] @ carries.T).toarray() > 0
        shares[np.arange(len(own)), own] = False
        relevant = shares.sum(1)
        near = found[own]
        hits = np.take_along_axis(shares, np.maximum(near, 0), axis=1) & (near >= 0)
        precisions = np.cumsum(hits, axis=1) / np.arange(1, 1 + near.shape[1])
        total += float((np.where(hits, precisions, 0).sum(1) / np.maximum(np.minimum(relevant, k), 1)).sum())
        chance += float(relevant.sum()) / max(1, tags.num_items - 1)
        counted += int((relevant > 0).sum())
    return Retrieval(total / max(1, counted), chance / max(1, counted), counted, k)


def _sample(size: int, most: int, seed: int) -> np.ndarray:
    """Returns all rows `[size]`, or `most` of them, ascending."""
    if most < 1:
        raise ValueError(f"sample: expected at least 1, got {most}")
    if size <= most:
        return np.arange(size)
    return np.sort(np.random.default_rng(seed).choice(size, most, replace=False))


def _moments(t: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Returns the number of pairs of different rows `[m, d]`, and the sums over pairs of t, s, t^2, s^2 and t s, their
    inner products: the sums over all ordered pairs, less those of a row with itself, halved."""
    norms_t, norms_s = (np.einsum("ad,ad->a", x, x) for x in (t, s))
    sums_t, sums_s = t.sum(0), s.sum(0)
    ordered = [
        len(t) ** 2 - len(t),
        sums_t @ sums_t - norms_t.sum(),
        sums_s @ sums_s - norms_s.sum(),
        np.sum((t.T @ t) ** 2) - norms_t @ norms_t,
        np.sum((s.T @ s) ** 2) - norms_s @ norms_s,
        np.sum((t.T @ s) ** 2) - norms_t @ norms_s,
    ]
    return np.array(ordered, np.float64) / 2


def _correlation(moments: np.ndarray) -> float | None:
    """Returns Pearson's correlation from the number and the sums of x, y, x^2, y^2 and x y."""
    count, x, y, xx, yy, xy = moments.tolist()
    if count < 2:
        return None
    spread_x, spread_y = xx - x * x / count, yy - y * y / count
    if min(spread_x, spread_y) <= 1e-12 * count:  # all equal, but for float32's rounding
        return None
    return float(np.clip((xy - x * y / count) / np.sqrt(spread_x * spread_y), -1, 1))


def _mean_errors(t: jax.Array, s: jax.Array, groups: jax.Array) -> tuple[float | None, float | None]:
    """Returns the mean of |t_ab - s_ab| over pairs of different rows, within a group and across; None for no pairs."""
    size = len(groups)
    if not size:
        return None, None
    in_group, in_all = (np.asarray(x, np.float64).sum() for x in _error_sums(t, s, groups))
    members = np.bincount(np.asarray(groups))
    within = int(members @ members) - size
    mean = lambda total, count: float(total / count) if count else None
    return mean(in_group, within), mean(in_all - in_group, size * size - size - within)


@jax.jit
def _error_sums(t: jax.Array, s: jax.Array, groups: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns each row's sum `[n]` of errors with the others of its group, and with all others."""
    t, s = unit_rows(t), unit_rows(s)
    others = jnp.arange(len(t))

    def row_sums(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        error = jnp.abs(dot(t[rows], t.T) - dot(s[rows], s.T))
        error = jnp.where(rows[:, None] == others[None], 0, error)
        own = groups[rows][:, None] == groups[None]
        return jnp.sum(jnp.where(own, error, 0), axis=1), jnp.sum(error, axis=1)

    sums: tuple[jax.Array, jax.Array] = map_rows(row_sums, len(t), PAIRS // len(t))
    return sums


def _check(
    teacher: chex.Array, student: chex.Array, groups: chex.Array | None, num_groups: int
) -> tuple[jax.Array, jax.Array, np.ndarray]:
    t = check_floats("teacher", teacher, None, None)
    s = check_floats("student", student, len(t), None)
    own = np.zeros(len(t), np.int64) if groups is None else np.asarray(check_ints("groups", groups, len(t)), np.int64)
    if len(own) and not 0 <= own.min() <= own.max() < num_groups:
        raise ValueError(f"groups: expected integers in [0, {num_groups}), got {own.min()} to {own.max()}")
    return t, s, own
