"""The whole epoch lowered for a GPU and a TPU, without either: what a step is made of there.

A loop or a product that comes back unnoticed costs nothing in the other tests, which run on a CPU.
"""

import re

import jax
import jax.numpy as jnp
import pytest

from htd_jax import distillers
from htd_jax.data import Interactions
from htd_jax.distillers import HTD
from htd_jax.models import BPR, Representations
from htd_jax.training import adam, make_trainer

# A batch of 1,024 triples is 1,024 users and 2,048 items, of small tables.
USERS, ITEMS, PAIRS, BATCH = 1500, 2500, 4000, 1024
TEACHER_DIM, STUDENT_DIM = 200, 20

# Each method with 30 groups or experts, and the products of a step. HTD: 2 for the prototypes of student and teacher, 3
# for the group level's cosines and their gradient, 3 per side for the positive pairs (7 in total for all pairs), 4 for
# the two gates and their gradients, and 25 for the assignment, of which a step takes 13 (dense) or 12 (routed).
METHODS = {
    "ftd": (distillers.ftd, 2),
    "htd": (distillers.htd, 40),
    "htd, all pairs": (lambda: distillers.htd(HTD(pairs="all")), 41),
    "de": (distillers.de, 29),
}


def lowered(method: distillers.Distiller, *platforms: str) -> str:
    """The epoch's program for `platforms`, in StableHLO."""
    pairs = jnp.arange(PAIRS)
    train = Interactions.from_pairs(pairs % USERS, pairs * 7 % ITEMS, USERS, ITEMS)
    teacher = Representations(*(jax.ShapeDtypeStruct((size, TEACHER_DIM), jnp.float32) for size in (USERS, ITEMS)))
    make_model = lambda train: BPR(train.num_users, train.num_items, STUDENT_DIM)
    trainer = make_trainer(make_model, method, adam(1e-3, 1e-3), batch_size=BATCH)
    key = jax.random.key(0)
    state = jax.eval_shape(trainer.init, key, train, teacher)
    return trainer.epoch.trace(state, key, train, teacher).lower(lowering_platforms=platforms).as_text()


def count(text: str) -> dict[str, int]:
    """Loops, choices and products, each function's as often as it is called."""
    bodies = dict(re.findall(r"func\.func \w+ @(\w+)\((.*?)\n  }", text, re.DOTALL))

    def of(name: str) -> dict[str, int]:
        found = {op: len(re.findall(rf"stablehlo\.{op}\b", bodies[name])) for op in ("while", "case", "dot_general")}
        for callee in re.findall(r"call @(\w+)", bodies[name]):
            found = {op: number + of(callee)[op] for op, number in found.items()}
        return found

    return of("main")


@pytest.fixture(scope="module", params=["cuda", "tpu"])
def platform(request):
    return request.param


@pytest.fixture(scope="module")
def plain(platform):
    return count(lowered(distillers.none(), platform))


def test_an_epoch_has_three_loops(plain):
    """The scan over its steps, and one each to walk the cycles of the order of pairs and of the dealt items."""
    assert plain == {"while": 3, "case": 0, "dot_general": 0}


@pytest.mark.parametrize("name", METHODS)
def test_a_step_on_a_large_device_is_a_few_products_and_no_loop(name, platform, plain):
    method, most = METHODS[name]
    found = count(lowered(method(), platform))
    assert found["while"] == plain["while"]
    assert 0 < found["dot_general"] <= most


@pytest.mark.slow
def test_one_program_holds_the_forms_of_all_platforms():
    """Beside the products of a GPU, those of the tiles and blocks of a CPU, and their loops."""
    one = count(lowered(distillers.htd(), "cuda"))
    all_forms = count(lowered(distillers.htd(), "cpu", "cuda", "tpu"))
    assert all_forms["while"] > one["while"] and all_forms["dot_general"] > one["dot_general"]
