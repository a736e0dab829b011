"""The notebooks run from top to bottom, and their files hold what they show."""

import base64
import os
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NEEDS = {"compress_embeddings": ("implicit", "faiss")}

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def outputs_of(notebook):
    """Returns the outputs of every cell. All cells ran, in order and without an error, and one made a picture."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert all(output.output_type != "error" for output in outputs)
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert pictures and all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    return outputs


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} >= {"quick_start", "losses_in_your_loop", *NEEDS}


@every_notebook
def test_committed_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for output in outputs_of(notebook):
        assert output.get("name") != "stderr", output.text
        text = output.get("text") or output.data["text/plain"]
        assert not re.search(r"[Ww]arning|(?<![\w.])/(home|tmp|root|usr|work|opt)/|site-packages", text), text


@pytest.mark.slow
@every_notebook
def test_runs(path, tmp_path, monkeypatch):
    for name in NEEDS.get(path.stem, ()):
        pytest.importorskip(name)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the tests' own, under which no picture is kept
    notebook = nbformat.read(path, as_version=4)
    (tmp_path / "work").mkdir()
    client = nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3")
    client.execute(cwd=str(tmp_path / "work"))
    assert outputs_of(notebook)
