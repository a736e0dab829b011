"""Methods of distillation: each a `Distiller`, a few pure functions, composed with `scale` and `chain`.

A method is one file: its settings, and its functions. A line here makes it known to the command; `register` does so
from outside.
"""

from htd_jax.distillers.base import (
    Batch,
    Distiller,
    Entities,
    Method,
    Run,
    Shapes,
    Side,
    Triples,
    chain,
    every,
    none,
    scale,
)
from htd_jax.distillers.bd import BD, bd
from htd_jax.distillers.de import DE, de
from htd_jax.distillers.experts import annealing
from htd_jax.distillers.fitnet import FitNet, fitnet
from htd_jax.distillers.freqd import FreqD, freqd
from htd_jax.distillers.ftd import FTD, ftd
from htd_jax.distillers.grouping import kmeans_groups, random_groups
from htd_jax.distillers.htd import HTD, htd
from htd_jax.distillers.pckd import PCKD, pckd
from htd_jax.distillers.phr import PHR, phr
from htd_jax.distillers.rrd import RRD, rrd
from htd_jax.distillers.svd import SVD, svd_factors
from htd_jax.distillers.teacher import Lists, Representations, Teacher, model_scores
from htd_jax.settings import Registry

METHODS = Registry(
    "method",
    {
        "svd": SVD,
        "ftd": FTD,
        "htd": HTD,
        "fitnet": FitNet,
        "de": DE,
        "phr": PHR,
        "rrd": RRD,
        "bd": BD,
        "pckd": PCKD,
        "freqd": FreqD,
    },
    besides=("none",),
    function="make",
)
register = METHODS.register

__all__ = [
    "BD",
    "DE",
    "FTD",
    "HTD",
    "METHODS",
    "PCKD",
    "PHR",
    "RRD",
    "SVD",
    "Batch",
    "Distiller",
    "Entities",
    "FitNet",
    "FreqD",
    "Lists",
    "Method",
    "Representations",
    "Run",
    "Shapes",
    "Side",
    "Teacher",
    "Triples",
    "annealing",
    "bd",
    "chain",
    "de",
    "every",
    "fitnet",
    "freqd",
    "ftd",
    "htd",
    "kmeans_groups",
    "model_scores",
    "none",
    "pckd",
    "phr",
    "random_groups",
    "register",
    "rrd",
    "scale",
    "svd_factors",
]
