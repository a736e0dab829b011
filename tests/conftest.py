import os
from pathlib import Path

# Nine parts in ten of the suite's time are compilation, half of them the processor code's optimisation, which changes
# nothing that is asserted here. With XLA_FLAGS= (empty) everything is compiled as users have it.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")  # for test_mesh.py; all others use the first

import jax
import numpy as np
import pytest
import runs

import htd_jax
from htd_jax.data import make_split


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """What is compiled once is compiled for all tests, those of other workers and in processes of their own too."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"


@pytest.fixture
def no_implicit_broadcasting():
    """Who forbids it in a program of their own can use what is tested here in it."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def a_checkpoint_every_epoch(monkeypatch):
    """Training waits for the one before, so that a kill loses nothing."""
    monkeypatch.setattr("htd_jax.training.loop.CHECKPOINT_SECONDS", -1)
    monkeypatch.setattr("htd_jax.training.checkpoint.BackgroundSaves.idle", True)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def citeulike_dir() -> Path:
    """The folder of the published split; tests on real data skip without it."""
    root = os.environ.get("HTD_DATA_DIR")
    if not root or not (Path(root) / "citeulike" / "Train").is_file():
        pytest.skip("needs the citeulike files: set HTD_DATA_DIR to the folder that holds citeulike/")
    return Path(root) / "citeulike"


@pytest.fixture(scope="session")
def small_split():
    """60 users, 90 items, some users with far more items than others; leave-one-out."""
    rng = np.random.default_rng(1)
    parts = [[], [], []]
    for user in range(60):
        items = rng.permutation(90)[: rng.integers(4, 8) if user else 80]
        for part, chosen in zip(parts, (items[2:], items[:1], items[1:2])):
            part.extend((user, item) for item in chosen)
    return make_split(*(tuple(np.array(part).T) for part in parts), 60, 90)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run of HTD: its folder, which nobody changes, and what was printed."""
    folder = tmp_path_factory.mktemp("finished") / "synthetic-htd-4-seed0"
    return folder, runs.trained("--htd.groups", 3, "--runs", folder.parent).out


@pytest.fixture(scope="session")
def data():
    """80 users and 150 items, for methods that are trained."""
    return htd_jax.data.make_synthetic(num_users=80, num_items=150)


@pytest.fixture(scope="session")
def teacher(data):
    """A recommender of 16 dimensions that has learned `data`."""
    return htd_jax.fit(data, dim=16, epochs=15, learning_rate=0.02, progress=False)
