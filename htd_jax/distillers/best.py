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

    By default its teacher is an iALS model, and the student's base loss is the softmax. The teacher's probabilities of
    a user's items have the same effective number for every user and teacher, whatever the scale of the scores.
    """

    weight: Annotated[float, Ge(0)] = 200.0
    """Lambda, the total weight of the teacher's items of a user, relative to the weight of one seen item."""
    top: Annotated[int, Ge(1)] = 300
    """The number of the teacher's best unseen items of a user that the student learns."""
    perplexity: Annotated[float, Ge(1)] = 100.0
    """The effective number of these items, exp(entropy) of the teacher's probabilities, which a temperature per user
    gives them. Lists without scores count by rank."""
    temperature: Annotated[float, Gt(0)] = 0.05
    """The divisor of the student's scores."""

    label: ClassVar[str] = "Best"
    teacher_model: ClassVar[str | None] = "ials"
    searched: ClassVar[bool] = True
    training_defaults: ClassVar[Mapping[str, Any]] = {"loss": "softmax", "sampled_items": 0, "l2": 0.02}

    def make(self, epochs: int) -> Distiller:
        return listwise(Listwise(**dataclasses.asdict(self), seen=0, users=0, rest=0))
