"""Statistics of a data set."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from htd_jax.data.dataset import Dataset


class Summary(NamedTuple):
    """Counts of a data set.

    Attributes:
      users, items, interactions: of all three parts.
      parts: interactions of train, valid and test.
      density: interactions / (users x items).
      per_user, per_item: interactions of each, in descending order.
      gini: Gini coefficient of the items' interactions, see `gini`.
      head: the share of the interactions that the most popular fifth of the items has.
      cold_users, cold_items: number of users and of items without an interaction in train.
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
    """Returns counts of a data set.

    >>> from htd_jax.data import Dataset, make_synthetic, summarise
    >>> counts = summarise(Dataset.from_split(make_synthetic(num_users=50, num_items=120)))
    >>> counts.users, counts.items, counts.parts[1:]
    (50, 120, (50, 50))
    """
    column = lambda side: np.concatenate([np.asarray(getattr(part, side)) for part in data.split])
    users, items = len(data.users), len(data.items)
    per_user, per_item = np.bincount(column("users"), minlength=users), np.bincount(column("items"), minlength=items)
    count = int(per_user.sum())
    train, falling = data.train, np.sort(per_item)[::-1]
    return Summary(
        users=users,
        items=items,
        interactions=count,
        parts=(len(train), len(data.valid), len(data.test)),
        density=count / (users * items),
        per_user=np.sort(per_user)[::-1],
        per_item=falling,
        gini=gini(per_item),
        head=float(falling[: max(1, items // 5)].sum() / count),
        cold_users=users - len(np.unique(np.asarray(train.users))),
        cold_items=items - len(np.unique(np.asarray(train.items))),
    )


def gini(counts: ArrayLike) -> float:
    r"""Returns the Gini coefficient of `[n]` numbers of at least 0.

    .. math:: \frac{1}{n \sum x} \sum_{i=1}^{n} (2 i - n - 1) x_i

    with x in ascending order: 0 if all are equal, 1 - 1 / n if one has everything; 0 if all are 0.

    >>> gini([1, 1, 1]), gini([0, 0, 5, 0])
    (0.0, 0.75)
    """
    x = np.sort(np.asarray(counts, np.float64))
    if not x.sum():
        return 0.0
    return float((2 * np.arange(1, 1 + len(x)) - len(x) - 1) @ x / (len(x) * x.sum()))
