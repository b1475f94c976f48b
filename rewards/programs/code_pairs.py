"""Inputs and outputs as data sets have them: texts that a program reads and prints, or arguments and results."""

import ast
from typing import Any

from lockstitch.rewards.programs.code_names import BadTest
from lockstitch.rewards.programs.code_tests import Case, Dialogue, Test
from lockstitch.rewards.sandbox.sandbox_worker import THE_FUNCTION
from lockstitch.rewards.sandbox.tagged import encode


def pairs(inputs: Any, outputs: Any, function: str | None = None) -> tuple[Test, ...]:
    """One test for each input and its output.

    A text is what a program reads, a number stands for its text, and a list has the arguments of a function. What should be
    printed is a text, a number or a list of lines.

    Args:
        inputs: a list, or one text.
        outputs: as many.
        function: its name; by default the one that the program defines last.

    Raises:
        BadTest: they are something else, or of another number.
    """
    inputs, outputs = ([value] if isinstance(value, str) else value for value in (inputs, outputs))
    for name, value in (("inputs", inputs), ("outputs", outputs)):
        if not isinstance(value, list | tuple):
            raise BadTest(f"the column {name} is no list but {type(value).__name__}")
    if len(inputs) != len(outputs):
        raise BadTest(f"{len(inputs)} inputs and {len(outputs)} outputs")
    return tuple(_pair(*pair, function or THE_FUNCTION) for pair in zip(inputs, outputs, strict=True))


def _pair(given: Any, expected: Any, function: str) -> Test:
    if isinstance(given, list | tuple):
        try:
            arguments = ", ".join(map(repr, given))
            ast.literal_eval(f"({arguments},)" if given else "()")
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise BadTest("an input that cannot be written as Python") from None
        try:
            return Case(f"{function}({arguments})", encode(expected))
        except (ValueError, RecursionError):
            raise BadTest("an output that nests too deeply") from None
    if isinstance(expected, list | tuple) and all(isinstance(line, str) for line in expected):
        expected = "\n".join(expected)
    return Dialogue(_text(given, "input"), _text(expected, "output"))


def _text(value: Any, what: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise BadTest(f"an {what} that is neither a text, a number nor a list: {type(value).__name__}")
