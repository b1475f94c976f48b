"""What a process reward model is trained and judged on: the problems that are labelled, or labelled rows that there are."""

import json
from collections.abc import Mapping, Sequence
from itertools import combinations, islice
from pathlib import Path
from typing import Any

from lockstitch.rewards.tasks.data import load_split, read_columns, renamed
from lockstitch.rewards.tasks.rows import check_enough
from lockstitch.rewards.tasks.task import held_out_problems, training_problems
from lockstitch.stitching.inputs import read_problems

_USES = {"train": "train on", "fit": "fit weights on", "test": "judge on"}


def problems_in(path: str, task: Any) -> list[Any]:
    """The problems of a file, each of which can be judged; `ValueError` names one that cannot."""
    without = 0
    for given in (found := read_problems(Path(path), task)):
        problem, why = given.problem, given.fault
        if why is None and problem.answer is None:
            without += 1  # which some tasks need no gold answer to judge; one of them tells of all
            if without == 1 and task.judge(problem, [""], [""])[0] is None:
                why = "there is no gold answer"
        if why is not None:
            raise ValueError(f"{path}, line {given.line}: {problem.question!r:.80} cannot be judged: {why}")
    return [given.problem for given in found]


def check_apart(splits: dict[str, list[Any]], recipe: Any) -> None:
    """Raises `ValueError` where a question is in two of the splits."""
    for one, other in combinations(splits, 2):
        both = {problem.question for problem in splits[one]} & {problem.question for problem in splits[other]}
        if both:
            raise ValueError(
                f"input={recipe.input!r}, eval_input={recipe.eval_input!r}: {len(both)} questions are among those to "
                f"{_USES[one]} and those to {_USES[other]}, {min(both)!r:.80} for one"
            )


def problems_of(recipe: Any, task: Any) -> dict[str, list[Any]]:
    """The problems of each split; none of one is in another. `ValueError` where there are too few."""
    fit = recipe.num_fit_problems
    if recipe.input is not None:
        own = problems_in(recipe.input, task)
        left = len(own) - fit
        if left < 1:
            raise ValueError(
                f"input={recipe.input!r} has {len(own)} problems, of which num_fit_problems={fit} leave none"
            )
        beside = f", {left} beside those of num_fit_problems={fit}" if fit else ""
        check_enough("num_problems", recipe.num_problems, left, f"input={recipe.input!r} has {len(own)}{beside}")
        test = [] if recipe.eval_input is None else problems_in(recipe.eval_input, task)
        where = f"eval_input={recipe.eval_input!r} has {len(test)}"
        check_enough("num_eval_problems", recipe.num_eval_problems, len(test), where)
        splits = {
            "train": own[:left][: recipe.num_problems],
            "fit": own[left:],
            "test": test[: recipe.num_eval_problems],
        }
        check_apart(splits, recipe)
        return splits
    count = 1000 if recipe.num_problems is None else recipe.num_problems
    train = list(training_problems(task, count, recipe.problem_seed))
    seen = {problem.question for problem in train}
    more = training_problems(task, 20 * (count + fit), recipe.problem_seed + 1)
    fresh = (one for one in more if one.question not in seen)
    fitted = list(islice(fresh, fit))
    where = f"of task {task.name!r} {len(fitted)} were found that are not among the {count} to train on"
    check_enough("num_fit_problems", fit, len(fitted), where)
    evaluated = 200 if recipe.num_eval_problems is None else recipe.num_eval_problems
    return {"train": train, "fit": fitted, "test": held_out_problems(task, evaluated, recipe.problem_seed)}


def check_fitted_on(recipe: Any, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Raises `ValueError` where weights are to be fitted on labels that are all the same, from which nothing is learned."""
    labels = [label for row in rows.get("fit", ()) for label in row["labels"]]
    if recipe.num_fit_problems and len(set(labels)) < 2:
        what = f"all {len(labels)} labels of their steps are {labels[0]}" if labels else "none of these has a step"
        raise ValueError(f"num_fit_problems={recipe.num_fit_problems}: {what}, and no weights can be fitted; say more")


def own_rows(recipe: Any) -> dict[str, list[dict[str, Any]]]:
    """The rows of one's own data, under the names of the splits.

    Raises `ValueError` for one of another form, and where a prompt is in both splits.
    """
    from lockstitch.recipes.step_training import check_row

    assert recipe.dataset_name is not None
    named = {"train": recipe.dataset_train_split, "test": recipe.dataset_test_split}
    rows: dict[str, list[dict[str, Any]]] = {
        split: []
        if name is None
        else list(renamed(load_split(recipe.dataset_name, name, recipe.dataset_config), read_columns(recipe.columns)))
        for split, name in named.items()
    }
    for part in rows.values():
        for place, row in enumerate(part):
            check_row(row, place)
    train, test = ({_words(row["prompt"]) for row in rows[split]} for split in named)
    if train & test:
        raise ValueError(
            f"dataset_name={recipe.dataset_name!r}: {len(train & test)} prompts are in "
            f"dataset_train_split={recipe.dataset_train_split!r} and in dataset_test_split={recipe.dataset_test_split!r}, "
            f"{min(train & test)!r:.80} for one"
        )
    return rows


def _words(prompt: Any) -> str:
    """What makes prompts the same one: a text, or the whole of messages."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)
