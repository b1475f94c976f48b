r"""From a completion, or a gold answer, to its answer.

Where the answer stands is `marks.find_answer`'s decision, and what stands there is read by `settling.settle`; where nothing
is marked, it is the last expression of the text (`unmarked.py`).
"""

import math
import re
from typing import Any

from lockstitch.rewards.marks import find_answer, spoken
from lockstitch.rewards.mathematics import words
from lockstitch.rewards.mathematics.settling import LONGEST_ANSWER, settle, words_of
from lockstitch.rewards.mathematics.unmarked import last_expression

_MOST_WORDS = 8
_CHOICE_ALONE = re.compile(r"[*_]{0,2}(?:\([A-J]\)|[A-J][).:])[*_]{0,2}[ \t]+[^\n=]{1,100}")


def read_answer(text: str) -> str | None:
    """The answer of a completion, in one spelling; None if it has none."""
    found = find_answer(text)
    if found is None:
        said = spoken(text).strip()
        return settle(said) if _CHOICE_ALONE.fullmatch(said) else last_expression(said)
    return settle(found.text) if found.text else None


def read_gold(gold: Any) -> str | None:
    """A gold answer: a number, the answer itself, or a text that marks it; None if it is none of these."""
    if isinstance(gold, bool) or not isinstance(gold, str | int | float):
        return None
    if isinstance(gold, float):
        if not math.isfinite(gold):
            return None
        gold = int(gold) if gold.is_integer() else gold
    text = gold.strip() if isinstance(gold, str) else repr(gold)
    found = find_answer(text)
    if found is not None and found.mark == "phrase" and words.SAMPLE.match(text):
        return None
    text = text if found is None else found.text
    read = settle(text)
    if any(words.NO_GOLD.fullmatch(one.strip(" .*_$")) for one in (text, read or "")):
        return None
    return None if read is None or _is_prose(read) or len(read) > LONGEST_ANSWER else read


def _is_prose(read: str) -> bool:
    """Whether a gold answer has more words than an answer of words has, or nothing that could be one."""
    return len(words_of(read)) > _MOST_WORDS or re.search(r"[\w\\]", read) is None
