"""Answers that a phrase points to (`Answer:`), unless they are denied, asked, somebody else's, or taken back.

`Some people think the answer is 5. It is 6.` answers 6, and `The answer is 5? No, 6.` too: what is only supposed or somebody
else's opinion is no answer, and a later sentence that corrects an answer takes its place. A check or a remark behind it
(`This is correct.`, `That is 2 hours.`) changes nothing. Where it is called wrong and no other is given, there is none.

All of this takes time linear in the length of the text.
"""

import re
from collections.abc import Iterator

_PHRASE = re.compile(
    r"(?:^[ \t>*_#-]{0,9}(?:a|answer|solution|result)(?:[ \t]\d{1,2})?[*_]{0,3}[ \t]?:"
    r"|\b(?:final|correct|right)[ \t]+(?:answer|result|choice|option)s?[*_]{0,3}(?:[ \t]+(?:is|are)\b|[ \t]?[:=])"
    r"|\banswers?[*_]{0,3}(?:[ \t]+(?:to[ \t]+(?:the|this)[ \t]+\w+[ \t]+)?(?:is|are)\b(?:[ \t]+therefore\b)?|[ \t]?[:=]))"
    r"[ \t*_:]{0,9}",
    re.IGNORECASE | re.MULTILINE,
)
# `Solution:` and `Result:` often head the working: then the answer is not the first sentence below.
_HEADS = re.compile(r"[ \t>*_#-]*(?P<label>solution|result)\b", re.IGNORECASE)
_ITEM = re.compile(r"\W*?\d{1,2}[.)][ \t]+\S")  # of a numbered list of steps
_VALUE_FIRST = re.compile(r"[^\w\n]{0,6}(?:\d|\\[a-zA-Z(\[{]|[a-zA-Z]\b(?!['\u2019]|[ \t]+[a-zA-Z]{2}))")
_TIMES = re.compile(r"\\(?:times|cdot|div)|[\u2212\u00d7\u00f7]")
_NEXT_STEP = re.compile(
    r"\s*(?:[-*>\u2022][ \t]+)?(?:(?:so|then|next|and|now|thus|therefore|hence)\b,?[ \t]*)?(?=[$\\(\d])", re.IGNORECASE
)
_SUPPOSED = re.compile(
    r"\b(?:if|unless|whether|suppose|assume|assuming|not|never|cannot|neither|nor|no|nobody|doubt|\w+n't"
    r"|(?:might|may|wrong\s+to)\s+(?:think|say))\b",
    re.IGNORECASE,
)
# Before a phrase: that it is not meant (`I doubt that`, `let me check whether`, `you might think that`).
_NOT_MEANT = re.compile(
    r"\b(?:(?:not|\w+n['\u2019]t|cannot|never|nobody|hardly|might|may|could|would|wrong\s+to|mistake\s+to|tempting\s+to)"
    r"\s+(?:would\s+|be\s+)?(?:think|believe|say|mean|claim|conclude|see|know|sure|likely|true|follow|guess|assume|expect)"
    r"|(?<!no )(?<!a )(?<!any )doubt|if|whether|unless|suppose|assume|assuming|imagine|pretend)"
    r"(?:\s+(?:that|how|why|if|whether))?(?:\s+(?:the|my|our|your))?\s*\Z",
    re.IGNORECASE,
)
# Before a phrase: that it is somebody else's, or was given up. What I or we say now is meant.
_OPINION = re.compile(
    r"\b(?:thinks?|thought|guess(?:es|ed)?|says?|said|believes?|believed|claims?|claimed|assumed|concluded|answered"
    r"|mistake(?:\s+is)?|error(?:\s+is)?|misconception(?:\s+is)?)(?:\s+(?:at\s+first|first|initially|wrongly))?\W*(?:that)?\W*(?:the|my|our|his|her)?\s*\Z",
    re.IGNORECASE,
)
_MINE = re.compile(
    r"\b(?:I|we)(?:'d)?\s+(?:(?:would|can|must|could|do|also|still|now|therefore|thus|will|have\s+to|should|safely|confidently)\s+){0,3}"
    r"(?:think|guess|say|believe|claim)\W*(?:that)?\W*(?:the|my|our)?\s*\Z",
    re.IGNORECASE,
)
_OF_ANOTHER = re.compile(
    r"\b(?:wrong|incorrect|false|mistaken|first|initial|earlier|previous|original|old|tempting|his|her|their|naive|obvious|other"
    r"|\w+['\u2019]s|students?['\u2019])\s+(?:first\s+|initial\s+|original\s+)?\Z",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"\n|(?<![ \t.][a-z])(?<!\bvs)(?:[.?]|(?<![\d})])!)[*_\"')\]$]{0,3}(?=[ \t\n]+|\Z)")
