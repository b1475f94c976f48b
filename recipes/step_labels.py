"""Labels of reasoning steps without people: is a step's prefix one from which the problem can be completed?

Math-Shepherd (2312.08935, equations 3 and 4): from the prefix up to a step the problem is completed k times; the soft label
is the share of completions that end right, the hard one whether any does. Here the policy is a diffusion model: the prefix
is pinned on the canvas, token by token as it was written, and the rest is denoised, by the model that wrote it or by a
better one: labels mean what their completer can do. Prefixes that trajectories of a problem share are completed once.

Rows are in the form of TRL's stepwise supervision (`prompt`, `completions`, `labels`) with what else is known beside, and
are written whole: a labelling that was killed goes on where it stopped, and gives the same rows as one that was not.

Axes: K trajectories of a problem.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lockstitch.rewards.problem import Problem
from lockstitch.rewards.steps import check_steps
from lockstitch.rewards.tasks.task import Task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import sample
from lockstitch.sampling.noise import derive_seed
from lockstitch.sampling.trajectory import Ledger, Trajectory
from lockstitch.stitching.segment import steps_of, token_spans
from lockstitch.stitching.steps import Step

from lockstitch.files import RESULTS, append_chunks, finished_by_index

KINDS = ("soft", "hard")


@dataclass(frozen=True)
class Labelling:
    """How steps are labelled.

    Attributes:
        trajectories: per problem.
        completions: k, of each prefix.
        kind: `soft` or `hard`.

    Raises `ValueError` for numbers below 1 and another kind.
    """

    trajectories: int = 4
    completions: int = 8
    kind: str = "soft"

    def __post_init__(self) -> None:
        for name in ("trajectories", "completions"):
            if getattr(self, name) < 1:
                raise ValueError(f"num_{name}={getattr(self, name)} must be at least 1")
        if self.kind not in KINDS:
            raise ValueError(f"label={self.kind!r} is not one of {', '.join(KINDS)}")

    def label(self, right: int) -> float:
        """The label of a prefix of whose completions so many are right."""
        return float(right > 0) if self.kind == "hard" else right / self.completions


def label_problems(
    denoiser: Denoiser,
    task: Task,
    problems: Sequence[Problem],
    config: SamplerConfig,
    labelling: Labelling,
    seeds: Sequence[int],
    completer: Denoiser | None = None,
    completion_config: SamplerConfig | None = None,
) -> list[dict[str, Any]]:
    """One row for each trajectory of each problem, in their order, without an `index`.

    Args:
        denoiser: writes the trajectories.
        task: what a step is, and what is right.
        problems: whose answers can be judged.
        config: of the trajectories.
        labelling: how many of each, and what is made of them.
        seeds: of each problem's noise.
        completer: completes them; None is the one that wrote them. Must have its tokens.
        completion_config: of the completions, with the same canvas; None is that of the trajectories. A temperature of 0
            gives k equal ones.

    Raises `ValueError` naming a problem whose answers cannot be judged, and for a completer of other tokens.
    """
    completer, completion_config = completer or denoiser, completion_config or config
    if completer.tokenizer.get_vocab() != denoiser.tokenizer.get_vocab():
        raise ValueError("completion_model has other tokens than label_model: prefixes are pinned token by token")
    prompts = [task.prompt(problem.question) for problem in problems]
    n = labelling.trajectories
    drawn = sample(denoiser, prompts, config, n=n, seed=seeds)
    steps_T = [
        steps_of(t.text, task.unit, i % n, token_spans(denoiser.tokenizer, t.completion_ids))
        for i, t in enumerate(drawn)
    ]
    # Prefixes of one problem in the order in which they first stand: the noise of their completions hangs on nothing else.
    places: dict[tuple[int, tuple[int, ...]], int] = {}
    counts = [0] * len(problems)
    seeded: list[int] = []
    for i, steps in enumerate(steps_T):
        for step in steps:
            key = (i // n, prefix(drawn[i], step))
            if key not in places:
                places[key] = len(places)
                seeded.append(derive_seed(seeds[i // n], 1, counts[i // n]))
                counts[i // n] += 1
    canvases = [[*ids, *[None] * (config.canvas_length - len(ids))] for _, ids in places]
    k = labelling.completions
    completed = sample(
        completer, [prompts[p] for p, _ in places], completion_config, n=k, seed=seeded, canvases=canvases
    )
    right = [
        sum(_is_right(task, problems[p], t) for t in completed[u * k : (u + 1) * k]) for u, (p, _) in enumerate(places)
    ]

    rows, paid = [], set[int]()
    for i, (trajectory, steps) in enumerate(zip(drawn, steps_T, strict=True)):
        problem = problems[i // n]
        own = [places[i // n, prefix(trajectory, step)] for step in steps]
        cost = trajectory.ledger
        for u in own:
            if u not in paid:  # shared completions are on the bill of the first
                paid.add(u)
                cost = cost.then(Ledger.together([t.ledger for t in completed[u * k : (u + 1) * k]]))
        rows.append(
            {
                "question": problem.question,
                "answer": problem.answer,
                "prompt": task.scorer_prompt(problem.question),
                "completions": [task.write_step(step.text) for step in steps],
                "labels": [labelling.label(right[u]) for u in own],
                "right": [right[u] for u in own],
                "of": k,
                "correct": _is_right(task, problem, trajectory),
                "sound": None
                if task.checker is None
                else check_steps(task.checker, problem.question, [step.text for step in steps]),
                "trajectory": replace(trajectory, prompt=0).to_dict(),
                "ledger": asdict(cost),
            }
        )
    return rows


def prefix(trajectory: Trajectory, step: Step) -> tuple[int, ...]:
    """The tokens of a trajectory's canvas up to the end of a step."""
    assert step.tokens is not None
    return trajectory.canvas_ids[: step.tokens[1]]


