"""Experts and the gate that assigns entities to them: what DE is, and how HTD learns its groups."""

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from htd_jax.distillers.base import Side
from htd_jax.distillers.layers import dense, init_dense
from htd_jax.losses import Experts, perturb, routed_assignment_loss

PROBABILITY_FLOOR = 1e-10
COLDEST = 1e-10


def annealing(epochs: int, *, first: int = 1) -> Callable[[jax.Array], jax.Array]:
    """The temperature by epoch: 1 up to epoch `first`, then 1e-10^((epoch - first) / last epoch), never under 1e-10.

    Args:
      epochs: how many there are.
      first: 1 for HTD, as its figures were measured: the first two epochs are warm. 0 for DE, whose paper has
        T_0 (T_P / T_0)^(p / P) with T_0 = 1 and T_P = 1e-10: the last epoch ends at 1e-10.
    """
    last = max(epochs - 1, 1)
    return lambda epoch: jnp.maximum(jnp.exp(math.log(COLDEST) * jnp.clip((epoch - first) / last, 0, 1)), COLDEST)


def init_experts(key: chex.PRNGKey, student_dim: int, teacher_dim: int, num_experts: int) -> dict:
    """A linear `gate` on the teacher's representation, and `experts` with (d_s + d_t) / 2 hidden units."""
    width = (student_dim + teacher_dim) // 2
    gate, hidden, output = jax.random.split(key, 3)
    experts = Experts(
        hidden=init_dense(hidden, (num_experts,), student_dim, width),
        output=init_dense(output, (num_experts,), width, teacher_dim),
    )
    return {"gate": init_dense(gate, (), teacher_dim, num_experts), "experts": experts}


def assign(
    params: dict, side: Side, temperature: chex.Numeric, key: chex.PRNGKey | None
) -> tuple[jax.Array, jax.Array]:
    """The assignment loss of a side under the Gumbel-softmax of the gate's probabilities; with no key, their softmax.

    Returns:
      The loss, and log(p + 1e-10) `[n, K]` without noise, of the probabilities p = softmax(W t + c).
    """
    side = side.kept()
    logits = jnp.log(jax.nn.softmax(dense(params["gate"], side.teacher), axis=-1) + PROBABILITY_FLOOR)
    noisy = logits if key is None else perturb(key, logits)
    loss = routed_assignment_loss(side.student, side.teacher, noisy, temperature, params["experts"], where=side.where)
    return loss, logits
