"""Several rankings as one: the stages of teachers, and lists of items that all of them rank high."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from htd_jax.data import Interactions, seen_mask, was_seen
from htd_jax.errors import UserError
from htd_jax.ops.largest import top_k
from htd_jax.ops.mapped import map_rows

# The best items of a user that a stage lists, and those that an ensemble of stages does.
LISTED = 100

# How fast an item's weight falls with its rank, and with the deviation of that rank.
RANK_SCALE, DEVIATION_SCALE = 10.0, 100.0

# Numbers that are computed at once: 16 MiB.
NUMBERS = 2**22


@struct.dataclass
class Stages:
    """What teachers ranked best at some moments of their training, from the earliest to the last.

    Attributes:
      items: `[teachers, stages, num_users, k]` int32, each user's best unseen items, the best first, -1 for none.
      deviations: `[teachers, stages, num_users, k]` float32, the standard deviation of an item's rank over the last
        evaluations before that moment.
    """

    items: jax.Array
    deviations: jax.Array

    @property
    def number(self) -> int:
        """The number of stages."""
        return self.items.shape[1]

    @classmethod
    def of_lists(cls, items: jax.Array) -> "Stages":
        """Returns one teacher with a single stage, from its lists `[num_users, k]`; deviations are 0."""
        items = jnp.asarray(items, jnp.int32)[None, None]
        return cls(items, jnp.zeros(items.shape))

    def unseen(self, train: Interactions) -> "Stages":
        """Returns the stages with -1 in place of seen items."""

        def block(rows: jax.Array) -> jax.Array:
            users, items = rows % train.num_users, flat[rows]
            return jnp.where((items >= 0) & ~was_seen(train, users[:, None], items), items, -1)

        flat = jnp.asarray(self.items, jnp.int32).reshape(-1, self.items.shape[3])
        items = map_rows(block, len(flat), NUMBERS // max(flat.shape[1], 1))
        return Stages(items.reshape(self.items.shape), jnp.asarray(self.deviations, jnp.float32))


def join_stages(each: Sequence[Stages]) -> Stages:
    """Returns the stages of several teachers as one value. A single stage stands for all.

    Raises:
      UserError: if two teachers have different numbers of stages.
    """
    numbers = {stages.number for stages in each} - {1}
    if len(numbers) > 1:
        raise UserError(
            f"the teachers have {' and '.join(map(str, sorted(numbers)))} stages; train them with one number of "
            "`keep_stages`"
        )
    number, width = max(stages.number for stages in each), max(stages.items.shape[3] for stages in each)

    def widened(x: jax.Array, fill: int) -> jax.Array:
        x = jnp.broadcast_to(x, (x.shape[0], number, *x.shape[2:]))
        return jnp.pad(x, [(0, 0)] * 3 + [(0, width - x.shape[3])], constant_values=fill)

    return Stages(
        jnp.concatenate([widened(stages.items, -1) for stages in each]),
        jnp.concatenate([widened(stages.deviations, 0) for stages in each]),
    )


def ensemble_lists(stages: Stages, at: jax.Array, k: int = LISTED) -> jax.Array:
    r"""Returns the `k` items of each user that its teachers, each at a stage of its own, rank high and steadily.

    .. math:: s_{ui} = \sum_x e^{-r_{xui} / 10} + e^{-\sigma_{xui} / 100}

    over the teachers x that list item i for user u, at rank r from 0, of deviation sigma. Equal scores are in the order
    of items. Entries are sorted by item within blocks of users: n k log(n k) per user with n teachers, no users x items
    array.

    Source: Kang et al., WWW'23, HetComp.

    Args:
      stages: see `Stages`.
      at: `[teachers, num_users]` integers, the stage of each teacher for each user.
      k: at least 1.

    Returns:
      `[num_users, k]` int32, -1 where there are fewer.
    """
    teachers, _, num_users, listed = stages.items.shape
    ranks = jnp.exp(-jnp.arange(listed, dtype=jnp.float32) / RANK_SCALE)[None, None, :]

    def block(users: jax.Array) -> jax.Array:
        where = jnp.arange(teachers)[None, :], at[:, users].T, users[:, None]
        items, deviations = stages.items[where], stages.deviations[where]
        weights = jnp.where(items >= 0, ranks + jnp.exp(-deviations / DEVIATION_SCALE), 0)
        items, weights = (x.reshape(len(users), -1) for x in (items, weights))
        items, weights = jax.lax.sort((items, weights), dimension=1, num_keys=1)
        total = weights
        for ahead in range(1, teachers):  # an item occurs once per teacher at most
            same = items[:, ahead:] == items[:, :-ahead]
            total = total.at[:, :-ahead].add(jnp.where(same, weights[:, ahead:], 0))
        first = jnp.pad(items[:, 1:] != items[:, :-1], [(0, 0), (1, 0)], constant_values=True)
        total = jnp.where(first & (items >= 0), total, -jnp.inf)
        values, columns = top_k(jnp.pad(total, [(0, 0), (0, max(k - total.shape[1], 0))], constant_values=-jnp.inf), k)
        columns = jnp.minimum(columns, items.shape[1] - 1)
        return jnp.where(values > -jnp.inf, jnp.take_along_axis(items, columns, axis=1), -1)

    lists: jax.Array = map_rows(block, num_users, NUMBERS // max(teachers * listed, 1))
    return lists


def rank_power(
    scores: Sequence[Callable[[jax.Array], jax.Array]],
    train: Interactions,
    k: int,
    power: float = 0.05,
    depth: int = 1000,
) -> jax.Array:
    r"""Returns the `k` best unseen items of each user by the mean of a power of their ranks with several models.

    .. math:: s_{ui} = \frac{1}{n} \sum_x (1 + \min(r_{xui}, D))^{-p}

    with r the rank from 0 among the unseen items. Equal scores are in the order of items. Computed in blocks of users,
    so that no users x items array is formed; each model's best D items are searched, not all sorted.

    Source: Lee et al., KDD'24, CCD, where D is the number of items.

    Args:
      scores: of each model: users `[n]` -> scores `[n, num_items]`.
      train: the training interactions.
      k: at least 1.
      power: p.
      depth: D.

    Returns:
      `[num_users, min(k, num_items)]` int32, -1 where there are fewer.
    """
    lists: jax.Array = _rank_power(tuple(scores), train, k, power, min(depth, train.num_items))
    return lists


@functools.partial(jax.jit, static_argnames=("k", "depth"))
def _rank_power(scores: Any, train: Interactions, k: int, power: float, depth: int) -> jax.Array:
    powers = (1.0 + jnp.arange(depth)) ** -power - (1.0 + depth) ** -power

    def block(users: jax.Array) -> jax.Array:
        seen = seen_mask(train, users)
        rows = jnp.arange(len(users))[:, None]
        total = jnp.zeros(seen.shape)
        for of_model in scores:
            _, order = top_k(jnp.where(seen, -jnp.inf, of_model(users)), depth)
            total = total.at[rows, order].add(jnp.broadcast_to(powers, order.shape), unique_indices=True)
        values, items = top_k(jnp.where(seen, -jnp.inf, total), k)
        return jnp.where(values > -jnp.inf, items, -1).astype(jnp.int32)

    return map_rows(block, train.num_users, NUMBERS // train.num_items)
