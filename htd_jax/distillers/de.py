"""DE, Distillation Experts (Kang et al., "DE-RRD", CIKM'20)."""

import dataclasses
from typing import Annotated, ClassVar

import chex
import jax
from annotated_types import Ge

from htd_jax.distillers.base import Distiller, Method, Params, Shapes, Step, Terms, concatenate
from htd_jax.distillers.experts import annealing, assign, init_experts
from htd_jax.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class DE(Method):
    """The teacher's representations, through experts chosen by Gumbel-softmax (Kang et al., CIKM'20)."""

    weight: Annotated[float, Ge(0)] = 1e-2
    """Lambda: the distillation loss counts this much against the base loss."""
    experts: Annotated[int, Ge(1)] = 30
    """K, experts a side."""

    label: ClassVar[str] = "DE"
    scheduled: ClassVar[bool] = True  # the temperature falls over all epochs

    def make(self, epochs: int) -> Distiller:
        return de(num_experts=self.experts, epochs=epochs)


def de(*, num_experts: int = 30, epochs: int = 101) -> Distiller:
    """A mixture of experts a side: users + (positive items + negative items) / 2.

    Users and items have gate and experts of their own; positives and negatives share the items'. An item that is both
    is in both terms, each with its own noise. The temperature falls from 1 to 1e-10.

    Args:
      num_experts: K, experts a side.
      epochs: over how many epochs the temperature falls, see `annealing`.

    Returns:
      A `Distiller`; its term is `de`.
    """
    temperature = annealing(epochs, first=0)

    def init(key: chex.PRNGKey, student: Shapes, teacher: Teacher) -> Params:
        return init_experts(key, student.dim, teacher.dim, num_experts)

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        params, drawn, batch, key, epoch = step.params, step.sampled, step.batch, step.key, step.epoch
        entities = batch.entities
        items = concatenate(entities.positives, entities.negatives)  # one sum, so one visit to each expert
        value, _ = assign(params, entities.users, items, temperature(epoch), key, item_weight=0.5)
        return value, {"de": value}

    return Distiller(init, loss)
