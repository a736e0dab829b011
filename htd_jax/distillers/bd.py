"""BD, Bidirectional Distillation (Kweon et al., WWW'21)."""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from flax import struct

from htd_jax.data import Interactions
from htd_jax.distillers.base import Distiller, EpochStart, Method, Params, Shapes, Step, Terms, every
from htd_jax.distillers.draws import accepted, of_unseen, unseen_ranks
from htd_jax.losses import soft_bce_loss
from htd_jax.losses.checks import check_choice
from htd_jax.models import MakeModel, with_tables
from htd_jax.teacher import Teacher

RANKS = ("best", "worst")

# Items proposed for each that is drawn. Of a hundred, a teacher's draw accepts some twenty, a student's half.
PROPOSALS = 8


@dataclasses.dataclass(frozen=True)
class BD(Method):
    """Teacher and student learn together, each what the other ranks better (Kweon et al., WWW'21)."""

    weight: Annotated[float, Ge(0)] = 1.0
    """All of it, the teacher's own loss included, counts this much against the student's base loss."""
    student_weight: Annotated[float, Ge(0)] = 0.5
    """Lambda of the student: what it learns from the teacher counts this much against the base loss."""
    teacher_weight: Annotated[float, Ge(0)] = 0.5
    """Lambda of the teacher: what it learns from the student counts this much against the teacher's base loss."""
    temperature: Annotated[float, Gt(0)] = 5.0
    """T: each model is led to the sigmoid of the other's score over T."""
    student_scale: Annotated[float, Gt(0)] = 1e-2
    """e1: the student learns items drawn with a probability like tanh(max(e1 (its rank - the teacher's), 0))."""
    teacher_scale: Annotated[float, Gt(0)] = 1e-4
    """e2: the teacher learns items drawn with a probability like exp(e2 (its rank - the student's))."""
    samples: Annotated[int, Ge(1)] = 1
    """Items for either model and each interaction of a batch."""
    pool: Annotated[int, Ge(1)] = 128
    """Items drawn for either model and each user whenever both are ranked, of which every step takes some."""
    period: Annotated[int, Ge(1)] = 10
    """Epochs from one ranking of all unseen items to the next."""
    ranks: Literal["best", "worst"] = "best"
    """From where ranks are counted; from the worst item, as in the authors' notebook, both draws are turned round."""

    label: ClassVar[str] = "BD"
    warm_start: ClassVar[bool] = True

    def make(self, epochs: int) -> Distiller:
        return bd(
            student_weight=self.student_weight,
            teacher_weight=self.teacher_weight,
            temperature=self.temperature,
            student_scale=self.student_scale,
            teacher_scale=self.teacher_scale,
            samples=self.samples,
            pool=self.pool,
            period=self.period,
            ranks=self.ranks,
        )


@struct.dataclass
class Learner:
    """The teacher as it begins, and what it learns from.

    Attributes:
      train: who has seen what.
      variables: of its module.
      make_model: what makes it.
    """

    train: Interactions
    variables: Any
    make_model: MakeModel = struct.field(pytree_node=False)


@struct.dataclass
class Sample:
    """The items that a user's student, and its teacher, may learn: `[num_users, pool]` each, -1 for none."""

    student: jax.Array
    teacher: jax.Array


