"""HTD, Hierarchical Topology Distillation (Kang et al., KDD'21)."""

import dataclasses
from typing import Annotated, ClassVar, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Gt, Interval
from flax import struct

from htd_jax.data import Interactions
from htd_jax.distillers.base import Distiller, Method, Params, Shapes, Step, Terms, no_rows
from htd_jax.distillers.experts import annealing, assign, init_experts
from htd_jax.distillers.grouping import kmeans_groups, random_groups
from htd_jax.losses import entity_level_loss, group_level_loss
from htd_jax.losses.checks import check_ints
from htd_jax.ops.shards import look_up
from htd_jax.settings import check
from htd_jax.teacher import Teacher

Groups = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class HTD(Method):
    """Matches cosines within and across groups, which experts assign (Kang et al., KDD'21)."""

    weight: Annotated[float, Ge(0)] = 1e-3
    """Lambda, the weight of the distillation loss against the base loss. Both are sums over a batch: htd-jax
    study weights measures the method's part."""
    groups: Annotated[int, Ge(1)] = 30
    """K, the number of groups of users, and of groups of items."""
    alpha: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """The weight of the topology loss; the group assignment loss has weight 1 - alpha."""
    group_level: Literal["prototype-entity", "prototype-prototype"] = "prototype-entity"
    """Which cosines the group level matches: between groups' means and entities, or between groups' means."""
    pairs: Literal["positive", "all"] = "positive"
    """Which pairs within a group the entity level matches: those with a positive cosine in the teacher, as in the
    published measurements, or all, as in the paper's equation."""
    levels: Literal["both", "entity", "group"] = "both"
    """Which levels of the topology the loss includes."""
    grouping: Literal["learned", "random", "kmeans"] = "learned"
    """How groups are made: learned by experts, at random, or by k-means of the teacher's representations."""
    grouping_seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0
    """Seed of random groups, and of the initialisation of k-means."""
    noise: bool = True
    """Whether the group assignment samples with Gumbel noise."""
    coldest: Annotated[float, Gt(0)] = 1e-10
    """The final temperature of the group assignment, which is annealed from 1; 1 keeps it constant."""

    label: ClassVar[str] = "HTD"
    scheduled: ClassVar[bool] = True  # the temperature falls over all epochs

    def make(self, epochs: int) -> Distiller:
        return htd(self, epochs=epochs)


@struct.dataclass
class Context:
    """The constants of a phase.

    Attributes:
      group_ids: the fixed groups of all users `[num_users]` and items `[num_items]`, int32; None if they are learned.
      dim: the width of the teacher's representations.
    """

    group_ids: Groups | None
    dim: int = struct.field(pytree_node=False)


def htd(settings: HTD = HTD(), *, epochs: int = 101, group_ids: Groups | None = None) -> Distiller:
    """Matches topology within and across groups: alpha (entity level + group level) + (1 - alpha) group assignment.

    Users and items have K groups each. A linear gate on the teacher's representation gives an entity's group
    probabilities p. The group assignment loss trains gate and experts through a Gumbel-softmax sample of p; the
    topology takes the group with the largest p, without noise and without gradient.

    Fixed groups leave only alpha (entity level + group level), without parameters.

    Args:
      settings: see `HTD`.
      epochs: the number of epochs over which the temperature falls, see `annealing`.
      group_ids: fixed groups of users `[num_users]` and items `[num_items]`, integers in [0, K), in place of
        `settings.grouping`.

    Returns:
      A `Distiller`; its terms are those of `entity`, `group` and `assignment` that it has.

    Raises:
      UserError: if a setting is invalid.
      ValueError: from `prepare`, if a group is not in [0, K).
      AssertionError: from `prepare`, if `group_ids` are not integers, one per user and one per item.
    """
    check(settings)
    num_groups = settings.groups
    temperature = annealing(epochs, coldest=settings.coldest)

    def prepare(teacher: Teacher, train: Interactions) -> Context:
        assert teacher.representations is not None
        fixed = group_ids
        if fixed is not None:
            _check_groups(fixed, num_groups, (train.num_users, train.num_items))
        elif settings.grouping == "random":
            fixed = random_groups(settings.grouping_seed, train.num_users, train.num_items, num_groups)
        elif settings.grouping == "kmeans":
            fixed = kmeans_groups(settings.grouping_seed, *teacher.representations, num_groups)
        return Context(None if fixed is None else (jnp.asarray(fixed[0]), jnp.asarray(fixed[1])), teacher.dim)

    def init(key: chex.PRNGKey, student: Shapes, context: Context) -> Params:
        return init_experts(key, student.dim, context.dim, num_groups) if context.group_ids is None else {}

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        users, items = step.batch.entities.users, step.batch.entities.items
        fixed = step.context.group_ids
        if fixed is None:
            key = step.key if settings.noise else None
            assignment, logits = assign(step.params, users, items, temperature(step.epoch), key)
            user_groups, item_groups = jnp.split(jnp.argmax(logits, axis=-1), [len(users.where)])
        else:
            user_groups, item_groups = look_up(fixed[0], users.ids), look_up(fixed[1], items.ids)
        student, teacher, where, *_ = step.batch.entities.together()
        groups = jnp.concatenate([user_groups, num_groups + item_groups])
        terms: Terms = {}
        if settings.levels != "group":
            terms["entity"] = entity_level_loss(
                student,
                teacher,
                groups,
                num_groups=2 * num_groups,
                where=where,
                pairs=settings.pairs,
                sides=(len(user_groups), len(item_groups)),
            )
        if settings.levels != "entity":
            terms["group"] = group_level_loss(
                student, teacher, groups, num_groups=2 * num_groups, where=where, group_level=settings.group_level
            )
        total = settings.alpha * sum(terms.values(), jnp.zeros(()))
        if fixed is None:
            total += (1 - settings.alpha) * assignment
            terms["assignment"] = assignment
        return total, terms

    return Distiller(init, loss, prepare=prepare, reads=no_rows, divided=settings.grouping != "kmeans")


def _check_groups(group_ids: Groups, num_groups: int, sizes: tuple[int, int]) -> None:
    for side, ids, size in zip(("users", "items"), group_ids, sizes, strict=True):
        check_ints(f"groups of {side}", ids, size)
        numbers = np.asarray(ids)  # concrete, even where `prepare` is traced
        if not np.all((0 <= numbers) & (numbers < num_groups)):
            raise ValueError(f"groups of {side}: expected integers in [0, {num_groups})")
