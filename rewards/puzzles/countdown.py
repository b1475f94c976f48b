"""Countdown with three numbers: use each exactly once, with + - * /, to reach the target.

A question is `30,100,93=23` (numbers, then target). A solution is its two steps, in columns three wide so that positions
do not move with the widths; the answer is the expression that they amount to, `(93+30)-100`:

     93+ 30=123
    123-100= 23

Expressions are parsed by a small grammar in exact rational arithmetic; nothing is ever evaluated as code.
"""

import itertools
import random
import re
import zlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache
from importlib import resources

from lockstitch.rewards.problem import Problem, is_held_out

WIDTH = 3
_STEP_LIMIT = 10**WIDTH - 1


def parse_question(question: str) -> tuple[tuple[int, ...], int]:
    """The numbers and the target of `30,100,93=23`."""
    match = re.fullmatch(r"\s*(\d+(?:\s*,\s*\d+)+)\s*=\s*(-?\d+)\s*", question)
    if match is None:
        raise ValueError(f"countdown question {question!r} is not of the form '30,100,93=23' (numbers=target)")
    return tuple(int(number) for number in match[1].split(",")), int(match[2])


def prompt(question: str) -> str:
    """The question in columns, as the embedded model reads it."""
    numbers, target = parse_question(question)
    return " ".join(f"{number:{WIDTH}d}" for number in numbers) + f" = {target:{WIDTH}d}\n"


