"""The search of settings: what is searched, that it goes on as if it had not been stopped, and what fails."""

import dataclasses
import importlib.util
import shlex
from typing import Annotated

import pytest
from annotated_types import Ge, Interval
from runs import DATA, line_of, results, start_command, strict

from htd_jax.distillers import FTD, HTD, IRRRD
from htd_jax.errors import UserError, as_flags
from htd_jax.studies import tune
from htd_jax.studies.tune import Choice, Range, default_space, parse_search
from htd_jax.writing import alone

pytest.importorskip("optuna")

FLAGS = [*DATA, "--epochs", "3", "--eval-every", "1", "--teacher-dim", "8", "--student-dim", "4", "--method", "ftd"]


def study(folder, *arguments):
    return start_command("study", "tune", *FLAGS, "--runs", folder, *arguments)


def tried(done):
    return [line for line in done.out.splitlines() if line.startswith(tuple(f"{i}/" for i in range(1, 10)))]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    done = study(folder, "--trials", 4)
    assert done.status == 0, done.err
    return folder, done


# --- what is searched


def test_ranges_follow_from_the_settings():
    space = default_space({"htd": HTD(groups=40)})
    assert space["htd.weight"] == Range(1e-5, 0.1) and space["htd.groups"] == Range(4, 400)
    assert space["htd.alpha"] == Range(0, 1, log=False)
    assert space["htd.pairs"] == Choice(("positive", "all")) and space["htd.noise"] == Choice((True, False))
    assert set(space) == {f"htd.{field.name}" for field in dataclasses.fields(HTD) if field.name != "grouping_seed"}


def test_ranges_keep_to_the_limits():
    @dataclasses.dataclass(frozen=True)
    class Limited:
        few: Annotated[int, Ge(2)] = 5
        share: Annotated[float, Interval(ge=0.5, lt=1)] = 0.75
        none: Annotated[float, Ge(0)] = 0.0
        left: Annotated[int, Ge(1)] | None = None
        name: str = "x"

    space = default_space({"m:Limited": Limited()})
    assert space["limited.few"] == Range(2, 50) and isinstance(space["limited.few"].low, int)
    assert space["limited.share"].low == 0.5 and 0.999 < space["limited.share"].high < 1
    assert set(space) == {"limited.few", "limited.share"}


def test_a_search_is_said():
    methods = {"htd": HTD(), "ir-rrd": IRRRD()}
    said = ["htd.groups=10:100", "htd.weight=1e-4:1e-1:log", "ir-rrd.item-temperature", "htd.pairs=positive,all"]
    said += ["htd.noise=true", "htd.alpha=0.1,0.9"]
    space = parse_search(said, methods)
    assert space == {
        "htd.groups": Range(10, 100, log=False),
        "htd.weight": Range(1e-4, 1e-1),
        "ir-rrd.item_temperature": Range(1.0, 100.0),
        "htd.pairs": Choice(("positive", "all")),
        "htd.noise": Choice((True,)),
        "htd.alpha": Choice((0.1, 0.9)),
    }
    assert parse_search(["weight"], {"ftd": FTD()}) == {"ftd.weight": Range(1e-5, 0.1)}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("htd.gruops", "--search has an unknown setting 'htd.gruops' (known: htd.weight, htd.groups"),
        ("weight", "unknown setting 'weight'"),  # of which of the two
        ("htd.groups=10:x", "'10:x' is not a range of htd.groups; give LOW:HIGH, LOW:HIGH:log or A,B,C"),
        ("htd.groups=100:10", "is not a range"),
        ("htd.weight=0:1:log", "is not a range"),
        ("htd.weight=0:1:lin", "is not a range"),
        ("htd.pairs=a:b", "is not a range"),
        ("htd.noise=maybe", "is not a range"),
        ("htd.pairs=positive,none", "--htd.pairs must be one of positive, all"),
        ("htd.groups=0:5", "--htd.groups must be at least 1"),
        ("htd.alpha=0.5:2", "--htd.alpha must lie in"),
        ("htd.alpha=nan:2", "is not a range"),
    ],
)
def test_what_cannot_be_searched(text, reason):
    with pytest.raises(UserError, match="^`search`") as error:
        parse_search([text], {"htd": HTD(), "ftd": FTD()})
    assert reason in as_flags(str(error.value))


def test_the_command_has_what_was_found_after_the_flags():
    found = tune.command(["--dataset", "my clicks.csv"], {"ir-rrd.item_weight": 0.1, "htd.noise": False})
    assert found == "htd-jax train --dataset 'my clicks.csv' --ir-rrd.item-weight 0.1 --htd.no-noise"


# --- end to end


@pytest.mark.slow
def test_the_best_is_what_its_command_trains(searched):
    folder, done = searched
    assert len(tried(done)) == 4 and tried(done)[0].startswith("1/4 ftd.weight 0.001: valid recall@50 ")
    command = next(line for line in done.out.splitlines() if line.startswith("    htd-jax train "))
    assert (folder / "synthetic-ftd-4-seed0-tune" / "tune.md").read_text().count(command) == 1
    trained = start_command(*shlex.split(command)[1:])
    assert trained.status == 0, trained.err
    assert trained.out.count("reused from") == 2  # teacher and student
    found = results(folder / "synthetic-ftd-4-seed0")["phases"]["ftd"]["final"]["valid"]["recall@50"]
    best = next(
        line.split("|") for line in done.out.splitlines() if line.startswith("| ") and line.split()[1].isdigit()
    )
    assert best[2].strip() == f"{found:.4f}"


