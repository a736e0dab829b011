"""How well a model ranks."""

from htd_jax.evaluation.metrics import CUTOFFS, METRICS, ranking_metrics
from htd_jax.evaluation.protocols import Full, Sampled, sample_candidates
from htd_jax.evaluation.ranking import Evaluator, make_evaluator
from htd_jax.evaluation.settings import Evaluation

__all__ = [
    "CUTOFFS",
    "METRICS",
    "Evaluation",
    "Evaluator",
    "Full",
    "Sampled",
    "make_evaluator",
    "ranking_metrics",
    "sample_candidates",
]
