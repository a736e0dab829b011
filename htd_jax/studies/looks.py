"""Studies that compare students with their teacher: the relations that they keep, and the lists that they show."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.cluster import hierarchy
from scipy.linalg import orthogonal_procrustes

from htd_jax.data import TAGGED, Tags, load_tags
from htd_jax.distillers.grouping import kmeans_groups
from htd_jax.errors import UserError
from htd_jax.evaluation import make_ranker
from htd_jax.models import model_scores
from htd_jax.ops.rows import unit_rows
from htd_jax.pipeline import Fitted
from htd_jax.serve.rank import Hidden, concatenate
from htd_jax.serving import Rows, best_items
from htd_jax.serving.topk import best_scored
from htd_jax.studies import charts
from htd_jax.studies.beyond import ACTIVITY, POPULARITY, Character, Likeness, Third, by_activity, by_popularity
from htd_jax.studies.beyond import character as character_of
from htd_jax.studies.beyond import likeness as likeness_of
from htd_jax.studies.comparison import failed
from htd_jax.studies.plan import Plan, Row, open_row
from htd_jax.studies.report import UNFINISHED, Chart, Part, Report, mean_and_band
from htd_jax.studies.tables import Cell, Table, Values
from htd_jax.studies.topology import Kept, Retrieval, relations, tag_retrieval

TOPOLOGY = "Does the student keep the teacher's relations?"
BEYOND = "What does a mean of recalls hide?"

# The sets of entities whose relations are compared.
SIDES = ("users", "items", "both")

# The groups per side, the items of a map, and the length of lists.
GROUPS, MAPPED, K = 30, 800, 50


def _models(
    plan: Plan, every: Sequence[Row], log: Callable[[str], None], what: str
) -> Iterator[tuple[int, Row, Fitted]]:
    """Yields seed, row and model of the teacher and each student of the first width, the teacher of each seed first."""
    for seed in plan.seeds:
        if seed not in every[0].test:
            continue
        for row in [every[0], *(row for row in every if row.dim == plan.student_dims[0] and row.is_student)]:
            if seed in row.test:
                log(f"reading {what}: {row.name}, seed {seed}")
                yield seed, row, open_row(plan, row, seed)


class Related(NamedTuple):
    """The teacher's relations that students keep, by row and seed.

    Attributes:
      kept: the relations of every side.
      retrieval: the retrieval of items by tags, if there are tags.
      map: records of items in two dimensions, for the first seed.
      note: what is missing.
    """

    kept: dict[Row, dict[int, dict[str, Kept]]]
    retrieval: dict[Row, dict[int, Retrieval]]
    map: list[dict[str, Any]]
    note: str


def related(plan: Plan, every: Sequence[Row], log: Callable[[str], None]) -> Related:
    """Returns what every student keeps of its teacher's relations."""
    tags, note = _tags(plan)
    found = Related({}, {}, [], note)
    first_items: dict[str, np.ndarray] = {}
    first_seed, first_groups = None, None
    taught: Any = None
    options: dict[str, Any] = {}
    for seed, row, model in _models(plan, every, log, "relations"):
        tables = model.representations()
        if row is every[0]:
            taught, number = tables, min(GROUPS, *(max(1, len(table) // 10) for table in tables))
            groups = kmeans_groups(seed, tables.users, tables.items, number)
            options = {"groups": groups, "num_groups": number, "seed": seed}
            if first_seed is None:
                first_seed, first_groups = seed, groups[1]
        else:
            found.kept.setdefault(row, {})[seed] = relations(taught, tables, **options)
        if tags is not None:
            found.retrieval.setdefault(row, {})[seed] = tag_retrieval(tables.items, tags)
        if seed == first_seed:
            first_items[row.name] = np.asarray(tables.items)
    if first_items:
        found.map.extend(_map(first_items, np.asarray(first_groups)))
    return found


def _tags(plan: Plan) -> tuple[Tags | None, str]:
    name = plan.spec.settings.dataset
    if plan.request.data_file or name not in TAGGED:
        return None, ""
    try:
        return load_tags(name, plan.request.paths.data_dir), ""
    except UserError as error:
        return None, f"Tags are left out: {error}"


def _map(models: Mapping[str, np.ndarray], groups: np.ndarray) -> list[dict[str, Any]]:
    """Returns items of the eight largest groups on the two principal directions of each model, rotated to the first."""
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
    """Returns an order of groups in which near ones are neighbours."""
    if len(cosines) < 3:
        return np.arange(len(cosines))
    distances = np.clip(1 - cosines[np.triu_indices(len(cosines), 1)], 0, 2)
    order: np.ndarray = hierarchy.leaves_list(hierarchy.linkage(distances, "average", optimal_ordering=True))
    return order


def topology_report(plan: Plan, every: Sequence[Row], seen: Related) -> Report:
    """Returns the report on relations: correlations, neighbours, prototypes, a map of items, and retrieval by tags."""
    title = f"What students keep of their teacher's topology on {plan.dataset_name}"
    if not seen.kept:
        return Report("topology", title, TOPOLOGY, UNFINISHED, failed(every))
    lines: list[tuple[Cell, ...]] = []
    data = []
    for side in SIDES:
        for row, by_seed in seen.kept.items():
            kept = [sides[side] for sides in by_seed.values()]
            columns = (
                [one.within.correlation for one in kept],
                [one.across.correlation for one in kept],
                [one.within.error for one in kept],
                [one.across.error for one in kept],
                [one.neighbours for one in kept],
                [one.groups.agreement.correlation for one in kept],
                [one.groups.agreement.error for one in kept],
            )
            lines.append((side, row.name, *map(_known, columns)))
            data.append({"part": side, "name": row.name, **mean_and_band([one.neighbours for one in kept])})
    head = (
        *("among", "", "r within groups", "r across", "error within", "error across", "neighbours kept"),
        *("r of prototypes", "error of prototypes"),
    )
    note = (
        "Cosines of pairs in the student against those in the teacher, within a group (by k-means of the teacher) and "
        "across groups: Pearson's r, and the mean error. Neighbours kept: the share of an entity's 10 nearest "
        "neighbours that are the same in both. Prototypes: the cosines between the means of groups."
    )
    spec = charts.grouped(data, value="share of neighbours kept", order=SIDES)
    parts: list[Part] = [Chart("neighbours", "The 10 nearest neighbours", spec)]
    levels = {row: by_seed[min(by_seed)]["items"].groups for row, by_seed in seen.kept.items()}
    teacher = np.array(next(iter(levels.values())).teacher)
    order = np.ix_(*[_leaves(teacher)] * 2)
    matrices = {"teacher": teacher[order]} | {row.name: np.array(own.student)[order] for row, own in levels.items()}
    spec = charts.heat(matrices, value="cosine", of="groups of items")
    parts.append(Chart("groups", "Cosines between the teacher's groups of items", spec, "First seed."))
    spec = charts.scatter(seen.map, x="first direction", y="second", facet="model")
    about = "Items of the teacher's eight largest groups, on the two principal directions of each model; first seed."
    parts.append(Chart("map", "The teacher's groups, and where students put them", spec, about))
    parts.append(Table("topology", "Relations kept", head, tuple(lines), note))
    if seen.retrieval:
        found = [(row.name, _known(x.precision for x in by_seed.values())) for row, by_seed in seen.retrieval.items()]
        one = next(iter(next(iter(seen.retrieval.values())).values()))
        about = (
            f"Mean average precision of the {one.k} nearest items by cosine, where those sharing a tag are relevant, "
            f"over {one.items:,} items, which share a tag with {one.by_chance:.1%} of the others on average."
        )
        name = "Articles that share a tag, by nearest neighbours"
        parts.append(Table("tags", name, ("", f"MAP@{one.k}"), tuple(found), about))
    if seen.note:
        parts.append(seen.note)
    return Report("topology", title, TOPOLOGY, _topology_answer(seen), [*parts, *failed(every)])


def _known(values: Any) -> Values:
    return Values(tuple(x for x in values if x is not None))


def _topology_answer(seen: Related) -> str:
    share = lambda row: np.mean([kept["both"].neighbours for kept in seen.kept[row].values()])
    best = max(seen.kept, key=share)
    plain = next((row for row in seen.kept if not row.is_distilled), None)
    other = f", the plain student {share(plain):.0%}" if plain and plain is not best else ""
    name = best.short_name
    return f"{name} keeps most of the teacher's 10 nearest neighbours among users and items, {share(best):.0%}{other}."


class Shown(NamedTuple):
    """Measures of a model's lists: its metrics in thirds by `popularity` and by `activity`, the lists' `character`, and
    their `likeness` to the teacher's."""

    popularity: list[Third]
    activity: list[Third]
    character: Character
    likeness: Likeness


def listed(plan: Plan, every: Sequence[Row], log: Callable[[str], None]) -> dict[Row, dict[int, Shown]]:
    """Returns what the lists of every model of the first width show, by row and seed."""
    found: dict[Row, dict[int, Shown]] = {}
    split, evaluation, rank, taught = plan.dataset.split, plan.spec.evaluation, None, None
    for seed, row, model in _models(plan, every, log, "lists"):
        rank = rank or make_ranker(split, protocol=evaluation.make())  # compiled once: all runs have the same split
        ranks = rank(model.make_model, model.variables)["test"]
        lists = _lists(model)
        taught = lists if row is every[0] else taught
        found.setdefault(row, {})[seed] = Shown(
            by_popularity(split.train, split.test, ranks, evaluation.cutoffs),
            by_activity(split.train, split.test, ranks, evaluation.cutoffs),
            character_of(lists, split.train),
            likeness_of(taught, lists),
        )
    return found


def _lists(model: Fitted) -> np.ndarray:
    """Returns every user's `K` best unseen items."""
    train = model.train
    if model.inner_product:
        users, items = (Rows(jnp.asarray(table)) for table in model.representations())
        return concatenate(best_items(users, items, K, hidden=Hidden.from_interactions(train)), K).rows
    scores = model_scores(model.make_model, model.variables, train)
    options: dict[str, Any] = {"rows": np.arange(train.num_users), "hidden": Hidden.from_interactions(train)}
    return concatenate(best_scored(scores, train.num_items, K, **options), K).rows


def beyond_report(plan: Plan, every: Sequence[Row], seen: Mapping[Row, Mapping[int, Shown]]) -> Report:
    """Returns the report on recall by popularity and activity, and on the lists."""
    title = f"Behind the mean on {plan.dataset_name}"
    if not seen:
        return Report("beyond", title, BEYOND, UNFINISHED, failed(every))
    metric = plan.metrics[0]
    first = next(iter(next(iter(seen.values())).values()))
    drawn: list[Part] = []
    tables: list[Part] = []
    for name, thirds, entities in (("popularity", POPULARITY, "items"), ("activity", ACTIVITY, "users")):
        values = lambda row, third, name=name: [getattr(x, name)[third].metrics[metric] for x in seen[row].values()]
        data = [
            {"part": part, "name": row.name, **mean_and_band(values(row, third))}
            for third, part in enumerate(thirds)
            for row in seen
        ]
        about = f"{metric} by the " + ("popularity of the item" if name == "popularity" else "activity of the user")
        drawn.append(Chart(name, about, charts.grouped(data, value=f"test {metric}", order=thirds)))
        cells: list[tuple[Cell, ...]] = [
            (row.name, *(_known(values(row, third)) for third in range(3))) for row in seen
        ]
        head = ("", *(f"{part.name}: {part.size:,} {entities}" for part in getattr(first, name)))
        tables.append(Table(name, about, head, tuple(cells)))
    facts: dict[str, Callable[[Shown], float | None]] = {
        "coverage": lambda x: x.character.coverage,
        "Gini": lambda x: x.character.gini,
        "popularity of the list / of the history": lambda x: x.character.above_history,
        "items of the teacher's list": lambda x: x.likeness.overlap,
        "RBO with it": lambda x: x.likeness.rank_biased,
    }
    lines: list[tuple[Cell, ...]] = [
        (row.name, *(_known(map(fact, seen[row].values())) for fact in facts.values())) for row in seen
    ]
    note = (
        f"Every user's {K} best unseen items. Coverage: the share of all items that are in a list. Gini: inequality of "
        f"how often they are, 0 if all equally. RBO: rank-biased overlap, persistence {first.likeness.p:g} (Webber et "
        "al., 2010)."
    )
    tables.append(Table("lists", "What the lists are like", ("", *facts), tuple(lines), note))
    return Report("beyond", title, BEYOND, _beyond_answer(seen, metric), [*drawn, *tables, *failed(every)])


def _beyond_answer(seen: Mapping[Row, Mapping[int, Shown]], metric: str) -> str:
    mean = lambda row, third: np.mean([x.popularity[third].metrics[metric] for x in seen[row].values()])
    teacher = next(iter(seen))
    distilled = [row for row in seen if row.is_distilled] or list(seen)
    best = max(distilled, key=lambda row: mean(row, 2))
    return (
        f"The teacher has a {metric} of {mean(teacher, 0):.4f} among the most popular items and {mean(teacher, 2):.4f} "
        f"in the tail; {best.short_name} is the best student in the tail, {mean(best, 2):.4f}."
    )
