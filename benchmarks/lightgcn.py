"""The cost of propagation: seconds per step of BPR and LightGCN on CiteULike, and the sparse products' share of them.

    python benchmarks/lightgcn.py --data-dir DIR

A step is the loss of 1,024 triples, its gradient, and a step of gradient descent; steps run in one compiled loop, as in
training. The two sparse products, users from items and items from users, are measured in the same way: LightGCN with L
layers computes them L times forward and L times backward. The bytes that they move are counted by hand: in either
direction each pair reads one row, an index and a weight, and each sum is read and written once. A cache can serve some
of that; the table therefore also has the least possible, tables read once and written once, and the rate of a pass
over memory.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from measure import BATCH, SEED, STUDENT_DIM, TEACHER_DIM, make_bpr, random_teacher
from roofline import copy_rate, median_seconds

from htd_jax import data
from htd_jax.data import Interactions, shuffle, unseen_items
from htd_jax.models import LightGCN, MakeModel, make_graph
from htd_jax.models.lightgcn import add_neighbours

Step = Callable[[Any, Any], Any]  # (index, carry) -> carry


@dataclasses.dataclass
class Options:
    data_dir: Path | None = None
    """Folder of the citeulike files; by default they are searched for as by the main command."""
    layers: int = 1
    """Layers of LightGCN."""
    steps: int = 100
    """Steps per measurement."""
    times: int = 5
    """Number of measurements, of which the median is reported."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    train = data.load("citeulike", options.data_dir).train
    print(f"{jax.devices()[0].device_kind}: memory {copy_rate() / 1e9:.1f} GB/s\n")
    time = lambda make_step, carry: seconds(make_step, carry, train, options)

    print("| step | dimensions | seconds |\n|---|---|---|")
    for dim in (TEACHER_DIM, STUDENT_DIM):
        models = {
            "BPR": make_bpr(dim),
            "LightGCN": make_lightgcn(dim, options.layers),
        }
        for name, make_model in models.items():
            print(f"| {name} | {dim} | {time(*make_steps(make_model, train)):.4f} |", flush=True)

    print("\n| two products | seconds | GB asked for | GB/s | GB of the tables | GB/s |\n|---|---|---|---|---|---|")
    for dim in (TEACHER_DIM, STUDENT_DIM):
        found = time(products, tuple(random_teacher(train, dim)))
        row, tables = 4 * dim, 4 * dim * (train.num_users + train.num_items)
        asked, least = 2 * len(train) * (row + 8) + 2 * tables, 2 * tables
        print(
            f"| {dim} dimensions | {found:.4f} | {asked / 1e9:.3f} | {asked / found / 1e9:.1f} |"
            f" {least / 1e9:.3f} | {least / found / 1e9:.1f} |",
            flush=True,
        )


def make_lightgcn(dim: int, layers: int) -> MakeModel:
    return lambda train: LightGCN(train.num_users, train.num_items, make_graph(train), dim, layers)


def products(train: Interactions) -> Step:
    graph = make_graph(train)
    return lambda index, tables: add_neighbours(tables, tables, graph)


def make_steps(make_model: MakeModel, train: Interactions) -> tuple[Callable[[Interactions], Step], Any]:
    """Returns a function that makes the step of a model, and the initial variables."""
    keys = jax.random.split(jax.random.key(SEED), 3)
    order, negatives = shuffle(keys[0], len(train)), unseen_items(keys[1], train)
    one, where = jnp.zeros(1, jnp.int32), jnp.ones(BATCH, bool)

    def make_step(train):
        model = make_model(train)

        def step(index, variables):
            rows = jax.lax.dynamic_slice_in_dim(order, index * BATCH, BATCH)
            triples = train.users[rows], train.items[rows], negatives[rows], where
            gradient = jax.grad(lambda v: model.apply(v, *triples, method="loss"))(variables)
            return jax.tree.map(lambda x, y: x - 1e-3 * y, variables, gradient)

        return step

    return make_step, make_model(train).init(keys[2], one, one, method="score")


def seconds(make_step: Callable[[Interactions], Step], carry: Any, train: Interactions, options: Options) -> float:
    """Returns the seconds per step of `options.steps` steps in one compiled loop, with the work before the loop."""
    run = jax.jit(lambda carry, train: jax.lax.fori_loop(0, options.steps, make_step(train), carry))
    return median_seconds(lambda: run(carry, train), options.times) / options.steps


if __name__ == "__main__":
    main()
