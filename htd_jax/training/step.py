"""The compiled training step, and the epoch that scans it."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from htd_jax.data import Interactions, distinct
from htd_jax.distillers import Batch, Distiller, Entities, EpochStart, RowIds, Shapes, Side, Step, Triples
from htd_jax.distillers.base import SecondModel
from htd_jax.errors import UserError
from htd_jax.models import MakeModel, ModelOf, Recommender, Representations, first_dimensions, with_tables
from htd_jax.ops.platforms import brief_options, compiler_options
from htd_jax.teacher import Lists, Teacher
from htd_jax.training import rows
from htd_jax.training.objectives import Objective, own
from htd_jax.training.optimizers import RowOptimizer
from htd_jax.training.prefixes import sum_over_prefixes

Terms = dict[str, jax.Array]


@struct.dataclass
class TrainState:
    """The whole state of a phase, as checkpoints hold it.

    Attributes:
      params: `{"model": ..., "distiller": ...}`.
      opt_state: the optimiser's state, over the parameters as vectors; a `RowState` of a `RowOptimizer`.
      epoch: int32 scalar, the number of finished epochs.
      sampled: the result of the distiller's last `refresh`.
    """

    params: Any
    opt_state: Any
    epoch: jax.Array
    sampled: Any = ()


@struct.dataclass
class Guidance:
    """A teacher's representations for the entities of a batch, see `Teacher.hints`, None if it has none; and the
    context that a distiller's `prepare` made of the teacher."""

    hints: Representations | None
    context: Any


# `Trainer.guide` turns any of these into a `Guidance`; passing the `Guidance` on saves every epoch from repeating that.
AnyTeacher = Guidance | Teacher | Representations | Lists | None


class Init(Protocol):
    """Returns the initial state; compiled."""

    def __call__(self, key: chex.PRNGKey, train: Interactions, teacher: AnyTeacher, /) -> TrainState: ...


class Epoch(Protocol):
    """Returns the state after one more epoch, and the terms of the loss, averaged over the epoch's batches.

    Compiled; the given state is donated. The key is the same at every call, and differs from that of `Init`: all
    randomness of an epoch follows from key and epoch number, so a resumed run samples the same as an unbroken one.
    """

    def __call__(
        self, state: TrainState, key: chex.PRNGKey, train: Interactions, teacher: AnyTeacher, /
    ) -> tuple[TrainState, Terms]: ...


class Guide(Protocol):
    """Returns the `Guidance` of a teacher. Call it once, and pass the result to the other functions.

    Raises UserError if the teacher lacks what the method needs.
    """

    def __call__(self, train: Interactions, teacher: AnyTeacher, /) -> Guidance: ...


class Trainer(NamedTuple):
    """The computation of a phase.

    Attributes:
      make_model: the model that is trained.
      init: see `Init`.
      epoch: see `Epoch`.
      guide: see `Guide`.
      second_model: the distiller's `second_model`.
    """

    make_model: MakeModel
    init: Init
    epoch: Epoch
    guide: Guide
    second_model: SecondModel | None = None


def no_teacher(train: Interactions) -> Representations:
    """Returns representations of width 0, for a phase without distillation."""
    return Representations(jnp.zeros((train.num_users, 0)), jnp.zeros((train.num_items, 0)))


