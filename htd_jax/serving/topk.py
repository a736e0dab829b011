"""The k best items of users, exactly, without a users x items array.

Scores are computed for a block of users and a block of items at a time, and each block's best are merged into the best
so far. Ties are in the order of items, whatever the blocks. A score of -infinity or NaN is never among the best.

The best of a block are selected in two steps: the k chunks of CHUNK items with the largest maximum, then the k best
items of these chunks. This is exact, ties included. Suppose that item e is one of the k best, but its chunk is not
selected. Each selected chunk holds an item that scores at least its chunk's maximum, and so at least as high as e; if
the maxima are equal, the selected chunk comes before e's chunk, and so does its item before e. So k items come before
e, a contradiction. Selected chunks are sorted before their items are compared, so the second step breaks ties by item
too.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.data import Interactions
from htd_jax.errors import UserError
from htd_jax.ops.precision import Rows
from htd_jax.ops.products import dot

# Items per chunk, and hidden pairs that are masked at once.
CHUNK, PAIRS = 64, 1024

# Users per block before its items are split: a product of fewer rows wastes the machine.
FEW = 64

# Scores per block: on a CPU about as many as its cache holds, elsewhere few large operations.
ON_CPU, ELSEWHERE = 2**22, 2**27

# The default memory in MiB for scores and temporary arrays.
MEMORY = 256


class Top(NamedTuple):
    """The best items of some users, the best first.

    Attributes:
      rows: `[n, k]` int32, -1 past the end of a shorter list.
      scores: `[n, k]` float32, -infinity past the end.
    """

    rows: np.ndarray
    scores: np.ndarray


class Hidden(NamedTuple):
    """The items that are hidden from each of n users: `items[offsets[u]:offsets[u + 1]]` from user u.

    Attributes:
      offsets: `[n + 1]` int64.
      items: `[m]` int32.
    """

    offsets: np.ndarray
    items: np.ndarray

    @classmethod
    def from_interactions(cls, seen: Interactions) -> "Hidden":
        return cls(np.asarray(seen.offsets, np.int64), np.asarray(seen.items))

    @classmethod
    def from_lists(cls, lists: list[np.ndarray]) -> "Hidden":
        """Hides an array of items per user."""
        sizes = np.array([len(items) for items in lists], np.int64)
        return cls(np.concatenate([[0], np.cumsum(sizes)]), np.concatenate([*lists, []]).astype(np.int32))


class _Blocks(NamedTuple):
    """Users and items per block, and the number of blocks of items."""

    users: int
    items: int
    number: int


def best_items(
    users: Rows,
    items: Rows,
    k: int,
    *,
    rows: np.ndarray | None = None,
    hidden: Hidden | None = None,
    candidates: np.ndarray | None = None,
    memory: int = MEMORY,
) -> Iterator[Top]:
    """Yields the k best items of users by the products of rows, a block of users at a time.

    Args:
      users, items: tables of one width; they are converted to float32 block by block.
      k: at least 1; at most the number of items counts.
      rows: rows `[n]` of the users to rank for; all if None.
      hidden: items that are hidden from each user of the table.
      candidates: rows `[m]` of the items to rank, ascending; all if None.
      memory: MiB, at least 1, for scores and temporary arrays, in addition to tables and lists.

    Returns:
      Blocks of users, in the order of `rows`.

    Raises:
      UserError: if `k` or `memory` is below 1, or the tables differ in width.

    >>> table = Rows(jnp.array([[1.0], [3.0], [3.0]]))
    >>> [top.rows.tolist() for top in best_items(table, table, 2)]
    [[[1, 2], [1, 2], [1, 2]]]
    """
    if users.dim != items.dim:
        raise UserError(f"users and items differ in width: {users.dim} and {items.dim}")
    num_items = len(items)
    if candidates is not None:
        items = items.take(jnp.asarray(candidates, jnp.int32))
    rows = np.arange(len(users)) if rows is None else np.asarray(rows)
    k, blocks = _divide(k, len(rows), len(items), memory, users.dim, even=candidates is None)
    padded = items.padded(blocks.number * blocks.items - len(items))
    size = np.int32(len(items))
    rank = lambda block, pairs: _rank_products(users, padded, block, pairs, size, k, blocks)
    return _rank_blocks(rank, rows, hidden, candidates, num_items, blocks)


def best_scored(
    score: Callable[[jax.Array], jax.Array],
    num_items: int,
    k: int,
    *,
    rows: np.ndarray,
    hidden: Hidden | None = None,
    candidates: np.ndarray | None = None,
    memory: int = MEMORY,
) -> Iterator[Top]:
    """Yields the k best items of users by other scores than products, with the arguments of `best_items`.

    Args:
      score: maps users `[n]` to scores `[n, num_items]`; a pytree, like `Teacher.scores`.
    """
    size = num_items if candidates is None else len(candidates)
    k, blocks = _divide(k, len(rows), size, memory, 0, scored=num_items)
    chosen = None if candidates is None else jnp.asarray(candidates, jnp.int32)
    rank = lambda block, pairs: _rank_scores(score, chosen, block, pairs, size, k, blocks)
    return _rank_blocks(rank, np.asarray(rows), hidden, candidates, num_items, blocks)


def concatenate(blocks: Iterator[Top], k: int) -> Top:
    """Joins blocks of users; `[0, k]` if there are none."""
    parts = list(blocks)
    if not parts:
        return Top(np.zeros((0, k), np.int32), np.zeros((0, k), np.float32))
    return Top(*map(np.concatenate, zip(*parts)))


def _divide(
    k: int, users: int, items: int, memory: int, dim: int, *, even: bool = True, scored: int = 0
) -> tuple[int, _Blocks]:
    """Limits `k` to the number of items, and divides users and items into blocks that stay within `memory`.

    Args:
      even: whether blocks of items are as narrow as possible; otherwise their total width is a power of two, which
        compiles less if the number of items changes from call to call.
      scored: if above 0, this many items are scored at once, and never divided.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise UserError(f"`k` must be a whole number of at least 1, not {k!r}")
    if memory < 1:
        raise UserError(f"`memory` must be at least 1 MiB, not {memory}")
    k = min(k, items)
    most = ON_CPU if jax.default_backend() == "cpu" else ELSEWHERE
    # A score is held up to three times, 4 bytes each: as computed, masked, and in the selected chunks.
    cells = max(1, min(most, memory * 2**18 // 3))
    whole = -(-items // CHUNK) * CHUNK
    whole = whole if even else 1 << (whole - 1).bit_length()
    selected = 2 * k * CHUNK  # floats per user in the second step
    if scored:
        return k, _Blocks(_power(max(1, min(users, cells // (scored + selected)))), whole, 1)
    width = max(CHUNK, min(whole, cells // (FEW + dim) // CHUNK * CHUNK))
    count = max(1, -(-whole // width))
    width = max(CHUNK, -(-whole // count // CHUNK) * CHUNK)
    return k, _Blocks(_power(max(1, min(users, cells // (width + selected)))), width, count)


def _power(size: int) -> int:
    """Rounds a small number up to a power of two, so that a few more users compile nothing new."""
    return 1 << (size - 1).bit_length() if size < FEW else size


def _rank_blocks(
    rank: Callable[[np.ndarray, Any], tuple[jax.Array, jax.Array]],
    users: np.ndarray,
    hidden: Hidden | None,
    candidates: np.ndarray | None,
    num_items: int,
    blocks: _Blocks,
) -> Iterator[Top]:
    """Runs `rank` on one block of users after the other; the next is started before the last is fetched."""
    place = None
    if candidates is not None:  # per item its row in the table of candidates
        place = np.full(num_items, -1, np.int32)
        place[candidates] = np.arange(len(candidates))
    room = _most_hidden(users, hidden, blocks)
    running: list[tuple[int, tuple[jax.Array, jax.Array]]] = []

    def fetch() -> Top:
        count, ranked = running.pop(0)
        scores, rows = (np.asarray(x)[:count] for x in ranked)
        if candidates is not None and len(candidates):
            rows = np.where(rows >= 0, candidates[np.maximum(rows, 0)], -1).astype(np.int32)
        return Top(rows, scores)

    for first in range(0, len(users), blocks.users):
        block = users[first : first + blocks.users]
        padded = np.pad(block, (0, blocks.users - len(block)), mode="edge").astype(np.int32)
        running.append((len(block), rank(padded, _hidden_pairs(block, hidden, place, room, blocks))))
        if len(running) > 1:
            yield fetch()
    while running:
        yield fetch()


def _most_hidden(users: np.ndarray, hidden: Hidden | None, blocks: _Blocks) -> int:
    """Returns the most hidden pairs of a block, rounded up: one shape for all blocks, so that each compiles once."""
    if hidden is None or not len(users):
        return 0
    degrees = np.diff(hidden.offsets)[users]
    most = int(np.add.reduceat(degrees, np.arange(0, len(users), blocks.users)).max())
    return 1 << (most - 1).bit_length() if most > 1 else most


def _hidden_pairs(
    block: np.ndarray, hidden: Hidden | None, place: np.ndarray | None, room: int, blocks: _Blocks
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Returns the hidden pairs of a block of users as (row in the block, item), grouped by blocks of items, and where
    each group begins. The loop over a group is as long as the group: a user with many pairs slows no other block."""
    if hidden is None or not room:
        return None
    starts, degrees = hidden.offsets[block], np.diff(hidden.offsets)[block]
    row = np.repeat(np.arange(len(block)), degrees)
    at = np.arange(len(row)) - np.repeat(np.cumsum(degrees) - degrees - starts, degrees)
    item = hidden.items[at]
    if place is not None:
        item = place[item]
        row, item = row[item >= 0], item[item >= 0]
    if blocks.number > 1:
        order = np.argsort(item // blocks.items, kind="stable")
        row, item = row[order], item[order]
    bounds = np.searchsorted(item // blocks.items, np.arange(blocks.number + 1))
    fill = (0, room - len(row))
    return np.pad(row, fill).astype(np.int32), np.pad(item, fill).astype(np.int32), bounds.astype(np.int32)


@functools.partial(jax.jit, static_argnames=("k", "blocks"))
def _rank_products(
    users: Rows, items: Rows, block: jax.Array, pairs: Any, size: jax.Array, k: int, blocks: _Blocks
) -> tuple[jax.Array, jax.Array]:
    """Scores and rows `[block, k]`, from items padded to whole blocks."""
    user_rows = users.take(block).floats()

    def rank_items(number: jax.Array) -> tuple[jax.Array, jax.Array]:
        first = number * blocks.items
        scores = _hide(dot(user_rows, items.slice(first, blocks.items).floats().T), pairs, number, first)
        return _select(scores, size - first, min(k, blocks.items), first)

    if blocks.number == 1:
        return rank_items(jnp.int32(0))

    def merge(number: jax.Array, best: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        new = rank_items(number)
        # The best so far have lower item numbers and come first, so they win ties.
        scores, rows = (jnp.concatenate([a, b], axis=1) for a, b in zip(best, new))
        scores, at = jax.lax.top_k(scores, k)
        return scores, jnp.take_along_axis(rows, at, axis=1)

    shape = (len(block), k)
    none = jnp.full(shape, -jnp.inf, jnp.float32), jnp.full(shape, -1, jnp.int32)
    return jax.lax.fori_loop(0, blocks.number, merge, none)


@functools.partial(jax.jit, static_argnames=("size", "k", "blocks"))
def _rank_scores(
    score: Any, chosen: jax.Array | None, block: jax.Array, pairs: Any, size: int, k: int, blocks: _Blocks
) -> tuple[jax.Array, jax.Array]:
    scores = score(block).astype(jnp.float32)
    scores = scores if chosen is None else scores[:, chosen]
    scores = jnp.pad(scores, [(0, 0), (0, blocks.items - size)])
    return _select(_hide(scores, pairs, jnp.int32(0), jnp.int32(0)), jnp.int32(size), k, jnp.int32(0))


def _hide(scores: jax.Array, pairs: Any, number: jax.Array, first: jax.Array) -> jax.Array:
    """Sets the scores `[b, w]` of hidden pairs to -infinity in a block of items that begins at item `first`."""
    if pairs is None:
        return scores
    rows, items, bounds = pairs
    start, stop = bounds[number], bounds[number + 1]
    past = jnp.iinfo(jnp.int32).max

    def mask(turn: jax.Array, scores: jax.Array) -> jax.Array:
        at = start + turn * PAIRS + jnp.arange(PAIRS, dtype=jnp.int32)
        row = jnp.where(at < stop, rows.at[at].get(mode="clip"), past)
        return scores.at[row, items.at[at].get(mode="clip") - first].set(-jnp.inf, mode="drop")

    return jax.lax.fori_loop(0, -(-(stop - start) // PAIRS), mask, scores)


def _select(scores: jax.Array, size: jax.Array, k: int, first: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the k best of each row of `[b, w]`, whose first `size` columns are items: `[b, k]` scores and rows."""
    users, width = scores.shape
    chunks = width // CHUNK
    valid = (jnp.arange(width, dtype=jnp.int32) < size).reshape(1, chunks, CHUNK)
    split = scores.reshape(users, chunks, CHUNK)
    split = jnp.where(valid & ~jnp.isnan(split), split, -jnp.inf)
    if k < chunks:
        _, chunk = jax.lax.top_k(split.max(axis=-1), k)
        chunk = jnp.sort(chunk, axis=1)
        split = jnp.take_along_axis(split, chunk[:, :, None], axis=1)
    else:
        chunk = jnp.broadcast_to(jnp.arange(chunks), (users, chunks))
    best, at = jax.lax.top_k(split.reshape(users, -1), k)
    rows = first + jnp.take_along_axis(chunk, at // CHUNK, axis=1) * CHUNK + at % CHUNK
    return best, jnp.where(best > -jnp.inf, rows, -1).astype(jnp.int32)
