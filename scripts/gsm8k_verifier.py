"""A verifier of real traces, fitted on half of the questions and used on the other half, both ways round: the tables.

    LOCKSTITCH_DATA=DIR python scripts/gsm8k_verifier.py runs/gsm8k

Needs the files of `scripts/gsm8k_traces.py`, which writes the traces. Questions are halved by a checksum; for each half
`lockstitch prm` fits the verifier and the vote by evidence on the other one, and `lockstitch stitch` compares the methods
with the calculator, the verifier and both. No figure is of a question that anything was fitted on. Printed are the halves
together: accuracy, and `stitched` against every method and every single source, paired.
"""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

from lockstitch.rewards.statistics import paired_difference, wilson

SOURCES = ("6B", "6B, with a verifier", "175B", "175B, with a verifier", "LLaDA-8B (of its questions)")
METHODS = ("majority_vote", "best_of_n", "weighted_vote", "stitched")


def run(*words):
    """A command, whose last lines are shown if it fails."""
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def rows_of(path):
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def halves(output):
    """The traces in two files by question."""
    found = [output / "half-0.jsonl", output / "half-1.jsonl"]
    run(Path(__file__).parent / "gsm8k_traces.py", output / "traces.jsonl")
    rows = rows_of(output / "traces.jsonl")
    for half, path in enumerate(found):
        kept = [row for row in rows if zlib.crc32(row["question"].encode()) % 2 == half]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return found


def stitch(output, name, test, *options):
    """The rows of a stitching."""
    directory = output / name
    run("-m", "lockstitch", "stitch", "--task", "gsm8k", "--trajectories", test, "--output", directory, *options)
    return rows_of(directory / "results.jsonl")


def main():
    """Fits, stitches and prints."""
    if len(sys.argv) != 2 or "LOCKSTITCH_DATA" not in os.environ:
        raise SystemExit(__doc__)
    output = Path(sys.argv[1])
    output.mkdir(parents=True, exist_ok=True)
    parts = halves(output)
    found = {}
    for half, test in enumerate(parts):
        verifier = output / f"verifier-{half}"
        told = run(
            "-m",
            "lockstitch",
            "prm",
            "--task",
            "gsm8k",
            "--traces",
            parts[1 - half],
            "--eval_traces",
            test,
            "--model_name_or_path",
            "features",
            "--output_dir",
            verifier,
        )
        print("\n".join(line for line in told.split("\n") if "AUC" in line), flush=True)
        evidence = ("--evidence_weights", verifier / "evidence_weights.json")
        both = f"calculator+verifier:{verifier}"
        scorers = {
            "calculator": ("--scorer", "calculator"),
            "verifier": ("--scorer", f"verifier:{verifier}"),
            "verifier, fitted vote": ("--scorer", f"verifier:{verifier}", *evidence),
            "both, fitted vote": ("--scorer", both, "--scorer_weights", verifier / "scorer_weights.json", *evidence),
        }
        for name, options in scorers.items():
            place = f"{name.replace(', ', '-').replace(' ', '-')}-{half}"
            found.setdefault(name, []).extend(stitch(output, place, test, *options))
    table(found)


def shown(mine, theirs):
    """A paired difference in points with its interval."""
    one = paired_difference(mine, theirs)
    low, high = one["ci95"]
    return f"{100 * one['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def table(found):
    """The tables as Markdown."""
    n = len(next(iter(found.values())))
    print(
        f"\n{n} questions\n\n| scorer | method | accuracy | 95 % interval | stitched minus it |\n|---|---|---|---|---|"
    )
    for name, rows in found.items():
        mine = [bool(row["methods"]["stitched"]["correct"]) for row in rows]
        for method in METHODS:
            right = [bool(row["methods"][method]["correct"]) for row in rows]
            low, high = wilson(sum(right), n)
            paired = "" if method == "stitched" else shown(mine, right)
            print(
                f"| {name} | {method} | {100 * sum(right) / n:.1f} | {100 * low:.1f} to {100 * high:.1f} | {paired} |"
            )
    heads = " | ".join(f"stitched by {name} minus it" for name in found)
    print(f"\n| source alone | accuracy | 95 % interval | n | {heads} |\n{'|---' * (4 + len(found))}|")
    for source, k in (*((name, k) for k, name in enumerate(SOURCES)), ("LLaDA-8B, else 175B with a verifier", -1)):
        cells = []
        for rows in found.values():
            pairs = [
                (bool(row["methods"]["stitched"]["correct"]), bool(row["trajectories"][k]["correct"]))
                for row in rows
                if len(row["trajectories"]) > k
            ]
            mine, right = map(list, zip(*pairs, strict=True))
            cells.append(shown(mine, right))
        low, high = wilson(sum(right), len(right))
        mean = 100 * sum(right) / len(right)
        print(
            f"| {source} | {mean:.1f} | {100 * low:.1f} to {100 * high:.1f} | {len(right)} | {' | '.join(cells)} |",
        )


if __name__ == "__main__":
    main()
