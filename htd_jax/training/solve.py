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
from htd_jax.training.partitioning import Partitioning, everywhere
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

    def guide(train: Interactions, teacher: AnyTeacher) -> Guidance:
        if isinstance(teacher, Guidance):
            return teacher
        teacher = Teacher.of(teacher)
        teacher.check(train, distiller.needs if distiller else ())
        if partitioning is not None:
            train = partitioning.whole(train, everywhere(train))
        context = solver.prepare(train, distiller.prepare(teacher, train) if distiller else None)
        return Guidance(None, context if partitioning is None else partitioning.copy(context))

    def init(key: chex.PRNGKey, train: Interactions, teacher: AnyTeacher) -> TrainState:
        one = jnp.zeros(1, jnp.int32)
        variables = make_model(train).init(key, one, one, method="score")
        return TrainState({"model": variables, "distiller": {}}, (), jnp.zeros((), jnp.int32))

    init = jax.jit(init, compiler_options=brief_options())
    return Trainer(make_model, init, _epoch(solver.sweep), guide)


@functools.lru_cache(maxsize=16)
def _epoch(sweep: Callable[[Any, Any], tuple[Any, jax.Array]]) -> Any:
    """Returns the compiled epoch of a solver; its teacher is the result of the trainer's `guide`."""

    def epoch(state: TrainState, key: chex.PRNGKey, train: Interactions, teacher: Guidance) -> tuple[TrainState, Terms]:
        variables, objective = sweep(state.params["model"], teacher.context)
        params: Any = {**state.params, "model": variables}
        return state.replace(params=params, epoch=state.epoch + 1), {"loss": objective}  # type: ignore[attr-defined]

    return jax.jit(epoch, donate_argnums=0)
