"""Labels of traces that were written elsewhere, by their answers, and what can be fitted on a few hundred of them.

A step is worth what its trace came to: 1 where the answer is right, else 0 (the outcome supervision of 2110.14168, a label
for every step). On such rows `lockstitch prm` trains a language model as on others; or, where the model is `features`, it
fits the verifier of `lockstitch.stitching.verifier`, and on the verifier's scores of problems that it did not see
(five folds by problem) the weights of a sum with the calculator and those of the vote by evidence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lockstitch.rewards.tasks.named import get_task, remembered
from lockstitch.rewards.tasks.task import Task
from lockstitch.rl.run_record import RUN
from lockstitch.stitching.answers import same_answers
from lockstitch.stitching.combine import fit
from lockstitch.stitching.evidence_model import FILE as EVIDENCE
from lockstitch.stitching.evidence_model import evidence_features, names_of, results_stated
from lockstitch.stitching.inputs import read_trajectories
from lockstitch.stitching.logistic import Logistic, fit_logistic
from lockstitch.stitching.segment import steps_of
from lockstitch.stitching.stitch import geometric_mean
from lockstitch.stitching.verifier import FEATURES, features, soundness
from lockstitch.stitching.verifier import FILE as VERIFIER

from lockstitch.files import claim_directory

FOLDS = 5
EVIDENCE_RIDGE = 3.0
WEIGHTS = "scorer_weights.json"

Row = Mapping[str, Any]


def trace_rows(path: Path, task: Task) -> list[dict[str, Any]]:
    """One row for each completion of a file, those of a problem one after another, in TRL's form and with what is known.

    Raises `ValueError` naming bad lines, and a problem whose answers cannot be judged.
    """
    rows = []
    golds: dict[str, str | None] = {}
    for number, given in enumerate(read_trajectories(path, task)):
        question, gold = given.problem.question, given.problem.answer
        if given.fault is not None:
            raise ValueError(f"{path}: the problem {question!r:.80} cannot be judged: {given.fault}")
        if golds.setdefault(question, gold) != gold:
            raise ValueError(
                f"{path}: the problem {question!r:.80} has two gold answers, {golds[question]!r} and {gold!r}"
            )
        texts = list(given.completions or ())
        answers = [task.extract(text) for text in texts]
        verdicts = task.judge(given.problem, [answer or "" for answer in answers], texts)
        for k, (text, answer, verdict) in enumerate(zip(texts, answers, verdicts, strict=True)):
            if verdict is None:
                raise ValueError(f"{path}: the problem {given.problem.question!r:.80} cannot be judged: no labels")
            right = bool(answer) and verdict
            steps = [step.text for step in steps_of(text, task.unit, k)]
            rows.append(
                {
                    "problem": number,
                    "question": given.problem.question,
                    "prompt": task.scorer_prompt(given.problem.question),
                    "completions": steps,
                    "labels": [float(right)] * len(steps),
                    "correct": right,
                    "sound": soundness(task, given.problem.question, steps),
                    "given_answer": answer,
                }
            )
    return rows


def fit_verifier(rows: Sequence[Row]) -> Logistic:
    """The verifier of labelled traces; each counts once, however many steps it has."""
    x, y, counts = [], [], []
    for row in rows:
        own = features(row["question"], row["completions"], row["sound"])
        x += own
        y += row["labels"]
        counts += [1 / len(own)] * len(own)
    return fit_logistic(FEATURES, x, y, counts)


def folds(rows: Sequence[Row]) -> dict[str, int]:
    """The fold of each question: a file may ask one in several rows."""
    fold_of: dict[str, int] = {}
    for row in rows:
        fold_of.setdefault(row["question"], row["problem"] % FOLDS)
    return fold_of


def check_folds(rows: Sequence[Row], traces: str) -> None:
    """Raises `ValueError` for fewer problems than folds, or where those outside of one are all right or all wrong."""
    fold_of = folds(rows)
    if len(fold_of) < FOLDS:
        raise ValueError(f"traces={traces!r} holds {len(fold_of)} problems with steps; at least {FOLDS}, one a fold")
    for fold in range(FOLDS):
        right = [row["correct"] for row in rows if fold_of[row["question"]] != fold]
        if len(set(right)) < 2:
            raise ValueError(
                f"traces={traces!r} holds {sum(row['correct'] for row in rows)} right and "
                f"{sum(not row['correct'] for row in rows)} wrong traces with steps: too few problems have some of "
                "each kind, and nothing can be told apart"
            )


def unseen_scores(rows: Sequence[Row]) -> list[list[float]]:
    """The scores of each row's steps by a verifier that was fitted without its question."""
    found: list[list[float]] = [[] for _ in rows]
    fold_of = folds(rows)
    for fold in range(FOLDS):
        model = fit_verifier([row for row in rows if fold_of[row["question"]] != fold])
        for i, row in enumerate(rows):
            if fold_of[row["question"]] == fold:
                found[i] = model(features(row["question"], row["completions"], row["sound"]))
    return found


