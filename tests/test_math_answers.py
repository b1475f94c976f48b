"""Reading and comparing answers, kind by kind: the table of `math_answers.py`, and what must hold whatever the answer is."""

import logging
import re

import pytest
from lockstitch.rewards import math_rewards
from lockstitch.rewards.marks import find_answer
from lockstitch.rewards.math_rewards import grade_math, math_reward
from lockstitch.rewards.mathematics.forms import parse
from lockstitch.rewards.mathematics.plain import read_plain, same_plain, value_of, written
from lockstitch.rewards.mathematics.reading import read_answer, read_gold
from lockstitch.rewards.mathematics.words import value_in_words
from math_answers import BOXED, UNREADABLE, WRITTEN, rows

ROWS = list(rows())


@pytest.mark.parametrize("kind", [*BOXED, *WRITTEN])
def test_what_answers_are_worth(kind):
    mine = [row for row in ROWS if row[0] == kind]
    verdicts = grade_math([row[2] for row in mine], [row[1] for row in mine], timeout=60.0)
    assert [(row, verdict) for row, verdict in zip(mine, verdicts, strict=True) if verdict.value != row[3]] == []


def test_gold_answers_that_say_nothing_are_named_once_and_score_nobody(caplog):
    texts = [r"\boxed{5}", "", r"\boxed{None}"]
    math_rewards._name.cache_clear()  # what other tests had named
    with caplog.at_level(logging.WARNING):
        for gold in UNREADABLE:
            assert math_reward([""] * 3, texts, answer=[gold] * 3) == [None] * 3, gold
            assert math_reward([""] * 3, texts, answer=[gold] * 3) == [None] * 3, gold
    named = [record.args[0] for record in caplog.records if "cannot be read; its rows" in record.getMessage()]
    assert sorted(named) == sorted(map(repr, UNREADABLE))


