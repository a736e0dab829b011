"""What a data set looks like, in numbers."""

from typing import NamedTuple

import numpy as np

from htd_jax.data.dataset import Dataset


class Summary(NamedTuple):
    """Counts of a data set.

    Attributes:
      users, items, interactions: of all three parts.
      parts: interactions of train, valid and test.
      density: interactions / (users x items).
      per_user, per_item: interactions of each, in falling order.
      gini: of items' interactions: 0 if all have the same number, near 1 if a few have all.
      head: the share of the interactions that the most popular fifth of the items has.
      cold_users, cold_items: without an interaction in train.
    """

    users: int
    items: int
    interactions: int
    parts: tuple[int, int, int]
    density: float
    per_user: np.ndarray
    per_item: np.ndarray
    gini: float
    head: float
    cold_users: int
    cold_items: int


def summarise(data: Dataset) -> Summary:
    """Counts of a data set.

    >>> from htd_jax.data import Dataset, make_synthetic, summarise
    >>> counts = summarise(Dataset.of_split(make_synthetic(num_users=50, num_items=120)))
    >>> counts.users, counts.items, counts.parts[1:]
    (50, 120, (50, 50))
    """
    of = lambda side: np.concatenate([np.asarray(getattr(part, side)) for part in data.split])
    users, items = len(data.users), len(data.items)
    per_user, per_item = np.bincount(of("users"), minlength=users), np.bincount(of("items"), minlength=items)
    count = int(per_user.sum())
    rising = np.sort(per_item).astype(np.float64)
    rank = np.arange(1, items + 1)
    gini = float(((2 * rank - items - 1) * rising).sum() / (items * rising.sum()))
    train = data.train
    return Summary(
        users=users,
        items=items,
        interactions=count,
        parts=(len(train), len(data.valid), len(data.test)),
        density=count / (users * items),
        per_user=np.sort(per_user)[::-1],
        per_item=rising[::-1].astype(int),
        gini=gini,
        head=float(rising[::-1][: max(1, items // 5)].sum() / count),
        cold_users=users - len(np.unique(np.asarray(train.users))),
        cold_items=items - len(np.unique(np.asarray(train.items))),
    )
