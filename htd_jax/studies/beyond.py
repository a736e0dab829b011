"""Recall by items and by users, and the character of lists, which an average recall hides.

Lists are `[users, k]` rows of items, the best first, -1 where a user has fewer, as `htd_jax.serving.best_items` returns
them.
"""

import dataclasses
from collections.abc import Iterable

import chex
import jax
import numpy as np

from htd_jax.data import Interactions
from htd_jax.data.summary import gini
from htd_jax.evaluation import CUTOFFS, metrics_of_pairs
from htd_jax.studies.overlaps import PERSISTENCE, overlap, rank_biased_overlap

# Thirds of interactions by the popularity of items, and of users by their activity.
POPULARITY = ("head", "middle", "tail")
ACTIVITY = ("least", "middle", "most")


@dataclasses.dataclass(frozen=True)
class Third:
    """The metrics of a third of the held-out pairs.

    Attributes:
      name: one of `POPULARITY` or `ACTIVITY`.
      size: the number of items, or users, in it.
      users: the number of users with a held-out pair in it, over whom metrics are means.
      pairs: the number of held-out pairs.
      metrics: `{"recall@10": ..., ...}`.
    """

    name: str
    size: int
    users: int
    pairs: int
    metrics: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Character:
    """The character of a model's lists.

    Attributes:
      k: the length of lists.
      coverage: the share of the catalogue that is in a list.
      gini: the Gini coefficient of how often each item of the catalogue is in a list: 0 if all are equally often.
      popularity: the mean over users of the mean training count of the items in a list; users without a list are left
        out.
      history_popularity: the same for a user's training items.
      catalogue_popularity: the mean training count of all items.
      above_history, above_catalogue: `popularity` divided by these; None where they are 0.
    """

    k: int
    coverage: float
    gini: float
    popularity: float
    history_popularity: float
    catalogue_popularity: float
    above_history: float | None
    above_catalogue: float | None


@dataclasses.dataclass(frozen=True)
class Likeness:
    """The similarity of two models' lists, as means over users.

    Attributes:
      overlap: see `htd_jax.studies.overlaps.overlap`.
      rank_biased: see `htd_jax.studies.overlaps.rank_biased_overlap`.
      p: its persistence.
    """

    overlap: float
    rank_biased: float
    p: float


def popularity_thirds(train: Interactions) -> np.ndarray:
    """Returns the third of the training interactions that each item belongs to: `[num_items]`, 0 head, 2 tail.

    Items are ordered by training count, largest first, then by number. With n interactions in all, an item after c
    interactions of earlier items is in the head if c < n / 3, in the middle if n / 3 <= c < 2 n / 3, else in the tail:
    the head is the fewest items that hold a third of all interactions.

    >>> train = Interactions.from_pairs([0, 1, 2, 0, 1, 2], [3, 3, 3, 0, 0, 1], 3, 4)
    >>> popularity_thirds(train).tolist()  # 3 has three of six, 0 two, 1 one
    [1, 2, 2, 0]
    """
    counts = _counts(train)
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    thirds = np.empty(train.num_items, np.int64)
    thirds[order] = np.where(3 * before < len(train), 0, np.where(3 * before < 2 * len(train), 1, 2))
    return thirds


def activity_thirds(train: Interactions, users: chex.Array) -> np.ndarray:
    """Returns the third by activity that each user belongs to: `[n]`, 0 least, 1 middle, 2 most active.

    Users are ordered by number of training interactions, then as given, and cut into three parts whose sizes differ by
    at most one.

    Args:
      users: `[n]` integers in [0, num_users), each once.

    >>> train = Interactions.from_pairs([0, 1, 1, 1, 2, 2], [0, 0, 1, 2, 0, 1], 3, 3)
    >>> activity_thirds(train, np.array([0, 1, 2])).tolist()
    [0, 2, 1]
    """
    users = np.asarray(users)
    order = np.argsort(np.diff(np.asarray(train.offsets))[users], kind="stable")
    thirds = np.empty(len(users), np.int64)
    thirds[order] = 3 * np.arange(len(users)) // max(1, len(users))
    return thirds


def by_popularity(
    train: Interactions, held_out: Interactions, ranks: chex.Array, cutoffs: Iterable[int] = CUTOFFS
) -> list[Third]:
    """Returns the metrics of held-out items in thirds by popularity: head, middle and tail, see `popularity_thirds`.

    A third's metrics are those of its own held-out items at their ranks, as means over the users who have one.

    Args:
      train: the interactions whose counts are popularity.
      held_out: the held-out pairs.
      ranks: `[n]` integers from 1, the pairs' ranks, see `htd_jax.evaluation.make_ranker`.
      cutoffs: the k of every metric, see `htd_jax.evaluation.ranking_metrics`.

    Raises:
      AssertionError, ValueError: see `htd_jax.evaluation.metrics_of_pairs`.
    """
    thirds = popularity_thirds(train)
    sizes = np.bincount(thirds, minlength=3)
    return _parts(POPULARITY, sizes, thirds[np.asarray(held_out.items)], held_out, ranks, cutoffs)


