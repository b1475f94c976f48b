"""9x9 Sudoku: dug puzzles against brute force, one checker for both sizes, clues that are pinned on the canvas."""

import itertools
import json
import pickle
import random

import pytest
import torch
from lockstitch.recipes.grids import check_shape
from lockstitch.recipes.tiny import new_model, task_tokens
from lockstitch.rewards.puzzle_rewards import sudoku_cells_reward, sudoku_reward
from lockstitch.rewards.puzzles import digging, sudoku
from lockstitch.rewards.puzzles.checkers import SudokuChecker
from lockstitch.rewards.steps import check_steps
from lockstitch.rewards.tasks.named import get_task
from lockstitch.rewards.tasks.rows import load_rows
from lockstitch.rl.canvas_data import CanvasCollator
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import sample
from lockstitch.sampling.prompts import Reader
from lockstitch.stitching.likelihood import StepLikelihood
from lockstitch.stitching.pool import Pool
from lockstitch.stitching.rounds import stitch_rounds
from lockstitch.stitching.score import load_scorer
from lockstitch.stitching.segment import steps_of, token_spans
from transformers import AutoTokenizer

from lockstitch import embedded_model
from lockstitch.files import read_rows
from lockstitch.prompts import ClozePrompt

TASK = get_task("sudoku9")
DUG = [digging.generate(random.Random(seed), held_out=True) for seed in range(3)]
PROBLEM = DUG[0]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(str(embedded_model("sudoku")))


@pytest.fixture(scope="module")
def denoiser(tokenizer):
    shape = {"n_embd": 96, "n_layer": 1, "n_head": 4, "n_positions": 96}
    model = new_model(tokenizer, bidirectional=True, seed=0, model_type="gpt2", grid=9, **shape)
    return Denoiser(model.eval(), tokenizer)  # without dropout


def fits(cells, side):
    return all(
        len({cells[i] for i in unit} - {"0"}) == sum(cells[i] != "0" for i in unit) for unit in sudoku.units(side)
    )


# --- puzzles ---------------------------------------------------------------------------------------------------------


def test_dug_puzzles_have_51_holes_and_one_solution():
    for problem in (*DUG, digging.generate(random.Random(1))):
        assert problem.question.count("0") == digging.HOLES == 51
        assert digging.solutions(problem.question) == [problem.answer]
        assert sudoku.is_solution(problem.question, problem.answer)
        assert problem.solution == sudoku.rows(problem.answer)


def test_solutions_are_those_of_brute_force():
    """Of a grid with so few empty cells that all fillings can be tried."""
    empty = [0, 1, 9, 10, 40]
    cells = list(PROBLEM.answer)
    for i in empty:
        cells[i] = "0"
    found = []
    for digits in itertools.product("123456789", repeat=len(empty) - 1):
        for i, digit in zip(empty, digits, strict=False):
            cells[i] = digit
        if not fits(cells, 9):
            continue
        for digit in "123456789":
            cells[40] = digit
            if fits(cells, 9):
                found.append("".join(cells))
        cells[40] = "0"
    puzzle = "".join("0" if i in empty else cell for i, cell in enumerate(PROBLEM.answer))
    assert sorted(digging.solutions(puzzle, 100)) == sorted(found)
    assert PROBLEM.answer in found
    assert digging.solutions("55" + "0" * 79) == []
    with pytest.raises(ValueError, match="is not 81 digits"):
        digging.solutions("0" * 16)


def test_a_symmetry_keeps_a_puzzle_a_puzzle():
    for seed in range(5):
        puzzle, grid = digging.shuffled(random.Random(seed), PROBLEM.question, PROBLEM.answer)
        assert puzzle != PROBLEM.question
        assert digging.solutions(puzzle) == [grid]


# --- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [4, 9])
def test_the_checker_is_the_rules(side):
    """A step is sound exactly where it keeps its clues and nothing that stands (accepted rows, clues below) clashes."""
    rng = random.Random(side)
    verdicts = set()
    for _ in range(30):
        problem = DUG[rng.randrange(3)] if side == 9 else sudoku.generate(rng)
        rows = problem.solution.split("\n")
        for row in rng.sample(range(side), 2):
            a, b = rng.sample(range(side), 2)
            cells = list(rows[row])
            cells[a], cells[b] = cells[b], cells[a]
            rows[row] = "".join(cells)
        found = check_steps(SudokuChecker(), problem.question, rows)
        stands = list(problem.question)
        for row, verdict in enumerate(found):
            first = row * side
            trial = stands[:]
            trial[first : first + side] = rows[row]
            keeps = all(clue in ("0", cell) for clue, cell in zip(problem.question[first:], rows[row], strict=False))
            sound = keeps and fits(trial, side)
            assert (verdict == 1.0) == sound
            stands[first : first + side] = rows[row] if sound else "0" * side
            verdicts.add(sound)
    assert verdicts == {True, False}


