"""The k best items of users, exactly, without a users x items array.

Scores are computed for a block of users and a block of items at a time, and each block's best are merged into the best
so far. Ties are in the order of items, whatever the blocks. A score of -infinity or NaN is never among the best.

The best of a block are selected in two steps: the k chunks of CHUNK items with the largest maximum, then the k best
items of these chunks. This is exact, ties included. Suppose that item e is one of the k best, but its chunk is not
selected. Each selected chunk holds an item that scores at least its chunk's maximum, and so at least as high as e; if
the maxima are equal, the selected chunk comes before e's chunk, and so does its item before e. So k items come before
e, a contradiction. Selected chunks are sorted before their items are compared, so the second step breaks ties by item
too.

On a CPU a single user takes another way, see `_rank_one`: starting an operation costs as much as scoring thousands of
items, and so does decoding a table of codes for one user.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.errors import UserError
from htd_jax.ops import platforms
from htd_jax.ops.largest import top_k
from htd_jax.ops.precision import Rows
from htd_jax.ops.products import dot, einsum
from htd_jax.serve.rank import MEMORY, Hidden, Top, limited

# Items per chunk, and hidden pairs that are masked at once.
CHUNK, PAIRS = 64, 1024

# On a CPU, up to so many users are ranked one by one, from the table's columns. A sum of more dimensions than WIDE is
# compiled in several parts.
ONE_BY_ONE, WIDE = 4, 64

# A row past all others: what is written there is dropped.
PAST = np.iinfo(np.int32).max

# Users per block before its items are split, since a product of fewer rows wastes the machine; and once they are split.
FEW, MANY = 64, 128

# Scores per block: on a CPU about as many as its cache holds, elsewhere few large operations.
ON_CPU, ELSEWHERE = 2**21, 2**27


class Searched:
    """An item table that is searched many times.

    Keeps the table padded to whole chunks, for many users, and its columns, from which a CPU scores a single user
    without decoding the table. Each is made when first needed, and takes as many bytes as the table.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self._like: Searched | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def scaled(self, rows: Rows) -> "Searched":
        """Returns the same table with other scales, `rows`; it shares the values of the columns."""
        other = Searched(rows)
        other._like = self
        return other

    @functools.cached_property
    def whole(self) -> Rows:
        """The rows, padded to whole chunks."""
        return self.rows.padded(_whole(len(self)) - len(self))

    @functools.cached_property
    def columns(self) -> Rows:
        """The table with values `[d, CHUNK, chunks]` (`[w, ...]` for codes packed in w bytes) and scales `[CHUNK,
        chunks]`: item i at `[i % CHUNK, i // CHUNK]`, and the last item again where the last chunk has no more."""
        values = _columns(self.rows.values) if self._like is None else self._like.columns.values
        scales = None if self.rows.scales is None else _columns(self.rows.scales)
        return jax.block_until_ready(self.rows.replace(values=values, scales=scales))  # type: ignore[attr-defined]


