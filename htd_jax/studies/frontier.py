"""The frontier: recall per byte, for students of every kind and for the teacher's own rows compressed."""

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
from htd_jax.errors import UserError
from htd_jax.evaluation import Evaluation
from htd_jax.models import BPRSettings, ModelOf
from htd_jax.ops.precision import for_bytes, row_bytes, to_precision
from htd_jax.pipeline import (
    NO_METHOD,
    STUDENT,
    TEACHER,
    Experiment,
    Fitted,
    PhaseRequest,
    hash_of,
    resolve,
    silent,
    write_json,
)
from htd_jax.serving import Rows, best_items
from htd_jax.serving.topk import concatenate
from htd_jax.studies import charts
from htd_jax.studies.report import Cell, Chart, Part, Report, Table, Values, mean_and_band

# The default bytes per row.
SIZES = (5, 10, 20, 50, 100)

# Kinds of models: students, and the teacher's rows compressed.
KINDS = ("best", "htd", "ftd", "svd", "als", "rounded", "pq", "opq")

# The widths of float32 students.
WIDTHS = (5, 10, 20)

# Centroids of a product code, one byte each; a table with fewer rows has no code.
CENTROIDS = 256

# The length of the lists whose time is measured.
K = 50


@dataclasses.dataclass(frozen=True)
class Point:
    """A model of the frontier.

    Attributes:
      kind: one of `KINDS`, or `teacher`.
      what: width and precision, as shown to people: `40 int4`.
      size: the bytes per row, scale included.
      seed: the seed of the model and its teacher.
      test, valid: the metrics.
      milliseconds: the time to rank every user's `K` best items.
    """

    kind: str
    what: str
    size: float
    seed: int
    test: dict[str, float]
    valid: dict[str, float]
    milliseconds: float


def check_kinds(kinds: Sequence[str]) -> None:
    """Raises UserError if a kind is unknown, or lacks its library."""
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"`kinds` has an unknown value {kind!r} (known: {', '.join(KINDS)})")
        if kind in ("pq", "opq") and importlib.util.find_spec("faiss") is None:
            raise UserError(f"`kinds` {kind} needs faiss: pip install faiss-cpu; or leave it out")


@dataclasses.dataclass(frozen=True)
class Frontier:
    """The models of a frontier, and where they are kept.

    Attributes:
      data: the data set.
      evaluation: how models are evaluated.
      runs: the folder in which trained models are kept and found.
      sizes: the bytes per row.
      kinds: the kinds of models.
      log: a callback, called with a line before each model.
    """

    data: Dataset
    evaluation: Evaluation
    runs: Path
    sizes: Sequence[int] = SIZES
    kinds: Sequence[str] = KINDS
    log: Callable[[str], None] = lambda line: None

    def points(self, seeds: Sequence[int] = (0,)) -> Iterator[Point]:
        """Yields every model, the iALS teacher of each seed first."""
        experiment = Experiment(self.data, self.evaluation.resolve(self.data.split))
        for seed in seeds:
            yield from self._points(experiment, seed)

    def _points(self, experiment: Experiment, seed: int) -> Iterator[Point]:
        def trained(kind: str, what: str, size: float, model: Fitted) -> Point:
            served = model.retriever()
            test, valid = model.chosen["test"], model.chosen["valid"]
            return Point(kind, what, size, seed, test, valid, _rank_time(served.users, served.items))

        def train(name: str, dim: int, precision: str = "float32") -> Fitted:
            return self._train(experiment, name, seed, teacher, dim, precision)

        teacher = self._train(experiment, TEACHER, seed)
        tables = teacher.representations()
        width = tables.users.shape[1]
        yield trained(TEACHER, f"{width} float32", 4 * width, teacher)
        for size in self.sizes if "best" in self.kinds else ():
            dim, precision = for_bytes(size, width)
            yield trained("best", f"{dim} {precision}", row_bytes(dim, precision), train("best", dim, precision))
        for kind in ("best", "htd", "ftd", "svd", "als"):
            for dim in WIDTHS if kind in self.kinds else ():
                title = "best, float32" if kind == "best" else kind
                yield trained(title, f"{dim} float32", 4 * dim, train(kind, dim))
        compressed = [("rounded", precision, row_bytes(width, precision)) for precision in ("int8", "int4")]
        compressed += [(kind, f"{size} codes", size) for kind in ("pq", "opq") for size in self.sizes if size <= width]
        made_from = {
            "data": experiment.fingerprint,
            "evaluation": experiment.evaluation.describe(),
            "teacher": hash_of(tables),
        }
        for kind, what, size in compressed:
            if kind not in self.kinds:
                continue
            if kind in ("pq", "opq") and min(map(len, tables)) < CENTROIDS:
                self.log(f"{kind}, {what}: left out, fewer rows than its {CENTROIDS} centroids")
                continue
            self.log(f"{kind}, {what}")
            path = self.runs / f"{self.data.name}-{kind}-{what.replace(' ', '-')}-seed{seed}.json"
            point = _read_point(path, made_from)
            if point is None:
                users, items = (_compress(kind, what, size, np.asarray(table)) for table in tables)
                variables = {"params": {"users": users.floats(), "items": items.floats()}}
                metrics = experiment.evaluate_in_full(ModelOf(BPRSettings(), users.dim), variables)
                test, valid = ({n: float(x) for n, x in metrics[part].items()} for part in ("test", "valid"))
                point = Point(kind, what, size, seed, test, valid, _rank_time(users, items))
                write_json(path, {**made_from, "point": dataclasses.asdict(point)})
            yield point

    def _train(
        self,
        experiment: Experiment,
        name: str,
        seed: int,
        teacher: Fitted | None = None,
        dim: int | None = None,
        precision: str = "float32",
    ) -> Fitted:
        self.log(" ".join(str(x) for x in (name, dim or "", precision) if x))
        alone = name in (TEACHER, "als")
        request = PhaseRequest(
            role=TEACHER if name == TEACHER else STUDENT,
            model="ials" if alone else "bpr",
            dim=dim,
            method=NO_METHOD if alone else name,
            precision=precision,
            seed=seed,
            evaluation=self.evaluation,
        )
        parts = (self.data.name, name, str(dim or ""), precision, f"seed{seed}")
        return experiment.train(
            resolve(request, self.data.split),
            None if alone else teacher,
            folder=self.runs / "-".join(part for part in parts if part),
            progress=silent,
        )


