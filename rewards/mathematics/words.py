"""Words of answers in English: numbers in words, words that scale a number, words that change what it says, units.

Everything here is a table or a small reader of one; which words of an answer count is decided in `reading.py`.
"""

import re
from fractions import Fraction

from lockstitch.rewards.phrases import supposes


def _words(*lines: str) -> tuple[str, ...]:
    return tuple(" ".join(lines).split())


_ONES = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen",
    "eighteen nineteen",
)
_TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")
_VALUES = {word: i for i, word in enumerate(_ONES)} | {word: 10 * i for i, word in enumerate(_TENS, 2)}
_PARTS = {word: i for i, word in enumerate(_words("third fourth fifth sixth seventh eighth ninth tenth"), 3)}
_PARTS["quarter"] = 4
_PARTS |= {f"{word}s": value for word, value in _PARTS.items()} | {"half": 2, "halves": 2}
_MANY = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SCALES = {"dozen": 12, "dozens": 12} | _MANY | {f"{word}s": value for word, value in _MANY.items()}
MONTHS = _words("january february march april may june july august september october november december")

# What stands before or behind a number and makes another statement of it: no number is read out of such a phrase.
_CHANGING = {
    *_words(
        "wasn't don't doesn't didn't nobody doubt suppose assume doubled tripled exceeding sixths sevenths eighths ninths",
        "not no never cannot can't isn't neither nor none than least most more less fewer greater larger smaller bigger",
        "maximum minimum between either or and to from of off all any every except without half halves third thirds",
        "quarter quarters double twice thrice triple times squared cubed square cube root roots power powers factorial",
        "negative minus plus ratio sum product difference quotient divided multiplied over under above below within before",
        "after until till past through",
        "if unless whether but otherwise remainder choose mod modulo log ln sin cos tan th multiple multiples",
        "divisible exceeds gross lakh crore tens tenth tenths hundredths thousandths fifth fifths wrong incorrect false",
        "st nd rd fail fails failed impossible monday tuesday wednesday thursday friday saturday sunday noon midnight",
    ),
    *SCALES,
    *MONTHS,
}
# What stands before `is` is what the number is of, whatever it is: only what follows can change it.
_SUBJECT = re.compile(
    r"^.*(?<![a-z])(?:is|are|was|were|equals?|be|becomes?|totals?|=)(?![a-z])(?!\s+(?:to|of)\b)",
    re.IGNORECASE | re.DOTALL,
)
_HARMLESS = re.compile(
    r"\b(?:(?:grand\s+)?total\s+of|all\s+together|in\s+all|of\s+course|after\s+all|equal\s+to"
    r"|to\s+(?:get|give|make|obtain|find|reach|yield|have|leave|be|end\s+(?:up\s+)?with|arrive\s+at))\b"
)
# Behind a number fewer words change it: `5 cups of sugar`, `8 more apples`, `8 days to finish`, `8 miles from home`.
_CHANGING_BEHIND = _CHANGING - set(
    _words(
        "to of from off all any every most more less fewer under within between through square quarter quarters fifth",
        "tenth",
    )
)
_BEHIND = re.compile(
    r"^(?:of|to|from|off|through)\b(?!\s+(?:the|them|these|those|his|her|their|its|all)\b)|\b(?:more|less|fewer)\s+than\b"
    r"|\bto\s+(?:one|two|three|four|five|six|seven|eight|nine|ten)\b",
    re.IGNORECASE,
)

UNITS_OF_ONE_LETTER = frozenset("gmshJLNWVCFA")
_SHORT_UNITS = frozenset(
    _words(
        "cm mm km dm nm kg mg ml dl kl ft yd mi lb lbs oz hr hrs min sec ms ns mph kph kmh hz kw kwh pm am in pt qt gal rad",
        "deg pa kpa mol ev kj mj mw gb mb kb px rpm bps wk yr sq cu usd eur gbp cad aud inr",
    )
)
# Words of two letters; other pairs of letters are a product.
_SHORT_WORDS = frozenset(_words("is in of or to no on by at an it so we be as if up do go he my me us ok th st nd rd"))
# Runs of these letters alone are products of variables, numerals, points, outcomes: `xyz`, `XIV`, `\triangle ABC`, `TFT`.
_SYMBOLS = tuple(map(frozenset, ("abcxyz", "IVXLCDM", "ABCDEFGH", "PQRSTXYZ", "HTF")))
FUNCTIONS = _words("arcsin arccos arctan sinh cosh tanh sin cos tan cot sec csc log ln exp max min gcd lcm det")

