"""What can be said of single traces: LLaDA-8B-Instruct's published outputs on MATH-500, one a question.

    LOCKSTITCH_DATA=DIR python scripts/math500_traces.py

DIR holds d1's `llada_d1_baselines/math500_256_128.jsonl` (Apache-2.0) and `math500/test.jsonl` (MIT). With one trace there
is nothing to stitch or to vote on; what a scorer can do is to say which answers to trust. Printed: accuracy, by level, the
area under the curve of three signs that cost nothing, and accuracy among the half that each of them trusts most.
"""

import json
import os
import re
from pathlib import Path

from lockstitch.rewards.marks import without_special_tokens
from lockstitch.rewards.statistics import wilson
from lockstitch.rewards.steps import check_steps
from lockstitch.rewards.tasks.named import get_task
from lockstitch.stitching.calibration import judge_scores
from lockstitch.stitching.segment import steps_of

TASK = get_task("math500")


def rows_of(path):
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def key(text):
    """A question without what differs in spelling between the files."""
    return re.sub(r"\W+", "", text).lower()


def share(right):
    """A share in per cent with its interval."""
    low, high = wilson(sum(right), len(right))
    return f"{100 * sum(right) / len(right):.1f} ({100 * low:.1f} to {100 * high:.1f}), n {len(right)}"


def main():
    """Prints the figures."""
    if "LOCKSTITCH_DATA" not in os.environ:
        raise SystemExit(__doc__)
    data = Path(os.environ["LOCKSTITCH_DATA"])
    levels = {key(row["problem"]): row["level"] for row in rows_of(data / "math500/test.jsonl")}
    found = []
    for row in rows_of(data / "llada_d1_baselines/math500_256_128.jsonl"):
        text = without_special_tokens(row["generations"])
        answer = TASK.extract(text)
        problem = TASK.read_row({"question": row["question"], "answer": row["ground_truth"]})
        (verdict,) = TASK.judge(problem, [answer or ""], [text])
        steps = [step.text for step in steps_of(text, TASK.unit, 0)]
        sound = check_steps(TASK.checker, row["question"], steps)
        if verdict is not None:
            found.append(
                {
                    "right": bool(answer) and verdict,
                    "answered": bool(answer),
                    "level": levels.get(key(row["question"])),
                    "calculator": sum(sound) / max(1, len(sound)),
                    "brevity": 1 / (1 + len(text) / 1000),
                    "box": float("\\boxed" in text),
                }
            )
    print(f"right: {share([row['right'] for row in found])}")
    print(f"with an answer: {share([row['answered'] for row in found])}")
    for level in sorted({row["level"] for row in found if row["level"] is not None}):
        print(f"level {level}: {share([row['right'] for row in found if row['level'] == level])}")
    for sign in ("calculator", "brevity", "box"):
        auc = judge_scores([row[sign] for row in found], [float(row["right"]) for row in found])["auc"]
        trusted = sorted(found, key=lambda row, sign=sign: -row[sign])[: len(found) // 2]
        print(f"{sign}: AUC {auc:.3f}; the half that it trusts most: {share([row['right'] for row in trusted])}")


if __name__ == "__main__":
    main()
