"""Format rewards against the regular expressions and formulas that define them, and time that grows with the text only."""

import pickle
import random
import re
import time

import pytest
from lockstitch.rewards.format_rewards import (
    boxed_answer_reward,
    integer_reward,
    length_penalty,
    repetition_penalty,
    soft_format_reward,
    strict_format_reward,
    xml_count_reward,
)

REWARDS = [xml_count_reward, soft_format_reward, strict_format_reward, integer_reward, boxed_answer_reward]
PIECES = [
    "<reasoning>",
    "</reasoning>",
    "<answer>",
    "</answer>",
    "\n",
    "\n",
    "\n",
    " ",
    "5",
    "17",
    "x",
    "\\boxed{5}",
    "²",
]
WELL_FORMED = "<reasoning>\nwhy\n</reasoning>\n<answer>\n42\n</answer>\n"


def soups(count, seed=0):
    """Texts of tags and white space in all orders, well-formed ones with something changed among them."""
    rng = random.Random(seed)
    for _ in range(count):
        if rng.random() < 0.5:
            yield "".join(rng.choices(PIECES, k=rng.randint(0, 14)))
        else:
            parts = re.split(r"(\n)", WELL_FORMED)
            for _ in range(rng.randint(0, 3)):
                parts.insert(rng.randrange(len(parts) + 1), rng.choice(PIECES))
                if rng.random() < 0.5:
                    del parts[rng.randrange(len(parts))]
            yield "".join(parts)


def strict_oracle(text):
    return 0.5 * bool(re.match(r"^<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\n$", text, re.DOTALL))


def soft_oracle(text):
    return 0.5 * bool(re.match(r"<reasoning>.*?</reasoning>\s*<answer>.*?</answer>", text, re.DOTALL))


def integer_oracle(text):
    return 0.5 * text.split("<answer>")[-1].split("</answer>")[0].strip().isdigit()


def xml_oracle(text):
    once = [text.count(tag) == 1 for tag in ("<reasoning>\n", "\n</reasoning>\n", "\n<answer>\n", "\n</answer>")]
    after = len(text.split("\n</answer>\n")[-1]) if once[2] else 0
    after += len(text.split("\n</answer>")[-1]) - 1 if once[3] else 0
    return sum(once) / 8 - after / 1000


@pytest.mark.parametrize(
    ("reward", "oracle"),
    [
        (strict_format_reward, strict_oracle),
        (soft_format_reward, soft_oracle),
        (integer_reward, integer_oracle),
        (xml_count_reward, xml_oracle),
    ],
)
def test_tag_rewards_are_what_defines_them(reward, oracle):
    texts = list(soups(3000))
    expected = [oracle(text) for text in texts]
    assert reward([""] * len(texts), texts) == pytest.approx(expected, abs=1e-12)
    assert len(set(expected)) > 1  # the soup holds both


def test_a_well_formed_completion_earns_all_of_it():
    given = {"prompts": [""], "completions": [WELL_FORMED], "answer": ["42"], "trainer_state": None}
    assert strict_format_reward(**given) == soft_format_reward(**given) == integer_reward(**given) == [0.5]
    assert xml_count_reward(**given) == [0.5]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"<answer>\boxed{5}</answer>", 1.0),
        ("<answer>5</answer>", 0.75),
        (r"so \boxed{5}", 0.5),
        ("so 5", 0.25),
        (r"\boxed{5}<answer>5</answer>", 0.75),
        (r"<answer>5</answer>\boxed{5}", 0.75),
    ],
)
def test_boxes_and_blocks(text, value):
    assert boxed_answer_reward([""], [text]) == [value]


@pytest.mark.parametrize("reward", REWARDS, ids=lambda reward: reward.__name__)
def test_conversations_score_as_their_texts_and_nothing_as_nothing(reward):
    texts = list(soups(50, seed=1))
    turns = [[{"role": "assistant", "content": text}] for text in texts]
    assert reward([""] * 50, texts) == reward([""] * 50, turns)
    assert reward([], []) == []
    assert pickle.loads(pickle.dumps(reward)) is reward


@pytest.mark.parametrize("reward", REWARDS, ids=lambda reward: reward.__name__)
@pytest.mark.parametrize(
    "text",
    [
        "<reasoning>" + "</reasoning><answer>" * 50_000,
        "<reasoning>\n" + "\n</reasoning>\n<answer>\n" * 40_000,
        "<reasoning>" + "</reasoning>" + " \n" * 500_000,
        "<answer>" * 100_000,
        "\n</answer>\n" * 100_000,
    ],
    ids=range(5),
)
def test_long_texts_take_no_time(reward, text):
    began = time.process_time()
    reward([""], [text])
    assert time.process_time() - began < 0.5


def test_length_penalty_by_its_formula():
    penalty = length_penalty(100, 20)
    ids = [[1] * length for length in (0, 80, 85, 90, 100, 101, 500)]
    assert penalty([""] * 7, [""] * 7, completion_ids=ids) == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0, -1.0]
    words = length_penalty(4, 2, "words")
    assert words([""] * 4, ["a b", "a b\nc ", "a b c d", "a b c d e"]) == [0.0, -0.5, -1.0, -1.0]
    assert length_penalty(3, 0, "characters")([""] * 2, ["abc", "abcd"]) == [0.0, -1.0]


def test_repetition_penalty_by_its_formula():
    penalty = repetition_penalty(2)
    ids = [[1, 2, 3, 4], [5, 5, 5, 5, 5], [1], [], [1, 2, 1, 2]]
    expected = [0.0, -0.75, 0.0, 0.0, -1 / 3]
    assert penalty([""] * 5, [""] * 5, completion_ids=ids) == pytest.approx(expected)
    texts = [" ".join(map(str, row)) for row in ids]
    assert repetition_penalty(2, -1.0, "words")([""] * 5, texts) == pytest.approx(expected)
    assert repetition_penalty(1, -2.0, "characters")([""], ["aab"]) == pytest.approx([-2 / 3])


def test_penalties_are_trls():
    from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment

    rng = random.Random(0)
    ids = [[rng.randrange(6) for _ in range(rng.randrange(60))] for _ in range(300)]
    given = {"prompts": [""] * 300, "completions": [""] * 300, "completion_ids": ids}
    for size, weight in ((1, -1.0), (3, -0.5)):
        assert repetition_penalty(size, weight)(**given) == get_repetition_penalty_reward(size, weight)(**given)
    for longest, soft in ((40, 10), (20, 20), (30, 0)):
        assert length_penalty(longest, soft)(**given) == get_soft_overlong_punishment(longest, soft)(**given)


@pytest.mark.parametrize("reward", [length_penalty(9, 3, "words"), repetition_penalty(2, -0.5, "words")])
def test_penalties_are_pickled_with_their_settings(reward):
    restored = pickle.loads(pickle.dumps(reward))
    texts = ["a b c a b c", "a b c d e f g h"]
    assert restored.__name__ == reward.__name__
    assert restored([""] * 2, texts) == reward([""] * 2, texts) != [0.0, 0.0]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: length_penalty(10, 11), "soft=11 is not from 0 to longest=10"),
        (lambda: length_penalty(10, 1, "pages"), "unit 'pages' is not one of tokens, words, characters"),
        (lambda: repetition_penalty(0), "ngram_size=0"),
        (lambda: repetition_penalty(2, 1.0), "max_penalty=1.0 is positive"),
        (lambda: length_penalty(10, 1)([""], ["a"]), "given no completion_ids"),
    ],
)
def test_meaningless_settings_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
