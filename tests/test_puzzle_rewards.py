"""Puzzle rewards: gold by enumeration, everything else by brute force, and whatever a completion may say."""

import csv
import itertools
import json
import random
import re

import pytest
from lockstitch.rewards.puzzle_rewards import (
    arithmetic_reward,
    countdown_reward,
    sudoku_cells_reward,
    sudoku_reward,
)
from lockstitch.rewards.puzzles import countdown, sudoku
from lockstitch.rewards.puzzles.reading import read_expression, read_grid
from lockstitch.rewards.tasks.named import get_task

QUESTION = "30,100,93=23"
PUZZLE, GRID = "3102200002100320", "3142243142131324"


def score(reward, completion, **row):
    (value,) = reward(["p"], [completion], **{name: [value] for name, value in row.items()})
    return value


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def value_in_floats(expression):
    """The value by Python itself, for expressions that the test made."""
    try:
        return eval(expression, {"__builtins__": {}}, {})
    except ZeroDivisionError:
        return None


# --- countdown -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        (r"<answer>\boxed{(93+30)-100}</answer>", 1.0),
        ("<answer>93 + 30 - 100</answer>", 1.0),
        ("#### 30-(100-93)", 1.0),
        (" 93+ 30=123\n123-100= 23", 1.0),
        ("<answer>\n 93+ 30=123\n123-100= 23\n</answer>", 1.0),
        (r"\boxed{93 + 30 - 100 = 23}", 1.0),
        (r"\boxed{\left(93+30\right) − 100}<|eot_id|>", 1.0),
        (r"<answer>$30 - (100 - 93)$</answer>", 1.0),
        # An answer, and wrong: other numbers, not all of them, one twice, another value, a false equation,
        # no expression.
        (r"\boxed{93+30-100+0}", 0.1),
        (r"\boxed{93+30}", 0.1),
        (r"\boxed{93+30-100+30-30}", 0.1),
        (r"\boxed{93-30+100}", 0.1),
        (r"\boxed{93+30-100=24}", 0.1),
        (r"\boxed{23}", 0.1),
        (r"\boxed{__import__('os').abort()}", 0.1),
        (r"\boxed{93+30-100.0}", 0.1),
        (r"\boxed{93+30-1e2}", 0.1),
        (r"\boxed{93+30-100/(1-1)}", 0.1),
        (r"\boxed{23+0*30*93*100}", 0.1),
        ("<answer>hello</answer>", 0.1),
        ("<answer>" + "(" * 400 + "</answer>", 0.1),
        (" 93+ 30=123\n123-101= 22", 0.1),
        (" 93+ 30=123\n123-100= 24", 0.1),
        (" 93+ 30=122\n122-100= 23", 0.1),
        ("<answer>93+30=122\n122-100=23</answer>", 0.1),
        ("93/0=5\n5+1=6", 0.1),
        # No answer.
        ("93+30-100 it is", 0.0),
        ("", 0.0),
        (r"\boxed{93+30-100", 0.0),
        ("<answer></answer>", 0.0),
        ("9" * 5000 + "+1=2", 0.0),
    ],
)
def test_countdown_values(completion, value):
    assert score(countdown_reward, completion, question=QUESTION) == value


