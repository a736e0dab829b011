"""The programs of `docs/indexes.md`, as they stand there."""

import re
from pathlib import Path

import numpy as np
import pytest

from htd_jax.data import Ids
from htd_jax.ops.precision import to_precision
from htd_jax.serve import load
from htd_jax.serving import PRECISIONS, Retriever

PAGE = (Path(__file__).parents[1] / "docs" / "indexes.md").read_text()


def programs(title: str) -> list[str]:
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert section
    return re.findall(r"```python\n(.*?)```", section[1], re.DOTALL)


def exported(folder: Path, precision: str, dim: int) -> Retriever:
    rng = np.random.default_rng(3)
    users, items = (to_precision(rng.normal(size=(n, dim)).astype(np.float32), precision) for n in (30, 200))
    ids = Ids.numbers(30, "user"), Ids.from_values([f"i{n}" for n in range(200)], "item")
    made = Retriever(users, items, *ids)
    made.save(folder)
    return made


def run(text: str, known: dict) -> dict:
    exec(text, known)
    return known


@pytest.mark.parametrize("dim", [3, 27])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_as_floats(tmp_path, monkeypatch, precision, dim):
    made = exported(tmp_path / "student", precision, dim)
    monkeypatch.chdir(tmp_path)
    known = run(programs("Rows as floats")[0], {})
    np.testing.assert_allclose(known["users"], made.users.floats(), rtol=1e-6)
    np.testing.assert_allclose(known["items"], made.items.floats(), rtol=1e-6)
    assert known["items"].dtype == np.float32 and known["ids"][199] == "i199"


@pytest.mark.parametrize("precision", ["int4", "int2"])
def test_indexes_find_the_lists_of_recommend(tmp_path, monkeypatch, precision):
    pytest.importorskip("faiss")
    pytest.importorskip("usearch.index")
    exported(tmp_path / "student", precision, 20)
    monkeypatch.chdir(tmp_path)
    known = run(programs("Rows as floats")[0], {})
    expected = load("student").recommend(k=20).scores[:10]
    floats, codes, rounded = programs("faiss")
    own = lambda rows: np.take_along_axis(known["users"][:10] @ known["items"].T, rows.astype(int), axis=1)
    for text, loss in ((floats, 0), (codes, 0), (rounded, 0.1), *zip(programs("usearch"), (0.1, 0.1))):
        scores = own(run(text, known)["rows"])
        np.testing.assert_allclose(scores, expected, atol=1e-4 + loss * expected.max())


def test_the_program_of_all_scores(tmp_path, monkeypatch):
    made = exported(tmp_path / "student", "int4", 20)
    monkeypatch.chdir(tmp_path)
    program = run(programs("StableHLO")[0], {})["program"]
    assert "stablehlo.dot_general" in program.mlir_module()
    users, items = np.asarray(made.users.floats()), np.asarray(made.items.floats())
    np.testing.assert_allclose(program.call(users[:7]), users[:7] @ items.T, rtol=1e-4, atol=1e-4)