def _read_point(path: Path, made_from: dict[str, Any]) -> Point | None:
    """Returns the point in a file, if it was made from the same."""
    try:
        found = json.loads(path.read_text())
        point = Point(**found.pop("point"))
        return point if found == made_from else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _compress(kind: str, precision: str, size: int, table: np.ndarray) -> Rows:
    """Returns a table of the teacher in `size` bytes per row; of product codes, the decoded rows."""
    if kind == "rounded":
        return to_precision(jnp.asarray(table), precision)
    faiss: Any = importlib.import_module("faiss")  # optional
    width = table.shape[1]
    table = np.ascontiguousarray(np.pad(table, ((0, 0), (0, -width % size))), np.float32)
    rotation = faiss.OPQMatrix(table.shape[1], size) if kind == "opq" else None
    if rotation is not None:
        rotation.train(table)
        table = rotation.apply(table)
    codes = faiss.ProductQuantizer(table.shape[1], size, 8)
    codes.cp.min_points_per_centroid = 1  # else it warns once per codebook
    codes.train(table)
    decoded = codes.decode(codes.compute_codes(table))
    return Rows(jnp.asarray(decoded if rotation is None else rotation.reverse_transform(decoded)))


def _rank_time(users: Rows, items: Rows) -> float:
    """Returns the milliseconds to rank all users, the better of two runs after compilation."""
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        concatenate(best_items(users, items, K), K)
        times.append(1e3 * (time.perf_counter() - begin))
    return min(times[1:])


QUESTION = "What does a byte per row buy?"


def table(points: Sequence[Point], metrics: Sequence[str]) -> Table:
    """Returns a table with a row per model, the smallest first."""
    lines: list[tuple[Cell, ...]] = []
    for (size, kind, what), own in grouped(points):
        figures = [Values(tuple(point.test[metric] for point in own)) for metric in metrics]
        lines.append((f"{size:g}", kind, what, *figures, f"{statistics.mean(point.milliseconds for point in own):.0f}"))
    return Table("frontier", "Every model", ("bytes per row", "", "", *metrics, "ms to rank all"), tuple(lines))


def report(points: Sequence[Point], metrics: Sequence[str], dataset: str) -> Report:
    """Returns charts of the metric by bytes and by the time to rank, and the table."""
    metric = metrics[0]
    data: list[dict[str, Any]] = [
        {"name": kind, "what": what, "x": size, "ms": statistics.mean(point.milliseconds for point in own)}
        | mean_and_band([point.test[metric] for point in own])
        for (size, kind, what), own in grouped(points)
    ]
    models, teachers = ([x for x in data if (x["name"] == TEACHER) == is_teacher] for is_teacher in (False, True))
    parts: list[Part] = []
    level = teachers[0]["mean"] if teachers else None
    if models:
        spec = charts.lines(models, x="bytes per row", y=f"test {metric}", log=True, reference=level)
        note = "The dashed line is the teacher, uncompressed; bands are a standard deviation over seeds."
        parts.append(Chart("bytes", f"{metric} by bytes per row", spec, note))
        timed = [{**x, "x": x["ms"]} for x in models]
        spec = charts.lines(
            timed, x=f"ms to find every user's {K} best", y=f"test {metric}", reference=level, joined=False
        )
        parts.append(Chart("time", f"{metric} by the time to rank", spec))
    title = f"The best recall that a byte can buy, on {dataset}"
    answer = _answer(models, teachers)
    return Report("frontier", title, QUESTION, answer, [*parts, table(points, metrics)], picture=("bytes", "time"))


def _answer(models: Sequence[dict[str, Any]], teachers: Sequence[dict[str, Any]]) -> str:
    """Returns how many bytes keep which share of the teacher's recall."""
    shares: dict[str, str] = {}
    for share in (0.9, 0.95) if teachers else ():
        enough = [x for x in models if x["mean"] >= share * teachers[0]["mean"]]
        if enough:
            least = min(enough, key=lambda x: (x["x"], -x["mean"]))
            shares[f"{least['x']:g} bytes ({least['name']}, {least['what']})"] = f"{share:.0%}"
    if not shares:
        return "No model keeps nine tenths of the teacher's recall."
    kept = "; ".join(f"{share} of the teacher's recall takes {what}" for what, share in shares.items())
    return f"{kept}; the teacher has {teachers[0]['x']:g}."


def grouped(points: Sequence[Point]) -> list[tuple[tuple[float, str, str], list[Point]]]:
    """Returns the points of all seeds together, by bytes, kind and name."""
    groups: dict[tuple[float, str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point.size, point.kind, point.what), []).append(point)
    return sorted(groups.items(), key=lambda group: group[0])