FORMS = [
    "3*7+5", "26 = 3*7+5", "3*7+5 = 26.0", "3*7+5 == 26", "3*7+5 → 26", r"3*7+5 \rightarrow 26", "3*7+5 (= 26)",
    "[3*7]+5",
    "3×7+5", "3 x 7 + 5", "3⋅7+5", "3∗7+5", "3 · 7 + 5", r"3 \times 7 + 5", r"3 \cdot 7 + 5", r"\left(3*7\right)+5",
    "`3*7+5`", "```\n3*7+5\n```", "**3*7+5**", "$3*7+5$", r"\(3*7+5\)", '"3*7+5"', "3*7+5.", "Expression: 3*7+5",
    "The expression is 3*7+5.",
    "3*7--5", "-(-3*7)+5", "5 - (-3)*7", "5 + (3)(7)", "3(7)+5", "x = 7*3+5", "result = 3*7+5 = 26", "+3*7+5",
    "{3*7}+5", "3*７+5",
    "3*7 = 21, 21+5 = 26", "7*3 = 21; then 21 + 5 = 26", "Step 1: 7*3=21\nStep 2: 21+5=26",
    "1. 7*3 = 21\n2. 21 + 5 = 26", "3*7 = 21 and 21+5 = 26", "3*7 = 21, and then 21+5 = 26",
]  # fmt: skip
OTHER_FORMS = [
    "26", "26 = 26", "21+5", "3*7+5 = 27", "27 = 3*7+5", "3*7+5 = 26 = 26", "03*7+5", "3.0*7+5", "3**7+5",
    "3*7+5 or 7*3+5",
    "3*7+5; 7+3", "abs(3*7+5)", "3 7 5", "5(3)+7", "3*7+5+", "(3*7+5", "3*7+5*1", "3*7+5-0", "3*7+5 - 26 + 26",
    "hello",
    "3*7+5 = 26 and 7*3+5 = 26", "3*7+5 and 7*3+5", "3*7 = 21 or 21+5 = 26", "3*7 = 21 and 5", "21+5 = 26 and 3*7 = 21",
    "not 3*7+5", "It is not 3*7+5", "3*7 = 22, 22+5 = 27", "3*7 = 21, 21+5 = 26, 26*1 = 26", "3*7+5, 7*3+5", "3 7*5",
]  # fmt: skip


@pytest.mark.parametrize(
    "mark", [r"\boxed{{{}}}", "<answer>{}</answer>", "<think>\\boxed{{3+5+7}}</think><answer>{}</answer>"]
)
def test_countdown_in_every_form(mark):
    """An expression is worth the same however it is written; and nothing else is an expression."""
    for form in FORMS:
        assert score(countdown_reward, mark.format(form), question="3,5,7=26") == 1.0, form
    for form in OTHER_FORMS:
        assert score(countdown_reward, mark.format(form), question="3,5,7=26") == 0.1, form


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("3*7+5 = 26", 1.0),
        ("So:\n26 = 3*7+5", 1.0),
        ("The answer is 3*7+5", 1.0),
        ("Answer: 3*7+5", 1.0),
        ("Solution: 3 * 7 + 5 = 26", 1.0),
        ("<think>3+5</think>3*7+5 = 26", 1.0),
        ("I found 3*7+5 = 26 at last", 0.0),
        ("3*7+5 = 26\nThat is it.", 1.0),
        ("3*7+5=26\n\nThis uses each number (3, 5 and 7) once.", 1.0),
        ("3*7+5 = 26\nThat is not it.", 0.0),
        ("3*7+5 = 26\nWait, each number once?", 0.0),
        ("3*7+5 = 26\nor (3+7)*5 = 50 as well", 0.0),
        ("3*7+5 = 26\n3+7+5 = 15\nThat is it.", 0.1),
        ("3+7+5 = 15\n3*7+5 = 26\nThat is it.", 1.0),
        ("So 3*7+5 = 26", 1.0),
        ("The expression is 3*7+5 = 26.", 1.0),
        ("Thus, the final equation is: $3 \\times 7 + 5 = 26$.", 1.0),
        ("So 3*7+5 = 26?", 0.0),
        ("So 3*7+5 = 26 is wrong.", 0.0),
        ("So it is not 3*7+5 = 26", 0.0),
        ("If the expression is 3*7+5 = 26", 0.0),
        ("So 3*7+5 = 26 or 3+5*7 = 38", 0.0),
        ("The expression is 3*7+5", 0.0),
        ("- 3*7 = 21\n- 21+5 = 26", 1.0),
        ("3*7 = 21 and 21+5 = 26", 1.0),
        ("3*7 = 21, then 21+5 = 26.", 1.0),
        ("3*7 = 21, then 21+5 = 26 is wrong", 0.0),
        ("- 3*7 = 22\n- 22+5 = 27", 0.1),
        ("- 3+7 = 10\n- 10+5 = 15", 0.1),
        ("Not 3+5 = 8:\n3*7+5 = 26\n" + "It uses them all. " * 80, 0.0),
        ("It is easy. " * 100 + "\n3*7+5 = 26", 1.0),
        ("3*7+5", 0.0),
        (r"\boxed{3*7}+5", 1.0),
        (r"$2\cdot\boxed{3*7+5}$", 0.1),
        ("<answer>3*7+5", 0.0),
        ("The numbers are 3, 5, 7", 0.0),
    ],
)
def test_countdown_without_a_box(completion, value):
    assert score(countdown_reward, completion, question="3,5,7=26") == value


