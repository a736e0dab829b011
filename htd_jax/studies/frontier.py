"""The frontier: what a byte a row buys, for students of every kind and for the teacher's own rows in fewer bytes."""

import dataclasses
import importlib
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from htd_jax.data import Dataset
from htd_jax.distillers import METHODS
from htd_jax.errors import UserError
from htd_jax.evaluation import Evaluation
from htd_jax.models import BPRSettings, ModelOf
from htd_jax.ops.precision import for_bytes, row_bytes, to_precision
from htd_jax.pipeline import Experiment, Fitted, hash_of, write_json
from htd_jax.serving import Rows, best_items
from htd_jax.serving.topk import concatenate
from htd_jax.settings import as_json
from htd_jax.studies import charts
from htd_jax.studies.report import Chart, Part, Report, Table, Values, of_seeds
from htd_jax.training import Training

# Bytes of a row, unless it is said.
SIZES = (5, 10, 20, 50, 100)

# What stands beside each other: students, and the teacher's rows afterwards.
KINDS = ("best", "htd", "ftd", "svd", "als", "rounded", "pq", "opq")

# Of float32, so that few bytes are few numbers.
WIDTHS = (5, 10, 20)

# Of product codes, a byte each; a table with fewer rows has none.
CENTROIDS = 256

# Lists whose time is measured: of all users, so long.
K = 50

COLOURS = ("#0072b2", "#d55e00", "#e69f00", "#999999", "#cc79a7", "#009e73", "#56b4e9", "#000000")


@dataclasses.dataclass(frozen=True)
class Point:
    """A model of the frontier.

    Attributes:
      kind: of `KINDS`, or `teacher`.
      what: its name for people: `40 int4`.
      size: bytes of a row, scale and all.
      seed: of it and of its teacher.
      test, valid: metrics.
      milliseconds: to rank all users' `K` best.
    """

    kind: str
    what: str
    size: float
    seed: int
    test: dict[str, float]
    valid: dict[str, float]
    milliseconds: float


def check_kinds(kinds: Sequence[str]) -> None:
    """Raises UserError for a kind that there is not, or that lacks its library."""
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"--kinds: unknown value {kind!r}; known: {', '.join(KINDS)}")
        if kind in ("pq", "opq") and importlib.util.find_spec("faiss") is None:
            raise UserError(f"--kinds: {kind} needs faiss: pip install faiss-cpu; or leave it out of --kinds")


def points(
    data: Dataset,
    evaluation: Evaluation,
    runs: Path,
    *,
    seeds: Sequence[int] = (0,),
    sizes: Sequence[int] = SIZES,
    kinds: Sequence[str] = KINDS,
    told: Callable[[str], None] = lambda line: None,
) -> Iterator[Point]:
    """Every model, the ials teacher of each seed first; what was trained in `runs` before is found there."""
    for seed in seeds:
        experiment = Experiment(data, Training(), evaluation.filled(), seed)
        yield from _of_seed(experiment, runs, sizes, kinds, told)


def _of_seed(
    experiment: Experiment, runs: Path, sizes: Sequence[int], kinds: Sequence[str], told: Callable[[str], None]
) -> Iterator[Point]:
    phase = _Phase(experiment, runs, told)
    teacher = phase("teacher", "ials")
    tables = teacher.representations()
    width = tables.users.shape[1]

    def point(kind: str, what: str, size: float, rows: Any, metrics: Any) -> Point:
        test, valid = metrics
        return Point(kind, what, size, experiment.seed, test, valid, _rank_time(*rows))

    whole = tuple(map(Rows, tables))
    yield point("teacher", f"{width} float32", 4 * width, whole, _metrics(teacher))
    for size in sizes if "best" in kinds else ():
        dim, precision = for_bytes(size, width)
        student = phase("best", "bpr", dim, teacher, precision)
        yield point("best", f"{dim} {precision}", row_bytes(dim, precision), _rows(student), _metrics(student))
    for kind in ("best", "htd", "ftd", "svd", "als"):
        for dim in WIDTHS if kind in kinds else ():
            student = phase("als", "ials", dim) if kind == "als" else phase(kind, "bpr", dim, teacher)
            named = "best, float32" if kind == "best" else kind
            yield point(named, f"{dim} float32", 4 * dim, _rows(student), _metrics(student))
    afterwards = [("rounded", precision, row_bytes(width, precision)) for precision in ("int8", "int4")]
    afterwards += [(kind, f"{size} codes", size) for kind in ("pq", "opq") for size in sizes if size <= width]
    made_of = {"data": experiment.fingerprint, "evaluation": as_json(experiment.evaluation), "of": hash_of(tables)}
    for kind, what, size in afterwards:
        if kind in kinds and kind in ("pq", "opq") and min(map(len, tables)) < CENTROIDS:
            told(f"{kind}, {what}: left out, fewer rows than its {CENTROIDS} centroids")
        elif kind in kinds:
            told(f"{kind}, {what}")
            named = f"{experiment.data.name}-{kind}-{what.replace(' ', '-')}-seed{experiment.seed}.json"
            if found := _kept(runs / named, made_of):
                yield found
                continue
            rows = [_afterwards(kind, what, size, np.asarray(table)) for table in tables]
            users, items = (one.floats() for one in rows)
            metrics = experiment.evaluate(
                ModelOf(BPRSettings(), users.shape[1]), {"params": {"users": users, "items": items}}
            )
            parts = tuple({n: float(x) for n, x in metrics[part].items()} for part in ("test", "valid"))
            made = point(kind, what, size, rows, parts)
            write_json(runs / named, {**made_of, "point": dataclasses.asdict(made)})
            yield made


