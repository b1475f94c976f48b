"""The process reward model's recipe: settings, rows, the loss against its formula, and the whole way through its command."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from lockstitch.recipes.prm import RecipeArguments, adapted, parse, prepare
from lockstitch.recipes.prm_arguments import COMPLETION, PLACES
from lockstitch.recipes.prm_data import check_fitted_on, own_rows, problems_in, problems_of
from lockstitch.recipes.step_judging import figures, judge
from lockstitch.recipes.step_labels import Labelling, label_problems
from lockstitch.recipes.step_training import IGNORED, StepCollator, encode_rows, step_loss
from lockstitch.rewards.problem import Problem
from lockstitch.rewards.tasks.named import get_task
from lockstitch.rewards.tasks.task import training_problems
from lockstitch.rl.lora import DiffusionModelConfig
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.stitching.prm import ProcessRewardModel
from lockstitch.stitching.score import load_scorer
from lockstitch.stitching.step_reader import READER, Reader, as_step_classifier
from lockstitch.stitching.steps import Step
from models import random_denoiser, tokenizer

from lockstitch import embedded_scorer, model_path

ROOT = Path(__file__).resolve().parent.parent
TOK = tokenizer()
TASKS = ("arithmetic", "countdown", "sudoku")
SHIPPED = sorted(path.name for path in (ROOT / "src/lockstitch/embedded/scorers").iterdir())
LABELLED = {"task": "sudoku", "label_model": "embedded:sudoku-early"}


@pytest.mark.parametrize("name", TASKS)
def test_a_config_is_accepted_and_its_header_is_true(name):
    path = ROOT / f"recipes/configs/tiny/prm_{name}.yaml"
    recipe, training, model = parse(["--config", f"tiny/prm_{name}.yaml", "--use_cpu", "true"])
    assert f"--config recipes/configs/tiny/prm_{name}.yaml" in path.read_text()
    assert (recipe.task, training.output_dir) == (name, f"runs/tiny/prm_{name}")
    assert Path(model_path(recipe.label_model)).is_dir()
    assert Path(model_path(model.model_name_or_path)).is_dir()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"task": None}, "task=None, dataset_name=None: say where labelled steps come from, once"),
        ({"dataset_name": "x"}, "task='sudoku', dataset_name='x': say where labelled steps come from, once"),
        ({"label_model": None}, "label_model=None"),
        ({"num_completions": 0}, "num_completions=0 must be at least 1"),
        ({"label": "maybe"}, "label='maybe' is not one of soft, hard"),
        ({"temperature": 0.0}, "all num_completions=8 would be the same"),
        ({"temperature": -1.0}, "temperature=-1.0 must be a number, at least 0"),
        ({"temperature": float("inf"), "num_completions": 1}, "temperature=inf must be a number, at least 0"),
        ({"scorers": ["bmc", "bound", "bmc"]}, "scorers=.*: each once, and 'bmc' stands twice"),
        ({"eval_input": "f"}, "eval_input='f' goes with input"),
        ({"scorers": ["bmc+bound"]}, "num_fit_problems=0 and sums in scorers"),
        ({"num_fit_problems": 3, "scorers": ["bmc"]}, "num_fit_problems=3 and sums in scorers"),
        ({"save_dtype": "int8"}, "save_dtype='int8' is not one of"),
        ({"chunk": 0}, "chunk=0 must be at least 1"),
        ({"columns": "a:b"}, "columns='a:b' is of rows of dataset_name"),
        ({"dataset_train_split": "a"}, "dataset_train_split='a' is of rows of dataset_name"),
        ({"eval_traces": "a"}, "eval_traces='a' is of traces"),
        ({"completion_steps": 0}, "completion_steps=0 must be at least 1"),
        ({"canvas_length": 0}, "canvas_length=0 must be at least 1"),
        ({"input": "f", "num_eval_problems": 3}, "num_eval_problems=3 would be ignored: input='f'"),
        ({"num_eval_problems": 0, "scorers": ["bmc"]}, "would be ignored: there are no problems to judge on"),
        ({"num_fit_problems": 3, "scorers": ["bmc+bound", "bmc+confidence"]}, "one sum at most"),
    ],
)
def test_what_does_not_go_together_is_refused(changed, says):
    with pytest.raises(ValueError, match=says):
        RecipeArguments(**{**LABELLED, **changed})


@pytest.mark.parametrize("place", [{"dataset_name": "x"}, {"task": "gsm8k", "traces": "x"}])
@pytest.mark.parametrize("name", PLACES[COMPLETION])
def test_what_is_of_labelling_by_completion_is_ignored_nowhere(name, place):
    (one,) = (one for one in fields(RecipeArguments) if one.name == name)
    other = {None: "x", "soft": "hard", False: True}.get(one.default) or one.default + 1
    with pytest.raises(ValueError, match=f"{name}=.* is of labelling by completion"):
        RecipeArguments(**place, **{name: other})


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"attention": "both"}, "attention='both' is not one of causal, steps, full"),
        ({"family": "none"}, "family='none' is not one of"),
        ({"model_name_or_path": "embedded:sudoku9"}, "a GPT2LMHeadModel cannot be given a head that scores steps"),
        ({"step_separator": ""}, "step_separator=''"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 would be ignored"),
        ({"scorers": "nobody"}, "scorer 'nobody' is not one of"),
        ({"system_prompt": "Think."}, "system_prompt need a tokenizer with a chat template"),
        ({"eval_strategy": "steps", "num_eval_problems": 0}, "eval_strategy='steps' wants rows to judge on"),
    ],
)
def test_nothing_is_labelled_for_a_run_that_cannot_be(option, says, tmp_path, monkeypatch):
    said = {
        **LABELLED,
        "model_name_or_path": "embedded:sudoku",
        "num_problems": 1,
        "num_eval_problems": 1,
        "use_cpu": "true",
        "output_dir": tmp_path / "run",
    }
    with pytest.raises(ValueError, match=says):
        prepare(*parse([f"--{name}={value}" for name, value in {**said, **option}.items()]))
    assert not list(tmp_path.rglob("results.jsonl"))


@pytest.mark.parametrize(
    ("labels", "says"), [([0.5, 0.5], "all 2 labels of their steps are 0.5"), ([], "none of these")]
)
def test_labels_that_no_weights_can_be_fitted_on_are_told_of(labels, says):
    recipe = RecipeArguments(**LABELLED, num_fit_problems=1, scorers=["bmc+bound"])
    check_fitted_on(recipe, {"fit": [{"labels": [0.0]}, {"labels": [1.0]}]})
    with pytest.raises(ValueError, match=f"num_fit_problems=1: {says}"):
        check_fitted_on(recipe, {"fit": [{"labels": labels}]})


def test_problems_of_one_split_are_in_no_other():
    recipe = RecipeArguments(
        **LABELLED, num_problems=60, num_eval_problems=40, num_fit_problems=20, scorers=["bmc+bound"]
    )
    splits = {name: {one.question for one in part} for name, part in problems_of(recipe, get_task("sudoku")).items()}
    assert {name: len(part) for name, part in splits.items()} == {"train": 60, "fit": 20, "test": 40}
    assert len(set.union(*splits.values())) == 120


def test_problems_of_a_file(tmp_path):
    (tmp_path / "own.jsonl").write_text(
        "".join(json.dumps({"question": f"{n}, +7", "answer": str(n + 7)}) + "\n" for n in range(10, 16))
    )
    (tmp_path / "test.jsonl").write_text(
        '{"question": "1, +7", "answer": "8"}\n{"question": "2, +7", "answer": "9"}\n'
    )
    files = {"input": str(tmp_path / "own.jsonl"), "eval_input": str(tmp_path / "test.jsonl")}
    own = {"task": "arithmetic", "label_model": "m", **files, "scorers": ["bmc+bound"], "num_eval_problems": 1}
    parts = problems_of(RecipeArguments(**own, num_fit_problems=2, num_problems=3), get_task("arithmetic"))
    assert [problem.question for problem in parts["train"]] == ["10, +7", "11, +7", "12, +7"]
    assert [problem.question for problem in parts["fit"]] == ["14, +7", "15, +7"]
    assert [problem.question for problem in parts["test"]] == ["1, +7"]
    for questions, says in (
        ("10, +7", "1 questions are among those to train on and those to judge on, '10, \\+7' for one"),
        ("15, +7", "1 questions are among those to fit weights on and those to judge on"),
    ):
        (tmp_path / "test.jsonl").write_text(json.dumps({"question": questions}) + "\n")
        with pytest.raises(ValueError, match=says):
            problems_of(RecipeArguments(**own, num_fit_problems=2), get_task("arithmetic"))
    for fit in (6, 8):
        with pytest.raises(ValueError, match=f"has 6 problems, of which num_fit_problems={fit} leave none"):
            problems_of(RecipeArguments(**own, num_fit_problems=fit), get_task("arithmetic"))
    (tmp_path / "test.jsonl").write_text('{"question": "1, +7", "answer": "8"}\n')
    for more, says in (
        ({"num_problems": 5}, "num_problems=5 asks for .*input='.*' has 6, 4 beside those of num_fit_problems=2"),
        ({"num_eval_problems": 3}, "num_eval_problems=3 asks for more problems than there are: eval_input='.*' has 1"),
    ):
        with pytest.raises(ValueError, match=says):
            problems_of(RecipeArguments(**{**own, "num_fit_problems": 2, **more}), get_task("arithmetic"))


def test_made_up_problems_that_are_too_few_are_no_silent_cut():
    def two(rng, held_out):
        return Problem(f"{rng.randrange(2)}, +7", "7")

    recipe = RecipeArguments(**LABELLED, num_problems=60, num_fit_problems=2, scorers=["bmc+bound"])
    with pytest.raises(
        ValueError, match=r"num_fit_problems=2 asks for more .* 'sudoku' 0 were found that are not among"
    ):
        problems_of(recipe, replace(get_task("sudoku"), generate=two))


@pytest.mark.parametrize(
    ("task", "rows", "says"),
    [
        (
            "gsm8k",
            [{"question": "a", "answer": "1"}, {"question": "b"}],
            "line 2: 'b' cannot be judged: there is no gold",
        ),
        ("sudoku9", [{"question": "55" + "0" * 79}], "line 1: .* cannot be judged: a puzzle without solution"),
    ],
)
def test_problems_that_cannot_be_judged_are_named_before_any_is_labelled(task, rows, says, tmp_path):
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=says):
        problems_in(str(tmp_path / "own.jsonl"), get_task(task))


def test_the_loss_is_the_cross_entropy_of_soft_labels():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 2)
    labels = torch.tensor([[IGNORED, 0.25, IGNORED], [1.0, IGNORED, 0.0]])
    p = logits.softmax(-1)[..., 1]
    wanted = -(0.25 * p[0, 1].log() + 0.75 * (1 - p[0, 1]).log() + p[1, 0].log() + (1 - p[1, 2]).log()) / 3
    assert float(step_loss(logits, labels)) == pytest.approx(float(wanted), abs=1e-6)


def test_of_what_the_checker_can_say_nothing_no_score_is_held_against_it():
    rows = [{"labels": [1.0, 1.0, 0.0], "sound": [1.0, 0.5, 0.0], "correct": False}]
    found = figures([[0.9, 0.8, 0.1]], rows)
    assert {name: (one["n"], one["right"]) for name, one in found.items()} == {
        "labels": (3, 2 / 3),
        "checker": (2, 0.5),
        "prefixes": (2, 0.5),  # sound, unknown, wrong: of the second nothing can be said
        "traces": (1, 0.0),
    }


@pytest.mark.parametrize("long", ["train", "test"])
def test_a_row_that_the_model_has_no_room_for_is_refused_before_the_training(long, tmp_path):
    solver = tmp_path / "solver"
    shutil.copytree(model_path("embedded:solver"), solver)
    config = json.loads((solver / "config.json").read_text())
    (solver / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    short = {"prompt": "12+7=?\n", "completions": ["12+7=19"], "labels": [True]}
    for split in ("train", "test"):
        rows = [{**short, "prompt": f"{split} 1\n"}, {**short, "prompt": f"{split} 2\n"}]
        if split == long:
            rows[1]["completions"] = ["12+7=19" * 20]
        (tmp_path / "own").mkdir(exist_ok=True)
        (tmp_path / f"own/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def prepared(max_length):
        said = {"dataset_name": tmp_path / "own", "dataset_test_split": "test", "model_name_or_path": solver,
                "use_cpu": "true", "max_length": max_length, "output_dir": tmp_path / "run"}  # fmt: skip
        return prepare(*parse([f"--{name}={value}" for name, value in said.items()]))

    with pytest.raises(
        ValueError, match=f"max_length=1024 lets a row of 1.. tokens into the {long} split, .* reads 64"
    ):
        prepared(1024)
    rows = prepared(64)[1]  # what is left out is not judged, either
    assert {split: len(part) for split, part in rows.items()} == {"train": 2, "test": 2, "left out": 1} | {long: 1}


@pytest.mark.parametrize("split", ["test", "train"])
def test_rows_that_are_trained_on_are_not_judged_on(split, tmp_path):
    rows = [{"prompt": f"{n}+7=\n", "completions": [f"{n}+7={n + 7}"], "labels": [1]} for n in (10, 11)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.jsonl").write_text(json.dumps({**rows[1], "completions": ["18"]}) + "\n")
    recipe = RecipeArguments(dataset_name=str(tmp_path), dataset_test_split=split)
    with pytest.raises(
        ValueError, match=f"prompts are in dataset_train_split='train' and in dataset_test_split='{split}'"
    ):
        own_rows(recipe)
    if split == "test":
        (tmp_path / "test.jsonl").write_text(json.dumps({**rows[1], "prompt": "12+7=\n"}) + "\n")
        assert [len(part) for part in own_rows(recipe).values()] == [2, 1]


def test_prompts_that_are_messages_are_known_again(tmp_path):
    row = {"prompt": [{"role": "user", "content": "10+7="}], "completions": ["17"], "labels": [1]}
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(
        ValueError, match="1 prompts are in dataset_train_split='train' and in dataset_test_split='test'"
    ):
        own_rows(RecipeArguments(dataset_name=str(tmp_path), dataset_test_split="test"))


def test_rows_that_are_left_out_are_counted(caplog):
    rows = [
        {"prompt": "1", "completions": ["2"], "labels": [True]},
        {"prompt": "1", "completions": ["2" * 9], "labels": [1]},
    ]
    encoded, kept, long = encode_rows(rows, TOK, Reader("causal"), 6)
    assert (len(encoded), kept, long) == (1, rows[:1], rows[1:])
    assert "1 of 2 rows have more than max_length=6 tokens, and are left out" in caplog.text


def test_labels_stand_where_steps_are_scored():
    rows = [
        {"prompt": "1\n", "completions": ["12+7=19", "19-5=14"], "labels": [True, 0.5]},
        {"prompt": "1\n", "completions": [], "labels": []},
        {"prompt": "1\n", "completions": ["2"], "labels": [False]},
    ]
    reader = Reader("steps")
    encoded, kept, _ = encode_rows(rows, TOK, reader, None)
    assert kept == rows
    batch = StepCollator(reader, torch.float32)(encoded)
    assert batch["labels"].shape == batch["input_ids"].shape == (2, 18)
    assert [batch["labels"][0, i].item() for i in encoded[0]["positions"]] == [1.0, 0.5]
    assert (batch["labels"] == IGNORED).sum() == 2 * 18 - 3
    assert batch["attention_mask"].shape == (2, 1, 18, 18)
    seen = batch["attention_mask"][:, 0] == 0
    # A step's first token sees to the end of its own step and nothing after; padding is seen by nobody.
    assert seen[0, 2].tolist() == [True] * 10 + [False] * 8
    assert seen[0, 0].tolist() == [True] * 2 + [False] * 16
    assert not seen[1, :, 4:].any()
    assert [len(part) for part in encode_rows(rows, TOK, reader, 6)] == [1, 2, 1]
    with pytest.raises(ValueError, match="of 3 rows none has steps and at most max_length=2 tokens"):
        encode_rows(rows, TOK, reader, 2)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "1", "completions": ["a"]}, "row 0 has no 'labels'"),
        ({"prompt": "1", "completions": ["a"], "labels": []}, "row 0 has 0 labels for 1 steps"),
        ({"prompt": "1", "completions": ["a"], "labels": [2]}, "row 0 has the label 2"),
        ({"prompt": "1", "completions": ["a"], "labels": ["yes"]}, "row 0 has the label 'yes'"),
        ({"prompt": "1", "completions": "ab", "labels": [0, 1]}, "row 0 has completions='ab': a list"),
        ({"prompt": "1", "completions": ["a"], "labels": None}, "row 0 has labels=None: a list"),
        ({"prompt": "1", "completions": [None], "labels": [1]}, "row 0 has the step None: a text"),
        ({"prompt": 1, "completions": ["a"], "labels": [1]}, "row 0 has prompt=1: a text or messages"),
    ],
)
def test_rows_of_another_form_are_refused(row, says):
    with pytest.raises(ValueError, match=says):
        encode_rows([row], TOK, Reader("causal"), None)


# --- the scorers that come with the package --------------------------------------------------------------------------


def test_another_name_is_told_what_there_is():
    with pytest.raises(
        ValueError,
        match=r"no embedded scorer 'chess'; there are countdown, sudoku; for arithmetic there is likelihood:",
    ):
        embedded_scorer("chess")


@pytest.mark.parametrize("name", SHIPPED)
def test_the_embedded_scorer_tells_right_steps_from_wrong_ones(name):
    folder = embedded_scorer(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2.2e6
    assert (folder / "model.safetensors").stat().st_size < 2e6
    task = get_task(name)
    question, right, wrong = {
        "arithmetic": ("12, +7, -5", ["12+7=19", "19-5=14"], ["12+7=17", "17-5=12"]),
        "countdown": ("30,100,93=23", ["93+30=123", "123-100=23"], ["100-30=70", "93-70=13"]),
        "sudoku": ("3102200002100320", ["3142", "2431", "4213", "1324"], ["3122", "2431", "4213", "1321"]),
    }[name]
    scorer = load_scorer(f"prm:embedded:{name}", task)
    steps_KN = [[Step(k, i, text, (0, 1)) for i, text in enumerate(texts)] for k, texts in enumerate((right, wrong))]
    good, bad = scorer(question, steps_KN, None).score_KN
    assert min(good) > 0.5 > max(bad)


# --- what is said of it ----------------------------------------------------------------------------------------------


def page_data(output):
    page = (output / "calibration.html").read_text()
    return json.loads(page.partition('type="application/json">')[2].partition("</script>")[0])


@pytest.mark.parametrize(
    ("place", "title", "labels"),
    [
        ({"dataset_name": "/home/somebody/own"}, "Scorers on own", "the labels of the data set"),
        (
            {"task": "arithmetic", "traces": "x"},
            "Scorers on arithmetic",
            "the labels: whether the answer of the step's trace is right",
        ),
    ],
)
def test_the_page_says_what_labels_are_and_where_nothing_lies(place, title, labels, tmp_path):
    shutil.copytree(embedded_scorer("sudoku"), tmp_path, dirs_exist_ok=True)
    rows = {
        "train": [],
        "test": [{"prompt": "3102\n2000\n0210\n0320\n", "completions": ["3142"], "labels": [1.0]}],
    }
    judge(RecipeArguments(**place), tmp_path, rows, is_verifier=False)
    drawn = page_data(tmp_path)
    assert (drawn["title"], drawn["labels"]) == (title, labels)
    assert drawn["summary"]["scorers"]["prm"]["labels"]["n"] == 1


def test_scorers_on_the_page_are_named_without_folders_and_none_takes_the_place_of_another(tmp_path):
    shutil.copytree(embedded_scorer("sudoku"), tmp_path / "run")
    own = [str(shutil.copytree(embedded_scorer("sudoku"), tmp_path / folder / "judge")) for folder in "ab"]
    task = get_task("sudoku")
    denoiser = Denoiser.from_pretrained("embedded:sudoku-early", device="cpu")
    problems = list(training_problems(task, 1, 0))
    row = label_problems(denoiser, task, problems, SamplerConfig(20, steps=5), Labelling(1, 1), [0])
    row[0]["labels"][0] = 1.0  # of a label of each kind weights can be fitted
    scorers = [f"prm:{own[0]}", f"prm:{own[1]}", f"confidence+prm:{own[0]}"]
    recipe = RecipeArguments(**LABELLED, scorers=scorers, num_fit_problems=1)
    judge(recipe, tmp_path / "run", {"train": row, "fit": row, "test": row}, is_verifier=False)
    kept = json.loads((tmp_path / "run/summary.json").read_text())["scorers"]
    assert list(kept) == ["prm", *scorers]
    assert list(page_data(tmp_path / "run")["summary"]["scorers"]) == [
        "prm", "prm:judge", "prm:judge (2)", "confidence+prm:judge",
    ]  # fmt: skip
    assert str(tmp_path) not in (tmp_path / "run/calibration.html").read_text()


@pytest.mark.slow
def test_a_scorer_without_room_for_the_longest_trace_is_found_before_the_training(tmp_path):
    config = json.loads((embedded_scorer("sudoku") / "config.json").read_text())
    small = shutil.copytree(embedded_scorer("sudoku"), tmp_path / "small")
    (small / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 30}))
    options = ["--task", "sudoku", "--label_model", "embedded:sudoku-early", "--model_name_or_path", "embedded:sudoku-early",
               "--num_problems", "1", "--num_eval_problems", "1", "--num_trajectories", "1", "--num_completions", "1",
               "--scorers", "confidence", f"prm:{small}", "--use_cpu", "true", "--report_to", "none", "--bf16", "false",
               "--output_dir", str(tmp_path / "run")]  # fmt: skip
    with pytest.raises(
        ValueError, match=r"scorer 'prm:.*small', at the .*: a question with its steps has \d+ tokens, .* 30 at most"
    ):
        prepare(*parse(options))


# --- the whole way ---------------------------------------------------------------------------------------------------


def run(*options):
    command = [sys.executable, "-m", "lockstitch.recipes.prm", "--use_cpu", "true", "--report_to", "none", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_from_labels_to_a_scorer_and_again(tmp_path):
    command = ["--config", "tiny/prm_sudoku.yaml", "--num_problems", "16", "--num_eval_problems", "8",
               "--num_fit_problems", "8", "--max_steps", "4", "--save_steps", "2", "--output_dir",
               str(tmp_path)]  # fmt: skip
    done = run(*command)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary["scorers"]) == {"prm", "confidence", "bmc", "bound", "confidence+bmc"}
    assert set(summary["scorers"]["prm"]) == {"labels", "checker", "prefixes", "traces", "cost"}
    assert summary["scorers"]["bmc"]["cost"]["nfe"] == pytest.approx(16, abs=1)
    assert summary["scorers"]["confidence"]["cost"]["nfe"] == 0
    assert set(json.loads((tmp_path / "scorer_weights.json").read_text())["parts"]) == {"confidence", "bmc"}
    page = (tmp_path / "calibration.html").read_text()
    assert not re.search(r"https?:|src=|url\(|@import", page)
    drawn = page_data(tmp_path)
    assert drawn["labels"] == "the labels: completions that end right"
    for one in summary["scorers"].values():
        one.pop("weights", None)  # which are not drawn
    assert drawn["summary"] == summary
    assert json.loads((tmp_path / READER).read_text())["attention"] == "steps"
    scorer = ProcessRewardModel(str(tmp_path), task=get_task("sudoku"), device="cpu")
    assert scorer.model.dtype == torch.float32
    assert "16" in json.loads((tmp_path / "config.json").read_text())["dtype"]  # saved as float16
    before = (tmp_path / "model.safetensors").read_bytes()
    again = run(*command)
    assert again.returncode == 0, again.stderr
    assert "finished after 4 steps: nothing to do" in again.stdout
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_several_processes_train_on_labels_that_one_made(tmp_path):
    """Those are read by all of them; where some are missing, all say so."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m",
               "lockstitch.recipes.prm"]  # fmt: skip
    options = [f"--{name}={value}" for name, value in LABELLED.items()]
    options += ["--num_problems=4", "--num_eval_problems=4", "--chunk=2", "--output_dir", str(tmp_path / "run")]
    options += ["--model_name_or_path=embedded:sudoku", "--max_steps=2", "--use_cpu=true", "--report_to=none"]
    one = {"capture_output": True, "text": True, "timeout": 600, "check": False, "cwd": tmp_path,
           "env": {**os.environ, "OMP_NUM_THREADS": "1"}}  # fmt: skip
    early = subprocess.run([*command, *options], **one)
    assert "labels are made by one process: launch with --labels_only true" in early.stderr
    assert run(*options, "--labels_only", "true").returncode == 0
    done = subprocess.run([*command, *options], **one)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "calibration.html").is_file()


