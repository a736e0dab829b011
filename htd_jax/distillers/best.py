"""The recommended recipe: the best small student for the least training."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt

from htd_jax.distillers.base import Distiller, Method
from htd_jax.distillers.listwise import Listwise, listwise


@dataclasses.dataclass(frozen=True)
class Best(Method):
    """The recommended recipe: a softmax over all items learns an iALS teacher's best unseen items and the seen ones.

    By default its teacher is an iALS model, and the student's base loss is the softmax. The items count nearly equally:
    at 4 standard deviations of the teacher's scores the first of a hundred is a few times as likely as the last.
    """

    weight: Annotated[float, Ge(0)] = 200.0
    """Lambda, the total weight of the teacher's items of a user, relative to the weight of one seen item."""
    top: Annotated[int, Ge(1)] = 100
    """The number of the teacher's best unseen items of a user that the student learns."""
    temperature: Annotated[float, Gt(0)] = 0.05
    """The divisor of the student's scores."""
    teacher_temperature: Annotated[float, Gt(0)] = 4.0
    """The divisor of the teacher's scores, in units of the standard deviation of a user's scores."""
    rank_temperature: Annotated[float, Gt(0)] = 50.0
    """For lists without scores, the item of rank r has a probability proportional to exp(-r / this)."""

    label: ClassVar[str] = "Best"
    teacher_model: ClassVar[str | None] = "ials"
    training_defaults: ClassVar[Mapping[str, Any]] = {"loss": "softmax", "sampled_items": 0, "l2": 0.02}

    def make(self, epochs: int) -> Distiller:
        return listwise(Listwise(**dataclasses.asdict(self), seen=0, users=0, rest=0))
