"""One problem of a task, and the split that keeps generated training problems away from generated held-out ones."""

import zlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """A question with, where known, its gold answer and one worked solution.

    `question` is the task's canonical one-line form, `answer` its canonical answer, `solution` a complete correct
    completion ending in that answer.
    """

    question: str
    answer: str | None = None
    solution: str | None = None


def is_held_out(question: str) -> bool:
    """One question in sixteen, by checksum: generators reject one side or the other, so the two never meet."""
    return zlib.crc32(question.encode()) % 16 == 0