def test_rewards_read_and_judge_grids_of_both_sizes():
    grid, question = PROBLEM.answer, [PROBLEM.question]
    lines = sudoku.rows(grid)
    for text in (lines, f"<answer>{grid}</answer>", f"so it is\n{lines}", f"#### {grid}", " ".join(grid)):
        assert sudoku_reward([""], [text], question=question) == [1.0]
        assert sudoku_cells_reward([""], [text], question=question) == [1.0]
    hole = PROBLEM.question.index("0")
    wrong = grid[:hole] + str(int(grid[hole]) % 9 + 1) + grid[hole + 1 :]
    assert sudoku_reward([""], [sudoku.rows(wrong)], question=question) == [0.0]
    assert sudoku_cells_reward([""], [sudoku.rows(wrong)], question=question) == [50 / 51]
    assert sudoku_reward([""], [grid], question=["55" + "0" * 79]) == [None]  # no solution
    assert sudoku_cells_reward([""], [grid], question=["0" * 81]) == [None]  # too many
    assert sudoku_reward([""], [grid], question=["0" * 81]) == [1.0]
    assert sudoku_reward([""], [grid[:16]], question=question) == [0.0]


def test_the_published_file_is_read(tmp_path):
    path = tmp_path / "hard.csv"
    numbers = ",10,".join(",".join(row) for row in sudoku.rows(PROBLEM.question).split("\n"))
    path.write_text(numbers + "\n" + numbers + "\n", encoding="utf-8")
    assert len(numbers.split(",")) == 89
    rows = load_rows(TASK, path=path, form="plain", conversational=False)
    assert [row["question"] for row in rows] == [PROBLEM.question] * 2
    path.write_text(numbers + "\nx,1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 2.*not a line of whole numbers"):
        read_rows(path, dict)


def test_sizes_are_not_mixed_up(tmp_path):
    path = tmp_path / "four.jsonl"
    path.write_text(json.dumps({"question": "0" * 16}) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="is not 81 digits from 0"):
        load_rows(TASK, path=path, form="plain")


def test_steps_are_rows_of_nine():
    assert [step.text for step in steps_of(PROBLEM.solution, TASK.unit, 0)] == PROBLEM.solution.split("\n")


# --- clues on the canvas ---------------------------------------------------------------------------------------------


def test_a_prompt_that_knows_a_part_of_its_completion_survives_pickling():
    prompt = TASK.prompt(PROBLEM.question)
    assert prompt == "\n"
    again = pickle.loads(pickle.dumps(prompt))
    assert isinstance(again, ClozePrompt)
    assert again.cloze == prompt.cloze == sudoku.cloze(PROBLEM.question)


def test_whatever_is_sampled_keeps_the_clues(denoiser):
    """Also on canvases of one's own, and by the command's own requests."""
    prompt = TASK.prompt(PROBLEM.question)
    config = SamplerConfig(89, steps=3, temperature=1.0)
    canvas = [None] * 80 + denoiser.encode(["987654321"])[0]
    for canvases in (None, [canvas]):
        (drawn,) = sample(denoiser, [prompt], config, canvases=canvases, bans=None)
        lines = sudoku.rows(PROBLEM.question)
        (wanted,) = denoiser.encode([lines])
        given = [i for i, cell in enumerate(lines) if cell != "0"]
        assert [drawn.canvas_ids[i] for i in given] == [wanted[i] for i in given]
    request = Reader(denoiser.tokenizer, {"canvas_length": 89}).asked({"prompt": prompt})
    given = [None if token is None else denoiser.decode([[token]])[0] for token in request.canvas]
    assert given == [None if cell == "0" else cell for cell in lines]
    with pytest.raises(ValueError, match="known to have 89 positions"):
        sample(denoiser, [prompt], SamplerConfig(88))
    with pytest.raises(ValueError, match="known to have 89 positions"):
        Reader(denoiser.tokenizer, {"canvas_length": 90}).asked({"prompt": prompt})


@pytest.mark.parametrize("spec", ["bmc", "bound"])
def test_whoever_asks_the_model_about_a_trace_shows_it_the_clues(spec, denoiser):
    lines = sudoku.rows(PROBLEM.question)
    (wanted,) = denoiser.encode([lines])
    given = [i for i, cell in enumerate(lines) if cell != "0"]
    config = SamplerConfig(89, steps=4, temperature=1.0)
    trajectories = sample(denoiser, [TASK.prompt(PROBLEM.question)], config, n=2)
    steps_KN = [
        steps_of(t.text, TASK.unit, k, token_spans(denoiser.tokenizer, t.completion_ids))
        for k, t in enumerate(trajectories)
    ]
    seen = []
    hook = denoiser.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].clone()), with_kwargs=True
    )
    scores = load_scorer(spec, TASK, denoiser=denoiser)(PROBLEM.question, steps_KN, trajectories)
    hook.remove()
    assert all(0 <= score <= 1 for row in scores.score_KN for score in row)
    for ids_BL in seen:
        lengths = [t.length for t in trajectories for _ in range(8)] if spec == "bound" else [89] * len(ids_BL)
        for row, length in zip(ids_BL.tolist(), lengths, strict=True):
            canvas = row[-length:]
            assert all(canvas[i] == wanted[i] for i in given if i < len(canvas))
    assert any(denoiser.mask_id in row for ids_BL in seen for row in ids_BL.tolist())


