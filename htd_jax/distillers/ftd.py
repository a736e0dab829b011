"""FTD, Full Topology Distillation (Kang et al., KDD'21)."""

from htd_jax.distillers.base import Distiller
from htd_jax.losses import ftd_loss


def ftd() -> Distiller:
    """The whole matrix of cosines between a batch's entities, users and items in one set. Nothing to learn."""

    def loss(params, entities, key, epoch):
        every = entities.together()
        value = ftd_loss(every.student, every.teacher, where=every.where)
        return value, {"ftd": value}

    return Distiller(lambda key, student_dim, teacher_dim: {}, loss)
