"""What a math worker runs: math-verify on one pair of gold answer and given answer.

Only `math_rewards.py` loads this, into processes that can be killed; importing it loads sympy. math-verify's own time limits
are switched off: they rest on an alarm that reaches the main thread only, and not before a long operation in C is over.
"""

import logging

from math_verify import LatexExtractionConfig, parse, verify

# It warns once that its time limits are off; ours are not.
logging.getLogger("math_verify").setLevel(logging.ERROR)
# Boxes only: our own readers found the answer, and math-verify's patterns for plain text hand it to sympy's parser, which
# evaluates it as Python. LaTeX goes through a grammar, and nothing but its numbers gets there.
_BOXED = [LatexExtractionConfig(try_extract_without_anchor=False, boxed_match_priority=0)]


def is_right(pair: tuple[str, str]) -> bool | None:
    """Whether the second of two texts is the first in another form; None if math-verify cannot read the first."""
    gold, answer = pair
    expected = _read(gold)
    if all(isinstance(reading, str) for reading in expected):  # only the text itself is left of it
        return None
    return bool(verify(expected, _read(answer), timeout_seconds=None))


def _read(text: str) -> list[object]:
    return list(parse(f"\\boxed{{{text}}}", _BOXED, extraction_mode="first_match", parsing_timeout=None))
