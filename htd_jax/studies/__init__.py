"""Studies: many runs from one command, and what they show together."""

from htd_jax.studies.comparison import parse_methods
from htd_jax.studies.plan import Plan, Row, carry_out, curves, results_of, rows
from htd_jax.studies.report import Chart, Report
from htd_jax.studies.runs import Job, Outcome, execute, log_path
from htd_jax.studies.tables import Table, Values, spread
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
    "log_path",
    "parse_methods",
    "results_of",
    "rows",
    "spread",
]
