"""Interactions of users with items, as arrays on the device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from numpy.typing import ArrayLike

from htd_jax.errors import UserError
from htd_jax.showing import Look, Shown

Pairs = tuple[ArrayLike, ArrayLike]

# The largest number of users or items: an id is an int32.
MOST = 2**31 - 1


@struct.dataclass
class Interactions(Shown):
    """Distinct pairs (user, item), sorted by user and then by item.

    Attributes:
      users: `[n]` int32.
      items: `[n]` int32.
      offsets: `[num_users + 1]` int32; user u's pairs are those from `offsets[u]` to `offsets[u + 1]`.
      num_users, num_items: counts, including users and items without a pair.
      max_degree: the largest number of pairs of a user.
      active: the number of users with a pair.
      block: the pairs that are learned, of data that have grown; None for all.
    """

    users: jax.Array
    items: jax.Array
    offsets: jax.Array
    num_users: int = struct.field(pytree_node=False)
    num_items: int = struct.field(pytree_node=False)
    max_degree: int = struct.field(pytree_node=False)
    active: int = struct.field(pytree_node=False, default=0)
    block: "Interactions | None" = None

    __repr__ = Shown.__repr__

    def look(self) -> Look:
        return Look(f"Interactions: {len(self):,} pairs of {self.num_users:,} users and {self.num_items:,} items")

    @property
    def learned(self) -> "Interactions":
        """The pairs that a model is trained on; the others are known, and not sampled as unseen."""
        return self if self.block is None else self.block

    @classmethod
    def from_pairs(cls, users: ArrayLike, items: ArrayLike, num_users: int, num_items: int) -> "Interactions":
        """Sorts `[n]` users and `[n]` items, see `as_pairs`, and drops repeated pairs.

        Raises:
          UserError: see `as_pairs`; or if there are 2^31 users or items, or more.
        """
        for name, size in (("user", num_users), ("item", num_items)):
            if size > MOST:
                raise UserError(f"{size} {name}s are too many; at most {MOST} are supported")
        rows, columns = _checked(users, items, num_users, num_items)
        pairs = _codes(rows, columns, num_items)
        if not (pairs[1:] > pairs[:-1]).all():
            pairs.sort()
            pairs = pairs[np.append(True, pairs[1:] != pairs[:-1])]
            rows, columns = pairs // num_items, pairs % num_items
        del pairs
        degree = np.bincount(rows, minlength=num_users)
        return cls(
            users=jnp.asarray(rows.astype(np.int32)),
            items=jnp.asarray(columns.astype(np.int32)),
            offsets=jnp.asarray(np.concatenate([[0], np.cumsum(degree)]).astype(np.int32)),
            num_users=num_users,
            num_items=num_items,
            max_degree=int(degree.max(initial=0)),
            active=int((degree > 0).sum()),
        )

    def transposed(self) -> "Interactions":
        """Returns the pairs with users and items exchanged, on the device; `max_degree` and `active` become upper
        bounds."""
        order = jnp.argsort(self.items, stable=True)
        return Interactions(
            users=self.items[order],
            items=self.users[order],
            offsets=jnp.searchsorted(self.items[order], jnp.arange(self.num_items + 1)).astype(jnp.int32),
            num_users=self.num_items,
            num_items=self.num_users,
            max_degree=min(len(self), self.num_users),
            active=min(len(self), self.num_items),
        )

    def __len__(self) -> int:
        return len(self.users)


def as_pairs(
    users: ArrayLike, items: ArrayLike, num_users: int = MOST, num_items: int = MOST
) -> tuple[np.ndarray, np.ndarray]:
    """Converts `[n]` users and `[n]` items to int64. Columns are read in their order, whatever their labels.

    Raises:
      UserError: if lengths differ, an array has more than one axis, or ids are not integers from 0 and below their
        number.
    """
    columns = _checked(users, items, num_users, num_items)
    return columns[0].astype(np.int64), columns[1].astype(np.int64)


def _checked(users: ArrayLike, items: ArrayLike, num_users: int, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Does what `as_pairs` does, with integers of any type."""
    columns = _ids("user", users, num_users), _ids("item", items, num_items)
    if len(columns[0]) != len(columns[1]):
        raise UserError(f"pairs need as many users as items, not {len(columns[0])} and {len(columns[1])}")
    return columns


def _codes(users: np.ndarray, items: np.ndarray, num_items: int) -> np.ndarray:
    """Returns `[n]` int64, one number for each pair, in the order of users and then items."""
    codes = users.astype(np.int64)
    codes *= num_items
    codes += items.astype(np.int64, copy=False)
    return codes


def codes_of(pairs: Interactions) -> np.ndarray:
    """Returns `[n]` int64, one number for each pair, ascending."""
    return _codes(np.asarray(pairs.users), np.asarray(pairs.items), pairs.num_items)


def _ids(name: str, given: Any, size: int) -> np.ndarray:
    try:
        ids = np.asarray(given)
    except (ValueError, TypeError, OverflowError):  # mostly rows of unequal lengths
        raise UserError(
            f"{name} ids must be one column of integers, which this {type(given).__name__} is not"
        ) from None
    if ids.ndim != 1:
        raise UserError(f"{name} ids must be one column of integers, not an array of shape {ids.shape}")
    if not len(ids):
        return np.zeros(0, np.int64)
    if ids.dtype == object and all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in ids):
        ids = np.array(ids.tolist())  # the type of integer columns that once had missing values
    if np.ma.is_masked(given) or (ids.dtype.kind == "f" and np.isnan(ids).any()):
        raise UserError(f"{name} ids must be integers, and some are missing; leave those rows out")
    if ids.dtype.kind not in "iu":
        advice = "convert them to integers" if ids.dtype.kind in "fb" else "number them from 0"
        raise UserError(f"{name} ids must be integers, not {ids.dtype}; {advice}")
    if ids.min() < 0 or ids.max() >= size:
        raise UserError(f"{name} ids must lie in [0, {size}), but go from {ids.min()} to {ids.max()}")
    return ids


class Split(NamedTuple):
    """Three disjoint parts of a data set over the same users and items."""

    train: Interactions
    valid: Interactions
    test: Interactions


def make_split(
    train: Pairs,
    valid: Pairs,
    test: Pairs,
    num_users: int,
    num_items: int,
) -> Split:
    """Returns a `Split` from pairs (users, items) of each part, see `as_pairs`.

    Raises:
      UserError: see `as_pairs`; or if a pair is in two parts, train or test is empty, or a user has seen every item.
    """
    parts = {"train": train, "valid": valid, "test": test}
    if wrong := [name for name, part in parts.items() if not isinstance(part, (tuple, list)) or len(part) != 2]:
        raise UserError(f"the {wrong[0]} part must be a pair of users and items")
    split = Split(*(Interactions.from_pairs(*part, num_users, num_items) for part in parts.values()))
    if empty := [name for name, part in zip(Split._fields, split) if not len(part) and name != "valid"]:
        raise UserError(f"the {empty[0]} part holds no interaction")
    codes = np.concatenate([codes_of(part) for part in split])
    codes.sort()
    if len(twice := codes[1:][codes[1:] == codes[:-1]]):
        user, item = divmod(int(twice[0]), num_items)
        raise UserError(f"user {user} and item {item} are in more than one of train, valid and test")
    if split.train.max_degree >= num_items:
        raise UserError(f"a user has all {num_items} items in train, which leaves none to sample as a negative")
    return split
