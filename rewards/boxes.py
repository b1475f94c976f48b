r"""Boxes in a text, `\boxed{...}` and its like, and what stands around one and changes what it says.

`$-\boxed{5}$` answers -5, `$2\cdot\boxed{5}$` answers 10, `\boxed{5}\%` five hundredths: the answer is the whole expression
that a box is part of. Words, units, punctuation, brackets, and the other sides of an equation change nothing. What cannot be
put together is no answer.

All of this takes time linear in the length of the text. Left out: what the expression says.
"""

import re
from typing import NamedTuple

_BOX = re.compile(r"(?P<box>\\{1,4}(?:boxed|fbox|framebox)\s{0,9}\{)|(?P<open>\{)|(?P<close>\})|\\.", re.DOTALL)
_TAIL = re.compile(r"\s{0,9}</[a-z]{0,20}\s{0,9}\Z", re.IGNORECASE)  # of a tag, which a box's own brace closes
_BETWEEN_BOXES = re.compile(
    r"[\s$*\\()]{0,9}(?:[,;&]|\band\b|\bor\b|\\text\{ ?(?:and|or) ?\})[\s$*\\()]{0,9}(?:(?:and|or)\b)?[\s$]{0,9}"
    r"(?:[a-zA-Z](?:_\{?\w\}?)?\s?=\s?)?[\s$\\(]{0,9}",
    re.IGNORECASE,
)
_NEAR = 160  # characters on either side of a box that may be part of its expression
_DENIED = re.compile(
    r"(?:\bnot|\w+n['\u2019]t|\bnever|\bcannot)(?:\s+be)?(?:\s+(?:equal\s+to|simply|just))?[\s$(\\\[*]{0,9}\Z"
)
_HERE = "\0"  # stands for the box
_FONTS = r"text\w*|math\w+|mbox|underline|uline|emph|bm|boldsymbol|displaystyle|fbox|framebox|boxed|ensuremath"
_GROUP = re.compile(  # words and dress, with what is in their braces
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|mathrm|mbox|tag|label|begin|end|[hv]?phantom|hspace|vspace)\*?\s?\{[^{}]*\}(?:\{[lcr|]*\})?"
    r"|\\(?:color|textcolor)\s?\{[^{}]*\}|</?[a-zA-Z][^<>]{0,20}>"
)
_IDLE = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|q?quad|qed|square|blacksquare|checkmark|Box|hfill|par|nonumber|notag"
    r"|color|large|Large|LARGE|huge|Huge)(?![a-zA-Z])\.?|\\[,;:! ]|\*\*|__|`|~"
)
_CUT = re.compile(
    r"\\\\|[\n&;:]|\\[()\[\]]|\$+|(?:(?<![<>!=\\])|(?<=[\d)}]!))={1,3}>?|[-\u2013]{1,2}>|\u2192|\u21d2|\u2248|\u2261|\u2234|</?[a-zA-Z][^<>]{0,20}>|</|<\||\|>"
    r"|\\(?:[lL]?ongr|[rR])ightarrow(?![a-zA-Z])|\\(?:to|implies|therefore|because|iff|approx|equiv|cong|sim|leadsto"
    r"|Leftrightarrow|item|colon|in)(?![a-zA-Z])"
)
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}")
_MATTER = re.compile(
    r"[\da-zA-Z\\+*/^_!%<>|\u2212\u00d7\u00b7\u00f7\u221a\u03c0\u00b2\u00b3\u2260\u2264\u2265\u00b1-]"
)
_BEFORE_IN_PROSE = re.compile(
    r"(?:\S*[\w)}\]]\s[+*/\u00d7\u00b7\u00f7<>\u2260\u2264\u2265]\s?|\S*\d\S*\s[-\u2212]\s?|(?:\bis|\bequals|=)\s+[-\u2212]\s+|\S+)\Z"
)
_BEHIND_IN_PROSE = re.compile(
    r"(?:\s?[+*/\u00d7\u00b7\u00f7^<>\u2260\u2264\u2265]\s?[\w\\($]\S*|\s[-\u2212]\s?\d\S*|\S+)"
)
_LABEL = re.compile(r"(?:\A|\n)\s*(?:\(?[a-zA-Z0-9]{1,3}\)|[-*\u2022]{1,3}\s+)\Z")
_CHOICE = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s?\{\s*\(?[A-J]\)?\s*\}|\([A-J]\)")  # whose words may follow
_SCALE = re.compile(
    r"(?:\s|\$|\\[,;:! )\]]|~|\*\*|\})*(?:\\(?:text(?:bf|rm)?|mathrm|mbox)\s?\{\s*)?"
    r"((?:hundred|thousand|million|billion|trillion|dozen)s?\b|\\?%(?![a-zA-Z])|per\s?cent\b|[ap]\.\s?m\.?|[ap]m\b|[AP]\.?M\b\.?)"
    r"(\s*(?:\\text\s?\{)?\s*of\s*\}?\s*[$\\(]{0,3}\d[\d.,]*)?",
    re.IGNORECASE,
)
_IN_ENVIRONMENT = re.compile(r"\\(begin|end)\s?\{(?:aligned|align|equation|gathered|gather|split|array|cases)\*?\}")


