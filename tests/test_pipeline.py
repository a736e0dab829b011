"""A run and its phases: what they write, how they resume, and the Python API."""

import dataclasses
import functools
import multiprocessing
import shutil
import signal
import subprocess
import sys
import time
from typing import Annotated, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from annotated_types import Ge
from runs import EXPERIMENTS, SMALL, line_of, refused, results, start, start_command, strict, trained, untimed

import htd_jax
from htd_jax import distillers
from htd_jax.distillers import FTD, Distiller, FitNet, Lists, Method, Teacher
from htd_jax.distillers.base import no_params
from htd_jax.errors import UserError
from htd_jax.evaluation import make_evaluator
from htd_jax.models import BPR, BPRSettings, LightGCNSettings, ModelOf
from htd_jax.pipeline import open_given, progress
from htd_jax.training import Progress, estimate, step

# --- the run


@pytest.mark.slow
def test_a_run_leaves_what_it_should(finished):
    folder, _ = finished
    found = results(folder)
    assert (found["dataset"], found["method"], found["seed"]) == ("synthetic", "htd", 0)
    assert list(found["phases"]) == ["teacher", "student", "htd"]
    metrics = {f"{name}@{k}" for name in ("recall", "ndcg", "mrr", "precision", "map") for k in (10, 20, 50)}
    for phase in found["phases"].values():
        assert phase["seconds_per_epoch"] > 0
        assert set(phase["final"]["test"]) == set(phase["final"]["valid"]) == metrics
        assert phase["best"]["epoch"] in (0, 2)
    assert found["phases"]["teacher"]["parameters"] == 3 * found["phases"]["student"]["parameters"]
    for name in metrics:
        teacher, student, htd = (found["phases"][phase]["final"]["test"][name] for phase in found["phases"])
        share = (htd - student) / (teacher - student) if teacher > student else None
        assert found["gap_closed"][name] == (None if share is None else pytest.approx(share))

    lines = strict(folder / "metrics.jsonl")
    assert [(line["phase"], line["epoch"]) for line in lines] == [
        (phase, epoch) for phase in ("teacher", "student", "htd") for epoch in (0, 2)
    ]
    assert set(lines[-1]["terms"]) == {"loss", "base", "entity", "group", "assignment"}
    assert strict(folder / "config.json")["htd"]["groups"] == 3
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"teacher", "student", "htd"}
    assert not list(folder.rglob("*partial*"))


@pytest.mark.slow
def test_a_teacher_and_a_student_trained_before_are_used_again(finished, tmp_path):
    folder, _ = finished
    shutil.copytree(folder, tmp_path / folder.name)
    done = trained("--method", "svd", "--runs", tmp_path)
    assert done.out.count("reused from") == 2
    found = results(tmp_path / "synthetic-svd-4-seed0")
    assert found["phases"]["teacher"] == results(folder)["phases"]["teacher"]
    assert found["phases"]["student"] == results(folder)["phases"]["student"]


def test_a_named_teacher_is_used(finished, tmp_path):
    folder, _ = finished
    for number, path in enumerate((folder, folder / "checkpoints" / "teacher" / "3")):
        trained("--method", "none", "--teacher", path, "--teacher-dim", 7, "--runs", tmp_path / str(number))
        found = results(tmp_path / str(number) / "synthetic-none-4-seed0")
        assert found["phases"]["teacher"] == results(folder)["phases"]["teacher"]
        assert list(found["phases"]) == ["teacher", "student"]
        assert found["gap_closed"] == {}


@pytest.mark.slow
def test_a_given_teacher_is_exported_from_its_files(rng, tmp_path):
    run, files = tmp_path / "run", [tmp_path / "users.npy", tmp_path / "items.npy"]
    for path, size in zip(files, (60, 150)):
        np.save(path, rng.normal(size=(size, 3)).astype(np.float32))
    trained("--method", "svd", "--no-plain-student", "--teacher", *files, "--run", run)  # trains nothing
    given = open_given(run, files)
    assert given.metrics == results(run)["phases"]["teacher"]["final"]["test"]
    np.testing.assert_array_equal(given.representations().items, np.load(files[1]))
    export = ["export", "--run", run, "--to", tmp_path / "out"]
    assert "set --teacher to its files" in line_of(start_command(*export, "--phase", "teacher"))
    assert "is for --phase teacher" in line_of(start_command(*export, "--teacher", *files))
    np.save(files[0], -np.load(files[0]))
    other = [*export, "--phase", "teacher", "--teacher", *files]
    assert "is another teacher" in line_of(start_command(*other)) and not (tmp_path / "out").exists()
    np.save(files[0], -np.load(files[0]))
    assert start_command(*other).status == 0
    np.testing.assert_array_equal(htd_jax.load(tmp_path / "out").users.floats(), np.load(files[0]))


