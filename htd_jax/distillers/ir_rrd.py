"""IR-RRD, RRD with its item side (Kang et al., Information Sciences'21)."""

import dataclasses
import math
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from flax import struct

from htd_jax.data import Interactions
from htd_jax.distillers.base import Distiller, EpochStart, Method, Step, Terms, no_params
from htd_jax.distillers.draws import Ranking, by_rank, of_rest, rank_users
from htd_jax.distillers.rrd import Sample, rrd
from htd_jax.losses import relaxed_ranking_loss
from htd_jax.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class IRRRD(Method):
    """RRD, and the same with users and items exchanged (Kang et al., Information Sciences'21)."""

    weight: Annotated[float, Ge(0)] = 1e-3
    """Lambda: the users' part of the loss, RRD's, counts this much against the base loss."""
    interesting: Annotated[int, Ge(1)] = 40
    """K: items of each user whose order is learned."""
    uninteresting: Annotated[int, Ge(1)] = 40
    """L: items of each user that come after them, in no order."""
    temperature: Annotated[float, Gt(0)] = 10.0
    """T: the item of rank r is drawn with a probability like exp(-r / T)."""
    item_weight: Annotated[float, Ge(0)] = 0.5
    """The items' part of the loss counts this much against the users'."""
    item_interesting: Annotated[int, Ge(1)] = 20
    """K of items: users of each item whose order is learned."""
    item_uninteresting: Annotated[int, Ge(1)] = 20
    """L of items: users of each item that come after them, in no order."""
    item_temperature: Annotated[float, Gt(0)] = 10.0
    """T of items: the user of rank r is drawn with a probability like exp(-r / T)."""
    pool: Annotated[int, Ge(1)] = 500
    """The teacher's best, of which the interesting ones are, and none of the uninteresting ones; on both sides."""
    items: Annotated[int, Ge(1)] = 2048
    """Items that a step takes of those drawn for its users, at most; they count for all. As published: all items."""

    label: ClassVar[str] = "IR-RRD"

    def make(self, epochs: int) -> Distiller:
        return ir_rrd(
            num_interesting=self.interesting,
            num_uninteresting=self.uninteresting,
            temperature=self.temperature,
            item_weight=self.item_weight,
            num_interesting_users=self.item_interesting,
            num_uninteresting_users=self.item_uninteresting,
            item_temperature=self.item_temperature,
            pool=self.pool,
            items_a_step=self.items,
        )


@struct.dataclass
class Rankings:
    """The teacher's best items of every user, and users of every item, whose numbers `Ranking` calls items."""

    users: Ranking
    items: Ranking


@struct.dataclass
class Samples:
    """The items of an epoch of every user, and the users of every item."""

    users: Sample
    items: Sample


def ir_rrd(
    *,
    num_interesting: int = 40,
    num_uninteresting: int = 40,
    temperature: float = 10.0,
    item_weight: float = 0.5,
    num_interesting_users: int = 20,
    num_uninteresting_users: int = 20,
    item_temperature: float = 10.0,
    pool: int = 500,
    items_a_step: int = 2048,
) -> Distiller:
    """RRD, and that each item's users stand in the teacher's order: those whom it is most for, above the rest.

    An item's pool are the users who have not seen it whom the teacher scores it highest for; of it and of the rest
    users are drawn each epoch as `rrd` draws items. In a step, every different item that `rrd` drew for the users of
    the batch, interesting or not, adds one `relaxed_ranking_loss`. That both kinds of drawn items count is not said in
    the paper's code as far as it is public, but follows from the losses in its log.

    Of CiteULike's 25,181 items 19,200 are drawn for a batch of 1,024, each with the users that it has all epoch, so
    that one epoch goes over them some eighty times, at a many times higher cost. Here a step takes every n-th item,
    n the least with which they are `items_a_step` at most, from one of the first n on, drawn anew; those of them that
    were drawn for the batch count n times. The expectation of the gradient is that of all items, at RRD's cost. From
    num_items on, `items_a_step` takes all, as published.

    A teacher needs scores: lists of items do not say which of two users an item is more for. An item whose pool or
    rest is smaller is held to what there is.

    Cost, an item: held are 2 P numbers (4 KB), and drawn, in the state, K + L (160 bytes). A step's items score K + L
    pairs each.

    Args:
      num_interesting: K of users, see `rrd`.
      num_uninteresting: L of users.
      temperature: T of users.
      item_weight: of the items' part, lambda_item over lambda.
      num_interesting_users: K of items.
      num_uninteresting_users: L of items.
      item_temperature: T of items.
      pool: P, of both.
      items_a_step: how many items a step takes, at most.

    Returns:
      A `Distiller`; its terms are `rrd` and `ir`.
    """
    of_users = rrd(
        num_interesting=num_interesting, num_uninteresting=num_uninteresting, pool=pool, temperature=temperature
    )
    # What is past these places is drawn less often than once in 10^8: no noise need be made for it.
    reach = num_interesting_users + math.ceil(20 * item_temperature)

    def prepare(teacher: Teacher, train: Interactions) -> Rankings:
        return Rankings(of_users.prepare(teacher, train), rank_users(teacher, train, pool))

    def refresh(start: EpochStart) -> Samples:
        params, key, epoch, teacher, student = start.params, start.key, start.epoch, start.context, start.student
        for_users, for_interesting, for_rest = jax.random.split(key, 3)
        best = by_rank(for_interesting, teacher.items.pool[:, :reach], num_interesting_users, item_temperature)
        items = Sample(best, of_rest(for_rest, teacher.items, num_uninteresting_users))
        return Samples(of_users.refresh(params, None, for_users, epoch, teacher.users, student), items)

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        params, drawn, batch, key, epoch = step.params, step.sampled, step.batch, step.key, step.epoch
        side = batch.entities.users
        value_of_users, terms = of_users.loss(
            params, drawn.users, batch._replace(teacher=step.context.users), key, epoch
        )
        num_items = len(drawn.items.interesting)
        of_batch = jnp.concatenate([drawn.users.interesting, drawn.users.uninteresting], axis=1)[side.ids]
        counts = (of_batch >= 0) & side.where[:, None]
        in_batch = jnp.zeros(num_items, bool).at[jnp.where(counts, of_batch, num_items)].set(True, mode="drop")
        stride = -(-num_items // items_a_step)
        ids = jax.random.randint(key, (), 0, stride) + stride * jnp.arange(-(-num_items // stride))
        where, ids = (ids < num_items) & in_batch.at[ids].get(mode="clip"), jnp.minimum(ids, num_items - 1)
        of_items = jax.tree.map(lambda users: users[ids], drawn.items)
        users = jnp.concatenate([of_items.interesting, of_items.uninteresting], axis=1)
        scores = batch.score(jnp.maximum(users, 0), ids[:, None])
        best, rest = jnp.split(scores, [of_items.interesting.shape[1]], axis=1)
        value = stride * relaxed_ranking_loss(
            best,
            rest,
            where=where,
            interesting_where=of_items.interesting >= 0,
            uninteresting_where=of_items.uninteresting >= 0,
        )
        return value_of_users + item_weight * value, {**terms, "ir": value}

    return Distiller(no_params, loss, refresh, prepare, needs=("scores",))
