"""Which contents the files and folders of rows had that a run was made of, so that it does not go on over others.

A name is all that settings keep of a file, and a file may be written anew under its name. Leaves out data sets of the hub,
which have revisions of their own, and what a task or a reward is (`lockstitch.rewards.tasks.named.remembered`).
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lockstitch.rewards.tasks.named import get_task
from lockstitch.rewards.tasks.rows import local_rows
from lockstitch.rewards.tasks.task import Source

from lockstitch import files

# The options of the recipes that may name a file or a folder of rows.
READ = ("dataset_name", "task_path", "train_path", "held_out_path", "input", "eval_input", "traces", "eval_traces")
WHOLE, END = 2**26, 2**20  # of a larger file in a folder, its size, its beginning and its end count


def contents_of(recipe: Any, output: Path) -> dict[str, str]:
    """A sha256 for each option that names a local file or folder, and for the sources of the task that are read from one.

    Nothing of `output` counts, where that lies in such a folder.
    """
    found = {}
    for option in READ:
        name = getattr(recipe, option, None)
        if name is not None and os.path.exists(name):
            found[option] = sha256_of(Path(name), output)
    for name, source in _sources(recipe).items():
        place = local_rows(source)
        if place is not None and place.exists():
            found[f"source {name!r} of the task"] = sha256_of(place, output)
    return found


def _sources(recipe: Any) -> dict[str, Source]:
    """The sources of the recipe's task whose rows are read from where the task says, by their names."""

    def said(*options: str) -> Any:
        return next((value for option in options if (value := getattr(recipe, option, None)) is not None), None)

    if said("task") is None:
        return {}
    names = []
    if said("dataset_name", "task_path", "train_path", "traces", "label_model") is None:
        names.append(said("train_source", "task_source") or "train")
    if said("held_out_path") is None:
        names.append(said("held_out_source"))
    there = get_task(said("task")).sources
    return {name: there[name] for name in names if name in there}


def sha256_of(path: Path, output: Path | None = None) -> str:
    """Of a file's bytes; of a folder's files, hidden ones and caches left out, their names, sizes and contents."""
    if not path.is_dir():
        return files.sha256(path)
    digest = hashlib.sha256()
    for file in sorted(_files(path, None if output is None else output.resolve())):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path)}\0{size}\0".encode("utf-8", "backslashreplace"))
        _add(digest, file, size if size <= WHOLE else END)
        if size > WHOLE:
            _add(digest, file, END, size - END)
    return digest.hexdigest()


def _files(folder: Path, output: Path | None) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [
            name for name in folders if not name.startswith((".", "__")) and Path(place, name).resolve() != output
        ]
        for name in names:
            # `datasets` writes what it computes beside what it was saved as.
            cached = name.startswith(("cache-", "tmp")) and name.endswith(".arrow")
            if not name.startswith(".") and not cached and Path(place, name).is_file():
                yield Path(place, name)


def _add(digest: Any, file: Path, count: int, start: int = 0) -> None:
    with file.open("rb") as opened:
        opened.seek(start)
        while count > 0 and (part := opened.read(min(count, END))):
            digest.update(part)
            count -= len(part)
