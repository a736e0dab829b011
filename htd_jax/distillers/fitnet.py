"""FitNet, hint regression (Romero et al., ICLR'15)."""

import dataclasses
from typing import Annotated, ClassVar

import chex
import jax
from annotated_types import Ge

from htd_jax.distillers.base import Distiller, Method, Params, Shapes, Step, Terms
from htd_jax.distillers.layers import dense, init_dense, init_sides
from htd_jax.losses import hint_loss
from htd_jax.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class FitNet(Method):
    """The teacher's representations, through one projection a side (Romero et al., ICLR'15)."""

    weight: Annotated[float, Ge(0)] = 1e-2
    """Lambda: the distillation loss counts this much against the base loss."""

    label: ClassVar[str] = "FitNet"

    def make(self, epochs: int) -> Distiller:
        return fitnet()


def fitnet() -> Distiller:
    """One affine map a side from the student's space to the teacher's: the sum over users and items of |t - P(s)|^2.

    Returns:
      A `Distiller`; its term is `fitnet`.
    """

    def init(key: chex.PRNGKey, student: Shapes, teacher: Teacher) -> Params:
        return init_sides(key, lambda key: init_dense(key, (), student.dim, teacher.dim))

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        params, drawn, batch, key, epoch = step.params, step.sampled, step.batch, step.key, step.epoch
        of = lambda layer, side: hint_loss(dense(layer, side.student), side.teacher, where=side.where)
        users, items = batch.entities.users.masked(), batch.entities.items.masked()
        value = of(params["users"], users) + of(params["items"], items)
        return value, {"fitnet": value}

    return Distiller(init, loss)