# Checkpoints at every epoch, so that a kill can follow one.
OFTEN = f"""
import runpy, sys
from htd_jax.training import loop
loop.CHECKPOINT_SECONDS = 0
runpy.run_path({str(EXPERIMENTS / "main.py")!r}, run_name="__main__")
"""


@pytest.mark.slow
def test_a_run_killed_in_each_phase_ends_as_an_unbroken_one(finished, tmp_path):
    folder, _ = finished
    mine = tmp_path / folder.name
    chosen = [*SMALL, "--htd.groups", "3", "--runs", str(tmp_path)]
    script = [sys.executable, "-c", OFTEN, *chosen]
    for phase in ("teacher", "student", "htd"):
        process = subprocess.Popen(script, stdout=subprocess.DEVNULL, cwd=EXPERIMENTS.parent)
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and process.poll() is None:
            if any((mine / "checkpoints" / phase / str(epoch)).exists() for epoch in (1, 2, 3)):
                break
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not (mine / "results.json").exists()
    trained("--htd.groups", 3, "--runs", tmp_path)
    assert untimed(results(mine)) == untimed(results(folder))
    assert untimed(strict(mine / "metrics.jsonl")) == untimed(strict(folder / "metrics.jsonl"))


@pytest.mark.slow
def test_a_run_of_more_epochs_goes_on_and_ends_as_one_that_never_stopped(tmp_path):
    """Without a method, whose temperature or whose teacher would be another."""
    chosen = ["--method", "none", "--eval-every", 1]
    trained(*chosen, "--epochs", 2, "--run", tmp_path / "run")
    first = strict(tmp_path / "run" / "metrics.jsonl")
    trained(*chosen, "--epochs", 4, "--run", tmp_path / "run")
    trained(*chosen, "--epochs", 4, "--run", tmp_path / "whole")
    lines = [strict(tmp_path / name / "metrics.jsonl") for name in ("run", "whole")]
    assert untimed(lines[0]) == untimed(lines[1])
    assert [line for line in lines[0] if line["epoch"] < 2] == first  # these epochs were not trained once more
    for phase in ("teacher", "student"):
        chex.assert_trees_all_equal(*(state(tmp_path / name / "checkpoints" / phase) for name in ("run", "whole")))
    assert "epochs was 4, is 3" in refused(*chosen, "--epochs", 3, "--run", tmp_path / "run")
    assert strict(tmp_path / "run" / "config.json")["epochs"] == 4


def state(folder):
    return htd_jax.training.Checkpoints(folder).tree()


def test_a_run_with_a_method_is_not_continued_to_more_epochs(finished):
    message = refused("--htd.groups", 3, "--epochs", 5, "--runs", finished[0].parent)
    assert "was trained for 3 epochs; with more epochs the teacher changes, and the student must be" in message


