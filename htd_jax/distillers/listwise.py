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

from htd_jax.data import (
    Interactions,
    ItemSample,
    among,
    distinct,
    has_many_scores,
    seen_mask,
    times_seen,
    was_seen,
)
from htd_jax.distillers.base import (
    Distiller,
    Method,
    RowIds,
    Step,
    Terms,
    Triples,
    all_items,
    item_masks,
    no_params,
    sum_over_users,
)
from htd_jax.distillers.sampling import map_blocks, read_step
from htd_jax.errors import UserError
from htd_jax.losses import listed_loss, listwise_loss, log_partition, sampled_cross_entropy
from htd_jax.ops.largest import top_k
from htd_jax.ops.mapped import map_rows
from htd_jax.ops.perplexity import with_perplexity
from htd_jax.ops.products import dot
from htd_jax.ops.rows import safe_divisor
from htd_jax.ops.shards import columns_like, look_up
from htd_jax.teacher import Lists, Teacher

# The probability of the items that a teacher of lists alone does not list, by default.
REST = 0.1

# The items of a teacher of scores that are distinguished by default with many scores, see `has_many_scores`.
LISTED = 100

# Items per effective item of lists that a teacher gives: of a list no longer than its perplexity, all items would have
# one probability.
LEAST_RATIO = 2

# The scores that a preparation then computes at once: 32 MiB.
MANY_BLOCK = 2**23


@dataclasses.dataclass(frozen=True)
class Listwise(Method):
    """Learns the teacher's softmax over all unseen items of a user, and the seen items above (this project)."""

    weight: Annotated[float, Ge(0)] = 1.0
    """Lambda, the weight of the distillation loss against the base loss. Both are sums over a batch: htd-jax
    study weights measures the method's part."""
    temperature: Annotated[float, Gt(0)] = 0.05
    """The divisor of the student's scores."""
    teacher_temperature: Annotated[float, Gt(0)] = 1.0
    """The divisor of the teacher's scores, in units of the standard deviation of a user's scores."""
    seen: Annotated[float, Ge(0)] = 0.25
    """The weight of the seen items' cross-entropy against that of the unseen items."""
    users: Annotated[int, Ge(0)] = 64
    """The number of users that are sampled in each step to stand for all users of the batch; 0 for all of them."""
    top: Annotated[int, Ge(0)] = 0
    """The number of the teacher's best unseen items that are distinguished, with the rest as one class; 0 for all."""
    rank_temperature: Annotated[float, Gt(0)] = 10.0
    """For lists without scores, the item of rank r has a probability proportional to exp(-r / this)."""
    perplexity: Annotated[float, Ge(1)] | None = None
    """The effective number of distinguished items, exp(entropy): a temperature per user gives the teacher's
    probabilities this perplexity, and replaces the other two temperatures of the teacher; of lists that are given, at
    most half their length. Needs `top`."""
    rest: Annotated[float, Interval(ge=0, lt=1)] | None = None
    """The total probability of the items that are not distinguished; 0 keeps them in the denominator only. Default:
    their probability by the teacher's scores, or 0.1 for a teacher that gives only lists, and with `perplexity`."""

    label: ClassVar[str] = "Listwise"

    def make(self, epochs: int) -> Distiller:
        if self.perplexity is not None and not self.top:
            raise UserError(
                "`listwise.perplexity` needs a number of items; set `listwise.top`, such as 3 times as many"
            )
        return listwise(self)


@struct.dataclass
class ScoredContext:
    """The softmax of a teacher of scores.

    Attributes:
      train: the training interactions.
      scores: see `Teacher`.
      temperature: the divisor of scores.
      log_partition: `[num_users]`, over each user's unseen items.
    """

    train: Interactions
    scores: Callable[[jax.Array], jax.Array]
    temperature: jax.Array
    log_partition: jax.Array


@struct.dataclass
class ListedContext:
    """A teacher's best items: `[num_users, k]` int32 unseen items, -1 for none, and their probabilities; and, if all
    items are too many, how often each was seen, see `times_seen`."""

    train: Interactions
    items: jax.Array
    probabilities: jax.Array
    times: jax.Array | None = None


