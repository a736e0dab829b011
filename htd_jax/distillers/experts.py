"""Experts and the gates that assign entities to them: the whole of DE, and how HTD learns its groups."""

import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from htd_jax.distillers.base import Side, concatenate
from htd_jax.distillers.layers import dense, init_dense, init_sides
from htd_jax.losses import routed_assignment_loss
from htd_jax.losses.assignment import tempered_softmax
from htd_jax.models import Representations
from htd_jax.ops.experts import mixed_outputs
from htd_jax.teacher import Teacher

PROBABILITY_FLOOR = 1e-10
COLDEST = 1e-10


def annealing(epochs: int, *, first: int = 1, coldest: float = COLDEST) -> Callable[[jax.Array], jax.Array]:
    """Returns the temperature by epoch: 1 up to epoch `first`, then coldest^((epoch - first) / last epoch).

    Args:
      epochs: the number of epochs.
      first: 1 in HTD, whose published figures were measured with two warm epochs; 0 in DE, whose paper has
        T_0 (T_P / T_0)^(p / P) with T_0 = 1 and T_P = 1e-10: the last epoch ends at 1e-10.
      coldest: over 0; at 1 the temperature is constant.
    """
    last = max(epochs - 1, 1)
    return lambda epoch: jnp.maximum(
        jnp.exp(math.log(coldest) * jnp.clip((epoch - first) / last, 0, 1)), min(coldest, 1)
    )


def init_experts(key: chex.PRNGKey, student_dim: int, teacher_dim: int, num_experts: int) -> dict[str, Any]:
    """Returns the gates and experts of users and of items, stacked, users' first.

    A `gate` is linear in the teacher's representation; `experts` have h = (d_s + d_t) / 2 hidden units.

    Returns:
      `{"gate": {"kernel": [2, d_t, K], "bias": [2, K]}, "experts": ...}`; the experts as in `htd_jax.losses.Experts`
      with a leading axis of 2: `[2, K, d_s, h]` and so on.
    """
    width = (student_dim + teacher_dim) // 2

    def init_side(key: chex.PRNGKey) -> dict[str, Any]:
        gate, hidden, output = jax.random.split(key, 3)
        experts = {
            "hidden": init_dense(hidden, (num_experts,), student_dim, width),
            "output": init_dense(output, (num_experts,), width, teacher_dim),
        }
        return {"gate": init_dense(gate, (), teacher_dim, num_experts), "experts": experts}

    return jax.tree.map(lambda *sides: jnp.stack(sides), *init_sides(key, init_side).values())


def assign(
    params: dict[str, Any],
    users: Side,
    items: Side,
    temperature: chex.Numeric,
    key: chex.PRNGKey | None,
    *,
    item_weight: float = 1,
) -> tuple[jax.Array, jax.Array]:
    """Computes the assignment loss of users and items under the Gumbel-softmax of their gates' probabilities.

    Args:
      params: from `init_experts`.
      users: n users.
      items: m items.
      temperature: a positive scalar.
      key: folded with 0 for the users' noise, with 1 for the items'; None for the softmax without noise.
      item_weight: the weight of an item's term; a user's is 1.

    Returns:
      The loss, and log(p + 1e-10) `[n + m, K]` without noise, users first, with probabilities p = softmax(W t + c).
    """
    sizes = len(users.where), len(items.where)
    both = concatenate(users, items).masked()
    logits = _logits(params, jnp.split(both.teacher, sizes[:1]))
    loss = routed_assignment_loss(
        both.student,
        both.teacher,
        logits if key is None else logits + _noise(key, sizes, logits),
        params["experts"],
        where=both.where,
        weights=jnp.concatenate([jnp.ones(sizes[0]), jnp.full(sizes[1], float(item_weight))]),
        temperature=temperature,
        sides=sizes,
    )
    return loss, logits


def project(
    params: dict[str, Any],
    student: tuple[jax.Array, jax.Array],
    teacher: tuple[jax.Array, jax.Array],
    temperature: chex.Numeric,
    key: chex.PRNGKey,
) -> tuple[jax.Array, jax.Array]:
    """Returns the experts' outputs for users `[n, d_t]` and items `[m, d_t]`, mixed by the Gumbel-softmax of the gates.

    Args:
      params: from `init_experts`.
      student: representations of users `[n, d_s]` and items `[m, d_s]`.
      teacher: representations of the same users `[n, d_t]` and items `[m, d_t]`.
      temperature: a positive scalar.
      key: the key of the noise, see `assign`.
    """
    sizes = len(student[0]), len(student[1])
    logits = _logits(params, list(teacher))
    mixtures = jnp.split(tempered_softmax(logits + _noise(key, sizes, logits), temperature), sizes[:1])
    experts = [jax.tree.map(lambda x, side=side: x[side], params["experts"]) for side in range(2)]
    users, items = map(mixed_outputs, student, mixtures, experts)
    return users, items


def learned_groups(params: dict[str, Any], teacher: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Returns the groups that HTD has learned: the likeliest expert of every user and item, without noise.

    Args:
      params: trained parameters from `init_experts`.
      teacher: its representations of all users `[num_users, d_t]` and items `[num_items, d_t]`, at any scale.

    Returns:
      `[num_users]` and `[num_items]` int32 in [0, K).
    """
    hints = Teacher(Representations(*teacher)).hints()
    logits = _logits(params, list(hints))
    user_groups, item_groups = jnp.split(jnp.argmax(logits, axis=-1).astype(jnp.int32), [len(teacher[0])])
    return user_groups, item_groups


def _logits(params: dict[str, Any], teacher: list[jax.Array]) -> jax.Array:
    """Returns the log-probabilities `[n + m, K]` that the gates assign to users `[n, d_t]` and items `[m, d_t]`."""
    gates = [jax.tree.map(lambda x, side=side: x[side], params["gate"]) for side in range(2)]
    gated = jnp.concatenate([dense(gate, rows) for gate, rows in zip(gates, teacher)])
    return jnp.log(jax.nn.softmax(gated, axis=-1) + PROBABILITY_FLOOR)


def _noise(key: chex.PRNGKey, sizes: tuple[int, int], like: jax.Array) -> jax.Array:
    """Returns the Gumbel noise `[n + m, K]` that `perturb` would add to either side under `key` folded with its number.

    Both sides are sampled at once, as many rows as the larger has: a number depends on its position alone (JAX's
    `jax_threefry_partitionable`, on by default), and one generator compiles in half the time of two.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(2))
    sample = lambda key: jax.random.uniform(key, (max(sizes), like.shape[1]), like.dtype, jnp.finfo(like.dtype).tiny)
    uniform = jnp.concatenate([rows[:size] for rows, size in zip(jax.vmap(sample)(keys), sizes)])
    return -jnp.log(-jnp.log(uniform))
