"""Ranking protocols: which items a held-out item is ranked against.

A protocol is a value with two methods: `prepare(split)` returns a pytree of arrays that `ranks` needs in addition to
`split`, and is called once; `ranks(model, split, prepared)` returns the ranks `[n]` of the held-out pairs of
`split.valid` and of `split.test`, in their order. Memory grows with the number of pairs, not with the number of users
times the largest number of pairs of one user.
"""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.data import Interactions, Split
from htd_jax.errors import UserError
from htd_jax.ops.manual import axes_of, vary
from htd_jax.ops.platforms import by_backend
from htd_jax.ops.shards import ROWS, first_row, is_shard, num_rows, place, share, total

T = TypeVar("T")


class Scorer(typing.Protocol):
    """What a protocol needs of a model: scores of pairs, and of all items, see `Recommender`."""

    def score(self, users: chex.Array, items: chex.Array) -> jax.Array: ...

    def score_all(self, users: chex.Array) -> jax.Array: ...


class Sizes(NamedTuple):
    """Sizes of the blocks of work.

    Attributes:
      scores: scores of all items that are in memory at a time, 4 bytes each.
      pairs: pairs that are scored one by one at a time; a model holds the vectors of each.
      targets: held-out items that are compared with all items at a time.
    """

    scores: int
    pairs: int
    targets: int


# 16 MiB of scores are an efficient matrix product, and mostly still in a processor's cache when they are read; so are
# a few megabytes of vectors.
PROCESSOR = Sizes(scores=2**22, pairs=2**12, targets=2**6)

# A step of a loop costs a launch, which takes as long as a million comparisons: few large ones, half a GiB of scores.
ACCELERATOR = Sizes(scores=2**27, pairs=2**20, targets=2**12)


def sizes() -> Sizes:
    return by_backend(PROCESSOR, ACCELERATOR)


