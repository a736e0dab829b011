"""Finished runs side by side: which rows there are, what is the best, and what cannot be compared."""

import io
import json
import re
import shutil

import pytest
from rich.console import Console
from runs import line_of, results, start_command, strict

from htd_jax.command import compare


@pytest.fixture
def add(finished, tmp_path):
    """Adds a run like the finished one, but for what is changed in its settings and results; its folder."""

    def add(name, config=lambda found: None, change=lambda found: None, **test):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for file, changed in (("config.json", config), ("results.json", change)):
            found = strict(finished[0] / file)
            changed(found)
            if file == "results.json":
                found["phases"]["htd"]["final"]["test"] |= {n.replace("_", "@"): x for n, x in test.items()}
            (folder / file).write_text(json.dumps(found))
        return folder

    return add


def rows(*folders):
    """The table's cells, by the first."""
    done = start_command("compare", *folders)
    assert (done.status, done.err) == (0, "")
    return [
        [cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in done.out.splitlines() if line[:1] in "│┃"
    ]


def setting(name, value, part=None):
    return lambda found: (found[part] if part else found).update({name: value})


def test_runs_stand_side_by_side(add):
    first = add("first", recall_50=0.25)
    heavier = add("heavier", setting("weight", 0.5, "htd"), recall_50=0.5)
    found = rows(first, heavier)
    assert found[0] == ["", "first", "heavier"]
    assert found[1] == ["htd.weight", "0.001", "0.5"]  # and no other setting
    assert found[2][0] == "teacher"
    names = [row[0] for row in found]
    of_distilled = names.index("distilled student")
    assert found[of_distilled] == ["distilled student", "student + HTD", "student + HTD"]
    assert found[of_distilled:][names[of_distilled:].index("recall@50")][1:] == ["0.2500", "0.5000"]
    entry = results(first)["phases"]["teacher"]
    of_teacher = {row[0]: row[1] for row in found[2:of_distilled][: names.index("student") - 2]}
    assert of_teacher["parameters"] == f"{entry['parameters']:,}" and of_teacher["epochs"] == "3"
    assert of_teacher["ndcg@10"] == f"{entry['final']['test']['ndcg@10']:.4f}"
    assert of_teacher["seconds per epoch"] == f"{entry['seconds_per_epoch']:.3g}"
    closed = {name: share for name, share in results(first)["gap_closed"].items() if share is not None}
    shown = {row[0]: row[1] for row in found[names.index("gap closed") + 1 :]}
    assert shown == {name: f"{closed[name]:.0%}" for name in shown}
    assert set(shown) == {name for name in closed if name.startswith(("recall", "ndcg"))}


def test_the_best_are_bold_in_a_terminal(add):
    runs = compare.read_runs([add("low", recall_50=0.25), add("high", recall_50=0.5), add("alike", recall_50=0.5)])
    found = compare.sections(runs, [50])
    of_distilled = next(section for section in found if section[0].name == "distilled student")
    best = {row.name.strip(): row.best for row in of_distilled}
    assert best == {
        "distilled student": (),
        "recall@50": (1, 2),
        "ndcg@50": (),  # all alike
        "parameters": (),
        "epochs": (),
        "seconds per epoch": (),
    }
    drawn = io.StringIO()
    Console(file=drawn, force_terminal=True, width=100, color_system="standard").print(compare.make_table(runs, found))
    bold = re.findall(r"\x1b\[1m([\d.]+)\x1b", drawn.getvalue())
    assert bold == ["0.5000", "0.5000"]


def test_a_table_for_a_paper_has_the_best_in_bold(add, tmp_path):
    low, high = add("low", recall_50=0.25), add("high", setting("weight", 0.5, "htd"), recall_50=0.5)
    assert start_command("compare", low, high, "--to", tmp_path / "t.tex").status == 0
    text = (tmp_path / "t.tex").read_text()
    assert r"settings & htd.weight & 0.001 & 0.5 \\" in text
    assert r"distilled student & recall@50 & 0.2500 & \textbf{0.5000} \\" in text


def test_a_run_without_a_method_has_empty_cells(add):
    def plain(found):
        del found["phases"]["htd"]
        found |= {"method": "none", "gap_closed": {}}

    folder = add("distilled", recall_50=0.25)
    (plain_folder := folder.parent / "plain").mkdir()
    shutil.copy(folder / "config.json", plain_folder)
    found = results(folder)
    plain(found)
    (plain_folder / "results.json").write_text(json.dumps(found))
    by_name = {row[0]: row[1:] for row in rows(plain_folder, folder)}
    assert by_name["distilled student"] == ["", "student + HTD"] and by_name["gap closed"] == ["", ""]
    assert by_name["ndcg@50"][0] == ""


def test_cutoffs_that_not_all_have_are_left_out_and_said(add):
    first, other = add("first"), add("other", setting("cutoffs", [20, 100]))
    done = start_command("compare", first, other)
    notes = [line for line in done.out.splitlines() if line.startswith("note: ")]
    assert notes[0] == "note: cutoffs 10, 50 of first are left out, because not all runs have them"
    assert "recall@20" in done.out and "recall@10 " not in done.out and "recall@100 " not in done.out
    none = add("none", setting("cutoffs", [5]))
    assert "the runs have no cutoff in common: first has 10, 20, 50; none has 5" in line_of(
        start_command("compare", first, none)
    )


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (setting("data", "0123"), "other is on other data than first"),
        (setting("protocol", "sampled"), "other has another protocol than first"),
        (setting("candidates", 50), "other has another number of candidates than first"),
    ],
)
def test_runs_that_were_measured_otherwise_are_refused(add, changed, reason):
    assert reason in line_of(start_command("compare", add("first"), add("other", changed)))


def test_what_is_no_finished_run_is_refused(add, tmp_path):
    first, other = add("first"), add("other")
    assert "not a run folder" in line_of(start_command("compare", first, tmp_path / "nowhere"))
    (other / "results.json").write_text("[]")
    assert "results.json: damaged" in line_of(start_command("compare", first, other))
    (other / "results.json").unlink()
    assert f"{other}: not finished" in line_of(start_command("compare", first, other))
    (other / "config.json").write_text("[]")
    assert "config.json: damaged" in line_of(start_command("compare", first, other))
    for few in ([], [first], [first, first]):
        assert "two or more finished runs" in line_of(start_command("compare", *few))


def test_runs_of_one_name_are_called_by_their_paths(add):
    folders = [add("a/run"), add("b/run")]
    assert [run.name for run in compare.read_runs(folders)] == [str(folder) for folder in folders]
    assert [row[0] for row in rows(*folders)].count("teacher") == 1  # and nothing differs
