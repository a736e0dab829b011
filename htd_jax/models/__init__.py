"""Base models: Flax modules with the methods `represent`, `score`, `score_all` and `loss`, see `Recommender`.

A model is one file: its module and its settings, which a line here registers; `register` does the same from outside.
"""

from htd_jax.models.autoencoders import ItemVAE, ItemVAESettings, MultVAE, MultVAESettings
from htd_jax.models.base import (
    Batches,
    InnerProduct,
    Labels,
    MakeModel,
    ModelOf,
    ModelSettings,
    Recommender,
    Solver,
    batches_of,
    first_dimensions,
    holding,
    with_tables,
)
from htd_jax.models.blend import Blend, BlendSettings
from htd_jax.models.bpr import BPR, BPRSettings
from htd_jax.models.cml import CML, CMLSettings
from htd_jax.models.ease import EASE, EASESettings
from htd_jax.models.folded import Folded, FoldedSettings
from htd_jax.models.growth import grow_variables
from htd_jax.models.ials import IALSSettings
from htd_jax.models.lightgcn import LightGCN, LightGCNSettings, make_graph
from htd_jax.models.listed import Listed, listed, popularity
from htd_jax.models.neumf import NeuMF, NeuMFSettings
from htd_jax.models.representations import Representations, ScoreAll, model_scores, represent_all
from htd_jax.settings import Registry

MODELS = Registry(
    "model",
    {
        "bpr": BPRSettings,
        "neumf": NeuMFSettings,
        "lightgcn": LightGCNSettings,
        "ials": IALSSettings,
        "ease": EASESettings,
        "blend": BlendSettings,
        "folded": FoldedSettings,
        "cml": CMLSettings,
        "multvae": MultVAESettings,
        "itemvae": ItemVAESettings,
    },
    base=ModelSettings,
)
register = MODELS.register

__all__ = [
    "BPR",
    "CML",
    "EASE",
    "MODELS",
    "BPRSettings",
    "Batches",
    "Blend",
    "BlendSettings",
    "CMLSettings",
    "EASESettings",
    "Folded",
    "FoldedSettings",
    "IALSSettings",
    "InnerProduct",
    "ItemVAE",
    "ItemVAESettings",
    "Labels",
    "LightGCN",
    "LightGCNSettings",
    "Listed",
    "MakeModel",
    "ModelOf",
    "ModelSettings",
    "MultVAE",
    "MultVAESettings",
    "NeuMF",
    "NeuMFSettings",
    "Recommender",
    "Representations",
    "ScoreAll",
    "Solver",
    "batches_of",
    "first_dimensions",
    "grow_variables",
    "holding",
    "listed",
    "make_graph",
    "model_scores",
    "popularity",
    "register",
    "represent_all",
    "with_tables",
]
