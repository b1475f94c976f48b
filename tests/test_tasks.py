"""The embedded tasks: generators, parsers, checkers and answers against brute force."""

import itertools
import random
import re
from fractions import Fraction

import pytest
from lockstitch.rewards.extract import last_marked, last_number, same_number
from lockstitch.rewards.problem import is_held_out
from lockstitch.rewards.puzzles import arithmetic, countdown, sudoku
from lockstitch.rewards.steps import check_steps
from lockstitch.rewards.tasks.builtin import TASKS
from lockstitch.rewards.tasks.named import get_task

GENERATED = [task for task in TASKS.values() if task.generate is not None]


def problems(task, count=200, held_out=False, seed=0):
    rng = random.Random(seed)
    return [task.generate(rng, held_out) for _ in range(count)]


def step_lines(problem):
    return [line for line in problem.solution.split("\n") if not line.startswith("####")]


@pytest.mark.slow
@pytest.mark.parametrize("task", GENERATED, ids=lambda task: task.name)
def test_worked_solutions_are_right_step_by_step(task):
    for problem in problems(task):
        answer = task.extract(problem.solution)
        assert answer == problem.answer
        assert task.is_correct(problem.question, problem.answer, answer) is True
        steps = step_lines(problem)
        assert check_steps(task.checker, problem.question, steps) == [1.0] * len(steps)
        assert task.conclude(steps) == problem.answer
        assert [task.write_step(step.strip()) for step in steps] == steps


@pytest.mark.parametrize("task", GENERATED, ids=lambda task: task.name)
def test_a_changed_digit_is_found(task):
    rng = random.Random(1)
    for problem in problems(task, 100):
        steps = step_lines(problem)
        broken = rng.randrange(len(steps))
        line = steps[broken]
        place = rng.choice([i for i, c in enumerate(line) if c.isdigit() and i > line.rfind("=")])
        steps[broken] = line[:place] + rng.choice([d for d in "1234" if d != line[place]]) + line[place + 1 :]
        scores = check_steps(task.checker, problem.question, steps)
        # A row of a puzzle may clash only where the next row meets it; an equation is wrong where it stands.
        assert min(scores) == 0.0
        if task.unit == "line":
            assert scores[broken] == 0.0
            assert scores[:broken] == [1.0] * broken


@pytest.mark.parametrize(
    "task",
    [pytest.param(task, marks=pytest.mark.slow) if task.name == "sudoku9" else task for task in GENERATED],
    ids=lambda task: task.name,
)
def test_training_and_held_out_problems_never_meet(task):
    train = {problem.question for problem in problems(task, 2000)}
    held = {problem.question for problem in problems(task, 300, held_out=True, seed=1)}
    assert not train & held
    assert len(held) > 250


def test_countdown_split_ignores_the_order_of_the_numbers():
    for problem in problems(get_task("countdown"), 300):
        numbers, target = countdown.parse_question(problem.question)
        assert not is_held_out(f"{sorted(numbers)}={target}")
        assert countdown.fingerprint(numbers, target) not in countdown.benchmark_fingerprints()


def test_benchmark_rows_are_kept_out_of_training(data_dir):
    import json

    rows = [json.loads(line) for line in (data_dir / "countdown/countdown_cd3_test.jsonl").open(encoding="utf-8")]
    task = get_task("countdown")
    for row in rows:
        numbers, target = countdown.parse_question(task.read_row(row).question)
        assert countdown.fingerprint(numbers, target) in countdown.benchmark_fingerprints()
        assert target in brute_force_reachable(numbers)


def brute_force_reachable(numbers):
    """Every exact value of every expression over all the numbers, by Python's own rational arithmetic."""
    found = set()
    for a, b, c in itertools.permutations(map(Fraction, numbers)):
        for first, second in itertools.product("+-*/", repeat=2):
            for left in (True, False):
                try:
                    inner = _apply(a, first, b) if left else _apply(b, second, c)
                    found.add(_apply(inner, second, c) if left else _apply(a, first, inner))
                except ZeroDivisionError:
                    continue
    return found


def _apply(a, operation, b):
    return {"+": a + b, "-": a - b, "*": a * b}[operation] if operation != "/" else a / b


def test_countdown_solutions_reach_what_can_be_reached():
    rng = random.Random(2)
    for _ in range(60):
        numbers = tuple(rng.randint(1, 12) for _ in range(3))
        target = rng.randint(1, 40)
        found = list(countdown.solutions(numbers, target))
        for steps in found:
            lines = countdown.write_solution(steps).split("\n")
            assert countdown.is_solution(f"{','.join(map(str, numbers))}={target}", countdown.conclude(lines))
        if found:
            assert target in brute_force_reachable(numbers)
        elif target in brute_force_reachable(numbers):
            # What is left out needs a fraction or a negative number on the way.
            assert not any(
                first[3] >= 0 and second[3] == target
                for i, j, k in itertools.permutations(range(3))
                for first in countdown._operations(numbers[i], numbers[j])
                for second in countdown._operations(first[3], numbers[k])
            )


@pytest.mark.parametrize(
    ("expression", "right"),
    [
        ("93+30-100", True),
        ("(93+30)-100", True),
        ("30-(100-93)", True),
        ("30 - 100 + 93", True),
        ("93+30", False),
        ("93+30-100+0", False),
        ("100-93+30", False),
        ("23", False),
        ("93+30-100=23", False),
        ("__import__('os')", False),
        ("93+30-", False),
        ("(93+30-100", False),
        ("", False),
        ("9" * 500, False),
        ("93+30-100-0/0", False),
        ("93.0+30-100", False),
        ("-100+93+30", True),
        ("93-(-30)-100", True),
        ("093+30-100", False),
    ],
)
def test_countdown_expressions(expression, right):
    assert countdown.is_solution("30,100,93=23", expression) is right


