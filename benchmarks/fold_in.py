"""How well newcomers are served without training: recall@50 of users, and of items, that were held out whole.

    python benchmarks/fold_in.py --folder DIR [--dim 20] [--method htd]

A tenth of the users have no pair in training. They are folded in from their training items, into the item table of a
student who never saw them; ranked is their held-out item among all that they have not seen, beside the ranking by
popularity, and beside what the same users get from a student who was trained on them too. Settings are chosen by
validation, shown are test figures. Then the same the other way round, for a tenth of the items, with the student that
was trained on all: their rows are taken out and folded in from their training users; recall is of the held-out pairs of
these items, and of the others, which they compete with.
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
    """Where checkpoints are kept; the same command goes on at the last ones."""
    data_dir: Path | None = None
    """Folder of the citeulike files; else they are found as the main command finds them."""
    dim: int = 20
    """Of the student."""
    method: str | None = None
    """What the student is helped by; none if not given."""
    cutoff: int = 50
    """The k of recall@k."""
    seed: int = 0
    """Of who is held out, and of training."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    split = data.load("citeulike", options.data_dir)
    rng = np.random.default_rng(options.seed)
    held = np.sort(rng.choice(split.train.num_users, split.train.num_users // 10, replace=False))
    trained = student(split, options, "full")
    apart = student(without(split, held), options, "cut")
    lists = lists_of(split.train, held)
    rank = lambda vectors, items, part: recall(vectors, items, split, held, part, options.cutoff)
    table = Table(title=f"recall@{options.cutoff} of {len(held)} users who were held out whole")
    for name in ("", "valid", "test", "settings"):
        table.add_column(name)
    popular = np.bincount(np.delete(*in_training(split, held)), minlength=split.train.num_items).astype(np.float32)
    ones = np.ones((len(held), 1), np.float32)
    show = lambda name, vectors, items, told="": table.add_row(
        name, *(f"{rank(vectors, items, part):.4f}" for part in ("valid", "test")), told
    )
    show("popularity", ones, popular[:, None])
    items = Rows(jnp.asarray(apart[1]))
    tried = {
        f"unseen {w}, ridge {r}": fold.least_squares(items, lists, unseen=w, ridge=r) for w in UNSEEN for r in RIDGE
    }
    best = max(tried, key=lambda name: rank(tried[name], apart[1], "valid"))
    show("folded in, the best in valid", tried[best], apart[1], best)
    usual = f"unseen {fold.UNSEEN}, ridge {fold.RIDGE}"
    show("folded in", fold.least_squares(items, lists), apart[1], f"{usual}")
    show("trained with the others", trained[0][held], trained[1])
    Console(width=110).print(table)
    of_items(split, trained, rng, options)


def of_items(split: Split, trained: list[np.ndarray], rng: np.random.Generator, options: Options) -> None:
    users, table = trained
    turned = Interactions.from_pairs(split.train.items, split.train.users, *map(len, (table, users)))
    new = np.sort(rng.choice(len(table), len(table) // 10, replace=False))
    new = new[np.diff(np.asarray(turned.offsets))[new] > 0]
    others = np.setdiff1d(np.arange(len(table)), new)
    show = Table(title=f"recall@{options.cutoff} of the held-out pairs of {len(new)} items that were held out")
    for name in ("", "of these items", "of the others", "their share of the lists"):
        show.add_column(name)
    lists = lists_of(turned, new)
    of_users = Rows(jnp.asarray(users))
    solved = fold.least_squares(of_users, lists)
    keep = ~np.isin(np.asarray(split.train.items), new)
    pairs = np.asarray(split.train.users)[keep], np.asarray(split.train.items)[keep]
    known = Interactions.from_pairs(*pairs, *map(len, trained))
    factor = fold.length_factor(Rows(jnp.asarray(table)), of_users, known, "items")
    for name, rows in (("folded in", solved), ("folded in, as long", solved * factor), ("trained", table[new])):
        changed = table.copy()
        changed[new] = rows
        everyone = np.arange(len(users))
        top = lists_for(users, changed, split, everyone, "test", options.cutoff)
        hit = (top[np.asarray(split.test.users)] == np.asarray(split.test.items)[:, None]).any(1)
        of = [hit[np.isin(np.asarray(split.test.items), which)].mean() for which in (new, others)]
        show.add_row(name, *(f"{x:.4f}" for x in of), f"{np.isin(top, new).mean():.1%}")
    Console(width=110).print(show)


def student(split: Split, options: Options, name: str) -> list[np.ndarray]:
    """Its tables."""
    folder = options.folder / name
    if options.method is None:
        fitted = htd_jax.fit(split, dim=options.dim, seed=options.seed, folder=f"{folder}-student")
    else:
        teacher = htd_jax.fit(split, seed=options.seed, folder=f"{folder}-teacher")
        how = {"method": options.method, "dim": options.dim, "seed": options.seed}
        fitted = htd_jax.distill(teacher, split, folder=f"{folder}-{options.method}", **how)
    return [np.asarray(table) for table in fitted.representations()]


def without(split: Split, held: np.ndarray) -> Split:
    """The same without the training pairs of these users."""
    both = lambda part: (np.asarray(part.users), np.asarray(part.items))
    users, items = both(split.train)
    keep = ~np.isin(users, held)
    sizes = split.train.num_users, split.train.num_items
    return data.make_split((users[keep], items[keep]), both(split.valid), both(split.test), *sizes)


def in_training(split: Split, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The items of all training pairs, and which of these are of the users."""
    return np.asarray(split.train.items), np.flatnonzero(np.isin(np.asarray(split.train.users), held))


def lists_of(part: Interactions, users: np.ndarray) -> list[np.ndarray]:
    offsets, items = np.asarray(part.offsets), np.asarray(part.items)
    return [items[offsets[user] : offsets[user + 1]] for user in users]


def lists_for(vectors: np.ndarray, items: np.ndarray, split: Split, users: np.ndarray, part: str, k: int) -> np.ndarray:
    """The k best of what each has seen neither in training nor in the part that is not asked about."""
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
