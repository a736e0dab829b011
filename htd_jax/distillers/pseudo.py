"""Pseudo-labels: the teacher's best items as if they had been seen, for students that are solved for."""

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
    """The teacher's best unseen items of every user, as pairs of the student's own data (this project).

    For models that are solved for (`--model ials`), whose objective has a confidence for every pair.
    """

    weight: Annotated[float, Gt(0)] = 1.0
    """How much more than an unseen pair such a pair counts, beside a seen one."""
    top: Annotated[int, Ge(1)] = 50
    """How many items a user."""

    label: ClassVar[str] = "pseudo-labels"
    closed_form: ClassVar[bool] = True

    def make(self, epochs: int) -> Distiller:
        return pseudo(weight=self.weight, top=self.top)


def pseudo(*, weight: float, top: int) -> Distiller:
    """The teacher's best unseen items as `Labels`; there is no loss to descend.

    Cost: as many pairs more as there are users times `top`, in every sweep.

    Args:
      weight: of a pair, beside a seen one, over 0.
      top: items a user; a teacher of lists may have fewer.

    Returns:
      A `Distiller`, for `make_solving_trainer`.
    """

    def prepare(teacher: Teacher, train: Interactions) -> Labels:
        items = np.asarray(teacher.top(train, top))
        users, rank = np.nonzero(items >= 0)
        return Labels(users, items[users, rank], np.full(len(users), weight, np.float32))

    return none()._replace(prepare=prepare, needs=("lists",))
