"""Base models: Flax modules with the methods `represent`, `score`, `score_all` and `loss`, see `BPR`."""

from htd_jax.models.bpr import BPR

__all__ = ["BPR"]
