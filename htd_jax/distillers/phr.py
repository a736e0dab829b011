"""PHR, Personalised Hint Regression (Kang et al., "Personalized Knowledge Distillation for Recommender System",
Knowledge-Based Systems, 2022)."""

import dataclasses
from typing import Annotated, Any, ClassVar

import chex
import jax
import jax.numpy as jnp
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
from htd_jax.losses import hint_loss, personalised


@dataclasses.dataclass(frozen=True)
class PHR(Method):
    """Regresses the teacher's representations, each through a projection of its own (Kang et al., KBS'22)."""

    weight: Annotated[float, Ge(0)] = 1e-2
    """Lambda, the weight of the distillation loss against the base loss. Both are sums over a batch: htd-jax
    study weights measures the method's part."""
    width: Annotated[int, Ge(1)] = 16
    """The number of maps that each projection mixes, in addition to a map that all share."""

    label: ClassVar[str] = "PHR"

    def make(self, epochs: int) -> Distiller:
        return phr(self)


def phr(settings: PHR = PHR()) -> Distiller:
    """Learns a projection per entity, which a small network generates from the entity's representation in the teacher.

    With c = relu(C t + b) `[width]` the projection is W(t) = B + sum_k c_k A_k, and the loss is the sum over users and
    items of |t - W(t) s|^2. Users and items have separate networks and maps. A projection has no bias: one generated
    from t could predict t without s, and the student would have nothing to learn.

    Cost: d_t width + (width + 1) d_s d_t multiplications per entity, 71,000 at width 16 and 20 -> 200 dimensions: three
    times one expert of DE, and a tenth of its 30.

    Args:
      settings: see `PHR`.

    Returns:
      A `Distiller`; its term is `phr`.
    """

    def init(key: chex.PRNGKey, student: Shapes, context: Width) -> Params:
        return init_sides(key, lambda key: _init_side(key, student.dim, context.dim, settings.width))

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        users, items = step.batch.entities.users.masked(), step.batch.entities.items.masked()
        value = _side_loss(step.params["users"], users) + _side_loss(step.params["items"], items)
        return value, {"phr": value}

    return Distiller(init, loss, prepare=width_as_context, reads=no_rows, divided=True)


def _side_loss(params: Params, side: Side) -> jax.Array:
    units = jax.nn.relu(dense(params["network"], side.teacher))
    mixture = jnp.concatenate([jnp.ones_like(units[:, :1]), units], axis=1)
    return hint_loss(personalised(side.student, mixture, params["maps"]), side.teacher, where=side.where)


def _init_side(key: chex.PRNGKey, student_dim: int, teacher_dim: int, width: int) -> dict[str, Any]:
    """Initialises the shared map as `fitnet` does, and the others at 1 / sqrt(width) of that: if units are about 1, the
    sum of the others is at most about as large as the shared map."""
    network, maps = jax.random.split(key)
    maps = init_dense(maps, (width + 1,), student_dim, teacher_dim)["kernel"]
    return {"network": init_dense(network, (), teacher_dim, width), "maps": maps.at[1:].multiply(width**-0.5)}
