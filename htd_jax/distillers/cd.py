"""CD, Collaborative Distillation (Lee et al., ICDM'19)."""

import dataclasses
from typing import Annotated, ClassVar, Literal

import chex
import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from flax import struct

from htd_jax.data import Interactions
from htd_jax.distillers.base import (
    Distiller,
    EpochStart,
    Method,
    RowIds,
    Step,
    Terms,
    Triples,
    every,
    no_params,
)
from htd_jax.distillers.sampling import sample_columns_by_rank
from htd_jax.losses import soft_label_loss
from htd_jax.ops.shards import look_up
from htd_jax.settings import check
from htd_jax.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class CD(Method):
    """Learns the teacher's scores as soft labels of unseen items, sampled by rank (Lee et al., ICDM'19)."""

    weight: Annotated[float, Ge(0)] = 100.0
    """Lambda, the weight of the distillation loss against the base loss. Both are sums over a batch: htd-jax
    study weights measures the method's part."""
    guide: Literal["teacher", "student"] = "teacher"
    """The model by whose ranking items are sampled."""
    items: Annotated[int, Ge(1)] = 50
    """The number of unseen items per user that get labels."""
    temperature: Annotated[float, Gt(0)] = 20.0
    """T; the item of rank r among N is sampled with probability proportional to exp(-r / (N T))."""
    pool: Annotated[int, Ge(1)] = 500
    """N, the number of the guide's best unseen items per user from which items are sampled."""
    sharpness: Annotated[float, Gt(0)] = 2.0
    """The divisor t1: a label is the sigmoid of (score + t2) / t1."""
    shift: float = 0.0
    """The shift t2, which is added to the teacher's score."""
    refresh: Annotated[int, Ge(1)] = 10
    """The number of epochs between two rankings by the student, if it is the guide."""

    label: ClassVar[str] = "CD"

    def make(self, epochs: int) -> Distiller:
        return cd(self)


@struct.dataclass
class ScoredItems:
    """Items of every user, -1 for none, and the teacher's scores of them: both `[num_users, m]`."""

    items: jax.Array
    scores: jax.Array


@struct.dataclass
class Context:
    """The teacher's ranking if the teacher guides; else the teacher itself, and the training interactions."""

    ranking: ScoredItems | None = None
    teacher: Teacher | None = None
    train: Interactions | None = None


def cd(settings: CD = CD()) -> Distiller:
    """Learns the teacher's scores of some unseen items as labels between 0 and 1: unseen is not disliked.

    Different items are sampled from a user's N best unseen ones by the guide's ranking, one by one with probability ~
    exp(-rank / (N T)) among those left; a user with fewer unseen items has a smaller N. A teacher that guides shows
    what should rank high; its ranking is sampled in each epoch. A student that guides shows what it ranks high, rightly
    or not; it ranks all items, and samples, every `settings.refresh` epochs. The loss is `soft_label_loss`, averaged
    over a user's items, summed over the different users of a batch.

    The authors' code is not known to be public. The defaults are those of code that compares with it (UnKD's: T = 20,
    50 items, t1 = 2, t2 = 0, a weight of 1; RCE-KD's: the same with 2 items and a weight of .5, summed instead of
    averaged). At T = 20 the ranking's end is sampled almost as often as its beginning. Both sample two of the best
    3,000 items at a time and keep the better one, which is not in the definition.

    A teacher needs scores. They are read as logits, so their scale matters, unlike in most methods.

    Cost per user: 2 N numbers in memory (4 KB) if the teacher guides, and twice the items in the state (400 bytes); a
    step scores the items, O(d) each. The student's ranking computes all scores of both models, in blocks of users.

    Args:
      settings: see `CD`.

    Returns:
      A `Distiller`; its term is `cd`.

    Raises:
      UserError: if a setting is invalid.
    """
    check(settings, "cd.")

    def prepare(teacher: Teacher, train: Interactions) -> Context:
        if settings.guide == "student":
            return Context(teacher=teacher, train=train)
        items = Teacher(scores=teacher.scores).top(train, settings.pool)
        return Context(ranking=ScoredItems(items, teacher.score(items)))

    def refresh(start: EpochStart) -> ScoredItems:
        context: Context = start.context
        if context.ranking is not None:
            items = context.ranking.items
        else:
            assert context.train is not None
            items = Teacher(scores=start.student.score_all).top(context.train, settings.pool)
        where = items >= 0
        lengths = jnp.maximum(jnp.sum(where, axis=1, keepdims=True), 1)
        columns = sample_columns_by_rank(start.key, where, settings.items, settings.temperature * lengths)
        chosen = jnp.take_along_axis(items, columns, axis=1)
        if context.ranking is not None:
            return ScoredItems(chosen, jnp.take_along_axis(context.ranking.scores, columns, axis=1))
        assert context.teacher is not None
        return ScoredItems(chosen, context.teacher.score(chosen))

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        users = step.batch.entities.users
        own: ScoredItems = look_up(step.sampled, users.ids)
        scores = step.batch.score(users.ids[:, None], jnp.maximum(own.items, 0))
        labels = jax.nn.sigmoid((own.scores + settings.shift) / settings.sharpness).astype(scores.dtype)
        value = soft_label_loss(scores, labels, where=users.where[:, None] & (own.items >= 0))
        return value, {"cd": value}

    def reads(context: Context, sampled: ScoredItems, triples: Triples, key: chex.PRNGKey) -> RowIds:
        return RowIds.of_items(look_up(sampled.items, triples.users))

    method = Distiller(no_params, loss, refresh, prepare, needs=("scores",), reads=reads, divided=True)
    return every(settings.refresh, method) if settings.guide == "student" else method
