"""Studies: the runs of a comparison, how it is stopped and resumed, and its tables."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import DATA, EXPERIMENTS, line_of, process, results, start_command

from htd_jax.command import enter
from htd_jax.command.curves import curves
from htd_jax.command.described import described, read_flags
from htd_jax.command.flags import parse_request
from htd_jax.data import Dataset, make_synthetic
from htd_jax.distillers import FTD, RD
from htd_jax.errors import UserError
from htd_jax.pipeline import Experiment, Paths, RunFolder, RunRequest, RunSettings, resolve_run
from htd_jax.studies import (
    PLAIN,
    Job,
    Outcome,
    Plan,
    Variant,
    ablation,
    capacity,
    comparison,
    execute,
    frontier,
    parse_methods,
    rows,
    runs,
    shares,
    spread,
    weights,
)
from htd_jax.training import Training
from htd_jax.writing import alone

FLAGS = [*DATA, "--epochs", "2", "--teacher-dim", "8", "--student-dims", "4", "--seeds", "0"]


def study(*arguments):
    return start_command("study", "comparison", *FLAGS, *arguments)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The folder of a comparison of FTD and of a method that fails, and how it ended."""
    folder = tmp_path_factory.mktemp("runs")
    return folder, study("--methods", "ftd", "rrd", "--rrd.weight", "1e38", "--rrd.temperature", "1", "--runs", folder)


# --- end to end


@pytest.mark.slow
def test_a_run_ends_with_its_study(tmp_path):
    """However that ends, and whatever the run is doing."""
    program = runs._PROGRAM.replace(
        "from htd_jax.command import main\nmain()", "print('runs', flush=True)\nwhile True: pass"
    )
    starts = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdin=subprocess.PIPE).wait()"
    )
    study = subprocess.Popen([sys.executable, "-c", starts, program], stdout=subprocess.PIPE, text=True)
    assert study.stdout.readline() == "runs\n"
    study.kill()
    assert study.stdout.read() == ""  # at the end of the last process that has it
    study.wait()


@pytest.mark.slow
def test_a_comparison_trains_each_once_and_shows_all(compared):
    folder, done = compared
    assert done.status == 1, done.err
    out = done.out.splitlines()
    assert out[0] == f"3 runs, under {folder}"
    assert re.fullmatch(r"1/3 student, 4 dimensions, seed 0: \d+ s", out[1])
    teacher = results(folder / "synthetic-none-4-seed0")["phases"]
    helped = results(folder / "synthetic-ftd-4-seed0")["phases"]
    for phase in ("teacher", "student"):  # the same models, the teacher not trained again
        assert helped[phase]["final"]["test"] == teacher[phase]["final"]["test"]
    assert not (folder / "synthetic-ftd-4-seed0" / "checkpoints" / "teacher").exists()
    table = {cells[2].strip(): cells for line in out if len(cells := line.split("|")) == 11}
    for name, entry in {**teacher, "+ FTD": helped["ftd"]}.items():
        assert table[name][3].strip() == f"{entry['final']['test']['recall@50']:.4f}"
    assert (folder / "comparison.png").stat().st_size > 5_000
    written = (folder / "comparison.md").read_text()
    assert all(line in written for line in out if "|" in line)


@pytest.mark.slow
def test_a_run_that_fails_is_named_in_its_place(compared):
    folder, done = compared
    reason = "diverged in epoch 0"
    assert re.search(rf"/3 student \+ RRD, 4 dimensions, seed 0: failed: .*{reason}.*rrd-4-seed0\.log", done.out)
    assert "| + RRD | failed |" in done.out
    assert re.search(rf"Failed:\n\n- \+ RRD, 4, seed 0: .*{reason}", done.out)
    assert reason in (folder / "synthetic-rrd-4-seed0.log").read_text()


@pytest.mark.slow
def test_what_is_finished_is_found(compared, tmp_path):
    folder = tmp_path / "runs"
    shutil.copytree(compared[0], folder)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/results.json")}
    # The teacher stands in another place than the runs were told: only a run that is made would mind.
    done = study("--methods", "ftd", "--runs", folder)
    assert done.status == 0, done.err
    assert done.out.count("reused") == 2
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("*/results.json")}


