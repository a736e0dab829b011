"""Recall as data keep coming: what different ways to keep a student up to date learn, retain and cost.

Interactions arrive in blocks. After block k, every way has a model, which is measured on the held-out items of every
block i up to k, without those that its user has in train or validation of that block: a[k, i]. Learned is the mean of
a[i, i], what each block's own model knew of it; retained is the mean of a[k, i]; H is their harmonic mean.

Source: Lee et al., KDD'24, CCD: continual collaborative distillation.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Interval

from htd_jax.data import Dataset
from htd_jax.data.blocks import Blocks
from htd_jax.distillers import RRD, Lists, Listwise, Memory, Method, Replay, Teacher, in_scale_of, remember, with_falls
from htd_jax.ensembles import rank_power
from htd_jax.evaluation import Evaluation, make_evaluator
from htd_jax.models import ModelOf, grow_variables
from htd_jax.pipeline import (
    STUDENT,
    TEACHER,
    Experiment,
    Fitted,
    PhaseRequest,
    default_method,
    resolve,
    silent,
    training_of,
    write_json,
)
from htd_jax.studies.charts import heat, lines
from htd_jax.studies.report import UNFINISHED, Chart, Part, Report, mean_and_band
from htd_jax.studies.tables import Cell, Table, Values
from htd_jax.training import Training

# The best items of the teachers' ensemble that a student learns from.
LISTED = 100


@dataclasses.dataclass(frozen=True)
class Continual:
    """Settings of a study of data that keep coming."""

    ways: tuple[str, ...] = ("none", "fold-in", "fine-tuning", "update", "retraining", "ccd")
    """Ways to keep the student up to date: none, fold-in (computes rows of new users and items), fine-tuning (on the
    new block alone), update (with replay, as htd-jax update), retraining (teachers and student anew, on all blocks),
    ccd (teachers and student learn from each other)."""
    teachers: tuple[str, ...] = ("bpr", "bpr", "bpr", "bpr", "bpr")
    """Base models of the teachers, each of a seed of its own; their ensemble teaches."""
    teacher_dim: Annotated[int, Ge(1)] = 64
    """Width of the teachers' tables."""
    student_dim: Annotated[int, Ge(1)] = 16
    """Width of the student's tables."""
    generation: Literal["listwise", "rrd"] = "listwise"
    """How a student learns from the teachers' ensemble: listwise, with the softmax loss; or rrd, with the model's own
    loss, as published."""
    teacher_epochs: Annotated[int, Ge(1)] = 101
    """Largest number of epochs of a teacher; validation keeps the best."""
    student_epochs: Annotated[int, Ge(1)] | None = None
    """Number of epochs of a student that starts anew. Default: 20 for listwise, or more to reach 800 steps; 101."""
    update_epochs: Annotated[int, Ge(1)] = 10
    """Number of epochs on a new block."""
    stability: Annotated[float, Interval(ge=0, le=1)] = 0.9
    """Share of itself that the slow proxy of the student keeps per block."""
    plasticity: Annotated[float, Interval(ge=0, le=1)] = 0.1
    """Share of itself that the fast proxy keeps."""
    retrain_every: Annotated[int, Ge(1)] = 1
    """Retraining is measured after every so many blocks, and after the last."""


