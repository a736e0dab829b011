"""The command as a user meets it: its flags and help, what it refuses, what it shows, and how it ends."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from runs import (
    DATA,
    EXPERIMENTS,
    SMALL,
    line_of,
    process,
    refused,
    results,
    start,
    start_command,
    strict,
    trained,
    untimed,
)

from htd_jax import command
from htd_jax.command import report
from htd_jax.command.flags import parse_request
from htd_jax.data import make_split, save_split
from htd_jax.ops.codes import row_bytes
from htd_jax.pipeline import RunFolder, resolve_run

# --- what is refused


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--dataset", "movies"], "unknown dataset 'movies' (known: citeulike, citeulike-t, foursquare, synthetic"),
        (["--method", "magic"], "unknown method 'magic' (known: none, svd, ftd, htd, fitnet, de, phr"),
        (["--method", "htd+magic"], "unknown method 'magic'"),
        (["--method", "htd+"], "unknown method ''"),
        (["--method", "htd+htd"], "--method htd is given twice"),
        (["--method", "htd+svd"], "--method svd cannot be joined with others"),
        (["--method", "none+htd"], "--method none cannot be joined with others"),
        (["--method", "no_such_module:Method"], "cannot import method no_such_module:Method (No module named"),
        (["--method", "json:loads"], "the settings of method 'json:loads' must be a frozen dataclass"),
        (["--model", "mlp"], "unknown model 'mlp' (known: bpr, neumf, lightgcn"),
        (["--model", "neumf", "--method", "svd"], "--method svd needs a model whose scores are inner products"),
        (["--model", "neumf", "--student-init", "svd"], "the svd start needs a bpr student"),
        (
            ["--protocol", "half"],
            "invalid choice 'half' for argument '--protocol'. Expected one of ('full', 'sampl",
        ),
        (["--protocol", "sampled", "--candidates", "2000"], "candidates"),
        (["--cutoffs", "0"], "--cutoffs must be at least 1"),
        (["--metric", "recall@7"], "unknown metric 'recall@7' (known: recall@10"),
        (["--patience", "0"], "--patience must be at least 1"),
        (["--htd.weight", "much"], "--htd.weight: could not convert string to float: 'much'"),
        (["--htd.weight", "inf"], "--htd.weight must be finite, not inf"),
        (["--wait", "1"], "Unrecognized options: --wait, 1; --help lists the flags"),
        (["--split-file", "nowhere.npz"], "nowhere.npz"),
        (
            ["--htd.group-level", "x"],
            "invalid choice 'x' for argument '--htd.group-level'. Expected one of ('prototyp",
        ),
        (["--htd.pairs", "x"], "invalid choice 'x' for argument '--htd.pairs'. Expected one of ('positive', 'all');"),
        (["--htd.levels", "x"], "'--htd.levels'"),
        (["--htd.grouping", "x"], "'--htd.grouping'"),
        (["--synthetic.items", "99"], "--synthetic.items must be at least 100, not 99"),
        (["--student-dim", "0"], "--student-dim must be at least 1, not 0"),
        (["--teacher-dim", "-3"], "--teacher-dim must be at least 1"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--htd.groups", "0"], "--htd.groups must be at least 1"),
        (["--eval-every", "0"], "--eval-every must be at least 1"),
        (["--learning-rate", "nan"], "--learning-rate must be finite, not nan"),
        (["--learning-rate", "-1"], "--learning-rate must be at least 0"),
        (["--htd.alpha", "1.5"], "--htd.alpha must lie in [0, 1], not 1.5"),
        (["--seed", "-1"], "--seed must lie in"),
        (["--seed", "4294967296"], "--seed must lie in"),
        (["--teacher", "nowhere"], "--teacher: no folder nowhere"),
        (["--epochs", "ten"], "Error parsing --epochs: invalid literal for int() with base 10: 'ten'; --help"),
        (["--epoch-s", "3"], "--epoch-s"),
        (["--htd.nothing", "1"], "--htd.nothing"),
        (["stray"], "stray"),
    ],
)
def test_bad_values_are_refused_in_one_line_and_leave_nothing(args, reason, tmp_path):
    assert reason in refused(*args, "--runs", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_truncated_data_file_is_refused(citeulike_dir, tmp_path):
    shutil.copytree(citeulike_dir, tmp_path / "data")
    path = tmp_path / "data" / "Test"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:1000])
    chosen = ["--dataset", "citeulike", "--data-dir", tmp_path / "data"]
    assert "Test: damaged or not the published file" in refused(*chosen, "--runs", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*") if path.name != ".lock"}


@pytest.mark.slow
def test_a_run_folder_of_other_settings_is_refused_and_left_alone(finished):
    folder, _ = finished
    before = contents(folder)
    message = refused("--htd.groups", 3, "--htd.weight", "0.5", "--runs", folder.parent)
    assert "made with other settings (htd.weight was 0.001, is 0.5); choose another folder with --run" in message
    assert contents(folder) == before


def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert "exists and is not a run folder" in refused("--run", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert "exists and is not a run folder" in refused("--run", tmp_path / "notes.txt")


def test_a_path_that_is_no_utf8_is_refused_before_anything_is_written(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    message = refused("--method", "none", "--run", folder)
    assert "must be a path in UTF-8, which checkpoints need" in message and "caf\\udce9" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("written", ["not json", "[1]", '{"epochs": 3}'])
def test_a_config_that_is_none_is_refused_and_left_alone(tmp_path, written):
    (tmp_path / "config.json").write_text(written)
    assert str(tmp_path) in refused("--method", "none", "--run", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == written


def test_a_teacher_that_is_no_checkpoint_is_refused(finished, tmp_path):
    folder, _ = finished
    runs = ["--runs", tmp_path / "runs"]
    (tmp_path / "empty").mkdir()
    assert "not a checkpoint" in refused("--teacher", tmp_path / "empty", *runs)
    (tmp_path / "fake" / "3").mkdir(parents=True)
    assert "not a checkpoint" in refused("--teacher", tmp_path / "fake", *runs)
    damaged = tmp_path / "damaged"
    shutil.copytree(folder / "checkpoints" / "teacher", damaged)
    for path in (damaged / "3" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    assert "damaged" in refused("--teacher", damaged, *runs)
    assert "damaged" in refused("--teacher", damaged / "3", *runs)
    assert not (tmp_path / "runs").exists()


def test_a_teacher_of_other_data_or_evaluation_is_refused(finished, tmp_path):
    teacher = ["--method", "none", "--teacher", finished[0], "--runs", tmp_path / "runs"]
    assert "other data" in refused("--synthetic.seed", "1", *teacher)
    assert "was evaluated with cutoffs [10, 20, 50], this run with [5]" in refused("--cutoffs", "5", *teacher)
    assert "protocol" in refused("--protocol", "sampled", "--candidates", "50", *teacher)
    assert "patience" in refused("--patience", "1", *teacher)
    assert not (tmp_path / "runs").exists()


# --- flags and help


def options_of(text):
    """The flags in a help text."""
    return {word for line in text.splitlines() for word in line.replace("│", " ").split() if word.startswith("--")}


@pytest.mark.parametrize("name", ["train", "recommend", "export", "summary", "study", "table", "compare"])
def test_help_fits_a_screen(name):
    done = start_command(name, "--help")
    assert (done.status, done.err) == (0, "")
    assert done.out.count("\n") <= 50 and "(default: )" not in done.out and "None" not in done.out
    if name == "train":
        assert (
            "--method: none, svd, ftd, htd, fitnet, de, phr" in done.out and "--model: bpr, neumf, lightgcn" in done.out
        )
        assert options_of(done.out) >= {"--dataset", "--method", "--teacher", "--epochs", "--runs", "--student-dim"}


def test_help_of_all_shows_common_flags_first_and_then_each_components_own():
    text = start_command("train", "--help", "all").out
    places = [text.index(f"{flag} ") for flag in ("--epochs", "--runs", "--min-rating")]
    own = [text.index(f"{flag} ") for flag in ("--htd.groups", "--de.experts", "--neumf.layers", "--synthetic.users")]
    assert max(places) < min(own)
    for flag in ("--seed", "--cutoffs", "--citeulike-t.split", "--lightgcn.layers", "--phr.width", "--fitnet.weight"):
        assert f"{flag} " in text


@pytest.mark.parametrize(
    ("topic", "flags"),
    [
        ("data", {"--user-column", "--min-rating", "--split", "--split-file"}),
        ("teacher", {"--teacher", "--teacher-user-ids", "--teacher-dim"}),
        ("training", {"--epochs", "--batch-size", "--seed", "--student-init"}),
        ("evaluation", {"--protocol", "--cutoffs", "--metric", "--candidates"}),
        ("htd", {"--htd.groups", "--htd.pairs"}),
        ("citeulike-t", {"--citeulike-t.split"}),
    ],
)
def test_help_of_a_topic_shows_its_flags_alone(topic, flags):
    shown = options_of(start_command("train", "--help", topic).out)
    assert shown >= flags and "--runs" not in shown


def test_help_of_no_topic():
    assert "--help has no topic 'cooking' (known: data, teacher, training" in line_of(
        start_command("train", "--help", "cooking")
    )


@pytest.mark.parametrize(
    ("args", "prefixes", "common"),
    [
        (["--method", "htd"], {"htd"}, False),
        (["--method=htd+phr"], {"htd", "phr"}, False),
        (["--method", "runs_method:Gentle"], {"gentle"}, False),
        (["--model", "neumf"], {"neumf"}, False),
    ],
)
def test_help_of_what_is_named_shows_its_flags_alone(args, prefixes, common, my_module):
    done = command_help(*args)
    flags = options_of(done.out) - {"--help"}
    assert {flag[2:].partition(".")[0] for flag in flags if "." in flag} == prefixes
    assert ("--epochs" in flags) == common
    assert done.status == 0


def command_help(*args):
    return start(*args, "--help")


def request_of(*args):
    return command.flags.parse_request(args, prog="main.py", description="")


def test_flags_that_a_run_does_not_use_are_ignored_and_noted(capsys):
    requests = [request_of("--method", "ftd", *more) for more in ([], ["--htd.groups", "5"])]
    assert capsys.readouterr().out == "note: --htd.* is ignored, because this run does not use htd\n"
    specs = [resolve_run(request, request.load_dataset()) for request in requests]
    assert specs[0] == specs[1]
    request_of("--min-per-user", "3")
    assert "flags for reading a file are ignored" in capsys.readouterr().out


# --- somebody else's method

METHOD = '''
import dataclasses
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from annotated_types import Ge

from htd_jax.distillers import Distiller, Method
from htd_jax.distillers.base import no_params


@dataclasses.dataclass(frozen=True)
class Gentle(Method):
    """Somebody else's."""

    strength: Annotated[float, Ge(0)] = 1.0
    """How gentle."""
    weight: Annotated[float, Ge(0)] = 0.1
    """Lambda."""

    label: ClassVar[str] = "gentle"

    def make(self, epochs):
        def loss(step):
            value = self.strength * step.sampled * jnp.sum(step.batch.entities.users.masked().student ** 2)
            return value, {"gentle": value}

        return Distiller(no_params, loss, lambda start: jax.random.uniform(start.key))
