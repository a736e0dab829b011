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
from htd_jax.distillers.base import (
    Distiller,
    EpochStart,
    Method,
    Params,
    RowIds,
    Shapes,
    Step,
    Terms,
    Triples,
    every,
)
from htd_jax.distillers.sampling import resample, sample_unseen, unseen_ranks
from htd_jax.losses import soft_bce_loss
from htd_jax.models import MakeModel, holding, with_tables
from htd_jax.ops.shards import look_up
from htd_jax.settings import check
from htd_jax.teacher import Teacher

# Items proposed per sample. Of a hundred, the teacher's sampling accepts some twenty, the student's half.
PROPOSALS = 8


@dataclasses.dataclass(frozen=True)
class BD(Method):
    """Trains teacher and student together, each on what the other ranks better (Kweon et al., WWW'21)."""

    weight: Annotated[float, Ge(0)] = 1.0
    """The weight of the whole method, the teacher's base loss included, against the student's base loss."""
    student_weight: Annotated[float, Ge(0)] = 0.5
    """The weight of the student's distillation loss against its base loss."""
    teacher_weight: Annotated[float, Ge(0)] = 0.5
    """The weight of the teacher's distillation loss against its base loss."""
    temperature: Annotated[float, Gt(0)] = 5.0
    """T; each model learns the sigmoid of the other's score divided by T."""
    student_scale: Annotated[float, Gt(0)] = 1e-2
    """The scale e1: the student's items are sampled with probability ~ tanh(max(e1 (its rank - the teacher's), 0))."""
    teacher_scale: Annotated[float, Gt(0)] = 1e-4
    """The scale e2: the teacher's items are sampled with probability ~ exp(e2 (its rank - the student's))."""
    samples: Annotated[int, Ge(1)] = 1
    """The number of items sampled per model and per interaction of a batch."""
    pool: Annotated[int, Ge(1)] = 128
    """The number of items that are sampled per model and user at each ranking; each step uses some of them."""
    period: Annotated[int, Ge(1)] = 10
    """The number of epochs between two rankings of all unseen items."""
    ranks: Literal["best", "worst"] = "best"
    """Whether ranks are counted from the best item or, as in the authors' notebook, from the worst, which reverses both
    samplings."""

    label: ClassVar[str] = "BD"
    warm_start: ClassVar[bool] = True

    def make(self, epochs: int) -> Distiller:
        return bd(self)


@struct.dataclass
class Context:
    """The teacher before training, and the training interactions.

    Attributes:
      train: the training interactions.
      variables: the teacher's.
      make_model: returns the teacher's module.
    """

    train: Interactions
    variables: Any
    make_model: MakeModel = struct.field(pytree_node=False)


@struct.dataclass
class SampledItems:
    """The items that a user's student, and its teacher, may learn: both `[num_users, pool]` int32, -1 for none."""

    student: jax.Array
    teacher: jax.Array


