"""Compares rows that are folded in with trained rows of the same users and items.

    python benchmarks/fold_in.py known --run runs/citeulike-by-ials-best-20-int4-seed0
    python benchmarks/fold_in.py new --folder DIR [--dataset citeulike] [--method best] [--precision int4]

`known` folds in users and items that the model was trained on, from their training pairs. For items, per number of
users: the number of users among whose 20 best unseen items they are, with the trained and with the folded row, and the
ratio of the rows' lengths. For users: recall and ndcg of their held-out items.

`new` trains the same student twice, on all data and without a tenth of the users and a tenth of the items. These are
folded in, and compared with their rows in the student trained on all: recall@50 of the users' held-out items; recall@50
of the items' held-out pairs, and the share of all places in lists that the items take.

Both also show the rule of version 0.4: `least_squares` times one factor, the ratio of mean lengths.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import htd_jax
from htd_jax import data
from htd_jax.data import Interactions, Split
from htd_jax.pipeline import open_run
from htd_jax.serve.fold import least_squares
from htd_jax.serve.rank import Hidden, concatenate
from htd_jax.serving import Precision, Retriever, Rows, best_items

BINS = (1, 2, 5, 8, 13, 31, 110, 401)


@dataclasses.dataclass
class Known:
    """Folds in users and items that the model was trained on."""

    run: Path | None = None
    """Folder of a run; give this, or --model and --split-file."""
    phase: str | None = None
    """Phase of the run. Default: the distilled student."""
    model: Path | None = None
    """Folder of an export."""
    split_file: Path | None = None
    """Split that the export was trained on."""
    most: int = 300
    """Number of items per row of the table."""


@dataclasses.dataclass
class New:
    """Folds in users and items that the model was not trained on."""

    folder: Path
    """Folder of the trained students, from which the same command resumes."""
    dataset: str = "citeulike"
    """Name of the data set."""
    method: str | None = None
    """Distillation method. Default: none, a plain BPR student."""
    precision: Precision = "float32"
    """Precision of the student."""
    dim: int = 20
    """Width of the student."""


def main() -> None:
    options = tyro.cli(
        Annotated[Known, tyro.conf.subcommand("known")] | Annotated[New, tyro.conf.subcommand("new")],
        description=__doc__,
    )
    if isinstance(options, New):
        new(options)
        return
    if options.run:
        fitted = open_run(options.run, options.phase)
        model, split = fitted.retriever(), fitted.data.split
    else:
        assert options.model and options.split_file
        model, split = htd_jax.load(options.model), data.load_split(options.split_file)
    known(dataclasses.replace(model, trained=split.train, row_maps={}), split, options.most)


def known(model: Retriever, split: Split, most: int) -> None:
    """Prints both tables of `known`."""
    print(f"{model.about.get('dataset')}: {model.about.get('method')} {model.dim} {model.precision}")
    users, items = (np.asarray(table.floats()) for table in (model.users, model.items))
    by_user, by_item = lists_of(split.train), lists_of(turned(split.train))
    tops = best_items(model.users, model.items, 20, hidden=Hidden.from_interactions(split.train))
    bars = np.concatenate([top.scores[:, -1] for top in tops])
    bars -= 1e-6 * np.abs(bars)
    old = length(items, model.users, by_item)

    def listed(rows: np.ndarray, lists: list[np.ndarray]) -> float:
        reached = rows @ users.T >= bars
        for row, own in zip(reached, lists):
            row[own] = False
        return float(reached.sum(1).mean())

    table = Table(title="items: mean number of users whose 20 best items hold them")
    for name in ("users of an item", "items", "trained", "folded in", "0.4", "length, folded in / trained", "0.4 "):
        table.add_column(name, justify="right")
    counts = np.array([len(its) for its in by_item])
    for least, beyond in zip(BINS, (*BINS[1:], 10**9)):
        some = np.flatnonzero((counts >= least) & (counts < beyond))
        if not len(some):
            continue
        some = np.random.default_rng(0).choice(some, min(most, len(some)), replace=False)
        lists = [by_item[i] for i in some]
        row_map = model.row_map("items")
        assert row_map is not None
        rows = [items[some], row_map.rows(model.users, lists), old * before(model.users, lists)]
        norms = [np.linalg.norm(x, axis=1) for x in rows]
        ratios = [np.mean(norm / np.maximum(norms[0], 1e-30)) for norm in norms[1:]]
        bin_ = "1" if beyond == 2 else f"{least} to {beyond - 1}" if beyond < 10**9 else f"{least} or more"
        table.add_row(bin_, str(len(some)), *(f"{listed(x, lists):.1f}" for x in rows), *(f"{x:.2f}" for x in ratios))
    Console(width=120).print(table)
    row_map = model.row_map("users")
    assert row_map is not None
    present = np.flatnonzero([len(its) > 0 for its in by_user])
    lists = [by_user[u] for u in present]
    table = Table(title="users: test metrics")
    for name in ("", "recall@50", "ndcg@10"):
        table.add_column(name)
    for name, rows in (
        ("trained", users[present]),
        ("folded in", row_map.rows(model.items, lists)),
        ("0.4", before(model.items, lists)),
    ):
        top = top_lists(rows, items, split, present)
        table.add_row(name, *(f"{x:.4f}" for x in metrics(top, lists_of(split.test), present)))
    Console(width=120).print(table)


def new(options: New) -> None:
    """Prints the table of `new`."""
    split = data.load(options.dataset)
    rng = np.random.default_rng(0)
    sizes = split.train.num_users, split.train.num_items
    users, items = (np.sort(rng.choice(size, size // 10, replace=False)) for size in sizes)
    full, cut = student(split, options, "full"), student(without(split, users, items), options, "cut")
    compare_new(full, cut, split, users, items)


def compare_new(full: Retriever, cut: Retriever, split: Split, users: np.ndarray, items: np.ndarray) -> None:
    is_new = [
        np.isin(np.arange(size), which) for size, which in zip((len(full.users), len(full.items)), (users, items))
    ]
    rest = without(split, users, items).train
    cut = dataclasses.replace(cut, trained=rest, row_maps={})
    old_users, old_items = (np.flatnonzero(~new) for new in is_new)
    tables = [[np.array(table.floats()) for table in (model.users, model.items)] for model in (full, cut)]
    by_user = [its[~is_new[1][its]] for its in lists_of(split.train)]
    by_item = [its[~is_new[0][its]] for its in lists_of(turned(split.train))]
    new_tests, old_tests = ([its[is_new[1][its] == new] for its in lists_of(split.test)] for new in (True, False))
    users = np.array([u for u in users if len(by_user[u])])
    items = np.array([i for i in items if len(by_item[i])])
    maps = [cut.row_map(side) for side in ("users", "items")]
    assert maps[0] is not None and maps[1] is not None
    # Users: the new items have no trained rows, and are left out of all lists.
    show = Table(title=f"{len(users)} new users and {len(items)} new items")
    for name in ("", "recall@50 of users", "recall@50 of items", "share of places", "recall@50 of the others"):
        show.add_column(name)
    lists = [by_user[u] for u in users]
    old = length(tables[1][1][old_items], cut.users, [by_item[i] for i in old_items])
    rows_of_items = [by_item[i] for i in items]
    for name, user_rows, item_rows, (all_users, all_items) in (
        ("trained", tables[0][0][users], tables[0][1][items], tables[0]),
        ("folded in", maps[0].rows(cut.items, lists), maps[1].rows(cut.users, rows_of_items), tables[1]),
        ("0.4", before(cut.items, lists), old * before(cut.users, rows_of_items), tables[1]),
    ):
        top = top_lists(user_rows, all_items, split, users, old_items)
        recall = metrics(top, old_tests, users)[0]
        changed = all_items.copy()
        changed[items] = item_rows
        top = top_lists(all_users[old_users], changed, split, old_users)
        both = [metrics(top, tests, old_users)[0] for tests in (new_tests, old_tests)]
        show.add_row(name, f"{recall:.4f}", f"{both[0]:.4f}", f"{np.isin(top, items).mean():.1%}", f"{both[1]:.4f}")
    Console(width=120).print(show)


def student(split: Split, options: New, name: str) -> Retriever:
    folder = options.folder / name
    if options.method is None:
        fitted = htd_jax.fit(split, dim=options.dim, folder=f"{folder}-student")
    else:
        teacher_model = "ials" if options.method == "best" else "bpr"
        teacher = htd_jax.fit(split, model=teacher_model, folder=f"{folder}-teacher")
        how = {"method": options.method, "dim": options.dim, "precision": options.precision}
        fitted = htd_jax.distill(teacher, split, folder=f"{folder}-{options.method}", **how)
    return fitted.retriever()


def without(split: Split, users: np.ndarray, items: np.ndarray) -> Split:
    """Removes the training pairs of these users and items."""
    both = lambda part: (np.asarray(part.users), np.asarray(part.items))
    pairs = both(split.train)
    keep = ~np.isin(pairs[0], users) & ~np.isin(pairs[1], items)
    sizes = split.train.num_users, split.train.num_items
    return data.make_split((pairs[0][keep], pairs[1][keep]), both(split.valid), both(split.test), *sizes)


def before(table: Rows, lists: list[np.ndarray]) -> np.ndarray:
    """Returns least-squares rows with the ridge of version 0.4, which did not depend on the table's scale."""
    unit = float(np.sqrt(np.mean(np.asarray(table.floats(), np.float64) ** 2)))
    return least_squares(table, lists, ridge=1 / unit**2)