'''


class Killed(Exception):
    pass


@pytest.fixture
def my_module(tmp_path, monkeypatch):
    (tmp_path / "runs_method.py").write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("runs_method", None)


@pytest.mark.slow
def test_somebody_elses_method_has_flags_limits_and_a_place_in_the_folders(
    my_module, finished, tmp_path, monkeypatch, a_checkpoint_every_epoch
):
    chosen = ["--method", "runs_method:Gentle", "--gentle.strength", "2"]
    assert "--gentle.strength must be at least 0, not -1" in refused(*chosen[:-1], "-1", "--runs", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    whole = trained(*chosen, "--teacher", finished[0], "--run", tmp_path / "whole")
    assert "student + gentle" in whole.out
    found = results(tmp_path / "whole")
    assert found["phases"]["runs_method:Gentle"]["settings"]["methods"]["runs_method:Gentle"]["strength"] == 2
    assert strict(tmp_path / "whole" / "config.json")["gentle"] == {"strength": 2.0, "weight": 0.1}
    assert "gentle" in strict(tmp_path / "whole" / "metrics.jsonl")[-1]["terms"]
    message = refused(*chosen[:-1], "3", "--teacher", finished[0], "--run", tmp_path / "whole")
    assert "gentle.strength was 2.0, is 3.0" in message

    killed, write = tmp_path / "killed", RunFolder.write_metrics

    def die_in_its_phase(folder, records):
        write(folder, records)
        if records.get("runs_method:Gentle", [{"epoch": 0}])[-1]["epoch"]:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_metrics", die_in_its_phase)
        with pytest.raises(Killed):
            start(*chosen, "--teacher", finished[0], "--run", killed)
    assert (killed / "checkpoints" / "runs_method:Gentle" / "3").is_dir() and not (killed / "results.json").exists()
    trained(*chosen, "--teacher", finished[0], "--run", killed)
    assert untimed(results(killed)) == untimed(found)
    assert untimed(strict(killed / "metrics.jsonl")) == untimed(strict(tmp_path / "whole" / "metrics.jsonl"))


# --- what is shown


def test_what_a_run_prints(finished):
    _, printed = finished
    title = "synthetic, bpr, seed 0: test, best epoch in validation recall@50"
    for word in ("teacher", "student + HTD", "gap closed", "recall@50", title):
        assert word in printed
    assert "\x1b" not in printed  # nobody's terminal
    lines = [line.split() for line in printed.splitlines() if "s/epoch" in line]
    assert [line[line.index("epoch") + 1] for line in lines] == ["0/2", "2/2"] * 3


def test_the_table_shows_every_model_at_its_best_epoch_in_validation(finished):
    folder, printed = finished
    rows = {
        cells[1].strip(): cells
        for cells in (re.split("[│┃|]", line) for line in printed.splitlines())
        if len(cells) > 4
    }
    for phase, name in (("student", "student"), ("htd", "student + HTD")):
        best = results(folder)["phases"][phase]["best"]
        assert rows[name][3].strip() == str(best["epoch"])
        assert f"{best['test']['recall@50']:.4f}" in [cell.strip() for cell in rows[name]]


@pytest.mark.slow
def test_baselines_have_the_students_bytes(tmp_path):
    run = tmp_path / "run"
    done = trained("--method", "none", "--baselines", "--epochs", 1, "--run", run)
    found = results(run)["baselines"]
    assert list(found) == ["teacher in 16 bytes per row", "iALS in 16 bytes per row"]  # 4 dimensions in float32
    for name, entry in found.items():
        assert (entry["dim"], entry["precision"]) == (12, "int4")  # as wide as the teacher
        assert entry["row_bytes"] == row_bytes(12, "int4") <= 16
        assert name in done.out and f"{entry['test']['recall@50']:.4f}" in done.out


def test_the_same_command_again_has_nothing_to_train_but_shows_it(finished):
    folder, printed = finished
    before = (folder / "results.json").read_bytes()
    done = trained("--htd.groups", 3, "--runs", folder.parent)
    assert "s/epoch" not in done.out
    tables = [text[text.index("synthetic, bpr, seed 0") :] for text in (printed, done.out)]
    assert tables[0] == tables[1]
    assert (folder / "results.json").read_bytes() == before


def test_eighty_columns_show_whole_names(finished, monkeypatch):
    folder, _ = finished
    monkeypatch.setattr(os, "isatty", lambda stream: True)
    monkeypatch.setenv("COLUMNS", "80")
    printed = trained("--htd.groups", 3, "--runs", folder.parent).out
    for name in ("teacher", "student + HTD", "gap closed", "parameters", "recall@10", "ndcg@20", "recall@50"):
        assert name in printed
    assert "…" not in printed
    assert max(len(line) for line in printed.splitlines() if "run folder" not in line) <= 80


@pytest.mark.slow
def test_a_run_without_the_plain_student(tmp_path):
    """And that the same command adds it; its curves are drawn as it is asked."""
    run = ["--method", "rd", "--runs", tmp_path, "--teacher-dim", "4", "--epochs", "1"]
    done = trained(*run, "--no-plain-student", "--curves", "pdf")
    assert "  teacher: bpr, 4 dimensions, 1 epoch\n  student + RD: bpr, 4 dimensions, 1 epoch\n" in done.out
    folder = tmp_path / "synthetic-rd-4-seed0"
    found = results(folder)
    assert list(found["phases"]) == ["teacher", "rd"] and not found["gap_closed"] and "gap closed" not in done.out
    assert (folder / "curves.pdf").read_bytes().startswith(b"%PDF") and not (folder / "curves.png").exists()
    again = trained(*run)
    assert list(results(folder)["phases"]) == ["teacher", "student", "rd"] and "gap closed" in again.out
    for method in ("none", "bd", "best"):
        refusal = f"--method {method} needs the plain student; leave out --no-plain-student"
        assert refusal in refused("--method", method, "--no-plain-student", "--runs", tmp_path)


def test_a_student_wider_than_its_teacher_is_allowed_but_said(tmp_path):
    done = trained("--method", "none", "--student-dim", 12, "--teacher-dim", 4, "--epochs", 1, "--runs", tmp_path)
    assert "note: the student (12) is wider than its teacher (4)" in done.out


@pytest.mark.parametrize("trouble", ["backend", "place"])
def test_a_picture_that_fails_costs_the_picture(finished, tmp_path, monkeypatch, trouble):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    (run / "curves.png").unlink()
    if trouble == "place":
        (run / "curves.png").mkdir()
        (run / "curves.png" / "file").touch()
    else:

        def fail(*args):
            raise ImportError("no backend\nmore of it")

        monkeypatch.setattr(report, "_draw_curves", fail)
    done = trained("--htd.groups", 3, "--run", run)
    assert done.err.startswith("note: ") and done.err.count("\n") == 1
    assert "gap closed" in done.out and f"run folder: {run}" in done.out
    assert not list(run.glob(".partial*"))


def test_a_diverged_run_ends_in_one_line_that_names_phase_and_epoch(tmp_path):
    done = start("--method", "none", "--learning-rate", "1e30", "--run", tmp_path / "run")
    message = line_of(done)
    assert message.startswith("error: teacher: the training diverged in epoch 1: its loss is ")
    assert "--learning-rate" in message
    assert not (tmp_path / "run" / "results.json").exists()
    if (tmp_path / "run" / "metrics.jsonl").exists():
        strict(tmp_path / "run" / "metrics.jsonl")


# --- processes of their own: how a script begins and ends


@pytest.mark.slow
def test_what_jax_and_python_are_told_by_the_environment(finished, tmp_path):
    """64 bits, a notebook's backend, a custom cache, an ASCII terminal: the run is the same to the bit."""
    cache = tmp_path / "cache"
    done = process(
        *SMALL,
        "--method",
        "none",
        "--run",
        tmp_path / "run",
        JAX_ENABLE_X64="1",
        MPLBACKEND="module://matplotlib_inline.backend_inline",
        JAX_COMPILATION_CACHE_DIR=str(cache),
        XDG_CACHE_HOME=str(tmp_path / "xdg"),
        PYTHONIOENCODING="ascii",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii() and "recall@50" in done.stdout
    found, expected = results(tmp_path / "run"), results(finished[0])
    for phase in ("teacher", "student"):
        assert untimed(found["phases"][phase]) == untimed(expected["phases"][phase])
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert any(cache.iterdir()) and not (tmp_path / "xdg" / "htd_jax").exists()


@pytest.mark.slow
def test_without_jit_a_run_ends_as_with_it(tmp_path):
    split = tmp_path / "tiny.npz"
    users, items = np.divmod(np.arange(5 * 3), 3)
    parts = [(users, (users + items) % 12), (np.arange(5), np.arange(5) + 3), (np.arange(5), np.arange(5) + 4)]
    save_split(split, make_split(*parts, 5, 12))
    chosen = ["--split-file", split, "--epochs", 1, "--teacher-dim", 3, "--student-dim", 2, "--method", "none"]
    done = process(*chosen, "--run", tmp_path / "plain", JAX_DISABLE_JIT="1")
    assert done.returncode == 0, done.stderr
    trained(*chosen, "--run", tmp_path / "compiled")
    plain, compiled = (strict(tmp_path / name / "metrics.jsonl") for name in ("plain", "compiled"))
    assert [line["phase"] for line in plain] == ["teacher", "student"]
    for one, other in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(one["terms"]["loss"], other["terms"]["loss"], rtol=1e-4)


def test_a_device_that_is_not_there_is_a_line():
    done = process(*SMALL, JAX_PLATFORMS="xpu")
    assert done.returncode == 2 and done.stderr.startswith("error: JAX finds no device") and done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.slow
def test_a_reader_that_leaves_ends_the_run_quietly(finished, tmp_path):
    script = [sys.executable, str(EXPERIMENTS / "main.py"), *SMALL, "--htd.groups", "3", "--run", str(finished[0])]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(script, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.slow
def test_a_terminated_run_shows_the_cursor_again(tmp_path):
    chosen = [*DATA, "--epochs", "100000", "--eval-every", "50000", "--teacher-dim", "12", "--student-dim", "4"]
    script = [str(EXPERIMENTS / "main.py"), *chosen, "--method", "none", "--run", str(tmp_path / "run")]
    terminal, other = pty.openpty()
    child = subprocess.Popen([sys.executable, *script], stdout=other, stderr=other, env=os.environ | {"TERM": "xterm"})
    os.close(other)
    printed, sent = b"", False
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        try:
            some = os.read(terminal, 65536)
        except OSError:  # closed at the other end
            break
        if not some:
            break
        printed += some
        if not sent and b"loss" in printed:
            child.terminate()
            sent = True
    os.close(terminal)
    assert child.wait(60) == 128 + signal.SIGTERM
    assert printed.count(b"\x1b[?25l") == printed.count(b"\x1b[?25h") > 0


@pytest.mark.slow
def test_the_commands_of_the_package(monkeypatch, capsys):
    for args in ([], ["--help"]):
        command.main(args)
        assert "commands:" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        command.main(["tabel"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: unknown command 'tabel'; htd-jax --help lists the commands\n"
    with pytest.raises(SystemExit) as stop:
        command.main(["table", "--help"])
    assert stop.value.code == 0 and "usage: htd-jax table" in capsys.readouterr().out
    module = [sys.executable, "-m", "htd_jax", "train", "--method", "phr", "--help"]
    done = subprocess.run(module, capture_output=True, text=True, timeout=300, cwd=EXPERIMENTS.parent)
    assert done.returncode == 0 and "usage: htd-jax train" in done.stdout and "--phr.width" in done.stdout


def test_config_json_holds_every_choice_but_places(finished):
    found = json.loads((finished[0] / "config.json").read_text())
    assert found["htd"]["groups"] == 3 and found["synthetic"]["users"] == 60 and found["teacher_dim"] == 12
    assert not {"runs", "run", "teacher_folder", "data_dir", "split_file"} & set(found)
    assert str(finished[0].parent) not in json.dumps(found)


# --- odd surroundings


def ended(arguments, tmp_path, **options):
    """How `htd-jax` ends, started by a shell with these redirections."""
    command = f"exec {sys.executable} -P -m htd_jax {arguments}"
    environment = {**os.environ, "PYTHONPATH": str(EXPERIMENTS.parent), **options}
    return subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ("--help >&-", 0),
        ("--help <&- >&- 2>&-", 0),
        ("--help >/dev/full", 2),
        ("table --runs nowhere 2>/dev/full", 2),
        ("table --runs nowhere 2>&-", 2),
        ("table --runs nowhere >/dev/full 2>/dev/full", 2),
    ],
)
def test_closed_and_full_streams(arguments, status, tmp_path):
    done = ended(arguments, tmp_path)
    assert done.returncode == status and done.stderr.count("\n") <= 1 and "Traceback" not in done.stderr, done
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"TERM": "", "NO_COLOR": "1", "COLUMNS": "1"},
        {"TZ": "No/Where", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"HOME": "/nowhere", "XDG_CACHE_HOME": "/proc/nowhere", "TMPDIR": "/nowhere", "MPLCONFIGDIR": "/nowhere"},
    ],
)
def test_odd_surroundings(environment, tmp_path):
    done = ended("summary --dataset synthetic --picture p.png", tmp_path, **environment)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


def test_a_value_may_begin_with_a_dash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no finished run in -runs has" in line_of(start_command("table", "--runs=-runs"))
    assert "-run: not a run folder" in line_of(start_command("recommend", "--run=-run", "--user=-1", "-2"))
    assert "unknown method '-m'" in line_of(start_command("train", "--method=-m"))
    os.mkdir("-run")
    (tmp_path / "-run" / "notes.txt").write_text("mine")
    assert "-run: exists and is not a run folder" in line_of(start_command("train", *SMALL, "--run=-run"))
    teacher = start_command("train", *SMALL, "--teacher=-t.npy", "u.npy")
    assert teacher.status == 2 and "error: -t.npy: there is no such file" in teacher.err
    assert "unknown method '-m'" in line_of(start_command("study", "comparison", "--methods=-m"))


def test_earlier_names_of_flags_are_those_of_today(capsys):
    request = parse_request(
        ["--groups=3", "--no-noise", "--weight", "0.1", "--method", "htd+de"], prog="", description=""
    )
    htd, de = request.components["htd"], request.components["de"]
    assert (htd.groups, htd.noise, htd.weight) == (3, False, 0.1) and (de.experts, de.weight) == (3, 0.1)
    assert "note: --groups is now --htd.groups and --de.experts\n" in capsys.readouterr().out
    request = parse_request(["--groups", "3", "--method", "none"], prog="", description="")
    assert not request.components and "and is ignored" in capsys.readouterr().out


def test_a_command_imports_little_and_caches_small_programs(tmp_path):
    """What takes a second to import is imported where it is used, and every program is compiled once per machine."""
    code = """
import sys
import htd_jax.command.train
from htd_jax.command import use_devices
slow = {"orbax.checkpoint", "scipy.sparse", "scipy.cluster", "scipy.stats", "pandas", "matplotlib", "sklearn"}
print(slow & set(sys.modules))
use_devices()
import jax
jax.jit(lambda x: x + 1)(1.0)
"""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.returncode) == ("set()\n", 0), done.stderr
    assert list(tmp_path.glob("jit__lambda*"))


def test_help_of_a_file_and_a_method_is_that_of_the_method():
    told = start_command("train", "--dataset", "examples/clicks.csv", "--method", "htd", "--help").out
    assert "--htd.groups" in told and "--min-rating" not in told
    assert "--min-rating" in start_command("train", "--dataset", "examples/clicks.csv", "--help").out
