"""What a distillation method is: a few pure functions, and how methods compose.

How methods of other kinds sit in it:

- **RRD** (rankings). `prepare`: of the teacher, its 500 best unseen items a user. `refresh`: of these, forty drawn by
  rank, and forty of the rest, anew each epoch. `loss`: the student's scores of the eighty, by `batch.score`.
- **BD** (both models learn, from each other). `init`: the teacher's variables, which `prepare` passes on: a second
  model in `params`, trained by the same optimiser in the same step, its own loss on `batch.triples` being a term of
  `loss`, and measured by `beside`. `refresh`: ranks under either model, as it now is, hence `params` among its
  arguments; every tenth epoch, by `every`. Its settings are `warm`: the student begins where the plain one ended.
- **Many teachers**. The teacher is then a tuple of them; the `prepare` of a link takes its own out of it, and a chain
  of links, one a teacher, is the method; weights between them that are learned are `params`, those by epoch are
  `loss`'s.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp

from htd_jax.data import Interactions
from htd_jax.losses.checks import keep_rows
from htd_jax.models import MakeModel, Recommender
from htd_jax.ops.eager import sum_over_blocks

# Scores that `sum_over_users` makes at once, about what a core's cache does; and those of few users, which are held.
SCORES, HELD = 2**20, 2**23

Params = Any
Drawn = Any
Known = Any
Terms = dict[str, jax.Array]


class Side(NamedTuple):
    """The users, or the items, of a batch.

    Attributes:
      student: `[n, d_s]`, the representations being trained.
      teacher: `[n, d_t]`, those of the same entities in the teacher; `[n, 0]` if it has none.
      where: `[n]` bool, false where an entity is a repeat and does not count.
      ids: `[n]` int32, which users or items they are.
    """

    student: jax.Array
    teacher: jax.Array
    where: jax.Array
    ids: jax.Array

    def kept(self) -> "Side":
        """The same with masked rows zeroed, whatever they held, and the teacher a constant: what layers may be
        applied to before a loss masks their output."""
        teacher = jax.lax.stop_gradient(keep_rows(self.teacher, self.where))
        return self._replace(student=keep_rows(self.student, self.where), teacher=teacher)


class Entities(NamedTuple):
    """The entities of a batch, each once a side.

    Attributes:
      users: of all triples.
      items: the seen and the unseen ones together.
      positives: the seen items.
      negatives: the unseen ones that were drawn.
    """

    users: Side
    items: Side
    positives: Side
    negatives: Side

    def together(self) -> Side:
        """Users and items in one set; its ids are ambiguous."""
        return concatenate(self.users, self.items)


def concatenate(*sides: Side) -> Side:
    """All their rows, one side after the other."""
    joined: Side = jax.tree.map(lambda *parts: jnp.concatenate(parts), *sides)
    return joined


class Triples(NamedTuple):
    """A batch as it was drawn: `[n]` int32 users, seen and unseen items; `where` is false past the last triple."""

    users: jax.Array
    positives: jax.Array
    negatives: jax.Array
    where: jax.Array


class Batch(NamedTuple):
    """What a method sees of a step.

    Attributes:
      entities: the batch's users and items with their representations. What a method does not read costs nothing.
      triples: the batch as it was drawn.
      score: the student's scores, differentiable, of the pairs of two integer arrays that broadcast (users `[n, 1]`
        with items `[n, m]`), at the cost of these pairs alone.
      teacher: what `prepare` made of the teacher.
      score_all: the student's scores `[n, num_items]`, differentiable, of every item for the users `[n]`, at the cost
        of as many products; for a few users at a time, see `htd_jax.ops.eager`.
      represent: the student's representations, differentiable, of any users `[n]` and items `[m]`, whether the batch
        holds them or not: `[n, d_s]` and `[m, d_s]`.
      whole: `score_all` of the batch's users, `entities.users.ids`, made once for all who ask; for batches that are few
        users, see `sum_over_users`.
    """

    entities: Entities
    triples: Triples
    score: Callable[[jax.Array, jax.Array], jax.Array]
    teacher: Known = None
    score_all: Callable[[jax.Array], jax.Array] = lambda users: jnp.zeros((len(users), 0))
    represent: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]] = lambda users, items: (
        jnp.zeros((len(users), 0)),
        jnp.zeros((len(items), 0)),
    )
    whole: Callable[[], jax.Array] | None = None


def sum_over_users(
    batch: Batch,
    of_block: Callable[[jax.Array, tuple[jax.Array, jax.Array]], jax.Array],
    num_items: int,
    some: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """The sum of `of_block(scores, (ids, where))` over blocks of a batch's users, see `htd_jax.ops.eager`.

    Where the scores of all of its users are few enough to be held, they are one block, whose scores are made once for
    whoever else sums over the same users.

    Args:
      of_block: a scalar, of the student's scores `[b, num_items]` of users `[b]`, and which of these count.
      num_items: how many there are.
      some: ids and where, if it is some of the users, drawn.
    """
    users = batch.entities.users
    ids, where = (users.ids, users.where) if some is None else some
    if some is None and batch.whole is not None and len(ids) * num_items <= HELD:
        return of_block(batch.whole(), (ids, where))
    blocks = -(-len(ids) // max(1, SCORES // num_items))
    return sum_over_blocks(batch.score_all, of_block, ids, (ids, where), -(-len(ids) // blocks))


class Shapes(NamedTuple):
    """The student's sizes: how many users and items, and the width of its representations."""

    num_users: int
    num_items: int
    dim: int


