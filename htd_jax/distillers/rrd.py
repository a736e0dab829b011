"""RRD, Relaxed Ranking Distillation (Kang et al., CIKM'20)."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import chex
import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from flax import struct

from htd_jax.data import Interactions
from htd_jax.distillers.base import Distiller, EpochStart, Method, RowIds, Step, Terms, Triples, no_params
from htd_jax.distillers.sampling import Ranking, rank_unseen, sample_by_rank, sample_rest
from htd_jax.losses import relaxed_ranking_loss
from htd_jax.ops.shards import look_up
from htd_jax.settings import check
from htd_jax.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class RRD(Method):
    """Learns the order of the teacher's best unseen items, above the rest (Kang et al., CIKM'20)."""

    weight: Annotated[float, Ge(0)] = 1e-3
    """Lambda, the weight of the distillation loss against the base loss. Both are sums over a batch: htd-jax
    study weights measures the method's part."""
    interesting: Annotated[int, Ge(1)] = 40
    """K, the number of items per user whose order is learned."""
    uninteresting: Annotated[int, Ge(1)] = 40
    """L, the number of items per user that are ranked below the interesting ones, in any order."""
    pool: Annotated[int, Ge(1)] = 500
    """The number of the teacher's best unseen items per user from which interesting items are sampled; uninteresting
    items are sampled from the rest."""
    temperature: Annotated[float, Gt(0)] = 10.0
    """T; the item of rank r is sampled with probability proportional to exp(-r / T)."""
    choice: Literal["drawn", "top"] = "drawn"
    """How the interesting items are chosen from the pool: sampled by rank in each epoch, or always the first."""

    label: ClassVar[str] = "RRD"

    def make(self, epochs: int) -> Distiller:
        return rrd(self)


@struct.dataclass
class SampledLists:
    """The sampled lists of an epoch, -1 for none.

    Attributes:
      interesting: `[n, K]` int32, the teacher's best first.
      uninteresting: `[n, L]` int32.
    """

    interesting: jax.Array
    uninteresting: jax.Array


def rrd(settings: RRD = RRD()) -> Distiller:
    """Learns the order of the teacher's best items, above the rest, whose order is free.

    A user's pool are the teacher's best unseen items. Each epoch samples, on the device, interesting items from the
    pool, one by one with probability ~ exp(-rank / T) among those left, in the teacher's order; and uninteresting items
    from the rest, neither seen nor in the pool, uniformly without replacement, as in the authors' code. The loss is
    `relaxed_ranking_loss`, summed over the different users of a batch. A user with a smaller pool or rest has shorter
    lists, a user without a pool adds nothing. `choice="top"` is the authors' later preference.

    Any teacher that ranks works, lists alone included; they may be shorter than the pool, and hold each item once.

    Cost per user: 2 P numbers in memory (4 KB) and K + L in the state (320 bytes); an epoch samples in
    O(P log K + L (L + log P + log max_degree)), and a step scores the K + L pairs of its users, O((K + L) d).

    Args:
      settings: see `RRD`.

    Returns:
      A `Distiller`; its term is `rrd`.

    Raises:
      UserError: if a setting is invalid.
    """
    check(settings, "rrd.")

    def prepare(teacher: Teacher, train: Interactions) -> Ranking:
        return rank_unseen(teacher, train, settings.pool)

    def refresh(start: EpochStart) -> SampledLists:
        pool_key, rest_key = jax.random.split(start.key)
        pool = start.context.pool
        if settings.choice == "top":
            interesting = pool[:, : settings.interesting]
        else:
            interesting = sample_by_rank(pool_key, pool, settings.interesting, settings.temperature)
        return SampledLists(interesting, sample_rest(rest_key, start.context, settings.uninteresting))

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        users = step.batch.entities.users
        own = look_up(step.sampled, users.ids)
        score = lambda items: step.batch.score(users.ids[:, None], items)
        value = lists_loss(own.interesting, own.uninteresting, users.where, score)
        return value, {"rrd": value}

    def reads(context: Ranking, sampled: SampledLists, triples: Triples, key: chex.PRNGKey) -> RowIds:
        own = look_up(sampled, triples.users)
        return RowIds.of_items(own.interesting, own.uninteresting)

    return Distiller(no_params, loss, refresh, prepare, needs=("lists",), reads=reads, divided=True)


def lists_loss(
    better: jax.Array, worse: jax.Array, where: jax.Array, score: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Returns `relaxed_ranking_loss` of lists of ids.

    Args:
      better: `[n, K]` int32, in the order to learn, -1 for none.
      worse: `[n, L]` int32, -1 for none.
      where: `[n]` bool.
      score: ids `[n, K + L]` -> the student's scores of each row's ids.
    """
    scores = score(jnp.maximum(jnp.concatenate([better, worse], axis=1), 0))
    first, second = jnp.split(scores, [better.shape[1]], axis=1)
    rows = where[:, None]
    return relaxed_ranking_loss(first, second, where=(rows & (better >= 0), rows & (worse >= 0)))
