r"""Texts cut at signs outside of brackets: pieces, and the branches of a piecewise answer (`2 if x > 0, 3 if x \le 0`)."""

import re

_OPEN, _CLOSE = {"(": ")", "[": "]", "{": "}"}, {")", "]", "}"}
_IF = re.compile(
    r"[\s,]*(?<![a-zA-Z])(?:(?:if|when)(?![a-zA-Z])|for(?=\s+\$?(?:\d|[a-zA-Z](?![a-zA-Z])|\\))|(?:otherwise|else)(?![a-zA-Z]))\s*"
)
_JOINT = re.compile(r"\s*[,;]\s*(?:(?:and|or)(?![a-zA-Z])\s*)?|\s+(?:and|or)\s+")
# Of a condition: a letter that stands alone, a number or a sign, and no mere words.
_SAYS_WHEN = re.compile(r"(?<![a-zA-Z])[b-zB-HJ-Z](?![a-zA-Z])|\d|[<>=\\]")


def split(text: str, pattern: re.Pattern[str] | str) -> tuple[list[str], list[str]]:
    """The pieces of a text between the matches of a pattern outside of all brackets, and those matches."""
    compiled = re.compile(pattern)
    pieces, found, start, i, depth, environment = [], [], 0, 0, 0, 0
    while i < len(text):
        match = compiled.match(text, i) if depth == 0 and environment == 0 else None
        if match and match.end() > i:
            pieces.append(text[start:i])
            found.append(match[0])
            start = i = match.end()
            continue
        if text.startswith("\\begin", i) or text.startswith("\\end", i):
            environment += 1 if text.startswith("\\begin", i) else -1
            i += 4
        elif text.startswith("\\langle", i) or text.startswith("\\rangle", i):
            depth += 1 if text[i + 1] == "l" else -1
            i += 7
        elif text[i] == "\\":
            depth += (text[i + 1 : i + 2] == "{") - (text[i + 1 : i + 2] == "}")
            i += 2
        else:
            depth += (text[i] in _OPEN) - (text[i] in _CLOSE)
            i += 1
        depth = max(0, depth)
    return [*pieces, text[start:]], found


def branches_of(text: str) -> list[tuple[str, str]]:
    """The values of a piecewise answer, each with its condition (empty: otherwise); none if a text is no such answer."""
    if len(_IF.findall(text)) < 2:
        return []
    pieces, signs = split(text, _IF)
    if len(signs) < 2:
        return []
    values, conditions = [pieces[0]], []
    for piece in pieces[1:-1]:
        said, joints = split(piece, _JOINT)
        if not joints:
            return []
        values.append(said[-1])
        conditions.append(piece[: len(piece) - len(said[-1]) - len(joints[-1])])
    conditions.append(pieces[-1])
    branches = [(value.strip(), condition.strip(" ,;.")) for value, condition in zip(values, conditions, strict=True)]
    for (value, condition), sign in zip(branches, signs, strict=True):
        is_rest = sign.strip(" ,") in ("otherwise", "else")
        if not value or is_rest == bool(condition) or not (is_rest or _SAYS_WHEN.search(condition)):
            return []
    return branches
