"""FitNet, hint regression (Romero et al., ICLR'15)."""

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
    Side,
    Step,
    Terms,
    Width,
    no_rows,
    width_as_context,
)
from htd_jax.distillers.layers import dense, init_dense, init_sides
from htd_jax.losses import hint_loss


@dataclasses.dataclass(frozen=True)
class FitNet(Method):
    """Regresses the teacher's representations through one projection of users and one of items (ICLR'15)."""

    weight: Annotated[float, Ge(0)] = 1e-2
    """Lambda, the weight of the distillation loss against the base loss. Both are sums over a batch: htd-jax
    study weights measures the method's part."""

    label: ClassVar[str] = "FitNet"

    def make(self, epochs: int) -> Distiller:
        return fitnet(self)


def fitnet(settings: FitNet = FitNet()) -> Distiller:
    """Learns two affine maps P from the student's space to the teacher's, for users and for items: sum |t - P(s)|^2.

    Returns:
      A `Distiller`; its term is `fitnet`.
    """

    def init(key: chex.PRNGKey, student: Shapes, context: Width) -> Params:
        return init_sides(key, lambda key: init_dense(key, (), student.dim, context.dim))

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        def side_loss(projection: Params, side: Side) -> jax.Array:
            return hint_loss(dense(projection, side.student), side.teacher, where=side.where)

        users, items = step.batch.entities.users.masked(), step.batch.entities.items.masked()
        value = side_loss(step.params["users"], users) + side_loss(step.params["items"], items)
        return value, {"fitnet": value}

    return Distiller(init, loss, prepare=width_as_context, reads=no_rows, divided=True)
