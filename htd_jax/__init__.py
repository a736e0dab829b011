"""Topology distillation for recommender systems, in JAX and Flax.

`read` takes your data in, `fit` trains a recommender, `distill` a small one with its help, which recommends and is
saved; `load` opens it again. `htd_jax.losses` are the losses, as pure functions.
"""

import sys

__version__ = "0.4.0"

if sys.argv[:1] == ["-m"] and __name__ in sys.orig_argv and not sys.flags.safe_path:
    del sys.path[0]  # `python -m htd_jax` in a folder of somebody's files does not import a pandas.py that lies there

from htd_jax import data, distillers, evaluation, losses, models, serving
from htd_jax.data import Dataset, Split, read
from htd_jax.errors import UserError
from htd_jax.models import Representations
from htd_jax.pipeline import Fitted, choose, distill, fit, load, read_teacher, update
from htd_jax.serving import Recommendations, Retriever
from htd_jax.teacher import Lists, Teacher

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
    "choose",
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
    "update",
]
