"""Blocks of interactions, and the study of ways to keep a student up to date."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from htd_jax.data import save_split
from htd_jax.data.blocks import Blocks, cut_log, read_blocks
from htd_jax.data.interactions import codes_of, make_split
from htd_jax.errors import UserError
from htd_jax.studies import continual
from htd_jax.studies.continual import WAYS, Chain, Continual, Measured, average, h_mean, measure


@pytest.fixture
def log(tmp_path):
    """A log of 40 users and 50 items; later interactions bring new ones."""
    rng = np.random.default_rng(0)
    rows = sorted({(f"u{rng.integers(20 + t // 60)}", f"i{rng.integers(30 + t // 60)}", t) for t in range(1200)})
    path = tmp_path / "log.csv"
    path.write_text("user,item,timestamp\n" + "".join(f"{u},{i},{1000 + t}\n" for u, i, t in rows))
    return path, rows


def test_a_cut_log_has_every_pair_once_in_the_block_of_its_time(log):
    path, rows = log
    blocks = cut_log(path, 3)
    first = {}
    for user, item, time in sorted(rows, key=lambda row: row[2]):
        first.setdefault((user, item), time)
    assert sum(len(part) for split in blocks.splits for part in split) == len(first)
    sizes = [sum(map(len, split)) for split in blocks.splits]
    assert abs(sizes[0] - len(first) / 2) <= 1 and max(sizes[1:]) - min(sizes[1:]) <= 1
    for k, split in enumerate(blocks.splits):
        parts = [codes_of(part) for part in split]
        assert len(np.unique(np.concatenate(parts))) == sum(map(len, parts))
        held = max(int(np.asarray(part.users).max()) for split in blocks.splits[: k + 1] for part in split)
        assert held == split.train.num_users - 1  # numbered in the order of blocks, without gaps
    assert blocks.sizes(3) == (len({u for u, _, _ in rows}), len({i for _, i, _ in rows}))


def test_blocks_grow_and_repeat_nothing_that_is_known(tmp_path):
    splits = [
        make_split(([0, 0, 1], [0, 1, 1]), ([1], [2]), ([0], [2]), 5, 6),
        make_split(([0, 1, 3], [0, 3, 4]), ([1], [4]), ([0], [4]), 5, 6),
    ]
    for number, split in enumerate(splits):
        save_split(tmp_path / f"block-{number}.npz", split)
    blocks = read_blocks(tmp_path)
    assert blocks.sizes(0) == (2, 3) and blocks.sizes(1) == (4, 5)
    data = blocks.dataset(1)
    assert len(data.train) == 5 and len(data.block) == 3 and len(data.test) == 1
    whole = blocks.whole(1)
    assert len(whole.train) == 5 and len(whole.valid) == 2 and len(whole.test) == 2
    (tmp_path / "block-1.npz").unlink()
    with pytest.raises(UserError, match="block-0.npz, block-1.npz"):
        read_blocks(tmp_path)


def test_a_proxy_moves_and_takes_new_rows():
    old, new = {"users": jnp.ones((2, 3))}, {"users": jnp.zeros((3, 3)).at[2].set(5.0)}
    moved = average(old, new, 0.9)["users"]
    assert np.allclose(moved, [[0.9] * 3, [0.9] * 3, [5.0] * 3])


def test_h_follows_the_definition():
    rng = np.random.default_rng(0)
    grid = rng.random((4, 4))
    figures = [Measured("x", 0, k, [{"r": grid[k, i]} for i in range(k + 1)], 0.0) for k in range(4)]
    for k, (learned, retained, h) in enumerate(h_mean(figures, "r")):
        a = np.mean([grid[i, i] for i in range(k + 1)])
        b = np.mean(grid[k, : k + 1])
        assert np.allclose([learned, retained, h], [a, b, 2 / (1 / a + 1 / b)])


SMALL = Continual(
    teachers=("bpr", "bpr"), teacher_dim=4, student_dim=2, teacher_epochs=2, student_epochs=2, update_epochs=1
)


@pytest.mark.slow
def test_every_way_measures_every_block_and_resumes_anywhere(log, tmp_path, monkeypatch):
    blocks = cut_log(log[0], 2)
    whole = {}
    for way in WAYS:
        figures = [*measure(Chain(blocks, SMALL, 0, tmp_path / "whole"), way, tmp_path / f"{way}.json")]
        assert [len(found.metrics) for found in figures] == [1, 2, 3]
        whole[way] = [found.metrics for found in figures]
    assert whole["none"] != whole["update"] != whole["ccd"]
    # A study that is stopped after every block, and before some trainings, ends with the same figures.
    train = Chain.train
    for way, stops in (("ccd", (3, 5, 7)), ("update", (4,))):
        kept = tmp_path / f"again-{way}.json"
        for stop in stops:
            calls = iter(range(1, stop))

            def stopping(self, name, *args, calls=calls, **kwargs):
                if next(calls, None) is None:
                    raise KeyboardInterrupt
                return train(self, name, *args, **kwargs)

            monkeypatch.setattr(Chain, "train", stopping)
            with pytest.raises(KeyboardInterrupt):
                [*measure(Chain(blocks, SMALL, 0, tmp_path / way), way, kept)]
            monkeypatch.setattr(Chain, "train", train)
        figures = [*measure(Chain(blocks, SMALL, 0, tmp_path / way), way, kept)]
        assert [found.metrics for found in figures] == whole[way]
        assert len(json.loads(kept.read_text())) == 3
    report = continual.report(blocks, [Measured(way, 0, k, m, 1.0) for way in whole for k, m in enumerate(whole[way])])
    assert len(report.tables) == 2 and len(report.charts) == 3
    assert dataclasses.is_dataclass(report)


def test_old_and_new_blocks_have_equal_ids(log):
    """A pair of block 0 is the same rows after every later block."""
    blocks = cut_log(log[0], 3)
    assert isinstance(blocks, Blocks)
    assert (np.asarray(blocks.part(0, 3).train.items) == np.asarray(blocks.splits[0].train.items)).all()
    assert blocks.part(0, 3).train.num_items == blocks.sizes(3)[1]
