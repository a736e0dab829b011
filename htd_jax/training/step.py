"""The one compiled step, and the epoch that scans it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from htd_jax.data import Interactions, distinct, shuffle, unseen_items
from htd_jax.distillers import Distiller, Entities, Side


class Representations(NamedTuple):
    """A trained model's representations: users `[num_users, d]`, items `[num_items, d]`."""

    users: jax.Array
    items: jax.Array


@struct.dataclass
class TrainState:
    """All of a phase's state; what a checkpoint holds.

    Attributes:
      params: `{"model": ..., "distiller": ...}`.
      opt_state: the optimiser's, over the parameters as vectors.
      epoch: int32 scalar, the number of epochs done.
    """

    params: Any
    opt_state: Any
    epoch: jax.Array


class Trainer(NamedTuple):
    """What a phase computes: `init(key) -> TrainState`, `epoch(state, key, train, teacher) -> (TrainState, terms)`.

    `epoch` takes the same key at every call, another than `init`: what is random in an epoch follows from key and
    epoch number, so a resumed run draws what an unbroken one draws. `terms` are means over the epoch's batches.
    `epoch` is jitted and takes over the state it is given.
    """

    init: Callable[[chex.PRNGKey], TrainState]
    epoch: Callable[[TrainState, chex.PRNGKey, Interactions, Representations], tuple[TrainState, dict[str, jax.Array]]]


def adam(learning_rate: float, l2: float) -> optax.GradientTransformation:
    """Adam with `l2 * parameter` added to the gradient of every parameter before the moments are updated."""
    return optax.chain(optax.add_decayed_weights(l2), optax.adam(learning_rate, eps=1e-8))


def no_teacher(train: Interactions) -> Representations:
    """Representations of no dimension, for a phase that distils nothing."""
    return Representations(jnp.zeros((train.num_users, 0)), jnp.zeros((train.num_items, 0)))


def make_trainer(
    model: nn.Module,
    distiller: Distiller,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int,
    student_dim: int,
    teacher_dim: int = 0,
) -> Trainer:
    """Builds the compiled epoch of `model` under `distiller`.

    Args:
      model: a Flax module with the methods `represent` and `loss`, see `htd_jax.models`.
      distiller: see `htd_jax.distillers`.
      optimizer: applied to the parameters of model and distiller alike.
      batch_size: triples a step; an epoch's last batch is short.
      student_dim: width of the model's representations.
      teacher_dim: width of the teacher's.
    """

    def init(key):
        for_model, for_distiller = jax.random.split(key)
        one = jnp.zeros(1, jnp.int32)
        params = {
            "model": model.init(for_model, one, one),
            "distiller": distiller.init(for_distiller, student_dim, teacher_dim),
        }
        return TrainState(params, optimizer.init(_flat(params)), jnp.zeros((), jnp.int32))

    def loss(params, triple, key, epoch, teacher):
        users, positives, negatives, where = triple
        base = model.apply(params["model"], users, positives, negatives, where, method="loss")
        chosen_users = distinct(users, where, len(teacher.users))
        chosen_items = distinct(jnp.concatenate([positives, negatives]), jnp.tile(where, 2), len(teacher.items))
        student = model.apply(params["model"], chosen_users[0], chosen_items[0], method="represent")
        sides = (
            Side(own, table[ids], first)
            for own, table, (ids, first) in zip(student, teacher, (chosen_users, chosen_items))
        )
        extra, terms = distiller.loss(params["distiller"], Entities(*sides), key, epoch)
        return base + extra, {"loss": base + extra, "base": base, **terms}

    def epoch(state, key, train, teacher):
        key = jax.random.fold_in(key, state.epoch)
        shuffle_key, negative_key, step_key = jax.random.split(key, 3)
        size = len(train)
        width = min(batch_size, size)
        steps = -(-size // width)
        negatives = unseen_items(negative_key, train)
        order = jnp.pad(shuffle(shuffle_key, size), (0, steps * width - size)).reshape(steps, width)
        where = (jnp.arange(steps * width) < size).reshape(steps, width)

        shaped = lambda flat: jax.tree.map(lambda x, like: x.reshape(like.shape), flat, state.params)

        def step(carry, batch):
            flat, opt_state = carry
            index, rows, where = batch
            triple = (train.users[rows], train.items[rows], negatives[rows], where)
            of_flat = lambda flat: loss(shaped(flat), triple, jax.random.fold_in(step_key, index), state.epoch, teacher)
            gradient, terms = jax.grad(of_flat, has_aux=True)(flat)
            updates, opt_state = optimizer.update(gradient, opt_state, flat)
            return (optax.apply_updates(flat, updates), opt_state), terms

        carry = (_flat(state.params), state.opt_state)
        (flat, opt_state), terms = jax.lax.scan(step, carry, (jnp.arange(steps), order, where))
        terms = jax.tree.map(lambda x: x.mean(0), terms)
        return TrainState(shaped(flat), opt_state, state.epoch + 1), terms

    return Trainer(jax.jit(init), jax.jit(epoch, donate_argnums=0))


def _flat(params: Any) -> Any:
    """Every leaf as a vector, which is how the optimiser sees it: over rows of 20 numbers a processor's vector loop
    mostly handles remainders, and Adam takes three times as long."""
    return jax.tree.map(jnp.ravel, params)
