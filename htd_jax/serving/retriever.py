"""A trained model ready to serve: its tables, and the ids of their rows."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from htd_jax.data import Dataset, Ids, Interactions, Split
from htd_jax.data.dataset import as_column
from htd_jax.errors import UserError
from htd_jax.models import InnerProduct, MakeModel, model_scores, represent_all
from htd_jax.ops.precision import Rows, to_precision
from htd_jax.serving import fold, storage
from htd_jax.serving.lists import Recommendations
from htd_jax.serving.topk import MEMORY, Hidden, Top, best_items, best_scored, concatenate


@dataclasses.dataclass(frozen=True, eq=False)
class Retriever:
    """Recommender that takes and returns ids: recommends items, finds similar ones, and folds in new users and items.

    Attributes:
      users, items: tables of `[num_users, d]` and `[num_items, d]`.
      user_ids, item_ids: the ids of their rows.
      seen: pairs that are not recommended; None if unknown.
      about: how the model was made, as JSON.
      scores: maps users `[n]` to scores `[n, num_items]`, if they are not products of the tables' rows; None if they
        are. A model with such scores can neither be saved nor folded into.
    """

    users: Rows
    items: Rows
    user_ids: Ids
    item_ids: Ids
    seen: Interactions | None = None
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    scores: Callable[[jax.Array], jax.Array] | None = None
    _factors: dict[Any, float] = dataclasses.field(default_factory=dict, init=False, repr=False)

    @property
    def precision(self) -> str:
        """The precision of both tables: float32, float16, int8 or int4."""
        return self.items.precision

    @property
    def dim(self) -> int:
        return self.items.dim

    def with_precision(self, precision: str) -> "Retriever":
        """Returns the retriever with both tables in another precision, see `precision.to_precision`."""
        if precision == self.precision:
            return self
        users, items = (to_precision(rows.floats(), precision) for rows in (self.users, self.items))
        return dataclasses.replace(self, users=users, items=items)

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
            lists = _lists(seen, self.item_ids)
            if len(lists) != len(vectors):
                raise UserError(f"`seen` must hold one list per vector: {len(lists)} lists for {len(vectors)} vectors")
            hidden = Hidden.from_lists(lists)
        candidates, rows = self._candidates(allow, deny), Rows(jnp.asarray(vectors))
        top = concatenate(best_items(rows, self.items, k, hidden=hidden, candidates=candidates, memory=memory), k)
        return Recommendations(pa.array(np.arange(len(vectors))), *top, self.item_ids)

    def similar(
        self, items: Any, k: int = 20, *, allow: Any = None, deny: Any = None, memory: int = MEMORY
    ) -> Recommendations:
        """Returns the k nearest items by the cosine of their rows, without the item itself.

        Args:
          items: ids, one or many.
          k, allow, deny, memory: see `recommend`.

        Raises:
          UserError: if an id is unknown, or `k` is below 1.
        """
        rows = self.item_ids.rows(items)
        unit = _unit(self.items)
        itself = Hidden(np.arange(len(rows) + 1), rows.astype(np.int32))
        mine, candidates = unit.take(jnp.asarray(rows)), self._candidates(allow, deny)
        top = concatenate(best_items(mine, unit, k, hidden=itself, candidates=candidates, memory=memory), k)
        return Recommendations(self.item_ids.take(rows), *top, self.item_ids, ("item", "similar"))

    def fold_in(self, items: Any, *, unseen: float = fold.UNSEEN, ridge: float = fold.RIDGE) -> np.ndarray:
        """Returns rows of new users from the items that each has seen: `[n, d]` float32, for `recommend_vectors`.

        Nothing is trained: a row is the solution of `fold.least_squares`, times the factor that makes such rows as long
        as the trained ones. The factor is measured on known users. If neither the seen pairs nor the factor (kept in
        exports) is known, the factor is 1: a user's list is the same, but its scores are not comparable with others'.

        Args:
          items: ids of one user's items, or a list of such lists.
          unseen, ridge: see `fold.least_squares`.

        Raises:
          UserError: if an id is unknown, or a list is empty.
        """
        self._check_products("fold_in")
        solved = fold.least_squares(self.items, _lists(items, self.item_ids), unseen=unseen, ridge=ridge)
        return solved * self._length_factor("users", unseen, ridge)

    def fold_in_items(self, users: Any, *, unseen: float = fold.UNSEEN, ridge: float = fold.RIDGE) -> np.ndarray:
        """Returns rows of new items from the users who have seen each: `[n, d]` float32, see `fold_in`.

        The factor matters here: without it new items score too low to be recommended among others.
        """
        self._check_products("fold_in_items")
        solved = fold.least_squares(self.users, _lists(users, self.user_ids), unseen=unseen, ridge=ridge)
        return solved * self._length_factor("items", unseen, ridge)

    def save(self, folder: Path | str, *, seen: bool = False) -> None:
        """Writes an export, a folder that `htd_jax.load` opens, see `storage.py`.

        Args:
          folder: new, empty, or an earlier export, which is replaced.
          seen: whether to also write the seen pairs, which `recommend` leaves out. They are training data.

        Raises:
          UserError: if the folder holds other files or cannot be written, the scores are not products of rows, or
            `seen` is True and the pairs are unknown.
        """
        self._check_products("this model cannot be saved for serving")
        if seen and self.seen is None:
            raise UserError("`seen`: the seen pairs are unknown, so they cannot be saved; leave it out")
        factors = self.length_factors()
        about = self.about | ({"lengths": factors} if factors else {})
        known = self.seen if seen else None
        export = storage.Export(self.users, self.items, self.user_ids, self.item_ids, known, about)
        storage.write_export(Path(folder), export)

    def length_factors(self) -> dict[str, float] | None:
        """Returns the factors of `fold_in` and `fold_in_items` by default: `{"users": ..., "items": ...}`, or None."""
        if self.seen is None:
            known: dict[str, float] | None = self.about.get("lengths")
            return known
        return {side: self._length_factor(side, fold.UNSEEN, fold.RIDGE) for side in ("users", "items")}

    def _length_factor(self, side: str, unseen: float, ridge: float) -> float:
        if self.seen is None:
            default = (unseen, ridge) == (fold.UNSEEN, fold.RIDGE)
            return float((self.about.get("lengths") or {}).get(side, 1.0)) if default else 1.0
        key = (side, unseen, ridge)
        if key not in self._factors:
            mine, other = (self.users, self.items) if side == "users" else (self.items, self.users)
            self._factors[key] = fold.length_factor(mine, other, self.seen, side, unseen=unseen, ridge=ridge)
        return self._factors[key]

    def _check_products(self, what: str) -> None:
        if self.scores is not None:
            raise UserError(
                f"{what}: this model's scores are not products of two rows; distil it into a bpr student, whose are"
            )

    def _user_rows(self, users: Any) -> np.ndarray:
        return np.arange(len(self.users)) if users is None else self.user_ids.rows(users)

    def _rank(
        self, rows: np.ndarray, k: int, *, seen: bool = False, allow: Any = None, deny: Any = None, memory: int = MEMORY
    ) -> Iterator[Top]:
        hidden = None if seen or self.seen is None else Hidden.from_interactions(self.seen)
        how: Any = {"rows": rows, "hidden": hidden, "candidates": self._candidates(allow, deny), "memory": memory}
        if self.scores is None:
            return best_items(self.users, self.items, k, **how)
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


def load_export(folder: Path | str) -> Retriever:
    """Opens a folder that `Retriever.save` or `htd-jax export` wrote.

    Raises:
      UserError: see `storage.read_export`.
    """
    return Retriever(*storage.read_export(Path(folder)))


def retriever_of(
    make_model: MakeModel,
    variables: Any,
    dataset: Dataset,
    precision: str | None = None,
    *,
    seen: Interactions | None = None,
    about: dict[str, Any] | None = None,
) -> Retriever:
    """Returns a trained model ready to serve.

    Args:
      make_model, variables: the model, trained on `dataset.train`.
      precision: the precision of the tables; the one that the model was trained in if None.
      seen: pairs that are not recommended; all pairs of train, valid and test if None.
      about: how the model was made, as JSON.

    Raises:
      UserError: see `to_precision`.
    """
    model = make_model(dataset.train)
    trained_in = model.precision if isinstance(model, InnerProduct) else "float32"
    if trained_in != "float32" and precision in (None, trained_in):
        users, items = jax.jit(lambda variables: model.apply(variables, method="rows"))(variables)
    else:
        tables = represent_all(make_model, variables, dataset.train)
        users, items = (to_precision(x, precision or trained_in) for x in tables)
    scores = None
    if not isinstance(model, InnerProduct):
        scores = model_scores(make_model, variables, dataset.train)
    seen = known_pairs(dataset.split) if seen is None else seen
    return Retriever(users, items, dataset.users, dataset.items, seen, about or {}, scores)


def known_pairs(split: Split) -> Interactions:
    """Returns all pairs of train, valid and test."""
    users, items = (np.concatenate([np.asarray(getattr(p, name)) for p in split]) for name in ("users", "items"))
    return Interactions.from_pairs(users, items, split.train.num_users, split.train.num_items)


@jax.jit
def _unit(table: Rows) -> Rows:
    """Scales rows to length one (zero rows stay zero) without new codes: only the scales change."""
    bare = Rows(table.values, None, table.steps)
    values = bare.floats()
    largest = jnp.abs(values).max(axis=1, initial=0)  # squares of small floats vanish
    safe = jnp.where(largest > 0, largest, 1)
    length = safe * jnp.sqrt(jnp.sum((values / safe[:, None]) ** 2, axis=1))
    # A row shorter than any normal float counts as zero: its reciprocal would be infinite.
    return bare.replace(scales=jnp.where(length > jnp.finfo(jnp.float32).tiny, 1 / length, 0))  # type: ignore[attr-defined]


def _lists(given: Any, ids: Ids) -> list[np.ndarray]:
    """Returns the distinct rows of one list of ids, or of several."""
    given = list(given) if isinstance(given, (list, tuple)) or getattr(given, "ndim", 1) == 2 else given
    nested = isinstance(given, list) and bool(given) and not isinstance(given[0], (str, bytes))
    several = given if nested and hasattr(given[0], "__len__") else [given]
    sizes = [len(one) for one in several]
    if not sum(sizes):
        return [np.zeros(0, np.int64) for _ in several]
    # All at once: each look-up builds a hash table of all ids.
    rows = ids.rows(pa.concat_arrays([*_columns([one for one in several if len(one)], ids.kind)]))
    return [np.unique(part) for part in np.split(rows, np.cumsum(sizes)[:-1])]


def _columns(lists: list[Any], kind: str) -> Iterator[pa.Array]:
    """Converts lists to columns of one type: strings, unless all are numbers."""
    columns = [as_column(one, kind) for one in lists]
    alike = len({str(column.type) for column in columns}) == 1
    return (column if alike else column.cast(pa.string()) for column in columns)
