"""What the benchmarks share: an epoch of any phase at any size, compiled and timed."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a plain checkout will do, installed or not

import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.data import Interactions
from htd_jax.distillers import Distiller
from htd_jax.models import BPR, MakeModel
from htd_jax.training import Representations, TrainState, adam, make_trainer

SEED = 0

# The paper's settings, which are the command's defaults too.
TEACHER_DIM, STUDENT_DIM, GROUPS, EPOCHS, BATCH, WEIGHT = 200, 20, 30, 101, 1024, 1e-3

# HTD's cost falls with its temperature: epochs worth a measurement, and the first of them with one under 0.01. Those
# before it must be trained too: an untrained gate gets no gradient when cold, L2 takes it to zero, and all entities
# fall into one group, which is not what a run comes to.
HTD_EPOCHS = (1, 4, 6, 7, 8, 10, 13, 16, 22, 30, 60, 100)
COLD = HTD_EPOCHS.index(22)


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
    return lambda train: BPR(train.num_users, train.num_items, dim)


class Epoch:
    """One phase's compiled epoch.

    Attributes:
      compiled: as XLA has it, with its `cost_analysis()` and `memory_analysis()`.
    """

    def __init__(self, train: Interactions, distiller: Distiller, dim: int, teacher: Representations, batch_size: int):
        self._trainer = make_trainer(make_bpr(dim), distiller, adam(1e-3, 1e-3), batch_size=batch_size)
        self._inputs = (jax.random.key(SEED), train, teacher)
        self.compiled = self._trainer.epoch.lower(self.start(), *self._inputs).compile()

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
