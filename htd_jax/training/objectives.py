"""Objectives: the base loss, and the batches of an epoch."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from htd_jax.data import (
    Interactions,
    among,
    has_many_scores,
    mixed_counts,
    mixed_items,
    nth_unseen,
    shuffle,
    times_seen,
    unseen_items,
)
from htd_jax.distillers import Batch, RowIds, Triples, item_masks, sum_over_users
from htd_jax.distillers.sampling import read_step
from htd_jax.losses import sampled_cross_entropy, sampled_softmax_loss, softmax_loss
from htd_jax.models import Batches, Recommender
from htd_jax.training.settings import TrainingSpec


class Objective(NamedTuple):
    """A base loss, and the batches that it is computed on.

    Attributes:
      steps: `(train, batch_size) -> (steps, width)`, the number of batches per epoch and their width.
      sample: `(keys, train, batch_size) -> Triples` of `[steps, width]`, the batches of an epoch, from two keys.
      loss: `(model, batch, constants, key) -> scalar`, the loss of one batch.
      constants: `train -> constants`, computed once per epoch.
      reads: `(constants, triples, key) -> RowIds`, the rows of the model that `loss` reads in addition to those of the
        triples; all rows unless it says otherwise.
    """

    steps: Callable[[Interactions, int], tuple[int, int]]
    sample: Callable[[Sequence[chex.PRNGKey], Interactions, int], Triples]
    loss: Callable[[Recommender, Batch, Any, chex.PRNGKey], jax.Array]
    constants: Callable[[Interactions], Any] = lambda train: train
    reads: Callable[[Any, Triples, chex.PRNGKey], RowIds] = lambda constants, triples, key: RowIds(None, None)


def own(batches: Batches = "pairs") -> Objective:
    """Returns the model's own loss, on every training pair once, each with a sampled unseen item; or on every user or
    item once, which a triple stands for, see `Recommender.loss`: such a loss may read all rows."""
    loss = lambda model, batch, train, key: model.loss(*batch.triples)
    if batches == "users":
        return Objective(_user_steps, sample_users, loss)
    if batches == "items":
        return Objective(lambda train, batch_size: _steps(train.num_items, batch_size), _sample_by_item, loss)

    def sample(keys: Sequence[chex.PRNGKey], train: Interactions, batch_size: int) -> Triples:
        shuffle_key, negative_key = keys
        pairs = train.learned
        steps, width = _steps(len(pairs), batch_size)
        negatives = unseen_items(negative_key, train)
        rows, where = _in_batches(shuffle_key, len(pairs), steps, width)
        return Triples(pairs.users[rows], pairs.items[rows], negatives[rows], where)

    return Objective(
        lambda train, batch_size: _steps(len(train.learned), batch_size),
        sample,
        loss,
        reads=lambda train, triples, key: RowIds.of_items(triples.positives[:0]),
    )


def sample_users(keys: Sequence[chex.PRNGKey], train: Interactions, batch_size: int) -> Triples:
    """Returns batches of users, each once per epoch, with one seen and one unseen item, all equally likely."""
    shuffle_key, item_key = keys
    size = _users(train)
    users, where = _in_batches(shuffle_key, size, *_steps(size, batch_size))
    if size < train.num_users:
        users = jnp.nonzero(jnp.diff(train.learned.offsets) > 0, size=size)[0].astype(jnp.int32)[users]
    seen_key, unseen_key = jax.random.split(item_key)
    positives, some = _one_of_each(seen_key, train, users)
    negatives, others = _one_unseen(unseen_key, train, users)
    return Triples(users, positives, negatives, where & some & others)


def users_alone() -> Objective:
    """Returns no base loss, on every user once: the distillation method's loss is all that is learned."""
    zero = lambda model, batch, constants, key: jnp.zeros(())
    nothing = lambda constants, triples, key: RowIds.of_items(triples.positives[:0])
    return Objective(_user_steps, sample_users, zero, lambda train: (), nothing)