def test_countdown_fractions_and_numbers_of_every_kind():
    forms = (
        r"\frac{100}{4}*1",
        r"\dfrac{(100*1)}{4}",
        r"\frac{100}{\frac{4}{1}}",
        "100÷4×1",
    )
    r"1 * \tfrac{100}{4} = 25"
    for form in forms:
        assert score(countdown_reward, f"<answer>{form}</answer>", nums=["100", "4", "1"], target="25") == 1.0, form
    assert score(countdown_reward, r"\boxed{\frac{100}{4-0}*1}", nums=[100.0, 4.0, 1.0], target=25.0) == 0.1
    assert score(countdown_reward, r"\boxed{3-5-7 = -9}", nums=[3, 5, 7], target=-9) == 1.0
    for nums, target in (([], 5), ([3, 5], "x"), (3, 5), ([[1]], 5)):
        assert score(countdown_reward, r"\boxed{3}", nums=nums, target=target) is None


def test_countdown_is_right_exactly_where_brute_force_is():
    rng = random.Random(0)
    seen = set()
    for _ in range(2000):
        numbers = [rng.randint(1, 12) for _ in range(3)]
        used = (
            rng.sample(numbers, 3) if rng.random() < 0.7 else [rng.choice(numbers) for _ in range(rng.randint(2, 4))]
        )
        expression = str(used[0])
        for number in used[1:]:
            expression = f"({expression})" if rng.random() < 0.5 else expression
            left, right = rng.choice([(expression, str(number)), (str(number), f"({expression})")])
            expression = f"{left} {rng.choice('+-*/')} {right}"
        target = rng.randint(1, 30)
        value = value_in_floats(expression)
        if value is not None and rng.random() < 0.5:
            target = max(1, round(value))
        right = value is not None and abs(value - target) < 1e-9 and sorted(used) == sorted(numbers)
        question = f"{','.join(map(str, numbers))}={target}"
        assert score(countdown_reward, f"<answer>{expression}</answer>", question=question) == (1.0 if right else 0.1)
        seen.add(right)
    assert seen == {True, False}


@pytest.mark.parametrize(
    "row",
    [
        {"question": QUESTION},
        {"question": "Numbers: [30, 100, 93]\nTarget: 23"},
        {"numbers": [30, 100, 93], "target": 23},
        {"nums": [30, 100, 93], "target": 23},
        {"input": "30,100,93", "output": "23"},
        {"question": None, "nums": [30, 100, 93], "target": 23},
    ],
)
def test_countdown_questions_in_every_notation(row):
    assert score(countdown_reward, "#### 93+30-100", **row) == 1.0
    assert score(countdown_reward, "#### 93+30-101", **row) == 0.1


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_countdown_gold_by_enumeration_and_perturbed(every, data_dir):
    rows = rows_of(data_dir / "countdown/countdown_cd3_test.jsonl")
    assert len(rows) == 128
    for row in rows[::every]:
        numbers, target = countdown.parse_question(get_task("countdown").read_row(row).question)
        expressions = [
            form.format(a=a, b=b, c=c, x=x, y=y)
            for a, b, c in itertools.permutations(numbers)
            for x, y in itertools.product("+-*/", repeat=2)
            for form in ("({a}{x}{b}){y}{c}", "{a}{x}({b}{y}{c})")
        ]
        values = [value_in_floats(expression) for expression in expressions]
        right = [value is not None and abs(value - target) < 1e-9 for value in values]
        columns = {name: [value] * len(expressions) for name, value in row.items()}
        boxed = [rf"\boxed{{{expression}}}" for expression in expressions]
        assert any(right)  # every row is solvable
        assert countdown_reward(boxed, boxed, **columns) == [1.0 if r else 0.1 for r in right]
        gold = next(expression for expression, r in zip(expressions, right, strict=True) if r)
        digits = [match.start() for match in re.finditer(r"\d", gold)]
        swapped = [gold[:i] + str((int(gold[i]) + 1) % 10) + gold[i + 1 :] for i in digits]
        assert all(score(countdown_reward, f"#### {other}", **row) == 0.1 for other in swapped)


