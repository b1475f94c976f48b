r"""Which variables an expression has, and whether it can be what a problem asks for (`m + n`, `\sin A`)."""

import re

_MEASURE = re.compile(
    r"\\(?:sin|cos|tan|cot|sec|csc)\s*(?:\([^()]*\)|\{?[a-zA-Z]\}?|\\[a-z]+|\\angle\s*[A-Z]+)"
    r"|\|\s*(?:\\[a-z]+\s*)?\{?[a-zA-Z]\}?\s*\|"
)


def is_constant(text: str) -> bool:
    """Whether an expression has no variable."""
    return not letters(text)


def letters(text: str) -> set[str]:
    """The names of variables in an expression, with their indices: all letters and Greek ones but constants."""
    bare = re.sub(r"\\(?!(?:alpha|beta|gamma|theta|lambda|phi|omega|mu|sigma)(?![a-zA-Z]))[a-zA-Z]+", " ", text)
    names = re.findall(
        r"\\[a-z]+|[a-zA-Z](?:\s*_\s*\{?\s*\w+\s*\}?)?", re.sub(r"(?<![\\a-zA-Z])[ei](?![a-zA-Z])", " ", bare)
    )
    return {re.sub(r"[\s{}]", "", name) for name in names}


def is_quantity(text: str) -> bool:
    """Whether an expression can be what is asked for, and not one letter's equation: two letters, or a function of one."""
    return len(letters(text)) > 1 or _MEASURE.fullmatch(text) is not None