def length(trained: np.ndarray, other: Rows, lists: list[np.ndarray]) -> float:
    """Returns the ratio of the mean lengths of trained and least-squares rows, over rows that have interactions."""
    some = np.flatnonzero([len(its) > 0 for its in lists])
    some = some[np.linspace(0, len(some) - 1, min(1024, len(some))).astype(int)]
    solved = before(other, [lists[i] for i in some])
    return float(np.linalg.norm(trained[some], axis=1).sum() / np.linalg.norm(solved, axis=1).sum())


def turned(part: Interactions) -> Interactions:
    return Interactions.from_pairs(np.asarray(part.items), np.asarray(part.users), part.num_items, part.num_users)


def lists_of(part: Interactions) -> list[np.ndarray]:
    return np.split(np.asarray(part.items), np.asarray(part.offsets)[1:-1])


def top_lists(
    rows: np.ndarray, items: np.ndarray, split: Split, users: np.ndarray, candidates: np.ndarray | None = None
) -> np.ndarray:
    """Returns the 50 best items that each user has seen neither in training nor in validation."""
    seen = [lists_of(part) for part in (split.train, split.valid)]
    hidden = Hidden.from_lists([np.concatenate([its[u] for its in seen]) for u in users])
    tables = Rows(jnp.asarray(rows, jnp.float32)), Rows(jnp.asarray(items))
    return concatenate(best_items(*tables, 50, hidden=hidden, candidates=candidates), 50).rows


def metrics(top: np.ndarray, targets: list[np.ndarray], users: np.ndarray) -> tuple[float, float]:
    """Returns recall@50 and ndcg@10 of users who have targets."""
    gains = 1 / np.log2(np.arange(2, 12))
    recalls, ndcgs = [], []
    for row, user in zip(top, users):
        if len(its := targets[user]):
            hits = np.isin(row, its)
            recalls.append(hits.sum() / len(its))
            ndcgs.append((hits[:10] * gains).sum() / gains[: len(its)].sum())
    return float(np.mean(recalls)), float(np.mean(ndcgs))


if __name__ == "__main__":
    main()
