"""What several seeds cost as one program: plain 20-dimensional students on CiteULike, in a row and together.

    python benchmarks/many_seeds.py --data-dir DIR

The forms of an epoch of all seeds are timed turn about, the best of several quoted, since other work on the same cores
only ever adds:

- in a row: each seed's own compiled program, as that many calls of `htd_jax.fit` have them;
- in turn: one program, that of one seed, called for each of them; what `fit_seeds` does on a CPU;
- side by side: one program, whose every step is that of all seeds; what it does on anything else;
- a part a device: one program, in which each of several devices takes its part of the seeds in turn; of a CPU, two.

Compilation is of all that has to be compiled. The pieces are measured by themselves: the draw of an epoch's batches, an
epoch's steps of Adam alone, and an epoch's gathers, losses and scatters with a plain step down the gradient in Adam's
place; in turn, side by side, and flat, the tables of all seeds one below another as those of one model. Last the whole
calls, with everything in them.
"""

import dataclasses
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import jax
import jax.numpy as jnp
import tyro
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from measure import BATCH, STUDENT_DIM, make_bpr

import htd_jax
from htd_jax import data, distillers
from htd_jax.data import Interactions
from htd_jax.distillers import Triples
from htd_jax.losses import bpr_loss
from htd_jax.training import Trainer, adam, make_trainer, own, together
from htd_jax.training.many import hold, stack

Advance = Callable[[], object]


@dataclasses.dataclass
class Options:
    data_dir: Path | None = None
    """Folder of the citeulike files; else they are found as the main command finds them."""
    seeds: int = 5
    """How many."""
    times: int = 8
    """Measurements of each form, of which the best is quoted."""
    epochs: tuple[int, ...] = (5, 20, 101)
    """Of the whole calls."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    dataset = htd_jax.read(data.load("citeulike", options.data_dir))
    train, seeds = dataset.train, options.seeds

    made = {name: timed(lambda make=make: make(train, seeds)) for name, make in FORMS.items()}
    best = best_of({name: advance for name, (_, advance) in made.items()}, options.times)
    print(f"| {seeds} seeds | compilation, s | epoch, s | over in a row |\n|---|---|---|---|")
    for name, (compilation, _) in made.items():
        print(f"| {name} | {compilation:.1f} | {best[name]:.3f} | {best[name] / best['in a row']:.2f} |")

    best = best_of(pieces(train, seeds), options.times)
    print(f"\n| {seeds} seeds, pieces of an epoch | {' | '.join(f'{how}, s' for how in HOW)} |\n|---|---|---|---|")
    for piece in ("draw", "Adam", "gradient"):
        cells = [f"{best[piece, how]:.3f}" if (piece, how) in best else "" for how in HOW]
        print(f"| {piece} | {' | '.join(cells)} |")

    print(f"\n| {seeds} seeds, whole calls | `fit` in a row, s | `fit_seeds`, s | over in a row |\n|---|---|---|---|")
    for epochs in options.epochs:
        common = {"dim": STUDENT_DIM, "epochs": epochs, "progress": False}
        row, _ = timed(lambda common=common: [htd_jax.fit(dataset, seed=seed, **common) for seed in range(seeds)])
        one, _ = timed(lambda common=common: htd_jax.fit_seeds(dataset, seeds=range(seeds), **common))
        print(f"| {epochs} epochs | {row:.1f} | {one:.1f} | {one / row:.2f} |", flush=True)


def timed(make: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds that it takes, and what it gives."""
    start = time.perf_counter()
    made = jax.block_until_ready(make())
    return time.perf_counter() - start, made


def best_of(runs: dict[Any, Advance], times: int) -> dict[Any, float]:
    """Seconds of each, the best of so many rounds, after one that is not counted."""
    rounds = [{name: timed(run)[0] for name, run in runs.items()} for _ in range(times + 1)]
    return {name: min(seconds[name] for seconds in rounds[1:]) for name in runs}


def trainer_of() -> Trainer:
    return make_trainer(make_bpr(STUDENT_DIM), distillers.none(), adam(1e-3, 1e-3), batch_size=BATCH)


def start(trainer: Trainer, train: Interactions, seeds: int) -> tuple[list[Any], list[Any], Any]:
    """The states, the keys of the epochs, and what is known of a teacher."""
    known, keys = trainer.prepare(train, None), [jax.random.split(jax.random.key(seed)) for seed in range(seeds)]
    return [trainer.init(key[0], train, known) for key in keys], [key[1] for key in keys], known


def in_a_row(train: Interactions, seeds: int) -> Advance:
    def alone(seed: int) -> Advance:
        trainer = trainer_of()
        known, (init_key, key) = trainer.prepare(train, None), jax.random.split(jax.random.key(seed))
        state = trainer.init(init_key, train, known)
        epoch = trainer.epoch.lower(state, key, train, known).compile()  # type: ignore[attr-defined]

        def advance() -> object:
            nonlocal state
            state, terms = jax.block_until_ready(epoch(state, key, train, known))
            return terms

        return advance

    each = [alone(seed) for seed in range(seeds)]
    return lambda: [advance() for advance in each]


