"""The recipe: what gives the best small student for the least training."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt

from htd_jax.distillers.base import Distiller, Method
from htd_jax.distillers.listwise import listwise


@dataclasses.dataclass(frozen=True)
class Best(Method):
    """The recipe: an ials teacher's best unseen items, nearly alike, in a softmax beside the seen ones (this project).

    Usually its teacher is an ials, and its students are trained with `--loss softmax`. The teacher says which items,
    hardly in what order: at 4 standard deviations of its scores the first of a hundred is a few times as likely as the
    last.
    """

    weight: Annotated[float, Ge(0)] = 200.0
    """Lambda: the teacher's items of a user, together, count this much against each seen one."""
    top: Annotated[int, Ge(1)] = 100
    """How many of the teacher's best unseen items of a user are told from the others."""
    temperature: Annotated[float, Gt(0)] = 0.05
    """By which the student's scores are divided."""
    teacher_temperature: Annotated[float, Gt(0)] = 4.0
    """By which the teacher's are, in units of the standard deviation of its scores for one user."""
    rank_temperature: Annotated[float, Gt(0)] = 50.0
    """For lists without scores: the item of rank r has a probability like exp(-r / this)."""

    label: ClassVar[str] = "Best"
    teacher_model: ClassVar[str | None] = "ials"
    training_defaults: ClassVar[Mapping[str, Any]] = {"loss": "softmax", "sampled_items": 0, "l2": 0.02}

    def make(self, epochs: int) -> Distiller:
        return listwise(
            temperature=self.temperature,
            teacher_temperature=self.teacher_temperature,
            seen_weight=0,
            most_users=0,
            top=self.top,
            rank_temperature=self.rank_temperature,
            rest=0,
        )