def test_who_sees_no_canvas_is_shown_the_puzzle(denoiser):
    assert TASK.scorer_prompt(PROBLEM.question) == sudoku.prompt(PROBLEM.question)
    assert get_task("sudoku").scorer_prompt("3102200002100320") == get_task("sudoku").prompt("3102200002100320")
    with pytest.raises(ValueError, match="task 'sudoku9' has its question there: a causal model, bmc or bound"):
        StepLikelihood(denoiser, TASK)


def test_what_is_given_is_no_work_of_a_canvas(denoiser):
    """Canvases beside the first are drawn where the budget pays for what is open on them: three for 51 cells each."""
    config = SamplerConfig(89, steps=89, temperature=1.0)
    pool = Pool(PROBLEM.question)
    scorer = load_scorer("calculator", TASK)
    pool.draw(denoiser, TASK, scorer, sample(denoiser, [TASK.prompt(PROBLEM.question)], config))
    assert pool.ledger.nfe == 51
    stitch_rounds(denoiser, TASK, [pool], scorer, config, budgets=[51 + 3 * 51], width=4, delta=2.0, seeds=[0])
    assert (len(pool.trajectories), pool.ledger.sequential_steps) == (4, 2 * 51)


def test_training_rows_ask_for_nothing_that_is_given(tokenizer):
    rows = list(task_tokens(TASK, 3, 0, tokenizer))
    batch = CanvasCollator(tokenizer.pad_token_id, tokenizer.eos_token_id, None)(rows)
    assert batch["input_ids"].shape == (3, 90)
    assert bool(batch["attention_mask"].all())
    assert (batch["labels"] != -100).sum(1).tolist() == [51] * 3
    asked = batch["labels"] != -100
    assert torch.equal(batch["labels"][asked], batch["input_ids"][asked])
    with pytest.raises(ValueError, match="canvas_length=89: canvases with pinned tokens"):
        CanvasCollator(tokenizer.pad_token_id, tokenizer.eos_token_id, 89)(rows)


def test_the_geometry_counts_what_is_seen_in_row_column_and_box(tokenizer, denoiser):
    """Untrained, a model finds a digit less likely in a cell whose peers show it, the mean of its random rest aside."""
    rows = list(task_tokens(TASK, 40, 0, tokenizer))
    ids = torch.tensor([row["input_ids"] for row in rows])
    shown = ids.masked_fill(torch.tensor([row["labels"] for row in rows]) != -100, denoiser.mask_id)
    (digits,) = tokenizer(["123456789"], add_special_tokens=False)["input_ids"]
    places = [1 + 10 * (cell // 9) + cell % 9 for cell in range(81)]
    with torch.inference_mode():
        logits = denoiser.forward_logits(denoiser.model, shown, torch.ones_like(shown))[:, places][..., digits]
    is_digit = (shown[:, places, None] == torch.tensor(digits)).float()
    sees = torch.zeros(81, 81)
    for cell, peers in enumerate(sudoku.peers(9)):
        sees[cell, list(peers)] = 1
    seen = (sees @ is_digit) > 0
    is_open = shown[:, places] == denoiser.mask_id
    told, untold = logits[is_open & seen.any(-1)][seen[is_open & seen.any(-1)]], logits[is_open][~seen[is_open]]
    assert told.mean() < untold.mean() - 0.3, (told.mean(), untold.mean())


def test_shapes_without_room_are_refused(tokenizer):
    def make(**shape):
        return new_model(tokenizer, bidirectional=True, seed=0, **shape)

    with pytest.raises(ValueError, match="grid=9 takes three heads of 9 or more and a hidden size of at least 63"):
        make(model_type="gpt2", grid=9, n_embd=48, n_head=4)
    with pytest.raises(ValueError, match="grid=9 wants a vector for each position"):
        make(grid=9)
    with pytest.raises(ValueError, match="grid=5 is not a side"):
        check_shape(type("Config", (), {"n_embd": 96, "n_head": 4}), 5)
    with pytest.raises(ValueError, match="model_type='bert' is not one of llama, gpt2"):
        make(model_type="bert")
    with pytest.raises(ValueError, match="hidden_sise is not of GPT2Config"):
        make(model_type="gpt2", hidden_sise=3)


def test_rollouts_do_not_take_what_they_would_not_pin():
    from lockstitch.recipes.rl_data import load_problems

    with pytest.raises(ValueError, match="which rollouts do not pin: tags, boxed"):
        load_problems(TASK, "plain", num_problems=4)
