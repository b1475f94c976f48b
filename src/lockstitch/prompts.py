"""The prompts of a task, for a room that knows no tasks: the rewards' room is asked when they are wanted, and not before.

Leaves out what pays and what is right, which is for those who grade.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class ClozePrompt(str):
    """A text that a model completes, and what of the completion is given: the sampler pins that on the canvas.

    Attributes:
        cloze: the completion with a blank for everything that is open (`lockstitch.sampling.blanks`).
    """

    cloze: str

    def __new__(cls, text: str, cloze: str) -> "ClozePrompt":
        """The text, with its cloze."""
        made = super().__new__(cls, text)
        made.cloze = cloze
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        return str(self), self.cloze


@dataclass(frozen=True)
class TaskPrompts:
    """Rows of a task as they are put to a model.

    Attributes:
        rows: the task's columns, and `prompt`, a text.
        system: what a conversation begins with, or None.
        canvas_length: tokens that a completion takes, or None where nobody knows.
    """

    rows: Sequence[Mapping[str, Any]]
    system: str | None
    canvas_length: int | None


def task_prompts(
    task: str, *, source: str | None = None, form: str | None = None, count: int | None = None, seed: int = 0
) -> TaskPrompts:
    """The prompts of a task.

    Args:
        task: its name or place.
        source: which of its rows; by default new held-out ones where problems are made up, and else the usual source.
        form: of the prompts; `plain` by default.
        count: how many: the first so many, or that many new ones.
        seed: of rows that are made up.

    Raises:
        ValueError: no such task, form or source, rows that cannot be read, or a task without any.
    """
    from lockstitch.rewards.tasks.named import get_task
    from lockstitch.rewards.tasks.rows import load_rows

    found = get_task(task)
    if source is None and found.generate is not None:
        source = "held_out"
    if count is None and found.source(source).generate is not None:
        raise ValueError(
            f"task {found.name!r} makes its rows up: say how many (--limit), or name another of its sources "
            f"(--source: {', '.join(found.sources)})"
        )
    rows = load_rows(found, source=source, form=form or "plain", conversational=False, count=count, seed=seed)
    return TaskPrompts(rows, found.system, found.canvas_length)
