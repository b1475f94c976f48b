"""Rewards for form: d1's tag rewards as d1 scores them, and penalties for length and repetition.

The tag rewards are those of d1 (arXiv 2504.12216; most are from a GRPO demonstration by W. Brown), with d1's values: 0.5 or
0, eighths for the tags one by one, quarters for box and block. Weigh them with TRL's `reward_weights`. The penalties are the
formulas of TRL's `get_soft_overlong_punishment` (DAPO, eq. 13) and `get_repetition_penalty_reward`, which count tokens only;
these also count words or characters, for texts without token ids. All take time linear in the length of the text.

Left out: `<think>` tags and length-scaled correctness, for which TRL has rewards.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from lockstitch.rewards.contract import Completion, completion_texts

_UNITS: dict[str, Callable[[str], Sequence[str]]] = {"words": str.split, "characters": lambda text: text}
_BETWEEN = re.compile(r"</reasoning>\s*<answer>")


def _each(completions: Sequence[Completion], holds: Callable[[str], bool]) -> list[float]:
    return [0.5 if holds(text) else 0.0 for text in completion_texts(completions)]


def _in_answer_tags(text: str) -> str:
    """What stands between the last `<answer>` and the next `</answer>`, each as far as there is one."""
    return text.rpartition("<answer>")[2].partition("</answer>")[0].strip()


def _is_softly_formed(text: str) -> bool:
    # The regular expression `<reasoning>.*?</reasoning>\s*<answer>.*?</answer>` from the start, without its backtracking.
    between = _BETWEEN.search(text, len("<reasoning>")) if text.startswith("<reasoning>") else None
    return between is not None and text.find("</answer>", between.end()) >= 0


def _is_strictly_formed(text: str) -> bool:
    # `^<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\n$`, where `$` lets one more newline pass.
    opening, middle, closing = "<reasoning>\n", "\n</reasoning>\n<answer>\n", "\n</answer>\n"
    return text.startswith(opening) and any(
        text.endswith(end) and text.find(middle, len(opening), len(text) - len(end)) >= 0
        for end in (closing, closing + "\n")
    )


def _xml_count(text: str) -> float:
    count = 0.0
    if text.count("<reasoning>\n") == 1:
        count += 0.125
    if text.count("\n</reasoning>\n") == 1:
        count += 0.125
    if text.count("\n<answer>\n") == 1:
        count += 0.125
        count -= len(text.split("\n</answer>\n")[-1]) * 0.001
    if text.count("\n</answer>") == 1:
        count += 0.125
        count -= (len(text.split("\n</answer>")[-1]) - 1) * 0.001
    return count


def xml_count_reward(prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any) -> list[float]:
    """An eighth for each of the four tags that stands once on a line of its own, less 0.001 a character after the end.

    Without `</answer>` the whole text counts as standing after the end, as in d1.
    """
    return [_xml_count(text) for text in completion_texts(completions)]


def soft_format_reward(prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any) -> list[float]:
    """0.5 if the completion begins with `<reasoning>...</reasoning> <answer>...</answer>`, with any white space, else 0."""
    return _each(completions, _is_softly_formed)


def strict_format_reward(prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any) -> list[float]:
    """0.5 if the completion is `<reasoning>...</reasoning><answer>...</answer>`, each tag on its own line, else 0."""
    return _each(completions, _is_strictly_formed)


def integer_reward(prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any) -> list[float]:
    """0.5 if what stands in `<answer>` tags, or the whole text without them, is digits only, else 0."""
    return _each(completions, lambda text: _in_answer_tags(text).isdigit())


def boxed_answer_reward(prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any) -> list[float]:
    r"""1.0 for an `<answer>` that holds a `\boxed`, 0.75 for one that does not, 0.5 for a box alone, 0.25 for neither."""
    values = []
    for text in completion_texts(completions):
        _, *blocks = text.split("<answer>")
        answer = blocks[0].partition("</answer>")[0] if blocks else text
        values.append(0.25 + 0.5 * bool(blocks) + 0.25 * ("\\boxed" in answer))
    return values


def _parts(completions: Sequence[Completion], columns: dict[str, Any], unit: str, name: str) -> list[Sequence[Any]]:
    """Every completion as the sequence of units that are counted."""
    if unit != "tokens":
        return [_UNITS[unit](text) for text in completion_texts(completions)]
    ids: list[Sequence[Any]] | None = columns.get("completion_ids")
    if ids is None:
        raise ValueError(f"{name} counts tokens and was given no completion_ids; unit: {', '.join(_UNITS)} needs none")
    return ids


def _check_unit(unit: str) -> None:
    if unit not in ("tokens", *_UNITS):
        raise ValueError(f"unit {unit!r} is not one of tokens, {', '.join(_UNITS)}")


class LengthPenalty:
    """0 up to a length, then linearly down to -1 at the longest, and -1 beyond; made by `length_penalty`."""

    __name__ = "length_penalty"

    def __init__(self, longest: int, soft: int, unit: str) -> None:
        _check_unit(unit)
        if not 0 <= soft <= longest:
            raise ValueError(f"soft={soft} is not from 0 to longest={longest}")
        self.longest, self.soft, self.unit = longest, soft, unit

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any) -> list[float]:
        """One penalty per completion, in [-1, 0]."""
        free = self.longest - self.soft
        lengths = [len(parts) for parts in _parts(completions, columns, self.unit, self.__name__)]
        return [
            0.0 if length <= free else -1.0 if length > self.longest else (free - length) / self.soft
            for length in lengths
        ]


class RepetitionPenalty:
    """The share of repeated n-grams times a penalty; made by `repetition_penalty`."""

    __name__ = "repetition_penalty"

    def __init__(self, ngram_size: int, max_penalty: float, unit: str) -> None:
        _check_unit(unit)
        if ngram_size < 1:
            raise ValueError(f"ngram_size={ngram_size} is not positive")
        if max_penalty > 0:
            raise ValueError(f"max_penalty={max_penalty} is positive; a penalty is 0 or less")
        self.ngram_size, self.max_penalty, self.unit = ngram_size, max_penalty, unit

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any) -> list[float]:
        """One penalty per completion, in [max_penalty, 0]."""
        return [self._penalty(parts) for parts in _parts(completions, columns, self.unit, self.__name__)]

    def _penalty(self, parts: Sequence[Any]) -> float:
        count = len(parts) - self.ngram_size + 1
        if count < 1:
            return 0.0
        distinct = len({tuple(parts[i : i + self.ngram_size]) for i in range(count)})
        return (1 - distinct / count) * self.max_penalty if distinct < count else 0.0


def length_penalty(longest: int, soft: int, unit: str = "tokens") -> LengthPenalty:
    """A reward that costs up to 1 for long completions.

    Args:
        longest: the length from which the penalty is -1.
        soft: over how many units before that it grows from 0.
        unit: what is counted: tokens, words or characters.
    """
    return LengthPenalty(longest, soft, unit)


def repetition_penalty(ngram_size: int = 3, max_penalty: float = -1.0, unit: str = "tokens") -> RepetitionPenalty:
    """A reward that costs up to `-max_penalty` for repeated n-grams.

    Args:
        ngram_size: units in an n-gram.
        max_penalty: what a text of nothing but repetition approaches.
        unit: what n-grams are made of: tokens, words or characters.
    """
    return RepetitionPenalty(ngram_size, max_penalty, unit)
