"""What a held-out item is ranked against.

A protocol is a value with two methods: `blocks(split)`, a pytree of arrays with a leading axis of blocks of users, and
`ranks(model, block)`, the ranks `[users, m]` of the held-out items of valid and of test in one such block.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.data import Interactions, Split
from htd_jax.errors import UserError
from htd_jax.models import Recommender

# Scores held at once, 16 MiB of them: a good matrix product, and most of them still in a processor's cache when read.
SCORES = 2**22

# Pairs scored at once where each is scored for itself: a model holds vectors of every one, and a few megabytes of them
# stay in a processor's cache.
PAIRS = 2**12

# Held-out items of a block ranked at once.
TARGETS = 256

Block = dict[str, jax.Array]


class Full(NamedTuple):
    """Full ranking: where a held-out item stands among all the items that the user has not seen.

    For test, the items of train and valid are hidden; for valid, those of train and test. A held-out item's rank is
    one plus the number of visible items that do not score lower, the user's other held-out items of the same part
    among them: ties count against it, and so does a score that is not a number. No users x items array is held, and
    nothing is sorted.
    """

    def blocks(self, split: Split) -> Block:
        train = split.train
        width = max(1, min(train.num_users, SCORES // train.num_items))
        blocks = _blocks(split, width)
        users, items = np.asarray(train.users), np.asarray(train.items)
        count = len(blocks["users"])
        seen = _padded(users // width, users % width, count, width), _padded(users // width, items, count, 0)
        held_out = {f"{name}_at": _positions(blocks[name]) for name in ("valid", "test")}
        return blocks | held_out | dict(zip(("row", "item"), map(jnp.asarray, seen)))

    def ranks(self, model: Recommender, block: Block) -> tuple[jax.Array, jax.Array]:
        scores = model.score_all(block["users"])
        of_part = lambda name, other: _ranks(
            scores, block[name], block[f"{name}_at"], block[other], block["row"], block["item"]
        )
        return of_part("valid", "test"), of_part("test", "valid")


class Sampled(NamedTuple):
    """Where a held-out item stands among a sample of items, the same for every model, and for valid and test.

    The rank is one plus the number of items that do not score lower, of the user's candidates (see
    `sample_candidates`) and, if there are any, the user's other held-out items of the same part.

    Attributes:
      candidates: how many items each user's held-out items are ranked against.
      seed: the sample's, and not the run's.
    """

    candidates: int = 499
    seed: int = 0

    def blocks(self, split: Split) -> Block:
        candidates = sample_candidates(split, self.candidates, self.seed)
        scored = self.candidates + split.valid.max_degree + split.test.max_degree
        blocks = _blocks(split, max(1, min(split.train.num_users, PAIRS // scored)))
        return blocks | {"candidates": jnp.asarray(candidates)[blocks["users"]]}

    def ranks(self, model: Recommender, block: Block) -> tuple[jax.Array, jax.Array]:
        parts = [block["valid"], block["test"], block["candidates"]]
        items = jnp.concatenate(parts, axis=1)
        scores = model.score(block["users"][:, None], jnp.maximum(items, 0))
        valid, test, candidates = jnp.split(scores, np.cumsum([part.shape[1] for part in parts[:-1]]), axis=1)
        of_part = lambda bar, targets: (
            _as_good(candidates, bar).sum(-1) + (_as_good(bar, bar) * (targets >= 0)[:, None, :]).sum(-1)
        )
        return of_part(valid, block["valid"]), of_part(test, block["test"])


def sample_candidates(split: Split, size: int, seed: int) -> np.ndarray:
    """`[num_users, size]` int32: for each user, different items that stand in no part for it, every set equally likely.

    Of a user's sorted items s_0 < s_1 < ..., s_j has s_j - j items before it that the user does not have, so the r-th
    of those is r plus the number of j with s_j - j <= r. The time is proportional to the size of the result.

    Raises:
      UserError: a size or seed that cannot be, or a user with too few such items.
    """
    if size < 1 or seed < 0:
        raise UserError(f"a sample of {size} candidates from seed {seed}: needs at least 1 of at least 0")
    num_users, num_items = split.train.num_users, split.train.num_items
    pairs = np.sort(np.concatenate([np.asarray(p.users, np.int64) * num_items + np.asarray(p.items) for p in split]))
    users, items = np.divmod(pairs, num_items)
    degree = np.bincount(users, minlength=num_users)
    unseen = num_items - degree
    if (unseen < size).any():
        user = int(np.argmin(unseen))
        raise UserError(
            f"{size} candidates asked for, but user {user} has only {unseen[user]} unseen items of {num_items}"
        )
    starts = np.cumsum(degree) - degree
    before = np.split(items - (np.arange(len(items)) - starts[users]), starts[1:])
    rng = np.random.default_rng(seed)
    sample = np.empty((num_users, size), np.int32)
    for row, count, steps in zip(sample, unseen, before):
        r = rng.choice(count, size, replace=False, shuffle=False)
        row[:] = r + np.searchsorted(steps, r, side="right")
    return sample


def _blocks(split: Split, width: int) -> Block:
    """Users `[blocks, width]`, and their held-out items `[blocks, width, most of a user]` in valid and test.

    -1 is no item; the last block is filled up with the last user, without items.
    """
    blocks = -(-split.train.num_users // width)
    users = np.minimum(np.arange(blocks * width), split.train.num_users - 1).reshape(blocks, width)
    targets = lambda part: _targets(part, blocks * width).reshape(blocks, width, -1)
    arrays = {"users": users.astype(np.int32), "valid": targets(split.valid), "test": targets(split.test)}
    return {name: jnp.asarray(array) for name, array in arrays.items()}


def _targets(part: Interactions, rows: int) -> np.ndarray:
    """`[rows, most held-out items of a user]` int32, -1 where there are fewer."""
    return _padded(np.asarray(part.users), np.asarray(part.items), rows, -1)


def _positions(targets: jax.Array) -> jax.Array:
    """Where the items of `[blocks, users, m]` targets stand in a block laid out flat, past its end where no more do."""
    flat = np.asarray(targets).reshape(len(targets), -1)
    return jnp.asarray(_padded(*np.nonzero(flat >= 0), len(flat), flat.shape[1]))


def _padded(row: np.ndarray, values: np.ndarray, rows: int, fill: int) -> np.ndarray:
    """`[rows, most of a row]` int32: the values `[n]` of each row, which come in the order of rows, then `fill`."""
    count = np.bincount(row, minlength=rows)
    table = np.full((rows, count.max()), fill, np.int32)
    table[row, np.arange(len(row)) - (np.cumsum(count) - count)[row]] = values
    return table


def _ranks(
    scores: jax.Array, targets: jax.Array, at: jax.Array, others: jax.Array, row: jax.Array, item: jax.Array
) -> jax.Array:
    """`[users, m]` ranks of the targets among all items but `others` and the pairs (row, item) seen in training.

    -1 in `targets` or `others` is no item, a row past the last no pair. What is hidden is counted with the rest and
    taken off again: it is little, and the scores need no copy in which it is overwritten. `at` are the positions of
    the targets: where users have very different numbers of them, only these are worth a pass over a user's scores.
    """
    bar = jnp.take_along_axis(scores, targets, axis=1)
    above = lambda i: (~(scores[i // bar.shape[1]] < bar.ravel()[i])).astype(jnp.int32).sum()
    counts = jax.lax.map(above, at, batch_size=min(TARGETS, len(at)))
    count = jnp.zeros(bar.size, jnp.int32).at[at].set(counts, mode="drop").reshape(bar.shape)
    seen = (~(scores[row, item][:, None] < bar[row])).astype(jnp.int32)
    count -= jnp.zeros_like(count).at[row].add(seen, mode="drop")
    other = _as_good(jnp.take_along_axis(scores, others, axis=1), bar)
    count -= jnp.where(others[:, None, :] >= 0, other, 0).sum(-1)
    return jnp.maximum(count, 1)  # the target is as good as itself


def _as_good(scores: jax.Array, bar: jax.Array) -> jax.Array:
    """`[users, m, n]` int32, 1 where a score `[users, n]` is not below the bar `[users, m]`, or is no number."""
    return (~(scores[:, None, :] < bar[:, :, None])).astype(jnp.int32)
