"""Fuzz: whatever a completion or a gold answer is, no reader crashes, takes a second, or evaluates it as code."""

import ast
import builtins
import contextlib
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lockstitch.rewards import extract, format_rewards, marks, puzzle_rewards
from lockstitch.rewards.mathematics import reading as mathematics_reading
from lockstitch.rewards.mathematics.equations import EquationChecker
from lockstitch.rewards.problem import Problem
from lockstitch.rewards.puzzles import countdown
from lockstitch.rewards.puzzles import reading as puzzles_reading
from lockstitch.rewards.tasks import task as task_module
from lockstitch.rewards.tasks.builtin import TASKS
from lockstitch.rewards.workers import Failed, KillablePool, TimedOut
from worker_functions import guarded

REWARDS = Path(__file__).resolve().parent.parent / "rewards"

FRAGMENTS = [
    "\\boxed{", "\\fbox{", "\\boxed", "{", "}", "\\{", "\\}", "\\", "####", "#", "<answer>", "</answer>", "<reasoning>\n",
    "\n</reasoning>\n", "\nA: ", "\n", " ", "\t", "0", "7", "42", "-3", "1,000", ",", ".", "3.5", "1/2", "/", "\\frac{1}{2}",
    "\\frac", "\\dfrac34", "\\sqrt{2}", "\\text{", "\\left(", "\\right)", "(", ")", "[", "]", "^", "_", "+", "-", "*", "=",
    "x", "y", "e", "\\pi", "\\infty", "$", "\\$", "%", "\\%", "**", "!", "eggs", "the answer is", " and ", "million", "1234",
    "30,100,93=23", "93+30-100", "12, +7", "<<1+1=2>>", "\\times", "÷", "−", "²", "٣", "\u2028", "\ud800", "<|eot_id|>",
    "__import__('os').system('true')", "{0.__class__}", "%s", "1e999", "nan", "\\begin{pmatrix}", "\\\\", "&",
    "\\end{pmatrix}", "3142",
]  # fmt: skip
SOUP = st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join)
RUNS = st.builds(
    lambda a, b, n: (a + b) * n, st.sampled_from(FRAGMENTS), st.sampled_from(FRAGMENTS), st.integers(2, 3000)
)
SHORT_RUNS = st.builds(
    lambda a, b, n: (a + b) * n, st.sampled_from(FRAGMENTS), st.sampled_from(FRAGMENTS), st.integers(2, 60)
)
# Thousands of these take less than a minute; what length costs is seen by fewer and longer ones, and below.
SHORT_TEXTS = st.one_of(SOUP, SHORT_RUNS, st.text(max_size=100))
TEXTS = st.one_of(SOUP, RUNS, st.text(max_size=300), st.builds(lambda a, b, c: a + b + c, SOUP, RUNS, SOUP))
GOLDS = st.one_of(TEXTS, st.none(), st.integers(), st.floats(), st.booleans())

QUESTION, PUZZLE = "30,100,93=23", "3102200002100320"
READERS = {
    f"{module.__name__.removeprefix('lockstitch.rewards.')}.{name}": vars(module)[name]
    for module, names in (
        (marks, tuple(name for name in vars(marks) if name.startswith(("last_", "without_", "spoken")))),
        (mathematics_reading, ("read_answer", "read_gold")),
        (puzzles_reading, ("read_expression", "read_grid")),
        (extract, ("last_marked", "last_number")),
        (task_module, ("marked_answer",)),
    )
    for name in names
} | {f"{name} task": task.extract for name, task in TASKS.items() if name != "countdown"}
READERS = {name: reader for reader, name in {reader: name for name, reader in READERS.items()}.items()}  # each once
JUDGES = {
    "countdown": lambda text: puzzle_rewards.judge_countdown(QUESTION, text),
    "sudoku": lambda text: puzzle_rewards.judge_sudoku(PUZZLE, text),
    "sudoku cells": lambda text: puzzle_rewards.judge_sudoku_cells(PUZZLE, text),
    "arithmetic": lambda text: puzzle_rewards.judge_arithmetic(Problem("12, +7"), text),
    "is_solution": lambda text: float(countdown.is_solution(QUESTION, text[:150])),
    "same_number": lambda text: float(extract.same_number("12", extract.last_number(text) or "")),
    "equations": lambda text: EquationChecker().advance(frozenset(), text[:2000])[1],
} | {
    name: lambda text, name=name: vars(format_rewards)[name]([""], [text])[0]
    for name in (
        "xml_count_reward",
        "soft_format_reward",
        "strict_format_reward",
        "integer_reward",
        "boxed_answer_reward",
    )
}


@contextlib.contextmanager
def nothing_is_evaluated():
    kept = builtins.eval, builtins.exec

    def refuse(*arguments, **keywords):
        raise AssertionError("eval or exec was called")

    builtins.eval = builtins.exec = refuse
    try:
        yield
    finally:
        builtins.eval, builtins.exec = kept