_IT_IS_NOT = re.compile(
    r"(?:\W|\b(?:but|no|wait|hmm+|oh|actually|so|and|clearly|unfortunately)\b){0,9}(?:that|this|it|he|she|they|which|i|we)"
    r"(?:['\u2019]s|\s+(?:is|was|are|were|am|turns?\s+out\s+to\s+be))\s+(?:\w+ly\s+)?(?:wrong|incorrect|mistaken|false|impossible"
    r"|a\s+mistake|not\s+(?:right|correct|true|it|the\s+(?:right\s+|correct\s+)?answer))\b"
    r"|(?:\W|\b(?:but|wait|hmm+|oh|actually)\b){0,9}no\W*\Z",
    re.IGNORECASE,
)
_LETTER = r"[a-z]\b(?!['\u2019]|\s+(?!(?:and|or)\b)[a-z]{2})"  # one that no word follows: `B`, and not `a trap`
_EXPRESSION = rf"(?P<other>[$\\(*]{{0,4}}[-\u2212+]?[$\\]{{0,2}}(?:\d|\\[a-z]|{_LETTER}|\().*)"
# A sentence that states an answer: `It is 6`, `No, 6`, `Actually, the correct value is 6`.
_STATES = re.compile(
    r"\W{0,3}(?P<lead>(?:\b(?:but|no|nope|yes|wait|hmm+|oh|oops|ah|actually|so|and|in\s+fact|in\s+reality|rather|instead|however"
    r"|sorry|correction|really|i\s+mean|scratch\s+that|then|though|therefore|hence|thus)\b[\s,.:;!-]{0,5}){0,5})"
    r"(?P<subject>(?:it|this|that|the\s+(?:(?:right|correct|actual|true|real|final|proper)\s+)?(?:answer|value|result|one|number|solution))"
    r"(?:['\u2019]s|\s+(?:is|was|should\s+be|must\s+be|has\s+to\s+be|equals|would\s+be|comes?\s+to|turns?\s+out\s+to\s+be))\s+"
    r"(?:(?:really|actually|in\s+fact|instead|rather|therefore|thus|exactly|equal\s+to)\W+)?)?" + _EXPRESSION,
    re.IGNORECASE | re.DOTALL,
)
_CORRECTS = re.compile(
    r"\b(?:no|nope|wait|oops|actually|sorry|correction|rather|scratch|instead|i\s+mean)\b", re.IGNORECASE
)
_DOUBTS = re.compile(r"\b(?:but|hmm+|oh|ah|however|in\s+fact|in\s+reality)\b", re.IGNORECASE)  # before `it is 6`
# Of a later sentence: that it states the answer, and is no remark about it (`the correct value is`, `it should be`).
_SETTLES = re.compile(r"\b(?:right|correct|actual|true|real|final|proper)\b|\bshould\b", re.IGNORECASE)
# Behind a phrase: what the answer is like or given in, and not what it is (`the answer is correct`, `is in dollars`).
_IS_LIKE = re.compile(
    r"(?:(?:indeed|also|now|thus|therefore|both|\w+ly)\s+)*(?:correct|right|reasonable|valid|verified|confirmed|consistent"
    r"|sensible|plausible|in\s+[^\d\\$]+$)(?:(?!\s*:)\W.*)?",
    re.IGNORECASE | re.DOTALL,
)
_REMARK = re.compile(
    r"\W*(?:(?:so|thus|hence|therefore|and)\b,?\s*)?(?:(?:this|that)(?:['\u2019]s|\s+is)\s+(?:indeed\s+|\w+ly\s+)?"
    r"(?:correct|right|reasonable|verified|(?:the|our|my|a)\s+(?:(?:final|correct|right|reasonable|required|desired)\s+)*"
    r"(?:answer|result|solution))"
    r"|it(?:['\u2019]s|\s+is)\s+(?:indeed\s+)?(?:correct|the\s+(?:(?:final|correct|right)\s+)*(?:answer|result|solution)))\W*",
    re.IGNORECASE,
)
_TURN = re.compile(
    r"\s*(?:\.{3}|[,;:(\u2014-]|\.(?=\s))+\s*(?=(?:but|no|wait|actually|or\s+rather|i\s+mean|sorry|rather)\b)",
    re.IGNORECASE,
)
_NOT_BUT = re.compile(r"^not\s+\S{1,40}?,?\s+but\s+(?:rather\s+|instead\s+)?(?=[-$\\\d(])", re.IGNORECASE)
_SAYS_MORE = re.compile(
    r"\b(?:more|less|fewer|than|times|not|if|because|since|when|where|which|also|possible|of|remain\w*|left|steps?|ways?|checks?"
    r"|works?|valid|solutions?|both|even|odd|prime|positive|negative|divisible|between|greater|smaller|larger|integers?)\b",
    re.IGNORECASE,
)


def supposes(words: str) -> bool:
    """Whether words say that what follows is not so, or only if something else is (`if x is 5`, `it cannot be`)."""
    return _SUPPOSED.search(words) is not None


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text, without what ends them; a line's end ends one, too."""
    for sentence, _ in with_ends(text):
        yield sentence


def with_ends(text: str) -> Iterator[tuple[str, str]]:
    """The sentences of a text, and what ends each."""
    start = 0
    for match in _SENTENCE.finditer(text):
        if text[start : match.start()].strip():
            yield text[start : match.start()], match[0]
        start = match.end()
    if text[start:].strip():
        yield text[start:], ""