def _is_right(task: Task, problem: Problem, trajectory: Trajectory) -> bool:
    answer = task.extract(trajectory.text)
    known = task.judge(problem, [answer or ""], [trajectory.text])[0]
    if known is None:
        raise ValueError(
            f"the problem {problem.question!r} cannot be judged (answer {problem.answer!r}): its steps cannot "
            "be labelled"
        )
    return bool(answer) and known


def write_labels(
    directory: Path,
    problems: Sequence[Problem],
    label: Callable[[Sequence[Problem], int], list[dict[str, Any]]],
    per: int,
    chunk: int,
    progress: Callable[[int], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Labels what is not labelled yet, chunk by chunk, and returns all rows of the problems, of which there may be more now.

    Args:
        directory: holds `results.jsonl`, and is this labelling's own (`files.claim_directory`).
        problems: all of them.
        label: problems and the place of the first of them -> their rows, whose noise hangs on that place alone.
        per: rows of a problem.
        chunk: problems labelled together; the rows of one are written at once.
        progress: called with the number of rows that were just finished, those of an earlier run first.

    Raises `ValueError` where the rows that are there are of other problems.
    """
    path = directory / RESULTS
    done = finished_by_index(path)[: len(problems) * per]
    for i, row in enumerate(done):
        wanted = problems[i // per]
        if (row["question"], row["answer"]) != (wanted.question, wanted.answer):
            raise ValueError(
                f"{directory} holds labels of other problems (row {i}: {row['question']!r}, answer {row['answer']!r}); "
                "choose another output"
            )
    progress(len(done))

    def chunks() -> Iterator[list[dict[str, Any]]]:
        first, skip = divmod(len(done), per)  # a write that was cut off may have left some rows of a problem
        for start in range(first, len(problems), chunk):
            rows = label(problems[start : start + chunk], start)
            numbered = [{"index": start * per + i, **row} for i, row in enumerate(rows)]
            yield numbered[skip if start == first else 0 :]

    rows = list(done)
    for new in append_chunks(path, chunks()):
        rows += new
        progress(len(new))
    return rows
