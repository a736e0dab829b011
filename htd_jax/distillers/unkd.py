"""UnKD, unbiased knowledge distillation (Chen et al., WSDM'23)."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, ClassVar

import chex
import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from flax import struct

from htd_jax.data import Interactions
from htd_jax.distillers.base import Distiller, EpochStart, Method, RowIds, Step, Terms, Triples, no_params
from htd_jax.distillers.sampling import sample_pairs_by_rank
from htd_jax.losses import pair_loss
from htd_jax.ops.shards import look_up
from htd_jax.teacher import Lists, Teacher


@dataclasses.dataclass(frozen=True)
class UnKD(Method):
    """Learns the teacher's order among items of similar popularity (Chen et al., WSDM'23)."""

    weight: Annotated[float, Ge(0)] = 1.0
    """Lambda, the weight of the distillation loss against the base loss. Both are sums over a batch: htd-jax
    study weights measures the method's part."""
    groups: Annotated[int, Ge(1)] = 2
    """The number of groups of items by popularity, each with an equal share of all interactions."""
    pairs: Annotated[int, Ge(1)] = 15
    """The number of pairs of items per user and group."""
    temperature: Annotated[float, Gt(0)] = 20.0
    """Mu; the item of rank r in its group is sampled with probability proportional to exp(-r / mu)."""
    pool: Annotated[int, Ge(2)] = 200
    """The number of the teacher's best unseen items per user and group from which pairs are sampled."""

    label: ClassVar[str] = "UnKD"

    def make(self, epochs: int) -> Distiller:
        return unkd(self)


@struct.dataclass
class SampledPairs:
    """The pairs of an epoch, the better and the worse items: both `[num_users, groups * pairs]` int32, -1 for none."""

    better: jax.Array
    worse: jax.Array


def unkd(settings: UnKD = UnKD()) -> Distiller:
    """Learns which of two items of similar popularity the teacher ranks higher, so that its popularity bias is not
    learned.

    Items are grouped by how often they have been seen, see `popularity_groups`. Each epoch samples, for each user and
    group, pairs of different items of the teacher's best unseen ones in the group, each item with probability ~
    exp(-rank / mu). The loss is `pair_loss`, averaged over a user's pairs, summed over the different users of a batch.

    Any teacher that ranks works, lists alone included, whose items are divided among the groups. A group with fewer
    than two items of a user is skipped.

    The authors' code samples from a group's 1,000 best; at mu = 20, items past the 200th have a total probability of
    5e-5. There the average over a batch has the weight of the base loss's average, here the sum has that of its sum;
    but a user counts as often as it is in the batch.

    Cost per user: G P numbers in memory (1.6 KB) and 2 G pairs in the state (240 bytes), sampled in closed form, O(1)
    each; a step scores them, O(d) each. The teacher's scores are ranked once per group.

    Args:
      settings: see `UnKD`.

    Returns:
      A `Distiller`; its term is `unkd`.
    """

    def prepare(teacher: Teacher, train: Interactions) -> jax.Array:
        groups = popularity_groups(train, settings.groups)
        return top_of_groups(teacher, train, groups, settings.groups, settings.pool)

    def refresh(start: EpochStart) -> SampledPairs:
        pools = start.context
        positions = sample_pairs_by_rank(start.key, jnp.sum(pools >= 0, axis=2), settings.pairs, settings.temperature)
        items = (jnp.take_along_axis(pools, jnp.maximum(chosen, 0), axis=2) for chosen in positions)
        where = positions[0] >= 0
        return SampledPairs(*(jnp.where(where, own, -1).reshape(len(own), -1) for own in items))

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        users = step.batch.entities.users
        own: SampledPairs = look_up(step.sampled, users.ids)
        items = jnp.concatenate([own.better, own.worse], axis=1)
        better, worse = jnp.split(step.batch.score(users.ids[:, None], jnp.maximum(items, 0)), 2, axis=1)
        value = pair_loss(better, worse, where=users.where[:, None] & (own.better >= 0))
        return value, {"unkd": value}

    def reads(context: jax.Array, sampled: SampledPairs, triples: Triples, key: chex.PRNGKey) -> RowIds:
        own = look_up(sampled, triples.users)
        return RowIds.of_items(own.better, own.worse)

    return Distiller(no_params, loss, refresh, prepare, needs=("lists",), reads=reads, divided=True)


def popularity_groups(train: Interactions, num_groups: int) -> jax.Array:
    """Returns the group of each item, `[num_items]` int32, the most popular in group 0; -1 for items never seen.

    Items are sorted by how often they have been seen, and each group has an equal share of all interactions; an item
    belongs to the group in whose share it begins. In the authors' code an item that would exceed a group's share begins
    the next group, so that bounds differ by few items.
    """
    seen = jnp.zeros(train.num_items, jnp.int32).at[train.items].add(1)
    order = jnp.argsort(-seen, stable=True)
    before = jnp.zeros_like(seen).at[order].set(jnp.cumsum(seen[order], dtype=jnp.int32) - seen[order])
    whole, part = divmod(len(train), num_groups)
    bounds = [g * whole + -(-g * part // num_groups) for g in range(1, num_groups)]
    groups = sum((before >= bound for bound in bounds), start=jnp.zeros_like(seen))
    return jnp.where(seen > 0, groups, -1)


def top_of_groups(teacher: Teacher, train: Interactions, groups: jax.Array, num_groups: int, size: int) -> jax.Array:
    """Returns the `size` best unseen items per user and group, the best first: `[num_users, num_groups, size]` int32,
    -1 for none."""

    def within(own: jax.Array) -> Teacher:
        if teacher.lists is None:
            return Teacher(scores=jax.tree_util.Partial(_scores_within, teacher.scores, own))
        items = teacher.lists.items
        return Teacher(lists=Lists(jnp.where((items >= 0) & own[jnp.maximum(items, 0)], items, -1)))

    return jnp.stack([within(groups == group).top(train, size) for group in range(num_groups)], axis=1)


def _scores_within(scores: Callable[[jax.Array], jax.Array], own: jax.Array, users: jax.Array) -> jax.Array:
    return jnp.where(own[None, :], scores(users), -jnp.inf)