class _Blocks(NamedTuple):
    """Users and items per block, and all items; the last two are multiples of CHUNK. The last block of items ends with
    the items, and so may begin within the block before it."""

    users: int
    items: int
    whole: int

    @property
    def number(self) -> int:
        """The number of blocks of items."""
        return -(-self.whole // self.items)

    def first(self, number: Any) -> Any:
        """Returns the first item of a block."""
        return (number * self.items).clip(max=self.whole - self.items)


def best_items(
    users: Rows,
    items: Rows | Searched,
    k: int,
    *,
    rows: np.ndarray | None = None,
    hidden: Hidden | None = None,
    candidates: np.ndarray | None = None,
    memory: int = MEMORY,
) -> Iterator[Top]:
    """Yields the k best items of users by the products of rows, a block of users at a time.

    Args:
      users, items: tables of one width; they are converted to float32 block by block. `Searched` items answer requests
        of few users faster.
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
    searched, items = (items, items.rows) if isinstance(items, Searched) else (None, items)
    if users.dim != items.dim:
        raise UserError(f"users and items differ in width: {users.dim} and {items.dim}")
    num_items = len(items)
    rows = np.arange(len(users)) if rows is None else np.asarray(rows)
    size = num_items if candidates is None else len(candidates)
    k = limited(k, size, memory)
    # One user's scores are held twice, as computed and masked.
    if searched and k and len(rows) <= ONE_BY_ONE and num_items <= memory * 2**17 and jax.default_backend() == "cpu":
        return (_rank_one(users, searched, int(row), k, hidden, candidates) for row in rows)
    blocks = _divide(k, len(rows), size, memory, users.dim, even=candidates is None)
    if candidates is not None:
        items = items.take(jnp.asarray(candidates, jnp.int32))
    padded = searched.whole if searched and candidates is None else items.padded(blocks.whole - len(items))
    rank = lambda block, pairs: _rank_products(users, padded, block, pairs, np.int32(size), k, blocks)
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
    k = limited(k, size, memory)
    blocks = _divide(k, len(rows), size, memory, 0, scored=num_items)
    chosen = None if candidates is None else jnp.asarray(candidates, jnp.int32)
    rank = lambda block, pairs: _rank_scores(score, chosen, block, pairs, size, k, blocks)
    return _rank_blocks(rank, np.asarray(rows), hidden, candidates, num_items, blocks)


def _divide(k: int, users: int, items: int, memory: int, dim: int, *, even: bool = True, scored: int = 0) -> _Blocks:
    """Divides users and items into blocks that stay within `memory`.

    Args:
      even: whether blocks of items are as narrow as possible; otherwise their total width is a power of two, which
        compiles less if the number of items changes from call to call.
      scored: if above 0, this many items are scored at once, and never divided.
    """
    most = ON_CPU if jax.default_backend() == "cpu" else ELSEWHERE
    # A score is held up to three times, 4 bytes each: as computed, masked, and in the selected chunks.
    room = max(1, memory * 2**18 // 3)
    cells = min(most, room)
    whole = _whole(items)
    whole = whole if even else 1 << (whole - 1).bit_length()
    selected = 2 * k * CHUNK  # floats per user in the second step
    if scored or whole <= cells // FEW:
        return _Blocks(_of_few_sizes(users, cells // ((scored or whole) + selected)), whole, whole)
    users = _of_few_sizes(users, min(MANY, room // (2 * (whole // CHUNK + selected))))
    width = max(CHUNK, min(whole, min(most, room // 2) // (users + dim) // CHUNK * CHUNK))
    return _Blocks(users, width, whole)


def _whole(items: int) -> int:
    """Rounds up to whole chunks, at least one."""
    return max(1, -(-items // CHUNK)) * CHUNK


def _of_few_sizes(users: int, most: int) -> int:
    """Returns the users of a block, a power of two of at most `most`: requests of any size compile few programs."""
    return min(1 << (max(1, users) - 1).bit_length(), 1 << (max(1, most).bit_length() - 1))


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
    degrees = hidden.offsets[users + 1] - hidden.offsets[users]
    most = int(np.add.reduceat(degrees, np.arange(0, len(users), blocks.users)).max())
    return 1 << (most - 1).bit_length() if most > 1 else most


def _hidden_pairs(
    block: np.ndarray, hidden: Hidden | None, place: np.ndarray | None, room: int, blocks: _Blocks
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Returns the hidden pairs of a block of users as (row in the block, item), grouped by blocks of items, and where
    each group begins. The loop over a group is as long as the group: a user with many pairs slows no other block."""
    if hidden is None or not room:
        return None
    starts, degrees = hidden.offsets[block], hidden.offsets[block + 1] - hidden.offsets[block]
    row = np.repeat(np.arange(len(block)), degrees)
    at = np.arange(len(row)) - np.repeat(np.cumsum(degrees) - degrees - starts, degrees)
    item = hidden.items[at]
    if place is not None:
        item = place[item]
        row, item = row[item >= 0], item[item >= 0]
    bounds = np.array([[0, len(item)]])
    if blocks.number > 1:
        order = np.argsort(item, kind="stable")
        row, item = row[order], item[order]
        first = blocks.first(np.arange(blocks.number))
        bounds = np.stack([np.searchsorted(item, first), np.searchsorted(item, first + blocks.items)], axis=1)
    fill = (0, room - len(row))
    return np.pad(row, fill).astype(np.int32), np.pad(item, fill).astype(np.int32), bounds.astype(np.int32)


def _rank_one(
    users: Rows, items: Searched, row: int, k: int, hidden: Hidden | None, candidates: np.ndarray | None
) -> Top:
    """Ranks for one user: scores on the device, which is the CPU, and selects in NumPy, whose calls cost less."""
    scores = np.asarray(_score_one(users, items.columns, np.int32(row)))
    hides = None if hidden is None else hidden.items[hidden.offsets[row] : hidden.offsets[row + 1]]
    if candidates is not None:
        place = candidates % CHUNK, candidates // CHUNK
        every, scores = scores, np.full_like(scores, -np.inf)
        scores[place] = every[place]
    if hides is not None and len(hides):
        scores = scores.copy() if candidates is None else scores
        scores[hides % CHUNK, hides // CHUNK] = -np.inf
        scores[(len(items) - 1) % CHUNK + 1 :, -1] = -np.inf  # the last item again, which may be hidden
    best = scores.max(axis=0)
    if np.isnan(best).any():
        scores = np.where(np.isnan(scores), -np.inf, scores)
        best = scores.max(axis=0)
    # At least k items score as high as the k-th largest maximum of a chunk, and so do the k best.
    least = np.partition(best, -k)[-k] if k < len(best) else -np.inf
    chunks = (best >= least).nonzero()[0]
    among = scores.take(chunks, axis=1)
    at, chunk = (among >= least).nonzero()
    found, scores = chunks[chunk] * CHUNK + at, among[at, chunk]
    order = np.lexsort((found, -scores))
    order = order[(found[order] < len(items)) & (scores[order] > -np.inf)][:k]
    top = Top(np.full((1, k), -1, np.int32), np.full((1, k), -np.inf, np.float32))
    top.rows[0, : len(order)], top.scores[0, : len(order)] = found[order], scores[order]
    return top


@jax.jit
def _columns(table: jax.Array) -> jax.Array:
    """Returns `[n, ...]` as `[..., CHUNK, chunks]`, see `Searched.columns`."""
    table = jnp.pad(table, [(0, -len(table) % CHUNK), *[(0, 0)] * (table.ndim - 1)], mode="edge")
    return jnp.moveaxis(table.reshape(-1, CHUNK, *table.shape[1:]), (0, 1), (-1, -2))


@jax.jit
def _score_one(users: Rows, columns: Rows, row: jax.Array) -> jax.Array:
    """Returns the scores `[CHUNK, chunks]` of a user. Codes are decoded in registers, on their way into the sum."""
    user, values = users.take(row[None]).floats()[0], columns.values
    if values.dtype == jnp.float32:
        scores = dot(user, values.reshape(len(values), -1)).reshape(values.shape[1:])
    else:
        user = user if columns.steps is None else user * columns.steps
        terms = (columns.codes(j) * user[j] for j in range(len(user)))
        scores = jnp.zeros(values.shape[1:], jnp.float32)
        while part := list(itertools.islice(terms, WIDE)):
            scores = jax.lax.optimization_barrier(functools.reduce(jnp.add, part, scores))
    return scores if columns.scales is None else scores * columns.scales


@functools.partial(jax.jit, static_argnames=("k", "blocks"))
def _rank_products(
    users: Rows, items: Rows, block: jax.Array, pairs: Any, size: jax.Array, k: int, blocks: _Blocks
) -> tuple[jax.Array, jax.Array]:
    """Scores and rows `[block, k]`, from items padded to whole blocks."""
    user_rows = users.take(block).floats()

    def in_chunks(number: jax.Array, first: jax.Array) -> jax.Array:
        scores = dot(user_rows, items.slice(first, blocks.items).floats().T)
        return _in_chunks(_hide(scores, pairs, number, first), size - first)

    if blocks.number == 1:
        return _select(in_chunks(jnp.int32(0), jnp.int32(0)), k)

    def keep_maxima(number: jax.Array, best: jax.Array) -> jax.Array:
        first = blocks.first(number)
        return jax.lax.dynamic_update_slice(best, in_chunks(number, first).max(axis=-1), (0, first // CHUNK))

    # The selected chunks are scored again: to keep all scores, or to select in each block, takes longer.
    best = jnp.full((len(block), blocks.whole // CHUNK), -jnp.inf, jnp.float32)
    chunk = _best_chunks(jax.lax.fori_loop(0, blocks.number, keep_maxima, best), k)
    scores = platforms.by_platform(_score_chunk_by_chunk, _score_chunks, user_rows, items, chunk)
    item = chunk[:, :, None] * CHUNK + jnp.arange(CHUNK, dtype=jnp.int32)
    scores = jnp.where((item < size) & ~jnp.isnan(scores), scores, -jnp.inf)
    return _best(_hide_in_chunks(scores, chunk, pairs), chunk, k)


@functools.partial(jax.jit, static_argnames=("size", "k", "blocks"))
def _rank_scores(
    score: Any, chosen: jax.Array | None, block: jax.Array, pairs: Any, size: int, k: int, blocks: _Blocks
) -> tuple[jax.Array, jax.Array]:
    scores = score(block).astype(jnp.float32)
    scores = scores if chosen is None else scores[:, chosen]
    scores = jnp.pad(scores, [(0, 0), (0, blocks.items - size)])
    return _select(_in_chunks(_hide(scores, pairs, jnp.int32(0), jnp.int32(0)), jnp.int32(size)), k)


def _score_chunk_by_chunk(users: jax.Array, items: Rows, chunk: jax.Array) -> jax.Array:
    """Returns the scores `[b, k, CHUNK]` of chunks `[b, k]`, reading each in one piece: the form for a CPU."""

    def score_one(user_and_chunks: tuple[jax.Array, jax.Array]) -> jax.Array:
        user, mine = user_and_chunks
        score = lambda c: dot(items.slice(c * CHUNK, CHUNK).floats(), user)
        return jax.lax.map(score, mine)

    return jax.lax.map(score_one, (users, chunk))


def _score_chunks(users: jax.Array, items: Rows, chunk: jax.Array) -> jax.Array:
    """Does what `_score_chunk_by_chunk` does in one gather and one product: the form for a GPU or TPU."""
    rows = chunk[:, :, None] * CHUNK + jnp.arange(CHUNK, dtype=jnp.int32)
    table = items.take(rows.ravel()).floats().reshape(*rows.shape, users.shape[1])
    return einsum("bd,bknd->bkn", users, table)


def _hide(scores: jax.Array, pairs: Any, number: jax.Array, first: jax.Array) -> jax.Array:
    """Sets the scores `[b, w]` of hidden pairs to -infinity in a block of items that begins at item `first`."""
    if pairs is None:
        return scores
    bounds = pairs[2]
    return _hide_between(scores, pairs, bounds[number, 0], bounds[number, 1], lambda row, item: (row, item - first))


def _hide_in_chunks(scores: jax.Array, chunk: jax.Array, pairs: Any) -> jax.Array:
    """Sets the scores `[b, k, CHUNK]` of hidden pairs to -infinity in the chunks `[b, k]`."""
    if pairs is None:
        return scores

    def place(row: jax.Array, item: jax.Array) -> tuple[jax.Array, ...]:
        equal = chunk.at[row].get(mode="clip") == (item // CHUNK)[:, None]
        return jnp.where(equal.any(axis=1), row, PAST), equal.argmax(axis=1), item % CHUNK

    return _hide_between(scores, pairs, jnp.int32(0), pairs[2][-1, 1], place)


def _hide_between(
    scores: jax.Array,
    pairs: Any,
    start: jax.Array,
    stop: jax.Array,
    place: Callable[[jax.Array, jax.Array], tuple[jax.Array, ...]],
) -> jax.Array:
    """Sets scores of the pairs from `start` to `stop` to -infinity; `place` maps rows and items to indices."""
    rows, items, _ = pairs

    def mask(turn: jax.Array, scores: jax.Array) -> jax.Array:
        at = start + turn * PAIRS + jnp.arange(PAIRS, dtype=jnp.int32)
        row = jnp.where(at < stop, rows.at[at].get(mode="clip"), PAST)
        return scores.at[place(row, items.at[at].get(mode="clip"))].set(-jnp.inf, mode="drop")

    return jax.lax.fori_loop(0, -(-(stop - start) // PAIRS), mask, scores)


def _in_chunks(scores: jax.Array, size: jax.Array) -> jax.Array:
    """Returns scores `[b, w]` as `[b, chunks, CHUNK]`, -infinity if NaN or not among the first `size` columns."""
    users, width = scores.shape
    valid = (jnp.arange(width, dtype=jnp.int32) < size).reshape(1, -1, CHUNK)
    split = scores.reshape(users, -1, CHUNK)
    return jnp.where(valid & ~jnp.isnan(split), split, -jnp.inf)


def _select(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Returns scores and items `[b, k]` of the k best of `[b, chunks, CHUNK]`."""
    chunk = _best_chunks(scores.max(axis=-1), k)
    return _best(jnp.take_along_axis(scores, chunk[:, :, None], axis=1), chunk, k)


def _best_chunks(maxima: jax.Array, k: int) -> jax.Array:
    """Returns the k chunks (all, if there are fewer) with the largest of `maxima` `[b, chunks]`, in their order."""
    _, chunk = top_k(maxima, k)
    return jnp.sort(chunk, axis=1)


def _best(scores: jax.Array, chunk: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Returns scores and items `[b, k]` of the k best in chunks `[b, c]`, ascending, with scores `[b, c, CHUNK]`."""
    best, at = top_k(scores.reshape(len(scores), -1), k)
    items = jnp.take_along_axis(chunk, at // CHUNK, axis=1) * CHUNK + at % CHUNK
    return best, jnp.where(best > -jnp.inf, items, -1).astype(jnp.int32)
