"""A student ready to serve: its tables, and what their rows are called."""

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
from htd_jax.distillers import model_scores
from htd_jax.errors import UserError
from htd_jax.models import InnerProduct, MakeModel
from htd_jax.ops.precision import Rows, to_precision
from htd_jax.serving import fold
from htd_jax.serving.lists import Recommendations
from htd_jax.serving.topk import MEMORY, Hidden, Top, best_items, best_scored, together
from htd_jax.training import represent_all


@dataclasses.dataclass(frozen=True, eq=False)
class Retriever:
    """Recommends, finds neighbours, and takes in who is new; ids in, ids out.

    Attributes:
      users, items: tables of `[num_users, d]` and `[num_items, d]`.
      user_ids, item_ids: what their rows are called.
      seen: pairs that are not recommended; None if they are not known here.
      about: what it is made of, as JSON.
      scores: users `[n]` -> scores `[n, num_items]`, where they are no products of the tables' rows; such a model is
        neither saved nor folded into.
    """

    users: Rows
    items: Rows
    user_ids: Ids
    item_ids: Ids
    seen: Interactions | None = None
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    scores: Callable[[jax.Array], jax.Array] | None = None
    _found: dict[Any, float] = dataclasses.field(default_factory=dict, init=False, repr=False)

    @property
    def precision(self) -> str:
        """Of both tables: float32, float16, int8 or int4."""
        return self.items.precision

    @property
    def dim(self) -> int:
        return self.items.dim

    def with_precision(self, precision: str) -> "Retriever":
        """The same in fewer bytes, see `precision.to_precision`."""
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
        """The k best items of users.

        Args:
          users: ids, one or many; all if None.
          k: the length of a list, at least 1. Lists are shorter where fewer items may be shown.
          seen: whether items that the user has seen may be shown. Without `self.seen` they are.
          allow: ids of items, only which may be shown.
          deny: ids of items that may not be shown.
          memory: MiB for scores, beside tables and lists.

        Raises:
          UserError: an id that there is not, no item left to show, or a k or memory below 1.
        """
        blocks = list(self.recommend_in_blocks(users, k, seen=seen, allow=allow, deny=deny, memory=memory))
        if not blocks:
            return Recommendations(self.user_ids.values[:0], *together(iter(()), 0), self.item_ids)
        return _joined(blocks)

    def recommend_in_blocks(
        self,
        users: Any = None,
        k: int = 20,
        *,
        seen: bool = False,
        allow: Any = None,
        deny: Any = None,
        memory: int = MEMORY,
    ) -> Iterator[Recommendations]:
        """`recommend`, some users at a time, in their order: for more lists than memory holds."""
        of = np.arange(len(self.users)) if users is None else self.user_ids.rows(users)
        among = self._among(allow, deny)
        hidden = None if seen or self.seen is None else Hidden.of(self.seen)
        how: Any = {"of": of, "hidden": hidden, "among": among, "memory": memory}
        if self.scores is None:
            blocks = best_items(self.users, self.items, k, **how)
        else:
            blocks = best_scored(self.scores, len(self.items), k, **how)
        return self._named(blocks, of)

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
        """The k best items of users who have no row here.

        Args:
          vectors: `[n, d]`, or `[d]` of one: what `fold_in` gives.
          seen: what each has seen and is not shown, ids of items, as `fold_in` takes them; nothing if None.
          k, allow, deny, memory: see `recommend`.

        Returns:
          Lists of users called by their numbers in `vectors`.

        Raises:
          UserError: see `recommend`; or vectors of another width, or as many lists of seen items as there are not
            vectors.
        """
        self._products("recommend_vectors")
        vectors = np.atleast_2d(np.asarray(vectors, np.float32))
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise UserError(f"vectors must be [n, {self.dim}], not {list(vectors.shape)}")
        hidden = None
        if seen is not None:
            lists = _lists(seen, self.item_ids)
            if len(lists) != len(vectors):
                raise UserError(f"{len(lists)} lists of seen items for {len(vectors)} vectors")
            hidden = Hidden.of_lists(lists)
        among = self._among(allow, deny)
        rows = Rows(jnp.asarray(vectors))
        blocks = best_items(rows, self.items, k, hidden=hidden, among=among, memory=memory)
        top = together(blocks, k)
        return Recommendations(pa.array(np.arange(len(vectors))), *top, self.item_ids)

    def similar(
        self, items: Any, k: int = 20, *, allow: Any = None, deny: Any = None, memory: int = MEMORY
    ) -> Recommendations:
        """The k nearest items by the cosine of their rows, without the item itself.

        Args:
          items: ids, one or many.
          k, allow, deny, memory: see `recommend`.

        Raises:
          UserError: an id that there is not, or a k below 1.
        """
        return _neighbours(self.items, self.item_ids, items, k, self._among(allow, deny), memory)

    def similar_users(self, users: Any, k: int = 20, *, memory: int = MEMORY) -> Recommendations:
        """The same of users."""
        return _neighbours(self.users, self.user_ids, users, k, None, memory)

    def fold_in(self, items: Any, *, unseen: float = fold.UNSEEN, ridge: float = fold.RIDGE) -> np.ndarray:
        """Rows of users who are new, from the items that each has seen: `[n, d]` float32, for `recommend_vectors`.

        Nothing is trained: a row is the solution of `fold.squares`, times what makes such rows as long as the trained
        ones are. That factor is found on users who are known, so it is 1 where neither seen pairs nor, by an export
        that had them, their factor is: a user's list is the same, but its scores cannot be compared with others'.

        Args:
          items: ids of one user's items, or a list of such lists.
          unseen, ridge: see `fold.squares`.

        Raises:
          UserError: an id that there is not, or an empty list.
        """
        self._products("fold_in")
        solved = fold.squares(self.items, _lists(items, self.item_ids), unseen=unseen, ridge=ridge)
        return solved * self._length("users", unseen, ridge)

    def fold_in_items(self, users: Any, *, unseen: float = fold.UNSEEN, ridge: float = fold.RIDGE) -> np.ndarray:
        """Rows of items that are new, from the users who have seen each: `[n, d]` float32, see `fold_in`.

        Here the factor counts: without it new items score too low to be in any list beside others.
        """
        self._products("fold_in_items")
        solved = fold.squares(self.users, _lists(users, self.user_ids), unseen=unseen, ridge=ridge)
        return solved * self._length("items", unseen, ridge)

    def save(self, folder: Path | str, *, seen: bool = False) -> None:
        """Writes it to a folder that `htd_jax.load` opens, see `storage.py`.

        Args:
          folder: new, empty, or an earlier one of these, which is replaced.
          seen: whether the pairs that are not recommended are kept there too. They are training data.

        Raises:
          UserError: a folder of something else, or one that cannot be written; scores that are no products of rows.
        """
        from htd_jax.serving import storage

        storage.save(self, Path(folder), seen=seen)

    def lengths(self) -> dict[str, float] | None:
        """The factors of `fold_in` and `fold_in_items` with their usual settings: `{"users": ..., "items": ...}`."""
        if self.seen is None:
            known: dict[str, float] | None = self.about.get("lengths")
            return known
        return {side: self._length(side, fold.UNSEEN, fold.RIDGE) for side in ("users", "items")}

    def _length(self, side: str, unseen: float, ridge: float) -> float:
        if self.seen is None:
            usual = (unseen, ridge) == (fold.UNSEEN, fold.RIDGE)
            return float((self.about.get("lengths") or {}).get(side, 1.0)) if usual else 1.0
        key = (side, unseen, ridge)
        if key not in self._found:
            mine, other = (self.users, self.items) if side == "users" else (self.items, self.users)
            self._found[key] = fold.length(mine, other, self.seen, side, unseen=unseen, ridge=ridge)
        return self._found[key]

    def _products(self, what: str) -> None:
        if self.scores is not None:
            raise UserError(f"{what}: this model's scores are no products of two rows, as neumf's are not")

    def _among(self, allow: Any, deny: Any) -> np.ndarray | None:
        """Rows of the items that may be shown, ascending."""
        if allow is None and deny is None:
            return None
        may = np.full(len(self.items), allow is None)
        if allow is not None:
            may[self.item_ids.rows(allow)] = True
        if deny is not None:
            may[self.item_ids.rows(deny)] = False
        if not may.any():
            raise UserError("no item is left that may be shown")
        return np.flatnonzero(may)

    def _named(self, blocks: Iterator[Top], of: np.ndarray) -> Iterator[Recommendations]:
        first = 0
        for top in blocks:
            yield Recommendations(self.user_ids.take(of[first : first + len(top.rows)]), *top, self.item_ids)
            first += len(top.rows)


