"""PHR, Personalised Hint Regression (Kang et al., "Personalized Knowledge Distillation for Recommender System",
Knowledge-Based Systems, 2022)."""

import dataclasses
from typing import Annotated, Any, ClassVar

import chex
import jax
import jax.numpy as jnp
from annotated_types import Ge

from htd_jax.distillers.base import Distiller, Method, Params, Shapes, Side, Step, Terms
from htd_jax.distillers.layers import dense, init_dense, init_sides
from htd_jax.losses import hint_loss, personalised
from htd_jax.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class PHR(Method):
    """The teacher's representations, each through a projection of its own (Kang et al., KBS'22)."""

    weight: Annotated[float, Ge(0)] = 1e-2
    """Lambda: the distillation loss counts this much against the base loss."""
    width: Annotated[int, Ge(1)] = 16
    """Maps that a projection is mixed from, beside the common one."""

    label: ClassVar[str] = "PHR"

    def make(self, epochs: int) -> Distiller:
        return phr(width=self.width)


def phr(*, width: int = 16) -> Distiller:
    """Every entity has a projection of its own, which a small network makes of its representation in the teacher.

    With c = relu(C t + b) `[width]` the projection is W(t) = B + sum_k c_k A_k, and the loss is the sum over users and
    items of |t - W(t) s|^2. Users and items have networks of their own. A projection has no bias: one made of t could
    tell t without s, and the student would have nothing to learn.

    An entity costs d_t width + (width + 1) d_s d_t multiplications: 71,000 at width 16 and 20 -> 200 dimensions, three
    times one expert of DE and a tenth of its 30.

    Args:
      width: units of the network, and maps to mix beside the common B.

    Returns:
      A `Distiller`; its term is `phr`.
    """

    def init(key: chex.PRNGKey, student: Shapes, teacher: Teacher) -> Params:
        return init_sides(key, lambda key: _init_side(key, student.dim, teacher.dim, width))

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        params, drawn, batch, key, epoch = step.params, step.sampled, step.batch, step.key, step.epoch
        users, items = batch.entities.users.masked(), batch.entities.items.masked()
        value = _side_loss(params["users"], users) + _side_loss(params["items"], items)
        return value, {"phr": value}

    return Distiller(init, loss)


def _side_loss(params: Params, side: Side) -> jax.Array:
    units = jax.nn.relu(dense(params["network"], side.teacher))
    mixture = jnp.concatenate([jnp.ones_like(units[:, :1]), units], axis=1)
    return hint_loss(personalised(side.student, mixture, params["maps"]), side.teacher, where=side.where)


def _init_side(key: chex.PRNGKey, student_dim: int, teacher_dim: int, width: int) -> dict[str, Any]:
    """The common map begins as `fitnet`'s, the others at 1 / sqrt(width) of it: their sum adds at most about as much
    again, where units are about 1, and the less the smaller they are."""
    network, maps = jax.random.split(key)
    maps = init_dense(maps, (width + 1,), student_dim, teacher_dim)["kernel"]
    return {"network": init_dense(network, (), teacher_dim, width), "maps": maps.at[1:].multiply(width**-0.5)}
