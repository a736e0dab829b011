"""Splits: drawn from a seed, and kept in a file."""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from htd_jax.data.interactions import Split, as_pairs, make_split
from htd_jax.errors import UserError, shown
from htd_jax.writing import whole

# How many of a user's d items each of valid and test gets, of a share. At least one stays in train, whatever d is.
SPLITS = {
    "leave-one-out": lambda degree, share: (degree >= 3).astype(int),
    "ratio": lambda degree, share: np.minimum((degree * share + 0.5).astype(int), np.maximum(degree - 1, 0) // 2),
}

# What `deal` answers with.
TRAIN, VALID, TEST = 0, 1, 2


def split_pairs(users: ArrayLike, items: ArrayLike, *, split: str = "leave-one-out", seed: int = 0) -> Split:
    """Deals every user's items at random to train, valid and test.

    Args:
      users: `[n]` integers from 0: an array, a list, or a column of a DataFrame, whose labels do not count.
      items: `[n]` integers from 0; no pair (user, item) stands twice.
      split: `"leave-one-out"`, one item a user in valid and one in test, or `"ratio"`, a fifth (rounded) in each. Of a
        user with less than three items all are in train.
      seed: any integer of at least 0. The same one gives the same split.

    Raises:
      UserError: what are no pairs, an unknown split, a seed below 0, or a split that cannot be, see `make_split`.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; known splits: {', '.join(SPLITS)}")
    if seed < 0:
        raise UserError(f"--split-seed: must be at least 0, not {seed}")
    users, items = as_pairs(users, items)
    if not len(users):
        raise UserError("there is no interaction to split")
    parts = deal(users, split, seed=seed)
    train, valid, test = ((users[parts == p], items[parts == p]) for p in (TRAIN, VALID, TEST))
    return make_split(train, valid, test, num_users=int(users.max()) + 1, num_items=int(items.max()) + 1)


def deal(
    users: np.ndarray, split: str, *, seed: int = 0, share: float = 0.2, times: np.ndarray | None = None
) -> np.ndarray:
    """Which part every interaction goes to.

    Args:
      users: `[n]` integers from 0, whose each is.
      split: one of `SPLITS`; `last`, a user's last item in test and the one before in valid; or `time`, the last
        `share` of all interactions in test and as many before them in valid; what happened at one time stays together.
      seed: of what is at random; of equal times too.
      share: of each of valid and test, for `ratio` and `time`; at most .45.
      times: `[n]` floats, for `last` and `time`.

    Returns:
      `[n]` TRAIN, VALID or TEST.
    """
    if split == "time":
        assert times is not None
        first, second = np.quantile(times, [1 - 2 * share, 1 - share], method="lower")
        return (times > first).astype(int) + (times > second)
    by_time = () if split != "last" else (-times,)  # type: ignore[operator]
    order = np.lexsort((np.random.default_rng(seed).permutation(len(users)), *by_time, users))
    ordered = users[order]
    degree = np.bincount(users)
    place = np.arange(len(users)) - (np.cumsum(degree) - degree)[ordered]
    held_out = SPLITS["leave-one-out" if split == "last" else split](degree, share)[ordered]
    parts = np.empty(len(users), int)
    parts[order] = np.where(place < held_out, TEST, np.where(place < 2 * held_out, VALID, TRAIN))
    return parts


def save_split(path: Path, split: Split) -> None:
    """Writes `split` to an .npz file, whole or not at all: `sizes` (users, items), and `[n, 2]` pairs of each part.

    Raises:
      UserError: the file cannot be written.
    """
    pairs = {name: np.stack([part.users, part.items], 1) for name, part in zip(split._fields, split)}
    pairs["sizes"] = np.array([split.train.num_users, split.train.num_items])
    try:
        with whole(path) as partial, open(partial, "xb") as file:
            np.savez_compressed(file, **pairs)  # type: ignore[arg-type]
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be written ({error.strerror or error})") from None


def load_split(path: Path) -> Split:
    """The split that `save_split` wrote.

    Raises:
      UserError: the file cannot be read, is damaged, or holds something else.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            sizes, *parts = (arrays[name] for name in ("sizes", *Split._fields))
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read ({error.strerror or error})") from None
    except Exception:  # a damaged archive raises whatever its bytes happen to mean
        raise UserError(f"{shown(path)}: damaged, or no split that this program saved") from None
    sound = all(array.dtype.kind == "i" for array in (sizes, *parts)) and sizes.shape == (2,)
    if not sound or not all(part.ndim == 2 and part.shape[1] == 2 for part in parts):
        raise UserError(f"{shown(path)}: damaged, or no split that this program saved")
    try:
        train, valid, test = ((part[:, 0], part[:, 1]) for part in parts)
        return make_split(train, valid, test, *sizes.tolist())
    except (UserError, MemoryError, ValueError) as error:
        raise UserError(f"{shown(path)}: {error}") from None
