"""Studies: many runs from one command, and what they say together."""

from htd_jax.studies.comparison import parse_methods
from htd_jax.studies.plan import Plan, Row, carry_out, curves, results_of, rows, student_of
from htd_jax.studies.report import Chart, Report, Table, Values
from htd_jax.studies.runs import Job, Outcome, execute, log_of
from htd_jax.studies.spread import spread
from htd_jax.studies.variants import PLAIN, Variant

__all__ = [
    "PLAIN",
    "Chart",
    "Job",
    "Outcome",
    "Plan",
    "Report",
    "Row",
    "Table",
    "Values",
    "Variant",
    "carry_out",
    "curves",
    "execute",
    "log_of",
    "parse_methods",
    "results_of",
    "rows",
    "spread",
    "student_of",
]
