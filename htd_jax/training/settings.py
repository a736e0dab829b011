"""How a phase is trained."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

Loss = Literal["own", "softmax"]

# Fewer steps than these are too few for a softmax, however few users a pass has.
LEAST_STEPS = 800

# What a loss is usually trained with. Epochs of `own` are the model's.
USUAL: dict[str, dict[str, Any]] = {
    "own": {"batch_size": 1024, "learning_rate": 1e-3, "schedule": "constant", "l2": 1e-3},
    "softmax": {"epochs": 20, "batch_size": 128, "learning_rate": 1e-2, "schedule": "cosine", "l2": 1.0},
}


@dataclasses.dataclass(frozen=True)
class Training:
    """Of every phase: Adam, on batches of triples (user, seen item, unseen item).

    What is None is what the loss, or the method, usually takes, see `filled`.
    """

    epochs: Annotated[int, Ge(1)] | None = None
    """Passes over the training pairs; of softmax, over users. Default: 101, ials 15, softmax 20 or 800 steps."""
    loss: Loss | None = None
    """Of the base model. own: its own, on batches of pairs. softmax: that of a user's seen items among all items, on
    batches of users; of models whose scores are products. Default: own; of --method best, softmax."""
    temperature: Annotated[float, Gt(0)] = 0.05
    """Of the softmax: scores are divided by it."""
    batch_size: Annotated[int, Ge(1)] | None = None
    """Training triples a step. Default: 1024; of softmax, 128, a user each."""
    learning_rate: Annotated[float, Ge(0)] | None = None
    """Of Adam. Default: 1e-3, softmax 1e-2."""
    schedule: Literal["constant", "cosine"] | None = None
    """Of the learning rate; cosine: it falls to 0 over all epochs. Default: constant, softmax cosine."""
    l2: Annotated[float, Ge(0)] | None = None
    """Times each parameter, added to its gradient. Default: 1e-3; softmax 1, and of --method best 0.02."""
    eval_every: Annotated[int, Ge(1)] = 10
    """Epochs between two evaluations."""
    patience: Annotated[int, Ge(1)] | None = None
    """Stop once this many epochs have passed since the best one in validation, and keep that one. Default: all epochs
    are run, and the last one is kept."""

    def filled(self, epochs: int, usual: Mapping[str, Any] | None = None, *, users: int = 0) -> "Training":
        """Itself with nothing left open: as it says; else as the method usually takes it; else as the loss does.

        Args:
          epochs: of a model trained with its own loss.
          users: how many a pass of the softmax has, if it is known.
          usual: what the method usually takes, by field; what is no field is passed over, and all of it where the loss
            is not the method's.
        """
        if usual and self.loss not in (None, usual.get("loss")):
            usual = None
        chosen: dict[str, Any] = {
            **(usual or {}),
            **{name: value for name, value in vars(self).items() if value is not None},
        }
        loss = chosen.get("loss", "own")
        chosen = {"epochs": epochs, "loss": loss, **USUAL[loss], **chosen}
        if users and loss == "softmax" and self.epochs is None:
            steps = -(-users // min(chosen["batch_size"], users))
            chosen["epochs"] = max(chosen["epochs"], -(-LEAST_STEPS // steps))
        known = [field.name for field in dataclasses.fields(self)]
        return dataclasses.replace(self, **{name: x for name, x in chosen.items() if name in known})
