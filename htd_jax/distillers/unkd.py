"""UnKD, unbiased knowledge distillation (Chen et al., WSDM'23)."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from flax import struct

from htd_jax.data import Interactions
from htd_jax.distillers.base import Distiller, EpochStart, Method, Step, Terms, no_params
from htd_jax.distillers.draws import pairs_by_rank
from htd_jax.losses import pair_loss
from htd_jax.teacher import Lists, Teacher


@dataclasses.dataclass(frozen=True)
class UnKD(Method):
    """The teacher's order among items of like popularity (Chen et al., WSDM'23)."""

    weight: Annotated[float, Ge(0)] = 1.0
    """Lambda: the distillation loss counts this much against the base loss."""
    groups: Annotated[int, Ge(1)] = 2
    """Groups of items; those of each are together as popular as those of any other."""
    pairs: Annotated[int, Ge(1)] = 15
    """Pairs of each user in each group."""
    temperature: Annotated[float, Gt(0)] = 20.0
    """Mu: the item of rank r in its group is drawn with a probability like exp(-r / mu)."""
    pool: Annotated[int, Ge(2)] = 200
    """The teacher's best unseen items of each group, of which pairs are drawn."""

    label: ClassVar[str] = "UnKD"

    def make(self, epochs: int) -> Distiller:
        return unkd(num_groups=self.groups, num_pairs=self.pairs, temperature=self.temperature, pool=self.pool)


@struct.dataclass
class Pairs:
    """The pairs of an epoch: items that should stand above and those below, `[num_users, groups * pairs]`, -1 for
    none."""

    better: jax.Array
    worse: jax.Array


def unkd(*, num_groups: int = 2, num_pairs: int = 15, temperature: float = 20.0, pool: int = 200) -> Distiller:
    """Of two items of like popularity, that the better one for the teacher stands above: no popular item is put above
    an unpopular one for its popularity's sake, as the teacher's scores would have it.

    Items are grouped by how often they have been seen, see `popularity_groups`. Every epoch draws anew for each user
    and group: pairs of different items of the teacher's best unseen ones in the group, each item with a probability
    like exp(-rank / mu). Every different user of a batch adds the mean of `pair_loss` over the pairs.

    Any teacher that ranks will do, lists alone included; from these a group gets what they hold of it. A group of which
    a user has fewer than two items is left out.

    What differs: of a group the authors' code draws from the 1,000 best; what is past 200 has, at mu = 20, together a
    probability of 5e-5. There the mean over a batch is weighted as the base loss's mean is, which its sum over users
    is here, but a user counts as often as it is in the batch.

    Cost, a user: held are G P numbers (1.6 KB), and drawn, in the state, 2 G pairs (240 bytes), in closed form, O(1)
    each; a step scores them, O(d) each. The teacher's scores are ranked once for each group.

    Args:
      num_groups: G.
      num_pairs: of each user in each group.
      temperature: mu, over 0.
      pool: P, the teacher's best unseen items of each group.

    Returns:
      A `Distiller`; its term is `unkd`.
    """

    def prepare(teacher: Teacher, train: Interactions) -> jax.Array:
        return best_of_groups(teacher, train, popularity_groups(train, num_groups), num_groups, pool)

    def refresh(start: EpochStart) -> Pairs:
        params, key, epoch, teacher, student = start.params, start.key, start.epoch, start.context, start.student
        places = pairs_by_rank(key, jnp.sum(teacher >= 0, axis=2), num_pairs, temperature)
        items = (jnp.take_along_axis(teacher, jnp.maximum(place, 0), axis=2) for place in places)
        there = places[0] >= 0
        return Pairs(*(jnp.where(there, own, -1).reshape(len(own), -1) for own in items))

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        params, drawn, batch, key, epoch = step.params, step.sampled, step.batch, step.key, step.epoch
        users = batch.entities.users
        of_users = jax.tree.map(lambda items: items[users.ids], drawn)
        items = jnp.concatenate([of_users.better, of_users.worse], axis=1)
        better, worse = jnp.split(batch.score(users.ids[:, None], jnp.maximum(items, 0)), 2, axis=1)
        value = pair_loss(better, worse, where=users.where, pairs_where=of_users.better >= 0)
        return value, {"unkd": value}

    return Distiller(no_params, loss, refresh, prepare, needs=("lists",))


def popularity_groups(train: Interactions, num_groups: int) -> jax.Array:
    """The group of each item, `[num_items]` int32, the most popular in group 0; -1 for items that nobody has seen, of
    which a teacher knows nothing.

    Items are set in the order of how often they have been seen, and the groups' bounds so that each has an equal share
    of all interactions; an item is in the group in whose share it begins. The authors' code fills one group after the
    other up to that share, the item that would go beyond it beginning the next one, so that bounds differ by few items.
    """
    seen = jnp.zeros(train.num_items, jnp.int32).at[train.items].add(1)
    order = jnp.argsort(-seen, stable=True)
    before = jnp.zeros_like(seen).at[order].set(jnp.cumsum(seen[order], dtype=jnp.int32) - seen[order])
    whole, part = divmod(len(train), num_groups)
    bounds = [g * whole + -(-g * part // num_groups) for g in range(1, num_groups)]
    groups = sum((before >= bound for bound in bounds), start=jnp.zeros_like(seen))
    return jnp.where(seen > 0, groups, -1)


def best_of_groups(teacher: Teacher, train: Interactions, groups: jax.Array, num_groups: int, size: int) -> jax.Array:
    """The `size` best unseen items of every user in each group, the best first: `[num_users, num_groups, size]` int32,
    -1 for none."""
    in_groups = [groups == group for group in range(num_groups)]
    if teacher.lists is None:
        of_group = lambda own: Teacher(scores=jax.tree_util.Partial(_scores_of_group, teacher.scores, own))
    else:
        listed = teacher.lists.items
        chosen = lambda own: (listed >= 0) & own[jnp.maximum(listed, 0)]
        of_group = lambda own: Teacher(lists=Lists(jnp.where(chosen(own), listed, -1)))
    return jnp.stack([of_group(own).top(train, size) for own in in_groups], axis=1)


def _scores_of_group(scores: Callable[[jax.Array], jax.Array], own: jax.Array, users: jax.Array) -> jax.Array:
    return jnp.where(own[None, :], scores(users), -jnp.inf)
