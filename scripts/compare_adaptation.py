"""From autoregressive to diffusion on models of half a million parameters: every preset and the published ablations.

    python scripts/compare_adaptation.py --output runs/adaptation [--tasks sudoku] [--images docs/images]

The rules, which stood before any result was looked at:

- The parent is an autoregressive Llama of the embedded models' shape, trained from scratch on a task's generated problems by
  `recipes.sft` (`objective: autoregressive`). It is what every child starts from, and is measured greedily, token by token.
- Every arm is a preset of `recipes.adapt` with the same optimizer, learning rate, rows a step and steps, so that all see
  as many tokens; what is said of loss, layout, masks and states stays the paper's. Blocks are at most 4, as in OPDLM and
  mix-scale. `opdlm` sees the prompts of the same problems alone. `cap` goes on from the child of `mixscale`, for as many
  steps again.
- Added once seed 0 had shown that children whose logits are no longer shifted solve next to nothing: `mixscale`
  and `opdlm` with the shift kept, `cap` from the child of `nbdiff`, attention that is annealed, and the parent trained on,
  token by token, for as many steps and rows as every child. `cap` was run anew on initial rollouts.
- Measured is the end of every run, on test problems by which nothing was chosen, without noise: the share solved, NFE and
  seconds a problem (one thread), in the child's own blocks at one token a step and by a threshold of .9.
- Draft and revise: `mixscale`'s child and `mixscale-off`'s (no rows with the whole canvas) draft in blocks of 4, two
  tokens a step, and write the least sure half again, all of the canvas in view, two tokens a step; beside it a plain draft
  of equal NFE.

Runs that are there are not run again, and one that was cut off goes on from its checkpoint. All arms of a seed are run
before the next seed. A picture needs matplotlib.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import yaml
from compare_adaptation_arms import ARMS, LONGER, START, TASKS, canvas_of, longer_settings, parent_settings, settings
from lockstitch.rewards.statistics import wilson
from lockstitch.rewards.tasks.named import get_task
from lockstitch.rewards.tasks.task import held_out_problems
from recipe_runs import ONE_THREAD, launch
from tqdm import tqdm

from lockstitch.files import to_json, write_whole

TEST, TEST_SEED = 300, 200


def trained(recipe, run, values):
    """Runs a recipe by the given settings to its end, unless it got there."""
    if (run / "trainer_state.json").exists():
        return
    run.mkdir(parents=True, exist_ok=True)
    write_whole(run / "config.yaml", yaml.safe_dump(values, sort_keys=False))
    launch(recipe, run)


# --- measuring -------------------------------------------------------------------------------------------------------


def decodings(denoiser, length):
    """How a model is decoded, by name: settings that fit its layout."""
    from lockstitch.sampling.config import SamplerConfig
    from lockstitch.sampling.layouts import in_blocks_of
    from lockstitch.sampling.presets import PRESETS, preset

    block = min(denoiser.block_length or length, length)
    base = {"canvas_length": length, "block_length": block, "cache": "block", "batch_size": 64}
    found = {"one": SamplerConfig(**base)}
    if block > 1:
        found["threshold"] = SamplerConfig(**base, policy="threshold", threshold=0.9)
    if denoiser.family.name in PRESETS:  # drafts that the model checks itself
        found["verify"] = in_blocks_of(preset(denoiser.family.name, length), denoiser.family)
    if denoiser.family.layout == "block_causal":
        two = {**base, "cache": "none", "steps": length // block * (block // 2)}
        more = {**base, "cache": "none", "steps": length // block * (block // 2 + block // 4)}
        found["draft"], found["draft+"] = SamplerConfig(**two), SamplerConfig(**more)
        found["revise"] = SamplerConfig(**two, correction="revise", revise_fraction=0.5)
    return found


def measure(path, task, parent):
    """What a model reaches on the test problems: bits, a problem each, NFE, processor seconds and answers, by decoding."""
    import dataclasses

    import torch
    from lockstitch.sampling.denoiser import Denoiser
    from lockstitch.sampling.families import CONTEXT_CAUSAL
    from lockstitch.sampling.loop import sample

    torch.set_num_threads(1)
    of = get_task(task)
    problems = held_out_problems(of, TEST, TEST_SEED)
    denoiser = Denoiser.from_pretrained(str(path), family="context_causal" if parent else None, device="cpu")
    if parent:  # blocks of one token, the first of each from the causal pass: greedy autoregressive decoding
        denoiser.family = dataclasses.replace(CONTEXT_CAUSAL, block_length=1)
    made = {}
    for name, config in decodings(denoiser, canvas_of(task)).items():
        began = time.process_time()
        drawn = sample(denoiser, [of.prompt(problem.question) for problem in problems], config)
        seconds = time.process_time() - began
        answers = [of.extract(trajectory.text) for trajectory in drawn]
        made[name] = {
            "right": "".join(
                "01"[bool(answer) and bool(of.is_correct(p.question, p.answer, answer))]
                for p, answer in zip(problems, answers, strict=True)
            ),
            "passes": statistics.mean(t.ledger.sequential_steps for t in drawn),
            "tokens": statistics.mean(t.length for t in drawn),
            "seconds": seconds / len(drawn),
            "answers": answers,
        }
    return made


def measured(path, task, parent=False):
    """The same, in a process of its own and kept beside the model."""
    results = path / "results.json"
    if not results.exists():
        command = [sys.executable, __file__, "--measure", task, str(path), *(["--parent"] if parent else [])]
        done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"measuring {path}: {done.stderr[-2000:]}")
        write_whole(results, done.stdout.splitlines()[-1] + "\n")
    return json.loads(results.read_text(encoding="utf-8"))


def cpu_seconds(run):
    """Processor seconds of a run, all legs together."""
    lines = (run / "cpu.jsonl").read_text(encoding="utf-8").splitlines()
    return sum(json.loads(line)["seconds"] for line in lines)


# --- tables ----------------------------------------------------------------------------------------------------------


def cell(bits):
    """A share with Wilson's interval, in percent."""
    low, high = wilson(bits.count("1"), len(bits))
    return f"{100 * bits.count('1') / len(bits):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def over_seeds(values):
    """A mean with the least and the greatest of several."""
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} [{min(values):.1f}, {max(values):.1f}]"


