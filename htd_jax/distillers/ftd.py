"""FTD, Full Topology Distillation (Kang et al., KDD'21)."""

import dataclasses
from typing import Annotated, ClassVar

import chex
import jax
from annotated_types import Ge

from htd_jax.distillers.base import Batch, Distiller, Drawn, Params, Run, Terms, learns_nothing
from htd_jax.losses import ftd_loss


@dataclasses.dataclass(frozen=True)
class FTD:
    """All cosines between the batch's users and items."""

    weight: Annotated[float, Ge(0)] = 1e-3
    """Lambda: the distillation loss counts this much against the base loss."""

    label: ClassVar[str] = "FTD"

    def make(self, run: Run) -> Distiller:
        return ftd()


def ftd() -> Distiller:
    """The whole matrix of cosines between a batch's entities, users and items in one set. Nothing to learn."""

    def loss(
        params: Params, drawn: Drawn, batch: Batch, key: chex.PRNGKey, epoch: jax.Array
    ) -> tuple[jax.Array, Terms]:
        every = batch.entities.together()
        value = ftd_loss(every.student, every.teacher, where=every.where)
        return value, {"ftd": value}

    return Distiller(learns_nothing, loss)
