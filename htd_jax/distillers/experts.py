"""Experts and the gate that assigns entities to them: what DE is, and how HTD learns its groups."""

import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from htd_jax.distillers.base import Side, concatenate
from htd_jax.distillers.layers import dense, init_dense, init_sides
from htd_jax.losses import routed_assignment_loss
from htd_jax.losses.assignment import softmax_of
from htd_jax.ops.experts import mixed_outputs

PROBABILITY_FLOOR = 1e-10
COLDEST = 1e-10


def annealing(epochs: int, *, first: int = 1, coldest: float = COLDEST) -> Callable[[jax.Array], jax.Array]:
    """The temperature by epoch: 1 up to epoch `first`, then coldest^((epoch - first) / last epoch).

    Args:
      epochs: how many there are.
      first: 1 for HTD, as its figures were measured: the first two epochs are warm. 0 for DE, whose paper has
        T_0 (T_P / T_0)^(p / P) with T_0 = 1 and T_P = 1e-10: the last epoch ends at 1e-10.
      coldest: over 0; 1 for a temperature that stays.
    """
    last = max(epochs - 1, 1)
    return lambda epoch: jnp.maximum(
        jnp.exp(math.log(coldest) * jnp.clip((epoch - first) / last, 0, 1)), min(coldest, 1)
    )


def init_experts(key: chex.PRNGKey, student_dim: int, teacher_dim: int, num_experts: int) -> dict[str, Any]:
    """What users and items have each of their own, users' first, stacked: a linear `gate` on the teacher's
    representation, and `experts` with h = (d_s + d_t) / 2 hidden units.

    Returns:
      `{"gate": {"kernel": [2, d_t, K], "bias": [2, K]}, "experts": ...}`, these as in `htd_jax.losses.Experts` with
      2 in front, `[2, K, d_s, h]` and so on.
    """
    width = (student_dim + teacher_dim) // 2

    def of_side(key: chex.PRNGKey) -> dict[str, Any]:
        gate, hidden, output = jax.random.split(key, 3)
        experts = {
            "hidden": init_dense(hidden, (num_experts,), student_dim, width),
            "output": init_dense(output, (num_experts,), width, teacher_dim),
        }
        return {"gate": init_dense(gate, (), teacher_dim, num_experts), "experts": experts}

    return jax.tree.map(lambda *sides: jnp.stack(sides), *init_sides(key, of_side).values())


def assign(
    params: dict[str, Any],
    users: Side,
    items: Side,
    temperature: chex.Numeric,
    key: chex.PRNGKey | None,
    *,
    item_weight: float = 1,
) -> tuple[jax.Array, jax.Array]:
    """The assignment loss of users and items under the Gumbel-softmax of their gates' probabilities.

    Args:
      params: of `init_experts`.
      users: n of them.
      items: m of them.
      temperature: a positive scalar.
      key: folded with 0 for the users' noise, with 1 for the items'; None for none, the softmax of log p itself.
      item_weight: by how much an item's term is multiplied.

    Returns:
      The loss, and log(p + 1e-10) `[n + m, K]` without noise, users' first, of the probabilities p = softmax(W t + c).
    """
    sizes = len(users.where), len(items.where)
    both = concatenate(users, items).masked()
    logits = _logits(params, jnp.split(both.teacher, sizes[:1]))
    loss = routed_assignment_loss(
        *(both.student, both.teacher, logits if key is None else logits + _noise(key, sizes, logits)),
        *(temperature, params["experts"]),
        where=both.where,
        weight=jnp.concatenate([jnp.full(size, share) for size, share in zip(sizes, (1.0, item_weight))]),
        sides=sizes,
    )
    return loss, logits


def project(
    params: dict[str, Any],
    student: tuple[jax.Array, jax.Array],
    teacher: tuple[jax.Array, ...],
    temperature: chex.Numeric,
    key: chex.PRNGKey,
) -> tuple[jax.Array, jax.Array]:
    """What the experts make of users and items: `[n, d_t]` and `[m, d_t]`, mixed by the Gumbel-softmax of their gates.

    Args:
      params: of `init_experts`.
      student: representations `[n, d_s]` and `[m, d_s]`.
      teacher: those of the same users and items, `[n, d_t]` and `[m, d_t]`.
      temperature: a positive scalar.
      key: of the noise, see `assign`.
    """
    sizes = len(student[0]), len(student[1])
    logits = _logits(params, list(teacher))
    mixtures = jnp.split(softmax_of(logits + _noise(key, sizes, logits), temperature), sizes[:1])
    of_side = lambda i: jax.tree.map(lambda x: x[i], params["experts"])
    users, items = (mixed_outputs(x, z, of_side(i)) for i, (x, z) in enumerate(zip(student, mixtures)))
    return users, items


def learned_groups(params: dict[str, Any], teacher: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The likeliest expert of every user and item, without noise: the groups that HTD has learned.

    Args:
      params: of `init_experts`, trained.
      teacher: representations of users `[num_users, d_t]` and items `[num_items, d_t]`.

    Returns:
      `[num_users]` and `[num_items]` int32 in [0, K).
    """
    logits = _logits(params, list(teacher))
    of_users, of_items = jnp.split(jnp.argmax(logits, axis=-1).astype(jnp.int32), [len(teacher[0])])
    return of_users, of_items


def _logits(params: dict[str, Any], teacher: list[jax.Array]) -> jax.Array:
    """Log-probabilities of the experts of users `[n, d_t]` and items `[m, d_t]` by their gates: `[n + m, K]`."""
    gates = [jax.tree.map(lambda x, i=i: x[i], params["gate"]) for i in range(2)]
    gated = jnp.concatenate([dense(gate, of_side) for gate, of_side in zip(gates, teacher)])
    return jnp.log(jax.nn.softmax(gated, axis=-1) + PROBABILITY_FLOOR)


def _noise(key: chex.PRNGKey, sizes: tuple[int, int], like: jax.Array) -> jax.Array:
    """What `perturb` adds to logits `[size, K]` of each side, under `key` folded with the side's number.

    Drawn for both sides at once, as many as the larger has: a number depends on its place alone (JAX's
    `jax_threefry_partitionable`, on unless switched off), and one generator compiles in half the time of two.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(2))
    draw = lambda key: jax.random.uniform(key, (max(sizes), like.shape[1]), like.dtype, jnp.finfo(like.dtype).tiny)
    uniform = jnp.concatenate([of_side[:size] for of_side, size in zip(jax.vmap(draw)(keys), sizes)])
    return -jnp.log(-jnp.log(uniform))