def make_trainer(
    make_model: MakeModel,
    distiller: Distiller,
    optimizer: optax.GradientTransformation | RowOptimizer,
    *,
    batch_size: int,
    objective: Objective | None = None,
) -> Trainer:
    """Builds the compiled epoch of a model trained with `distiller`.

    Args:
      make_model: returns the Flax module for the training interactions, see `htd_jax.models`. It is called once per
        epoch, so that steps do not repeat what it computes from the interactions.
      distiller: see `htd_jax.distillers`.
      optimizer: applied to the parameters of model and distiller alike. A `RowOptimizer` updates the rows that a step
        reads, of a model that is `row_local`, and its `rest` all other parameters.
      batch_size: triples per step; the last batch of an epoch is padded.
      objective: the base loss and its batches; the model's own loss if None.
    """
    base = objective or own()
    by_rows = isinstance(optimizer, RowOptimizer)
    prefixes = make_model.prefixes if isinstance(make_model, ModelOf) else ()
    of_prefixes = [make_model.prefix(dim) for dim in prefixes]  # type: ignore[attr-defined]

    def guide(train: Interactions, teacher: AnyTeacher) -> Guidance:
        if isinstance(teacher, Guidance):
            return teacher
        teacher = Teacher.of(teacher)
        teacher.check(train, distiller.needs)
        hints = None if teacher.representations is None else teacher.hints()
        return Guidance(hints, distiller.prepare(teacher, train))

    def init(key: chex.PRNGKey, train: Interactions, teacher: AnyTeacher) -> TrainState:
        guidance = guide(train, teacher)
        model_key, distiller_key = jax.random.split(key)
        one = jnp.zeros(1, jnp.int32)
        model = make_model(train)
        if by_rows and not model.row_local:
            raise ValueError(f"{type(model).__name__} reads more rows than a step's own, which a RowOptimizer needs")
        variables = model.init(model_key, one, one, method="score")
        student, _ = jax.eval_shape(lambda: model.apply(variables, one, one, method="represent"))
        shapes = Shapes(train.num_users, train.num_items, student.shape[1])
        params = {"model": variables, "distiller": distiller.init(distiller_key, shapes, guidance.context)}
        if prefixes and jax.tree.leaves(params["distiller"]):
            raise UserError("`prefixes` needs a `method` that learns nothing besides the student, such as best")
        epoch = jnp.zeros((), jnp.int32)
        sampled = jax.eval_shape(lambda: refresh(params, None, key, epoch, model, guidance))
        sampled = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sampled)
        opt_state = rows.begin_state(optimizer, params) if by_rows else optimizer.init(_flat(params))
        return TrainState(params, opt_state, epoch, sampled)

    def refresh(
        params: Any, sampled: Any, key: chex.PRNGKey, epoch: jax.Array, model: Recommender, guidance: Guidance
    ) -> Any:
        """Returns what the distiller samples for this epoch, with the model as it is."""

        def refresh_with(student: Recommender) -> Any:
            start = EpochStart(params["distiller"], guidance.context, sampled, with_tables(student), key, epoch)
            return distiller.refresh(start)

        return jax.lax.stop_gradient(nn.apply(refresh_with, model)(params["model"]))

    def loss(
        params: Any,
        sampled: Any,
        model: Recommender,
        triples: Triples,
        key: chex.PRNGKey,
        epoch: jax.Array,
        train: Interactions,
        constants: Any,
        guidance: Guidance,
        located: Callable[[Recommender], Any] = lambda bound: bound,
    ) -> tuple[jax.Array, Terms]:
        users = distinct(triples.users, triples.where, train.num_users)
        chosen_items = [(triples.positives, triples.negatives), (triples.positives,), (triples.negatives,)]
        items = [
            distinct(jnp.concatenate(ids), jnp.tile(triples.where, len(ids)), train.num_items) for ids in chosen_items
        ]
        tables = guidance.hints or no_teacher(train)
        side = lambda student, table, chosen: Side(student, table[chosen[0]], chosen[1], chosen[0])

        def losses(bound: Recommender) -> tuple[jax.Array, jax.Array, Terms]:
            # On one bound module, whose methods share what they have in common.
            student = located(bound)
            represented = [student.represent(users[0], ids) for ids, _ in items]
            entities = Entities(
                side(represented[0][0], tables.users, users),
                *(side(rows, tables.items, chosen) for (_, rows), chosen in zip(represented, items)),
            )
            all_scores = functools.cache(lambda: student.score_all(users[0]))
            batch = Batch(
                entities,
                triples,
                student.score,
                student.score_all,
                student.represent,
                all_scores,
                student.score_each,
            )
            base_loss = base.loss(student, batch, constants, jax.random.fold_in(key, 0))
            distillation, terms = distiller.loss(
                Step(params["distiller"], guidance.context, sampled, batch, key, epoch)
            )
            return base_loss, distillation, terms

        base_loss, distillation, terms = nn.apply(losses, model.in_step())(params["model"])
        total = base_loss + distillation
        return total, {**terms, "loss": total, "base": base_loss}

    def epoch(
        state: TrainState, key: chex.PRNGKey, train: Interactions, teacher: AnyTeacher
    ) -> tuple[TrainState, Terms]:
        guidance = guide(train, teacher)
        key = jax.random.fold_in(key, state.epoch)
        *batch_keys, step_key = jax.random.split(key, 3)
        batches = base.sample(batch_keys, train, batch_size)

        model = make_model(train)
        models = [make(train) for make in of_prefixes] or [model]
        refresh_key = jax.random.fold_in(key, 3)  # the next after those of the split
        sampled = refresh(state.params, state.sampled, refresh_key, state.epoch, model, guidance)
        constants = base.constants(train)
        numbered = (jnp.arange(len(batches.users)), batches)
        shaped = lambda flat: jax.tree.map(lambda x, like: x.reshape(like.shape), flat, state.params)

        def step_loss(
            params: Any, index: jax.Array, models: Sequence[Recommender], triples: Triples, **view: Any
        ) -> Any:
            key = jax.random.fold_in(step_key, index)

            def of_one(params: Any, model: Recommender) -> tuple[jax.Array, Terms]:
                return loss(params, sampled, model, triples, key, state.epoch, train, constants, guidance, **view)

            return sum_over_prefixes(of_one, params, models, prefixes) if prefixes else of_one(params, models[0])

        def dense_step(carry: Any, batch: Any) -> tuple[Any, Terms]:
            flat, opt_state = carry
            index, triples = batch
            flat_loss = lambda flat: step_loss(shaped(flat), index, models, triples)
            gradient, terms = jax.grad(flat_loss, has_aux=True)(flat)
            updates, opt_state = optimizer.update(gradient, opt_state, flat)  # type: ignore[call-arg]
            return (optax.apply_updates(flat, updates), opt_state), terms

        def row_step(carry: rows.Carry, batch: Any) -> tuple[rows.Carry, Terms]:
            index, triples = batch
            key = jax.random.fold_in(step_key, index)
            own = RowIds(triples.users, jnp.concatenate([triples.positives, triples.negatives]))
            own += base.reads(constants, triples, jax.random.fold_in(key, 0))
            own += distiller.reads(guidance.context, sampled, triples, key)

            def local_loss(params: Any, places: rows.BothPlaces) -> Any:
                few = [make(places.users.number, places.items.number) for make in of_rows]
                return step_loss(params, index, few, triples, located=lambda bound: rows.Located(bound, places))

            return rows.step(optimizer, carry, own, local_loss, index, first_step)

        if by_rows:
            first_step = state.epoch * len(batches.users)
            whole = state.params["model"]
            tables = [first_dimensions(whole, dim) for dim in prefixes] or [whole]
            of_rows = [each.of_rows(variables) for each, variables in zip(models, tables)]
            carry = rows.begin(state.params, state.opt_state)
            carry, terms = jax.lax.scan(row_step, carry, numbered)
            params, opt_state = rows.end(optimizer, carry, len(batches.users), first_step)
        else:
            (flat, opt_state), terms = jax.lax.scan(dense_step, (_flat(state.params), state.opt_state), numbered)
            params = shaped(flat)
        terms = jax.tree.map(lambda x: x.mean(0), terms)
        return TrainState(params, opt_state, state.epoch + 1, sampled), terms

    compiled = jax.jit(epoch, donate_argnums=0, compiler_options=compiler_options())
    return Trainer(make_model, jax.jit(init, compiler_options=brief_options()), compiled, guide, distiller.second_model)


def compile_epoch(trainer: Trainer, *inputs: Any) -> Epoch:
    """Compiles a trainer's epoch for inputs of these shapes, once for all phases that share trainer and shapes."""
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        return trainer.epoch
    leaves, structure = jax.tree.flatten(inputs)
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type) for x in map(jax.typeof, leaves))
    return _compiled(trainer.epoch, structure, shapes)  # type: ignore[arg-type]  # a function is hashable


@functools.lru_cache(maxsize=16)
def _compiled(epoch: Any, structure: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> Epoch:
    compiled: Epoch = epoch.lower(*jax.tree.unflatten(structure, shapes)).compile()
    return compiled


def _flat(params: Any) -> Any:
    """Returns every leaf as a vector, the form the optimiser works on: over rows of 20 numbers a processor's vector
    loop mostly handles remainders, and Adam takes three times as long."""
    return jax.tree.map(jnp.ravel, params)
