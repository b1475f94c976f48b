"""What untrained forks find: pass@k over forward passes on the embedded models, for either fallback of the threshold.

    python scripts/bench_forks.py --n 200 --samples 64 --output runs/forks [--images docs/images]

pass@k is the chance that at least one of k completions of a problem is right, estimated without bias from all that were
drawn (2107.03374). Every setting draws the same problems at the same temperature, and differences are paired over problems.
Rows are appended to OUTPUT/MODEL.jsonl setting by setting, and a second run goes on where the first stopped; the table is
printed as Markdown, and `--images` draws it (it needs matplotlib).
"""

import argparse
import json
import math
import statistics
from pathlib import Path

from lockstitch.rewards.tasks.task import get_task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import sample
from lockstitch.stitching.inputs import generate_problems
from tqdm import tqdm

from lockstitch import embedded_model
from lockstitch.files import finished_rows

BLOCK = {
    "sudoku": 5,
    "countdown": 13,
    "arithmetic": 12,
}  # a row of the sudoku, a step of countdown, a line of a worksheet
SETTINGS = {
    "certain .8": {"policy": "threshold", "threshold": 0.8},
    "certain .95": {"policy": "threshold", "threshold": 0.95},
    "leftmost .8": {"policy": "threshold", "threshold": 0.8, "fallback": "leftmost"},
    "leftmost .95": {"policy": "threshold", "threshold": 0.95, "fallback": "leftmost"},
    "left to right": {"policy": "threshold", "threshold": 1.01, "fallback": "leftmost"},
    "one token a step": {"policy": "quota"},
}


def pass_at(k, right, drawn):
    """The chance that k of `drawn` completions, of which `right` are right, hold a right one."""
    return 1 - math.comb(drawn - right, k) / math.comb(drawn, k)


def measure(name, arguments):
    """One row a setting: how many of each problem's completions are right, and their mean costs."""
    task = get_task(name.removesuffix("-early"))
    denoiser = Denoiser.from_pretrained(str(embedded_model(name)), device="cpu")
    problems = [given.problem for given in generate_problems(task, arguments.n, arguments.seed)]
    prompts = [task.prompt(problem.question) for problem in problems]
    path = arguments.output / f"{name}.jsonl"
    done = {row["setting"] for row in finished_rows(path)}
    with path.open("a") as file:
        for setting, chosen in tqdm(SETTINGS.items(), desc=name):
            if setting in done or setting not in arguments.settings:
                continue
            config = SamplerConfig(task.canvas_length, BLOCK[task.name], temperature=arguments.temperature, **chosen)
            drawn = sample(denoiser, prompts, config, n=arguments.samples, seed=arguments.seed)
            right = [0] * len(problems)
            for one in drawn:
                problem, answer = problems[one.prompt], task.extract(one.text)
                right[one.prompt] += bool(answer) and bool(task.is_correct(problem.question, problem.answer, answer))
            costs = {
                "nfe": statistics.fmean(one.ledger.nfe for one in drawn),
                "forks": statistics.fmean(one.ledger.forks for one in drawn),
            }
            file.write(json.dumps({"setting": setting, **costs, "samples": arguments.samples, "right": right}) + "\n")
            file.flush()
    return finished_rows(path)


def curve(row):
    """pass@1, 4, 16, ... up to as many as were drawn."""
    ks = [k for k in (1, 4, 16, 64, 256) if k <= row["samples"]]
    return {k: statistics.fmean(pass_at(k, right, row["samples"]) for right in row["right"]) for k in ks}


def print_table(name, rows):
    """A model's settings as Markdown."""
    first = curve(rows[0])
    print(f"\n| {name} | " + " | ".join(f"pass@{k}" for k in first) + " | NFE | forks |")
    print("|---|" + "---|" * (len(first) + 2))
    for row in rows:
        values = " | ".join(f"{100 * value:.1f}" for value in curve(row).values())
        print(f"| {row['setting']} | {values} | {row['nfe']:.1f} | {row['forks']:.1f} |")
    against = rows[0]
    for row in rows[1:]:
        k = row["samples"]
        gaps = [pass_at(k, a, k) - pass_at(k, b, k) for a, b in zip(row["right"], against["right"], strict=True)]
        error = statistics.stdev(gaps) / math.sqrt(len(gaps))
        print(
            f"pass@{k}, {row['setting']} - {against['setting']}: "
            f"{100 * statistics.fmean(gaps):+.1f} ± {100 * error:.1f} points"
        )


def draw(tables, images):
    """pass@k over the forward passes of k completions, a panel a model and a line a setting."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
        1, len(tables), figsize=(4.1 * len(tables), 3.2), layout="constrained", squeeze=False
    )
    for axes, (name, rows) in zip(panels[0], tables.items(), strict=True):
        for row in rows:
            values = curve(row)
            i = [*SETTINGS].index(row["setting"])
            style = {"color": f"C{i}", "marker": "os^v"[i % 4]}
            spent = [k * row["nfe"] for k in values]
            axes.plot(spent, [100 * value for value in values.values()], markersize=4, label=row["setting"], **style)
        axes.set(xlabel="forward passes of k completions", ylabel="pass@k, %", xscale="log", title=name)
    panels[0][0].legend(loc="lower right", frameon=False, fontsize=8)
    figure.savefig(images / "forks.png", dpi=110)


def main():
    """Measures, prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["sudoku-early", "countdown-early"], help="embedded models")
    parser.add_argument("--settings", nargs="+", default=[*SETTINGS], choices=[*SETTINGS])
    parser.add_argument("--n", type=int, default=200, help="problems")
    parser.add_argument("--samples", type=int, default=64, help="completions a problem")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/forks"))
    parser.add_argument("--images", type=Path, help="also draw the figure into this directory")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    tables = {name: measure(name, arguments) for name in arguments.models}
    for name, rows in tables.items():
        print_table(name, rows)
    if arguments.images is not None:
        draw(tables, arguments.images)


if __name__ == "__main__":
    main()
