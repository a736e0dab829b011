"""The mean and spread over seeds of finished runs, as Markdown: `python experiments/table.py --runs runs`."""

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a plain checkout will do, installed or not

from htd_jax.command import enter
from htd_jax.command.table import table

if __name__ == "__main__":
    enter(functools.partial(table, prog="table.py"))
