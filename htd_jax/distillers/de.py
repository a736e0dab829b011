"""DE, Distillation Experts (Kang et al., "DE-RRD", CIKM'20)."""

import jax

from htd_jax.distillers.base import Distiller, concatenate
from htd_jax.distillers.experts import annealing, assign, init_experts
from htd_jax.distillers.layers import init_sides


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
        return init_sides(key, lambda key: init_experts(key, student_dim, teacher_dim, num_experts))

    def loss(params, entities, key, epoch):
        heat = temperature(epoch)
        items = concatenate(entities.positives, entities.negatives)  # one sum, so one visit to each expert
        user_term, _ = assign(params["users"], entities.users, heat, jax.random.fold_in(key, 0))
        item_terms, _ = assign(params["items"], items, heat, jax.random.fold_in(key, 1))
        value = user_term + item_terms / 2
        return value, {"de": value}

    return Distiller(init, loss)
