"""Matrix factorisation trained with BPR."""

import dataclasses
from typing import ClassVar

import flax.linen as nn

from htd_jax.models.base import InnerProduct, ModelSettings, Recommender


class BPR(InnerProduct):
    """A trained vector for every user and item (Rendle et al., UAI'09). Tables start at N(0, 0.01^2)."""

    params_are_tables: ClassVar[bool] = True
    row_local: ClassVar[bool] = True
    divided: ClassVar[bool] = True

    dim: int

    def setup(self) -> None:
        normal = nn.initializers.normal(0.01)
        users = self.param("users", normal, (self.num_users, self.dim))
        items = self.param("items", normal, (self.num_items, self.dim))
        self.keep(users, items)


@dataclasses.dataclass(frozen=True)
class BPRSettings(ModelSettings):
    """Settings of matrix factorisation trained with BPR (Rendle et al., UAI'09)."""

    module: ClassVar[type[Recommender]] = BPR
    label: ClassVar[str] = "BPR"
