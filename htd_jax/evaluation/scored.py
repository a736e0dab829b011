"""A function that scores all items for users, evaluated like any model."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.data import Interactions
from htd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Scored:
    """A function of users as the protocols see a model. It is no Flax module, so that the function may make some.

    Attributes:
      scores: users `[n]` int32 -> scores `[n, num_items]`, traceable by JAX.
    """

    divided: ClassVar[bool] = False

    scores: Callable[[jax.Array], jax.Array]

    def score(self, users: chex.Array, items: chex.Array) -> jax.Array:
        """Returns the scores of pairs (user, item), from two integer arrays that broadcast, see `Recommender`."""
        chex.assert_equal_rank([users, items])
        rows, items = jnp.broadcast_arrays(jnp.arange(users.size).reshape(users.shape), items)
        return self.scores(users.ravel())[rows, items]

    def score_all(self, users: chex.Array) -> jax.Array:
        """Returns the scores `[n, num_items]` of every item for the users `[n]`."""
        chex.assert_rank(users, 1)
        return self.scores(users)


@dataclasses.dataclass(frozen=True)
class ScoredOf:
    """A `MakeModel` of `Scored`; equal if its function is."""

    scores: Callable[[jax.Array], jax.Array]

    def __call__(self, train: Interactions) -> Any:
        return Scored(self.scores)


def scored(scores: Callable[[Any], Any], train: Interactions) -> tuple[ScoredOf, dict[str, Any]]:
    """Returns a model of a function that scores all items for users, and its variables, which are none.

    Args:
      scores: takes rows of users `[n]` int32 and returns `[n, num_items]` numbers. A function of JAX is traced; any
        other, such as one of NumPy or PyTorch, is called on the host with NumPy arrays, block by block.
      train: the interactions, for their sizes.

    Raises:
      UserError: if it returns another shape.

    >>> import htd_jax
    >>> from htd_jax.evaluation import make_evaluator
    >>> split = htd_jax.data.make_synthetic(num_users=100, num_items=200)
    >>> counts = np.bincount(split.train.items, minlength=200)
    >>> model, variables = scored(lambda users: np.tile(counts, (len(users), 1)), split.train)
    >>> 0 < make_evaluator(split)(model, variables)["test"]["recall@50"] < 1
    Array(True, dtype=bool)
    """
    some = min(2, train.num_users)
    try:
        traced, shape = True, tuple(jax.eval_shape(scores, jax.ShapeDtypeStruct((some,), jnp.int32)).shape)
    except Exception:  # whatever a function of another library raises when it is given a tracer
        traced, shape = False, np.shape(scores(np.arange(some, dtype=np.int32)))
    if shape != (some, train.num_items):
        raise UserError(
            f"the scorer returns shape {list(shape)} for {some} users; it must return [users, {train.num_items}], the "
            "scores of every item"
        )
    if traced:
        return ScoredOf(lambda users: jnp.asarray(scores(users), jnp.float32)), {}

    def on_host(users: Any) -> np.ndarray:
        return np.asarray(scores(np.asarray(users)), np.float32)

    def call(users: jax.Array) -> jax.Array:
        result = jax.ShapeDtypeStruct((len(users), train.num_items), jnp.float32)
        returned: jax.Array = jax.pure_callback(on_host, result, users)
        return returned

    return ScoredOf(call), {}
