"""CD, Collaborative Distillation (Lee et al., ICDM'19)."""

import dataclasses
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from flax import struct

from htd_jax.data import Interactions
from htd_jax.distillers.base import Distiller, EpochStart, Method, Step, Terms, every, no_params
from htd_jax.distillers.draws import places_by_rank
from htd_jax.losses import soft_label_loss
from htd_jax.losses.checks import check_choice
from htd_jax.teacher import Teacher

GUIDES = ("teacher", "student")


@dataclasses.dataclass(frozen=True)
class CD(Method):
    """The teacher's scores as soft labels of unseen items, drawn by rank (Lee et al., ICDM'19)."""

    weight: Annotated[float, Ge(0)] = 100.0
    """Lambda: the distillation loss counts this much against the base loss."""
    guide: Literal["teacher", "student"] = "teacher"
    """Of whose ranking items are drawn."""
    items: Annotated[int, Ge(1)] = 50
    """Unseen items of each user that get labels."""
    temperature: Annotated[float, Gt(0)] = 20.0
    """T: of N ranked items, that of rank r is drawn with a probability like exp(-r / (N T))."""
    pool: Annotated[int, Ge(1)] = 500
    """N, the guide's best unseen items, of which those with labels are drawn."""
    sharpness: Annotated[float, Gt(0)] = 2.0
    """T1: a label is the sigmoid of (score + t2) / t1."""
    shift: float = 0.0
    """T2, added to the teacher's score."""
    refresh: Annotated[int, Ge(1)] = 10
    """Epochs between two rankings by the student, where it is the guide."""

    label: ClassVar[str] = "CD"

    def make(self, epochs: int) -> Distiller:
        return cd(
            guide=self.guide,
            num_items=self.items,
            temperature=self.temperature,
            pool=self.pool,
            sharpness=self.sharpness,
            shift=self.shift,
            refresh_every=self.refresh,
        )


@struct.dataclass
class Labelled:
    """Items of every user, -1 for none, and the teacher's scores of them: `[num_users, m]` both."""

    items: jax.Array
    scores: jax.Array


@struct.dataclass
class Guided:
    """What is drawn from: the teacher's ranking, if it is the guide; else the teacher itself, and who has seen what."""

    ranking: Labelled | None = None
    teacher: Teacher | None = None
    train: Interactions | None = None


def cd(
    *,
    guide: str = "teacher",
    num_items: int = 50,
    temperature: float = 20.0,
    pool: int = 500,
    sharpness: float = 2.0,
    shift: float = 0.0,
    refresh_every: int = 10,
) -> Distiller:
    """What a user has not seen is not disliked: some of it gets the teacher's score as a label between 0 and 1.

    Of a user's N best unseen items, as the guide ranks them, some different ones are drawn, the next always with a
    probability ~ exp(-rank / (N T)) among those left; a user who has fewer than N ranked has a smaller N. The teacher
    as the guide shows what should stand high, and of its ranking every epoch draws anew. The student shows what it
    takes to be high, rightly or not: it ranks all items again every `refresh_every` epochs, which also draw. Every
    different user of a batch adds the mean of `soft_label_loss` over its items.

    The authors' code is not public as far as could be found. Numbers are those of others' code that compares with it
    (of UnKD: T = 20, 50 items, t1 = 2, t2 = 0, a weight of 1; of RCE-KD: the same with 2 items and a weight of .5, a
    sum instead of a mean). At T = 20 the ranking's end is drawn almost as often as its beginning. Both draw two items
    of the best 3,000 at a time and keep the better one, which is not in the definition.

    A teacher needs scores.

    Cost, a user: held are 2 N numbers (4 KB) if the teacher is the guide, and drawn, in the state, twice the items (400
    bytes); a step scores the items, O(d) each. The student's ranking takes all scores of both models, some users at a
    time.

    Args:
      guide: `teacher` or `student`.
      num_items: of each user, at most.
      temperature: T, over 0.
      pool: N, at most.
      sharpness: t1, over 0.
      shift: t2.
      refresh_every: epochs between two rankings by the student.

    Returns:
      A `Distiller`; its term is `cd`.

    Raises:
      ValueError: an unknown `guide`.
    """
    check_choice("guide", guide, GUIDES)

    def prepare(teacher: Teacher, train: Interactions) -> Guided:
        if guide == "student":
            return Guided(teacher=teacher, train=train)
        items = Teacher(scores=teacher.scores).top(train, pool)
        return Guided(ranking=Labelled(items, teacher.score(items)))

    def refresh(start: EpochStart) -> Labelled:
        params, key, epoch, teacher, student = start.params, start.key, start.epoch, start.context, start.student
        if teacher.ranking is not None:
            items = teacher.ranking.items
        else:
            assert teacher.train is not None
            items = Teacher(scores=student.score_all).top(teacher.train, pool)
        there = items >= 0
        length = jnp.maximum(jnp.sum(there, axis=1, keepdims=True), 1)
        places = places_by_rank(key, there, num_items, temperature * length)
        chosen = jnp.take_along_axis(items, places, axis=1)
        if teacher.ranking is not None:
            return Labelled(chosen, jnp.take_along_axis(teacher.ranking.scores, places, axis=1))
        assert teacher.teacher is not None
        return Labelled(chosen, teacher.teacher.score(chosen))

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        params, drawn, batch, key, epoch = step.params, step.sampled, step.batch, step.key, step.epoch
        users = batch.entities.users
        of_users = jax.tree.map(lambda rows: rows[users.ids], drawn)
        scores = batch.score(users.ids[:, None], jnp.maximum(of_users.items, 0))
        labels = jax.nn.sigmoid((of_users.scores + shift) / sharpness).astype(scores.dtype)
        value = soft_label_loss(scores, labels, where=users.where, items_where=of_users.items >= 0)
        return value, {"cd": value}

    method = Distiller(no_params, loss, refresh, prepare, needs=("scores",))
    return every(refresh_every, method) if guide == "student" else method
