"""Pseudo-labels: the teacher's best unseen items as interactions, for students that are fitted in closed form."""

import dataclasses
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Gt

from htd_jax.data import Interactions
from htd_jax.distillers.base import Distiller, Method, none
from htd_jax.models import Labels
from htd_jax.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class Pseudo(Method):
    """Adds the teacher's best unseen items of every user to the student's training pairs (this project).

    For base models that are fitted in closed form, such as iALS, whose objective has a confidence for every pair.
    """

    weight: Annotated[float, Gt(0)] = 1.0
    """Lambda, the weight of an added pair in the objective, relative to that of a seen pair."""
    top: Annotated[int, Ge(1)] = 50
    """The number of items added per user."""

    label: ClassVar[str] = "pseudo-labels"
    closed_form: ClassVar[bool] = True

    def make(self, epochs: int) -> Distiller:
        return pseudo(self)


def pseudo(settings: Pseudo = Pseudo()) -> Distiller:
    """Adds the teacher's best unseen items to the training pairs, as `Labels`. It has no loss.

    Cost: users times `top` more pairs in every sweep. A teacher of lists may have fewer.

    Args:
      settings: see `Pseudo`.

    Returns:
      A `Distiller`, for `htd_jax.training.make_solving_trainer`.
    """

    def prepare(teacher: Teacher, train: Interactions) -> Labels:
        items = np.asarray(teacher.top(train, settings.top))
        users, rank = np.nonzero(items >= 0)
        return Labels(users, items[users, rank], np.full(len(users), settings.weight, np.float32))

    return none()._replace(prepare=prepare, needs=("lists",))
