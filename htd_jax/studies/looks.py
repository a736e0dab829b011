"""What students are like beside their teacher: the relations that they keep, and what their lists show to whom."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.cluster import hierarchy
from scipy.linalg import orthogonal_procrustes

from htd_jax.data import TAGGED, Tags, load_tags
from htd_jax.distillers import Representations, model_scores
from htd_jax.distillers.grouping import kmeans_groups
from htd_jax.errors import UserError
from htd_jax.evaluation import make_ranker
from htd_jax.ops.rows import unit_rows
from htd_jax.serving import Opened, Rows, best_items
from htd_jax.serving.topk import Hidden, best_scored, concatenate
from htd_jax.studies import charts
from htd_jax.studies.beyond import ACTIVITY, POPULARITY, Character, Likeness, Part, by_activity, by_popularity
from htd_jax.studies.beyond import character as character_of
from htd_jax.studies.beyond import likeness as likeness_of
from htd_jax.studies.comparison import failed
from htd_jax.studies.plan import Plan, Row, opened
from htd_jax.studies.report import Chart, Report, Table, Values, of_seeds
from htd_jax.studies.report import Part as Shown
from htd_jax.studies.topology import Kept, Retrieval, relations, tag_retrieval

TOPOLOGY = "Does the student keep the teacher's relations?"
BEYOND = "What does a mean of recalls hide?"

# Whose relations are looked at.
SIDES = ("users", "items", "both")

# Groups a side, items of a map, and the lists that are looked at.
GROUPS, MAPPED, K = 30, 800, 50


class Related(NamedTuple):
    """Attributes: by row and seed, `kept` of every side, and `retrieval` by tags; a 2-D `map` of items, of the first
    seed; `note` on what is missing."""

    kept: dict[Row, dict[int, dict[str, Kept]]]
    retrieval: dict[Row, dict[int, Retrieval]]
    map: list[dict[str, Any]]
    note: str


def related(plan: Plan, every: Sequence[Row], told: Callable[[str], None]) -> Related:
    """What every student keeps of its teacher's relations."""
    found = Related({}, {}, [], "")
    tags, note = _tags(plan)
    for seed in plan.seeds:
        if seed not in every[0].test:
            continue
        taught, mapped = opened(plan, every[0], seed).representations(), dict[str, np.ndarray]()
        groups = kmeans_groups(seed, taught.users, taught.items, _groups(taught))
        sides = [every[0], *(row for row in every if row.dim == plan.student_dims[0] and not row.beside)]
        for row in sides:
            if seed not in row.test:
                continue
            told(f"reading relations: {row.name}, seed {seed}")
            own = opened(plan, row, seed).representations()
            if row is not every[0]:
                how: dict[str, Any] = {"groups": groups, "num_groups": _groups(taught), "seed": seed}
                found.kept.setdefault(row, {})[seed] = relations(taught, own, **how)
            if tags is not None:
                found.retrieval.setdefault(row, {})[seed] = tag_retrieval(own.items, tags)
            if not found.map:
                mapped[row.name] = np.asarray(own.items)
        found.map.extend(_map(mapped, np.asarray(groups[1])) if not found.map else [])
    return found._replace(note=note)


