"""Rows of new users and items in a trained model: made from what they have to do with the old ones."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from htd_jax.data import Interactions
from htd_jax.data.order import order
from htd_jax.errors import UserError
from htd_jax.models.base import MakeModel

# The old users whose rows a new user's is made from in part, and the old items of a new item.
PEERS = 20


def grow_variables(
    make_model: MakeModel, variables: Any, block: Interactions, num_users: int, num_items: int, *, peers: int = PEERS
) -> Any:
    """Returns a model's variables with rows of new users and items; the old rows stay as they are.

    A new user's row is the mean of two: the mean row of the old items that the user has seen in the block, and the mean
    row of old users who have seen one of these there, the most active in the block; the same for a new item. A row
    that has only one of them is that; one that has none is the mean of all old rows of its table. If items have no
    rows like the users', as in an autoencoder, only rows of peers count.

    Source: Lee et al., KDD'24 (CCD), the initial rows of new users and items.

    Args:
      make_model: the model.
      variables: its variables for the old users and items. `Recommender.rows_of` names the parameters that grow.
      block: the new interactions, over all users and items.
      num_users, num_items: the numbers of old users and items.
      peers: the largest number of old users or items that a new one is made from.

    Raises:
      UserError: if the model has no parameters with a row per user or item.
    """
    model = make_model(block)
    rows = model.rows_of
    params = dict(variables["params"])
    growing = {name: side for name, side in rows.items() if name in params}
    if not growing:
        raise UserError(f"{type(model).__name__} has no rows of users or items, so it cannot grow; train it anew")
    sizes = {"users": num_users, "items": num_items}
    users, items = np.asarray(block.users), np.asarray(block.items)
    entries = {"users": (users, items, num_items), "items": (items, users, num_users)}
    total = {"users": block.num_users, "items": block.num_items}
    like = {side: _of_old(*entries[side], sizes[side], total[side], peers) for side in set(growing.values())}
    grown = {}
    for name, side in growing.items():
        table = np.asarray(params[name])
        other = {"users": "items", "items": "users"}[side]
        counterpart = np.asarray(params[other]) if name == side and growing.get(other) == other else None
        if counterpart is not None and counterpart.shape[1:] != table.shape[1:]:
            counterpart = None
        grown[name] = jnp.asarray(_with_new_rows(table, counterpart, like[side], total[side]))
    return {**variables, "params": params | grown}


Pairs = tuple[np.ndarray, np.ndarray]


def _of_old(
    own: np.ndarray, other: np.ndarray, num_other: int, num_own: int, total: int, peers: int
) -> tuple[Pairs, Pairs]:
    """Returns pairs of a new user and an old item that it has seen, and of a new user and an old peer; or of items.

    A user's most active peers are among the most active users of one of its items, so that time is linear in `peers`
    times the pairs.

    Args:
      own, other: `[n]`, the users and the items of the pairs, or the items and the users.
      num_other, num_own: the numbers of old ones.
      total: the number of `own`, old and new.
      peers: the largest number of peers.
    """
    fresh = (own >= num_own) & (other < num_other)
    touched = own[fresh], other[fresh]
    old = (own < num_own) & (other < num_other)
    active = np.bincount(own, minlength=total)
    # The most active old users of every old item.
    by_item = order(other[old], -active[own[old]], own[old])
    owners, members = other[old][by_item], own[old][by_item]
    counts = np.bincount(owners, minlength=num_other)
    starts = np.cumsum(counts) - counts
    most = np.minimum(counts, peers)[touched[1]]
    at = np.arange(most.sum()) - np.repeat(np.cumsum(most) - most, most) + np.repeat(starts[touched[1]], most)
    new, peer = np.repeat(touched[0], most), members[at]
    codes = np.unique(new.astype(np.int64) * total + peer)
    new, peer = codes // total, codes % total
    ranked = order(new, -active[peer], peer)
    new, peer = new[ranked], peer[ranked]
    place = np.arange(len(new)) - np.searchsorted(new, new)
    return touched, (new[place < peers], peer[place < peers])


def _with_new_rows(
    table: np.ndarray, counterpart: np.ndarray | None, like: tuple[Pairs, Pairs], total: int
) -> np.ndarray:
    """Returns a table `[old, ...]` with the rows of new entities: `[total, ...]`."""
    touched, peers = like
    sums, known = np.zeros((total, *table.shape[1:]), np.float64), np.zeros(total)
    for (new, old), rows in ((touched, counterpart), (peers, table)):
        if rows is None:
            continue
        mean = np.zeros_like(sums)
        np.add.at(mean, new, rows[old])
        number = np.bincount(new, minlength=total)
        sums += mean / np.maximum(number, 1).reshape(-1, *[1] * (table.ndim - 1))
        known += number > 0
    rows = sums / np.maximum(known, 1).reshape(-1, *[1] * (table.ndim - 1))
    rows[known == 0] = table.mean(0, dtype=np.float64)
    rows[: len(table)] = table
    return rows.astype(table.dtype)