class Distiller(NamedTuple):
    """A method of distillation: pure functions, traced into the compiled epoch.

    Attributes:
      init: `(key, student, teacher) -> params`, what the method learns beside the student. `student` are its `Shapes`.
      loss: `(params, drawn, batch, key, epoch) -> (loss, terms)`, a scalar to add to the base model's loss, and its
        named parts for the log; `epoch` is a traced integer.
      refresh: `(params, drawn, key, epoch, teacher, student) -> drawn`, called as an epoch begins: what is drawn for
        it, from what was drawn for the epoch before (zeros before the first; None where only its shape is asked for).
        `student` is the model as it now is, see `Recommender`. What is drawn is part of the phase's state, so that a
        resumed run goes on with the same.
      prepare: `(teacher, train) -> teacher`, called once, before the first epoch: what the other functions want to know
        of the `Teacher`, and what they are given under that name. Not compiled for it: what is passed on is no copy.
      needs: what a teacher must have, of `representations`, `scores` and `lists`; one that lacks it is refused.
      beside: `(params, teacher) -> (make_model, variables)`, a second recommender that learns beside the student, and
        whose metrics every record then holds under `beside`; None where there is none.
    """

    init: Callable[[chex.PRNGKey, Shapes, Known], Params]
    loss: Callable[[Params, Drawn, Batch, chex.PRNGKey, jax.Array], tuple[jax.Array, Terms]]
    refresh: Callable[[Params, Drawn, chex.PRNGKey, jax.Array, Known, Recommender], Drawn] = (
        lambda params, drawn, key, epoch, teacher, student: ()
    )
    prepare: Callable[[Any, Interactions], Known] = lambda teacher, train: teacher
    needs: tuple[str, ...] = ("representations",)
    beside: Callable[[Params, Known], tuple[MakeModel, Any]] | None = None


class Run(NamedTuple):
    """What a method may be made for.

    Attributes:
      epochs: how many the phase has, over which a temperature falls.
      seed: of the run.
      teacher: whose groups, say, are found before the training.
    """

    epochs: int
    seed: int
    teacher: Any


class Method(Protocol):
    """What the registry holds of a method: a frozen dataclass of its settings, and how a `Distiller` is made of them.

    Attributes:
      weight: lambda, a field: the loss counts this much against the base loss.
      label: its name for people; if it has none, its class's.
      scheduled: true if what it does depends on how many epochs there are; if it says nothing, it does not.
      warm: true if its student begins where one trained alone has ended; if it says nothing, at random.
      solved: true of a method for students that are solved for, and for no others; its `Distiller` prepares `Labels`.
      usual: the training that its students usually get, and `teacher_model`, by the names of these settings; what a
        user says comes first.
    """

    weight: float
    label: ClassVar[str]
    scheduled: ClassVar[bool]
    warm: ClassVar[bool]
    solved: ClassVar[bool]
    usual: ClassVar[Mapping[str, Any]]

    def make(self, run: Run) -> Distiller:
        """The method, not yet weighted."""
        ...