@dataclasses.dataclass
class Chain:
    """The blocks, and the training of models on them, from checkpoints where there are any.

    Attributes:
      blocks: the data.
      settings: of the study.
      seed: the seed of everything random.
      folder: where checkpoints are.
    """

    blocks: Blocks
    settings: Continual
    seed: int
    folder: Path

    def __post_init__(self) -> None:
        self.evaluation = Evaluation(cutoffs=(10, 20, 50), metric="recall@20")
        self.evaluators: dict[tuple[int, int], Any] = {}
        self.spent = 0.0

    def train(
        self,
        name: str,
        data: Dataset,
        *,
        model: str | ModelOf = "bpr",
        dim: int | None = None,
        method: Sequence[Method] = (),
        teacher: Teacher | None = None,
        start: Fitted | None = None,
        seed: int | None = None,
        epochs: int | None = None,
        softmax: bool = False,
        teaches: bool = False,
    ) -> Fitted:
        """Trains a model, or resumes or reuses it, in a folder of this name: with early stopping if it starts anew.

        `spent` counts its seconds, also of earlier processes, without evaluation.
        """
        if start is None:
            training = Training(epochs=epochs, patience=10, eval_every=5, loss="softmax" if softmax else None)
        else:
            training = training_of(start, {"epochs": self.settings.update_epochs}, data)
        request = PhaseRequest(
            TEACHER if teaches else STUDENT,
            model,
            dim,
            list(method) or "none",
            start="random" if start is None else "student",
            seed=self.seed if seed is None else seed,
            training=training,
            evaluation=self.evaluation,
        )
        spec = resolve(request, data.split)
        if start is not None:
            start = dataclasses.replace(start, settings={**start.settings, "model": spec.describe_model()})
        fitted = Experiment(data, spec.evaluation).train(
            spec, teacher, start=start, folder=self.folder / name, progress=silent, title=name
        )
        self.spent += sum(fitted.spent.values()) - fitted.spent.get("evaluation", 0.0)
        return fitted

    def update(
        self,
        name: str,
        start: Fitted,
        kept: Sequence[Fitted],
        *,
        seed: int | None = None,
        memory: Memory | None = None,
        decay: float = Replay.decay,
    ) -> Fitted:
        """Trains a model that has grown on its data's new block, while it keeps what some models were.

        Args:
          name: of its folder.
          start: the model.
          kept: the models; none if empty.
          seed: the study's if None.
          memory: what they remember, if that is known.
          decay: of `Replay`.
        """
        known, model = start.train, cast(ModelOf, start.make_model)
        scores: list[Any] = [fitted.teacher().scores for fitted in kept]
        method, teacher = default_method(start), None
        if isinstance(method, Replay):
            method = dataclasses.replace(method, decay=decay)
        if kept and isinstance(method, Replay):
            memory = memory or remember(scores, known, method.top)
            own: Any = start.teacher().scores
            if any(_kind(fitted) != _kind(start) for fitted in kept):
                memory = in_scale_of(memory, own, known)
            teacher = Teacher(memory=with_falls(memory, own, known))
        elif kept:
            teacher = Teacher(lists=Lists(rank_power(scores, known, LISTED)))
        methods = [method] if kept else []
        return self.train(name, start.data, model=model, method=methods, teacher=teacher, start=start, seed=seed)

    def grow(self, fitted: Fitted, k: int) -> Fitted:
        """Returns a model of block k - 1 with rows of the users and items that block k brings."""
        data = self.blocks.dataset(k)
        if self.blocks.sizes(k) == (fitted.train.num_users, fitted.train.num_items):
            return dataclasses.replace(fitted, data=data)
        assert data.block is not None
        old = fitted.train.num_users, fitted.train.num_items
        variables = grow_variables(fitted.make_model, fitted.variables, data.block, *old)
        return dataclasses.replace(fitted, variables=variables, data=data)

    def teachers(self, name: str, data: Dataset) -> list[Fitted]:
        """Trains the teachers anew."""
        return [
            self.train(
                f"{name}-{number}",
                data,
                model=model,
                dim=self.settings.teacher_dim,
                seed=_seed(self.seed, number),
                epochs=self.settings.teacher_epochs,
                teaches=True,
            )
            for number, model in enumerate(self.settings.teachers)
        ]

    def student(self, name: str, data: Dataset, teachers: Sequence[Fitted]) -> Fitted:
        """Trains a student anew, with the help of the teachers' ensemble."""
        softmax = self.settings.generation == "listwise"
        return self.train(
            name,
            data,
            dim=self.settings.student_dim,
            method=[Listwise(top=LISTED, perplexity=LISTED / 3) if softmax else RRD()],
            teacher=ensemble(teachers, data),
            epochs=self.settings.student_epochs,
            softmax=softmax,
        )

    @functools.cached_property
    def first(self) -> tuple[list[Fitted], Fitted]:
        """The teachers and the student of block 0, with which every way begins."""
        data = self.blocks.dataset(0)
        teachers = self.teachers("first/teacher", data)
        return teachers, self.student("first/student", data, teachers)

    def measure(self, fitted: Fitted, k: int) -> list[dict[str, float]]:
        """Returns the test metrics of the model after block k on each block up to it."""
        found = []
        for i in range(k + 1):
            if (i, k) not in self.evaluators:
                split = self.blocks.part(i, k)
                self.evaluators[i, k] = make_evaluator(split, cutoffs=self.evaluation.cutoffs)
            metrics = self.evaluators[i, k](fitted.make_model, fitted.variables)["test"]
            found.append(jax.tree.map(float, metrics))
        return found


