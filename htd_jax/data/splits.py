"""Splits: sampled from a seed, saved to a file, and loaded."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from htd_jax.data.arrays import open_npz
from htd_jax.data.files import most_inflated
from htd_jax.data.interactions import Interactions, Split, as_pairs, make_split
from htd_jax.data.order import order
from htd_jax.errors import UserError, reading, shown
from htd_jax.writing import whole

# The number of a user's items in each of valid and test, given its degree and a share. At least one stays in train.
SPLITS = {
    "leave-one-out": lambda degree, share: (degree >= 3).astype(int),
    "ratio": lambda degree, share: np.minimum((degree * share + 0.5).astype(int), np.maximum(degree - 1, 0) // 2),
}

# The share of a new user's items that are to be ranked; the others are known.
NEW_SHARE = 0.2

# The parts that `deal` returns.
TRAIN, VALID, TEST = 0, 1, 2


def split_pairs(users: ArrayLike, items: ArrayLike, *, split: str = "leave-one-out", seed: int = 0) -> Split:
    """Deals every user's items at random to train, valid and test.

    Args:
      users: `[n]` integers from 0: an array, a list, or a column of a DataFrame, whose labels are ignored.
      items: `[n]` integers from 0; every pair (user, item) is distinct.
      split: `"leave-one-out"`, one item per user in valid and one in test, or `"ratio"`, a fifth (rounded) in each. All
        items of a user with less than three are in train.
      seed: an integer of at least 0.

    Raises:
      UserError: see `as_pairs` and `make_split`; or if the split is unknown or the seed below 0.
    """
    if split not in SPLITS:
        raise UserError(f"unknown `split` {split!r}; known: {', '.join(SPLITS)}")
    if seed < 0:
        raise UserError(f"`seed` must be at least 0, not {seed}")
    users, items = as_pairs(users, items)
    if not len(users):
        raise UserError("there are no interactions to split")
    parts = deal(users, split, seed=seed)
    train, valid, test = ((users[parts == p], items[parts == p]) for p in (TRAIN, VALID, TEST))
    return make_split(train, valid, test, num_users=int(users.max()) + 1, num_items=int(items.max()) + 1)


def deal(
    users: np.ndarray, split: str, *, seed: int = 0, share: float = 0.2, times: np.ndarray | None = None
) -> np.ndarray:
    """Returns the part of every interaction.

    Args:
      users: `[n]` integers from 0.
      split: one of `SPLITS`; `last`, a user's last item in test and the one before in valid; `time`, the last `share`
        of all interactions in test and as many before them in valid, where equal times stay together; or `new-users`,
        a fifth of the items, rounded, at least 1, of a `share` of the users in test, and of as many others in valid.
        Users with one item are in train.
      seed: seed of random choices, including the order of equal times.
      share: share of each of valid and test, for `ratio`, `time` and `new-users`; at most 0.45.
      times: `[n]` floats, for `last` and `time`.

    Returns:
      `[n]` int8: TRAIN, VALID or TEST.
    """
    if split == "time":
        assert times is not None
        first, second = np.quantile(times, [1 - 2 * share, 1 - share], method="lower")
        return (times > first).astype(np.int8) + (times > second)
    rng = np.random.default_rng(seed)
    keys = rng.permutation(len(users))
    if split != "new-users":
        return deal_users(users, split, keys, share=share, times=times)
    rows = order(users, keys)
    degree = np.bincount(users)
    enough = rng.permutation(np.flatnonzero(degree > 1))
    size = max(1, int(share * len(enough) + 0.5))
    part_of = np.full(len(degree), TRAIN, np.int8)
    part_of[enough[:size]], part_of[enough[size : 2 * size]] = TEST, VALID
    parts = part_of[users]
    place = np.empty(len(users), np.int64)
    place[rows] = np.arange(len(users)) - (np.cumsum(degree) - degree)[users[rows]]
    parts[place >= np.maximum(1, (degree * NEW_SHARE + 0.5).astype(int))[users]] = TRAIN
    return parts


def deal_users(
    users: np.ndarray, split: str, keys: np.ndarray, *, share: float = 0.2, times: np.ndarray | None = None
) -> np.ndarray:
    """Returns the part of every interaction, which depends on its user's alone; see `deal`.

    Args:
      users: `[n]` integers from 0.
      split: one of `SPLITS`, or `last`.
      keys: `[n]` distinct integers, whose order is that of a user's items, or of those of equal times.
      share, times: see `deal`.
    """
    by_time = () if split != "last" else (-times,)  # type: ignore[operator]
    rows = order(users, *by_time, keys)
    degree = np.bincount(users)
    held_out = SPLITS["leave-one-out" if split == "last" else split](degree, share)
    ordered = users[rows]
    place = np.arange(len(users))  # of a row among those of its user
    place -= (np.cumsum(degree) - degree)[ordered]
    parts = np.empty(len(users), np.int8)
    parts[rows] = np.where(place < held_out[ordered], TEST, (place < (2 * held_out)[ordered]) * VALID)
    return parts


def hold_out(split: Split, *, share: float = 0.1, seed: int = 0) -> Split:
    """Returns a split whose validation part is a share, rounded, of each user's training pairs; test stays as it is.

    Args:
      split: of which the validation part is not used.
      share: over 0 and under 1.
      seed: seed of the choice.

    Raises:
      UserError: if no user has enough training pairs.
    """
    users, items = np.asarray(split.train.users, np.int64), np.asarray(split.train.items)
    held_out = (np.diff(np.asarray(split.train.offsets)) * share + 0.5).astype(int)
    rows = order(users, np.random.default_rng(seed).permutation(len(users)))
    place = np.arange(len(users)) - np.asarray(split.train.offsets, np.int64)[users[rows]]
    held = place < held_out[users[rows]]
    parts = ((users[rows[chosen]], items[rows[chosen]]) for chosen in (~held, held))
    train, valid = (Interactions.from_pairs(*part, split.train.num_users, split.train.num_items) for part in parts)
    if not len(train) or not len(valid):
        raise UserError(
            "the data has no validation part, and too few training pairs per user to hold some out; set `budget` to 0, "
            "which chooses nothing"
        )
    return Split(train, valid, split.test)


def in_first_parts(parts: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the users and the items of each part's pairs `[n, 2]`, without those that an earlier part holds."""
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    before = np.empty(0, np.int64)
    most = max((int(part[:, 1].max()) for part in parts if len(part)), default=0) + 1
    for part in parts:
        codes = part[:, 0].astype(np.int64) * most + part[:, 1]
        new = ~np.isin(codes, before)
        kept.append((part[new, 0], part[new, 1]))
        before = np.append(before, codes)
    return kept


