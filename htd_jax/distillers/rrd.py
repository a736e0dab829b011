"""RRD, Relaxed Ranking Distillation (Kang et al., CIKM'20)."""

import dataclasses
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from flax import struct

from htd_jax.data import Interactions
from htd_jax.distillers.base import Distiller, EpochStart, Method, Step, Terms, no_params
from htd_jax.distillers.draws import Ranking, by_rank, of_rest, rank_unseen
from htd_jax.losses import relaxed_ranking_loss
from htd_jax.losses.checks import check_choice
from htd_jax.teacher import Teacher

CHOICES = ("drawn", "top")


@dataclasses.dataclass(frozen=True)
class RRD(Method):
    """The order of the teacher's best unseen items, above the rest (Kang et al., CIKM'20)."""

    weight: Annotated[float, Ge(0)] = 1e-3
    """Lambda: the distillation loss counts this much against the base loss."""
    interesting: Annotated[int, Ge(1)] = 40
    """K: items of each user whose order is learned."""
    uninteresting: Annotated[int, Ge(1)] = 40
    """L: items of each user that come after them, in no order."""
    pool: Annotated[int, Ge(1)] = 500
    """The teacher's best unseen items, of which the interesting ones are, and none of the uninteresting ones."""
    temperature: Annotated[float, Gt(0)] = 10.0
    """T: the item of rank r is drawn with a probability like exp(-r / T)."""
    choice: Literal["drawn", "top"] = "drawn"
    """Which of the pool are interesting: some drawn by rank, anew each epoch, or always the first."""

    label: ClassVar[str] = "RRD"

    def make(self, epochs: int) -> Distiller:
        return rrd(
            num_interesting=self.interesting,
            num_uninteresting=self.uninteresting,
            pool=self.pool,
            temperature=self.temperature,
            choice=self.choice,
        )


@struct.dataclass
class Sample:
    """The items of an epoch, -1 for none: `[num_users, K]` interesting ones, the teacher's best first, and `[num_users,
    L]` uninteresting ones."""

    interesting: jax.Array
    uninteresting: jax.Array


def rrd(
    *,
    num_interesting: int = 40,
    num_uninteresting: int = 40,
    pool: int = 500,
    temperature: float = 10.0,
    choice: str = "drawn",
) -> Distiller:
    """The order of the teacher's best items, and that they stand above the rest, whose order does not matter.

    A user's pool are the teacher's best unseen items. Every epoch draws anew, on the device: of the pool the
    interesting items, without replacement, the next always with probability ~ exp(-rank / T) among those left, set in
    the teacher's order; and of the rest, neither seen nor in the pool, the uninteresting ones, uniformly, without
    replacement, as in the authors' code. Every different user of a batch adds one `relaxed_ranking_loss` to the loss. A
    user whose pool or rest is smaller is held to what there is; one without a pool, to nothing.

    Any teacher that ranks will do, lists alone included. They may be shorter than the pool, which is then smaller, and
    hold each item once.

    Cost, a user: held are 2 P numbers (4 KB), and drawn, in the state, K + L (320 bytes); an epoch's draw takes
    O(P log K + L (L + log P + log max_degree)), and a step scores the K + L pairs of its users, O((K + L) d) each.

    Args:
      num_interesting: K, at most; the pool may be smaller.
      num_uninteresting: L.
      pool: P, how many of the teacher's best items the pool holds.
      temperature: T, over 0.
      choice: `drawn`, or `top` for the first K of the pool in every epoch, which the authors' later work prefers.

    Returns:
      A `Distiller`; its term is `rrd`.

    Raises:
      ValueError: an unknown `choice`.
    """
    check_choice("choice", choice, CHOICES)

    def prepare(teacher: Teacher, train: Interactions) -> Ranking:
        return rank_unseen(teacher, train, pool)

    def refresh(start: EpochStart) -> Sample:
        params, key, epoch, teacher, student = start.params, start.key, start.epoch, start.context, start.student
        for_interesting, for_rest = jax.random.split(key)
        if choice == "top":
            interesting = teacher.pool[:, :num_interesting]
        else:
            interesting = by_rank(for_interesting, teacher.pool, num_interesting, temperature)
        return Sample(interesting, of_rest(for_rest, teacher, num_uninteresting))

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        params, drawn, batch, key, epoch = step.params, step.sampled, step.batch, step.key, step.epoch
        users = batch.entities.users
        of_users = jax.tree.map(lambda items: items[users.ids], drawn)
        items = jnp.concatenate([of_users.interesting, of_users.uninteresting], axis=1)
        scores = batch.score(users.ids[:, None], jnp.maximum(items, 0))
        best, rest = jnp.split(scores, [of_users.interesting.shape[1]], axis=1)
        value = relaxed_ranking_loss(
            best,
            rest,
            where=users.where,
            interesting_where=of_users.interesting >= 0,
            uninteresting_where=of_users.uninteresting >= 0,
        )
        return value, {"rrd": value}

    return Distiller(no_params, loss, refresh, prepare, needs=("lists",))
