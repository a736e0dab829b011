"""Many runs from one command: `python experiments/study.py comparison --dataset citeulike --student-dims 20 10`."""

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a plain checkout will do, installed or not

from htd_jax.command import enter
from htd_jax.command.study import study

if __name__ == "__main__":
    enter(functools.partial(study, prog="study.py"), resumes=True)
