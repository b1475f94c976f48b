"""The equation checker: steps that are right, wrong or not to be judged, and every gold rationale of GSM8K."""

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from lockstitch.rewards.mathematics.equations import EquationChecker
from lockstitch.rewards.steps import check_steps
from lockstitch.stitching.segment import segment

QUESTION = (
    "Ann has 16 eggs, eats three, bakes 4 into muffins and sells each of the rest for $2. A house of $1,000.50 gains "
    "20% and 1/3 of it is sold with 5 pens, 2 1/4 cups, 9 cups and 50 cents. It costs $350 000."
)


def scores(*steps: str) -> list[float]:
    return check_steps(EquationChecker(), QUESTION, steps)


@pytest.mark.parametrize(
    "step",
    [
        "She has 16 - 3 - 4 = <<16-3-4=9>>9 eggs.",
        "16 − 3 – 4 = 9",
        "$5 x 3 = $15",
        "5×3=15 and 16 ÷ 4 = 4",
        "1. 3 + 4 = 7 eggs.",
        "1) 3 + 4 = 7",
        "That leaves 16 eggs - 3 eggs = 13 eggs.",
        "(16 - 4) * (3 + 5) = 96",
        "2(3 + 4) = 14",
        "5 times 3 equals 15.",
        "3 + -5 = -2",
        "1,000.50 * 2 = 2,001",
        "20% of 50 = 10",
        "50 * 20% = 10 and 50 * 0.2 = 10 and 50 * 1.2 = 60",
        "5 / 50 = 10%",
        "5/50*100 = 10%",
        "4 * 50 cents = $2",
        "16/3 = 5.33 and 16/3 = 5.3 and 16/3 = 5",
        "50/3 = 16.67 and 50/3 = 16.66",
        "2/3 * 9 = 6",
        "5/9*16 = 8.888888888888889",
        "2 1/4 * 4 = 9",
        "5 hours x $20/hour = $100",
        r"\(5 \times 3 = 15\) and \[\frac{16}{4} = 4\] and $9 \div 3 = 3$",
        r"\text{Eggs}_1 = 4 \times 5 = 20 \text{ eggs}",
        "3 * 5 = 5 + 5 + 5 = 15",
        "3^2 = 9",
        "So she has some (as 3 + 4 = 7).",
        "16 * 4 = 64 - ",
        "(3/5)(5) = 3",
        "She pays 4 * 5 = 20 million.",
        "**3 + 4 = 7**",
        "Eggs left = 16 - 3 = 13",
        "16 * 3 = 48 thousand",
        "350 000 * 2 = 700 000",
        "30 * 2 = 60 minutes",
    ],
)
def test_sound_steps(step: str) -> None:
    assert scores(step) == [1.0]


@pytest.mark.parametrize(
    "step",
    [
        "16 - 3 - 4 = 10",
        "<<16-3-4=10>>10",
        "She has 16 - 3 = <<16-3=13>>12 eggs.",
        "$5 x 3 = $16",
        "3 + 4 = 7 and 5 * 3 = 16",
        "16/3 = 5.35",
        "16/3 = 6",
        "1,000.50 * 2 = 2,000",
        "20% of 50 = 100",
        "3 + 4 = 7 * 2 = 14",
        "16 eggs - 3 eggs = 12 eggs",
        r"\(5 \times 3 = 16\)",
        r"\frac{16}{4} = 5",
        "3 + 5 = -8",
        "12 = 3 + 5",
    ],
)
def test_wrong_steps(step: str) -> None:
    assert scores(step) == [0.0]


@pytest.mark.parametrize(
    "step",
    [
        "She likes eggs.",
        "x + 3 = 7",
        "2x + 3 = 7 and 3 * x = 12 and 2a + 5 = 9",
        "x = 5",
        "17 + 3 = 20",  # where does 17 come from?
        "<<17+3=20>>20",
        "3 / 0 = 4",
        "9^9^9^9 = 3 and 3^5000 = 1",
        "1 hour = 60 minutes",
        "It is 5:00 + 3 hours = 8:00",
        "= = + 3 ( = ) <<=>> <<3+>> (((( 3 = 4",
        "9 cups = 9 * 8 ounces",
        "__import__('os').system('true') = 3 + open('x')",
    ],
)
def test_steps_that_cannot_be_judged(step: str) -> None:
    assert scores(step) == [0.5]


def test_what_is_known_grows_with_right_equations_alone() -> None:
    assert scores("16 - 3 = 13", "13 - 4 = 9", "9 * 2 = 18") == [1.0, 1.0, 1.0]
    assert scores("16 - 3 = 14", "14 * 5 = 70") == [0.0, 0.5]
    assert scores("14 * 5 = 70", "16 - 3 = 13", "13 + 13 = 26") == [0.5, 1.0, 1.0]
    # A rounded result is known as it was written and exactly.
    assert scores("16/3 = 5.33", "5.33 * 3 = 15.99") == [1.0, 1.0]


def test_state_is_hashable_and_what_was_known_stays_known() -> None:
    checker = EquationChecker()
    before = checker.start(QUESTION)
    after, score = checker.advance(before, "16 + 3 = 19")
    assert score == 1.0
    assert hash(after) != hash(before)
    assert before < after
    assert Fraction(19) in after
    assert {Fraction(6, 5), Fraction(4, 5), Fraction(2, 3), Fraction(3)} < before
    assert checker.is_complete(after)


def test_long_steps_are_read_in_bounded_time() -> None:
    assert scores("(" * 5000 + "3" + "+3" * 5000 + " = 9" * 5000 + "9" * 5000)[0] in (0.0, 0.5)
    for terms in range(40, 80):  # cut anywhere, a sum too long to read is not called wrong
        assert scores("+".join(["3"] * terms) + f" = {3 * terms}")[0] in (0.5, 1.0)


@pytest.mark.parametrize("split", ["test", pytest.param("train", marks=pytest.mark.slow)])
def test_gold_rationales_hold(data_dir: Path, split: str) -> None:
    found: Counter[float] = Counter()
    for line in filter(None, (data_dir / "gsm8k" / f"{split}.jsonl").read_text().split("\n")):
        row = json.loads(line)
        steps = [row["answer"][start:stop] for start, stop in segment(row["answer"], "sentence")]
        found.update(check_steps(EquationChecker(), row["question"], steps))
    shares = {score: round(count / found.total(), 4) for score, count in sorted(found.items())}
    print(f"GSM8K {split}: {found.total()} gold steps, share by score {shares}")
    assert shares[0.0] <= 0.004
    assert shares[1.0] >= 0.88
