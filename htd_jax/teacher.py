"""Teachers: values that have representations, or scores, or lists, or several of these."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from htd_jax.data import Interactions, seen_mask, was_seen
from htd_jax.ensembles import LISTED, Stages, ensemble_lists, join_stages
from htd_jax.errors import UserError
from htd_jax.models import BPRSettings, MakeModel, ModelOf, Representations, ScoreAll
from htd_jax.ops.largest import top_k
from htd_jax.ops.mapped import map_rows
from htd_jax.ops.products import dot
from htd_jax.ops.rows import safe_divisor
from htd_jax.ops.shards import look_up

# Scores that a teacher computes at once: 16 MiB.
SCORES = 2**22

# The root-mean-square length of the rows that methods regress. Those of a BPR teacher on CiteULike have 3.1 and 1.5, so
# that the published weights of these methods keep their meaning.
USER_LENGTH, ITEM_LENGTH = 3.0, 1.5


class Lists(NamedTuple):
    """A ranked list of items per user, the best first.

    Attributes:
      items: `[num_users, k]` int32, -1 where a user has fewer.
      scores: `[num_users, k]` floats; None if unknown.
    """

    items: jax.Array
    scores: jax.Array | None = None


class Memory(NamedTuple):
    """The best items of earlier models, which a model that learns new data keeps, see `htd_jax.distillers.Replay`.

    Attributes:
      items: `[models, num_users, m]` int32, the best first, -1 where a user has fewer.
      logits: `[models, num_users, m]` floats, the models' scores of these.
      behind: `[models, num_users, m]` int32: how much lower the model that learns ranks the item at the start.
    """

    items: jax.Array
    logits: jax.Array
    behind: jax.Array

    def first(self, size: int) -> "Memory":
        """Returns the `size` best items of each user."""
        return Memory(*(x[:, :, :size] for x in self))


@struct.dataclass
class Teacher:
    """A teacher, as a method sees it. A method declares what it needs, see `Distiller.needs`.

    Attributes:
      representations: the representations of users and items.
      scores: users `[n]` -> scores `[n, num_items]`, a pytree (`jax.tree_util.Partial`), which need not be products of
        the representations.
      lists: every user's best items; `top` computes them from scores if there are none.
      memory: what earlier models remember.
      stages: what it ranked best at some moments of its training, or what several teachers did, see `combine`;
        `staged` makes one stage of lists or scores if there are none.
    """

    representations: Representations | None = None
    scores: Callable[[jax.Array], jax.Array] | None = None
    lists: Lists | None = None
    memory: Memory | None = None
    stages: Stages | None = None

    @classmethod
    def of(cls, teacher: "Teacher | Representations | Lists | None") -> "Teacher":
        """Returns a `Teacher` of representations, whose scores are their products, of lists, or of nothing.

        Raises:
          TypeError: if `teacher` has another type.
          UserError: if its representations or lists are no arrays of numbers, or hold some too large for float32.
        """
        if teacher is None:
            return cls()
        if isinstance(teacher, Teacher):
            tables, lists = teacher.representations, teacher.lists
            lists = lists and _list_arrays(lists)
            return cls(tables and _arrays(tables), teacher.scores, lists, teacher.memory, teacher.stages)
        if isinstance(teacher, Lists):
            return cls(lists=_list_arrays(teacher))
        if isinstance(teacher, Representations):
            teacher = _arrays(teacher)
            return cls(representations=teacher, scores=jax.tree_util.Partial(_products, *teacher))
        raise TypeError(f"expected a Teacher, its Representations or its Lists, not {type(teacher).__name__}")

    @property
    def inner_product(self) -> bool:
        """Whether it has representations, and no scores but their products."""
        scorer = getattr(self.scores, "func", None)
        return self.representations is not None and (self.scores is None or scorer is _products)

    @property
    def dim(self) -> int:
        """The width of the representations, 0 if there are none."""
        return self.representations.users.shape[1] if self.representations else 0

    def hints(self) -> Representations:
        """Returns the representations for methods that regress them or compute with their size.

        Each table is multiplied by one number, so that its rows have a root-mean-square length of `USER_LENGTH` or
        `ITEM_LENGTH`: neither a teacher's scale nor how users and items share it changes what a student learns.
        """
        if self.representations is None:
            raise ValueError("a teacher without representations")
        users, items = self.representations
        return Representations(scale_rows(users, USER_LENGTH), scale_rows(items, ITEM_LENGTH))

    def has(self, need: str) -> bool:
        """Returns whether it has `representations`, `scores`, `memory`, `lists`, which scores imply, or `stages`, which
        either implies."""
        if need == "stages":
            return self.stages is not None or self.has("lists")
        return getattr(self, need) is not None or (need == "lists" and self.scores is not None)

    def check(self, train: Interactions, needs: tuple[str, ...] = ()) -> None:
        """Raises UserError if it lacks one of `needs`, has other numbers of users or items than `train`, or holds
        numbers that are not finite, or whose products are not, in float32."""
        for need in needs:
            if not self.has(need):
                has = [name for name in ("representations", "scores", "lists", "memory") if self.has(name)]
                given = f"only {' and '.join(has)}" if has else "none"
                raise UserError(f"the method needs the teacher's {need}, but this teacher has {given}")
        sizes = {"users": train.num_users, "items": train.num_items}
        if self.representations is not None:
            for name, table in self.representations._asdict().items():
                if table.ndim != 2 or len(table) != sizes[name]:
                    shape = list(table.shape)
                    raise UserError(f"the teacher's {name} have shape {shape}, but the data has {sizes[name]} {name}")
            if self.representations.users.shape[1] != self.representations.items.shape[1]:
                raise UserError("the teacher's users and items are of different widths")
        if self.lists is not None and (self.lists.items.ndim != 2 or len(self.lists.items) != sizes["users"]):
            shape = list(self.lists.items.shape)
            raise UserError(f"the teacher's lists have shape {shape}, but the data has {sizes['users']} users")
        if self.stages is not None:
            shape = list(self.stages.items.shape)
            if len(shape) != 4 or shape[2] != sizes["users"] or list(self.stages.deviations.shape) != shape:
                raise UserError(
                    f"the teacher's stages have shape {shape} and deviations of shape "
                    f"{list(self.stages.deviations.shape)}; both must be [teachers, stages, {sizes['users']} users, k]"
                )
        _check_numbers(self, train.num_items)

    def learner(self) -> tuple[MakeModel, Any]:
        """Returns the teacher as a model that can be trained further: what makes its module, and its variables.

        This is its own model if its scores are a model's, and a BPR model of its representations if its scores are
        their products.

        Raises:
          UserError: if it is neither.
        """
        scorer = getattr(self.scores, "func", None)
        if isinstance(scorer, ScoreAll):
            return scorer.make_model, self.scores.args[0]  # type: ignore[union-attr]
        if self.representations is None or not self.inner_product:
            raise UserError(
                "a teacher that is trained further must be a model, or representations whose inner products are its "
                "scores"
            )
        return ModelOf(BPRSettings(), self.dim), {"params": self.representations._asdict()}

    def top(self, train: Interactions, k: int) -> jax.Array:
        """Returns the `k` best unseen items of each user, the best first.

        They are taken from the lists if there are any, which may be shorter or contain seen items; else from the
        scores, by blocks of users, so that no users x items array is formed. Equal scores are in the order of items.

        Returns:
          `[num_users, k]` int32, -1 where there are fewer.
        """
        k = min(k, train.num_items)
        if self.lists is not None:
            return _unseen(self.lists.items, train, k)
        assert self.scores is not None, "a teacher with neither lists nor scores"
        scores = self.scores

        def rank_block(users: jax.Array) -> jax.Array:
            values, items = top_k(jnp.where(seen_mask(train, users), -jnp.inf, scores(users)), k)
            return jnp.where(values > -jnp.inf, items, -1).astype(jnp.int32)

        best: jax.Array = map_rows(rank_block, train.num_users, SCORES // train.num_items)
        return best

    def staged(self, train: Interactions) -> Stages:
        """Returns its stages; a single one, without deviations, of its `LISTED` best unseen items if it has none."""
        stages: Stages = _staged(self, train)
        return stages

    def score(self, items: jax.Array) -> jax.Array:
        """Returns the scores of some items per user, `[num_users, m]` like `items`, arbitrary where an item is -1.

        Computed by blocks of users; for these items alone if scores are products of representations.
        """
        assert self.scores is not None, "a teacher without scores"
        scores, tables, num_users = self.scores, self.representations if self.inner_product else None, len(items)

        def score_block(users: jax.Array) -> jax.Array:
            own = jnp.maximum(items[users], 0)
            if tables is None:
                return jnp.take_along_axis(scores(users), own, axis=1)
            return jnp.sum(tables.users[users][:, None] * tables.items[own], axis=2)

        per_user = items.shape[1] * self.dim if tables else jax.eval_shape(scores, jnp.zeros(1, jnp.int32)).shape[1]
        scored: jax.Array = map_rows(score_block, num_users, SCORES // max(per_user, 1))
        return scored

    def top_users(self, train: Interactions, k: int) -> jax.Array:
        """Returns the `k` users with the best scores of each item among those who have not seen it, the best first.

        Computed by blocks of users: each item's best so far are ranked with the next block, so that no users x items
        array is formed. Equal scores are in the order of users.

        Returns:
          `[num_items, k]` int32, -1 where there are fewer.
        """
        assert self.scores is not None, "a teacher without scores ranks no users"
        scores, k = self.scores, min(k, train.num_users)
        width = max(1, min(train.num_users, 4 * SCORES // train.num_items))
        blocks = -(-train.num_users // width)

        def merge(best: tuple[jax.Array, jax.Array], users: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            block = jnp.minimum(users, train.num_users - 1)
            hidden = seen_mask(train, block) | (users >= train.num_users)[:, None]
            values = jnp.concatenate([best[0], jnp.where(hidden, -jnp.inf, scores(block)).T], axis=1)
            ids = jnp.concatenate([best[1], jnp.broadcast_to(users, (train.num_items, width))], axis=1)
            values, positions = top_k(values, k)
            return (values, jnp.take_along_axis(ids, positions, axis=1)), None

        none = jnp.full((train.num_items, k), -jnp.inf), jnp.full((train.num_items, k), -1, jnp.int32)
        users = jnp.arange(blocks * width, dtype=jnp.int32).reshape(blocks, width)
        (values, best), _ = jax.lax.scan(merge, none, users)
        return jnp.where(values > -jnp.inf, best, -1)


def combine(teachers: "Sequence[Teacher]", train: Interactions) -> Teacher:
    """Returns several teachers as one: its stages are theirs, and its lists are the ensemble's at the last stage, see
    `htd_jax.ensembles.ensemble_lists`.

    A teacher without stages counts as one that never changed.

    Raises:
      UserError: if there is none, one lacks both scores and lists, or two have different numbers of stages.
    """
    if not teachers:
        raise UserError("no teacher is given; a list of teachers needs at least one")
    for teacher in teachers:
        teacher.check(train, ("stages",))
    stages = join_stages([teacher.staged(train) for teacher in teachers])
    last = jnp.full((len(stages.items), train.num_users), stages.number - 1)
    return Teacher(lists=Lists(jax.jit(ensemble_lists)(stages, last)), stages=stages)


@jax.jit
def _staged(teacher: Teacher, train: Interactions) -> Stages:
    if teacher.stages is not None:
        return teacher.stages.unseen(train)
    return Stages.of_lists(teacher.top(train, LISTED))


# The limits of products of a teacher's rows: float32's, with room for their sums and differences.
SMALLEST, LARGEST = 1e-31, 1e31


def _check_numbers(teacher: Teacher, num_items: int) -> None:
    """Raises UserError if the teacher holds a number that is not finite in float32, tables whose products are too large
    or too small for it, or lists of unknown items. Traced arrays pass: they were checked before."""
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(teacher)):
        return
    if (tables := teacher.representations) is not None:
        most_users, most_items = (_largest(f"the teacher's {name}", table) for name, table in tables._asdict().items())
        product = most_users * most_items * tables.users.shape[1]
        if teacher.inner_product and not (product == 0 or SMALLEST < product < LARGEST):
            raise UserError(
                f"the teacher's scores would not be finite in float32, or all 0: users up to {most_users:.3g}, "
                f"items up to {most_items:.3g}; multiply a table by a constant, which changes no ranking"
            )
    if teacher.lists is not None:
        check_lists(teacher.lists, num_items)
        ordered = np.sort(np.asarray(teacher.lists.items), axis=1)
        again = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
        if again.any():
            row, place = np.argwhere(again)[0]
            raise UserError(
                f"the teacher's lists hold item {ordered[row, place]} twice in row {row}, counted from 0; give each "
                "item once, and -1 for none"
            )
    if teacher.stages is not None:
        check_lists(Lists(teacher.stages.items.reshape(-1, teacher.stages.items.shape[3])), num_items)
        _largest("the deviations of the teacher's stages", teacher.stages.deviations.reshape(1, -1))
    if teacher.lists is not None and teacher.lists.scores is not None:
        items, scores = np.asarray(teacher.lists.items), np.asarray(teacher.lists.scores)
        if items.shape != scores.shape:
            raise UserError(
                f"the teacher's lists have items of shape {list(items.shape)}, but scores of shape {list(scores.shape)}"
            )
        _largest("the scores of the teacher's lists", np.where(items >= 0, scores, 0))
    if not teacher.inner_product:
        for leaf in jax.tree.leaves(teacher.scores):
            if jnp.issubdtype(getattr(leaf, "dtype", int), jnp.floating) and np.isnan(leaf).any():
                raise UserError("the teacher's scores are computed from numbers that are not finite (nan)")


def _arrays(tables: Representations) -> Representations:
    """Returns tables of any array-likes of numbers as JAX arrays: a NumPy array takes no traced index."""
    made = {}
    for name, table in tables._asdict().items():
        if not isinstance(table, jax.Array):
            table = _numbers(f"the teacher's {name}", table)
            if table.dtype.kind in "iub":
                table = table.astype(np.float32)
            with np.errstate(over="ignore"):
                large = table.dtype == np.float64 and np.isfinite(table) & ~np.isfinite(table.astype(np.float32))
            if np.any(large):
                at = tuple(np.argwhere(large)[0])
                raise UserError(
                    f"the teacher's {name} hold numbers that are not finite in float32: {table[at]:g} in row {at[0]}, "
                    "counted from 0"
                )
        made[name] = jnp.asarray(table)
    return Representations(**made)


def _list_arrays(lists: Lists) -> Lists:
    """Returns lists of any array-likes of numbers as arrays."""
    items, scores = lists
    items = items if isinstance(items, jax.Array) else _numbers("the teacher's lists", items)
    if scores is not None and not isinstance(scores, jax.Array):
        scores = _numbers("the scores of the teacher's lists", scores)
    return Lists(items, scores)  # type: ignore[arg-type]


def _numbers(name: str, values: Any) -> np.ndarray:
    """Returns an array of numbers.

    Raises:
      UserError: if it holds something else, or rows of unequal lengths.
    """
    try:
        array = np.asarray(values)
        array = array.astype(np.float64) if array.dtype.kind == "O" else array
    except (ValueError, TypeError, OverflowError):
        raise UserError(f"{name} are no array of numbers; all rows must be of one length") from None
    if array.dtype.kind in "SUMmc":
        raise UserError(f"{name} hold {array.dtype}, not numbers")
    return array


def _largest(name: str, table: Any) -> float:
    """Returns the largest absolute number of a table `[n, d]`, in float32.

    Raises:
      UserError: if a number is not finite.
    """
    with np.errstate(over="ignore"):
        numbers = np.asarray(table).astype(np.float32, copy=False)
    largest = max(float(numbers.max(initial=0)), -float(numbers.min(initial=0)))
    if not np.isfinite(largest):
        row, column = np.argwhere(~np.isfinite(numbers))[0]
        raise UserError(
            f"{name} hold numbers that are not finite in float32: {np.asarray(table)[row, column]} in row {row}, "
            "counted from 0"
        )
    return largest


def scale_rows(table: jax.Array, length: float) -> jax.Array:
    """Multiplies a table `[n, d]` by the number that gives its rows a root-mean-square length of `length`; a table of
    zeros stays as it is.

    It is first divided by its largest number, so that squares neither overflow nor vanish, and a power of two as the
    table's scale changes no bit.

    >>> scale_rows(jnp.array([[0, 3e30], [4e30, 0]]), 5.0).round().tolist()
    [[0.0, 4.0], [6.0, 0.0]]
    """
    largest = jnp.max(jnp.abs(table), initial=0)
    table = table / safe_divisor(largest)
    square = jnp.sum(table**2) / max(len(table), 1)
    return table * jnp.where(square > 0, length / jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _products(users_table: jax.Array, items_table: jax.Array, users: jax.Array) -> jax.Array:
    return dot(look_up(users_table, users), items_table.T)


_products.divided = True  # type: ignore[attr-defined]  # it takes shards of the tables, see `htd_jax.ops.shards`


def _unseen(items: jax.Array, train: Interactions, k: int) -> jax.Array:
    """Removes seen items from lists, and cuts them, or pads them with -1, to `[num_users, k]`."""
    items = jnp.asarray(items, jnp.int32)
    unseen = (items >= 0) & ~was_seen(train, jnp.arange(train.num_users)[:, None], items)
    place = jnp.where(unseen, jnp.cumsum(unseen, axis=1) - 1, k)
    return jnp.full((len(items), k), -1, jnp.int32).at[jnp.arange(len(items))[:, None], place].set(items, mode="drop")


def check_lists(lists: Lists, num_items: int) -> None:
    """Raises UserError if an item is neither -1 nor in [0, num_items), and AssertionError if the rank is wrong."""
    chex.assert_rank(lists.items, 2)
    items = np.asarray(lists.items)
    if items.dtype.kind not in "iu":
        raise UserError(f"the teacher's lists hold {items.dtype}, not integers")
    if items.size and not (-1 <= items.min() and items.max() < num_items):
        raise UserError(f"the teacher's lists hold items from {items.min()} to {items.max()}, the data has {num_items}")
