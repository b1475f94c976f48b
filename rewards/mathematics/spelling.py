r"""One spelling for each notation: what people write for the same expression, in the LaTeX that math-verify reads.

`normal` changes how an answer is written and never what it says: signs of other alphabets, sizes, colours and fonts, spaces,
thousands, repeating decimals, mixed numbers, currencies. Words stay, outside of `\text{}`; `reading.py` decides about them.

Left out: what the expression is worth. Text goes through patterns alone; nothing is evaluated.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from lockstitch.rewards.mathematics.plain import written
from lockstitch.rewards.mathematics.words import FUNCTIONS, is_unit

Rule = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]

_CHARACTERS = str.maketrans(
    {chr(0xFF01 + i): chr(0x21 + i) for i in range(94)}
    | dict.fromkeys("−–—‒‐‑﹣", "-")
    | dict.fromkeys(
        "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "
    )
    | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad\u2061\u2062\u2063✓✔", "")
    | dict.fromkeys("×✕✖⨯", r"\times ")
    | dict.fromkeys("·⋅∙•∗", r"\cdot ")
    | dict.fromkeys("÷∕⁄", "/")
    | dict.fromkeys("’‘ʼ′`´", "'")
    | dict.fromkeys("“”„", '"')
    | dict.fromkeys("≤⩽", r"\le ")
    | dict.fromkeys("≥⩾", r"\ge ")
    | dict.fromkeys("≈≅≃", r"\approx ")
    | dict.fromkeys("∅Ø", r"\emptyset ")
    | dict.fromkeys("…⋯", r"\ldots ")
    | dict.fromkeys("°º", r"^\circ ")
    | dict.fromkeys("〈⟨", r"\langle ")
    | dict.fromkeys("〉⟩", r"\rangle ")
    | dict.fromkeys("→⇒", r"\to ")
    | {
        "π": r"\pi ",
        "∞": r"\infty ",
        "√": r"\sqrt ",
        "±": r"\pm ",
        "∓": r"\mp ",
        "≠": r"\neq ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∈": r"\in ",
        "∣": "|",
        "∖": r"\setminus ",
        "ℝ": r"\mathbb{R}",
        "ℤ": r"\mathbb{Z}",
        "ℕ": r"\mathbb{N}",
        "ℚ": r"\mathbb{Q}",
        "℃": r"^\circ C ",
        "℉": r"^\circ F ",
        "θ": r"\theta ",
        "α": r"\alpha ",
        "β": r"\beta ",
        "γ": r"\gamma ",
        "λ": r"\lambda ",
        "φ": r"\phi ",
        "ω": r"\omega ",
        "σ": r"\sigma ",
        "μ": r"\mu ",
        "。": ".",
        "∶": ":",
    }
)
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋ₙ", "0123456789+-n")
_ONES = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_VULGAR = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5),
    "⅘": (4, 5), "⅙": (1, 6), "⅚": (5, 6), "⅐": (1, 7), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8),
    "⅑": (1, 9), "⅒": (1, 10),
}  # fmt: skip
_FONTS = (
    "text|textbf|textit|textrm|textsf|texttt|textnormal|mathrm|mathbf|mathit|mathsf|mathtt|mathnormal|mbox|hbox|operatorname"
    r"\*?|boldsymbol|bm|pmb|emph|underline|uline|mathop|displaystyle|boxed|fbox|bf|rm|it|bold|vphantom\{\}|ensuremath"
)
_COMMANDS = (
    "[dt]?frac|sqrt|text|mathrm|mathbf|mathbb|pi|left|right|cdot|times|begin|end|infty|circ|cup|cap|in|leq?|geq?|pm|div|theta"
    "|log|ln|sin|cos|tan|binom|emptyset|displaystyle|quad|pmod|overline|ldots|alpha|beta"
)
_FUNCTIONS = "|".join(FUNCTIONS)
_WHOLE = r"(?<![\d.\w}/^_])(?P<whole>\d+)"


def _mixed(match: re.Match[str]) -> str:
    """`2 1/4` and `2\\frac{1}{4}` as one fraction; a product or a fraction above 1 stays."""
    whole, top, bottom = int(match["whole"]), int(match["top"]), int(match["bottom"])
    return written(Fraction(whole * bottom + top, bottom)) if 0 < top < bottom else match[0]


def _repeating(match: re.Match[str]) -> str:
    r"""`0.1\overline{6}` as a fraction."""
    whole, once, again = match["whole"] or "0", match["once"], match["again"]
    bottom = 10 ** len(once) * (10 ** len(again) - 1)
    return written(Fraction(int(whole + once + again) - int(whole + once), bottom))


def _going_on(match: re.Match[str]) -> str:
    """`0.333...` and `0.121212...` as fractions, where the end repeats; else the digits as they are."""
    whole, digits = match["whole"] or "0", match["digits"]
    for size in range(1, len(digits) // 2 + 1):
        times = 3 if size == 1 else 2
        again = digits[-size:]
        if len(digits) >= size * times and digits.endswith(again * times):
            once = digits
            while once.endswith(again):
                once = once[:-size]
            bottom = 10 ** len(once) * (10**size - 1)
            return written(Fraction(int(whole + once + again) - int(whole + once), bottom))
    return match[0]


def _vulgar(match: re.Match[str]) -> str:
    top, bottom = _VULGAR[match[2]]
    return f"{match[1]} {top}/{bottom} " if match[1] else f"\\frac{{{top}}}{{{bottom}}}"


def _units(match: re.Match[str]) -> str:
    return f" {match[1]}{match[2]}/{match[3]}{match[4]}" if is_unit(match[1]) and is_unit(match[3]) else match[0]


def _rules(*rules: tuple[str, str | Callable[[re.Match[str]], str]]) -> tuple[Rule, ...]:
    return tuple((re.compile(pattern), spelling) for pattern, spelling in rules)


_NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)"
_END = r"(?![a-zA-Z])"  # of a command
_ENVIRONMENT = r"(?:aligned|align|equation|gathered|gather|split|cases|dcases|array)\*?"
_SIGNS = _rules(
    (r"\x0c(?=rac)", r"\\f"),  # Python's escapes
    (r"\t(?=ext\{|imes|frac)", r"\\t"),
    (rf"(?<!\\)\\\\(?=(?:{_COMMANDS}){_END}|[,;!%$])", r"\\"),
    ("([⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+)", lambda match: f"^{{{match[1].translate(_RAISED)}}}"),
    ("([₀₁₂₃₄₅₆₇₈₉₊₋ₙ]+)", lambda match: f"_{{{match[1].translate(_LOWERED)}}}"),
    (f"(\\d*)[ ]?([{''.join(_VULGAR)}])", _vulgar),
    ("((?:\\d\u0305)+)", lambda match: f"\\overline{{{match[1].replace(chr(0x305), '')}}}"),
)
_ENVIRONMENTS = _rules(
    (r"\\\s*\n", r"\\\\ "),
    (r"\\(begin|end)\s*\{(?:[bBV]|small|psmall|bsmall)?matrix\*?\}", r"\\\1{pmatrix}"),
    (r"(?:\\left\s*)?[(\[]\s*(\\begin\{pmatrix\}.*?\\end\{pmatrix\})\s*(?:\\right\s*)?[)\]]", r"\1"),
    (
        r"(?:\\left\s*)?[(\[]\s*\\begin\{array\}(?:\{[^{}]*\})?(.*?)\\end\{array\}\s*(?:\\right\s*)?[)\]]",
        r"\\begin{pmatrix}\1\\end{pmatrix}",
    ),
    (rf"\\begin\{{{_ENVIRONMENT}\}}(?:\{{[lcr|]*\}})?|\\end\{{{_ENVIRONMENT}\}}", r" \\cases "),
)
_DRESS = _rules(
    # Sizes, colours, spaces, wrappings.
    (
        r"\\(?:left|right|[bB]ig[lr]?|[bB]igg[lr]?)(?![a-zA-Z])\s*\.?(?=\\[{}|]|\\[lr]angle|[()\[\]|{}.<>]|\\\\|\s*$|\s)",
        "",
    ),
    (
        r"\\(?:displaystyle|textstyle|scriptstyle|limits|tiny|small|normalsize|large|Large|LARGE|huge|Huge|bf|rm|it|sf|tt"
        r"|bfseries|centering|checkmark|quad|qquad|enspace|thinspace|nonumber|notag|hfill|square|blacksquare|relax|strut|null"
        rf"|thickspace|medspace|negthinspace|allowbreak|nobreak|newline|par){_END}\s?",
        " ",
    ),
    (r"\\[hv]?phantom\s*(?:\{[^{}]*\}|[^{}\\])", " "),
    (r"\\(?:hspace|vspace|kern|label|tag|footnote|cite|ref)\*?\s*\{[^{}]*\}", " "),
    (r"\\(?:color|textcolor|colorbox)\s*(?:\[[^\]]*\])?\s*\{[a-zA-Z0-9,.!# ]*\}", ""),
    # One name for each sign.
    (rf"\\(?:approxeq|simeq|doteq|cong|thickapprox|sim){_END}", r"\\approx "),
    (rf"\\(?:cdots|dots|dotsc|dotsb|hdots){_END}", r"\\ldots "),
    (rf"\\(?:leqslant|leqq|leq){_END}|<=", r"\\le "),
    (rf"\\(?:geqslant|geqq|geq){_END}|>=", r"\\ge "),
    (rf"\\ne{_END}|!=(?!=)", r"\\neq "),
    (rf"\\lt{_END}", "<"),
    (rf"\\gt{_END}", ">"),
    (r"\\(?:varnothing|O(?![a-zA-Z]))|\\emptyset|\\\{\s*\\\}|\\lbrace\s*\\rbrace", r"\\emptyset "),
    (rf"\\lbrace{_END}", r"\\{"),
    (rf"\\rbrace{_END}", r"\\}"),
    (rf"\\lbrack{_END}", "["),
    (rf"\\rbrack{_END}", "]"),
    (rf"\\(?:colon|ratio){_END}", ":"),
    (rf"\\(?:mid|vert){_END}", "|"),
    (rf"\\(?:backslash|smallsetminus){_END}|(?<=[\w}}])\s*\\\s+(?=\\\{{)", r"\\setminus "),
    (rf"\\(?:land|wedge){_END}", " and "),
    (rf"\\(?:lor|vee){_END}", " or "),
    (rf"\\degrees?{_END}|\\textdegree{_END}", r"^\\circ "),
    (rf"\^?\s*\{{\s*\^?\s*\\circ\s*\}}|\^\s*\\circ{_END}", r"^\\circ "),
    (rf"\\(?:dfrac|tfrac|cfrac){_END}", r"\\frac"),
    (rf"\\(?:dbinom|tbinom){_END}", r"\\binom"),
    (r"\\(?:ge|le)(?=\d)", lambda match: match[0] + " "),
    # Currencies, and other signs without a meaning of their own.
    (
        r"(?:\\\$|[€£¥₹₩]|(?<![\d$])\$(?=[^$]*\Z)|\b(?:USD|EUR|GBP)\s?)(\d+(?:\.\d+)?)\s?(B|bn|mn)(?!\w|\s*[-+*/^=])",
        lambda match: f"{match[1]} {'million' if match[2] == 'mn' else 'billion'}",
    ),
    (rf"\\(?:pounds|euro|texteuro|textsterling|yen|textdollar|cents?|textcent){_END}(?:\{{\}})?", ""),
    (r"(?:\bR)?\\\$|\bR(?=\$)|[€£¥₹¢₩]", ""),
    (r"\b(?:US|USD|EUR|GBP|CAD|AUD|INR|Rs)\b\.?(?=\s*\d)|(?<=\d)\s*(?:USD|EUR|GBP|CAD|AUD|INR)\b", ""),
    (r"(?<=\d)(?:[\s~]|\\[ ,;])*\\Omega\s*$", ""),
    (r"\{([,:]|\\[,;:! ])\}", r"\1"),
    (r",\s*\\!\s*", ","),
    (r"\\!", ""),
    (r"(?<!\\)\\(?:[,;:> ]|(?=\s)(?!\s*\n))|~|\{\s+\}|\{\}", " "),
    (r"\$+", " "),
    (r"\*{2}(?=[^*]*[^\s*][^*]*\*{2})([^*]*)\*{2}", r"\1"),
    (r"\\[()]|\\\](?![^\[]*\\end)|\\\[(?![\d.]+\w*\])", " "),
    (r"\\[#&]", " "),
    (r"\\_", "_"),
    (r"\\%|\\textpercent", "%"),
)
_NUMBERS = _rules(
    # Thousands.
    (r"(?<![\d.,])(\d{1,3})((?:[ ']\d{3})+)(?![\d'])(?!\s*/)", lambda match: match[1] + re.sub(r"\D", "", match[2])),
    (r"(?<![\d._])(\d{1,3})((?:_\d{3})+)(?!\d)", lambda match: match[1] + match[2].replace("_", "")),
    (r"(?<![\d.,])(\d{1,3}(?:\.\d{3})+),(\d+)(?![\d,])", lambda match: match[1].replace(".", "") + "." + match[2]),
    (r"(?<![\d.,])\d{1,3}(?:\.\d{3}){2,}(?![\d,.]*\d)", lambda match: match[0].replace(".", "")),
    # Repeating decimals.
    (r"(?<![\w.}])(\d*\.\d*)\\dot\s*\{?(\d)\}?(\d*)\\dot\s*\{?(\d)\}?", r"\1\\overline{\2\3\4}"),
    (
        r"(?<![\w.}])(?P<whole>\d*)\.(?P<once>\d*)(?:\\(?:overline|bar|overbar|dot)\s*\{?(?=[\d}]+)|\()(?P<again>\d+)[})]?",
        _repeating,
    ),
    (r"(?<![\w.}])(?P<whole>\d*)\.(?P<digits>\d+)\s*(?:\.{3}|\\ldots)", _going_on),
    # Powers of ten.
    (
        r"(?<![\w.\\}^])(\d+(?:\.\d+)?|\.\d+)[eE]([-+]?)(\d{1,3})(?![\w.])",
        lambda match: rf"{match[1]} \times 10^{{{match[2].strip('+')}{match[3]}}}",
    ),
    (
        r"(?<=\d)\s*(?:\\times|\\cdot|\*|x)\s*10\s*(?:\^|\*\*)\s*(?:\{\s*([-+]?\d+)\s*\}|\(\s*([-+]?\d+)\s*\)|([-+]?\d+))",
        lambda match: rf" \times 10^{{{(match[1] or match[2] or match[3]).strip('+')}}}",
    ),
)
_ALGEBRA = _rules(
    # Arguments without braces, functions without backslashes.
    (r"\\frac\s*(\\[a-z]+)\s*(\w)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)\s*(?=\{)", r"\\frac{\1}"),
    (r"(\\frac\s*\{[^{}]*\})\s*(\d|[a-zA-Z])(?![{])", r"\1{\2}"),
    (r"\\frac\s*\{\s*([-+]?\w+)\s*\}\s*\{\s*(\w+)\s*\}", r"\\frac{\1}{\2}"),
    (r"(?<![\\a-zA-Z])sqrt\s*(?=[({\d])", r"\\sqrt"),
    (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"\\sqrt\s*(\d+|[a-zA-Z])", r"\\sqrt{\1}"),
    (r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi "),
    (r"(?<![\\a-zA-Z])(?:infinity|infty|inf|oo)(?![a-zA-Z])", r"\\infty "),
    (rf"(?<![\\a-zA-Z])({_FUNCTIONS})(?=\s*[({{^_\\\d]|\s+[a-zA-Z](?![a-zA-Z]))", r"\\\1"),
    (r"\\exp\s*(?:\(([^()]*)\)|\{([^{}]*)\})", lambda match: f"e^{{{match[1] or match[2] or ''}}}"),
    (
        r"\\(sin|cos|tan|cot|sec|csc)\s*\^\s*\{?(\d)\}?\s*(\d*[a-z](?![a-z])|\d+(?:\^\\circ)?|\\[a-z]+|\([^()]*\))",
        r"(\\\1 \3)^{\2}",
    ),
    (
        rf"(?<=\\sin|\\cos|\\tan|\\cot|\\sec|\\csc)\s*[({{]?\s*({_NUMBER})\s*\^\\circ\s*[)}}]?",
        r"(\\frac{\1\\pi}{180}) ",
    ),
    (r"\{?\s*\{?(\w+)\}?\s*\\choose\s*\{?(\w+)\}?\s*\}?", r"\\binom{\1}{\2}"),
    (r"(?<![\\\w])C\s*\(\s*(\d+)\s*,\s*(\d+)\s*\)", r"\\binom{\1}{\2}"),
    (r"(?:\{\}|\s|^)[_^]\{?(\d+)\}?\s*C_\{?(\d+)\}?", r"\\binom{\1}{\2}"),
    # Signs between operands.
    (r"\*\*", "^"),
    (r"(?<=[\w)}])\s*\*\s*(?=[\w(\\])", r" \\cdot "),
    (r"(?<=\d)\s*[xX]\s*(?=\d)", r" \\times "),
    (r"(^\s*|\bis |=\s*)(?:negative|minus)\s+(?=\d|\\(?:frac|sqrt))", r"\1-"),
    (r"\^\s*\(([^()]*)\)", r"^{\1}"),
    (rf"_\s*\{{\s*({'|'.join(_ONES)})\s*\}}", lambda match: f"_{{{_ONES.index(match[1]) + 2}}}"),
    (r"_\s*\{\s*(\w+)\s*\}", r"_{\1}"),
    (r"_\s*(\d{1,2})(?!\d)", r"_{\1}"),
    # Mixed numbers.
    (rf"{_WHOLE}(?:\s+and\s+|\s*)\\frac\{{(?P<top>\d+)\}}\{{(?P<bottom>\d+)\}}", _mixed),
    (rf"{_WHOLE}(?:\s+and)?\s+(?P<top>\d+)\s*/\s*(?P<bottom>\d+)(?![\d/.^])", _mixed),
    (r"(?<=\d)\s*:\s*(?=\d)", ":"),
    (r"^\s*-\s*-\s*(?=\S)", ""),
    (r"^\s*\+\s*(?=[\d\\(.])", ""),
    # What a parameter may be, and the modulus of a remainder.
    (
        r",\s*(?:(?:where|with|for)\s+)?[a-zA-Z](?:\s*,\s*[a-zA-Z])*\s*\\in\s*(?:\\mathbb\s*)?\{?[ZNRQ]\}?"
        r"(?:\^?[*+]|_\{?\W?\d*\}?)?\s*$",
        "",
    ),
    (r"\s*\(?\\pmod\s*\{?[^{}]*\}?\)?\s*$|\s*\(\s*mod\s*\w+\s*\)\s*$|\s+\\?b?mod\s*\{?\w+\}?\s*$", ""),
)
_CONDITION = re.compile(
    r"\s*-?(?:[a-zA-Z]|[\d.]+|\\(?:theta|alpha|infty)\s)\s*"
    r"(?:<|>|=|\\(?:le|ge|ne|in|lt|gt)|(?:\\(?:text|mbox|mathrm)\s*\{\s*)?(?:is|even|odd)\b)"
)
_FONT = re.compile(rf"\\(?:{_FONTS})\s*\{{([^{{}}]*)\}}")
_POWER = r"(?:\s*\^\s*\{?\s*-?\d\s*\}?)?"
_TEXT = rf"\s*\\(?:text|mathrm|mbox)\s*\{{([^{{}}]*)\}}({_POWER})\s*"
_TEXT_FRACTION = re.compile(rf"\\[dtc]?frac\s*\{{{_TEXT}\}}\s*\{{{_TEXT}\}}")
_UNIT_FRACTION = re.compile(  # at the end, and behind a number and a space: `9.8\,\frac{m}{s^2}`
    rf"(?<=\d)(?:\\[,;: ]|~|\s)+\\[dtc]?frac\s*\{{\s*([a-zA-Z]{{1,3}})({_POWER})\s*\}}\s*"
    rf"\{{\s*([a-zA-Z]{{1,3}})({_POWER})\s*\}}(?=(?:[\s$.]|\\[)\]])*\Z)"
)
_THOUSANDS = re.compile(
    r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d])(?!,\d)"
    # With a space behind the comma it is a list, unless a group begins with 0, as no number of a list does.
    r"|(?<![\d.,])(?<!\d[,;] )[1-9]\d{0,2}(?=(?:,[ ]+\d{3})*,[ ]+0)(?:,[ ]+\d{3})+(?!\d)(?![,;]\s*\d)"
)


def _apply(rules: tuple[Rule, ...], text: str) -> str:
    for pattern, spelling in rules:
        text = pattern.sub(spelling, text)
    return text


def normal(text: str) -> str:
    """The text with one spelling for each notation; words in `\\text{}` stand bare."""
    text = _balanced(_apply(_SIGNS, text).translate(_CHARACTERS))
    text = _TEXT_FRACTION.sub(r" \1\2/\3\4 ", text)
    text = _UNIT_FRACTION.sub(_units, text)
    text = _apply(_ENVIRONMENTS, text)
    text = _rows(text)
    for _ in range(6):
        bare = _FONT.sub(_bare, text)
        if bare == text:
            break
        text = bare
    text = _apply(_DRESS, text)
    text = _thousands(text)
    text = _apply(_NUMBERS, text)
    text = _apply(_ALGEBRA, text)
    return _balanced(re.sub(r"\s+", " ", text).strip())


def _bare(match: re.Match[str]) -> str:
    content = match[1].strip()
    has_index = match.string[match.end() : match.end() + 1] in ("^", "_")
    is_sum = re.search(r"[-+*/]", content) and not re.search(r"[a-zA-Z]{2}|^[a-zA-Z]/[a-zA-Z]$", content)
    return f"{{{content}}}" if has_index and is_sum else f" {content} "


def _rows(text: str) -> str:
    r"""Systems of equations, `\cases x=1 \\ y=2 \cases`, as a list."""
    if "\\cases" not in text:
        return text
    parts = re.split(r"(?:\\left)?\s*(?:\\\{|\\lbrace)?\s*\\cases", text)
    for i in range(1, len(parts), 2):
        rows = [_row(row) for row in re.split(r"\\\\(?:\[[^\]]*\])?", parts[i])]
        parts[i] = ", ".join(row for row in rows if row)
    return " ".join(re.sub(r"^\s*\\right\s*(?:\.|\\\})", " ", part) for part in parts)


def _row(row: str) -> str:
    """A row of a system; of a piecewise function, with `if` before a condition that has no word."""
    value, sign, condition = row.strip(" ,;.").partition("&")
    if sign and value.strip() and "&" not in condition and _CONDITION.match(condition):
        return f"{value.strip(' ,;')} if {condition.strip()}"
    return row.replace("&", " ").strip(" ,;.")


def _thousands(text: str) -> str:
    """`1,234` and `1, 000` as 1234 and 1000, but not inside of brackets, where a comma stands between two things."""
    depths, depth = [], 0
    for char in text:
        depth += (char in "([") - (char in ")]")
        depths.append(depth)
    sets = [(match.start(), match.end()) for match in re.finditer(r"\\\{[^{}]*\\\}", text)]

    def join(match: re.Match[str]) -> str:
        start = match.start()
        inside = depths[start] > 0 or any(low < start < high for low, high in sets)
        return match[0] if inside else re.sub(r"\D", "", match[0])

    return _THOUSANDS.sub(join, text)


def _balanced(text: str) -> str:
    """The text without what was cut off: braces that nothing opens or closes, wrappings of nothing."""
    opened: list[int] = []
    drop: set[int] = set()
    i = 0
    while i < len(text):
        if text[i] == "\\":
            i += 2
            continue
        if text[i] == "{":
            opened.append(i)
        elif text[i] == "}":
            if opened:
                opened.pop()
            else:
                drop.add(i)
        i += 1
    text = "".join(char for i, char in enumerate(text) if i not in drop) + "}" * len(opened)
    while match := re.fullmatch(r"\{((?:[^{}\\]|\\.|\{[^{}]*\})*)\}", text):
        text = match[1].strip()
    return text
