"""Studies: many runs from one command, and what they say together."""

from htd_jax.studies.comparison import Comparison, compare, draw, parse_methods, size, tables
from htd_jax.studies.runs import Job, Outcome, execute, log_of
from htd_jax.studies.spread import spread

__all__ = [
    "Comparison",
    "Job",
    "Outcome",
    "compare",
    "draw",
    "execute",
    "log_of",
    "parse_methods",
    "size",
    "spread",
    "tables",
]
