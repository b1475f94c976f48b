"""Labels by completion: the estimate against every completion counted, shared prefixes, and labelling that is killed."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from lockstitch.recipes.prm import labelled, parse
from lockstitch.recipes.step_labels import Labelling, label_problems, write_labels
from lockstitch.rewards.problem import Problem
from lockstitch.rewards.tasks.named import get_task
from lockstitch.rewards.tasks.task import held_out_problems
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from models import random_denoiser
from toy_lines import CONFIG, TASK, chance, denoiser, is_right

from lockstitch import files

PROBLEMS = [Problem(question) for question in ("1", "2", "1+1")]


def without_seconds(rows):
    rows = json.loads(json.dumps(rows))
    for row in rows:
        row["ledger"].pop("seconds")
        row["trajectory"]["ledger"].pop("seconds")
    return rows


@pytest.mark.slow
def test_soft_labels_are_the_probability_of_a_right_completion():
    k = 400
    rows = label_problems(denoiser(), TASK, PROBLEMS, CONFIG, Labelling(6, k, "soft"), [11, 12, 13])
    assert len(rows) == 18
    checked = set()
    for row in rows:
        digits = ""
        assert row["correct"] == is_right("".join(row["completions"]))
        for step, label in zip(row["completions"], row["labels"], strict=True):
            digits += step
            p = chance(digits)
            checked.add(digits)
            assert abs(label - p) <= 4 * math.sqrt(p * (1 - p) / k) + 1e-9, (digits, label, p)
    assert {len(digits) for digits in checked} == {2, 4}
    assert len({round(chance(digits), 3) for digits in checked if len(digits) == 2}) > 1  # else the test proves little


def test_hard_labels_say_whether_any_completion_is_right():
    soft = label_problems(denoiser(), TASK, PROBLEMS, CONFIG, Labelling(4, 3, "soft"), [1, 2, 3])
    hard = label_problems(denoiser(), TASK, PROBLEMS, CONFIG, Labelling(4, 3, "hard"), [1, 2, 3])
    for a, b in zip(soft, hard, strict=True):
        assert b["labels"] == [float(label > 0) for label in a["labels"]]
        assert a["labels"] == [right / a["of"] for right in a["right"]]
    assert 0 < sum(label for row in hard for label in row["labels"]) < sum(len(row["labels"]) for row in hard)


def test_a_prefix_that_trajectories_share_is_completed_once_and_labelled_alike():
    rows = label_problems(denoiser(), TASK, PROBLEMS[:1], CONFIG, Labelling(8, 5, "soft"), [3])
    seen = {}
    for row in rows:
        for i, label in enumerate(row["labels"]):
            seen.setdefault(tuple(row["completions"][: i + 1]), set()).add(label)
    assert all(len(labels) == 1 for labels in seen.values())
    assert len(seen) < 16
    # A canvas of six takes six passes; from a prefix of a line (two digits) three are left to write before the last break.
    nfe = sum(row["ledger"]["nfe"] for row in rows)
    completions = sum(5 * (4 if len(prefix) == 1 else 1) for prefix in seen)
    assert nfe == 8 * 6 + completions


def test_rows_do_not_depend_on_what_is_labelled_beside_them():
    together = label_problems(denoiser(), TASK, PROBLEMS, CONFIG, Labelling(2, 3), [5, 6, 7])
    alone = [
        row
        for problem, seed in zip(PROBLEMS, (5, 6, 7), strict=True)
        for row in label_problems(denoiser(), TASK, [problem], CONFIG, Labelling(2, 3), [seed])
    ]
    assert without_seconds(together) == without_seconds(alone)


@pytest.mark.parametrize("cut", [0, 1, 3, 4, 7])
def test_labelling_that_was_killed_goes_on_and_gives_the_same_rows(tmp_path, cut):
    def label(part, first):
        return label_problems(denoiser(), TASK, part, CONFIG, Labelling(3, 2), [first + i for i in range(len(part))])

    whole = tmp_path / "whole"
    whole.mkdir()
    rows = write_labels(whole, PROBLEMS, label, 3, chunk=2)
    assert [row["index"] for row in rows] == list(range(9))
    killed = tmp_path / "killed"
    killed.mkdir()
    lines = (whole / files.RESULTS).read_bytes().splitlines(keepends=True)
    (killed / files.RESULTS).write_bytes(b"".join(lines[:cut]) + lines[cut][: len(lines[cut]) // 2])
    again = write_labels(killed, PROBLEMS, label, 3, chunk=2)
    assert without_seconds(again) == without_seconds(rows)
    assert without_seconds(files.finished_rows(killed / files.RESULTS)) == without_seconds(rows)
    done = write_labels(killed, PROBLEMS, lambda part, first: pytest.fail("nothing is left"), 3, chunk=2)
    assert without_seconds(done) == without_seconds(again)


def test_more_problems_are_labelled_on_and_other_ones_refused(tmp_path):
    def label(part, first):
        return label_problems(denoiser(), TASK, part, CONFIG, Labelling(2, 2), [first + i for i in range(len(part))])

    few = write_labels(tmp_path, PROBLEMS[:1], label, 2, chunk=1)
    more = write_labels(tmp_path, PROBLEMS, label, 2, chunk=1)
    assert without_seconds(more[:2]) == without_seconds(few)
    assert len(more) == 6
    assert len(write_labels(tmp_path, PROBLEMS[:2], label, 2, chunk=1)) == 4
    with pytest.raises(ValueError, match=r"holds labels of other problems \(row 0: '1', answer"):
        write_labels(tmp_path, PROBLEMS[::-1], label, 2, chunk=1)
    with pytest.raises(ValueError, match=r"holds labels of other problems \(row 0: '1', answer"):
        write_labels(tmp_path, [replace(one, answer="another") for one in PROBLEMS], label, 2, chunk=1)


def test_what_cannot_be_labelled_is_refused():
    task = get_task("gsm8k")
    open_ended = Problem("How many?")
    with pytest.raises(ValueError, match=r"the problem 'How many\?' cannot be judged"):
        label_problems(random_denoiser(), task, [open_ended], SamplerConfig(4, temperature=1.0), Labelling(1, 1), [0])
    for wrong in ({"trajectories": 0}, {"completions": 0}, {"kind": "medium"}):
        with pytest.raises(ValueError, match=r"must be at least 1|label='medium' is not one of soft, hard"):
            Labelling(**wrong)


def test_a_completer_of_its_own_completes():
    task = get_task("sudoku")
    problems = held_out_problems(task, 6, 3)
    early, late = (Denoiser.from_pretrained(f"embedded:{name}") for name in ("sudoku-early", "sudoku"))
    config = SamplerConfig(20, steps=5, temperature=0.7, batch_size=512)
    own, better = (
        label_problems(early, task, problems, config, Labelling(2, 4), range(6), completer)
        for completer in (None, late)
    )
    assert [row["completions"] for row in own] == [row["completions"] for row in better]
    assert sum(sum(row["labels"]) for row in better) > sum(sum(row["labels"]) for row in own)


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_labels(tmp_path):
    command = [sys.executable, "-m", "lockstitch.recipes.prm", "--task", "sudoku", "--label_model", "embedded:sudoku-early",
               "--num_problems", "12", "--num_eval_problems", "2", "--num_completions", "2", "--num_trajectories", "2",
               "--chunk", "1", "--labels_only", "true", "--use_cpu", "true"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    results = tmp_path / "killed" / "labels" / "train" / files.RESULTS
    process = subprocess.Popen([*command, "--output_dir", str(tmp_path / "killed")], env=environment)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not results.exists() or results.read_bytes().count(b"\n") < 4):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 4 <= results.read_bytes().count(b"\n") < 24
    for name in ("killed", "whole"):
        recipe, training, _ = parse([*command[3:], "--output_dir", str(tmp_path / name)])
        labelled(recipe, tmp_path / name, training)
    for split in ("train", "test"):
        one, other = (
            files.finished_rows(tmp_path / name / "labels" / split / files.RESULTS) for name in ("killed", "whole")
        )
        assert without_seconds(one) == without_seconds(other)
