"""Settings of training, and their resolution."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from htd_jax.data import Interactions, has_many_scores
from htd_jax.errors import UserError
from htd_jax.models import Batches

Loss = Literal["own", "softmax", "none"]
Schedule = Literal["constant", "cosine"]
OptimizerName = Literal["adam", "lazy-adam"]

# With more users and items than this, a step of Adam costs several times what its batch does, and lazy Adam is the
# default; of the softmax loss, whose steps read all items, only past `has_many_scores`.
MANY_ROWS = 50_000

# A softmax phase takes at least so many steps, however few users an epoch has.
LEAST_STEPS = 800

# In catalogues of more than so many items, the softmax is over so many sampled items per step.
MANY_ITEMS, SAMPLED = 100_000, 2_048

# The defaults of each loss. The default epochs of `own` are the model's.
DEFAULTS: dict[str, dict[str, Any]] = {
    "own": {"batch_size": 1024, "learning_rate": 1e-3, "schedule": "constant", "l2": 1e-3},
    "softmax": {"epochs": 20, "batch_size": 128, "learning_rate": 1e-2, "schedule": "cosine", "l2": 1.0},
    "none": {"batch_size": 128, "learning_rate": 1e-3, "schedule": "constant", "l2": 1e-5},
}
# Those of `own` on batches of users, or of items.
BY_ENTITY: dict[str, Any] = {**DEFAULTS["own"], "batch_size": 128}
SAMPLED_SOFTMAX: dict[str, Any] = {"batch_size": 1024, "l2": 0.4}


@dataclasses.dataclass(frozen=True)
class Training:
    """Settings of the training of every phase. None stands for the default of the loss or the method."""

    epochs: Annotated[int, Ge(1)] | None = None
    """Number of passes over the data. Default: 101; ials 15; the softmax loss 20, or more to reach 800 steps."""
    loss: Loss | None = None
    """Loss of the base model: own is the model's loss on batches of pairs; softmax is the cross-entropy of a user's
    seen items under a softmax over all items, for models whose scores are inner products; none leaves the method's
    loss alone, on batches of users. Default: own; softmax with --method best, none with --method hetcomp."""
    temperature: Annotated[float, Gt(0)] = 0.05
    """Temperature of the softmax loss, by which scores are divided."""
    sampled_items: Annotated[int, Ge(0)] | None = None
    """Number of items that the softmax loss samples per step in place of all items; 0 uses all. Default: 0, or 2048 for
    catalogues of more than 100,000 items, except with --method best."""
    batch_size: Annotated[int, Ge(1)] | None = None
    """Number of training triples per step. Default: 1024; 128 users for the softmax over all items, for --loss none
    and for multvae; 128 items for itemvae."""
    learning_rate: Annotated[float, Ge(0)] | None = None
    """Learning rate. Default: 1e-3, or 1e-2 for softmax."""
    optimizer: OptimizerName | None = None
    """Optimiser: adam updates every row of the tables in every step; lazy-adam updates the rows that the step reads,
    and applies the updates that a row has missed when it is next read. Without softmax, lazy-adam multiplies the
    learning rate by sqrt(c) and L2 by c = batch size / 1024 x 30400 / (users + items). Default: adam, or lazy-adam for
    more than 50,000 users and items, except for lightgcn and for a softmax over all items."""
    schedule: Schedule | None = None
    """Schedule of the learning rate; cosine decays it to 0 over all epochs. Default: constant, or cosine for
    softmax."""
    l2: Annotated[float, Ge(0)] | None = None
    """L2 penalty: this value times each parameter is added to the parameter's gradient. Default: 1e-3; 1 for softmax,
    0.4 for sampled softmax, 0.02 with --method best."""
    eval_every: Annotated[int, Ge(1)] = 10
    """Number of epochs between evaluations."""
    patience: Annotated[int, Ge(1)] | None = None
    """Stops when this many epochs have passed since the best one in validation, and keeps that one. Default: train all
    epochs, and keep the last."""
    keep_stages: Annotated[int, Ge(1)] | None = None
    """Number of stages of its training whose rankings a teacher keeps, for methods that learn from early stages first
    (hetcomp): each user's 100 best items at as many equal parts of its epochs. Default: none."""


@dataclasses.dataclass(frozen=True)
class TrainingSpec:
    """The resolved training of one phase, see `Training` for the fields."""

    epochs: int
    loss: Loss
    temperature: float
    sampled_items: int | None
    batch_size: int
    learning_rate: float
    optimizer: OptimizerName
    schedule: Schedule
    l2: float
    eval_every: int
    patience: int | None


def resolve_training(
    training: Training,
    train: Interactions | None,
    *,
    epochs: int,
    defaults: Mapping[str, Any],
    row_local: bool = False,
    batches: Batches = "pairs",
) -> TrainingSpec:
    """Returns training settings with every default filled in: as set, else as the method's, else as the loss's.

    Args:
      training: the settings as requested.
      train: the training interactions, whose number decides the softmax's epochs and sampled items; none are sampled
        and the least epochs are returned if None.
      epochs: the default number of epochs of the model's own loss.
      defaults: the method's defaults by field, which apply to the method's loss only.
      row_local: whether the model can be trained row by row, see `Recommender`.
      batches: those of the model's own loss, see `ModelSettings`.

    Raises:
      UserError: if `sampled_items` is set without the softmax loss, or `optimizer` needs another model.
    """
    if training.loss not in (None, defaults.get("loss")):
        defaults = {}
    chosen: dict[str, Any] = {
        **defaults,
        **{name: value for name, value in vars(training).items() if value is not None and name != "keep_stages"},
    }
    loss = chosen.setdefault("loss", "own")
    if loss == "softmax":
        chosen.setdefault("sampled_items", SAMPLED if train is not None and train.num_items > MANY_ITEMS else 0)
    elif chosen.get("sampled_items"):
        raise UserError("`sampled_items` needs the softmax loss; set `loss` to softmax")
    sampled = loss == "softmax" and chosen["sampled_items"]
    by_entity = loss == "own" and batches != "pairs"
    by_loss = {**DEFAULTS[loss], **(SAMPLED_SOFTMAX if sampled else BY_ENTITY if by_entity else {})}
    if chosen.get("optimizer", "adam") != "adam" and not row_local:
        raise UserError(
            f"`optimizer` {chosen['optimizer']} needs a model whose pairs read only their own rows, such as bpr; set "
            "`optimizer` to adam"
        )
    many = row_local and train is not None and train.num_users + train.num_items > MANY_ROWS
    if loss == "softmax" and train is not None:
        many = many and bool(sampled or has_many_scores(train))
    chosen.setdefault("optimizer", "lazy-adam" if many else "adam")
    chosen = {"epochs": epochs, "sampled_items": None, "patience": None, **by_loss, **chosen}
    if loss == "softmax" and training.epochs is None and train is not None:
        units = len(train) if sampled else train.num_users
        steps = -(-units // chosen["batch_size"])
        chosen["epochs"] = max(chosen["epochs"], -(-LEAST_STEPS // steps))
    return TrainingSpec(**chosen)
