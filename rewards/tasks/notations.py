"""Rows in the benchmarks' own notations: what is asked, and the columns by the names that the rewards know.

Each reader takes a row of a file or of the hub's data set and returns its columns with `question` added; `ValueError` says
what is missing. Columns that a reader does not know stay. `prompt`, TRL's word for what a model is given, is renamed where a
benchmark means something else by it. Puzzles are read by `puzzles/forms.py` and `puzzle_rewards.py`.
"""

from collections.abc import Mapping
from typing import Any

from lockstitch.rewards.problem import text_of

Row = Mapping[str, Any]


def _without(row: Row, *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def read_math_row(row: Row) -> dict[str, Any]:
    """GSM8K, MATH, AIME, AMC: `question` or `problem`, with `answer` or `solution`; a gold answer of null is unknown."""
    names = [name for name in ("answer", "solution") if name in row]
    if not names:
        raise ValueError("no 'answer' or 'solution'")
    return {**row, "question": text_of(row, "question", "problem"), "answer": row[names[0]]}


def read_svamp_row(row: Row) -> dict[str, Any]:
    """SVAMP: `Body`, `Question` and `Answer`; or as `read_math_row`."""
    if "Question" not in row:
        return read_math_row(row)
    if "Answer" not in row:
        raise ValueError("no 'Answer'")
    body = str(row.get("Body") or "").strip()
    if body and body[-1] not in ".?!,;":
        body += "."  # the authors' files leave it out
    return {**row, "question": f"{body} {text_of(row, 'Question')}".strip(), "answer": row["Answer"]}


def read_humaneval_row(row: Row) -> dict[str, Any]:
    """HumanEval: `prompt`, the header of a function, which becomes `code_prompt`; `test` and `entry_point`."""
    text_of(row, "test")
    text_of(row, "entry_point")
    header = row.get("code_prompt") or row.get("prompt")
    if not isinstance(header, str) or not header.strip():
        raise ValueError("no 'code_prompt' or 'prompt': a function's header is needed")
    return {**_without(row, "prompt"), "code_prompt": header, "question": header}


def read_mbpp_row(row: Row) -> dict[str, Any]:
    """MBPP: `text` (or `prompt`, in the sanitized file) and `test_list`, which the question shows as the paper does."""
    tests = row.get("test_list")
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise ValueError("no 'test_list': a list of texts is needed")
    text = text_of(row, "text", "prompt")
    shown = "\n".join(test.strip() for test in tests)
    question = f"{text}\n\nThe program must pass these tests:\n{shown}"
    return {**_without(row, "prompt"), "text": text, "question": question}
