r"""Reading the answers of puzzles: an expression, a grid, however they are written.

Where the answer stands is `marks.find_answer`'s decision, as for math; without a mark it is in the task's own form (worked
steps, an equation alone on its line, a grid). An expression is spelled in the grammar of `countdown.py`. Nothing is
evaluated here.
"""

import re

from lockstitch.rewards.marks import Found, find_answer, spoken
from lockstitch.rewards.phrases import supposes
from lockstitch.rewards.puzzles import countdown
from lockstitch.rewards.puzzles.forms import extract_grid

_LONGEST_ANSWER, _MOST_STEPS = 1000, 20

_SPELLINGS = tuple(
    (re.compile(pattern), spelling)
    for pattern, spelling in (
        (r"```[a-z]*\n?|`|\*{2}(?=[^\d]|$)|(?<=[^\d\s)])\*{2}|^\s*\*{2}|\*{2}\s*$|[\"“”]|^\s*'|'\s*$|\\\\\s*$", " "),
        (r"\\(?:text|mathrm|mathbf|textbf|boldsymbol|operatorname)\s*\{([^{}]*)\}", r" \1 "),
        (r"\\(?:times|cdot|ast)(?![a-z])|[×·⋅∗∙•✕✖⨯]|(?<=[\d)\s])[xX](?=[\d(\s])", "*"),
        (r"\\div(?![a-z])|[÷∕⁄]", "/"),
        (r"[−–—‒﹣－]", "-"),
        (r"＋", "+"),
        (r"[（［]|\\lbrack|\\\{", "("),
        (r"[）］]|\\rbrack|\\\}", ")"),
        (
            r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|q?quad)(?![a-z])|\\[()!,;: ]|\\[\[\]]|[$~\u00a0\u2009\u202f]",
            " ",
        ),
        (r"[✓✔]|\\checkmark(?![a-z])", " "),
        (r"→|⇒|➔|⟶|\\(?:to|rightarrow|Rightarrow|approx|equiv)(?![a-z])|->|=>|≈|={1,3}", "="),
    )
)
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_SQUARE = str.maketrans("[]{}", "()()") | {0xFF10 + digit: str(digit) for digit in range(10)}
_TIMES = re.compile(r"(?<=[\d)])\s*(?=\()|(?<=\))\s*(?=\d)")  # between factors that stand side by side
_PLUS = re.compile(r"(?:^|(?<=\())\s*\+\s*(?=[\d(])")
_NAMED = re.compile(r"^\s*[^\W\d_]+\s*=(?=.*\d)", re.DOTALL)  # `x = 3*7+5`
_NEXT_STEP = re.compile(
    r"\n+|\s*[,;]\s*(?:(?:and|then|so|next|finally)\b[\s,:]*)*|\s+and\s+(?:then\s+)?(?=\d)", re.IGNORECASE
)
_STEP_LABEL = re.compile(
    r"\s*(?:[-*]\s+|(?:step\s*)?\(?\d{1,2}[.:)](?=\s)\s*)?(?:first|second|then|next|finally)?[\s,:]*", re.IGNORECASE
)
_DENIED_BEHIND = re.compile(
    r"\W*(?:it\s+|this\s+|that\s+)?(?:is|are|was)(?:n't|\s+not|\s+(?:wrong|incorrect|invalid|no)\b)", re.IGNORECASE
)
# Before an equation that no mark points to: what states it. Any other words on its line make it none.
_STATES = re.compile(
    r"\s*(?:(?:so|thus|hence|therefore|then|finally)\b[\s,:]*)?"
    r"(?:(?:(?:the|one|an?|my|our)\s+(?:(?:final|correct|right)\s+)?(?:expression|equation|formula|solution)\s+is"
    r"|(?:we|i)\s+(?:get|have|obtain)|(?:this|that)\s+gives)\b[\s:]*)?",
    re.IGNORECASE,
)
# Behind one: what takes it back, and what goes on to another.
_TAKEN_BACK = re.compile(
    r"\b(?:not|no|never|wrong|incorrect|invalid|false|fail\w*|cannot|mistake\w*|error|but|however|wait|actually|oops|hmm+|instead|or"
    r"|rather|alternatively|another|other|else)\b|n['’]t\b|\?",
    re.IGNORECASE,
)
_GOES_ON = re.compile(r"[=≈→]|\\(?:approx|to|times|cdot|div)(?![a-z])|\d\D{0,3}[-+*/×·÷−]\D{0,3}\d")
_WHOLE = re.compile(r"^(-?\d+)\.0*$")
_FORMULA = re.compile(r"[-+*/(). \d]+")
_WORDS = re.compile(r"(?:[^\W\d_]+(?:['’-][^\W\d_]+)*(?![\w(])[\s:,]*)+")  # no call: `abs(...)`
_REMARK = re.compile(r"\(\s*=[^()]*\)\s*$|\(\s*[^\W\d_][^()]*\)\s*$")
_GRID = re.compile(r"(?<![0-9])(?:(?:[0-9]\s{0,9}){80}[0-9]|(?:[0-9]\s{0,9}){15}[0-9])(?![0-9])")
_LABEL = re.compile(
    r"^[ \t>|*#-]{0,9}(?:(?:row|line|r)\s{0,3}#?\d\s{0,3}[:.)=-]|\(?\d\s{0,3}[.):](?=\s))",
    re.IGNORECASE | re.MULTILINE,
)
_SIZE = re.compile(r"\d\s{0,3}[x×]\s{0,3}\d|\(\d\s{0,3},\s{0,3}\d\)", re.IGNORECASE)