def test_a_moved_run_with_a_relative_teacher_is_taken_up(finished, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    shutil.copytree(finished[0], tmp_path / "a" / "teacher")
    monkeypatch.chdir(tmp_path / "a")
    chosen = ["--method", "svd", "--teacher", "teacher", "--run", "run"]
    trained(*chosen)
    before = results(tmp_path / "a" / "run")
    (tmp_path / "a").rename(tmp_path / "b")
    monkeypatch.chdir(tmp_path / "b")
    done = trained(*chosen)
    assert "s/epoch" not in done.out and results(tmp_path / "b" / "run") == before


def test_a_split_is_given_back(finished, tmp_path):
    folder, _ = finished
    trained("--method", "none", "--split-file", folder / "split.npz", "--runs", tmp_path)
    student = results(tmp_path / "split-none-4-seed0")["phases"]["student"]
    assert untimed(student) == untimed(results(folder)["phases"]["student"])


@pytest.mark.slow
def test_a_student_starts_at_the_factors_of_its_teacher(finished, tmp_path):
    folder, _ = finished
    chosen = ["--method", "ftd", "--student-init", "svd", "--learning-rate", "0", "--teacher", folder]
    trained(*chosen, "--runs", tmp_path / "init")
    trained("--method", "svd", "--teacher", folder, "--runs", tmp_path / "svd")
    factors = results(tmp_path / "svd" / "synthetic-svd-4-seed0")["phases"]["svd"]["final"]["test"]
    phases = results(tmp_path / "init" / "synthetic-ftd-4-seed0")["phases"]
    assert phases["student"]["final"]["test"] == phases["ftd"]["final"]["test"] == factors


@pytest.mark.slow
def test_an_early_stopped_run_keeps_its_best_epoch(tmp_path):
    stopping = ["--eval-every", 1, "--patience", 1, "--epochs", 6]
    done = trained("--method", "none", *stopping, "--cutoffs", 5, "--runs", tmp_path)
    assert "best epoch in validation recall@5" in done.out
    for phase in results(tmp_path / "synthetic-none-4-seed0")["phases"].values():
        assert phase["final"] == phase["best"]
        assert phase["epochs"] in (6, phase["best"]["epoch"] + 2)


# --- every model and every method


@pytest.fixture(scope="module")
def shared_runs(finished, tmp_path_factory):
    """Runs that find each other's teachers and students."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copytree(finished[0], folder / finished[0].name)
    return folder


# Each method once (HTD is the finished run's), joined where they can be, and each model with a method that has
# parameters of its own; with svd, where its scores are products.
PAIRS = [
    ("bpr", "ftd+fitnet+de+phr"),
    ("bpr", "rd+unkd+cd"),
    ("bpr", "ir-rrd+dcd"),
    ("bpr", "listwise+rce-kd"),
    ("bpr", "freqd+pckd"),
    ("bpr", "bd"),
    ("neumf", "htd"),
    ("ials", "svd"),
    ("ials", "pseudo"),
    ("lightgcn", "fitnet"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "method"), PAIRS)
def test_every_model_takes_every_method(model, method, shared_runs):
    chosen = ["--model", model, "--method", method]
    for name, flag in (("htd", "--htd.groups"), ("de", "--de.experts")):
        chosen += [flag, 3] if name in method.split("+") else []
    trained(*chosen, "--runs", shared_runs)
    folder = shared_runs / f"synthetic{'' if model == 'bpr' else f'-{model}'}-{method}-4-seed0"
    found = results(folder)
    assert list(found["phases"]) == ["teacher", "student", method]
    for phase in found["phases"].values():
        assert 0 < phase["final"]["test"]["recall@50"] <= 1
    own = {
        "htd": {"entity", "group", "assignment"},
        "svd": set(),
        "pseudo": set(),
        "ir-rrd": {"rrd", "ir"},
        "bd": {"bd_student", "bd_teacher", "teacher"},
        "pckd": {"de", "preference"},
    }
    wanted = set().union(*(own.get(name, {name}) for name in method.split("+")))
    assert set(strict(folder / "metrics.jsonl")[-1]["terms"]) - {"loss", "base"} == wanted


@pytest.mark.slow
def test_a_run_ranks_among_a_sample(tmp_path):
    done = trained("--method", "none", "--protocol", "sampled", "--candidates", 50, "--runs", tmp_path)
    found = results(tmp_path / "synthetic-sampled-none-4-seed0")
    assert found["protocol"] == "sampled" and "recall@50" in done.out
    for phase in found["phases"].values():
        assert phase["final"]["test"]["recall@50"] > 0.9  # of 51, those who are not the last


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "terms"),
    [
        (["--htd.grouping", "kmeans"], {"entity", "group"}),
        (["--htd.grouping", "random", "--htd.levels", "entity"], {"entity"}),
        (["--htd.no-noise", "--htd.levels", "group"], {"group", "assignment"}),
    ],
)
def test_the_variants_of_htd(args, terms, finished, tmp_path):
    trained("--htd.groups", 3, *args, "--teacher", finished[0], "--runs", tmp_path)
    (path,) = tmp_path.glob("*/metrics.jsonl")
    assert set(strict(path)[-1]["terms"]) == {"loss", "base", *terms}


@pytest.mark.slow
def test_a_teacher_of_another_model_teaches(shared_runs):
    """LightGCN's representations, to a student of BPR: found by what the teacher was trained under."""
    teacher = shared_runs / "of-lightgcn"
    trained("--model", "lightgcn", "--method", "none", "--run", teacher, "--runs", shared_runs)
    trained("--method", "ftd", "--teacher", teacher, "--run", shared_runs / "of-bpr")
    phases = results(shared_runs / "of-bpr")["phases"]
    assert phases["teacher"] == results(teacher)["phases"]["teacher"]
    assert phases["ftd"]["settings"]["model"]["name"] == "bpr"


@pytest.mark.slow
def test_citeulike_trains(citeulike_dir, tmp_path):
    """Real data at its real size: two epochs of every phase, and the teacher already ranks far above chance."""
    sizes = ["--epochs", 2, "--eval-every", 1, "--teacher-dim", 64, "--student-dim", 20]
    trained("--dataset", "citeulike", "--data-dir", citeulike_dir, "--method", "ftd", *sizes, "--runs", tmp_path)
    found = results(tmp_path / "citeulike-ftd-20-seed0")
    recall = {name: phase["final"]["test"]["recall@50"] for name, phase in found["phases"].items()}
    assert all(value > 5 * 50 / 25181 for value in recall.values()), recall
    assert recall["teacher"] > recall["student"]
    assert np.isfinite(list(recall.values())).all()


@pytest.mark.slow
def test_citeulike_t_is_split_and_trains(citeulike_dir, tmp_path):
    if not (citeulike_dir.parent / "citeulike-t" / "users.dat").is_file():
        pytest.skip("needs citeulike-t/users.dat in the same folder")
    own = {"min-interactions": 60, "split": "ratio", "split-seed": 3}
    chosen = [part for name, value in own.items() for part in (f"--citeulike-t.{name}", value)]
    trained("--dataset", "citeulike-t", "--method", "ftd", *chosen, "--runs", tmp_path)
    assert results(tmp_path / "citeulike-t-ftd-4-seed0")["phases"]["ftd"]["final"]["test"]["recall@50"] > 0


# --- the same from Python

FEW = {"epochs": 3, "eval_every": 2, "progress": False}


@pytest.fixture(scope="module")
def data():
    return htd_jax.data.make_synthetic(num_users=60, num_items=150)


@pytest.fixture(scope="module")
def teacher(data):
    return htd_jax.fit(data, dim=12, **FEW)


distil = functools.partial(htd_jax.distill, dim=4, **FEW)


@pytest.mark.slow
def test_fit_is_the_teacher_of_a_run_and_distill_its_student(finished, data, teacher):
    phases = results(finished[0])["phases"]
    assert teacher.metrics == phases["teacher"]["final"]["test"]
    assert teacher.parameters == phases["teacher"]["parameters"]
    student = distil(teacher, data, method=distillers.HTD(groups=3))
    assert student.metrics == phases["htd"]["final"]["test"]
    assert untimed(student.records) == [untimed(record) for record in of_phase(finished[0], "htd")]
    assert student.chosen == student.records[-1] and len(student.seconds) == 3


def of_phase(folder, phase):
    lines = [line for line in strict(folder / "metrics.jsonl") if line["phase"] == phase]
    return [{name: value for name, value in line.items() if name != "phase"} for line in lines]


def test_without_a_folder_nothing_is_written(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fitted = htd_jax.fit(data, dim=12, **FEW)
    distil(fitted, data, method="svd")
    assert list(tmp_path.iterdir()) == []


def test_what_is_fitted_can_be_looked_into(data, teacher):
    of = teacher.representations()
    chex.assert_shape((of.users, of.items), [(60, 12), (150, 12)])
    users = np.array([3, 0, 3])
    np.testing.assert_allclose(teacher.scores(users), of.users[users] @ of.items.T, rtol=1e-5, atol=1e-6)
    assert teacher.settings["model"] == {"name": "bpr", "dim": 12}
    assert teacher.settings["training"]["epochs"] == 3


@pytest.mark.slow
def test_a_student_begins_where_another_ended(data, teacher, tmp_path):
    still = functools.partial(distil, teacher, data, method=Second(), learning_rate=0.0)
    student = distil(teacher, data, method="none")
    found = still(start=student, folder=tmp_path / "run")
    chex.assert_trees_all_equal(found.variables, student.variables)
    assert found.metrics == student.metrics
    assert still(start=student, folder=tmp_path / "run").chosen == found.chosen  # nothing is trained
    with pytest.raises(UserError, match="made with other settings"):
        still(start=distil(teacher, data, method="ftd"), folder=tmp_path / "run")
    with pytest.raises(UserError, match="`start` is a student of"):
        still(start=student, dim=3)


@pytest.mark.slow
def test_a_second_model_is_evaluated(data, teacher):
    """Under Adam a teacher that nothing moves stays where it was."""
    found = distil(teacher, data, method=[Second(), "ftd"], l2=0.0)
    for record in found.records:
        assert record["second_model"] == {part: teacher.chosen[part] for part in ("valid", "test")}
    with pytest.raises(ValueError, match="two of the methods train a second model"):
        distillers.chain(Second().make(1), Second().make(1))


@pytest.mark.slow
def test_a_run_shows_both_and_starts_warm(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(distillers.METHODS, "_known", {**distillers.METHODS, "second": Second})
    done = trained("--method", "second", "--teacher", finished[0], "--runs", tmp_path, "--learning-rate", 0)
    (path,) = tmp_path.glob("*/results.json")
    phases = results(path.parent)["phases"]
    assert phases["second"]["final"]["test"] == phases["student"]["final"]["test"]
    assert phases["second"]["final"]["second_model"]["test"] == phases["teacher"]["final"]["test"]
    assert "second model" in done.out


@dataclasses.dataclass(frozen=True)
class Second(Method):
    """A second model of the teacher's tables, which learns nothing."""

    weight: Annotated[float, Ge(0)] = 1.0

    label: ClassVar[str] = "second"
    warm_start: ClassVar[bool] = True

    def make(self, epochs):
        return Distiller(
            init=lambda key, student, teacher: teacher.representations._asdict(),
            loss=lambda step: (0 * jnp.sum(step.params["users"]), {}),
            second_model=lambda params, teacher: (ModelOf(BPRSettings(), teacher.dim), {"params": params}),
        )


class Killed(Exception):
    pass


def test_a_folder_goes_on_to_the_same_bits(data, teacher, tmp_path, monkeypatch, a_checkpoint_every_epoch):
    whole = distil(teacher, data, method="ftd")
    save = htd_jax.training.Checkpoints.save

    def save_and_die(self, epoch, *rest):
        save(self, epoch, *rest)
        if epoch == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(htd_jax.training.Checkpoints, "save", save_and_die)
        with pytest.raises(Killed):
            distil(teacher, data, method="ftd", folder=tmp_path / "run")
    resumed = distil(teacher, data, method="ftd", folder=tmp_path / "run")
    chex.assert_trees_all_equal(resumed.variables, whole.variables)
    assert untimed(resumed.records) == untimed(whole.records)
    again = distil(teacher, data, method="ftd", folder=str(tmp_path / "run"))
    assert (again.records, again.seconds) == (resumed.records, resumed.seconds)
    with pytest.raises(UserError, match="made with other settings"):
        distil(teacher, data, method=FTD(weight=0.5), folder=tmp_path / "run")


@pytest.mark.slow
def test_the_same_method_by_name_and_by_settings(data, teacher):
    by_name, by_settings, raw = (
        distil(teacher, data, method=method)
        for method in ("ftd", FTD(), distillers.scale(distillers.ftd(), FTD().weight))
    )
    chex.assert_trees_all_equal(by_name.variables, by_settings.variables)
    chex.assert_trees_all_equal(by_name.variables, raw.variables)
    other = distil(teacher, data, method=FTD(weight=1.0))
    assert not np.array_equal(other.variables["params"]["users"], by_name.variables["params"]["users"])


def test_a_distiller_without_settings_has_no_folder(data, teacher, tmp_path):
    with pytest.raises(UserError, match="a custom function has no settings that identify its checkpoints"):
        distil(teacher, data, method=distillers.ftd(), folder=tmp_path / "run")
    with pytest.raises(UserError, match="a custom function has no settings"):
        distil(teacher, data, method=["fitnet", distillers.ftd()], folder=tmp_path / "run")


def test_equal_phases_of_several_seeds_are_compiled_once(data):
    htd_jax.fit(data, dim=6, **FEW)
    before = step._compiled.cache_info()
    found = htd_jax.fit(data, dim=6, seed=1, **FEW)
    after = step._compiled.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + 1)
    assert found.settings["seed"] == 1


def test_svd_needs_a_teacher_whose_scores_are_inner_products(data):
    neumf = htd_jax.fit(data, model="neumf", dim=4, **FEW)
    with pytest.raises(UserError, match="svd needs a teacher whose scores are inner products"):
        distil(neumf, data, method="svd")
    message = refused("--teacher-model", "neumf", "--method", "svd")
    assert "svd needs a teacher whose scores are inner products" in message and "--teacher-model" in message


def test_teachers_of_every_kind(data, teacher):
    of = teacher.representations()
    expected = distil(teacher, data, method="ftd").variables
    for same in (of, Teacher.of(of), jax.tree.map(np.asarray, of), teacher.teacher()):
        chex.assert_trees_all_equal(distil(same, data, method="ftd").variables, expected)
    lists = Lists(jnp.tile(jnp.arange(5), (60, 1)))
    with pytest.raises(UserError, match="needs the teacher's representations, but this teacher has only lists"):
        distil(lists, data, method="ftd")
    with pytest.raises(UserError, match="the teacher's users have shape .* the data has 60 users"):
        distil(of._replace(users=of.users[:-1]), data, method="ftd")
    with pytest.raises(UserError, match="of different widths"):
        distil(of._replace(users=of.users[:, :-1]), data, method="ftd")
    with pytest.raises(TypeError, match="expected a Teacher, its Representations or its Lists, not ndarray"):
        distil(np.zeros((60, 5)), data, method="ftd")


def test_a_list_of_methods_is_their_chain(data, teacher):
    both = distil(teacher, data, method="ftd+fitnet")
    listed = distil(teacher, data, method=[FTD(), FitNet()])
    chex.assert_trees_all_equal(both.variables, listed.variables)
    assert set(both.records[-1]["terms"]) == {"loss", "base", "ftd", "fitnet"}
    with pytest.raises(UserError, match="ftd is given twice"):
        distil(teacher, data, method=["ftd", FTD()])


@pytest.mark.slow
def test_models_by_name_by_settings_and_ones_own(data):
    fit = functools.partial(htd_jax.fit, data, dim=4, **FEW)
    deep = fit(model=LightGCNSettings(layers=0))
    assert deep.settings["model"] == {"name": "lightgcn", "dim": 4, "layers": 0}
    plain, own = fit(), fit(model=lambda train: BPR(train.num_users, train.num_items, 4))
    chex.assert_trees_all_equal(plain.variables, own.variables)
    with pytest.raises(UserError, match="`lightgcn.layers` must be at least 0, not -1"):
        fit(model=LightGCNSettings(layers=-1))
    with pytest.raises(UserError, match="unknown model 'mlp'"):
        fit(model="mlp")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"epoch": 3}, TypeError, "unknown setting 'epoch'; did you mean epochs. known: batch_size, candidates"),
        ({"epochs": 0}, UserError, "`epochs` must be at least 1, not 0"),
        ({"learning_rate": float("nan")}, UserError, "`learning_rate` must be finite"),
        ({"cutoffs": (0,)}, UserError, "`cutoffs` must be at least 1"),
        ({"metric": "recall@7"}, UserError, "unknown metric"),
        ({"dim": 0}, UserError, "`dim` must be an integer of at least 1, not 0"),
        ({"dim": 2.5}, UserError, "`dim` must be an integer"),
        ({"model": "mlp"}, UserError, "unknown model 'mlp'"),
    ],
)
def test_what_fit_refuses(data, tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        htd_jax.fit(data, folder=tmp_path / "run", **{**FEW, "dim": 4, **settings})
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_what_jax_is_set_to_changes_nothing(data, teacher):
    expected = distil(teacher, data, method="ftd")
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        wide = htd_jax.fit(htd_jax.data.make_synthetic(num_users=60, num_items=150), dim=12, **FEW)
        found = distil(wide, data, method="ftd")
        assert jnp.zeros(1, float).dtype == jnp.float64  # still as it was set
    chex.assert_trees_all_equal(wide.variables, teacher.variables)
    chex.assert_trees_all_equal(found.variables, expected.variables)
    assert untimed(found.records) == untimed(expected.records)


def test_one_folder_is_one_processs(finished, data, tmp_path):
    """The second is told; once the first has ended, the folder is free."""
    folder = tmp_path / "run"
    ready, go = (multiprocessing.get_context("spawn").Event() for _ in range(2))
    other = multiprocessing.get_context("spawn").Process(target=hold, args=(folder, ready, go))
    other.start()
    try:
        assert ready.wait(120)
        message = refused("--method", "none", "--run", folder)
        assert f"{folder}: another process is using it" in message
        with pytest.raises(UserError, match="another process is using this folder"):
            htd_jax.fit(data, dim=4, folder=folder, **FEW)
        assert list(folder.iterdir()) == []
    finally:
        go.set()
        other.join()
    htd_jax.fit(data, dim=12, folder=folder, **FEW)


def hold(folder, ready, go):
    from htd_jax.writing import alone

    folder.mkdir()
    with alone(folder):
        ready.set()
        go.wait(120)


@dataclasses.dataclass(frozen=True)
class Mine(Method):
    """A custom method: pulls users to the origin, `strength` times a number sampled each epoch."""

    strength: Annotated[float, Ge(0)] = 1.0
    weight: Annotated[float, Ge(0)] = 0.1

    label: ClassVar[str] = "mine"

    def make(self, epochs):
        def loss(step):
            value = self.strength * step.sampled * jnp.sum(step.batch.entities.users.masked().student ** 2)
            return value, {"mine": value}

        return Distiller(no_params, loss, lambda start: jax.random.uniform(start.key))


@pytest.mark.slow
def test_a_registered_method_is_one_of_them(data, teacher, monkeypatch):
    monkeypatch.setattr(distillers.METHODS, "_known", dict(distillers.METHODS))
    distillers.register("mine", Mine)
    by_name = distil(teacher, data, method="mine")
    chex.assert_trees_all_equal(by_name.variables, distil(teacher, data, method=Mine()).variables)
    assert by_name.settings["methods"] == {"mine": {"strength": 1.0, "weight": 0.1}}
    assert "mine" in by_name.records[-1]["terms"]
    stronger = distil(teacher, data, method=Mine(strength=100.0))
    norm = lambda fitted: float(jnp.linalg.norm(fitted.variables["params"]["users"]))
    assert norm(stronger) < norm(by_name)
    with pytest.raises(UserError, match="`mine.strength` must be at least 0, not -1"):
        distil(teacher, data, method=Mine(strength=-1))
    assert "--mine.strength" in start("--method", "mine", "--help").out


def test_a_long_preparation_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LONG", 0.1)
    with progress.progress_line("Best", 3, "recall@50") as show:
        show("preparing")
        time.sleep(0.3)
        assert capsys.readouterr().out == "Best            preparing\n"
        show("compiling")
        show("training")
        assert capsys.readouterr().out == "Best            preparing: 0 s\n"
        time.sleep(0.3)
        assert capsys.readouterr().out == "Best            first epoch and evaluation\n"


def test_a_failed_preparation_leaves_no_timer(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LONG", 0.1)
    with pytest.raises(ValueError), progress.progress_line("Best", 3, "recall@50") as show:
        show("preparing")
        raise ValueError
    time.sleep(0.2)
    assert capsys.readouterr().out == ""


def test_the_whole_time_of_a_run_is_shown(finished):
    folder, out = finished
    phases = results(folder)["phases"]
    for entry in phases.values():
        stages = dict(entry["seconds"])
        whole = stages.pop("whole")
        assert set(stages) == {"preparation", "compilation", "epochs", "evaluation", "saving"}
        assert whole == pytest.approx(sum(stages.values())) and stages["evaluation"] > 0
    total = sum(entry["seconds"]["whole"] for entry in phases.values())
    assert f"time: {total:.0f} s\n  teacher {phases['teacher']['seconds']['whole']:.0f} s (" in out


# --- evaluations of a sample of users


FEW_USERS = {"eval_users": 15, "epochs": 5, "eval_every": 2, "progress": False, "dim": 4}


@pytest.mark.parametrize("patience", [None, 2])
def test_the_kept_model_is_evaluated_in_full(data, tmp_path, patience, a_checkpoint_every_epoch):
    options = FEW_USERS | {"patience": patience}
    sampled = htd_jax.fit(data, folder=tmp_path / "run", **options)
    every = htd_jax.fit(data, **options | {"eval_users": 0})
    evaluate = make_evaluator(data)
    expected = jax.tree.map(float, evaluate(sampled.make_model, sampled.variables))
    assert {part: sampled.chosen[part] for part in expected} == expected
    assert "sampled" not in sampled.chosen and all(record["sampled"] for record in sampled.records)
    assert [record["epoch"] for record in sampled.records if "full" in record] == [sampled.chosen["epoch"]]
    assert sampled.records[0]["test"] != every.records[0]["test"]
    assert all(record["seconds_evaluation"] > 0 for record in sampled.records)
    if patience is None:  # the sample changes no model
        chex.assert_trees_all_equal(sampled.variables, every.variables)
        assert sampled.metrics == every.metrics
    again = htd_jax.fit(data, folder=tmp_path / "run", **options)
    assert again.records == sampled.records and again.chosen == sampled.chosen
    with pytest.raises(UserError, match="made with other settings"):
        htd_jax.fit(data, folder=tmp_path / "run", **options | {"eval_users": 16})


def test_a_killed_phase_of_a_sample_ends_as_an_unbroken_one(data, tmp_path, a_checkpoint_every_epoch):
    options = FEW_USERS
    whole = htd_jax.fit(data, folder=tmp_path / "whole", **options)
    first = htd_jax.fit(data, folder=tmp_path / "more", **options | {"epochs": 3})
    more = htd_jax.fit(data, folder=tmp_path / "more", **options)
    assert "full" in first.records[-1]
    assert untimed(more.records) == untimed(whole.records) and untimed(more.chosen) == untimed(whole.chosen)


@pytest.mark.slow
def test_a_run_says_which_figures_are_of_a_sample(tmp_path):
    done = trained("--method", "ftd", "--eval-users", 20, "--eval-every", 1, "--runs", tmp_path, "--baselines")
    found = results(next(tmp_path.iterdir()))
    assert found["eval_users"] == 20
    kept = [entry["best"]["epoch"] == entry["final"]["epoch"] for entry in found["phases"].values()]
    sampled = [entry["best"].get("sampled", False) for entry in found["phases"].values()]
    assert sampled == [not all(kept)] * 3  # all alike
    assert not any("sampled" in entry["final"] for entry in found["phases"].values())
    title = "test of 20 sampled users, best epoch" if sampled[0] else "test of all users, best epoch"
    assert title in done.out
    lines = strict(next(tmp_path.iterdir()) / "metrics.jsonl")
    assert all(line["sampled"] for line in lines) and sum("full" in line for line in lines) == 3
    trained("--method", "none", "--eval-users", 20, "--eval-every", 1, "--runs", tmp_path, "--run", tmp_path / "two")
    other = trained("--method", "none", "--eval-every", 1, "--runs", tmp_path, "--run", tmp_path / "three")
    assert "reused" not in other.out  # evaluated on other users


@pytest.mark.parametrize(
    ("epoch", "line", "left"),
    [(6.1, "about 10 min: 101 epochs of 6.1 s, 11 evaluations of 1 s", "10 min left"), (0.1, "", "21 s left")],
)
def test_a_long_phase_says_how_long_it_takes_after_its_first_evaluation(capsys, epoch, line, left):
    with progress.progress_line("BPR", 101, "recall@50") as show:
        for number in range(3):
            records = [{"epoch": 0, "valid": {"recall@50": 0.1}, "seconds_evaluation": 1.0}]
            whole = estimate([epoch] * (number + 1), [1.0], epochs=101, eval_every=10)
            show(Progress(number, {"loss": 1.0}, epoch, records, whole))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(f"valid recall@50 0.1000 in 1 s  {left}")
    assert [text.split(maxsplit=1)[1] for text in lines[1:]] == ([line] if line else [])
