"""Accuracy and forward passes of every policy and correction on the embedded models, greedy, on held-out problems.

    python scripts/bench_policies.py --n 500 --output runs/policies [--images docs/images]

Each policy is a curve over its own knob (tokens a step, threshold, ...); the same problems throughout, so that differences
are paired. Rows are appended to OUTPUT/TASK.jsonl setting by setting and a second run goes on where the first stopped; the
tables are printed as Markdown, and `--images` draws accuracy over NFE (it needs matplotlib). Intervals are Wilson's at 95 %.

Two questions are answered by paired differences: does the deferred window (DCD) beat blocks of its width at the same
threshold, and does draft-then-revise beat a draft that is given the same number of forward passes?
"""

import argparse
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lockstitch.rewards.statistics import paired_difference, wilson
from lockstitch.rewards.tasks.named import get_task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import sample
from lockstitch.stitching.inputs import generate_problems
from tqdm import tqdm

from lockstitch import embedded_model
from lockstitch.files import finished_rows

# Positions in a block: a row of the sudoku, a step of countdown, about a line of a worksheet.
BLOCK = {"sudoku": 5, "countdown": 13, "arithmetic": 12}
TOKENS = (1, 2, 4, 8)
THRESHOLDS = (0.99, 0.95, 0.9, 0.7, 0.5)
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
BOUNDS = (0.01, 0.05, 0.1, 0.3, 1.0)
REVISED = 0.25


@dataclass(frozen=True)
class Setting:
    """A point of a curve: what is varied (`curve`), its value (`knob`), and the sampler's settings."""

    curve: str
    knob: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self):
        """What tables call it."""
        return f"{self.curve}, {self.knob}"


def settings_of(length, block):
    """Every point that is measured on a canvas of that length."""
    points = []

    def add(curve, knob, **settings):
        points.append(Setting(curve, knob, settings))

    for tokens in TOKENS:
        knob, whole, blocks = (
            f"{tokens} a step",
            math.ceil(length / tokens),
            length // block * math.ceil(block / tokens),
        )
        add("quota", knob, steps=whole)
        add("quota in blocks", knob, steps=blocks, block_length=block)
        revise = {"correction": "revise", "revise_fraction": REVISED}
        add("draft and revise", knob, steps=whole, **revise)
        add("draft in blocks and revise", knob, steps=blocks, block_length=block, **revise)
        add("ReMDM, cap", knob, steps=whole, correction="remdm", sigma="cap", eta=0.05)
        add("ReMDM, confidence", knob, steps=whole, correction="remdm", sigma="confidence")
        add("quota and edit", knob, steps=whole, correction="edit", edit_threshold=0.9)
    for threshold in THRESHOLDS:
        knob = f"{threshold}"
        chosen = {"policy": "threshold", "threshold": threshold}
        add("threshold", knob, **chosen)
        add("threshold in blocks", knob, block_length=block, **chosen)
        add("deferred window", knob, policy="deferred", threshold=threshold, window=block, window_limit=128)
        add("threshold and edit", knob, correction="edit", edit_threshold=0.9, **chosen)
    for factor in FACTORS:
        add("factor", f"{factor}", policy="factor", factor=factor)
    for bound in BOUNDS:
        add("entropy bound", f"{bound}", policy="entropy_bound", entropy_bound=bound)
    return points


def equal_nfe(length, block, rows):
    """A draft for each revised one, whole or in blocks, with as many steps as draft and revision took together.

    Blocks take a multiple of their number, so the draft in blocks may get a few steps more, never fewer.
    """
    points = []
    for row in rows:
        if row["curve"] == "draft and revise":
            steps = min(length, math.ceil(row["nfe"]))
            points.append(Setting("draft of equal NFE", row["knob"], {"steps": steps}))
        elif row["curve"] == "draft in blocks and revise":
            blocks = length // block
            steps = min(length, blocks * math.ceil(row["nfe"] / blocks))
            points.append(
                Setting("draft in blocks of equal NFE", row["knob"], {"steps": steps, "block_length": block})
            )
    return points


