"""The command as a user meets it: what it leaves, what it refuses, and a kill in the middle."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

MAIN = Path(__file__).parent.parent / "experiments" / "main.py"
SMALL = ["--epochs", "3", "--eval-every", "2", "--groups", "3", "--teacher-dim", "12", "--student-dim", "4"]


def command(*args, runs):
    return [sys.executable, str(MAIN), *SMALL, *map(str, args), "--runs", str(runs)]


def start(*args, runs):
    return subprocess.run(command(*args, runs=runs), capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """One compilation cache for all the runs of this file, and not the user's."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("XDG_CACHE_HOME") if before is None else os.environ.update(XDG_CACHE_HOME=before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: its folder, and what was printed."""
    runs = tmp_path_factory.mktemp("runs")
    done = start("--method", "htd", runs=runs)
    assert done.returncode == 0, done.stderr
    return runs / "synthetic-htd-4-seed0", done.stdout


def results(folder):
    return json.loads((folder / "results.json").read_text())


def untimed(value):
    if isinstance(value, dict):
        return {name: untimed(x) for name, x in value.items() if not name.startswith("seconds")}
    return [untimed(x) for x in value] if isinstance(value, list) else value


def test_a_run_leaves_what_it_should(finished):
    folder, printed = finished
    found = results(folder)
    assert (found["dataset"], found["method"], found["seed"]) == ("synthetic", "htd", 0)
    assert list(found["phases"]) == ["teacher", "student", "htd"]
    metrics = {f"{name}@{k}" for name in ("recall", "ndcg", "mrr", "precision", "map") for k in (10, 20, 50)}
    for phase in found["phases"].values():
        assert phase["seconds_per_epoch"] > 0
        assert set(phase["final"]["test"]) == set(phase["final"]["valid"]) == metrics
        assert phase["best"]["epoch"] in (0, 2)
    assert found["phases"]["teacher"]["parameters"] == 3 * found["phases"]["student"]["parameters"]
    final = {name: phase["final"]["test"]["recall@50"] for name, phase in found["phases"].items()}
    gap = final["teacher"] - final["student"]
    assert found["gap_closed"]["recall@50"] == pytest.approx((final["htd"] - final["student"]) / gap)

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["epoch"]) for line in lines] == [
        (phase, epoch) for phase in ("teacher", "student", "htd") for epoch in (0, 2)
    ]
    assert set(lines[-1]["terms"]) == {"loss", "base", "entity", "group", "assignment"}
    assert json.loads((folder / "config.json").read_text())["groups"] == 3
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"teacher", "student", "htd"}
    assert not list(folder.rglob("*partial*"))
    for word in ("teacher", "student + HTD", "gap closed", "recall@50"):
        assert word in printed


def test_the_same_command_again_has_nothing_to_train(finished):
    folder, _ = finished
    before = (folder / "results.json").read_bytes()
    done = start("--method", "htd", runs=folder.parent)
    assert done.returncode == 0, done.stderr
    assert "epoch" not in done.stdout.split("test, last epoch")[0]
    assert (folder / "results.json").read_bytes() == before


