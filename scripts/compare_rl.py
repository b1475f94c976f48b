"""Which estimator and loss teach a small diffusion model anything? Every preset on the embedded models, by the recipes.

    python scripts/compare_rl.py --tune --output runs/compare      # learning rates, on validation problems alone
    python scripts/compare_rl.py --output runs/compare [--images docs/images]
    python scripts/compare_rl.py --second --tune --output runs/second  # stitching as a teacher, forks, self-distillation
    python scripts/compare_rl.py --second --output runs/second
    python scripts/compare_rl.py --long --tasks sudoku --output runs/long       # ten times as long
    python scripts/compare_rl.py --second --pass_at_k --output runs/second      # of the start and the ends of those runs

The rules, which stood before any test problem was looked at:

- A task starts from its early checkpoint (`sudoku-early`, `countdown-early`). Every arm trains an adapter of one kind (LoRA,
  all projections, r=16) on the same 4,096 generated problems, with rollouts of 64 problems x 8 completions at temperature 1
  and 4 tokens a step. `sft` sees the gold completions of the same problems.
- A preset keeps what its paper says of estimator, loss, advantages, divergence, clipping, inner iterations, optimizer, but
  for the learning rate: `--tune` runs each arm at each of three, one seed, two thirds as long, on sudoku, and takes the
  best mean accuracy on 256 validation problems. The rates serve both tasks.
- The budget is processor time, about the same for each arm: the optimizer's steps that fit into it are in
  `compare_rl_arms.py`, and the time taken stands in the table. What is reported is the end of every run, for every seed,
  on 1,000 test problems by which nothing was chosen, without noise, at 1 and at 4 tokens a step.

The second comparison has the same rules, on arithmetic too, but that every arm is tuned, ours as well, each on three rates
around its own and on each task by itself (`--untuned` takes those that files and presets say). Results are also written
line by line into `results.jsonl`. pass@k is that of 64 draws of 200 test problems at temperature 1 and 4 tokens a step.

Runs that are there are not run again, and one that was cut off goes on from its checkpoint. Pictures need matplotlib.
"""

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
from compare_rl_arms import (
    ARMS,
    FIRST_TASKS,
    KEPT,
    LATER,
    LONG,
    SECOND,
    SWAPPED,
    TASKS,
    TIMES,
    TOKENS,
    VARIANTS,
    settings,
    steps_of,
)
from lockstitch.rewards.statistics import pass_at_k, wilson
from lockstitch.rewards.tasks.named import get_task
from lockstitch.rewards.tasks.task import held_out_problems
from recipe_runs import ONE_THREAD, launch
from tqdm import tqdm

from lockstitch import embedded_model
from lockstitch.files import to_json, write_whole
from lockstitch.options import read_yaml

RATES = (3e-4, 1e-3, 3e-3)
SECOND_RATES = (6e-4, 2e-3, 6e-3)
DRAWS, DRAWN, AT = 64, 200, (1, 4, 16, 64)
# A paper's rate is for a model ten thousand times as large; that of d1 was tuned in the first comparison.
UNTUNED = dict.fromkeys((*LATER, "d1", "d1-shared", "d_opsd-unclipped"), 1e-3)
TUNING_SEED = 100
TEST, VALIDATION = 1000, 256
TEST_SEED, VALIDATION_SEED = 200, 100


def train(run):
    """Runs a recipe to its end, unless it got there; processor time goes to `cpu.jsonl`, a line for each leg."""
    launch("sft" if "objective" in read_yaml(run / "config.yaml") else "grpo", run)


def loaded(path, task):
    """The early model with the adapter of a directory, if it has one."""
    from lockstitch.sampling.denoiser import Denoiser
    from peft import PeftModel

    denoiser = Denoiser.from_pretrained(str(embedded_model(f"{task}-early")))
    if (path / "adapter_config.json").exists():
        PeftModel.from_pretrained(denoiser.model, str(path)).merge_and_unload()
    return denoiser


def draws(path, task):
    """How many of `DRAWS` draws of each of `DRAWN` test problems are right."""
    from lockstitch.sampling.config import SamplerConfig
    from lockstitch.sampling.loop import sample

    denoiser, of = loaded(path, task), get_task(task)
    problems = held_out_problems(of, DRAWN, TEST_SEED)
    config = SamplerConfig(
        canvas_length=of.canvas_length, steps=math.ceil(of.canvas_length / TOKENS[-1]), temperature=1.0, batch_size=256
    )
    drawn = sample(denoiser, [of.prompt(p.question) for p in problems], config, n=DRAWS, seed=TEST_SEED)
    right = []
    for i, problem in enumerate(problems):
        answers = [of.extract(t.text) for t in drawn[i * DRAWS : (i + 1) * DRAWS]]
        right.append(sum(bool(a) and bool(of.is_correct(problem.question, problem.answer, a)) for a in answers))
    return right