def fit_evidence(rows: Sequence[Row], scores: Sequence[Sequence[float]]) -> Logistic:
    """The weights of the vote by evidence, from all traces of each problem and their scores, none where a trace has no step.

    The sources are the places of the traces in their problem.
    """
    problems: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        problems.setdefault(row["problem"], []).append(i)
    sources, usual = max(map(len, problems.values())), min(map(len, problems.values()))
    x, y = [], []
    for places in problems.values():
        x += evidence_features(
            same_answers([rows[i]["given_answer"] for i in places]),
            [geometric_mean(scores[i]) for i in places],
            [results_stated(rows[i]["completions"]) for i in places],
            sources,
            usual,
        )
        y += [float(rows[i]["correct"]) for i in places]
    return fit_logistic(names_of(sources), x, y, ridge=EVIDENCE_RIDGE, more={"usual": usual})


def labelled_traces(recipe: Any) -> dict[str, list[dict[str, Any]]]:
    """The rows of each split, as they were written; `ValueError` as `trace_rows`, and for a problem that is in both."""
    task = get_task(recipe.task)
    rows = {
        split: [] if path is None else trace_rows(Path(path), task)
        for split, path in (("train", recipe.traces), ("test", recipe.eval_traces))
    }
    both = {row["question"] for row in rows["train"]} & {row["question"] for row in rows["test"]}
    if both:
        raise ValueError(f"{len(both)} questions are in traces and in eval_traces, {min(both)!r:.80} for one")
    return rows


def as_models_read(rows: Mapping[str, Sequence[Row]], task: Task) -> dict[str, list[dict[str, Any]]]:
    """The rows of each split with steps in the form in which a process reward model of the task is asked for them."""
    return {
        split: [{**row, "completions": [task.write_step(step) for step in row["completions"]]} for row in part]
        for split, part in rows.items()
    }


def fit_on_features(output: Path, recipe: Any) -> dict[str, list[dict[str, Any]]]:
    """Writes `verifier.json`, `evidence_weights.json` and the `scorer_weights.json` of `calculator+verifier:OUTPUT`.

    Returns the rows of each split. Raises `ValueError` for a task without a checker, for too few problems, and for another
    run's directory.
    """
    if get_task(recipe.task).checker is None:
        raise ValueError(f"model_name_or_path='features' counts what a checker finds; task {recipe.task!r} has none")
    found = labelled_traces(recipe)
    rows = [row for row in found["train"] if row["completions"]]
    check_folds(rows, recipe.traces)
    if (output / RUN).is_file():
        raise ValueError(f"output_dir={str(output)!r} holds the run of a model; choose another")
    claim_directory(
        output, {"model_name_or_path": "features", **asdict(recipe), "task": remembered(recipe.task)}, (VERIFIER,)
    )
    scores = unseen_scores(rows)
    fit_verifier(rows).write(output / VERIFIER)
    scored = iter(scores)
    everything = [next(scored) if row["completions"] else [] for row in found["train"]]
    fit_evidence(found["train"], everything).write(output / EVIDENCE)
    pairs = [(a, b) for row, own in zip(rows, scores, strict=True) for a, b in zip(row["sound"], own, strict=True)]
    labels = [label for row in rows for label in row["labels"]]
    fit(["calculator", f"verifier:{output}"], pairs, labels).write(output / WEIGHTS)
    return found
