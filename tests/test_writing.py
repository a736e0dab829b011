"""Files and folders that are there whole or not at all."""

import pytest

from htd_jax.writing import is_partial, whole


def test_a_file_takes_its_place_at_the_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole(path) as partial:
        partial.write_text("new")
        assert partial.parent == tmp_path and is_partial(partial)
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
    assert not is_partial(path)


@pytest.mark.parametrize("write", [lambda path: path.write_text("half"), lambda path: (path / "b").mkdir(parents=True)])
def test_after_an_error_what_was_there_is_there(tmp_path, write):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole(path) as partial:
        write(partial)
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_left_is_removed(tmp_path):
    path = tmp_path / "a"
    left = whole(path)
    left.__enter__().mkdir()  # and no more is heard of it
    (next(tmp_path.iterdir()) / "half").write_text("half")
    with whole(path) as partial:
        partial.mkdir()
        (partial / "b").write_text("whole")
    assert list(tmp_path.iterdir()) == [path]
    assert [file.name for file in path.iterdir()] == ["b"]