def measure(path, task, test):
    """Accuracy of a model or adapter directory, by what is measured and tokens a step: bits, a problem each."""
    from lockstitch.sampling.config import SamplerConfig
    from lockstitch.sampling.loop import sample

    denoiser, of = loaded(path, task), get_task(task)
    problems = {"validation": held_out_problems(of, VALIDATION, VALIDATION_SEED)}
    if test:
        seen = {problem.question for problem in problems["validation"]}
        drawn = held_out_problems(of, TEST + 2 * VALIDATION, TEST_SEED)
        problems["test"] = [problem for problem in drawn if problem.question not in seen][:TEST]
    right = {}
    for name, asked in problems.items():
        for tokens in TOKENS:
            steps = math.ceil(of.canvas_length / tokens)
            config = SamplerConfig(canvas_length=of.canvas_length, steps=steps, batch_size=256)
            drawn = sample(denoiser, [of.prompt(p.question) for p in asked], config)
            answers = [of.extract(trajectory.text) for trajectory in drawn]
            right[f"{name}@{tokens}"] = "".join(
                "01"[bool(answer) and bool(of.is_correct(p.question, p.answer, answer))]
                for p, answer in zip(asked, answers, strict=True)
            )
    return right


def one(run, task, arm, seed, rate, steps, test, long=False):
    """A run from its settings to its results, which are returned: of the end and, with `test`, of the checkpoints."""
    results = run / "results.json"
    if results.exists():
        return json.loads(results.read_text(encoding="utf-8"))
    run.mkdir(parents=True, exist_ok=True)
    write_whole(
        run / "config.yaml", yaml.safe_dump(settings(arm, task, seed, rate, steps, run, long), sort_keys=False)
    )
    train(run)
    checkpoints = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])) if test else []
    command = [sys.executable, __file__, "--measure", task, *(str(path) for path in (*checkpoints, run))]
    done = subprocess.run(command + ["--test"] * test, env=ONE_THREAD, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring {run}: {done.stderr[-2000:]}")
    *curve, end = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    legs = [json.loads(line)["seconds"] for line in (run / "cpu.jsonl").read_text(encoding="utf-8").splitlines()]
    state = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))
    found = {
        "task": task, "arm": arm, "seed": seed, "learning_rate": rate, "steps": state["global_step"],
        "cpu_seconds": round(sum(legs), 1), "curve": [
            {"step": int(path.name.split("-")[1])} | {name: share(bits) for name, bits in right.items() if "valid" in name}
            for path, right in zip(checkpoints, curve, strict=True)
        ], "right": end,
    }  # fmt: skip
    write_whole(results, to_json(found))
    with (run.parents[2] / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")
    return found


def share(bits):
    """The share of ones."""
    return bits.count("1") / len(bits)


def validation(found):
    """What learning rates are chosen by: validation accuracy, the mean over tokens a step."""
    return statistics.mean(share(found["right"][f"validation@{tokens}"]) for tokens in TOKENS)


def all_of(calls, jobs):
    """The results of runs, some at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        return list(tqdm(pool.map(lambda call: one(*call), calls), total=len(calls)))


def tune(arguments):
    """Each arm at each learning rate, for two thirds of the steps, and the best rate by task and arm.

    The first comparison tunes on sudoku for all of its tasks, the second on every one.
    """
    best = {}
    for task in arguments.tasks if arguments.second else FIRST_TASKS[:1]:
        calls, rates = [], SECOND_RATES if arguments.second else RATES
        for arm, rate in itertools.product(arguments.arms, rates):
            if arguments.second or (arm in ARMS and arm != "ours"):  # its file says its rate
                rate = rate / 2 if arguments.second and arm.split("-")[0] in LATER else rate
                run = arguments.output / "tuning" / task / f"{arm}-{rate:g}"
                calls.append((run, task, arm, TUNING_SEED, rate, steps_of(arm, task, 2 / 3), False))
        print(f"\n| {task} | " + " | ".join(f"{rate:g}" for rate in rates) + " |\n|---|" + "---|" * len(rates))
        for arm, found in itertools.groupby(all_of(calls, arguments.jobs), key=lambda row: row["arm"]):
            found = list(found)
            best.setdefault(task, {})[arm] = max(found, key=validation)["learning_rate"]
            cells = (
                "/".join(f"{100 * share(row['right'][f'validation@{tokens}']):.0f}" for tokens in TOKENS)
                for row in found
            )
            halved = ", half the rate" * (found[0]["learning_rate"] < rates[0])
            print(f"| {arm}{halved} | " + " | ".join(cells) + " |", flush=True)
    kept = arguments.output / "rates.json"
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for task in arguments.tasks:
        known[task] = known.get(task, {}) | best.get(task, best.get(FIRST_TASKS[0], {}))
    write_whole(kept, to_json(known))


def compare(arguments):
    """All runs, the tables and the pictures."""
    tuned = arguments.output / "rates.json"
    rates = json.loads(tuned.read_text(encoding="utf-8")) if tuned.exists() else {}
    start = {task: measured(arguments.output / f"start-{task}.json", task) for task in arguments.tasks}
    calls = []
    for seed, task, arm in itertools.product(arguments.seeds, arguments.tasks, arguments.arms):
        run = arguments.output / task / arm / f"seed-{seed}"
        steps = steps_of(arm, task) * (TIMES if arguments.long else 1)
        rate = rates.get(task, {}).get(arm, UNTUNED.get(arm))
        calls.append((run, task, arm, seed, rate, steps, True, arguments.long))
    rows = all_of(calls, arguments.jobs)
    for task in arguments.tasks:
        print_table(task, start[task], [row for row in rows if row["task"] == task])
        if arguments.images is not None:
            which = "-long" * arguments.long + "-second" * arguments.second
            image = arguments.images / f"compare-rl-{task}{which}.png"
            draw(task, start[task], [row for row in rows if row["task"] == task], image)


def measured(path, task):
    """Where a task starts from, measured once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, to_json(measure(Path("of the start alone"), task, test=True)))
    return json.loads(path.read_text(encoding="utf-8"))