class _Parser:
    """`expr := term (('+'|'-') term)*`, `term := atom (('*'|'/') atom)*`, `atom := int | '-' atom | '(' expr ')'`."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = re.findall(r"\d+|[-+*/()]|\S", text)
        self.position = 0
        self.numbers: list[int] = []

    def take(self, accepted: str) -> str | None:
        if self.position < len(self.tokens) and self.tokens[self.position] in accepted:
            self.position += 1
            return self.tokens[self.position - 1]
        return None

    def expr(self) -> Fraction:
        value = self.term()
        while operation := self.take("+-"):
            value = value + self.term() if operation == "+" else value - self.term()
        return value

    def term(self) -> Fraction:
        value = self.atom()
        while operation := self.take("*/"):
            right = self.atom()
            if operation == "/" and right == 0:
                raise ValueError("division by zero")
            value = value * right if operation == "*" else value / right
        return value

    def atom(self) -> Fraction:
        if self.take("-"):
            return -self.atom()
        if self.take("("):
            value = self.expr()
            if not self.take(")"):
                raise ValueError("unclosed parenthesis")
            return value
        if self.position < len(self.tokens) and re.fullmatch(r"0|[1-9]\d*", self.tokens[self.position], re.ASCII):
            self.position += 1
            self.numbers.append(int(self.tokens[self.position - 1]))
            return Fraction(self.numbers[-1])
        raise ValueError("a number or '(' is missing")


_LONGEST = 200


def evaluate(expression: str) -> tuple[Fraction, list[int]]:
    """The exact value of an expression and the numbers it uses, in order; `ValueError` if it is not one."""
    if len(expression) > _LONGEST:
        raise ValueError(f"an expression of {len(expression)} characters; at most {_LONGEST} are read")
    parser = _Parser(expression)
    value = parser.expr()
    if parser.position != len(parser.tokens):
        raise ValueError(f"{expression!r} has an unexpected {parser.tokens[parser.position]!r}")
    return value, parser.numbers


def is_solution(question: str, expression: str) -> bool:
    """Whether the expression uses every number exactly once and equals the target."""
    numbers, target = parse_question(question)
    try:
        value, used = evaluate(expression)
    except ValueError:
        return False
    return value == target and sorted(used) == sorted(numbers)


def solves(question: str, equation: str) -> bool:
    """Whether an expression is a solution, bare or with the target on the other side (`26 = 3*7+5`)."""
    target = parse_question(question)[1]
    sides = equation.split("=")
    results = [bool(re.fullmatch(r"-?\d{1,100}", side)) and int(side) == target for side in sides]
    if len(sides) == 2 and any(results):
        return is_solution(question, sides[results.index(True) - 1])
    return len(sides) == 1 and is_solution(question, sides[0])


Operation = tuple[int, str, int, int]  # left, operator, right, result


def _operations(a: int, b: int) -> Iterator[Operation]:
    high, low = max(a, b), min(a, b)
    yield high, "+", low, high + low
    yield high, "-", low, high - low
    yield high, "*", low, high * low
    if low and high % low == 0:
        yield high, "/", low, high // low


def solutions(numbers: tuple[int, ...], target: int) -> Iterator[tuple[Operation, Operation]]:
    """Both steps of every solution with whole, non-negative steps of at most three digits, simplest first."""
    pairs = sorted(((0, 1, 2), (0, 2, 1), (1, 2, 0)), key=lambda p: (-numbers[p[0]] - numbers[p[1]], numbers[p[2]]))
    firsts = [(op, numbers[k]) for i, j, k in pairs for op in _operations(numbers[i], numbers[j])]
    found = (
        (first, second)
        for first, rest in firsts
        for second in _operations(first[3], rest)
        if second[3] == target and max(first[3], second[3]) <= _STEP_LIMIT
    )
    # Additions before subtractions before products, so that one question has one canonical solution.
    yield from sorted(
        found, key=lambda steps: ("+-*/".index(steps[0][1]) + "+-*/".index(steps[1][1]), "+-*/".index(steps[0][1]))
    )


def write_solution(steps: tuple[Operation, Operation]) -> str:
    """The completion for two steps."""
    return "\n".join(f"{a:{WIDTH}d}{operator}{b:{WIDTH}d}={result:{WIDTH}d}" for a, operator, b, result in steps)


_STEP = re.compile(r"\s*(\d+)\s*([-+*/])\s*(\d+)\s*=\s*(\d+)\s*")


def write_step(text: str) -> str:
    """A step in columns, whatever white space it was written with; other text is returned stripped."""
    match = _STEP.fullmatch(text)
    if match is None:
        return text.strip()
    return f"{int(match[1]):{WIDTH}d}{match[2]}{int(match[3]):{WIDTH}d}={int(match[4]):{WIDTH}d}"


def holds(step: str) -> bool:
    """Whether a step is an equation, and a true one; `ValueError` if it divides by zero."""
    match = _STEP.fullmatch(step)
    return match is not None and evaluate(f"{int(match[1])}{match[2]}{int(match[3])}")[0] == int(match[4])


def conclude(steps: Sequence[str]) -> str | None:
    """The expression that the steps amount to: each result stands for its step; None if a step is not an equation."""
    pieces: dict[int, list[str]] = {}
    expression = None
    for place, step in enumerate(steps):
        match = _STEP.fullmatch(step)
        if match is None:
            return None
        sides = []
        for number in (int(match[1]), int(match[3])):
            held = pieces.get(number)
            sides.append(held.pop() if held else str(number))
        expression = f"{sides[0]}{match[2]}{sides[1]}"
        if place < len(steps) - 1:
            pieces.setdefault(int(match[4]), []).append(f"({expression})")
    return expression


_INNER = re.compile(r"\((\d+)([-+*/])(\d+)\)|(?<![\d*/)])(\d+)([*/])(\d+)|^(\d+)([-+])(\d+)(?![\d*/(])")


def spell_out(question: str, expression: str) -> list[str]:
    """The equations that an expression amounts to, inner ones first; as far as they are whole, positive numbers."""
    text, steps = re.sub(r"\s", "", expression), list[str]()
    while match := _INNER.search(text):
        left, operation, right = next(match.groups()[i : i + 3] for i in (0, 3, 6) if match[i + 1])
        if operation == "/" and int(right) == 0:
            break
        result = evaluate(f"{int(left)}{operation}{int(right)}")[0]
        if result.denominator != 1 or not 0 <= result <= _STEP_LIMIT:
            break
        steps.append(f"{left}{operation}{right}={result}")
        text = text[: match.start()] + str(result) + text[match.end() :]
    return steps


def fingerprint(numbers: tuple[int, ...], target: int) -> str:
    """Eight hex digits that name a problem whatever the order of its numbers."""
    return f"{zlib.crc32(f'{sorted(numbers)}={target}'.encode()):08x}"


@cache
def benchmark_fingerprints() -> frozenset[str]:
    """The problems of d1's Countdown-3 test rows, which generated problems never repeat."""
    text = (
        resources.files("lockstitch.recipes").joinpath("configs/embedded/countdown_cd3_fingerprints.txt").read_text()
    )
    return frozenset(line for line in text.split("\n") if line and not line.startswith("#"))


def generate(rng: random.Random, *, held_out: bool = False) -> Problem:
    """A solvable problem with numbers and target in 1..100 and its canonical solution.

    The target is drawn as in the public Countdown data: a random expression over random numbers, kept if it lands in
    range. Training problems, held-out problems and d1's test rows are disjoint, whatever the order of the numbers.
    """
    while True:
        numbers = tuple(rng.randint(1, 100) for _ in range(3))
        i, j, k = rng.choice(tuple(itertools.permutations(range(3))))
        first = rng.choice(tuple(_operations(numbers[i], numbers[j])))
        second = rng.choice(tuple(_operations(first[3], numbers[k])))
        target = second[3]
        if not 1 <= target <= 100:
            continue
        if is_held_out(f"{sorted(numbers)}={target}") != held_out:
            continue
        if fingerprint(numbers, target) in benchmark_fingerprints():
            continue
        steps = next(solutions(numbers, target), None)
        if steps is None:
            continue
        solution = write_solution(steps)
        return Problem(f"{','.join(map(str, numbers))}={target}", conclude(solution.split("\n")), solution)
