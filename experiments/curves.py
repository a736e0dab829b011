"""Curves of several data sets: `python experiments/curves.py --files citeulike=runs/frontier.json ... --to curves`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a plain checkout will do, installed or not

from htd_jax.command import enter
from htd_jax.command.curves import curves

if __name__ == "__main__":
    enter(curves)
