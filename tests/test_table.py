"""The table of finished runs: what is averaged, what is told apart, and what is no run."""

import copy
import csv
import json

import numpy as np
import pytest
from runs import line_of, process, results, start_table, trained

from htd_jax.data import make_synthetic, save_split


@pytest.fixture
def add(finished, tmp_path):
    """Adds a run like the finished one, but for what `change` does to its results."""
    original = results(finished[0])

    def add(name, change=lambda found: None, seed=0, **test):
        found = copy.deepcopy(original)
        found["seed"] = seed
        for entry in found["phases"].values():
            entry["settings"]["seed"] = seed
            entry["final"]["test"] = {name.replace("_", "@"): value for name, value in test.items()}
        change(found)
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(found))

    return add


def rows(folder, *metrics):
    done = start_table("--runs", folder, "--metrics", *metrics)
    assert (done.status, done.err) == (0, "")
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.out.splitlines()]


def of_phases(settings_of):
    """A change to the settings of every phase, and of the teacher in them."""

    def change(found):
        for entry in found["phases"].values():
            settings_of(entry["settings"])
            if entry["settings"]["teacher"]:
                settings_of(entry["settings"]["teacher"])

    return change


def test_runs_are_tabulated_with_mean_and_spread(add, tmp_path):
    add("first", recall_10=0.2, recall_50=0.5)
    add("second", seed=1, recall_10=0.4, recall_50=0.5)
    head, _, *found = rows(tmp_path, "recall@10", "recall@50")
    assert head[:5] == ["dataset", "model", "dimensions", "", "seeds"]
    assert head[5:] == ["recall@10", "recall@50", "gap closed (recall@50)"]
    assert [row[4:7] for row in found] == [["0, 1", "0.3000 ± 0.1414", "0.5000 ± 0.0000"]] * 3
    names = [row[3] for row in found]
    assert [name.split(",")[0] for name in names] == ["teacher", "student", "student + HTD"]
    assert names[0] == "teacher, epochs 3, eval_every 2"
    assert [row[2] for row in found] == ["12", "4", "4"]
    assert found[0][7] == found[1][7] == ""


def test_columns_are_of_the_runs_that_have_them(add, tmp_path):
    def sampled(settings):
        settings["evaluation"] |= {"protocol": "sampled", "metric": "recall@5", "cutoffs": [5, 10]}

    add("first", recall_10=0.2, recall_50=0.5)
    add("sampled", of_phases(sampled), recall_5=0.7, recall_10=0.8)
    *_, last = rows(tmp_path, "recall@10", "recall@50")
    assert last[4:7] == ["0", "0.8000", ""] and "sampled" in last[3]
    assert [row[4:6] for row in rows(tmp_path, "recall@5")[2:]] == [["0", "0.7000"]] * 3
    message = line_of(start_table("--runs", tmp_path, "--metrics", "recall@7"))
    assert message == f"error: no finished run in {tmp_path} has recall@7\n"


def test_the_table_is_written_for_a_paper(add, tmp_path):
    add("first", recall_50=0.2)
    add("second", seed=1, recall_50=0.4)
    shown = rows(tmp_path, "recall@50")
    for name in ("t.tex", "t.csv", "t.md"):
        assert start_table("--runs", tmp_path, "--metrics", "recall@50", "--to", tmp_path / name).status == 0
    assert (tmp_path / "t.tex").read_text().count(r"0.3000 $\pm$ 0.1414") == 3
    head, *found = csv.reader((tmp_path / "t.csv").read_text().splitlines())
    assert head[5:7] == ["recall@50", "recall@50 sd"] and [row[3] for row in found] == [row[3] for row in shown[2:]]
    assert {(row[5], row[6]) for row in found} == {("0.3", "0.141421")}
    assert [line.split(" | ")[5] for line in (tmp_path / "t.md").read_text().splitlines()[2:]] == [shown[2][5]] * 3
    said = line_of(start_table("--runs", tmp_path, "--to", tmp_path / "t.xls"))
    assert "t.xls: must end in .md, .csv, .tex" in said


def change_of(part, name, value):
    def change(settings):
        where = settings if part is None else settings[part]
        where[name] = value

    return change


@pytest.mark.parametrize(
    ("settings_of", "told"),
    [
        (change_of("evaluation", "candidates", 50), "candidates 50"),
        (change_of(None, "data", "0123456789abcdef"), "data 0123456789abcdef"),
        (change_of("training", "batch_size", 64), "batch_size 64"),
        (change_of("training", "patience", 7), "patience 7"),
        (change_of(None, "start", "svd"), "student_init svd"),
        (change_of("model", "layers", 2), "bpr.layers 2"),
    ],
)
def test_what_was_made_otherwise_is_never_averaged(add, tmp_path, settings_of, told):
    add("first", recall_50=0.2)
    add("second", of_phases(settings_of), seed=1, recall_50=0.4)
    found = rows(tmp_path, "recall@50")[2:]
    assert sorted((row[4], row[5]) for row in found) == [("0", "0.2000")] * 3 + [("1", "0.4000")] * 3
    assert [told in row[3] for row in found] == [row[4] == "1" for row in found]


