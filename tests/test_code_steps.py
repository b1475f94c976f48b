"""Programs as steps (`scripts/code_steps.py`): mutants, noisy traces, which tests are shown, what is stitched."""

import ast
import itertools
import json
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from code_steps import Bench, mutants, problems, solve, stitched, traces

PROGRAM = """def count(words, least):
    found = 0
    for word in words:
        if len(word) >= least and word != 'the':
            found = found + 1
    return found"""
LINES, OTHERS = mutants(PROGRAM, random.Random(0))


def test_a_mutant_changes_one_thing_in_one_line():
    assert "\n".join(LINES) == ast.unparse(ast.parse(PROGRAM))
    assert [bool(others) for others in OTHERS] == [False, True, True, True, True, True]
    original = ast.parse("\n".join(LINES))
    for place, others in enumerate(OTHERS):
        for other in others:
            program = ast.parse("\n".join([*LINES[:place], other, *LINES[place + 1 :]]))
            pairs = zip(ast.walk(original), ast.walk(program), strict=True)
            changed = [(one, two) for one, two in pairs if type(one) is not type(two) or own(one) != own(two)]
            assert len(changed) == 1, other
            assert all(getattr(one, "lineno", place + 1) == place + 1 for one in changed[0])


def own(node):
    """What a node says by itself."""
    return {name: value for name, value in vars(node).items() if isinstance(value, (str, int))
            and not name.endswith(("lineno", "offset"))}  # fmt: skip


def test_traces_differ_from_the_program_in_mutants_alone_and_a_favourite_is_wrong_most_often():
    shares = []
    for seed in range(4):
        drawn = traces(LINES, OTHERS, random.Random(seed), 3000)
        for place, others in enumerate(OTHERS):
            column = [trace[place] for trace in drawn]
            assert set(column) <= {LINES[place], *others}
            wrong = sum(text != LINES[place] for text in column) / len(column)
            hard = wrong > 0.3
            assert wrong == pytest.approx((0.6 if hard else 0.1) if others else 0.0, abs=0.03)
            if hard and len(others) > 1:  # seven in ten one mutant, the rest all alike
                shares.append(max(map(column.count, others)) / len(column) / wrong)
                assert shares[-1] == pytest.approx(0.7 + 0.3 / len(others), abs=0.04)
    assert shares


class Asked:
    """A reward that knows the program: the share of a side's lines that are right, and which side was asked."""

    def __init__(self, sides):
        self.sides, self.asked = sides, []

    def __call__(self, *, prompts, completions, side):
        self.asked.append(side[0])
        lines = completions[0].removeprefix("```python\n").removesuffix("\n```").split("\n")
        places = self.sides[side[0]]
        return [sum(lines[i] == LINES[i] for i in places) / len(places)]


def test_stitching_reads_public_tests_alone_and_finds_what_the_traces_hold():
    """Every way to put lines of four traces together, by enumeration: what is stitched is worth as much as the best one."""
    everything = range(len(LINES))
    whole = 0
    for seed in range(40):
        rng = random.Random(seed)
        drawn = traces(LINES, OTHERS, rng, 4)
        reward = Asked({"public": everything, "hidden": everything})
        bench = Bench(reward, {"side": "public"}, {"side": "hidden"})
        found = stitched(bench, drawn)
        most = max(bench.worth(list(lines)) for lines in itertools.product(*map(set, zip(*drawn, strict=True))))
        assert set(reward.asked) == {"public"}
        assert bench.worth(found) <= most
        asked = len(reward.asked)
        assert bench.worth(found) >= max(map(bench.worth, drawn))
        assert len(reward.asked) == asked  # each text was run once
        places = [i for i, column in enumerate(zip(*drawn, strict=True)) if LINES[i] in column]
        if len(places) == len(LINES) and sum(len(set(column)) - 1 for column in zip(*drawn, strict=True)) <= 3:
            assert found == LINES  # three lines can be filled in, one after another
            whole += 1
    assert whole > 3


def test_public_tests_that_say_nothing_are_seen_in_the_hidden_ones():
    """A task is judged where its own solution passes both; a method is right by the hidden tests alone."""
    reward = Asked({"public": [0], "hidden": range(len(LINES))})
    found = solve("t", PROGRAM, {"side": "public"}, {"side": "hidden"}, 4, 0, reward)
    assert found["lines"] == len(LINES)
    first, *_ = traces(LINES, OTHERS, random_after_mutants("0 t"), 8)
    assert found["right"]["single"] == (first == LINES)
    assert found["runs"]["best_of_n"] <= 4 < found["runs"]["best_of_2n"] <= 8
    broken = Asked({"public": [0], "hidden": range(len(LINES) + 1)})
    with pytest.raises(IndexError):
        solve("t", PROGRAM, {"side": "public"}, {"side": "hidden"}, 4, 0, broken)
    assert solve("t", "x = input", {"side": "public"}, {"side": "hidden"}, 4, 0, reward) is None  # nothing to mutate


def random_after_mutants(seed):
    """The generator of a task, as far as `solve` has read it when it draws traces."""
    rng = random.Random(seed)
    assert mutants(PROGRAM, rng)[0] == LINES
    return rng


def test_the_tests_of_a_benchmark_are_shared_out_once(tmp_path):
    asserts = [f"assert candidate({i}) == {i}" for i in range(5)]
    check = "def check(candidate):\n" + "".join(f"    {one}\n" for one in asserts)
    rows = [
        {
            "task_id": "H/0",
            "test": check,
            "entry_point": "f",
            "prompt": "def f(x):\n",
            "canonical_solution": "    return x",
        },
        {
            "task_id": "H/1",
            "test": "def check(candidate):\n    assert candidate(1)\n",
            "entry_point": "f",
            "prompt": "",
            "canonical_solution": "",
        },
    ]
    few = [{"task_id": 7, "test_imports": ["import math"], "test_list": ["assert 1", "assert 2", "assert 3"], "code": "x"},
           {"task_id": 8, "test_imports": [], "test_list": ["assert 1"], "code": "x"}]  # fmt: skip
    (tmp_path / "humaneval").mkdir()
    (tmp_path / "mbpp").mkdir()
    (tmp_path / "humaneval" / "HumanEval.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "mbpp" / "sanitized-mbpp.json").write_text(json.dumps(few))
    (name, solution, public, hidden), (other, _, public_list, hidden_list) = problems(tmp_path, 2, 2)
    assert (name, solution, other) == ("H/0", "def f(x):\n    return x", "MBPP/7")  # the others have too few
    shown, kept = ([line.strip() for line in of["test"].splitlines()[1:]] for of in (public, hidden))
    assert (shown, kept) == (asserts[:2], asserts[2:])
    assert (public_list["test_list"], hidden_list["test_list"]) == (["assert 1"], ["assert 2", "assert 3"])
    assert public_list["test_imports"] == hidden_list["test_imports"] == ["import math"]