def retriever_of(
    make_model: MakeModel,
    variables: Any,
    dataset: Dataset,
    precision: str | None = None,
    *,
    seen: Interactions | None = None,
    about: dict[str, Any] | None = None,
) -> Retriever:
    """A trained model, ready to serve.

    Args:
      make_model, variables: the model, trained on `dataset.train`.
      precision: of the tables; that which the model was trained in if None.
      seen: what is not recommended; every pair of train, valid and test if None.
      about: what made it, as JSON.

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
    """Every pair of train, valid and test."""
    users, items = (np.concatenate([np.asarray(getattr(p, name)) for p in split]) for name in ("users", "items"))
    return Interactions.from_pairs(users, items, split.train.num_users, split.train.num_items)


def _neighbours(table: Rows, ids: Ids, asked: Any, k: int, among: np.ndarray | None, memory: int) -> Recommendations:
    rows = ids.rows(asked)
    unit = _unit(table)
    hidden = Hidden(np.arange(len(rows) + 1), rows.astype(np.int32))  # of each who is asked for, itself
    mine = unit.take(jnp.asarray(rows))
    top = together(best_items(mine, unit, k, hidden=hidden, among=among, memory=memory), k)
    return Recommendations(ids.take(rows), *top, ids, (ids.kind, "similar"))


@jax.jit
def _unit(table: Rows) -> Rows:
    """Rows of length one, or zero, in the same bytes: only the scales are new."""
    bare = Rows(table.values, None, table.steps)
    values = bare.floats()
    largest = jnp.abs(values).max(axis=1, initial=0)  # squares of small floats vanish
    safe = jnp.where(largest > 0, largest, 1)
    length = safe * jnp.sqrt(jnp.sum((values / safe[:, None]) ** 2, axis=1))
    # A row shorter than any normal float is none: its reciprocal would be infinite.
    return bare.replace(scales=jnp.where(length > jnp.finfo(jnp.float32).tiny, 1 / length, 0))  # type: ignore[attr-defined]


def _lists(given: Any, ids: Ids) -> list[np.ndarray]:
    """Rows of one list of ids, or of several; each row once."""
    given = list(given) if isinstance(given, (list, tuple)) or getattr(given, "ndim", 1) == 2 else given
    nested = isinstance(given, list) and bool(given) and not isinstance(given[0], (str, bytes))
    several = given if nested and hasattr(given[0], "__len__") else [given]
    sizes = [len(one) for one in several]
    if not sum(sizes):
        return [np.zeros(0, np.int64) for _ in several]
    # All at once: each look-up of ids makes a table of all that there are.
    rows = ids.rows(pa.concat_arrays([*_columns([one for one in several if len(one)], ids.kind)]))
    return [np.unique(its) for its in np.split(rows, np.cumsum(sizes)[:-1])]


def _columns(lists: list[Any], kind: str) -> Iterator[pa.Array]:
    """Columns of one type: texts, unless all are numbers."""
    columns = [as_column(one, kind) for one in lists]
    alike = len({str(column.type) for column in columns}) == 1
    return (column if alike else column.cast(pa.string()) for column in columns)


def _joined(blocks: list[Recommendations]) -> Recommendations:
    of = pa.concat_arrays([block.of for block in blocks])
    rows, scores = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("rows", "scores"))
    return dataclasses.replace(blocks[0], of=of, rows=rows, scores=scores)
