"""RCE-KD, rejuvenated cross-entropy for knowledge distillation (2025)."""

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
from htd_jax.distillers.sampling import map_blocks, sample_by_weight
from htd_jax.losses import rejuvenated_loss
from htd_jax.ops.largest import top_k
from htd_jax.ops.shards import look_up
from htd_jax.teacher import Teacher

# The most of the teacher's items that add to an item's sampling weight, as in the authors' code.
CAP = 50


@dataclasses.dataclass(frozen=True)
class RCEKD(Method):
    """Learns the teacher's softmax over the student's best items, and over the teacher's best (RCE-KD, 2025)."""

    weight: Annotated[float, Ge(0)] = 500.0
    """Lambda, the weight of the distillation loss against the base loss. Both are sums over a batch: htd-jax
    study weights measures the method's part."""
    best: Annotated[int, Ge(1)] = 50
    """K, the number of best items per user, of the teacher and of the student."""
    sampled: Annotated[int, Ge(0)] = 50
    """L, the number of items per user that are sampled from the student's best."""
    pool: Annotated[int, Ge(1)] = 200
    """The number of the student's best items per user from which items are sampled."""
    draw_temperature: Annotated[float, Gt(0)] = 10.0
    """An item is sampled with probability proportional to exp((c + 1) / this), where c is the number of the teacher's
    best items at or below it in the student's ranking."""
    beta: Annotated[float, Ge(0)] = 3.0
    """The rate at which the weight of the teacher's items falls with the share of them that is sampled."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """The divisor of both models' scores."""
    rank_temperature: Annotated[float, Gt(0)] = 10.0
    """For lists without scores, the item of rank r has the score -r / this."""

    label: ClassVar[str] = "RCE-KD"

    def make(self, epochs: int) -> Distiller:
        return rce_kd(self)


@struct.dataclass
class Context:
    """The teacher's best items, seen ones included, and its scores of any items.

    Attributes:
      best: `[num_users, K]` int32, -1 for none.
      scores: see `Teacher`; None for a teacher that gives only lists, for which alone the fields below are set.
      items: `[num_users, k]` int32, the lists, -1 for none.
      listed_scores: `[num_users, k]`, the scores of listed items.
      other_scores: `[num_users]`, the score of all others.
    """

    best: jax.Array
    scores: Callable[[jax.Array], jax.Array] | None = None
    items: jax.Array | None = None
    listed_scores: jax.Array | None = None
    other_scores: jax.Array | None = None


@struct.dataclass
class SampledSets:
    """The items of an epoch, -1 for none, and the teacher's scores of them.

    Attributes:
      best: `[num_users, K]`, the student's best items.
      others: `[num_users, L + K]`, the sampled items, and the teacher's best that are in neither set.
      best_teacher, others_teacher: of the same shapes.
      shared: `[num_users]`, the share of the teacher's best that was sampled.
    """

    best: jax.Array
    others: jax.Array
    best_teacher: jax.Array
    others_teacher: jax.Array
    shared: jax.Array


