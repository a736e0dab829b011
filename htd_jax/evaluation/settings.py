"""Settings of an evaluation."""

import dataclasses
from typing import Annotated, Any, Literal

from annotated_types import Ge

from htd_jax.data import Split
from htd_jax.errors import UserError
from htd_jax.evaluation.metrics import CUTOFFS, LOADED, METRICS
from htd_jax.evaluation.protocols import Full, Protocol, Sampled
from htd_jax.evaluation.users import held_out_users
from htd_jax.settings import as_json

ProtocolName = Literal["full", "sampled"]

# Where all users have more scores than this, about 4 billion, the evaluations during training use so many users.
MANY_SCORES, SAMPLED_USERS = 2**32, 10_000


@dataclasses.dataclass(frozen=True)
class EvaluationSpec:
    """A resolved `Evaluation`: every choice is made.

    Attributes:
      protocol: `full` or `sampled`.
      candidates: number of sampled items per user; the default of `Evaluation` where the protocol samples none.
      cutoffs: the k of every metric, ascending.
      metric: the validation metric that selects the best epoch: `recall@50`.
      eval_users: number of sampled users that the evaluations during training use, see `sample_users`; None for all.
    """

    protocol: ProtocolName
    candidates: int
    cutoffs: tuple[int, ...]
    metric: str
    eval_users: int | None = None

    @property
    def drawn(self) -> str:
        """The metric that charts draw and studies test: the one that selects, unless that is a recall; then recall at
        the largest cutoff."""
        return self.metric if self.metric.rpartition("@")[0] != "recall" else f"recall@{max(self.cutoffs)}"

    def describe(self) -> dict[str, Any]:
        """Returns the specification as JSON; `eval_users` only if users are sampled."""
        return {name: x for name, x in as_json(self).items() if x is not None}

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
    """Validation metric that selects the best epoch: recall@10, or one of your own, package.module:function@10.
    Default: recall at the largest cutoff, or at the smallest with --protocol sampled."""
    eval_users: Annotated[int, Ge(0)] | None = None
    """Number of users, sampled once and the same for every model and seed, that the evaluations during training use;
    the kept model is evaluated on all users at the end. 0 uses all. Default: 0, or 10000 where users times items
    (--candidates, with --protocol sampled) exceed 4.3 billion."""

    def resolve(self, split: Split | None = None) -> EvaluationSpec:
        """Returns the evaluation with every default in place and the cutoffs in ascending order.

        Args:
          split: the data, which decide whether users are sampled; as requested if None.

        Raises:
          UserError: if the metric is unknown.
        """
        cutoffs = tuple(sorted(set(self.cutoffs))) or CUTOFFS
        metric = self.metric or f"recall@{cutoffs[-1 if self.protocol == 'full' else 0]}"
        known = [f"{name}@{k}" for name in METRICS for k in cutoffs]
        path, _, cutoff = metric.rpartition("@")
        if path in LOADED:
            metric = f"{path.rpartition(':')[2]}@{cutoff}"
        if metric not in known:
            own = "" if path in METRICS else "; if it is your own, name its module with `trust_code`"
            raise UserError(f"unknown metric {metric!r} (known: {', '.join(known)}); set `metric`{own}")
        candidates = self.candidates if self.protocol == "sampled" else Evaluation.candidates
        return EvaluationSpec(self.protocol, candidates, cutoffs, metric, self._users(split))

    def _users(self, split: Split | None) -> int | None:
        """Returns the number of users to sample; None if that is all who have held-out items."""
        users = self.eval_users
        if split is not None:
            if users is None:
                each = split.train.num_items if self.protocol == "full" else self.candidates
                users = SAMPLED_USERS if split.train.num_users * each > MANY_SCORES else 0
            if users and users >= max(map(len, held_out_users(split))):
                users = 0
        return users or None
