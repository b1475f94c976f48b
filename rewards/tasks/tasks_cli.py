"""`lockstitch tasks`: which tasks there are, where they come from, and what one of them asks.

    lockstitch tasks
    lockstitch tasks --json
    lockstitch tasks sudoku
    lockstitch tasks my_task.yaml

The list imports no plug-in. One task is shown with its first row as it is put to a model, where its rows are at hand:
nothing is fetched from the hub unless `--row` asks for it.
"""

import argparse
import json
import os
import re
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from lockstitch.rewards.contract import printable
from lockstitch.rewards.tasks.named import GROUP, PLACES, available_tasks, get_task
from lockstitch.rewards.tasks.rows import DATA_VARIABLE, load_rows
from lockstitch.rewards.tasks.task import Source, Task, name_of

from lockstitch.errors import reported
from lockstitch.prompts import ClozePrompt

OPEN = "░"  # a position of a canvas that is to be written


@reported("lockstitch tasks")
def main(argv: list[str] | None = None) -> int:
    """Prints the list, or one task."""
    parser = argparse.ArgumentParser(
        prog="lockstitch tasks",
        description="List the tasks there are, or show one of them.",
        epilog=f"Packages offer tasks as entry points of the group {GROUP!r}. One of your own needs none: {PLACES} will do "
        "wherever a task is named.",
        allow_abbrev=False,
    )
    parser.add_argument("task", nargs="?", help=f"the name of one, or {PLACES}")
    parser.add_argument("--json", action="store_true", help="print a JSON list with name, source, target, summary")
    parser.add_argument(
        "--row", action="store_true", help="show the first row also if it must be fetched from the hub"
    )
    parser.add_argument("--form", help="of the prompt that is shown; plain by default")
    options = parser.parse_args(argv)
    if options.task is None:
        for name in ("row", "form"):
            if getattr(options, name):
                raise ValueError(f"--{name} shows one task: say which")
        tasks = available_tasks()
        print(
            json.dumps(tasks, indent=2) if options.json else _table(tasks, shutil.get_terminal_size((120, 24)).columns)
        )
        return 0
    if options.json:
        raise ValueError("--json lists all tasks; it shows none")
    task = get_task(options.task)
    form = options.form or "plain"
    task.check_form(form)
    print("\n".join(_facts(task)))
    found = _first_prompt(task, form, options.row)
    if found is None:
        print("\nNo row is at hand to be shown")
        return 0
    prompt, canvas = found
    print(
        f"\nThe first prompt, in the form {form}{'' if prompt.strip() else ', which says nothing'}:\n\n{_indented(prompt)}"
    )
    if canvas is not None:
        print(f"\nThe canvas behind it, on which what is known is pinned:\n\n{_indented(canvas)}")
    return 0


def _table(tasks: Sequence[dict[str, str]], width: int) -> str:
    rows = [("name", "source", "summary"), *((task["name"], task["source"], task["summary"]) for task in tasks)]
    name, source = (max(len(row[i]) for row in rows) for i in (0, 1))
    left = max(40, width - name - source - 4)
    lines = []
    for row in rows:
        for i, line in enumerate(textwrap.wrap(row[2], left, break_long_words=False) or [""]):
            first = row if i == 0 else ("", "", "")
            lines.append(f"{first[0]:<{name}}  {first[1]:<{source}}  {line}".rstrip())
    return "\n".join(lines)


def _facts(task: Task) -> list[str]:
    rewards = ", ".join(f"{name_of(reward)} ({weight:g})" for reward, weight in task.rewards)
    unit = task.unit if isinstance(task.unit, str) else getattr(task.unit, "__name__", repr(task.unit))
    facts = {
        "name": task.name,
        "rows": "; ".join(f"{name}: {_where(source)}" for name, source in task.sources.items()) or "none of its own",
        "forms": ", ".join(task.forms),
        "rewards": f"{rewards}; the first judges",
        "with tags": ", ".join(f"{name_of(reward)} ({weight:g})" for reward, weight in task.tag_rewards),
        "steps": f"{unit}, {'checked' if task.checker is not None else 'without a checker'}",
        "canvas": "" if task.canvas_length is None else f"{task.canvas_length} tokens",
        "system": "" if task.system is None else printable(task.system),
    }
    width = max(map(len, facts))
    return [f"{name:<{width}}  {value}" for name, value in facts.items() if value]


def _where(source: Source) -> str:
    if source.generate is not None:
        return "made up"
    if source.data is not None:
        return source.data
    places = [source.hub and " ".join(filter(None, (source.hub, source.config, source.split))), source.file]
    number = "" if source.rows is None else f", {source.rows} rows"
    return " or ".join(filter(None, places)) + number


def _first_prompt(task: Task, form: str, fetch: bool) -> tuple[str, str | None] | None:
    """The first prompt of the first source whose rows are at hand, and its canvas where something of it is known."""
    folder = os.environ.get(DATA_VARIABLE)
    for name, source in task.sources.items():
        local = source.file is not None and folder is not None and (Path(folder) / source.file).is_file()
        if source.generate is None and source.data is None and not local and not (fetch and source.hub is not None):
            continue
        prompt: str = load_rows(task, source=name, form=form, conversational=False, count=1)[0]["prompt"]
        if isinstance(prompt, ClozePrompt):
            known = re.sub(r"\[\[\w*:(\d+)\]\]", lambda blank: OPEN * int(blank[1]), prompt.cloze)
            return prompt, known
        return prompt, None
    return None


def _indented(text: str) -> str:
    return textwrap.indent("\n".join(map(printable, text.split("\n"))), "    ")
