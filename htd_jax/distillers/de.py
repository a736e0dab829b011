"""DE, Distillation Experts (Kang et al., "DE-RRD", CIKM'20)."""

from htd_jax.distillers.base import Distiller, concatenate
from htd_jax.distillers.experts import annealing, assign, init_experts


def de(*, num_experts: int = 30, epochs: int = 101) -> Distiller:
    """A mixture of experts a side: users + (positive items + negative items) / 2.

    Users and items have gate and experts of their own; positives and negatives share the items'. An item that is both
    is in both terms, each with its own noise. The temperature falls from 1 to 1e-10.

    Args:
      num_experts: K, experts a side.
      epochs: over how many epochs the temperature falls, see `annealing`.

    Returns:
      A `Distiller`; its term is `de`.
    """
    temperature = annealing(epochs, first=0)

    def init(key, student_dim, teacher_dim):
        return init_experts(key, student_dim, teacher_dim, num_experts)

    def loss(params, entities, key, epoch):
        items = concatenate(entities.positives, entities.negatives)  # one sum, so one visit to each expert
        value, _ = assign(params, entities.users, items, temperature(epoch), key, item_weight=0.5)
        return value, {"de": value}

    return Distiller(init, loss)
