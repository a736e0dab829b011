"""Base models: Flax modules with the methods `represent`, `score`, `score_all` and `loss`, see `Recommender`."""

from htd_jax.models.base import InnerProduct, MakeModel, Recommender
from htd_jax.models.bpr import BPR
from htd_jax.models.lightgcn import LightGCN, make_graph
from htd_jax.models.neumf import NeuMF

__all__ = ["BPR", "InnerProduct", "LightGCN", "MakeModel", "NeuMF", "Recommender", "make_graph"]
