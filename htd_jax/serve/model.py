"""An export, opened to serve without JAX."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from htd_jax.data.ids import Ids
from htd_jax.serve import deltas, storage
from htd_jax.serve.base import POOLED, ServedModel
from htd_jax.serve.fold import Pooling, RowMap
from htd_jax.serve.rank import Hidden, Top, best_items
from htd_jax.serve.storage import Pairs
from htd_jax.serve.table import Table


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Model(ServedModel):
    """An export, opened to recommend, to find similar items, and to fold in new users and items; it ranks in NumPy.

    Lists and scores are those of `htd_jax.serving.Retriever`, up to rounding. The codes of a table are decoded block by
    block, and never kept decoded. Requests may come from several threads.

    Attributes:
      users, items: tables of `[num_users, d]` and `[num_items, d]`.
      user_ids, item_ids: the ids of their rows.
      seen: pairs that are not recommended; None if unknown.
      about: how the model was made, as JSON.
      row_maps: for `users` and `items`, the function from interactions to rows, if it is known, see `fold_in`.
      pooling: makes the rows of users from the items that they have seen, those of `seen`, for a model without a table
        of users: then `users` has no rows.
      version: the version of the export; None for one of htd-jax 0.4.
      parent: the version that this one was made from; None if unknown.
    """

    users: Table
    items: Table
    user_ids: Ids
    item_ids: Ids
    seen: Pairs | None = None
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    row_maps: dict[str, RowMap] = dataclasses.field(default_factory=dict)
    pooling: Pooling | None = None
    version: str | None = None
    parent: str | None = None

    def _best(
        self, rows: np.ndarray, k: int, hidden: Hidden | None, candidates: np.ndarray | None, memory: int
    ) -> Iterator[Top]:
        for first in range(0, len(rows), POOLED):
            some = rows[first : first + POOLED]
            own = None if hidden is None else [hidden.of(row) for row in some]
            vectors = self.users.take(some).floats()
            yield from best_items(vectors, self.items, k, hidden=own, candidates=candidates, memory=memory)

    def _best_of(
        self, vectors: np.ndarray, k: int, hidden: Hidden | None, candidates: np.ndarray | None, memory: int
    ) -> Iterator[Top]:
        own = None if hidden is None else [hidden.of(row) for row in range(len(vectors))]
        return best_items(vectors, self.items, k, hidden=own, candidates=candidates, memory=memory)

    def _nearest(self, rows: np.ndarray, k: int, candidates: np.ndarray | None, memory: int) -> Iterator[Top]:
        bare = dataclasses.replace(self.items, scales=None)
        factors = self._reciprocals
        vectors = bare.take(rows).floats() * factors[rows, None]
        own = list(rows[:, None])
        return best_items(vectors, self.items, k, hidden=own, candidates=candidates, factors=factors, memory=memory)

    @functools.cached_property
    def _reciprocals(self) -> np.ndarray:
        """1 / the length of each item's row before scales, `[n]`; zero rows stay zero."""
        lengths = self.items.lengths
        # A row shorter than any normal float counts as zero: its reciprocal would be infinite.
        some = lengths > np.finfo(np.float32).tiny
        return np.where(some, 1 / np.where(some, lengths, 1), 0).astype(np.float32)

    @property
    def _host_items(self) -> Table:
        return self.items

    @functools.cached_property
    def _host_users(self) -> Table:
        if self.pooling is None:
            return self.users
        return Table(np.concatenate([users for users, _ in self._pooled(self._user_rows(None))]))

    @functools.cached_property
    def _hidden(self) -> Hidden | None:
        return None if self.seen is None else Hidden.from_interactions(self.seen)


def load(folder: Path | str, *changes: Path | str) -> Model:
    """Opens a folder that `htd-jax export` or `save` wrote, without JAX.

    Args:
      folder: the export.
      *changes: folders of deltas that lead from it to a later version, in their order.

    Raises:
      UserError: see `storage.read_export` and `deltas.apply_deltas`.
    """
    export = deltas.apply_deltas(storage.read_export(Path(folder)), [Path(x) for x in changes], Path(folder))
    items = export.items
    columns = Table.by_columns(items.values, items.scales, items.steps, items.bits)
    return Model(**export._replace(items=columns)._asdict())
