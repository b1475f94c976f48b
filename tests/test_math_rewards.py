"""Math: what is read as the answer, gold against itself, perturbed gold, and completions that hang the checker."""

import json
import random
import re
import time
from fractions import Fraction

import pytest
from lockstitch.rewards import math_rewards
from lockstitch.rewards.math_rewards import grade_math, math_reward
from lockstitch.rewards.mathematics.math_worker import is_right
from lockstitch.rewards.mathematics.reading import read_gold


def values(completions, golds):
    """The verdicts, with time enough on a machine that has other things to do."""
    return [verdict.value for verdict in grade_math(completions, golds, timeout=60.0)]


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.mark.parametrize(
    ("gold", "read"),
    [
        (18, "18"),
        (27.0, "27"),
        (2.5, "2.5"),
        ("18", "18"),
        ("16 - 3 = <<16-3=13>>13\n#### 1,013", "1013"),
        (r"We have $x=2$, so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"( 3, \frac{\pi}{2} )"),
        ("She has 3.\nA: 3", "3"),
        ("18 jelly beans", "18"),
        (r"\text{Eve}", "Eve"),
        ("The answer is 5", "5"),
        (None, None),
        ("", None),
        ("  ", None),
        ("no idea at all", None),
        (True, None),
        (float("nan"), None),
        ([3], None),
        (r"\boxed{}", None),
        ("long " * 1000, None),
    ],
)
def test_what_is_read_of_a_gold_answer(gold, read):
    assert read_gold(gold) == read


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        (
            "1/2",
            [r"\frac{1}{2}", "0.5", r"\frac12", r"\dfrac{2}{4}", ".5", "50/100"],
            ["0.51", "2", "1", r"\frac{2}{1}", "0.05"],
        ),
        (
            "18",
            ["18.0", r"\$18", "x=18", r"18\text{ eggs}", "18 jelly beans", "+18", "018", "36/2"],
            ["-18", "181", "1.8", "18, 19", "1 8", "x", r"18^2", "18 million", "18!"],
        ),
        ("1,000", ["1000", r"1{,}000", r"1,\!000", "1000.00"], ["1", "1.000", "1, 000, 0", "100"]),
        ("x^2+2x+1", ["(x+1)^2", "1+2x+x^2"], ["(x-1)^2", "x^2+2x", "(y+1)^2"]),
        ("(1,2]", [r"\left(1, 2\right]"], ["[1,2]", "(1,2)", "(2,1]", "(1,3]"]),
        ("1,2,3", [r"\{3, 2, 1\}", "3,2,1"], ["1,2", "1,2,4"]),
        (r"\text{Evelyn}", ["Evelyn", r"\text{evelyn}"], ["Eve", r"\text{Navin}", "3"]),
        (
            r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
            [r"\begin{pmatrix} 1 \\ \frac{4}{2} \end{pmatrix}"],
            [r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}", "1, 2"],
        ),
    ],
)
def test_equal_in_another_form_and_unequal(gold, right, wrong):
    boxed = [rf"\boxed{{{answer}}}" for answer in [*right, *wrong]]
    assert values(boxed, [gold] * len(boxed)) == [1.0] * len(right) + [0.0] * len(wrong)


def test_no_answer_is_wrong_and_no_gold_is_unknown():
    assert values(["I do not know.", "", r"\boxed{}", r"\boxed{" + "x+" * 600 + "x}"], ["3"] * 4) == [0.0] * 4
    assert values([r"\boxed{3}"] * 4, ["no idea at all", None, "", "{"]) == [None] * 4


def test_plain_numbers_are_compared_as_in_a_worker():
    rng = random.Random(0)
    for _ in range(150):
        digits = rng.randint(1, 15)
        gold = f"{rng.choice(['', '-'])}{rng.randrange(10**digits):0{rng.randint(1, digits)}d}"
        near = str(int(gold) + rng.choice([0, 0, 1, -1, 10 ** rng.randrange(digits)]))
        answer = rng.choice([gold, near, gold.lstrip("-"), "-0", gold[::-1].replace("-", "")])
        right = is_right((gold, answer))
        assert right == (int(gold) == int(answer))
        assert values([f"#### {answer}"], [f"#### {gold}"]) == [float(right)], (gold, answer)


