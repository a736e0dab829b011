"""The function from interactions to rows, `htd_jax.serve.fold.RowMap`, fitted to the trained rows of the same side,
whatever loss they were trained with."""

import jax.numpy as jnp
import numpy as np

from htd_jax.data import Dataset, Interactions
from htd_jax.ops.precision import Rows, encoded
from htd_jax.serve.fold import RowMap, features, summarise
from htd_jax.serve.rank import Hidden
from htd_jax.serving.topk import best_items

# The largest number of trained rows that a map is fitted to.
FITTED = 8192

# Ridges of the fit, relative to the variance of a feature; the one with the smallest leave-one-out error is taken.
FIT_RIDGES = 10.0 ** np.arange(-6, 4)

# The length k of the lists whose items `_length_factors` counts, the largest number of users whose lists are compared,
# and the number of places in lists below which a count is mostly chance.
LISTED, COMPARED, CHANCE = 20, 1024, 20


def fit_map(mine: Rows, other: Rows, known: Interactions, side: str) -> RowMap | None:
    """Fits a map to the trained rows of a side.

    At most FITTED rows are taken, evenly from every octave of the number of interactions; an octave weighs the square
    root of its rows' number. The fit is a ridge regression, whose ridge has the smallest leave-one-out error. A
    regression shortens what it cannot predict, and an item's places in lists depend on its length, so the items of each
    octave are scaled until they stand in as many lists as their trained rows.

    Args:
      mine, other: the tables of this side and of the other.
      known: the pairs that the tables were trained on.
      side: `users` or `items`.

    Returns:
      The map; None if no pair is known.
    """
    pairs = (known.users, known.items) if side == "users" else (known.items, known.users)
    owners, entries = (np.asarray(column) for column in pairs)
    order = np.argsort(owners, kind="stable")
    present, starts, counts = np.unique(owners[order], return_index=True, return_counts=True)
    if not len(present):
        return None
    entries = entries[order]
    octaves = np.log2(counts)
    groups = [np.flatnonzero(octaves.astype(int) == octave) for octave in np.unique(octaves.astype(int))]
    each = max(1, FITTED // len(groups))
    groups = [group[np.unique(np.linspace(0, len(group) - 1, min(each, len(group))).astype(int))] for group in groups]
    chosen = np.concatenate(groups)
    lists = [entries[starts[i] : starts[i] + counts[i]] for i in chosen]
    importance = np.concatenate([np.full(len(group), len(group) ** -0.5) for group in groups])
    x = features(*summarise(other, lists), octaves[chosen])
    trained = np.asarray(mine.take(jnp.asarray(present[chosen])).floats(), np.float64)
    weights = _regress(x, trained, importance).astype(np.float32)
    at = np.array([octaves[group].mean() for group in groups])
    factors = np.ones(len(groups))
    if side == "items":
        parts = np.split(np.arange(len(chosen)), np.cumsum([len(group) for group in groups])[:-1])
        factors = _length_factors(trained, x @ weights, lists, parts, other, mine, known)
    return RowMap(weights, np.stack([at, factors]).astype(np.float32))


def fold_new_users(users: Rows, items: Rows, dataset: Dataset) -> Rows:
    """Returns the table of users with rows of `dataset.new_users` that are made from their known items, by `fit_map` of
    the other users; a user without items has the mean row."""
    if dataset.new_users is None:
        return users
    offsets, entries = (np.asarray(x) for x in (dataset.train.offsets, dataset.train.items))
    lists = [entries[offsets[user] : offsets[user + 1]] for user in dataset.new_users]
    some = np.array([len(rows) > 0 for rows in lists], bool)
    others = np.setdiff1d(np.arange(len(users)), dataset.new_users)
    made = np.tile(np.asarray(users.take(jnp.asarray(others)).floats()).mean(0), (len(lists), 1))
    row_map = fit_map(users, items, dataset.learned, "users")
    if row_map is not None and some.any():
        made[some] = row_map.rows(items, [rows for rows in lists if len(rows)])
    new = encoded(jnp.asarray(made, jnp.float32), users.precision, users.steps)
    at = jnp.asarray(dataset.new_users)
    scales = None if users.scales is None or new.scales is None else users.scales.at[at].set(new.scales)
    return Rows(users.values.at[at].set(new.values), scales, users.steps, users.bits)


def _regress(x: np.ndarray, y: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Returns weights `[p, d]` of a ridge regression of `y` `[n, d]` on `x` `[n, p]`, whose first column is 1.

    The constant is not penalised, and features are compared by their standard deviation.
    """
    share = importance / importance.sum()
    largest = np.maximum(np.abs(y).max(initial=0), np.finfo(np.float64).tiny)
    y = y / largest
    centre, goal = share @ x, share @ y
    spread = np.sqrt(share @ (x - centre) ** 2)
    used = spread > 1e-6 * np.abs(x).max(initial=0)  # of a constant only rounding is left
    spread = np.where(used, spread, 1)
    features = np.where(used, (x - centre) / spread, 0)
    values, vectors = np.linalg.eigh((features * share[:, None]).T @ features)
    values, turned = np.maximum(values, 0), features @ vectors
    along = (turned * share[:, None]).T @ (y - goal)
    error, best = np.inf, np.zeros_like(along)
    for ridge in FIT_RIDGES:
        solved = along / (values + ridge)[:, None]
        leverage = share * (1 + (turned**2 / (values + ridge)).sum(1))
        left_out = (y - goal - turned @ solved) / np.maximum(1 - leverage, 1e-9)[:, None]
        if (now := float(share @ (left_out**2).sum(1))) < error:
            error, best = now, solved
    weights = (vectors @ best) / spread[:, None] * used[:, None]
    weights[0] += goal - centre @ weights
    return weights * largest


def _length_factors(
    trained: np.ndarray,
    rows: np.ndarray,
    lists: list[np.ndarray],
    parts: list[np.ndarray],
    users: Rows,
    items: Rows,
    known: Interactions,
) -> np.ndarray:
    """Returns the factor of each part of the new items with which they reach as many users' lists as trained ones.

    An item reaches a user's list if its score is at least that of the LISTED-th best item that the user has not seen.
    The fewer places there are to count, the nearer the factor stays to 1.

    Args:
      trained, rows: `[n, d]`, trained rows of items, and those to be scaled.
      lists: the users of each item, who are not counted.
      parts: numbers of the rows per part.
      users, items: the tables.
      known: the pairs that lists leave out.
    """
    some = np.unique(np.linspace(0, len(users) - 1, min(COMPARED, len(users))).astype(int))
    tops = best_items(users, items, LISTED, rows=some, hidden=Hidden.from_interactions(known))
    bars = np.concatenate([top.scores[:, -1] for top in tops]).astype(np.float64)
    reached = bars > 0  # a longer row comes nearer to such a bar; -infinity is the end of a shorter list
    some, bars = some[reached], bars[reached]
    if not len(some):
        return np.ones(len(parts))
    table = np.asarray(users.take(jnp.asarray(some)).floats(), np.float64) / bars[:, None]
    factors = []
    for part in parts:
        own = [np.searchsorted(some, lists[i]) for i in part]
        own = [at[(at < len(some)) & (some[np.minimum(at, len(some) - 1)] == lists[i])] for at, i in zip(own, part)]
        owner = np.repeat(np.arange(len(part)), [len(at) for at in own])
        scores = []
        for x in (trained[part], rows[part]):
            score = x @ table.T
            score[owner, np.concatenate(own)] = -np.inf
            scores.append(score.ravel())
        wanted, found = (int((score >= 1 - 1e-6).sum()) for score in scores)
        wanted = round((wanted**2 + found * CHANCE) / (wanted + CHANCE))
        if not 0 < wanted < scores[1].size:
            factors.append(1.0)
            continue
        at = -np.partition(-scores[1], wanted - 1)[wanted - 1]
        factors.append(float(np.clip(1 / at, 0.5, 2)) if at > 0 else 1.0)
    return np.array(factors)
