"""What the supervised stage and the adaptation train on: a data set, a task's rows, or generated ones."""

from dataclasses import dataclass, field
from typing import Any

MANY = 200_000


@dataclass
class DataArguments:
    """What to train on."""

    generate: str | None = field(
        default=None,
        metadata={
            "help": "Generate the rows of an embedded model: arithmetic, countdown, sudoku, sudoku9, or evidence."
        },
    )
    task: str | None = field(
        default=None,
        metadata={
            "help": "A task whose prompts and gold solutions or answers are trained on: a name that `lockstitch "
            "tasks` lists, a YAML file, file.py:attribute or module:attribute."
        },
    )
    task_source: str | None = field(
        default=None, metadata={"help": "Which of the task's sources; `train` by default."}
    )
    task_path: str | None = field(default=None, metadata={"help": "A file or folder to read the task's rows from."})
    prompt_form: str | None = field(
        default=None, metadata={"help": "How the task asks: tags, boxed, fenced or plain (default), as it has them."}
    )
    num_problems: int | None = field(
        default=None,
        metadata={
            "help": "How many rows to generate (of generate=TASK 200,000 by default); of a task with "
            "rows of its own, the first so many (default: all)."
        },
    )
    problem_seed: int = field(default=0, metadata={"help": "Seed of the generated rows."})
    batch_by_length: bool = field(
        default=False,
        metadata={
            "help": "Put generated rows of about one length into one batch, batches in random order. Wants "
            "train_sampling_strategy: sequential."
        },
    )
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Prompts and completions, or conversations: a hub name, a directory or a file."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Its configuration on the hub."})
    columns: str | None = field(
        default=None, metadata={"help": "Its columns under other names: prompt:question,completion:solution."}
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Its split."})
    dataset_test_split: str | None = field(
        default=None, metadata={"help": "Its split for evaluation, which eval_strategy asks for."}
    )
    num_eval_problems: int = field(
        default=0,
        metadata={"help": "How many held-out rows of generate=TASK are evaluated, if eval_strategy asks for it."},
    )

    def __post_init__(self) -> None:
        given = [name for name in ("generate", "task", "dataset_name") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "say where the rows come from, once: generate=TASK, task=TASK or dataset_name=NAME (given: "
                f"{', '.join(given) or 'none'})"
            )
        for name in ("task_source", "task_path", "prompt_form"):
            if getattr(self, name) is not None and self.task is None:
                raise ValueError(f"{name}={getattr(self, name)!r} says what is asked of a task, and task=None")
        for name, usual in (("dataset_config", None), ("columns", None), ("dataset_train_split", "train")):
            if getattr(self, name) != usual and self.dataset_name is None:
                raise ValueError(f"{name}={getattr(self, name)!r} is of dataset_name, which is missing")
        if self.problem_seed and self.dataset_name is not None:
            raise ValueError(f"problem_seed={self.problem_seed} would be ignored: dataset_name has rows of its own")
        if self.num_problems is not None and self.dataset_name is not None:
            raise ValueError(f"num_problems={self.num_problems} would be ignored: all rows of dataset_name are taken")
        if self.num_problems is not None and self.num_problems < 1:
            raise ValueError(f"num_problems={self.num_problems} must be at least 1")
        if self.num_eval_problems < 0:
            raise ValueError(f"num_eval_problems={self.num_eval_problems} must be at least 0")
        if self.num_eval_problems and self.generate in (None, "evidence"):
            raise ValueError(
                f"num_eval_problems={self.num_eval_problems} takes held-out problems of an embedded model's "
                f"task; generate={self.generate!r} has none"
            )
        if self.dataset_test_split is not None and self.dataset_name is None:
            raise ValueError(
                f"dataset_test_split={self.dataset_test_split!r} is a split of dataset_name, which is missing"
            )


def check_data(recipe: DataArguments, training: Any) -> None:
    """Raises `ValueError` for data that does not go with the settings of the training."""
    if recipe.batch_by_length and (recipe.generate is None or training.train_sampling_strategy != "sequential"):
        raise ValueError(
            "batch_by_length=True orders generated rows; it needs generate=TASK and train_sampling_strategy='sequential', "
            f"not generate={recipe.generate!r} and train_sampling_strategy={training.train_sampling_strategy!r}"
        )
    if recipe.batch_by_length and getattr(training, "rolls_out", False):
        raise ValueError(
            f"batch_by_length=True would be ignored: the model writes the completions, text={training.text!r}"
        )
    evaluated = recipe.dataset_test_split is not None or recipe.num_eval_problems > 0
    if evaluated != (training.eval_strategy != "no"):
        raise ValueError(
            f"eval_strategy={str(training.eval_strategy)!r} and the rows to evaluate (dataset_test_split or "
            "num_eval_problems) belong together: say both or neither"
        )
    if training.eval_on_start and not evaluated:
        raise ValueError("eval_on_start=True wants rows to evaluate: dataset_test_split or num_eval_problems")
    from lockstitch.rewards.tasks.data import is_file_name

    if recipe.dataset_test_split is not None and is_file_name(recipe.dataset_name or ""):
        raise ValueError(
            f"dataset_name={recipe.dataset_name!r} is one file, without splits: "
            "dataset_test_split needs a directory or a hub name"
        )


def own_rows(recipe: DataArguments, split: str) -> Any:
    """A split of the data that was named, its columns renamed."""
    from lockstitch.rewards.tasks.data import load_split, read_columns, renamed

    assert recipe.dataset_name is not None
    return renamed(load_split(recipe.dataset_name, split, recipe.dataset_config), read_columns(recipe.columns))


def task_rows(recipe: DataArguments, tokenizer: Any) -> Any:
    """The rows of a task as prompts and completions, conversations where the tokenizer has a template for them.

    Raises `ValueError` for a task without rows or without solutions, naming the first row that has none.
    """
    from datasets import Dataset
    from lockstitch.rewards.tasks.named import get_task
    from lockstitch.rewards.tasks.rows import check_enough, load_rows
    from lockstitch.sampling.chat import Chat

    assert recipe.task is not None
    task = get_task(recipe.task)
    source = recipe.task_source or ("train" if "train" in task.sources else None)
    if source is None and task.sources and recipe.task_path is None:
        raise ValueError(
            f"task {task.name!r} has no rows to train on, only {', '.join(task.sources)} to measure on: "
            "task_source, if that is meant, or task_path"
        )
    made_up = recipe.task_path is None and task.source(source).generate is not None
    if recipe.problem_seed and not made_up:
        raise ValueError(
            f"problem_seed={recipe.problem_seed} would be ignored: task {task.name!r} has rows of its own"
        )
    rows = load_rows(
        task,
        source=source,
        path=recipe.task_path,
        form=recipe.prompt_form or "plain",
        conversational=False,
        count=recipe.num_problems,
        seed=recipe.problem_seed,
        option="num_problems",
    )
    check_enough("num_problems", recipe.num_problems, len(rows), f"{recipe.task_path or task.name!r} has {len(rows)}")
    chat = Chat.of(tokenizer, None, task.system)
    made: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        solution = task.solution(row)
        if solution is None:
            raise ValueError(f"row {number} of task {task.name!r} has no solution and no gold answer to train on")
        prompt = chat.messages(row["prompt"])
        completion = solution if isinstance(prompt, str) else [{"role": "assistant", "content": solution}]
        made.append({"prompt": prompt, "completion": completion})
    return Dataset.from_list(made)


def load_rows(recipe: DataArguments, training: Any, tokenizer: Any) -> Any:
    """The training rows as a `datasets.Dataset`: as they are, or generated and tokenized."""
    from datasets import Dataset
    from lockstitch.recipes.evidence import evidence_rows
    from lockstitch.recipes.tiny import batch_by_length, task_tokens, tokenize_rows
    from lockstitch.rewards.tasks.named import get_task

    if recipe.dataset_name is not None:
        return own_rows(recipe, recipe.dataset_train_split)
    if recipe.task is not None:
        return task_rows(recipe, tokenizer)
    assert recipe.generate is not None
    count = recipe.num_problems or MANY
    if recipe.generate == "evidence":
        tokenized = list(tokenize_rows(evidence_rows(count, recipe.problem_seed), tokenizer))
    else:
        tokenized = list(task_tokens(get_task(recipe.generate), count, recipe.problem_seed, tokenizer))
    if recipe.batch_by_length:
        tokenized = batch_by_length(tokenized, training.per_device_train_batch_size, recipe.problem_seed)
    return Dataset.from_list(tokenized)


def load_eval_rows(recipe: DataArguments, tokenizer: Any) -> Any:
    """The rows of the evaluation, or None; generated ones never meet the training rows."""
    from datasets import Dataset
    from lockstitch.recipes.tiny import task_tokens
    from lockstitch.rewards.tasks.named import get_task

    if recipe.dataset_test_split is not None:
        return own_rows(recipe, recipe.dataset_test_split)
    if recipe.num_eval_problems == 0:
        return None
    assert recipe.generate is not None
    task, count = get_task(recipe.generate), recipe.num_eval_problems
    return Dataset.from_list(list(task_tokens(task, count, recipe.problem_seed, tokenizer, held_out=True)))