@pytest.mark.slow
def test_what_is_wrong_with_all_runs_is_said_before_any(compared, tmp_path):
    folder = tmp_path / "runs"
    np.save(tmp_path / "users.npy", np.ones((50, 4), np.float32))
    np.save(tmp_path / "items.npy", np.ones((150, 4), np.float32))
    given = ["--teacher", tmp_path / "users.npy", tmp_path / "items.npy"]
    assert "50 rows of users" in line_of(study("--methods", "ftd", "--runs", folder, *given))
    assert not list(folder.glob("*"))
    shutil.copytree(compared[0], folder)
    written = (folder / "comparison.html").read_bytes()
    said = line_of(start_command("study", "comparison", "--methods", "ftd", "--runs", folder))
    assert "comparison.md: is a report on other data" in said
    assert (folder / "comparison.html").read_bytes() == written
    assert "--methods must name a method" in line_of(study("--methods", "--runs", tmp_path / "other"))
    assert "--shares must lie in" in line_of(start_command("study", "capacity", "--shares", "200", "--runs", folder))


@pytest.mark.slow
def test_another_width_finds_the_teacher(compared, tmp_path):
    folder = tmp_path / "runs"
    shutil.copytree(compared[0], folder)
    done = study("--methods", "ftd", "--student-dims", "3", "--runs", folder)
    assert done.status == 0, done.err
    assert "teacher: reused from" in (folder / "synthetic-none-3-seed0.log").read_text()
    of = lambda dim, phase: results(folder / f"synthetic-{phase}-{dim}-seed0")["phases"]["teacher"]["final"]
    assert of(3, "none") == of(4, "none") == of(3, "ftd")
    assert study("--methods", "ftd", "--student-dims", "3", "4", "--runs", folder).out.count("reused") == 4


@pytest.mark.slow
def test_other_settings_are_not_found_finished(compared):
    folder, _ = compared
    data = RunFolder(folder / "synthetic-none-4-seed0").read_config()["data"]

    def is_finished(arguments):
        request = parse_request([*DATA, "--method", "none", "--runs", str(folder), *arguments], prog="", description="")
        spec = resolve_run(request, request.load_dataset())
        return RunFolder(spec.folder).is_of({**spec.identity, "data": data}, given_teacher=False)

    flags = ["--epochs", "2", "--teacher-dim", "8", "--student-dim"]
    assert is_finished([*flags, "4"])
    assert not is_finished(["--teacher-dim", "8", "--student-dim", "4"])  # 101 epochs
    assert not is_finished([*flags, "5"])  # no folder


@pytest.mark.slow
def test_a_stopped_study_stops_its_runs_and_goes_on(tmp_path):
    command = [sys.executable, EXPERIMENTS / "study.py", "comparison", *FLAGS, "--methods", "ftd", "--runs", tmp_path]
    command += ["--epochs", "100000"]
    begun = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    log = tmp_path / "synthetic-none-4-seed0.log"
    until = time.monotonic() + 120
    while not (log.exists() and "epoch" in log.read_text()):
        assert time.monotonic() < until and begun.poll() is None
        time.sleep(0.1)
    begun.send_signal(signal.SIGINT)
    _, err = begun.communicate(timeout=60)
    assert begun.returncode == 130 and b"the same command resumes" in err
    with alone(tmp_path / "synthetic-none-4-seed0"):  # no process uses it
        pass


