"""Stitching with judges that err: the same trajectories by each scorer, and by an exact one whose verdicts are flipped.

    python scripts/compare_scorers.py --n 200 --output runs/scorers

N = 8 trajectories of each problem are drawn once per task; every arm scores them and stitches in rounds, one canvas a round,
inside the passes that N trajectories cost under it. No solver is asked. `exact` is the task's checker in the chain too, as
`lockstitch stitch` has it by default; all other arms stitch with `--checker none`, so that nothing but the scorer says what
is sound, and those with `, rescored` have it read each stitched chain again. `flip P` gives P % of the exact verdicts the
other way, always the same ones for the same steps. Results are appended chunk by chunk to files in OUTPUT, and a second run
goes on where the first stopped; the table is printed as Markdown and written to OUTPUT/scorers.json.
"""

import argparse
import json
import zlib
from pathlib import Path

from lockstitch.rewards.statistics import paired_difference, wilson
from lockstitch.rewards.steps import SOUND, check_steps
from lockstitch.rewards.tasks.named import get_task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import sample
from lockstitch.sampling.noise import derive_seed
from lockstitch.stitching.answers import evidence_answer, votes
from lockstitch.stitching.calibration import auc
from lockstitch.stitching.inputs import generate_problems
from lockstitch.stitching.pool import Pool
from lockstitch.stitching.rounds import stitch_rounds
from lockstitch.stitching.score import Scores, load_scorer
from lockstitch.stitching.unchecked import unchecked
from tqdm import tqdm

from lockstitch import embedded_model
from lockstitch.files import append_chunks, claim_directory, finished_by_index, write_whole

N, DELTA, TOKENS = 8, 0.9, 4
MODELS = {"sudoku": "sudoku-early", "countdown": "countdown", "arithmetic": "arithmetic"}
RESCORED = ", rescored"
FLIPS = (0, 5, 10, 20, 30, 40)
LEARNED = ("prm", "bmc", "bound", "confidence")


class Flipped:
    """The exact checker, some of whose verdicts are the other way round: by the question and the steps up to there."""

    def __init__(self, task, share):
        self.task, self.share = task, share

    def __call__(self, question, steps_KN, trajectories):
        score_KN = []
        for steps in steps_KN:
            texts = [step.text for step in steps]
            exact = check_steps(self.task.checker, question, texts)
            drawn = [zlib.crc32("\n".join([question, *texts[: i + 1]]).encode()) / 2**32 for i in range(len(texts))]
            score_KN.append(
                [1 - score if draw < self.share else score for score, draw in zip(exact, drawn, strict=True)]
            )
        return Scores(score_KN)


def arms_of(names):
    """Every arm by name, in the order of the table."""
    arms = ["exact", "exact, unchecked", *LEARNED, f"prm{RESCORED}", *(f"flip {p}" for p in FLIPS if p),
            *(f"flip {p}{RESCORED}" for p in FLIPS)]  # fmt: skip
    unknown = [name for name in names or () if name not in arms]
    if unknown:
        raise SystemExit(f"arms {unknown} are not among {arms}")
    return [name for name in arms if not names or name in names]


def scorer_of(arm, task, denoiser):
    """The scorer of an arm."""
    name = arm.removesuffix(RESCORED)
    if name.startswith("flip"):
        return Flipped(task, int(name.split()[1]) / 100)
    spec = {"prm": f"prm:embedded:{task.name}"}.get(name, "calculator" if name.startswith("exact") else name)
    return load_scorer(spec, task, denoiser=denoiser)


def measure(task_name, arm, arguments, draw):
    """The rows of one arm, of an earlier run or new."""
    path = arguments.output / f"{task_name}-{arm.replace(', ', '-').replace(' ', '')}.jsonl"
    done = finished_by_index(path)
    if len(done) >= arguments.n:
        return done[: arguments.n]
    task = get_task(task_name)
    denoiser, config, given, drawn = draw()
    scorer = scorer_of(arm, task, denoiser)
    judged_by = task if arm == "exact" else unchecked(task)

    def right(one, answer):
        return bool(answer) and bool(task.is_correct(one.problem.question, one.problem.answer, answer))

    def chunks():
        for start in range(len(done), arguments.n, arguments.chunk):
            part = given[start : min(arguments.n, start + arguments.chunk)]
            pools = [Pool(one.problem.question) for one in part]
            for i, pool in enumerate(pools, start=start):
                pool.draw(denoiser, judged_by, scorer, drawn[i * N : (i + 1) * N])
            grown = [pool.head(1) for pool in pools]
            results = stitch_rounds(
                denoiser,
                judged_by,
                grown,
                scorer,
                config,
                budgets=[pool.ledger.nfe for pool in pools],
                width=1,
                delta=DELTA,
                seeds=[derive_seed(arguments.seed, start + i, 1) for i in range(len(part))],
                rescore=arm.endswith(RESCORED),
            )
            rows = []
            for i, (one, pool, head, result) in enumerate(zip(part, pools, grown, results, strict=True)):
                voted = votes(task, pool, N)
                sound = [check_steps(task.checker, pool.question, [s.text for s in steps]) for steps in pool.steps_KN]
                rows.append(
                    {
                        "index": start + i,
                        "stitched": right(one, evidence_answer(judged_by, head, result.evidence, DELTA)),
                        "best_of_n": right(one, voted["best_of_n"].answer),
                        "majority_vote": right(one, voted["majority_vote"].answer),
                        "complete": result.complete,
                        "nfe": head.ledger.nfe,
                        "scorer_passes": head.ledger.scorer_passes,
                        "canvases": len(head.texts_K),
                        "steps": [
                            [round(score, 4), verdict]
                            for scores, verdicts in zip(pool.score_KN, sound, strict=True)
                            for score, verdict in zip(scores, verdicts, strict=True)
                            if verdict in (0.0, SOUND)
                        ],
                    }
                )
            yield rows

    rows = list(done)
    with tqdm(total=arguments.n, initial=len(done), desc=path.stem, disable=None) as bar:
        for new in append_chunks(path, chunks()):
            rows += new
            bar.update(len(new))
    return rows