def gain(befores, ends):
    """Points of one arm's seeds above those of another (or above the start alone) and their standard error: that of the
    problems, which are the same, and those of both arms' seeds, squares added. One seed of `ends` has no error."""
    by_problem = [
        statistics.mean(map(int, end)) - statistics.mean(map(int, before))
        for end, before in zip(zip(*ends, strict=True), zip(*befores, strict=True), strict=True)
    ]
    errors = [statistics.stdev(by_problem) / math.sqrt(len(by_problem))]
    errors += [statistics.stdev(map(share, runs)) / math.sqrt(len(runs)) for runs in (befores, ends) if len(runs) > 1]
    return 100 * statistics.mean(by_problem), 100 * math.hypot(*errors) if len(ends) > 1 else math.nan


def print_table(task, start, rows):
    """Every arm and every seed, as Markdown: accuracy with Wilson's interval, and what the mean gained."""
    print(
        f"\n{task}\n\n| arm | rate | steps | processor, s | seed | "
        + " | ".join(f"{tokens} a step, %" for tokens in TOKENS)
        + " |"
    )
    print("|---|---|---|---|---|" + "---|" * len(TOKENS))

    def cell(bits):
        low, high = wilson(bits.count("1"), len(bits))
        return f"{100 * share(bits):.1f} [{100 * low:.1f}, {100 * high:.1f}]"

    print("| start | | | | | " + " | ".join(cell(start[f"test@{tokens}"]) for tokens in TOKENS) + " |")
    against = "d1" if any(row["arm"] == "d1" for row in rows) else "ours"
    theirs = [row["right"] for row in rows if row["arm"] == against]
    for arm in dict.fromkeys((*ARMS, *SWAPPED, *VARIANTS, *SECOND, *KEPT)):
        runs = [row for row in rows if row["arm"] == arm]
        for row in runs:
            rate = "" if row["learning_rate"] is None else f"{row['learning_rate']:g}"
            cells = " | ".join(cell(row["right"][f"test@{tokens}"]) for tokens in TOKENS)
            print(f"| {arm} | {rate} | {row['steps']} | {row['cpu_seconds']:.0f} | {row['seed']} | {cells} |")
        for name, befores in (("the start", [start]), (against, theirs)) if runs else ():
            if befores and arm != name:
                gains = (
                    gain(
                        [right[f"test@{tokens}"] for right in befores],
                        [row["right"][f"test@{tokens}"] for row in runs],
                    )
                    for tokens in TOKENS
                )
                listed = " | ".join(
                    f"{points:+.1f}" + f" ± {error:.1f}" * (not math.isnan(error)) for points, error in gains
                )
                print(f"| **{arm}** | | | | above {name} | {listed} |")


