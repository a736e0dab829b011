"""Matrix factorisation trained with BPR."""

import flax.linen as nn

from htd_jax.models.base import InnerProduct


class BPR(InnerProduct):
    """A vector of its own for every user and item (Rendle et al., UAI'09). Tables start at N(0, 0.01^2)."""

    dim: int

    def setup(self) -> None:
        normal = nn.initializers.normal(0.01)
        self.users = self.param("users", normal, (self.num_users, self.dim))
        self.items = self.param("items", normal, (self.num_items, self.dim))
