"""Pure functions of arrays: every loss is usable under jit, grad and vmap, in a notebook as much as in the step."""

from htd_jax.losses.assignment import (
    Experts,
    group_assignment_loss,
    gumbel_softmax,
    perturb,
    routed_assignment_loss,
)
from htd_jax.losses.hints import cosine_hint_loss, hint_loss, personalised
from htd_jax.losses.predictions import preference_loss, soft_bce_loss
from htd_jax.losses.ranking import bce_loss, bpr_loss, relaxed_ranking_loss
from htd_jax.losses.topology import entity_level_loss, ftd_loss, group_level_loss, htd_loss, pairwise_cosine

__all__ = [
    "Experts",
    "bce_loss",
    "bpr_loss",
    "cosine_hint_loss",
    "entity_level_loss",
    "ftd_loss",
    "group_assignment_loss",
    "group_level_loss",
    "gumbel_softmax",
    "hint_loss",
    "htd_loss",
    "pairwise_cosine",
    "personalised",
    "perturb",
    "preference_loss",
    "relaxed_ranking_loss",
    "routed_assignment_loss",
    "soft_bce_loss",
]
