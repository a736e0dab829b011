"""What models that recommend by ids have in common, wherever they rank."""

import abc
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from htd_jax.data.ids import Ids, as_column
from htd_jax.errors import UserError
from htd_jax.serve import deltas, storage
from htd_jax.serve.fold import Pooling, RowMap, least_squares
from htd_jax.serve.lists import Recommendations
from htd_jax.serve.rank import MEMORY, Hidden, Top, concatenate
from htd_jax.serve.table import Table
from htd_jax.showing import Look, Shown

# Users whose rows are made from their items at once.
POOLED = 1024


class ServedModel(Shown, abc.ABC):
    """What models that recommend by ids have in common, wherever they rank: `Model` in NumPy, `Retriever` in JAX.

    Attributes: see `Model`.
    """

    users: Any
    items: Any
    user_ids: Ids
    item_ids: Ids
    seen: Any
    about: dict[str, Any]
    row_maps: dict[str, RowMap]
    pooling: Pooling | None
    version: str | None
    parent: str | None
    scores: Any = None

    def look(self) -> Look:
        seen = "unknown, so none is left out" if self.seen is None else f"{len(self.seen.users):,}, left out of lists"
        made = "".join(f", {self.about[name]}" for name in ("dataset", "method") if self.about.get(name))
        lines = [f"seen pairs: {seen}", f"version {self.version or 'none'}{made}"]
        size = lambda table: (len(table), len(table) * table.row_bytes / 1e6)
        rows = [("users", *size(self.users)), ("items", *size(self.items))]
        width = f"{self.dim} numbers per row in {self.precision}, {self.items.row_bytes} bytes"
        return Look(f"{type(self).__name__}: {width}", lines, ("table", "rows", "MB"), rows)

    @property
    def precision(self) -> str:
        """The precision of both tables: one of `PRECISIONS`."""
        return str(self.items.precision)

    @property
    def dim(self) -> int:
        return int(self.items.dim)

    @abc.abstractmethod
    def _best(
        self, rows: np.ndarray, k: int, hidden: Hidden | None, candidates: np.ndarray | None, memory: int
    ) -> Iterator[Top]:
        """Yields the k best items of users by their rows `[n]` in the table; `hidden` is per user of the table."""

    @abc.abstractmethod
    def _best_of(
        self, vectors: np.ndarray, k: int, hidden: Hidden | None, candidates: np.ndarray | None, memory: int
    ) -> Iterator[Top]:
        """Yields the k best items of vectors `[n, d]`; `hidden` is per vector."""

    @abc.abstractmethod
    def _nearest(self, rows: np.ndarray, k: int, candidates: np.ndarray | None, memory: int) -> Iterator[Top]:
        """Yields the k nearest items of items `[n]` by the cosine of their rows, without the item itself."""

    @property
    @abc.abstractmethod
    def _host_items(self) -> Table:
        """The table of items in the memory of the host."""

    @property
    @abc.abstractmethod
    def _host_users(self) -> Table:
        """The table of users in the memory of the host; of a model without one, made from the items they have seen."""

    @property
    @abc.abstractmethod
    def _hidden(self) -> Hidden | None:
        """The pairs that are not recommended, by user."""

    def row_map(self, side: str) -> RowMap | None:
        """Returns the function from interactions to rows of a side, `users` or `items`; None if it is unknown."""
        return self.row_maps.get(side)

    def recommend(
        self,
        users: Any = None,
        k: int = 20,
        *,
        seen: bool = False,
        allow: Any = None,
        deny: Any = None,
        memory: int = MEMORY,
    ) -> Recommendations:
        """Returns the k best items of users.

        Args:
          users: ids, one or many; all if None.
          k: the length of a list, at least 1. Lists are shorter if fewer items may be recommended.
          seen: whether items that the user has seen may be recommended. If `self.seen` is None, they are.
          allow: ids of items; only these may be recommended.
          deny: ids of items that may not be recommended.
          memory: MiB for scores, in addition to tables and lists.

        Raises:
          UserError: if an id is unknown, no item may be recommended, or `k` or `memory` is below 1.
        """
        rows = self._user_rows(users)
        top = concatenate(self._rank(rows, k, seen=seen, allow=allow, deny=deny, memory=memory), 0)
        return Recommendations(self.user_ids.take(rows), *top, self.item_ids)

    def recommend_in_blocks(self, users: Any = None, k: int = 20, **settings: Any) -> Iterator[Recommendations]:
        """Yields what `recommend` returns, in blocks of users: for more lists than memory holds."""
        rows = self._user_rows(users)
        blocks = self._rank(rows, k, **settings)

        def named() -> Iterator[Recommendations]:
            first = 0
            for top in blocks:
                yield Recommendations(self.user_ids.take(rows[first : first + len(top.rows)]), *top, self.item_ids)
                first += len(top.rows)

        return named()

    def recommend_vectors(
        self,
        vectors: Any,
        k: int = 20,
        *,
        seen: Any = None,
        allow: Any = None,
        deny: Any = None,
        memory: int = MEMORY,
    ) -> Recommendations:
        """Returns the k best items of users who have no row in the table.

        Args:
          vectors: `[n, d]`, or `[d]` for one user, as `fold_in` returns them.
          seen: the items that each user has seen, which are not recommended: ids as `fold_in` takes them.
          k, allow, deny, memory: see `recommend`.

        Returns:
          Lists of users whose ids are their row numbers in `vectors`.

        Raises:
          UserError: see `recommend`; or if the vectors have another width, or there is not one list of seen items per
            vector.
        """
        self._check_products("recommend_vectors")
        vectors = np.atleast_2d(np.asarray(vectors, np.float32))
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise UserError(f"`vectors` must be [n, {self.dim}], not {list(vectors.shape)}")
        hidden = None
        if seen is not None:
            lists = _lists(seen, self.item_ids, "seen")
            if len(lists) != len(vectors):
                raise UserError(f"`seen` must hold one list per vector: {len(lists)} lists for {len(vectors)} vectors")
            hidden = Hidden.from_lists(lists)
        top = concatenate(self._best_of(vectors, k, hidden, self._candidates(allow, deny), memory), k)
        return Recommendations(pa.array(np.arange(len(vectors))), *top, self.item_ids)

    def similar(
        self, items: Any, k: int = 20, *, allow: Any = None, deny: Any = None, memory: int = MEMORY
    ) -> Recommendations:
        """Returns the k nearest items by the cosine of their rows, without the item itself.

        Args:
          items: ids, one or many.
          k, allow, deny, memory: see `recommend`.

        Raises:
          UserError: if an id is unknown, `k` is below 1, or the model has no representations.
        """
        if not self.dim:
            raise UserError(
                "similar: this model has no rows of items to compare; distil it into a bpr student, which has"
            )
        rows = self.item_ids.rows(items)
        top = concatenate(self._nearest(rows, k, self._candidates(allow, deny), memory), k)
        return Recommendations(self.item_ids.take(rows), *top, self.item_ids, ("item", "similar"))

    def fold_in(self, items: Any) -> np.ndarray:
        """Returns rows of new users from the items that each has seen: `[n, d]` float32, for `recommend_vectors`.

        Nothing is trained: a row is a function of its interactions, see `fold.RowMap`, fitted to the trained rows when
        it is first used, and kept in exports. If neither the function nor pairs to fit it to are known, a row is the
        solution of `fold.least_squares`: its list is comparable with others' lists, its scores are not.

        Args:
          items: ids of one user's items, or a list of such lists; one id is a list of one. A repeated id counts once.

        Raises:
          UserError: if an id is unknown, a list is empty, or it is no list of ids.
        """
        self._check_products("fold_in")
        lists = _lists(items, self.item_ids, "items")
        if self.pooling:
            return self.pooling.rows(self._host_items, lists)
        row_map = self.row_map("users")
        return least_squares(self._host_items, lists) if row_map is None else row_map.rows(self._host_items, lists)

    def fold_in_items(self, users: Any) -> np.ndarray:
        """Returns rows of new items from the users who have seen each: `[n, d]` float32, see `fold_in`.

        A new item stands in about as many lists as trained items with as many users.

        Args:
          users: ids of one item's users, or a list of such lists; one id is a list of one. A repeated id counts once.

        Raises:
          UserError: if an id is unknown, a list is empty, it is no list of ids, or neither the function nor pairs are
            known, so that nothing says how long the rows must be.
        """
        self._check_products("fold_in_items")
        self.check_users()
        lists = _lists(users, self.user_ids, "users")
        row_map = self.row_map("items")
        if row_map is None:
            raise UserError(
                "`fold_in_items` needs a model that knows its training pairs, or an export with their summary; export "
                "the run again"
            )
        return row_map.rows(self._host_users, lists)

    def check_users(self) -> None:
        """Raises UserError if the model has no rows of users: neither a table, nor the items to make them from."""
        if self.pooling and self.seen is None:
            raise UserError(
                "rows of users are made from the items that they have seen, which this model does not hold: export it "
                "with `seen`, or pass the rows of `fold_in` to `recommend_vectors`"
            )

    def save(
        self,
        folder: Path | str,
        *,
        seen: bool = False,
        shard_size: float = storage.SHARD_SIZE,
        delta_from: Path | str | None = None,
        npy: bool = False,
    ) -> None:
        """Writes an export, a folder that `htd_jax.load` opens, see `storage.py`; in several processes, all call this.

        Args:
          folder: new, empty, or an earlier export, which is replaced.
          seen: whether to also write the seen pairs, which `recommend` leaves out. They are training data.
          shard_size: megabytes of tables from which on they are written in shards, and of each shard.
          delta_from: the folder of an earlier export, whose users and items have the same rows here: then a delta is
            written, what this model changes in it and adds to it, see `deltas.py`, which `htd_jax.load` opens with it.
          npy: whether to also write `users.npy` and `items.npy`, the tables as floats, for other programs.

        Raises:
          UserError: if the folder holds other files or cannot be written, the scores are not products of rows, or
            `seen` is True and the pairs are unknown; if no delta leads from the earlier export to this model; or if
            `npy` is set for a delta, or for tables in shards.
        """
        self._check_products("this model cannot be saved for serving")
        if seen and self.seen is None:
            raise UserError("`seen`: the seen pairs are unknown, so they cannot be saved; leave it out")
        known = self.seen if seen else None
        # Without a table of users, users follow from their items, and nothing is known of the users of new items.
        # Functions are fitted by a process that holds all rows.
        tables = [rows.values for rows in (self.users, self.items)]
        everywhere = all(getattr(x, "is_fully_addressable", True) for x in tables)
        sides = () if self.pooling or not everywhere else ("users", "items")
        maps = {side: row_map for side in sides if (row_map := self.row_map(side)) is not None}
        user_ids = Ids(self.user_ids.values[:0], "user") if self.pooling and not seen else self.user_ids
        tables_and_ids = self.users, self.items, user_ids, self.item_ids
        versions = self.version, self.parent
        export = storage.Export(*tables_and_ids, known, self.about, maps, self.pooling, *versions)
        if delta_from is None:
            storage.write_export(Path(folder), export, shard_size, npy)
        elif npy:
            raise UserError("`npy` needs whole tables; leave out `delta_from`")
        else:
            deltas.write_delta(Path(folder), export, Path(delta_from))

    def _check_products(self, what: str) -> None:
        if self.scores is not None:
            raise UserError(
                f"{what}: this model's scores are not products of two rows; distil it into a bpr student, whose are"
            )

    def _user_rows(self, users: Any) -> np.ndarray:
        self.check_users()
        return np.arange(len(self.user_ids)) if users is None else self.user_ids.rows(users)

    def _pooled(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Hidden]]:
        """Yields the rows of users, made from the items that they have seen, and these items; block by block."""
        assert self.pooling and self._hidden
        for first in range(0, len(rows), POOLED):
            lists = [self._hidden.of(row) for row in rows[first : first + POOLED]]
            yield self.pooling.rows(self._host_items, lists), Hidden.from_lists(lists)

    def _rank(
        self, rows: np.ndarray, k: int, *, seen: bool = False, allow: Any = None, deny: Any = None, memory: int = MEMORY
    ) -> Iterator[Top]:
        candidates = self._candidates(allow, deny)
        if self.pooling is None:
            return self._best(rows, k, None if seen else self._hidden, candidates, memory)

        def ranked() -> Iterator[Top]:
            for users, own in self._pooled(rows):
                yield from self._best_of(users, k, None if seen else own, candidates, memory)

        return ranked()

    def _candidates(self, allow: Any, deny: Any) -> np.ndarray | None:
        """Rows of the items that may be recommended, ascending; None if all may."""
        if allow is None and deny is None:
            return None
        allowed = np.full(len(self.items), allow is None)
        if allow is not None:
            allowed[self.item_ids.rows(allow)] = True
        if deny is not None:
            allowed[self.item_ids.rows(deny)] = False
        if not allowed.any():
            raise UserError("no item is left to recommend; check `allow` and `deny`")
        return np.flatnonzero(allowed)


