"""What a teacher's rankings tell about it: whether its rows fit the data, and whether it has seen what is held out."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from htd_jax.data import Interactions, Split
from htd_jax.errors import UserError
from htd_jax.teacher import Teacher

# The users that are sampled, the scores that are computed for them at most (64 MiB), and the seed of both samples.
USERS, SCORES, SEED = 500, 2**24, 0

# Scores that a teacher with a function of its own computes at once.
BLOCK = 2**20

# An item is a hit among this many of a user's best, or among a twentieth of all items if that is less.
BEST = 50

# A teacher has seen held-out items if it finds at least this share of what it finds of training items, and its odds of
# finding them are this many times those of item neighbours, computed from the training items alone. Lists without
# training items have only the second sign. For measurements see docs/teachers.md.
ALIKE, ABOVE, FAR_ABOVE = 0.8, 3.0, 6.0

# Rankings are in another order than the data only if they are personal, in that users disagree on at least this share
# of the pairs of items that both have ranked; and if a user's own items gain less than this share by the own scores,
# by three standard errors. Or, for lists, if a user's own list is nearer than less than this share of others' lists.
PERSONAL, GAIN, SURE, CLOSER = 0.2, 0.05, 3.0, 0.6

# The users whose pairs tell something, at least.
FEWEST = 100

# Lists leave out held-out items if they hold less than a tenth of those that others' lists hold, which are so many.
LEFT_OUT = 10

# Training pairs from which item neighbours are computed at most: some seconds for the largest data.
PAIRS = 2**20


class Sampled(NamedTuple):
    """Some users and their scores: `[n]` and `[n, num_items]`."""

    users: np.ndarray
    scores: np.ndarray


# What to do about rows in another order, where files are given.
GIVE_IDS = "set `teacher_user_ids` and `teacher_item_ids` to the ids of its rows"


def notes_on_fit(teacher: Teacher, split: Split, *, advice: str = GIVE_IDS) -> tuple[str, ...]:
    """Returns a note if the teacher ranks a user's own items no better than another user does, its lists leave out what
    is held out, or it ranks as if it had been trained on held-out items; else nothing.

    A sample of users is scored once: at most 2^24 scores, whatever the size of the data.

    Args:
      advice: what to do about rows in another order.

    Raises:
      UserError: if a score is not a number.
    """
    sampled = _score(teacher, split)
    if sampled is None:
        return ()
    if teacher.scores is None and (note := _note_on_left_out(sampled, split)):
        return (note,)
    # Lists may leave out what was seen in training.
    shown = split.train if teacher.scores is not None else split.valid
    if note := _note_on_order(teacher, sampled, shown, split.train, advice):
        return (note,)
    return _notes_on_leaks(sampled, split)


def _score(teacher: Teacher, split: Split) -> Sampled | None:
    """Scores a sample of the users who have held-out items of either kind."""
    train = split.train
    users = np.flatnonzero(np.diff(split.valid.offsets) + np.diff(split.test.offsets))
    users = np.random.default_rng(SEED).permutation(users)[: max(min(USERS, SCORES // train.num_items), 2)]
    if len(users) < 2:
        return None
    if teacher.inner_product and teacher.representations is not None:
        table, items = map(np.asarray, teacher.representations)
        scores = table[users] @ items.T
    elif teacher.scores is not None:
        blocks = np.split(users, range(0, len(users), max(1, BLOCK // train.num_items))[1:])
        scored = [np.asarray(teacher.scores(jnp.asarray(block, jnp.int32)), np.float32) for block in blocks]
        scores = np.concatenate(scored)
    elif teacher.lists is not None:
        lists = np.asarray(teacher.lists.items)[users]
        scores = np.zeros((len(users), train.num_items + 1), np.float32)
        rows = np.arange(len(users))[:, None]
        scores[rows, lists[:, ::-1]] = np.arange(1, lists.shape[1] + 1, dtype=np.float32)[None]  # -1 is the last column
        scores = scores[:, :-1]
    else:
        return None
    if np.isnan(scores).any() or np.isposinf(scores).any():
        row = users[np.argwhere(np.isnan(scores) | np.isposinf(scores))[0, 0]]
        raise UserError(f"the teacher's scores of user {row}, counted from 0, are not finite")
    return Sampled(users, scores)


def _note_on_left_out(sampled: Sampled, split: Split) -> str | None:
    """Compares how many held-out items are in their user's own list and in another user's."""
    for name, part in (("validation", split.valid), ("test", split.test)):
        rows, items = _pairs(part, sampled.users)
        own, other = (int((sampled.scores[at, items] > 0).sum()) for at in (rows, rows - 1))
        if other >= LEFT_OUT and LEFT_OUT * own < other:
            return (
                f"its lists leave out the {name} items: of {len(items)}, {own} are in their user's own list and "
                f"{other} in another user's, so that its figures mean nothing; write lists that leave out the "
                "training items alone, as `seen` train does"
            )
    return None


def _note_on_order(
    teacher: Teacher, sampled: Sampled, shown: Interactions, train: Interactions, advice: str
) -> str | None:
    """Compares how often a user's own item is above one of anybody's, by its own scores and by another user's.

    The other item is sampled from all training pairs, so that a popular item is no surprise. There is a note only if
    something speaks for another order: that nothing speaks against it proves little where there are few pairs, short
    lists, or a teacher of popularity.
    """
    rows, items = _pairs(shown, sampled.users)
    if not len(rows):
        return None
    rng = np.random.default_rng(SEED)
    others = rng.choice(np.asarray(train.items), len(items))
    differ = items != others
    rows, items, others = rows[differ], items[differ], others[differ]
    scores = sampled.scores

    def signs(score: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        return np.sign(score(rows, items) - score(rows, others))

    own = signs(lambda rows, items: scores[rows, items])
    shuffled = signs(lambda rows, items: scores[rows - 1, items])
    told = (own != 0) | (shuffled != 0)  # items that no list holds tell nothing
    if not told.any():
        return None
    wins = lambda sign: float(np.mean(sign[told]) / 2 + 0.5)
    gain = wins(own) - wins(shuffled)
    error = _error((own - shuffled)[told] / 2, rows[told])
    moved = {
        f"row r of its {side}s seems to be that of the {'next' if step > 0 else 'previous'} {side}": signs(score)
        for side, step, score in _moved(teacher, sampled.users)
    }
    hint = max(moved, key=lambda hint: wins(moved[hint]), default="")
    if hint:
        better = [
            wins(moved[hint]) - wins(other) - SURE * _error((moved[hint] - other)[told] / 2, rows[told])
            for other in (own, shuffled)
        ]
        if wins(moved[hint]) > max(wins(own), wins(shuffled)) + GAIN and min(better) > 0:
            found = (
                f"a user's own item is above another in {wins(moved[hint]):.0%} of pairs, as given in {wins(own):.0%}"
            )
            return f"{hint}: then {found}"
    if len(np.unique(rows[told])) < FEWEST:
        return None
    foreign = gain + SURE * error < GAIN
    if not foreign and teacher.scores is None and gain < 2 * error:  # lists hold few of the items that are held out
        closer = _closer_to_neighbours(sampled, train)
        foreign = bool(np.mean(closer) + SURE * max(np.std(closer), 0.25) / len(closer) ** 0.5 < CLOSER)
    if not foreign or _disagreement(sampled, others, train) < PERSONAL:
        return None
    what = "rows" if moved else "users or items"
    return (
        f"its {what} seem to be in another order than the data's ids: a user's own item is above another in"
        f" {wins(own):.0%} of pairs, by another user's scores in {wins(shuffled):.0%}{f'; {advice}' if moved else ''}"
    )


def _closer_to_neighbours(sampled: Sampled, train: Interactions) -> np.ndarray:
    """Returns for each user the share of some others' lists whose items have lower scores by item neighbours than those
    of its own list, `[n]`. What the user has seen does not count."""
    near = _neighbours(train, sampled.users)
    unseen = np.ones(near.shape, bool)
    unseen[_pairs(train, sampled.users)] = False

    def mean(lists: np.ndarray) -> np.ndarray:
        held = (lists > 0) & unseen
        return np.sum(near, axis=1, where=held) / np.maximum(held.sum(axis=1), 1)

    own, others = mean(sampled.scores), [mean(np.roll(sampled.scores, shift, axis=0)) for shift in (1, 2, 3, 4)]
    return np.mean([np.sign(own - other) / 2 + 0.5 for other in others], axis=0)


def _error(differences: np.ndarray, users: np.ndarray) -> float:
    """Returns the standard error of a mean of differences `[n]`, of which those of one user may be alike."""
    sums = np.bincount(users, differences - np.mean(differences))
    return float(np.sqrt(np.sum(sums**2))) / len(differences)


def _disagreement(sampled: Sampled, items: np.ndarray, train: Interactions) -> float:
    """Returns the share of pairs of items that a user ranks in the opposite order of another user, among those that
    both rank; 0 if they rank too few. What either has seen does not count, since lists may leave it out."""
    users, scores = sampled
    rng = np.random.default_rng(SEED + 1)
    rows = rng.integers(0, len(users), 2**14)
    first, second = rng.choice(items, (2, len(rows)))
    seen = np.zeros(scores.shape, bool)
    seen[_pairs(train, users)] = True
    new = ~(seen[rows, first] | seen[rows, second] | seen[rows - 1, first] | seen[rows - 1, second])
    one, other = (np.sign(scores[at, first] - scores[at, second])[new] for at in (rows, rows - 1))
    both = one * other != 0
    return float(np.mean(one[both] != other[both])) if both.sum() >= 100 else 0.0


def _moved(
    teacher: Teacher, users: np.ndarray
) -> list[tuple[str, int, Callable[[np.ndarray, np.ndarray], np.ndarray]]]:
    """Returns the scores of pairs if the rows of a table are moved by one, as by a row of padding; for tables alone."""
    if not teacher.inner_product:
        return []
    assert teacher.representations is not None
    table, items_table = map(np.asarray, teacher.representations)

    def score_moved(user_step: int, item_step: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        def score(rows: np.ndarray, items: np.ndarray) -> np.ndarray:
            moved_items = (items - item_step) % len(items_table)
            return np.einsum("nd,nd->n", table[(users[rows] - user_step) % len(table)], items_table[moved_items])

        return score

    return [
        (side, step, score_moved(step * (side == "user"), step * (side == "item")))
        for side in ("user", "item")
        for step in (1, -1)
    ]


def _notes_on_leaks(sampled: Sampled, split: Split) -> tuple[str, ...]:
    """Compares the share of hits among held-out items with that among training items, each ranked with the items that
    the user has not seen, and with the share that item neighbours find."""
    users, scores = sampled
    rows, items = _pairs(split.train, users)
    seen = np.zeros(scores.shape, bool)
    seen[rows, items] = True
    best = max(1, min(BEST, split.train.num_items // 20))

    def hits_by(scores: np.ndarray) -> Callable[[Interactions], float]:
        unseen = np.where(seen, -np.inf, scores)
        bar = np.partition(unseen, -best, axis=1)[:, -best]

        def hits(part: Interactions) -> float:
            rows, items = _pairs(part, users)
            return float(np.mean(scores[rows, items] > bar[rows])) if len(rows) else 0.0

        return hits

    hits = hits_by(scores)
    found = {name: hits(part) for name, part in split._asdict().items()}
    suspects = {"validation": "valid", "test": "test"}
    suspects = {name: part for name, part in suspects.items() if found[part] >= ALIKE * found["train"]}
    if not suspects:
        return ()
    popularity = np.bincount(np.asarray(split.train.items), minlength=scores.shape[1]).astype(np.float32)
    honest = [hits_by(_neighbours(split.train, users)), hits_by(np.tile(popularity, (len(users), 1)))]
    odds = lambda share: share / max(1 - share, 1e-3)
    times = ABOVE if found["train"] > 0.01 else FAR_ABOVE
    notes = []
    for name, part in suspects.items():
        usual = max(find(getattr(split, part)) for find in honest)
        if odds(found[part]) > times * odds(max(usual, 0.01)):
            training = f", and {found['train']:.0%} of the training items" if found["train"] > 0.01 else ""
            notes.append(
                f"it finds {found[part]:.0%} of the {name} items among its {best} best{training}, where neighbours of "
                f"the training items, or popularity, find {usual:.0%}: it seems to have been "
                f"trained on the {name} items, which makes its figures, and those of its students, too good; train it "
                "on the training part alone, which htd-jax split writes"
            )
    return tuple(notes)


def _neighbours(train: Interactions, users: np.ndarray) -> np.ndarray:
    """Returns the scores of item neighbours by cosine, `[n, num_items]`, from training pairs alone: from `PAIRS` of
    them at most, of random users, in blocks of users."""
    import scipy.sparse as sp  # takes a moment, which other runs do not wait for

    pairs = np.asarray(train.users), np.asarray(train.items)
    degrees = np.maximum(np.bincount(pairs[1], minlength=train.num_items), 1)
    table = sp.csr_matrix(
        (1 / np.sqrt(degrees[pairs[1]], dtype=np.float32), pairs), shape=(train.num_users, train.num_items)
    )
    own, scores = table[users], np.zeros((len(users), train.num_items), np.float32)
    order = np.random.default_rng(SEED).permutation(train.num_users)
    order = order[: max(1, int(np.searchsorted(np.cumsum(np.diff(table.indptr)[order]), PAIRS, side="right")))]
    for begin in range(0, len(order), 2**13):
        block = table[order[begin : begin + 2**13]]
        scores += (own @ block.T @ block).toarray()
    return scores


def _pairs(part: Interactions, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pairs of some users: their positions among `users`, and the items."""
    offsets, items = np.asarray(part.offsets), np.asarray(part.items)
    begins, sizes = offsets[users], np.diff(offsets)[users]
    rows = np.repeat(np.arange(len(users)), sizes)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rows, items[np.repeat(begins, sizes) + within]