def test_two_studies_in_one_folder(tmp_path):
    with alone(tmp_path):
        assert "another study is using it" in line_of(study("--methods", "ftd", "--runs", tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--methods", "magic"], "unknown method 'magic'"),
        (["--methods", "none"], "--methods must name a method"),
        (["--methods", "htd+svd"], "--method svd cannot be joined with others"),
        (["--methods", "ftd", "--seed", "1"], "--seed is not for studies; use --seeds"),
        (["--methods", "ftd", "--method", "rrd"], "--method is not for studies; use --methods"),
        (["--methods", "ftd", "--jobs", "0"], "--jobs must be at least 1"),
        (["--methods", "ftd", "--student-dims", "x"], "--student-dims"),
        (["--methods", "ftd", "--epoch", "3"], "--epoch"),
        (["--methods", "ftd", "--rrd.weight", "-1", "--methods", "rrd"], "--rrd.weight must be at least 0"),
        (["--methods", "ftd", "--rrd.weight", "2"], "no run uses rrd, of which --rrd.weight is set; leave it out"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_begun(arguments, reason, tmp_path):
    assert reason in line_of(study(*arguments, "--runs", tmp_path / "runs"))
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.slow
def test_the_command_says_which_studies_there_are():
    assert "comparison" in start_command("study").out
    assert "unknown study 'x'" in line_of(start_command("study", "x"))
    assert "--jobs" in process("comparison", "--help", script="study.py").stdout


@pytest.mark.slow
def test_what_students_are_like(compared):
    """Of runs that are there: tables that agree with what the runs came to, a page, and pictures."""
    folder, _ = compared
    teacher = results(folder / "synthetic-none-4-seed0")["phases"]["teacher"]["final"]["test"]
    like = start_command("study", "beyond", *FLAGS, "--methods", "ftd", "--runs", folder)
    assert like.status == 0, like.err
    assert like.out.count("reused") == 2 and "| teacher |" in like.out
    assert (folder / "beyond.html").stat().st_size > 500_000 and (folder / "beyond-activity.svg").exists()
    found = {row[0]: row[1:] for row in cells((folder / "beyond.md").read_text()) if len(row) == 4}
    sizes = [20, 20, 20]  # of 60 users, each with a held-out item
    by_activity = [float(x) for x in found["teacher"]]
    assert np.average(by_activity, weights=sizes) == pytest.approx(teacher[RECALL], abs=1e-3)
    kept = start_command("study", "topology", *FLAGS, "--methods", "ftd", "--runs", folder)
    assert kept.status == 0, kept.err
    rows = [row for row in cells(kept.out) if len(row) == 9]
    assert [row[:2] for row in rows[2:]] == [[x, y] for x in ("users", "items", "both") for y in ("student", "+ FTD")]
    assert all(-1 <= float(x) <= 1 for row in rows[2:] for x in row[2:])
    for name in ("neighbours", "groups", "map"):
        assert (folder / f"topology-{name}.svg").exists()


class NCE(FTD):
    """A method from outside."""


def test_settings_go_to_the_runs_that_use_them(tmp_path):
    name = f"{NCE.__module__}:NCE"
    flags = ["--nce.weight", "2", "--rrd.weight=3", "--epochs", "2", "--synthetic.users", "60"]
    request = parse_request([*flags, "--method", f"{name}+rrd"], prog="", description="", refuses=True)
    request = dataclasses.replace(request, settings=dataclasses.replace(request.settings, method="none"))
    plan = Plan(request, tuple(flags), DATASET, parse_methods([name, "rrd"]), (20,), (0,))
    (plain,), (nce, rrd) = plan.stages()
    own = lambda job: [word for word in job.arguments if word in flags]
    assert own(plain) == flags[3:]
    assert own(nce) == [*flags[:2], *flags[3:]] and own(rrd) == flags[2:]
    for job in (plain, nce, rrd):  # which the command of the run takes
        assert parse_request(job.arguments, prog="", description="").settings.method == job.spec.settings.method


@pytest.mark.slow
def test_weights_are_measured_by_gradients(data, teacher, rng):
    """A share is what the weight says: twice the weight is twice the norm, and that of an equal part a half."""
    student = SimpleNamespace(variables={"params": {"users": rng.normal(size=(80, 3)), "items": np.ones((150, 3))}})
    student.variables = jax.tree.map(jnp.float32, student.variables)
    request = RunRequest(RunSettings(method="none", student_dim=3), training=Training(epochs=1))
    dataset = Dataset.from_split(data, "synthetic")
    experiment = Experiment(dataset, resolve_run(request, dataset).evaluation)
    weigh = lambda request, *names: weights.weigh(request, experiment, teacher, student, parse_methods(names))
    rd, svd = weigh(request, "rd", "svd")
    equal = dataclasses.replace(request, components={"rd": RD(weight=rd.equal)})
    (again,) = weigh(equal, "rd")
    assert again.later == pytest.approx(0.5, abs=1e-4) and again.equal == pytest.approx(rd.equal, rel=1e-4)
    odds = lambda share: share / (1 - share)
    assert odds(again.first) / odds(rd.first) == pytest.approx(rd.equal, rel=1e-3)  # from a weight of 1
    report = weights.report([rd, svd], dataset)
    assert f"| RD | 1 | {rd.first:.0%} | {rd.later:.0%} | {rd.equal:.2g} |" in report.markdown()
    assert "- SVD of the teacher: nothing is trained by gradients" in report.markdown()


def test_what_weights_cannot_measure(tmp_path):
    for flags, reason in (
        (["--methods", "htd+rrd"], "name each"),
        (["--mesh", "2"], "leave out --mesh"),
        (["--method", "rrd"], "--method is not for studies; use --methods"),
    ):
        assert reason in line_of(start_command("study", "weights", "--runs", tmp_path / "runs", *flags))


def test_the_commands_of_a_stage_are_printed(tmp_path):
    arguments = [*FLAGS, "--seeds", "0", "1", "--methods", "ftd", "rd", "--rd.weight", "2", "--runs", tmp_path / "runs"]
    printed = [start_command("study", "comparison", *arguments, "--print", stage) for stage in (1, 2, 3)]
    stages = [[shlex.split(line) for line in done.out.splitlines()] for done in printed[:2]]
    assert [[words[:2] for words in lines] for lines in stages] == [[["htd-jax", "train"]] * n for n in (2, 4)]
    made = [parse_request(words[2:], prog="", description="") for words in stages[1]]
    assert [(one.settings.method, one.settings.seed) for one in made] == [(m, s) for s in (0, 1) for m in ("ftd", "rd")]
    assert [one.methods["rd"].weight for one in made if "rd" in one.methods] == [2, 2]
    assert made[0].paths.teacher == (tmp_path / "runs" / "synthetic-none-4-seed0",) and not list(tmp_path.iterdir())
    assert "this study has 2 stages" in line_of(printed[2])


# --- processes


def job(folder, name, *arguments):
    return Job(SimpleNamespace(folder=folder / name), arguments)


@pytest.fixture
def cores(monkeypatch):
    """Every job prints the cores that it may use, in place of a run."""
    say = "import os; print(sorted(os.sched_getaffinity(0)))"
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **rest: start([sys.executable, "-c", say], **rest))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be named here")
def test_runs_at_once_have_cores_of_their_own(cores, tmp_path):
    all_cores = os.sched_getaffinity(0)
    jobs = [job(tmp_path, str(number)) for number in range(4)]
    ended = list(execute(jobs, finished=lambda job: job is jobs[2], at_once=2))
    assert {outcome.job.folder.name: outcome.error for outcome in ended} == dict.fromkeys("0123")
    assert next(outcome.seconds for outcome in ended if outcome.job is jobs[2]) == 0
    used = [json.loads(runs.log_path(one).read_text()) for one in (jobs[0], jobs[1])]
    if len(all_cores) > 1:
        assert not set(used[0]) & set(used[1])
        assert set(used[0]) | set(used[1]) == all_cores
    assert os.sched_getaffinity(0) == all_cores


# --- tables


RECALL, NDCG = "recall@50", "ndcg@50"


DATASET = Dataset.from_split(make_synthetic(num_users=60, num_items=150), "synthetic")


def request_of(folder):
    return RunRequest(RunSettings(method="none"), paths=Paths(runs=folder))


def write_results(job, phases):
    """Writes the results of a run that was not made."""
    settings = {"model": {"name": "bpr"}, "evaluation": {"protocol": "full"}}
    entries = {name: {"parameters": 1000, **entry, "settings": settings} for name, entry in phases.items()}
    common = {"dataset": "synthetic", "method": job.spec.settings.method, "seed": 0, "gap_closed": {}}
    job.folder.mkdir(parents=True, exist_ok=True)
    RunFolder(job.folder).write_results({**common, "phases": entries})


@pytest.fixture
def made(tmp_path):
    """A comparison of three methods over three seeds, of recalls that are given."""
    recalls = {
        "teacher": (0.30, 0.31, 0.32),
        "student": (0.20, 0.22, 0.21),
        "ftd": (0.25, 0.27, 0.29),
        "rrd": (0.21, 0.22, 0.23),
        "ftd+rrd": (0.28, 0.30, 0.32),
    }
    plan = Plan(request_of(tmp_path), (), DATASET, parse_methods(["ftd", "rrd", "ftd+rrd"]), (20,), (0, 1, 2))
    for variant in (PLAIN, *plan.variants):
        for seed in plan.seeds:
            entry = lambda phase: {
                "epochs": 3,
                "seconds_per_epoch": 2.0 if phase == "rrd" else 0.5,
                "peak_memory": (seed + 1) * 2**30,
                "final": {"test": {RECALL: recalls[phase][seed], NDCG: recalls[phase][seed] / 2}},
            }
            phases = {"teacher", "student", variant.method} - {"none"}
            write_results(plan.job(variant, 20, seed), {name: entry(name) for name in phases})
    return plan


def text_of(plan, outcomes=()):
    return comparison.report(plan, rows(plan, outcomes)).markdown()


def cells(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_the_table_has_mean_spread_gain_and_cost(made):
    head, _, *found = cells(text_of(made))
    assert head == ["dimensions", "", RECALL, NDCG, "above the student", "gap closed", "s/epoch", "x student's", "GiB"]
    by_name = {row[1]: row for row in found if len(row) == 9}
    assert by_name["teacher"][:4] == ["200", "teacher", "0.3100 ± 0.0100", "0.1550 ± 0.0050"]
    ftd = by_name["+ FTD"]
    gains = [0.05, 0.05, 0.08]
    assert ftd[4] == f"+{statistics.mean(gains):.4f} ± {statistics.stdev(gains):.4f}"
    shares = [0.05 / 0.10, 0.05 / 0.09, 0.08 / 0.11]
    assert ftd[5] == f"{statistics.mean(shares):.0%} ± {statistics.stdev(shares):.0%}"
    assert by_name["+ RRD"][6:] == ["2", "4.0", "3.00"]


def test_the_table_says_whose_teacher_is_not_its_own_choice(tmp_path):
    plan = of_variants(tmp_path, parse_methods(["best", "ftd"]), (20,), lambda v, dim: 0.25)
    note = "Best: taught here by bpr 200, recall@50 0.3195 ± 0.0007, as all others; htd-jax train chooses a teacher"
    assert note in text_of(plan)


def test_the_table_says_which_gains_are_doubtful(made):
    text = text_of(made)
    by_name = {row[1]: row for row in cells(text) if len(row) == 9}
    assert "(a)" in by_name["+ RRD"][4]  # .22 is .01 above .21, whose spread is .01
    assert "(a)" not in by_name["+ FTD"][4]  # .27 is .06 above, and its spread .02
    assert "more than twice" in text


def test_pairs_stand_beside_the_better_of_their_parts(made):
    pairs = [row for row in cells(text_of(made)) if len(row) == 7]
    assert pairs[0][1] == "joined"
    assert pairs[2][:4] == ["20", "FTD + RRD", "0.3000 ± 0.0200", "FTD"]
    assert pairs[2][5:] == ["+0.0300 ± 0.0000", "not clear"]  # .03 is less than twice .02


def test_a_failed_seed_leaves_the_others(made):
    failed = made.job(Variant("ftd"), 20, 1)
    (failed.folder / "results.json").unlink()
    text = text_of(made, [Outcome(failed, 3.0, "no memory")])
    row = next(row for row in cells(text) if row[1] == "+ FTD")
    assert row[2] == spread([0.25, 0.29])
    assert "- + FTD, 20, seed 1: no memory" in text


def of_variants(tmp_path, variants, dims, recall):
    """A plan whose runs have ended at what `recall(variant, dim)` says, less a thousandth a seed."""
    plan = Plan(request_of(tmp_path), (), DATASET, variants, dims, (0, 1))
    for variant in (PLAIN, *variants):
        for dim in dims:
            for seed in plan.seeds:
                entry = lambda value, seed=seed: {
                    "epochs": 3,
                    "seconds_per_epoch": 0.5,
                    "final": {"test": {RECALL: value - seed / 1000, NDCG: value / 2}},
                }
                phases = {"teacher": entry(0.32), "student": entry(0.2 + dim / 1000)}
                if variant.method != "none":
                    phases[variant.method] = entry(recall(variant, dim))
                write_results(plan.job(variant, dim, seed), phases)
    return plan


def test_capacity_says_who_is_ahead_where(tmp_path):
    dims = capacity.widths((0.05, 0.1, 1.0), 200)
    ahead = {("htd", 10): 0.25, ("ftd", 10): 0.24, ("htd", 20): 0.27, ("ftd", 20): 0.26, ("htd", 200): 0.3}
    plan = of_variants(tmp_path, parse_methods(["ftd", "htd"]), dims, lambda v, dim: ahead.get((v.method, dim), 0.31))
    report = capacity.report(plan, rows(plan, []))
    assert report.answer.startswith("HTD is ahead at 10 dimensions (0.2495); HTD is ahead at 20")
    assert "FTD is ahead at 200 dimensions (0.3095)" in report.answer
    table = {row[0]: row[1:] for row in cells(report.tables[0].markdown())}
    assert list(table) == ["", "---", "student", "+ FTD", "+ HTD"] and table[""] == [
        "10 (5%)",
        "20 (10%)",
        "200 (100%)",
    ]
    assert table["+ HTD"][0] == spread([0.25, 0.249])
    gaps = {(x["name"], x["x"]): x["mean"] for x in report.charts[1].spec["data"]["values"]}
    assert gaps["+ HTD", 10] == pytest.approx((0.25 - 0.21) / (0.32 - 0.21), abs=1e-3)


def test_an_ablation_says_what_a_part_is_worth(tmp_path):
    variants = ablation.ablated("htd")
    of = lambda v, dim: {"HTD": 0.28, "random groups": 0.23}.get(v.label, 0.27)
    plan = of_variants(tmp_path, variants, (20,), of)
    report = ablation.report(plan, rows(plan, []))
    assert "HTD has a recall@50 of 0.2795. 'random groups' costs most: -0.0500." in report.answer
    by_name = {row[1]: row for row in cells(report.tables[0].markdown())}
    assert by_name["random groups"][3] == spread([-0.05, -0.05], "+.4f") and by_name["random groups"][0] == "groups"
    assert by_name["HTD"][3] == ""
    folders = {plan.job(variant, 20, 0).folder for variant in variants}
    assert len(folders) == len(variants)  # each a run of its own
    for variant in (*variants, *ablation.ablated("best")):
        job = plan.job(variant, 20, 0)
        request = parse_request(job.arguments, prog="", description="")
        spec = resolve_run(request, DATASET)
        assert dataclasses.replace(spec, folder=job.folder, runs=job.spec.runs) == job.spec, (
            variant
        )  # flags and settings agree
    with pytest.raises(UserError, match="`of` must be htd or best"):
        ablation.ablated("ftd")


def test_a_sensitivity_has_a_chart_a_number(tmp_path):
    variants = ablation.varied({"groups": (10, 30), "alpha": (0.1, 0.5)})
    of = lambda v, dim: 0.28 if not v.changes else 0.26 + v.value / 1000
    plan = of_variants(tmp_path, variants, (20,), of)
    assert len(plan.stages()[1]) == 2 * 3  # the usual one is one run, whatever it is called
    report = ablation.report_of_values(plan, rows(plan, []))
    assert [chart.name for chart in report.charts] == ["by-groups", "by-alpha"]
    assert "K, groups per side moves recall@50 from 0.2695 to 0.2795" in report.answer
    points = {x["x"]: x["mean"] for x in report.charts[0].spec["data"]["values"]}
    assert points == {10: pytest.approx(0.2695), 30: pytest.approx(0.2795)}


def test_which_differences_chance_explains(made):
    rng = np.random.default_rng(0)
    every = rows(made, [])
    noise = rng.random(400)
    shift = {"student": 0.0, "+ FTD": 0.2, "+ RRD": 0.0, "+ FTD + RRD": 0.25}
    users = {
        row: {seed: noise + shift[row.name] + 0.05 * rng.normal(size=400) for seed in made.seeds}
        for row in every
        if row.name in shift
    }
    (table,) = comparison.beyond_chance(made, every, users)
    by_name = {row[0]: row for row in table.rows}
    assert by_name["FTD"][3] == "<.001" and float(by_name["FTD"][2].removeprefix("<")) < 0.05
    assert by_name["FTD"][4] == "FTD + RRD" and by_name["FTD + RRD"][4] == "FTD"
    assert float(by_name["RRD"][2]) > 0.05


@pytest.mark.slow
def test_each_users_recall_is_kept_and_that_of_another_model_is_not(compared, tmp_path):
    folder = tmp_path / "runs"
    shutil.copytree(compared[0], folder)
    study("--methods", "ftd", "--runs", folder)
    kept = folder / "synthetic-ftd-4-seed0" / "users-ftd.npz"
    with np.load(kept) as found:
        values = found[RECALL]
    entry = results(folder / "synthetic-ftd-4-seed0")["phases"]["ftd"]["final"]["test"]
    assert values.mean() == pytest.approx(entry[RECALL], abs=1e-6)
    np.savez(kept, **{RECALL: values + 0.1})
    assert "each user's" in study("--methods", "ftd", "--runs", folder).out
    with np.load(kept) as found:
        np.testing.assert_array_equal(found[RECALL], values)


def test_methods_are_named_or_all():
    names = lambda *given: [variant.method for variant in parse_methods(given)]
    assert "none" not in names("all") and "htd" in names("all") and "pseudo" not in names("all")
    assert names("ftd", "none", "ftd", "ftd+rrd") == ["ftd", "ftd+rrd"]
    with pytest.raises(UserError, match="unknown method"):
        parse_methods(["ftd+magic"])


def test_the_spread_is_the_sample_standard_deviation():
    values = [0.1, 0.2, 0.4]
    assert spread([*values, None]) == f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


# --- the frontier


@pytest.mark.slow
def test_a_frontier_counts_bytes_and_goes_on_where_it_was(tmp_path):
    flags = ["study", "frontier", *DATA, "--seeds", "0", "--bytes", "4", "--budget", "0", "--runs", tmp_path]
    kinds = ["--kinds", "best", "svd", "rounded", "pq"]
    done = start_command(*flags, *kinds)
    assert done.status == 0, done.err
    found = json.loads((tmp_path / "frontier.json").read_text())
    sizes = {(point["kind"], point["what"]): point["size"] for point in found}
    assert sizes[("teacher", "ials 200 float32")] == 800 and sizes[("best", "8 int4")] == 4
    assert sizes[("rounded", "int8")] == 204 and sizes[("svd", "4 float32")] == 16
    table = {
        cells[3].strip() + cells[2].strip(): cells
        for cells in (x.split("|") for x in done.out.splitlines())
        if len(cells) == 8
    }
    for point in found:  # what is shown is what was found
        assert table[point["what"] + point["kind"]][4].strip() == f"{point['test']['recall@50']:.4f}"
    assert (tmp_path / "frontier.png").stat().st_size > 5_000 and "8 int4" in (tmp_path / "frontier.md").read_text()
    kept = tmp_path / "synthetic-rounded-int8-seed0.json"
    kept_point = json.loads(kept.read_text())
    assert kept_point["point"] in found
    kept.write_text(json.dumps(kept_point | {"teacher": "another"}))
    again = start_command(*flags, *kinds)
    assert json.loads(kept.read_text())["teacher"] == kept_point["teacher"]  # made again, from this teacher
    without_times = lambda out: [line.rpartition(" | ")[0] for line in out.splitlines() if "|" in line]
    assert without_times(again.out) == without_times(done.out)


def test_curves_show_shares_of_the_teacher(tmp_path):
    point = lambda kind, size, recall, seed=0, **own: frontier.Point(
        kind, f"{size} codes", size, seed, {"recall@50": recall, "ndcg@10": recall / 2}, {}, 1.0, **own
    )
    points = [point("teacher", 800, 0.4), point("teacher", 256, 0.6, 1)]
    points += [point("best", 10, 0.4, asked=10), point("best", 9, 0.5, 1, asked=10), point("pq", 10, 0.25)]
    (tmp_path / "frontier.json").write_text(json.dumps([dataclasses.asdict(one) for one in points]))
    found = {entry["kind"]: entry for entry in shares.shares(shares.read_points(tmp_path / "frontier.json"), "ndcg@10")}
    assert found["best"]["share"] == pytest.approx(0.9) and found["best"]["seeds"] == 2
    assert found["pq"]["share"] == pytest.approx(0.5) and found["teacher"]["share"] == pytest.approx(1)
    enter(
        lambda words: curves(["--files", *words, "--to", str(tmp_path / "x.pdf")]), [f"data={tmp_path}/frontier.json"]
    )
    table = (tmp_path / "x.md").read_text()
    assert "| data | 10 | best, 10 codes or 9 codes | 0.4500 | 0.2250 | 90%, 90% | 2 |" in table
    assert r"data & 10 & best, 10 codes or 9 codes & 0.4500 & 0.2250 &" in (tmp_path / "x.tex").read_text()
    assert (tmp_path / "x.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(UserError, match="`metrics` recall@7 was not measured; known: recall@50"):
        shares.shares(points, "recall@7")
    (tmp_path / "frontier.json").write_text("{}")
    with pytest.raises(UserError, match="not the models of a frontier"):
        shares.read_points(tmp_path / "frontier.json")


def test_a_frontier_says_what_it_cannot(tmp_path):
    said = line_of(start_command("study", "frontier", *DATA, "--kinds", "lsh", "--runs", tmp_path))
    assert "--kinds has an unknown value 'lsh' (known: best" in said
    assert (
        "unknown study 'front' (known: comparison, capacity, ablation, sensitivity, topology, beyond, frontier"
        in line_of(start_command("study", "front"))
    )


# --- described in a file


def described_in(folder, text):
    (folder / "study.toml").write_text(text)
    return ["--file", folder / "study.toml"]


def test_a_file_is_the_flags_that_it_holds(tmp_path):
    (tmp_path / "study.toml").write_text(
        'dataset = "citeulike"\nseeds = [0, 1]\nstudent_dims = [4]\nlearning-rate = 1e-3\ntensorboard = true\n'
        '[htd]\ngroups = 60\nnoise = false\n[ir-rrd]\nweight = 0.5\n["citeulike-t"]\nsplit = "random"\n'
    )
    expected = "--dataset citeulike --seeds 0 1 --student-dims 4 --learning-rate 0.001 --tensorboard --htd.groups 60"
    expected += " --htd.no-noise --ir-rrd.weight 0.5 --citeulike-t.split random"
    assert read_flags(tmp_path / "study.toml") == expected.split()
    with described(["--file=" + str(tmp_path / "study.toml"), "--seeds", "2"]) as flags:
        assert flags == [*expected.split(), "--seeds", "2"]


@pytest.mark.slow
def test_a_comparison_of_a_file_finds_that_of_the_same_flags(compared, tmp_path):
    folder = tmp_path / "runs"
    shutil.copytree(compared[0], folder)
    text = 'methods = ["rrd"]\nepochs = 2\nteacher_dim = 8\nstudent_dims = [4]\nseeds = [0]\n'
    text += "[synthetic]\nusers = 60\nitems = 150\n"
    file = described_in(tmp_path, text)
    done = start_command("study", "comparison", *file, "--methods", "ftd", "--runs", folder)  # what is typed wins
    assert done.status == 0, done.err
    assert done.out.count("reused") == 2 and "RRD" not in done.out


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("studnet-dims = [4]", "study.toml: Unrecognized options: --studnet-dims"),
        ("[htd]\nnothing = 4", "study.toml: Unrecognized options: --htd.nothing"),
        ("[htd]\ngroups = 0", "study.toml: --htd.groups must be at least 1, not 0"),
        ('epochs = "ten"', "study.toml: Error parsing --epochs: invalid literal"),
        ("seed = 1", "study.toml: --seed is not for studies; use --seeds"),
        ("epochs =", "study.toml: not TOML (Invalid value"),
        ("epochs = 2026-01-01", "study.toml: epochs must be a text, a number"),
        ('dataset = "--runs"', "study.toml: dataset: '--runs' is a flag"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_name(text, reason, tmp_path):
    said = line_of(start_command("study", "comparison", *described_in(tmp_path, text), "--runs", tmp_path / "runs"))
    assert reason in said
    assert str(tmp_path) in said and not (tmp_path / "runs").exists()


def test_a_file_is_not_blamed_for_what_is_typed(tmp_path):
    file = described_in(tmp_path, "epochs = 3")
    said = line_of(start_command("study", "comparison", *file, "--epochs=0", "--runs", tmp_path / "runs"))
    assert said.startswith("error: --epochs must be at least 1")
    for arguments in (["--file"], ["--file", tmp_path / "none.toml"], ["--file", tmp_path]):
        assert "--file " in line_of(start_command("study", "frontier", *arguments))
