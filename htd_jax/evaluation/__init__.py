"""Evaluation: metrics, ranking protocols, and the compiled evaluation of a model."""

from htd_jax.evaluation.metrics import (
    CUTOFFS,
    METRICS,
    NamedMetrics,
    RankedPairs,
    load_metric,
    metrics_of_pairs,
    metrics_of_users,
    ranking_metrics,
    register,
    shown_metrics,
)
from htd_jax.evaluation.protocols import Full, Protocol, Sampled, sample_candidates
from htd_jax.evaluation.ranking import (
    CompiledEvaluation,
    Evaluator,
    Ranker,
    UserEvaluator,
    UserMetrics,
    make_evaluator,
    make_ranker,
    make_user_evaluator,
)
from htd_jax.evaluation.scored import Scored, ScoredOf, scored
from htd_jax.evaluation.settings import Evaluation, EvaluationSpec
from htd_jax.evaluation.users import sample_parts, sample_users

__all__ = [
    "CUTOFFS",
    "METRICS",
    "CompiledEvaluation",
    "Evaluation",
    "EvaluationSpec",
    "Evaluator",
    "Full",
    "NamedMetrics",
    "Protocol",
    "RankedPairs",
    "Ranker",
    "Sampled",
    "Scored",
    "ScoredOf",
    "UserEvaluator",
    "UserMetrics",
    "load_metric",
    "make_evaluator",
    "make_ranker",
    "make_user_evaluator",
    "metrics_of_pairs",
    "metrics_of_users",
    "ranking_metrics",
    "register",
    "sample_candidates",
    "sample_parts",
    "sample_users",
    "scored",
    "shown_metrics",
]
