"""How far a process reward model can be trusted: its scores on labelled rows that it was not trained on, and a page of them.

Steps are judged against their labels, against the task's exact checker, and against whether
it finds everything up to them sound; traces by the geometric mean of their steps against whether their answer is right.
Other scorers may be judged on the same rows; the weights of a sum are fitted on rows of their own.
"""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from lockstitch.recipes.prm_arguments import LABELS_SAY
from lockstitch.rewards.steps import SOUND, WRONG
from lockstitch.rewards.tasks.named import get_task
from lockstitch.sampling.trajectory import Ledger, Trajectory
from lockstitch.stitching.calibration import judge_scores
from lockstitch.stitching.combine import Combined, Weights, fit
from lockstitch.stitching.score import Scorer, load_scorer, scorer_parts
from lockstitch.stitching.segment import steps_of, token_spans
from lockstitch.stitching.steps import Step
from lockstitch.stitching.stitch import geometric_mean
from lockstitch.stitching.verifier import Verifier

from lockstitch.files import SUMMARY, to_json, write_whole
from lockstitch.pages import embed, without_places, write_page

PAGE = "calibration.html"
WEIGHTS = "scorer_weights.json"
ROWS = 64  # scored together
AGAINST = {"labels": "labels", "checker": "the checker, each step", "prefixes": "the checker, all up to it",
           "traces": "answers, whole traces"}  # fmt: skip


def judge(
    recipe: Any,
    output: Path,
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    is_verifier: bool,
    device: str | None = None,
) -> None:
    """Writes `summary.json`, `calibration.html` and, for a sum, `scorer_weights.json`; prints the figures.

    `is_verifier`: whether a regression on features was made, which reads questions, and no model, which reads prompts.
    `device` is that of the models that score, by default the accelerator.
    """
    from lockstitch.stitching.prm import ProcessRewardModel

    train = [row for row in rows["train"] if row["completions"]]
    summary: dict[str, Any] = {"train": {"traces": len(train), "steps": sum(len(row["completions"]) for row in train)}}
    costs = [row["ledger"] for part in rows.values() for row in part if "ledger" in row]
    if costs:
        summary["labelling"] = {
            name: sum(cost[name] for cost in costs) for name in ("nfe", "tokens_forwarded", "seconds")
        }
    scored: dict[str, dict[str, Any]] = {}
    if rows["test"]:
        scorer: Any = (
            Verifier(str(output), get_task(recipe.task))
            if is_verifier
            else ProcessRewardModel(str(output), device=device)
        )
        asked = "question" if is_verifier else "prompt"
        own = figures(prm_scores(scorer, rows["test"], asked), rows["test"])
        own["cost"] = {"nfe": 0, "scorer_passes": 0 if is_verifier else 1}
        scored["verifier" if is_verifier else "prm"] = own
        scored |= other_scorers(recipe, output, rows, device)
    summary["scorers"] = scored
    write_whole(output / SUMMARY, to_json(summary))
    print(f"Model saved to {output}")
    for name, found in scored.items():
        print(f"{name}, against")
        for against, words in AGAINST.items():
            if (one := found.get(against)) is not None:
                print(f"  {words:<25}  AUC {_short(one['auc'])}, ECE {_short(one['ece'])}, n {one['n']}")
    if scored:
        template = resources.files("lockstitch.recipes").joinpath(PAGE).read_text(encoding="utf-8")
        page = {
            "title": f"Scorers on {without_places(recipe.task or recipe.dataset_name)}",
            "labels": LABELS_SAY[recipe.place],
            "summary": {**summary, "scorers": _without_places(scored)},
        }
        write_page(output / PAGE, template, [embed(page)])
        print(f"Look at {output / PAGE}")


