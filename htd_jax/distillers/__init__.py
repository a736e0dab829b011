"""Methods of distillation: each a `Distiller`, a pair of pure functions, composed with `scale` and `chain`."""

from htd_jax.distillers.base import Distiller, Entities, Side, chain, none, scale
from htd_jax.distillers.de import de
from htd_jax.distillers.experts import annealing
from htd_jax.distillers.fitnet import fitnet
from htd_jax.distillers.ftd import ftd
from htd_jax.distillers.grouping import kmeans_groups, random_groups
from htd_jax.distillers.htd import LEVELS, htd
from htd_jax.distillers.phr import phr
from htd_jax.distillers.svd import svd_factors

__all__ = [
    "LEVELS",
    "Distiller",
    "Entities",
    "Side",
    "annealing",
    "chain",
    "de",
    "fitnet",
    "ftd",
    "htd",
    "kmeans_groups",
    "none",
    "phr",
    "random_groups",
    "scale",
    "svd_factors",
]
