"""The evaluation of any model of anybody under the protocols: metrics, intervals over users, and a paired test."""

import csv
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from htd_jax.data import Dataset, Ids, fingerprint, read
from htd_jax.data.idfiles import read_row_ids
from htd_jax.data.ranked import lists_of_table, to_lists
from htd_jax.data.tables import match_rows
from htd_jax.errors import UserError, shown
from htd_jax.evaluation import (
    METRICS,
    Evaluation,
    EvaluationSpec,
    NamedMetrics,
    UserMetrics,
    make_user_evaluator,
    scored,
    shown_metrics,
)
from htd_jax.models import BPRSettings, FoldedSettings, MakeModel, ModelOf, Representations, listed
from htd_jax.pipeline.evaluators import for_new_users
from htd_jax.pipeline.experiment import numerics
from htd_jax.pipeline.fitted import Fitted
from htd_jax.pipeline.run_folder import RunFolder, write_json
from htd_jax.pipeline.teacher_checks import notes_on_fit
from htd_jax.pipeline.teachers import read_given
from htd_jax.serve.base import ServedModel
from htd_jax.serve.storage import is_export
from htd_jax.serving import Recommendations, load_export
from htd_jax.settings import check, override
from htd_jax.teacher import Lists, Teacher
from htd_jax.writing import whole

# What a model may be, see `evaluate`.
AnyModel = Any

Part = Literal["test", "valid"]


