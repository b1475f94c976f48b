r"""Math answers, read in this process and judged by math-verify in worker processes with a hard time limit.

Where the answer of a completion stands is decided by `marks.py`, what it is by `reading.py`, and what counts as the same by
`comparing.py`. A gold answer is read the same way (so GSM8K's and MATH's whole solutions will do).

An answer that is missing or longer than 1,000 characters is wrong (0.0); if the gold answer says nothing or cannot be read,
or the comparison does not come to an end, nothing is known (None). Such a gold answer is named once. Left out: proofs, and
several correct answers to choose from.
"""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from lockstitch.rewards.contract import (
    Completion,
    LogExtra,
    LogMetric,
    Value,
    completion_texts,
    printable,
    report_none,
)
from lockstitch.rewards.mathematics.plain import read_plain, same_plain
from lockstitch.rewards.mathematics.reading import read_answer, read_gold
from lockstitch.rewards.mathematics.settling import LONGEST_ANSWER
from lockstitch.rewards.workers import Failed, KillablePool, TimedOut

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 5.0
_UNREADABLE = "the gold answer cannot be read"


@dataclass(frozen=True)
class MathVerdict:
    """What was read, and what came of it.

    Attributes:
        value: 1.0 right, 0.0 wrong, None not known.
        gold: the gold answer as read, or None.
        answer: the completion's answer as read, or None.
        reason: why the value is None; empty otherwise.
    """

    value: Value
    gold: str | None
    answer: str | None
    reason: str = ""


@functools.cache
def _pool() -> KillablePool:
    return KillablePool()


def grade_math(texts: Sequence[str], golds: Sequence[Any], timeout: float = TIMEOUT_SECONDS) -> list[MathVerdict]:
    """Judges the answer of each text against its gold answer; equal pairs are judged once, and whole numbers right here.

    Args:
        texts: completions.
        golds: one per text: numbers, or texts.
        timeout: seconds that one pair may take.
    """
    from lockstitch.rewards.mathematics.math_worker import is_right

    read = [(read_gold(gold), read_answer(text)) for text, gold in zip(texts, golds, strict=True)]
    pairs = list(dict.fromkeys((gold, answer) for gold, answer in read if gold is not None and _is_short(answer)))
    verdicts: dict[tuple[str | None, str | None], Any] = {pair: _on_the_spot(*pair) for pair in pairs}
    left = [pair for pair in pairs if verdicts[pair] is None]
    verdicts.update(zip(left, _pool().map(is_right, left, timeout), strict=True))
    found = [_verdict(gold, answer, verdicts.get((gold, answer))) for gold, answer in read]
    for verdict, gold in zip(found, golds, strict=True):
        if verdict.reason == _UNREADABLE:
            _name(repr(gold)[:200])
    return found


def _on_the_spot(gold: str, answer: str) -> bool | None:
    """The verdict on two plain numbers, for which no process need be asked; None for anything else."""
    one, other = read_plain(gold), read_plain(answer)
    return None if one is None or other is None else same_plain(one, other)


def _is_short(answer: str | None) -> TypeGuard[str]:
    return answer is not None and len(answer) <= LONGEST_ANSWER


@functools.lru_cache(maxsize=10_000)
def _name(gold: str) -> None:
    """Names a gold answer, at its first row."""
    logger.warning("the gold answer %s cannot be read; its rows are not scored", gold)


def _verdict(gold: str | None, answer: str | None, result: Any) -> MathVerdict:
    if gold is None:
        return MathVerdict(None, gold, answer, _UNREADABLE)
    if not _is_short(answer):
        return MathVerdict(0.0, gold, answer)
    match result:
        case bool():
            return MathVerdict(float(result), gold, answer)
        case TimedOut():
            return MathVerdict(None, gold, answer, f"no verdict within {result.seconds:g} s")
        case Failed():
            return MathVerdict(None, gold, answer, result.reason)
    return MathVerdict(None, gold, answer, _UNREADABLE)


def math_reward(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    answer: Sequence[Any] | None = None,
    solution: Sequence[Any] | None = None,
    log_extra: LogExtra | None = None,
    log_metric: LogMetric | None = None,
    **columns: Any,
) -> list[Value]:
    r"""1.0 for a right math answer (`\boxed{}`, `####`, `<answer>` or last expression), else 0.0; None without a verdict.

    Columns: answer, or solution: the gold answer, bare or in a text that marks it.

    Raises:
        ValueError: neither column is given.
    """
    golds = answer if answer is not None else solution
    if golds is None:
        raise ValueError(f"math_reward needs a column 'answer' or 'solution'; given: {sorted(columns)}")
    verdicts = grade_math(completion_texts(completions), golds)
    if log_extra is not None:
        log_extra("math_gold", [printable(verdict.gold or "[unreadable]") for verdict in verdicts])
        log_extra("math_answer", [printable(verdict.answer or "[none]") for verdict in verdicts])
    values = [verdict.value for verdict in verdicts]
    report_none("math_reward", values, log_metric, "; ".join(sorted({v.reason for v in verdicts if v.reason})))
    return values
