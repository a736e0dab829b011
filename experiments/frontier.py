"""Recall against bytes a row: `python experiments/frontier.py --dataset citeulike`."""

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a plain checkout will do, installed or not

from htd_jax.command import enter
from htd_jax.command.study import frontier

if __name__ == "__main__":
    enter(functools.partial(frontier, prog="frontier.py"), resumes=True)