class Span(NamedTuple):
    """A mark in a text: `box` or `block`, where it begins and ends, and what stands in it."""

    mark: str
    start: int
    end: int
    text: str


def boxes_of(text: str) -> tuple[list[Span], Span | None]:
    r"""The boxes whose braces close, by their beginnings, and the last that is cut off, up to the end of its line."""
    spans = []
    opened: list[tuple[int, int] | None] = []  # where a box and its content begin; None for other braces
    for match in _BOX.finditer(text):
        if match["box"]:
            opened.append(match.span())
        elif match["open"]:
            opened.append(None)
        elif match["close"] and opened:
            box = opened.pop()
            if box is not None:
                spans.append(Span("box", box[0], match.end(), _TAIL.sub("", text[box[1] : match.start()]).strip()))
    cut = next((box for box in reversed(opened) if box is not None), None)
    spans.sort(key=lambda span: span.start)
    if cut is None:
        return spans, None
    content = re.split(r"\n|\$(?!\d)|</", text[cut[1] : cut[1] + 1000].lstrip(), maxsplit=1)[0]
    return spans, Span("box", cut[0], len(text), content.strip(" \t<>"))


def in_a_row(text: str, boxes: list[Span]) -> str:
    """The last box, or it and those before it where only a comma or `and` stands between; the innermost of nested ones."""
    row = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        if box.end > row[0].start or not (between := _BETWEEN_BOXES.fullmatch(text[box.end : row[0].start][:60])):
            break
        if row[0].start - box.end > 60:
            break
        joint = " or " if "or" in between[0].lower() else ", "
        row.insert(0, box._replace(text=box.text + joint))
    if len(row) == 1:
        return whole(text, row[0], [box for box in boxes if box.start < row[0].start and box.end >= row[0].end])
    texts = [box.text for box in row]
    return "".join(texts) if len({re.sub(r",\s*$| or $", "", one).strip() for one in texts}) > 1 else row[-1].text


def is_denied(text: str, box: Span) -> bool:
    r"""Whether the words before a box say that it is not the answer (`it is not \boxed{5}`)."""
    return _DENIED.search(text[max(0, box.start - 40) : box.start]) is not None


def whole(text: str, box: Span, around: list[Span]) -> str:
    """The expression that a box is part of; empty if it is part of something that cannot be put together.

    Args:
        text: where the box stands.
        box: the box.
        around: the boxes that it stands in.
    """
    content = box.text
    for outer in reversed(around):
        begin = text.index("{", outer.start) + 1
        content = _put_together(content, text[begin : box.start], text[box.end : outer.end - 1], is_formula=True)
        box = outer
        if not content:
            return ""
    line = text[max(0, box.start - 4 * _NEAR) : box.start]
    before, behind = text[max(0, box.start - _NEAR) : box.start], text[box.end : box.end + _NEAR]
    scale = _SCALE.match(behind)
    following = behind[: scale.start(1)] if scale else behind
    content = _put_together(content, before, following, is_formula=_is_in_formula(line))
    if content and scale:
        content = f"{content} {scale[1]}{re.sub(r'.*of', ' of', scale[2]) if scale[2] else ''}"
    return content


