"""Whether a student keeps its teacher's relations: cosines of entities, neighbours, prototypes of groups, tags."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from htd_jax.data import Tags
from htd_jax.distillers import Representations
from htd_jax.distillers.grouping import kmeans_groups
from htd_jax.losses.checks import check_floats, check_ints
from htd_jax.ops.mapped import map_rows
from htd_jax.ops.products import dot
from htd_jax.ops.rows import group_directions, unit_rows
from htd_jax.serving import Rows, best_items
from htd_jax.serving.topk import Hidden, concatenate
from htd_jax.studies.overlaps import overlap

# Groups a side, as HTD has.
GROUPS = 30

# Neighbours of an entity, and items that are looked through for those with a tag in common.
NEIGHBOURS, RETRIEVED = 10, 100

# Entities that are looked at one by one, in pairs and for their neighbours; of more, so many are drawn.
SAMPLE = 2**14

# Pairs that are held at once, 4 bytes each.
PAIRS = 2**22


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How a student's cosines of pairs go with its teacher's.

    Attributes:
      pairs: how many, each once.
      correlation: Pearson's, in [-1, 1]; None where either has the same cosine for every pair, or there are under two.
      error: the mean of |cos(t_a, t_b) - cos(s_a, s_b)|, in [0, 2], of a sample's pairs where there is one; None of no
        pair.
    """

    pairs: int
    correlation: float | None
    error: float | None


@dataclasses.dataclass(frozen=True)
class GroupLevel:
    """The relations of groups, through their prototypes: the means of their entities.

    Attributes:
      groups: the numbers of those that have an entity, ascending: k of them.
      sizes: `[k]`, how many entities each has.
      teacher, student: `[k, k]`, cosines of prototypes.
      agreement: of the two, over pairs of different groups.
    """

    groups: tuple[int, ...]
    sizes: tuple[int, ...]
    teacher: tuple[tuple[float, ...], ...]
    student: tuple[tuple[float, ...], ...]
    agreement: Agreement


@dataclasses.dataclass(frozen=True)
class Kept:
    """What a student keeps of its teacher's relations among some entities.

    Attributes:
      within, across: the entity level, of pairs of one group and of two.
      neighbours: the mean share of an entity's nearest neighbours that it has in both; of no entity 0.
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
    """What a student keeps of its teacher's relations among users, among items, and among both together.

    Args:
      teacher, student: tables of the same users and items, of any widths.
      groups: of every user `[num_users]` and every item `[num_items]`, integers in [0, num_groups); by k-means of the
        teacher's directions if None, see `kmeans_groups`. Together, users and items have groups of their own.
      num_groups: K, groups a side.
      seed: of k-means and of the sample.
      neighbours, sample: see `kept`.

    Returns:
      By name: `users`, `items`, `both`.

    Raises:
      AssertionError, ValueError: see `kept`.
    """
    if groups is None:
        groups = kmeans_groups(seed, teacher.users, teacher.items, num_groups)
    of_users, of_items = (np.asarray(its) for its in groups)
    how: dict[str, Any] = {"seed": seed, "neighbours": neighbours, "sample": sample}
    together_of = lambda tables: jnp.concatenate([jnp.asarray(table) for table in tables])
    return {
        "users": kept(teacher.users, student.users, of_users, num_groups=num_groups, **how),
        "items": kept(teacher.items, student.items, of_items, num_groups=num_groups, **how),
        "both": kept(
            together_of(teacher),
            together_of(student),
            np.concatenate([of_users, num_groups + of_items]),
            num_groups=2 * num_groups,
            **how,
        ),
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
    """What a student keeps of its teacher's relations among n entities.

    Args:
      teacher: `[n, d_t]` floats; a row of zeros has a cosine of 0 with every other.
      student: `[n, d_s]` floats.
      groups: `[n]` integers in [0, num_groups).
      num_groups: some may be empty.
      neighbours: how many, see `neighbour_overlap`.
      sample: if there are more entities, so many are drawn from `seed`, each set as likely: errors are of the pairs
        among them, and neighbours, looked for among all entities, are theirs. Correlations and groups are of all.

    Raises:
      AssertionError: an argument of a wrong rank, shape or dtype.
      ValueError: groups out of range, or a number under 1.
    """
    within, across = entity_level(teacher, student, groups, num_groups=num_groups, sample=sample, seed=seed)
    shared = neighbour_overlap(teacher, student, neighbours, of=_sample(len(teacher), sample, seed))
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
    r"""The cosines of pairs of one group, and those of pairs of two.

    Correlations are of all n (n - 1) / 2 pairs, in float64, without one of them being made: with T and S the rows of
    length one, the sums over pairs of t_ab, t_ab^2, t_ab s_ab come from :math:`|T^\top 1|^2`, :math:`|T^\top T|^2`,
    :math:`|T^\top S|^2`; of pairs within groups group by group; O(n d^2) operations. The error has no such form: it is
    of the pairs of `sample` entities at most, a block of rows at a time.

    Args, raises: see `kept`.

    Returns:
      Within groups, and across.

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
    teacher: chex.Array, student: chex.Array, k: int = NEIGHBOURS, *, of: np.ndarray | None = None
) -> np.ndarray:
    """The share of an entity's k nearest others, by cosine, that are its nearest for both: `[m]` float64 in [0, 1].

    Equally near ones stand in the order of rows. Of k others or fewer all are the nearest.

    Args, raises: see `kept`; `k` is at least 1, and `of` the rows `[m]` whose it is, all if None.

    >>> teacher = jnp.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> neighbour_overlap(teacher, jnp.array([[1.0], [1.0], [-1.0]]), 1).tolist()
    [1.0, 1.0, 0.0]
    """
    t, s, _ = _check(teacher, student, None, 1)
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    return overlap(*(nearest(x, min(k, max(1, len(x) - 1)), of=of) for x in (t, s)))


