"""Event files of a run, read back as TensorBoard reads them."""

import importlib.util
import shutil
import struct
import time
from types import SimpleNamespace

import pytest
from runs import refused, results, start, strict, trained

pytest.importorskip("tensorboardX")
from tensorboardX.proto.event_pb2 import Event, SessionLog


def events(folder):
    """Those of all files in turn."""
    for path in sorted(folder.glob("events.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            yield Event.FromString(content[at + 12 : at + 12 + length])
            at += length + 16


def scalars(folder):
    """Values by tag and epoch: as TensorBoard does, a start of a session takes back what is not before it.

    Also whether anything was written twice that was not taken back.
    """
    found = {}
    for event in events(folder):
        if event.session_log.status == SessionLog.START:
            found = {name: {k: x for k, x in of.items() if k < event.step} for name, of in found.items()}
        for value in event.summary.value:
            if value.HasField("simple_value"):
                of_tag = found.setdefault(value.tag, {})
                assert event.step not in of_tag, "written twice"
                of_tag[event.step] = value.simple_value
    return found


def texts(folder):
    found = []
    for event in events(folder):
        if event.session_log.status == SessionLog.START:
            found = [(step, text) for step, text in found if step < event.step]
        found += [(event.step, v.tensor.string_val[0].decode()) for v in event.summary.value if v.tensor.string_val]
    return [text for _, text in found]


SETTINGS = ["--htd.groups", "3"]


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched") / "run"
    trained(*SETTINGS, "--tensorboard", "--run", folder)
    return folder


def check(folder, every_epoch):
    """What the files say is what the run's records say."""
    of_phase = {}
    for line in strict(folder / "metrics.jsonl"):
        of_phase.setdefault(line["phase"], []).append(line)
    for phase, lines in of_phase.items():
        found = scalars(folder / "tensorboard" / phase)
        assert {tag.partition("/")[0] for tag in found} >= {"train", "valid", "test"}
        for line in lines:
            for part in ("valid", "test"):
                for name, value in line[part].items():
                    assert found[f"{part}/{name.replace('@', '_')}"][line["epoch"]] == pytest.approx(value, rel=1e-6)
            for name, value in line["terms"].items():
                assert found[f"train/{name}"][line["epoch"]] == pytest.approx(value, rel=1e-6)
        evaluated = [line["epoch"] for line in lines]
        assert sorted(found["valid/recall_50"]) == evaluated
        epochs = results(folder)["phases"][phase]["epochs"]
        assert sorted(found["train/loss"]) == (list(range(epochs)) if every_epoch else evaluated)
    return of_phase


@pytest.mark.slow
def test_a_run_writes_every_epoch_and_evaluation(watched):
    assert set(check(watched, every_epoch=True)) == {"teacher", "student", "htd"}
    found = scalars(watched / "tensorboard" / "htd")
    assert {"train/loss", "train/base", "seconds_per_epoch"} <= set(found)
    assert all(seconds > 0 for seconds in found["seconds_per_epoch"].values())
    (text,) = texts(watched / "tensorboard" / "htd")
    assert "| htd.groups | 3 |" in text and "| teacher_dim | 12 |" in text


def test_the_run_is_the_same_without(watched, finished):
    assert strict(watched / "config.json") == strict(finished[0] / "config.json")
    assert "tensorboard" not in (watched / "config.json").read_text()
    assert not (finished[0] / "tensorboard").exists()


def test_the_same_command_again_writes_nothing(watched, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(watched, run)
    before = {path: path.read_bytes() for path in run.glob("tensorboard/*/*")}
    trained(*SETTINGS, "--tensorboard", "--run", run)
    assert {path: path.read_bytes() for path in run.glob("tensorboard/*/*")} == before


def test_a_finished_run_is_written_from_its_records(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    trained(*SETTINGS, "--tensorboard", "--run", run)
    assert set(check(run, every_epoch=False)) == {"teacher", "student", "htd"}


class Killed(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0, 2])
def test_a_killed_run_writes_no_epoch_twice(kept, tmp_path, monkeypatch):
    """Killed some epochs after its last checkpoint, or with none, it trains them once more."""
    from htd_jax.training import loop

    run, chosen = tmp_path / "run", [*SETTINGS, "--epochs", "6", "--tensorboard"]
    clock = iter([0.0, 0.0, *[100.0 * bool(kept)] * 1000])  # one checkpoint, after the second epoch, or none
    progress = loop.Progress

    def die(epoch, *rest):
        if epoch == 4:
            raise Killed
        return progress(epoch, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(clock), perf_counter=time.perf_counter))
        patch.setattr(loop, "Progress", die)
        with pytest.raises(Killed):
            start(*chosen, "--run", run)
    assert [int(path.name) for path in run.glob("checkpoints/teacher/*")] == [kept] * bool(kept)
    assert sorted(scalars(run / "tensorboard" / "teacher")["train/loss"]) == [0, 1, 2, 3]
    trained(*chosen, "--run", run)
    check(run, every_epoch=True)
    starts = [event.step for event in events(run / "tensorboard" / "teacher") if event.session_log.status]
    assert starts == [kept]
    assert len(texts(run / "tensorboard" / "teacher")) == 1


def test_a_method_that_trains_nothing_has_its_one_evaluation(watched, tmp_path):
    run = tmp_path / "run"
    trained("--method", "svd", "--teacher", watched, "--tensorboard", "--run", run)
    found = scalars(run / "tensorboard" / "svd")
    expected = results(run)["phases"]["svd"]["final"]["test"]["recall@50"]
    assert found["test/recall_50"] == {0: pytest.approx(expected)} and "train/loss" not in found
    assert not (run / "tensorboard" / "teacher").exists()  # it was given


def test_without_the_library_it_is_a_line(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboardX" else find(name))
    message = refused("--tensorboard", "--run", tmp_path / "run")
    assert message == "error: --tensorboard needs tensorboardX: pip install tensorboardX\n"
    assert not (tmp_path / "run").exists()
