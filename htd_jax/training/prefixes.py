"""The loss of a student of several sizes: each prefix of its dimensions is a student of its own."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.models import Recommender, first_dimensions

# `(parameters, model) -> (loss, terms)`.
Loss = Callable[[Any, Recommender], tuple[jax.Array, dict[str, jax.Array]]]


def sum_over_prefixes(
    loss: Loss, params: Any, models: Sequence[Recommender], prefixes: Sequence[int]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the sum of the losses of prefixes of a student's dimensions, and the mean of their terms.

    The gradient of a dimension is divided by the number of prefixes that hold it, so that the ratio of gradient and L2
    penalty is that of a student trained alone, in every dimension.

    Source of the sum: Kusupati et al., NeurIPS'22 (matryoshka representation learning).

    Args:
      loss: of one student.
      params: `{"model": ..., "distiller": ...}`, of the whole width.
      models: the module of each prefix.
      prefixes: numbers of dimensions, ascending, the last of them all.
    """
    held = np.sum(np.arange(prefixes[-1]) < np.array(prefixes)[:, None], axis=0).astype(np.float32)
    tables = jax.tree.map(lambda table: _divide_gradient(table, jnp.asarray(held)), params["model"])
    parts = [loss({**params, "model": first_dimensions(tables, dim)}, model) for dim, model in zip(prefixes, models)]
    mean = lambda *terms: sum(terms[1:], terms[0]) / len(terms)
    return sum(total for total, _ in parts[1:]) + parts[0][0], jax.tree.map(mean, *(terms for _, terms in parts))


@jax.custom_vjp
def _divide_gradient(table: jax.Array, divisors: jax.Array) -> jax.Array:
    """Returns a table `[n, d]` as it is; its gradient is divided by `divisors` `[d]`."""
    return table


_divide_gradient.defvjp(
    lambda table, divisors: (table, divisors), lambda divisors, gradient: (gradient / divisors[None], None)
)
