"""The frontier: recall per byte, for students of every kind and for the teacher's own rows compressed."""

import dataclasses
import importlib
import importlib.util
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from htd_jax.data import Dataset
from htd_jax.errors import UserError
from htd_jax.models import BPRSettings, IALSSettings, ModelOf
from htd_jax.ops.codes import row_bytes
from htd_jax.ops.precision import to_precision
from htd_jax.pipeline import (
    NO_METHOD,
    STUDENT,
    TEACHER,
    Experiment,
    Fitted,
    PhaseRequest,
    RunFolder,
    RunRequest,
    RunResult,
    Trials,
    hash_of,
    resolve,
    resolve_run,
    run,
    silent,
    write_json,
)
from htd_jax.serve.rank import concatenate
from htd_jax.serving import Rows, best_items
from htd_jax.studies import charts
from htd_jax.studies.report import Chart, Part, Report, mean_and_band
from htd_jax.studies.tables import Cell, Table, Values

# The default bytes per row.
SIZES = (5, 10, 20, 50, 100)

# Kinds of models: students, and the teacher's rows compressed.
KINDS = ("best", "plain", "als", "svd", "rounded", "pq", "opq", "htd", "ftd")

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
      milliseconds: the time to rank every user's `K` best items; 0 if the model has no rows to rank by.
      asked: the bytes that were asked for, where a choice may take fewer.
    """

    kind: str
    what: str
    size: float
    seed: int
    test: dict[str, float]
    valid: dict[str, float]
    milliseconds: float
    asked: int | None = None


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
      request: data, evaluation, folder of runs and budget; method, bytes and seed are the frontier's.
      data: the data set of the request.
      sizes: the bytes per row. Models in float32 have as many dimensions, which take four times the bytes.
      kinds: the kinds of models.
      log: a callback, called with a line before each model.
    """

    request: RunRequest
    data: Dataset
    sizes: Sequence[int] = SIZES
    kinds: Sequence[str] = KINDS
    log: Callable[[str], None] = lambda line: None

    @property
    def runs(self) -> Path:
        """The folder in which trained models are kept and found."""
        return self.request.paths.runs

    def points(self, seeds: Sequence[int] = (0,)) -> Iterator[Point]:
        """Yields every model, the teacher of each seed first."""
        for seed in seeds:
            yield from self._points(seed)

    def _points(self, seed: int) -> Iterator[Point]:
        def trained(kind: str, what: str, size: float, model: Fitted, asked: int | None = None) -> Point:
            test, valid = model.chosen["test"], model.chosen["valid"]
            milliseconds = 0.0
            if model.inner_product:
                served = model.retriever()
                milliseconds = _rank_time(served.users, served.items)
            return Point(kind, what, size, seed, test, valid, milliseconds, asked)

        def train(name: str, dim: int) -> Fitted:
            return self._train(experiment, name, seed, factors, dim, solved)

        for number, size in enumerate(self.sizes if "best" in self.kinds else self.sizes[:1]):
            self.log(f"best, {size} bytes")
            result = self._best(seed, size)
            if not number:
                experiment, teacher = result.experiment, result.phases[TEACHER]
                model = teacher.settings["model"]
                rows = self.data.train.num_users + self.data.train.num_items
                size_of = 4 * teacher.parameters / rows  # EASE has a matrix in place of rows
                yield trained(TEACHER, f"{model['name']} {model['dim']} float32", round(size_of), teacher)
            if "best" in self.kinds:
                own = result.phases["best"].settings["model"]
                dim, precision = own["dim"], own.get("precision", "float32")
                fitted = result.phases["best"]
                yield trained("best", f"{dim} {precision}", row_bytes(dim, precision), fitted, size)
        factors, solved = self._factors(experiment, result, seed)
        for kind in ("plain", "htd", "ftd", "svd", "als"):
            for dim in self.sizes if kind in self.kinds else ():
                yield trained(kind, f"{dim} float32", 4 * dim, train(kind, dim))
        tables = factors.representations()
        width = tables.users.shape[1]
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

    def _best(self, seed: int, size: int) -> RunResult:
        """Runs `best` at a size, as `htd-jax train` does."""
        settings = dataclasses.replace(self.request.settings, method="best", seed=seed, bytes=size)
        spec = resolve_run(dataclasses.replace(self.request, settings=settings), self.data)
        return run(spec, Experiment(self.data, spec.evaluation), progress=silent)

    def _factors(self, experiment: Experiment, result: RunResult, seed: int) -> tuple[Fitted, IALSSettings]:
        """Returns the best teacher that has factors, and its settings: the run's, or the best iALS among its trials."""
        teacher = result.phases[TEACHER]
        model = teacher.make_model
        if isinstance(model, ModelOf) and type(model.settings) is IALSSettings:
            return teacher, model.settings
        tried = Trials(RunFolder(result.spec.folder).trials, result.spec.evaluation.metric)
        best = max((t for t in tried.of(TEACHER) if t.settings["model"]["name"] == "ials"), key=tried.value)
        fields = {name: x for name, x in best.settings["model"].items() if name not in ("name", "dim")}
        settings = IALSSettings(**fields)
        assert result.spec.teacher is not None
        training = dataclasses.replace(result.spec.teacher.training, epochs=best.epoch + 1)
        dim = best.settings["model"]["dim"]
        phase = dataclasses.replace(result.spec.teacher, make_model=ModelOf(settings, dim), dim=dim, training=training)
        folder = self.runs / f"{self.data.name}-factors-seed{seed}"
        return experiment.train(phase, folder=folder, progress=silent), settings

    def _train(
        self, experiment: Experiment, name: str, seed: int, teacher: Fitted, dim: int, solved: IALSSettings
    ) -> Fitted:
        """Returns a model of `dim` float32 numbers per row: a method's student, the plain one, or iALS at the lambda
        that is best in validation, from the teacher's down."""
        self.log(f"{name} {dim}")
        models: list[tuple[str, str | IALSSettings]] = [("", "bpr")]
        if name == "als":
            penalties = [solved.regularization / factor for factor in (1, 2, 4, 8)]
            models = [(f"{x:g}", dataclasses.replace(solved, regularization=x)) for x in penalties]
        found = []
        for part, model in models:
            request = PhaseRequest(
                role=STUDENT,
                model=model,
                dim=dim,
                method=NO_METHOD if name in ("als", "plain") else name,
                seed=seed,
                evaluation=self.request.evaluation,
            )
            parts = (self.data.name, name, str(dim), part, f"seed{seed}")
            folder = self.runs / "-".join(x for x in parts if x)
            phase = resolve(request, self.data.split)
            found.append(experiment.train(phase, teacher, folder=folder, progress=silent))
        metric = experiment.evaluation.metric
        return max(found, key=lambda fitted: fitted.chosen["valid"][metric])


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
    """Returns the points of all seeds together, by bytes, kind and name, the smallest first: those that were asked for
    the same bytes, and the teachers, whatever was chosen for each seed."""
    groups: dict[tuple[float, str], list[Point]] = {}
    for point in points:
        size = math.inf if point.kind == TEACHER else point.size if point.asked is None else point.asked
        groups.setdefault((size, point.kind), []).append(point)
    named = []
    for (size, kind), own in sorted(groups.items(), key=lambda group: group[0]):
        what = " or ".join(dict.fromkeys(point.what for point in own))
        named.append(((max(point.size for point in own) if size == math.inf else size, kind, what), own))
    return named
