"""Topology distillation for recommender systems, in JAX and Flax.

`fit` trains a recommender, `distill` a small one with its help; `htd_jax.losses` are the losses, as pure functions.
"""

__version__ = "0.2.0"

from htd_jax import data, distillers, evaluation, losses, models, serving
from htd_jax.data import Dataset, Split, read
from htd_jax.distillers import Lists, Representations, Teacher
from htd_jax.errors import UserError
from htd_jax.pipeline import Fitted, distill, fit, read_teacher
from htd_jax.serving import Recommendations, Retriever, load

__all__ = [
    "Dataset",
    "Fitted",
    "Lists",
    "Recommendations",
    "Representations",
    "Retriever",
    "Split",
    "Teacher",
    "UserError",
    "data",
    "distill",
    "distillers",
    "evaluation",
    "fit",
    "load",
    "losses",
    "models",
    "read",
    "read_teacher",
    "serving",
]