def softmax(temperature: float) -> Objective:
    """Returns `softmax_loss` over all items, on every user once.

    A batch also holds one seen and one unseen item of each user, sampled for the distillation methods.

    If `has_many_scores`, each step learns a few seen items of a user, which stand for all of them, and estimates the
    sum over all items from these and a sample that all users of the batch share: `sampled_cross_entropy`, `read_step`.

    Cost of a step with u users, m items and d dimensions: 3 u m d multiplications and u m exponentials; with many
    scores, of the sample and the few in place of m.

    Args:
      temperature: the divisor of scores.
    """

    def full_loss(batch: Batch, train: Interactions) -> jax.Array:
        def loss_for_block(scores: jax.Array, block: tuple[jax.Array, jax.Array]) -> jax.Array:
            seen, where = item_masks(scores, train, *block)
            return softmax_loss(scores, seen, where=where, temperature=temperature)

        return sum_over_users(batch, loss_for_block, train.num_items)

    def constants(train: Interactions) -> tuple[Interactions, jax.Array | None]:
        return train, times_seen(train) if has_many_scores(train) else None

    def sampled_loss(batch: Batch, train: Interactions, times: jax.Array, key: chex.PRNGKey) -> jax.Array:
        users = batch.entities.users
        seen, sample = read_step(key, train, times, users.ids)
        number = jnp.sum(seen >= 0, axis=1)
        shares = jnp.diff(train.offsets)[users.ids] / jnp.maximum(number, 1)
        rows = users.where[:, None]
        return sampled_cross_entropy(
            batch.score(users.ids[:, None], jnp.maximum(seen, 0)),
            jnp.broadcast_to(shares[:, None], seen.shape),
            batch.score_each(users.ids, sample.items),
            sample.log_weights,
            where=(rows & (seen >= 0), rows & ~among(sample.items, seen)),
            temperature=temperature,
        )

    def loss(model: Recommender, batch: Batch, constants: Any, key: chex.PRNGKey) -> jax.Array:
        train, times = constants
        return full_loss(batch, train) if times is None else sampled_loss(batch, train, times, key)

    def reads(constants: Any, triples: Triples, key: chex.PRNGKey) -> RowIds:
        train, times = constants
        if times is None:
            return RowIds(triples.users[:0], None)
        seen, sampled = read_step(key, train, times, triples.users)
        return RowIds.of_items(seen, sampled.items)

    return Objective(_user_steps, sample_users, loss, constants, reads)


def sampled_softmax(temperature: float, number: int) -> Objective:
    """Returns `sampled_softmax_loss`, on every pair once, for catalogues too large to score whole in a step.

    Each step samples items for its batch, half of them uniformly and half in proportion to how often they were seen.

    Source of the mixture: Yang et al., WWW'20.

    Cost of a step with n pairs and d dimensions: 3 n d `number` multiplications.

    Args:
      temperature: the divisor of scores.
      number: items sampled per step.
    """

    def constants(train: Interactions) -> tuple[Interactions, jax.Array]:
        return train, times_seen(train)

    def reads(constants: Any, triples: Triples, key: chex.PRNGKey) -> RowIds:
        return RowIds.of_items(mixed_items(key, constants[0], number))

    def loss(model: Recommender, batch: Batch, constants: Any, key: chex.PRNGKey) -> jax.Array:
        train, times = constants
        users, positives, _, where = batch.triples
        items = mixed_items(key, train, number)
        counts = mixed_counts(items, train, times, number)
        return sampled_softmax_loss(
            model.score(users, positives),
            model.score_each(users, items),
            counts,
            where=where[:, None] & (items != positives[:, None]),
            temperature=temperature,
        )

    return own()._replace(loss=loss, constants=constants, reads=reads)


def objective_of(training: TrainingSpec, batches: Batches = "pairs") -> Objective:
    """Returns the objective that training settings choose; `batches` are those of the model's own loss."""
    if training.loss == "none":
        return users_alone()
    if training.loss != "softmax":
        return own(batches)
    if training.sampled_items:
        return sampled_softmax(training.temperature, training.sampled_items)
    return softmax(training.temperature)


def _users(train: Interactions) -> int:
    """Returns the number of users in an epoch: of data that have grown, those with a new pair."""
    return train.num_users if train.block is None else train.block.active


def _user_steps(train: Interactions, batch_size: int) -> tuple[int, int]:
    return _steps(_users(train), batch_size)


def _sample_by_item(keys: Sequence[chex.PRNGKey], train: Interactions, batch_size: int) -> Triples:
    """Returns every item once, with a user who has seen it and an item that this user has not; items that nobody has
    seen are masked."""
    shuffle_key, other_key = keys
    steps, width = _steps(train.num_items, batch_size)
    items, where = _in_batches(shuffle_key, train.num_items, steps, width)
    user_key, unseen_key = jax.random.split(other_key)
    users, some = _one_of_each(user_key, train.transposed(), items)
    negatives, others = _one_unseen(unseen_key, train, users)
    return Triples(users, items, negatives, where & some & others)


def _one_of_each(key: chex.PRNGKey, train: Interactions, users: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns one seen item of each user, and whether the user has any."""
    degrees = jnp.diff(train.offsets)[users]
    number = jax.random.randint(key, users.shape, 0, jnp.maximum(degrees, 1))
    return train.items[jnp.minimum(train.offsets[users] + number, len(train) - 1)], degrees > 0


def _one_unseen(key: chex.PRNGKey, train: Interactions, users: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns one unseen item of each user, and whether the user has any."""
    others = train.num_items - jnp.diff(train.offsets)[users]
    unseen = jax.random.randint(key, users.shape, 0, jnp.maximum(others, 1))
    return jnp.minimum(nth_unseen(train, users, unseen), train.num_items - 1), others > 0


def _steps(size: int, batch_size: int) -> tuple[int, int]:
    width = min(batch_size, size)
    return -(-size // width), width


def _in_batches(key: chex.PRNGKey, size: int, steps: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Returns a permutation of the numbers below `size`, padded to `[steps, width]`, and the mask of padding."""
    order = jnp.pad(shuffle(key, size), (0, steps * width - size)).reshape(steps, width)
    return order, (jnp.arange(steps * width) < size).reshape(steps, width)
