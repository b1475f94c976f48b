"""Passes that speculation saves on the embedded models, and the rows and time that it costs.

    python scripts/bench_speculation.py [--n 100] [--ahead 1 2 4 8] [--blocks] [--time]

For each model and number of steps ahead: passes that wait for one another and rows read, both as shares of the plain run's
over the same held-out problems, with the 95 % interval of the mean over problems; trajectories that differ are counted.
Greedy at one token a step, the same at a temperature, and forks. `--time` adds wall time at batches of 1 and 8, the two
runs taking turns: ratios plain over speculative, median and quartiles. On a machine that does anything else only the
counts can be trusted.
"""

import argparse
import math
import statistics
import time

from lockstitch.rewards.tasks.named import get_task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import sample
from lockstitch.stitching.inputs import generate_problems

from lockstitch import embedded_model

BLOCK = {"sudoku": 5, "countdown": 13, "arithmetic": 12}
WAYS = {
    "one token a step, greedy": {},
    "one token a step, temperature .8": {"temperature": 0.8},
    "forks at .95, temperature .8": {
        "policy": "threshold",
        "threshold": 0.95,
        "fallback": "leftmost",
        "temperature": 0.8,
    },
}


def share(ours, plain, cost):
    """Mean over problems of a cost as a share of the plain run's, and half of its 95 % interval, as text."""
    shares = [getattr(a.ledger, cost) / getattr(b.ledger, cost) for a, b in zip(ours, plain, strict=True)]
    return f"{statistics.fmean(shares):.2f} ± {1.96 * statistics.stdev(shares) / math.sqrt(len(shares)):.2f}"


def timed(denoiser, prompts, batch, plain, ours, turns=5):
    """Ratio of wall times, plain over speculative, of turns of a few batches each."""

    def seconds(config):
        began = time.perf_counter()
        sample(denoiser, prompts[: 3 * batch], config, seed=0)
        return time.perf_counter() - began

    for config in (plain, ours):
        seconds(config)
    ratios = sorted(seconds(plain) / seconds(ours) for _ in range(turns))
    return f"{statistics.median(ratios):.2f} [{ratios[1]:.2f}, {ratios[-2]:.2f}]"


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["sudoku", "countdown", "arithmetic"], help="embedded models")
    parser.add_argument("--n", type=int, default=100, help="problems")
    parser.add_argument("--ahead", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--ways", nargs="+", type=int, default=[0, 1, 2], help=f"of {', '.join(WAYS)}: their numbers")
    parser.add_argument("--blocks", action="store_true", help="in blocks, not over the whole canvas")
    parser.add_argument("--time", action="store_true", help="wall times too")
    arguments = parser.parse_args()
    print("| model | way | ahead | sequential passes | rows |" + (" batch 1 | batch 8 |" if arguments.time else ""))
    print("|---|---|---|---|---|" + "---|---|" * arguments.time)
    for name in arguments.models:
        task = get_task(name.removesuffix("-early"))
        denoiser = Denoiser.from_pretrained(str(embedded_model(name)), device="cpu")
        prompts = [task.prompt(given.problem.question) for given in generate_problems(task, arguments.n, 3)]
        for way in (list(WAYS)[number] for number in arguments.ways):
            settings = {"canvas_length": task.canvas_length, **WAYS[way]}
            if arguments.blocks:
                settings["block_length"] = BLOCK[task.name]
            plain = sample(denoiser, prompts, SamplerConfig(**settings))
            for ahead in arguments.ahead:
                ours = sample(denoiser, prompts, SamplerConfig(speculate=ahead, **settings))
                other = sum(
                    a.canvas_ids != b.canvas_ids or a.commit_step != b.commit_step
                    for a, b in zip(ours, plain, strict=True)
                )
                costs = [share(ours, plain, cost) for cost in ("sequential_steps", "nfe")]
                line = f"| {name} | {way} | {ahead} | {' | '.join(costs)} |"
                if arguments.time:
                    for batch in (1, 8):
                        sizes = {"batch_size": batch, **settings}, {"batch_size": batch * (1 + ahead), **settings}
                        pair = SamplerConfig(**sizes[0]), SamplerConfig(speculate=ahead, **sizes[1])
                        line += f" {timed(denoiser, prompts, batch, *pair)} |"
                print(line + (f" {other} trajectories differ by rounding" if other else ""), flush=True)


if __name__ == "__main__":
    main()