# --- sudoku ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "completion",
    [
        GRID,
        "\n".join(sudoku.rows(GRID).split("\n")),
        f"<answer>\n{GRID}\n</answer>",
        rf"\boxed{{{GRID}}}",
        f"#### {GRID}",
        f"<answer>{' '.join(GRID)}</answer>",
        f"The grid is\n{sudoku.rows(GRID)}\nas said.",
        f"<answer>{GRID}</answer><|eot_id|>",
        f"puzzle {PUZZLE} solved {GRID}.",
        "<answer>3|1|4|2\n2|4|3|1\n4|2|1|3\n1|3|2|4</answer>",
        "<answer>31 | 42\n24 | 31\n42 | 13\n13 | 24</answer>",
        "<answer>1. 3 1 4 2\n2. 2 4 3 1\n3. 4 2 1 3\n4. 1 3 2 4</answer>",
        "| 3 | 1 | 4 | 2 |\n| 2431 |\n|---|\n| 4213 |\n|1324|",
        "Row 1: 3 1 4 2\nRow 2: 2 4 3 1\nRow 3: 4 2 1 3\nRow 4: 1 3 2 4",
        f"<answer>The 4x4 solution: {GRID}</answer>",
        "<answer>[[3,1,4,2],[2,4,3,1],[4,2,1,3],[1,3,2,4]]</answer>",
        "Answer:\n3142\n2431\n-----\n4213\n1324",
        "<answer>[[3.0,1.0,4.0,2.0],[2.0,4.0,3.0,1.0],[4.0,2.0,1.0,3.0],[1.0,3.0,2.0,4.0]]</answer>",
        f"Since 2 cannot be there, the grid is:\n{GRID}",
    ],
)
def test_sudoku_grids_are_read_in_every_form(completion):
    assert score(sudoku_reward, completion, question=PUZZLE) == 1.0
    assert score(sudoku_cells_reward, completion, puzzle=PUZZLE, solution=GRID) == 1.0


@pytest.mark.parametrize(
    "completion",
    [
        "",
        PUZZLE,
        GRID[:-1],
        GRID + "1",
        f"<answer>{GRID}{GRID}</answer>",
        "1234" * 4,
        f"not {GRID}",
        f"<answer>not {GRID}</answer>",
        f"The answer is not {GRID}",
        f"{GRID} is wrong",
        f"It can't be\n{sudoku.rows(GRID)}",
        f"I doubt it is {GRID}",
    ],
)
def test_sudoku_wrong_grids(completion):
    assert score(sudoku_reward, completion, question=PUZZLE) == 0.0
    assert score(sudoku_cells_reward, completion, question=PUZZLE) < 1.0


def test_sudoku_against_brute_force():
    """Random puzzles and grids: right is what solves the puzzle; cells are compared with every solution in turn."""
    rng = random.Random(0)
    grids = sudoku.all_grids()
    for _ in range(150):
        clues = set(rng.sample(range(16), rng.randint(3, 12)))
        gold = rng.choice(grids)
        puzzle = "".join(cell if i in clues else "0" for i, cell in enumerate(gold))
        grid = list(rng.choice([gold, rng.choice(grids)]))
        for i in rng.sample(range(16), rng.choice([0, 0, 1, 3])):
            grid[i] = rng.choice("01234")
        cells = "".join(grid)
        solutions = [g for g in grids if all(g[i] == puzzle[i] for i in clues)]
        altered = sum(cells[i] != puzzle[i] for i in clues)
        nearest = max(sum(g[i] == cells[i] for i in range(16) if i not in clues) for g in solutions)
        assert score(sudoku_reward, f"<answer>{cells}</answer>", question=puzzle) == (cells in solutions)
        value = score(sudoku_cells_reward, f"<answer>{cells}</answer>", question=puzzle)
        assert value == pytest.approx(nearest / (16 - len(clues) + altered))
        assert (value == 1.0) == (cells in solutions)
        # A grid that breaks off: what is missing is wrong.
        cut = rng.randrange(16)
        short = score(sudoku_cells_reward, f"<answer>{cells[:cut]}</answer>", question=puzzle)
        padded = score(sudoku_cells_reward, f"<answer>{cells[:cut].ljust(16, '0')}</answer>", question=puzzle)
        assert short == padded


