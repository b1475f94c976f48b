"""Arithmetic chains and templated word problems, solved one step a line and ending in `#### N`.

A chain is a first number and operations applied in the order written: `12, +7, -5, *3`. Every running value has two digits
(10 to 99) and every operand one, so all steps have one width; and the embedded model is shown a chain as a worksheet with a
line for each step, so that whatever a step copies is always equally far away. Small diffusion models learn that at once, and
free widths and distances hardly at all. The word problems wrap the same chains in GSM8K's form: a sentence a step.
"""

import random
import re

from lockstitch.rewards.problem import Problem, is_held_out

_LOW, _HIGH = 10, 99
_LONGEST = 5
_NAMES = ("Ann", "Ben", "Eva", "Ida", "Leo", "Max", "Mia", "Sam", "Tom", "Zoe")
_THINGS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps")
# (operation, sentence of the question, opening of the step); {n} is the operand, {x} the things.
_EVENTS = {
    "+": (
        ("buys {n} more", "After buying more,"),
        ("finds {n} {x}", "After finding some,"),
        ("gets {n} as a gift", "With the gift,"),
    ),
    "-": (
        ("gives away {n}", "After giving some away,"),
        ("sells {n} {x}", "After selling some,"),
        ("loses {n} of them", "After losing some,"),
    ),
    "*": (("then has {n} times as many", "Multiplied,"),),
}


def apply(value: int, operation: str, operand: int) -> int:
    """`value operation operand` for one of `+ - *`."""
    return {"+": value + operand, "-": value - operand, "*": value * operand}[operation]


def _draw_chain(rng: random.Random, operations: int) -> tuple[int, list[tuple[str, int]]]:
    value = first = rng.randint(_LOW, _HIGH)
    chain: list[tuple[str, int]] = []
    for _ in range(operations):
        choices = []
        if value + 2 <= _HIGH:
            choices.append(("+", rng.randint(2, min(9, _HIGH - value))))
        if value - 2 >= _LOW:
            choices.append(("-", rng.randint(2, min(9, value - _LOW))))
        if value * 2 <= _HIGH:
            choices.append(("*", rng.randint(2, _HIGH // value)))
        operation, operand = rng.choice(choices)
        chain.append((operation, operand))
        value = apply(value, operation, operand)
    return first, chain


def generate_chain(rng: random.Random, operations: int, *, held_out: bool = False) -> Problem:
    """A chain of `operations` steps, from the training side of the split or (`held_out`) from the other."""
    while True:
        value, chain = _draw_chain(rng, operations)
        question = ", ".join([str(value), *(f"{operation}{operand}" for operation, operand in chain)])
        if is_held_out(question) == held_out:
            break
    lines = []
    for operation, operand in chain:
        result = apply(value, operation, operand)
        lines.append(f"{value}{operation}{operand}={result}")
        value = result
    return Problem(question, str(value), "\n".join([*lines, f"#### {value}"]))


def generate_word_problem(rng: random.Random, operations: int, *, held_out: bool = False) -> Problem:
    """The same chain told as a story, one sentence a step in the question and in the solution."""
    while True:
        value, chain = _draw_chain(rng, operations)
        name, things = rng.choice(_NAMES), rng.choice(_THINGS)
        told = [rng.choice(_EVENTS[operation]) for operation, _ in chain]
        story = [f"{name} has {value} {things}."]
        story += [
            f"{name} {event.format(n=operand, x=things)}."
            for (event, _), (_, operand) in zip(told, chain, strict=True)
        ]
        question = " ".join([*story, f"How many {things} does {name} have?"])
        if is_held_out(question) == held_out:
            break
    lines = []
    for (_, opening), (operation, operand) in zip(told, chain, strict=True):
        result = apply(value, operation, operand)
        lines.append(f"{opening} {name} has {value}{operation}{operand}={result}.")
        value = result
    return Problem(question, str(value), "\n".join([*lines, f"#### {value}"]))


def parse_chain(question: str) -> tuple[int, list[tuple[str, int]]] | None:
    """The first number and the operations of a symbolic chain, or None if the question is not one."""
    if not re.fullmatch(r"\s*\d+(\s*,\s*[-+*]\s*\d+)+\s*", question):
        return None
    first, *rest = (part.strip() for part in question.split(","))
    return int(first), [(part[0], int(part[1:])) for part in rest]


def prompt(question: str) -> str:
    """What the embedded model completes: a story as it is, a chain as a worksheet of five lines.

    `12, +7, -5` becomes `12+7=`, `  -5=` and three empty lines, each padded to the width of a step.
    """
    parsed = parse_chain(question)
    if parsed is None:
        return question + "\n"
    first, chain = parsed
    lines = [f"{'' if place else first:>2}{operation}{operand}=" for place, (operation, operand) in enumerate(chain)]
    lines += [""] * (_LONGEST - len(lines))
    return "".join(f"{line:<7}\n" for line in lines)


def solve_chain(question: str) -> int | None:
    """The value of a symbolic chain, or None if the question is not one."""
    parsed = parse_chain(question)
    if parsed is None:
        return None
    value, chain = parsed
    for operation, operand in chain:
        value = apply(value, operation, operand)
    return value
