"""The stitching table: every method on the embedded models, by trajectories per problem and tokens per denoising step.

    python scripts/bench_stitching.py --models sudoku sudoku-early countdown arithmetic --n 500 --output runs/bench

Trajectories are drawn once per (model, tokens per step) for the largest N; smaller N take the first of them. `stitched, no
solver` is the same stitching with the answer taken from the evidence; where the solver is asked, `stitched` is what it said.
`--ablate` adds, at N = 8, what each part of the search brings: remembering steps, remembering failures, and several canvases
a round. Results are appended chunk by chunk to files in OUTPUT and a second run goes on where the first stopped; the tables
are printed as Markdown and written with all costs to OUTPUT/stitching.json.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from lockstitch.rewards.statistics import paired_difference, wilson
from lockstitch.rewards.tasks.named import get_task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.noise import derive_seed
from lockstitch.stitching.answers import evidence_answer
from lockstitch.stitching.inputs import generate_problems
from lockstitch.stitching.method_names import METHODS
from lockstitch.stitching.methods import Compare, StitchSettings
from lockstitch.stitching.pipeline import Sample, result_row, summarise
from lockstitch.stitching.refine import load_solver
from lockstitch.stitching.rounds import TABU, stitch_rounds
from lockstitch.stitching.score import load_scorer
from tqdm import tqdm

from lockstitch import embedded_model
from lockstitch.files import finished_rows, write_whole

TRAJECTORIES = (4, 8, 16)
DELTA = 0.9
RIVALS = ("majority_vote", "best_of_n", "best_of_n_refine", "remask_loop")
NO_SOLVER = "stitched, no solver"
ABLATED_N = 8
# label -> (canvases a round, whether all steps are remembered, failures banned)
ABLATIONS = {
    "the loop": (1, False, 0),
    "and bans failures": (1, False, TABU),
    "remembers steps": (1, True, 0),
    "both": (1, True, TABU),
    "both, 2 canvases a round": (2, True, TABU),
    "both, 4 canvases a round": (4, True, TABU),
}


def ablation(task, denoiser, config, scorer, pools, seeds):
    """Per problem and variant of the search: whether it was right, its forward passes and those that had to wait."""
    found = [{} for _ in pools]
    for label, (width, memory, tabu) in ABLATIONS.items():
        grown = [pool.head(width) for pool in pools]
        results = stitch_rounds(
            denoiser,
            task,
            grown,
            scorer,
            config,
            budgets=[pool.ledger.nfe for pool in pools],
            width=width,
            delta=DELTA,
            seeds=[derive_seed(seed, 4) for seed in seeds],
            memory=memory,
            tabu=tabu,
        )
        for row, pool, result in zip(found, grown, results, strict=True):
            answer = evidence_answer(task, pool, result.evidence, DELTA)
            row[label] = {"answer": answer, "ledger": asdict(pool.ledger)}
    return found


def measure(name, tokens, arguments, solver):
    """Rows of one (model, tokens per step): per problem, the methods by N."""
    path = arguments.output / f"{name}-{tokens}.jsonl"
    task = get_task(name.removesuffix("-early"))
    denoiser = Denoiser.from_pretrained(str(embedded_model(name)))
    steps = -(-task.canvas_length // tokens)
    config = SamplerConfig(
        canvas_length=task.canvas_length, steps=steps, temperature=arguments.temperature, batch_size=512
    )
    scorer = load_scorer("calculator", task)
    given = generate_problems(task, arguments.n, arguments.seed)
    done = finished_rows(path)
    sampler = Sample(task, scorer, max(TRAJECTORIES), denoiser, config)
    stages = {
        n: Compare(task, scorer, StitchSettings(n, "path", DELTA, rounds=True), solver, denoiser, config)
        for n in TRAJECTORIES
    }

    def judged(one, answer):
        known = task.is_correct(one.problem.question, one.problem.answer, answer or "")
        return bool(answer) and bool(known)

    with path.open("a") as file, tqdm(total=arguments.n, initial=len(done), desc=path.stem) as bar:
        for start in range(len(done), arguments.n, arguments.chunk):
            part = given[start : start + arguments.chunk]
            seeds = [derive_seed(arguments.seed, start + i) for i in range(len(part))]
            batch = sampler({"question": [one.problem.question for one in part], "seed": seeds})
            rows = [{} for _ in part]
            for n, stage in stages.items():
                pools = [pool.head(n) for pool in batch["pool"]]
                compared = stage({**batch, "pool": pools})["compared"]
                for i, (one, found) in enumerate(zip(part, compared, strict=True)):
                    answer = evidence_answer(task, found.pool, found.evidence, DELTA)
                    methods = result_row(task, start + i, one, found)["methods"]
                    rows[i][str(n)] = {"methods": methods, NO_SOLVER: judged(one, answer)}
            if arguments.ablate:
                heads = [pool.head(ABLATED_N) for pool in batch["pool"]]
                for row, one, found in zip(
                    rows, part, ablation(task, denoiser, config, scorer, heads, seeds), strict=True
                ):
                    row["ablation"] = {
                        label: {"correct": judged(one, got["answer"]), "ledger": got["ledger"]}
                        for label, got in found.items()
                    }
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
            bar.update(len(part))
    return finished_rows(path)


def summary_of(task, rows, n, tokens, absent):
    """The summary of one (model, tokens per step, N), with the stitching that asks no solver beside."""
    summary = summarise(
        task, [row[str(n)] for row in rows], absent, {"num_trajectories": n, "tokens_per_step": tokens}
    )
    alone = [row[str(n)][NO_SOLVER] for row in rows]
    loop = [bool(row[str(n)]["methods"]["remask_loop"]["correct"]) for row in rows]
    summary[NO_SOLVER] = {
        "accuracy": sum(alone) / len(alone),
        "ci95": list(wilson(sum(alone), len(alone))),
        "n": len(alone),
    }
    summary["paired"][f"{NO_SOLVER} - remask_loop"] = paired_difference(alone, loop)
    return summary


def print_tables(table):
    """Accuracies with their forward passes, then paired differences with their standard errors, as Markdown."""
    first = next(iter(table.values()))
    shown = [name for name in METHODS if name in first["methods"] and name != "weighted_vote"]
    head = "\n| model | tokens a step | N | "
    print(head + " | ".join(name.replace("_", " ") for name in shown) + f" | {NO_SOLVER} |")
    print("|---|---|---|" + "---|" * (len(shown) + 1))
    for key, summary in table.items():
        cells = [
            f"{100 * summary['methods'][name]['accuracy']:.1f} ({summary['methods'][name]['nfe']:.0f})"
            for name in shown
        ]
        print("| " + " | ".join([*key.split("/"), *cells, f"{100 * summary[NO_SOLVER]['accuracy']:.1f}"]) + " |")
    pairs = [*(f"stitched - {name}" for name in RIVALS), f"{NO_SOLVER} - remask_loop"]
    print(head + " | ".join(name.replace("_", " ") for name in pairs) + " |")
    print("|---|---|---|" + "---|" * len(pairs))
    for key, summary in table.items():
        cells = [
            f"{100 * one['difference']:+.1f} ± {100 * one['standard_error']:.1f}"
            for one in map(summary["paired"].__getitem__, pairs)
        ]
        print("| " + " | ".join([*key.split("/"), *cells]) + " |")


def print_ablation(rows_by_model):
    """What each part of the search brings: accuracy, forward passes, those in sequence, and the difference to the loop."""
    print("\n| model | tokens a step | search | accuracy | NFE | in sequence | minus the loop |")
    print("|---|---|---|---|---|---|---|")
    for (name, tokens), rows in rows_by_model.items():
        loop = [row["ablation"]["the loop"]["correct"] for row in rows]
        for label in ABLATIONS:
            found = [row["ablation"][label] for row in rows]
            right = [one["correct"] for one in found]
            nfe, waits = (
                sum(one["ledger"][cost] for one in found) / len(found) for cost in ("nfe", "sequential_steps")
            )
            pair = paired_difference(right, loop)
            print(
                f"| {name} | {tokens} | {label} | {100 * sum(right) / len(right):.1f} | {nfe:.0f} | {waits:.0f} | "
                f"{100 * pair['difference']:+.1f} ± {100 * pair['standard_error']:.1f} |"
            )


def main():
    """Measures, prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", default=["sudoku", "sudoku-early", "countdown", "arithmetic"], help="embedded models"
    )
    parser.add_argument("--tokens_per_step", nargs="+", type=int, default=[4, 2, 1])
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--chunk", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--solver", default="embedded", help="embedded, none, or any solver")
    parser.add_argument("--ablate", action="store_true", help="also measure the parts of the search")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    table, ablated = {}, {}
    for name in arguments.models:
        task = get_task(name.removesuffix("-early"))
        solver = None
        if arguments.solver != "none":
            embedded = arguments.solver == "embedded"
            solver = load_solver(str(embedded_model("solver")) if embedded else arguments.solver, task)
        for tokens in arguments.tokens_per_step:
            rows = measure(name, tokens, arguments, solver)
            absent = dict.fromkeys(("all_traces", "solver_alone"), "no solver") if solver is None else {}
            for n in TRAJECTORIES:
                table[f"{name}/{tokens}/{n}"] = summary_of(task, rows, n, tokens, absent)
            if arguments.ablate:
                ablated[name, tokens] = rows
    write_whole(arguments.output / "stitching.json", json.dumps(table, indent=1) + "\n")
    print_tables(table)
    if ablated:
        print_ablation(ablated)


if __name__ == "__main__":
    main()