def test_an_answer_that_was_read_is_read_as_itself():
    """What is shown, stored and compared is one spelling: reading it again changes nothing."""
    for _, gold, text, _ in ROWS:
        for read in (read_answer(text), read_gold(gold)):
            if read is not None:
                assert read_answer(rf"\boxed{{{read}}}") == read, (text, gold)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        # The last box or block, whichever ends last; a box in a block.
        (r"\boxed{1}. So \boxed{2}.", ("box", "2", False)),
        (r"\boxed{1} <answer>2</answer>", ("block", "2", False)),
        (r"<answer>1</answer> \boxed{2}", ("box", "2", False)),
        (r"<answer>so \boxed{3}</answer>", ("box", "3", False)),
        (r"\boxed{\frac{1}{\boxed{2}}}", ("box", r"\frac{1}{2}", False)),
        (r"\boxed{1}, \boxed{2} or $\boxed{3}$", ("box", "1, 2 or 3", False)),
        # Empty marks count only if there is no other.
        (r"\boxed{1} \boxed{}", ("box", "1", False)),
        (r"\boxed{}", ("box", "", False)),
        ("<answer> </answer> 7", ("box", "", False)),
        # What is cut off counts only if nothing closes.
        (r"\boxed{12} \boxed{13", ("box", "12", False)),
        (r"so \boxed{13" + "\nand 14", ("box", "13", True)),
        ("<answer>13", ("block", "13", True)),
        (r"<answer>so \boxed{13", ("box", "13", True)),
        # Lines, then phrases.
        ("#### 1\nAnswer: 2", ("hash", "1", False)),
        ("#### Step 2: add\nthe answer is 7", ("phrase", "7", False)),
        ("#### Final answer", ("hash", "Final answer", False)),
        ("A: 5\nB: 6", ("phrase", "5", False)),
        ("The answer is 1. No, the answer is 2.5. Done.", ("phrase", "2.5", False)),
        ("Answer:\n\n**5**", ("phrase", "5", False)),
        # Reasoning counts only if nothing else is said.
        (r"<think>\boxed{1}</think> It is 2.", None),
        (r"<think>\boxed{1}</think>", ("box", "1", False)),
        ("5 and 6", None),
        ("", None),
    ],
)
def test_where_an_answer_stands(text, found):
    got = find_answer(text)
    assert (got if got is None else (got.mark, got.text.strip("*"), got.is_cut)) == found


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("at least 5", None),
        ("5 or 6", None),
        ("it is not 6", None),
        ("x > 5", "x > 5"),
        ("It is 5 or more.", None),
        ("She has 5 and he has 6.", "6"),
        ("16-3=13, so 13-4", "13-4"),
        ("16-3-4=9, 9+2=11", "11"),
        ("16-3-4=9, 9*2=18", "18"),
        (r"So $2 \times 3 = 6$, $6 \times 4 = 24$.", "24"),
        (r"$\frac{1}{2} + 3 = 3.5$, $3.5 \div 7 = 0.5$.", "0.5"),
        ("12 + 10 = 22 and 22 + 5 = 27", "27"),
        ("First 12+7 = 19, 19-5 = 14, and 14*2 = 28 apples.", "28"),
        ("2*3 = 6 or 6*4 = 24", None),
        ("5+1 = 6 and 5-1 = 4 are possible.", None),
        ("It is not 2*3 = 6 and 6*4 = 24", None),
        ("x = 3 and y = 4", None),
        ("2 = 3 and 4 = 5", None),
        ("5 and 12+7 = 19", None),
        ("12+7 = 19 and 5", None),
        ("12+7 = 19 and 5, 6", None),
        ("3 and 4", None),
        ("2*3 = 6, 7", r"2 \cdot 3 = 6, 7"),
        ("f(1) = 2, f(2) = 3", "f(1) = 2, f(2) = 3"),
        (r"\boxed{2+3 = 5, 3+4 = 7}", "2+3 = 5, 3+4 = 7"),
        (r"It moves at \(9.8\,\frac{m}{s}\).", "9.8"),
        ("= 12", "12"),
        ("no numbers", None),
        (r"\boxed{5 feet 10 inches}", "5 feet 10 inches"),
        (r"\boxed{3 times 4}", "3 times 4"),
        (r"\boxed{2 \text{ PM}}", "2 pm"),
        (r"\boxed{12 km/h}", "12"),
        (r"\boxed{\text{Eve}}", "Eve"),
        (r"\boxed{x^2 + 3h}", "x^2 + 3h"),
        (r"\boxed{\pi r^2 h}", r"\pi r^2 h"),
        (r"\boxed{2^{n-1} \text{ for all } n \geq 1}", "2^{n-1}"),
        (r"\boxed{10\text{:}30}", "10:30"),
    ],
)
def test_the_whole_expression_or_none(text, answer):
    assert read_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("(1, 2)", "tuple"),
        (r"\{1, 2\}", "set"),
        ("1, 2", "list"),
        ("1 or 2", "either"),
        ("1 < x", "spans"),
        ("x = 1", "named"),
        ("x + y = 1", "equation"),
        ("2:30", "clock"),
        ("2:3", "ratio"),
        ("TFT", "words"),
        ("(B) 4", "choice"),
        ("xy", "scalar"),
        (r"\frac{1}{2}", "scalar"),
        ("(x+1)(x-1)", "scalar"),
        ("A < B < C", "relation"),
        (r"\binom{1}{2}", "scalar"),
        (r"\mathbb{R}", "spans"),
        ("[[1, 2], [3, 4]]", "matrix"),
        ("f(1, 2)", "scalar"),
        (r"\frac{1}{2}, \{3, 4\}", "list"),
    ],
)
def test_shapes(text, kind):
    assert parse(text).kind == kind


def test_plain_numbers_are_exact():
    for text in ("7", "-7", "0.25", ".5", r"\frac{3}{4}", "3/4", r"-\frac{7}{2}", r"1.2 \times 10^{5}", "25\\%"):
        value = value_of(text)
        assert value is not None
        assert value_of(written(value)) == value
    assert [read_plain(text) for text in ("x", "1/0", "1,2", "2^3", "٣", "")] == [None] * 6
    assert same_plain(read_plain("1/3"), read_plain("0.33333333"))
    assert not same_plain(read_plain("1/3"), read_plain("0.3333333"))
    assert not same_plain(read_plain("1"), read_plain("0.99999999999"))


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("twenty-five", 25),
        ("one hundred and two", 102),
        ("two thousand three hundred", 2300),
        ("a dozen", 12),
        ("half", 0.5),
        ("two and a half", 2.5),
        ("three quarters", 0.75),
        ("five million", 5e6),
        ("one two", None),
        ("and", None),
        ("second", None),
        ("hundred", None),
        ("twenty eleven", None),
        ("zero", 0),
    ],
)
def test_numbers_in_words(words, value):
    assert value_in_words(words) == value


def test_units_leave_no_trace_and_symbols_stay():
    for unit in ("km", "cm^2", "m/s", "kg/m^3", "hours", "square feet", "dollars per day", "mL", "g"):
        assert read_answer(rf"\boxed{{90 {unit}}}") == read_answer(rf"\boxed{{90 \text{{ {unit}}}}}") == "90", unit
    for symbol in ("x", "k", "xy", "i", r"\pi", r"\theta", "n^2"):
        assert re.sub(r"\s", "", read_answer(rf"\boxed{{90{symbol}}}") or "") == f"90{symbol}"
