"""The one compiled step, and the epoch that scans it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from htd_jax.data import Interactions, distinct
from htd_jax.distillers import Batch, Distiller, Entities, Lists, Representations, Shapes, Side, Teacher, Triples
from htd_jax.models import MakeModel, Recommender, with_tables
from htd_jax.ops.platforms import compiler_options
from htd_jax.training.objectives import Objective, own


@struct.dataclass
class TrainState:
    """All of a phase's state; what a checkpoint holds.

    Attributes:
      params: `{"model": ..., "distiller": ...}`.
      opt_state: the optimiser's, over the parameters as vectors.
      epoch: int32 scalar, the number of epochs done.
      drawn: what the distiller's `refresh` gave last.
    """

    params: Any
    opt_state: Any
    epoch: jax.Array
    drawn: Any = ()


@struct.dataclass
class Prepared:
    """A teacher, and what a distiller's `prepare` made of it."""

    teacher: Teacher
    known: Any


# Whatever there is of a teacher; `Trainer.prepare` saves every epoch from doing so anew.
AnyTeacher = Prepared | Teacher | Representations | Lists | None


class Trainer(NamedTuple):
    """What a phase computes: `init(key, train, teacher) -> TrainState`, `epoch(state, key, train, teacher) ->
    (TrainState, terms)`, and `prepare(train, teacher) -> Prepared`, to be called once, and given to the others.

    `beside` is the distiller's.

    `epoch` takes the same key at every call, another than `init`: what is random in an epoch follows from key and
    epoch number, so a resumed run draws what an unbroken one draws. `terms` are means over the epoch's batches.
    `epoch` is jitted and takes over the state it is given.
    """

    init: Callable[[chex.PRNGKey, Interactions, AnyTeacher], TrainState]
    epoch: Callable[[TrainState, chex.PRNGKey, Interactions, AnyTeacher], tuple[TrainState, dict[str, jax.Array]]]
    prepare: Callable[[Interactions, AnyTeacher], Prepared]
    beside: Callable[[Any, Any], tuple[MakeModel, Any]] | None = None


def adam(learning_rate: optax.ScalarOrSchedule, l2: float) -> optax.GradientTransformation:
    """Adam with `l2 * parameter` added to the gradient of every parameter before the moments are updated."""
    return optax.chain(optax.add_decayed_weights(l2), optax.adam(learning_rate, eps=1e-8))


def cosine(learning_rate: float, steps: int) -> optax.Schedule:
    """From `learning_rate` down to 0, along half a cosine of so many steps."""
    return optax.cosine_decay_schedule(learning_rate, max(steps, 1))


def no_teacher(train: Interactions) -> Representations:
    """Representations of no dimension, for a phase that distils nothing."""
    return Representations(jnp.zeros((train.num_users, 0)), jnp.zeros((train.num_items, 0)))


def represent_all(make_model: MakeModel, variables: Any, train: Interactions) -> Representations:
    """The representations of every user and item under a model's variables."""
    every = jnp.arange(train.num_users), jnp.arange(train.num_items)
    represent = jax.jit(lambda variables, train: make_model(train).apply(variables, *every, method="represent"))
    return Representations(*represent(variables, train))


