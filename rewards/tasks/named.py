"""A task by its name or its place, and which tasks there are.

A package offers tasks as entry points of the group `lockstitch.tasks`: the name of each leads to a `Task`, or to a function
that returns one. They are listed without importing anything. A task that no package offers is named by its place:
`path/to/task.yaml`, `path/to/file.py:attribute` or `package.module:attribute`.
"""

import sys
from collections.abc import Iterable
from dataclasses import fields, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from lockstitch.rewards.imports import file_of, load_installed, load_named, nearest
from lockstitch.rewards.plugins import describe, place_of, source_of
from lockstitch.rewards.tasks.builtin import TASKS
from lockstitch.rewards.tasks.own import SUFFIXES, load_task_file
from lockstitch.rewards.tasks.reasoning_gym_task import GYM, gym_task
from lockstitch.rewards.tasks.task import Task

from lockstitch.errors import others_code
from lockstitch.files import sha256

GROUP = "lockstitch.tasks"
PLACES = "a file of YAML, file.py:attribute or module:attribute"


def get_task(spec: str | Task) -> Task:
    """The task of that name, or at that place; a task is itself.

    Args:
        spec: the name of a task that comes with the package or that an installed package offers; `reasoning_gym:NAME`; a
            YAML file; `path/to/file.py:attribute` or `package.module:attribute`, a `Task` or a function that returns one.

    Raises:
        ValueError: there is no such task, with the known ones and the nearest; several packages offer one of that name; or
            what was found is no task.
    """
    if isinstance(spec, Task):
        return spec
    if spec.startswith(GYM):
        return gym_task(spec.removeprefix(GYM))
    points = [point for point in _points() if point.name == spec]
    offers = [f"{source_of(point)} ({point.value})" for point in points]
    if spec in TASKS and points:
        raise ValueError(
            f"task {spec!r} is lockstitch's own, and offered by {' and '.join(offers)}; name the latter as "
            "module:attribute, and uninstall it to have the former"
        )
    if spec in TASKS:
        return TASKS[spec]
    if len(points) > 1:
        raise ValueError(
            f"task {spec!r} is offered by {' and '.join(sorted(offers))}; name the one you mean as module:attribute"
        )
    if points:
        return _made(spec, load_installed("task", spec, *place_of(points[0].value)))
    if spec.endswith(SUFFIXES):
        return load_task_file(Path(spec))
    if ":" in spec:
        return _with_fingerprint(spec, _made(spec, load_named("task", spec)))
    known = [*TASKS, *sorted({point.name for point in _points()})]
    raise ValueError(
        f"task {spec!r} is not one of {', '.join([*known, f'{GYM}NAME'])}, nor {PLACES}{nearest(spec, known)}"
    )


def remembered(spec: str | None) -> str | None:
    """What a run remembers of a task: its name or place, and where that is a file of one's own the sum of what it says."""
    fingerprint = None if spec is None else get_task(spec).fingerprint
    return spec if fingerprint is None else f"{spec} ({fingerprint})"


def available_tasks() -> list[dict[str, str]]:
    """All tasks that packages offer, ours first: `name`, `source`, `target`, `summary`; no plug-in is imported."""
    ours = [
        {"name": name, "source": "lockstitch", "target": f"{__package__}.builtin:TASKS", "summary": _summary(task)}
        for name, task in TASKS.items()
    ]
    theirs = [
        {"name": point.name, "source": source_of(point), "target": point.value, "summary": describe(point)[1]}
        for point in _points()
    ]
    return ours + sorted(theirs, key=lambda one: (one["name"], one["source"]))


def _points() -> Iterable[EntryPoint]:
    return entry_points(group=GROUP)


def _summary(task: Task) -> str:
    rewards = ", ".join(str(reward) for reward, _ in task.rewards)
    checked = "checked" if task.checker is not None else "not checked"
    return f"Rows: {', '.join(task.sources)}. Rewards: {rewards}. Steps: {task.unit}, {checked}."


def _with_fingerprint(spec: str, task: Task) -> Task:
    """A task of a file of one's own, with the sum of that file, of those that its rewards name, and of the modules beside
    it that its functions are from."""
    file = file_of(spec)
    if file is None or task.fingerprint is not None:
        return task
    rewards = [reward for reward, _ in (*task.rewards, *task.tag_rewards)]
    parts = [*rewards, *(getattr(task, one.name) for one in fields(task))]
    found = {file_of(reward) for reward in rewards if isinstance(reward, str)}
    for module in {str(getattr(part, "__module__", None)) for part in parts if callable(part)}:
        where = getattr(sys.modules.get(module), "__file__", None)
        if where is not None and Path(where).resolve().parent == file.resolve().parent:
            found.add(Path(where))
    others = {one.resolve() for one in found if one is not None} - {file.resolve()}
    return replace(task, fingerprint=sha256(file, *sorted(others))[:16])


def _made(spec: str, found: Any) -> Task:
    """A task, or what a function makes."""
    with others_code(f"task {spec!r}"):
        made = found() if callable(found) and not isinstance(found, Task) else found
    if not isinstance(made, Task):
        raise ValueError(f"task {spec!r} is {made!r:.80}, neither a Task nor a function that returns one")
    return made
