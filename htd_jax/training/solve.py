"""A phase of a model that is solved for: an epoch is a sweep."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from htd_jax.data import Interactions
from htd_jax.distillers import Teacher
from htd_jax.models import MakeModel, Solver
from htd_jax.training.step import AnyTeacher, Prepared, Trainer, TrainState


def make_solving_trainer(make_model: MakeModel, solver: Solver) -> Trainer:
    """A `Trainer` whose epochs are the solver's sweeps; nothing in them is random, and nobody teaches."""

    def prepare(train: Interactions, teacher: AnyTeacher) -> Prepared:
        return teacher if isinstance(teacher, Prepared) else Prepared(Teacher.of(teacher), solver.prepare(train))

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
