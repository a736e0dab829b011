"""A trained model ready to serve: its tables, and the ids of their rows."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from htd_jax.data import Dataset, Ids, Interactions, Split
from htd_jax.data.ids import as_column
from htd_jax.errors import UserError
from htd_jax.models import Folded, InnerProduct, MakeModel, model_scores, represent_all
from htd_jax.ops.precision import Rows, to_precision
from htd_jax.serving import deltas, fold, storage
from htd_jax.serving.lists import Recommendations
from htd_jax.serving.topk import MEMORY, Hidden, Searched, Top, best_items, best_scored, concatenate

# Users whose rows are made from their items at once.
POOLED = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Retriever:
    """Recommender that takes and returns ids: recommends items, finds similar ones, and folds in new users and items.

    Attributes:
      users, items: tables of `[num_users, d]` and `[num_items, d]`.
      user_ids, item_ids: the ids of their rows.
      seen: pairs that are not recommended; None if unknown.
      about: how the model was made, as JSON.
      row_maps: for `users` and `items`, the function from interactions to rows, as far as it is known, see `fold_in`.
      scores: maps users `[n]` to scores `[n, num_items]`, if they are not products of the tables' rows; None if they
        are. A model with such scores can neither be saved nor folded into.
      trained: the pairs that the tables were trained on; `seen` if None.
      pooling: makes the rows of users from the items that they have seen, those of `seen`, for a model without a table
        of users: then `users` has no rows.
      version: the version of the export that it was opened from, or made from; None if from none. An export of other
        content names it as its parent.
      parent: the version that this one was made from; None if unknown.
    """

    users: Rows
    items: Rows
    user_ids: Ids
    item_ids: Ids
    seen: Interactions | None = None
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    row_maps: dict[str, fold.RowMap] = dataclasses.field(default_factory=dict, repr=False)
    scores: Callable[[jax.Array], jax.Array] | None = None
    trained: Interactions | None = None
    pooling: fold.Pooling | None = None
    version: str | None = None
    parent: str | None = None

    @property
    def precision(self) -> str:
        """The precision of both tables: one of `PRECISIONS`."""
        return self.items.precision

    @property
    def dim(self) -> int:
        return self.items.dim

    def with_precision(self, precision: str, like: "Retriever | None" = None) -> "Retriever":
        """Returns the retriever with both tables in another precision, see `precision.to_precision`.

        Args:
          precision: of the tables.
          like: an earlier version, whose steps are kept where they fit, see `precision.kept_steps`.
        """
        if precision == self.precision:
            return self
        user_steps, item_steps = _steps(like, precision, self.dim)
        users, items = self.users, to_precision(self.items.floats(), precision, item_steps)
        if self.pooling is None:
            users = to_precision(self.users.floats(), precision, user_steps)
        fits = self.seen is None and self.trained is None  # else they are fitted again, to the rounded rows
        return dataclasses.replace(self, users=users, items=items, row_maps=self.row_maps if fits else {})

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
        candidates, rows = self._candidates(allow, deny), Rows(jnp.asarray(vectors))
        top = concatenate(best_items(rows, self._searched, k, hidden=hidden, candidates=candidates, memory=memory), k)
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
        unit, itself = self._unit
        how: Any = {"rows": rows, "hidden": itself, "candidates": self._candidates(allow, deny), "memory": memory}
        top = concatenate(best_items(unit.rows, unit, k, **how), k)
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
            return self.pooling.rows(self.items, lists)
        row_map = self.row_map("users")
        return fold.least_squares(self.items, lists) if row_map is None else row_map.rows(self.items, lists)

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
        return row_map.rows(self._user_table, lists)

    def check_users(self) -> None:
        """Raises UserError if the model has no rows of users: neither a table, nor the items to make them from."""
        if self.pooling and self.seen is None:
            raise UserError(
                "rows of users are made from the items that they have seen, which this model does not hold: export it "
                "with `seen`, or pass the rows of `fold_in` to `recommend_vectors`"
            )

    def row_map(self, side: str) -> fold.RowMap | None:
        """Returns the function from interactions to rows of a side, `users` or `items`; None if it is unknown."""
        known = self.seen if self.trained is None else self.trained
        if side not in self.row_maps and known is not None:
            users = self._user_table
            mine, other = (users, self.items) if side == "users" else (self.items, users)
            if (fitted := fold.fit_map(mine, other, known, side)) is not None:
                self.row_maps[side] = fitted
        return self.row_maps.get(side)

    def save(
        self,
        folder: Path | str,
        *,
        seen: bool = False,
        shard_size: float = storage.SHARD_SIZE,
        delta_from: Path | str | None = None,
    ) -> None:
        """Writes an export, a folder that `htd_jax.load` opens, see `storage.py`; in several processes, all call this.

        Args:
          folder: new, empty, or an earlier export, which is replaced.
          seen: whether to also write the seen pairs, which `recommend` leaves out. They are training data.
          shard_size: megabytes of tables from which on they are written in shards, and of each shard.
          delta_from: the folder of an earlier export, whose users and items have the same rows here: then a delta is
            written, what this model changes in it and adds to it, see `deltas.py`, which `htd_jax.load` opens with it.

        Raises:
          UserError: if the folder holds other files or cannot be written, the scores are not products of rows, or
            `seen` is True and the pairs are unknown; or if no delta leads from the earlier export to this model.
        """
        self._check_products("this model cannot be saved for serving")
        if seen and self.seen is None:
            raise UserError("`seen`: the seen pairs are unknown, so they cannot be saved; leave it out")
        known = self.seen if seen else None
        # Without a table of users, users follow from their items, and nothing is known of the users of new items.
        # Functions are fitted by a process that holds all rows.
        tables = [rows.values for rows in (self.users, self.items)]
        everywhere = all(x.is_fully_addressable for x in tables if isinstance(x, jax.Array))
        sides = () if self.pooling or not everywhere else ("users", "items")
        maps = {side: row_map for side in sides if (row_map := self.row_map(side)) is not None}
        user_ids = Ids(self.user_ids.values[:0], "user") if self.pooling and not seen else self.user_ids
        tables_and_ids = self.users, self.items, user_ids, self.item_ids
        versions = self.version, self.parent
        export = storage.Export(*tables_and_ids, known, self.about, maps, self.pooling, *versions)
        if delta_from is not None:
            deltas.write_delta(Path(folder), export, Path(delta_from))
        else:
            storage.write_export(Path(folder), export, shard_size)

    @functools.cached_property
    def _searched(self) -> Searched:
        return Searched(self.items)

    @functools.cached_property
    def _hidden(self) -> Hidden | None:
        return None if self.seen is None else Hidden.from_interactions(self.seen)

    @functools.cached_property
    def _user_table(self) -> Rows:
        """The rows of all users."""
        if self.pooling is None:
            return self.users
        return Rows(jnp.concatenate([users for users, _ in self._pooled(self._user_rows(None))]))

    def _pooled(self, rows: np.ndarray) -> Iterator[tuple[jax.Array, Hidden]]:
        """Yields the rows of users, made from the items that they have seen, and these items; block by block."""
        assert self.pooling and self._hidden
        offsets, items = self._hidden
        for first in range(0, len(rows), POOLED):
            lists = [items[offsets[row] : offsets[row + 1]] for row in rows[first : first + POOLED]]
            yield jnp.asarray(self.pooling.rows(self.items, lists)), Hidden.from_lists(lists)

    @functools.cached_property
    def _unit(self) -> tuple[Searched, Hidden]:
        """The items with rows of length one, and each item itself, hidden from its list."""
        itself = Hidden(np.arange(len(self.items) + 1), np.arange(len(self.items), dtype=np.int32))
        return self._searched.scaled(_unit(self.items)), itself

    def _check_products(self, what: str) -> None:
        if self.scores is not None:
            raise UserError(
                f"{what}: this model's scores are not products of two rows; distil it into a bpr student, whose are"
            )

    def _user_rows(self, users: Any) -> np.ndarray:
        self.check_users()
        return np.arange(len(self.user_ids)) if users is None else self.user_ids.rows(users)

    def _rank(
        self, rows: np.ndarray, k: int, *, seen: bool = False, allow: Any = None, deny: Any = None, memory: int = MEMORY
    ) -> Iterator[Top]:
        hidden = None if seen else self._hidden
        how: Any = {"rows": rows, "hidden": hidden, "candidates": self._candidates(allow, deny), "memory": memory}
        if self.pooling:

            def ranked() -> Iterator[Top]:
                for users, own in self._pooled(rows):
                    block = how | {"rows": None, "hidden": None if seen else own}
                    yield from best_items(Rows(users), self._searched, k, **block)

            return ranked()
        if self.scores is None:
            return best_items(self.users, self._searched, k, **how)
        return best_scored(self.scores, len(self.items), k, **how)

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


def load_export(folder: Path | str, *changes: Path | str) -> Retriever:
    """Opens a folder that `Retriever.save` or `htd-jax export` wrote.

    Args:
      folder: the export.
      *changes: folders of deltas that lead from it to a later version, in their order.

    Raises:
      UserError: see `storage.read_export` and `deltas.apply_deltas`.
    """
    folder = Path(folder)
    export = deltas.apply_deltas(storage.read_export(folder), [Path(delta) for delta in changes], folder)
    values = export._asdict()
    return Retriever(**values)


def retriever_of(
    make_model: MakeModel,
    variables: Any,
    dataset: Dataset,
    precision: str | None = None,
    *,
    seen: Interactions | None = None,
    about: dict[str, Any] | None = None,
    like: Retriever | None = None,
) -> Retriever:
    """Returns a trained model ready to serve.

    Args:
      make_model, variables: the model, trained on `dataset.train`.
      precision: the precision of the tables; the one that the model was trained in if None.
      seen: pairs that are not recommended; all pairs of train, valid and test if None.
      about: how the model was made, as JSON.
      like: an earlier version, whose steps are kept where they fit, see `precision.kept_steps`.

    Raises:
      UserError: see `to_precision`.
    """
    model = make_model(dataset.train)
    trained_in = model.precision if isinstance(model, InnerProduct) else "float32"
    seen = known_pairs(dataset.split) if seen is None else seen
    if isinstance(model, Folded):
        items = jax.jit(lambda variables: model.apply(variables, method="item_rows"))(variables)
        params = variables["params"]
        pooling = fold.Pooling(*(np.asarray(params[name], np.float32) for name in fold.Pooling._fields))
        no_users = Rows(jnp.zeros((0, items.dim)))
        folded = Retriever(no_users, items, dataset.users, dataset.items, seen, about or {}, pooling=pooling)
        return folded.with_precision(precision or trained_in, like)
    if trained_in != "float32" and precision in (None, trained_in):
        users, items = jax.jit(lambda variables: model.apply(variables, method="rows"))(variables)
        given = _steps(like, trained_in, items.dim)
        if given[1] is not None:
            trained = model.apply(variables, method=lambda model: model.trained)
            users, items = (to_precision(x, trained_in, steps) for x, steps in zip(trained, given))
    else:
        none = tuple(jnp.zeros((size, 0)) for size in (model.num_users, model.num_items))
        tables = represent_all(make_model, variables, dataset.train) if model.has_representations else none
        given = _steps(like, precision or trained_in, tables[1].shape[1])
        users, items = (to_precision(x, precision or trained_in, steps) for x, steps in zip(tables, given))
    users = fold.fold_new_users(users, items, dataset) if model.inner_product else users
    scores = None
    if not isinstance(model, InnerProduct):
        scores = model_scores(make_model, variables, dataset.train)
    ids = dataset.users, dataset.items
    return Retriever(users, items, *ids, seen, about or {}, scores=scores, trained=dataset.learned)


def known_pairs(split: Split) -> Interactions:
    """Returns all pairs of train, valid and test."""
    users, items = (np.concatenate([np.asarray(getattr(p, name)) for p in split]) for name in ("users", "items"))
    return Interactions.from_pairs(users, items, split.train.num_users, split.train.num_items)


def _steps(like: Retriever | None, precision: str, dim: int) -> tuple[jax.Array | None, jax.Array | None]:
    """Returns the steps of an earlier version, if it has this precision and width."""
    if like is None or (like.precision, like.dim) != (precision, dim):
        return None, None
    return like.users.steps, like.items.steps


@jax.jit
def _unit(table: Rows) -> Rows:
    """Scales rows to length one (zero rows stay zero) without new codes: only the scales change."""
    bare: Rows = table.replace(scales=None)  # type: ignore[attr-defined]
    values = bare.floats()
    largest = jnp.abs(values).max(axis=1, initial=0)  # squares of small floats vanish
    safe = jnp.where(largest > 0, largest, 1)
    length = safe * jnp.sqrt(jnp.sum((values / safe[:, None]) ** 2, axis=1))
    # A row shorter than any normal float counts as zero: its reciprocal would be infinite.
    return bare.replace(scales=jnp.where(length > jnp.finfo(jnp.float32).tiny, 1 / length, 0))  # type: ignore[attr-defined]


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
    # All at once: each look-up builds a hash table of all ids.
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
