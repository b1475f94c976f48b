"""A solver whose answers are kept on the disk as they come, so that none is asked for twice.

A problem is asked about several times, and its row is written when all of that is answered. What a run had been answered
when it ended, by a server that failed or by a kill, is in `answers.jsonl` beside its results, and the same command goes on
from there. A run that is finished needs it no more, and removes it.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lockstitch.stitching.refine import Answered, Solver

from lockstitch.files import append_chunks, finished_rows

ANSWERS = "answers.jsonl"


class KeptAnswers:
    """A solver that asks another one what it does not know yet.

    Args:
        solver: the other one.
        directory: where the answers are kept.
        identity: what else an answer depends on: which solver it is, and which task.
    """

    def __init__(self, solver: Solver, directory: Path, identity: Sequence[str]) -> None:
        self.solver, self.path, self.identity = solver, directory / ANSWERS, list(identity)
        self.known = {row["asked"]: _answered(row) for row in finished_rows(self.path) if _is_ours(row)}

    def __call__(self, questions: Sequence[str], evidences: Sequence[str]) -> list[Answered]:
        """The answers, in the order of the questions."""
        answered = dict(self.each(questions, evidences))
        return [answered[i] for i in range(len(questions))]

    def each(self, questions: Sequence[str], evidences: Sequence[str]) -> Iterator[tuple[int, Answered]]:
        """(place, answer): those that are known, then the others as they come, each of them on the disk by then."""
        pairs = list(zip(questions, evidences, strict=True))
        keys = [self._key(*pair) for pair in pairs]
        yield from ((i, self.known[key]) for i, key in enumerate(keys) if key in self.known)
        new = [i for i, key in enumerate(keys) if key not in self.known]
        if not new:
            return
        answers = self.solver.each([pairs[i][0] for i in new], [pairs[i][1] for i in new])
        rows = ([_row(keys[new[place]], new[place], answered)] for place, answered in answers)
        for (row,) in append_chunks(self.path, rows):
            answered = _answered(row)
            self.known[row["asked"]] = answered
            yield row["place"], answered

    def forget(self) -> None:
        """Removes what was kept."""
        self.path.unlink(missing_ok=True)

    def _key(self, question: str, evidence: str) -> str:
        return hashlib.sha256(json.dumps([*self.identity, question, evidence]).encode()).hexdigest()


def _row(key: str, place: int, a: Answered) -> dict[str, Any]:
    return {
        "asked": key,
        "place": place,
        "text": a.text,
        "tokens": a.tokens,
        "written": a.written,
        "seconds": a.seconds,
        "passes": a.passes,
    }


def _is_ours(row: dict[str, Any]) -> bool:
    return {"asked", "text", "tokens", "written", "seconds"} <= row.keys()


def _answered(row: dict[str, Any]) -> Answered:
    return Answered(row["text"], row["tokens"], row["written"], row["seconds"], row.get("passes"))