def bd(settings: BD = BD()) -> Distiller:
    """Trains teacher and student in the same steps; each learns from the other.

    The teacher is a second model in the method's parameters, with its own base loss on the batch's triples. Every
    `settings.period` epochs both rank each user's unseen items, the best first. The student learns items that it ranks
    lower than the teacher, sampled ~ tanh(max(e1 (rank_S - rank_T), 0)); the teacher learns any items, sampled ~
    exp(e2 (rank_T - rank_S)), those that the student ranks higher a little more often. The loss of both is
    `soft_bce_loss` with the other's predictions as constants. Both should have been trained alone before.

    The authors' notebook has e1 = 1e-4, T = 2, and five items per seen item, as many as its base model (CDAE) samples;
    a base model with one unseen item per seen one has one here. It counts ranks from the worst item, as
    `ranks="worst"` does: the student then learns what it overestimates. It samples in each step; here a step takes
    random items of a user's pool, which was sampled from the same distribution, see `resample`.

    A teacher whose scores are products of representations is trained as two tables, whatever model made them. Its
    scores are logits, of its own base loss too, so their scale matters, unlike in most methods.

    Cost per user: the state holds 2 pools of P items (1 KB). A ranking scores all items with both models and sorts
    them, O(N (d + log N)), once in `settings.period` epochs. A step scores 2 m pairs per triple with both models.

    Args:
      settings: see `BD`.

    Returns:
      A `Distiller`; its terms are `bd_student`, `bd_teacher` and the teacher's base loss, `teacher`.

    Raises:
      UserError: if a setting is invalid.
    """
    check(settings, "bd.")
    samples, pool = settings.samples, settings.pool

    def prepare(teacher: Teacher, train: Interactions) -> Context:
        make_model, variables = teacher.learner()
        return Context(train, variables, make_model)

    def init(key: chex.PRNGKey, student: Shapes, context: Context) -> Params:
        return context.variables

    def refresh(start: EpochStart) -> SampledItems:
        proposal_key, student_key, teacher_key = jax.random.split(start.key, 3)
        train = start.context.train
        items = sample_unseen(proposal_key, train, PROPOSALS * pool)
        ranks_by = lambda model: unseen_ranks(with_tables(model).score_all, train, jnp.maximum(items, 0))
        teacher_ranks = nn.apply(ranks_by, start.context.make_model(train))(start.params)
        sign = 1 if settings.ranks == "best" else -1
        lower = (ranks_by(start.student) - teacher_ranks).astype(jnp.float32) * sign
        exponents = -settings.teacher_scale * lower
        student_weights = jnp.tanh(jnp.maximum(settings.student_scale * lower, 0))
        teacher_weights = jnp.exp(exponents - exponents.max(axis=1, keepdims=True))
        return SampledItems(
            resample(student_key, items, student_weights, pool), resample(teacher_key, items, teacher_weights, pool)
        )

    def some_items(sampled: SampledItems, triples: Triples, key: chex.PRNGKey) -> jax.Array:
        """Returns the items that a step learns from the pools of each triple's user, `[n, 2 samples]`."""
        own: SampledItems = look_up(sampled, triples.users)
        rows = jnp.arange(len(triples.users))[:, None]
        columns = jax.random.randint(key, (2, len(rows), samples), 0, pool)
        return jnp.concatenate([own.student[rows, columns[0]], own.teacher[rows, columns[1]]], axis=1)

    def reads(context: Context, sampled: SampledItems, triples: Triples, key: chex.PRNGKey) -> RowIds:
        return RowIds.of_items(some_items(sampled, triples, key))

    def loss(step: Step) -> tuple[jax.Array, Terms]:
        triples = step.batch.triples
        items = some_items(step.sampled, triples, step.key)
        pairs = triples.users[:, None], jnp.maximum(items, 0)
        student_scores = step.batch.score(*pairs)
        score_and_loss = lambda model: (model.score(*pairs), model.loss(*triples))
        teacher_model = holding(step.context.make_model(step.context.train), step.params)
        noise = {"noise": jax.random.fold_in(step.key, 3)}
        teacher_scores, base = nn.apply(score_and_loss, teacher_model)(step.params, rngs=noise)
        where = triples.where[:, None] & (items >= 0)

        def towards(logits: jax.Array, guide: jax.Array, part: slice) -> jax.Array:
            temperature = settings.temperature
            return soft_bce_loss(logits[:, part], guide[:, part], where=where[:, part], temperature=temperature)

        by_student = towards(student_scores, teacher_scores, slice(0, samples))
        by_teacher = towards(teacher_scores, student_scores, slice(samples, None))
        total = settings.student_weight * by_student + settings.teacher_weight * by_teacher + base
        return total, {"bd_student": by_student, "bd_teacher": by_teacher, "teacher": base}

    def second_model(params: Params, context: Context) -> tuple[MakeModel, Any]:
        return context.make_model, params

    method = Distiller(init, loss, refresh, prepare, second_model=second_model, reads=reads, divided=True)
    return every(settings.period, method)
