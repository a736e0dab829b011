"""FitNet, hint regression (Romero et al., ICLR'15)."""

import jax

from htd_jax.distillers.base import Distiller
from htd_jax.distillers.layers import dense, init_dense
from htd_jax.losses import hint_loss


def fitnet() -> Distiller:
    """One affine map a side from the student's space to the teacher's: the sum over users and items of |t - P(s)|^2.

    Returns:
      A `Distiller`; its term is `fitnet`.
    """

    def init(key, student_dim, teacher_dim):
        keys = jax.random.split(key)
        return {side: init_dense(k, (), student_dim, teacher_dim) for side, k in zip(("users", "items"), keys)}

    def loss(params, entities, key, epoch):
        of = lambda layer, side: hint_loss(dense(layer, side.student), side.teacher, where=side.where)
        value = of(params["users"], entities.users.kept()) + of(params["items"], entities.items.kept())
        return value, {"fitnet": value}

    return Distiller(init, loss)