def by_activity(
    train: Interactions, held_out: Interactions, ranks: chex.Array, cutoffs: Iterable[int] = CUTOFFS
) -> list[Third]:
    """Returns the metrics of users with a held-out item in thirds by activity, see `activity_thirds` and
    `by_popularity`."""
    users = np.unique(np.asarray(held_out.users))
    thirds = np.zeros(held_out.num_users, np.int64)
    thirds[users] = activity_thirds(train, users)
    sizes = np.bincount(thirds[users], minlength=3)
    return _parts(ACTIVITY, sizes, thirds[np.asarray(held_out.users)], held_out, ranks, cutoffs)


def character(lists: chex.Array, train: Interactions, users: chex.Array | None = None) -> Character:
    """Returns the character of lists: how much of the catalogue they show, how evenly, and how popular it is.

    Source: average recommendation popularity and popularity lift after Abdollahpouri et al., "Managing Popularity Bias
    in Recommender Systems with Personalized Re-ranking", FLAIRS'19, and "The Connection Between Popularity Bias,
    Calibration, and Fairness in Recommendation", RecSys'20; the lift is here a ratio.

    Args:
      lists: `[n, k]` integers in [-1, num_items), the -1s after the items.
      train: the interactions whose counts are popularity.
      users: `[n]`, the user of each list; all users in their order if None.

    Raises:
      ValueError: if lists have another shape or type, or another number than users.

    >>> train = Interactions.from_pairs([0, 0, 1], [0, 1, 0], 2, 4)
    >>> found = character(np.array([[2, 0], [1, 2]]), train)
    >>> found.coverage, found.popularity, found.history_popularity
    (0.75, 0.75, 1.75)
    """
    rows = _check(lists, train.num_items)
    users = np.arange(train.num_users) if users is None else np.asarray(users)
    if users.shape != (len(rows),):
        raise ValueError(f"users: expected one per list, [{len(rows)}], got {list(users.shape)}")
    counts = _counts(train)
    shown = np.bincount(rows[rows >= 0], minlength=train.num_items)
    lengths = (rows >= 0).sum(1)
    in_lists = np.where(rows >= 0, counts[np.maximum(rows, 0)], 0).sum(1) / np.maximum(lengths, 1)
    degrees = np.diff(np.asarray(train.offsets))
    sums = np.bincount(np.asarray(train.users), counts[np.asarray(train.items)], minlength=train.num_users)
    in_histories = (sums / np.maximum(degrees, 1))[users]
    counted = (lengths > 0) & (degrees[users] > 0)
    mean = lambda values: float(values[counted].mean()) if counted.any() else 0.0
    popularity, history, catalogue = mean(in_lists), mean(in_histories), len(train) / max(1, train.num_items)
    times = lambda level: popularity / level if level else None
    return Character(
        k=rows.shape[1],
        coverage=float(np.mean(shown > 0)),
        gini=gini(shown),
        popularity=popularity,
        history_popularity=history,
        catalogue_popularity=catalogue,
        above_history=times(history),
        above_catalogue=times(catalogue),
    )


def likeness(first: chex.Array, second: chex.Array, *, p: float = PERSISTENCE) -> Likeness:
    """Returns the similarity of the lists of two models for the same users, such as teacher and student.

    See `htd_jax.studies.overlaps.rank_biased_overlap`.
    """
    mean = lambda values: float(values.mean()) if len(values) else 0.0
    return Likeness(mean(overlap(first, second)), mean(rank_biased_overlap(first, second, p=p)), p)


def _parts(
    names: tuple[str, ...],
    sizes: np.ndarray,
    third: np.ndarray,
    held_out: Interactions,
    ranks: chex.Array,
    cutoffs: Iterable[int],
) -> list[Third]:
    """Returns the metrics of each third; `third` `[n]` is that of each pair."""
    cutoffs, users = tuple(cutoffs), np.asarray(held_out.users)
    found = []
    for number, name in enumerate(names):
        own = third == number
        metrics = metrics_of_pairs(held_out.users, ranks, own, held_out.num_users, cutoffs)
        plain = jax.tree.map(float, metrics)
        found.append(Third(name, int(sizes[number]), len(np.unique(users[own])), int(own.sum()), plain))
    return found


def _counts(train: Interactions) -> np.ndarray:
    """Returns the number of training pairs of each item: `[num_items]`."""
    return np.bincount(np.asarray(train.items), minlength=train.num_items)


def _check(lists: chex.Array, num_items: int) -> np.ndarray:
    rows = np.asarray(lists)
    if rows.ndim != 2 or rows.dtype.kind not in "iu":
        raise ValueError(f"lists: expected integers [n, k], got {rows.dtype}{list(rows.shape)}")
    if rows.size and not -1 <= rows.min() <= rows.max() < num_items:
        raise ValueError(f"lists: expected items in [-1, {num_items}), got {rows.min()} to {rows.max()}")
    return rows