def nearest(table: chex.Array, k: int, *, of: np.ndarray | None = None) -> np.ndarray:
    """The k nearest other rows, of `[n, d]` by cosine, of the rows `of` `[m]`, all if None, the nearest first: `[m, k]`
    int32, -1 for none."""
    size = len(table)
    if not size:
        return np.zeros((0, k), np.int32)
    unit = Rows(unit_rows(jnp.asarray(table, jnp.float32)))
    itself = Hidden(np.arange(size + 1), np.arange(size, dtype=np.int32))
    return concatenate(best_items(unit, unit, k, rows=of, hidden=itself), k).rows


def group_level(teacher: chex.Array, student: chex.Array, groups: chex.Array, *, num_groups: int) -> GroupLevel:
    """The cosines of the groups' prototypes, of the teacher and of the student.

    Args, raises: see `kept`. A group of no entity is left out.

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

    of_teacher, of_student = cosines(t), cosines(s)
    pairs = np.triu_indices(len(present), 1)
    a, b = of_teacher[pairs], of_student[pairs]
    moments = np.array([len(a), a.sum(), b.sum(), a @ a, b @ b, a @ b])
    agreement = Agreement(len(a), _correlation(moments), float(np.abs(a - b).mean()) if len(a) else None)
    plain = lambda matrix: tuple(map(tuple, matrix.tolist()))
    return GroupLevel(
        tuple(present.tolist()), tuple(sizes[present].tolist()), plain(of_teacher), plain(of_student), agreement
    )


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """How well an item finds those that share a tag with it.

    Attributes:
      precision: the mean average precision at k, in [0, 1].
      by_chance: what a random order would have, in the mean: the share of an item's others that share a tag with it.
      items: of how many items, those that share a tag with another.
      k: items that are retrieved.
    """

    precision: float
    by_chance: float
    items: int
    k: int


def tag_retrieval(items: chex.Array, tags: Tags, k: int = RETRIEVED) -> Retrieval:
    """The mean average precision with which items find, as their nearest by cosine, those that share a tag with them.

    Of an item a, its k nearest are taken among all other items, whether these have tags or not. Those that have at
    least one tag in common with a are hits, at the ranks r_1 < r_2 < ...; R is how many such items there are at all.
    Then AP@k is the sum of j / r_j over the hits, divided by min(R, k): 1 where all of the first min(R, k) are hits.
    The mean is over the items with R > 0.

    Args:
      items: `[num_items, d]` floats.
      tags: of the same items.
      k: at least 1.

    Raises:
      AssertionError: `items` is no table, or of another number of items.
      ValueError: k under 1.

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
    """All rows `[size]`, or `most` of them, ascending."""
    if most < 1:
        raise ValueError(f"sample: expected at least 1, got {most}")
    if size <= most:
        return np.arange(size)
    return np.sort(np.random.default_rng(seed).choice(size, most, replace=False))


def _moments(t: np.ndarray, s: np.ndarray) -> np.ndarray:
    """How many pairs of different rows there are, each once, and their sums of t, s, t^2, s^2 and t s, which are inner
    products of rows `[m, d]`: the sums over all ordered pairs, less those of a row with itself, halved."""
    of_t, of_s = (np.einsum("ad,ad->a", x, x) for x in (t, s))
    sums_t, sums_s = t.sum(0), s.sum(0)
    ordered = [
        len(t) ** 2 - len(t),
        sums_t @ sums_t - of_t.sum(),
        sums_s @ sums_s - of_s.sum(),
        np.sum((t.T @ t) ** 2) - of_t @ of_t,
        np.sum((s.T @ s) ** 2) - of_s @ of_s,
        np.sum((t.T @ s) ** 2) - of_t @ of_s,
    ]
    return np.array(ordered, np.float64) / 2


def _correlation(moments: np.ndarray) -> float | None:
    """Pearson's, from the number and the sums of x, y, x^2, y^2 and x y."""
    count, x, y, xx, yy, xy = moments.tolist()
    if count < 2:
        return None
    of_x, of_y = xx - x * x / count, yy - y * y / count
    # Rows of length one are so up to a rounding of float32, and so is a cosine that is the same everywhere.
    least = 1e-12
    if of_x <= least * count or of_y <= least * count:
        return None
    return float(np.clip((xy - x * y / count) / np.sqrt(of_x * of_y), -1, 1))


def _mean_errors(t: jax.Array, s: jax.Array, groups: jax.Array) -> tuple[float | None, float | None]:
    """The mean of |t_ab - s_ab| over pairs of different rows, of one group and of two; None of none."""
    size = len(groups)
    if not size:
        return None, None
    sums = _error_sums(t, s, groups)
    of_one, of_any = (np.asarray(x, np.float64).sum() for x in sums)
    members = np.bincount(np.asarray(groups))
    within = int(members @ members) - size
    mean = lambda total, count: float(total / count) if count else None
    return mean(of_one, within), mean(of_any - of_one, size * size - size - within)


@jax.jit
def _error_sums(t: jax.Array, s: jax.Array, groups: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of each row `[n]`, the sum of its errors with the others of its group, and with all others."""
    t, s = unit_rows(t), unit_rows(s)
    others = jnp.arange(len(t))

    def of_rows(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        error = jnp.abs(dot(t[rows], t.T) - dot(s[rows], s.T))
        error = jnp.where(rows[:, None] == others[None], 0, error)
        own = groups[rows][:, None] == groups[None]
        return jnp.sum(jnp.where(own, error, 0), axis=1), jnp.sum(error, axis=1)

    sums: tuple[jax.Array, jax.Array] = map_rows(of_rows, len(t), PAIRS // len(t))
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