def test_countdown_grammar_agrees_with_python():
    rng = random.Random(3)
    for _ in range(300):
        text = str(rng.randint(1, 9))
        for _ in range(rng.randint(1, 4)):
            text = f"({text})" if rng.random() < 0.3 else text
            text += rng.choice("+-*") + str(rng.randint(1, 9))
        assert countdown.evaluate(text)[0] == eval(text)


def test_there_are_288_grids_and_each_is_valid():
    grids = sudoku.all_grids()
    brute = 0
    for rows in itertools.product(map("".join, itertools.permutations("1234")), repeat=4):
        cells = "".join(rows)
        columns = all(len(set(cells[c::4])) == 4 for c in range(4))
        boxes = all(len({cells[t + o] for o in (0, 1, 4, 5)}) == 4 for t in (0, 2, 8, 10))
        brute += columns and boxes
    assert len(set(grids)) == brute == 288
    assert all(sudoku.is_valid_grid(grid) for grid in grids)


def test_sudoku_judges_validity_and_clues():
    puzzle, grid = "3102200002100320", "3142243142131324"
    assert sudoku.is_solution(puzzle, grid)
    other = next(g for g in sudoku.all_grids() if g != grid)
    assert not sudoku.is_solution(puzzle, other)
    assert sudoku.is_solution("0" * 16, other)
    assert not sudoku.is_solution("0" * 16, grid[:-1] + "1")


def test_chains_are_solved_as_written():
    assert arithmetic.solve_chain("12, +27, -15, *3") == 72
    assert arithmetic.solve_chain("Ann has 12 apples.") is None
    task = get_task("arithmetic")
    assert task.is_correct("12, +27, -15, *3", None, "72") is True  # a chain needs no gold answer
    assert task.is_correct("Ann has 12 apples.", None, "12") is None


def test_rows_of_the_benchmark_files_are_read():
    sudoku_row = {"Puzzle": "3102200002100320", "Solution": "3142243142131324"}
    assert get_task("sudoku").read_row(sudoku_row).question == "3102200002100320"
    solved = get_task("sudoku").read_row({"question": "Solve the following Sudoku puzzle: 4320004330100004\n"})
    assert solved.question == "4320004330100004"
    task = get_task("countdown")
    for row in (
        {"input": "30,100,93", "output": "23"},
        {"question": "30,100,93=23"},
        {"question": "Numbers: [30, 100, 93]\nTarget: 23"},
        {"numbers": [30, 100, 93], "target": 23},
    ):
        assert task.read_row(row).question == "30,100,93=23"
    gold = get_task("gsm8k").read_row({"question": "How many?", "answer": "16-3 = <<16-3=13>>13\n#### 1,013"})
    assert gold.answer == "1013"


@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        ("gsm8k", {"text": "x"}, "no 'question'"),
        ("gsm8k", {"question": "  "}, "no 'question'"),
        ("countdown", {"question": "30 100 93"}, "30,100,93=23"),
        ("sudoku", {"question": "12345"}, "16 digits"),
    ],
)
def test_bad_rows_are_named(name, row, says):
    with pytest.raises(ValueError, match=says):
        get_task(name).read_row(row)


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'mnist' is not one of gsm8k, .*, nor a file of YAML"):
        get_task("mnist")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 12+7=19\n#### 19", "19"),
        ("A: 1,234", "1234"),
        (r"thus \boxed{-3.5}", "-3.5"),
        (r"\boxed{18\text{ apples}}", "18"),
        ("<answer> $70 </answer>", "70"),
        ("#### 3\n#### 4", "4"),
        (r"\boxed{7} #### 8", "7"),
        ("no mark 9", None),
        ("The answer is 9.", "9"),
        ("<answer>about 9</answer>", None),
        (r"\boxed{9\sqrt{2}}", None),
        ("#### 9^2", None),
        (r"\boxed{9", None),
        ("<answer>8, 9</answer>", None),
    ],
)
def test_marked_answers(text, number):
    assert last_marked(text) == number


def test_numbers_are_compared_exactly():
    assert last_number("from 3 to 1,000.") == "1000"
    assert same_number("12", "12.0")
    assert same_number("$1,200", "1200")
    assert not same_number("0.1", "0.10000000000000001")
    assert not same_number("twelve", "12")


def test_a_chain_is_shown_as_a_worksheet():
    """Line t of the worksheet is as long as step t, so what a step copies is always equally far away."""
    prompt = arithmetic.prompt("12, +7, -5, *3")
    assert prompt == "12+7=  \n  -5=  \n  *3=  \n       \n       \n"
    steps = ["12+7=19\n", "19-5=14\n", "14*3=42\n"]
    for line, step in zip(prompt.splitlines(keepends=True), steps, strict=False):
        assert len(line) == len(step)
        assert line[2:5] == step[2:5]
    assert arithmetic.prompt("Ann has 12 apples.") == "Ann has 12 apples.\n"


def test_solutions_have_the_width_of_their_question():
    """Positions of a chain's solution depend on the question's form alone, which is what makes it learnable."""
    rng = random.Random(4)
    shapes = {}
    for _ in range(500):
        problem = arithmetic.generate_chain(rng, 3)
        shape = re.sub(r"\d", "d", problem.question)
        shapes.setdefault(shape, set()).add(re.sub(r"\d", "d", problem.solution))
    assert all(len(solutions) == 1 for solutions in shapes.values())
