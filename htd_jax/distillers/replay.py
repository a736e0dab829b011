"""Replay: a model that learns new data keeps the scores of earlier models for some of their best items."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt

from htd_jax.data import Interactions, seen_mask
from htd_jax.distillers.base import Distiller, EpochStart, Method, RowIds, Step, Terms, Triples, no_params
from htd_jax.distillers.sampling import sample_columns_by_weight
from htd_jax.losses import soft_bce_loss
from htd_jax.ops.largest import top_k
from htd_jax.ops.mapped import map_rows
from htd_jax.ops.shards import look_up
from htd_jax.teacher import SCORES, Memory, Teacher

# The most replayed pairs per triple of a batch.
MOST = 32

# Items that stand for all where a rank is estimated.
RANKED = 1024

Scores = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Replay(Method):
    """Keeps earlier models' scores of some of their best items while new data are learned (Lee et al., KDD'24)."""

    weight: Annotated[float, Ge(0)] = 0.5
    """Lambda, the weight of the replay against the base loss at the first epoch."""
    decay: Annotated[float, Gt(0)] = 10.0
    """The number of epochs in which the weight falls to 37%: it is multiplied by exp(-epoch / this)."""
    samples: Annotated[int, Ge(1)] = 3
    """The number of items per user and earlier model that are sampled for an epoch."""
    top: Annotated[int, Ge(1)] = 100
    """The number of an earlier model's best unseen items that they are sampled from."""
    scale: Annotated[float, Ge(0)] = 1e-4
    """Items are sampled in proportion to exp(this x (rank at the start - rank in the earlier model))."""

    for_updates: ClassVar[bool] = True

    def make(self, epochs: int) -> Distiller:
        return replay(self)


class Replayed(NamedTuple):
    """The pairs of an epoch: `[n]` int32 users and items, the logits `[n]` that they shall keep, and a mask."""

    users: jax.Array
    items: jax.Array
    logits: jax.Array
    where: jax.Array