def test_the_reward_has_trls_signature():
    metrics, extras = {}, {}
    arguments = {
        "prompts": ["p"] * 4,
        "completion_ids": [[1]] * 4,
        "trainer_state": None,
        "log_extra": extras.__setitem__,
        "log_metric": metrics.__setitem__,
    }
    texts = [r"\boxed{3}", "#### 4", "none", r"\boxed{1/3}"]
    golds = ["3", "5", "3", None]
    assert math_reward(completions=texts, answer=golds, **arguments) == [1.0, 0.0, 0.0, None]
    assert metrics == {"rewards/math_reward/none": 0.25}
    assert extras["math_answer"] == ["3", "4", "[none]", "1/3"]
    assert extras["math_gold"] == ["3", "5", "3", "[unreadable]"]
    turns = [[{"role": "assistant", "content": text}] for text in texts]
    assert math_reward(completions=turns, solution=golds, **arguments) == [1.0, 0.0, 0.0, None]
    with pytest.raises(ValueError, match=r"'answer' or 'solution'; given: \['gold'\]"):
        math_reward(["p"], ["3"], gold=["3"])


POWER, PRODUCT, NEST = r"9^{9^{9^{9}}}", r"\prod_{i=1}^{99999999} i", "(" * 300 + "1" + ")" * 300


@pytest.mark.parametrize(
    "hang",
    [POWER, pytest.param(PRODUCT, marks=pytest.mark.slow), pytest.param(NEST, marks=pytest.mark.slow)],
    ids=["power", "product", "nest"],
)
def test_an_answer_without_end_costs_its_own_timeout_only(hang):
    others = [rf"\boxed{{{i}/7}}" for i in range(40)]
    values(others[:2], ["1/7"] * 2)
    began = time.monotonic()
    verdicts = grade_math([*others[:20], rf"\boxed{{{hang}}}", *others[20:]], ["5/7"] * 41, timeout=1.5)
    seconds = time.monotonic() - began
    hung = verdicts.pop(20)
    assert (hung.value, hung.reason) == (None, "no verdict within 1.5 s")
    assert [verdict.value for verdict in verdicts] == [float(i == 5) for i in range(40)]
    assert seconds < 3.0


# Gold tables. All forms of a gold answer against the gold answer; then golds with one thing changed.


@pytest.mark.slow
def test_math_train_gold_and_perturbed(data_dir):
    golds = list(dict.fromkeys(row["answer"] for row in rows_of(data_dir / "math_train/train.jsonl")))
    assert len(golds) == 3479
    unread = [gold for gold in golds if read_gold(gold) is None]
    assert unread == ["None", ""]
    golds = [gold for gold in golds if gold not in unread]
    for form in (r"\boxed{{{}}}", "#### {}", "<answer>${}$</answer>"):
        assert values([form.format(gold) for gold in golds], golds) == [1.0] * len(golds)
    changed = random.Random(0).sample([gold for gold in golds if not re.fullmatch(r"-?\d+", gold)], 1000)
    pairs = [(gold, other) for gold in changed for other in perturbed(gold)]
    verdicts = values([rf"\boxed{{{other}}}" for _, other in pairs], [gold for gold, _ in pairs])
    missed = [pair for pair, value in zip(pairs, verdicts, strict=True) if value != 0.0]
    assert [(gold, other) for gold, other in missed if not re.search(r"\^\{?[23]\}?$|-0|two lines", other)] == []


def test_amc_gold(data_dir):
    golds = [row["answer"] for row in rows_of(data_dir / "aime/amc23.jsonl")]
    assert len(golds) == 40
    for form in (r"\boxed{{{}}}", "#### {}", "<answer>{}</answer>", "So it is {}."):
        assert values([form.format(int(gold)) for gold in golds], golds) == [1.0] * 40
        assert values([form.format(int(gold) + 1) for gold in golds], golds) == [0.0] * 40


