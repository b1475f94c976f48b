"""Real traces for stitching: GSM8K questions with solutions of five real models, as `lockstitch stitch` reads them.

    LOCKSTITCH_DATA=DIR python scripts/gsm8k_traces.py runs/gsm8k/traces.jsonl
    lockstitch stitch --task gsm8k --trajectories runs/gsm8k/traces.jsonl --output runs/gsm8k/none

DIR holds OpenAI's `gsm8k/example_model_solutions.jsonl` (four solutions a question, openai/grade-school-math, MIT) and d1's
`llada_d1_baselines/gsm8k_256_128.jsonl` (one completion of LLaDA-8B-Instruct for some of the same questions, Apache-2.0),
which becomes the fifth trajectory where the question has one.
"""

import json
import os
import re
import sys
from pathlib import Path

from lockstitch.rewards.extract import last_marked

SOLUTIONS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def rows(path):
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def key(question):
    """A question without the differences in quotes and white space between the two files."""
    return re.sub(r"\W+", "", question).lower()


def main():
    """Writes the traces."""
    if len(sys.argv) != 2 or "LOCKSTITCH_DATA" not in os.environ:
        raise SystemExit(__doc__)
    data, output = Path(os.environ["LOCKSTITCH_DATA"]), Path(sys.argv[1])
    llada = {}
    for row in rows(data / "llada_d1_baselines/gsm8k_256_128.jsonl"):
        text = re.sub(r"<\|[a-z_]+\|>", "", row["generations"]).strip()
        if text:
            llada[key(row["question"])] = text
    output.parent.mkdir(parents=True, exist_ok=True)
    fifth = 0
    with output.open("w", encoding="utf-8") as file:
        for row in rows(data / "gsm8k/example_model_solutions.jsonl"):
            completions = [row[name]["solution"] for name in SOLUTIONS]
            if key(row["question"]) in llada:
                completions.append(llada[key(row["question"])])
                fifth += 1
            answer = last_marked(row["ground_truth"])
            file.write(json.dumps({"question": row["question"], "answer": answer, "completions": completions}) + "\n")
    print(f"{output}: {fifth} questions have a fifth trajectory")


if __name__ == "__main__":
    main()
