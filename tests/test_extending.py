"""A method, a base model and a metric added from outside the package, with public imports only."""

import dataclasses
import sys
from typing import Annotated, ClassVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from annotated_types import Ge, Gt

import htd_jax
from htd_jax import evaluation, models, training
from htd_jax.command.flags import import_typed, parse_request
from htd_jax.command.parsing import import_trusted
from htd_jax.distillers import METHODS, Distiller, EpochStart, Method, Step, no_params, none, register
from htd_jax.evaluation import metrics
from htd_jax.models import InnerProduct, ModelOf, ModelSettings, Recommender


@dataclasses.dataclass(frozen=True)
class Shrink(Method):
    """Shortens the student's representations of users."""

    weight: Annotated[float, Ge(0)] = 0.1
    """Lambda, the weight of the method's loss against the base loss."""
    most: Annotated[float, Ge(0)] = 1.0
    """The largest strength; each epoch samples one between 0 and this."""

    def make(self, epochs: int) -> Distiller:
        def refresh(start: EpochStart) -> jax.Array:
            return self.most * jax.random.uniform(start.key)

        def loss(step: Step) -> tuple[jax.Array, dict[str, jax.Array]]:
            users = step.batch.entities.users.masked()
            value = step.sampled * jnp.sum(users.student**2)
            return value, {"shrink": value}

        return Distiller(no_params, loss, refresh, needs=())


class Cosine(InnerProduct):
    """Scores a pair by the cosine of two trained vectors, times a scale."""

    dim: int
    scale: float

    def setup(self) -> None:
        normal = nn.initializers.normal(0.1)
        users = self.param("users", normal, (self.num_users, self.dim))
        items = self.param("items", normal, (self.num_items, self.dim))
        unit = lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True)
        self.keep(self.scale * unit(users), unit(items))


@dataclasses.dataclass(frozen=True)
class CosineSettings(ModelSettings):
    """Settings of `Cosine`."""

    scale: Annotated[float, Gt(0)] = 5.0
    """The largest score."""

    module: ClassVar[type[Recommender]] = Cosine
    teacher_dim: ClassVar[int] = 16

    def build(self, train: htd_jax.data.Interactions, dim: int) -> Cosine:
        return Cosine(train.num_users, train.num_items, dim, self.scale)


