"""FTD, Full Topology Distillation (Kang et al., KDD'21)."""

import dataclasses
from typing import Annotated, ClassVar

import jax
from annotated_types import Ge

from htd_jax.distillers.base import Distiller, Method, Step, Terms, no_params
from htd_jax.losses import ftd_loss


@dataclasses.dataclass(frozen=True)
class FTD(Method):
    """All cosines between the batch's users and items."""

    weight: Annotated[float, Ge(0)] = 1e-3
    """Lambda: the distillation loss counts this much against the base loss."""

    label: ClassVar[str] = "FTD"

    def make(self, epochs: int) -> Distiller:
        return ftd()


def ftd() -> Distiller:
    """The whole matrix of cosines between a batch's entities, users and items in one set. Nothing to learn."""

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        params, drawn, batch, key, epoch = step.params, step.sampled, step.batch, step.key, step.epoch
        every = batch.entities.together()
        value = ftd_loss(every.student, every.teacher, where=every.where)
        return value, {"ftd": value}

    return Distiller(no_params, loss)
