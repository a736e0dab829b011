"""Serving a trained model: recommendations, similar items, fold-in of new users and items, and exports."""

from htd_jax.ops.codes import PRECISIONS, Precision, row_bytes
from htd_jax.ops.precision import Rows, to_precision
from htd_jax.serve.deltas import check_delta_target, read_delta
from htd_jax.serve.lists import Recommendations
from htd_jax.serve.storage import check_target
from htd_jax.serving.retriever import Retriever, known_pairs, load_export, retriever_of
from htd_jax.serving.topk import best_items, best_scored

__all__ = [
    "PRECISIONS",
    "Precision",
    "Recommendations",
    "Retriever",
    "Rows",
    "best_items",
    "best_scored",
    "check_delta_target",
    "check_target",
    "known_pairs",
    "load_export",
    "read_delta",
    "retriever_of",
    "row_bytes",
    "to_precision",
]
