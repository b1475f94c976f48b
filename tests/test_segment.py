"""Segmentation: what a step is and is not, and spans that always are spans of the text."""

import itertools
import json
import random
from pathlib import Path

import pytest
from lockstitch.stitching.segment import segment, steps_of, token_spans
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


def pieces(text: str, unit: str = "sentence") -> list[str]:
    return [text[start:stop] for start, stop in segment(text, unit)]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("She has 5 eggs. She eats 3.", ["She has 5 eggs.", "She eats 3."]),
        ("It costs 3.5 each. Two cost 7.0!", ["It costs 3.5 each.", "Two cost 7.0!"]),
        ("1. Count the eggs.\n2. Eat 3.", ["1. Count the eggs.", "2. Eat 3."]),
        ("1.\nCount.\n  12) Eat 3 of 4.", ["Count.", "12) Eat 3 of 4."]),
        ("Mr. Smith and Mrs. Lee pay $1,000.50. Fine?", ["Mr. Smith and Mrs. Lee pay $1,000.50.", "Fine?"]),
        (
            "He ran at 5 p.m. and won. It was 6 p.m. Then he left.",
            ["He ran at 5 p.m. and won.", "It was 6 p.m.", "Then he left."],
        ),
        ("So 1.5*2 = <<1.5*2=3>>3. Done, i.e. over.", ["So 1.5*2 = <<1.5*2=3>>3.", "Done, i.e. over."]),
        ("Then <<1. + 2.=3>>3 eggs", ["Then <<1. + 2.=3>>3 eggs"]),
        (r"Then \(a. b = 3\) holds. Yes.", [r"Then \(a. b = 3\) holds.", "Yes."]),
        (
            "<reasoning>\nOne egg. Two eggs.\n</reasoning>\n<answer>\nIt is 2. Sure.\n</answer>",
            ["One egg.", "Two eggs."],
        ),
        ("<reasoning>One egg.</reasoning><answer>\\boxed{18}<|eot_id|><|endoftext|>", ["One egg."]),
        ("- One egg.\n* Two eggs.\n  • Three.\n### Four", ["One egg.", "Two eggs.", "Three.", "Four"]),
        ("One egg\n\n\\[\n3 + 4 = 7\n\\]\r\n---\n", ["One egg", "3 + 4 = 7"]),
        ("One egg.\n#### 19", ["One egg."]),
        ("One egg.\nA: 19", ["One egg."]),
        ("One egg.\n$\\boxed{\\frac{1}{2}}$.\nSo it is \\boxed{3}.", ["One egg.", "So it is \\boxed{3}."]),
        ('She said "Go." He went.', ['She said "Go."', "He went."]),
        ("3 < 5 and 7 > 2. So.", ["3 < 5 and 7 > 2.", "So."]),
        ("", []),
        (" \n ... \n", []),
    ],
)
def test_sentences(text: str, steps: list[str]) -> None:
    assert pieces(text) == steps


def test_lines() -> None:
    code = "def f(x):\n    if x > 1.5:\n\n        return x. y\n#### 3"
    assert pieces(code, "line") == ["def f(x):", "if x > 1.5:", "return x. y"]
    assert pieces(" 93+ 30=123\n123-100= 23\n####  ( 93+ 30)-100", "line") == ["93+ 30=123", "123-100= 23"]
    assert pieces("<answer>\nx = 1\n</answer>\ny = 2", "line") == ["y = 2"]


def test_rows() -> None:
    assert pieces("1234\n 3 4 1 2 \n215\n21435\nrow 4321\n4321\n####\n", "row") == ["1234", "3 4 1 2", "4321"]


def test_another_unit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"paragraph.*sentence, line, row"):
        segment("a", "paragraph")


@pytest.mark.parametrize("unit", ["sentence", "line", "row"])
def test_spans_are_ordered_disjoint_and_stripped(unit: str) -> None:
    rng = random.Random(0)
    parts = ["One egg", ". ", "\n", "1. ", "3.5", "<<1.5=2>>", "\\(", "\\)", "<answer>", "</answer>", "<think>", "- ",
             "#### 3", "A: 4", "1234", " ", "!", "\\boxed{", "}", "Mr.", "é\u2028", "\r\n", "\t", "**"]  # fmt: skip
    for _ in range(3000):
        text = "".join(rng.choices(parts, k=rng.randrange(1, 14)))
        last = 0
        for step in steps_of(text, unit, 2):
            start, stop = step.characters
            assert last <= start < stop <= len(text)
            assert step.text == text[start:stop] == text[start:stop].strip()
            last = stop


def test_records_have_their_places() -> None:
    first, second = steps_of("One egg. Two.", "sentence", 3, [(0, 4), (4, 8), (8, 9), (9, 13), (13, 13)])
    assert (first.trajectory, first.index, first.characters, first.tokens) == (3, 0, (0, 8), (0, 2))
    assert (second.trajectory, second.index, second.characters, second.tokens) == (3, 1, (9, 13), (3, 4))
    assert steps_of("One egg.", "sentence", 0)[0].tokens is None
    with pytest.raises(ValueError, match="no token holds"):
        steps_of("One egg. Two.", "sentence", 0, [(0, 8)])


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["One egg. Two eggs. She eats three eggs 1 2 3", "café"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


@pytest.mark.parametrize("text", ["One egg. Two eggs.", "café ÷ 😀🎉 × 3 日本 é", "é"])
def test_token_spans_follow_the_bytes(byte_level: PreTrainedTokenizerFast, text: str) -> None:
    eos = byte_level.eos_token_id
    ids = [*byte_level(text)["input_ids"], eos, eos]
    # The oracle: every token's bytes, and the character that each byte of the text belongs to.
    owner = [i for i, character in enumerate(text) for _ in character.encode()]
    expected, at = [], 0
    for token in byte_level.convert_ids_to_tokens(ids[:-2]):
        expected.append((owner[at], owner[at + len(token) - 1] + 1))  # byte-level BPE writes a character a byte
        at += len(token)
    assert token_spans(byte_level, ids) == [*expected, (len(text), len(text)), (len(text), len(text))]


def test_token_spans_cover_what_random_tokens_decode_to(byte_level: PreTrainedTokenizerFast) -> None:
    rng = random.Random(1)
    for _ in range(200):
        ids = [rng.randrange(len(byte_level)) for _ in range(12)]
        text, spans = byte_level.decode(ids, skip_special_tokens=True), token_spans(byte_level, ids)
        assert set().union(*(range(a, b) for a, b in spans)) == set(range(len(text)))
        assert all(a <= c and b <= d for (a, b), (c, d) in itertools.pairwise(spans))


def test_real_completions(data_dir: Path) -> None:
    lines = (data_dir / "gsm8k" / "test.jsonl").read_text().split("\n")
    for line in filter(None, lines):
        answer = json.loads(line)["answer"]
        steps = pieces(answer)
        assert steps
        assert not any(step.startswith("####") or step.count("<<") != step.count(">>") for step in steps)


def test_an_answer_that_ends_a_line_of_sentences_is_no_step():
    text = "12+7=19. 19-4=15. A: 15"
    assert [text[a:b] for a, b in segment(text, "sentence")] == ["12+7=19.", "19-4=15."]