def usual_training(methods: Iterable[Any]) -> dict[str, Any]:
    """What the students of these methods, joined, usually take: see `Method.usual`."""
    return {name: value for method in methods for name, value in getattr(method, "usual", {}).items()}


def is_alone(method: Any) -> bool:
    """Whether a method is joined with no other: it trains nothing, or is for students that are solved for."""
    return not getattr(method, "trained", True) or getattr(method, "solved", False)


def learns_nothing(key: chex.PRNGKey, student: Shapes, teacher: Known) -> Params:
    """The `init` of a method that has nothing to learn beside the student."""
    return {}


def none() -> Distiller:
    """No distillation: the student learns from the data alone."""
    return Distiller(
        init=learns_nothing,
        loss=lambda params, drawn, batch, key, epoch: (jnp.zeros(()), {}),
        needs=(),
    )


def scale(distiller: Distiller, weight: float) -> Distiller:
    """`distiller` with its loss times `weight`; the terms in the log stay as they are."""

    def loss(
        params: Params, drawn: Drawn, batch: Batch, key: chex.PRNGKey, epoch: jax.Array
    ) -> tuple[jax.Array, Terms]:
        value, terms = distiller.loss(params, drawn, batch, key, epoch)
        return weight * value, terms

    return distiller._replace(loss=loss)


def every(epochs: int, distiller: Distiller) -> Distiller:
    """`distiller` with its `refresh` called in one epoch of `epochs` only, from the first on."""

    def refresh(
        params: Params, drawn: Drawn, key: chex.PRNGKey, epoch: jax.Array, teacher: Known, student: Recommender
    ) -> Drawn:
        anew = lambda: distiller.refresh(params, drawn, key, epoch, teacher, student)
        return anew() if drawn is None else jax.lax.cond(epoch % epochs == 0, anew, lambda: drawn)

    return distiller._replace(refresh=refresh)


def chain(*distillers: Distiller) -> Distiller:
    """Several methods at once: the sum of their losses. Terms of one name are summed too."""

    def init(key: chex.PRNGKey, student: Shapes, teacher: Known) -> Params:
        keys = jax.random.split(key, len(distillers))
        return tuple(d.init(k, student, t) for d, k, t in zip(distillers, keys, teacher))

    def loss(
        params: Params, drawn: Drawn, batch: Batch, key: chex.PRNGKey, epoch: jax.Array
    ) -> tuple[jax.Array, Terms]:
        keys = jax.random.split(key, len(distillers))
        total = jnp.zeros(())
        terms: Terms = {}
        for number, distiller in enumerate(distillers):
            own = batch._replace(teacher=batch.teacher[number])
            value, parts = distiller.loss(params[number], drawn[number], own, keys[number], epoch)
            total += value
            terms |= {name: part + terms.get(name, 0) for name, part in parts.items()}
        return total, terms

    def refresh(
        params: Params, drawn: Drawn, key: chex.PRNGKey, epoch: jax.Array, teacher: Known, student: Recommender
    ) -> Drawn:
        keys = jax.random.split(key, len(distillers))
        of_links = zip(distillers, params, drawn or [None] * len(distillers), keys, teacher)
        return tuple(d.refresh(own, last, k, epoch, t, student) for d, own, last, k, t in of_links)

    besides = [number for number, distiller in enumerate(distillers) if distiller.beside]
    if len(besides) > 1:
        raise ValueError("two methods with a model beside the student, which has room for one")

    def beside(params: Params, teacher: Known) -> tuple[MakeModel, Any]:
        (number,) = besides
        of_link = distillers[number].beside
        assert of_link is not None
        return of_link(params[number], teacher[number])

    return Distiller(
        init=init,
        loss=loss,
        refresh=refresh,
        prepare=lambda teacher, train: tuple(d.prepare(teacher, train) for d in distillers),
        needs=tuple(dict.fromkeys(need for d in distillers for need in d.needs)),
        beside=beside if besides else None,
    )
