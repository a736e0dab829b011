"""The shape of the package: a room imports only rooms below it, and some things are known in one place."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

import htd_jax

PACKAGE = Path(htd_jax.__file__).parent
ROOT = PACKAGE.parent

# From the ground up; rooms of one floor do not import one another.
FLOORS = [
    {"errors", "escaping", "showing", "writing", "settings", "processes"},
    {"data"},
    {"ops"},
    {"serve"},
    {"losses"},
    {"models"},
    {"ensembles"},
    {"teacher"},
    {"distillers"},
    {"training", "evaluation"},
    {"serving"},
    {"pipeline", "service"},
    {"studies"},
    {"command"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# The doors: what a user imports, and `python -m htd_jax`.
DOORS = {"__init__", "__main__"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules(path: Path) -> set[str]:
    """The modules of the package that a file imports, wherever in it."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return {name for name in names if name.startswith("htd_jax.")}


def imports(path: Path) -> set[str]:
    """The rooms that a file imports from."""
    return {name.split(".")[1] for name in modules(path)}


FILES = sorted(path for path in PACKAGE.rglob("*.py") if room_of(path) not in DOORS)


def test_every_room_has_a_floor():
    assert {room_of(path) for path in FILES} == set(FLOOR_OF)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_runs_upwards(path):
    own = room_of(path)
    for other in imports(path) - {own}:
        ground = FLOOR_OF[own] == FLOOR_OF[other] == 0
        assert ground or FLOOR_OF[other] < FLOOR_OF[own], f"{own} imports {other}, which is above it or on its floor"


def test_no_import_runs_in_a_circle():
    name = lambda path: ".".join(["htd_jax", *path.relative_to(PACKAGE).with_suffix("").parts])
    files = {name(path): path for path in FILES if path.name != "__init__.py"}
    graph = {module: modules(path) & set(files) for module, path in files.items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def strings(path: Path) -> list[str]:
    """The strings of a file, but for docstrings and the help of settings."""
    tree = ast.parse(path.read_text())
    loose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in loose]
    return [node.value for node in nodes if isinstance(node.value, str)]


def test_only_the_command_spells_flags():
    """The library names settings, which the command turns into flags where it prints them."""
    for path in FILES:
        if room_of(path) not in ("command", "studies"):
            found = [text for text in strings(path) if re.search(r"(?<![\w|:-])--[a-z]", text)]
            assert not found, f"{path}: {found}"


def test_only_the_run_folder_knows_its_files():
    names = {"config.json", "results.json", "metrics.jsonl", "checkpoints", "curves.png"}
    for path in FILES:
        if path != PACKAGE / "pipeline" / "run_folder.py":
            found = names & set(strings(path))
            assert not found, f"{path}: {found}"


def test_no_document_has_a_gap():
    for path in PACKAGE.parent.glob("**/*.md"):
        if ".venv" not in path.parts:
            assert "@@" not in path.read_text(), path


def test_every_guarantee_has_its_test():
    """`docs/guarantees.md` names a file `test_x.py`, a test of it after `::`, and more tests of the same file."""
    page = (ROOT / "docs" / "guarantees.md").read_text()
    for row in re.findall(r"^\|.*\| (.*`test.*) \|$", page, re.MULTILINE):
        file = None
        for name in re.findall(r"`([^`]+)`", row):
            if name.startswith("benchmarks/"):
                assert (ROOT / name).is_file(), name
                continue
            if ".py" in name:
                file, _, name = name.partition("::")
            text = (ROOT / "tests" / file).read_text()
            assert re.search(rf"^\s*(def|class) {name}\b" if name else "", text, re.MULTILINE), f"{file}::{name}"
