"""HetComp: several unlike teachers, learned from easy to hard (Kang et al., WWW'23)."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import chex
import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le
from flax import struct

from htd_jax.data import Interactions, seen_mask, some_seen
from htd_jax.distillers.base import (
    Distiller,
    EpochStart,
    Method,
    Step,
    Terms,
    all_items,
    item_masks,
    no_params,
    sum_over_users,
)
from htd_jax.distillers.sampling import map_blocks
from htd_jax.ensembles import Stages, ensemble_lists
from htd_jax.losses import coarse_ranking_loss, fine_ranking_loss
from htd_jax.ops.largest import top_k
from htd_jax.ops.shards import look_up
from htd_jax.teacher import Teacher

# How fast an item's gain falls with its position in the student's list.
GAIN_SCALE = 10.0


@dataclasses.dataclass(frozen=True)
class HetComp(Method):
    """Learns an ensemble of several teachers, each user from their early stages to their last (Kang et al., WWW'23)."""

    weight: Annotated[float, Ge(0)] = 1.0
    """Lambda, the factor of the whole loss."""
    coarse: Annotated[float, Ge(0)] = 0.01
    """The weight of the coarse loss, which learns the listed items in any order until all teachers are at their last
    stage."""
    fine: Annotated[float, Ge(0)] = 0.005
    """The weight of the fine loss, which then learns the order of the first half, and of the first tenth, of the
    list."""
    best: Annotated[int, Ge(10)] = 100
    """K, the number of the ensemble's best unseen items per user."""
    curriculum: bool = True
    """Whether to begin with the teachers' first stages; else all of them are at their last from the start."""
    period: Annotated[int, Ge(1)] = 10
    """p, the number of epochs between two looks at how near the student is to the next stage."""
    threshold: Annotated[float, Gt(0)] = 1.05
    """How many times nearer to a teacher's next stage a user's list must have come for that stage to be learned; a
    list that has moved away moves on too."""
    decay: Annotated[float, Gt(0), Le(1)] = 0.995
    """The factor of the threshold at every look."""

    label: ClassVar[str] = "HetComp"
    training_defaults: ClassVar[Mapping[str, Any]] = {
        "loss": "none",
        "epochs": 1000,
        "batch_size": 128,
        "learning_rate": 5e-3,  # published: 1e-3, for epochs of a dozen passes over the users
        "l2": 1e-5,
        "patience": 50,
    }

    def make(self, epochs: int) -> Distiller:
        return hetcomp(self)


@struct.dataclass
class Context:
    """The stages of the teachers."""

    train: Interactions
    stages: Stages


@struct.dataclass
class Curriculum:
    """Where the students of all users are on their way through the teachers' stages.

    Attributes:
      at: `[teachers, num_users]` int32, v, the stage of each teacher.
      last: `[teachers, num_users]`, the distance to the next stage, when it was last remembered.
      listed: `[num_users, K]` int32, T, the ensemble's items, -1 for none.
      own: `[num_users, K / 10]` int32, P, seen items, -1 for none.
      fine: bool, whether the fine loss has taken over.
    """

    at: jax.Array
    last: jax.Array
    listed: jax.Array
    own: jax.Array
    fine: jax.Array


def hetcomp(settings: HetComp = HetComp()) -> Distiller:
    r"""Learns the lists of an ensemble of teachers, each at a stage of its training that the student can follow.

    The ensemble's list of a user is that of `ensemble_lists`, of each teacher at its stage v. All start at v = 0. For
    each teacher and user, D is 1 less the NDCG of the student's 50 best unseen items, of which those are relevant that
    a stage lists among its first 50; position t, from 0, has a gain of :math:`2^{e^{-t/10}} - 1`. Every p epochs, from
    the second time on, v grows by one where last / D(stage v + 1) exceeds the threshold or is below 1, with `last` the
    D of the same stage when it was first looked at; then the ensemble's lists are made anew.

    Until the teachers are at their last stage for (nearly) all users, `coarse_ranking_loss` learns the lists, then
    `fine_ranking_loss`. Seen items, which stages do not rank, are sampled anew in every epoch, a tenth of K per user.

    Source: Kang et al., WWW'23, whose code takes the different users of 1,024 training pairs as a batch, which passes
    over all users a dozen times per epoch; here every user is once in an epoch.

    Cost of a step with u users, m items and d dimensions: 3 u m d multiplications and u m exponentials; every p epochs,
    all scores of all users once. In memory are 2 x teachers x stages x users x 100 numbers.

    Args:
      settings: see `HetComp`.

    Returns:
      A `Distiller`; its term is `hetcomp`.
    """
    number = settings.best

    def prepare(teacher: Teacher, train: Interactions) -> Context:
        return Context(train, teacher.staged(train))

    def begin(start: EpochStart) -> Curriculum:
        stages, train = start.context.stages, start.context.train
        first = 0 if settings.curriculum else stages.number - 1
        at = jnp.full((len(stages.items), train.num_users), first, jnp.int32)
        own = jnp.full((train.num_users, max(number // 10, 1)), -1, jnp.int32)
        return Curriculum(at, jnp.zeros(at.shape), ensemble_lists(stages, at, number), own, jnp.array(False))

    def refresh(start: EpochStart) -> Curriculum:
        if start.sampled is None:
            return begin(start)
        stages, train, last_stage = start.context.stages, start.context.train, start.context.stages.number - 1
        now = jax.lax.cond(start.epoch == 0, lambda: begin(start), lambda: start.sampled)

        def look(now: Curriculum) -> Curriculum:
            ranked = best_unseen(start.student, train)
            following = lambda at: distances(ranked, stages, jnp.minimum(at + 1, last_stage))
            found = following(now.at)

            def move() -> Curriculum:
                looks = (start.epoch // settings.period).astype(jnp.float32)
                ratio = now.last / jnp.where(found > 0, found, 1)
                above = (found == 0) | (ratio > settings.threshold * settings.decay**looks)
                moves = (now.at < last_stage) & (above | (ratio < 1))
                at = now.at + moves
                listed = ensemble_lists(stages, at, number)
                last = jnp.where(moves, following(at), now.last)
                return dataclasses.replace(now, at=at, last=last, listed=listed)

            return jax.lax.cond(start.epoch == settings.period, lambda: dataclasses.replace(now, last=found), move)

        if settings.curriculum and last_stage:
            due = (start.epoch > 0) & (start.epoch % settings.period == 0)
            now = jax.lax.cond(due, look, lambda now: now, now)
        rounded = jnp.round(100 * jnp.mean(now.at, axis=1, dtype=jnp.float32))
        own = some_seen(start.key, train, jnp.arange(train.num_users), now.own.shape[1])
        return dataclasses.replace(now, own=own, fine=jnp.all(rounded >= 100 * last_stage))

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        context, now = step.context, step.sampled

        def loss_for_block(scores: jax.Array, block: tuple[jax.Array, jax.Array]) -> jax.Array:
            ids, rows = block
            seen, where = item_masks(scores, context.train, ids, rows)
            lists = look_up((now.listed, now.own), ids)
            return jax.lax.cond(
                now.fine,
                lambda: settings.fine * fine_ranking_loss(scores, *lists, seen, where=where, first=halves),
                lambda: settings.coarse * coarse_ranking_loss(scores, *lists, seen, where=where),
            )

        halves = max(number // 2, 1), max(number // 10, 1)
        value = sum_over_users(step.batch, loss_for_block, context.train.num_items)
        return value, {"hetcomp": value}

    return Distiller(no_params, loss, refresh, prepare, needs=("stages",), reads=all_items)


def best_unseen(student: Any, train: Interactions, k: int = 50) -> jax.Array:
    """Returns the student's `k` best unseen items of each user, the best first: `[num_users, k]` int32, -1 for none."""

    def block(users: jax.Array) -> jax.Array:
        values, items = top_k(jnp.where(seen_mask(train, users), -jnp.inf, student.score_all(users)), k)
        return jnp.where(values > -jnp.inf, items, -1).astype(jnp.int32)

    best: jax.Array = map_blocks(block, train.num_users, train.num_items)
    return best


def distances(ranked: chex.Array, stages: Stages, at: chex.Array) -> jax.Array:
    """Returns how far a student's lists are from a stage of each teacher: 1 less their NDCG, see `hetcomp`.

    Args:
      ranked: `[num_users, k]` int32, the student's best unseen items, -1 for none; as many of a stage's are relevant.
      stages: see `Stages`.
      at: `[teachers, num_users]` integers, the stage of each teacher.

    Returns:
      `[teachers, num_users]` in [0, 1].
    """
    k = ranked.shape[1]
    place = jnp.arange(k, dtype=jnp.float32)
    gains = (2 ** jnp.exp(-place / GAIN_SCALE) - 1) / jnp.log2(place + 2)

    def block(users: jax.Array) -> jax.Array:
        where = jnp.arange(len(stages.items))[:, None], at[:, users], users[None, :]
        relevant = stages.items[where][:, :, :k]
        own = ranked[users][None, :, :]
        hits = ((own[..., :, None] == relevant[..., None, :]) & (own >= 0)[..., :, None]).any(3)
        return 1 - (jnp.sum(jnp.where(hits, gains, 0), axis=2) / jnp.sum(gains)).T

    far: jax.Array = map_blocks(block, len(ranked), k * k * len(stages.items))
    return far.T
