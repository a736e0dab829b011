"""Optimisers: Adam over whole tables, and optimisers of the rows that a step reads.

A dense optimiser passes over whole tables in every step, so that an epoch costs steps x rows, which is quadratic in the
data. An optimiser of rows updates those that a step reads, and pays the other steps' updates of a row, in closed form,
when it is next read.
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

    A step is counted from 0 since the start of training, and is traced. Rows are `[n, d]`; a state is a pytree of
    arrays `[n, ...]`.

    Attributes:
      init: `table -> state`.
      pay: `(rows, state, owed, step) -> (rows, state)`, after `owed` `[n, 1]` steps up to `step` that a row was not in.
      update: `(gradients, rows, state, step) -> (rows, state)`, after a step that read these rows.
      rest: updates the parameters that are no tables.
    """

    init: Callable[[jax.Array], Any]
    pay: Callable[[jax.Array, Any, jax.Array, jax.Array], tuple[jax.Array, Any]]
    update: Callable[[jax.Array, jax.Array, Any, jax.Array], tuple[jax.Array, Any]]
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

    with the bias correction c_t = sqrt(1 - beta_2^t) / (1 - beta_1^t) and the L2 penalty's shrinkage kappa = eta_t
    lambda sqrt((1 - beta_2^t) / v), what Adam makes of a gradient lambda x. k steps without the row are paid in closed
    form: moments fade by beta_1^k and beta_2^k, so that x moves along m / sqrt(v) by a geometric series, and then
    shrinks by e^(-k kappa). Rows of v = 0 stay.

    Compared with `adam`: no epsilon; the learning rate enters with a gradient; what L2 adds to the moments does not.

    Args:
      learning_rate: eta.
      l2: lambda.
      rest: see `RowOptimizer`.
      b1, b2: beta_1 < sqrt(beta_2).
    """
    rate = _schedule(learning_rate)
    fade = b1 / b2**0.5

    def inverse_root(square: jax.Array) -> jax.Array:
        return jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)

    def shrinkage(square: jax.Array, step: jax.Array, steps: jax.Array | float) -> jax.Array:
        if not l2:
            return jnp.ones((), square.dtype)
        strength = rate(step) * l2 * jnp.sqrt(1 - b2 ** (step + 1.0))
        return jnp.exp(-steps * strength * inverse_root(square))

    def pay(rows: jax.Array, state: Moments, owed: jax.Array, step: jax.Array) -> tuple[jax.Array, Moments]:
        moved = fade * (1 - fade**owed) / (1 - fade)
        rows = (rows - moved * state.mean * inverse_root(state.square)) * shrinkage(state.square, step, owed)
        return rows, Moments(state.mean * b1**owed, state.square * b2**owed)

    def update(gradient: jax.Array, rows: jax.Array, state: Moments, step: jax.Array) -> tuple[jax.Array, Moments]:
        number = step + 1.0
        scale = rate(step) * jnp.sqrt(1 - b2**number) / (1 - b1**number)
        mean = b1 * state.mean + (1 - b1) * scale * gradient
        square = b2 * state.square + (1 - b2) * gradient**2
        rows = rows * shrinkage(square, step, 1.0) - mean * inverse_root(square)
        return rows, Moments(mean, square)

    return RowOptimizer(lambda table: Moments(jnp.zeros_like(table), jnp.zeros_like(table)), pay, update, rest)


def row_adagrad(learning_rate: optax.ScalarOrSchedule, l2: float, rest: optax.GradientTransformation) -> RowOptimizer:
    r"""Returns Adagrad with one step size per row, for tables whose moments would not fit in memory.

    .. math:: s \leftarrow s + |g|^2 / d, \quad x \leftarrow e^{-\kappa} x - \eta_t g / \sqrt s,
              \quad \kappa = \eta_t \lambda / \sqrt s

    Source: Duchi et al., JMLR 2011; one s per row as in trainers of embeddings (Naumov et al., arXiv:1906.00091).
    """
    rate = _schedule(learning_rate)

    def inverse_root(total: jax.Array) -> jax.Array:
        return jnp.where(total > 0, jax.lax.rsqrt(jnp.where(total > 0, total, 1)), 0)[:, None]

    def pay(rows: jax.Array, total: jax.Array, owed: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        return rows * jnp.exp(-owed * rate(step) * l2 * inverse_root(total)), total

    def update(gradient: jax.Array, rows: jax.Array, total: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = total + jnp.mean(gradient**2, axis=1)
        size = rate(step) * inverse_root(total)
        return rows * jnp.exp(-l2 * size) - size * gradient, total

    return RowOptimizer(lambda table: jnp.zeros(len(table), table.dtype), pay, update, rest)


def _schedule(rate: optax.ScalarOrSchedule) -> Callable[[jax.Array], jax.Array]:
    return rate if callable(rate) else lambda step: jnp.asarray(rate, jnp.float32)  # type: ignore[return-value]


def optimizer_of(training: TrainingSpec, steps: int) -> optax.GradientTransformation | RowOptimizer:
    """Returns the optimiser that training settings choose, for so many steps in all."""
    rate: optax.ScalarOrSchedule = training.learning_rate
    if training.schedule == "cosine":
        rate = cosine(training.learning_rate, steps)
    dense = adam(rate, training.l2)
    if training.optimizer == "adam":
        return dense
    return {"lazy-adam": lazy_adam, "adagrad": row_adagrad}[training.optimizer](rate, training.l2, dense)
