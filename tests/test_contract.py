"""The calling convention: texts out of completions, rows out of columns, None kept and counted, everything picklable."""

import logging
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from lockstitch.rewards.contract import (
    checked_values,
    combine,
    completion_texts,
    per_sample,
    printable,
    report_none,
    rows_of,
)

from lockstitch.errors import OthersCodeError


@per_sample
def length_reward(completion):
    """How long it is."""
    return len(completion)


def _near(completion, answer, tolerance=0.5, *, prompt):
    if answer is None:
        return None
    return abs(float(completion) - answer) <= tolerance and prompt != "never"


near_reward = per_sample(_near, "near_reward")


def _everything(completion, **row):
    return float(sorted(row) == ["answer", "prompt", "weight"])


def test_texts_of_plain_and_conversational_completions_are_the_same():
    texts = ["one", "", "three\nlines\n"]
    turns = [[{"role": "assistant", "content": text}] for text in texts]
    assert completion_texts(texts) == completion_texts(turns) == texts


def test_of_a_conversation_the_last_message_counts():
    tools = [
        {"role": role, "content": text} for role, text in (("assistant", "call"), ("tool", "5"), ("assistant", "so 5"))
    ]
    bare = [{"role": "assistant", "content": None, "tool_calls": []}]
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]}
    ]
    assert completion_texts([tools, bare, parts, [], [{"role": "assistant"}]]) == ["so 5", "", "ab", "", ""]


def test_rows_hold_the_columns_and_nothing_of_trls():
    columns = {
        "answer": [1, 2], "weight": (0.5, 0.6), "short": [1], "state": object(), "word": "ab",
        "completion_ids": [[1], [2]], "trainer_state": [0, 0], "environments": [None, None],
    }  # fmt: skip
    assert rows_of(columns, 2) == [{"answer": 1, "weight": 0.5}, {"answer": 2, "weight": 0.6}]


def test_per_sample_passes_the_columns_that_the_function_names():
    metrics = {}
    values = near_reward(
        prompts=["a", "never", "a", "a"],
        completions=["1.4", "2", "3", "9"],
        completion_ids=[[1]] * 4,
        answer=[1.0, 2.0, None, 5.0],
        unrelated=["x"] * 4,
        trainer_state=object(),
        log_extra=lambda *_: None,
        log_metric=metrics.__setitem__,
    )
    assert values == [1.0, 0.0, None, 0.0]
    assert [type(value) for value in values] == [float, float, type(None), float]
    assert metrics == {"rewards/near_reward/none": 0.25}


def test_per_sample_passes_all_columns_to_a_function_that_takes_them():
    reward = per_sample(_everything)
    assert reward(
        prompts=["p"] * 2, completions=["a", "b"], answer=[1, 2], weight=[3, 4], completion_ids=[[], []]
    ) == [1, 1]


def test_a_missing_column_is_named_with_those_given():
    with pytest.raises(
        ValueError, match=r"'near_reward' needs the columns \['answer'\]; given: \['prompt', 'solution'\]"
    ):
        near_reward(prompts=["p"], completions=["1"], solution=["1"])
    assert near_reward(prompts=[], completions=[]) == []


@pytest.mark.parametrize(("reward", "name"), [(length_reward, "length_reward"), (near_reward, "near_reward")])
def test_per_sample_rewards_are_pickled_under_their_name(reward, name):
    restored = pickle.loads(pickle.dumps(reward))
    assert restored.__name__ == reward.__name__ == name
    arguments = {"prompts": ["p"] * 2, "completions": ["1", "22"], "answer": [1.0, 21.0]}
    assert restored(**arguments) == reward(**arguments)


def test_none_is_logged_and_counted_even_when_there_is_none(caplog):
    metrics = []
    with caplog.at_level(logging.WARNING):
        report_none("r", [1.0, 0.0], lambda *metric: metrics.append(metric))
        assert not caplog.records
        report_none("r", [None, 0.0, None, 1.0], lambda *metric: metrics.append(metric), "no reason")
        report_none("r", [], lambda *metric: metrics.append(metric))
    assert metrics == [("rewards/r/none", 0.0), ("rewards/r/none", 0.5)]
    assert "r: 2 of 4 completions not scored (no reason)" in caplog.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("naïve π = 3.14 | 'x' \\n", "naïve π = 3.14 | 'x' \\n"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\nb\r\tc\u2028", r"a\nb\r\tc\u2028"),
        ("\u202eevil\u200b\ud800", r"\u202eevil\u200b\ud800"),
    ],
)
def test_what_others_wrote_is_escaped(text, shown, caplog):
    assert printable(text) == shown
    shown.encode()  # as whatever writes it does
    report_none("my_reward", [None], None, text)
    assert caplog.messages == [f"my_reward: 1 of 1 completions not scored ({shown})"]


@pytest.mark.parametrize(
    "values",
    [
        (1, None, math.nan, True),
        np.array([1, math.nan, np.nan, 1], dtype=np.float16),
        [np.float32(1), None, np.nan, np.True_],
        torch.tensor([1, math.nan, math.nan, 1]),
        [Fraction(1), None, torch.tensor(math.nan), 1.0],
    ],
)
def test_values_of_a_reward_are_floats_and_none(values):
    assert checked_values("mine", values, 4) == [1.0, None, None, 1.0]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1.0], r"returned \[1.0\] for 2 completions; a list of 2 numbers is needed"),
        ("12", "returned '12' for 2 completions"),
        ({1.0: 0, 2.0: 0}, r"returned \{1.0: 0, 2.0: 0\} for 2 completions"),
        ({1.0, 2.0}, "for 2 completions; a list"),
        (np.float64(1), "for 2 completions; a list"),
        (np.array(1.0), "for 2 completions; a list"),
        (np.zeros((3, 30)), r"returned array\(\[\[0., 0., [^\n]*\.\.\. for 2 completions"),
        ([1.0, "1"], "returned '1' for a completion; a finite number is needed, or None"),
        ([1.0, b"1"], "returned b'1' for a completion"),
        ([1.0, [1.0]], r"returned \[1.0\] for a completion"),
        ([1.0, -math.inf], "returned -inf for a completion"),
        ([1.0, 10**5000], "returned int for a completion"),
        ([1.0, torch.zeros(2)], "returned tensor.* for a completion"),
    ],
)
def test_what_else_a_reward_returns_is_named(values, says):
    with pytest.raises(OthersCodeError, match=f"^reward 'mine' {says}" if says.startswith("ret") else says) as raised:
        checked_values("mine", values, 2)
    assert "\n" not in str(raised.value)


def test_rewards_combine_as_in_trl():
    rewards = [[1.0, 0.0, None, None], [0.5, None, 0.25, None], [-2.0, 3.0, None, None]]
    weights = [1.0, 2.0, 0.5]
    # GRPOTrainer: NaN for None, weighted, summed with nansum; a row of NaN only stays unscored.
    table = np.array([[np.nan if v is None else v for v in reward] for reward in rewards]).T
    sums = np.nansum(table * weights, axis=1)
    expected = [None if np.isnan(row).all() else float(s) for row, s in zip(table, sums, strict=True)]
    assert combine(rewards, weights) == expected
    assert combine([[1.0, None]]) == [1.0, None]
    with pytest.raises(ValueError, match="2 weights for 1 rewards"):
        combine([[1.0]], [1.0, 2.0])
