"""DE, Distillation Experts (Kang et al., "DE-RRD", CIKM'20)."""

import dataclasses
from typing import Annotated, ClassVar

import chex
import jax
from annotated_types import Ge

from htd_jax.distillers.base import (
    Distiller,
    Method,
    Params,
    Shapes,
    Step,
    Terms,
    Width,
    concatenate,
    no_rows,
    width_as_context,
)
from htd_jax.distillers.experts import annealing, assign, init_experts


@dataclasses.dataclass(frozen=True)
class DE(Method):
    """Regresses the teacher's representations through experts, which Gumbel-softmax selects (Kang et al., CIKM'20)."""

    weight: Annotated[float, Ge(0)] = 1e-2
    """Lambda, the weight of the distillation loss against the base loss. Both are sums over a batch: htd-jax
    study weights measures the method's part."""
    experts: Annotated[int, Ge(1)] = 30
    """K, the number of experts of users, and of experts of items."""

    label: ClassVar[str] = "DE"
    scheduled: ClassVar[bool] = True  # the temperature falls over all epochs

    def make(self, epochs: int) -> Distiller:
        return de(self, epochs=epochs)


def de(settings: DE = DE(), *, epochs: int = 101) -> Distiller:
    """Mixtures of experts, one of users and one of items: users + (positive items + negative items) / 2.

    Positives and negatives share the gate and the experts of the items. An item that is both counts in both terms,
    each with its own noise. The temperature falls from 1 to 1e-10.

    Args:
      settings: see `DE`.
      epochs: the number of epochs over which the temperature falls, see `annealing`.

    Returns:
      A `Distiller`; its term is `de`.
    """
    temperature = annealing(epochs, first=0)

    def init(key: chex.PRNGKey, student: Shapes, context: Width) -> Params:
        return init_experts(key, student.dim, context.dim, settings.experts)

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        entities = step.batch.entities
        items = concatenate(entities.positives, entities.negatives)  # one sum, so that each expert is visited once
        value, _ = assign(step.params, entities.users, items, temperature(step.epoch), step.key, item_weight=0.5)
        return value, {"de": value}

    return Distiller(init, loss, prepare=width_as_context, reads=no_rows, divided=True)
