"""The stitching table: every method on the embedded tasks, by trajectories per problem, tokens per step and noise of rounds.

    python scripts/bench_stitching.py --tasks sudoku countdown arithmetic --n 500 --output runs/bench

Trajectories are drawn once per (task, tokens per step) for the largest N; smaller N take the first of them, and every
temperature of the later rounds starts from them, so rows differ in nothing else. Results are appended chunk by chunk
to files in OUTPUT and a second run goes on where the first stopped; the tables are printed as Markdown and written with all
costs to OUTPUT/stitching.json.
"""

import argparse
import json
from pathlib import Path

from lockstitch.rewards.tasks import get_task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.noise import derive_seed
from lockstitch.stitching.inputs import generate_problems
from lockstitch.stitching.methods import METHODS, Compare, StitchSettings
from lockstitch.stitching.pipeline import Sample, result_row, summarise
from lockstitch.stitching.refine import load_solver
from lockstitch.stitching.score import load_scorer
from tqdm import tqdm

from lockstitch import embedded_model
from lockstitch.files import finished_rows, write_whole

TRAJECTORIES = (4, 8, 16)
RIVALS = ("majority_vote", "best_of_n", "best_of_n_refine", "remask_loop")


def measure(task, tokens, arguments, solver):
    """Rows of one (task, tokens per step): per problem, the methods by (N, temperature of the rounds)."""
    path = arguments.output / f"{task.name}-{tokens}.jsonl"
    denoiser = Denoiser.from_pretrained(arguments.model or str(embedded_model(task.name)))
    steps = -(-task.canvas_length // tokens)
    config = SamplerConfig(canvas_length=task.canvas_length, steps=steps, temperature=arguments.temperature,
                           batch_size=512)  # fmt: skip
    scorer = load_scorer("calculator", task)
    given = generate_problems(task, arguments.n, arguments.seed)
    done = finished_rows(path)
    sampler = Sample(task, scorer, max(TRAJECTORIES), denoiser, config)
    stages = {
        f"{n}-{noise}": (n, Compare(task, scorer, StitchSettings(n, "path", 0.9, True, noise), solver, denoiser, config))
        for n in TRAJECTORIES
        for noise in arguments.round_temperatures
    }
    with path.open("a") as file, tqdm(total=arguments.n, initial=len(done), desc=path.stem) as bar:
        for start in range(len(done), arguments.n, arguments.chunk):
            part = given[start : start + arguments.chunk]
            batch = sampler(
                {
                    "question": [one.problem.question for one in part],
                    "seed": [derive_seed(arguments.seed, start + i) for i in range(len(part))],
                }
            )
            rows = [{} for _ in part]
            for key, (n, stage) in stages.items():
                compared = stage({**batch, "pool": [pool.head(n) for pool in batch["pool"]]})["compared"]
                for i, one in enumerate(part):
                    rows[i][key] = {"methods": result_row(task, start + i, one, compared[i])["methods"]}
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
            bar.update(len(part))
    return finished_rows(path)


def print_tables(table):
    """Accuracies with their forward passes, then paired differences with their standard errors, as Markdown."""
    first = next(iter(table.values()))
    shown = [name for name in METHODS if name in first["methods"] and name != "weighted_vote"]
    head = "\n| task | tokens a step | N | rounds at | "
    print(head + " | ".join(name.replace("_", " ") for name in shown) + " |")
    print("|---|---|---|---|" + "---|" * len(shown))
    for key, summary in table.items():
        cells = [f"{100 * summary['methods'][name]['accuracy']:.1f} ({summary['methods'][name]['nfe']:.0f})"
                 for name in shown]  # fmt: skip
        print("| " + " | ".join([*key.split("-"), *cells]) + " |")
    print(head + " | ".join(f"- {name.replace('_', ' ')}" for name in RIVALS) + " |")
    print("|---|---|---|---|" + "---|" * len(RIVALS))
    for key, summary in table.items():
        paired = [summary["paired"][f"stitched - {name}"] for name in RIVALS]
        cells = [f"{100 * one['difference']:+.1f} ± {100 * one['standard_error']:.1f}" for one in paired]
        print("| " + " | ".join([*key.split("-"), *cells]) + " |")


def main():
    """Measures, prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["sudoku", "countdown", "arithmetic"])
    parser.add_argument("--tokens_per_step", nargs="+", type=int, default=[4, 2, 1])
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--chunk", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--round_temperatures", nargs="+", type=float, default=[0.7, 1.5])
    parser.add_argument("--model", help="a diffusion model in place of the task's embedded one")
    parser.add_argument("--solver", default="embedded", help="embedded, none, or any solver")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    table = {}
    for name in arguments.tasks:
        task = get_task(name)
        solver = None
        if arguments.solver != "none":
            embedded = arguments.solver == "embedded"
            solver = load_solver(str(embedded_model("solver")) if embedded else arguments.solver, task)
        for tokens in arguments.tokens_per_step:
            rows = measure(task, tokens, arguments, solver)
            absent = dict.fromkeys(("all_traces", "solver_alone"), "no solver") if solver is None else {}
            for key in rows[0]:
                about = {"num_trajectories": int(key.split("-")[0]), "tokens_per_step": tokens}
                table[f"{name}-{tokens}-{key}"] = summarise(task, [row[key] for row in rows], absent, about)
    write_whole(arguments.output / "stitching.json", json.dumps(table, indent=1) + "\n")
    print_tables(table)


if __name__ == "__main__":
    main()
