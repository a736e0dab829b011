"""EASE: a linear model of items on items, fitted in closed form."""

import dataclasses
from typing import Annotated, Any, ClassVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Gt
from flax import struct

from htd_jax.data import Interactions, seen_mask, was_seen
from htd_jax.errors import UserError
from htd_jax.models.base import Labels, ModelSettings, Recommender, Solver
from htd_jax.ops.inverses import inverse
from htd_jax.ops.mapped import in_blocks
from htd_jax.ops.sparse import gram, sum_entries, sum_of_items, sum_onto_items

# The largest matrix that is inverted: 6.4 GB, and three of them at once.
MOST = 40_000

# Pairs whose sums are computed at once.
PAIRS = 2**12


class EASE(Recommender):
    r"""A user's score of an item is the sum of the weights from the user's items to it (Steck, WWW'19).

    .. math:: \min_B |X - XB|^2 + \lambda |B|^2 \quad \text{with a diagonal of 0}

    With P = (X'X + lambda I)^-1, the solution is B = I - P / diag(P), column by column. Where there are fewer users
    than items, B is not formed. With K = XX' + lambda I and Y = K^-1 X = XP, the same scores are

    .. math:: XB = X - Y / \text{diag}(P), \quad \text{diag}(P)_i = (1 - \sum_u X_{ui} Y_{ui}) / \lambda

    Its parameters are a matrix `[n, n]`, n the smaller number of users and items, and diag(P). It has no
    representations, and no loss under which steps could train it.

    Attributes:
      train: X, whose pairs every score reads.
    """

    has_representations: ClassVar[bool] = False

    train: Interactions

    @property
    def dual(self) -> bool:
        return self.num_users < self.num_items

    @property
    def from_history(self) -> bool:
        return not self.dual  # the matrix of the dual has a row for every user

    def setup(self) -> None:
        zeros = nn.initializers.zeros
        size = min(self.num_users, self.num_items)
        self.matrix = self.param("inverse" if self.dual else "weights", zeros, (size, size))
        self.diagonal = self.param("diagonal", nn.initializers.ones, (self.num_items,))
        self.by_item = self.train.transposed()  # under jit, computed only where it is used

    def score(self, users: chex.Array, items: chex.Array) -> jax.Array:
        """Returns the scores of pairs (user, item), from two integer arrays that broadcast, see `Recommender`.

        A pair costs as much as the largest number of interactions of any of `items`, or of `users`.
        """
        chex.assert_equal_rank([users, items])
        if not self.dual:
            return sum_entries(self.matrix, self.train, users, items)
        sums = sum_entries(self.matrix, self.by_item, items, users)
        return self._less(was_seen(self.train, users, items), sums, items)

    def score_all(self, users: chex.Array) -> jax.Array:
        """Returns the scores `[n, num_items]` of every item for the users `[n]`."""
        chex.assert_rank(users, 1)
        if not self.dual:
            return sum_of_items(users, self.matrix, self.train)
        items = jnp.arange(self.num_items)[None, :]
        seen = seen_mask(self.train, users)
        return self._less(seen, sum_onto_items(self.matrix[users], self.train), items)

    def _less(self, seen: jax.Array, sums: jax.Array, items: chex.Array) -> jax.Array:
        return seen.astype(sums.dtype) - sums / self.diagonal[items]

    def represent(self, users: chex.Array, items: chex.Array) -> tuple[jax.Array, jax.Array]:
        raise NotImplementedError("EASE has no representations")

    def loss(self, users: chex.Array, positives: chex.Array, negatives: chex.Array, where: chex.Array) -> jax.Array:
        raise NotImplementedError("EASE is fitted in closed form")


@struct.dataclass
class Context:
    """The solution, as `fit_ease` returns it, and lambda."""

    params: dict[str, jax.Array]
    regularization: jax.Array


@dataclasses.dataclass(frozen=True)
class EASESettings(ModelSettings):
    """Settings of EASE, a linear model of items on items (Steck, WWW'19)."""

    regularization: Annotated[float, Gt(0)] = 200.0
    """Lambda, the weight of the L2 penalty. The width of the tables does not apply: there are none."""

    module: ClassVar[type[Recommender]] = EASE
    label: ClassVar[str] = "EASE"
    epochs: ClassVar[int] = 1
    closed_form: ClassVar[bool] = True
    teacher_only: ClassVar[bool] = True

    def build(self, train: Interactions, dim: int) -> EASE:
        return EASE(train.num_users, train.num_items, train)

    def check_size(self, train: Interactions) -> None:
        check_size(train)

    def same_module(self) -> ModelSettings:
        return EASESettings()

    def solver(self) -> Solver:
        return Solver(self._prepare, _solved)

    def _prepare(self, train: Interactions, labels: Labels | None) -> Context:
        return Context(fit_ease(train, self.regularization), jnp.asarray(self.regularization, jnp.float32))


def _solved(variables: Any, context: Context) -> tuple[Any, jax.Array]:
    """Returns the solution, and |X - XB|^2 + lambda |B|^2: by the columns of B, the sum of 1 / P_ii - lambda."""
    return {"params": context.params}, jnp.sum(1 / context.params["diagonal"] - context.regularization)


def check_size(train: Interactions) -> None:
    """Raises UserError if EASE's matrix for these interactions would be larger than `MOST`."""
    if (size := min(train.num_users, train.num_items)) > MOST:
        raise UserError(
            f"EASE inverts a matrix of {size} x {size}, the smaller number of users and items; at most {MOST} are "
            "supported, so choose another model, such as ials"
        )


def fit_ease(train: Interactions, regularization: float) -> dict[str, jax.Array]:
    """Returns the parameters of `EASE`.

    Cost, with n the smaller number of users and items: n^3 multiplications and additions, and memory for three
    matrices of n x n.

    Raises:
      UserError: if the matrix is singular in float32.
    """
    dual = train.num_users < train.num_items
    matrix = gram(train, of_users=dual)
    matrix[np.diag_indices(len(matrix))] += regularization
    try:
        found = jnp.asarray(inverse(matrix))
    except np.linalg.LinAlgError:
        raise UserError("EASE's matrix is singular in float32; raise `regularization`") from None
    if dual:
        return {"inverse": found, "diagonal": (1 - _own_sums(found, train)) / regularization}
    return {"weights": _weights(found), "diagonal": jnp.diag(found)}


@jax.jit
def _own_sums(matrix: jax.Array, train: Interactions) -> jax.Array:
    """Returns the sum of a matrix `[num_users, num_users]` over the pairs of users of each item: `[num_items]`."""
    by_item = train.transposed()
    blocks = in_blocks(jnp.arange(len(train)), PAIRS)
    own = jax.lax.map(lambda at: sum_entries(matrix, by_item, by_item.users[at], by_item.items[at]), blocks)
    return jnp.zeros(train.num_items, matrix.dtype).at[by_item.users].add(own.ravel()[: len(train)])


@jax.jit
def _weights(matrix: jax.Array) -> jax.Array:
    """Returns B from P."""
    ids = jnp.arange(len(matrix))
    return jnp.where(ids[:, None] == ids, 0, -matrix / jnp.diag(matrix))
