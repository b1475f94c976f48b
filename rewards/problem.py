"""One problem of a task, and the split that keeps generated training problems away from generated held-out ones."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Problem:
    """A question with, where known, its gold answer and one worked solution.

    `question` is what is asked, in a puzzle's canonical one-line form, `answer` its canonical answer, `solution` a complete
    correct completion ending in that answer, `columns` the row that it was read in, as the rewards read it.
    """

    question: str
    answer: str | None = None
    solution: str | None = None
    columns: Mapping[str, Any] | None = field(default=None, compare=False)


def is_held_out(question: str) -> bool:
    """One question in sixteen, by checksum: generators reject one side or the other, so the two never meet."""
    return zlib.crc32(question.encode()) % 16 == 0


def text_of(row: Mapping[str, Any], *names: str) -> str:
    """The text of the first of these columns that has one; `ValueError` names them."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()
    raise ValueError(f"no {' or '.join(repr(name) for name in names)}: a non-empty text is needed")
