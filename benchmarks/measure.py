"""Shared by the benchmarks: an epoch of any phase at any size, compiled and timed."""

import functools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a checkout without installation

import jax
import jax.numpy as jnp
import numpy as np

from htd_jax import distillers
from htd_jax.data import Interactions, Split
from htd_jax.distillers import Distiller
from htd_jax.evaluation import make_evaluator
from htd_jax.models import BPRSettings, MakeModel, ModelOf, Representations
from htd_jax.training import TrainState, adam, make_trainer, no_teacher

SEED = 0

# The paper's settings, which are the command's defaults.
TEACHER_DIM, STUDENT_DIM, GROUPS, EPOCHS, BATCH, WEIGHT = 200, 20, 30, 101, 1024, 1e-3

# HTD's cost falls with its temperature: the measured epochs, and the first of them with a temperature under 0.01. The
# epochs before it must be trained too: an untrained gate gets no gradient at a low temperature, L2 takes it to zero,
# and all entities fall into one group, which does not happen in a run.
HTD_EPOCHS = (1, 4, 6, 7, 8, 10, 13, 16, 22, 30, 60, 100)
COLD = HTD_EPOCHS.index(22)

# The phases whose epochs all cost the same.
PLAIN = ("teacher", "student", "FTD")


def random_teacher(train: Interactions, dim: int) -> Representations:
    """Returns normally distributed representations, for which HTD's groups have about equal sizes."""
    keys = jax.random.split(jax.random.key(SEED))
    sizes = (train.num_users, train.num_items)
    return Representations(*(jax.random.normal(key, (size, dim)) for key, size in zip(keys, sizes)))


def random_interactions(num_users: int, num_items: int, num_pairs: int) -> Interactions:
    """Returns exactly `num_pairs` distinct pairs, sampled uniformly."""
    rng = np.random.default_rng(SEED)
    codes = np.unique(rng.integers(0, num_users * num_items, 2 * num_pairs))
    codes = rng.permutation(codes)[:num_pairs]
    return Interactions.from_pairs(codes // num_items, codes % num_items, num_users, num_items)


def make_bpr(dim: int) -> MakeModel:
    return ModelOf(BPRSettings(), dim)


class Epoch:
    """The compiled epoch of a phase.

    Attributes:
      compiled: XLA's program, with `cost_analysis()` and `memory_analysis()`.
      trace_seconds, compile_seconds: the time to trace and lower it, and to compile it.
    """

    def __init__(self, train: Interactions, distiller: Distiller, dim: int, teacher: Representations, batch_size: int):
        self._trainer = make_trainer(make_bpr(dim), distiller, adam(1e-3, 1e-3), batch_size=batch_size)
        self._inputs = (jax.random.key(SEED), train, self._trainer.guide(train, teacher))
        start = self.start()
        begun = time.perf_counter()
        lowered = self._trainer.epoch.lower(start, *self._inputs)
        traced = time.perf_counter()
        self.compiled = lowered.compile()
        self.trace_seconds, self.compile_seconds = traced - begun, time.perf_counter() - traced

    def start(self) -> TrainState:
        return self._trainer.init(*self._inputs)

    def seconds(self, epochs: Sequence[int]) -> list[float]:
        """Returns the seconds of each of `epochs`, whose number decides HTD's temperature, after a warm-up epoch."""
        state, seconds = self.start(), []
        for epoch in (epochs[0], *epochs):
            state = jax.block_until_ready(state.replace(epoch=jnp.int32(epoch)))
            start = time.perf_counter()
            state, _ = jax.block_until_ready(self.compiled(state, *self._inputs))
            seconds.append(time.perf_counter() - start)
        return seconds[1:]


class Phases:
    """Every phase with the default settings, on random teacher tables, compiled; and the evaluation.

    Attributes:
      epochs: the epochs of the phases, by name.
    """

    def __init__(self, split: Split):
        train = split.train
        teacher, nobody = random_teacher(train, TEACHER_DIM), no_teacher(train)
        weigh = lambda distiller: distillers.scale(distiller, WEIGHT)
        self.epochs = {
            "teacher": Epoch(train, distillers.none(), TEACHER_DIM, nobody, BATCH),
            "student": Epoch(train, distillers.none(), STUDENT_DIM, nobody, BATCH),
            "FTD": Epoch(train, weigh(distillers.ftd()), STUDENT_DIM, teacher, BATCH),
            "HTD": Epoch(train, weigh(distillers.htd(epochs=EPOCHS)), STUDENT_DIM, teacher, BATCH),
        }
        evaluate = functools.partial(make_evaluator(split), make_bpr(TEACHER_DIM), {"params": teacher._asdict()})
        self._evaluate: Callable[[], object] = lambda: jax.block_until_ready(evaluate())
        self._evaluate()

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of an epoch of every phase, and of an evaluation; HTD's fall with its temperature."""
        plain = {f"{name} epoch": statistics.median(self.epochs[name].seconds(range(1, 6))) for name in PLAIN}
        htd = self.epochs["HTD"].seconds(HTD_EPOCHS)
        start = time.perf_counter()
        self._evaluate()
        return plain | {
            "HTD epoch, T = 1": htd[0],
            "HTD epoch, T < 0.01": statistics.median(htd[COLD:]),
            "HTD epoch, mean of 101": float(np.interp(np.arange(EPOCHS), HTD_EPOCHS, htd).mean()),
            "evaluation, valid + test": time.perf_counter() - start,
        }
