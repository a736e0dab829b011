"""FitNet, hint regression (Romero et al., ICLR'15)."""

from htd_jax.distillers.base import Distiller
from htd_jax.distillers.layers import dense, init_dense, init_sides
from htd_jax.losses import hint_loss


def fitnet() -> Distiller:
    """One affine map a side from the student's space to the teacher's: the sum over users and items of |t - P(s)|^2.

    Returns:
      A `Distiller`; its term is `fitnet`.
    """

    def init(key, student_dim, teacher_dim):
        return init_sides(key, lambda key: init_dense(key, (), student_dim, teacher_dim))

    def loss(params, entities, key, epoch):
        of = lambda layer, side: hint_loss(dense(layer, side.student), side.teacher, where=side.where)
        value = of(params["users"], entities.users.kept()) + of(params["items"], entities.items.kept())
        return value, {"fitnet": value}

    return Distiller(init, loss)