def save_split(path: Path, split: Split, new_users: np.ndarray | None = None) -> None:
    """Writes `split` to an .npz file atomically: `sizes` (users, items), `[n, 2]` pairs of each part, and `new_users`,
    see `Dataset`, if there are any.

    Raises:
      UserError: if the file cannot be written.
    """
    pairs = {name: np.stack([part.users, part.items], 1) for name, part in zip(split._fields, split)}
    pairs["sizes"] = np.array([split.train.num_users, split.train.num_items])
    if new_users is not None:
        pairs["new_users"] = new_users
    try:
        with whole(path) as partial, open(partial, "xb") as file:
            np.savez(file, **pairs)  # type: ignore[arg-type]  # compression takes longer than reading the log
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be written ({error.strerror or error})") from None


def load_split(path: Path | str) -> Split:
    """Reads a split that `save_split` wrote; its validation part may be empty.

    Raises:
      UserError: if the file cannot be read, is damaged, or holds something else, such as a pair in two parts.
    """
    return read_split(path)[0]


def read_split(path: Path | str, *, keep_first: bool = False) -> tuple[Split, int]:
    """Does what `load_split` does, and also returns the number of repeated pairs, which are dropped.

    Args:
      path: the file.
      keep_first: whether a pair in several parts stays in the first of train, valid and test, so that no item is
        ranked that its user has seen; else it is an error.
    """
    path = Path(path)
    with reading(path, "a saved split"):
        arrays = open_npz(path)
        opened = [arrays[name] for name in ("sizes", *Split._fields)]
        if opened[0].shape != (2,) or any(array.dtype.kind != "i" for array in opened):
            raise ValueError("its arrays are of other types")
        if any(len(part.shape) != 2 or part.shape[1] != 2 for part in opened[1:]):
            raise ValueError("its arrays are of other shapes")
        sizes, *parts = (array.read() for array in opened)
        for name, number in zip(("user", "item"), sizes.tolist()):
            if number > most_inflated(path.stat().st_size):
                raise UserError(
                    f"{shown(path)}: says that there are {number} {name}s, which is more than its "
                    f"{path.stat().st_size} bytes justify; number {name}s without gaps"
                )
        try:
            train, valid, test = in_first_parts(parts) if keep_first else [(part[:, 0], part[:, 1]) for part in parts]
            split = make_split(train, valid, test, *sizes.tolist())
            return split, sum(map(len, parts)) - sum(map(len, split))
        except UserError as error:
            raise UserError(f"{shown(path)}: {error}") from None


def load_new_users(path: Path, num_users: int) -> np.ndarray | None:
    """Reads the `new_users` that `save_split` wrote; None if there are none.

    Raises:
      UserError: if they are not ascending users of the split.
    """
    with reading(path, "a saved split"):
        arrays = open_npz(path)
        if "new_users" not in arrays:
            return None
        opened = arrays["new_users"]
        if opened.dtype.kind != "i" or len(opened.shape) != 1:
            raise ValueError("its new users are of another type")
        users: np.ndarray = opened.read().astype(np.int64)
        if len(users) and (users[0] < 0 or users[-1] >= num_users or (np.diff(users) <= 0).any()):
            raise ValueError("its new users are not users in ascending order")
        return users
