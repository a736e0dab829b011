"""A synthetic data set, for a first run without a download."""

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Interval

from htd_jax.data.interactions import Split, make_split
from htd_jax.data.source import Source


@dataclasses.dataclass(frozen=True)
class Synthetic(Source):
    """Synthetic data with planted preferences, split leave-one-out; independent of the run's seed."""

    seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0
    """Seed of the data."""
    users: Annotated[int, Ge(1)] = 1000
    """Number of users."""
    items: Annotated[int, Ge(100)] = 1500
    """Number of items."""

    def load(self, data_dir: Path | None = None) -> Split:
        return make_synthetic(self.seed, num_users=self.users, num_items=self.items)


def make_synthetic(
    seed: int = 0,
    *,
    num_users: int = 1000,
    num_items: int = 1500,
    num_groups: int = 100,
    groups_per_user: int = 3,
    mean_degree: int = 15,
) -> Split:
    """Returns users and items in planted preference groups with long-tailed popularity, split leave-one-out.

    Every item belongs to one group, and its popularity falls as a power of its rank (exponent 0.8). A user likes a few
    groups to different degrees (Dirichlet) and samples items without replacement: a group by liking, then an item in it
    by popularity; one sample in ten ignores the groups. Degrees are geometric and at least five. One item per user is
    held out for validation and one for test, at random. There are more groups than a small student has dimensions, and
    few observations per user, so a wide model recovers more of the groups than a narrow one.

    Args:
      seed: an integer of at least 0.
      num_users, num_items, num_groups, groups_per_user, mean_degree: sizes.

    Returns:
      A `Split`, the same for the same arguments.
    """
    rng = np.random.default_rng([seed, 20210814])
    group_of_item = rng.integers(num_groups, size=num_items)
    popularity = (1 + rng.permutation(num_items)) ** -0.8
    parts: list[list[tuple[int, int]]] = [[], [], []]
    for user in range(num_users):
        degree = min(5 + rng.geometric(1 / (mean_degree - 4)) - 1, num_items // 10)
        liking = np.zeros(num_groups)
        liking[rng.choice(num_groups, groups_per_user, replace=False)] = rng.dirichlet(np.ones(groups_per_user))
        appeal = popularity * (0.9 * num_groups * liking[group_of_item] + 0.1)
        # The `degree` largest of log weight plus Gumbel noise: sampling without replacement.
        with np.errstate(divide="ignore"):
            items = np.argsort(np.log(appeal) + rng.gumbel(size=num_items))[-degree:]
        rng.shuffle(items)
        for part, chosen in zip(parts, (items[2:], items[:1], items[1:2])):
            part.extend((user, item) for item in chosen)
    train, valid, test = (tuple(np.array(part).T) for part in parts)
    return make_split(train, valid, test, num_users, num_items)