def in_turn(train: Interactions, seeds: int) -> Advance:
    trainer = trainer_of()
    states, keys, known = start(trainer, train, seeds)
    held = hold(trainer, train, states, keys, [known] * seeds)
    return lambda: held.advance([True] * seeds)


def side_by_side(train: Interactions, seeds: int) -> Advance:
    trainer = trainer_of()
    states, keys, known = start(trainer, train, seeds)
    return compiled(together(trainer, shared=True), stack(states), jnp.stack(keys), jnp.ones(seeds, bool), train, known)


def a_part_a_device(train: Interactions, seeds: int) -> Advance:
    """Filled up to as many for each device with seeds that stay where they are."""
    devices, trainer = jax.devices(), trainer_of()
    states, keys, known = start(trainer, train, seeds)
    fill = -seeds % len(devices)
    part, whole = PartitionSpec("device"), PartitionSpec()
    mesh = Mesh(devices, ("device",))
    place = functools.partial(jax.device_put, device=NamedSharding(mesh, part))
    many = place(stack(states + states[:1] * fill))
    all_keys, goes = place(jnp.stack(keys + keys[:1] * fill)), place(jnp.arange(seeds + fill) < seeds)

    def of_part(states: Any, keys: Any, goes: Any, train: Any, known: Any) -> Any:
        def of_one(each: Any) -> Any:
            state, key, goes = each
            go = lambda state: trainer.epoch(state, key, train, known)[0]
            return jax.lax.cond(goes, go, lambda state: state, state)

        return jax.lax.map(of_one, (states, keys, goes)), ()

    specs = (part, part, part, whole, whole)
    spread = jax.jit(
        jax.shard_map(of_part, mesh=mesh, in_specs=specs, out_specs=part, check_vma=False), donate_argnums=0
    )
    return compiled(spread, many, all_keys, goes, *jax.device_put((train, known), NamedSharding(mesh, whole)))


def compiled(epoch: Any, states: Any, *inputs: Any) -> Advance:
    """Of a function of states and inputs that takes over the states."""
    program = epoch.lower(states, *inputs).compile()

    def advance() -> object:
        nonlocal states
        states, _ = program(states, *inputs)
        return states

    return advance


FORMS: dict[str, Callable[[Interactions, int], Advance]] = {
    "in a row": in_a_row,
    "in turn": in_turn,
    "side by side": side_by_side,
    "a part a device": a_part_a_device,
}
HOW = ("in turn", "side by side", "flat")


def pieces(train: Interactions, seeds: int) -> dict[tuple[str, str], Advance]:
    """By name, and how the seeds are worked on."""
    optimizer, objective = adam(1e-3, 1e-3), own()
    steps, _ = objective.steps(train, BATCH)
    sizes = {"users": train.num_users, "items": train.num_items}
    tables = {name: jnp.full((seeds, size, STUDENT_DIM), 0.01) for name, size in sizes.items()}
    vectors = {name: table.reshape(seeds, -1) for name, table in tables.items()}
    keys = jax.random.split(jax.random.key(0), seeds)

    def draw(key: Any) -> Triples:
        return objective.draw(jax.random.split(key), train, BATCH)

    def of_adam(params: Any) -> Any:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            values, state = carry
            updates, state = optimizer.update(params, state, values)  # a gradient like any other
            return (jax.tree.map(jnp.add, values, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), None, steps)[0]

    def of_gradient(params: Any, batches: Triples) -> Any:
        def loss(params: Any, batch: Triples) -> jax.Array:
            users, seen, unseen = params["users"][batch.users], *(params["items"][ids] for ids in batch[1:3])
            return bpr_loss(jnp.sum(users * seen, -1), jnp.sum(users * unseen, -1), where=batch.where)

        def step(params: Any, batch: Triples) -> tuple[Any, None]:
            return jax.tree.map(lambda x, g: x - 1e-3 * g, params, jax.grad(loss)(params, batch)), None

        return jax.lax.scan(step, params, batches)[0]

    def in_a_loop(of_one: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: jax.lax.map(lambda each: of_one(*each), arguments)

    batches = jax.jit(jax.vmap(draw))(keys)
    below = lambda ids, size: ids + size * jnp.arange(seeds)[:, None, None]
    users, items = sizes.values()
    shifted = Triples(*(below(ids, n) for ids, n in zip(batches[:3], (users, items, items))), batches.where)
    flat_batches = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(steps, -1), shifted)
    flat_tables = jax.tree.map(lambda x: x.reshape(-1, STUDENT_DIM), tables)
    inputs = {"draw": (draw, (keys,)), "Adam": (of_adam, (vectors,)), "gradient": (of_gradient, (tables, batches))}
    found: dict[tuple[str, str], Advance] = {
        (name, how): functools.partial(jax.jit(form(of_one)), *arguments)
        for name, (of_one, arguments) in inputs.items()
        for how, form in (("in turn", in_a_loop), ("side by side", jax.vmap))
    }
    found["Adam", "flat"] = functools.partial(jax.jit(of_adam), jax.tree.map(jnp.ravel, vectors))
    found["gradient", "flat"] = functools.partial(jax.jit(of_gradient), flat_tables, flat_batches)
    return found


if __name__ == "__main__":
    main()