def _kind(fitted: Fitted) -> tuple[str, str]:
    """Returns what scores of models have in common that may be compared: the model's name, and the loss."""
    return fitted.settings["model"]["name"], fitted.settings["training"]["loss"]


def _seed(seed: int, number: int) -> int:
    return 1000 * seed + number


def ensemble(teachers: Sequence[Fitted], data: Dataset) -> Teacher:
    """Returns the ensemble of teachers: lists of the items that they rank best together, see `rank_power`."""
    scores = [fitted.teacher().scores for fitted in teachers]
    assert all(scores)
    return Teacher(lists=Lists(rank_power(scores, data.train, LISTED)))  # type: ignore[arg-type]


class Stage(NamedTuple):
    """A way's model after a block, and the seconds of the trainings for it, those of teachers for the next included."""

    model: Fitted
    seconds: float


Way = Callable[[Chain], Iterator[Stage]]


def no_update(chain: Chain) -> Iterator[Stage]:
    """Keeps the student of block 0. New users and items have rows of zeros: nothing is known of them."""
    _, student = chain.first
    yield Stage(student, 0.0)
    for k in range(1, len(chain.blocks.splits)):
        sizes = dict(zip(("users", "items"), chain.blocks.sizes(k)))
        tables = {
            name: jnp.pad(table, ((0, sizes[name] - len(table)), (0, 0)))
            for name, table in student.variables["params"].items()
        }
        yield Stage(dataclasses.replace(student, variables={"params": tables}, data=chain.blocks.dataset(k)), 0.0)


def fold_in(chain: Chain) -> Iterator[Stage]:
    """Keeps the student of block 0, and computes rows of new users and items from their interactions."""
    _, student = chain.first
    yield Stage(student, 0.0)
    retriever = student.retriever()
    users, items = (np.asarray(student.variables["params"][name]) for name in ("users", "items"))
    for k in range(1, len(chain.blocks.splits)):
        begin = time.monotonic()
        known = chain.blocks.known(k)
        rows, columns = np.asarray(known.users), np.asarray(known.items)
        grown_items = np.zeros((known.num_items, items.shape[1]), np.float32)
        grown_users = np.zeros((known.num_users, users.shape[1]), np.float32)
        grown_items[: len(items)], grown_users[: len(users)] = items, users
        for table, own, other, old, fold in (
            (grown_users, rows, columns, (len(users), len(items)), retriever.fold_in),
            (grown_items, columns, rows, (len(items), len(users)), retriever.fold_in_items),
        ):
            new = (own >= old[0]) & (other < old[1])
            ids = np.unique(own[new])
            if len(ids):
                table[ids] = fold([*np.split(other[new][np.argsort(own[new], kind="stable")], _ends(own[new]))])
        tables = {"users": jnp.asarray(grown_users), "items": jnp.asarray(grown_items)}
        model = dataclasses.replace(student, variables={"params": tables}, data=chain.blocks.dataset(k))
        yield Stage(model, time.monotonic() - begin)


def _ends(ids: np.ndarray) -> np.ndarray:
    """Returns where each id but the last ends, in the order of ids."""
    return np.cumsum(np.unique(ids, return_counts=True)[1])[:-1]


def fine_tuning(chain: Chain) -> Iterator[Stage]:
    """Trains the student on each new block alone."""
    return _on_blocks(chain, "fine-tuning", keeps=False)


def updating(chain: Chain) -> Iterator[Stage]:
    """Trains the student on each new block while it keeps what it was, as `htd_jax.update` does."""
    return _on_blocks(chain, "update", keeps=True)


def _on_blocks(chain: Chain, name: str, *, keeps: bool) -> Iterator[Stage]:
    _, student = chain.first
    yield Stage(student, 0.0)
    for k in range(1, len(chain.blocks.splits)):
        begin = chain.spent
        start = chain.grow(student, k)
        student = chain.update(f"{name}/{k}", start, [start] if keeps else [])
        yield Stage(student, chain.spent - begin)


