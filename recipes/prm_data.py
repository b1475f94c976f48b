"""What a process reward model is trained and judged on: the problems that are labelled, or labelled rows that there are."""

from itertools import combinations, islice
from pathlib import Path
from typing import Any

from lockstitch.rewards.tasks.data import load_split, read_columns, renamed
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
        train = own[: len(own) - fit][: recipe.num_problems]
        if not train:
            raise ValueError(
                f"input={recipe.input!r} has {len(own)} problems, of which num_fit_problems={fit} leave none"
            )
        test = [] if recipe.eval_input is None else problems_in(recipe.eval_input, task)
        splits = {"train": train, "fit": own[len(own) - fit :], "test": test[: recipe.num_eval_problems]}
        check_apart(splits, recipe)
        return splits
    count = 1000 if recipe.num_problems is None else recipe.num_problems
    train = list(training_problems(task, count, recipe.problem_seed))
    seen = {problem.question for problem in train}
    more = training_problems(task, 20 * (count + fit), recipe.problem_seed + 1)
    fresh = (one for one in more if one.question not in seen)
    evaluated = 200 if recipe.num_eval_problems is None else recipe.num_eval_problems
    return {
        "train": train,
        "fit": list(islice(fresh, fit)),
        "test": held_out_problems(task, evaluated, recipe.problem_seed),
    }


def own_rows(recipe: Any) -> dict[str, list[dict[str, Any]]]:
    """The rows of one's own data, under the names of the splits. Raises `ValueError` for one of another form."""
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
    return rows