def make_trainer(
    make_model: MakeModel,
    distiller: Distiller,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int,
    objective: Objective | None = None,
) -> Trainer:
    """Builds the compiled epoch of a model under `distiller`.

    Args:
      make_model: the Flax module, given the training interactions, see `htd_jax.models`; called once an epoch, so what
        it computes of them is no part of a step.
      distiller: see `htd_jax.distillers`.
      optimizer: applied to the parameters of model and distiller alike.
      batch_size: triples a step; an epoch's last batch is short.
      objective: the base loss and its batches; the model's own if None.
    """
    base_loss = objective or own()

    def prepare(train: Interactions, teacher: AnyTeacher) -> Prepared:
        if isinstance(teacher, Prepared):
            return teacher
        teacher = Teacher.of(teacher)
        teacher.check(train, distiller.needs)
        return Prepared(teacher, distiller.prepare(teacher, train))

    def init(key: chex.PRNGKey, train: Interactions, given: AnyTeacher) -> TrainState:
        teacher = prepare(train, given)
        for_model, for_distiller = jax.random.split(key)
        one = jnp.zeros(1, jnp.int32)
        model = make_model(train)
        variables = model.init(for_model, one, one, method="score")
        student, _ = jax.eval_shape(lambda: model.apply(variables, one, one, method="represent"))
        shapes = Shapes(train.num_users, train.num_items, student.shape[1])
        learned = distiller.init(for_distiller, shapes, teacher.known)
        params = {"model": variables, "distiller": learned}
        first = lambda: draw(params, None, key, jnp.zeros((), jnp.int32), model, teacher)
        drawn = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(first))
        return TrainState(params, optimizer.init(_flat(params)), jnp.zeros((), jnp.int32), drawn)

    def draw(
        params: Any, drawn: Any, key: chex.PRNGKey, epoch: jax.Array, model: Recommender, teacher: Prepared
    ) -> Any:
        """What the distiller draws for this epoch, under the model as it is."""
        of_model = lambda model: distiller.refresh(
            params["distiller"], drawn, key, epoch, teacher.known, with_tables(model)
        )
        return jax.lax.stop_gradient(nn.apply(of_model, model)(params["model"]))

    def loss(
        params: Any,
        drawn: Any,
        model: Recommender,
        triples: Triples,
        key: chex.PRNGKey,
        epoch: jax.Array,
        train: Interactions,
        known: Any,
        teacher: Prepared,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        distinct_users = distinct(triples.users, triples.where, train.num_users)
        chosen_items = [(triples.positives, triples.negatives), (triples.positives,), (triples.negatives,)]
        distinct_items = [
            distinct(jnp.concatenate(ids), jnp.tile(triples.where, len(ids)), train.num_items) for ids in chosen_items
        ]
        tables = teacher.teacher.representations or no_teacher(train)
        side = lambda own, table, chosen: Side(own, table[chosen[0]], chosen[1], chosen[0])

        def of_batch(
            model: Recommender,
        ) -> tuple[
            jax.Array, jax.Array, dict[str, jax.Array]
        ]:  # on one bound module: what its methods share is computed once
            represented = [model.represent(distinct_users[0], ids) for ids, _ in distinct_items]
            entities = Entities(
                side(represented[0][0], tables.users, distinct_users),
                *(side(own, tables.items, chosen) for (_, own), chosen in zip(represented, distinct_items)),
            )
            whole = functools.cache(lambda: model.score_all(distinct_users[0]))
            batch = Batch(entities, triples, model.score, teacher.known, model.score_all, model.represent, whole)
            base = base_loss.loss(model, batch, known, jax.random.fold_in(key, 0))
            extra, terms = distiller.loss(params["distiller"], drawn, batch, key, epoch)
            return base, extra, terms

        base, extra, terms = nn.apply(of_batch, model)(params["model"])
        return base + extra, {**terms, "loss": base + extra, "base": base}

    def epoch(
        state: TrainState, key: chex.PRNGKey, train: Interactions, given: AnyTeacher
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        teacher = prepare(train, given)
        key = jax.random.fold_in(key, state.epoch)
        *batch_keys, step_key = jax.random.split(key, 3)
        batches = base_loss.draw(batch_keys, train, batch_size)

        model = make_model(train)
        draw_key = jax.random.fold_in(key, 3)  # the next after those of the split
        drawn = draw(state.params, state.drawn, draw_key, state.epoch, model, teacher)
        known = base_loss.prepare(train)
        shaped = lambda flat: jax.tree.map(lambda x, like: x.reshape(like.shape), flat, state.params)

        def step(carry: Any, batch: Any) -> tuple[Any, dict[str, jax.Array]]:
            flat, opt_state = carry
            index, triples = batch
            own_key = jax.random.fold_in(step_key, index)
            step_inputs = (drawn, model, triples, own_key, state.epoch, train, known, teacher)
            of_flat = lambda flat: loss(shaped(flat), *step_inputs)
            gradient, terms = jax.grad(of_flat, has_aux=True)(flat)
            updates, opt_state = optimizer.update(gradient, opt_state, flat)
            return (optax.apply_updates(flat, updates), opt_state), terms

        carry = (_flat(state.params), state.opt_state)
        (flat, opt_state), terms = jax.lax.scan(step, carry, (jnp.arange(len(batches.users)), batches))
        terms = jax.tree.map(lambda x: x.mean(0), terms)
        return TrainState(shaped(flat), opt_state, state.epoch + 1, drawn), terms

    compiled = jax.jit(epoch, donate_argnums=0, compiler_options=compiler_options())
    return Trainer(jax.jit(init), compiled, prepare, distiller.beside)


def _flat(params: Any) -> Any:
    """Every leaf as a vector, which is how the optimiser sees it: over rows of 20 numbers a processor's vector loop
    mostly handles remainders, and Adam takes three times as long."""
    return jax.tree.map(jnp.ravel, params)
