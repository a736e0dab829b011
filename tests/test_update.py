"""Updates of trained recommenders by new interactions."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import htd_jax
from htd_jax.command import main
from htd_jax.data import grow
from htd_jax.distillers import Replay
from htd_jax.errors import UserError
from htd_jax.pipeline import RunFolder, fitted_of, open_run, update_run


def columns(rng, users, items, size):
    found = sorted({(f"u{rng.integers(users):02}", f"i{rng.integers(items):02}") for _ in range(size)})
    return tuple(map(list, zip(*found)))


@pytest.fixture(scope="module")
def logs():
    rng = np.random.default_rng(0)
    return columns(rng, 40, 50, 500), columns(rng, 48, 60, 260)


SLOW = [pytest.param(model, marks=pytest.mark.slow) for model in ("bpr", "neumf", "lightgcn", "folded")]


@pytest.mark.parametrize("model", ["ials", *SLOW])
def test_every_model_grows_learns_and_keeps_its_ids(logs, model):
    old, new = logs
    parent = htd_jax.fit(old, model=model, dim=4, epochs=2, progress=False)
    settings = {} if model == "ials" else {"epochs": 2}
    student = htd_jax.update(parent, new, **settings, progress=False)
    assert student.data.users.values.to_pylist()[:40] == parent.data.users.values.to_pylist()[:40]
    assert len(student.data.users) == 48 and len(student.data.items) == 60
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(student.variables))
    lists = student.recommend("u47", 3)
    assert set(lists.items[0]) <= set(student.data.items.values.to_pylist())
    parts = student.about["update"]
    assert set(parts["before"]) == set(parts["after"]) == {"old", "new"}


@pytest.mark.slow
def test_an_update_may_be_updated_and_exported(logs, tmp_path):
    old, new = logs
    parent = htd_jax.fit(old, dim=4, epochs=2, progress=False)
    again = (["u90", "u90"], ["i01", "i99"])  # too few to hold one out
    student = parent.update(new, progress=False).update(again, epochs=1, progress=False)
    assert student.data.users.values.to_pylist()[-1] == "u90" and "i99" in student.data.items.values.to_pylist()
    assert student.data.block is None  # a training on its data learns all of them
    student.save(tmp_path / "export", seen=True)
    opened = htd_jax.load(tmp_path / "export")
    newer = htd_jax.update(opened, (["u91", "u91"], ["i01", "i98"]), epochs=1, progress=False)
    assert newer.data.users.values.to_pylist()[-2:] == ["u90", "u91"]
    newer.save(tmp_path / "newer", seen=True)
    assert htd_jax.load(tmp_path / "newer").parent == opened.version
    with pytest.raises(UserError, match="no new interaction"):
        htd_jax.update(opened, again, progress=False)


def test_a_run_of_an_update_resumes_and_names_its_parent(logs, tmp_path):
    old, new = logs
    parent = htd_jax.fit(old, dim=4, epochs=2, progress=False)
    growth = grow(parent.data, htd_jax.read(new))
    folder = RunFolder(tmp_path / "updated")
    config = {"dataset": "x", "model": "bpr", "parent_run": "runs/x"}
    results = update_run(parent, growth, folder, config, method=Replay(), settings={"epochs": 2})
    assert json.loads(folder.results.read_text())["parent"] == "runs/x"
    opened = open_run(folder.path)
    again = update_run(parent, growth, folder, config, method=Replay(), settings={"epochs": 2})
    assert again["update"] == results["update"]
    figures = results["phases"]["replay"]["final"]["test"]
    assert opened.metrics == pytest.approx(figures)
    with pytest.raises(UserError, match="other settings"):
        update_run(parent, growth, folder, config, method=Replay(samples=7), settings={"epochs": 2})


def test_old_rows_of_ials_move_only_in_sweeps(logs):
    old, new = logs
    parent = htd_jax.fit(old, model="ials", dim=4, progress=False)
    kept, moved = (htd_jax.update(parent, new, sweeps=sweeps, progress=False) for sweeps in (0, 1))
    users = lambda fitted: np.asarray(fitted.variables["params"]["users"])[:40]
    assert (users(kept) == users(parent)).all() and not np.allclose(users(moved), users(parent))


def test_what_cannot_be_updated_is_refused(logs):
    old, new = logs
    solved = htd_jax.fit(old, model="ease", progress=False)
    with pytest.raises(UserError, match="EASE is solved as a whole"):
        htd_jax.update(solved, new, progress=False)
    parent = htd_jax.fit(old, dim=4, epochs=1, progress=False)
    ials = htd_jax.fit(old, model="ials", dim=4, progress=False)
    with pytest.raises(UserError, match="`epochs` is for models trained by gradients"):
        htd_jax.update(ials, new, epochs=3, progress=False)
    with pytest.raises(TypeError, match="unknown setting 'epoch'"):
        htd_jax.update(parent, new, epoch=3, progress=False)
    folded = htd_jax.fit(old, model="folded", dim=4, epochs=1, progress=False).retriever()
    with pytest.raises(UserError, match="without a table of users"):
        fitted_of(folded)


@pytest.mark.slow
def test_a_precise_student_stays_so(logs):
    old, new = logs
    parent = htd_jax.choose(old, bytes=4, budget="0", epochs=2, progress=False)
    student = htd_jax.update(parent, new, epochs=1, progress=False)
    assert student.settings["model"]["precision"] == "int4"
    assert student.settings["training"]["loss"] == "softmax"
    assert dataclasses.asdict(Replay()) == student.settings["methods"]["replay"]


def test_the_command(logs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, (users, items) in zip(("old", "june"), logs):
        lines = [f"{user},{item}" for user, item in zip(users, items)]
        (tmp_path / f"{name}.csv").write_text("user,item\n" + "\n".join(lines) + "\n")
    main(["train", "--dataset", "old.csv", "--method", "none", "--epochs", "1", "--student-dim", "4", "--run", "a"])
    main(["update", "--run", "a", "--dataset", "june.csv", "--epochs", "1"])
    shown = capsys.readouterr().out
    assert "old interactions, before" in shown and "new interactions, after" in shown
    main(["recommend", "--run", "a-june", "--user", "u47", "--k", "2"])
    assert "u47" in capsys.readouterr().out
    main(["export", "--run", "a", "--to", "exported", "--seen"])
    main(["update", "--model", "exported", "--dataset", "june.csv", "--epochs", "1", "--to", "b"])
    assert "new interactions, after" in capsys.readouterr().out
    for arguments, message in (
        (["--run", "a", "--dataset", "june.csv", "--to", "a"], "is what is updated"),
        (["--run", "a", "--dataset", "june.csv", "--epochs", "2", "--to", "b"], "choose another folder with --to"),
        (["--run", "a", "--dataset", "old.csv"], "no new interaction"),
        (["--dataset", "june.csv"], "set either --run"),
        (["--run", "a", "--dataset", "nothing.csv"], "there is no such file"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["update", *arguments])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
