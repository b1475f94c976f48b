"""Grades real model outputs with our rewards and compares the verdicts with others'; prints Markdown tables.

The files are those of a folder of benchmarks: `gsm8k/example_model_solutions.jsonl` (four models' solutions with published
correctness, openai/grade-school-math) and `llada_d1_baselines/*_256_128.jsonl` (LLaDA-8B-Instruct, dllm-reasoning/d1). The
latter publish no verdicts, so ours stand beside those of a simple parser, as evaluation scripts have it: the last box up to
its first closing brace as a float (GSM8K) or as a string (MATH-500), Python's value of it in floats (countdown), the
digits between the answer tags compared with the one gold grid (Sudoku).

    python scripts/grade_real_outputs.py --data DIR                 # the tables
    python scripts/grade_real_outputs.py --data DIR --differences   # and every output on which the verdicts differ
"""

import argparse
import ast
import json
import operator
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lockstitch.rewards.contract import Value
from lockstitch.rewards.marks import without_special_tokens
from lockstitch.rewards.math_rewards import math_reward
from lockstitch.rewards.puzzle_rewards import countdown_reward, sudoku_reward

Row = dict[str, Any]
Verdicts = tuple[str, list[Row], list[bool], list[Value], list[str]]  # title, rows, theirs, ours, texts

_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def read(path: Path) -> list[Row]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def last_box(text: str) -> str | None:
    """The last box up to its first closing brace."""
    found = re.findall(r"\\boxed\{(.*?)\}", text, re.DOTALL)
    return found[-1] if found else None


def simple_number(row: Row) -> bool:
    """Whether the last box is, as a float, the gold answer."""
    box = last_box(row["generations"])
    try:
        return (
            box is not None and row["ground_truth"] is not None and float(box.replace(",", "")) == row["ground_truth"]
        )
    except ValueError:
        return False


def simple_string(row: Row) -> bool:
    """Whether the last box, braces balanced, is the gold answer letter by letter, white space apart."""
    start = row["generations"].rfind("\\boxed{")
    depth, end = 0, start
    for end in range(start + 6, len(row["generations"]) if start >= 0 else 0):
        depth += {"{": 1, "}": -1}.get(row["generations"][end], 0)
        if depth == 0:
            break
    return start >= 0 and "".join(row["generations"][start + 7 : end].split()) == "".join(row["ground_truth"].split())


def _value(node: ast.expr) -> float:
    match node:
        case ast.BinOp() if type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
        case ast.UnaryOp(op=ast.USub()):
            return -_value(node.operand)
        case ast.Constant(value=int() | float() as value):
            return value
    raise ValueError(f"no arithmetic: {ast.dump(node)}")


def simple_expression(row: Row) -> bool:
    """Whether the box or answer block, as Python reads it, uses the numbers and comes within 1e-5 of the target."""
    numbers, target = row["ground_truth"]
    block = re.findall(r"<answer>(.*?)</answer>", row["generations"], re.DOTALL)
    text = (last_box(row["generations"]) or (block[-1] if block else "")).replace("\\div", "/").replace("\\times", "*")
    text = re.sub(r"=\s*[\d.]+\s*$", "", text).strip()
    try:
        value = _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return False
    return sorted(map(int, re.findall(r"\d+", text))) == sorted(numbers) and abs(value - target) < 1e-5


def simple_grid(row: Row) -> bool:
    """Whether the digits between the answer tags are the gold grid."""
    block = re.findall(r"<answer>(.*?)</answer>", row["generations"], re.DOTALL)
    return bool(block) and re.sub(r"\D", "", block[-1]) == row["ground_truth"]


def solutions(data: Path) -> list[Verdicts]:
    """Four models' GSM8K solutions, against published correctness."""
    rows = read(data / "gsm8k/example_model_solutions.jsonl")
    golds = [row["ground_truth"] for row in rows]
    tables = []
    for model in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
        texts = [row[model]["solution"] for row in rows]
        published = [row[model]["is_correct"] for row in rows]
        tables.append((f"GSM8K, {model}", rows, published, math_reward([""] * len(rows), texts, answer=golds), texts))
    return tables


def baselines(data: Path) -> list[Verdicts]:
    """LLaDA's outputs, against the simple parsers."""
    kinds: list[tuple[str, str, Callable[..., list[Value]], str, Callable[[Row], bool]]] = [
        ("GSM8K", "gsm8k", math_reward, "ground_truth", simple_number),
        ("MATH-500", "math500", math_reward, "ground_truth", simple_string),
        ("Countdown-3", "countdown", countdown_reward, "question", simple_expression),
        ("Sudoku 4x4", "sudoku", sudoku_reward, "question", simple_grid),
    ]
    tables = []
    for title, name, reward, column, simple in kinds:
        rows = read(data / f"llada_d1_baselines/{name}_256_128.jsonl")
        texts = [row["generations"] for row in rows]
        passed = {"answer" if column == "ground_truth" else column: [row[column] for row in rows]}
        ours = reward([""] * len(rows), texts, **passed)
        tables.append((f"{title}, LLaDA-8B-Instruct", rows, [simple(row) for row in rows], ours, texts))
    return tables


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of benchmark files")
    parser.add_argument("--differences", action="store_true", help="print every output on which the verdicts differ")
    options = parser.parse_args()
    for heading, tables in (
        ("published", solutions(options.data)),
        ("simple parser", baselines(options.data)),
    ):
        print(
            f"| outputs | rows | right: {heading} | right: ours | not scored | same verdict |\n|---|---|---|---|---|---|"
        )
        for title, rows, theirs, ours, _ in tables:
            same = sum(
                value is not None and (value == 1.0) == verdict for verdict, value in zip(theirs, ours, strict=True)
            )
            right, none = sum(value == 1.0 for value in ours), sum(value is None for value in ours)
            print(f"| {title} | {len(rows)} | {sum(theirs)} | {right} | {none} | {same} ({same / len(rows):.1%}) |")
        print()
        for title, rows, theirs, ours, texts in tables if options.differences else []:
            for i, (row, verdict, value, text) in enumerate(zip(rows, theirs, ours, texts, strict=True)):
                if (value == 1.0) != verdict:
                    print(f"{title} row {i}: {heading} {verdict}, ours {value}, gold {row['ground_truth']!r}")
                    print(f"{without_special_tokens(text).strip()[-300:]!r}\n")


if __name__ == "__main__":
    main()
