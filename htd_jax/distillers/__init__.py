"""Distillation methods: each a `Distiller`, a few pure functions, composed with `scale` and `chain`.

A method is one file: its settings and its functions. `METHODS` lists the methods of this package by name; `register`
adds others.
"""

from htd_jax.distillers.base import (
    Batch,
    Distiller,
    Entities,
    EpochStart,
    Init,
    Loss,
    Method,
    Prepare,
    Reads,
    Refresh,
    RowIds,
    SecondModel,
    Shapes,
    Side,
    Step,
    Triples,
    all_items,
    all_rows,
    chain,
    every,
    item_masks,
    no_params,
    no_rows,
    none,
    scale,
    sum_over_users,
)
from htd_jax.distillers.bd import BD, bd
from htd_jax.distillers.best import Best
from htd_jax.distillers.cd import CD, cd
from htd_jax.distillers.dcd import DCD, dcd
from htd_jax.distillers.de import DE, de
from htd_jax.distillers.experts import annealing, learned_groups
from htd_jax.distillers.fitnet import FitNet, fitnet
from htd_jax.distillers.freqd import FreqD, freqd
from htd_jax.distillers.ftd import FTD, ftd
from htd_jax.distillers.grouping import kmeans_groups, random_groups
from htd_jax.distillers.hetcomp import HetComp, hetcomp
from htd_jax.distillers.htd import HTD, htd
from htd_jax.distillers.ir_rrd import IRRRD, ir_rrd
from htd_jax.distillers.listwise import Listwise, listwise
from htd_jax.distillers.pckd import PCKD, pckd
from htd_jax.distillers.phr import PHR, phr
from htd_jax.distillers.pseudo import Pseudo, pseudo
from htd_jax.distillers.rce_kd import RCEKD, rce_kd
from htd_jax.distillers.rd import RD, rd
from htd_jax.distillers.replay import Replay, in_scale_of, remember, replay, with_falls
from htd_jax.distillers.rrd import RRD, rrd
from htd_jax.distillers.svd import SVD, svd_factors
from htd_jax.distillers.unkd import UnKD, unkd
from htd_jax.models import Representations
from htd_jax.settings import Registry
from htd_jax.teacher import Lists, Memory, Teacher

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
        "rd": RD,
        "ir-rrd": IRRRD,
        "unkd": UnKD,
        "cd": CD,
        "listwise": Listwise,
        "rce-kd": RCEKD,
        "bd": BD,
        "pckd": PCKD,
        "dcd": DCD,
        "freqd": FreqD,
        "best": Best,
        "pseudo": Pseudo,
        "replay": Replay,
        "hetcomp": HetComp,
    },
    reserved=("none",),
    base=Method,
)
register = METHODS.register

__all__ = [
    "BD",
    "CD",
    "DCD",
    "DE",
    "FTD",
    "HTD",
    "IRRRD",
    "METHODS",
    "PCKD",
    "PHR",
    "RCEKD",
    "RD",
    "RRD",
    "SVD",
    "Batch",
    "Best",
    "Distiller",
    "Entities",
    "EpochStart",
    "FitNet",
    "FreqD",
    "HetComp",
    "Init",
    "Lists",
    "Listwise",
    "Loss",
    "Memory",
    "Method",
    "Prepare",
    "Pseudo",
    "Reads",
    "Refresh",
    "Replay",
    "Representations",
    "RowIds",
    "SecondModel",
    "Shapes",
    "Side",
    "Step",
    "Teacher",
    "Triples",
    "UnKD",
    "all_items",
    "all_rows",
    "annealing",
    "bd",
    "cd",
    "chain",
    "dcd",
    "de",
    "every",
    "fitnet",
    "freqd",
    "ftd",
    "hetcomp",
    "htd",
    "in_scale_of",
    "ir_rrd",
    "item_masks",
    "kmeans_groups",
    "learned_groups",
    "listwise",
    "no_params",
    "no_rows",
    "none",
    "pckd",
    "phr",
    "pseudo",
    "random_groups",
    "rce_kd",
    "rd",
    "register",
    "remember",
    "replay",
    "rrd",
    "scale",
    "sum_over_users",
    "svd_factors",
    "unkd",
    "with_falls",
]