def last_phrase(text: str) -> str | None:
    """What follows the last `Answer:` or `the answer is` that is meant, up to the end of its sentence.

    A later sentence that corrects it takes its place. Empty where it is taken back, and no other is given. What only says
    how the answer is (`so the answer is correct`) counts where there is nothing else.
    """
    like = None
    for match in reversed(list(_PHRASE.finditer(text))):
        behind = text[match.end() : match.end() + 2000]
        rest = behind.lstrip()
        if not rest or not _is_meant(text[max(0, match.start() - 100) : match.start()], match[0]):
            continue
        if _heads_working(match[0], rest[:300], is_below="\n" in behind[: len(behind) - len(rest)]):
            continue
        if not _IS_LIKE.fullmatch(next(sentences(rest[:200]), "").strip()):
            return _in_the_end(rest)
        like = like or rest
    return None if like is None else _in_the_end(like)


def _heads_working(phrase: str, rest: str, is_below: bool) -> bool:
    """Whether `Solution:` or `Result:` heads the working, and no value or few words that stand alone.

    Args:
        phrase: what was found.
        rest: what follows it.
        is_below: whether that begins on a later line.
    """
    label = _HEADS.match(phrase)
    if label is None:
        return False
    if is_below and _ITEM.match(rest):
        return True
    first, *others = sentences(rest)
    if not _VALUE_FIRST.match(first):
        is_result = label["label"].lower() == "result"
        return (is_below or not is_result) and re.search(r"\d", first if is_result else rest) is not None
    steps = [other[step.end() :] for other in others if (step := _NEXT_STEP.match(other))]
    return _calculates(first) and any(map(_calculates, steps))


def _calculates(sentence: str) -> bool:
    """Whether a sentence begins with a calculation of numbers, `12 + 7 =`."""
    left, equals, _ = sentence.partition("=")
    left = _TIMES.sub("*", left)
    return bool(equals) and re.search(r"[a-zA-Z]", left) is None and re.search(r"\d\D*?[-+*/]", left) is not None


def is_remark(sentence: str) -> bool:
    """Whether a sentence only says that what stands before it is the answer, or right (`This is the final answer`)."""
    return _REMARK.fullmatch(sentence) is not None


def without_denied(sentence: str) -> str:
    """The sentence, or of one whose answer is denied or somebody else's, what it turns to (`..., but it is 6`)."""
    for match in reversed(list(_PHRASE.finditer(sentence))):
        if not _is_meant(sentence[max(0, match.start() - 100) : match.start()], match[0]):
            turn = _TURN.search(sentence, match.end())
            return sentence[turn.end() :] if turn else ""
    return sentence


def _is_meant(before: str, phrase: str) -> bool:
    before = before.rpartition("\n")[2].replace("\u2019", "'")
    if _NOT_MEANT.search(before) and not _MINE.search(before):
        return False
    if _OPINION.search(before) and not _MINE.search(before):
        return False
    own = re.match(r"\s*(?:final|correct|right)\b", phrase, re.IGNORECASE) is not None
    return own or not _OF_ANOTHER.search(before)


def _in_the_end(rest: str) -> str | None:
    """What is answered in the end, by the text behind a phrase; empty if nothing is."""
    answer, found = "", False
    for sentence, end in with_ends(rest):
        if not re.search(r"\w", sentence):
            continue
        if found:
            other = _stated(sentence, bool(answer))
            answer = answer if other is None else other
            continue
        found = True
        answer = _NOT_BUT.sub("", sentence.strip())
        if (turn := _TURN.search(answer)) and (other := _stated(answer[turn.end() :], True, turned=True)) is not None:
            answer = other
        elif "?" in end:
            answer = "" if _is_refused(rest) else answer
    return answer if found else rest


def _is_refused(rest: str) -> bool:
    """Whether a question behind a phrase gets another answer than yes."""
    following = rest.partition("?")[2].strip()
    return re.match(r"(?:yes|yep|indeed|correct|right|sure|exactly)\b", following, re.IGNORECASE) is None


def _stated(sentence: str, is_held: bool, turned: bool = False) -> str | None:
    """The answer that a later sentence states, empty if it calls the earlier one wrong; None if it does neither.

    Args:
        sentence: the sentence, or what an answer's own sentence turns to.
        is_held: whether there is an answer already, which only a correction replaces.
        turned: whether it is such a turn, which corrects by itself where it has a subject (`..., but it is 6`).
    """
    sentence = sentence.strip()[:300]
    if _IT_IS_NOT.match(sentence):
        return ""
    match = _STATES.fullmatch(sentence)
    if match is None or _SAYS_MORE.search(match["other"]):
        return None
    subject = match["subject"] or ""
    doubts = _DOUBTS.search(match["lead"]) and re.match(r"it|the", subject, re.IGNORECASE)
    corrects = _CORRECTS.search(match["lead"]) or (subject and turned) or _SETTLES.search(subject) or doubts
    return str(match["other"]).strip() if corrects or not is_held else None