def print_means(folder, arms, runs):
    """Of each arm the mean of its seeds, the least and the greatest."""

    def of(found, name, what):
        if what == "right":
            return over_seeds([100 * one[name]["right"].count("1") / len(one[name]["right"]) for one in found])
        return f"{statistics.mean(one[name][what] for one in found):.1f}"

    print("\n| arm | seeds | one a step, % | threshold .9, % | passes | checked by itself, % | passes | training, s |")
    print("|---|---|---|---|---|---|---|---|")
    for arm in arms:
        seeds = [seed for name, seed in runs if name == arm]
        found = [runs[arm, seed] for seed in seeds]
        if not found:
            continue
        own = "verify" in found[0]
        checked = f"{of(found, 'verify', 'right')} | {of(found, 'verify', 'passes')}" if own else "|"
        seconds = statistics.mean(cpu_seconds(folder / arm / f"seed-{seed}") for seed in seeds)
        print(
            f"| {arm} | {len(seeds)} | {of(found, 'one', 'right')} | {of(found, 'threshold', 'right')} | "
            f"{of(found, 'threshold', 'passes')} | {checked} | {seconds:.0f} |"
        )


def print_tables(task, output, arms, seeds):
    """What there is of a task, as Markdown."""
    folder = output / task
    parent = json.loads((folder / "parent" / "results.json").read_text(encoding="utf-8"))["one"]
    runs = {
        (arm, seed): json.loads((folder / arm / f"seed-{seed}" / "results.json").read_text(encoding="utf-8"))
        for arm, seed in itertools.product(arms, seeds)
        if (folder / arm / f"seed-{seed}" / "results.json").exists()
    }
    print(
        f"\n{task}: the parent, token by token, {cell(parent['right'])}; {parent['passes']:.1f} passes, "
        f"{1000 * parent['seconds']:.1f} ms of a processor a problem, n {len(parent['right'])}\n"
    )
    print(
        "| arm | seed | one a step, % | threshold .9, % | passes | checked by itself, % | passes | ms | training, s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for (arm, seed), found in runs.items():
        by = found["threshold"]
        own = found.get("verify")
        checked = f"{cell(own['right'])} | {own['passes']:.1f}" if own else "|"
        print(
            f"| {arm} | {seed} | {cell(found['one']['right'])} | {cell(by['right'])} | {by['passes']:.1f} | {checked} | "
            f"{1000 * (own or by)['seconds']:.1f} | {cpu_seconds(folder / arm / f'seed-{seed}'):.0f} |"
        )
    longer = [
        100 * found["right"].count("1") / len(found["right"])
        for seed in seeds
        if (path := folder / LONGER / f"seed-{seed}" / "results.json").exists()
        and (found := json.loads(path.read_text(encoding="utf-8"))["one"])
    ]
    if longer:
        print(f"\nthe parent, trained on as long as its children, {len(longer)} seeds: {over_seeds(longer)}")
    print_means(folder, arms, runs)
    print("\n| | seed | draft, 2 a step | draft of as many passes | draft and revise | passes of each |")
    print("|---|---|---|---|---|---|")
    for (arm, seed), found in runs.items():
        if "revise" in found and arm.startswith("mixscale"):
            names = ("draft", "draft+", "revise")
            print(
                f"| {arm} | {seed} | "
                + " | ".join(cell(found[name]["right"]) for name in names)
                + " | "
                + ", ".join(f"{found[name]['passes']:.1f}" for name in names)
                + " |"
            )
    print("\n| | seed | passes before | passes after | answers that stayed |\n|---|---|---|---|---|")
    for (arm, seed), found in runs.items():
        start = runs.get((START.get(arm), seed))
        if start is not None:
            before, after = start["threshold"], found["threshold"]
            same = "".join("01"[a == b] for a, b in zip(before["answers"], after["answers"], strict=True))
            print(f"| {arm} | {seed} | {before['passes']:.1f} | {after['passes']:.1f} | {cell(same)} |")


def draw(tasks, output, arms, seeds, images):
    """Accuracy over passes: the parent, and of each arm the mean of its seeds, by the threshold and one a step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
        1, len(tasks), figsize=(5.6 * len(tasks) + 1.6, 4.0), layout="constrained", squeeze=False
    )
    for axes, task in zip(panels[0], tasks, strict=True):
        folder = output / task
        for i, arm in enumerate(arms):
            found = [
                json.loads(path.read_text(encoding="utf-8"))
                for seed in seeds
                if (path := folder / arm / f"seed-{seed}" / "results.json").exists()
            ]
            if not found:
                continue
            points = {
                name: (
                    statistics.mean(one[name]["passes"] for one in found),
                    statistics.mean(100 * one[name]["right"].count("1") / len(one[name]["right"]) for one in found),
                )
                for name in ("one", "threshold", "verify")
                if name in found[0]
            }
            style = {"color": plt.cm.tab20(i % 20), "linestyle": "--" if "-" in arm else "-", "linewidth": 1.2}
            alone = [points[name] for name in ("threshold", "one")]
            axes.plot(*zip(*alone, strict=True), marker="o", markersize=4, label=arm, **style)
            if "verify" in points:
                axes.plot(*points["verify"], marker="s", markersize=8, label=f"{arm}, checked by itself", **style)
        parent = json.loads((folder / "parent" / "results.json").read_text(encoding="utf-8"))["one"]
        axes.plot(
            [parent["passes"]],
            [100 * parent["right"].count("1") / len(parent["right"])],
            "k*",
            markersize=11,
            label="the parent, token by token",
        )
        axes.set(title=task, xlabel="passes a problem", ylabel="solved, %")
    named = {
        label: handle for axes in panels[0] for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(named.values(), named.keys(), loc="outside right center", frameon=False)
    images.mkdir(parents=True, exist_ok=True)
    figure.savefig(images / f"adaptation-{'-'.join(tasks)}.png", dpi=110)


def main():
    """Runs what is not there, and reports what is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/adaptation"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["sudoku"])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=Path, help="also draw the picture into this directory")
    parser.add_argument("--report", action="store_true", help="run nothing: tables and picture of what is there")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # a task and a directory: the script's own call
    parser.add_argument("--parent", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        task, path = arguments.measure
        print(to_json(measure(Path(path), task, arguments.parent)).replace("\n", ""), flush=True)
        return
    output, arms = arguments.output, arguments.arms
    for task in [] if arguments.report else arguments.tasks:
        parent = output / task / "parent"
        trained("sft", parent, parent_settings(task, parent))
        measured(parent, task, parent=True)
        for seed in arguments.seeds:
            longer = output / task / LONGER / f"seed-{seed}"
            trained("sft", longer, longer_settings(task, seed, parent, longer))
            measured(longer, task, parent=True)
        for seed, arm in tqdm(list(itertools.product(arguments.seeds, arms))):
            run, base = output / task / arm / f"seed-{seed}", parent
            if arm in START:
                base = output / task / START[arm] / f"seed-{seed}"
                trained("adapt", base, settings(START[arm], task, seed, parent, base))
            trained("adapt", run, settings(arm, task, seed, base, run))
            measured(run, task)
    for task in arguments.tasks:
        print_tables(task, output, arms, arguments.seeds)
    if arguments.images is not None:
        draw(arguments.tasks, output, arms, arguments.seeds, arguments.images)


if __name__ == "__main__":
    main()
