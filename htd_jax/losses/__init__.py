"""Losses: pure functions of arrays, which work under jit, grad and vmap.

Their arguments are arrays, then keywords: `where`, the mask, then `weights`, then scalars.
"""

from htd_jax.losses.assignment import (
    Experts,
    group_assignment_loss,
    gumbel_softmax,
    perturb,
    routed_assignment_loss,
)
from htd_jax.losses.interactions import (
    bce_loss,
    bpr_loss,
    gaussian_divergence,
    hinge_loss,
    sampled_softmax_loss,
    softmax_loss,
)
from htd_jax.losses.rankings import (
    coarse_ranking_loss,
    discrepancy_weights,
    fine_ranking_loss,
    listed_loss,
    listwise_loss,
    log_partition,
    pair_loss,
    position_weights,
    rejuvenated_loss,
    relaxed_ranking_loss,
    sampled_cross_entropy,
    weighted_log_loss,
)
from htd_jax.losses.representations import cosine_hint_loss, hint_loss, personalised
from htd_jax.losses.scores import preference_loss, soft_bce_loss, soft_label_loss
from htd_jax.losses.topology import entity_level_loss, ftd_loss, group_level_loss, htd_loss, pairwise_cosine

__all__ = [
    "Experts",
    "bce_loss",
    "bpr_loss",
    "coarse_ranking_loss",
    "cosine_hint_loss",
    "discrepancy_weights",
    "entity_level_loss",
    "fine_ranking_loss",
    "ftd_loss",
    "gaussian_divergence",
    "group_assignment_loss",
    "group_level_loss",
    "gumbel_softmax",
    "hinge_loss",
    "hint_loss",
    "htd_loss",
    "listed_loss",
    "listwise_loss",
    "log_partition",
    "pair_loss",
    "pairwise_cosine",
    "personalised",
    "perturb",
    "position_weights",
    "preference_loss",
    "rejuvenated_loss",
    "relaxed_ranking_loss",
    "routed_assignment_loss",
    "sampled_cross_entropy",
    "sampled_softmax_loss",
    "soft_bce_loss",
    "soft_label_loss",
    "softmax_loss",
    "weighted_log_loss",
]
