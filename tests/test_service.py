"""The HTTP service: answers, errors, limits, and reloads while requests go on."""

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from htd_jax.command.serve import serve
from htd_jax.data import Ids, Interactions
from htd_jax.errors import UserError
from htd_jax.serve import load
from htd_jax.service import Current, Limits, create
from htd_jax.serving import Retriever, to_precision
from htd_jax.serving.fold import RowMap

USERS, ITEMS = 30, 90
LIMITS = Limits(max_k=50, max_lists=20, max_ids=30, max_body=9000)


def made(seed: int) -> Retriever:
    rng = np.random.default_rng(seed)
    tables = [to_precision(rng.normal(size=(n, 4)).astype(np.float32), "int4") for n in (USERS, ITEMS)]
    ids = Ids.from_values([f"u/{n}" for n in range(USERS)], "user"), Ids.from_values(np.arange(ITEMS) * 10 + 5, "item")
    seen = Interactions.from_pairs(rng.integers(0, USERS, 200), rng.integers(0, ITEMS, 200), USERS, ITEMS)
    maps = {"users": RowMap(rng.normal(size=(18, 4)).astype(np.float32), np.ones((2, 1), np.float32))}  # fits none
    return Retriever(*tables, *ids, seen, row_maps=maps | {"items": maps["users"]})


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Two exports, one to take the other's place."""
    folders = [tmp_path_factory.mktemp("exports") / name for name in "ab"]
    for seed, folder in enumerate(folders):
        made(seed).save(folder, seen=True)
    return folders


def opened(folder: Path) -> Current:
    return Current(lambda: load(folder), [folder])


@pytest.fixture(scope="module")
def client(exports):
    return TestClient(create(opened(exports[0]), LIMITS))


def replace(folder: Path, other: Path) -> None:
    load(other).save(folder, seen=True)


def lists(found) -> list[dict]:
    """What the service answers to these lists."""
    table = found.to_table().to_pydict()
    name, listed = found.names
    each = lambda one, column: [x for mine, x in zip(table[name], table[column]) if mine == one]
    return [{"id": one, "items": each(one, listed), "scores": each(one, "score")} for one in found.queries.to_pylist()]


def test_answers_are_those_of_the_model(exports, client):
    model = load(exports[0])

    def check(path: str, asked: dict, found) -> None:
        answer = client.post(path, json=asked)
        assert answer.status_code == 200, answer.text
        assert answer.json() == {
            "lists": lists(found),
            "unknown": {"users": [], "items": []},
            "version": model.version,
        }

    check("/recommend", {"users": ["u/3"], "k": 4}, model.recommend("u/3", 4))
    users = [f"u/{n}" for n in range(12)]  # in a thread
    check("/recommend", {"users": users, "keep_seen": True}, model.recommend(users, 20, seen=True))
    filters = {"allow": [5, 15, 25], "deny": [15]}
    check("/recommend", {"users": ["u/3"], **filters}, model.recommend("u/3", **filters))
    seen = [[5, 15], [25]]
    found = model.recommend_vectors(model.fold_in(seen), 3, seen=seen)
    check("/visitors", {"visitors": [["5", 15], [25]], "k": 3}, found)
    check("/similar", {"items": ["5", 15], "k": 3}, model.similar([5, 15], 3))  # "5" and 5 are one id


def test_unknown_ids_are_named_or_left_out(client):
    answer = client.post("/recommend", json={"users": ["u/1", "nobody", 7]})
    assert answer.status_code == 404
    assert answer.json() == {
        "detail": "unknown user 'nobody' and 1 more; leave it out, or set `skip_unknown` to true",
        "unknown": {"users": ["nobody", 7], "items": []},
    }
    asked = {"visitors": [["x"], [5, "x"]], "deny": ["y", 15], "skip_unknown": True}
    answer = client.post("/visitors", json=asked).json()
    assert [one["id"] for one in answer["lists"]] == [1]
    assert not {5, 15} & set(answer["lists"][0]["items"])
    assert answer["unknown"] == {"users": [], "items": ["x", "x", "y"]}
    answer = client.post("/recommend", json={"users": ["nobody"], "skip_unknown": True})
    assert answer.json()["lists"] == []


@pytest.mark.parametrize(
    "path, body, status, line",
    [
        ("/recommend", '{"users": [', 422, "not JSON: Expecting value at character 11"),
        ("/recommend", '{"k": %s}' % ("9" * 5000), 400, "There was an error parsing the body"),
        ("/recommend", "[1]", 422, "send a JSON object, with the header Content-Type: application/json"),
        ("/recommend", '{"users": [true]}', 422, "`users.0`: an id is a text or a whole number"),
        ("/recommend", '{"users": ["\\ud800"]}', 400, "half of a surrogate pair"),
        ("/recommend", '{"users": []}', 422, "`users`: List should have at least 1 item"),
        ("/recommend", '{"users": ["u/1"], "k": 0}', 422, "`k`: Input should be greater than or equal to 1"),
        ("/recommend", '{"users": ["u/1"], "K": 5}', 422, "`K`: no such field in this request; /docs lists them"),
        ("/recommend", '{"users": ["u/1"], "k": 51}', 400, "`k` 51: this service makes lists of up to 50 items"),
        ("/recommend", json.dumps({"users": ["u/1"] * 21}), 400, "21 lists: this service makes 20 per request"),
        ("/recommend", json.dumps({"users": ["u/1"], "deny": [5] * 31}), 400, "`deny`: 31 ids"),
        ("/recommend", '{"users": ["u/1"], "allow": [5], "deny": [5]}', 400, "no item is left to recommend"),
        ("/recommend", '{"users": ["u/1"], "allow": [1], "skip_unknown": true}', 400, "none of these items is known"),
        ("/recommend", '{"users": [%s1]}' % ("1," * 5000), 413, "a body of 10,014 bytes: this service takes 9,000"),
        ("/visitors", json.dumps({"visitors": [[5] * 31]}), 400, "`visitors`: 31 items of one"),
        ("/visitors", '{"visitors": [5]}', 422, "`visitors.0`: Input should be a valid list"),
        ("/similar", '{"items": [99999999999999999999]}', 404, "unknown item 99999999999999999999"),
        ("/nothing", "{}", 404, "Not Found"),
        ("/reload", "", 404, "Not Found"),
    ],
)
def test_a_bad_request_gets_one_line(client, path, body, status, line):
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    detail = answer.json()["detail"]
    assert line in detail and "\n" not in detail