def retraining(chain: Chain) -> Iterator[Stage]:
    """Trains teachers and student anew on all interactions, after every `retrain_every`-th block and the last."""
    _, student = chain.first
    yield Stage(student, 0.0)
    last = len(chain.blocks.splits) - 1
    for k in range(1, last + 1):
        if k % chain.settings.retrain_every and k < last:
            student = chain.grow(student, k)
            yield Stage(student, 0.0)
            continue
        begin = chain.spent
        data = chain.blocks.whole(k)
        teachers = chain.teachers(f"retraining/{k}/teacher", data)
        student = chain.student(f"retraining/{k}/student", data, teachers)
        yield Stage(student, chain.spent - begin)


def collaboration(chain: Chain) -> Iterator[Stage]:
    """Trains teachers and student on each block with each other's help, as CCD does.

    At block k a student is made anew from the ensemble of the teachers after block k - 1, and trained on block k, while
    it keeps what two moving averages of such students were: a slow one, which is stable, and a fast one, which is
    plastic. Then each teacher is trained on block k, with replay of both and of the student.

    Source: Lee et al., KDD'24. Left out: the contrastive and the cluster term of the teachers, the pass over items of
    IR-RRD, and the exclusion of listed items from sampled negatives. The student is made from all interactions up to
    block k - 1, which a company that serves recommendations has, where the authors' sees block k - 1 alone. A student
    of the softmax loss keeps the proxies' lists in place of their scores, see `htd_jax.pipeline.default_method`.
    """
    teachers, student = chain.first
    yield Stage(student, 0.0)
    slow = fast = student.variables
    for k in range(1, len(chain.blocks.splits)):
        begin = chain.spent
        if k > 1:
            student = chain.student(f"ccd/{k}/generated", chain.blocks.whole(k - 1), teachers)
            slow = average(slow, student.variables, chain.settings.stability)
            fast = average(fast, student.variables, chain.settings.plasticity)
        start = chain.grow(student, k)
        proxies = [chain.grow(dataclasses.replace(student, variables=proxy), k) for proxy in (slow, fast)]
        kept = proxies if k > 1 else proxies[:1]  # both begin as the student
        student = chain.update(f"ccd/{k}/student", start, kept)
        kept, updated = [*kept, student], []
        scores: list[Any] = [fitted.teacher().scores for fitted in kept]
        memory = remember(scores, start.train, Replay.top)
        for number, teacher in enumerate(teachers):
            name, seed = f"ccd/{k}/teacher-{number}", _seed(chain.seed, number)
            updated.append(chain.update(name, chain.grow(teacher, k), kept, seed=seed, memory=memory, decay=5.0))
        teachers = updated
        yield Stage(student, chain.spent - begin)


def average(proxy: Any, student: Any, share: float) -> Any:
    """Returns a proxy moved towards a student, which may have more rows: those are the student's."""

    def one(old: jax.Array, new: jax.Array) -> jax.Array:
        return new.at[: len(old)].set(share * old + (1 - share) * new[: len(old)])

    moved: Any = jax.tree.map(one, proxy, student)
    return moved


WAYS: dict[str, Way] = {
    "none": no_update,
    "fold-in": fold_in,
    "fine-tuning": fine_tuning,
    "update": updating,
    "retraining": retraining,
    "ccd": collaboration,
}


class Measured(NamedTuple):
    """The figures of a way after a block: its test metrics on each block up to it, and the seconds of its training."""

    way: str
    seed: int
    block: int
    metrics: list[dict[str, float]]
    seconds: float


def measure(chain: Chain, way: str, kept: Path) -> Iterator[Measured]:
    """Yields the figures of a way after each block; those of an earlier call are read from a file."""
    known = {}
    if kept.is_file():
        known = {int(k): Measured(way, chain.seed, int(k), *entry) for k, entry in json.loads(kept.read_text()).items()}
    if len(known) == len(chain.blocks.splits):
        yield from known.values()
        return
    for k, stage in enumerate(WAYS[way](chain)):
        if k not in known:
            known[k] = Measured(way, chain.seed, k, chain.measure(stage.model, k), stage.seconds)
            write_json(kept, {str(k): found[3:] for k, found in known.items()})
        yield known[k]


