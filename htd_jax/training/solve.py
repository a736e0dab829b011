"""A phase of a model that is solved for: an epoch is a sweep."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from htd_jax.data import Interactions
from htd_jax.distillers import Distiller, Teacher, none
from htd_jax.models import MakeModel, Solver
from htd_jax.training.step import AnyTeacher, Prepared, Trainer, TrainState


def make_solving_trainer(make_model: MakeModel, solver: Solver, distiller: Distiller | None = None) -> Trainer:
    """A `Trainer` whose epochs are the solver's sweeps; nothing in them is random.

    Args:
      make_model, solver: of the model.
      distiller: whose `prepare` makes `Labels` of the teacher, see `htd_jax.distillers.Pseudo`; nobody teaches if None.
    """
    helps = distiller or none()

    def prepare(train: Interactions, teacher: AnyTeacher) -> Prepared:
        if isinstance(teacher, Prepared):
            return teacher
        teacher = Teacher.of(teacher)
        teacher.check(train, helps.needs)
        return Prepared(teacher, solver.prepare(train, helps.prepare(teacher, train) if distiller else None))

    def init(key: chex.PRNGKey, train: Interactions, teacher: AnyTeacher) -> TrainState:
        one = jnp.zeros(1, jnp.int32)
        variables = make_model(train).init(key, one, one, method="score")
        return TrainState({"model": variables, "distiller": {}}, (), jnp.zeros((), jnp.int32))

    def epoch(
        state: TrainState, key: chex.PRNGKey, train: Interactions, teacher: AnyTeacher
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        variables, left = solver.sweep(state.params["model"], prepare(train, teacher).known)
        params: Any = {**state.params, "model": variables}
        return state.replace(params=params, epoch=state.epoch + 1), {"loss": left}  # type: ignore[attr-defined]

    return Trainer(jax.jit(init), jax.jit(epoch, donate_argnums=0), prepare)
