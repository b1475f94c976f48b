"""What untrained forks find: pass@k over forward passes on the embedded models, for either fallback of the threshold.

    python scripts/bench_forks.py --n 200 --samples 64 --output runs/forks [--images docs/images]

pass@k is the chance that at least one of k completions of a problem is right, estimated without bias from all that were
drawn (2107.03374). Every setting draws the same problems at the same temperature, and differences are paired over problems.

`--stitch` asks where the noise of a set of trajectories should come from: of each setting as many trajectories as so many
forward passes pay for are stitched once by the exact checker (rule `path`, no rounds, no solver), beside their majority.
`--settings stitched` takes forks, temperatures, orders, dropout of prompt tokens and sets of mixed orders:

    python scripts/bench_forks.py --stitch --settings stitched --models sudoku-early countdown arithmetic --output runs/noise

Rows are appended to OUTPUT/MODEL.jsonl setting by setting, and a second run goes on where the first stopped; the table is
printed as Markdown, and `--images` draws it (it needs matplotlib).
"""

import argparse
import json
import math
import statistics
from pathlib import Path

import torch
from lockstitch.rewards.statistics import paired_difference
from lockstitch.rewards.tasks.named import get_task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import sample
from lockstitch.sampling.noise import derive_seed, uniform
from lockstitch.stitching.answers import evidence_answer, votes
from lockstitch.stitching.inputs import generate_problems
from lockstitch.stitching.pool import Pool
from lockstitch.stitching.score import Calculator
from lockstitch.stitching.stitch import best_path
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
# `tokens` a step, `dropout` of prompt tokens, `temperature` in the place of the common one, `mixed`: settings in turn
SOURCES = {
    **{f"4 a step, T {t}": {"policy": "quota", "tokens": 4, "temperature": t} for t in (0.4, 0.7, 1.0, 1.4)},
    "4 a step, random order": {"policy": "random", "tokens": 4},
    **{f"4 a step, dropout {d}": {"policy": "quota", "tokens": 4, "dropout": d} for d in (0.05, 0.15)},
    "mixed orders": {"mixed": ("4 a step, T 0.7", "4 a step, random order", "leftmost .8")},
}
KNOWN = {**SETTINGS, **SOURCES}
STITCHED = ("certain .8", "leftmost .8", "leftmost .95", *SOURCES)
BUDGETS = (20, 40, 80, 160)


def pass_at(k, right, drawn):
    """The chance that k of `drawn` completions, of which `right` are right, hold a right one."""
    return 1 - math.comb(drawn - right, k) / math.comb(drawn, k)


def dropped(denoiser, prompt, share, seed):
    """A prompt's tokens, each masked with probability `share`."""
    ids = denoiser.encode_prompts([prompt])[0]
    draw = uniform(torch.tensor([seed]), 0, 0, torch.arange(len(ids)))[0].tolist()
    return [denoiser.mask_id if one < share else token for token, one in zip(ids, draw, strict=True)]


