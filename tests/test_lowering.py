"""The whole epoch lowered for a GPU and a TPU, without either: what a step is made of there.

A loop or a product that comes back unnoticed costs nothing in the other tests, which run on a CPU.
"""

import re

import jax
import jax.numpy as jnp
import pytest

from htd_jax import distillers
from htd_jax.data import Interactions
from htd_jax.models import BPR
from htd_jax.training import Representations, adam, make_trainer

# A batch of 1,024 triples is 1,024 users and 2,048 items, of small tables.
USERS, ITEMS, PAIRS, BATCH = 1500, 2500, 4000, 1024
TEACHER_DIM, STUDENT_DIM, GROUPS = 200, 20, 30

METHODS = {
    "none": distillers.none,
    "ftd": distillers.ftd,
    "htd": lambda: distillers.htd(num_groups=GROUPS),
    "htd, all pairs": lambda: distillers.htd(num_groups=GROUPS, pairs="all"),
    "de": lambda: distillers.de(num_experts=GROUPS),
}


def lowered(method: str, platform: str) -> str:
    """The epoch's program for `platform`, in StableHLO."""
    pairs = jnp.arange(PAIRS)
    train = Interactions.from_pairs(pairs % USERS, pairs * 7 % ITEMS, USERS, ITEMS)
    teacher = Representations(*(jax.ShapeDtypeStruct((size, TEACHER_DIM), jnp.float32) for size in (USERS, ITEMS)))
    make_model = lambda train: BPR(train.num_users, train.num_items, STUDENT_DIM)
    trainer = make_trainer(make_model, METHODS[method](), adam(1e-3, 1e-3), batch_size=BATCH)
    key = jax.random.key(0)
    state = jax.eval_shape(trainer.init, key, train, teacher)
    return trainer.epoch.trace(state, key, train, teacher).lower(lowering_platforms=(platform,)).as_text()


def count(text: str) -> dict[str, int]:
    """Loops, choices and products, each function's as often as it is called."""
    bodies = dict(re.findall(r"func\.func \w+ @(\w+)\((.*?)\n  }", text, re.DOTALL))

    def of(name: str) -> dict[str, int]:
        found = {op: len(re.findall(rf"stablehlo\.{op}\b", bodies[name])) for op in ("while", "case", "dot_general")}
        for callee in re.findall(r"call @(\w+)", bodies[name]):
            found = {op: number + of(callee)[op] for op, number in found.items()}
        return found

    return of("main")


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_what_a_step_adds_on_a_large_device(platform):
    """Beside the epoch without distillation, whose loops are the scan over steps and those that shuffle and draw."""
    plain = count(lowered("none", platform))
    for method in METHODS:
        print(platform, method, count(lowered(method, platform)), plain)