@dataclasses.dataclass(frozen=True)
class Full:
    """Full ranking: a held-out item's rank among all items that the user has not seen.

    For test, the items of train and valid are hidden; for valid, those of train and test. A held-out item's rank is
    one plus the number of visible items that do not score lower, the user's other held-out items of the same part
    among them: ties count against it, and so does a score that is not a number. No users x items array is held, and
    no row of scores is sorted.
    """

    def prepare(self, split: Split) -> Any:
        return ()

    def ranks(self, model: Scorer, split: Split, prepared: Any) -> tuple[jax.Array, jax.Array]:
        num_users, num_items = split.train.num_users, split.train.num_items
        width = max(1, min(num_users, sizes().scores // num_items))
        blocks = -(-num_users // width)
        parts = (split.valid, split.test)
        degree = jnp.diff(jnp.stack([part.offsets for part in split])).sum(0)

        def rank_block(block: jax.Array, carry: Any) -> Any:
            """Sets the block's bars, the scores of its held-out items, and counts the unseen items that reach them."""
            bars, counts = carry
            first = block * width
            stop = jnp.minimum(first + width, num_users)
            scores = model.score_all(jnp.minimum(first + jnp.arange(width), num_users - 1))
            low = _lowest(scores.dtype)
            if split_by_columns := is_shard(scores):
                real = first_row(scores, axis=1) + jnp.arange(scores.shape[1]) < num_items
                scores = jnp.where(real[None, :], scores, low)
            padding = num_rows(scores, axis=1) - num_items

            def fold(part: Interactions, size: int, f: Callable[..., T], init: T) -> T:
                if not len(part):
                    return init
                return _fold(part, first, stop, min(size, -(-len(part) // blocks)), f, init)

            def read(bar: jax.Array, at: jax.Array, row: jax.Array, item: jax.Array) -> jax.Array:
                if not split_by_columns:
                    return bar.at[at].set(scores[row, item], mode="drop")
                own = scores.at[row, place(scores, item, axis=1)].get(mode="fill", fill_value=0)
                return bar.at[at].set(jax.lax.psum(own, ROWS), mode="drop")

            bars = [fold(part, len(part), read, bar) for part, bar in zip(parts, bars)]
            hide = lambda scores, at, row, item: scores.at[row, place(scores, item, axis=1)].set(low, mode="drop")
            for part in split:
                scores = fold(part, len(part), hide, scores)
            # A bar that is the lowest number, or nan, counts hidden items too: these are subtracted again.
            unseen = scores

            def count(part: Interactions, bar: jax.Array, counts: jax.Array) -> jax.Array:
                def add(counts: jax.Array, at: jax.Array, row: jax.Array, item: jax.Array) -> jax.Array:
                    target = bar.at[at].get(mode="clip")
                    above = _count_in_rows(unseen, row, target)
                    hidden = (degree.at[first + row].get(mode="clip") + padding) * ~(low < target)
                    if split_by_columns:
                        hidden *= jax.lax.axis_index(ROWS) == 0  # counts are summed over shards
                    return counts.at[at].set(above - hidden, mode="drop")

                return fold(part, sizes().targets, add, counts)

            return bars, [count(*each) for each in zip(parts, bars, counts)]

        zero = jnp.zeros(1, jnp.int32)
        dtype = jax.eval_shape(model.score_all, zero).dtype
        bars = [jnp.zeros(len(part), dtype) for part in parts]
        counts = [jnp.zeros(len(part), jnp.int32) for part in parts]
        begin, end = share(blocks)
        bars, counts = vary(bars, axes_of(begin)), vary(counts, axes_of((begin, model.score_all(zero))))
        bars, counts = jax.lax.fori_loop(begin, end, rank_block, (bars, counts))
        bars, counts = jax.tree.map(total, (bars, counts))
        valid, test = (count + _rank_within(part.users, bar) for part, bar, count in zip(parts, bars, counts))
        return valid, test


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Sampled ranking: a held-out item's rank among sampled items, the same for every model, and for valid and test.

    The rank is one plus the number of items that do not score lower, among the user's candidates (see
    `sample_candidates`) and the user's other held-out items of the same part.

    Attributes:
      candidates: the number of sampled items per user.
      seed: of the sample, independent of the run's seed.
    """

    candidates: int = 499
    seed: int = 0

    def prepare(self, split: Split) -> Any:
        """Returns the candidates, and the held-out pairs in rows. A row has one user, and room for the average number
        of held-out items per user.

        A user with more items has several rows, each of which scores the user's candidates again. There are at most
        twice as many rows as users.
        """
        candidates = sample_candidates(split, self.candidates, self.seed)
        users, items = (np.concatenate([getattr(part, name) for part in split[1:]]) for name in ("users", "items"))
        most = -(-len(users) // split.train.num_users)
        order = np.argsort(users, kind="stable")
        degree = np.bincount(users, minlength=split.train.num_users)
        place = np.arange(len(users)) - (np.cumsum(degree) - degree)[users[order]]
        row_degree = -(-degree // most)
        row = (np.cumsum(row_degree) - row_degree)[users[order]] + place // most
        rows = int(row_degree.sum())
        width = max(1, min(rows, sizes().pairs // (self.candidates + most)))
        shape = (-(-rows // width), width, most)
        at = np.full(shape[0] * width * most, len(users), np.int32)  # past the end: no pair
        at[row * most + place % most] = order
        row_user = np.zeros(shape[0] * width, np.int32)
        row_user[:rows] = np.repeat(np.arange(len(degree)), row_degree)
        targets = np.append(items, 0)[at].astype(np.int32)
        arrays = {"users": row_user.reshape(shape[:2]), "at": at.reshape(shape), "targets": targets.reshape(shape)}
        return {name: jnp.asarray(array) for name, array in (arrays | {"candidates": candidates}).items()}

    def ranks(self, model: Scorer, split: Split, prepared: Any) -> tuple[jax.Array, jax.Array]:
        def rank_block(block: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            items = jnp.concatenate([block["targets"], prepared["candidates"][block["users"]]], axis=1)
            scores = model.score(block["users"][:, None], items)
            bar, candidates = jnp.split(scores, [block["targets"].shape[1]], axis=1)
            return bar, _count(candidates[:, None, :], bar[:, :, None])

        rows = {name: prepared[name] for name in ("users", "targets")}
        ranked = jax.lax.map(rank_block, rows)
        size = len(split.valid) + len(split.test)
        flat = lambda x: jnp.zeros(size, x.dtype).at[prepared["at"].ravel()].set(x.ravel(), mode="drop")
        bars, counts = (jnp.split(flat(x), [len(split.valid)]) for x in ranked)
        valid, test = (
            count + _rank_within(part.users, bar) for part, bar, count in zip((split.valid, split.test), bars, counts)
        )
        return valid, test


Protocol = Full | Sampled


def sample_candidates(split: Split, size: int, seed: int) -> np.ndarray:
    """Samples distinct items for each user that are in none of its parts, every set equally likely.

    Among a user's sorted items s_0 < s_1 < ..., s_j has s_j - j unseen items before it, so the r-th unseen item is r
    plus the number of j with s_j - j <= r. The time is proportional to the size of the result.

    Returns:
      `[num_users, size]` int32.

    Raises:
      UserError: if the size is under 1 or the seed under 0, or a user has fewer unseen items than `size`.
    """
    if size < 1:
        raise UserError(f"`candidates` must be at least 1, not {size}")
    if seed < 0:
        raise UserError(f"the seed of the candidates must be at least 0, not {seed}")
    num_users, num_items = split.train.num_users, split.train.num_items
    pairs = np.sort(np.concatenate([np.asarray(p.users, np.int64) * num_items + np.asarray(p.items) for p in split]))
    users, items = np.divmod(pairs, num_items)
    degree = np.bincount(users, minlength=num_users)
    unseen = num_items - degree
    if (unseen < size).any():
        user = int(np.argmin(unseen))
        raise UserError(
            f"`candidates` must be at most {unseen[user]}, the number of unseen items of user {user}, not {size}"
        )
    starts = np.cumsum(degree) - degree
    before = np.split(items - (np.arange(len(items)) - starts[users]), starts[1:])
    rng = np.random.default_rng(seed)
    sample = np.empty((num_users, size), np.int32)
    for row, count, steps in zip(sample, unseen, before):
        r = rng.choice(count, size, replace=False, shuffle=False)
        row[:] = r + np.searchsorted(steps, r, side="right")
    return sample


def _fold(part: Interactions, first: jax.Array, stop: jax.Array, size: int, f: Callable[..., T], init: T) -> T:
    """Folds `f(value, at, row, item)` over the pairs of the users from `first` to `stop`, `size` pairs at a time.

    Args:
      f: takes arrays `[size]`: the pairs' positions in `part`, their users counted from `first`, and their items. The
        last call is filled up with positions and rows past any end; write with mode="drop".
    """
    start, end = part.offsets[first], part.offsets[stop]

    def chunk(k: jax.Array, value: T) -> T:
        at = start + k * size + jnp.arange(size, dtype=start.dtype)
        inside = at < end
        row = part.users.at[at].get(mode="clip") - first
        past = jnp.iinfo(jnp.int32).max
        return f(value, jnp.where(inside, at, past), jnp.where(inside, row, past), part.items.at[at].get(mode="clip"))

    return jax.lax.fori_loop(0, -(-(end - start) // size), chunk, init)


def _count(scores: jax.Array, bar: jax.Array) -> jax.Array:
    """Counts the scores on the last axis that are not below the bar, nan included: int32."""
    return (~(scores < bar)).astype(jnp.int32).sum(-1)


def _count_in_rows(scores: jax.Array, rows: jax.Array, bars: jax.Array) -> jax.Array:
    """Counts the scores of each of the rows `[n]` that are not below its bar `[n]`.

    A processor counts one row after another in vectors; in a gather of all it would look up every single score.
    """
    one = lambda at: _count(jax.lax.dynamic_index_in_dim(scores, at[0], keepdims=False), at[1])
    one_by_one = lambda: jax.lax.map(one, (rows, bars))
    at_once = lambda: _count(scores.at[rows].get(mode="clip"), bars[:, None])
    return by_backend(one_by_one, at_once)()


def _rank_within(users: jax.Array, scores: jax.Array) -> jax.Array:
    """Counts, for each of `[n]` pairs in the order of users, the same user's pairs that do not score lower,
    itself included.

    In ascending order of scores, these are the pair's ties and all pairs after them. As above, nothing is lower than
    nan.
    """
    n = len(users)
    if not n:
        return jnp.zeros(0, jnp.int32)
    index = jnp.arange(n, dtype=jnp.int32)
    users, ordered, index_of = jax.lax.sort((users, scores, index), num_keys=2)
    starts = jnp.concatenate([jnp.ones(1, bool), users[1:] != users[:-1]])
    rises = starts | jnp.concatenate([jnp.ones(1, bool), ordered[:-1] < ordered[1:]])
    begin = jax.lax.cummax(jnp.where(starts, index, 0))
    tied = jnp.where(jnp.isnan(ordered), begin, jax.lax.cummax(jnp.where(rises, index, 0)))
    end = jax.lax.cummin(jnp.where(jnp.append(starts[1:], True), index + 1, n), reverse=True)
    return jnp.zeros(n, jnp.int32).at[index_of].set(end - tied)


def _lowest(dtype: Any) -> jax.Array:
    """Returns the lowest number of the type."""
    lowest = -jnp.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min
    return jnp.asarray(lowest, dtype)
