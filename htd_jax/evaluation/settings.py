"""How a model is evaluated."""

import dataclasses
from typing import Annotated, Literal

from annotated_types import Ge

from htd_jax.errors import UserError
from htd_jax.evaluation.metrics import CUTOFFS, METRICS
from htd_jax.evaluation.protocols import Full, Sampled


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Where the held-out items stand among others that the user has not seen."""

    protocol: Literal["full", "sampled"] = "full"
    """Among all unseen items, or among a sample of them."""
    candidates: Annotated[int, Ge(1)] = 499
    """The size of the sample. It is the same in every run."""
    cutoffs: tuple[Annotated[int, Ge(1)], ...] = CUTOFFS
    """The k of recall@k and every other metric."""
    metric: str | None = None
    """The metric by which an epoch is the best. Default: recall at the last of --cutoffs; if sampled, at the first."""

    def filled(self) -> "Evaluation":
        """The same with its defaults in place, cutoffs in order, and no sample where none is drawn.

        Raises:
          UserError: there is no such metric.
        """
        cutoffs = tuple(sorted(set(self.cutoffs))) or CUTOFFS
        metric = self.metric or f"recall@{cutoffs[-1 if self.protocol == 'full' else 0]}"
        known = [f"{name}@{k}" for name in METRICS for k in cutoffs]
        if metric not in known:
            raise UserError(f"--metric: unknown metric {metric!r}; known: {', '.join(known)}")
        candidates = self.candidates if self.protocol == "sampled" else Evaluation.candidates
        return dataclasses.replace(self, cutoffs=cutoffs, metric=metric, candidates=candidates)

    def make(self) -> Full | Sampled:
        return Full() if self.protocol == "full" else Sampled(self.candidates)