def h_mean(figures: Sequence[Measured], metric: str = "recall@20") -> list[tuple[float, float, float]]:
    """Returns learned, retained and H after each block, of one way and seed.

    >>> figures = [Measured("x", 0, 0, [{"r": 0.4}], 0), Measured("x", 0, 1, [{"r": 0.2}, {"r": 0.6}], 0)]
    >>> [tuple(round(x, 2) for x in row) for row in h_mean(figures, "r")]
    [(0.4, 0.4, 0.4), (0.5, 0.4, 0.44)]
    """
    found = []
    for k in range(len(figures)):
        learned = float(np.mean([figures[i].metrics[i][metric] for i in range(k + 1)]))
        retained = float(np.mean([row[metric] for row in figures[k].metrics]))
        found.append((learned, retained, 2 * learned * retained / max(learned + retained, 1e-12)))
    return found


def report(blocks: Blocks, figures: Sequence[Measured], metric: str = "recall@20") -> Report:
    """Returns the report of a study."""
    ways = list(dict.fromkeys(found.way for found in figures))
    seeds = sorted({found.seed for found in figures})
    own = {
        (way, seed): sorted((x for x in figures if (x.way, x.seed) == (way, seed)), key=lambda found: found.block)
        for way in ways
        for seed in seeds
    }
    own = {key: found for key, found in own.items() if found}
    summaries = {key: h_mean(found, metric) for key, found in own.items()}
    last = max(found.block for found in figures)
    rows: list[tuple[Cell, ...]] = []
    finals: dict[str, float] = {}
    curve, newest = [], []
    for way in ways:
        mine = [seed for seed in seeds if (way, seed) in own]
        ended = [seed for seed in mine if len(summaries[way, seed]) > last]
        if ended:
            final = [summaries[way, seed][last] for seed in ended]
            other = [np.mean([row["ndcg@10"] for row in own[way, seed][last].metrics]) for seed in ended]
            seconds = tuple(sum(found.seconds for found in own[way, seed]) / max(last, 1) for seed in ended)
            finals[way] = float(np.mean([row[2] for row in final]))
            rows.append(
                (
                    way,
                    *(Values(tuple(row[n] for row in final)) for n in range(3)),
                    Values(tuple(map(float, other))),
                    Values(seconds, ".0f"),
                )
            )
        for k in range(last + 1):
            at = [seed for seed in mine if len(summaries[way, seed]) > k]
            if at:
                curve.append({"name": way, "x": k, **mean_and_band([summaries[way, seed][k][2] for seed in at])})
                latest = [own[way, seed][k].metrics[k][metric] for seed in at]
                newest.append({"name": way, "x": k, **mean_and_band(latest)})
    head = ("", f"learned {metric}", "retained", "H", "ndcg@10, all blocks", "seconds per block")
    table = Table("continual", f"After block {last}", head, tuple(rows))
    by_block = Table(
        "blocks",
        f"H of {metric} after each block",
        ("", *map(str, range(last + 1))),
        tuple(
            (
                way,
                *(
                    Values(tuple(summaries[way, s][k][2] for s in seeds if len(summaries.get((way, s), ())) > k))
                    for k in range(last + 1)
                ),
            )
            for way in ways
        ),
    )
    matrices = {}
    for way in ways:
        grid = np.full((last + 1, last + 1), np.nan)
        seed = next(seed for seed in seeds if (way, seed) in own)
        for found in own[way, seed]:
            grid[found.block, : found.block + 1] = [row[metric] for row in found.metrics]
        matrices[way] = grid
    charts = [
        Chart("h", "H after each block", lines(curve, x="block", y=f"H of {metric}")),
        Chart("newest", "Recall on the newest block", lines(newest, x="block", y=metric)),
        Chart(
            "matrix",
            f"{metric} after each block (row) on each block (column)",
            heat(matrices, value=metric, of="block"),
            f"Seed {seeds[0]}.",
        ),
    ]
    best = max(finals, key=lambda way: finals[way], default=None)
    answer = UNFINISHED if best is None else f"The largest H after block {last} is that of {best}: {finals[best]:.4f}."
    sizes = ", ".join(f"{len(split.train):,}" for split in blocks.splits)
    parts: list[Part] = [table, by_block, *charts, f"Training interactions of the blocks: {sizes}."]
    question = "What do ways to keep a student up to date learn, retain, and cost?"
    return Report("continual", f"New data in blocks: {blocks.name}", question, answer, parts, picture=("h", "newest"))
