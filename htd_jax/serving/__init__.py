"""What is done with a student: recommendations, neighbours, newcomers, and files for other programs."""

from htd_jax.ops.precision import PRECISIONS, Precision, Rows, row_bytes, to_precision
from htd_jax.serving.lists import Recommendations
from htd_jax.serving.retriever import Retriever, known_pairs, retriever_of
from htd_jax.serving.run_folder import Opened, open_phases, open_run
from htd_jax.serving.storage import check_target, load, save
from htd_jax.serving.topk import best_items, best_scored

__all__ = [
    "PRECISIONS",
    "Opened",
    "Precision",
    "Recommendations",
    "Retriever",
    "Rows",
    "best_items",
    "best_scored",
    "check_target",
    "known_pairs",
    "load",
    "open_phases",
    "open_run",
    "retriever_of",
    "row_bytes",
    "save",
    "to_precision",
]
