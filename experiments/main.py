"""Distil a wide recommender into a narrow one, and show how much of the gap between the two was closed.

The same program as `htd-jax train`: what a run is stands in `htd_jax.pipeline`, its flags in `htd_jax.command`.
"""

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a plain checkout will do, installed or not

from htd_jax.command import enter
from htd_jax.command.train import train

if __name__ == "__main__":
    enter(functools.partial(train, prog="main.py"), resumes=True)
