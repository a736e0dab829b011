"""What a teacher is: a value that has representations, or scores, or lists, or several of these."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from htd_jax.data import Interactions, seen_mask, was_seen
from htd_jax.errors import UserError
from htd_jax.models import BPRSettings, MakeModel, ModelOf, Representations, ScoreAll
from htd_jax.ops.mapped import map_rows
from htd_jax.ops.products import dot

# Scores that `Teacher.top` holds at once: 16 MiB of them.
SCORES = 2**22


class Lists(NamedTuple):
    """Every user's items, the best first.

    Attributes:
      items: `[num_users, k]` int32, -1 where a user has fewer.
      scores: `[num_users, k]` floats, if they are known.
    """

    items: jax.Array
    scores: jax.Array | None = None


@struct.dataclass
class Teacher:
    """What is known of a teacher. A method says what it needs, see `Distiller.needs`.

    Attributes:
      representations: of users and items.
      scores: users `[n]` -> scores `[n, num_items]`, a pytree (`jax.tree_util.Partial`): a NeuMF teacher's scores are
        no product of representations.
      lists: every user's best items. `top` makes them of scores.
    """

    representations: Representations | None = None
    scores: Callable[[jax.Array], jax.Array] | None = None
    lists: Lists | None = None

    @classmethod
    def of(cls, teacher: "Teacher | Representations | Lists | None") -> "Teacher":
        """A teacher of what there is of one: of representations, whose scores are their products; of lists; of nothing.

        Raises:
          TypeError: anything else.
        """
        if teacher is None:
            return cls()
        if isinstance(teacher, Teacher):
            return teacher
        if isinstance(teacher, Lists):
            return cls(lists=teacher)
        if isinstance(teacher, Representations):
            return cls(representations=teacher, scores=jax.tree_util.Partial(_products, *teacher))
        raise TypeError(f"expected a Teacher, its Representations or its Lists, not {type(teacher).__name__}")

    @property
    def dim(self) -> int:
        """The width of its representations, 0 if it has none."""
        return self.representations.users.shape[1] if self.representations else 0

    def has(self, need: str) -> bool:
        """Whether it has `representations`, `scores` or `lists`; scores make lists."""
        return getattr(self, need) is not None or (need == "lists" and self.scores is not None)

    def check(self, train: Interactions, needs: tuple[str, ...] = ()) -> None:
        """Raises UserError if it lacks what is needed, or was made for other numbers of users or items."""
        for need in needs:
            if not self.has(need):
                has = [name for name in ("representations", "scores", "lists") if self.has(name)]
                raise UserError(f"the method needs a teacher's {need}, and this one has {' and '.join(has) or 'none'}")
        sizes = {"users": train.num_users, "items": train.num_items}
        if self.representations is not None:
            for name, table in self.representations._asdict().items():
                if table.ndim != 2 or len(table) != sizes[name]:
                    raise UserError(f"the teacher's {name} are {list(table.shape)}, the data has {sizes[name]} {name}")
            if self.representations.users.shape[1] != self.representations.items.shape[1]:
                raise UserError("the teacher's users and items are of different widths")
        if self.lists is not None and (self.lists.items.ndim != 2 or len(self.lists.items) != sizes["users"]):
            shape = list(self.lists.items.shape)
            raise UserError(f"the teacher's lists are {shape}, the data has {sizes['users']} users")

    def learner(self) -> tuple[MakeModel, Any]:
        """The teacher as a model that can be trained on: what makes its module, and its variables.

        Of representations whose products are its scores this is a BPR model of their tables, whatever model they came
        from; of a model that scores otherwise, it is that model.

        Raises:
          UserError: it has no representations, or its scores are neither their products nor those of a model.
        """
        of = getattr(self.scores, "func", None)
        if isinstance(of, ScoreAll):
            return of.make_model, self.scores.args[0]  # type: ignore[union-attr]
        if self.representations is None or (self.scores is not None and of is not _products):
            raise UserError("a teacher that learns must be a model, or representations whose products are its scores")
        return ModelOf(BPRSettings(), self.dim), {"params": self.representations._asdict()}

    def top(self, train: Interactions, k: int) -> jax.Array:
        """The `k` best items that each user has not seen, the best first: `[num_users, k]` int32, -1 for none.

        From its lists if it has them, which may be shorter or hold seen items; else from its scores, some users at a
        time: no users x items array is held. Equal scores stand in the order of items.
        """
        k = min(k, train.num_items)
        if self.lists is not None:
            return _unseen(self.lists.items, train, k)
        assert self.scores is not None, "a teacher with neither lists nor scores"
        scores = self.scores

        def of_block(users: jax.Array) -> jax.Array:
            values, items = jax.lax.top_k(jnp.where(seen_mask(train, users), -jnp.inf, scores(users)), k)
            return jnp.where(values > -jnp.inf, items, -1).astype(jnp.int32)

        best: jax.Array = map_rows(of_block, train.num_users, SCORES // train.num_items)
        return best

    def score(self, items: jax.Array) -> jax.Array:
        """Its scores of some items of every user: `[num_users, m]`, as `items` are; of what is no item, any number.

        Some users at a time. Where scores are products of representations, of these items alone.
        """
        assert self.scores is not None, "a teacher without scores"
        scores, tables, num_users = self.scores, self.representations, len(items)
        if getattr(scores, "func", None) is not _products:
            tables = None

        def of_block(users: jax.Array) -> jax.Array:
            own = jnp.maximum(items[users], 0)
            if tables is None:
                return jnp.take_along_axis(scores(users), own, axis=1)
            return jnp.sum(tables.users[users][:, None] * tables.items[own], axis=2)

        a_user = items.shape[1] * self.dim if tables else jax.eval_shape(scores, jnp.zeros(1, jnp.int32)).shape[1]
        found: jax.Array = map_rows(of_block, num_users, SCORES // max(a_user, 1))
        return found

    def top_users(self, train: Interactions, k: int) -> jax.Array:
        """The `k` users with the best scores of each item, of those who have not seen it, the best first: `[num_items,
        k]` int32, -1 for none. Equal scores stand in the order of users.

        Some users at a time: each item's best so far and the next users are ranked together, so that no users x items
        array is held.
        """
        assert self.scores is not None, "a teacher without scores ranks no users"
        scores, k = self.scores, min(k, train.num_users)
        width = max(1, min(train.num_users, 4 * SCORES // train.num_items))
        blocks = -(-train.num_users // width)

        def merge(best: tuple[jax.Array, jax.Array], users: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            block = jnp.minimum(users, train.num_users - 1)
            hidden = seen_mask(train, block) | (users >= train.num_users)[:, None]
            values = jnp.concatenate([best[0], jnp.where(hidden, -jnp.inf, scores(block)).T], axis=1)
            known = jnp.concatenate([best[1], jnp.broadcast_to(users, (train.num_items, width))], axis=1)
            values, places = jax.lax.top_k(values, k)
            return (values, jnp.take_along_axis(known, places, axis=1)), None

        none = jnp.full((train.num_items, k), -jnp.inf), jnp.full((train.num_items, k), -1, jnp.int32)
        users = jnp.arange(blocks * width, dtype=jnp.int32).reshape(blocks, width)
        (values, best), _ = jax.lax.scan(merge, none, users)
        return jnp.where(values > -jnp.inf, best, -1)


def _products(users_table: jax.Array, items_table: jax.Array, users: jax.Array) -> jax.Array:
    return dot(users_table[users], items_table.T)


def _unseen(items: jax.Array, train: Interactions, k: int) -> jax.Array:
    """Lists without what their users have seen, moved up and cut, or filled up with -1, to `k`: `[num_users, k]`."""
    items = jnp.asarray(items, jnp.int32)
    kept = (items >= 0) & ~was_seen(train, jnp.arange(train.num_users)[:, None], items)
    order = jnp.argsort(~kept, axis=1, stable=True)
    items = jnp.take_along_axis(jnp.where(kept, items, -1), order, axis=1)[:, :k]
    return jnp.pad(items, [(0, 0), (0, k - items.shape[1])], constant_values=-1)


def check_lists(lists: Lists, num_items: int) -> None:
    """Raises UserError for an item outside [0, num_items) that is not -1, and AssertionError for a wrong rank."""
    chex.assert_rank(lists.items, 2)
    items = np.asarray(lists.items)
    if items.dtype.kind not in "iu":
        raise UserError(f"the teacher's lists hold {items.dtype}, not whole numbers")
    if items.size and not (-1 <= items.min() and items.max() < num_items):
        raise UserError(f"the teacher's lists hold items from {items.min()} to {items.max()}, the data has {num_items}")
