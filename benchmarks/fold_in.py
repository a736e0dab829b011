"""Quality of fold-in: recall@50 of users, and of items, that are entirely left out of training.

    python benchmarks/fold_in.py --folder DIR [--dim 20] [--method htd]

A tenth of the users have no pair in training. They are folded in from their training items, with the item table of a
student trained without them. Their held-out item is ranked among all unseen items, and compared with the ranking by
popularity and with a student trained on these users too. Settings are chosen on validation. The second table does the
same for a tenth of the items, with the student trained on all: their rows are replaced by rows folded in from their
training users. It shows recall of the held-out pairs of these items, and of the others, which they compete with.
"""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import htd_jax
from htd_jax import data
from htd_jax.data import Interactions, Split
from htd_jax.serving import Rows, best_items, fold
from htd_jax.serving.topk import Hidden, concatenate

UNSEEN, RIDGE = (0.001, 0.01, 0.03, 0.1, 0.3), (0.1, 1.0, 10.0, 100.0)


@dataclasses.dataclass
class Options:
    folder: Path
    """Folder of the checkpoints, from which the same command resumes."""
    data_dir: Path | None = None
    """Folder of the citeulike files. Default: searched like in training."""
    dim: int = 20
    """Width of the student."""
    method: str | None = None
    """Distillation method. Default: none."""
    cutoff: int = 50
    """The k of recall@k."""
    seed: int = 0
    """Seed of the held-out users and items, and of training."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    split = data.load("citeulike", options.data_dir)
    rng = np.random.default_rng(options.seed)
    held = np.sort(rng.choice(split.train.num_users, split.train.num_users // 10, replace=False))
    trained = student(split, options, "full")
    apart = student(without(split, held), options, "cut")
    lists = lists_of(split.train, held)
    rank = lambda vectors, items, part: recall(vectors, items, split, held, part, options.cutoff)
    table = Table(title=f"recall@{options.cutoff} of {len(held)} users who are left out of training")
    for name in ("", "valid", "test", "settings"):
        table.add_column(name)
    popular = np.bincount(np.delete(*in_training(split, held)), minlength=split.train.num_items).astype(np.float32)
    ones = np.ones((len(held), 1), np.float32)
    show = lambda name, vectors, items, note="": table.add_row(
        name, *(f"{rank(vectors, items, part):.4f}" for part in ("valid", "test")), note
    )
    show("popularity", ones, popular[:, None])
    items = Rows(jnp.asarray(apart[1]))
    tried = {
        f"unseen {w}, ridge {r}": fold.least_squares(items, lists, unseen=w, ridge=r) for w in UNSEEN for r in RIDGE
    }
    best = max(tried, key=lambda name: rank(tried[name], apart[1], "valid"))
    show("folded in, best on validation", tried[best], apart[1], best)
    usual = f"unseen {fold.UNSEEN}, ridge {fold.RIDGE}"
    show("folded in", fold.least_squares(items, lists), apart[1], f"{usual}")
    show("trained with the others", trained[0][held], trained[1])
    Console(width=110).print(table)
    fold_in_items(split, trained, rng, options)


def fold_in_items(split: Split, trained: list[np.ndarray], rng: np.random.Generator, options: Options) -> None:
    users, table = trained
    turned = Interactions.from_pairs(split.train.items, split.train.users, *map(len, (table, users)))
    new = np.sort(rng.choice(len(table), len(table) // 10, replace=False))
    new = new[np.diff(np.asarray(turned.offsets))[new] > 0]
    others = np.setdiff1d(np.arange(len(table)), new)
    show = Table(title=f"recall@{options.cutoff} of the held-out pairs of {len(new)} items that are folded in")
    for name in ("", "of these items", "of the others", "their share of the lists"):
        show.add_column(name)
    lists = lists_of(turned, new)
    user_rows = Rows(jnp.asarray(users))
    solved = fold.least_squares(user_rows, lists)
    keep = ~np.isin(np.asarray(split.train.items), new)
    pairs = np.asarray(split.train.users)[keep], np.asarray(split.train.items)[keep]
    known = Interactions.from_pairs(*pairs, *map(len, trained))
    factor = fold.length_factor(Rows(jnp.asarray(table)), user_rows, known, "items")
    for name, rows in (("folded in", solved), ("folded in, as long", solved * factor), ("trained", table[new])):
        changed = table.copy()
        changed[new] = rows
        everyone = np.arange(len(users))
        top = lists_for(users, changed, split, everyone, "test", options.cutoff)
        hit = (top[np.asarray(split.test.users)] == np.asarray(split.test.items)[:, None]).any(1)
        recalls = [hit[np.isin(np.asarray(split.test.items), which)].mean() for which in (new, others)]
        show.add_row(name, *(f"{x:.4f}" for x in recalls), f"{np.isin(top, new).mean():.1%}")
    Console(width=110).print(show)


def student(split: Split, options: Options, name: str) -> list[np.ndarray]:
    """Returns the tables of a trained student."""
    folder = options.folder / name
    if options.method is None:
        fitted = htd_jax.fit(split, dim=options.dim, seed=options.seed, folder=f"{folder}-student")
    else:
        teacher = htd_jax.fit(split, seed=options.seed, folder=f"{folder}-teacher")
        how = {"method": options.method, "dim": options.dim, "seed": options.seed}
        fitted = htd_jax.distill(teacher, split, folder=f"{folder}-{options.method}", **how)
    return [np.asarray(table) for table in fitted.representations()]


def without(split: Split, held: np.ndarray) -> Split:
    """Removes the training pairs of these users."""
    both = lambda part: (np.asarray(part.users), np.asarray(part.items))
    users, items = both(split.train)
    keep = ~np.isin(users, held)
    sizes = split.train.num_users, split.train.num_items
    return data.make_split((users[keep], items[keep]), both(split.valid), both(split.test), *sizes)


def in_training(split: Split, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the items of all training pairs, and which pairs are of these users."""
    return np.asarray(split.train.items), np.flatnonzero(np.isin(np.asarray(split.train.users), held))


def lists_of(part: Interactions, users: np.ndarray) -> list[np.ndarray]:
    offsets, items = np.asarray(part.offsets), np.asarray(part.items)
    return [items[offsets[user] : offsets[user + 1]] for user in users]


def lists_for(vectors: np.ndarray, items: np.ndarray, split: Split, users: np.ndarray, part: str, k: int) -> np.ndarray:
    """Returns the k best items that each user has seen neither in training nor in the other held-out part."""
    hidden = [lists_of(getattr(split, name), users) for name in ("train", "valid", "test") if name != part]
    lists = Hidden.from_lists([np.concatenate(both) for both in zip(*hidden)])
    tables = Rows(jnp.asarray(vectors)), Rows(jnp.asarray(items))
    return concatenate(best_items(*tables, k, hidden=lists), k).rows


def recall(vectors: np.ndarray, items: np.ndarray, split: Split, users: np.ndarray, part: str, k: int) -> float:
    top = lists_for(vectors, items, split, users, part, k)
    targets = lists_of(getattr(split, part), users)
    return float(np.mean([np.isin(its, row).mean() for its, row in zip(targets, top) if len(its)]))


if __name__ == "__main__":
    main()
