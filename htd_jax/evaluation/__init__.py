"""How well a model ranks."""

from htd_jax.evaluation.metrics import CUTOFFS, METRICS, metrics_of_pairs, metrics_of_users, ranking_metrics
from htd_jax.evaluation.protocols import Full, Sampled, sample_candidates
from htd_jax.evaluation.ranking import (
    Evaluator,
    OfUsers,
    Ranker,
    UserEvaluator,
    make_evaluator,
    make_ranker,
    make_user_evaluator,
)
from htd_jax.evaluation.settings import Evaluation, EvaluationSpec

__all__ = [
    "CUTOFFS",
    "METRICS",
    "Evaluation",
    "EvaluationSpec",
    "Evaluator",
    "Full",
    "OfUsers",
    "Ranker",
    "Sampled",
    "UserEvaluator",
    "make_evaluator",
    "make_ranker",
    "make_user_evaluator",
    "metrics_of_pairs",
    "metrics_of_users",
    "ranking_metrics",
    "sample_candidates",
]
