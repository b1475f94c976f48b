"""Inputs and outputs as data sets have them: texts that a program reads and prints, or arguments and results."""

import ast
import json
from typing import Any

from lockstitch.rewards.programs.code_names import BadTest
from lockstitch.rewards.programs.code_tests import Case, Dialogue, Test
from lockstitch.rewards.programs.same import as_json
from lockstitch.rewards.sandbox.sandbox_worker import THE_FUNCTION
from lockstitch.rewards.sandbox.tagged import encode


def pairs(inputs: Any, outputs: Any, function: str | None = None) -> tuple[Test, ...]:
    """One test for each input and its output.

    A text is what a program reads, a number or a truth value stands for its text, and a list has the arguments of a
    function. What should be printed is a text, a number, a truth value or a list of lines. Where a function is named, its
    arguments may also be lines of JSON (LiveCodeBench's form), and results may all stand in a list each (APPS's form).
    Results are compared as JSON has them.

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
    if function:
        inputs, outputs = _of_function(list(inputs), list(outputs))
    is_wrapped = (
        bool(function) and len(outputs) > 0 and all(isinstance(one, list) and len(one) == 1 for one in outputs)
    )
    return tuple(
        _pair(given, expected, function or THE_FUNCTION, is_wrapped)
        for given, expected in zip(inputs, outputs, strict=True)
    )


def _of_function(inputs: list[Any], outputs: list[Any]) -> tuple[list[Any], list[Any]]:
    """What a named function is called with: a text holds a JSON value in each of its lines, a lone value is the argument.

    Texts that are no JSON are what a program reads.
    """
    if inputs and all(isinstance(given, str) for given in inputs) and all(isinstance(out, str) for out in outputs):
        try:
            values = [[json.loads(line) for line in given.split("\n") if line.strip()] for given in inputs]
            return values, [json.loads(out) for out in outputs]
        except (ValueError, RecursionError):
            return inputs, outputs
    return [given if isinstance(given, str | list | tuple) else [given] for given in inputs], outputs


def _pair(given: Any, expected: Any, function: str, is_wrapped: bool) -> Test:
    if isinstance(given, list | tuple):
        try:
            arguments = ", ".join(map(repr, given))
            ast.literal_eval(f"({arguments},)" if given else "()")
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise BadTest("an input that cannot be written as Python") from None
        try:
            return Case(f"{function}({arguments})", as_json(encode(expected)), is_wrapped, is_json=True)
        except (ValueError, RecursionError):
            raise BadTest("an output that nests too deeply") from None
    if isinstance(expected, list | tuple) and all(isinstance(line, str) for line in expected):
        expected = "\n".join(expected)
    return Dialogue(_text(given, "input"), _text(expected, "output"))


def _text(value: Any, what: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    raise BadTest(f"an {what} that is neither a text, a number nor a list: {type(value).__name__}")
