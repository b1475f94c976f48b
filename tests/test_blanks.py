"""Blanks in prompts: parsing and its inverse, the canvas they make, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lockstitch.sampling.blanks import Blank, Span, bans, lay_out, parse, unparse

PIECES = st.sampled_from([*"[]:\\a0 12\n", "[[", "]]", "[[a:1]]", "\\[[:3]]", "[[b:x]]", "é", "…"])
TEXTS = st.lists(PIECES, min_size=1).map("".join)
NAMES = st.text(alphabet="ab:… \\", max_size=4)


@st.composite
def templates(draw):
    """Texts and blanks; no two texts in a row, no name twice."""
    names = draw(st.lists(NAMES, max_size=5, unique_by=lambda name: name or object()))
    parts = []
    for name in names:
        if draw(st.booleans()):
            parts.append(draw(TEXTS))
        parts.append(Blank(name, draw(st.integers(1, 2000))))
    if draw(st.booleans()) or not parts:
        parts.append(draw(TEXTS))
    return tuple(parts)


@given(templates())
def test_unparse_is_undone_by_parse(parts):
    assert parse(unparse(parts)) == parts


@given(st.text(alphabet=st.sampled_from([*"[]\\a:1 \n", "é"])).filter(lambda text: "[[" not in text))
def test_other_text_is_itself(text):
    assert "".join(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ()),
        ("a[[b:12]]", ("a", Blank("b", 12))),
        ("[[:1]][[:2]]x", (Blank("", 1), Blank("", 2), "x")),
        ("[[[…:3]]]", ("[", Blank("…", 3), "]")),
        ("[[1,2],[3,4]]", ("[[1,2],[3,4]]",)),
        (r"\[[a:3]]", ("[[a:3]]",)),
        (r"\\[[a:3]]", ("\\", Blank("a", 3))),
        (r"\\\[[a:3]] \n", (r"\[[a:3]] \n",)),
        (r"\[[Category:Birds]]", ("[[Category:Birds]]",)),
        ("[[a:\n1]]", ("[[a:\n1]]",)),
    ],
)
def test_examples(text, parts):
    assert parse(text) == parts


@pytest.mark.parametrize(
    "blank", ["[[a:0]]", "[[a:]]", "[[a:-3]]", "[[a: 12]]", "[[a:twelve]]", "[[a:03]]", "[[a:٣]]"]
)
def test_a_bad_width_is_refused_by_name(blank):
    with pytest.raises(ValueError, match="its width in tokens must be a whole number of at least 1") as caught:
        parse(f"so [[ok:1]] {blank} it goes")
    assert repr(blank) in str(caught.value)


def test_a_name_stands_once():
    assert parse("x[[:1]][[:1]]")[1:] == (Blank("", 1), Blank("", 1))
    with pytest.raises(ValueError, match=r"blank '\[\[a:2\]\]': there is one of the name 'a' already"):
        parse("x[[a:1]][[a:2]]")


def test_the_canvas_begins_at_the_first_blank():
    cloze = lay_out(parse("ab[[x:2]]cd[[:1]]e"), lambda text: [ord(c) for c in text])
    assert cloze.prompt == "ab"
    assert cloze.canvas == (None, None, ord("c"), ord("d"), None, ord("e"))
    assert cloze.spans == (Span("x", 0, 2), Span("", 4, 5))


def test_a_prompt_is_needed_before_the_first_blank():
    with pytest.raises(ValueError, match=r"blank '\[\[x:2\]\]': some text must stand before"):
        lay_out(parse("[[x:2]]cd"), lambda text: [1])


@given(
    st.lists(st.one_of(st.none(), st.integers(5, 9)), max_size=12),
    st.lists(st.integers(0, 3), max_size=2, unique=True),
)
def test_what_stands_before_pinned_text_may_not_end_the_completion(canvas, eos_ids):
    expected = [
        (position, eos)
        for position, token in enumerate(canvas)
        if token is None and any(later is not None for later in canvas[position + 1 :])
        for eos in eos_ids
    ]
    assert bans(canvas, eos_ids) == expected