def test_a_search_goes_on_as_if_it_had_not_been_stopped(searched, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    calls, real = [], tune._try

    def die(*arguments, **rest):
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return real(*arguments, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(tune, "_try", die)
        with pytest.raises(Killed):
            study(tmp_path, "--trials", 4)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("history.json")}
    done = study(tmp_path, "--trials", 4)
    assert tried(done) == tried(searched[1])
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("history.json")}  # trained once
    again = study(tmp_path, "--trials", 4)
    assert tried(again) == tried(done)
    assert again.out.split("\n| trial")[1] == done.out.split("\n| trial")[1]


def test_another_search_in_the_folder_is_refused(searched):
    folder, _ = searched
    before = (folder / "synthetic-ftd-4-seed0-tune" / "tune.md").read_text()
    said = line_of(study(folder, "--search", "weight=1e-4:1e-1:log"))
    assert "another search (search ftd.weight was '1e-05:0.1:log', is '0.0001:0.1:log')" in said
    assert "epochs was 3, is 4" in line_of(study(folder, "--epochs", "4"))
    assert (folder / "synthetic-ftd-4-seed0-tune" / "tune.md").read_text() == before


@pytest.mark.slow
def test_a_trial_that_diverges_has_failed_and_the_others_go_on(tmp_path):
    done = study(tmp_path, "--trials", 5, "--search", "weight=0.001,1e38")
    assert done.status == 0, done.err
    lines = tried(done)
    failed = [line for line in lines if "failed: " in line and "diverged in epoch" in line]
    assert len(lines) == 5 and failed and all(line.split()[2] == "1e+38:" for line in failed)
    assert f"5 trials, 0 of them pruned, {len(failed)} failed." in done.out
    assert "--ftd.weight 0.001\n" in done.out


@pytest.mark.slow
def test_one_that_is_behind_the_others_is_pruned(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "UNPRUNED", 1)
    monkeypatch.setattr(tune, "WARM_SHARE", 0)
    chosen = ["--search", "weight=0.001,1000.0", "--epochs", "6", "--learning-rate", "0.05"]
    done = study(tmp_path, "--trials", 6, *chosen)
    assert done.status == 0, done.err
    pruned = [line for line in tried(done) if "pruned after epoch" in line]
    assert pruned and f"{len(pruned)} of them pruned" in done.out
    assert all(int(line.split()[-1]) < 5 for line in pruned)


@pytest.mark.slow
def test_processes_share_a_storage(tmp_path):
    storage = ["--storage", tmp_path / "trials.journal"]
    first = study(tmp_path / "a", "--trials", 2, *storage)
    assert first.status == 0, first.err
    second = study(tmp_path / "b", "--trials", 3, *storage)
    without_total = lambda done: [line.partition("/")[2][2:] for line in tried(done)]
    assert len(tried(second)) == 3 and without_total(second)[:2] == without_total(first)
    assert not (tmp_path / "b" / "synthetic-ftd-4-seed0-tune" / "tune.db").exists()
    assert "--storage holds another search" in line_of(study(tmp_path / "c", *storage, "--search", "weight=1:2"))


def test_two_searches_in_one_folder(tmp_path):
    with alone(tmp_path):
        assert "another study is using it" in line_of(study(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--method", "none"], "--method none has no settings to search"),
        (["--method", "svd"], "--method svd has no settings to search"),
        (["--trials", "0"], "--trials must be at least 1"),
        (["--search", "groups"], "--search has an unknown setting 'ftd.groups' (known: ftd.weight"),
        (["--run", "x"], "--run is not for studies; use --runs"),
        (["--epoch", "3"], "--epoch"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_begun(arguments, reason, tmp_path):
    assert reason in line_of(study(tmp_path / "runs", *arguments))
    assert not (tmp_path / "runs").exists()


def test_without_the_library_it_is_a_line(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optuna" else find(name))
    assert "needs optuna: pip install optuna" in line_of(study(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_its_help_fits_a_screen():
    done = start_command("study", "tune", "--help")
    assert done.status == 0 and done.out.count("\n") <= 50 and "--search" in done.out and "--trials" in done.out


def test_a_file_describes_it(searched, tmp_path):
    folder, done = searched
    (tmp_path / "study.toml").write_text(
        f'method = "ftd"\ntrials = 4\nepochs = 3\neval_every = 1\nteacher_dim = 8\nstudent_dim = 4\nruns = "{folder}"\n'
        "[synthetic]\nusers = 60\nitems = 150\n"
    )
    again = start_command("study", "tune", "--file", tmp_path / "study.toml")
    assert again.status == 0, again.err
    assert tried(again) == tried(done)
    assert strict(folder / "synthetic-ftd-4-seed0-tune" / "checkpoints" / "teacher" / "3" / "history.json")["finished"]