def drawn_by(setting, denoiser, task, prompts, samples, arguments):
    """`samples` trajectories of every prompt under one setting, prompt by prompt."""
    chosen = dict(KNOWN[setting])
    if "mixed" in chosen:
        each = -(-samples // len(chosen["mixed"]))
        parts = [drawn_by(one, denoiser, task, prompts, each, arguments) for one in chosen["mixed"]]
        return [
            [t for k in range(each) for t in (part[i][k] for part in parts)][:samples] for i in range(len(prompts))
        ]
    tokens, share = chosen.pop("tokens", None), chosen.pop("dropout", 0.0)
    chosen.setdefault("temperature", arguments.temperature)
    if tokens is None:
        config = SamplerConfig(task.canvas_length, BLOCK[task.name], **chosen)
    else:
        config = SamplerConfig(task.canvas_length, steps=-(-task.canvas_length // tokens), **chosen)
    seeds = [derive_seed(arguments.seed, i) for i in range(len(prompts))]
    if share:
        places = [(i, k) for i in range(len(prompts)) for k in range(samples)]
        shown = [dropped(denoiser, prompts[i], share, derive_seed(seeds[i], k, 1)) for i, k in places]
        drawn = sample(denoiser, shown, config, seed=[derive_seed(seeds[i], k) for i, k in places])
    else:
        drawn = sample(denoiser, prompts, config, n=samples, seed=seeds)
    return [drawn[i : i + samples] for i in range(0, len(drawn), samples)]


def stitched(denoiser, task, problems, drawn):
    """Of each budget: N, and of each problem whether the first N trajectories, stitched, and their majority, are right."""
    cost = statistics.fmean(t.ledger.nfe for of in drawn for t in of)
    out = {}
    for budget in BUDGETS:
        n = min(len(drawn[0]), int(budget / cost + 0.5))
        if n < 1:
            continue
        found = {"n": n, "stitched": [], "majority_vote": []}
        for problem, of in zip(problems, drawn, strict=True):
            pool = Pool(problem.question)
            pool.draw(denoiser, task, Calculator(task), of[:n])
            evidence = best_path(problem.question, task.checker, pool.steps_KN, pool.score_KN, 0.9)
            answers = {
                "stitched": evidence_answer(task, pool, evidence, 0.9),
                "majority_vote": votes(task, pool, n)["majority_vote"].answer,
            }
            for label, answer in answers.items():
                right = bool(answer) and bool(task.is_correct(problem.question, problem.answer, answer))
                found[label].append(right)
        out[str(budget)] = found
    return out


def print_stitched(name, rows):
    """Accuracy of stitching and of the majority by budget, and the difference to the first setting, as Markdown."""
    rows = [row for row in rows if "stitched" in row]
    heads = " | ".join(f"{budget} passes" for budget in BUDGETS)
    print(f"\n| {name}, stitched (majority) | NFE each | {heads} | minus the first, {BUDGETS[-2]} |")
    print("|---|---|" + "---|" * (len(BUDGETS) + 1))
    for row in rows:
        cells = []
        for budget in map(str, BUDGETS):
            one = row["stitched"].get(budget)
            means = (
                None if one is None else [100 * statistics.fmean(one[key]) for key in ("stitched", "majority_vote")]
            )
            cells.append("" if one is None else f"{means[0]:.1f} ({means[1]:.1f}), N {one['n']}")
        last = [one["stitched"].get(str(BUDGETS[-2]), {}).get("stitched") for one in (row, rows[0])]
        pair = paired_difference(*last) if all(last) else None
        gap = "" if pair is None else f"{100 * pair['difference']:+.1f} ± {100 * pair['standard_error']:.1f}"
        print(f"| {row['setting']} | {row['nfe']:.1f} | " + " | ".join(cells) + f" | {gap} |")


def measure(name, arguments):
    """One row a setting: how many of each problem's completions are right, and their mean costs."""
    task = get_task(name.removesuffix("-early"))
    denoiser = Denoiser.from_pretrained(str(embedded_model(name)), device="cpu")
    problems = [given.problem for given in generate_problems(task, arguments.n, arguments.seed)]
    prompts = [task.prompt(problem.question) for problem in problems]
    path = arguments.output / f"{name}.jsonl"
    done = {row["setting"] for row in finished_rows(path)}
    with path.open("a") as file:
        for setting in tqdm(arguments.settings, desc=name):
            if setting in done:
                continue
            by_problem = drawn_by(setting, denoiser, task, prompts, arguments.samples, arguments)
            right = [0] * len(problems)
            for i, of in enumerate(by_problem):
                for one in of:
                    problem, answer = problems[i], task.extract(one.text)
                    right[i] += bool(answer) and bool(task.is_correct(problem.question, problem.answer, answer))
            drawn = [one for of in by_problem for one in of]
            costs = {
                "nfe": statistics.fmean(one.ledger.nfe for one in drawn),
                "forks": statistics.fmean(one.ledger.forks for one in drawn),
            }
            row = {"setting": setting, **costs, "samples": arguments.samples, "right": right}
            if arguments.stitch:
                row["stitched"] = stitched(denoiser, task, problems, by_problem)
            file.write(json.dumps(row) + "\n")
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
            i = [*KNOWN].index(row["setting"])
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
    parser.add_argument("--settings", nargs="+", default=[*SETTINGS], choices=[*KNOWN, "stitched"])
    parser.add_argument("--stitch", action="store_true", help="also stitch what so many passes pay for")
    parser.add_argument("--n", type=int, default=200, help="problems")
    parser.add_argument("--samples", type=int, default=64, help="completions a problem")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/forks"))
    parser.add_argument("--images", type=Path, help="also draw the figure into this directory")
    arguments = parser.parse_args()
    if "stitched" in arguments.settings:
        arguments.settings = [*STITCHED]
    arguments.output.mkdir(parents=True, exist_ok=True)
    tables = {name: measure(name, arguments) for name in arguments.models}
    for name, rows in tables.items():
        print_table(name, rows)
        if arguments.stitch:
            print_stitched(name, rows)
    if arguments.images is not None:
        draw(tables, arguments.images)


if __name__ == "__main__":
    main()
