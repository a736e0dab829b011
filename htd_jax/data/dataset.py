"""A data set: interactions in three parts, and the ids of its users and items."""

import dataclasses
import functools

import numpy as np

from htd_jax.data.ids import Ids
from htd_jax.data.interactions import Interactions, Split
from htd_jax.errors import UserError
from htd_jax.showing import Look, Shown


@dataclasses.dataclass(frozen=True, repr=False)
class Dataset(Shown):
    """Interactions in three parts, and the ids of users and items.

    Attributes:
      split: train, valid and test over rows.
      users, items: the ids of the rows.
      name: name for output, and for the run's folder.
      notes: remarks on how it was read, a line each.
      span: first and last time, in the log's own unit, dates in seconds since 1970; None if unknown.
      new_users: `[n]` ascending int64, users whose pairs in train are known when items are ranked for them, but are
        not learned from; None if there are none.
      block: the pairs of train that models are trained on, of data that have grown; None for all of them.
    """

    split: Split
    users: Ids
    items: Ids
    name: str = "data"
    notes: tuple[str, ...] = ()
    span: tuple[float, float] | None = None
    new_users: np.ndarray | None = None
    block: Interactions | None = None

    @classmethod
    def from_split(cls, split: Split, name: str = "data") -> "Dataset":
        """Returns a split's data set, in which ids are row numbers."""
        return cls(split, Ids.numbers(split.train.num_users, "user"), Ids.numbers(split.train.num_items, "item"), name)

    def look(self) -> Look:
        parts = [(name, len(part), len(np.unique(part.users))) for name, part in self.split._asdict().items()]
        examples = [f"{ids.kind}s like {ids.values[0].as_py()!r}" for ids in (self.users, self.items) if len(ids)]
        lines = [f"{sum(part[1] for part in parts):,} interactions; {', '.join(examples)}"]
        title = f"Dataset {self.name}: {len(self.users):,} users, {len(self.items):,} items"
        return Look(title, lines, ("part", "interactions", "users"), parts)

    @property
    def train(self) -> Interactions:
        return self.split.train

    @functools.cached_property
    def learned(self) -> Interactions:
        """What models are trained on: train, without the pairs of `new_users`, and with `block`."""
        if self.block is not None:
            return self.train.replace(block=self.block)  # type: ignore[attr-defined,no-any-return]
        if self.new_users is None:
            return self.train
        users, items = (np.asarray(column) for column in (self.train.users, self.train.items))
        known = ~np.isin(users, self.new_users)
        return Interactions.from_pairs(users[known], items[known], self.train.num_users, self.train.num_items)

    def tested(self) -> "Dataset":
        """Returns the data set, which is to be trained and tested on.

        Raises:
          UserError: if it has no test part.
        """
        if not len(self.test):
            raise UserError(f"{self.name}: nothing is held out for test; set another `split` than none")
        return self

    @property
    def valid(self) -> Interactions:
        return self.split.valid

    @property
    def test(self) -> Interactions:
        return self.split.test
