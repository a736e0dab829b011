"""Who has seen what, as arrays on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from htd_jax.errors import UserError


@struct.dataclass
class Interactions:
    """Pairs (user, item), each once, in the order of users and, within a user, of items.

    Attributes:
      users: `[n]` int32.
      items: `[n]` int32.
      offsets: `[num_users + 1]` int32; user u's pairs are those from `offsets[u]` to `offsets[u + 1]`.
      num_users, num_items: how many there are, with or without a pair.
      max_degree: the most pairs of one user.
    """

    users: jax.Array
    items: jax.Array
    offsets: jax.Array
    num_users: int = struct.field(pytree_node=False)
    num_items: int = struct.field(pytree_node=False)
    max_degree: int = struct.field(pytree_node=False)

    @classmethod
    def from_pairs(cls, users: np.ndarray, items: np.ndarray, num_users: int, num_items: int) -> "Interactions":
        """Sorts `[n]` users and `[n]` items and drops repeated pairs.

        Raises:
          UserError: an id outside [0, num_users) or [0, num_items), or no integer; 2^31 users or items, or more.
        """
        users, items = np.asarray(users), np.asarray(items)
        for name, ids, size in (("user", users, num_users), ("item", items, num_items)):
            if size >= 2**31:
                raise UserError(f"{size} {name}s are more than the {2**31 - 1} that there can be")
            if len(ids) and ids.dtype.kind not in "iu":
                raise UserError(f"{name} ids must be integers, not {ids.dtype}")
            if len(ids) and not (0 <= ids.min() and ids.max() < size):
                raise UserError(f"{name} ids must lie in [0, {size}), but go from {ids.min()} to {ids.max()}")
        pairs = np.unique(users.astype(np.int64) * num_items + items.astype(np.int64))
        users, items = pairs // num_items, pairs % num_items
        degree = np.bincount(users, minlength=num_users)
        return cls(
            users=jnp.asarray(users, jnp.int32),
            items=jnp.asarray(items, jnp.int32),
            offsets=jnp.asarray(np.concatenate([[0], np.cumsum(degree)]), jnp.int32),
            num_users=num_users,
            num_items=num_items,
            max_degree=int(degree.max(initial=0)),
        )

    def __len__(self) -> int:
        return len(self.users)


class Split(NamedTuple):
    """One data set in three disjoint parts over the same users and items."""

    train: Interactions
    valid: Interactions
    test: Interactions


def make_split(
    train: tuple[np.ndarray, np.ndarray],
    valid: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    num_users: int,
    num_items: int,
) -> Split:
    """A `Split` from (users, items) pairs of each part.

    Raises:
      UserError: an id out of range, a pair in two parts, an empty part, or a user who has seen every item.
    """
    split = Split(*(Interactions.from_pairs(*part, num_users, num_items) for part in (train, valid, test)))
    if empty := [name for name, part in zip(Split._fields, split) if not len(part)]:
        raise UserError(f"the {empty[0]} part holds no interaction")
    codes = [np.asarray(part.users, np.int64) * num_items + np.asarray(part.items) for part in split]
    codes, times = np.unique(np.concatenate(codes), return_counts=True)
    if (times > 1).any():
        user, item = divmod(int(codes[times > 1][0]), num_items)
        raise UserError(f"user {user} and item {item} stand in more than one of train, valid and test")
    if split.train.max_degree >= num_items:
        raise UserError(f"a user has all {num_items} items in train, which leaves none to sample as a negative")
    return split
