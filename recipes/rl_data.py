"""What a recipe of reinforcement learning trains on, and what it is measured on: never the same problems.

Training problems of a task that can make them up are generated, on the training side of the task's split; those of any other
task are its source `train`, or rows that are named: a file or folder, or another data set of the hub. Held-out problems are
generated on the other side of the split, or else the last of the training rows, which are then not trained on: test files
stay untouched until `held_out_source` names one. A question that stands on both sides is taken out of training.

Left out: mixtures of tasks.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lockstitch.rewards.contract import RESERVED
from lockstitch.rewards.tasks.data import load_split, renamed
from lockstitch.rewards.tasks.named import get_task
from lockstitch.rewards.tasks.rows import check_enough, load_rows, with_prompt
from lockstitch.rewards.tasks.task import PLAIN, Task
from lockstitch.sampling.chat import Chat, encode

logger = logging.getLogger(__name__)

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Problems:
    """Rows with `prompt` (a text, or messages), and what the rewards read."""

    train: Rows
    held_out: Rows


def load_problems(
    task: Task | str,
    form: str,
    *,
    train_source: str | None = None,
    train_path: str | None = None,
    dataset_name: str | None = None,
    dataset_config: str | None = None,
    dataset_train_split: str = "train",
    columns: Mapping[str, str] | None = None,
    num_problems: int | None = None,
    seed: int = 0,
    held_out: int = 0,
    held_out_source: str | None = None,
    held_out_path: str | None = None,
) -> Problems:
    """Both sides of a task.

    Args:
        task: the task, or its name or place.
        form: of the prompts.
        train_source: which of the task's sources is trained on; `train` by default.
        train_path: a file or folder to read it from.
        dataset_name: another data set whose rows the task can read, as `rows.load_split` takes it.
        dataset_config: its configuration.
        dataset_train_split: its split.
        columns: its columns under the names that the task reads.
        num_problems: how many to train on: the first so many, or that many new ones.
        seed: of generated problems.
        held_out: how many problems to measure on; 0 for none.
        held_out_source: which source they come from; by default see above.
        held_out_path: a file or folder to read it from.

    Raises:
        ValueError: a task without rows to train on, one and the same source for both, or rows that cannot be read.
    """
    task = get_task(task)
    task.check_form(form)
    if dataset_name is not None and (train_path is not None or train_source is not None):
        raise ValueError(f"dataset_name={dataset_name!r} leaves no use for train_path and train_source")
    if held_out_source is not None and held_out_source == (train_source or "train"):
        raise ValueError(
            f"held_out_source={held_out_source!r} is what is trained on; held_out_problems alone sets rows of it aside"
        )
    if held_out < 1 and (held_out_source is not None or held_out_path is not None):
        raise ValueError(
            "held_out_source and held_out_path say what is measured on: say on how many problems, too "
            "(held_out_problems)"
        )
    generated = "held_out" in task.sources and held_out_source is None and held_out_path is None
    apart = held_out > 0 and not generated and held_out_source is None and held_out_path is None
    wanted = None if num_problems is None else num_problems + (held_out if apart else 0)
    own = None
    if dataset_name is not None:
        own = renamed(load_split(dataset_name, dataset_train_split, dataset_config), columns or {}).to_list()
    train = _training_rows(task, form, train_source, train_path, own, wanted, seed)
    where = f"{train_path or dataset_name or train_source or task.name!r} has {len(train)}"
    check_enough("num_problems", num_problems, len(train), where)
    if held_out < 1:
        return Problems(train, [])
    if apart:
        check_enough("num_problems + held_out_problems", wanted, len(train), where)
        if held_out >= len(train):
            raise ValueError(f"held_out_problems={held_out} of {len(train)} rows leave nothing to train on")
        train, held = train[:-held_out], train[-held_out:]
    else:
        source = held_out_source or ("held_out" if generated else None)
        held = load_rows(
            task, source=source, path=held_out_path, form=form, conversational=False, count=held_out, seed=seed
        )
        where = f"{held_out_path or source or task.name!r} has {len(held)}"
        check_enough("held_out_problems", held_out, len(held), where)
    return Problems(_without(train, held), held)


def _training_rows(
    task: Task, form: str, source: str | None, path: str | None, own: Rows | None, count: int | None, seed: int
) -> Rows:
    if task.cloze is not None and form == PLAIN:
        forms = ", ".join(name for name in task.forms if name != PLAIN)
        raise ValueError(
            f"prompt_form='plain' of task {task.name!r} gives a part of the completion, which rollouts do not pin: {forms}"
        )
    if own is not None:
        return [with_prompt(task, row, form) for row in own[:count]]
    if source is None and "train" not in task.sources and path is None:
        only = f", only {', '.join(task.sources)} to measure on" if task.sources else ""
        raise ValueError(
            f"task {task.name!r} has no rows of its own to train on{only}: name some with train_path or dataset_name"
        )
    chosen = source if source is not None or "train" not in task.sources else "train"
    return load_rows(
        task, source=chosen, path=path, form=form, conversational=False, count=count, seed=seed, option="num_problems"
    )


def own_problems(
    dataset_name: str,
    *,
    dataset_config: str | None = None,
    dataset_train_split: str = "train",
    dataset_test_split: str | None = None,
    columns: Mapping[str, str] | None = None,
    num_problems: int | None = None,
    held_out: int = 0,
) -> Problems:
    """Both sides of one's own data: a column `prompt`, a text or messages, and whatever else the rewards read.

    Held out are `held_out` rows of `dataset_test_split` (all of it, if 0), or the last ones of the training split; rows that
    ask what is held out are not trained on.

    Raises:
        ValueError: no such data, no prompts in it, columns that are not for rewards, or nothing left to train on.
    """
    train = _prompts(
        renamed(load_split(dataset_name, dataset_train_split, dataset_config), columns or {}), dataset_name
    )
    where = f"{dataset_name!r} has {len(train)}"
    check_enough("num_problems", num_problems, len(train), where)
    if dataset_test_split is not None:
        held = _prompts(
            renamed(load_split(dataset_name, dataset_test_split, dataset_config), columns or {}), dataset_name
        )
        where = f"dataset_test_split={dataset_test_split!r} of {dataset_name!r} has {len(held)}"
        check_enough("held_out_problems", held_out, len(held), where)
        held = held[: held_out or None]
        return Problems(_without(train[:num_problems], held), held)
    if num_problems is not None:
        check_enough("num_problems + held_out_problems", num_problems + held_out, len(train), where)
    wanted = train if num_problems is None else train[: num_problems + held_out]
    if held_out >= len(wanted):
        raise ValueError(f"held_out_problems={held_out} of {len(wanted)} rows leave nothing to train on")
    if not held_out:
        return Problems(wanted, [])
    return Problems(_without(wanted[:-held_out], wanted[-held_out:]), wanted[-held_out:])


def _prompts(rows: Any, name: str) -> Rows:
    if "prompt" not in rows.column_names:
        raise ValueError(
            f"{name!r} has no column 'prompt', a text or messages; it has {', '.join(rows.column_names)}: "
            "name the one that is with columns=prompt:NAME, or say which task reads such rows"
        )
    taken = sorted({*RESERVED, "image", "images"} & set(rows.column_names))
    if taken:
        raise ValueError(
            f"{name!r} has the column {taken[0]!r}: rewards are given something else under that name, and a canvas has no "
            f"images; rename it with columns=NAME:{taken[0]}, or leave it out"
        )
    made: Rows = rows.to_list()
    for number, row in enumerate(made):
        if not row["prompt"] or not isinstance(row["prompt"], str | list):
            raise ValueError(
                f"row {number} of {name!r} has the prompt {row['prompt']!r}: a text or messages are needed"
            )
    return made


def _without(train: Rows, held: Rows) -> Rows:
    """The training rows whose prompts are not held out."""
    asked = {_question(row["prompt"]) for row in held}
    kept = [row for row in train if _question(row["prompt"]) not in asked]
    if len(kept) < len(train):
        logger.warning("%d training problems are held out, too, and are not trained on", len(train) - len(kept))
    if not kept:
        raise ValueError("every training problem is held out, too: nothing is left to train on")
    return kept


def _question(prompt: str | list[dict[str, Any]]) -> str:
    """What makes prompts the same one: the words of a text, the whole of messages."""
    return " ".join(prompt.split()) if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)


def check_room(rows: Rows, tokenizer: Any, room: int | None, **template: Any) -> None:
    """Raises `ValueError` for prompts, as the trainer wants them, of more tokens than a model has room for beside a canvas.

    `room` is None where the model does not say.
    """
    if room is None:
        return
    longest = max((len(encode(row["prompt"], tokenizer, **template)) for row in rows), default=0)
    if longest > room:
        raise ValueError(
            f"a prompt has {longest} tokens, and beside its canvas the model has room for {room}: "
            f"max_prompt_length={room} leaves such prompts out"
        )


def as_prompts(
    rows: Sequence[dict[str, Any]],
    tokenizer: Any,
    max_prompt_length: int | None,
    chat_template: bool | None = None,
    system_prompt: str | None = None,
    **template: Any,
) -> Rows:
    """Rows as the trainer wants them: conversations where the tokenizer has a template for them, long prompts left out.

    Args:
        rows: with `prompt` as text or messages.
        tokenizer: of the model that will read them.
        max_prompt_length: most tokens of a prompt, template included; None for any.
        chat_template: whether texts become conversations; None where the tokenizer has a template.
        system_prompt: what a conversation begins with, if it has no such message.
        template: arguments of the chat template.

    Raises:
        ValueError: every prompt is longer; or there is no template where one is needed.
    """
    chat = Chat.of(tokenizer, chat_template, system_prompt)
    made = [{**row, "prompt": chat.messages(row["prompt"])} for row in rows]
    if max_prompt_length is None:
        return made
    kept = [row for row in made if len(encode(row["prompt"], tokenizer, **template)) <= max_prompt_length]
    if rows and not kept:
        raise ValueError(f"every prompt is longer than max_prompt_length={max_prompt_length} tokens")
    if len(kept) < len(made):
        logger.warning(
            "%d of %d prompts are longer than max_prompt_length=%d tokens and left out",
            len(made) - len(kept),
            len(made),
            max_prompt_length,
        )
    return kept
