"""What a base model is trained with: the batches of an epoch, and the loss of one."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from htd_jax.data import Interactions, nth_unseen, seen_mask, shuffle, unseen_items
from htd_jax.distillers import Batch, Triples, sum_over_users
from htd_jax.losses import sampled_softmax_loss, softmax_loss
from htd_jax.models import Recommender
from htd_jax.ops.products import dot
from htd_jax.training.settings import Training


class Objective(NamedTuple):
    """A base loss.

    Attributes:
      steps: `(train, batch_size) -> (steps, width)`, how many batches an epoch has, and how wide they are.
      draw: `(keys, train, batch_size) -> Triples` of `[steps, width]`, the batches of an epoch, from two keys.
      loss: `(model, batch, known, key) -> scalar`, of one of them; `batch.teacher` is no part of it.
      prepare: `train -> known`, called once an epoch, so that it is no part of a step.
    """

    steps: Callable[[Interactions, int], tuple[int, int]]
    draw: Callable[[Sequence[chex.PRNGKey], Interactions, int], Triples]
    loss: Callable[[Recommender, Batch, Any, chex.PRNGKey], jax.Array]
    prepare: Callable[[Interactions], Any] = lambda train: train


def own() -> Objective:
    """The model's own loss, on every pair of the training interactions once, an unseen item beside each."""

    def draw(keys: Sequence[chex.PRNGKey], train: Interactions, batch_size: int) -> Triples:
        shuffle_key, negative_key = keys
        steps, width = _steps(len(train), batch_size)
        negatives = unseen_items(negative_key, train)
        rows, where = _in_batches(shuffle_key, len(train), steps, width)
        return Triples(train.users[rows], train.items[rows], negatives[rows], where)

    return Objective(
        lambda train, batch_size: _steps(len(train), batch_size),
        draw,
        lambda model, batch, train, key: model.loss(*batch.triples),
    )


def softmax(temperature: float) -> Objective:
    """`softmax_loss` of every user once, over all items; one seen and one unseen item are drawn of each, for whatever
    else looks at a batch.

    Cost, a step: of u users, m items and d dimensions, u m d products three times, and u m exponentials.

    Args:
      temperature: scores are divided by it.
    """

    def draw(keys: Sequence[chex.PRNGKey], train: Interactions, batch_size: int) -> Triples:
        shuffle_key, item_key = keys
        steps, width = _steps(train.num_users, batch_size)
        users, where = _in_batches(shuffle_key, train.num_users, steps, width)
        degrees = jnp.diff(train.offsets)[users]
        of_seen, of_unseen = jax.random.split(item_key)
        number = jax.random.randint(of_seen, users.shape, 0, jnp.maximum(degrees, 1))
        positives = train.items[jnp.minimum(train.offsets[users] + number, len(train) - 1)]
        unseen = jax.random.randint(of_unseen, users.shape, 0, jnp.maximum(train.num_items - degrees, 1))
        negatives = jnp.minimum(nth_unseen(train, users, unseen), train.num_items - 1)
        return Triples(users, positives, negatives, where & (degrees > 0) & (degrees < train.num_items))

    def loss(model: Recommender, batch: Batch, train: Interactions, key: chex.PRNGKey) -> jax.Array:
        def of_block(scores: jax.Array, block: tuple[jax.Array, jax.Array]) -> jax.Array:
            ids, where = block
            return softmax_loss(scores, seen_mask(train, ids), where=where, temperature=temperature)

        return sum_over_users(batch, of_block, train.num_items)

    return Objective(lambda train, batch_size: _steps(train.num_users, batch_size), draw, loss)


def sampled_softmax(temperature: float, number: int) -> Objective:
    """`sampled_softmax_loss` of every pair once, for catalogues whose every item is too much for a step.

    The items are drawn anew each step, half of them uniformly and half as often as they were seen, and stand for all
    pairs of its batch.

    Source of the mixture: Yang et al., WWW'20.

    Cost, a step: of n pairs and d dimensions, n d `number` products three times.

    Args:
      temperature: scores are divided by it.
      number: of items drawn a step.
    """

    def prepare(train: Interactions) -> tuple[Interactions, jax.Array]:
        return train, jnp.zeros(train.num_items, jnp.int32).at[train.items].add(1)

    def loss(model: Recommender, batch: Batch, known: Any, key: chex.PRNGKey) -> jax.Array:
        train, times_seen = known
        users, positives, _, where = batch.triples
        for_all, for_seen = jax.random.split(key)
        uniform = jax.random.randint(for_all, (number - number // 2,), 0, train.num_items)
        seen = train.items[jax.random.randint(for_seen, (number // 2,), 0, len(train))]
        items = jnp.concatenate([uniform, seen])
        counts = len(uniform) / train.num_items + len(seen) * times_seen[items] / len(train)
        own_rows, of_items = model.represent(users, items)
        return sampled_softmax_loss(
            model.score(users, positives),
            dot(own_rows, of_items.T),
            counts,
            where=where,
            sampled_where=items != positives[:, None],
            temperature=temperature,
        )

    return own()._replace(loss=loss, prepare=prepare)


def objective_of(training: Training) -> Objective:
    """Of settings that are filled."""
    if training.loss != "softmax":
        return own()
    if training.sampled_items:
        return sampled_softmax(training.temperature, training.sampled_items)
    return softmax(training.temperature)


def _steps(size: int, batch_size: int) -> tuple[int, int]:
    width = min(batch_size, size)
    return -(-size // width), width


def _in_batches(key: chex.PRNGKey, size: int, steps: int, width: int) -> tuple[jax.Array, jax.Array]:
    """The numbers below `size` in a new order, `[steps, width]`, and which of them are no fillers."""
    order = jnp.pad(shuffle(key, size), (0, steps * width - size)).reshape(steps, width)
    return order, (jnp.arange(steps * width) < size).reshape(steps, width)
