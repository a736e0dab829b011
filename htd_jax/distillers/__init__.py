"""Methods of distillation: each a `Distiller`, a pair of pure functions, composed with `scale` and `chain`."""

from htd_jax.distillers.base import Distiller, Entities, Side, chain, none, scale
from htd_jax.distillers.ftd import ftd
from htd_jax.distillers.htd import annealing, htd

__all__ = ["Distiller", "Entities", "Side", "annealing", "chain", "ftd", "htd", "none", "scale"]