def _lists(given: Any, ids: Ids, name: str) -> list[np.ndarray]:
    """Returns the distinct rows of one list of ids, or of several; `name` is the argument's, for messages."""
    if getattr(given, "ndim", 1) in (0, 2):
        given = np.asarray(given)
        given = [given[()]] if given.ndim == 0 else list(given)
    elif not _is_list(given):
        if given is None or (isinstance(given, Iterable) and not isinstance(given, (str, bytes))):
            kind = "None" if given is None else f"a {type(given).__name__}"
            raise UserError(f"`{name}` must be ids, or a list of lists of ids, not {kind}; pass a list")
        given = [given]
    elif isinstance(given, (pa.Array, pa.ChunkedArray)) and pa.types.is_nested(given.type):
        given = given.to_pylist()
    nested = [_is_list(one) for one in given]
    if len(set(nested)) > 1:
        raise UserError(f"`{name}` must be ids, or a list of lists of ids, not both; put single ids into lists")
    several = list(given) if any(nested) else [given]
    sizes = [len(one) for one in several]
    if not sum(sizes):
        return [np.zeros(0, np.int64) for _ in several]
    # All at once: each look-up of many ids builds a hash table of all.
    if all(isinstance(one, list) for one in several) and {type(x) for one in several for x in one} in ({str}, {int}):
        rows = ids.rows([x for one in several for x in one])
    else:
        rows = ids.rows(pa.concat_arrays([*_columns([one for one in several if len(one)], ids.kind)]))
    return [np.unique(part) for part in np.split(rows, np.cumsum(sizes)[:-1])]


def _is_list(given: Any) -> bool:
    """Returns whether it is a list, an array or a column, and neither one id nor a mapping."""
    if isinstance(given, (str, bytes, Mapping)) or not hasattr(given, "__len__"):
        return False
    return isinstance(given, Iterable) and getattr(given, "ndim", 1) > 0


def _columns(lists: list[Any], kind: str) -> Iterator[pa.Array]:
    """Converts lists to columns of one type: strings, unless all are numbers."""
    columns = [as_column(one, kind) for one in lists]
    alike = len({str(column.type) for column in columns}) == 1
    return (column if alike else column.cast(pa.string()) for column in columns)