@pytest.mark.slow
def test_an_adapter_of_the_classifier_is_checked_and_its_head_is_trained_whole():
    def trained(**flags):
        model = as_step_classifier(random_denoiser().model, "causal", 0)
        model = adapted(model, DiffusionModelConfig(use_peft=True, lora_r=2, **flags), "somewhere")
        return {name for name, weight in model.named_parameters() if weight.requires_grad}

    assert sum("score.modules_to_save.default.weight" in name for name in trained()) == 1
    assert {name.split(".")[-4] for name in trained(lora_target_modules=["v_proj"]) if "lora" in name} == {"v_proj"}
    assert sum("norm.modules_to_save" in name for name in trained(lora_modules_to_save=["model.norm"])) == 1
    with pytest.raises(ValueError, match="attn_out matches nothing inside the blocks of this llama model"):
        trained(lora_target_modules=["q_proj", "attn_out"])
    with pytest.raises(ValueError, match="no module's path ends in 'nosuch'"):
        trained(lora_modules_to_save=["nosuch"])


@pytest.mark.slow
def test_own_rows_an_adapter_and_a_causal_model(tmp_path):
    rows = tmp_path / "steps.jsonl"
    made = [
        {"prompt": f"{n}+7=\n", "steps": [f"{n}+7={n + 7 + n % 2}"], "labels": [n % 2 == 0]} for n in range(10, 40)
    ]
    rows.write_text("".join(json.dumps(row) + "\n" for row in made))
    done = run(
        "--dataset_name",
        str(rows),
        "--columns",
        "completions:steps",
        "--model_name_or_path",
        "embedded:solver",
        "--use_peft",
        "true",
        "--max_steps",
        "3",
        "--output_dir",
        str(tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert json.loads((tmp_path / "out" / READER).read_text())["attention"] == "causal"
    scorer = ProcessRewardModel(str(tmp_path / "out"), device="cpu")
    (scores,) = scorer("12+7=\n", [[Step(0, 0, "12+7=19", (0, 7))]]).score_KN
    assert 0 < scores[0] < 1
