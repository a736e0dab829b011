"""Groups that are given instead of learned: what HTD's own are measured against."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from scipy.cluster.vq import kmeans2

# Iterations of Lloyd's; more would move few rows between groups.
ITERATIONS = 50


def random_groups(seed: int, num_users: int, num_items: int, num_groups: int) -> tuple[jax.Array, jax.Array]:
    """Every user and item in a group drawn uniformly: `[num_users]` and `[num_items]` int32 in [0, num_groups)."""
    draw = lambda side, size: jnp.asarray(_rng(seed, side).integers(num_groups, size=size), jnp.int32)
    return draw(0, num_users), draw(1, num_items)


def kmeans_groups(
    seed: int, teacher_users: jax.Array, teacher_items: jax.Array, num_groups: int
) -> tuple[jax.Array, jax.Array]:
    """K-means over the directions of the teacher's representations, users and items each on their own.

    Rows are scaled to length one first, since the topology that the groups are for is one of cosines; a row of zeros
    stays one. Started by k-means++, computed on the host in float64; equal seeds give equal groups. A group may be
    left empty, where there are fewer different rows than groups for one.

    Args:
      seed: of the start.
      teacher_users: `[num_users, d_t]` floats.
      teacher_items: `[num_items, d_t]` floats.
      num_groups: K, groups a side.

    Returns:
      `[num_users]` and `[num_items]` int32 in [0, num_groups).
    """
    of_users, of_items = (
        _kmeans(_rng(seed, side), rows, num_groups) for side, rows in enumerate((teacher_users, teacher_items))
    )
    return of_users, of_items


def _kmeans(rng: np.random.Generator, table: jax.Array, num_groups: int) -> jax.Array:
    rows = np.asarray(table, np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(length == 0, 1, length)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty group, which is none the worse
        _, groups = kmeans2(rows, num_groups, iter=ITERATIONS, minit="++", rng=rng)
    return jnp.asarray(groups, jnp.int32)


def _rng(seed: int, side: int) -> np.random.Generator:
    return np.random.default_rng([seed, side])
