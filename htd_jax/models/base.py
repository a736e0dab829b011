"""What every base model has in common."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.data import Interactions
from htd_jax.errors import UserError
from htd_jax.losses import bpr_loss
from htd_jax.ops.precision import Rows, encoded, rounded
from htd_jax.ops.products import dot


class Recommender(nn.Module):
    """A base model: `represent`, `score` and `loss` are its own, and `score_all` where there is a faster one.

    Tables, and what is computed from all of them, are made in `setup`: methods called on one bound module,
    `nn.apply(lambda model: (model.loss(...), model.represent(...)), model)(variables)`, share them. Called through
    `apply`, like every Flax module: `model.apply(variables, users, method="score_all")`.

    Attributes:
      num_users, num_items: how many there are.
    """

    # Whether a pair's score is the product of its two representations.
    inner_product: ClassVar[bool] = False
    # Whether its parameters are the tables of its representations, `{"users": ..., "items": ...}`.
    params_are_tables: ClassVar[bool] = False

    num_users: int
    num_items: int

    def represent(self, users: chex.Array, items: chex.Array) -> tuple[jax.Array, jax.Array]:
        """Representations `[n, width]` of the users `[n]` and `[m, width]` of the items `[m]`."""
        raise NotImplementedError

    def score(self, users: chex.Array, items: chex.Array) -> jax.Array:
        """Scores of the pairs (user, item) of two integer arrays that broadcast: `[n]` with `[n]`, or `[n, 1]` with
        `[1, m]` or `[n, m]`."""
        raise NotImplementedError

    def loss(self, users: chex.Array, positives: chex.Array, negatives: chex.Array, where: chex.Array) -> jax.Array:
        """The loss that the model trains with, summed over triples `[n]` (user, seen item, unseen item).

        `where`, `[n]` bool: a masked triple changes nothing.
        """
        raise NotImplementedError

    def score_all(self, users: chex.Array) -> jax.Array:
        """Scores `[n, num_items]` of every item for the users `[n]`, one user at a time."""
        chex.assert_rank(users, 1)
        items = jnp.arange(self.num_items)
        return jax.lax.map(lambda user: self.score(user[None], items), users)

    def score_users(self, items: chex.Array) -> jax.Array:
        """Scores `[n, num_users]` that every user gives to the items `[n]`, all at once."""
        chex.assert_rank(items, 1)
        return self.score(jnp.arange(self.num_users)[:, None], items[None, :]).T

    def __call__(self, users: chex.Array, items: chex.Array) -> jax.Array:
        return self.score(users, items)


def with_tables(model: Recommender) -> Recommender:
    """The bound module with its tables made here, once, and not in every turn of a loop that asks for them."""
    nothing = jnp.zeros(1, jnp.int32)
    model.score(nothing, nothing)
    return model


# A module for the interactions that it is trained on: its sizes, and LightGCN's graph, are theirs.
MakeModel = Callable[[Interactions], Recommender]


class Labels(NamedTuple):
    """Pairs that nobody has seen, to be learned as if they had been.

    Attributes:
      users, items: `[n]` integers; a pair stands once.
      weights: `[n]` floats over 0, how much a pair counts beside a seen one.
    """

    users: np.ndarray
    items: np.ndarray
    weights: np.ndarray


class Solver(NamedTuple):
    """How a model is trained that is solved for: in sweeps, each of which lowers one objective.

    Attributes:
      prepare: of the training interactions, and of `Labels` or None, on the host; once.
      sweep: (variables, what was prepared) -> (variables, the objective under them); jitted.
    """

    prepare: Callable[[Interactions, Labels | None], Any]
    sweep: Callable[[Any, Any], tuple[Any, jax.Array]]


class ModelSettings:
    """Settings of a base model, from which its module is made. A subclass is a frozen dataclass.

    Attributes:
      module: the class of its modules.
      label: the name shown to people; the class's name by default.
      teacher_dim: the default width of its teachers; a student's is a tenth of it.
      epochs: the default number of epochs under the model's own loss.
      closed_form: True for a model that is fitted in closed form, see `solver`.
    """

    module: ClassVar[type[Recommender]]
    label: ClassVar[str] = ""
    teacher_dim: ClassVar[int] = 200
    epochs: ClassVar[int] = 101
    closed_form: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "label" not in cls.__dict__:
            cls.label = cls.__name__.removesuffix("Settings")

    def build(self, train: Interactions, dim: int) -> Recommender:
        """Returns the module of width `dim` for these interactions."""
        raise NotImplementedError

    def solver(self) -> Solver:
        """Returns the solver of a model that is fitted in closed form."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ModelOf:
    """A `MakeModel` that is a value: equal settings and widths are equal, so what is compiled for one serves both."""

    settings: ModelSettings
    dim: int
    precision: str = "float32"

    def __call__(self, train: Interactions) -> Recommender:
        model = self.settings.build(train, self.dim)
        if self.precision == "float32":
            return model
        if not model.inner_product:
            raise UserError(f"`precision` must be float32: scores of {self.settings.label} are not inner products")
        return model.clone(precision=self.precision)


class InnerProduct(Recommender):
    """A pair's score is the product of two representations, trained with BPR (Rendle et al., UAI'09).

    `setup` of a subclass makes them, `[num_users, dim]` and `[num_items, dim]`, and gives them to `keep`. A subclass
    may have `precision` among its fields: under float32, scores are those of what the trained numbers are rounded to.

    Attributes:
      precision: of its rows, see `htd_jax.ops.precision`.
    """

    inner_product: ClassVar[bool] = True
    precision = "float32"

    def keep(self, users: jax.Array, items: jax.Array) -> None:
        """Makes them its tables, `self.users` and `self.items`, in its precision."""
        self.trained = users, items
        self.users, self.items = rounded(users, self.precision), rounded(items, self.precision)

    def rows(self) -> tuple[Rows, Rows]:
        """Its tables, as they are kept."""
        users, items = self.trained
        return encoded(users, self.precision), encoded(items, self.precision)

    def represent(self, users: chex.Array, items: chex.Array) -> tuple[jax.Array, jax.Array]:
        """Representations `[n, dim]` of the users `[n]` and `[m, dim]` of the items `[m]`."""
        chex.assert_rank([users, items], 1)
        return self.users[users], self.items[items]

    def score(self, users: chex.Array, items: chex.Array) -> jax.Array:
        """Scores of the pairs (user, item) of two integer arrays that broadcast, see `Recommender`."""
        chex.assert_equal_rank([users, items])
        return jnp.sum(self.users[users] * self.items[items], axis=-1)

    def score_all(self, users: chex.Array) -> jax.Array:
        """Scores `[n, num_items]` of every item for the users `[n]`, in full float32 on every backend."""
        chex.assert_rank(users, 1)
        return dot(self.users[users], self.items.T)

    def score_users(self, items: chex.Array) -> jax.Array:
        """Scores `[n, num_users]` that every user gives to the items `[n]`, in full float32 on every backend."""
        chex.assert_rank(items, 1)
        return dot(self.items[items], self.users.T)

    def loss(self, users: chex.Array, positives: chex.Array, negatives: chex.Array, where: chex.Array) -> jax.Array:
        """`bpr_loss`, summed over triples `[n]` (user, seen item, unseen item)."""
        return bpr_loss(self.score(users, positives), self.score(users, negatives), where=where)