def bd(
    *,
    student_weight: float = 0.5,
    teacher_weight: float = 0.5,
    temperature: float = 5.0,
    student_scale: float = 1e-2,
    teacher_scale: float = 1e-4,
    samples: int = 1,
    pool: int = 128,
    period: int = 10,
    ranks: str = "best",
) -> Distiller:
    """Teacher and student train at the same time, in one step, and each learns from the other.

    The teacher is a second model among what is learned, with its own base loss on the batch's triples. Every `period`
    epochs both rank all items that a user has not seen, the best first. The student learns items that it ranks lower
    than the teacher does, drawn ~ tanh(max(e1 (rank_S - rank_T), 0)); the teacher any, drawn ~ exp(e2 (rank_T -
    rank_S)), those that the student ranks higher a little more often. Either by `soft_bce_loss` to the other's
    predictions, which are constants. Both should have been trained alone before: the student begins as `start` says.

    The authors' notebook takes e1 = 1e-4, T = 2, and five items for each seen one, as many as its base model (CDAE)
    draws; a base model that draws one unseen item for each seen one has one here. Its ranks are counted from the worst
    item, which `ranks="worst"` does too: the student then learns what it overestimates. It draws anew at each step;
    here a step takes at random from a user's pool, which was drawn from the same distribution, see `accepted`.

    A teacher whose scores are products of representations is trained as two tables of them, whatever made them.

    Cost, a user: the state holds 2 pools of P items (1 KB). A ranking scores all items under either model and sorts
    them, O(N (d + log N)), once in `period` epochs. A step scores 2 m pairs a triple under either model.

    Args:
      student_weight, teacher_weight: lambda of either.
      temperature: T, over 0.
      student_scale, teacher_scale: e1 and e2.
      samples: m, items for either model and each triple.
      pool: P.
      period: epochs from one ranking to the next.
      ranks: `best` or `worst`.

    Returns:
      A `Distiller`; its terms are `bd_student`, `bd_teacher` and the teacher's own loss, `teacher`.

    Raises:
      ValueError: an unknown `ranks`.
    """
    check_choice("ranks", ranks, RANKS)

    def prepare(teacher: Teacher, train: Interactions) -> Learner:
        make_model, variables = teacher.learner()
        return Learner(train, variables, make_model)

    def init(key: chex.PRNGKey, student: Shapes, teacher: Learner) -> Params:
        return teacher.variables

    def refresh(start: EpochStart) -> Sample:
        params, key, epoch, teacher, student = start.params, start.key, start.epoch, start.context, start.student
        proposing, for_student, for_teacher = jax.random.split(key, 3)
        train = teacher.train
        items = of_unseen(proposing, train, PROPOSALS * pool)
        ranks_of = lambda model: unseen_ranks(with_tables(model).score_all, train, jnp.maximum(items, 0))
        of_teacher = nn.apply(ranks_of, teacher.make_model(train))(params)
        lower = (ranks_of(student) - of_teacher).astype(jnp.float32) * (1 if ranks == "best" else -1)
        exponents = -teacher_scale * lower
        weights = (
            jnp.tanh(jnp.maximum(student_scale * lower, 0)),
            jnp.exp(exponents - exponents.max(axis=1, keepdims=True)),
        )
        of = lambda key, weights: accepted(key, items, weights, pool)
        return Sample(*map(of, (for_student, for_teacher), weights))

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        params, drawn, batch, key, epoch = step.params, step.sampled, step.batch, step.key, step.epoch
        triples = batch.triples
        users = triples.users[:, None]
        places = jax.random.randint(key, (2, len(users), samples), 0, pool)
        items = jnp.concatenate([drawn.student[users, places[0]], drawn.teacher[users, places[1]]], axis=1)
        pairs = users, jnp.maximum(items, 0)
        own = batch.score(*pairs)
        of_teacher = lambda model: (model.score(*pairs), model.loss(*triples))
        others, base = nn.apply(of_teacher, step.context.make_model(step.context.train))(params)
        where = triples.where[:, None] & (items >= 0)

        def towards(logits: jax.Array, guide: jax.Array, part: slice) -> jax.Array:
            return soft_bce_loss(logits[:, part], guide[:, part], temperature=temperature, where=where[:, part])

        by_student = towards(own, others, slice(0, samples))
        by_teacher = towards(others, own, slice(samples, None))
        total = student_weight * by_student + teacher_weight * by_teacher + base
        return total, {"bd_student": by_student, "bd_teacher": by_teacher, "teacher": base}

    def second_model(params: Params, teacher: Learner) -> tuple[MakeModel, Any]:
        return teacher.make_model, params

    return every(period, Distiller(init, loss, refresh, prepare, second_model=second_model))
