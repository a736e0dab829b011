"""Base models: Flax modules with the methods `represent`, `score`, `score_all` and `loss`, see `Recommender`.

A model is one file: the module, and its settings, which a line here makes known.
"""

from htd_jax.models.base import (
    USUAL_EPOCHS,
    InnerProduct,
    Labels,
    MakeModel,
    ModelOf,
    ModelSettings,
    Recommender,
    Solver,
    usual_epochs,
    with_tables,
)
from htd_jax.models.bpr import BPR, BPRSettings
from htd_jax.models.ials import IALSSettings
from htd_jax.models.lightgcn import LightGCN, LightGCNSettings, make_graph
from htd_jax.models.listed import Listed, listed, popularity
from htd_jax.models.neumf import NeuMF, NeuMFSettings
from htd_jax.settings import Registry

MODELS = Registry(
    "model",
    {"bpr": BPRSettings, "neumf": NeuMFSettings, "lightgcn": LightGCNSettings, "ials": IALSSettings},
    function="build",
)
register = MODELS.register

__all__ = [
    "BPR",
    "MODELS",
    "USUAL_EPOCHS",
    "BPRSettings",
    "IALSSettings",
    "InnerProduct",
    "Labels",
    "LightGCN",
    "LightGCNSettings",
    "Listed",
    "MakeModel",
    "ModelOf",
    "ModelSettings",
    "NeuMF",
    "NeuMFSettings",
    "Recommender",
    "Solver",
    "listed",
    "make_graph",
    "popularity",
    "register",
    "usual_epochs",
    "with_tables",
]
