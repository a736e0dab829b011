"""A split in files: what is read back is what was written, to the fingerprint; nothing else is overwritten."""

import json

import pytest
from runs import EXPERIMENTS, line_of, start_command

import htd_jax
from htd_jax.data import Dataset, fingerprint, make_split, write_split

CLICKS = str(EXPERIMENTS.parent / "examples" / "clicks.csv")
ODD = ["a b", "007", "NULL", 'q"uo"te', "x,y", " lead", "trail ", "é", "NA", "1e5", "user", "id", "row", "'", "\t"]


def log(rng, names, **settings):
    users, items = (rng.integers(len(names), size=150) for _ in range(2))
    return htd_jax.read(([names[u] for u in users], [names[i] for i in items]), **settings)


DATA = {
    "text": lambda rng: log(rng, ODD),
    "integers": lambda rng: log(rng, range(-4, 20)),
    "new users": lambda rng: log(rng, ODD, split="new-users", held_out=0.4),
    "by name": lambda rng: htd_jax.read("synthetic"),
    "no valid, and ids without a pair": lambda rng: Dataset.from_split(
        make_split(([0, 0, 2], [1, 3, 1]), ([], []), ([2], [0]), 5, 7), "few"
    ),
}


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize("name", DATA)
def test_what_is_read_back_is_what_was_written(name, suffix, rng, tmp_path):
    data = DATA[name](rng)
    write_split(tmp_path / "new" / "parts", data, suffix)
    write_split(tmp_path / "new" / "parts", data, suffix)  # an earlier one is replaced
    back = htd_jax.read(str(tmp_path / "new" / "parts"))
    assert fingerprint(back) == fingerprint(data) and back.name == data.name and not back.notes
    assert back.users.values.equals(data.users.values) and back.items.values.equals(data.items.values)


def test_the_command_writes_what_a_run_reads(tmp_path):
    done = start_command("split", "--dataset", CLICKS, "--split", "last", "--to", tmp_path / "parts")
    data = htd_jax.read(CLICKS, split="last")
    assert done.status == 0 and f"fingerprint {fingerprint(data)}" in done.out
    again = start_command("split", "--split-files", tmp_path / "parts", "--to", tmp_path / "csv", "--format", "csv")
    assert again.out.splitlines()[-1] == done.out.splitlines()[-1]
    refused = [
        (["--dataset", tmp_path / "parts", "--min-rating", 3], "is already split"),
        (["--split-files", tmp_path], "has no split.json"),
        (["--dataset", CLICKS, "--split", "none"], "nothing is held out for test"),
    ]
    for arguments, why in refused:
        assert why in line_of(start_command("split", *arguments, "--to", tmp_path / "other"))
        assert not (tmp_path / "other").exists()


def test_other_folders_are_left_alone_and_damage_is_told(rng, tmp_path):
    data = log(rng, ODD)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.csv").write_text("mine")
    with pytest.raises(htd_jax.UserError, match="holds something else, train.csv"):
        write_split(tmp_path / "mine", data)
    with pytest.raises(htd_jax.UserError, match="line breaks"):
        write_split(tmp_path / "lines", log(rng, [*ODD, "two\nlines"]), "csv")
    folder = tmp_path / "parts"
    write_split(folder, data, "csv")
    lines = (folder / "train.csv").read_text().splitlines()
    (folder / "train.csv").write_text("\n".join(lines[:-1]) + "\n")
    assert "train changed since" in htd_jax.read(folder).notes[0]
    (folder / "train.csv").write_text("\n".join([*lines, '"stranger","x,y"']) + "\n")
    with pytest.raises(htd_jax.UserError, match="train.csv: user 'stranger': not among"):
        htd_jax.read(folder)
    about = json.loads((folder / "split.json").read_text())
    for wrong in ({**about, "format": 2}, {**about, "files": "../x"}, {**about, "new_users": [-1]}, []):
        (folder / "split.json").write_text(json.dumps(wrong))
        with pytest.raises(htd_jax.UserError, match=r"split.json"):
            htd_jax.read(folder)
