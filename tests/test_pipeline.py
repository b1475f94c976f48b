"""`lockstitch stitch` as people run it: inputs, refusals, files, resuming after a kill at any moment."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from dataclasses import replace

import pytest
from lockstitch.rewards.tasks.named import get_task
from lockstitch.stitching.cli import main, stitch
from lockstitch.stitching.config import StitchConfig
from lockstitch.stitching.inputs import generate_problems, read_problems, read_trajectories
from lockstitch.stitching.logistic import Logistic
from lockstitch.stitching.verifier import FEATURES

from lockstitch import files

SUDOKU = ["--task", "sudoku", "--solver", "none", "--num_trajectories", "2", "--steps", "5"]
PUZZLES = ["3102200002100320", "0140432014020000", "4310010000303420", "2004001203201003"]


def without_time(rows):
    for row in rows:
        for found in row["methods"].values():
            del found["ledger"]["seconds"]
    return rows


def read_rows(path):
    return [json.loads(line) for line in (path / "results.jsonl").read_text().split("\n") if line]


def test_one_run_writes_everything(tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"question": puzzle}) + "\n" for puzzle in PUZZLES))
    out = tmp_path / "out"
    assert main([*SUDOKU, "--input", str(source), "--output", str(out)]) == 0
    rows = read_rows(out)
    assert [row["question"] for row in rows] == PUZZLES
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["absent"]) == {"all_traces", "solver_alone"}
    for name, method in summary["methods"].items():
        right = [row["methods"][name]["correct"] for row in rows]
        assert method["accuracy"] == sum(right) / 4
        assert method["nfe"] == pytest.approx(sum(row["methods"][name]["ledger"]["nfe"] for row in rows) / 4)
    assert summary["paired"]["stitched - single"]["n"] == 4
    assert "<script" in (out / "report.html").read_text()
    assert "stitched" in capsys.readouterr().out
    assert not list(out.glob("*.partial"))
    # Asked again, it computes nothing and writes the same.
    before = (out / "results.jsonl").read_bytes()
    assert main([*SUDOKU, "--input", str(source), "--output", str(out)]) == 0
    assert (out / "results.jsonl").read_bytes() == before


def test_a_changed_configuration_is_refused(tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main([*SUDOKU, "--generate", "2", "--output", out]) == 0
    assert main([*SUDOKU, "--generate", "2", "--output", out, "--seed", "1"]) == 2
    assert "seed: 0 then, 1 now" in capsys.readouterr().err


def test_an_edited_input_is_refused_and_a_larger_chunk_is_not(tmp_path, capsys):
    source, out = tmp_path / "in.jsonl", str(tmp_path / "out")
    source.write_text(json.dumps({"question": PUZZLES[0]}) + "\n")
    assert main([*SUDOKU, "--input", str(source), "--output", out]) == 0
    assert main([*SUDOKU, "--input", str(source), "--output", out, "--chunk", "3", "--batch_size", "7"]) == 0
    source.write_text(json.dumps({"question": PUZZLES[1]}) + "\n")
    assert main([*SUDOKU, "--input", str(source), "--output", out]) == 2
    assert "sha256" in capsys.readouterr().err


def test_a_block_longer_than_the_canvas_is_refused(capsys):
    assert main([*SUDOKU[:4], "--question", PUZZLES[0], "--block_length", "40"]) == 2
    assert "block_length=40 does not divide canvas_length=20" in capsys.readouterr().err


def test_a_directory_without_results_can_be_claimed_again(tmp_path):
    files.claim_directory(tmp_path, {"seed": 0})
    files.claim_directory(tmp_path, {"seed": 1})
    (tmp_path / "results.jsonl").touch()
    with pytest.raises(ValueError, match="seed: 1 then, 2 now"):
        files.claim_directory(tmp_path, {"seed": 2})


def test_a_scorer_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_scores.py").write_text(
        "def half(question, steps_KN, trajectories):\n    return [[0.5 for _ in steps] for steps in steps_KN]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main([*SUDOKU, "--generate", "1", "--scorer", "my_scores:half", "--output", "out"]) == 0
    scores = {step["score"] for t in read_rows(tmp_path / "out")[0]["trajectories"] for step in t["steps"]}
    assert scores == {0.5}


def test_one_question_is_shown_in_the_terminal(capsys):
    assert main([*SUDOKU, "--question", PUZZLES[0], "--color", "never"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "3142" in shown


def test_trajectories_from_elsewhere(tmp_path):
    source, out = tmp_path / "t.jsonl", tmp_path / "out"
    completions = [
        "She has 12+7=19 eggs.\nShe sells 19-4=14.\nA: 14",
        "She has 12+7=18 eggs.\nShe sells 19-4=15.\nA: 15",
        "She has 12+7=19 eggs.\nShe sells 19-4=15.\nA: 15",
    ]
    source.write_text(
        json.dumps(
            {"question": "Ann has 12 eggs, gets 7, sells 4. How many?", "completions": completions, "answer": "15"}
        )
        + "\n"
    )
    assert main(["--task", "gsm8k", "--trajectories", str(source), "--output", str(out)]) == 0
    row = read_rows(out)[0]
    assert set(row["methods"]) == {"single", "majority_vote", "best_of_n", "weighted_vote", "stitched"}
    assert row["methods"]["best_of_n"]["answer"] == "15"
    assert row["methods"]["stitched"]["answer"] == "15"
    assert [step["score"] for step in row["trajectories"][2]["steps"]] == [1.0, 1.0]
    assert row["trajectories"][0]["steps"][1]["score"] == 0.0


def test_bad_lines_are_named_before_any_work(tmp_path, capsys):
    source = tmp_path / "bad.jsonl"
    source.write_text('{"question": "How many?"}\nnot json\n{"answer": "3"}\n[1]\n')
    assert main(["--task", "gsm8k", "--trajectories", str(source), "--output", str(tmp_path / "o")]) == 2
    said = capsys.readouterr().err
    for expected in (
        "4 bad lines",
        "line 1: no 'completions'",
        "line 2: not JSON",
        "line 3: no 'question'",
        "line 4: a JSON object is needed, not list",
    ):
        assert expected in said
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("completions", [[], [""], "text", [1]])
def test_bad_completions_are_refused(tmp_path, completions):
    source = tmp_path / "bad.jsonl"
    source.write_text(json.dumps({"question": "How many?", "completions": completions}) + "\n")
    with pytest.raises(ValueError, match=r"line 1: .*'completions'"):
        read_trajectories(source, get_task("gsm8k"))


def test_rows_with_line_separators_stay_whole(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"question": "one\u2028two"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_problems(source, get_task("gsm8k"))[0].problem.question == "one\u2028two"


def test_benchmark_csv_is_read(tmp_path):
    source = tmp_path / "s.csv"
    source.write_text("Puzzle,Solution\n3102200002100320,3142243142131324\n")
    assert read_problems(source, get_task("sudoku"))[0].problem.answer == "3142243142131324"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "say where the problems come from"),
        ({"question": "1", "generate": 2}, "once"),
        ({"generate": 2}, "--output DIR is needed"),
        ({"question": "1", "rule": "best"}, "rule='best' is not one of paper, public, path"),
        ({"trajectories": "x", "output": "o", "steps": 4}, "would be ignored"),
        ({"question": "x", "rounds": False, "round_width": 2}, "round_width=2 would be ignored without rounds"),
        ({"question": "x", "round_width": 0}, "round_width=0 must be"),
        ({"trajectories": "x", "output": "o", "scorer": "confidence"}, "the sampler's trace"),
        ({"trajectories": "x", "output": "o", "trust_remote_code": True}, "trust_remote_code would be ignored"),
        ({"question": "1", "rule": "paper", "rounds": True}, "rounds false"),
        ({"question": "1", "num_trajectories": 0}, "num_trajectories=0"),
        ({"question": "1", "rescore": True, "methods": ["best_of_n"]}, "rescore=True would be ignored"),
        ({"question": "1", "round_width": 2, "methods": ["greedy"]}, "round_width=2 would be ignored: methods"),
        ({"question": "1", "round_temperature": 1.0, "methods": ["single"]}, "round_temperature=1.0 would be ignored"),
        ({"question": "1", "evidence_weights": "e", "methods": ["stitched_wide"]}, "evidence_weights='e' would be"),
        ({"question": "1", "scorer": "consensus", "rounds": True}, "rounds=True: scorer='consensus' compares N"),
        ({"question": "1", "scorer": "consensus+bmc", "rescore": True}, r"rescore=True: scorer='consensus\+bmc'"),
    ],
)
def test_bad_options_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        StitchConfig(task="sudoku", **settings)


def test_what_compares_trajectories_scores_no_canvas_by_itself(tmp_path):
    """By default such methods are absent, with the reason, and `stitched` is made once out of the N; asked for, refused."""
    config = StitchConfig(task="sudoku", generate=2, scorer="consensus", num_trajectories=3, solver="none",
                          output=str(tmp_path / "out"))  # fmt: skip
    assert stitch(config) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {"best_of_n_refine", "remask_loop"} <= set(summary["absent"])
    assert "compares N trajectories" in summary["absent"]["remask_loop"]
    costs = {name: one["nfe"] for name, one in summary["methods"].items()}
    assert costs["stitched"] == costs["majority_vote"] == costs["best_of_n"]
    config = StitchConfig(task="sudoku", question="1" * 16, scorer="consensus", methods=["remask_loop"])
    with pytest.raises(
        ValueError, match="methods: remask_loop cannot run: scorer 'consensus' compares N trajectories"
    ):
        config.settle(get_task("sudoku"))


def test_a_run_is_not_resumed_with_other_weights(tmp_path):
    weights = tmp_path / "w.json"
    values = {"parts": ["confidence"], "weights": [1.0], "bias": 0.0, "steps": 9}
    weights.write_text(json.dumps(values))
    config = {"task": "sudoku", "num_trajectories": 2, "solver": "none", "scorer": "confidence", "methods": ["best_of_n"],
              "output": str(tmp_path / "out"), "scorer_weights": str(weights)}  # fmt: skip
    assert stitch(StitchConfig(generate=1, **config)) == 0
    weights.write_text(json.dumps({**values, "bias": -5.0}))
    with pytest.raises(ValueError, match=r"holds results of another configuration \(judges"):
        stitch(StitchConfig(generate=1, **config))


@pytest.mark.parametrize("named", ["", "verifier.json"])
def test_a_run_is_not_resumed_with_another_verifier(named, tmp_path):
    """Named by its folder or by itself."""
    source = tmp_path / "t.jsonl"
    source.write_text(json.dumps({"question": "1, +2", "completions": ["1+2=3", "1+2=4"]}) + "\n")
    model = Logistic(FEATURES, *([1.0] * len(FEATURES) for _ in range(3)), bias=0.0, examples=9)
    model.write(tmp_path / "verifier.json")
    config = {"task": "arithmetic", "trajectories": str(source), "solver": "none", "output": str(tmp_path / "out"),
              "scorer": f"verifier:{tmp_path / named}"}  # fmt: skip
    assert stitch(StitchConfig(**config)) == 0
    assert stitch(StitchConfig(**config)) == 0
    replace(model, bias=1.0).write(tmp_path / "verifier.json")
    with pytest.raises(ValueError, match=r"holds results of another configuration \(judges"):
        stitch(StitchConfig(**config))


def test_weights_of_the_vote_are_of_a_verifier_s_scores_and_ignored_nowhere():
    given = {"trajectories": "t.jsonl", "evidence_weights": "e.json", "output": "o"}
    with pytest.raises(
        ValueError, match="fitted on a verifier's scores, and scorer='calculator' has none: verifier:DIR"
    ):
        StitchConfig(task="gsm8k", **given).settle(get_task("gsm8k"))
    config = StitchConfig(task="arithmetic", scorer="calculator+verifier:v", **given)
    with pytest.raises(ValueError, match=r"would be ignored: a chain that stands is its own answer, .* --solver none"):
        config.settle(get_task("arithmetic"))
    StitchConfig(task="arithmetic", solver="none", scorer="verifier:v", **given).settle(get_task("arithmetic"))
    StitchConfig(task="gsm8k", solver="MODEL", scorer="verifier:v", **given).settle(get_task("gsm8k"))


def test_a_judge_is_judged_by_what_was_drawn_before_the_rounds(tmp_path):
    """What rounds add repeats the steps that they pinned, and comes from the problems that are hard."""
    config = {"task": "sudoku", "generate": 6, "num_trajectories": 4, "solver": "none", "scorer": "confidence"}
    for more, drawn in ({}, 1), ({"round_width": 2}, 2), ({"rounds": False}, 4), ({"methods": ["best_of_n"]}, 4):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        assert stitch(StitchConfig(**config, **more, output=str(out))) == 0
        assert json.loads((out / "summary.json").read_text())["scorer"]["traces"]["n"] == 6 * drawn


def test_a_narrow_terminal_loses_no_answer(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "10")
    config = StitchConfig(
        task="sudoku", question="3102200002100320", num_trajectories=1, solver="none", methods=["single"]
    )
    assert stitch(config) == 0
    assert "single" in capsys.readouterr().out


def test_what_cannot_run_is_said():
    with pytest.raises(ValueError, match="no embedded model does gsm8k"):
        stitch(StitchConfig(task="gsm8k", question="How many?", solver="none"))
    with pytest.raises(ValueError, match="'chess' is not one of"):
        stitch(StitchConfig(task="chess", question="e4"))
    with pytest.raises(ValueError, match="fixed set of problems"):
        generate_problems(get_task("gsm8k"), 3, 0)


def test_a_cut_off_line_is_dropped_and_a_whole_one_kept(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"index": 0}\n{"index": 1}\n{"ind')
    assert files.finished_rows(path) == [{"index": 0}, {"index": 1}]
    assert path.read_text() == '{"index": 0}\n{"index": 1}\n'


def test_results_without_a_configuration_are_not_overwritten(tmp_path):
    (tmp_path / "results.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"without config\.json"):
        files.claim_directory(tmp_path, {"seed": 0})


def _run(arguments):
    """The command in a process that was forked from one that has everything imported."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    os._exit(main(arguments))


