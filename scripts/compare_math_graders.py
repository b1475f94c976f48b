"""What ours, plain math-verify and TRL's `accuracy_reward` pay for the same answers; prints a Markdown table.

The pairs are those of `tests/math_answers.py` (written for this, so no sample of what models say), and with `--data DIR` the
gold answers of MATH-500 in a box, as they are and with one digit or sign changed. Plain math-verify is its README's
`verify(parse(gold), parse(completion))`. A gold answer goes to the others in dollars, as TRL's data sets have it, where that
is what they read (`$...$`), and as it is otherwise; the better of the two counts.

    python scripts/compare_math_graders.py --data DIR              # the tables
    python scripts/compare_math_graders.py --kinds                 # and by kind of answer
"""

import argparse
import collections
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from lockstitch.rewards.contract import Value
from lockstitch.rewards.math_rewards import grade_math
from math_verify import parse, verify
from trl.rewards import accuracy_reward

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from math_answers import rows

Pair = tuple[str, str, str, float]  # kind, gold answer, completion, what it is worth
NAMES = ("ours", "math-verify", "accuracy_reward")


def changed(gold: str) -> Iterator[str]:
    """The gold answer with each of its digits in turn one higher, and with a sign changed."""
    for match in re.finditer(r"\d", gold):
        yield gold[: match.start()] + str((int(match[0]) + 1) % 10) + gold[match.end() :]
    yield gold[1:] if gold.startswith("-") else f"-{gold}"


def gold_pairs(data: Path) -> Iterator[Pair]:
    """MATH-500's gold answers against themselves and changed; a zero has no other sign."""
    for line in (data / "math500/test.jsonl").read_text(encoding="utf-8").split("\n"):
        if line:
            gold = json.loads(line)["answer"]
            yield "gold", gold, rf"\boxed{{{gold}}}", 1.0
            yield from (("changed", gold, rf"\boxed{{{other}}}", 0.0) for other in changed(gold) if other != "-0")


def by_math_verify(gold: str, completion: str) -> Value:
    """As its README does it; None if it cannot read the gold answer."""
    expected = parse(gold)
    return float(verify(expected, parse(completion))) if expected else None


def by_trl(gold: str, completion: str) -> Value:
    """As a trainer does it."""
    return accuracy_reward([[{"content": completion}]], [gold])[0]


def verdicts(pairs: list[Pair]) -> dict[str, list[Value]]:
    """What each of the three says of every pair."""
    golds, texts = [gold for _, gold, _, _ in pairs], [text for _, _, text, _ in pairs]
    found: dict[str, list[Value]] = {"ours": [verdict.value for verdict in grade_math(texts, golds, timeout=60.0)]}
    for name, judge in (("math-verify", by_math_verify), ("accuracy_reward", by_trl)):
        found[name] = []
        for _, gold, text, worth in pairs:
            said = [judge(gold, text), judge(f"${gold}$", text)]
            found[name].append(worth if worth in said else next((value for value in said if value is not None), None))
    return found


def table(pairs: list[Pair]) -> str:
    """As wanted, paid though wrong, refused though right, no verdict."""
    lines = [
        "| | pairs | as wanted | paid though wrong | refused though right | no verdict |",
        "|---|---|---|---|---|---|",
    ]
    worth = [row[3] for row in pairs]
    for name, values in verdicts(pairs).items():
        count = collections.Counter(
            "right" if value == wanted else "none" if value is None else "paid" if value > wanted else "refused"
            for value, wanted in zip(values, worth, strict=True)
        )
        share = f"{count['right']} ({count['right'] / len(pairs):.1%})"
        lines.append(f"| {name} | {len(pairs)} | {share} | {count['paid']} | {count['refused']} | {count['none']} |")
    return "\n".join(lines)


def kinds_table(pairs: list[Pair]) -> str:
    """The share as wanted of each, by kind."""
    lines = [f"| kind | pairs | {' | '.join(NAMES)} |", "|---|---|---|---|---|"]
    for kind in dict.fromkeys(pair[0] for pair in pairs):
        mine = [pair for pair in pairs if pair[0] == kind]
        values = verdicts(mine)
        right = [sum(v == pair[3] for v, pair in zip(values[name], mine, strict=True)) for name in NAMES]
        lines.append(f"| {kind} | {len(mine)} | {' | '.join(map(str, right))} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("LOCKSTITCH_DATA"), help="the folder of benchmark files"
    )
    parser.add_argument("--kinds", action="store_true", help="the answers of the table by kind, too")
    options = parser.parse_args()
    logging.disable(logging.ERROR)
    written = list(rows())
    print("Answers as people and models write them:\n\n" + table(written))
    if options.kinds:
        print("\n" + kinds_table(written))
    if options.data is not None:
        print("\nMATH-500's gold answers, as they are and changed:\n\n" + table(list(gold_pairs(Path(options.data)))))


if __name__ == "__main__":
    main()
