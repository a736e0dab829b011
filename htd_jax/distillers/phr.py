"""PHR, Personalised Hint Regression (Kang et al., "Personalized Knowledge Distillation for Recommender System",
Knowledge-Based Systems, 2022)."""

import jax
import jax.numpy as jnp

from htd_jax.distillers.base import Distiller
from htd_jax.distillers.layers import dense, init_dense, init_sides
from htd_jax.losses import hint_loss, personalised


def phr(*, width: int = 16) -> Distiller:
    """Every entity has an affine map of its own, which a small network makes of its representation in the teacher.

    With c = relu(C t + b) `[width]` the map's weights are B + sum_k c_k A_k, its bias likewise, and the loss is the
    sum over users and items of |t - (W(t) s + b(t))|^2. Users and items have networks of their own.

    An entity costs d_t width + (width + 1) d_s d_t multiplications: 71,000 at width 16 and 20 -> 200 dimensions, three
    times one expert of DE and a tenth of its 30.

    Args:
      width: units of the network, and maps to mix beside the common B.

    Returns:
      A `Distiller`; its term is `phr`.
    """

    def init(key, student_dim, teacher_dim):
        return init_sides(key, lambda key: _init_side(key, student_dim, teacher_dim, width))

    def loss(params, entities, key, epoch):
        value = _side_loss(params["users"], entities.users.kept()) + _side_loss(params["items"], entities.items.kept())
        return value, {"phr": value}

    return Distiller(init, loss)


def _side_loss(params, side):
    units = jax.nn.relu(dense(params["network"], side.teacher))
    mixture = jnp.concatenate([jnp.ones_like(units[:, :1]), units], axis=1)
    return hint_loss(personalised(side.student, mixture, params["maps"]), side.teacher, where=side.where)


def _init_side(key, student_dim: int, teacher_dim: int, width: int) -> dict:
    """The common map begins as `fitnet`'s, the others at 1 / sqrt(width) of it: their sum adds at most about as much
    again, where units are about 1, and the less the smaller they are."""
    network, common, own = jax.random.split(key, 3)
    shared = init_dense(common, (1,), student_dim, teacher_dim)
    others = jax.tree.map(lambda x: x / width**0.5, init_dense(own, (width,), student_dim, teacher_dim))
    maps = jax.tree.map(lambda *parts: jnp.concatenate(parts), shared, others)
    return {"network": init_dense(network, (), teacher_dim, width), "maps": maps}