def test_a_teacher_and_a_student_trained_before_are_used_again(finished):
    folder, _ = finished
    done = start("--method", "ftd", runs=folder.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("found trained") == 2
    found = results(folder.parent / "synthetic-ftd-4-seed0")
    assert found["phases"]["teacher"] == results(folder)["phases"]["teacher"]
    assert found["phases"]["student"] == results(folder)["phases"]["student"]


def test_a_named_teacher_is_used(finished, tmp_path):
    folder, _ = finished
    for number, path in enumerate((folder, folder / "checkpoints" / "teacher" / "3")):
        done = start("--method", "none", "--teacher", path, "--teacher-dim", 7, runs=tmp_path / str(number))
        assert done.returncode == 0, done.stderr
        found = results(tmp_path / str(number) / "synthetic-none-4-seed0")
        assert found["phases"]["teacher"] == results(folder)["phases"]["teacher"]
        assert list(found["phases"]) == ["teacher", "student"]
        assert found["gap_closed"] == {}


def test_a_run_killed_in_each_phase_ends_as_an_unbroken_one(finished, tmp_path):
    folder, _ = finished
    mine = tmp_path / folder.name
    for phase in ("teacher", "student", "htd"):
        process = subprocess.Popen(command("--method", "htd", runs=tmp_path), stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and process.poll() is None:
            if list(mine.glob(f"checkpoints/{phase}/[0-9]")):
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert not (mine / "results.json").exists()
    done = start("--method", "htd", runs=tmp_path)
    assert done.returncode == 0, done.stderr
    assert untimed(results(mine)) == untimed(results(folder))
    lines = [[untimed(json.loads(line)) for line in (f / "metrics.jsonl").open()] for f in (mine, folder)]
    assert lines[0] == lines[1]


def test_a_student_wider_than_its_teacher_is_allowed_but_said(tmp_path):
    done = start("--method", "none", "--student-dim", 16, runs=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "wider than its teacher" in done.stdout


def refused(*args, runs):
    done = start(*args, runs=runs)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--dataset", "movies"], "unknown dataset 'movies'; known: citeulike, citeulike-t, foursquare, synthetic"),
        (["--method", "magic"], "unknown method 'magic'; known: none, svd, ftd, htd, fitnet, de, phr"),
        (["--method", "htd+magic"], "unknown method 'magic'"),
        (["--method", "htd+htd"], "must join different methods"),
        (["--method", "htd+svd"], "none of them none or svd"),
        (["--model", "mlp"], "unknown model 'mlp'; known: bpr, neumf, lightgcn"),
        (["--model", "neumf", "--method", "svd"], "svd needs scores that are products"),
        (["--model", "neumf", "--student-init", "svd"], "svd starts a bpr student"),
        (["--protocol", "half"], "unknown protocol 'half'; known: full, sampled"),
        (["--protocol", "sampled", "--candidates", "2000"], "candidates"),
        (["--cutoffs", "0"], "--cutoffs: must be at least 1"),
        (["--metric", "recall@7"], "unknown metric 'recall@7'; known: recall@10"),
        (["--patience", "0"], "--patience: must be at least 1"),
        (["--weight", "much"], "--weight: 'much' is no number"),
        (["--weight", "ftd=1"], "--weight: 'ftd' is no method of this run; it has htd"),
        (["--min-interactions", "3"], "synthetic"),
        (["--split", "ratio"], "synthetic"),
        (["--split-file", "nowhere.npz"], "nowhere.npz"),
        (["--group-level", "x"], "unknown group level 'x'; known: prototype-entity, prototype-prototype"),
        (["--pairs", "x"], "unknown pairs 'x'; known: positive, all"),
        (["--student-dim", "0"], "--student-dim: must be at least 1, not 0"),
        (["--teacher-dim", "-3"], "--teacher-dim: must be at least 1"),
        (["--epochs", "0"], "--epochs: must be at least 1"),
        (["--batch-size", "0"], "--batch-size: must be at least 1"),
        (["--groups", "0"], "--groups: must be at least 1"),
        (["--eval-every", "0"], "--eval-every: must be at least 1"),
        (["--learning-rate", "nan"], "--learning-rate: must be at least 0 and finite"),
        (["--alpha", "1.5"], r"--alpha: must lie in [0, 1]"),
        (["--seed", "-1"], "--seed: must lie in"),
        (["--teacher", "nowhere"], "--teacher: no folder nowhere"),
        (["--epochs", "ten"], "Error parsing --epochs: invalid literal for int() with base 10: 'ten'; --help"),
        (["--epoch-s", "3"], "--epoch-s"),
    ],
)
def test_bad_values_are_refused_in_one_line_and_leave_nothing(args, reason, tmp_path):
    assert reason in refused(*args, runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_truncated_data_file_is_refused(citeulike_dir, tmp_path):
    shutil.copytree(citeulike_dir, tmp_path / "data")
    path = tmp_path / "data" / "Test"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:1000])
    message = refused("--dataset", "citeulike", "--data-dir", tmp_path / "data", runs=tmp_path / "runs")
    assert "Test: damaged or not the published file" in message
    assert not (tmp_path / "runs").exists()


