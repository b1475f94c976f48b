"""What the benchmarks measure with: ratios by hand, memory against what was allocated, results that go on."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from side_by_side import Results, compare, peak_memory


def test_ratios_are_of_the_sides_of_one_turn():
    seconds = {"loop": iter([2.0, 4.0, 9.0, 4.0, 8.0]), "fast": iter([1.0, 1.0, 3.0, 2.0, 1.0])}
    order = []

    def side(name):
        def run():
            order.append(name)
            return next(seconds[name])

        return run

    found = compare("by hand", "loop", {name: side(name) for name in seconds}, 5)
    assert found == {
        "fast": {
            "ratio": 3.0,
            "quartiles": [2.0, 4.0],
            "ratios": [2.0, 4.0, 3.0, 2.0, 8.0],
            "seconds": {"loop": 4.0, "fast": 1.0},
        }
    }
    assert order == ["loop", "fast", "fast", "loop", "loop", "fast", "fast", "loop", "loop", "fast"]


def test_peak_memory_is_what_is_held_at_a_time():
    kept = torch.zeros(3_000_000)  # there before: does not count

    def work():
        one = torch.zeros(1_000_000)
        two = one.double()
        del one
        return two + 1, kept.sum()

    assert peak_memory(work) == pytest.approx(16e6, rel=1e-3)  # both in float64, the float32 one gone


def test_results_go_on_and_refuse_other_conditions(tmp_path):
    path = tmp_path / "figures.json"
    Results(path, {"model": "a"}).add("exact", lambda: {"ratio": 2.0})

    def fails():
        raise KeyboardInterrupt

    again = Results(path, {"model": "a"})
    again.add("exact", fails)
    with pytest.raises(KeyboardInterrupt):
        again.add("memory", fails)
    values = json.loads(path.read_text())
    assert values["exact"] == {"ratio": 2.0}
    assert "memory" not in values
    with pytest.raises(ValueError, match=r"other conditions .*'model': 'a'"):
        Results(path, {"model": "b"})
