"""The k best items of users, exactly, with no users x items array.

Scores are made for a block of users and a block of items at a time; what each block of items adds is merged into the
best so far. Equal scores stand in the order of items, whatever the blocks are. A score that is -infinity or no number
is never among the best.

Of a block the best are found in two steps: the largest score of every chunk of CHUNK items, the k best of the chunks by
that, and the k best of these chunks' items. This is exact, ties included. Say that e is one of the k best items of the
block, and its chunk is not among the k best chunks. Then each of those k holds an item that scores as high as its
chunk's largest, so at least as high as e; where it scores the same as e's chunk's largest, its chunk stands before e's,
and so does the item before e. So k items come before e: a contradiction. Chunks are put in the order of items before
their items are compared, so the second step's ties fall as they should too.
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

# Items of a chunk, and hidden pairs that are written at once.
CHUNK, PAIRS = 64, 1024

# Users that a block holds before its items are cut: a product of fewer rows wastes the machine.
FEW = 64

# Scores of a block: on a processor as many as its cache about holds, elsewhere few large operations.
ON_PROCESSOR, ELSEWHERE = 2**22, 2**27

# MiB that scores and what is made of them take, unless a caller says otherwise.
MEMORY = 256


class Top(NamedTuple):
    """The best of some users, the best first.

    Attributes:
      rows: `[n, k]` int32, -1 where a user has fewer.
      scores: `[n, k]` float32, -infinity there.
    """

    rows: np.ndarray
    scores: np.ndarray


class Hidden(NamedTuple):
    """The items that each of n users is not shown: user u's are `items[offsets[u]:offsets[u + 1]]`.

    Attributes:
      offsets: `[n + 1]` int64.
      items: `[m]` int32.
    """

    offsets: np.ndarray
    items: np.ndarray

    @classmethod
    def of(cls, seen: Interactions) -> "Hidden":
        return cls(np.asarray(seen.offsets, np.int64), np.asarray(seen.items))

    @classmethod
    def of_lists(cls, lists: list[np.ndarray]) -> "Hidden":
        """Of one array of items a user."""
        sizes = np.array([len(items) for items in lists], np.int64)
        return cls(np.concatenate([[0], np.cumsum(sizes)]), np.concatenate([*lists, []]).astype(np.int32))


class _Plan(NamedTuple):
    """How many users and items a block holds, and how many blocks of items there are."""

    users: int
    items: int
    blocks: int


def best_items(
    users: Rows,
    items: Rows,
    k: int,
    *,
    of: np.ndarray | None = None,
    hidden: Hidden | None = None,
    among: np.ndarray | None = None,
    memory: int = MEMORY,
) -> Iterator[Top]:
    """The k best items of users by the products of rows, some users at a time.

    Args:
      users, items: their tables, of one width; a table is converted to float32 block by block.
      k: at least 1; more than there are items gives as many as there are.
      of: rows `[n]` of users; all if None.
      hidden: what each user (of the table) is not shown.
      among: rows `[m]` of items that may be shown, ascending; all if None.
      memory: MiB, at least 1, for scores and what is made of them; tables and lists come on top.

    Returns:
      Blocks of users, in the order of `of`.

    Raises:
      UserError: a k or memory below 1, or tables of different widths.

    >>> table = Rows(jnp.array([[1.0], [3.0], [3.0]]))
    >>> [top.rows.tolist() for top in best_items(table, table, 2)]
    [[[1, 2], [1, 2], [1, 2]]]
    """
    if users.dim != items.dim:
        raise UserError(f"users and items are of different widths, {users.dim} and {items.dim}")
    num_items = len(items)
    if among is not None:
        items = items.take(jnp.asarray(among, jnp.int32))
    of = np.arange(len(users)) if of is None else np.asarray(of)
    k, plan = _plan(k, len(of), len(items), memory, users.dim, even=among is None)
    pad = plan.blocks * plan.items - len(items)
    padded = items.padded(pad)
    size = len(items)

    def find(block: np.ndarray, pairs: Any) -> tuple[jax.Array, jax.Array]:
        return _of_tables(users, padded, block, pairs, np.int32(size), k, plan)

    return _in_blocks(find, of, hidden, among, num_items, plan)


def best_scored(
    scores_of: Callable[[jax.Array], jax.Array],
    num_items: int,
    k: int,
    *,
    of: np.ndarray,
    hidden: Hidden | None = None,
    among: np.ndarray | None = None,
    memory: int = MEMORY,
) -> Iterator[Top]:
    """`best_items` of a model whose scores are no products: `scores_of` takes users `[n]`, a pytree as
    `Teacher.scores` is, and gives `[n, num_items]`."""
    size = num_items if among is None else len(among)
    k, plan = _plan(k, len(of), size, memory, 0, wide=num_items)
    chosen = None if among is None else jnp.asarray(among, jnp.int32)

    def find(block: np.ndarray, pairs: Any) -> tuple[jax.Array, jax.Array]:
        return _of_scores(scores_of, chosen, block, pairs, size, k, plan)

    return _in_blocks(find, np.asarray(of), hidden, among, num_items, plan)


def together(blocks: Iterator[Top], k: int) -> Top:
    """All blocks as one; `[0, k]` of none."""
    found = list(blocks)
    if not found:
        return Top(np.zeros((0, k), np.int32), np.zeros((0, k), np.float32))
    return Top(*(np.concatenate(parts) for parts in zip(*found)))


def _plan(
    k: int, users: int, items: int, memory: int, dim: int, *, even: bool = True, wide: int = 0
) -> tuple[int, _Plan]:
    """`k` as it can be, and blocks that stay within `memory`.

    `even`: blocks of items are as wide as they need be, and no power of two, as is better where their number changes
    from call to call. `wide`: so many items are scored whole.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise UserError(f"k: must be a whole number of at least 1, not {k!r}")
    if memory < 1:
        raise UserError(f"memory: must be at least 1 MiB, not {memory}")
    k = min(k, items)
    most = ON_PROCESSOR if jax.default_backend() == "cpu" else ELSEWHERE
    # A score is held up to three times, 4 bytes each: as made, hidden, and in the chunks that are looked into.
    cells = max(1, min(most, memory * 2**18 // 3))
    whole = -(-items // CHUNK) * CHUNK
    whole = whole if even else 1 << (whole - 1).bit_length()
    beside = 2 * k * CHUNK  # what the second step holds of a user
    if wide:
        return k, _Plan(_power(max(1, min(users, cells // (wide + beside)))), whole, 1)
    width = max(CHUNK, min(whole, cells // (FEW + dim) // CHUNK * CHUNK))
    blocks = max(1, -(-whole // width))
    width = max(CHUNK, -(-whole // blocks // CHUNK) * CHUNK)
    return k, _Plan(_power(max(1, min(users, cells // (width + beside)))), width, blocks)


def _power(size: int) -> int:
    """The power of two at or above a small number, so that few users more compile nothing; else the number itself."""
    return 1 << (size - 1).bit_length() if size < FEW else size


def _in_blocks(
    find: Callable[[np.ndarray, Any], tuple[jax.Array, jax.Array]],
    of: np.ndarray,
    hidden: Hidden | None,
    among: np.ndarray | None,
    num_items: int,
    plan: _Plan,
) -> Iterator[Top]:
    """Runs `find` on block after block of users; the next is begun before the last is fetched."""
    place = None
    if among is not None:  # an item's row in the table of those that may be shown
        place = np.full(num_items, -1, np.int32)
        place[among] = np.arange(len(among))
    room = _room(of, hidden, plan)
    waiting: list[tuple[int, tuple[jax.Array, jax.Array]]] = []

    def fetch() -> Top:
        count, found = waiting.pop(0)
        scores, rows = (np.asarray(x)[:count] for x in found)
        if among is not None and len(among):
            rows = np.where(rows >= 0, among[np.maximum(rows, 0)], -1).astype(np.int32)
        return Top(rows, scores)

    for first in range(0, len(of), plan.users):
        block = of[first : first + plan.users]
        padded = np.pad(block, (0, plan.users - len(block)), mode="edge").astype(np.int32)
        waiting.append((len(block), find(padded, _pairs(block, hidden, place, room, plan))))
        if len(waiting) > 1:
            yield fetch()
    while waiting:
        yield fetch()


def _room(of: np.ndarray, hidden: Hidden | None, plan: _Plan) -> int:
    """Places for the hidden pairs of any block: one shape for all of them, so nothing is compiled twice."""
    if hidden is None or not len(of):
        return 0
    degrees = np.diff(hidden.offsets)[of]
    most = int(np.add.reduceat(degrees, np.arange(0, len(of), plan.users)).max())
    return 1 << (most - 1).bit_length() if most > 1 else most


def _pairs(
    block: np.ndarray, hidden: Hidden | None, place: np.ndarray | None, room: int, plan: _Plan
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Hidden pairs of a block of users as (row in the block, item), by blocks of items, and where each block's begin.

    A block's loop runs over as many as it has: one user with many costs the others nothing.
    """
    if hidden is None or not room:
        return None
    starts, degrees = hidden.offsets[block], np.diff(hidden.offsets)[block]
    row = np.repeat(np.arange(len(block)), degrees)
    at = np.arange(len(row)) - np.repeat(np.cumsum(degrees) - degrees - starts, degrees)
    item = hidden.items[at]
    if place is not None:
        item = place[item]
        row, item = row[item >= 0], item[item >= 0]
    if plan.blocks > 1:
        order = np.argsort(item // plan.items, kind="stable")
        row, item = row[order], item[order]
    bounds = np.searchsorted(item // plan.items, np.arange(plan.blocks + 1))
    fill = (0, room - len(row))
    return np.pad(row, fill).astype(np.int32), np.pad(item, fill).astype(np.int32), bounds.astype(np.int32)


@functools.partial(jax.jit, static_argnames=("k", "plan"))
def _of_tables(
    users: Rows, items: Rows, block: jax.Array, pairs: Any, size: jax.Array, k: int, plan: _Plan
) -> tuple[jax.Array, jax.Array]:
    """Scores and rows `[block, k]`, from items padded to whole blocks."""
    mine = users.take(block).floats()

    def of_items(number: jax.Array) -> tuple[jax.Array, jax.Array]:
        first = number * plan.items
        scores = _hide(dot(mine, items.slice(first, plan.items).floats().T), pairs, number, first)
        return _select(scores, size - first, min(k, plan.items), first)

    if plan.blocks == 1:
        return of_items(jnp.int32(0))

    def merge(number: jax.Array, best: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        new = of_items(number)
        # The best so far are of lower items and stand first: ties fall to them.
        scores, rows = (jnp.concatenate([a, b], axis=1) for a, b in zip(best, new))
        scores, at = jax.lax.top_k(scores, k)
        return scores, jnp.take_along_axis(rows, at, axis=1)

    shape = (len(block), k)
    none = jnp.full(shape, -jnp.inf, jnp.float32), jnp.full(shape, -1, jnp.int32)
    return jax.lax.fori_loop(0, plan.blocks, merge, none)


@functools.partial(jax.jit, static_argnames=("size", "k", "plan"))
def _of_scores(
    scores_of: Any, chosen: jax.Array | None, block: jax.Array, pairs: Any, size: int, k: int, plan: _Plan
) -> tuple[jax.Array, jax.Array]:
    scores = scores_of(block).astype(jnp.float32)
    scores = scores if chosen is None else scores[:, chosen]
    scores = jnp.pad(scores, [(0, 0), (0, plan.items - size)])
    return _select(_hide(scores, pairs, jnp.int32(0), jnp.int32(0)), jnp.int32(size), k, jnp.int32(0))


def _hide(scores: jax.Array, pairs: Any, number: jax.Array, first: jax.Array) -> jax.Array:
    """Sets the scores `[b, w]` of the hidden pairs of this block of items, which begins at item `first`."""
    if pairs is None:
        return scores
    rows, items, bounds = pairs
    start, stop = bounds[number], bounds[number + 1]
    past = jnp.iinfo(jnp.int32).max

    def some(turn: jax.Array, scores: jax.Array) -> jax.Array:
        at = start + turn * PAIRS + jnp.arange(PAIRS, dtype=jnp.int32)
        row = jnp.where(at < stop, rows.at[at].get(mode="clip"), past)
        return scores.at[row, items.at[at].get(mode="clip") - first].set(-jnp.inf, mode="drop")

    return jax.lax.fori_loop(0, -(-(stop - start) // PAIRS), some, scores)


def _select(scores: jax.Array, size: jax.Array, k: int, first: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The k best of each row of `[b, w]`, of which the first `size` columns are items: `[b, k]` scores and rows."""
    users, width = scores.shape
    chunks = width // CHUNK
    ours = (jnp.arange(width, dtype=jnp.int32) < size).reshape(1, chunks, CHUNK)
    split = scores.reshape(users, chunks, CHUNK)
    split = jnp.where(ours & ~jnp.isnan(split), split, -jnp.inf)
    if k < chunks:
        _, chunk = jax.lax.top_k(split.max(axis=-1), k)
        chunk = jnp.sort(chunk, axis=1)
        split = jnp.take_along_axis(split, chunk[:, :, None], axis=1)
    else:
        chunk = jnp.broadcast_to(jnp.arange(chunks), (users, chunks))
    best, at = jax.lax.top_k(split.reshape(users, -1), k)
    rows = first + jnp.take_along_axis(chunk, at // CHUNK, axis=1) * CHUNK + at % CHUNK
    return best, jnp.where(best > -jnp.inf, rows, -1).astype(jnp.int32)