def replay(settings: Replay = Replay()) -> Distiller:
    """Keeps the scores of earlier models, which are the teacher's `memory`, for some of their best items.

    At the start of an epoch, `settings.samples` items of every user are sampled from those that each earlier model
    remembers, without repetition, in proportion to their weights; where two models remember one item, the larger score
    is kept. A step adds the binary cross-entropy between the student's score of a pair and the sigmoid of the earlier
    model's, `soft_bce_loss`, on random pairs of the epoch: as many per triple of the batch as there are per training
    pair, so that on average each occurs once in an epoch of batches of pairs; at most `MOST`. All users are replayed,
    also those without a new interaction.

    Source: Lee et al., KDD'24, equations 7 to 9. There, a pass over the new pairs and one over the replayed pairs
    alternate; under Adam, whose steps do not depend on the scale of a loss, their weight then hardly matters.

    Cost of a step with n triples: n r scores, with r = samples x models x users / training pairs. The memory holds 12
    bytes per model, user and remembered item.

    Args:
      settings: see `Replay`.

    Returns:
      A `Distiller`; its term is `replay`.
    """

    def prepare(teacher: Teacher, train: Interactions) -> tuple[Memory, Interactions]:
        assert teacher.memory is not None, "a teacher without memory"
        return teacher.memory.first(settings.top), train

    def refresh(start: EpochStart) -> Replayed:
        memory, _ = start.context
        return sample_memory(start.key, memory, settings.samples, settings.scale)

    def chosen(sampled: Replayed, train: Interactions, width: int, key: chex.PRNGKey) -> Replayed:
        number = -(-len(sampled.users) * width // max(1, len(train.learned)))
        number = max(1, min(number, MOST * width))
        at = jax.random.randint(key, (number,), 0, len(sampled.users))
        some: Replayed = jax.tree.map(lambda x: look_up(x, at), sampled)
        return some

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        _, train = step.context
        some = chosen(step.sampled, train, len(step.batch.triples.users), step.key)
        scores = step.batch.score(some.users, some.items)
        value = soft_bce_loss(scores[:, None], some.logits[:, None], where=some.where)
        value *= jnp.exp(-step.epoch / settings.decay)
        return value, {"replay": value}

    def reads(context: Any, sampled: Replayed, triples: Triples, key: chex.PRNGKey) -> RowIds:
        some = chosen(sampled, context[1], len(triples.users), key)
        return RowIds(some.users, some.items)

    return Distiller(no_params, loss, refresh, prepare, needs=("memory",), reads=reads)


def remember(models: Sequence[Scores], train: Interactions, size: int = 100) -> Memory:
    """Returns what models remember: their best unseen items of every user, none of which has fallen.

    Args:
      models: each maps users `[n]` to scores `[n, num_items]`.
      train: the pairs that are known; their items are not remembered.
      size: the number of items per user and model.
    """
    memory: Memory = _remember(tuple(models), train, size)
    return memory


def with_falls(memory: Memory, own: Scores, train: Interactions) -> Memory:
    """Returns a memory with `behind`: how much lower a model, the one that will learn, ranks each item.

    Args:
      memory: see `remember`.
      own: the model, as in `remember`.
      train: the pairs that are known, whose items are not ranked.

    With many items, ranks are estimated from about `RANKED` of them.
    """
    behind: jax.Array = _behind(memory, own, train)
    return memory._replace(behind=behind)


def in_scale_of(memory: Memory, own: Scores, train: Interactions) -> Memory:
    """Returns a memory whose logits are those of a model, the one that will learn: an item at place r of an earlier
    model's list has the score of the r-th item of its own. For models whose scores are of another kind than its own.

    Args:
      memory, own, train: see `with_falls`.
    """
    best = _remember((own,), train, memory.items.shape[2])
    logits = jnp.broadcast_to(best.logits, memory.logits.shape)
    where = (memory.items >= 0) & jnp.broadcast_to(best.items >= 0, memory.items.shape)
    return memory._replace(items=jnp.where(where, memory.items, -1), logits=logits)


@functools.partial(jax.jit, static_argnames="size")
def _remember(models: tuple[Scores, ...], train: Interactions, size: int) -> Memory:
    def block(users: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = seen_mask(train, users)
        best = [top_k(jnp.where(hidden, -jnp.inf, scores(users)), size) for scores in models]
        logits, items = (jnp.stack(x, axis=1) for x in zip(*best))
        where = logits > -jnp.inf
        return jnp.where(where, items, -1), jnp.where(where, logits, 0)

    found = map_rows(block, train.num_users, SCORES // train.num_items)
    items, logits = (jnp.moveaxis(x, 1, 0) for x in found)
    return Memory(items, logits, jnp.zeros(items.shape, jnp.int32))


@jax.jit
def _behind(memory: Memory, own: Scores, train: Interactions) -> jax.Array:
    stride = max(1, train.num_items // RANKED)
    measured = jnp.arange(0, train.num_items, stride)
    items = jnp.maximum(jnp.moveaxis(memory.items, 0, 1), 0)

    def block(users: jax.Array) -> jax.Array:
        scores = jnp.where(seen_mask(train, users), -jnp.inf, own(users))
        values = jnp.take_along_axis(scores[:, None, :], items[users], axis=2)
        ordered = jnp.sort(scores[:, measured], axis=1)
        reached = jax.vmap(lambda row, at: jnp.searchsorted(row, at, side="right"))(ordered, values)
        return ((len(measured) - reached) * stride - jnp.arange(items.shape[2])[None, None]).astype(jnp.int32)

    return jnp.moveaxis(map_rows(block, train.num_users, SCORES // train.num_items), 1, 0)


def sample_memory(key: chex.PRNGKey, memory: Memory, count: int, scale: float) -> Replayed:
    """Samples `count` different items of every user and model, in proportion to exp(scale x behind).

    Returns:
      `[models * users * count]` pairs; of equal ones, all but one of the largest logit are masked.
    """
    models, users, _ = memory.items.shape
    keys = jax.random.split(key, models)

    def one(key: chex.PRNGKey, items: jax.Array, logits: jax.Array, behind: jax.Array) -> tuple[jax.Array, jax.Array]:
        columns = sample_columns_by_weight(key, items >= 0, scale * behind, count)
        return jnp.take_along_axis(items, columns, axis=1), jnp.take_along_axis(logits, columns, axis=1)

    items, logits = (jnp.moveaxis(x, 0, 1).reshape(users, -1) for x in jax.vmap(one)(keys, *memory))
    place = jnp.arange(items.shape[1])
    before = (logits[:, None, :] > logits[:, :, None]) | (
        (logits[:, None, :] == logits[:, :, None]) & (place[None, None, :] < place[None, :, None])
    )
    repeated = ((items[:, None, :] == items[:, :, None]) & before).any(axis=2)
    ids = jnp.broadcast_to(jnp.arange(users, dtype=jnp.int32)[:, None], items.shape)
    where = (items >= 0) & ~repeated
    return Replayed(*(x.ravel() for x in (ids, jnp.maximum(items, 0), logits, where)))
