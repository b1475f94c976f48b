"""Training rows of the embedded solver: a question, lines of evidence of mixed truth, and the answer.

A row's evidence comes from one to eight invented trajectories of a problem: each line of the worked solution may be
corrupted, in the ways in which a few-step diffusion sampler errs, and later lines go on from the wrong value. Three rows
in four hold a complete correct chain, some hold parts of one, and some nothing.
"""

import random
import re
from collections.abc import Callable, Iterator

from lockstitch.rewards.problem import Problem
from lockstitch.rewards.puzzles import arithmetic, countdown
from lockstitch.rewards.tasks.builtin import TASKS
from lockstitch.rewards.tasks.task import training_problems
from lockstitch.stitching.refine import plain_solver_prompt
from lockstitch.stitching.steps import Step, merge_clues

_EQUATION = re.compile(r"(\d+)([-+*])(\d+)=(\d+)")
Lines = list[tuple[str, bool]]  # text, and whether it is right


def _corrupt_arithmetic(problem: Problem, lines: list[str], rate: float, rng: random.Random) -> Lines:
    out: Lines = []
    right = True
    carried: int | None = None
    for line in lines:
        match = _EQUATION.search(line)
        assert match is not None
        left = int(match[1]) if carried is None else carried
        result = arithmetic.apply(left, match[2], int(match[3]))
        if rng.random() < rate:
            result = max(0, result + rng.choice((-20, -10, -2, -1, 1, 2, 10, 20)))
            right = False
        carried = result
        equation = f"{left:02d}{match[2]}{match[3]}={result:02d}"
        out.append((line[: match.start()] + equation + line[match.end() :], right))
    return out


def _corrupt_countdown(problem: Problem, lines: list[str], rate: float, rng: random.Random) -> Lines:
    if rng.random() >= 2 * rate:
        return [(line, True) for line in lines]
    numbers, target = countdown.parse_question(problem.question)
    i, j, k = rng.sample(range(3), 3)
    operation = rng.choice("+-")
    first = numbers[i] + numbers[j] if operation == "+" else abs(numbers[i] - numbers[j])
    high, low = max(numbers[i], numbers[j]), min(numbers[i], numbers[j])
    a, b = max(first, numbers[k]), min(first, numbers[k])
    sign = rng.choice("+-")
    result = target if rng.random() < 0.7 else (a + b if sign == "+" else a - b)
    width = countdown.WIDTH
    return [
        (f"{high:{width}d}{operation}{low:{width}d}={first:{width}d}", False),
        (f"{a:{width}d}{sign}{b:{width}d}={result:{width}d}", False),
    ]


def _corrupt_sudoku(problem: Problem, lines: list[str], rate: float, rng: random.Random) -> Lines:
    out: Lines = []
    for line in lines:
        if rng.random() < rate:
            cells = list(line)
            for _ in range(rng.choice((1, 1, 2))):
                cells[rng.randrange(4)] = rng.choice("1234")
            out.append(("".join(cells), "".join(cells) == line))
        else:
            out.append((line, True))
    return out


_CORRUPT: dict[str, Callable[[Problem, list[str], float, random.Random], Lines]] = {
    "arithmetic": _corrupt_arithmetic,
    "countdown": _corrupt_countdown,
    "sudoku": _corrupt_sudoku,
}


def _score(right: bool, exact: bool, rng: random.Random) -> float:
    if exact:
        return float(right)
    return rng.uniform(0.85, 1.0) if right or rng.random() < 0.1 else rng.uniform(0.0, 0.9)


def evidence_text(name: str, problem: Problem, kind: str, exact: bool, rng: random.Random) -> str:
    """Evidence of one `kind`: `complete` (a whole correct chain among others), `partial` or `none`.

    Scores are those of an `exact` checker (1 for a right line, 0 for a wrong one), or those of a scorer that errs.
    """
    if kind == "none":
        return ""
    assert problem.solution is not None
    gold = [line.strip() for line in problem.solution.split("\n") if not line.startswith("####")]
    rate = rng.choice((0.1, 0.25, 0.5))
    trajectories = [_CORRUPT[name](problem, gold, rate, rng) for _ in range(rng.randint(0, 5))]
    if kind == "complete":
        trajectories.append([(line, True) for line in gold])
    keep_wrong = rng.random()
    steps = [
        (Step(k, index, text.strip(), (0, len(text))), _score(right, exact, rng))
        for k, lines in enumerate(trajectories)
        for index, (text, right) in enumerate(lines)
        if right or rng.random() < keep_wrong
    ]
    if kind == "partial":
        steps = [step for step in steps if rng.random() < 0.7]
    return "\n".join(clue.render() for clue in merge_clues(steps))


def evidence_rows(count: int, seed: int) -> Iterator[dict[str, str]]:
    """Prompt-completion rows for the solver, the embedded tasks in turn."""
    rng = random.Random(f"evidence {seed}")
    names = list(_CORRUPT)
    problems = {name: training_problems(TASKS[name], count, seed + 1) for name in names}
    for i in range(count):
        name = names[i % len(names)]
        problem = next(problems[name])
        kind = rng.choices(("complete", "partial", "none"), (0.75, 0.1, 0.15))[0]
        evidence = evidence_text(name, problem, kind, rng.random() < 0.6, rng)
        prompt = plain_solver_prompt(TASKS[name].statement(problem.question), evidence)
        yield {"prompt": prompt, "completion": f" {problem.answer}"}