def _groups(tables: Representations) -> int:
    return min(GROUPS, *(max(1, len(table) // 10) for table in tables))


def _tags(plan: Plan) -> tuple[Tags | None, str]:
    what = plan.config.filled().what
    if plan.config.data_file or what.dataset not in TAGGED:
        return None, ""
    try:
        return load_tags(what.dataset, plan.config.places.data_dir), ""
    except UserError as error:
        return None, f"Tags are left out: {error}"


def _map(models: Mapping[str, np.ndarray], groups: np.ndarray) -> list[dict[str, Any]]:
    """Some items, of the eight largest groups, by the two principal directions of each model, the first of which the
    others are turned to."""
    largest = np.argsort(-np.bincount(groups), kind="stable")[:8]
    chosen = np.flatnonzero(np.isin(groups, largest))
    chosen = np.sort(np.random.default_rng(0).permutation(chosen)[:MAPPED])
    first, found = None, []
    for name, table in models.items():
        own = np.asarray(unit_rows(jnp.asarray(table)))[chosen]
        own = own - own.mean(0)
        _, _, axes = np.linalg.svd(own, full_matrices=False)
        places = own @ axes[:2].T
        places = np.pad(places, [(0, 0), (0, 2 - places.shape[1])])
        first = places if first is None else first
        places = places @ orthogonal_procrustes(places, first)[0]
        for (x, y), group in zip(places.round(4).tolist(), groups[chosen]):
            found.append({"model": name, "x": x, "y": y, "group": f"group {group}"})
    return found


def _leaves(cosines: np.ndarray) -> np.ndarray:
    """An order of the groups in which near ones stand together."""
    if len(cosines) < 3:
        return np.arange(len(cosines))
    apart = np.clip(1 - cosines[np.triu_indices(len(cosines), 1)], 0, 2)
    order: np.ndarray = hierarchy.leaves_list(hierarchy.linkage(apart, "average", optimal_ordering=True))
    return order


def topology_report(plan: Plan, every: Sequence[Row], seen: Related) -> Report:
    """Correlations, neighbours and prototypes by side; a heat map of groups; a map of items; retrieval by tags."""
    title = f"What students keep of their teacher's topology on {plan.config.filled().what.dataset}"
    if not seen.kept:
        return Report("topology", title, TOPOLOGY, "Nothing has been run to its end.", failed(every))
    number = lambda values: Values(tuple(x for x in values if x is not None))
    made: list[tuple[str | Values, ...]] = []
    data = []
    for side in SIDES:
        for row, of_seed in seen.kept.items():
            own = [kept[side] for kept in of_seed.values()]
            facts = [
                [kept.within.correlation, kept.across.correlation, kept.within.error, kept.across.error] for kept in own
            ]
            facts = [
                [*fact, kept.neighbours, kept.groups.agreement.correlation, kept.groups.agreement.error]
                for fact, kept in zip(facts, own)
            ]
            made.append((side, row.name, *map(number, zip(*facts))))
            data.append({"part": side, "name": row.name, **of_seeds([kept.neighbours for kept in own])})
    head = (
        *("among", "", "r within groups", "r across", "error within", "error across", "neighbours kept"),
        *("r of prototypes", "error of prototypes"),
    )
    note = (
        "Cosines of pairs in the student beside those in the teacher, of one group (by k-means of the teacher) and of "
        "two: Pearson's r, and the mean error. Neighbours kept: the share of an entity's 10 nearest that are so "
        "in both. Prototypes: the cosines between the means of groups."
    )
    parts: list[Shown] = []
    chart = charts.grouped(data, value="share of neighbours kept", order=SIDES)
    parts.append(Chart("neighbours", "The 10 nearest neighbours", chart))
    first = {row: of_seed[min(of_seed)]["items"].groups for row, of_seed in seen.kept.items()}
    teacher = np.array(next(iter(first.values())).teacher)
    order = np.ix_(*[_leaves(teacher)] * 2)
    matrices = {"teacher": teacher[order]} | {row.name: np.array(its.student)[order] for row, its in first.items()}
    chart = charts.heat(matrices, value="cosine", of="groups of items")
    parts.append(Chart("groups", "How the teacher's groups of items lie to one another", chart, "Of the first seed."))
    chart = charts.scatter(seen.map, x="first direction", y="second", facet="model")
    told = (
        "Items of the teacher's eight largest groups, by the two principal directions of each model; of the first seed."
    )
    parts.append(Chart("map", "The teacher's groups, and where students put them", chart, told))
    parts.append(Table("topology", "Relations kept", head, tuple(made), note))
    if seen.retrieval:
        lines = [
            (row.name, Values(tuple(one.precision for one in of_seed.values())))
            for row, of_seed in seen.retrieval.items()
        ]
        one = next(iter(next(iter(seen.retrieval.values())).values()))
        told = (
            f"Mean average precision of the {one.k} nearest items by cosine, those that share a tag being right; of "
            f"{one.items:,} items, which in the mean share one with {one.by_chance:.1%} of the others."
        )
        parts.append(
            Table("tags", "Articles that share a tag, by nearest neighbours", ("", f"MAP@{one.k}"), tuple(lines), told)
        )
    if seen.note:
        parts.append(seen.note)
    return Report("topology", title, TOPOLOGY, _kept_answer(seen), [*parts, *failed(every)])


def _kept_answer(seen: Related) -> str:
    share = lambda row: np.mean([kept["both"].neighbours for kept in seen.kept[row].values()])
    best = max(seen.kept, key=share)
    plain = next((row for row in seen.kept if not row.is_helped), None)
    than = f", the plain student {share(plain):.0%}" if plain and plain is not best else ""
    name = best.name.removeprefix("+ ")
    return f"Of the teacher's 10 nearest neighbours {name} keeps most, {share(best):.0%} among users and items{than}."


class Listed(NamedTuple):
    """Attributes: of a model, `popularity` and `activity`, its metrics in thirds; `character` of its lists, and their
    `likeness` to the teacher's."""

    popularity: list[Part]
    activity: list[Part]
    character: Character
    likeness: Likeness


def listed(plan: Plan, every: Sequence[Row], told: Callable[[str], None]) -> dict[Row, dict[int, Listed]]:
    """What the lists of every model show, and to whom; of the first width."""
    found: dict[Row, dict[int, Listed]] = {}
    rank = None
    for seed in plan.seeds:
        if seed not in every[0].test:
            continue
        of_teacher = None
        for row in [every[0], *(row for row in every if row.dim == plan.student_dims[0] and not row.beside)]:
            if seed not in row.test:
                continue
            told(f"reading lists: {row.name}, seed {seed}")
            model = opened(plan, row, seed)
            split, cutoffs = model.dataset.split, model.evaluation.cutoffs
            rank = rank or make_ranker(split, protocol=model.evaluation.make())  # all runs are of one split
            ranks = rank(model.make_model, model.variables)["test"]
            lists = _lists(model)
            of_teacher = lists if of_teacher is None else of_teacher
            found.setdefault(row, {})[seed] = Listed(
                by_popularity(split.train, split.test, ranks, cutoffs),
                by_activity(split.train, split.test, ranks, cutoffs),
                character_of(lists, split.train),
                likeness_of(of_teacher, lists),
            )
    return found


def _lists(model: Opened) -> np.ndarray:
    """Every user's `K` best unseen items."""
    train = model.dataset.train
    if model.has_products:
        users, items = (Rows(jnp.asarray(table)) for table in model.representations())
        return concatenate(best_items(users, items, K, hidden=Hidden.from_interactions(train)), K).rows
    scores = model_scores(model.make_model, model.variables, train)
    how: dict[str, Any] = {"rows": np.arange(train.num_users), "hidden": Hidden.from_interactions(train)}
    return concatenate(best_scored(scores, train.num_items, K, **how), K).rows


def beyond_report(plan: Plan, every: Sequence[Row], seen: Mapping[Row, Mapping[int, Listed]]) -> Report:
    """Recall by popularity and by activity, and what the lists are like."""
    title = f"Behind the mean on {plan.config.filled().what.dataset}"
    if not seen:
        return Report("beyond", title, BEYOND, "Nothing has been run to its end.", failed(every))
    metric = plan.metrics[0]
    parts: list[Shown] = []
    tables: list[Shown] = []
    for name, names, of in (("popularity", POPULARITY, "items"), ("activity", ACTIVITY, "users")):
        values = lambda row, third, name=name: [getattr(x, name)[third].metrics[metric] for x in seen[row].values()]
        data = [
            {"part": part, "name": row.name, **of_seeds(values(row, third))}
            for third, part in enumerate(names)
            for row in seen
        ]
        what = "by the popularity of the item" if name == "popularity" else "by the activity of the user"
        parts.append(Chart(name, f"{metric} {what}", charts.grouped(data, value=f"test {metric}", order=names)))
        lines: list[tuple[str | Values, ...]] = [
            (row.name, *(Values(tuple(values(row, third))) for third in range(3))) for row in seen
        ]
        one = getattr(next(iter(next(iter(seen.values())).values())), name)
        head = ("", *(f"{part.name}: {part.size:,} {of}" for part in one))
        tables.append(Table(name, f"{metric} {what}", head, tuple(lines)))
    facts = (
        ("coverage", lambda x: x.character.coverage),
        ("Gini", lambda x: x.character.gini),
        ("popularity of the list / of the history", lambda x: x.character.above_history),
        ("items of the teacher's list", lambda x: x.likeness.overlap),
        ("RBO with it", lambda x: x.likeness.rank_biased),
    )
    number = lambda row, of: Values(tuple(x for x in map(of, seen[row].values()) if x is not None))
    like: list[tuple[str | Values, ...]] = [(row.name, *(number(row, of) for _, of in facts)) for row in seen]
    p = next(iter(next(iter(seen.values())).values())).likeness.p
    note = (
        f"Of every user's {K} best unseen items. Coverage: the share of all items that stand in some list. Gini: of "
        f"how often they do, 0 being evenly. RBO: rank-biased overlap, persistence {p:g} (Webber et al., 2010)."
    )
    tables.append(Table("lists", "What the lists are like", ("", *(name for name, _ in facts)), tuple(like), note))
    return Report("beyond", title, BEYOND, _listed_answer(seen, metric), [*parts, *tables, *failed(every)])


def _listed_answer(seen: Mapping[Row, Mapping[int, Listed]], metric: str) -> str:
    head, tail = (
        {row: np.mean([x.popularity[n].metrics[metric] for x in of.values()]) for row, of in seen.items()}
        for n in (0, 2)
    )
    teacher = next(iter(seen))
    helped = [row for row in seen if row.is_helped] or list(seen)
    best = max(helped, key=lambda row: tail[row])
    among = f"{head[teacher]:.4f} among the most popular items and of {tail[teacher]:.4f} in the tail"
    name = best.name.removeprefix("+ ")
    return f"The teacher has a {metric} of {among}; of the students {name} does best in the tail, {tail[best]:.4f}."