def hit(pairs: evaluation.RankedPairs) -> jax.Array:
    """1 for a user with at least one held-out item among the first k."""
    return jnp.where(pairs.places == 1, 1.0, 0.0)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Registers the method, the model and the metric for one test."""
    monkeypatch.setattr(METHODS, "_known", dict(METHODS))
    monkeypatch.setattr(models.MODELS, "_known", dict(models.MODELS))
    for name in [*evaluation.METRICS, "hit"]:  # each is put back
        monkeypatch.setitem(evaluation.METRICS, name, evaluation.METRICS.get(name))
    del evaluation.METRICS["hit"]
    register("shrink", Shrink)
    models.register("cosine", CosineSettings)
    evaluation.register("hit", hit)


def distil(teacher, data, **options):
    return htd_jax.distill(teacher, data, dim=4, epochs=2, eval_every=1, progress=False, **options)


def test_a_method_is_known_by_its_name_and_by_its_class():
    assert METHODS["shrink"] is METHODS[f"{__name__}:Shrink"] is Shrink
    assert Shrink.label == "Shrink"


@pytest.mark.slow
def test_a_method_trains_by_name_by_class_and_by_settings(data, teacher):
    by_name = distil(teacher, data, method="shrink")
    for method in (f"{__name__}:Shrink", Shrink()):
        chex.assert_trees_all_equal(distil(teacher, data, method=method).variables, by_name.variables)
    assert by_name.records[-1]["terms"]["shrink"] > 0
    strong = distil(teacher, data, method=Shrink(most=100.0))
    assert np.linalg.norm(strong.representations().users) < np.linalg.norm(by_name.representations().users)


def test_a_method_composes_with_others(data, teacher):
    student = distil(teacher, data, method="ftd+shrink")
    assert {"ftd", "shrink"} <= set(student.records[-1]["terms"])


# --- a base model


def test_a_model_is_known_by_its_name_and_by_its_class():
    assert models.MODELS["cosine"] is models.MODELS[f"{__name__}:CosineSettings"] is CosineSettings
    assert CosineSettings.label == "Cosine"


def test_a_model_trains_with_make_trainer(data):
    make_model = ModelOf(CosineSettings(scale=3.0), 4)
    trainer = training.make_trainer(make_model, none(), training.adam(0.01, 0.0), batch_size=256)
    keys = jax.random.split(jax.random.key(0))
    nobody = training.no_teacher(data.train)
    state = trainer.init(keys[0], data.train, nobody)
    losses = []
    for _ in range(4):
        state, terms = trainer.epoch(state, keys[1], data.train, nobody)
        losses.append(float(terms["base"]))
    assert losses[-1] < losses[0]
    users, items = models.represent_all(make_model, state.params["model"], data.train)
    np.testing.assert_allclose(np.linalg.norm(users, axis=1), 3.0, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(items, axis=1), 1.0, rtol=1e-5)


def test_a_model_fits_by_name_by_class_and_by_settings(data):
    fit = lambda model: htd_jax.fit(data, model=model, dim=4, epochs=2, eval_every=2, progress=False)
    by_name = fit("cosine")
    for model in (f"{__name__}:CosineSettings", CosineSettings()):
        chex.assert_trees_all_equal(fit(model).variables, by_name.variables)
    assert by_name.settings["model"] == {"name": "cosine", "dim": 4, "scale": 5.0}
    np.testing.assert_allclose(np.linalg.norm(by_name.representations().users, axis=1), 5.0, rtol=1e-5)


@pytest.mark.slow
def test_a_model_is_distilled_in_a_smaller_precision(data, teacher):
    """`precision` is a field of every model whose scores are inner products."""
    student = distil(teacher, data, method="ftd", model="cosine", precision="int8")
    users, _ = student.make_model(data.train).apply(student.variables, method="rows")
    assert users.precision == "int8"


# --- a metric


def test_a_metric_is_computed_by_every_evaluation(data, teacher):
    student = distil(teacher, data, method="shrink", metric="hit@20")
    assert student.chosen["valid"]["hit@20"] >= student.chosen["valid"]["recall@20"] > 0  # one held-out item or more
    assert set(student.metrics) == {f"{name}@{k}" for name in evaluation.METRICS for k in evaluation.CUTOFFS}


@pytest.mark.slow
def test_a_metric_is_shown_by_every_table(tmp_path):
    folder = tmp_path / "runs"
    printed = runs.trained("--method", "none", "--runs", folder).out
    assert all(f"hit@{k}" in printed for k in evaluation.CUTOFFS) and "mrr" not in printed
    runs.trained("--method", "none", "--runs", folder, "--seed", "1")
    compared = runs.start_command("compare", *sorted(path for path in folder.iterdir() if path.is_dir()))
    assert "hit@50" in compared.out and "mrr" not in compared.out


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The example of the documentation, as a module in the working directory."""
    page = (runs.EXPERIMENTS.parent / "docs" / "extending.md").read_text().partition("## A metric")[2]
    (tmp_path / "my_metrics.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(evaluation.METRICS, "hit")
    yield
    sys.modules.pop("my_metrics", None)
    metrics.LOADED.discard("my_metrics:hit")


def test_a_metric_is_named_on_the_command_line(example):
    refused = ["--metric", "hit@10"], ["--metric", "my_metrics:no_such@10"]  # a name in a file imports nothing
    assert "trust-code" in runs.refused(*refused[0]) and "no_such" in runs.refused(*refused[1])
    flags = ["--metric", "my_metrics:hit@10"]
    import_typed(flags)
    spec = parse_request(flags, prog="train", description="").evaluation.resolve()
    assert spec.metric == spec.drawn == "hit@10"
    with pytest.raises(htd_jax.UserError, match="if it is your own"):
        evaluation.Evaluation(metric="other:hit@10").resolve()


def test_trusted_code_may_be_a_metric(example, data, rng):
    import_trusted(["--trust-code", "my_metrics:hit"])
    tables = [rng.normal(size=(size, 3)) for size in (data.train.num_users, data.train.num_items)]
    measured = htd_jax.evaluate(tables, data, samples=100, cutoffs=(10,))
    assert measured.metrics["hit@10"] == pytest.approx(measured.metrics["recall@10"])  # one held-out item each
    assert "hit@10" in repr(measured)
    with pytest.raises(KeyError, match=r"did you mean hit@10\?"):
        measured.metrics["hits@10"]