def _whole_mark(text: str) -> Found | None:
    """Where the answer stands; a mark that is cut off is none, since nobody can tell how its expression goes on."""
    found = find_answer(text)
    return None if found is not None and found.is_cut else found


def read_expression(text: str) -> str | None:
    """The expression that a completion answers with, in the grammar's spelling, with `= result`; None without an answer."""
    found = _whole_mark(text)
    answer = _end_of(spoken(text)) if found is None else found.text[:_LONGEST_ANSWER]
    steps = [line for line in answer.split("\n") if line.strip()]
    is_meant = found is not None or not _TAKEN_BACK.search(answer)
    if is_meant and (expression := _of_steps(answer)) is not None:
        return expression
    if found is None or len(steps) > 1:
        try:
            steps_hold = all(map(countdown.holds, steps[: _MOST_STEPS + 1]))
            expression = countdown.conclude(steps[: _MOST_STEPS + 1]) if steps_hold else None
        except ValueError:  # int() refuses numbers of thousands of digits
            expression = None
        if expression is not None:
            return expression
    if found is None:
        return _last_equation(steps)
    return spelled(answer) or None


def _end_of(text: str) -> str:
    """The last whole lines of a text, as much as is read."""
    return text if len(text) <= _LONGEST_ANSWER else text[-_LONGEST_ANSWER:].partition("\n")[2]


def _of_steps(answer: str) -> str | None:
    """The expression of steps one behind another (`3*7 = 21, then 21+5 = 26`), each true; None for anything else."""
    lines = [_STEP_LABEL.sub("", line, count=1) for line in _NEXT_STEP.split(answer) if line.strip()]
    if not 1 < len(lines) <= _MOST_STEPS:
        return None
    steps = [spelled(line) for line in lines]
    try:
        return countdown.conclude(steps) if all(map(countdown.holds, steps)) else None
    except ValueError:  # int() refuses numbers of thousands of digits
        return None


def spelled(answer: str) -> str:
    """An answer as the grammar writes it: `left = right` or one side, words around it and spaces dropped."""
    for pattern, spelling in _SPELLINGS:
        answer = pattern.sub(spelling, answer)
    for _ in range(8):
        plain = _FRACTION.sub(lambda match: f"(({match[1] or match[2]})/({match[3] or match[4]}))", answer)
        if plain == answer:
            break
        answer = plain
    answer = _REMARK.sub(_remark, answer.translate(_SQUARE).strip()).strip().rstrip(".,;:!")
    answer = _TIMES.sub("*", _PLUS.sub("", _NAMED.sub("", answer)))
    sides = [re.sub(r"\s+", " ", side).strip() for side in answer.split("=")]
    sides = [_WHOLE.sub(r"\1", _formula(side)) for side in sides if side]
    return "=".join(side if re.search(r"\d \d", side) else side.replace(" ", "") for side in sides)