def _is_in_formula(before: str) -> bool:
    """Whether what follows is between dollars, in `\\(` or in an environment."""
    marks = list(_IN_ENVIRONMENT.finditer(before))
    if marks and marks[-1][1] == "begin":
        return True
    if max(before.rfind("\\("), before.rfind("\\[")) > max(before.rfind("\\)"), before.rfind("\\]")):
        return True
    paragraph = before.rpartition("\n\n")[2]
    if paragraph.count("$$") % 2 == 1:
        return True
    line = paragraph.rpartition("\n")[2].replace("$$", "")
    return len(re.findall(r"(?<!\\)\$", line)) % 2 == 1


def _put_together(content: str, before: str, behind: str, is_formula: bool) -> str:
    """The content with what belongs to it before and behind; empty if it cannot be joined to that."""
    left, right = _before(before, is_formula), _behind(behind, is_formula, _depth(_before(before, is_formula)))
    if not is_formula and re.match(r"!+(?:\s|\Z)", right):
        right = ""
    if _CHOICE.fullmatch(content):
        right = ""
    joined = _unwrapped(left + _HERE + right)
    rest = joined.replace(_HERE, "")
    if not _MATTER.search(rest):
        return content
    if re.search(r"\\(?:text|mathrm)|[,;=<>]|\s(?:and|or)\s", content):
        return ""
    is_sum = re.search(r"[-+]", content) is not None
    if re.search(rf"[\d)}}]\s*{_HERE}", joined) and re.match(r"[\d(]", content):
        joined = joined.replace(_HERE, rf"\cdot {_HERE}")
    is_bare = re.fullmatch(r"[\d.]+|[a-zA-Z]", content) and not re.search(rf"\w{_HERE}|{_HERE}[\d.]", joined)
    return joined.replace(_HERE, content if is_bare else f"({content})" if is_sum else f"{{{content}}}").strip()


def _before(text: str, is_formula: bool) -> str:
    text = _GROUP.sub("\n", text)
    if not is_formula:
        match = _BEFORE_IN_PROSE.search(text.rpartition("\n")[2])
        text = _WORD.sub("\n", match[0] if match else "")
        text = _LABEL.sub("\n", text)
    text = _IDLE.sub("", text)
    start, depth = 0, 0
    cuts = {match.end() for match in _CUT.finditer(text)}
    for i in range(len(text), 0, -1):
        if i in cuts:
            start = i
            break
        sign = text[i - 1]
        depth += (sign in ")]}") - (sign in "([{")
        is_mark = depth == 0 and (sign in ",?" or (sign == "." and not text[i : i + 1].isdigit()))
        if is_mark or (sign == "\\" and text[i : i + 1] in ("{", "}") and depth > 0):
            start = i
            break
    return text[start:].strip()


def _depth(left: str) -> int:
    """How many brackets are open behind a text."""
    return sum((sign in "([{") - (sign in ")]}") for sign in left)


def _behind(text: str, is_formula: bool, depth: int) -> str:
    text = _GROUP.sub("\n", text)
    if not is_formula:
        match = _BEHIND_IN_PROSE.match(text)
        text = _WORD.sub("\n", re.sub(r"\A\{.*", "", match[0].replace("$", "")) if match else "")
    text = _IDLE.sub("", text)
    end = _CUT.search(text)
    text = text[: end.start()] if end else text
    for i, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if depth < 0 or (depth == 0 and sign in ",.?" and not re.match(r",\d{3}|\.\d", text[i:])):
            text = text[:i]
            break
    return re.sub(r"[-+*/<>\u2212\s]+\Z", "", text)


def _unwrapped(joined: str) -> str:
    """The expression without brackets and fonts around the box alone, and without punctuation at its ends."""
    while True:
        bare = re.sub(
            rf"\\(?:{_FONTS})\s?\{{\s*{_HERE}\s*\}}?|^[(\[{{]\s*{_HERE}\s*[)\]}}]$", _HERE, joined.strip(" \t.,;")
        )
        bare = re.sub(rf"^\\(?:{_FONTS})\s?\{{?(?={_HERE})|^[(\[{{]+(?={_HERE})(?![^)\]}}]*[)\]}}])", "", bare)
        if bare == joined:
            return joined
        joined = bare