def listwise(settings: Listwise = Listwise()) -> Distiller:
    """Learns the teacher's softmax over all unseen items of a user, and the seen items above: `listwise_loss`, summed
    over the different users of a batch.

    A step samples some of its users, all equally likely, and scales their sum to that of all: the same on average. For
    a teacher with lists alone, or if only its `top` counts, the items not listed are one class, see `listed_loss`. Its
    probability follows from the scores of all items, if known, and is `rest` otherwise; those of the listed items
    follow from the lists' scores, if known, and otherwise from ranks.

    The teacher's temperature is in units of the standard deviation of a user's scores, so that teachers of different
    scales teach alike.

    If `has_many_scores`, the sums over all items are estimated, from the listed items, which count exactly, and a
    sample that all users of the step share, see `sampled_cross_entropy`; a teacher of scores has its `LISTED` best
    items listed. A step then costs u (`SAMPLED` + k) of what follows, whatever m is.

    Cost of a step with u users and m items: u m products of the student's width, three times (scores, and the gradients
    by users and by items), and u m of the teacher's width once, unless it has lists; u m exponentials of both. In
    memory are the scores of a block of users, and one number per user of the teacher, or 2 k for lists.

    Args:
      settings: see `Listwise`.

    Returns:
      A `Distiller`; its term is `listwise`.
    """

    def prepare(teacher: Teacher, train: Interactions) -> ScoredContext | ListedContext:
        many = has_many_scores(train)
        if teacher.scores is not None:
            top = settings.top or (LISTED if many else 0)
            context = _from_scores(
                teacher, train, top, settings.teacher_temperature, settings.rest, settings.perplexity
            )
        else:
            assert teacher.lists is not None, "a teacher with neither lists nor scores"
            context = _from_lists(teacher.lists, train, settings)
        return context.replace(times=times_seen(train)) if many else context

    def sampled_loss(step: Step, ids: jax.Array, where: jax.Array) -> jax.Array:
        context, batch = step.context, step.batch
        listed, seen, sample = read_items(context, ids, step.key)
        rows, shares = where[:, None], look_up(context.probabilities, ids)
        sampled = batch.score_each(ids, sample.items)
        score = lambda items: batch.score(ids[:, None], jnp.maximum(items, 0))
        in_list = among(sample.items, listed)
        unseen = rows & ~in_list & ~seen_mask(context.train, ids, sample.items)
        entropy = functools.partial(sampled_cross_entropy, temperature=settings.temperature)
        value = entropy(
            score(listed),
            shares,
            sampled,
            sample.log_weights,
            where=(rows & (listed >= 0), unseen),
            rest=None if settings.rest == 0 else jnp.where(where, jnp.maximum(1 - shares.sum(1), 0), 0),
        )
        if not settings.seen:
            return value
        known = rows & (seen >= 0)
        mean = jnp.broadcast_to(settings.seen / jnp.maximum(known.sum(1, keepdims=True), 1), seen.shape)
        others = rows & ~among(sample.items, seen)
        return value + entropy(score(seen), mean, sampled, sample.log_weights, where=(known, others))

    def read_items(
        context: ListedContext, ids: jax.Array, key: chex.PRNGKey
    ) -> tuple[jax.Array, jax.Array, ItemSample]:
        """Returns a step's listed and seen items of users, -1 for none, and its sample, that of the base loss: all
        items whose scores it reads."""
        assert context.times is not None
        seen, sample = read_step(jax.random.fold_in(key, 0), context.train, context.times, ids)
        return look_up(context.items, ids), seen if settings.seen else seen[:, :0], sample

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        context: ScoredContext | ListedContext = step.context
        side = step.batch.entities.users
        some, share = _sample_users(step.key, side.ids, side.where, settings.users)
        if isinstance(context, ListedContext) and context.times is not None:
            value = share * sampled_loss(step, *(some or (side.ids, side.where)))
            return value, {"listwise": value}

        def loss_for_block(scores: jax.Array, block: tuple[jax.Array, jax.Array]) -> jax.Array:
            ids, where = block
            seen, where = item_masks(scores, context.train, ids, where)
            if isinstance(context, ListedContext):
                lists = look_up((context.items, context.probabilities), ids)
                block_loss = functools.partial(listed_loss, scores, *lists, seen, others=settings.rest != 0)
            else:
                block_loss = functools.partial(
                    listwise_loss,
                    scores,
                    columns_like(context.scores(ids), scores, context.train.num_items),
                    seen,
                    log_partition=look_up(context.log_partition, ids),
                    teacher_temperature=context.temperature,
                )
            return block_loss(where=where, temperature=settings.temperature, seen_weight=settings.seen)

        value = share * sum_over_users(step.batch, loss_for_block, context.train.num_items, some)
        return value, {"listwise": value}

    def reads(context: ScoredContext | ListedContext, sampled: Any, triples: Triples, key: chex.PRNGKey) -> RowIds:
        if not isinstance(context, ListedContext) or context.times is None:
            return all_items(context, sampled, triples, key)
        ids, where = distinct(triples.users, triples.where, context.train.num_users)
        some, _ = _sample_users(key, ids, where, settings.users)
        listed, seen, sample = read_items(context, ids if some is None else some[0], key)
        return RowIds.of_items(listed, seen, sample.items)

    return Distiller(no_params, loss, prepare=prepare, needs=("lists",), reads=reads, divided=True)


def _sample_users(
    key: chex.PRNGKey, ids: jax.Array, where: jax.Array, most: int
) -> tuple[tuple[jax.Array, jax.Array] | None, jax.Array | float]:
    """Returns at most `most` of the unmasked ids with their mask, all sets equally likely, or None for all; and the
    factor from their sum to that of all."""
    if most == 0 or most >= len(ids):
        return None, 1.0
    _, (chosen,) = top_k(jnp.where(where, jax.random.uniform(key, ids.shape), -1)[None], most)
    number = jnp.sum(where)
    return (ids[chosen], where[chosen]), number / jnp.clip(number, 1, most)


