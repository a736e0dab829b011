"""How well a model ranks."""

from htd_jax.evaluation.ranking import CUTOFFS, make_evaluator, ranking_metrics

__all__ = ["CUTOFFS", "make_evaluator", "ranking_metrics"]
