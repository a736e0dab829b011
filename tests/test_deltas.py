"""Versions of exports, and deltas between them: the same bytes as the whole export, or a line."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import runs

import htd_jax
from htd_jax.command.export import export
from htd_jax.data import Ids, Interactions
from htd_jax.errors import UserError
from htd_jax.ops.codes import BITS, PRECISIONS
from htd_jax.ops.precision import Rows, kept_steps, steps_of, to_precision
from htd_jax.serve.fold import Pooling, RowMap
from htd_jax.serving import Retriever

USERS, ITEMS, DIM = 40, 60, 6
SIDES = ("users", "items")


def made(precision: str, new: int = 0, like: Retriever | None = None, changed: bool = False) -> Retriever:
    """A model of 40 users and 60 items, and `new` more of each; two rows of users and one of items may have changed."""
    rng = np.random.default_rng(0)
    tables = [rng.normal(size=(size + 9, DIM)) for size in (USERS, ITEMS)]
    seen = rng.random((USERS + 9, ITEMS + 9)) < 0.1
    if changed:
        tables[0][[3, 7]] *= -1
        tables[1][11] *= -1
        seen[0, :5] ^= True
    sizes = USERS + new, ITEMS + new
    steps = (like.users.steps, like.items.steps) if like else (None, None)
    users, items = (to_precision(x[:size], precision, own) for x, size, own in zip(tables, sizes, steps))
    ids = Ids.from_values([f"u{n}" for n in range(sizes[0])], "user"), Ids.from_values(np.arange(sizes[1]) * 10, "item")
    pairs = Interactions.from_pairs(*np.nonzero(seen[: sizes[0], : sizes[1]]), *sizes)
    maps = {
        side: RowMap(*(rng.normal(size=size).astype(np.float32) for size in ((2 + 4 * DIM, DIM), (2, 1))))
        for side in SIDES
    }
    about = {"dataset": "made", "metrics": {"recall@5": 0.5 + new}}
    return Retriever(users, items, *ids, pairs, about, maps)


def head(folder: Path, name: str = "htd_jax.json"):
    return json.loads((folder / name).read_text())


def same(folder: Path, other: Path) -> bool:
    bytes_of = lambda folder: {path.name: path.read_bytes() for path in folder.iterdir()}
    return bytes_of(folder) == bytes_of(other)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_delta_gives_the_bytes_of_the_whole_export(tmp_path, precision):
    seen = precision in ("float32", "int4")
    made(precision).save(tmp_path / "base", seen=seen)
    base = htd_jax.load(tmp_path / "base")
    new = dataclasses.replace(made(precision, 5, base, changed=True), version=base.version)
    new.save(tmp_path / "delta", seen=seen, delta_from=tmp_path / "base")
    new.save(tmp_path / "whole", seen=seen)
    found = htd_jax.load(tmp_path / "base", tmp_path / "delta")
    found.save(tmp_path / "applied", seen=seen)
    assert same(tmp_path / "applied", tmp_path / "whole")
    told = head(tmp_path / "delta", "htd_jax_delta.json")
    assert told["parent"] == base.version and told["version"] == found.version == head(tmp_path / "whole")["version"]
    assert head(tmp_path / "whole")["parent"] == base.version != found.version
    assert told["new"] == {"users": 5, "items": 5}
    if all((getattr(new, side).steps is getattr(base, side).steps is None) for side in ("users", "items")):
        assert told["changed"] == {"users": 2, "items": 1}
    assert (tmp_path / "delta" / "changed_seen.parquet").exists() is seen
    # The next delta starts from what the first gives, and only from that.
    last = made(precision, 9, found)
    last.save(tmp_path / "second", seen=seen, delta_from=tmp_path / "applied")
    reached = htd_jax.load(tmp_path / "base", tmp_path / "delta", tmp_path / "second")
    assert len(reached.users) == USERS + 9 and reached.parent == found.version
    np.testing.assert_array_equal(reached.items.floats(), last.items.floats())
    for deltas, message in (
        (["second"], f"second: leads from version {found.version} to .*base has version {base.version}; apply each"),
        (["delta", "delta"], f"delta has already version {found.version}"),
    ):
        with pytest.raises(UserError, match=message):
            htd_jax.load(tmp_path / "base", *(tmp_path / name for name in deltas))


def test_a_version_follows_from_the_content_alone(tmp_path):
    model, folder = made("int8"), tmp_path / "model"
    version = lambda model, **options: model.save(folder, **options) or head(folder)["version"]
    first = version(model)
    assert version(model, shard_size=1e-4) == first == version(dataclasses.replace(model, about={}))
    assert head(folder)["parent"] is None
    opened = htd_jax.load(folder)
    assert version(opened) == first and head(folder)["parent"] is None
    changes = {"seen": True}, {"user_ids": Ids.numbers(USERS, "user")}, {"items": made("int8", changed=True).items}
    others = [version(model, **changes[0]), *(version(dataclasses.replace(opened, **change)) for change in changes[1:])]
    assert len({first, *others}) == 4 and head(folder)["parent"] == first
    # An export of an earlier version of the program has the version of its content.
    version(model)
    old = {name: value for name, value in head(folder).items() if name not in ("version", "parent")}
    (folder / "htd_jax.json").write_text(json.dumps(old))
    assert htd_jax.load(folder).version is None
    made("int8", 2).save(tmp_path / "delta", delta_from=folder)
    assert head(tmp_path / "delta", "htd_jax_delta.json")["parent"] == first
    assert len(htd_jax.load(folder, tmp_path / "delta").items) == ITEMS + 2


@pytest.mark.parametrize("bits", BITS.values())
def test_steps_are_kept_while_they_fit(bits):
    table = np.random.default_rng(0).normal(size=(500, DIM)).astype(np.float32)
    steps = steps_of(jnp.asarray(table), bits)
    more = np.concatenate([table, 1.1 * table[:50]])
    np.testing.assert_array_equal(kept_steps(more, steps, bits), steps)
    rows = to_precision(more, f"int{bits}", steps)
    np.testing.assert_array_equal(rows.values[:500], to_precision(table, f"int{bits}").values)
    for other in (2 * table, 0.5 * table, table * (np.arange(DIM) > 0)):
        np.testing.assert_array_equal(kept_steps(other, steps, bits), steps_of(jnp.asarray(other), bits))


def test_a_model_without_a_table_of_users(tmp_path):
    def without(model: Retriever) -> Retriever:
        pooling = Pooling(np.eye(DIM, dtype=np.float32), np.zeros(DIM, np.float32), np.float32(0.5))
        return dataclasses.replace(model, users=Rows(jnp.zeros((0, DIM))), pooling=pooling)

    for seen in (False, True):
        without(made("int4")).save(tmp_path / "base", seen=seen)
        base = htd_jax.load(tmp_path / "base")
        new = dataclasses.replace(without(made("int4", 5, base, changed=True)), version=base.version)
        new.save(tmp_path / "delta", seen=seen, delta_from=tmp_path / "base")
        new.save(tmp_path / "whole", seen=seen)
        htd_jax.load(tmp_path / "base", tmp_path / "delta").save(tmp_path / "applied", seen=seen)
        assert same(tmp_path / "applied", tmp_path / "whole")
    with pytest.raises(UserError, match="has int4 rows of 6 numbers, of items alone, and this model int4 rows"):
        made("int4").save(tmp_path / "delta", delta_from=tmp_path / "base")


def test_what_no_delta_leads_to(tmp_path):
    base, to = tmp_path / "base", tmp_path / "to"
    made("int8", 2).save(base)
    model = made("int8", 3)
    moved = Ids.from_values([f"u{n}" for n in [1, 0, *range(2, USERS + 3)]], "user")
    for change, message in (
        ({"user_ids": moved}, "its row 0 is user u0, and here u1; save it whole"),
        ({"items": made("float32", 3).items}, "has int8 rows of 6 numbers, and this model float32 rows of 6 numbers"),
        ({"users": made("int8").users, "user_ids": made("int8").user_ids}, "has 42 users, and this model 40"),
    ):
        with pytest.raises(UserError, match=f"`delta_from` .*base: {message}"):
            dataclasses.replace(model, **change).save(to, delta_from=base)
    with pytest.raises(UserError, match="is the export that the delta starts from"):
        model.save(base, delta_from=base)
    with pytest.raises(UserError, match="there is no such folder"):
        model.save(to, delta_from=tmp_path / "nowhere")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    model.save(to, delta_from=base)
    with pytest.raises(UserError, match="`delta_from` .*to: not an exported model"):
        model.save(tmp_path / "other", delta_from=to)
    with pytest.raises(UserError, match="to: a delta, which is no model alone"):
        htd_jax.load(to)
    with pytest.raises(UserError, match="base: an export, not a delta"):
        htd_jax.load(base, base)
    with pytest.raises(UserError, match="holds something else"):
        model.save(to)


def test_numbers_become_texts_with_the_first_text(tmp_path):
    ids = lambda values: Ids.from_values(values, "item")
    dataclasses.replace(made("int8"), item_ids=ids(np.arange(ITEMS))).save(tmp_path / "base")
    names = [*map(str, range(ITEMS)), "7.0", "new"]
    new = dataclasses.replace(made("int8", 2), item_ids=ids(names))
    new.save(tmp_path / "delta", delta_from=tmp_path / "base")
    assert htd_jax.load(tmp_path / "base", tmp_path / "delta").item_ids.values.to_pylist() == names


def test_any_bytes_give_the_version_or_a_line(tmp_path):
    folder = tmp_path / "delta"
    made("int4").save(tmp_path / "base", seen=True)
    made("int4", 3).save(folder, seen=True, delta_from=tmp_path / "base")
    version = htd_jax.load(tmp_path / "base", folder).version
    whole = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    rng = np.random.default_rng(0)
    for turn in range(100):
        name = [*whole][turn % len(whole)]
        broken = bytearray(whole[name])
        for _ in range(rng.integers(1, 4)):
            broken[rng.integers(len(broken))] = rng.integers(256)
        if turn % 3 == 0:
            del broken[rng.integers(len(broken)) :]
        (folder / name).write_bytes(broken)
        try:
            assert htd_jax.load(tmp_path / "base", folder).version == version
        except UserError as error:
            assert "\n" not in str(error), error
        (folder / name).write_bytes(whole[name])


def test_the_command_applies_a_delta(tmp_path):
    enter = lambda *arguments: runs._enter(export, arguments)
    base, delta, other = tmp_path / "base", tmp_path / "delta", tmp_path / "other"
    made("int4").save(base, seen=True)
    made("int4", 2).save(other, seen=True)
    told = runs._enter(export, ("--model", other, "--delta-from", base, "--to", delta)).out
    assert "of 40 rows changed, 2 new" in told and "note: the steps of users have changed" in told
    turned = {
        side: dataclasses.replace(rows, values=~rows.values) for side in SIDES for rows in [getattr(made("int4"), side)]
    }
    dataclasses.replace(made("int4"), **turned).save(tmp_path / "turned")
    note = "the changed rows take more bytes than all rows"
    assert note not in told and note in enter("--model", tmp_path / "turned", "--delta-from", base, "--to", delta).out
    enter("--model", other, "--delta-from", base, "--to", delta)
    assert enter("--model", base, "--apply", delta, "--to", base).status == 0
    assert head(base)["version"] == head(other)["version"] in told and head(base)["seen"]
    before = sorted(tmp_path.iterdir())
    for arguments, message in (
        (("--to", "x"), "set either --run to a run folder, or --model to an exported model"),
        (("--run", "a", "--apply", "d", "--to", "x"), "--apply needs --model"),
        (("--model", base, "--apply", "--to", "x"), "give the folders of all deltas after one --apply"),
        (("--model", base, "--apply", delta, "--apply", delta, "--to", "x"), "after one --apply, in their order"),
        (("--model", base, "--precision", "int8", "--to", "x"), "--precision needs --run"),
        (("--model", base, "--apply", delta, "--to", delta), "is the folder of a delta to apply"),
        (("--model", base, "--apply", delta, "--to", tmp_path / "x"), "has already version"),
        (
            ("--model", base, "--delta-from", delta, "--to", tmp_path / "x"),
            f"--delta-from {delta}: not an exported model",
        ),
    ):
        line = runs.line_of(enter(*arguments))
        assert message in line, line
    assert sorted(tmp_path.iterdir()) == before
