"""Listwise distillation: a user's whole ranking as one distribution."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import chex
import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Interval
from flax import struct

from htd_jax.data import Interactions, seen_mask, was_seen
from htd_jax.distillers.base import Distiller, Method, Step, Terms, no_params, sum_over_users
from htd_jax.distillers.draws import in_blocks
from htd_jax.losses import listed_loss, listwise_loss, log_partition
from htd_jax.teacher import Lists, Teacher

# What a teacher of lists alone leaves to the items that it does not list, unless it is said.
REST = 0.1


@dataclasses.dataclass(frozen=True)
class Listwise(Method):
    """The teacher's softmax over all unseen items of a user, and the seen ones above (this project)."""

    weight: Annotated[float, Ge(0)] = 1.0
    """Lambda: the distillation loss counts this much against the base loss."""
    temperature: Annotated[float, Gt(0)] = 0.05
    """By which the student's scores are divided."""
    teacher_temperature: Annotated[float, Gt(0)] = 1.0
    """By which the teacher's are, in units of the standard deviation of its scores for one user."""
    seen: Annotated[float, Ge(0)] = 0.25
    """How much the cross-entropy of the seen items counts against that of the unseen ones."""
    users: Annotated[int, Ge(0)] = 64
    """Users of a batch, drawn anew each step, that stand for all of its users; 0 for all of them."""
    top: Annotated[int, Ge(0)] = 0
    """How many of the teacher's best unseen items are told apart, the rest being one class; 0 for all of them."""
    rank_temperature: Annotated[float, Gt(0)] = 10.0
    """For lists without scores: the item of rank r has a probability like exp(-r / this)."""
    rest: Annotated[float, Interval(ge=0, lt=1)] | None = None
    """The probability of all items that are not among those told apart; 0: they are in the denominator alone. Default:
    as the scores say, or for a teacher of lists alone, 0.1."""

    label: ClassVar[str] = "Listwise"

    def make(self, epochs: int) -> Distiller:
        return listwise(
            temperature=self.temperature,
            teacher_temperature=self.teacher_temperature,
            seen_weight=self.seen,
            most_users=self.users,
            top=self.top,
            rank_temperature=self.rank_temperature,
            rest=self.rest,
        )


@struct.dataclass
class Whole:
    """A teacher of scores.

    Attributes:
      train: who has seen what.
      scores: see `Teacher`.
      temperature: of these.
      log_partition: `[num_users]`, of its softmax over a user's unseen items.
    """

    train: Interactions
    scores: Callable[[jax.Array], jax.Array]
    temperature: jax.Array
    log_partition: jax.Array


@struct.dataclass
class Top:
    """A teacher of lists: `[num_users, k]` unseen items, -1 for none, and their probabilities."""

    train: Interactions
    items: jax.Array
    probabilities: jax.Array


def listwise(
    *,
    temperature: float = 0.05,
    teacher_temperature: float = 1.0,
    seen_weight: float = 0.25,
    most_users: int = 64,
    top: int = 0,
    rank_temperature: float = 10.0,
    rest: float | None = None,
) -> Distiller:
    """The student's softmax over all unseen items of a user is held to the teacher's, and that over all items to the
    seen ones: `listwise_loss`, added up over the different users of a batch.

    A step draws some of its users, each as likely as another, and scales their sum to that of all: the same on average.
    Of a teacher with lists alone, or where only its `top` counts, the items that it does not list are one class, see
    `listed_loss`. The probability of that class follows from the scores if there are scores of all items, and is `rest`
    otherwise; those of the listed ones follow from the lists' scores if they have some, and else from ranks.

    Cost, a step: u users, m items, u m products of the student's width, three times (the scores, the gradient by users
    and by items), and u m of the teacher's once, unless it is known by lists; u m exponentials of either. Held are the
    scores of some users at a time, a number a user of the teacher, or 2k of lists.

    Args:
      temperature: of the student, over 0.
      teacher_temperature: of the teacher's scores, over 0; in units of their standard deviation among a user's items
        (the root of the mean square over users), so that teachers of unlike scales teach alike.
      seen_weight: of the seen items' cross-entropy.
      most_users: users a step, 0 for all of its batch.
      top: how many of the teacher's best unseen items are told apart, 0 for all; lists may be shorter.
      rank_temperature: of lists without scores, over 0.
      rest: the probability of all items that are not told apart, from 0 and below 1; None: as the scores say, or 0.1 of
        lists alone.

    Returns:
      A `Distiller`; its term is `listwise`.
    """

    def prepare(teacher: Teacher, train: Interactions) -> Whole | Top:
        if teacher.scores is None:
            assert teacher.lists is not None, "a teacher with neither lists nor scores"
            return _of_lists(
                teacher.lists, train, top, teacher_temperature, rank_temperature, 0.1 if rest is None else rest
            )
        return _of_scores(teacher, train, top, teacher_temperature, rest)

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        params, drawn, batch, key, epoch = step.params, step.sampled, step.batch, step.key, step.epoch
        known: Whole | Top = step.context
        side = batch.entities.users
        some, share = _some(key, side.ids, side.where, most_users)

        def of_block(scores: jax.Array, block: tuple[jax.Array, jax.Array]) -> jax.Array:
            ids, where = block
            seen = seen_mask(known.train, ids)
            if isinstance(known, Top):
                of = functools.partial(
                    listed_loss, scores, known.items[ids], known.probabilities[ids], seen, others=rest != 0
                )
            else:
                of = functools.partial(
                    listwise_loss,
                    scores,
                    known.scores(ids),
                    seen,
                    teacher_temperature=known.temperature,
                    log_partition=known.log_partition[ids],
                )
            return of(where=where, temperature=temperature, seen_weight=seen_weight)

        value = share * sum_over_users(batch, of_block, known.train.num_items, some)
        return value, {"listwise": value}

    return Distiller(no_params, loss, prepare=prepare, needs=("lists",))


