"""Compares the package's alternating least squares with `implicit`'s on the same cores: objective, recall, seconds.

    python benchmarks/als.py [--data-dir DIR]

Both make the same number of sweeps with the same settings; the confidence of an unseen pair is 1 in both.
"""

import dataclasses
import functools
import os
import time
from pathlib import Path

import implicit
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import tyro
from measure import SEED, make_bpr
from threadpoolctl import threadpool_limits

from htd_jax import data
from htd_jax.data import Interactions
from htd_jax.evaluation import make_evaluator
from htd_jax.models import IALSSettings
from htd_jax.training import make_solving_trainer


@dataclasses.dataclass
class Options:
    data_dir: Path | None = None
    """Folder of the citeulike files; by default they are searched for as by the main command."""
    dim: int = 200
    """Dimensions of the representations."""
    sweeps: int = 15
    """Sweeps over users and items."""
    rounds: int = 3
    """Number of timed runs of each program."""


def ours(train: Interactions, settings: IALSSettings, dim: int, sweeps: int) -> tuple[jax.Array, jax.Array, float]:
    """Returns users, items and the seconds of training, with the host's preparation and without compilation."""
    trainer = make_solving_trainer(make_bpr(dim), settings.solver())
    inputs = jax.random.key(SEED), train
    guidance = trainer.guide(train, None)
    state = trainer.init(*inputs, guidance)
    compiled = trainer.epoch.lower(state, *inputs, guidance).compile()  # type: ignore[attr-defined]
    begun = time.perf_counter()
    guidance = trainer.guide(train, None)
    for _ in range(sweeps):
        state, _ = compiled(state, *inputs, guidance)
    tables = jax.block_until_ready(state.params["model"]["params"])
    return tables["users"], tables["items"], time.perf_counter() - begun


def theirs(
    train: Interactions, settings: IALSSettings, dim: int, sweeps: int, exact: bool
) -> tuple[jax.Array, jax.Array, float]:
    pairs = np.asarray(train.users), np.asarray(train.items)
    matrix = scipy.sparse.csr_matrix((np.ones(len(train), np.float32), pairs), (train.num_users, train.num_items))
    with threadpool_limits(1, "blas"):  # as it recommends, because its own threads work on rows
        model = implicit.als.AlternatingLeastSquares(
            factors=dim,
            alpha=settings.alpha,
            regularization=settings.regularization,
            iterations=sweeps,
            use_cg=not exact,
            random_state=SEED,
            num_threads=len(os.sched_getaffinity(0)),
        )
        begun = time.perf_counter()
        model.fit(matrix, show_progress=False)
        seconds = time.perf_counter() - begun
    return jnp.asarray(model.user_factors), jnp.asarray(model.item_factors), seconds


def objective(users: jax.Array, items: jax.Array, train: Interactions, settings: IALSSettings) -> float:
    """Returns the objective in float64, from its definition, with the same lambda for every row."""
    u, v = (np.asarray(table, np.float64) for table in (users, items))
    scores = np.sum(u[train.users] * v[train.items], axis=1)
    all_pairs = np.sum((u.T @ u) * (v.T @ v))
    seen = np.sum(settings.alpha * (1 - scores) ** 2 - scores**2)
    return float(all_pairs + seen + settings.regularization * (np.sum(u**2) + np.sum(v**2)))


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    split = data.load("citeulike", options.data_dir)
    evaluate = functools.partial(make_evaluator(split), make_bpr(options.dim))
    programs = {
        "ours, 3 steps": lambda *a: ours(split.train, IALSSettings(), *a),
        "implicit, 3 steps": lambda *a: theirs(split.train, IALSSettings(), *a, exact=False),
        "ours, exact": lambda *a: ours(split.train, IALSSettings(steps=0), *a),
        "implicit, exact": lambda *a: theirs(split.train, IALSSettings(), *a, exact=True),
    }
    print("| | objective | test recall@50 | seconds, least to most |\n|---|---|---|---|")
    for name, program in programs.items():
        fitted = [program(options.dim, options.sweeps) for _ in range(options.rounds)]
        users, items, _ = fitted[0]
        recall = float(evaluate({"params": {"users": users, "items": items}})["test"]["recall@50"])
        seconds = sorted(seconds for *_, seconds in fitted)
        value = objective(users, items, split.train, IALSSettings())
        print(f"| {name} | {value:,.0f} | {recall:.4f} | {seconds[0]:.2f} to {seconds[-1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