def rce_kd(settings: RCEKD = RCEKD()) -> Distiller:
    """Learns the teacher's softmax over two small sets of each user's items, see `rejuvenated_loss`.

    Each epoch ranks all items, seen ones included, by the student. The first set, S, are the student's K best items. A
    set I of L items is sampled from the student's `pool` best, without replacement, each item with probability ~
    exp((min(c, 50) + 1) / T), where c is the number of the teacher's K best at or below it in the pool. The second set
    is I with those of the teacher's best that are in neither I nor S; its weight is exp(-beta |T and I| / K).

    Every different user of a batch counts once; in the authors' code once per triple. The largest score is subtracted
    before exponentiation, which their code omits.

    The softmax reads the teacher's scores as logits, so their scale matters, unlike in most methods. A teacher that
    gives only lists has the first K of a list as its best items. An item that is not listed scores like
    the rank after the list's end, or, if the lists have scores, like the list's last item.

    Cost per user: an epoch's refresh computes all scores of student and teacher, m (d_S + d_T), in blocks of users, and
    searches them for the pool; a step scores 2 K + L pairs. In memory are 2 (2 K + L) numbers.

    Args:
      settings: see `RCEKD`.

    Returns:
      A `Distiller`; its term is `rce-kd`.
    """

    def prepare(teacher: Teacher, train: Interactions) -> Context:
        if teacher.scores is not None:
            return Context(_top_of_scores(teacher, train, settings.best), teacher.scores)
        assert teacher.lists is not None, "a teacher with neither lists nor scores"
        items = jnp.asarray(teacher.lists.items, jnp.int32)
        where = items >= 0
        if teacher.lists.scores is None:
            rank = jnp.arange(items.shape[1], dtype=jnp.float32)[None, :]
            scores = jnp.broadcast_to(-rank / settings.rank_temperature, items.shape)
            other_scores = -jnp.sum(where, axis=1) / settings.rank_temperature
        else:
            scores = jnp.asarray(teacher.lists.scores, jnp.float32)
            other_scores = jnp.min(jnp.where(where, scores, jnp.inf), axis=1, initial=jnp.inf)
            other_scores = jnp.where(where.any(1), other_scores, 0)
        return Context(items[:, : settings.best], None, items, jnp.where(where, scores, 0), other_scores)

    def refresh(start: EpochStart) -> SampledSets:
        context, student = start.context, start.student

        def sample_block(users: jax.Array) -> SampledSets:
            _, ranked = top_k(student.score_all(users), max(settings.pool, settings.best))
            best, candidates = ranked[:, : settings.best], ranked[:, : settings.pool]
            wanted = context.best[users]
            hits = _among(candidates, wanted).astype(jnp.int32)
            below = jnp.cumsum(hits[:, ::-1], axis=1)[:, ::-1]  # at this rank or a worse one
            log_weights = (jnp.minimum(below, CAP) + 1) / settings.draw_temperature
            key = jax.random.fold_in(start.key, users[0])
            sampled = sample_by_weight(key, candidates, log_weights, settings.sampled)
            in_sample = _among(wanted, sampled)
            missing = jnp.where(in_sample | _among(wanted, best), -1, wanted)
            others = jnp.concatenate([sampled, missing], axis=1)
            scores = _teacher_scores(context, users, jnp.concatenate([best, others], axis=1))
            best_scores, other_scores = jnp.split(scores, [best.shape[1]], axis=1)
            return SampledSets(best, others, best_scores, other_scores, jnp.mean(in_sample, axis=1, dtype=jnp.float32))

        sampled: SampledSets = map_blocks(sample_block, student.num_users, student.num_items)
        return sampled

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        users = step.batch.entities.users
        own: SampledSets = look_up(step.sampled, users.ids)
        items = jnp.concatenate([own.best, own.others], axis=1)
        scores = step.batch.score(users.ids[:, None], jnp.maximum(items, 0))
        best, others = jnp.split(scores, [own.best.shape[1]], axis=1)
        rows = users.where[:, None]
        value = rejuvenated_loss(
            best,
            own.best_teacher,
            others,
            own.others_teacher,
            own.shared,
            where=(rows & (own.best >= 0), rows & (own.others >= 0)),
            temperature=settings.temperature,
            beta=settings.beta,
        )
        return value, {"rce-kd": value}

    def reads(context: Context, sampled: SampledSets, triples: Triples, key: chex.PRNGKey) -> RowIds:
        return RowIds.of_items(*look_up((sampled.best, sampled.others), triples.users))

    return Distiller(no_params, loss, refresh, prepare, needs=("lists",), reads=reads, divided=True)


@jax.jit(static_argnames="k")
def _top_of_scores(teacher: Teacher, train: Interactions, k: int) -> jax.Array:
    scores = teacher.scores
    assert scores is not None
    best: jax.Array = map_blocks(lambda users: top_k(scores(users), k)[1], train.num_users, train.num_items)
    return best


def _among(items: jax.Array, others: jax.Array) -> jax.Array:
    """Returns which of `items` `[n, a]`, -1 for none, are in the same row of `others` `[n, b]`: `[n, a]` bool."""
    return ((items[:, :, None] == others[:, None, :]) & (items >= 0)[:, :, None]).any(2)


def _teacher_scores(context: Context, users: jax.Array, items: jax.Array) -> jax.Array:
    """Returns the teacher's scores of `items` `[n, a]` of the users `[n]`, with any number for an item of -1."""
    if context.scores is not None:
        return jnp.take_along_axis(context.scores(users), jnp.maximum(items, 0), axis=1)
    assert context.items is not None and context.listed_scores is not None and context.other_scores is not None
    listed, scores, other = context.items[users], context.listed_scores[users], context.other_scores[users]
    matches = items[:, :, None] == listed[:, None, :]
    matched = jnp.max(jnp.where(matches, scores[:, None, :], -jnp.inf), axis=2, initial=-jnp.inf)
    return jnp.where(matches.any(2), matched, other[:, None])
