"""IR-RRD, RRD with its item side (Kang et al., Information Sciences'21)."""

import dataclasses
import math
from typing import Annotated, ClassVar

import chex
import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from flax import struct

from htd_jax.data import Interactions
from htd_jax.distillers.base import Distiller, EpochStart, Method, RowIds, Step, Terms, Triples, no_params
from htd_jax.distillers.rrd import RRD, SampledLists, lists_loss, rrd
from htd_jax.distillers.sampling import Ranking, rank_users, sample_by_rank, sample_rest
from htd_jax.ops.shards import look_up
from htd_jax.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class IRRRD(Method):
    """Learns the order of items for users, and of users for items, as RRD (Kang et al., Information Sciences'21)."""

    weight: Annotated[float, Ge(0)] = 1e-3
    """Lambda, the weight of the user side, which is RRD's loss, against the base loss. Both are sums over a batch:
    htd-jax study weights measures the method's part."""
    interesting: Annotated[int, Ge(1)] = 40
    """K, the number of items per user whose order is learned."""
    uninteresting: Annotated[int, Ge(1)] = 40
    """L, the number of items per user that are ranked below the interesting ones, in any order."""
    temperature: Annotated[float, Gt(0)] = 10.0
    """T; the item of rank r is sampled with probability proportional to exp(-r / T)."""
    item_weight: Annotated[float, Ge(0)] = 0.5
    """The weight of the item side against the user side."""
    item_interesting: Annotated[int, Ge(1)] = 20
    """The number of users per item whose order is learned."""
    item_uninteresting: Annotated[int, Ge(1)] = 20
    """The number of users per item that are ranked below the interesting ones, in any order."""
    item_temperature: Annotated[float, Gt(0)] = 10.0
    """The temperature of the item side; the user of rank r is sampled with probability proportional to
    exp(-r / this)."""
    pool: Annotated[int, Ge(1)] = 500
    """The number of the teacher's best items per user, and users per item, from which interesting ones are sampled;
    uninteresting ones are sampled from the rest."""
    items: Annotated[int, Ge(1)] = 2048
    """The largest number of items per step on the item side, a sample that stands for all; the published method uses
    all."""

    label: ClassVar[str] = "IR-RRD"

    def make(self, epochs: int) -> Distiller:
        return ir_rrd(self)


@struct.dataclass
class Rankings:
    """The teacher's best items of every user, and its best users of every item, whose ids `Ranking` calls items."""

    users: Ranking
    items: Ranking


@struct.dataclass
class SampledSides:
    """The sampled items of every user, and the sampled users of every item."""

    users: SampledLists
    items: SampledLists


def ir_rrd(settings: IRRRD = IRRRD()) -> Distiller:
    """Learns the order of each user's best items as `rrd` does, and likewise that of each item's best users.

    An item's pool are the users with the teacher's highest scores who have not seen it; each epoch samples users from
    it and from the rest as `rrd` samples items. In a step, every different item that the user side sampled for the
    users of the batch, interesting or not, adds one `relaxed_ranking_loss`. That both kinds count does not follow from
    the published code, but from the losses in its log.

    On CiteULike, a batch of 1,024 samples 19,200 of the 25,181 items, so that an epoch uses each item's users some
    eighty times, at several times the cost. Here a step takes every n-th item, n the least for at most
    `settings.items`, with a random offset, and counts those sampled for the batch n times. The expectation of the
    gradient is that of all items, at RRD's cost; from num_items on, `settings.items` takes all, as published.

    A teacher needs scores, since lists of items do not rank users. An item with a smaller pool or rest has shorter
    lists.

    Cost per item: 2 P numbers in memory (4 KB) and K + L in the state (160 bytes); a step scores K + L pairs for each
    of its items.

    Args:
      settings: see `IRRRD`.

    Returns:
      A `Distiller`; its terms are `rrd` and `ir`.
    """
    user_side = rrd(
        RRD(
            interesting=settings.interesting,
            uninteresting=settings.uninteresting,
            pool=settings.pool,
            temperature=settings.temperature,
        )
    )
    # Later ranks are sampled less often than once in 10^8, so no noise is generated for them.
    reach = settings.item_interesting + math.ceil(20 * settings.item_temperature)

    def prepare(teacher: Teacher, train: Interactions) -> Rankings:
        return Rankings(user_side.prepare(teacher, train), rank_users(teacher, train, settings.pool))

    def refresh(start: EpochStart) -> SampledSides:
        user_key, pool_key, rest_key = jax.random.split(start.key, 3)
        ranking = start.context.items
        pool = ranking.pool[:, :reach]
        best = sample_by_rank(pool_key, pool, settings.item_interesting, settings.item_temperature)
        items = SampledLists(best, sample_rest(rest_key, ranking, settings.item_uninteresting))
        users = user_side.refresh(start._replace(context=start.context.users, sampled=None, key=user_key))
        return SampledSides(users, items)

    def some_items(key: chex.PRNGKey, num_items: int) -> tuple[jax.Array, int]:
        """Returns every n-th item from a random one on, of which the last may be past the end, and n."""
        stride = -(-num_items // settings.items)
        return jax.random.randint(key, (), 0, stride) + stride * jnp.arange(-(-num_items // stride)), stride

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        side, sampled = step.batch.entities.users, step.sampled
        user_value, terms = user_side.loss(step._replace(context=step.context.users, sampled=sampled.users))
        num_items = step.context.users.train.num_items
        both = jnp.concatenate(jax.tree.leaves(look_up(sampled.users, side.ids)), axis=1)
        counted = (both >= 0) & side.where[:, None]
        in_batch = jnp.zeros(num_items, bool).at[jnp.where(counted, both, num_items)].set(True, mode="drop")
        ids, stride = some_items(step.key, num_items)
        where, ids = (ids < num_items) & in_batch.at[ids].get(mode="clip"), jnp.minimum(ids, num_items - 1)
        own = look_up(sampled.items, ids)
        score = lambda users: step.batch.score(users, ids[:, None])
        value = stride * lists_loss(own.interesting, own.uninteresting, where, score)
        return user_value + settings.item_weight * value, {**terms, "ir": value}

    def reads(context: Rankings, sampled: SampledSides, triples: Triples, key: chex.PRNGKey) -> RowIds:
        num_items = context.users.train.num_items
        ids = jnp.minimum(some_items(key, num_items)[0], num_items - 1)
        users = RowIds.of_items(*jax.tree.leaves(look_up(sampled.items, ids))).items
        return user_side.reads(context.users, sampled.users, triples, key) + RowIds(users, ids)

    return Distiller(no_params, loss, refresh, prepare, needs=("scores",), reads=reads, divided=True)