def test_sudoku_gold_and_perturbed(data_dir):
    with (data_dir / "sudoku/4x4_test_sudoku.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 250
    columns = {"Puzzle": [row["Puzzle"] for row in rows]}
    golds = [row["Solution"] for row in rows]
    assert sudoku_reward(golds, golds, **columns) == sudoku_cells_reward(golds, golds, **columns) == [1.0] * 250
    for row, gold in zip(rows, golds, strict=True):
        changed = [gold[:i] + str(int(gold[i]) % 4 + 1) + gold[i + 1 :] for i in range(16)]
        given = {"Puzzle": [row["Puzzle"]] * 16}
        assert sudoku_reward(changed, changed, **given) == [0.0] * 16
        assert all(value < 1.0 for value in sudoku_cells_reward(changed, changed, **given))


# --- arithmetic, and what all have in common -------------------------------------------------------------------------


def test_arithmetic_in_one_sentence():
    texts = [
        "12+7 = 19 and 19-5 = 14.",
        "12+7 = 19, and 19-5 = 14.",
        "12+7 = 19 or 19-5 = 14.",
        "19-5 = 14 and 12+7 = 19.",
    ]
    assert arithmetic_reward([""] * 4, texts, question=["12, +7, -5"] * 4) == [1.0, 1.0, 0.0, 0.0]


def test_arithmetic_gold_and_perturbed():
    rng, task = random.Random(0), get_task("arithmetic")
    for _ in range(200):
        problem = task.generate(rng, False)
        row = {"question": problem.question, "answer": problem.solution}
        off = str(int(problem.answer) + rng.choice([-10, -1, 1, 10]))
        for form in ("{}", "so\n#### {}", r"\boxed{{{}}}", "<answer>{}</answer>"):
            gold, wrong = (problem.solution, problem.solution.replace(f"#### {problem.answer}", f"#### {off}"))
            if form != "{}":
                gold, wrong = form.format(problem.answer), form.format(off)
            assert score(arithmetic_reward, gold, **row) == 1.0
            assert score(arithmetic_reward, wrong, **row) == 0.0
    assert score(arithmetic_reward, "none", question="12, +7") == 0.0
    for right in ("It is 14.", "12+7-5 = 14", "fourteen", "12+7 = 19\n19-5 = 14", "The answer is fourteen."):
        assert score(arithmetic_reward, right, question="12, +7, -5") == 1.0, right
    for wrong in ("It is not 14.", "14 or 15", "It is 15.", "14 - 5 = 9", r"$-\boxed{14}$", "<answer>14", "Step 14"):
        assert score(arithmetic_reward, wrong, question="12, +7, -5") == 0.0, wrong
    assert score(arithmetic_reward, "#### 19", question="12, +7") == 1.0
    assert score(arithmetic_reward, "#### 19", question="Ann has 12 apples and buys 7.") is None


@pytest.mark.parametrize("reward", [countdown_reward, sudoku_reward, sudoku_cells_reward, arithmetic_reward])
def test_rows_of_other_tasks_are_not_scored(reward):
    metrics = {}
    values = reward(["p"] * 3, ["#### 1"] * 3, question=[None, "", "What is love?"], log_metric=metrics.__setitem__)
    assert values == [None] * 3
    assert metrics == {f"rewards/{reward.__name__}/none": 1.0}
    with pytest.raises(ValueError, match=r"needs one of the columns question, .*; given: \['quest'\]"):
        reward(["p"], ["#### 1"], quest=["1"])
    assert reward([], []) == []


def test_a_puzzle_without_solution_has_no_cells_to_compare():
    assert score(sudoku_cells_reward, GRID, question="11" + "0" * 14) is None
    assert score(sudoku_reward, GRID, question="11" + "0" * 14) is None
    assert score(sudoku_cells_reward, GRID, question=GRID) == 1.0
    assert score(sudoku_cells_reward, PUZZLE, question=GRID) == 0.0


def test_nothing_is_read_out_of_nothing():
    assert read_expression("") is read_expression("words\nof\nno use") is read_grid("") is read_grid("123 412") is None
