"""How fast the math reward is, and what a completion that hangs costs the others; prints a Markdown table.

Median and range of several passes in one run, workers warm. Throughput is that of `math` on real outputs of
LLaDA-8B-Instruct (`llada_d1_baselines` in a folder of benchmark files): on GSM8K, where whole numbers are compared on the
spot, and on MATH-500, where nearly every pair goes through math-verify. The hung completion, a power that no computer ends,
stands in the middle of a batch of fractions: it may cost its own time limit, while the other worker does the rest.

    python scripts/bench_rewards.py --data DIR

Left out: programs in the sandbox.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lockstitch.rewards.math_rewards import TIMEOUT_SECONDS, grade_math

HANG = r"\boxed{9^{9^{9^{9}}}}"
TARGET = 200  # completions a second on GSM8K


def seconds_of(run: Callable[[], object], repeats: int) -> list[float]:
    """Wall time of each of several runs, after one that is not counted."""
    run()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return seconds


def line(what: str, values: Sequence[float], unit: str, target: str = "") -> str:
    """A row of the table: median, least and most."""
    return (
        f"| {what} | {statistics.median(values):,.3g} {unit} | {min(values):,.3g} to {max(values):,.3g} | {target} |"
    )


def throughput(data: Path, name: str, repeats: int) -> list[float]:
    """Completions a second on LLaDA's outputs of a benchmark."""
    text = (data / f"llada_d1_baselines/{name}_256_128.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(row) for row in text.split("\n") if row]
    texts, golds = [row["generations"] for row in rows], [row["ground_truth"] for row in rows]
    return [len(rows) / seconds for seconds in seconds_of(lambda: grade_math(texts, golds, timeout=60.0), repeats)]


def hung(count: int, timeout: float, repeats: int) -> tuple[list[float], list[float], int]:
    """Seconds of a batch without and with a completion that hangs, in turn; and how many others lost their verdict."""
    texts, golds = [rf"\boxed{{{i}/7}}" for i in range(count)], ["5/7"] * (count + 1)
    middle = [*texts[: count // 2], HANG, *texts[count // 2 :]]
    without, with_it, lost = [], [], 0
    for _ in range(repeats):
        without += seconds_of(lambda: grade_math(texts, golds[:-1], timeout), 1)
        began = time.perf_counter()
        values = [verdict.value for verdict in grade_math(middle, golds, timeout)]
        with_it.append(time.perf_counter() - began)
        del values[count // 2]
        lost += sum(value != float(i == 5) for i, value in enumerate(values))
    return without, with_it, lost


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("LOCKSTITCH_DATA"), help="the folder of benchmark files"
    )
    parser.add_argument("--repeats", type=int, default=5, help="passes of each measurement, at least 5 (default)")
    parser.add_argument("--count", type=int, default=600, help="completions beside the one that hangs (default 600)")
    parser.add_argument(
        "--timeout", type=float, default=TIMEOUT_SECONDS, help="its time limit (default: the reward's, 5 s)"
    )
    options = parser.parse_args()
    if options.data is None:
        parser.error("--data DIR is needed, or LOCKSTITCH_DATA")
    if options.repeats < 5:
        parser.error(f"--repeats {options.repeats}: at least 5 are needed for a spread")
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, load average {os.getloadavg()[0]:.1f} at the start, {options.repeats} passes\n")
    print("| what | median | range | target |\n|---|---|---|---|")
    print(
        line(
            "`math` on GSM8K outputs",
            throughput(options.data, "gsm8k", options.repeats),
            "/s",
            f"at least {TARGET} /s",
        )
    )
    print(line("`math` on MATH-500 outputs", throughput(options.data, "math500", options.repeats), "/s"))
    without, with_it, lost = hung(options.count, options.timeout, options.repeats)
    print(line(f"a batch of {options.count} fractions", without, "s"))
    print(line(f"the same and one that hangs, limit {options.timeout:g} s", with_it, "s"))
    extra = [(b - a) / options.timeout for a, b in zip(without, with_it, strict=True)]
    print(line("what it adds, in its own limits", extra, "limits", "at most about 1"))
    print(line("with it against without it", [b / a for a, b in zip(without, with_it, strict=True)], "x"))
    print(f"\n{lost} of {options.count * options.repeats} others lost their verdict (target: none)")


if __name__ == "__main__":
    main()
