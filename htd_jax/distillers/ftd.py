"""FTD, Full Topology Distillation (Kang et al., KDD'21)."""

import dataclasses
from typing import Annotated, ClassVar

import jax
from annotated_types import Ge

from htd_jax.distillers.base import Distiller, Method, Step, Terms, no_params, no_rows, width_as_context
from htd_jax.losses import ftd_loss


@dataclasses.dataclass(frozen=True)
class FTD(Method):
    """Matches all cosines between the users and items of a batch (Kang et al., KDD'21)."""

    weight: Annotated[float, Ge(0)] = 1e-3
    """Lambda, the weight of the distillation loss against the base loss. Both are sums over a batch: htd-jax
    study weights measures the method's part."""

    label: ClassVar[str] = "FTD"

    def make(self, epochs: int) -> Distiller:
        return ftd(self)


def ftd(settings: FTD = FTD()) -> Distiller:
    """Matches the matrix of cosines between a batch's entities, users and items as one set. It has no parameters.

    Returns:
      A `Distiller`; its term is `ftd`.
    """

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        both = step.batch.entities.together()
        (student, teacher), where = both.parts or (both.student, both.teacher), both.where
        value = ftd_loss(student, teacher, where=where)
        return value, {"ftd": value}

    return Distiller(no_params, loss, prepare=width_as_context, reads=no_rows, divided=True)