def test_a_run_folder_of_other_settings_is_refused_and_left_alone(finished):
    folder, _ = finished
    before = sorted(folder.rglob("*"))
    message = refused("--method", "htd", "--weight", "0.5", runs=folder.parent)
    assert "made by other settings (weight was None, is '0.5')" in message
    assert sorted(folder.rglob("*")) == before


def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    message = refused("--run", tmp_path, runs=tmp_path / "runs")
    assert "exists and is not a run folder" in message
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_teacher_that_is_no_checkpoint_is_refused(finished, tmp_path):
    folder, _ = finished
    (tmp_path / "empty").mkdir()
    assert "not a checkpoint" in refused("--teacher", tmp_path / "empty", runs=tmp_path / "runs")
    (tmp_path / "fake" / "3").mkdir(parents=True)
    assert "not a checkpoint" in refused("--teacher", tmp_path / "fake", runs=tmp_path / "runs")
    damaged = tmp_path / "damaged"
    shutil.copytree(folder / "checkpoints" / "teacher", damaged)
    for path in (damaged / "3" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    assert "damaged" in refused("--teacher", damaged, runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_citeulike_trains(citeulike_dir, tmp_path):
    """Real data at its real size: two epochs of every phase, and the teacher already ranks far above chance."""
    args = [sys.executable, str(MAIN), "--dataset", "citeulike", "--data-dir", str(citeulike_dir), "--method", "ftd"]
    args += ["--epochs", "2", "--eval-every", "1", "--teacher-dim", "64", "--runs", str(tmp_path)]
    done = subprocess.run(args, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = results(tmp_path / "citeulike-ftd-20-seed0")
    recall = {name: phase["final"]["test"]["recall@50"] for name, phase in found["phases"].items()}
    assert all(value > 5 * 50 / 25181 for value in recall.values()), recall
    assert recall["teacher"] > recall["student"]
    assert np.isfinite(list(recall.values())).all()


@pytest.fixture(scope="module")
def shared_runs(tmp_path_factory):
    """Runs that find each other's teachers and students."""
    return tmp_path_factory.mktemp("shared")


METHODS = ("svd", "ftd", "htd", "fitnet", "de", "phr", "htd+fitnet")


@pytest.mark.parametrize(
    ("model", "method"),
    [
        (model, method)
        for model in ("bpr", "neumf", "lightgcn")
        for method in METHODS
        if (model, method) != ("neumf", "svd")
    ],
)
def test_every_model_takes_every_method(model, method, shared_runs):
    chosen = ["--model", model, "--method", method]
    done = start(*chosen, "--protocol", "sampled", "--candidates", "50", runs=shared_runs)
    assert done.returncode == 0, done.stderr
    named = "" if model == "bpr" else f"-{model}"
    found = results(shared_runs / f"synthetic{named}-sampled-{method}-4-seed0")
    assert list(found["phases"]) == ["teacher", "student", method]
    for phase in found["phases"].values():
        assert 0 < phase["final"]["test"]["recall@50"] <= 1


@pytest.mark.parametrize(
    ("args", "terms"),
    [
        (["--grouping", "kmeans"], {"entity", "group"}),
        (["--grouping", "random", "--levels", "entity"], {"entity"}),
        (["--no-noise", "--levels", "group"], {"group", "assignment"}),
    ],
)
def test_the_variants_of_htd(args, terms, finished, tmp_path):
    done = start("--method", "htd", *args, "--teacher", finished[0], runs=tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*/metrics.jsonl")
    assert set(json.loads(path.read_text().splitlines()[-1])["terms"]) == {"loss", "base", *terms}


def test_a_teacher_of_another_model_teaches(tmp_path):
    """LightGCN's representations, to a student of BPR: found by what the teacher was trained under."""
    teacher = tmp_path / "teacher"
    done = start("--model", "lightgcn", "--method", "none", "--run", teacher, runs=tmp_path)
    assert done.returncode == 0, done.stderr
    done = start("--method", "de", "--teacher", teacher, runs=tmp_path)
    assert done.returncode == 0, done.stderr
    phases = results(tmp_path / "synthetic-de-4-seed0")["phases"]
    assert phases["teacher"] == results(teacher)["phases"]["teacher"]
    assert (
        refused("--method", "de", "--teacher", teacher, "--cutoffs", "5", runs=tmp_path / "other").count("cutoffs") == 1
    )


def test_an_early_stopped_run_keeps_its_best_epoch(shared_runs):
    done = start("--method", "ftd", "--eval-every", "1", "--patience", "1", "--cutoffs", "5", runs=shared_runs)
    assert done.returncode == 0, done.stderr
    assert "best epoch in validation recall@5" in done.stdout
    for phase in results(shared_runs / "synthetic-ftd-4-seed0")["phases"].values():
        assert phase["final"] == phase["best"]
        assert phase["epochs"] in (3, phase["best"]["epoch"] + 2)


def test_runs_are_tabulated_with_mean_and_spread(finished, tmp_path):
    folder, _ = finished
    config = json.loads((folder / "config.json").read_text())

    def add(name, recall, **settings):
        found = results(folder)
        for entry in found["phases"].values():
            entry["final"]["test"] = recall
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(found))
        (tmp_path / name / "config.json").write_text(json.dumps(config | settings))

    def rows(*metrics):
        table = [sys.executable, str(MAIN.parent / "table.py"), "--runs", str(tmp_path), "--metrics", *metrics]
        done = subprocess.run(table, capture_output=True, text=True, timeout=300)
        return done, [[cell.strip() for cell in line.split("|")[4:-2]] for line in done.stdout.splitlines()[2:]]

    add("first", {"recall@10": 0.2, "recall@50": 0.5})
    add("second", {"recall@10": 0.4, "recall@50": 0.5}, seed=1)
    add("sampled", {"recall@5": 0.7, "recall@10": 0.8}, protocol="sampled")
    _, found = rows("recall@10", "recall@50")
    full = [["0, 1", "0.3000 ± 0.1414", "0.5000 ± 0.0000"]] * 3
    assert [row[1:] for row in found] == [*full, *[["0", "0.8000", ""]] * 3]
    assert found[0][0] == "teacher, epochs 3, eval_every 2"
    _, found = rows("recall@5")
    assert [row[1:] for row in found] == [["0", "0.7000"]] * 3
    done, _ = rows("recall@7")
    assert (done.returncode, done.stderr) == (2, f"error: no finished run in {tmp_path} has recall@7\n")


def test_a_split_is_given_back(finished, tmp_path):
    folder, _ = finished
    done = start("--method", "none", "--split-file", folder / "split.npz", runs=tmp_path)
    assert done.returncode == 0, done.stderr
    student = results(tmp_path / "synthetic-none-4-seed0")["phases"]["student"]
    assert untimed(student) == untimed(results(folder)["phases"]["student"])


def test_a_student_starts_at_the_factors_of_its_teacher(finished, tmp_path):
    folder, _ = finished
    chosen = ["--method", "ftd", "--student-init", "svd", "--learning-rate", "0", "--teacher", folder]
    done = start(*chosen, runs=tmp_path / "init")
    assert done.returncode == 0, done.stderr
    done = start("--method", "svd", "--teacher", folder, runs=tmp_path / "svd")
    assert done.returncode == 0, done.stderr
    factors = results(tmp_path / "svd" / "synthetic-svd-4-seed0")["phases"]["svd"]["final"]["test"]
    phases = results(tmp_path / "init" / "synthetic-ftd-4-seed0")["phases"]
    assert phases["student"]["final"]["test"] == phases["ftd"]["final"]["test"] == factors


def test_citeulike_t_is_split_and_trains(citeulike_dir, tmp_path):
    if not (citeulike_dir.parent / "citeulike-t" / "users.dat").is_file():
        pytest.skip("needs citeulike-t/users.dat in the same folder")
    chosen = ["--dataset", "citeulike-t", "--min-interactions", "60", "--split", "ratio", "--split-seed", "3"]
    done = start("--method", "ftd", *chosen, runs=tmp_path)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "citeulike-t-ftd-4-seed0")["phases"]["ftd"]["final"]["test"]["recall@50"] > 0
