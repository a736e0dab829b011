"""Studies: many runs from one command, and what they say together."""

from htd_jax.studies.beyond import by_activity, by_popularity, character, likeness
from htd_jax.studies.comparison import Comparison, compare, draw, parse_methods, size, tables
from htd_jax.studies.overlaps import overlap, rank_biased_overlap
from htd_jax.studies.runs import Job, Outcome, execute, log_of
from htd_jax.studies.significance import compare_users, corrected, seeds_test, users_test
from htd_jax.studies.spread import spread
from htd_jax.studies.topology import kept, relations, tag_retrieval

__all__ = [
    "Comparison",
    "Job",
    "Outcome",
    "by_activity",
    "by_popularity",
    "character",
    "compare",
    "compare_users",
    "corrected",
    "draw",
    "execute",
    "kept",
    "likeness",
    "log_of",
    "overlap",
    "parse_methods",
    "rank_biased_overlap",
    "relations",
    "seeds_test",
    "size",
    "spread",
    "tables",
    "tag_retrieval",
    "users_test",
]