def _without_places(scored: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What a page draws of each scorer, under the name that it shows; several that would have one name are numbered."""
    shown: dict[str, Any] = {}
    for spec, found in scored.items():
        short = "+".join(map(without_places, scorer_parts(spec)))
        names = (short, *(f"{short} ({number})" for number in range(2, len(scored) + 1)))
        name = next(name for name in names if name not in shown)
        shown[name] = {against: one for against, one in found.items() if against != "weights"}
    return shown


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def prm_scores(scorer: Any, rows: Sequence[Mapping[str, Any]], asked: str = "prompt") -> list[list[float]]:
    """The scores of the steps of every row, as they stand there; the column `asked` is put to the scorer."""
    found = []
    for row in rows:
        steps = [Step(0, i, text, (0, len(text))) for i, text in enumerate(row["completions"])]
        found.append(scorer(row[asked], [steps]).score_KN[0])
    return found


def trace_scores(
    scorer: Scorer, tokenizer: Any, task: Any, rows: Sequence[Mapping[str, Any]]
) -> tuple[list[Any], Ledger]:
    """The scores of every row by a scorer that reads the trajectory, and what they cost; rows of a question at once."""
    found: list[Any] = [None] * len(rows)
    cost = Ledger()
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row["question"], []).append(i)
    for question, places in groups.items():
        traces = [Trajectory.from_dict(dict(rows[i]["trajectory"])) for i in places]
        steps_KN = [
            steps_of(t.text, task.unit, k, token_spans(tokenizer, t.completion_ids)) for k, t in enumerate(traces)
        ]
        scores = scorer(question, steps_KN, traces)
        cost = cost.then(scores.cost())
        for i, own in zip(places, scores.score_KN, strict=True):
            found[i] = own
    return found, cost


def figures(scores: Sequence[Sequence[float]], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Scores against the labels and, where rows have them, the checker's verdicts (a 0.5 is none) and the answers."""
    steps = [
        (score, float(label))
        for row, own in zip(rows, scores, strict=True)
        for score, label in zip(own, row["labels"], strict=True)
    ]
    pairs = {"labels": steps}
    if all(row.get("sound") is not None for row in rows):
        pairs["checker"] = [
            (score, float(sound == SOUND))
            for row, own in zip(rows, scores, strict=True)
            for score, sound in zip(own, row["sound"], strict=True)
            if sound in (SOUND, WRONG)
        ]
        worst = [
            (score, min(row["sound"][: i + 1]))
            for row, own in zip(rows, scores, strict=True)
            for i, score in enumerate(own)
        ]
        pairs["prefixes"] = [(score, float(sound == SOUND)) for score, sound in worst if sound in (SOUND, WRONG)]
    if all("correct" in row for row in rows):
        pairs["traces"] = [
            (geometric_mean(own), float(row["correct"])) for row, own in zip(rows, scores, strict=True) if own
        ]
    return {
        name: judge_scores([score for score, _ in one], [outcome for _, outcome in one]) for name, one in pairs.items()
    }


def other_scorers(
    recipe: Any, output: Path, rows: Mapping[str, Sequence[Mapping[str, Any]]], device: str | None
) -> dict[str, dict[str, Any]]:
    """The figures of the other scorers that the recipe names, with what they cost a trace."""
    if not recipe.scorers:
        return {}
    from lockstitch.sampling.denoiser import Denoiser

    task, denoiser = get_task(recipe.task), Denoiser.from_pretrained(recipe.label_model, device=device)
    size = recipe.sample_batch_size
    found = {}
    for spec in recipe.scorers:
        parts = scorer_parts(spec)
        scorers = [load_scorer(part, task, denoiser=denoiser, batch_size=size, device=device) for part in parts]
        scorer, weights = scorers[0], None
        if len(parts) > 1:
            each = [trace_scores(one, denoiser.tokenizer, task, rows["fit"])[0] for one in scorers]
            per_step = [step for traces in zip(*each, strict=True) for step in zip(*traces, strict=True)]
            weights = fit(parts, per_step, [float(label) for row in rows["fit"] for label in row["labels"]])
            weights.write(output / WEIGHTS)
            scorer = Combined(scorers, weights)
        scores, cost = trace_scores(scorer, denoiser.tokenizer, task, rows["test"])
        one = figures(scores, rows["test"])
        one["cost"] = {
            name: getattr(cost, name) / len(rows["test"]) for name in ("nfe", "scorer_passes", "scorer_tokens")
        }
        if weights is not None:
            one["weights"] = _weights(weights)
        found[spec] = one
    return found


def try_scorers(recipe: Any, rows: Mapping[str, Sequence[Mapping[str, Any]]], device: str) -> None:
    """Has every other scorer score the longest trace that it will judge, before a model is trained for hours.

    The longest has the most characters. Raises what the scorer does: `ValueError` where its model has no room for it.
    """
    judged = [row for split in ("fit", "test") for row in rows.get(split, ()) if row["completions"]]
    if not recipe.scorers or not judged:
        return
    from lockstitch.sampling.denoiser import Denoiser

    longest = max(judged, key=lambda row: len(row["prompt"]) + sum(map(len, row["completions"])))
    task, denoiser = get_task(recipe.task), Denoiser.from_pretrained(recipe.label_model, device=device)
    size = recipe.sample_batch_size
    for part in dict.fromkeys(part for scorer in recipe.scorers for part in scorer_parts(scorer)):
        scorer = load_scorer(part, task, denoiser=denoiser, batch_size=size, device=device)
        trace_scores(scorer, denoiser.tokenizer, task, [longest])


def _weights(weights: Weights) -> dict[str, float]:
    return {**dict(zip(weights.parts, weights.weights, strict=True)), "bias": weights.bias}
