"""Metrics of a ranking, from the ranks of the held-out items.

A metric is a pure function of the ranked pairs, registered under a name. `register` adds one from outside; it is then
computed by every evaluation, and shown in every table.
"""

import dataclasses
import importlib
import inspect
import operator
import re
from collections.abc import Callable, Container, Iterable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from htd_jax.errors import UserError, nearest, shown

CUTOFFS = (10, 20, 50)

Metrics = dict[str, jax.Array]


class RankedPairs(NamedTuple):
    """Held-out pairs (user, item), in the order of users and, within a user, of ranks.

    Attributes:
      ranks: `[n]` integers from 1.
      places: `[n]` integers, 1 for the user's best-ranked held-out item, 2 for the next.
      counts: `[n]` integers, the number of held-out items of the pair's user.
      ideal: `[n]` floats, the largest sum of 1 / log2(1 + rank) that k items of the pair's user can have.
      k: the cutoff.
    """

    ranks: jax.Array
    places: jax.Array
    counts: jax.Array
    ideal: jax.Array
    k: int


# Returns `[n]` floats; their sum over a user's hits, the pairs ranked k or better, is the user's metric.
Share = Callable[[RankedPairs], jax.Array]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A registered metric.

    Attributes:
      share: see `register`.
      shown: whether tables show it.
    """

    share: Share
    shown: bool = True


METRICS: dict[str, Metric] = {}


class NamedMetrics(dict[str, float]):
    """Metrics by name, which names those that there are if one is missing.

    >>> NamedMetrics({"recall@10": 0.3, "ndcg@10": 0.2})["recal@10"]
    Traceback (most recent call last):
    KeyError: "no metric 'recal@10'; did you mean recall@10? There are: recall@10, ndcg@10"
    """

    def __missing__(self, name: object) -> float:
        raise KeyError(f"no metric {name!r}{nearest(name, self)} There are: {', '.join(self)}")


def register(name: str, share: Share, *, shown: bool = True) -> None:
    """Adds a metric to every evaluation, as `name@k` for every cutoff k.

    Args:
      name: lower-case letters, digits, dashes and underscores.
      share: takes `RankedPairs` and returns `[n]` floats, the contribution of each pair to its user's metric. Pairs
        ranked worse than k contribute nothing, whatever it returns for them. A user's metric is the sum of the
        contributions; the metric is the mean over users who have a held-out item.
      shown: whether tables show it.

    Raises:
      ValueError: if the name is invalid or another metric has it.

    >>> register("hit", lambda pairs: jnp.where(pairs.places == 1, 1, 0))
    >>> print(ranking_metrics(jnp.array([[1, 7], [4, 99]]), jnp.ones((2, 2), bool), cutoffs=(2,))["hit@2"])
    0.5
    >>> del METRICS["hit"]
    """
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
        raise ValueError(f"{name!r} is no metric's name: use lower-case letters, digits, dashes and underscores")
    metric = Metric(share, shown)
    if METRICS.setdefault(name, metric) != metric:
        raise ValueError(f"another metric is registered as {name!r}")


# The metrics that `load_metric` has imported, as `package.module:function`. A name that stands in a file imports none.
LOADED: set[str] = set()


def load_metric(name: str) -> str:
    """Imports a metric that the user names as `package.module:function`, and registers it as `function`.

    Args:
      name: that name; `@k` may follow, as in the name of a metric to select epochs by.

    Returns:
      The name as registered: `function`, or `function@k`.

    Raises:
      UserError: if it cannot be imported, is no function, or another metric has its name.
    """
    path, at, cutoff = name.partition("@")
    module, _, function = path.partition(":")
    try:
        share = getattr(importlib.import_module(module), function)
        if not inspect.isfunction(share):
            raise TypeError(f"{function} is no function")
        if function not in METRICS:  # the module may register it itself
            register(function, share)
        elif METRICS[function].share is not share:
            raise ValueError(f"another metric is registered as {function!r}")
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"cannot import metric {shown(path)} ({error}); set `metric`") from None
    LOADED.add(path)
    return function + at + cutoff


register("recall", lambda pairs: 1 / pairs.counts)
register("ndcg", lambda pairs: 1 / jnp.log2(1.0 + pairs.ranks) / pairs.ideal)
register("mrr", lambda pairs: jnp.where(pairs.places == 1, 1 / pairs.ranks, 0), shown=False)
register("precision", lambda pairs: jnp.full(len(pairs.ranks), 1 / pairs.k), shown=False)
register("map", lambda pairs: pairs.places / pairs.ranks / pairs.counts, shown=False)


def shown_metrics(cutoffs: Iterable[int], recorded: Container[str] | None = None) -> list[str]:
    """Returns the metrics that tables show, in their order: `["recall@10", "recall@20", "ndcg@10", "ndcg@20"]`.

    Args:
      cutoffs: the values of k.
      recorded: if given, only these are returned: an older run does not record a metric that was registered later.
    """
    cutoffs = tuple(cutoffs)
    shown = [f"{name}@{k}" for name, metric in METRICS.items() if metric.shown for k in cutoffs]
    return [name for name in shown if recorded is None or name in recorded]


def ranking_metrics(ranks: chex.Array, where: chex.Array, cutoffs: Iterable[int] = CUTOFFS) -> Metrics:
    """Returns every registered metric at every cutoff, means over the users who have a held-out item.

    For a user with held-out items at the ranks r_1 <= r_2 <= ... <= r_n, those at k or better being the hits:

    - recall@k: the number of hits / n.
    - ndcg@k: the sum over hits of 1 / log2(1 + r), divided by its largest possible value, the sum of 1 / log2(1 + r)
      for r from 1 to min(n, k).
    - mrr@k: 1 / r_1 if that is a hit, else 0.
    - precision@k: the number of hits / k.
    - map@k: the sum over hits of j / r_j, divided by n (by n also where n > k, as in trec_eval's map_cut).

    Args:
      ranks: `[users, m]` integers from 1, the ranks of each user's held-out items in any order; held-out items count
        in one another's ranks.
      where: `[users, m]` bool, false where a user has fewer than m.
      cutoffs: the values of k.

    Returns:
      Scalars by name: `{"recall@10": ..., "ndcg@10": ..., ...}`; those above lie in [0, 1].

    Raises:
      ValueError: if ranks are not integers, or cutoffs are not whole numbers of at least 1.

    >>> import jax.numpy as jnp
    >>> metrics = ranking_metrics(jnp.array([[1], [4], [99]]), jnp.ones((3, 1), bool), cutoffs=(10,))
    >>> print({name: round(float(value), 3) for name, value in metrics.items()})
    {'recall@10': 0.667, 'ndcg@10': 0.477, 'mrr@10': 0.417, 'precision@10': 0.067, 'map@10': 0.417}
    """
    chex.assert_rank([ranks, where], 2)
    chex.assert_equal_shape([ranks, where])
    num_users, most = ranks.shape
    users = jnp.repeat(jnp.arange(num_users), most, total_repeat_length=num_users * most)
    return metrics_of_pairs(users, jnp.ravel(ranks), jnp.ravel(where), num_users, cutoffs)


def metrics_of_pairs(
    users: chex.Array, ranks: chex.Array, where: chex.Array, num_users: int, cutoffs: Iterable[int] = CUTOFFS
) -> Metrics:
    """Returns `ranking_metrics` of a flat list of held-out pairs, any number per user.

    Args:
      users: `[n]` integers in [0, num_users), the user of each pair, in any order.
      ranks: `[n]` integers from 1.
      where: `[n]` bool; masked pairs are ignored.
      num_users: static.
      cutoffs: the values of k.

    Raises:
      ValueError: see `ranking_metrics`.
    """
    _, held_out, shares = _shares(users, ranks, where, num_users, cutoffs)
    count = jnp.maximum((held_out > 0).sum(), 1)
    return {name: share.sum() / count for name, share in shares.items()}


def metrics_of_users(
    users: chex.Array, ranks: chex.Array, where: chex.Array, num_users: int, cutoffs: Iterable[int] = CUTOFFS
) -> Metrics:
    """Returns every metric of each user, `[num_users]` floats by name.

    A user without a held-out item has 0 everywhere; the mean over the others is `metrics_of_pairs`.

    Args, raises: see `metrics_of_pairs`.

    >>> import jax.numpy as jnp
    >>> users, ranks = jnp.array([0, 2, 2]), jnp.array([3, 1, 99])
    >>> print(metrics_of_users(users, ranks, jnp.ones(3, bool), 3, cutoffs=(10,))["recall@10"])
    [1.  0.  0.5]
    """
    users, _, shares = _shares(users, ranks, where, num_users, cutoffs)
    sum_by_user = lambda share: jax.ops.segment_sum(share, users, num_users, indices_are_sorted=True)
    return {name: sum_by_user(share) for name, share in shares.items()}


def _shares(
    users: chex.Array, ranks: chex.Array, where: chex.Array, num_users: int, cutoffs: Iterable[int]
) -> tuple[jax.Array, jax.Array, Metrics]:
    """Returns every metric of a user as a sum over its pairs, so that no users x items array is needed.

    Returns:
      `[n]`, the user of each pair, ascending; `[num_users]`, the number of pairs of each user; and by metric `[n]`, the
      contribution of each pair.
    """
    cutoffs = check_cutoffs(cutoffs)
    chex.assert_rank([users, ranks, where], 1)
    chex.assert_equal_shape([users, ranks, where])
    if not jnp.issubdtype(ranks.dtype, jnp.integer):
        raise ValueError(f"`ranks` must be integers, not {ranks.dtype}")
    # Short integers have no room for the rank of a masked pair, nor for the cutoffs.
    ranks = jnp.asarray(ranks).astype(jnp.promote_types(ranks.dtype, jnp.int32))
    last = jnp.iinfo(ranks.dtype).max
    users, where = jnp.asarray(users), jnp.asarray(where, bool)
    users, ranks, where = jax.lax.sort((users, jnp.where(where, ranks, last), ~where), num_keys=3)
    where = ~where
    slots = jax.ops.segment_sum(jnp.ones_like(users), users, num_users, indices_are_sorted=True)
    held_out = jax.ops.segment_sum(where.astype(jnp.int32), users, num_users, indices_are_sorted=True)
    places = jnp.arange(1, 1 + len(users)) - (jnp.cumsum(slots) - slots)[users]
    counts = jnp.maximum(held_out[users], 1)
    longest = max(1, min(max(cutoffs), len(users)))
    ideal = jnp.cumsum(1 / jnp.log2(1.0 + jnp.arange(1, 1 + longest)))
    shares: Metrics = {}
    for k in cutoffs:
        largest = min(k, last)
        hits = where & (ranks <= largest)
        pairs = RankedPairs(ranks, places, counts, ideal[jnp.minimum(counts, largest) - 1], largest)
        shares |= {f"{name}@{k}": jnp.where(hits, metric.share(pairs), 0) for name, metric in METRICS.items()}
    return users, held_out, shares


def check_cutoffs(cutoffs: Iterable[int]) -> tuple[int, ...]:
    """Returns the cutoffs as ints.

    Raises:
      ValueError: if there is none, or one is not a whole number of at least 1.
    """
    try:
        checked = tuple(operator.index(k) for k in cutoffs if not isinstance(k, bool))
        whole = len(checked) == len(tuple(cutoffs))
    except TypeError:
        checked, whole = (), False
    if not whole or not checked or min(checked) < 1:
        raise ValueError(f"`cutoffs` must be whole numbers of at least 1, and at least one, not {cutoffs!r}")
    return checked
