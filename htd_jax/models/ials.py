"""Matrix factorisation by alternating least squares: solved for, not descended to."""

import dataclasses
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Gt, Interval
from flax import struct

from htd_jax.data import Interactions
from htd_jax.models.base import Labels, ModelSettings, Recommender, Solver
from htd_jax.models.bpr import BPR
from htd_jax.ops.als import Rows, in_rows, solve_rows


@struct.dataclass
class Known:
    """What the sweeps are made on.

    Attributes:
      of_users, of_items: the pairs from either side, see `in_rows`.
      penalties: of users `[num_users]` and of items `[num_items]`.
    """

    of_users: tuple[Rows, ...]
    of_items: tuple[Rows, ...]
    penalties: tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class IALSSettings(ModelSettings):
    """Implicit alternating least squares (Hu et al., ICDM'08; Rendle et al., RecSys'22)."""

    alpha: Annotated[float, Gt(1)] = 80.0
    """The confidence of a seen pair; that of any other is 1."""
    regularization: Annotated[float, Gt(0)] = 100.0
    """Lambda, the mean over users, and over items."""
    frequency: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Nu: a row's own lambda is like the nu-th power of the sum of its confidences. At 0 all have the same."""
    steps: Annotated[int, Ge(0)] = 3
    """Of conjugate gradients, a row and a sweep; 0 solves exactly."""

    module: ClassVar[type[Recommender]] = BPR
    label: ClassVar[str] = "iALS"
    epochs: ClassVar[int] = 15
    closed_form: ClassVar[bool] = True

    def build(self, train: Interactions, dim: int) -> BPR:
        return BPR(train.num_users, train.num_items, dim)  # two tables, which are all that the two have in common

    def solver(self) -> Solver:
        return Solver(self._prepare, self._sweep)

    def _prepare(self, train: Interactions, labels: Labels | None) -> Known:
        users, items = np.asarray(train.users), np.asarray(train.items)
        weights = np.full(len(users), self.alpha - 1, np.float32)
        if labels is not None:  # a confidence of 1 is every other pair's
            users, items = np.append(users, labels.users), np.append(items, labels.items)
            weights = np.append(weights, labels.weights * (self.alpha - 1)).astype(np.float32)
        by_user, by_item = (np.argsort(ids, kind="stable") for ids in (users, items))
        return Known(
            in_rows(users[by_user], items[by_user], weights[by_user], train.num_users),
            in_rows(items[by_item], users[by_item], weights[by_item], train.num_items),
            (
                self._penalties(users, weights, train.num_users, train.num_items),
                self._penalties(items, weights, train.num_items, train.num_users),
            ),
        )

    def _penalties(self, owners: np.ndarray, weights: np.ndarray, num_rows: int, num_others: int) -> jax.Array:
        """`[num_rows]`: of mean lambda, and like the nu-th power of all confidences of a row."""
        confidences = num_others + np.bincount(owners, weights, minlength=num_rows)
        powers = confidences**self.frequency
        return jnp.asarray(self.regularization * powers / powers.mean(), jnp.float32)

    def _sweep(self, variables: Any, known: Known) -> tuple[Any, jax.Array]:
        users, items = variables["params"]["users"], variables["params"]["items"]
        users, _ = solve_rows(known.of_users, items, known.penalties[0], users, self.steps)
        items, left = solve_rows(known.of_items, users, known.penalties[1], items, self.steps)
        left += jnp.sum(known.penalties[0][:, None] * users**2)
        return {"params": {"users": users, "items": items}}, left