def _kept(path: Path, made_of: dict[str, Any]) -> Point | None:
    """A point that was written before, if it was made of the same."""
    try:
        found = json.loads(path.read_text())
        point = Point(**found.pop("point"))
        return point if found == made_of else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclasses.dataclass(frozen=True)
class _Phase:
    """Trains, or finds what was trained."""

    experiment: Experiment
    runs: Path
    told: Callable[[str], None]

    def __call__(
        self, name: str, model: str, dim: int | None = None, teacher: Fitted | None = None, precision: str = "float32"
    ) -> Fitted:
        self.told(" ".join(str(x) for x in (name, dim or "", precision) if x))
        parts = (self.experiment.data.name, name, str(dim or ""), precision, f"seed{self.experiment.seed}")
        helps: dict[str, Any] = {}
        if teacher is not None:
            helps = {"teacher": teacher.teacher(), "teacher_settings": teacher.settings}
            helps["methods"] = {name: METHODS[name]()}
        folder = self.runs / "-".join(part for part in parts if part)
        return self.experiment.phase(
            name if teacher or name == "teacher" else "student",
            model,
            dim,
            **helps,
            precision=precision,
            folder=folder,
            progress=False,
        )


def _metrics(fitted: Fitted) -> tuple[dict[str, float], dict[str, float]]:
    return fitted.chosen["test"], fitted.chosen["valid"]


def _rows(fitted: Fitted) -> tuple[Rows, Rows]:
    served = fitted.retriever()
    return served.users, served.items


def _afterwards(kind: str, precision: str, size: int, table: np.ndarray) -> Rows:
    """A table of the teacher in so many bytes a row; of product codes, what they stand for."""
    if kind == "rounded":
        return to_precision(jnp.asarray(table), precision)
    faiss: Any = importlib.import_module("faiss")  # of those who want it
    table = np.ascontiguousarray(np.pad(table, ((0, 0), (0, -table.shape[1] % size))), np.float32)
    turn = faiss.OPQMatrix(table.shape[1], size) if kind == "opq" else None
    if turn is not None:
        turn.train(table)
        table = turn.apply(table)
    codes = faiss.ProductQuantizer(table.shape[1], size, 8)
    codes.cp.min_points_per_centroid = 1  # no warning a codebook
    codes.train(table)
    stands_for = codes.decode(codes.compute_codes(table))
    return Rows(jnp.asarray(stands_for if turn is None else turn.reverse_transform(stands_for)))


def _rank_time(users: Rows, items: Rows) -> float:
    """Milliseconds, the better of two, once it is compiled."""
    found = []
    for _ in range(3):
        begun = time.perf_counter()
        concatenate(best_items(users, items, K), K)
        found.append(1e3 * (time.perf_counter() - begun))
    return min(found[1:])


QUESTION = "What does a byte a row buy?"


def table(found: Sequence[Point], metrics: Sequence[str]) -> Table:
    """A row a model, the smallest first."""
    made: list[tuple[str | Values, ...]] = []
    for (size, kind, what), own in grouped(found):
        figures = [Values(tuple(point.test[metric] for point in own)) for metric in metrics]
        milliseconds = f"{statistics.mean(point.milliseconds for point in own):.0f}"
        made.append((f"{size:g}", kind, what, *figures, milliseconds))
    return Table("frontier", "Every model", ("bytes a row", "", "", *metrics, "ms to rank all"), tuple(made))