class Difference(NamedTuple):
    """The difference of a metric between a model and another one.

    Attributes:
      other: the other model's metric.
      difference: the model's minus the other's.
      difference_low, difference_high: the ends of the interval of the difference.
      p: the two-sided p-value of the paired randomisation test over users.
    """

    other: float
    difference: float
    difference_low: float
    difference_high: float
    p: float


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """The metrics of a model, see `evaluate`.

    Attributes:
      model, other: the names of the models; the other's is None if there is none.
      data: the data set's name and fingerprint.
      part: `test` or `valid`.
      evaluation: protocol and cutoffs.
      level: the level of the intervals.
      users: the number of users who have held-out items, over whom metrics are means.
      metrics: every registered metric at every cutoff.
      intervals: the ends of each metric's bootstrap interval over users.
      differences: to the other model, by metric; empty if there is none.
      by_user: each user's metrics, and the other model's.
      notes: remarks on what was decided or left out, a line each.
    """

    model: str
    other: str | None
    data: tuple[str, str]
    part: Part
    evaluation: EvaluationSpec
    level: float
    users: int
    metrics: NamedMetrics
    intervals: Mapping[str, tuple[float, float]]
    differences: Mapping[str, Difference]
    by_user: tuple[UserMetrics, ...]
    notes: tuple[str, ...] = ()

    def rows(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Returns a row per metric: `metric`, `value`, `low`, `high`, and the fields of `Difference`.

        Args:
          names: the metrics; all if None.
        """
        return [
            {
                "metric": name,
                "value": self.metrics[name],
                **dict(zip(("low", "high"), self.intervals[name])),
                **(self.differences[name]._asdict() if self.differences else {}),
            }
            for name in (self.metrics if names is None else names)
        ]

    def to_table(self) -> pa.Table:
        """Returns `rows` as a pyarrow table."""
        return pa.Table.from_pylist(self.rows())

    def as_json(self) -> dict[str, Any]:
        """Returns everything but the users' own metrics as JSON."""
        return {
            "model": self.model,
            "against": self.other,
            "data": {"name": self.data[0], "fingerprint": self.data[1]},
            "part": self.part,
            "evaluation": {
                name: x
                for name, x in self.evaluation.describe().items()
                if name in ("protocol", "candidates", "cutoffs")
            },
            "users": self.users,
            "level": self.level,
            "metrics": {row.pop("metric"): row for row in self.rows()},
            "notes": list(self.notes),
        }

    def save(self, path: Path | str) -> None:
        """Writes a `.json` file, see `as_json`, or a `.csv` file of `rows`, atomically.

        Raises:
          UserError: if the suffix is another.
          OSError: if it cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() not in (".json", ".csv"):
            raise UserError(f"{shown(path)}: metrics are written as .json or .csv; name the file so")
        if path.suffix.lower() == ".json":
            write_json(path, self.as_json())
            return
        text = io.StringIO()
        rows = self.rows()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        with whole(path) as partial:
            partial.write_text(text.getvalue(), "utf-8")

    def __repr__(self) -> str:
        lines = [f"{self.model}, {self.part} of {self.data[0]}, {self.users:,} users, intervals of {self.level:.0%}"]
        for row in self.rows(shown_metrics(self.evaluation.cutoffs, self.metrics)):
            line = f"  {row['metric']:<14} {row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
            if self.differences:
                line += f"  {row['difference']:+.4f} against {row['other']:.4f}, p {row['p']:.2g}"
            lines.append(line)
        return "\n".join(lines)


def evaluate(
    model: AnyModel,
    data: Any = None,
    *,
    against: AnyModel = None,
    user_ids: Any = None,
    item_ids: Any = None,
    part: Part = "test",
    level: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
    phase: str | None = None,
    **settings: Any,
) -> Measured:
    """Evaluates any model under the protocols of this package, with intervals, and against a second one.

    The model is one of:

    - two tables, of users and of items, whose products are the scores: a pair of arrays, `Representations`, or files as
      for `read_teacher`. Rows are in the order of the data's ids, or have `user_ids` and `item_ids`, in any order.
    - lists: a table with columns user, item, and score or rank, or a file of it; `Recommendations`; or `Lists`.
    - a scorer: a function of users `[n]`, rows of the data, that returns the scores `[n, num_items]` of every item. It
      may be of NumPy, PyTorch, or any other library, and is called for blocks of users.
    - the result of `fit` or `distill`, a run folder, an export, open or not, or a `Teacher`.

    Items that a user has seen in other parts are not ranked, whatever the model says of them. What a list leaves out,
    also past its end, counts as not found; so does every item of a user without a list. Ids of lists that the data do
    not have are left out. An id of the data that tables lack is an error. Notes say which of this happened.

    Args:
      model: see above.
      data: the data set, or anything that `htd_jax.read` takes; by default that of the run.
      against: a second model, any of the above.
      user_ids: ids of the rows of users' tables, or a file of them.
      item_ids: ids of the rows of items' tables, or a file of them.
      part: the part of held-out items, `test` or `valid`.
      level: the level of the intervals, over 0 and under 1.
      samples: the number of samples of users of the bootstrap.
      seed: the seed of the bootstrap and of the test.
      phase: the phase of a run folder: `teacher`, `student` or the method; the distilled student if None.
      settings: fields of `Evaluation`: `protocol="sampled", cutoffs=(5, 10)`; by default those of the run.

    Raises:
      UserError: if the model is not of this data, or a value is invalid.
      TypeError: if a setting is unknown, or the model is none of the above.

    >>> import htd_jax
    >>> data = htd_jax.data.make_synthetic(num_users=100, num_items=200)
    >>> counts = np.bincount(data.train.items, minlength=200)
    >>> popular = htd_jax.evaluate(lambda users: np.tile(counts, (len(users), 1)), data)
    >>> low, high = popular.intervals["recall@50"]
    >>> low < popular.metrics["recall@50"] < high
    True
    """
    if part not in ("test", "valid"):
        raise UserError(f"`part` must be test or valid, not {part!r}")
    if not 0 < level < 1:
        raise UserError(f"`level` must lie over 0 and under 1, not {level}")
    with numerics():
        opened = _open(model, phase)
        if data is None and not isinstance(opened, Fitted):
            raise UserError("`data` is missing: only a run knows the data that it is evaluated on")
        dataset = opened.data if data is None else read(data)
        evaluation = _evaluation(opened, settings)
        ids = {"user": user_ids, "item": item_ids}
        models = [_prepare(opened, model, dataset, ids)]
        if against is not None:
            models.append(_prepare(_open(against, phase if _is_run(against) else None), against, dataset, ids))
        if not len(getattr(dataset, part)):
            raise UserError(f"{dataset.name}: nothing is held out for {part}; split the data, or set another `part`")
        by_user = tuple(one.measure(dataset, evaluation)[part] for one in models)
    return _measured(models, by_user, dataset, part, evaluation, level, samples, seed)


class _Prepared(NamedTuple):
    """A model over the rows of a data set.

    Attributes:
      name: for messages and tables.
      make_model, variables: the model.
      folds: whether rows of the data's new users are made from their known items, as the model has learned none.
      length: of its lists; None for other models.
      notes: see `Measured`.
    """

    name: str
    make_model: MakeModel
    variables: Any
    folds: bool = False
    length: int | None = None
    notes: tuple[str, ...] = ()

    def measure(self, data: Dataset, evaluation: EvaluationSpec) -> dict[str, UserMetrics]:
        """Returns the metrics of each user, by part."""
        measure: Any = make_user_evaluator(data.split, cutoffs=evaluation.cutoffs, protocol=evaluation.make())
        if self.folds and data.new_users is not None:
            measure = for_new_users(measure, data)
        found: dict[str, UserMetrics] = measure(self.make_model, self.variables)
        return found


def _measured(
    models: Sequence[_Prepared],
    by_user: tuple[UserMetrics, ...],
    data: Dataset,
    part: Part,
    evaluation: EvaluationSpec,
    level: float,
    samples: int,
    seed: int,
) -> Measured:
    from htd_jax.evaluation.significance import bootstrap_intervals, users_test  # loads scipy.stats

    names = [f"{name}@{k}" for name in METRICS for k in evaluation.cutoffs]
    columns = [np.stack([np.asarray(one.values[name], np.float64) for name in names], axis=1) for one in by_user]
    if len(columns) > 1:
        columns.append(columns[0] - columns[1])
    # All are sampled together, so that the intervals are of the same users.
    low, high = bootstrap_intervals(np.concatenate(columns, axis=1), level=level, samples=samples, seed=seed)
    means = [column.mean(axis=0) for column in columns]
    differences = {}
    if len(columns) > 1:
        ends = [end[2 * len(names) :] for end in (low, high)]
        ps = [users_test(columns[0][:, k], columns[1][:, k], seed=seed) for k in range(len(names))]
        rows = zip(means[1].tolist(), means[2].tolist(), *(end.tolist() for end in ends), ps)
        differences = {name: Difference(*row) for name, row in zip(names, rows)}
    notes: list[str] = []
    for one, values in zip(models, by_user):
        notes += one.notes
        if one.length is not None and not any(x.any() for x in values.values.values()):
            notes.append(
                f"{one.name}: no list holds a held-out item of its user; write lists that leave out the training items "
                "alone, as `seen` train does"
            )
        if one.length is not None and one.length < max(evaluation.cutoffs):
            beyond = ", ".join(str(k) for k in evaluation.cutoffs if k > one.length)
            notes.append(f"{one.name}: lists hold at most {one.length} items, so that cutoffs {beyond} find no more")
    return Measured(
        models[0].name,
        models[1].name if len(models) > 1 else None,
        (data.name, fingerprint(data)),
        part,
        evaluation,
        level,
        len(by_user[0].users),
        NamedMetrics(zip(names, means[0].tolist())),
        {name: (float(low[k]), float(high[k])) for k, name in enumerate(names)},
        differences,
        by_user,
        tuple(notes),
    )


def _evaluation(opened: Any, settings: dict[str, Any]) -> EvaluationSpec:
    """Returns the requested evaluation, with that of a run as the default."""
    kept = {name: settings[name] for name in settings}
    if isinstance(opened, Fitted):
        was = opened.settings["evaluation"]
        kept = {name: was[name] for name in ("protocol", "candidates", "cutoffs")} | kept
    evaluation = override(Evaluation(), **kept)
    check(evaluation)
    return evaluation.resolve()


def _is_run(model: Any) -> bool:
    return isinstance(model, str | Path) and RunFolder(Path(model)).config.is_file()


def _open(model: Any, phase: str | None) -> Any:
    """Opens a run folder or an export; returns anything else unchanged."""
    if _is_run(model):
        return RunFolder(Path(model)).open(phase)
    if phase is not None:
        raise UserError("`phase` needs a run folder; other models have one phase")
    if isinstance(model, str | Path) and is_export(Path(model)):
        return load_export(model)
    return model


def _prepare(model: Any, given: Any, data: Dataset, ids: Mapping[str, Any]) -> _Prepared:
    """Returns a model over the rows of the data.

    Args:
      model: the opened model.
      given: what the caller gave, for its name.
      ids: the ids of tables' rows by kind, or None.
    """
    paths = _paths(given)
    name = ", ".join(map(shown, paths)) if paths else type(given).__name__
    if isinstance(model, Fitted):
        return _of_fitted(model, name if paths else _label(model), data)
    if isinstance(model, ServedModel):
        return _of_served(model, name, data)
    if paths:
        files = [None if of_rows is None else Path(of_rows) for of_rows in ids.values()]
        teacher, notes = read_given(paths, data, *files, setting="{}_ids")
        return _of_teacher(teacher, name, data, notes)
    if isinstance(model, Recommendations):
        model = model.to_table()
    if isinstance(model, tuple | list) and len(model) == 2 and not isinstance(model, Lists | Representations):
        model = Representations(*map(np.asarray, model))  # type: ignore[arg-type]
    if isinstance(model, Representations):
        model = Representations(
            *(
                jnp.asarray(match_rows(np.asarray(table), _row_ids(of_rows, known), known, kind, setting=f"{kind}_ids"))
                for table, (kind, of_rows), known in zip(model, ids.items(), (data.users, data.items))
            )
        )
    if isinstance(model, Teacher | Representations | Lists):
        return _of_teacher(Teacher.of(model), name, data)
    if hasattr(model, "__arrow_c_stream__") or hasattr(model, "column_names") or isinstance(model, dict):
        items, _, notes = to_lists(lists_of_table(model), data.users, data.items)
        return _of_teacher(Teacher.of(Lists(jnp.asarray(items))), "the lists", data, notes)
    if callable(model):
        name = getattr(model, "__name__", name)
        made = scored(model, data.train)
        return _Prepared(name, *made, notes=_named(name, notes_on_fit(Teacher(scores=model), data.split)))
    raise TypeError(
        f"expected two tables, lists, a scorer, a trained model or the path of one of these, not {type(model).__name__}"
    )


def _paths(given: Any) -> list[Path]:
    """Returns the paths that name a model; none if it is no path."""
    paths = [given] if isinstance(given, str | Path) else given
    named = isinstance(paths, list | tuple) and bool(paths) and all(isinstance(path, str | Path) for path in paths)
    return [Path(path) for path in paths] if named else []


def _row_ids(given: Any, known: Ids) -> Ids | None:
    """Returns the ids of the rows of a table, from a file or from memory."""
    if given is None:
        return None
    return (
        read_row_ids(given, known.kind, known)[0]
        if isinstance(given, str | Path)
        else Ids.from_values(given, known.kind)
    )


def _label(fitted: Fitted) -> str:
    return f"{fitted.settings['model']['name']} of {fitted.settings['model']['dim']} dimensions"


def _named(name: str, notes: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name}: {note}" for note in notes)


def _of_fitted(fitted: Fitted, name: str, data: Dataset) -> _Prepared:
    same = fitted.data is data or fitted.settings["data"] == fingerprint(data)
    for kind, own, known in _sides(fitted.data, data):
        if not same and not own.values.equals(known.values):
            raise UserError(
                f"{name}: its {len(own)} {kind}s are not the data's {len(known)}, in number or order; export the "
                "model, whose rows are matched by their ids"
            )
    other = f"{name}: was trained on another split of these users and items, which may hold the held-out items"
    notes = () if same else (other,)
    return _Prepared(name, fitted.make_model, fitted.variables, folds=True, notes=notes)


def _of_served(model: ServedModel, name: str, data: Dataset) -> _Prepared:
    rows = {}
    notes = []
    for kind, own, known in (("user", model.user_ids, data.users), ("item", model.item_ids, data.items)):
        if kind == "user" and model.pooling:
            continue
        rows[kind] = own.find(known.values)
        if missing := int((rows[kind] < 0).sum()):
            example = known.values[int(np.argmax(rows[kind] < 0))].as_py()
            raise UserError(
                f"{name}: has no row for {missing} of the data's {len(known)} {kind}s, for example {example!r}; give "
                "the data that it was made for, or update it first"
            )
        if (others := len(own) - len(known)) and kind == "item":
            notes.append(f"{name}: {others} of its items are not in the data, and are not ranked")
    if model.scores is not None:
        score: Callable[[Any], Any] = model.scores
        if any((at != np.arange(len(at))).any() for at in rows.values()):
            raise UserError(f"{name}: its scores are not products of rows, and its ids are not in the data's order")
        return _Prepared(name, *scored(score, data.train), notes=tuple(notes))
    items = jnp.asarray(model.items.floats())[rows["item"]]
    if model.pooling:
        make = ModelOf(FoldedSettings(), model.dim)
        return _Prepared(name, make, {"params": {"items": items, **model.pooling._asdict()}}, notes=tuple(notes))
    tables = {"users": jnp.asarray(model.users.floats())[rows["user"]], "items": items}
    return _Prepared(name, ModelOf(BPRSettings(), model.dim), {"params": tables}, notes=tuple(notes))


def _of_teacher(teacher: Teacher, name: str, data: Dataset, notes: Sequence[str] = ()) -> _Prepared:
    teacher.check(data.train)
    advice = "give the ids of its rows with `user_ids` and `item_ids`"
    notes = (*notes, *_named(name, notes_on_fit(teacher, data.split, advice=advice)))
    if teacher.representations is not None and teacher.inner_product:
        tables = {"params": teacher.representations._asdict()}
        return _Prepared(name, ModelOf(BPRSettings(), teacher.dim), tables, notes=notes)
    if teacher.scores is not None:
        return _Prepared(name, *scored(teacher.scores, data.train), notes=notes)
    if teacher.lists is None:
        raise UserError(f"{name}: a teacher without tables, scores or lists ranks nothing")
    lists = np.asarray(teacher.lists.items)
    length = int((lists >= 0).sum(1).max(initial=0))
    return _Prepared(name, *listed(jnp.asarray(lists)), length=length, notes=notes)


def _sides(*data: Dataset) -> list[tuple[str, Ids, Ids]]:
    """Returns the kinds of ids, and those of two data sets."""
    first, second = data
    return [("user", first.users, second.users), ("item", first.items, second.items)]