# Gold answers that say nothing.
NO_GOLD = re.compile(
    r"(?:see\b.*|(?:the\s+)?proofs?\b.*|proved|proven\b.*|to\s+be\s+proven|omitted|n/?a|none|null|nan|unknown|unclear|tbd|todo"
    r"|no\s+(?:idea|answer|gold)\b.*|not\s+(?:available|given|provided|known|applicable|sure|answered)|[^\w\\{(\[∅]*"
    r"|(?:the\s+|student\s+|students['’]\s+)?(?:answers?|responses?|solutions?|results?|explanations?)\s+(?:(?:will|may|can|might|should)\s+)?"
    r"(?:vary|varies|differ|depends?)\b.*|var(?:y|ies)|various(?:\s+answers?)?|(?:it|that|this)?\s*depends\b.*|(?:an?\s+)?open(?:-|\s)?ended\b.*"
    r"|(?:this\s+is\s+)?(?:an\s+)?open\s+(?:question|problem)|open|(?:sample|possible|example|suggested|model)\s+(?:answers?|responses?|solutions?)\b.*"
    r"|explanations?|explain\b.*|discussions?|discuss\b.*|essays?|(?:a\s+)?graphs?|refer\s+to\b.*|q\.?e\.?d\.?|left\s+(?:to|as)\b.*"
    r"|un(?:answered|solved|available|determined\s+by\s+the\s+author)|skip(?:ped)?|i\s+(?:do\s+not|don['’]?t)\s+know\b.*"
    r"|(?:show|prove|verify|justify|describe|draw|sketch|demonstrate)\b.*|as\s+(?:shown|above|required)\b.*)",
    re.IGNORECASE | re.DOTALL,
)
SAMPLE = re.compile(
    r"(?:sample|possible|example|suggested|model)\s+(?:answers?|responses?|solutions?)\b", re.IGNORECASE
)


def is_word(run: str) -> bool:
    """Whether a run of letters is a word or a unit, and not a product of variables."""
    small = run.lower()
    if small in _SHORT_WORDS or small in _SHORT_UNITS or small in SCALES:
        return True
    return len(run) >= 3 and not any(set(run) <= letters for letters in _SYMBOLS)


def is_unit(run: str) -> bool:
    """Whether a run of letters is the short name of a unit, if it is no product."""
    return run in UNITS_OF_ONE_LETTER or run in _SHORT_UNITS


def value_in_words(text: str) -> Fraction | None:
    """The number that words say (`twenty-five`, `one hundred and two`, `two and a half`, `three quarters`); else None."""
    words = [word for word in re.split(r"[\s-]+", text.strip().lower().strip(" .!")) if word]
    is_negative = words[:1] in (["minus"], ["negative"])
    words = words[is_negative:]
    if not words or len(words) > 12:
        return None
    value = _whole_and_part(words)
    return -value if is_negative and value is not None else value


def _whole_and_part(words: list[str]) -> Fraction | None:
    if words[-1] in _PARTS:  # `half`, `one half`, `a third`, `two and three quarters`
        head, bottom = words[:-1], _PARTS[words[-1]]
        if head[-1:] in (["a"], ["an"]):
            head, top = head[:-1], Fraction(1)
        elif head and (count := _VALUES.get(head[-1])):
            head, top = head[:-1], Fraction(count)
        else:
            top = Fraction(1)
        if not head:
            return top / bottom if words[-1] not in ("third", "fourth", "fifth") or len(words) > 1 else None
        whole = _whole(head[:-1]) if head[-1] == "and" else None
        return None if whole is None else whole + top / bottom
    return _whole(words)


def _whole(words: list[str]) -> Fraction | None:
    total, group, last = 0, 0, 10**15
    if not words or words[0] == "and" or words[-1] == "and":
        return None
    if words[0] in ("a", "an") and words[1:] and words[1] in SCALES:
        words = ["one", *words[1:]]
    for word in words:
        if word in _VALUES:
            value = _VALUES[word]
            goes_on = group % 100 == 0 or (group % 100 >= 20 and group % 10 == 0 and 0 < value < 10)
            if not goes_on or (value == 0 and len(words) > 1):
                return None
            group += value
        elif word in ("hundred", "dozen") and group:
            group *= SCALES[word]
        elif word in SCALES and group and SCALES[word] < last:
            last = SCALES[word]
            total, group = total + group * last, 0
        elif word != "and" or not (group or total):
            return None
    return Fraction(total + group)


def changes(words: str, behind: bool = False) -> bool:
    """Whether words beside a number say something else than it (`no more than`, `half of`)."""
    if not behind and (subject := _SUBJECT.match(words)) and not supposes(subject[0]):
        words = words[subject.end() :]
    rest = _HARMLESS.sub(" ", words.lower())
    if behind and _BEHIND.search(rest.strip()):
        return True
    return any(word in (_CHANGING_BEHIND if behind else _CHANGING) for word in re.findall(r"[a-z']+", rest))
