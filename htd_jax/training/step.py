"""The compiled training step, and the epoch that scans it."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from htd_jax.data import Interactions, distinct
from htd_jax.distillers import Batch, Distiller, Entities, EpochStart, RowIds, Shapes, Side, Step, Triples
from htd_jax.distillers.base import SecondModel
from htd_jax.errors import UserError
from htd_jax.models import MakeModel, ModelOf, Recommender, Representations, first_dimensions, holding, with_tables
from htd_jax.ops.platforms import brief_options, compiler_options
from htd_jax.ops.shards import gathered, keep_local, look_up
from htd_jax.teacher import Lists, Teacher
from htd_jax.training import rows
from htd_jax.training.objectives import Objective, own
from htd_jax.training.optimizers import RowOptimizer
from htd_jax.training.partitioning import Extent, Extents, Partitioning, everywhere, is_extent, trim
from htd_jax.training.prefixes import sum_over_prefixes

Terms = dict[str, jax.Array]

# Batches over which `Norms` averages.
MEASURED = 8


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
    """A teacher as steps see it.

    Attributes:
      hints: its representations, see `Teacher.hints`; None if it has none.
      context: what the distiller's `prepare` made of it.
      extents: how the arrays of both are split over devices, in their order; None on one device.
    """

    hints: Representations | None
    context: Any
    extents: tuple[Extent, ...] | None = struct.field(pytree_node=False, default=None)


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


class Norms(Protocol):
    """Returns the norms of two gradients of the model's parameters: of the `base` loss and of the `method`'s.

    They are averaged over the first batches of the state's epoch, `MEASURED` at most. Compiled; nothing is donated.
    """

    def __call__(
        self, state: TrainState, key: chex.PRNGKey, train: Interactions, teacher: AnyTeacher, /
    ) -> dict[str, jax.Array]: ...


class Guide(Protocol):
    """Returns the `Guidance` of a teacher. Call it once, and pass the result to the other functions.

    Raises UserError if the teacher lacks what the method needs.
    """

    def __call__(self, train: Interactions, teacher: AnyTeacher, /) -> Guidance: ...


class EpochInputs(NamedTuple):
    """What the steps of an epoch read in addition to state, interactions and teacher.

    Attributes:
      batches: `[steps, width]`.
      sampled: the result of the distiller's `refresh`.
      constants: of the objective.
      key: from which the steps' keys follow.
    """

    batches: Triples
    sampled: Any
    constants: Any
    key: chex.PRNGKey


class Parts(NamedTuple):
    """The parts of a trainer, traceable functions of whole arrays.

    Attributes:
      guide: see `Guide`.
      init: see `Init`.
      begin: `(state, key, train, guidance) -> EpochInputs`, what is sampled at the start of an epoch.
      steps: `(state, inputs, train, guidance) -> (state, terms)`, all steps of an epoch. On each device of a
        mesh it takes shards of arrays, see `htd_jax.ops.shards`.
      divided: see `Distiller`.
      make_model: the model that is trained.
    """

    guide: Guide
    init: Init
    begin: Callable[[TrainState, chex.PRNGKey, Interactions, Guidance], EpochInputs]
    steps: Callable[[TrainState, EpochInputs, Interactions, Guidance], tuple[TrainState, Terms]]
    divided: bool
    make_model: MakeModel


class Trainer(NamedTuple):
    """The computation of a phase.

    Attributes:
      make_model: the model that is trained.
      init: see `Init`.
      epoch: see `Epoch`.
      guide: see `Guide`.
      second_model: the distiller's `second_model`.
      norms: see `Norms`; None on several devices, and where nothing is trained by gradients.
    """

    make_model: MakeModel
    init: Init
    epoch: Epoch
    guide: Guide
    second_model: SecondModel | None = None
    norms: Norms | None = None


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
    partitioning: Partitioning | None = None,
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
      partitioning: where arrays live on several devices; None for one.
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

        def side(student: jax.Array, table: jax.Array, chosen: tuple[jax.Array, jax.Array]) -> Side:
            ids, counted = chosen
            return Side(student, look_up(table, ids), counted, ids, keep_local(student, table, ids))

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

        noise = {"noise": jax.random.fold_in(key, 2)}
        base_loss, distillation, terms = nn.apply(losses, model.in_step())(params["model"], rngs=noise)
        total = base_loss + distillation
        return total, {**terms, "loss": total, "base": base_loss}

    def begin(state: TrainState, key: chex.PRNGKey, train: Interactions, guidance: Guidance) -> EpochInputs:
        key = jax.random.fold_in(key, state.epoch)
        *batch_keys, step_key = jax.random.split(key, 3)
        batches = base.sample(batch_keys, train, batch_size)
        refresh_key = jax.random.fold_in(key, 3)  # the next after those of the split
        sampled = refresh(state.params, state.sampled, refresh_key, state.epoch, make_model(train), guidance)
        return EpochInputs(batches, sampled, base.constants(train), step_key)

    def steps(
        state: TrainState, inputs: EpochInputs, train: Interactions, guidance: Guidance
    ) -> tuple[TrainState, Terms]:
        batches, sampled, constants, step_key = inputs
        whole = state.params["model"]
        tables = [first_dimensions(whole, dim) for dim in prefixes] or [whole]
        models = [holding(make(train), variables) for make, variables in zip(of_prefixes or [make_model], tables)]
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
            index, triples = gathered(batch)
            flat_loss = lambda flat: step_loss(shaped(flat), index, models, triples)
            gradient, terms = jax.grad(flat_loss, has_aux=True)(flat)
            updates, opt_state = optimizer.update(gradient, opt_state, flat)  # type: ignore[call-arg]
            return (optax.apply_updates(flat, updates), opt_state), terms

        def row_step(carry: rows.Carry, batch: Any) -> tuple[rows.Carry, Terms]:
            index, triples = gathered(batch)
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
            of_rows = [each.of_rows(variables) for each, variables in zip(models, tables)]
            carry = rows.begin(state.params, state.opt_state)
            carry, terms = jax.lax.scan(row_step, carry, numbered)
            params, opt_state = rows.end(optimizer, carry, len(batches.users), first_step)
        else:
            (flat, opt_state), terms = jax.lax.scan(dense_step, (_flat(state.params), state.opt_state), numbered)
            params = shaped(flat)
        terms = jax.tree.map(lambda x: x.mean(0), terms)
        return TrainState(params, opt_state, state.epoch + 1, sampled), terms

    def epoch(
        state: TrainState, key: chex.PRNGKey, train: Interactions, teacher: AnyTeacher
    ) -> tuple[TrainState, Terms]:
        guidance = guide(train, teacher)
        return steps(state, begin(state, key, train, guidance), train, guidance)

    def norms(state: TrainState, key: chex.PRNGKey, train: Interactions, teacher: AnyTeacher) -> dict[str, jax.Array]:
        guidance = guide(train, teacher)
        batches, sampled, constants, step_key = begin(state, key, train, guidance)
        model = holding(make_model(train), state.params["model"])

        def of_batch(numbered: Any) -> dict[str, jax.Array]:
            index, triples = numbered
            key = jax.random.fold_in(step_key, index)

            def losses(variables: Any) -> jax.Array:
                params = {**state.params, "model": variables}
                total, terms = loss(params, sampled, model, triples, key, state.epoch, train, constants, guidance)
                return jnp.stack([terms["base"], total - terms["base"]])

            of_both = jax.jacrev(losses)(state.params["model"])
            squares = sum(jnp.sum(jnp.square(x.reshape(2, -1)), axis=1) for x in jax.tree.leaves(of_both))
            return dict(zip(("base", "method"), jnp.sqrt(squares)))

        few = jax.tree.map(lambda x: x[:MEASURED], (jnp.arange(len(batches.users)), batches))
        return jax.tree.map(jnp.mean, jax.lax.map(of_batch, few))

    if partitioning is not None:
        parts = Parts(guide, init, begin, steps, distiller.divided, make_model)
        return Trainer(make_model, *partitioned(parts, partitioning), distiller.second_model)
    compiled = jax.jit(epoch, donate_argnums=0, compiler_options=compiler_options())
    return Trainer(
        make_model,
        jax.jit(init, compiler_options=brief_options()),
        compiled,
        guide,
        distiller.second_model,
        jax.jit(norms, compiler_options=brief_options()),
    )


def partitioned(parts: Parts, partitioning: Partitioning) -> tuple[Init, Epoch, Guide]:
    """Returns the functions of a `Trainer` on several devices.

    What is sampled at the start of an epoch is computed from whole arrays, which the compiler divides among the
    devices; each device then takes the steps by itself, on its shards, and communicates where a row is looked up or a
    sum is over all items. Arguments are placed by the partitioning, but for the teacher of `guide`, which is in this
    process's memory.
    """

    def guide(train: Interactions, teacher: AnyTeacher) -> Guidance:
        if isinstance(teacher, Guidance):
            return teacher
        if not parts.divided:
            made = parts.guide(partitioning.whole(train, everywhere(train)), teacher)
            extents = partitioning.extents(made.hints, train), everywhere(made.context)
            hints, context = partitioning.put((made.hints, made.context), extents)
        else:
            teacher = Teacher.of(teacher)
            teacher.check(train)
            if products := teacher.scores is not None and teacher.inner_product:  # they follow from its tables
                teacher = dataclasses.replace(teacher, scores=None)
            given = partitioning.extents(teacher, train)

            @partitioning.by_compiler
            def whole_guide(train: Interactions, placed: Teacher) -> tuple[Representations | None, Any]:
                whole = trim(placed, given)
                if products:
                    whole = dataclasses.replace(Teacher.of(whole.representations), lists=whole.lists)
                return _pair(parts.guide(train, whole))

            placed = partitioning.put(teacher, given)
            extents = partitioning.extents(jax.eval_shape(whole_guide, train, placed), train)
            make = lambda train, placed: partitioning.constrain(whole_guide(train, placed), extents)
            hints, context = jax.jit(make)(train, placed)
        return Guidance(hints, context, tuple(jax.tree.leaves(extents, is_leaf=is_extent)))

    def extents_of(guidance: Guidance) -> Extents:
        return jax.tree.unflatten(jax.tree.structure(_pair(guidance)), guidance.extents or ())

    def whole(guidance: Guidance) -> Guidance:
        return Guidance(*trim(_pair(guidance), extents_of(guidance)))

    def extents_of_state(key: chex.PRNGKey, train: Interactions, guidance: Guidance) -> TrainState:
        state = jax.eval_shape(parts.init, key, train, whole(guidance))
        divided = parts.make_model(train).divided
        tables = partitioning.extents(state, train, by_name=True) if divided else everywhere(state)
        sampled = partitioning.extents(state.sampled, train) if parts.divided else everywhere(state.sampled)
        return tables.replace(sampled=sampled)  # type: ignore[no-any-return]

    def init(key: chex.PRNGKey, train: Interactions, guidance: Guidance) -> TrainState:
        extents = extents_of_state(key, train, guidance)
        return partitioning.constrain(parts.init(key, train, whole(guidance)), extents)

    def epoch(
        state: TrainState, key: chex.PRNGKey, train: Interactions, guidance: Guidance
    ) -> tuple[TrainState, Terms]:
        state_extents = extents_of_state(key, train, guidance)
        inputs = partitioning.by_compiler(parts.begin)(trim(state, state_extents), key, train, whole(guidance))
        batch_extents = partitioning.columns(inputs.batches)
        input_extents = everywhere(inputs)._replace(batches=batch_extents, sampled=state_extents.sampled)
        guidance_extents = Guidance(*extents_of(guidance))
        arguments = state, partitioning.constrain(inputs, input_extents), train, Guidance(*_pair(guidance))
        extents = state_extents, input_extents, everywhere(train), guidance_extents
        steps = partitioning.over_shards(parts.steps, extents, (state_extents, PartitionSpec()))
        try:
            return steps(*arguments)
        except (TypeError, ValueError) as error:
            if "varying" not in str(error):
                raise
            raise UserError(
                "the loss differs between devices: a method or model indexes an array that is split by rows as if it "
                "were whole; use `htd_jax.ops.shards.look_up`, or leave out `mesh`"
            ) from error

    compiled: Any = jax.jit(epoch, donate_argnums=0, compiler_options=compiler_options())
    initial: Any = jax.jit(init, compiler_options=brief_options())
    return initial, compiled, guide


def _pair(guidance: Guidance) -> tuple[Representations | None, Any]:
    return guidance.hints, guidance.context


def compile_epoch(trainer: Trainer, *inputs: Any) -> Epoch:
    """Compiles a trainer's epoch for inputs of these shapes, once for all phases that share trainer and shapes."""
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        return trainer.epoch
    leaves, structure = jax.tree.flatten(inputs)
    shapes = tuple(map(_shape, leaves))
    return _compiled(trainer.epoch, structure, shapes)  # type: ignore[arg-type]  # a function is hashable


@functools.lru_cache(maxsize=16)
def _compiled(epoch: Any, structure: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> Epoch:
    compiled: Epoch = epoch.lower(*jax.tree.unflatten(structure, shapes)).compile()
    return compiled


def _shape(x: jax.Array) -> jax.ShapeDtypeStruct:
    kind = jax.typeof(x)
    sharding = x.sharding if isinstance(x.sharding, NamedSharding) else None
    return jax.ShapeDtypeStruct(kind.shape, kind.dtype, weak_type=kind.weak_type, sharding=sharding)


def _flat(params: Any) -> Any:
    """Returns every leaf as a vector, the form the optimiser works on: over rows of 20 numbers a processor's vector
    loop mostly handles remainders, and Adam takes three times as long."""
    return jax.tree.map(jnp.ravel, params)
