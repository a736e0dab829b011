"""Commands that are killed at random moments and resumed: a small part of `benchmarks/kills.py`."""

import kills
import pytest


@pytest.mark.slow
@pytest.mark.parametrize("name", ["export over an export", "lists over lists", "train ftd"])
def test_a_killed_command_loses_nothing(name, tmp_path):
    chosen = [next(scenario for scenario in kills.scenarios() if scenario.name == name)]
    state = kills.kill_all(3, 0, tmp_path, chosen, lambda summary: None)
    assert state.problems == []
    assert state.counts["kills"] == 3 and state.counts["ends"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("together", [2, 4])
def test_a_run_of_several_processes_one_of_which_is_killed_loses_nothing(together, tmp_path):
    chosen = [next(scenario for scenario in kills.scenarios() if scenario.name == "train ftd")]
    state = kills.kill_all(3, 0, tmp_path, chosen, lambda summary: None, together)
    assert state.problems == []
    assert state.counts["kills"] == 3 and state.counts["ends"] >= 1
