"""Optimisers: Adam over whole tables, and optimisers of the rows that a step reads.

A dense optimiser passes over whole tables in every step, so that an epoch costs steps x rows, which is quadratic in the
data. An optimiser of rows updates those that a step reads, and applies to a row the updates of the steps that did not
read it, in closed form, when it is next read.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from htd_jax.training.settings import TrainingSpec


def adam(learning_rate: optax.ScalarOrSchedule, l2: float) -> optax.GradientTransformation:
    """Returns Adam with `l2 * parameter` added to every gradient before the moments are updated."""
    return optax.chain(optax.add_decayed_weights(l2), optax.adam(learning_rate, eps=1e-8))


def cosine(learning_rate: float, steps: int) -> optax.Schedule:
    """Returns the schedule from `learning_rate` down to 0 along half a cosine over so many steps."""
    return optax.cosine_decay_schedule(learning_rate, max(steps, 1))


class RowOptimizer(NamedTuple):
    """An optimiser of tables, row by row.

    Steps are numbered from 0 since the start of training, and are traced. Rows are `[n, d]`; a state is a pytree of
    arrays `[n, ...]`, as it was after the last step that read the row.

    Attributes:
      init: `table -> state`.
      pay: `(rows, state, done, owed, step) -> rows`: the updates of `owed` `[n, 1]` steps that did not read a row,
        after `done` `[n, 1]` such steps; the last of them is the one numbered `step`.
      update: `(gradients, rows, state, unread, step) -> (rows, state)`, of a step that reads rows which the `unread`
        `[n, 1]` steps before it did not.
      rest: updates the parameters that are no tables.
    """

    init: Callable[[jax.Array], Any]
    pay: Callable[[jax.Array, Any, jax.Array, jax.Array, jax.Array], jax.Array]
    update: Callable[[jax.Array, jax.Array, Any, jax.Array, jax.Array], tuple[jax.Array, Any]]
    rest: optax.GradientTransformation


@struct.dataclass
class Moments:
    """The state of lazy Adam, both of the rows' shape.

    Attributes:
      mean: the running mean of gradients, times the learning rate.
      square: the running mean of squared gradients.
    """

    mean: jax.Array
    square: jax.Array


def lazy_adam(
    learning_rate: optax.ScalarOrSchedule,
    l2: float,
    rest: optax.GradientTransformation,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
) -> RowOptimizer:
    r"""Returns Adam whose steps touch the rows that they read.

    With g the gradient of a row in step t, and 0 in a step that does not read it:

    .. math:: m \leftarrow \beta_1 m + (1 - \beta_1) \eta_t c_t g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2,
              \quad x \leftarrow e^{-\kappa} x - m / \sqrt v

    with the bias correction c_t = sqrt(1 - beta_2^t) / (1 - beta_1^t). L2 shrinks a row as Adam does with a gradient of
    lambda x: kappa = eta_t lambda sqrt((1 - beta_2^t) / v), with the v of the last step that read the row. The updates
    of k steps that did not are applied together: moments fade by beta_1^k and beta_2^k, so that x moves along
    m / sqrt(v) by a geometric series, and then shrinks by e^(-k kappa). Rows of v = 0 stay.

    Compared with `adam`: no epsilon; the learning rate enters with a gradient; L2 adds nothing to the moments.

    Args:
      learning_rate: eta.
      l2: lambda.
      rest: see `RowOptimizer`.
      b1, b2: beta_1 < sqrt(beta_2).
    """
    rate: Callable[[jax.Array], Any] = learning_rate if callable(learning_rate) else lambda step: learning_rate
    fade = b1 / b2**0.5

    def inverse_root(square: jax.Array) -> jax.Array:
        return jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)

    def shrinkage(square: jax.Array, step: jax.Array, steps: jax.Array | float) -> jax.Array:
        if not l2:
            return jnp.ones((), square.dtype)
        strength = rate(step) * l2 * jnp.sqrt(1 - b2 ** (step + 1.0))
        return jnp.exp(-steps * strength * inverse_root(square))

    def pay(rows: jax.Array, state: Moments, done: jax.Array, owed: jax.Array, step: jax.Array) -> jax.Array:
        moved = fade ** (done + 1) * (1 - fade**owed) / (1 - fade)
        return (rows - moved * state.mean * inverse_root(state.square)) * shrinkage(state.square, step, owed)

    def update(
        gradient: jax.Array, rows: jax.Array, state: Moments, unread: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Moments]:
        number = step + 1.0
        scale = rate(step) * jnp.sqrt(1 - b2**number) / (1 - b1**number)
        mean = b1 ** (unread + 1) * state.mean + (1 - b1) * scale * gradient
        square = b2 ** (unread + 1) * state.square + (1 - b2) * gradient**2
        return rows * shrinkage(square, step, 1.0) - mean * inverse_root(square), Moments(mean, square)

    return RowOptimizer(lambda table: Moments(jnp.zeros_like(table), jnp.zeros_like(table)), pay, update, rest)


# Users and items of CiteULike, for which, with batches of 1,024 triples, lazy Adam's settings are Adam's.
USUAL_ROWS, USUAL_BATCH = 30_400, 1_024


def optimizer_of(
    training: TrainingSpec, steps: int, num_rows: int = USUAL_ROWS
) -> optax.GradientTransformation | RowOptimizer:
    """Returns the optimiser that training settings choose.

    Lazy Adam multiplies the learning rate by sqrt(c) and the L2 penalty by c, where c = batch_size / 1024 x 30400 /
    num_rows, for the tables: then an interaction moves a row as far, and L2 takes off as much in an epoch, whatever the
    sizes of data and batch. With the softmax loss, it uses them as they are.

    Args:
      training: the settings.
      steps: the number of steps of the whole training.
      num_rows: the number of users and items.
    """

    def scheduled(rate: float) -> optax.ScalarOrSchedule:
        return cosine(rate, steps) if training.schedule == "cosine" else rate

    dense = adam(scheduled(training.learning_rate), training.l2)
    if training.optimizer == "adam":
        return dense
    part = training.batch_size / USUAL_BATCH * USUAL_ROWS / num_rows if training.loss == "own" else 1.0
    return lazy_adam(scheduled(training.learning_rate * part**0.5), training.l2 * part, dense)
