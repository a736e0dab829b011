"""Serving a trained model: recommendations, similar items, fold-in of new users and items, and exports."""

import sys

from htd_jax.ops.codes import PRECISIONS, Precision, row_bytes
from htd_jax.ops.precision import Rows, to_precision
from htd_jax.serve import card, deltas, lists, storage
from htd_jax.serve.deltas import check_delta_target, read_delta
from htd_jax.serve.lists import Recommendations
from htd_jax.serve.storage import check_target
from htd_jax.serving.retriever import Retriever, known_pairs, load_export, retriever_of
from htd_jax.serving.topk import best_items, best_scored

# Until version 0.4 these modules were here.
sys.modules |= {f"{__name__}.{module.__name__.rpartition('.')[2]}": module for module in (card, deltas, lists, storage)}

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
