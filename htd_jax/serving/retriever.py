"""A trained model ready to serve: its tables, and the ids of their rows."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.data import Dataset, Ids, Interactions, Split
from htd_jax.models import Folded, InnerProduct, MakeModel, model_scores, represent_all
from htd_jax.ops.precision import Rows, to_precision
from htd_jax.serve import deltas, storage
from htd_jax.serve.base import ServedModel
from htd_jax.serve.fold import Pooling, RowMap
from htd_jax.serve.rank import Hidden, Top
from htd_jax.serve.table import Table
from htd_jax.serving import fold
from htd_jax.serving.topk import Searched, best_items, best_scored


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Retriever(ServedModel):
    """Recommender that takes and returns ids: recommends items, finds similar ones, and folds in new users and items;
    it ranks in JAX, on any device.

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
    row_maps: dict[str, RowMap] = dataclasses.field(default_factory=dict)
    scores: Callable[[jax.Array], jax.Array] | None = None
    trained: Interactions | None = None
    pooling: Pooling | None = None
    version: str | None = None
    parent: str | None = None

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

    def row_map(self, side: str) -> RowMap | None:
        """Returns the function from interactions to rows of a side, `users` or `items`; None if it is unknown."""
        known = self.seen if self.trained is None else self.trained
        if side not in self.row_maps and known is not None:
            users = self._user_table
            mine, other = (users, self.items) if side == "users" else (self.items, users)
            if (fitted := fold.fit_map(mine, other, known, side)) is not None:
                self.row_maps[side] = fitted
        return self.row_maps.get(side)

    def _best(
        self, rows: np.ndarray, k: int, hidden: Hidden | None, candidates: np.ndarray | None, memory: int
    ) -> Iterator[Top]:
        how: Any = {"rows": rows, "hidden": hidden, "candidates": candidates, "memory": memory}
        if self.scores is None:
            return best_items(self.users, self._searched, k, **how)
        return best_scored(self.scores, len(self.items), k, **how)

    def _best_of(
        self, vectors: np.ndarray, k: int, hidden: Hidden | None, candidates: np.ndarray | None, memory: int
    ) -> Iterator[Top]:
        rows = Rows(jnp.asarray(vectors))
        return best_items(rows, self._searched, k, hidden=hidden, candidates=candidates, memory=memory)

    def _nearest(self, rows: np.ndarray, k: int, candidates: np.ndarray | None, memory: int) -> Iterator[Top]:
        unit, itself = self._unit
        return best_items(unit.rows, unit, k, rows=rows, hidden=itself, candidates=candidates, memory=memory)

    @functools.cached_property
    def _host_items(self) -> Table:
        return Table.of(self.items)

    @functools.cached_property
    def _host_users(self) -> Table:
        return Table.of(self._user_table)

    @functools.cached_property
    def _user_table(self) -> Rows:
        """The rows of all users."""
        if self.pooling is None:
            return self.users
        return Rows(jnp.concatenate([users for users, _ in self._pooled(self._user_rows(None))]))

    @functools.cached_property
    def _searched(self) -> Searched:
        return Searched(self.items)

    @functools.cached_property
    def _hidden(self) -> Hidden | None:
        return None if self.seen is None else Hidden.from_interactions(self.seen)

    @functools.cached_property
    def _unit(self) -> tuple[Searched, Hidden]:
        """The items with rows of length one, and each item itself, hidden from its list."""
        itself = Hidden(np.arange(len(self.items) + 1), np.arange(len(self.items), dtype=np.int32))
        return self._searched.scaled(_unit(self.items)), itself


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
    values = export._asdict() | {name: _on_device(getattr(export, name)) for name in ("users", "items")}
    if export.seen is not None:
        pairs = export.seen.users, export.seen.items
        values["seen"] = Interactions.from_pairs(*pairs, len(export.user_ids), len(export.item_ids))
    return Retriever(**values)


def _on_device(table: Table) -> Rows:
    scales, steps = (None if x is None else jnp.asarray(x) for x in (table.scales, table.steps))
    return Rows(jnp.asarray(table.values), scales, steps, table.bits)


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
        pooling = Pooling(*(np.asarray(params[name], np.float32) for name in Pooling._fields))
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