def test_students_of_different_teachers_are_told_apart(add, tmp_path):
    def wider(found):
        for phase in ("htd",):
            found["phases"][phase]["settings"]["teacher"]["model"]["dim"] = 24

    add("first", recall_50=0.2)
    add("second", wider, seed=1, recall_50=0.4)
    found = [row for row in rows(tmp_path, "recall@50") if "HTD" in row[3]]
    assert [row[4] for row in found] == ["0", "1"]
    assert ["taught by bpr 12" in found[0][3], "taught by bpr 24" in found[1][3]] == [True, True]


def test_given_teachers_of_one_size_are_told_apart(add, tmp_path):
    def given(number):
        def change(found):
            own = found["phases"]["teacher"]["settings"] | {"start": "given", "hash": number}
            found["phases"]["teacher"]["settings"] = own
            found["phases"]["htd"]["settings"]["teacher"] = own

        return change

    add("first", given("a0"), recall_50=0.2)
    add("again", given("a0"), seed=1, recall_50=0.2)
    add("second", given("b1"), recall_50=0.4)
    found = {(row[3].split(",")[0], row[4]): row[3] for row in rows(tmp_path, "recall@50")[2:]}
    assert found.keys() == {(what, seeds) for what in ("teacher", "student + HTD") for seeds in ("0", "0, 1")} | {
        ("student", "0, 1")
    }
    assert "given b1" in found["teacher", "0"] and "teacher given a0" in found["student + HTD", "0, 1"]


def test_methods_of_other_settings_are_told_apart_and_say_how(add, tmp_path):
    def heavier(found):
        found["phases"]["htd"]["settings"]["methods"]["htd"]["weight"] = 0.5

    add("first", recall_50=0.2)
    add("second", heavier, seed=1, recall_50=0.4)
    found = rows(tmp_path, "recall@50")[2:]
    assert [row[4] for row in found if "HTD" not in row[3]] == ["0, 1"] * 2
    of_htd = sorted((row[4], "htd.weight 0.5" in row[3]) for row in found if "HTD" in row[3])
    assert of_htd == [("0", False), ("1", True)]


def test_a_second_run_of_the_same_settings_and_seed_is_refused(add, tmp_path):
    add("first", recall_50=0.2)
    add("second", recall_50=0.4)
    message = line_of(start_table("--runs", tmp_path, "--metrics", "recall@50"))
    assert "second: is a second run with the same settings" in message


@pytest.mark.parametrize("written", ["", "not json", "[]", "null", '{"phases": {}}', '{"phases": 3, "seed": 0}', '"x"'])
def test_what_is_no_run_is_passed_over(add, tmp_path, written):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.json").write_text(written)
    assert "no finished run" in line_of(start_table("--runs", tmp_path))
    add("first", recall_50=0.2)
    assert len(rows(tmp_path, "recall@50")) == 2 + 3


def test_its_errors_are_a_line_and_its_help_is_one(tmp_path):
    assert "--bogus" in line_of(start_table("--bogus"))
    assert str(tmp_path / "nothing") in line_of(start_table("--runs", tmp_path / "nothing"))
    done = start_table("--help")
    assert done.status == 0 and "usage: table.py" in done.out and "--metrics" in done.out


def test_a_gap_that_there_is_not_is_left_empty(add, tmp_path):
    def no_gap(found):
        found["gap_closed"] = {"recall@50": None}

    add("first", no_gap, recall_50=0.2)
    assert [row[6] for row in rows(tmp_path, "recall@50")[2:]] == ["", "", ""]


@pytest.mark.slow
def test_a_split_of_ones_own_is_called_by_its_file(finished, tmp_path):
    """Runs as they are, not made up: seed 0 on one split, seed 1 on another, a third sampled in another way."""
    save_split(tmp_path / "mine.npz", make_synthetic(7, num_users=60, num_items=150))
    runs = tmp_path / "runs"
    chosen = ["--method", "none", "--runs", runs]
    trained(*chosen)
    done = trained(*chosen, "--seed", 1, "--split-file", tmp_path / "mine.npz")
    assert "mine, bpr, seed 1" in done.out
    assert results(runs / "mine-none-4-seed1")["dataset"] == "mine"
    found = rows(runs, "recall@50")[2:]
    assert [(row[0], row[4]) for row in found] == [("mine", "1")] * 2 + [("synthetic", "0")] * 2


def test_the_script_prints_plain_characters_where_there_are_no_others(add, tmp_path):
    add("first", recall_50=0.25)
    add("second", seed=1, recall_50=0.75)
    done = process("--runs", tmp_path, "--metrics", "recall@50", script="table.py", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii() and f"0.5000 ? {np.std([0.25, 0.75], ddof=1):.4f}" in done.stdout


def test_the_usual_epochs_of_each_model_are_not_said(add, tmp_path):
    def train(epochs, **model):
        return lambda found: of_phases(lambda s: (s["training"].update(epochs=epochs), s["model"].update(model)))(found)

    add("bpr", train(101), recall_50=0.5)
    add("ials", train(15, name="ials"), recall_50=0.5)
    add("long", train(101, name="ials", dim=5), recall_50=0.5)
    _, _, *found = rows(tmp_path, "recall@50")
    said = {(row[1], row[2]): row[3] for row in found if row[3].startswith("student,") or row[3] == "student"}
    assert "epochs" not in said["bpr", "4"] and "epochs" not in said["ials", "4"] and "epochs 101" in said["ials", "5"]
