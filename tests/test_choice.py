"""What a run of `best` chooses in validation: what it tries, what it keeps, and that it repeats nothing."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import refused, results, start, start_table, strict, trained

from htd_jax.command import flags
from htd_jax.command.report import teacher_of
from htd_jax.data import hold_out, save_split
from htd_jax.data.splits import read_split
from htd_jax.errors import UserError
from htd_jax.ops.perplexity import with_perplexity
from htd_jax.pipeline.trials import Trial, Trials, parse_budget

BEST = ["--method", "best", "--teacher-dim", "6", "--student-dim", "2", "--epochs", "2"]


# --- probabilities of one perplexity


def temperature_of(logits, perplexity):
    """The temperature by bisection of the definition, in float64."""
    low, high = 1e-6, 1e6
    for _ in range(200):
        middle = np.sqrt(low * high)
        p = np.exp((logits - logits.max()) / middle)
        p /= p.sum()
        entropy = -np.sum(p * np.log(np.maximum(p, 1e-300)))
        low, high = (low, middle) if entropy > np.log(perplexity) else (middle, high)
    return p


@pytest.mark.parametrize("perplexity", [1.5, 4.0, 11.0])
def test_shares_have_the_perplexity(rng, perplexity):
    logits = rng.normal(size=(5, 12)) * 10.0 ** np.arange(-2, 3)[:, None]
    where = rng.random((5, 12)) < 0.95
    found = with_perplexity(jnp.asarray(logits), jnp.asarray(where), perplexity)
    for row, own, counted in zip(np.asarray(found, float), logits, where):
        if perplexity < counted.sum():
            np.testing.assert_allclose(row[counted], temperature_of(own[counted], perplexity), atol=2e-5)
        else:
            np.testing.assert_allclose(row[counted], 1 / counted.sum(), atol=2e-3)
        assert not row[~counted].any()


@pytest.mark.parametrize("change", [lambda x: 1e-20 * x, lambda x: 1e20 * x, lambda x: x + 7])
def test_shares_do_not_depend_on_scale_or_offset(rng, change):
    logits, where = rng.normal(size=(4, 9)).astype(np.float32), np.ones((4, 9), bool)
    np.testing.assert_allclose(
        with_perplexity(change(logits), where, 3.0), with_perplexity(logits, where, 3.0), atol=1e-4
    )


def test_shares_of_ties_of_few_and_of_nothing():
    logits = jnp.array([[2.0, 2.0, 2.0], [5.0, 5.0, 0.0], [1.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    where = jnp.array([[True] * 3, [True] * 3, [True, False, False], [False] * 3])
    found = with_perplexity(logits, where, 2.0)
    np.testing.assert_allclose(found[0], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(found[1], [0.5, 0.5, 0], atol=1e-3)
    np.testing.assert_allclose(found[2:], [[1, 0, 0], [0, 0, 0]], atol=1e-6)
    assert np.isfinite(jax.jit(with_perplexity, static_argnums=2)(logits, where, 1.0)).all()


# --- the budget, and the rule


@pytest.mark.parametrize("text", ["", "5", "-1m", "m", "1d", "nan", "infs", "1e999h"])
def test_a_budget_that_is_no_time_is_refused(text):
    with pytest.raises(UserError, match="`budget` must be a time such as 90s"):
        parse_budget(text)


def trial(name, recall, ndcg):
    return Trial("student", name, {"name": name}, {"recall@50": recall, "ndcg@10": ndcg}, 0, 1.0)


def test_a_difference_by_chance_does_not_cost_another_metric():
    trials = Trials(None, "recall@50", ("recall@50", "ndcg@10"), users=1000)
    for each in (trial("by chance", 0.605, 0.13), trial("ordered", 0.599, 0.165), trial("worse", 0.58, 0.2)):
        trials.reuse(each)
    assert trials.best("student").name == "ordered"  # the standard error of a difference is .022
    trials.users = 100_000
    assert trials.best("student").name == "by chance"


def test_a_number_that_is_not_finite_is_the_worst():
    trials = Trials(None, "recall@50", ("recall@50",), users=10)
    for each in (trial("nan", float("nan"), 0.9), trial("nothing", 0.0, 0.0)):
        trials.reuse(each)
    assert trials.best("student").name == "nothing"


def test_a_damaged_file_of_trials_is_refused_in_a_line(tmp_path):
    (tmp_path / "trials.jsonl").write_text('{"part": "teacher"}\n')
    with pytest.raises(UserError, match=r"trials\.jsonl: damaged; delete it to repeat its trials"):
        Trials(tmp_path / "trials.jsonl", "recall@50")


# --- the runs


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """A finished run, and what it printed."""
    runs = tmp_path_factory.mktemp("chosen")
    done = trained(*BEST, "--runs", runs)
    (folder,) = (path for path in runs.iterdir() if path.is_dir())
    return folder, done


def lines(folder):
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def test_the_best_of_what_was_tried_is_trained(chosen):
    folder, done = chosen
    tried, config, found = lines(folder), strict(folder / "config.json"), results(folder)
    of = lambda part: [trial for trial in tried if trial["part"] == part]
    assert len(of("teacher")) >= 14 and len(of("student")) == 4  # plain, recipe, iALS at two lambdas
    assert config["choice"]["teacher"] == found["choice"]["teacher"]["name"] and config["choice"]["student"] in {
        trial["name"] for trial in of("student")
    }
    best = max(trial["valid"]["recall@50"] for trial in of("student"))
    kept = found["phases"]["best"]["final"]["valid"]["recall@50"]
    assert kept >= best - np.sqrt(2 * best * (1 - best) / 60) - 1e-6
    teacher = found["phases"]["teacher"]["settings"]["model"]
    assert teacher in [trial["settings"]["model"] for trial in of("teacher")]
    assert done.out.index("of the teacher's recall@50") < done.out.index("synthetic, bpr, seed 0: test")
    table = (folder / "trials.md").read_text().splitlines()
    assert len(table) == len(tried) + 2 and table[2].startswith("| teacher | iALS 6")
    assert not (folder / "trials").exists()


@pytest.mark.parametrize("kept", [pytest.param(0, marks=pytest.mark.slow), 7, pytest.param(-1, marks=pytest.mark.slow)])
def test_a_run_that_was_killed_chooses_the_same(chosen, tmp_path, kept):
    folder, _ = chosen
    runs = tmp_path / "runs"
    again = runs / folder.name
    shutil.copytree(folder, again)
    before = (again / "trials.jsonl").read_text().splitlines(keepends=True)
    (again / "trials.jsonl").write_text("".join(before[:kept]))
    (again / "results.json").unlink()
    (again / "choice.json").unlink()  # which is written once all trials of a part have ended
    shutil.rmtree(again / "checkpoints")
    config = strict(again / "config.json")
    (again / "config.json").write_text(json.dumps({name: x for name, x in config.items() if name != "choice"}))
    trained(*BEST, "--runs", runs)
    untimed = lambda trials: [{name: x for name, x in trial.items() if name != "seconds"} for trial in trials]
    assert untimed(lines(again)) == untimed(lines(folder))
    assert lines(again)[:kept] == lines(folder)[:kept]  # not repeated: not even the seconds differ
    one, other = (results(path)["phases"]["best"]["final"] for path in (again, folder))
    assert one == other


def test_tables_name_the_chosen_teacher(chosen):
    folder, _ = chosen
    found = results(folder)
    name, teacher = found["choice"]["teacher"]["name"], found["phases"]["teacher"]["final"]["test"]["recall@50"]
    head, _, *rows = [line.split(" | ") for line in start_table("--runs", folder.parent).out.splitlines()]
    best = next(row for row in rows if "Best" in row[3])
    assert f"taught by {name}" in best[3] and head[9] == "its teacher's recall@50" and best[9] == f"{teacher:.4f}"
    assert teacher_of(found) == name


def test_a_finished_run_tries_nothing(chosen):
    folder, _ = chosen
    before = (folder / "trials.jsonl").read_bytes()
    trained(*BEST, "--runs", folder.parent)
    assert (folder / "trials.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_budget_of_zero_is_the_defaults_alone(chosen, tmp_path):
    trained(*BEST, "--runs", tmp_path, "--budget", "0")
    (folder,) = tmp_path.iterdir()
    assert not (folder / "trials.jsonl").exists()
    assert results(folder)["phases"]["teacher"]["settings"]["model"]["alpha"] == 80
    assert "choice" not in strict(folder / "config.json")


@pytest.mark.slow
def test_what_is_set_is_not_searched(tmp_path):
    trained(*BEST, "--runs", tmp_path, "--ials.alpha", "3", "--budget", "1s")
    (folder,) = tmp_path.iterdir()
    assert {trial["part"] for trial in lines(folder)} == {"student"}
    assert results(folder)["phases"]["teacher"]["settings"]["model"]["alpha"] == 3


def test_a_budget_is_for_a_method_that_chooses(tmp_path):
    assert "`budget`" in refused("--budget", "5m", "--runs", tmp_path).replace("--budget is", "`budget` is")


# --- data without a validation part, and with repeated pairs


def test_a_tenth_of_each_users_pairs_is_held_out(small_split):
    found = hold_out(small_split, share=0.25, seed=3)
    degrees = np.diff(small_split.train.offsets)
    np.testing.assert_array_equal(np.diff(found.valid.offsets), (degrees * 0.25 + 0.5).astype(int))
    pairs = lambda part: set(zip(np.asarray(part.users).tolist(), np.asarray(part.items).tolist()))
    assert pairs(found.train) | pairs(found.valid) == pairs(small_split.train)
    assert not pairs(found.train) & pairs(found.valid)
    assert pairs(found.test) == pairs(small_split.test)
    assert pairs(hold_out(small_split, share=0.25, seed=4).valid) != pairs(found.valid)


def without_validation(split):
    return {
        "sizes": np.array([split.train.num_users, split.train.num_items]),
        "valid": np.empty((0, 2), np.int32),
        **{name: np.stack([getattr(split, name).users, getattr(split, name).items], 1) for name in ("train", "test")},
    }


@pytest.mark.slow
def test_a_split_without_a_validation_part_is_chosen_on_a_tenth_of_train(small_split, tmp_path):
    np.savez(tmp_path / "published.npz", **without_validation(small_split))
    done = start(*BEST, "--split-file", tmp_path / "published.npz", "--runs", tmp_path / "runs")
    assert done.status == 0, done.err
    (folder,) = (tmp_path / "runs").iterdir()
    found = results(folder)["phases"]["best"]
    assert max(trial["valid"]["recall@50"] for trial in lines(folder)) > 0
    assert not any(found["final"]["valid"].values()) and found["final"]["test"]["recall@50"] > 0
    assert found["best"]["epoch"] == found["final"]["epoch"]
    line = refused("--split-file", tmp_path / "published.npz", "--runs", tmp_path, "--patience", "2")
    assert "--patience needs a validation part, which this split does not have; leave it out" in line


def test_a_pair_in_two_parts_stays_in_the_first(small_split, tmp_path):
    path = tmp_path / "split.npz"
    save_split(path, small_split)
    arrays = dict(np.load(path))
    arrays["test"] = np.concatenate([arrays["test"], arrays["train"][:5], arrays["valid"][:3], arrays["test"][:2]])
    np.savez(path, **arrays)
    with pytest.raises(UserError, match="more than one of train, valid and test"):
        read_split(path)
    found, repeated = read_split(path, keep_first=True)
    assert repeated == 10
    for one, other in zip(found, small_split):
        np.testing.assert_array_equal(one.items, other.items)


# --- several sizes in one training


def test_several_bytes_are_prefixes_in_int4():
    words = ["--method", "best", "--bytes", "10", "5", "20", "--seed", "3"]
    expected = ["--method", "best", "--seed", "3", "--precision", "int4", "--prefixes", "10", "20", "40"]
    assert flags._with_prefixes(words) == expected
    assert flags._with_prefixes(["--bytes", "10"]) == ["--bytes", "10"]
    with pytest.raises(UserError, match="must be whole numbers"):
        flags._with_prefixes(["--bytes", "10", "x"])
    with pytest.raises(UserError, match="leave out one or the other"):
        flags._with_prefixes(["--bytes", "10", "5", "--precision", "int8"])