def report(found: Sequence[Point], metrics: Sequence[str], dataset: str) -> Report:
    """Recall against bytes, recall against the time to rank, and the table."""
    metric = metrics[0]
    data: list[dict[str, Any]] = [
        {"name": kind, "what": what, "x": size, "ms": statistics.mean(point.milliseconds for point in own)}
        | of_seeds([point.test[metric] for point in own])
        for (size, kind, what), own in grouped(found)
    ]
    models, teachers = ([x for x in data if (x["name"] == "teacher") == is_it] for is_it in (False, True))
    parts: list[Part] = []
    level = teachers[0]["mean"] if teachers else None
    if models:
        spec = charts.lines(models, x="bytes a row", y=f"test {metric}", log=True, reference=level)
        note = "The dashed line is the teacher, uncompressed; bands are a standard deviation over seeds."
        parts.append(Chart("bytes", f"{metric} by bytes a row", spec, note))
        timed = [{**x, "x": x["ms"]} for x in models]
        label = f"ms to find every user's {K} best"
        spec = charts.lines(timed, x=label, y=f"test {metric}", reference=level, joined=False)
        parts.append(Chart("time", f"{metric} by the time to rank", spec))
    title = f"The best recall that a byte can buy, on {dataset}"
    return Report("frontier", title, QUESTION, _answer(models, teachers), [*parts, table(found, metrics)])


def _answer(models: Sequence[dict[str, Any]], teachers: Sequence[dict[str, Any]]) -> str:
    """From how many bytes on a model keeps so much of the teacher."""
    told: dict[str, str] = {}
    for share in (0.9, 0.95) if teachers else ():
        enough = [x for x in models if x["mean"] >= share * teachers[0]["mean"]]
        if enough:
            least = min(enough, key=lambda x: (x["x"], -x["mean"]))
            told[f"{least['x']:g} bytes ({least['name']}, {least['what']})"] = f"{share:.0%}"
    size = f"; the teacher has {teachers[0]['x']:g}." if teachers else "."
    if not told:
        return "No model keeps nine tenths of the teacher's recall."
    return "; ".join(f"{share} of the teacher's recall takes {what}" for what, share in told.items()) + size


def grouped(found: Sequence[Point]) -> list[tuple[tuple[float, str, str], list[Point]]]:
    """The points of all seeds together, by bytes, kind and name."""
    groups: dict[tuple[float, str, str], list[Point]] = {}
    for point in found:
        groups.setdefault((point.size, point.kind, point.what), []).append(point)
    return sorted(groups.items(), key=lambda group: group[0])


def draw(found: Sequence[Point], metric: str, figure: Any) -> None:
    """Recall against bytes, and against the time to rank; a line a kind."""
    panels = figure.subplots(1, 2, sharey=True)
    kinds = [kind for kind in dict.fromkeys(point.kind for point in found) if kind != "teacher"]
    teacher = [point for point in found if point.kind == "teacher"]
    level = statistics.mean(point.test[metric] for point in teacher)
    for panel, of, label in (
        (panels[0], lambda point: point.size, "bytes a row"),
        (panels[1], lambda point: point.milliseconds, f"ms to find every user's {K} best"),
    ):
        for kind, colour in zip(kinds, COLOURS):
            own = [points for (_, its, _), points in grouped(found) if its == kind]
            x = [statistics.mean(map(of, points)) for points in own]
            y = [statistics.mean(point.test[metric] for point in points) for points in own]
            order = np.argsort(x)
            # Times are too close to one another for a line to mean anything.
            width = 0.0 if panel is panels[1] else 2.2 if kind == "best" else 1.2
            style: Any = {"marker": "o", "markersize": 5 if kind == "best" else 4, "linewidth": width}
            panel.plot(np.array(x)[order], np.array(y)[order], color=colour, label=kind, **style)
        panel.axhline(level, color="#555555", linewidth=1, linestyle="--", label=f"teacher, {teacher[0].size:g} bytes")
        panel.set(xlabel=label)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3)
    sizes = [point.size for point in found]
    ticks = [m * 10**e for e in range(5) for m in (1, 2, 5) if min(sizes) <= m * 10**e <= max(sizes)]
    panels[0].set_xscale("log")
    panels[0].set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    panels[0].set_xticks([], minor=True)
    panels[0].set_ylabel(f"test {metric}")
    panels[1].set_xlim(left=0)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
