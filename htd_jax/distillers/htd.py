"""HTD, Hierarchical Topology Distillation (Kang et al., KDD'21)."""

import jax
import jax.numpy as jnp

from htd_jax.distillers.base import Distiller
from htd_jax.distillers.experts import annealing, assign, init_experts
from htd_jax.losses import entity_level_loss, group_level_loss
from htd_jax.losses.checks import check_choice, check_ints

LEVELS = ("both", "entity", "group")
SIDES = ("users", "items")


def htd(
    *,
    num_groups: int = 30,
    alpha: float = 0.5,
    group_level: str = "prototype-entity",
    pairs: str = "positive",
    levels: str = "both",
    noise: bool = True,
    groups: tuple[jax.Array, jax.Array] | None = None,
    epochs: int = 101,
) -> Distiller:
    """Topology within and across learned groups: alpha (entity + group level) + (1 - alpha) group assignment.

    Users and items have groups of their own, `num_groups` each. A linear gate on the teacher's representation gives
    an entity's group probabilities p. The group assignment loss trains gate and experts through a Gumbel-softmax
    sample of p; the topology takes the group with the largest p, without noise and without gradient.

    Given groups leave only alpha (entity + group level), and nothing to learn beside the student.

    Args:
      num_groups: K, groups a side.
      alpha: in [0, 1], the share of the topology.
      group_level: see `htd_jax.losses.group_level_loss`.
      pairs: see `htd_jax.losses.entity_level_loss`.
      levels: `both`, or `entity` or `group` alone.
      noise: false for the softmax of log p itself instead of a sample, near temperature 0 the likeliest group.
      groups: given instead of learned, of every user `[num_users]` and every item `[num_items]`: integers in
        [0, num_groups), see `random_groups` and `kmeans_groups`.
      epochs: over how many epochs the temperature falls, see `annealing`.

    Returns:
      A `Distiller`; its terms are `entity`, `group` and `assignment`, those of them that it has.

    Raises:
      ValueError: an unknown `levels`, or `groups` out of range.
      AssertionError: `groups` not two vectors of integers.
    """
    check_choice("levels", levels, LEVELS)
    temperature = annealing(epochs)
    if groups is not None:
        _check_groups(groups, num_groups)

    def init(key, student_dim, teacher_dim):
        if groups is not None:
            return {}
        return init_experts(key, student_dim, teacher_dim, num_groups)

    def learned(params, entities, key, epoch):
        """The assignment loss, and the likeliest groups of the batch's users and items."""
        own = key if noise else None
        loss, logits = assign(params, entities.users, entities.items, temperature(epoch), own)
        return loss, jnp.split(jnp.argmax(logits, axis=-1), [len(entities.users.where)])

    def loss(params, entities, key, epoch):
        if groups is None:
            assignment, of_sides = learned(params, entities, key, epoch)
        else:
            of_sides = [jnp.asarray(given)[getattr(entities, name).ids] for name, given in zip(SIDES, groups)]
        student, teacher, where, _ = entities.together()
        of_users, of_items = of_sides
        of = dict(groups=jnp.concatenate([of_users, num_groups + of_items]), num_groups=2 * num_groups, where=where)
        terms = {}
        if levels != "group":
            terms["entity"] = entity_level_loss(student, teacher, **of, pairs=pairs)
        if levels != "entity":
            terms["group"] = group_level_loss(student, teacher, **of, group_level=group_level)
        total = alpha * sum(terms.values())
        if groups is None:
            total += (1 - alpha) * assignment
            terms["assignment"] = assignment
        return total, terms

    return Distiller(init, loss)


def _check_groups(groups, num_groups):
    for name, given in zip(SIDES, groups, strict=True):
        check_ints(f"groups of {name}", given, None)
        if not jnp.all((0 <= given) & (given < num_groups)):
            raise ValueError(f"groups of {name}: expected integers in [0, {num_groups})")
