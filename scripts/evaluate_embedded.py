"""How good the embedded models are: held-out accuracy, greedy, by tokens per step; and the solver with and without evidence.

    python scripts/evaluate_embedded.py [--n 500] [--output runs/evaluation.json]
    LOCKSTITCH_DATA=DIR python scripts/evaluate_embedded.py      # d1's sudoku and countdown test rows as well
    python scripts/evaluate_embedded.py --curve runs/tiny --n 200   # the checkpoints of a training, with pictures

Intervals are Wilson's at 95 %. The pictures need matplotlib.
"""

import argparse
import json
import os
import random
from pathlib import Path

from lockstitch.recipes.evidence import evidence_text
from lockstitch.rewards.puzzles import arithmetic
from lockstitch.rewards.statistics import wilson
from lockstitch.rewards.tasks.named import get_task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import sample
from lockstitch.stitching.inputs import generate_problems, read_problems
from lockstitch.stitching.refine import load_solver

from lockstitch import embedded_model
from lockstitch.files import write_whole

SEED = 7
EVIDENCE = (
    ("complete evidence, scored by a checker", "complete", True),
    ("complete evidence, scores that err", "complete", False),
    ("no evidence", "none", True),
)
PUBLISHED = {
    "sudoku": ("d1's test rows", "sudoku/4x4_test_sudoku.csv"),
    "countdown": ("d1's test rows", "countdown/countdown_cd3_test.jsonl"),
    "sudoku9": ("the hard set", "sudoku9/hard_first_1000.csv"),
}
WITHOUT_SOLVER = ("sudoku9",)  # whose checkpoints and evidence are nobody's


def problem_sets(name, n):
    """Named sets of held-out problems of a task."""
    task = get_task(name)
    if name == "arithmetic":
        rng = random.Random(SEED)
        sets = {
            f"chains of {k}": [arithmetic.generate_chain(rng, k, held_out=True) for _ in range(n)]
            for k in (2, 3, 4, 5)
        }
        sets["word problems"] = [
            arithmetic.generate_word_problem(rng, rng.choice((1, 2)), held_out=True) for _ in range(n)
        ]
        return sets
    sets = {"generated": [given.problem for given in generate_problems(task, n, SEED)]}
    if "LOCKSTITCH_DATA" in os.environ:
        label, file = PUBLISHED[name]
        path = Path(os.environ["LOCKSTITCH_DATA"]) / file
        sets[label] = [given.problem for given in read_problems(path, task)]
    return sets


def accuracy(denoiser, task, problems, tokens=1):
    """Right answers of greedy denoising at so many tokens a step."""
    config = SamplerConfig(canvas_length=task.canvas_length, steps=-(-task.canvas_length // tokens), batch_size=256)
    drawn = sample(denoiser, [task.prompt(problem.question) for problem in problems], config)
    return count_right(task, problems, [t.text for t in drawn])


def count_right(task, problems, texts):
    """How many texts hold a right answer."""
    answers = [task.extract(text) for text in texts]
    return sum(
        bool(answer) and bool(task.is_correct(problem.question, problem.answer, answer))
        for problem, answer in zip(problems, answers, strict=True)
    )


def show(label, right, n):
    """One line of the table, and its values."""
    low, high = wilson(right, n)
    print(f"{label:52s} {100 * right / n:5.1f} % [{100 * low:.1f}, {100 * high:.1f}]  n={n}", flush=True)
    return {"accuracy": right / n, "ci95": [low, high], "n": n}


def evaluate(n, tasks):
    """Final figures of every embedded model."""
    table = {}
    for name in tasks:
        task = get_task(name)
        for model in (name,) if name in WITHOUT_SOLVER else (name, f"{name}-early"):
            denoiser = Denoiser.from_pretrained(str(embedded_model(model)))
            for label, problems in problem_sets(name, n).items():
                for tokens in (1, 2, 4) if model == name else (1,):
                    key = f"{model}: {label}, {tokens} a step"
                    table[key] = show(key, accuracy(denoiser, task, problems, tokens), len(problems))
        if name in WITHOUT_SOLVER:
            continue
        solver = load_solver(str(embedded_model("solver")), task)
        problems = [given.problem for given in generate_problems(task, n, SEED)]
        problems = [problem for problem in problems if problem.solution is not None]
        for label, kind, exact in EVIDENCE:
            rng = random.Random(SEED)
            evidences = [evidence_text(name, problem, kind, exact, rng) for problem in problems]
            texts = [answered.text for answered in solver([problem.question for problem in problems], evidences)]
            key = f"solver on {name}: {label}"
            table[key] = show(key, count_right(task, problems, texts), len(problems))
    return table


def spread(checkpoints, most=12):
    """At most so many of the checkpoints, evenly spaced, the last one always among them."""
    stride = -(-len(checkpoints) // most)
    return checkpoints[::-1][::stride][::-1]


def curve(root, n, images, tasks):
    """Accuracy of up to twelve checkpoints beside the training loss, as JSON and as a picture per task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    for name in tasks:
        task = get_task(name)
        checkpoints = sorted((root / name).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        sets = problem_sets(name, n)
        sets.pop("d1's test rows", None)
        history = json.loads((checkpoints[-1] / "trainer_state.json").read_text())["log_history"]
        loss = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
        points = {label: [] for label in sets}
        for path in spread(checkpoints):
            denoiser = Denoiser.from_pretrained(str(path))
            step = int(path.name.split("-")[1])
            for label, problems in sets.items():
                right = accuracy(denoiser, task, problems)
                points[label].append((step, right / n))
                show(f"{name} {step} {label}", right, n)
        figure, left = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
        left.plot(*zip(*loss, strict=True), color="0.65", linewidth=1)
        left.set(xlabel="optimiser steps", ylabel="training loss (grey)", yscale="log", title=name)
        right_axis = left.twinx()
        for label, values in points.items():
            right_axis.plot(*zip(*values, strict=True), marker="o", markersize=3, label=label)
        right_axis.set(ylabel="held-out accuracy, one token a step", ylim=(0, 1))
        right_axis.legend(loc="center right", frameon=False)
        figure.savefig(images / f"curve-{name}.png", dpi=110)
        write_whole(root / f"curve-{name}.json", json.dumps({"loss": loss, "accuracy": points}) + "\n")


def main():
    """Evaluates the embedded models, or the checkpoints of a training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["arithmetic", "countdown", "sudoku", "sudoku9"])
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--output", type=Path, default=Path("runs/evaluation.json"))
    parser.add_argument("--curve", type=Path, help="evaluate the checkpoints below this directory instead")
    parser.add_argument("--images", type=Path, default=Path("docs/images"))
    arguments = parser.parse_args()
    if arguments.curve is not None:
        curve(arguments.curve, arguments.n, arguments.images, arguments.tasks)
        return
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(arguments.output, json.dumps(evaluate(arguments.n, arguments.tasks), indent=1) + "\n")


if __name__ == "__main__":
    main()
