"""Fixed groups of users and items, as baselines of the groups that HTD learns."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np

# Iterations of Lloyd's algorithm; more would move few rows between groups.
ITERATIONS = 50


def random_groups(seed: int, num_users: int, num_items: int, num_groups: int) -> tuple[jax.Array, jax.Array]:
    """Samples the groups of users `[num_users]` and items `[num_items]` uniformly, int32 in [0, num_groups)."""
    sample = lambda side, size: jnp.asarray(_rng(seed, side).integers(num_groups, size=size), jnp.int32)
    return sample(0, num_users), sample(1, num_items)


def kmeans_groups(
    seed: int, teacher_users: jax.Array, teacher_items: jax.Array, num_groups: int
) -> tuple[jax.Array, jax.Array]:
    """Clusters the directions of the teacher's representations by k-means, users and items separately.

    Rows are scaled to length one first, since HTD's topology consists of cosines; a row of zeros stays zero. It starts
    by k-means++ and is computed on the host in float64; equal seeds give equal groups. A group may be empty, for
    example if there are fewer distinct rows than groups.

    Args:
      seed: the seed of the start.
      teacher_users: `[num_users, d_t]` floats.
      teacher_items: `[num_items, d_t]` floats.
      num_groups: K, the number of groups of users, and of groups of items.

    Returns:
      `[num_users]` and `[num_items]` int32 in [0, num_groups).
    """
    user_groups = _kmeans(_rng(seed, 0), teacher_users, num_groups)
    item_groups = _kmeans(_rng(seed, 1), teacher_items, num_groups)
    return user_groups, item_groups


def _kmeans(rng: np.random.Generator, table: jax.Array, num_groups: int) -> jax.Array:
    from scipy.cluster.vq import kmeans2  # takes a second, which other methods do not wait for

    rows = np.asarray(table, np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(length == 0, 1, length)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an empty group, which is harmless
        _, groups = kmeans2(rows, num_groups, iter=ITERATIONS, minit="++", rng=rng)
    return jnp.asarray(groups, jnp.int32)


def _rng(seed: int, side: int) -> np.random.Generator:
    return np.random.default_rng([seed, side])
