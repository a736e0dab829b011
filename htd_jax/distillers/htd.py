"""HTD, Hierarchical Topology Distillation (Kang et al., KDD'21)."""

import dataclasses
from typing import Annotated, ClassVar, Literal

import chex
import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Interval

from htd_jax.distillers.base import Batch, Distiller, Drawn, Entities, Params, Run, Shapes, Terms
from htd_jax.distillers.experts import annealing, assign, init_experts
from htd_jax.distillers.grouping import kmeans_groups, random_groups
from htd_jax.distillers.teacher import Teacher
from htd_jax.errors import UserError
from htd_jax.losses import entity_level_loss, group_level_loss
from htd_jax.losses.checks import check_choice, check_ints

LEVELS = ("both", "entity", "group")
SIDES = ("users", "items")


@dataclasses.dataclass(frozen=True)
class HTD:
    """Cosines within and across groups, and experts that assign the groups (Kang et al., KDD'21)."""

    weight: Annotated[float, Ge(0)] = 1e-3
    """Lambda: the distillation loss counts this much against the base loss."""
    groups: Annotated[int, Ge(1)] = 30
    """K: groups of users, and as many of items."""
    alpha: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """The topology's share of the distillation; the rest is the group assignment's."""
    group_level: Literal["prototype-entity", "prototype-prototype"] = "prototype-entity"
    """What is related across groups: their means and all entities, or their means."""
    pairs: Literal["positive", "all"] = "positive"
    """The pairs of one group that are related: those with a positive cosine in the teacher (as the published figures
    were measured), or all (as the paper's equation says)."""
    levels: Literal["both", "entity", "group"] = "both"
    """Which levels of the topology count."""
    grouping: Literal["learned", "random", "kmeans"] = "learned"
    """Where groups come from; kmeans: of the teacher's representations."""
    noise: bool = True
    """Gumbel noise in the assignment of groups."""
    coldest: Annotated[float, Gt(0)] = 1e-10
    """The temperature that it falls to from 1, over all epochs; 1: it stays."""

    label: ClassVar[str] = "HTD"
    scheduled: ClassVar[bool] = True  # the temperature falls over all epochs

    def make(self, run: Run) -> Distiller:
        groups = None
        if self.grouping != "learned":
            if run.teacher is None or run.teacher.representations is None:
                raise UserError(f"--htd.grouping: {self.grouping} needs a teacher's representations")
            users, items = run.teacher.representations
            if self.grouping == "random":
                groups = random_groups(run.seed, len(users), len(items), self.groups)
            else:
                groups = kmeans_groups(run.seed, users, items, self.groups)
        return htd(
            num_groups=self.groups,
            alpha=self.alpha,
            group_level=self.group_level,
            pairs=self.pairs,
            levels=self.levels,
            noise=self.noise,
            coldest=self.coldest,
            groups=groups,
            epochs=run.epochs,
        )


def htd(
    *,
    num_groups: int = 30,
    alpha: float = 0.5,
    group_level: str = "prototype-entity",
    pairs: str = "positive",
    levels: str = "both",
    noise: bool = True,
    coldest: float = 1e-10,
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
      coldest: what the temperature falls to, see `annealing`.
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
    temperature = annealing(epochs, coldest=coldest)
    if groups is not None:
        _check_groups(groups, num_groups)

    def init(key: chex.PRNGKey, student: Shapes, teacher: Teacher) -> Params:
        if groups is not None:
            for name, given, size in zip(SIDES, groups, (student.num_users, student.num_items)):
                check_ints(f"groups of {name}", given, size)
            return {}
        return init_experts(key, student.dim, teacher.dim, num_groups)

    def learned(
        params: Params, entities: Entities, key: chex.PRNGKey, epoch: jax.Array
    ) -> tuple[jax.Array, list[jax.Array]]:
        """The assignment loss, and the likeliest groups of the batch's users and items."""
        own = key if noise else None
        loss, logits = assign(params, entities.users, entities.items, temperature(epoch), own)
        return loss, jnp.split(jnp.argmax(logits, axis=-1), [len(entities.users.where)])

    def loss(
        params: Params, drawn: Drawn, batch: Batch, key: chex.PRNGKey, epoch: jax.Array
    ) -> tuple[jax.Array, Terms]:
        entities = batch.entities
        if groups is None:
            assignment, of_sides = learned(params, entities, key, epoch)
        else:
            of_sides = [jnp.asarray(given)[getattr(entities, name).ids] for name, given in zip(SIDES, groups)]
        student, teacher, where, _ = entities.together()
        of_users, of_items = of_sides
        both = jnp.concatenate([of_users, num_groups + of_items])
        terms: Terms = {}
        if levels != "group":
            terms["entity"] = entity_level_loss(
                student,
                teacher,
                both,
                num_groups=2 * num_groups,
                where=where,
                pairs=pairs,
                sides=(len(of_users), len(of_items)),
            )
        if levels != "entity":
            terms["group"] = group_level_loss(
                student, teacher, both, num_groups=2 * num_groups, where=where, group_level=group_level
            )
        total = alpha * sum(terms.values(), jnp.zeros(()))
        if groups is None:
            total += (1 - alpha) * assignment
            terms["assignment"] = assignment
        return total, terms

    return Distiller(init, loss)


def _check_groups(groups: tuple[jax.Array, jax.Array], num_groups: int) -> None:
    for name, given in zip(SIDES, groups, strict=True):
        check_ints(f"groups of {name}", given, None)
        if not jnp.all((0 <= given) & (given < num_groups)):
            raise ValueError(f"groups of {name}: expected integers in [0, {num_groups})")