def print_pass_at_k(arguments):
    """pass@k of the start and of the arms' ends, as Markdown; counts are kept beside each run."""
    print("\n| task | arm | seed | " + " | ".join(f"pass@{k}" for k in AT) + " |\n|---|---|---|" + "---|" * len(AT))
    for task in arguments.tasks:
        runs = [("start", "", arguments.output / f"start-{task}")]
        runs += [
            (arm, seed, arguments.output / task / arm / f"seed-{seed}")
            for arm, seed in itertools.product(arguments.arms, arguments.seeds)
        ]
        for arm, seed, run in runs:
            if arm != "start" and not (run / "results.json").exists():
                continue
            kept = run / "draws.json"
            if not kept.exists():
                run.mkdir(parents=True, exist_ok=True)
                write_whole(kept, json.dumps(draws(run, task)) + "\n")
            right = json.loads(kept.read_text(encoding="utf-8"))
            cells = (f"{100 * statistics.mean(pass_at_k(DRAWS, c, k) for c in right):.1f}" for k in AT)
            print(f"| {task} | {arm} | {seed} | " + " | ".join(cells) + " |", flush=True)


def draw(task, start, rows, image):
    """Validation accuracy over processor time, the mean of the seeds, an arm a line, tokens a step side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(TOKENS), figsize=(9.6, 4.0), layout="constrained", sharey=True)
    for axes, tokens in zip(panels, TOKENS, strict=True):
        for i, arm in enumerate(dict.fromkeys((*ARMS, *VARIANTS, *SECOND, *KEPT))):
            runs = [row for row in rows if row["arm"] == arm]
            if not runs:
                continue
            name, begin = f"validation@{tokens}", 100 * share(start[f"validation@{tokens}"])
            points = [(0.0, begin, begin, begin)]
            for at in zip(*(row["curve"] for row in runs), strict=True):
                values = [100 * point[name] for point in at]
                seconds = statistics.mean(
                    p["step"] / row["steps"] * row["cpu_seconds"] for p, row in zip(at, runs, strict=True)
                )
                points.append((seconds, statistics.mean(values), min(values), max(values)))
            x, middle, low, high = zip(*points, strict=True)
            color, width = ("black", 2.2) if arm == "ours" else (f"C{i}", 1.3)
            axes.plot(x, middle, label=arm, color=color, linewidth=width, marker="o", markersize=3)
            axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
        axes.set(xlabel="processor seconds", title=f"{task}, {tokens} token{'s' * (tokens > 1)} a step")
    panels[0].set_ylabel("validation accuracy, %")
    panels[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=110)


def main():
    """Tunes, or runs and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/compare"))
    parser.add_argument("--tune", action="store_true", help="choose learning rates first")
    parser.add_argument("--second", action="store_true", help="the second comparison's arms")
    parser.add_argument("--long", action="store_true", help="its long runs, ten times the time")
    parser.add_argument("--untuned", action="store_true", help="take rates as files say them, without --tune before")
    parser.add_argument("--pass_at_k", action="store_true", help="of the start and of runs that are there")
    parser.add_argument("--tasks", nargs="+", choices=TASKS)
    parser.add_argument("--arms", nargs="+", choices=[*dict.fromkeys((*ARMS, *SWAPPED, *VARIANTS, *SECOND, *KEPT))])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--images", type=Path, help="also draw the curves into this directory")
    parser.add_argument(
        "--measure", nargs="+", help=argparse.SUPPRESS
    )  # a task and the directories: the script's own call
    parser.add_argument("--test", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.untuned |= arguments.long
    arguments.arms = arguments.arms or list(LONG if arguments.long else SECOND if arguments.second else ARMS)
    arguments.tasks = arguments.tasks or list(TASKS if arguments.second else FIRST_TASKS)
    if arguments.measure:
        task, *paths = arguments.measure
        for path in paths:
            print(json.dumps(measure(Path(path), task, arguments.test and path == paths[-1])), flush=True)
    elif arguments.tune:
        tune(arguments)
    elif arguments.pass_at_k:
        print_pass_at_k(arguments)
    elif not arguments.untuned and not (arguments.output / "rates.json").exists():
        parser.error(f"--output {arguments.output}: no rates.json there; choose learning rates with --tune first")
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