@jax.jit(static_argnames=("top", "rest"))
def _from_scores(
    teacher: Teacher,
    train: Interactions,
    top: int,
    temperature: float,
    rest: float | None,
    perplexity: float | None = None,
) -> ScoredContext | ListedContext:
    """Returns the context of a teacher of scores, computed in blocks of users."""
    scores = teacher.scores
    assert scores is not None
    many = has_many_scores(train)
    if perplexity is not None:
        deviations = jnp.ones(train.num_users)  # not read
    elif many and teacher.inner_product and teacher.representations is not None:
        deviations = _product_deviations(*teacher.representations)
    else:
        deviations = map_blocks(lambda users: _deviations(scores(users)), train.num_users, train.num_items)
    scaled = temperature * _unit(deviations)
    tiny = jnp.finfo(deviations.dtype).tiny

    def summarise(users: jax.Array) -> Any:
        values, seen = scores(users), seen_mask(train, users)
        if not top:
            return log_partition(values, seen, scaled)
        best, items = top_k(jnp.where(seen, -jnp.inf, values), top)
        where = best > -jnp.inf
        if perplexity is not None:
            shares = with_perplexity(jnp.where(where, best, 0), where, perplexity)
            return jnp.where(where, items, -1), (1 - (REST if rest is None else rest)) * shares
        if rest is None:
            logits = best / scaled - log_partition(values, seen, scaled)[:, None]
        else:  # only their ratios count
            logits = (best - best[:, :1]) / scaled
        probabilities = jnp.where(where, jnp.exp(jnp.where(where, logits, 0)), 0)
        if rest is not None:
            probabilities *= (1 - rest) / jnp.maximum(probabilities.sum(1, keepdims=True), tiny)
        return jnp.where(where, items, -1), probabilities

    if many:  # blocks of many users: a product of few rows reads the whole table of items for each
        summary = map_rows(summarise, train.num_users, MANY_BLOCK // train.num_items)
    else:
        summary = map_blocks(summarise, train.num_users, train.num_items)
    return ListedContext(train, *summary) if top else ScoredContext(train, scores, scaled, summary)


def _from_lists(lists: Lists, train: Interactions, settings: Listwise) -> ListedContext:
    """Returns the context of a teacher of lists: probabilities with a sum of 1 - `rest`; a seen item has none."""
    rest = REST if settings.rest is None else settings.rest
    items = jnp.asarray(lists.items, jnp.int32)
    seen = was_seen(train, jnp.arange(train.num_users)[:, None], items)
    rank = jnp.cumsum((items >= 0) & ~seen, axis=1)
    kept = (items >= 0) & ~seen & (rank <= (settings.top or items.shape[1]))
    if lists.scores is None:
        logits = -rank / settings.rank_temperature
    else:
        scores = jnp.where(items >= 0, jnp.asarray(lists.scores, jnp.float32), 0)
        unit = _unit(_deviations(scores, items >= 0), (items >= 0).any(1))
        logits = scores / unit / settings.teacher_temperature
    if settings.perplexity is not None:
        most = max(1.0, min(settings.top or items.shape[1], items.shape[1]) / LEAST_RATIO)
        probabilities = with_perplexity(logits, kept, min(settings.perplexity, most))
    else:
        probabilities = jax.nn.softmax(jnp.where(kept, logits, jnp.finfo(jnp.float32).min / 2), axis=1)
    return ListedContext(train, jnp.where(kept, items, -1), jnp.where(kept, (1 - rest) * probabilities, 0))


def _deviations(scores: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Returns the standard deviation of each row of `scores` `[n, m]`: `[n]`; only finite scores count.

    Rows are divided by their largest score first, so that squares neither overflow nor vanish at any scale.
    """
    where = jnp.isfinite(scores) if where is None else where & jnp.isfinite(scores)
    scores = jnp.where(where, scores, 0)
    largest = jnp.max(jnp.abs(scores), axis=1, initial=0)
    deviations = jnp.std(scores / safe_divisor(largest)[:, None], axis=1, where=where)
    return jnp.where(where.any(1), deviations, 0) * largest


def _product_deviations(users: jax.Array, items: jax.Array) -> jax.Array:
    """Returns `_deviations` of the products of rows, `[n]`, from the covariance C of the items: sqrt(u C u)."""
    centred = items - items.mean(axis=0)
    covariance = dot(centred.T, centred) / len(items)
    return jnp.sqrt(jnp.maximum(jnp.sum(dot(users, covariance) * users, axis=1), 0))


def _unit(deviations: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Returns the root mean square of the rows' deviations `[num_users]`; 1 if all scores are equal."""
    largest = jnp.max(deviations, initial=0)
    mean = jnp.mean((deviations / safe_divisor(largest)) ** 2, where=where)
    return jnp.where(largest > 0, jnp.sqrt(mean) * largest, 1)