@pytest.mark.slow
def test_killed_at_any_moment_it_loses_and_repeats_nothing(tmp_path):
    """Ten runs are killed at random moments; each is finished by a second run, and equals a run that was left alone."""
    arguments = [*SUDOKU, "--generate", "150", "--chunk", "2"]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["lockstitch.stitching.cli", "lockstitch.sampling.denoiser", "lockstitch.sampling.loop"]
    )

    def start(out):
        process = context.Process(target=_run, args=([*arguments, "--output", str(out)],))
        process.start()
        return process

    def finish(process):
        process.join(300)
        assert process.exitcode == 0

    finish(start(tmp_path / "whole"))
    expected = without_time(read_rows(tmp_path / "whole"))
    assert len(expected) == 150
    size = (tmp_path / "whole/results.jsonl").stat().st_size

    rng = random.Random(0)
    out = tmp_path / "killed"
    path = out / "results.jsonl"
    # By progress, not by the clock: a fast machine is done before any fixed delay.
    for share in sorted(rng.random() * 0.8 for _ in range(10)):
        process = start(out)
        while not path.exists() or path.stat().st_size < share * size:
            assert process.exitcode is None
            time.sleep(0.005)
        time.sleep(rng.random() * 0.1)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        rows = files.finished_rows(path)
        assert 0 < len(rows) < 150
        assert without_time(rows) == expected[: len(rows)]
    finish(start(out))
    assert without_time(read_rows(out)) == expected
    assert json.loads((out / "summary.json").read_text())["n"] == 150
    assert sorted(os.listdir(out)) == ["config.json", "report.html", "results.jsonl", "summary.json"]
