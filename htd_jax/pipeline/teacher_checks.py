"""What a teacher's rankings tell about it: whether its rows fit the data, and whether it has seen what is held out."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp

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


class Sampled(NamedTuple):
    """Some users and their scores: `[n]` and `[n, num_items]`."""

    users: np.ndarray
    scores: np.ndarray


def notes_on_fit(teacher: Teacher, split: Split) -> tuple[str, ...]:
    """Returns a note if the teacher ranks a user's own items no better than another user does, or as if it had been
    trained on held-out items; else nothing.

    A sample of users is scored once: at most 2^24 scores, whatever the size of the data.

    Raises:
      UserError: if a score is not a number.
    """
    sampled = _score(teacher, split)
    if sampled is None:
        return ()
    # Lists may leave out what was seen in training.
    shown = split.train if teacher.scores is not None else split.valid
    if note := _note_on_order(teacher, sampled, shown, split.train):
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


def _note_on_order(teacher: Teacher, sampled: Sampled, shown: Interactions, train: Interactions) -> str | None:
    """Compares how often a user's own item is above one of anybody's, by its own scores and by another user's.

    The other item is sampled from all training pairs, so that a popular item is no surprise.
    """
    rows, items = _pairs(shown, sampled.users)
    if not len(rows):
        return None
    rng = np.random.default_rng(SEED)
    others = rng.choice(np.asarray(train.items), len(items))
    differ = items != others
    rows, items, others = rows[differ], items[differ], others[differ]

    scores = sampled.scores

    def wins(score: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
        gap = score(rows, items) - score(rows, others)
        return float(np.mean((gap > 0) + 0.5 * (gap == 0)))

    own = wins(lambda rows, items: scores[rows, items])
    shuffled = wins(lambda rows, items: scores[rows - 1, items])
    error = (0.5 / max(len(rows), 1)) ** 0.5  # of the difference of two shares about 1/2
    moved = {
        f"row r of its {side}s seems to be that of the {'next' if step > 0 else 'previous'} {side}": wins(score)
        for side, step, score in _moved(teacher, sampled.users)
    }
    hint = max(moved, key=lambda hint: moved[hint], default="")
    if hint and moved[hint] > max(own, shuffled) + max(3 * error, 0.05):
        return f"{hint}: then a user's own item is above another in {moved[hint]:.0%} of pairs, as given in {own:.0%}"
    if own > shuffled + 3 * error or np.ptp(scores, axis=0).max() == 0:  # every user alike: popularity
        return None
    advice = "; set `teacher_user_ids` and `teacher_item_ids` to the ids of its rows" if moved else ""
    what = "rows" if moved else "users or items"
    return (
        f"its {what} seem to be in another order than the data's ids: a user's own item is above another in"
        f" {own:.0%} of pairs, by another user's scores in {shuffled:.0%}{advice}"
    )


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
    by_neighbours = hits_by(_neighbours(split.train, users))
    odds = lambda share: share / max(1 - share, 1e-3)
    times = ABOVE if found["train"] > 0.01 else FAR_ABOVE
    notes = []
    for name, part in suspects.items():
        usual = by_neighbours(getattr(split, part))
        if odds(found[part]) > times * odds(max(usual, 0.01)):
            training = f", and {found['train']:.0%} of the training items" if found["train"] > 0.01 else ""
            notes.append(
                f"it finds {found[part]:.0%} of the {name} items among its {best} best{training}, where neighbours of "
                f"the training items find {usual:.0%}: it seems to have been trained on the {name} items, which makes "
                "its figures, and those of its students, too good"
            )
    return tuple(notes)


def _neighbours(train: Interactions, users: np.ndarray) -> np.ndarray:
    """Returns the scores of item neighbours by cosine, `[n, num_items]`, from training pairs alone."""
    pairs = np.asarray(train.users), np.asarray(train.items)
    degrees = np.maximum(np.bincount(pairs[1], minlength=train.num_items), 1)
    table = sp.csr_matrix(
        (1 / np.sqrt(degrees[pairs[1]], dtype=np.float32), pairs), shape=(train.num_users, train.num_items)
    )
    return np.asarray((table[users] @ table.T @ table).todense())


def _pairs(part: Interactions, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pairs of some users: their positions among `users`, and the items."""
    offsets, items = np.asarray(part.offsets), np.asarray(part.items)
    begins, sizes = offsets[users], np.diff(offsets)[users]
    rows = np.repeat(np.arange(len(users)), sizes)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rows, items[np.repeat(begins, sizes) + within]
