"""The interface of a distillation method: a few pure functions, and how methods compose.

A method is its settings, a `Method`, which makes a `Distiller`. Two examples of what the functions do:

- **RRD** learns rankings. `prepare` finds the teacher's best unseen items of every user; `refresh` samples some of them
  by rank in each epoch, and some of the other items; `loss` scores both with `step.batch.score`.
- **BD** trains two models, each from the other. `init` returns the teacher's variables, so that the same optimiser
  trains them in the same step; their own loss on `batch.triples` is a term of `loss`, and `second_model` returns the
  model for evaluation. `every` calls `refresh`, which ranks with both models, once in ten epochs. The settings declare
  `warm_start`: the student starts where the plain student ended.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
from flax import struct

from htd_jax.data import Interactions, seen_mask
from htd_jax.losses.checks import keep_rows
from htd_jax.models import MakeModel, Recommender
from htd_jax.ops.eager import sum_over_blocks
from htd_jax.ops.shards import first_row, is_shard
from htd_jax.teacher import Teacher

# Scores that `sum_over_users` computes at once, about as many as fit a core's cache, and scores that it may keep.
SCORES, HELD = 2**20, 2**23

Params = Any
Context = Any
Sampled = Any
Terms = dict[str, jax.Array]


class Side(NamedTuple):
    """The users, or the items, of a batch.

    Attributes:
      student: `[n, d_s]`, the representations being trained.
      teacher: `[n, d_t]`, the teacher's representations of the same entities, see `Teacher.hints`; `[n, 0]` if it has
        none.
      where: `[n]` bool, False where an entity repeats an earlier one and does not count.
      ids: `[n]` int32, which users or items they are.
      parts: student and teacher, on a mesh with zeros in the rows that another device holds in the teacher's table. A
        loss that is a function of sums over rows can be computed from them, and does not move the teacher's rows.
    """

    student: jax.Array
    teacher: jax.Array
    where: jax.Array
    ids: jax.Array
    parts: tuple[jax.Array, jax.Array] | None = None

    def masked(self) -> "Side":
        """Returns the side with masked rows zeroed and the teacher a constant, so that layers may be applied to it
        before a loss masks their output."""
        teacher = jax.lax.stop_gradient(keep_rows(self.teacher, self.where))
        return self._replace(student=keep_rows(self.student, self.where), teacher=teacher)


class Entities(NamedTuple):
    """The entities of a batch, each once per side.

    Attributes:
      users: the users of all triples.
      items: the seen and the unseen items together.
      positives: the seen items.
      negatives: the sampled unseen items.
    """

    users: Side
    items: Side
    positives: Side
    negatives: Side

    def together(self) -> Side:
        """Returns users and items as one set; its ids are ambiguous."""
        return concatenate(self.users, self.items)


def concatenate(*sides: Side) -> Side:
    """Returns the rows of all sides, one side after the other."""
    joined: Side = jax.tree.map(lambda *parts: jnp.concatenate(parts), *sides)
    return joined


class Triples(NamedTuple):
    """A batch of triples: `[n]` int32 users, seen and unseen items; `where` is False past the last triple."""

    users: jax.Array
    positives: jax.Array
    negatives: jax.Array
    where: jax.Array


class Batch(NamedTuple):
    """A batch as a method sees it. Attributes that a method does not read cost nothing.

    Attributes:
      entities: the batch's users and items with their representations.
      triples: the batch as it was sampled.
      score: `(users, items) -> scores`, the student's differentiable scores of the pairs of two integer arrays that
        broadcast (users `[n, 1]` with items `[n, m]`), at the cost of these pairs alone.
      score_all: `users [n] -> scores [n, num_items]`, differentiable; for few users at a time, see `htd_jax.ops.eager`.
      represent: `(users [n], items [m]) -> ([n, d_s], [m, d_s])`, the student's differentiable representations of any
        users and items, inside or outside the batch.
      all_scores: `() -> scores`, `score_all` of the batch's users, computed once for every caller; for batches of few
        users, see `sum_over_users`.
      score_each: `(users [n], items [m]) -> scores [n, m]`, differentiable, of all pairs.
    """

    entities: Entities
    triples: Triples
    score: Callable[[jax.Array, jax.Array], jax.Array]
    score_all: Callable[[jax.Array], jax.Array] = lambda users: jnp.zeros((len(users), 0))
    represent: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]] = lambda users, items: (
        jnp.zeros((len(users), 0)),
        jnp.zeros((len(items), 0)),
    )
    all_scores: Callable[[], jax.Array] | None = None
    score_each: Callable[[jax.Array, jax.Array], jax.Array] = lambda users, items: jnp.zeros((len(users), len(items)))


def sum_over_users(
    batch: Batch,
    loss_for_block: Callable[[jax.Array, tuple[jax.Array, jax.Array]], jax.Array],
    num_items: int,
    some: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Returns the sum of `loss_for_block(scores, (ids, where))` over blocks of a batch's users.

    If the scores of all of its users fit in memory, the users are one block, and their scores are computed once for
    every caller; else see `htd_jax.ops.eager.sum_over_blocks`.

    Args:
      batch: the batch.
      loss_for_block: returns a scalar, from the student's scores `[b, num_items]`, the ids `[b]` of the users and a
        mask `[b]` of those that count.
      num_items: the number of items.
      some: the ids and the mask of a sample of the users; all users if None.
    """
    users = batch.entities.users
    ids, where = (users.ids, users.where) if some is None else some
    if some is None and batch.all_scores is not None and len(ids) * num_items <= HELD:
        return loss_for_block(batch.all_scores(), (ids, where))
    blocks = -(-len(ids) // max(1, SCORES // num_items))
    return sum_over_blocks(batch.score_all, loss_for_block, ids, (ids, where), -(-len(ids) // blocks))


def item_masks(
    scores: jax.Array, train: Interactions, users: jax.Array, where: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns which items users `[n]` have seen, `[n, m]`, and the mask of scores `[n, m]` that a loss takes: `where`
    `[n]` or, of scores that are split by columns, `[n, m]`, without the columns that pad them."""
    if not is_shard(scores):
        return seen_mask(train, users), where
    first, size = first_row(scores, axis=1), scores.shape[1]
    real = first + jnp.arange(size) < train.num_items
    return seen_mask(train, users, first=first, size=size), where[:, None] & real[None, :]


class Shapes(NamedTuple):
    """The student's sizes: the number of users, the number of items, and the width of its representations."""

    num_users: int
    num_items: int
    dim: int


class Step(NamedTuple):
    """One training step, as a method's loss sees it.

    Attributes:
      params: the method's own parameters, from `init`.
      context: the result of `prepare`.
      sampled: the result of the last `refresh`.
      batch: the batch.
      key: a random key, different in every step.
      epoch: int32 scalar, the number of the epoch from 0, traced.
    """

    params: Params
    context: Context
    sampled: Sampled
    batch: Batch
    key: chex.PRNGKey
    epoch: jax.Array


class EpochStart(NamedTuple):
    """The start of an epoch, as a method's `refresh` sees it.

    Attributes:
      params: the method's own parameters.
      context: the result of `prepare`.
      sampled: the result of the previous `refresh`: zeros before the first, None when only its shape is evaluated.
      student: the student's module, bound to its current variables.
      key: a random key, different in every epoch.
      epoch: int32 scalar, the number of the epoch from 0, traced.
    """

    params: Params
    context: Context
    sampled: Sampled
    student: Recommender
    key: chex.PRNGKey
    epoch: jax.Array


class RowIds(NamedTuple):
    """Rows of the student's tables: `[n]` and `[m]` int32, in any order, repeated or not; None for all rows."""

    users: jax.Array | None
    items: jax.Array | None

    @classmethod
    def of_items(cls, *items: jax.Array) -> "RowIds":
        """Returns the rows of items, from arrays of any shapes; -1 stands for 0, as in scores of none."""
        return cls(jnp.zeros(0, jnp.int32), jnp.concatenate([jnp.maximum(ids, 0).ravel() for ids in items]))

    def __add__(self, other: "RowIds") -> "RowIds":  # type: ignore[override]
        """Returns the rows of both."""
        both = ((x, y) for x, y in zip(self, other))
        return RowIds(*(None if x is None or y is None else jnp.concatenate([x, y]) for x, y in both))


class Init(Protocol):
    """Returns the parameters that a method learns in addition to the student's."""

    def __call__(self, key: chex.PRNGKey, student: Shapes, context: Context, /) -> Params: ...


class Prepare(Protocol):
    """Called once before training, uncompiled; its result is passed to the other functions as `context`."""

    def __call__(self, teacher: Teacher, train: Interactions, /) -> Context: ...


class Refresh(Protocol):
    """Called at the start of each epoch, compiled; its result, such as sampled items, is passed to `loss` as
    `step.sampled`, and is part of the checkpoint."""

    def __call__(self, start: EpochStart, /) -> Sampled: ...


class Loss(Protocol):
    """Returns a scalar to add to the base model's loss, and its named terms for the log."""

    def __call__(self, step: Step, /) -> tuple[jax.Array, Terms]: ...


class Reads(Protocol):
    """Returns the rows of the student that `loss` scores or represents, in addition to those of the batch's triples.

    They follow from what is sampled, never from the student's numbers. A step updates these rows alone.
    """

    def __call__(self, context: Context, sampled: Sampled, triples: Triples, key: chex.PRNGKey, /) -> RowIds: ...


class SecondModel(Protocol):
    """Returns a second recommender that is trained with the student: what makes its module, and its variables."""

    def __call__(self, params: Params, context: Context, /) -> tuple[MakeModel, Any]: ...


def no_params(key: chex.PRNGKey, student: Shapes, context: Context) -> Params:
    """Returns no parameters: the `init` of a method that has none."""
    return {}


def teacher_as_context(teacher: Teacher, train: Interactions) -> Teacher:
    """Returns the teacher: the `prepare` of a method whose context it is."""
    return teacher


@struct.dataclass
class Width:
    """The width of a teacher's representations, for methods that read these in batches alone."""

    dim: int = struct.field(pytree_node=False)


def width_as_context(teacher: Teacher, train: Interactions) -> Width:
    """Returns the teacher's width: the `prepare` of a method that needs no more than a batch's `Side.teacher`."""
    return Width(teacher.dim)


def no_rows(context: Context, sampled: Sampled, triples: Triples, key: chex.PRNGKey) -> RowIds:
    """Returns no rows: the `reads` of a method that reads the batch's entities alone."""
    return RowIds(jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.int32))


def all_rows(context: Context, sampled: Sampled, triples: Triples, key: chex.PRNGKey) -> RowIds:
    """Returns all rows: the `reads` of a method that may read any."""
    return RowIds(None, None)


def all_items(context: Context, sampled: Sampled, triples: Triples, key: chex.PRNGKey) -> RowIds:
    """Returns the rows of all items: the `reads` of a method that scores all items for the batch's users."""
    return RowIds(jnp.zeros(0, jnp.int32), None)


def nothing_sampled(start: EpochStart) -> Sampled:
    """Returns an empty tuple: the `refresh` of a method that samples nothing."""
    return ()


class Distiller(NamedTuple):
    """A method of distillation: pure functions, traced into the compiled epoch.

    Attributes:
      init: see `Init`.
      loss: see `Loss`.
      refresh: see `Refresh`.
      prepare: see `Prepare`.
      needs: what a teacher must have, of `representations`, `scores` and `lists`; a teacher without it is refused.
      second_model: see `SecondModel`; None for most methods.
      reads: see `Reads`; all rows unless it says otherwise.
      divided: whether devices may divide the context's and the samples' arrays by user and item: then `prepare` is
        traceable, and `loss` and `reads` take rows of these arrays by `htd_jax.ops.shards.look_up` alone. If not,
        `prepare` takes arrays in this process's memory, and its result is whole on every device.
    """

    init: Init
    loss: Loss
    refresh: Refresh = nothing_sampled
    prepare: Prepare = teacher_as_context
    needs: tuple[str, ...] = ("representations",)
    second_model: SecondModel | None = None
    reads: Reads = all_rows
    divided: bool = False


class Method:
    """Settings of a distillation method, which make its `Distiller`. A subclass is a frozen dataclass.

    Attributes:
      weight: lambda, the factor of the method's loss; usually a field.
      label: the name shown to people; the class's name by default.
      trains: False if the student is computed from its teacher, without training.
      scheduled: whether the computation depends on the number of epochs.
      warm_start: whether the student starts where a plain student ended.
      closed_form: whether it is for students that are fitted in closed form; its `prepare` returns `Labels`.
      teacher_model: the default base model of its teacher; the student's if None.
      for_updates: whether it is for models that learn new data, and teaches what these were.
      searched: whether a run chooses its settings, and those of its teacher, by measurement in validation.
      training_defaults: training settings of its students by name, which the user may override.
    """

    weight: float = 1.0
    label: ClassVar[str] = ""
    trains: ClassVar[bool] = True
    scheduled: ClassVar[bool] = False
    warm_start: ClassVar[bool] = False
    closed_form: ClassVar[bool] = False
    teacher_model: ClassVar[str | None] = None
    for_updates: ClassVar[bool] = False
    searched: ClassVar[bool] = False
    training_defaults: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "label" not in cls.__dict__:
            cls.label = cls.__name__

    @property
    def composes(self) -> bool:
        """Whether the method can be joined with others."""
        return self.trains and not self.closed_form

    def make(self, epochs: int) -> Distiller:
        """Returns the method for training over so many epochs, its loss not yet multiplied by `weight`."""
        raise NotImplementedError


def none() -> Distiller:
    """Returns a method that does nothing: the student learns from the data alone."""
    return Distiller(init=no_params, loss=lambda step: (jnp.zeros(()), {}), needs=(), reads=no_rows, divided=True)


def scale(distiller: Distiller, weight: float) -> Distiller:
    """Returns `distiller` with its loss multiplied by `weight`; the terms in the log stay as they are."""

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        value, terms = distiller.loss(step)
        return weight * value, terms

    return distiller._replace(loss=loss)


def every(epochs: int, distiller: Distiller) -> Distiller:
    """Returns `distiller` with its `refresh` called once in `epochs` epochs, from the first on."""

    def refresh(start: EpochStart) -> Sampled:
        sample = lambda: distiller.refresh(start)
        if start.sampled is None:
            return sample()
        return jax.lax.cond(start.epoch % epochs == 0, sample, lambda: start.sampled)

    return distiller._replace(refresh=refresh)


def chain(*distillers: Distiller) -> Distiller:
    """Returns several methods as one: the sum of their losses. Terms of one name are summed too.

    Raises:
      ValueError: if two of them train a second model.
    """

    def init(key: chex.PRNGKey, student: Shapes, context: Context) -> Params:
        keys = jax.random.split(key, len(distillers))
        return tuple(d.init(k, student, own) for d, k, own in zip(distillers, keys, context))

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        keys = jax.random.split(step.key, len(distillers))
        total = jnp.zeros(())
        terms: Terms = {}
        for distiller, params, context, sampled, key in zip(
            distillers, step.params, step.context, step.sampled, keys, strict=True
        ):
            own = step._replace(params=params, context=context, sampled=sampled, key=key)
            value, parts = distiller.loss(own)
            total += value
            terms |= {name: part + terms.get(name, 0) for name, part in parts.items()}
        return total, terms

    def refresh(start: EpochStart) -> Sampled:
        keys = jax.random.split(start.key, len(distillers))
        links = zip(distillers, start.params, start.context, start.sampled or [None] * len(distillers), keys)
        return tuple(
            d.refresh(start._replace(params=params, context=context, sampled=sampled, key=key))
            for d, params, context, sampled, key in links
        )

    def reads(context: Context, sampled: Sampled, triples: Triples, key: chex.PRNGKey) -> RowIds:
        keys = jax.random.split(key, len(distillers))
        each = (d.reads(own, part, triples, k) for d, own, part, k in zip(distillers, context, sampled, keys))
        return functools.reduce(RowIds.__add__, each)

    second = [number for number, distiller in enumerate(distillers) if distiller.second_model]
    if len(second) > 1:
        raise ValueError("two of the methods train a second model, and a student has one at most")

    def second_model(params: Params, context: Context) -> tuple[MakeModel, Any]:
        (number,) = second
        model = distillers[number].second_model
        assert model is not None
        return model(params[number], context[number])

    return Distiller(
        init=init,
        loss=loss,
        refresh=refresh,
        prepare=lambda teacher, train: tuple(d.prepare(teacher, train) for d in distillers),
        needs=tuple(dict.fromkeys(need for d in distillers for need in d.needs)),
        second_model=second_model if second else None,
        reads=reads,
        divided=all(d.divided for d in distillers),
    )