@pytest.mark.parametrize(("name", "count"), [("test", 1319), pytest.param("train", 7473, marks=pytest.mark.slow)])
def test_gsm8k_gold(data_dir, name, count):
    golds = [row["answer"] for row in rows_of(data_dir / f"gsm8k/{name}.jsonl")]
    assert len(golds) == count
    assert values(golds, golds) == [1.0] * count
    bare = [gold.rpartition("####")[2].strip() for gold in golds]
    boxed = [r"\boxed{" + gold + "}" for gold in bare]
    assert values(boxed, golds) == [1.0] * count
    changed = [f"\\boxed{{{Fraction(gold.replace(',', '')) + 1}}}" for gold in bare]
    assert values(changed, golds) == [0.0] * count


@pytest.mark.slow
def test_math500_gold(data_dir):
    rows = rows_of(data_dir / "math500/test.jsonl")
    golds, solutions = [row["answer"] for row in rows], [row["solution"] for row in rows]
    assert len(rows) == 500
    for form in (r"\boxed{{{}}}", "#### {}", "<answer>\n{}\n</answer>", "<answer>${}$</answer>"):
        assert values([form.format(gold) for gold in golds], golds) == [1.0] * 500
    assert values(solutions, golds) == [1.0] * 500
    assert values(solutions, solutions) == [1.0] * 500


# Units are dropped with their exponents, since people leave them out; and a zero has no sign.
TAKEN_FOR_THE_SAME = {
    "the exponent of a unit": {
        (r"864 \mbox{ inches}^2", r"864 \mbox{ inches}^3"),
        (r"15\mbox{ cm}^2", r"15\mbox{ cm}^3"),
    },
    "zero with a sign": {("0", "-0")},
}


def perturbed(gold):
    """The gold answer with each of its digits in turn one higher, and with a sign changed."""
    for match in re.finditer(r"\d", gold):
        yield gold[: match.start()] + str((int(match[0]) + 1) % 10) + gold[match.end() :]
    if "+" in gold:
        yield gold.replace("+", "-", 1)
    elif "-" in gold:
        yield gold.replace("-", "", 1) if gold.startswith("-") else gold.replace("-", "+", 1)
    else:
        yield "-" + gold


@pytest.mark.slow
def test_math500_perturbed(data_dir):
    golds = [row["answer"] for row in rows_of(data_dir / "math500/test.jsonl")]
    pairs = [(gold, other) for gold in golds for other in perturbed(gold)]
    assert len(pairs) == 1648
    verdicts = values([rf"\boxed{{{other}}}" for _, other in pairs], [gold for gold, _ in pairs])
    missed = [pair for pair, value in zip(pairs, verdicts, strict=True) if value != 0.0]
    assert set(missed) == set().union(*TAKEN_FOR_THE_SAME.values())
    assert len(missed) == 9  # seven golds are 0


@pytest.mark.slow
def test_two_hundred_completions_a_second(data_dir, monkeypatch):
    """The best of three passes over real outputs, once as it is and once with every pair through a worker."""
    rows = rows_of(data_dir / "llada_d1_baselines/gsm8k_256_128.jsonl")
    texts, golds = [row["generations"] for row in rows], [row["ground_truth"] for row in rows]
    values([r"\boxed{x+1}"] * 8, ["x"] * 8)
    verdicts = []
    for shortcut in (math_rewards._on_the_spot, lambda gold, answer: None):
        monkeypatch.setattr(math_rewards, "_on_the_spot", shortcut)
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            verdicts.append(grade_math(texts, golds, timeout=60.0))
            seconds.append(time.perf_counter() - began)
        assert len(rows) / min(seconds) > 200
    assert all(verdict == verdicts[0] for verdict in verdicts)


@pytest.mark.slow
def test_published_correctness_of_real_solutions(data_dir):
    rows = rows_of(data_dir / "gsm8k/example_model_solutions.jsonl")
    for model in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
        published = [float(row[model]["is_correct"]) for row in rows]
        assert values([row[model]["solution"] for row in rows], [row["ground_truth"] for row in rows]) == published
