"""A trained recommender."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.data import Dataset, Interactions, Split
from htd_jax.ensembles import Stages
from htd_jax.errors import UserError
from htd_jax.evaluation import Evaluation, NamedMetrics, shown_metrics
from htd_jax.models import (
    Listed,
    MakeModel,
    ModelOf,
    Representations,
    first_dimensions,
    model_scores,
    represent_all,
)
from htd_jax.pipeline.evaluators import evaluator_of
from htd_jax.serving import Recommendations, Retriever, load_export, retriever_of
from htd_jax.showing import Look, Shown
from htd_jax.teacher import Lists, Teacher
from htd_jax.training import evaluation_record


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Fitted(Shown):
    """A trained recommender, with its settings and metrics.

    Attributes:
      make_model: makes its Flax module for the training interactions.
      variables: the module's variables, at the last epoch or, with early stopping, at the best.
      data: the data set it was trained and evaluated on.
      settings: the settings of its phase, as JSON.
      records: one record per evaluation: `{"epoch", "terms", "valid", "test", "seconds", "peak_memory"}`, and
        `second_model` if one was trained.
      seconds: the training time of every epoch.
      chosen: the record of the epoch that `variables` are from.
      distiller: the parameters that its method learned in addition to the student's, at the last epoch: for HTD the
        gates, see `htd_jax.distillers.learned_groups`; empty if there are none.
      spent: where the time of its training went, in seconds, see `PhaseResult`; empty if it was not trained.
      stages: what it ranked best at some moments of its training, if it was trained with `keep_stages`.
      about: facts for the model card, in addition to those of its own phase.
    """

    make_model: MakeModel
    variables: Any
    data: Dataset
    settings: dict[str, Any]
    records: list[dict[str, Any]]
    seconds: list[float]
    chosen: dict[str, Any]
    distiller: Any = dataclasses.field(default_factory=dict)
    spent: Mapping[str, float] = dataclasses.field(default_factory=dict)
    stages: Stages | None = None
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    # `htd_jax.update` as a method, set there: it trains, and so stands above this.
    update: ClassVar[Callable[..., "Fitted"]]

    def look(self) -> Look:
        model = self.settings.get("model", {})
        name = model.get("name") or type(self.make_model(self.train)).__name__
        width = f", {model['dim']} numbers per row in {model.get('precision', 'float32')}" if model.get("dim") else ""
        data = f"data: {self.data.name}, {len(self.data.users):,} users, {len(self.data.items):,} items"
        trained = f"{len(self.seconds)} epochs in {sum(self.seconds):.1f} s, epoch {self.chosen['epoch']} is kept; "
        lines = [data, f"{trained if self.seconds else ''}{self.parameters:,} parameters"]
        cutoffs = sorted({int(metric.rpartition("@")[2]) for metric in self.metrics})
        names = dict.fromkeys(metric.partition("@")[0] for metric in shown_metrics(cutoffs, self.metrics))
        rows = [(f"@{k}", *(float(self.metrics[f"{metric}@{k}"]) for metric in names)) for k in cutoffs]
        return Look(f"Fitted {name}{width}", lines, ("test", *names), rows)

    @property
    def metrics(self) -> dict[str, float]:
        """The test metrics: `{"recall@50": ..., ...}`; the validation metrics are `chosen["valid"]`."""
        return NamedMetrics(self.chosen["test"])

    @property
    def train(self) -> Interactions:
        """The training interactions."""
        return self.data.train

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(x.size for x in jax.tree.leaves(self.variables))

    @property
    def inner_product(self) -> bool:
        """Whether a score is the product of a user's row and an item's."""
        return self.make_model(self.train).inner_product

    def representations(self) -> Representations:
        """Returns the representations of every user `[num_users, d]` and item `[num_items, d]`.

        Raises:
          UserError: if it has none.
        """
        return represent_all(self.make_model, self.variables, self.train)

    def scores(self, users: Any) -> jax.Array:
        """Returns the scores `[n, num_items]` of every item for the users `[n]`."""
        score = jax.jit(lambda variables, train, users: model_scores(self.make_model, variables, train)(users))
        scores: jax.Array = score(self.variables, self.train, jnp.asarray(users, jnp.int32))
        return scores

    def prefix(self, dim: int) -> "Fitted":
        """Returns the recommender of the first `dim` numbers of each row, evaluated as this one, on all users.

        Raises:
          UserError: if it was not trained with this prefix.
        """
        make_model = self.make_model
        prefixes = make_model.prefixes if isinstance(make_model, ModelOf) else ()
        if not isinstance(make_model, ModelOf) or dim not in prefixes:
            trained = f"it was trained with {', '.join(map(str, prefixes))}" if prefixes else "it was trained with none"
            raise UserError(f"no prefix of {dim} dimensions was trained: {trained}; set `prefixes` in training")
        make_model, variables = make_model.prefix(dim), first_dimensions(self.variables, dim)
        evaluate = evaluator_of(self.data, evaluation_of(self).resolve(self.data.split))
        metrics = evaluation_record(evaluate, make_model, variables)
        record = {"epoch": self.chosen["epoch"], "terms": {}, **metrics, "seconds": 0.0}
        model = {name: x for name, x in self.settings["model"].items() if name != "prefixes"} | {"dim": dim}
        settings = {**self.settings, "model": model}
        about = {**self.about, "prefix_of": self.settings["model"]["dim"]}
        return Fitted(make_model, variables, self.data, settings, [record], [], record, about=about)

    def retriever(
        self, precision: str | None = None, *, seen: Interactions | None = None, like: Retriever | None = None
    ) -> Retriever:
        """Returns the recommender ready to serve, see `htd_jax.Retriever`.

        Args:
          precision: the precision of the tables: `float32`, `float16`, `int8` with a scale per row, or `int4`, `int3`
            or `int2` with a step per dimension; the precision it was trained for if None.
          seen: the pairs that are not recommended; every known pair if None.
          like: an earlier version, whose steps of int4, int3 or int2 are kept where they fit, so that rows that have
            not changed keep their codes.
        """
        about = {
            "dataset": self.data.name,
            "interactions": {name: len(part) for name, part in zip(Split._fields, self.data.split)},
            "model": self.settings["model"]["name"],
            "method": "+".join(self.settings["methods"]),
            "evaluation": self.settings["evaluation"],
            "metrics": self.metrics,
            "settings": self.settings,
            **self.about,
        }
        version = about.pop("version", None)
        made = retriever_of(self.make_model, self.variables, self.data, precision, seen=seen, about=about, like=like)
        return dataclasses.replace(made, version=version)

    def recommend(self, users: Any = None, k: int = 20, **options: Any) -> Recommendations:
        """Returns the k best unseen items of users, see `Retriever.recommend`."""
        return self._retriever.recommend(users, k, **options)

    def similar(self, items: Any, k: int = 20, **options: Any) -> Recommendations:
        """Returns the k nearest items, see `Retriever.similar`."""
        return self._retriever.similar(items, k, **options)

    def fold_in(self, items: Any) -> np.ndarray:
        """Returns rows `[n, d]` of new users from the items they have seen, see `Retriever.fold_in`."""
        return self._retriever.fold_in(items)

    def fold_in_items(self, users: Any) -> np.ndarray:
        """Returns rows `[n, d]` of new items from the users who have seen them, see `Retriever.fold_in_items`."""
        return self._retriever.fold_in_items(users)

    def recommend_vectors(self, vectors: Any, k: int = 20, **options: Any) -> Recommendations:
        """Returns the k best items of the rows that `fold_in` returns, see `Retriever.recommend_vectors`."""
        return self._retriever.recommend_vectors(vectors, k, **options)

    def save(
        self, folder: Path | str, precision: str | None = None, *, delta_from: Path | str | None = None, **options: Any
    ) -> None:
        """Writes a folder that `htd_jax.load` opens, see `Retriever.save`.

        Args:
          folder: where to.
          precision: of the tables; `float32` if None, or that of `delta_from`.
          delta_from: the folder of an earlier export, for a delta; its steps of int4, int3 or int2 are kept where they
            fit.
          **options: see `Retriever.save`.
        """
        before = None if delta_from is None else load_export(delta_from)
        precision = precision or (before.precision if before else "float32")
        self.retriever(precision, like=before).save(folder, delta_from=delta_from, **options)

    @functools.cached_property
    def _retriever(self) -> Retriever:
        return self.retriever()

    def teacher(self) -> Teacher:
        """Returns all that it can teach: its representations and scores, its scores alone, or its lists; and its stages
        if it kept some."""
        return self._teacher

    @functools.cached_property
    def _teacher(self) -> Teacher:
        model = self.make_model(self.train)
        if isinstance(model, Listed):
            return Teacher(lists=Lists(self.variables["params"]["items"]), stages=self.stages)
        teacher = Teacher.of(self.representations() if model.has_representations else None)
        teacher = dataclasses.replace(teacher, stages=self.stages)
        if model.inner_product:
            return teacher
        return dataclasses.replace(teacher, scores=model_scores(self.make_model, self.variables, self.train))


def evaluation_of(fitted: Fitted) -> Evaluation:
    """Returns how a model was evaluated."""
    fields = {field.name for field in dataclasses.fields(Evaluation)}
    evaluation = Evaluation(**{name: x for name, x in fitted.settings["evaluation"].items() if name in fields})
    return dataclasses.replace(evaluation, cutoffs=tuple(evaluation.cutoffs))
