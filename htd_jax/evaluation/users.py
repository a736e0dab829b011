"""The users of an evaluation: all, or a sample of those who have held-out items."""

import numpy as np

from htd_jax.data import Interactions, Split


def held_out_users(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Returns the users who have held-out items in valid, and those in test: ascending int64."""
    valid, test = (np.flatnonzero(np.diff(np.asarray(part.offsets))) for part in (split.valid, split.test))
    return valid, test


def sample_parts(split: Split, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Samples `size` users who have held-out items in valid, and `size` in test, or all of a part that has fewer.

    Users are taken in one random order for both parts, so that those of one are mostly those of the other: where every
    user has held-out items in both, they are the same. Every set of a part's users is equally likely.

    Args:
      split: the data.
      size: at least 1.
      seed: of the sample, independent of the run's seed.

    Returns:
      Those of valid, and those of test: ascending int64.
    """
    order = np.random.default_rng(seed).permutation(split.train.num_users)
    valid, test = (np.sort(order[np.isin(order, users)][:size]) for users in held_out_users(split))
    return valid, test


def sample_users(split: Split, size: int, seed: int = 0) -> np.ndarray:
    """Returns the users of either part, see `sample_parts`: ascending int64."""
    return np.union1d(*sample_parts(split, size, seed))


def of_users(split: Split, users: np.ndarray) -> Split:
    """Returns the pairs of some users, who are numbered anew from 0.

    Args:
      split: the data.
      users: `[n]` ascending.
    """
    return Split(*(_of_users(part, users) for part in split))


def _of_users(part: Interactions, users: np.ndarray) -> Interactions:
    offsets = np.asarray(part.offsets, np.int64)
    degree = np.diff(offsets)[users]
    ends = np.cumsum(degree)
    at = np.repeat(offsets[users] - (ends - degree), degree) + np.arange(degree.sum())
    return Interactions.from_pairs(
        np.repeat(np.arange(len(users)), degree), np.asarray(part.items)[at], len(users), part.num_items
    )
