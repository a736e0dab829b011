"""Settings of an evaluation."""

import dataclasses
from typing import Annotated, Literal

from annotated_types import Ge

from htd_jax.errors import UserError
from htd_jax.evaluation.metrics import CUTOFFS, METRICS
from htd_jax.evaluation.protocols import Full, Protocol, Sampled

ProtocolName = Literal["full", "sampled"]


@dataclasses.dataclass(frozen=True)
class EvaluationSpec:
    """A resolved `Evaluation`: every choice is made.

    Attributes:
      protocol: `full` or `sampled`.
      candidates: number of sampled items per user; the default of `Evaluation` where the protocol samples none.
      cutoffs: the k of every metric, ascending.
      metric: the validation metric that selects the best epoch: `recall@50`.
    """

    protocol: ProtocolName
    candidates: int
    cutoffs: tuple[int, ...]
    metric: str

    def make(self) -> Protocol:
        """Returns the protocol that ranks the held-out items."""
        return Full() if self.protocol == "full" else Sampled(self.candidates)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Settings of an evaluation: which items a held-out item is ranked against, and which metrics are computed."""

    protocol: ProtocolName = "full"
    """Ranks a held-out item among all items that the user has not seen (`full`), or among a sample of them
    (`sampled`)."""
    candidates: Annotated[int, Ge(1)] = 499
    """Number of unseen items per user that the sampled protocol ranks against; every run uses the same sample."""
    cutoffs: tuple[Annotated[int, Ge(1)], ...] = CUTOFFS
    """Cutoffs k of recall@k and of every other metric."""
    metric: str | None = None
    """Validation metric that selects the best epoch. Default: recall at the largest cutoff, or at the smallest with
    --protocol sampled."""

    def resolve(self) -> EvaluationSpec:
        """Returns the evaluation with every default in place and the cutoffs in ascending order.

        Raises:
          UserError: if the metric is unknown.
        """
        cutoffs = tuple(sorted(set(self.cutoffs))) or CUTOFFS
        metric = self.metric or f"recall@{cutoffs[-1 if self.protocol == 'full' else 0]}"
        known = [f"{name}@{k}" for name in METRICS for k in cutoffs]
        if metric not in known:
            raise UserError(f"unknown metric {metric!r} (known: {', '.join(known)}); set `metric`")
        candidates = self.candidates if self.protocol == "sampled" else Evaluation.candidates
        return EvaluationSpec(self.protocol, candidates, cutoffs, metric)
