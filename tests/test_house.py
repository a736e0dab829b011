"""The shape of the package: a room knows the rooms under it, and nothing of those above or beside."""

import ast
from pathlib import Path

import pytest

import htd_jax

PACKAGE = Path(htd_jax.__file__).parent

# From the ground up; rooms of one floor know nothing of one another.
FLOORS = [
    {"errors", "writing", "settings"},
    {"data"},
    {"ops"},
    {"losses"},
    {"models"},
    {"distillers"},
    {"training", "evaluation"},
    {"serving"},
    {"pipeline"},
    {"studies"},
    {"command"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# The doors: what a user imports, and `python -m htd_jax`.
DOORS = {"__init__", "__main__"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The rooms that a file imports from, wherever in it that stands."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            names += [node.module] if node.module != "htd_jax" else [f"htd_jax.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("htd_jax.")}


FILES = sorted(path for path in PACKAGE.rglob("*.py") if room_of(path) not in DOORS)


def test_every_room_has_a_floor():
    assert {room_of(path) for path in FILES} == set(FLOOR_OF)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_runs_upwards(path):
    own = room_of(path)
    for other in imports(path) - {own}:
        ground = FLOOR_OF[own] == FLOOR_OF[other] == 0
        assert ground or FLOOR_OF[other] < FLOOR_OF[own], f"{own} imports {other}, which is above or beside it"


def test_no_document_has_a_gap():
    for path in PACKAGE.parent.glob("**/*.md"):
        if ".venv" not in path.parts:
            assert "@@" not in path.read_text(), path