def _some(
    key: chex.PRNGKey, ids: jax.Array, where: jax.Array, most: int
) -> tuple[tuple[jax.Array, jax.Array] | None, jax.Array | float]:
    """At most so many of the ids that count, all sets equally likely, and by how much fewer they are; None for all."""
    if most == 0 or most >= len(ids):
        return None, 1.0
    _, chosen = jax.lax.top_k(jnp.where(where, jax.random.uniform(key, ids.shape), -1), most)
    number = jnp.sum(where)
    return (ids[chosen], where[chosen]), number / jnp.clip(number, 1, most)


@jax.jit(static_argnames=("top", "rest"))
def _of_scores(
    teacher: Teacher, train: Interactions, top: int, temperature: float, rest: float | None = None
) -> Whole | Top:
    """What is known of a teacher of scores, from the scores of some users at a time."""
    scores = teacher.scores
    assert scores is not None
    variances = in_blocks(lambda users: jnp.var(scores(users), axis=1), train.num_users, train.num_items)
    scaled = temperature * _unit(variances)
    tiny = jnp.finfo(variances.dtype).tiny

    def of_block(users: jax.Array) -> Any:
        values, seen = scores(users), seen_mask(train, users)
        if not top:
            return log_partition(values, seen, scaled)
        best, items = jax.lax.top_k(jnp.where(seen, -jnp.inf, values), min(top, train.num_items))
        there = best > -jnp.inf
        if rest is None:
            logits = best / scaled - log_partition(values, seen, scaled)[:, None]
        else:  # only what they are to one another counts
            logits = (best - best[:, :1]) / scaled
        probabilities = jnp.where(there, jnp.exp(jnp.where(there, logits, 0)), 0)
        if rest is not None:
            probabilities *= (1 - rest) / jnp.maximum(probabilities.sum(1, keepdims=True), tiny)
        return jnp.where(there, items, -1), probabilities

    known = in_blocks(of_block, train.num_users, train.num_items)
    return Top(train, *known) if top else Whole(train, scores, scaled, known)


def _of_lists(
    lists: Lists, train: Interactions, top: int, temperature: float, rank_temperature: float, rest: float
) -> Top:
    """Probabilities of listed items, of a sum of 1 - `rest`; an item that was seen has none."""
    items = jnp.asarray(lists.items, jnp.int32)
    seen = was_seen(train, jnp.arange(train.num_users)[:, None], items)
    rank = jnp.cumsum((items >= 0) & ~seen, axis=1)
    kept = (items >= 0) & ~seen & (rank <= (top or items.shape[1]))
    if lists.scores is None:
        logits = -rank / rank_temperature
    else:
        scores = jnp.where(items >= 0, jnp.asarray(lists.scores), 0)
        logits = scores / (temperature * _unit(jnp.var(scores, axis=1, where=items >= 0), (items >= 0).any(1)))
    probabilities = jax.nn.softmax(jnp.where(kept, logits, jnp.finfo(jnp.float32).min / 2), axis=1)
    return Top(train, jnp.where(kept, items, -1), jnp.where(kept, (1 - rest) * probabilities, 0))


def _unit(variances: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """The standard deviation of scores, from their variances `[num_users]`; 1 where all are alike."""
    mean = jnp.mean(variances, where=jnp.ones(len(variances), bool) if where is None else where)
    return jnp.where(mean > 0, jnp.sqrt(mean), 1)