def drawing(task_name, arguments):
    """A function that draws a task's trajectories at its first call."""
    kept = []

    def draw():
        if not kept:
            task = get_task(task_name)
            denoiser = Denoiser.from_pretrained(str(embedded_model(MODELS[task_name])))
            config = SamplerConfig(
                canvas_length=task.canvas_length,
                steps=-(-task.canvas_length // TOKENS),
                temperature=0.7,
                batch_size=512,
            )
            given = generate_problems(task, arguments.n, arguments.seed)
            prompts = [task.prompt(one.problem.question) for one in given]
            seeds = [derive_seed(arguments.seed, i) for i in range(len(given))]
            kept.extend([denoiser, config, given, sample(denoiser, prompts, config, n=N, seed=seeds)])
        return kept

    return draw


def summary_of(rows, exact):
    """The figures of one arm; the difference is to the exact one on the same problems, the first of those that it has."""
    rows, exact = rows[: len(exact)], exact[: len(rows)]
    stitched = [row["stitched"] for row in rows]
    steps = [pair for row in rows for pair in row["steps"]]
    mean = {
        name: sum(row[name] for row in rows) / len(rows) for name in ("nfe", "scorer_passes", "canvases", "complete")
    }
    best, vote = (sum(row[name] for row in rows) / len(rows) for name in ("best_of_n", "majority_vote"))
    return {
        "n": len(rows),
        "stitched": sum(stitched) / len(rows),
        "ci95": wilson(sum(stitched), len(rows)),
        "best_of_n": best,
        "majority_vote": vote,
        **mean,
        "auc": auc([s for s, _ in steps], [y for _, y in steps]),
        "minus_exact": paired_difference(stitched, [row["stitched"] for row in exact]),
    }


def print_table(table):
    """The table as Markdown."""
    print(
        "\n| task | scorer | AUC of steps | best of N | stitched | 95 % interval | minus exact | canvases | NFE "
        "| scorer's passes |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for task, arms in table.items():
        for arm, one in arms.items():
            low, high = one["ci95"]
            pair = one["minus_exact"]
            cells = [
                f"{one['auc']:.3f}", f"{100 * one['best_of_n']:.1f}", f"{100 * one['stitched']:.1f}",
                f"{100 * low:.1f} to {100 * high:.1f}",
                f"{100 * pair['difference']:+.1f} ± {100 * pair['standard_error']:.1f}", f"{one['canvases']:.1f}",
                f"{one['nfe']:.0f}", f"{one['scorer_passes']:.1f}",
            ]  # fmt: skip
            print("| " + " | ".join([task, arm, *cells]) + " |")
        print(f"| {task} | majority vote | | | {100 * arms['exact']['majority_vote']:.1f} | | | {N} | | |")


def main():
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--arms", nargs="+", help="some of the arms (default: all); exact is always among them")
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--chunk", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/scorers"))
    arguments = parser.parse_args()
    try:
        claim_directory(arguments.output, {"seed": arguments.seed}, [p.name for p in arguments.output.glob("*.jsonl")])
    except ValueError as error:
        parser.error(f"--output: {error}")
    arms = arms_of(["exact", *arguments.arms] if arguments.arms else None)
    table = {}
    for name in arguments.tasks:
        draw = drawing(name, arguments)
        rows = {arm: measure(name, arm, arguments, draw) for arm in arms}
        table[name] = {arm: summary_of(found, rows["exact"]) for arm, found in rows.items()}
        write_whole(arguments.output / "scorers.json", json.dumps(table, indent=1) + "\n")
    print_table(table)


if __name__ == "__main__":
    main()