def measure(name, arguments):
    """Rows of one model: for each setting its outcomes (one bit a problem) and mean costs."""
    task = get_task(name.removesuffix("-early"))
    denoiser = Denoiser.from_pretrained(str(embedded_model(name)))
    problems = [given.problem for given in generate_problems(task, arguments.n, arguments.seed)]
    prompts = [task.prompt(problem.question) for problem in problems]
    path = arguments.output / f"{name}.jsonl"
    length, block = task.canvas_length, BLOCK[task.name]

    def run(points):
        done = {(row["curve"], row["knob"]) for row in finished_rows(path)}
        with path.open("a") as file:
            for point in tqdm(points, desc=name):
                if (point.curve, point.knob) in done:
                    continue
                config = SamplerConfig(canvas_length=length, batch_size=256, **point.settings)
                drawn = sample(denoiser, prompts, config)
                answers = [task.extract(trajectory.text) for trajectory in drawn]
                right = [
                    bool(answer) and bool(task.is_correct(problem.question, problem.answer, answer))
                    for problem, answer in zip(problems, answers, strict=True)
                ]
                costs = {
                    cost: sum(getattr(one.ledger, cost) for one in drawn) / len(drawn)
                    for cost in ("nfe", "tokens_forwarded")
                }
                row = {
                    "curve": point.curve,
                    "knob": point.knob,
                    "settings": point.settings,
                    **costs,
                    "right": "".join("01"[bit] for bit in right),
                }
                file.write(json.dumps(row) + "\n")
                file.flush()

    run(settings_of(length, block))
    run(equal_nfe(length, block, finished_rows(path)))
    return finished_rows(path)


def outcomes(row):
    """A row's bits as booleans."""
    return [bit == "1" for bit in row["right"]]


def print_table(tables):
    """Accuracy with its interval, and NFE, of each setting on each model, as Markdown."""
    print("\n| policy | setting | " + " | ".join(f"{name} | NFE" for name in tables) + " |")
    print("|---|---|" + "---|---|" * len(tables))
    cells = {}
    for name, rows in tables.items():
        for row in rows:
            right = outcomes(row)
            low, high = wilson(sum(right), len(right))
            accuracy = f"{100 * sum(right) / len(right):.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            cells.setdefault((row["curve"], row["knob"]), {})[name] = f"{accuracy} | {row['nfe']:.1f}"
    curves = list(dict.fromkeys(curve for curve, _ in cells))
    for curve, knob in sorted(cells, key=lambda point: curves.index(point[0])):
        print(f"| {curve} | {knob} | " + " | ".join(cells[curve, knob].get(name, " | ") for name in tables) + " |")


def print_pairs(tables):
    """The two questions, as paired differences in points with their standard errors (and both NFE)."""
    questions = (
        ("deferred window", "threshold in blocks"),
        ("deferred window", "threshold"),
        ("draft and revise", "draft of equal NFE"),
        ("draft in blocks and revise", "draft in blocks of equal NFE"),
    )
    print("\n| this | against | setting | " + " | ".join(f"{name} | NFE" for name in tables) + " |")
    print("|---|---|---|" + "---|---|" * len(tables))
    points = {name: {(row["curve"], row["knob"]): row for row in rows} for name, rows in tables.items()}
    for this, other in questions:
        for curve, knob in dict.fromkeys(point for by_point in points.values() for point in by_point):
            if curve != this:
                continue
            cells = []
            for by_point in points.values():
                row, against = by_point.get((this, knob)), by_point.get((other, knob))
                if row is None or against is None:
                    cells.append(" | ")
                    continue
                pair = paired_difference(outcomes(row), outcomes(against))
                cells.append(
                    f"{100 * pair['difference']:+.1f} ± {100 * pair['standard_error']:.1f} | "
                    f"{row['nfe']:.1f} / {against['nfe']:.1f}"
                )
            print(f"| {this} | {other} | {knob} | " + " | ".join(cells) + " |")


def draw(name, rows, images):
    """Accuracy over NFE, a line per curve."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.4, 4.4), layout="constrained")
    curves = {}
    for row in rows:
        right = outcomes(row)
        curves.setdefault(row["curve"], []).append((row["nfe"], 100 * sum(right) / len(right)))
    shown = [curve for curve in curves if "equal NFE" not in curve]
    for i, curve in enumerate(shown):
        style = {"color": f"C{i % 10}", "linestyle": ("-", "--")[i // 10], "marker": "os^v"[i % 4]}
        axes.plot(*zip(*sorted(curves[curve]), strict=True), markersize=4, linewidth=1.2, label=curve, **style)
    axes.set(xlabel="forward passes (NFE)", ylabel="accuracy, %", xscale="log", title=f"{name}, greedy")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    figure.savefig(images / f"policies-{name}.png", dpi=110)


def main():
    """Measures, prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["sudoku", "countdown", "arithmetic"], help="embedded models")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/policies"))
    parser.add_argument("--images", type=Path, help="also draw the curves into this directory")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    tables = {name: measure(name, arguments) for name in arguments.models}
    print_table(tables)
    print_pairs(tables)
    if arguments.images is not None:
        for name, rows in tables.items():
            draw(name, rows, arguments.images)


if __name__ == "__main__":
    main()