def _remark(match: re.Match[str]) -> str:
    return match[0].strip("() ") if match[0].strip("( ").startswith("=") else ""


def _formula(side: str) -> str:
    """A side without the words before and behind it, where nothing but one formula stands between them."""
    if supposes(side):  # `not 3*7+5`
        return side
    pieces = [piece.strip() for piece in _WORDS.split(side) if piece and re.search(r"\d", piece)]
    return pieces[0].strip(" .,:;") if len(pieces) == 1 and _FORMULA.fullmatch(pieces[0].strip(" .,:;")) else side


def _last_equation(lines: list[str]) -> str | None:
    """The last of the lines that is an equation, if those behind it only say something about it (`It uses each once.`)."""
    for line in reversed(lines):
        if (expression := _equation_of_a_line(line)) is not None:
            return expression
        if _TAKEN_BACK.search(line) or _GOES_ON.search(line):
            return None
    return None


def _equation_of_a_line(line: str) -> str | None:
    """`3*7+5 = 26` alone on its line, or behind words that state it; None for anything else."""
    line = _STATES.sub("", line, count=1)
    expression = spelled(line)
    left, equal, right = expression.partition("=")
    is_equation = equal and all(re.fullmatch(r"[-+*/()\d]+", side) for side in (left, right))
    says_more = re.search(r"[a-wyzA-WYZ]{2}", re.sub(r"\\[a-z]+", "", line))
    return expression if is_equation and re.search(r"\d\D*[-+*/]\D*\d", expression) and not says_more else None


def read_grid(text: str) -> str | None:
    """The digits of the grid that a completion answers with, however many; None if it gives no answer."""
    whole = extract_grid(text)
    if whole is not None:
        return whole
    found = _whole_mark(text)
    if found is None:
        return _last_grid(text)
    answer = re.sub(r"(?<=\d)\.0+(?!\d)", "", found.text[:_LONGEST_ANSWER])
    first = re.search(r"\d", answer)
    if first is not None and _is_denied(answer, first.start(), answer.rfind(re.findall(r"\d", answer)[-1]) + 1):
        return None
    if found.mark == "phrase":  # its sentence ends before the grid does
        return _last_grid(text)
    count = len(re.sub(r"\D", "", answer))
    rows = answer if count in (16, 81) else _LABEL.sub(" ", _SIZE.sub(" ", answer))
    return re.sub(r"[^0-9]", "", rows) or None


def _last_grid(text: str) -> str | None:
    """The last 16 or 81 digits with nothing between them, else the last four lines of four digits or nine of nine, labels
    and rules apart.
    """
    if grids := list(_GRID.finditer(text)):
        is_denied = _is_denied(text, *grids[-1].span())
        return None if is_denied else re.sub(r"[^0-9]", "", grids[-1][0])
    lines = [line for line in text[-_LONGEST_ANSWER:].split("\n") if re.search(r"\d", line)]
    rows = [re.sub(r"[\s|,\[\]]", "", _LABEL.sub(" ", line)) for line in lines]
    for side in (9, 4):
        if len(rows) >= side and all(re.fullmatch(f"[0-9]{{{side}}}", row) for row in rows[-side:]):
            is_denied = _is_denied(text, text.rfind(lines[-side]), len(text))
            return None if is_denied else "".join(rows[-side:])
    return None


def _is_denied(text: str, start: int, end: int) -> bool:
    """Whether the words right before a grid, or behind it, say that it is not the answer (`not 3142...`, `... is wrong`)."""
    before = re.split(r"[.!?,;]\s|\n\s*\n|\b(?:so|then|thus|hence|therefore)\b", text[max(0, start - 120) : start])[-1]
    return supposes(before) or _DENIED_BEHIND.match(text[end : end + 60]) is not None
