"""What the benchmarks share: an epoch of any phase at any size, compiled and timed."""

import functools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a plain checkout will do, installed or not

import jax
import jax.numpy as jnp
import numpy as np

from htd_jax import distillers
from htd_jax.data import Interactions, Split
from htd_jax.distillers import Distiller
from htd_jax.evaluation import make_evaluator
from htd_jax.models import BPRSettings, MakeModel, ModelOf
from htd_jax.training import Representations, TrainState, adam, make_trainer, no_teacher

SEED = 0

# The paper's settings, which are the command's defaults too.
TEACHER_DIM, STUDENT_DIM, GROUPS, EPOCHS, BATCH, WEIGHT = 200, 20, 30, 101, 1024, 1e-3

# HTD's cost falls with its temperature: epochs worth a measurement, and the first of them with one under 0.01. Those
# before it must be trained too: an untrained gate gets no gradient when cold, L2 takes it to zero, and all entities
# fall into one group, which is not what a run comes to.
HTD_EPOCHS = (1, 4, 6, 7, 8, 10, 13, 16, 22, 30, 60, 100)
COLD = HTD_EPOCHS.index(22)

# The phases whose every epoch costs the same.
PLAIN = ("teacher", "student", "FTD")


def random_teacher(train: Interactions, dim: int) -> Representations:
    """Normal representations: HTD's groups are then of about equal size."""
    keys = jax.random.split(jax.random.key(SEED))
    sizes = (train.num_users, train.num_items)
    return Representations(*(jax.random.normal(key, (size, dim)) for key, size in zip(keys, sizes)))


def random_interactions(num_users: int, num_items: int, num_pairs: int) -> Interactions:
    """Pairs drawn uniformly, repeats dropped and made up for: exactly `num_pairs`."""
    rng = np.random.default_rng(SEED)
    codes = np.unique(rng.integers(0, num_users * num_items, 2 * num_pairs))
    codes = rng.permutation(codes)[:num_pairs]
    return Interactions.from_pairs(codes // num_items, codes % num_items, num_users, num_items)


def make_bpr(dim: int) -> MakeModel:
    return ModelOf(BPRSettings(), dim)


class Epoch:
    """One phase's compiled epoch.

    Attributes:
      compiled: as XLA has it, with its `cost_analysis()` and `memory_analysis()`.
      trace_seconds, compile_seconds: what it took to trace and lower it, and to compile it.
    """

    def __init__(self, train: Interactions, distiller: Distiller, dim: int, teacher: Representations, batch_size: int):
        self._trainer = make_trainer(make_bpr(dim), distiller, adam(1e-3, 1e-3), batch_size=batch_size)
        self._inputs = (jax.random.key(SEED), train, self._trainer.prepare(train, teacher))
        start = self.start()
        begun = time.perf_counter()
        lowered = self._trainer.epoch.lower(start, *self._inputs)
        traced = time.perf_counter()
        self.compiled = lowered.compile()
        self.trace_seconds, self.compile_seconds = traced - begun, time.perf_counter() - traced

    def start(self) -> TrainState:
        return self._trainer.init(*self._inputs)

    def seconds(self, epochs: Sequence[int]) -> list[float]:
        """Of each of `epochs`, whose number decides HTD's temperature, after one that is not counted."""
        state, seconds = self.start(), []
        for epoch in (epochs[0], *epochs):
            state = jax.block_until_ready(state.replace(epoch=jnp.int32(epoch)))
            start = time.perf_counter()
            state, _ = jax.block_until_ready(self.compiled(state, *self._inputs))
            seconds.append(time.perf_counter() - start)
        return seconds[1:]


class Phases:
    """Every phase at the default settings, on random teacher tables, compiled; and the evaluation.

    Attributes:
      epochs: the phases that are trained, by name.
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
        """Of an epoch of every phase, and of an evaluation; HTD's falls with its temperature."""
        found = {f"{name} epoch": statistics.median(self.epochs[name].seconds(range(1, 6))) for name in PLAIN}
        htd = self.epochs["HTD"].seconds(HTD_EPOCHS)
        start = time.perf_counter()
        self._evaluate()
        return found | {
            "HTD epoch, T = 1": htd[0],
            "HTD epoch, T < 0.01": statistics.median(htd[COLD:]),
            "HTD epoch, mean of 101": float(np.interp(np.arange(EPOCHS), HTD_EPOCHS, htd).mean()),
            "evaluation, valid + test": time.perf_counter() - start,
        }
