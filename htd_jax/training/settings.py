"""How a phase is trained."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from htd_jax.data import Interactions

Loss = Literal["own", "softmax"]

# Fewer steps than these are too few for a softmax, however few users a pass has.
LEAST_STEPS = 800

# Past so many items, some that are drawn stand for all of them, so many in a step.
MANY_ITEMS, SAMPLED = 100_000, 2_048

# What a loss is usually trained with. Epochs of `own` are the model's.
USUAL: dict[str, dict[str, Any]] = {
    "own": {"batch_size": 1024, "learning_rate": 1e-3, "schedule": "constant", "l2": 1e-3},
    "softmax": {"epochs": 20, "batch_size": 128, "learning_rate": 1e-2, "schedule": "cosine", "l2": 1.0},
}
# And of the softmax over drawn items.
OF_SAMPLED: dict[str, Any] = {"batch_size": 1024, "l2": 0.4}


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
    sampled_items: Annotated[int, Ge(0)] | None = None
    """Of the softmax: so many items, drawn anew each step, stand for all, and batches are of pairs; 0: none are drawn.
    Default: 0, past 100,000 items 2048; of --method best 0."""
    batch_size: Annotated[int, Ge(1)] | None = None
    """Training triples a step. Default: 1024; of softmax over all items, 128, a user each."""
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

    def filled(
        self, epochs: int, usual: Mapping[str, Any] | None = None, train: Interactions | None = None
    ) -> "Training":
        """Itself with nothing left open: as it says; else as the method usually takes it; else as the loss does.

        Args:
          epochs: of a model trained with its own loss.
          usual: what the method usually takes, by field; what is no field is passed over, and all of it where the loss
            is not the method's.
          train: what is trained on, if it is known: it decides over the softmax's epochs and drawn items.
        """
        if usual and self.loss not in (None, usual.get("loss")):
            usual = None
        chosen: dict[str, Any] = {
            **(usual or {}),
            **{name: value for name, value in vars(self).items() if value is not None},
        }
        loss = chosen.get("loss", "own")
        if loss == "softmax" and "sampled_items" not in chosen and train is not None:
            chosen["sampled_items"] = SAMPLED if train.num_items > MANY_ITEMS else 0
        of_loss = USUAL[loss] | (OF_SAMPLED if chosen.get("sampled_items") and loss == "softmax" else {})
        chosen = {"epochs": epochs, "loss": loss, **of_loss, **chosen}
        if train is not None and loss == "softmax" and self.epochs is None:
            a_pass = len(train) if chosen["sampled_items"] else train.num_users
            chosen["epochs"] = max(chosen["epochs"], -(-LEAST_STEPS // -(-a_pass // chosen["batch_size"])))
        known = [field.name for field in dataclasses.fields(self)]
        return dataclasses.replace(self, **{name: x for name, x in chosen.items() if name in known})