def test_a_body_of_unknown_size_is_limited(client):
    parts = (b'{"users": [', *[b"1," * 500] * 20, b"1]}")
    answer = client.post("/recommend", content=iter(parts), headers={"content-type": "application/json"})
    assert answer.status_code == 413 and answer.json() == {"detail": "Content Too Large"}


def test_health_metrics_and_description(exports):
    client = TestClient(create(opened(exports[0])))
    client.post("/similar", json={"items": [5]})
    client.post("/similar", json={"items": [6]})
    health = client.get("/health").json()
    version = load(exports[0]).version
    assert (health["status"], health["version"], health["users"], health["items"]) == ("ok", version, USERS, ITEMS)
    told = client.get("/metrics").text
    for line in (
        'htd_jax_requests_total{path="/similar",status="200"} 1.0',
        'htd_jax_requests_total{path="/similar",status="404"} 1.0',
        'htd_jax_request_seconds_count{path="/similar"} 2.0',
        f'htd_jax_model{{dim="4",precision="int4",version="{version}"}} 1.0',
        "htd_jax_model_items 90.0",
        'htd_jax_reloads_total{outcome="refused"} 0.0',
    ):
        assert line in told.splitlines()
    assert {"/recommend", "/visitors", "/similar"} < set(client.get("/openapi.json").json()["paths"])


def test_reload_keeps_the_old_export_if_the_new_one_is_damaged(exports, tmp_path):
    folder = tmp_path / "served"
    replace(folder, exports[0])
    current = opened(folder)
    client = TestClient(create(current, reload=True))
    versions = [load(folder).version for folder in exports]
    tables = (folder / "tables.safetensors").read_bytes()
    (folder / "tables.safetensors").write_bytes(tables[:-9])
    answer = client.post("/reload")
    assert answer.status_code == 409 and "damaged" in answer.json()["detail"]
    assert client.post("/recommend", json={"users": ["u/1"]}).json()["version"] == versions[0]
    assert "damaged" in client.get("/health").json()["refused"]
    replace(folder, exports[1])
    assert client.post("/reload").json()["version"] == versions[1]
    assert client.get("/health").json()["refused"] is None
    assert current.outcomes == {"replaced": 1, "refused": 1}


def test_a_new_export_is_noticed_and_no_request_is_lost(exports, tmp_path):
    folder = tmp_path / "served"
    replace(folder, exports[0])
    versions = [load(folder).version for folder in exports]
    with TestClient(create(opened(folder), watch=0.02)) as client:
        found: list[tuple[int, str]] = []
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                answer = client.post("/recommend", json={"users": ["u/1"], "k": 5})
                found.append((answer.status_code, answer.json()["version"]))

        thread = threading.Thread(target=ask)
        thread.start()
        replace(folder, exports[1])
        end = time.monotonic() + 20
        while (not found or found[-1][1] != versions[1]) and time.monotonic() < end:
            time.sleep(0.01)
        done.set()
        thread.join()
    assert {status for status, _ in found} == {200}
    assert [version for _, version in found] == sorted((x for _, x in found), key=versions.index)
    assert found[-1][1] == versions[1]


def test_the_command_reloads_on_hup_and_ends_on_term(exports, tmp_path):
    folder = tmp_path / "served"
    replace(folder, exports[0])
    command = [sys.executable, "-m", "htd_jax", "serve", "--model", str(folder), "--port", "0", "--watch", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert "30 users, 90 items: http://127.0.0.1:" in line
        address = line.split()[-1]

        def version() -> str:
            with urllib.request.urlopen(f"{address}/health", timeout=20) as answer:
                return json.load(answer)["version"]

        before = version()
        replace(folder, exports[1])
        process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 20
        while version() == before and time.monotonic() < end:
            time.sleep(0.05)
        assert version() == load(exports[1]).version
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert f"in place of {before}" in errors


def test_the_command_refuses_what_it_cannot_serve(exports, tmp_path):
    with pytest.raises(UserError, match="not an exported model"):
        serve(["--model", str(tmp_path), "--port", "0"])
    with pytest.raises(UserError, match="`host` 192.0.2.1, `port` 80: cannot listen there"):
        serve(["--model", str(exports[0]), "--host", "192.0.2.1", "--port", "80"])
    with pytest.raises(UserError, match="`max_k` must be at least 1"):
        serve(["--model", str(exports[0]), "--max-k", "0"])
