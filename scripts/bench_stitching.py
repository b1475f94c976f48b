"""The stitching tables: every method on the embedded models, by scorer, N trajectories and tokens a denoising step.

    python scripts/bench_stitching.py --scorers exact prm bmc confidence --n 500 --output runs/bench --images docs/images

Trajectories are drawn once per (model, tokens a step, scorer) for the largest N; smaller N take the first of them. `exact`
is the task's checker in scores and chains; all other scorers stitch without it (`--checker none`), and `flip-P` gives P % of
the exact verdicts the other way. Methods that a scorer cannot serve are left out. `stitched, no solver` is the same
stitching with the answer taken from the evidence.

Two axes: passes that wait for one another, and all passes of any model, one for each row. For each axis a table, and with
`--images` a picture (it needs matplotlib): the best accuracy of each method within so many, over its N and tokens a step.

`--ablate` adds, at N = 8, what each part of the search brings. Results are appended chunk by chunk to files in OUTPUT and a
second run goes on where the first stopped, also with a larger `--n`, further models, scorers and tokens a step; with other
settings it is refused. The tables are printed as Markdown and written with all costs to OUTPUT/stitching.json.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from compare_scorers import Flipped
from lockstitch.rewards.statistics import paired_difference, wilson
from lockstitch.rewards.tasks.named import get_task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.noise import derive_seed
from lockstitch.stitching.answers import evidence_answer
from lockstitch.stitching.inputs import generate_problems, read_problems
from lockstitch.stitching.likelihood import StepLikelihood
from lockstitch.stitching.method_names import METHODS, WALKS
from lockstitch.stitching.methods import Compare, StitchSettings
from lockstitch.stitching.pipeline import Sample, result_row, summarise
from lockstitch.stitching.plans import AnswerPlanner
from lockstitch.stitching.refine import load_solver
from lockstitch.stitching.rounds import TABU, stitch_rounds
from lockstitch.stitching.score import OF_DENOISER, TRACED, load_scorer
from lockstitch.stitching.unchecked import unchecked
from stitching_tables import NO_SOLVER, RIVALS, draw, print_curves, print_tables, tables_of
from tqdm import tqdm

from lockstitch import embedded_model
from lockstitch.files import claim_directory, finished_rows, write_whole

OF_SOLVER = ("all_traces", "solver_alone")
ABLATED_N = 8
# Of all rows in OUTPUT alike.
SETTINGS = ("methods", "trajectories", "seed", "temperature", "delta", "rescore", "solver", "ablate")
# label -> (canvases a round, whether all steps are remembered, failures banned, whether canvases of a round learn ahead)
ABLATIONS = {
    "the loop": (1, False, 0, False),
    "and bans failures": (1, False, TABU, False),
    "remembers steps": (1, True, 0, False),
    "both": (1, True, TABU, False),
    "both, 2 canvases a round": (2, True, TABU, False),
    "both, 2 that learn ahead": (2, True, TABU, True),
    "both, 4 canvases a round": (4, True, TABU, False),
    "both, 4 that learn ahead": (4, True, TABU, True),
}


def ablation(task, denoiser, config, scorer, pools, seeds, delta):
    """Per problem and variant of the search: whether it was right, its forward passes and those that had to wait."""
    found = [{} for _ in pools]
    for label, (width, memory, tabu, ahead) in ABLATIONS.items():
        grown = [pool.head(width) for pool in pools]
        results = stitch_rounds(
            denoiser,
            task,
            grown,
            scorer,
            config,
            budgets=[pool.ledger.nfe for pool in pools],
            width=width,
            delta=delta,
            seeds=[derive_seed(seed, 4) for seed in seeds],
            memory=memory,
            tabu=tabu,
            ahead=ahead,
        )
        for row, pool, result in zip(found, grown, results, strict=True):
            answer = evidence_answer(task, pool, result.evidence, delta)
            row[label] = {"answer": answer, "ledger": asdict(pool.ledger)}
    return found


def scorer_of(name, task, denoiser):
    """The scorer of that name."""
    if name.startswith("flip-"):
        return Flipped(task, int(name.removeprefix("flip-")) / 100)
    if name == "likelihood":
        return StepLikelihood(denoiser, task)
    spec = {"exact": "calculator", "prm": f"prm:embedded:{task.name}"}.get(name, name)
    return load_scorer(spec, task, denoiser=denoiser)


def methods_of(scorer, solver, wanted, task):
    """The methods that a scorer can serve, and that are wanted."""
    names = [name for name in METHODS if wanted is None or name in wanted]
    if task.spell_out is None:  # the embedded solver's answers are no plans there
        names = [name for name in names if name != "plan_then_diffuse"]
    if solver is None:
        names = [name for name in names if name not in OF_SOLVER]
    if scorer in TRACED:
        names = [name for name in names if name not in ("guided_remask", "plan_then_diffuse")]
    if scorer in OF_DENOISER:
        names = [name for name in names if name not in WALKS]
    return tuple(names)


def measure(name, tokens, scorer_name, arguments, solver):
    """Rows of one (model, tokens a step, scorer): per problem, the methods by N."""
    of_scorer = "" if scorer_name == "exact" else f"-{scorer_name}"
    of_file = "" if arguments.input is None else f"-{arguments.input.stem}"
    path = arguments.output / f"{name}{of_file}-{tokens}{of_scorer}.jsonl"
    done = finished_rows(path)
    if len(done) >= arguments.n or arguments.only_tables:
        return done[: arguments.n]
    task = get_task(name.removesuffix("-early"))
    denoiser = Denoiser.from_pretrained(str(embedded_model(name)))
    steps = -(-task.canvas_length // tokens)
    config = SamplerConfig(
        canvas_length=task.canvas_length, steps=steps, temperature=arguments.temperature, batch_size=512
    )
    scorer = scorer_of(scorer_name, task, denoiser)
    judged_by = task if scorer_name == "exact" else unchecked(task)
    methods, planner = methods_of(scorer_name, solver, arguments.methods, task), None
    if "plan_then_diffuse" in methods:
        planner = AnswerPlanner(load_solver(str(embedded_model("solver")), task), task)
    if arguments.input is None:
        given = generate_problems(task, arguments.n, arguments.seed)
    else:
        given = read_problems(arguments.input, task)
        if len(given) < arguments.n:
            raise SystemExit(f"--n {arguments.n}: {arguments.input} holds {len(given)} problems")
    sampler = Sample(judged_by, scorer, max(arguments.trajectories), denoiser, config)
    stages = {
        n: Compare(
            judged_by,
            scorer,
            StitchSettings(n, "path", arguments.delta, True, rescore=arguments.rescore, methods=methods),
            solver,
            denoiser,
            config,
            planner,
        )
        for n in arguments.trajectories
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
                    answer = evidence_answer(judged_by, found.pool, found.evidence, arguments.delta)
                    outcomes = result_row(task, start + i, one, found)["methods"]
                    kept = {name: {"correct": of["correct"], "ledger": of["ledger"]} for name, of in outcomes.items()}
                    rows[i][str(n)] = {"methods": kept, NO_SOLVER: judged(one, answer)}
            if arguments.ablate:
                heads = [pool.head(ABLATED_N) for pool in batch["pool"]]
                for row, one, found in zip(
                    rows,
                    part,
                    ablation(judged_by, denoiser, config, scorer, heads, seeds, arguments.delta),
                    strict=True,
                ):
                    row["ablation"] = {
                        label: {"correct": judged(one, got["answer"]), "ledger": got["ledger"]}
                        for label, got in found.items()
                    }
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
            bar.update(len(part))
    return finished_rows(path)


def summary_of(task, rows, n, tokens):
    """The summary of one (model, tokens a step, N), with the stitching that asks no solver beside."""
    summary = summarise(task, [row[str(n)] for row in rows], {}, {"num_trajectories": n, "tokens_per_step": tokens})
    alone = [row[str(n)][NO_SOLVER] for row in rows]
    summary[NO_SOLVER] = {
        "accuracy": sum(alone) / len(alone),
        "ci95": list(wilson(sum(alone), len(alone))),
        "n": len(alone),
    }
    for name in RIVALS:
        if name in summary["methods"]:
            theirs = [bool(row[str(n)]["methods"][name]["correct"]) for row in rows]
            summary["paired"][f"{NO_SOLVER} - {name}"] = paired_difference(alone, theirs)
    return summary


def print_ablation(rows_by_model):
    """What each part of the search brings: accuracy, forward passes, those in sequence, and the difference to the loop."""
    print("\n| model | scorer | tokens a step | search | accuracy | NFE | in sequence | minus the loop |")
    print("|---|---|---|---|---|---|---|---|")
    for key, rows in rows_by_model.items():
        loop = [row["ablation"]["the loop"]["correct"] for row in rows]
        for label in ABLATIONS:
            found = [row["ablation"][label] for row in rows]
            right = [one["correct"] for one in found]
            nfe, waits = (
                sum(one["ledger"][cost] for one in found) / len(found) for cost in ("nfe", "sequential_steps")
            )
            pair = paired_difference(right, loop)
            print(
                f"| {key.replace('/', ' | ')} | {label} | {100 * sum(right) / len(right):.1f} | {nfe:.0f} | {waits:.0f} | "
                f"{100 * pair['difference']:+.1f} ± {100 * pair['standard_error']:.1f} |"
            )


def main():
    """Measures, prints, draws and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", default=["sudoku", "sudoku-early", "countdown", "arithmetic"], help="embedded models"
    )
    parser.add_argument(
        "--scorers",
        nargs="+",
        default=["exact"],
        help="exact, prm, prm:DIR (beside you), likelihood (of the model itself), bmc, confidence, bound, flip-P",
    )
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, help="some of the methods (default: all that can run)"
    )
    parser.add_argument("--tokens_per_step", nargs="+", type=int, default=[4, 2, 1])
    parser.add_argument("--trajectories", nargs="+", type=int, default=[4, 8, 16], help="the numbers N")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument(
        "--input", type=Path, help="a file of problems of the one model's task (default: generated ones)"
    )
    parser.add_argument("--chunk", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--delta", type=float, default=0.9, help="the score from which a step stands")
    parser.add_argument("--rescore", action="store_true", help="have the scorer read stitched chains again")
    parser.add_argument("--solver", default="embedded", help="embedded, none, or any solver")
    parser.add_argument("--ablate", action="store_true", help="also measure the parts of the search")
    parser.add_argument("--only_tables", action="store_true", help="of what is there; measure nothing")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"))
    parser.add_argument("--images", type=Path, help="also draw the two axes into this directory")
    arguments = parser.parse_args()
    if arguments.input is not None and len(arguments.models) > 1:
        parser.error(f"--input {arguments.input} is of one task; --models {' '.join(arguments.models)} are several")
    if named := [name for name in arguments.scorers if "/" in name]:
        parser.error(f"--scorers {named[0]}: a directory beside you, without a slash: files are named by it")
    if arguments.ablate and max(arguments.trajectories) < ABLATED_N:
        parser.error(f"--ablate takes N = {ABLATED_N}; --trajectories {max(arguments.trajectories)} draws fewer")
    if arguments.only_tables and not arguments.output.is_dir():
        parser.error(f"--only_tables: --output {arguments.output} is not there; a run without it makes it")
    if not arguments.only_tables:
        said = {name: getattr(arguments, name) for name in SETTINGS} | {"input": str(arguments.input)}
        try:
            claim_directory(arguments.output, said, [path.name for path in arguments.output.glob("*.jsonl")])
        except ValueError as error:
            parser.error(f"--output: {error}")
    table, ablated = {}, {}
    for name in arguments.models:
        task = get_task(name.removesuffix("-early"))
        solver = None
        if arguments.solver != "none":
            embedded = arguments.solver == "embedded"
            solver = load_solver(str(embedded_model("solver")) if embedded else arguments.solver, task)
        for scorer in arguments.scorers:
            for tokens in arguments.tokens_per_step:
                rows = measure(name, tokens, scorer, arguments, solver)
                for n in arguments.trajectories:
                    if rows and str(n) in rows[0]:
                        table[f"{name}/{scorer}/{tokens}/{n}"] = summary_of(task, rows, n, tokens)
                if rows and "ablation" in rows[0]:
                    ablated[f"{name}/{scorer}/{tokens}"] = rows
    write_whole(arguments.output / "stitching.json", json.dumps(table, indent=1) + "\n")
    tables = tables_of(table)
    print_tables(tables)
    print_curves(tables)
    if ablated:
        print_ablation(ablated)
    if arguments.images is not None:
        draw(tables, arguments.images)


if __name__ == "__main__":
    main()
