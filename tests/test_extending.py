"""A method added from outside the package, in one class and with public imports only."""

import dataclasses
from typing import Annotated

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from annotated_types import Ge

import htd_jax
from htd_jax.distillers import METHODS, Distiller, EpochStart, Method, Step, no_params, register


@dataclasses.dataclass(frozen=True)
class Shrink(Method):
    """Shortens the student's representations of users."""

    weight: Annotated[float, Ge(0)] = 0.1
    """Lambda, the weight of the method's loss against the base loss."""
    most: Annotated[float, Ge(0)] = 1.0
    """The largest strength; each epoch samples one between 0 and this."""

    def make(self, epochs: int) -> Distiller:
        def refresh(start: EpochStart) -> jax.Array:
            return self.most * jax.random.uniform(start.key)

        def loss(step: Step) -> tuple[jax.Array, dict[str, jax.Array]]:
            users = step.batch.entities.users.masked()
            value = step.sampled * jnp.sum(users.student**2)
            return value, {"shrink": value}

        return Distiller(no_params, loss, refresh, needs=())


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Registers the method for one test."""
    monkeypatch.setattr(METHODS, "_known", dict(METHODS))
    register("shrink", Shrink)


def distil(teacher, data, **options):
    return htd_jax.distill(teacher, data, dim=4, epochs=2, eval_every=1, progress=False, **options)


def test_a_method_is_known_by_its_name_and_by_its_class():
    assert METHODS["shrink"] is METHODS[f"{__name__}:Shrink"] is Shrink
    assert Shrink.label == "Shrink"


def test_a_method_trains_by_name_by_class_and_by_settings(data, teacher):
    by_name = distil(teacher, data, method="shrink")
    for method in (f"{__name__}:Shrink", Shrink()):
        chex.assert_trees_all_equal(distil(teacher, data, method=method).variables, by_name.variables)
    assert by_name.records[-1]["terms"]["shrink"] > 0
    strong = distil(teacher, data, method=Shrink(most=100.0))
    assert np.linalg.norm(strong.representations().users) < np.linalg.norm(by_name.representations().users)


def test_a_method_composes_with_others(data, teacher):
    student = distil(teacher, data, method="ftd+shrink")
    assert {"ftd", "shrink"} <= set(student.records[-1]["terms"])
