"""HTD, Hierarchical Topology Distillation (Kang et al., KDD'21)."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from htd_jax.distillers.base import Distiller, Side
from htd_jax.losses import Experts, entity_level_loss, group_level_loss, perturb, routed_assignment_loss

PROBABILITY_FLOOR = 1e-10
COLDEST = 1e-10


def htd(
    *,
    num_groups: int = 30,
    alpha: float = 0.5,
    group_level: str = "prototype-entity",
    pairs: str = "positive",
    epochs: int = 101,
) -> Distiller:
    """Topology within and across learned groups: alpha (entity + group level) + (1 - alpha) group assignment.

    Users and items have groups of their own, `num_groups` each. A linear gate on the teacher's representation gives
    an entity's group probabilities p. The group assignment loss trains gate and experts through a Gumbel-softmax
    sample of p; the topology takes the group with the largest p, without noise and without gradient.

    Args:
      num_groups: K, groups a side.
      alpha: in [0, 1], the share of the topology.
      group_level: see `htd_jax.losses.group_level_loss`.
      pairs: see `htd_jax.losses.entity_level_loss`.
      epochs: over how many epochs the temperature falls, see `annealing`.

    Returns:
      A `Distiller`; its terms are `entity`, `group` and `assignment`.
    """
    temperature = annealing(epochs)

    def init(key, student_dim, teacher_dim):
        keys = jax.random.split(key)
        return {side: _init_side(k, student_dim, teacher_dim, num_groups) for side, k in zip(("users", "items"), keys)}

    def loss(params, entities, key, epoch):
        heat = temperature(epoch)
        assignment, groups = jnp.zeros(()), []
        for i, name in enumerate(("users", "items")):
            side: Side = getattr(entities, name)
            logits = _log_probabilities(params[name]["gate"], side.teacher)
            noisy = perturb(jax.random.fold_in(key, i), logits)
            assignment += routed_assignment_loss(
                side.student, side.teacher, noisy, heat, params[name]["experts"], where=side.where
            )
            groups.append(i * num_groups + jnp.argmax(logits, axis=-1))
        student, teacher, where = entities.together()
        of = dict(groups=jnp.concatenate(groups), num_groups=2 * num_groups, where=where)
        entity = entity_level_loss(student, teacher, **of, pairs=pairs)
        group = group_level_loss(student, teacher, **of, group_level=group_level)
        total = alpha * (entity + group) + (1 - alpha) * assignment
        return total, {"entity": entity, "group": group, "assignment": assignment}

    return Distiller(init, loss)


def annealing(epochs: int) -> Callable[[jax.Array], jax.Array]:
    """The temperature by epoch: 1 in the first two, then 1e-10^((epoch - 1) / last epoch), never under 1e-10."""
    last = max(epochs - 1, 1)
    return lambda epoch: jnp.maximum(jnp.exp(math.log(COLDEST) * jnp.clip((epoch - 1) / last, 0, 1)), COLDEST)


def _log_probabilities(gate, teacher: jax.Array) -> jax.Array:
    """log(softmax(W t + c) + 1e-10), `[n, K]`."""
    logits = jnp.dot(teacher, gate["kernel"], precision=jax.lax.Precision.HIGHEST) + gate["bias"]
    return jnp.log(jax.nn.softmax(logits, axis=-1) + PROBABILITY_FLOOR)


def _init_side(key, student_dim: int, teacher_dim: int, num_groups: int) -> dict:
    width = (student_dim + teacher_dim) // 2
    gate, hidden, output = jax.random.split(key, 3)
    experts = Experts(
        hidden=_init_dense(hidden, (num_groups,), student_dim, width),
        output=_init_dense(output, (num_groups,), width, teacher_dim),
    )
    return {"gate": _init_dense(gate, (), teacher_dim, num_groups), "experts": experts}


def _init_dense(key, stack: tuple[int, ...], fan_in: int, fan_out: int) -> dict[str, jax.Array]:
    """Weight and bias alike from U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)
    kernel, bias = jax.random.split(key)
    return {
        "kernel": jax.random.uniform(kernel, (*stack, fan_in, fan_out), minval=-bound, maxval=bound),
        "bias": jax.random.uniform(bias, (*stack, fan_out), minval=-bound, maxval=bound),
    }
