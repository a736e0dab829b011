"""How a phase is trained."""

import dataclasses
from typing import Annotated

from annotated_types import Ge


@dataclasses.dataclass(frozen=True)
class Training:
    """Of every phase: Adam, on batches of triples (user, seen item, unseen item)."""

    epochs: Annotated[int, Ge(1)] | None = None
    """Passes over the training pairs, each phase; HTD's and DE's temperature falls over them. Default: 101, ials 15."""
    batch_size: Annotated[int, Ge(1)] = 1024
    """Training triples a step."""
    learning_rate: Annotated[float, Ge(0)] = 1e-3
    """Of Adam."""
    l2: Annotated[float, Ge(0)] = 1e-3
    """Times each parameter, added to its gradient."""
    eval_every: Annotated[int, Ge(1)] = 10
    """Epochs between two evaluations."""
    patience: Annotated[int, Ge(1)] | None = None
    """Stop once this many epochs have passed since the best one in validation, and keep that one. Default: all epochs
    are run, and the last one is kept."""
