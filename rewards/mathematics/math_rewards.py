r"""Math answers, judged by math-verify in worker processes with a hard time limit.

The answer of a completion is, in this order: what the last `\boxed{...}` holds; the rest of the line behind the last `####`;
what the last `<answer>...</answer>` holds; the last line `A: ...`; the last number of the text. A mark that is cut off does
not count. Where words stand around a number (`18 jelly beans a day`), the number counts. A gold answer is read the same way
(so GSM8K's and MATH's whole solutions will do), but a text without marks is itself the answer, and must not be prose.

A verdict is math-verify's: `1/2`, `0.5` and `\frac{1}{2}` are the same, and so are `3`, `x=3` and `\$3`. An answer that is
missing or longer than 1,000 characters is wrong (0.0); if the gold answer cannot be read, or math-verify does not come to an
end, nothing is known (None). Left out: proofs, and several correct answers to choose from.
"""

import functools
import logging
import math
import re
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
from lockstitch.rewards.marks import (
    last_answer_block,
    last_answer_line,
    last_boxed,
    last_hash,
    last_number,
    without_special_tokens,
)
from lockstitch.rewards.workers import Failed, KillablePool, TimedOut

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 5.0
LONGEST_ANSWER = 1000

_NOT_WORDS = re.compile(r"\\(?:text|textbf|mathrm|mbox|operatorname)\s?\{[^{}]*\}|\\(?:begin|end)\{[a-z*]+\}|\\[a-zA-Z]+")
_PROSE = re.compile(r"[a-z]{2,}[ \t\n]+[a-z]{2,}|\b(?:is|are|equals|answer)\b", re.IGNORECASE)
# A number and its unit in words; not words that change the number.
_WITH_UNIT = re.compile(
    r"(?P<number>-?\\?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?)(?:[\s/.,-]+(?!(?:hundred|thousand|[mb]illion|dozen|percent|pi|and|or|mod)\b)"
    r"[a-z]{2,})+[.!]?",
    re.IGNORECASE,
)
_WRAPPED = re.compile(r"\$+([^$]*)\$+|\\\((.*)\\\)|\\\[(.*)\\\]|\*\*([^*]*)\*\*", re.DOTALL)
# Both whole: math-verify compares them as integers, too, and a process need not be asked.
_INTEGERS = re.compile(r"-?[0-9]{1,15} -?[0-9]{1,15}")
_LENIENT = str.maketrans({"−": "-", "×": "*", "·": "*", "÷": "/", "π": r"\pi ", "∞": r"\infty "})


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


def read_answer(text: str) -> str | None:
    """The answer of a completion, in the order of this module's first lines; None if it has none."""
    text = without_special_tokens(text)
    marked = _marked(text)
    return _tidy(marked) if marked is not None else last_number(text)


def read_gold(gold: Any) -> str | None:
    """A gold answer: a number, the answer itself, or a text that marks it; None if it is none of these."""
    if isinstance(gold, bool) or not isinstance(gold, str | int | float):
        return None
    if isinstance(gold, float):
        if not math.isfinite(gold):
            return None
        gold = int(gold) if gold.is_integer() else gold
    text = str(gold).strip()
    marked = _marked(text)
    if marked is None and _is_prose(text) and not _WITH_UNIT.fullmatch(text):
        return None
    return _tidy(text if marked is None else marked)


def _marked(text: str) -> str | None:
    readers = (last_boxed, last_hash, last_answer_block, last_answer_line)
    return next((found for reader in readers if (found := reader(text)) is not None), None)


def _is_prose(text: str) -> bool:
    return len(text) > LONGEST_ANSWER or _PROSE.search(_NOT_WORDS.sub(" ", text)) is not None


def _tidy(text: str) -> str | None:
    """An answer without what math-verify stumbles over; of a number among words, the number; None if nothing is left."""
    text = text[-2 * LONGEST_ANSWER :].strip()
    text = text.rstrip(" .,;:")
    while wrapped := _WRAPPED.fullmatch(text):
        text = next(group for group in wrapped.groups() if group is not None).strip().rstrip(" .,;:")
    text = text.translate(_LENIENT)
    if with_unit := _WITH_UNIT.fullmatch(text):
        return with_unit["number"]
    if _is_prose(text):
        return last_number(text)
    return text or None


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
    verdicts: dict[tuple[str | None, str | None], Any] = {
        (gold, answer): int(gold) == int(answer) for gold, answer in pairs if _INTEGERS.fullmatch(f"{gold} {answer}")
    }
    left = [pair for pair in pairs if pair not in verdicts]
    verdicts.update(zip(left, _pool().map(is_right, left, timeout), strict=True))
    return [_verdict(gold, answer, verdicts.get((gold, answer))) for gold, answer in read]


def _is_short(answer: str | None) -> TypeGuard[str]:
    return answer is not None and len(answer) <= LONGEST_ANSWER


def _verdict(gold: str | None, answer: str | None, result: Any) -> MathVerdict:
    if gold is None:
        return MathVerdict(None, gold, answer, "the gold answer cannot be read")
    if not _is_short(answer):
        return MathVerdict(0.0, gold, answer)
    match result:
        case bool():
            return MathVerdict(float(result), gold, answer)
        case TimedOut():
            return MathVerdict(None, gold, answer, f"no verdict within {result.seconds:g} s")
        case Failed():
            return MathVerdict(None, gold, answer, result.reason)
    return MathVerdict(None, gold, answer, "math-verify cannot read the gold answer")


def math_reward(
    prompts: Sequence[Any], completions: Sequence[Completion], answer: Sequence[Any] | None = None,
    solution: Sequence[Any] | None = None, log_extra: LogExtra | None = None, log_metric: LogMetric | None = None,
    **columns: Any,
) -> list[Value]:  # fmt: skip
    r"""1.0 for a right math answer (`\boxed{}`, `####`, `<answer>` or last number), else 0.0; None without a verdict.

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