def timed(name, function, text):
    """The function's result, in less than a second of this thread; what a pause of the collector cost does not repeat."""
    for _ in range(3):
        began = time.thread_time()
        result = function(text)
        if time.thread_time() - began < 1.0:
            return result
    raise AssertionError(f"{name} takes over a second on {text[:60]!r} ({len(text):,} characters)")


def check(text):
    """Every reader returns a text or nothing, every judge a number."""
    with nothing_is_evaluated():
        for name, reader in READERS.items():
            found = timed(name, reader, text)
            assert found is None or isinstance(found, str), name
        for name, judge in JUDGES.items():
            value = timed(name, judge, text)
            assert isinstance(value, float), name
            assert value <= 1.0, name


def fuzz(strategy, function, count, **more):
    checks = list(HealthCheck)
    run = settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=checks, derandomize=True, **more
    )
    run(given(strategy)(function))()


def check_gold(gold):
    with nothing_is_evaluated():
        assert isinstance(timed("read_gold", mathematics_reading.read_gold, gold), str | None)


def check_pairs(pool, pairs):
    """math-verify answers or is stopped, nothing in between; a text that it evaluates would end its worker."""
    pool.map(guarded, [("is_right", ("1", "x"))] * pool.size, 60.0)  # loads it
    results = pool.map(guarded, [("is_right", pair) for pair in pairs], 2.0)
    answered = [isinstance(result, bool | TimedOut | None) for result in results]
    assert all(answered), [x for x, good in zip(zip(pairs, results, strict=True), answered, strict=True) if not good]
    assert sum(isinstance(result, TimedOut) for result in results) <= len(results) // 20


def pairs_of(count):
    """Gold and answer as the parent process would read them out of fuzzed texts."""
    pairs = []

    def collect(given):
        gold, answer = mathematics_reading.read_gold(given[0]), mathematics_reading.read_answer(given[1])
        if gold is not None and answer is not None and len(answer) <= 60 and len(gold) <= 60:
            pairs.append((gold, answer))

    fuzz(st.tuples(SOUP, SOUP.map("\\boxed{{{}}}".format)), collect, count)
    return pairs


def test_readers_and_judges():
    fuzz(TEXTS, check, 100)


def test_gold_answers():
    fuzz(GOLDS, check_gold, 200)


@pytest.mark.slow
def test_the_guard_sees_what_is_evaluated():
    with KillablePool(2) as pool:
        texts = ["2.5", "x", "1+1", "__import__('os').getpid()", "(lambda: 5)()"]
        number, symbol, *others = pool.map(guarded, [("sympify", text) for text in texts], 30.0)
    assert (number, symbol) == ("2.50000000000000", "x")
    assert all(isinstance(other, Failed) for other in others)


def test_math_verify():
    with KillablePool() as pool:
        check_pairs(pool, pairs_of(40))


@pytest.mark.slow
def test_readers_and_judges_long():
    fuzz(SHORT_TEXTS, check, 5_000)


@pytest.mark.slow
def test_gold_answers_long():
    fuzz(st.one_of(SHORT_TEXTS, st.none(), st.integers(), st.floats(), st.booleans()), check_gold, 10_000)


@pytest.mark.slow
def test_math_verify_long():
    with KillablePool() as pool:
        check_pairs(pool, pairs_of(10_000))


LONG = [
    "1,234", ",111", "1", "\\boxed{", "{", "\\", "####", "#### ", "#### a\n", "<answer>", "<answer></answer>", "A: \n", "<|",
    "<|a", "\\frac{1", "$", "-", "1+1=2\n", "(", "ab ", "a", "1 ", "0\n", "12 eggs ", "**", "\\(", "=", " ", "\n",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("piece", LONG)
def test_ten_thousand_characters_of_one_kind(piece):
    check(piece * (10_000 // len(piece)))


@pytest.mark.slow
@pytest.mark.parametrize("piece", LONG)
@pytest.mark.parametrize("form", ["{}", "\\boxed{{{}}}", "<answer>{}</answer>", "#### {}"])
def test_two_hundred_thousand_characters_of_one_kind(piece, form):
    check(form.format(piece * (200_000 // len(piece))))


MODULES = [
    "marks", "format_rewards", "contract", "extract",
    "math_rewards", "mathematics/reading", "mathematics/settling", "mathematics/unmarked", "mathematics/spelling",
    "mathematics/words", "mathematics/plain", "mathematics/forms", "mathematics/comparing", "mathematics/math_worker",
    "puzzle_rewards", "puzzles/reading", "boxes", "phrases",
    "puzzles/forms", "puzzles/countdown", "puzzles/sudoku",
    "tasks/notations", "tasks/task", "tasks/builtin", "tasks/own", "tasks/grade", "tasks/reasoning_gym_task",
    "programs/code_blocks", "programs/code_extract", "programs/code_names", "programs/code_pairs", "code_rewards",
    "programs/code_shape", "programs/code_tests", "programs/judge", "programs/same", "programs/sandbox_fusion",
    "sandbox/tagged",
]  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_no_module_that_reads_completions_evaluates_code(module):
    tree = ast.parse((REWARDS / f"{module}.py").read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not names & {"eval", "exec", "compile", "__import__", "globals"}
