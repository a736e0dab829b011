"""Matrix factorisation by alternating least squares, a closed-form model."""

import dataclasses
import functools
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Gt, Interval
from flax import struct

from htd_jax.data import Interactions
from htd_jax.errors import UserError
from htd_jax.models.base import Labels, ModelSettings, Recommender, Solver
from htd_jax.models.bpr import BPR, BPRSettings
from htd_jax.ops.als import PaddedRows, pad_rows, solve_each, solve_rows
from htd_jax.ops.shards import local_rows, total


@struct.dataclass
class Context:
    """The training data of the sweeps.

    Attributes:
      by_user, by_item: the pairs, grouped by either side, see `pad_rows`.
      penalties: lambda of the users `[num_users]` and of the items `[num_items]`.
    """

    by_user: tuple[PaddedRows, ...]
    by_item: tuple[PaddedRows, ...]
    penalties: tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Solves for all users, then for all items. It compares by value, so that models that differ in what reaches it as
    arrays share a program.

    Attributes:
      steps: see `IALSSettings`.
    """

    steps: int

    def __call__(self, variables: Any, context: Context) -> tuple[Any, jax.Array]:
        users, items = variables["params"]["users"], variables["params"]["items"]
        user_penalties, item_penalties = context.penalties
        users, _ = solve_rows(context.by_user, items, user_penalties, users, self.steps)
        items, objective = solve_rows(context.by_item, users, item_penalties, items, self.steps)
        objective += total(jnp.sum(local_rows(user_penalties, users)[:, None] * users**2))
        return {"params": {"users": users, "items": items}}, objective


@dataclasses.dataclass(frozen=True)
class IALSSettings(ModelSettings):
    """Settings of implicit alternating least squares (Hu et al., ICDM'08; Rendle et al., RecSys'22).

    Its module has two tables, like BPR's.
    """

    alpha: Annotated[float, Gt(1)] = 80.0
    """Confidence of a seen pair, alpha; the confidence of an unseen pair is 1."""
    regularization: Annotated[float, Gt(0)] = 100.0
    """Lambda, the weight of the L2 penalty: its average over all users, and over all items."""
    frequency: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Exponent nu of the penalty: the lambda of a user or item is proportional to the nu-th power of the sum of its
    confidences, and equal for all at 0, the default."""
    steps: Annotated[int, Ge(0)] = 3
    """Conjugate gradient steps per user or item in each sweep; 0 solves exactly."""

    module: ClassVar[type[Recommender]] = BPR
    label: ClassVar[str] = "iALS"
    epochs: ClassVar[int] = 15
    closed_form: ClassVar[bool] = True

    def same_module(self) -> ModelSettings:
        return BPRSettings()

    def solver(self) -> Solver:
        return Solver(self._prepare, Sweep(self.steps), self._prepare)

    def grow(
        self, variables: Any, train: Interactions, sweeps: int = 0, labels: Labels | None = None
    ) -> tuple[Any, list[float]]:
        """Returns the variables for more users and items than the model was fitted to, without fitting it anew.

        New rows are exact solutions for the other side's rows, in three steps: new items from old users; new users from
        all items; new items once more, from all users. So a new item whose users are all new has a row as soon as one
        of them has an old item, or has a new item that has an old user. Rows that are connected to no old row are zero:
        nothing relates them to the others. Old rows keep their bits, unless `sweeps` changes them.

        Args:
          variables: fitted to the first users and items of `train`: the rows of their tables keep their numbers.
          train: all pairs, old and new, over all users and items.
          sweeps: full sweeps over all rows, from the grown tables, with `steps` steps each.
          labels: see `Solver`.

        Returns:
          The variables, and the objective after each sweep.

        Raises:
          UserError: if the tables have more rows than `train` has users or items.
        """
        users, items = (np.asarray(variables["params"][side]) for side in ("users", "items"))
        old_users, old_items = len(users), len(items)
        for side, old, size in (("users", old_users, train.num_users), ("items", old_items, train.num_items)):
            if old > size:
                raise UserError(
                    f"the model has {old} {side}, and the data {size}; pass old and new ones, old ones first"
                )
        by_user, by_item, weights = self._pairs(train, labels)
        user_penalties = self._penalties(by_user, weights, train.num_users, train.num_items)
        item_penalties = self._penalties(by_item, weights, train.num_items, train.num_users)
        all_items = _with_new(items, by_item, by_user, weights, users, item_penalties)
        users = _with_new(users, by_user, by_item, weights, all_items, user_penalties)
        items = _with_new(items, by_item, by_user, weights, users, item_penalties)
        grown: Any = {"params": {"users": jnp.asarray(users), "items": jnp.asarray(items)}}
        objectives = []
        context = self._prepare(train, labels) if sweeps else None
        for _ in range(sweeps):
            grown, objective = _compiled(Sweep(self.steps))(grown, context)
            objectives.append(float(objective))
        return grown, objectives

    def _prepare(self, train: Interactions, labels: Labels | None, parts: int = 1) -> Context:
        users, items, weights = self._pairs(train, labels)
        by_user, by_item = (np.argsort(ids, kind="stable") for ids in (users, items))
        return Context(
            pad_rows(users[by_user], items[by_user], weights[by_user], train.num_users, parts),
            pad_rows(items[by_item], users[by_item], weights[by_item], train.num_items, parts),
            (
                self._penalties(users, weights, train.num_users, train.num_items),
                self._penalties(items, weights, train.num_items, train.num_users),
            ),
        )

    def _pairs(self, train: Interactions, labels: Labels | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns users, items, and the confidence of each pair minus 1: three arrays `[n]`."""
        users, items = np.asarray(train.users), np.asarray(train.items)
        weights = np.full(len(users), self.alpha - 1, np.float32)
        if labels is not None:  # a weight of 0 is the confidence of an unseen pair
            users, items = np.append(users, labels.users), np.append(items, labels.items)
            weights = np.append(weights, labels.weights * (self.alpha - 1)).astype(np.float32)
        return users, items, weights

    def _penalties(self, owners: np.ndarray, weights: np.ndarray, num_rows: int, num_others: int) -> jax.Array:
        """Returns lambdas `[num_rows]`, proportional to the nu-th power of a row's confidences, `regularization` on
        average."""
        confidences = num_others + np.bincount(owners, weights, minlength=num_rows)
        powers = confidences**self.frequency
        return jnp.asarray(self.regularization * powers / powers.mean(), jnp.float32)


def _with_new(
    mine: np.ndarray, owners: np.ndarray, others: np.ndarray, weights: np.ndarray, table: np.ndarray, penalties: Any
) -> np.ndarray:
    """Returns a table with the rows of new owners, solved for the rows that the other side's table has.

    Args:
      mine: the old rows.
      owners, others, weights: all pairs `[n]`, see `solve_each`.
      table: of the other side, of old rows or of all.
      penalties: of all owners.
    """
    old = len(mine)
    known = (owners >= old) & (others < len(table))
    penalties = np.asarray(penalties)[old:]
    return np.concatenate([mine, solve_each(owners[known] - old, others[known], weights[known], table, penalties)])


@functools.lru_cache(maxsize=4)
def _compiled(sweep: Sweep) -> Any:
    return jax.jit(sweep)
