"""Phases of models that are fitted in closed form: an epoch is a sweep of the solver."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from htd_jax.data import Interactions
from htd_jax.distillers import Distiller
from htd_jax.models import MakeModel, Solver
from htd_jax.ops.platforms import brief_options
from htd_jax.teacher import Teacher
from htd_jax.training.partitioning import EVERYWHERE, Extent, Extents, Partitioning, everywhere
from htd_jax.training.step import AnyTeacher, Guidance, Terms, Trainer, TrainState


def make_solving_trainer(
    make_model: MakeModel,
    solver: Solver,
    distiller: Distiller | None = None,
    partitioning: Partitioning | None = None,
) -> Trainer:
    """Builds a `Trainer` whose epochs are the solver's sweeps, without randomness.

    Args:
      make_model: the model.
      solver: its solver.
      distiller: a method whose `prepare` returns `Labels`, see `htd_jax.distillers.Pseudo`; None without a teacher.
      partitioning: where arrays live on several devices; None for one.
    """

    parts = partitioning.shards if partitioning and solver.prepare_parts else 0

    def guide(train: Interactions, teacher: AnyTeacher) -> Guidance:
        if isinstance(teacher, Guidance):
            return teacher
        if partitioning:
            train = partitioning.whole(train, everywhere(train))
        teacher = Teacher.of(teacher)
        teacher.check(train, distiller.needs if distiller else ())
        labels = distiller.prepare(teacher, train) if distiller else None
        if not partitioning:
            return Guidance(None, solver.prepare(train, labels))
        if not parts or not solver.prepare_parts:
            return Guidance(None, partitioning.copy(solver.prepare(train, labels)))
        context = solver.prepare_parts(train, labels, parts)
        return Guidance(None, partitioning.put(context, _by_parts(context)))

    def init(key: chex.PRNGKey, train: Interactions, teacher: AnyTeacher) -> TrainState:
        one = jnp.zeros(1, jnp.int32)
        variables = make_model(train).init(key, one, one, method="score")
        state = TrainState({"model": variables, "distiller": {}}, (), jnp.zeros((), jnp.int32))
        if partitioning and parts:
            return partitioning.constrain(state, partitioning.extents(state, train, by_name=True))
        return state

    init = jax.jit(init, compiler_options=brief_options())
    return Trainer(make_model, init, _epoch(solver.sweep, partitioning if parts else None), guide)


def _by_parts(context: Any) -> Extents:
    """Returns the extents of what `Solver.prepare_parts` made."""
    return jax.tree.map(lambda x: Extent(len(x), len(x)) if x.ndim > 1 else Extent(0, 0), context)


@functools.lru_cache(maxsize=16)
def _epoch(sweep: Callable[[Any, Any], tuple[Any, jax.Array]], partitioning: Partitioning | None) -> Any:
    """Returns the compiled epoch of a solver; its teacher is the result of the trainer's `guide`."""

    def epoch(state: TrainState, key: chex.PRNGKey, train: Interactions, teacher: Guidance) -> tuple[TrainState, Terms]:
        context, sweep_shards = teacher.context, sweep
        if partitioning:
            extents = partitioning.extents(state.params["model"], train, by_name=True, held=True)
            sweep_shards = partitioning.over_shards(sweep, (extents, _by_parts(context)), (extents, EVERYWHERE))
        variables, objective = sweep_shards(state.params["model"], context)
        params: Any = {**state.params, "model": variables}
        return state.replace(params=params, epoch=state.epoch + 1), {"loss": objective}  # type: ignore[attr-defined]

    return jax.jit(epoch, donate_argnums=0)
