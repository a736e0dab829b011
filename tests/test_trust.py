"""What somebody else's files may do: nothing but be read. Names in them run no code and lead nowhere."""

import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from runs import EXPERIMENTS, SMALL, line_of, start, start_command

import htd_jax
from htd_jax.models import BPRSettings, ModelOf
from htd_jax.pipeline import RunFolder
from htd_jax.serve.card import card

MODULE = """
import dataclasses, pathlib
from htd_jax.distillers import FTD
from htd_jax.models import BPRSettings
pathlib.Path(__file__).with_name("ran").touch()

@dataclasses.dataclass(frozen=True)
class Planted(BPRSettings):
    pass

@dataclasses.dataclass(frozen=True)
class Method(FTD):
    pass
"""


class Module:
    """A module on the module path that leaves a file where it is imported; each test has one of its own, because a
    class stays known to its process."""

    numbers = itertools.count()

    def __init__(self, folder):
        self.module = f"planted{next(self.numbers)}"
        self.name, self.method = f"{self.module}:Planted", f"{self.module}:Method"
        self._ran = folder / "ran"
        folder.mkdir(exist_ok=True)
        (folder / f"{self.module}.py").write_text(MODULE)

    @property
    def ran(self):
        return self._ran.exists()


@pytest.fixture
def planted(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path / "modules")
    return Module(tmp_path / "modules")


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run."""
    folder = tmp_path / "runs" / "theirs"
    shutil.copytree(finished[0], folder)
    return folder


def change(path, keys, value):
    """Sets the value at `keys` in a JSON file; with a last key of None, renames the one before to `value`."""
    found = json.loads(path.read_text())
    *way, last = keys
    part = found
    for key in way[:-1] if last is None else way:
        part = part[key]
    if last is None:
        part[value] = part.pop(way[-1])
    else:
        part[last] = value
    path.write_text(json.dumps(found))


def histories(run):
    return sorted(run.glob("checkpoints/*/*/history.json"))


# What opens a run folder; `model` is an export of it, made before.
COMMANDS = {
    "recommend": lambda run, to: ["recommend", "--run", run],
    "phases": lambda run, to: ["recommend", "--run", run, "--phase", "teacher"],
    "export": lambda run, to: ["export", "--run", run, "--to", to],
    "table": lambda run, to: ["table", "--runs", run.parent],
    "compare": lambda run, to: ["compare", run, run.parent / "other"],
    "train": lambda run, to: ["train", *SMALL, "--method", "ftd", "--teacher", run, "--runs", to],
}

FIELDS = [
    ("history.json", "settings", "model", "name"),
    ("history.json", "settings", "methods", "htd", None),
    ("history.json", "settings", "teacher", "model", "name"),
    ("history.json", "settings", "evaluation", "protocol"),
    ("history.json", "settings", "evaluation", "metric"),
    ("history.json", "settings", "start"),
    ("history.json", "settings", "data"),
    ("results.json", "method"),
    ("results.json", "model"),
    ("results.json", "dataset"),
    ("results.json", "protocol"),
    ("results.json", "phases", "htd", None),
    ("results.json", "phases", "htd", "settings", "model", "name"),
    ("results.json", "phases", "htd", "settings", "methods", "htd", None),
    ("results.json", "phases", "htd", "settings", "teacher", "model", "name"),
    ("results.json", "phases", "htd", "settings", "evaluation", "protocol"),
    ("config.json", "method"),
    ("config.json", "model"),
    ("config.json", "teacher_model"),
    ("config.json", "dataset"),
    ("config.json", "loss"),
    ("config.json", "precision"),
    ("config.json", "metric"),
]


@pytest.mark.slow
@pytest.mark.parametrize("field", FIELDS, ids=lambda field: ".".join(map(str, field)))
def test_no_name_in_a_run_folder_is_imported(run, planted, field, tmp_path):
    name, *keys = field
    for path in histories(run) if name == "history.json" else [run / name]:
        if "htd" in path.parts or not {"teacher", "methods"} & set(keys):
            change(path, keys, planted.name)
    shutil.copytree(run, run.parent / "other")
    for command, arguments in COMMANDS.items():
        done = start_command(*arguments(run, tmp_path / command))
        assert done.status in (0, 2) and done.err.count("\n") <= 1 and "Traceback" not in done.err, (command, done)
    try:
        htd_jax.load(run)
    except htd_jax.UserError as error:
        assert "\n" not in str(error)
    assert not planted.ran


def test_the_name_of_a_model_is_refused_in_a_line_that_tells_how_to_allow_it(run, planted, tmp_path):
    for path in histories(run):
        change(path, ("settings", "model", "name"), planted.name)
    refusal = f"model {planted.name!r} is code from outside this package, which is not run because a file names it"
    for command in ("recommend", "export"):
        message = line_of(start_command(*COMMANDS[command](run, tmp_path / "to")))
        assert refusal in message and f"--trust-code {planted.name}" in message
    with pytest.raises(htd_jax.UserError, match="import its module first"):
        htd_jax.load(run)
    assert not planted.ran
    assert start_command(*COMMANDS["recommend"](run, None), "--trust-code", planted.name).status == 0
    assert planted.ran
    assert len(htd_jax.load(run).users) == 60  # because the module is imported now


@pytest.mark.parametrize(
    "text", ['method = "{method}"', 'methods = ["{method}"]', 'model = "{name}"', 'teacher-model = "{name}"']
)
@pytest.mark.parametrize("study", ["comparison", "tune"])
def test_no_name_in_the_file_of_a_study_is_imported(planted, text, study, tmp_path):
    (tmp_path / "study.toml").write_text(text.format(method=planted.method, name=planted.name))
    flags = [*SMALL, "--runs", tmp_path / "runs", "--file", tmp_path / "study.toml"]
    line_of(start_command("study", study, *flags))
    assert not planted.ran and not (tmp_path / "runs").exists()


def test_a_file_does_not_trust_itself(planted, tmp_path):
    (tmp_path / "study.toml").write_text(f'trust-code = ["{planted.module}"]')
    message = line_of(start_command("study", "comparison", "--file", tmp_path / "study.toml"))
    assert "trust-code cannot stand in a file; type it, because it runs code" in message
    assert not planted.ran


def test_an_export_names_no_code(run, planted, tmp_path):
    export = tmp_path / "export"
    assert start_command("export", "--run", run, "--to", export).status == 0
    for keys in [("about", "model"), ("about", "method"), ("about", "phase"), ("about", "config", "model")]:
        change(export / "htd_jax.json", keys, planted.name)
    assert start_command("recommend", "--model", export).status == 0
    assert len(htd_jax.load(export).users) == 60
    change(export / "htd_jax.json", ("precision",), planted.name)
    assert "the header of an export" in line_of(start_command("recommend", "--model", export))
    assert not planted.ran


@pytest.mark.parametrize("name", ["../../other", "..", "", "/etc", "a/b", "a\\b", "a\nb", 3, None, ["htd"], {"a": 1}])
def test_the_name_of_a_phase_leads_to_no_other_folder(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps({"method": name}))
    (tmp_path / "checkpoints").mkdir()
    folder = RunFolder(tmp_path)
    if name in (3, None) or isinstance(name, list | dict):
        assert folder.phases() == []
    else:
        with pytest.raises(htd_jax.UserError, match="is no name of a phase"):
            folder.phases()


def test_settings_of_a_run_are_within_their_limits(run):
    for path in histories(run):
        change(path, ("settings", "model", "dim"), -4)
    with pytest.raises(htd_jax.UserError, match="the checkpoint is of an unknown model"):
        htd_jax.load(run)


def test_a_class_that_is_given_in_python_is_known(data):
    class Mine(BPRSettings):
        pass

    mine = dataclasses.dataclass(frozen=True)(Mine)
    assert htd_jax.models.MODELS[htd_jax.models.MODELS.name_of(mine())] is mine
    assert ModelOf(mine(), 2)


# --- the working directory


@pytest.mark.slow
@pytest.mark.parametrize("way", [["-m", "htd_jax"], [str(EXPERIMENTS / "table.py")]], ids=["module", "script"])
def test_modules_of_the_working_directory_are_not_imported(tmp_path, way):
    names = ["pandas", "numpy", "jax", "rich", "tyro", "libtpu", "tensorboardX", "optuna", "vl_convert", "json"]
    for name in names:
        (tmp_path / f"{name}.py").write_text(f"open('ran-{name}', 'w'); raise ImportError")
    arguments = ["table"] if way[0] == "-m" else []
    environment = {**os.environ, "PYTHONPATH": str(EXPERIMENTS.parent)}
    done = subprocess.run(
        [sys.executable, *way, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2 and "no finished run in runs" in done.stderr, done.stderr
    assert not list(tmp_path.glob("ran-*"))


def test_a_method_of_the_working_directory_is_imported_where_it_is_typed(tmp_path, monkeypatch):
    planted = Module(tmp_path)
    monkeypatch.chdir(tmp_path)
    path = sys.path[:]
    line_of(start("--method", planted.method, "--epochs", "0"))
    assert planted.ran and sys.path == path


def test_the_folder_of_an_export_is_no_name_of_code(tmp_path, planted, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "there is no such folder" in line_of(start_command("recommend", "--model", planted.name))
    assert not planted.ran


# --- text that is shown

EVIL = "x\n\n<script>alert(1)</script>\n[click](javascript:alert(1)) | `a` \x1b[2J[red]http://evil"


def test_text_of_a_model_card_is_text():
    about = {
        "dataset": EVIL,
        "model": EVIL,
        "method": EVIL,
        "licence": EVIL,
        "command": f"htd-jax '{EVIL}\n```\n<img>'",
    }
    phases = {EVIL: {"parameters": 1, "test": {"recall@10": None}}}
    about |= {"phases": phases, "phase": EVIL, "versions": {EVIL: EVIL}, "interactions": {EVIL: 1}}
    text = card({"dim": 2, "users": 1, "items": 1, "precision": "float32", "seen": False, "about": about})
    outside = text.partition("## How it was made")[0] + text.rpartition("```")[2]
    assert not re.search(r"<|(?<!\\)\]\(|://|\x1b", outside)
    assert "\n<img>" not in text and "\x1b" not in text


def test_text_in_tables_of_the_terminal_is_text(run, capsys):
    change(run / "results.json", ("dataset",), EVIL)
    shutil.copytree(run, run.parent / "other[red]")
    for arguments in (["compare", run, run.parent / "other[red]"], ["table", "--runs", run.parent / "none" / ".."]):
        done = start_command(*arguments)
        assert done.status in (0, 2) and "\x1b[2J" not in done.out + done.err
    assert "other[red]" in start_command("compare", run, run.parent / "other[red]").out


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("phases", "teacher", "parameters"), "many"),
        (("phases", "teacher", "final", "test"), {"recall": 1.0}),
        (("phases", "teacher", "final", "test"), {"recall@10": "high"}),
        (("phases", "teacher"), None),
        (("gap_closed",), {"<b>@5": 1.0}),
        (("dataset",), 3),
        (("seed",), []),
    ],
)
def test_results_that_are_none_are_refused(run, keys, value):
    change(run / "results.json", keys, value)
    with pytest.raises(htd_jax.UserError, match="not the results of a run"):
        RunFolder(run).read_results()
