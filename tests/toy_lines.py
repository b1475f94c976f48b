"""A task and a denoiser so small that every completion can be counted: two lines of two digits, each 1 or 2."""

import itertools
from types import SimpleNamespace

import torch
from lockstitch.rewards.steps import SOUND
from lockstitch.rewards.tasks.task import Task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from models import random_denoiser, tokenizer

TOK = tokenizer()
ONE, TWO, BREAK = (TOK(text, add_special_tokens=False)["input_ids"][0] for text in ("1", "2", "\n"))
LENGTH = 6  # 1 1 \n 1 1 \n
# Left to right, one token a step: then every canvas has the probability that its chain of digits has.
CONFIG = SamplerConfig(canvas_length=LENGTH, block_length=1, temperature=1.0, batch_size=4096)
START, AFTER_ONE, AFTER_TWO = 0.5, 0.2, 0.7  # probability of a 1: first, after a 1, after a 2


class Chain(torch.nn.Module):
    """Digits are drawn given the digit before them, on the canvas as it stands; line breaks are certain."""

    def __init__(self) -> None:
        super().__init__()
        inner = random_denoiser()
        self.config, self.generation_config = inner.model.config, inner.model.generation_config
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=None, logits_to_keep=None):
        B, L = input_ids.shape
        logits = torch.full((B, L, self.config.vocab_size), -30.0)
        first = L - LENGTH
        for j in range(LENGTH):
            if j % 3 == 2:
                logits[:, first + j, BREAK] = 0.0
                continue
            before = input_ids[:, first + j - (2 if j % 3 == 0 else 1)] if j else torch.zeros(B, dtype=torch.long)
            one = torch.full((B,), START)
            one = torch.where(before == ONE, AFTER_ONE, torch.where(before == TWO, AFTER_TWO, one))
            logits[:, first + j, ONE], logits[:, first + j, TWO] = one.log(), (1 - one).log()
        kept = logits if logits_to_keep is None or isinstance(logits_to_keep, int) else logits[:, logits_to_keep]
        return SimpleNamespace(logits=kept)


def denoiser() -> Denoiser:
    """The model of the chain."""
    from lockstitch.sampling.remote import Calling

    return Denoiser(Chain(), TOK, calling=Calling(honours_mask=True, keeps_columns=False, keeps_keys=False))


class Anything:
    """Finds every step sound."""

    def start(self, question):
        return ()

    def advance(self, state, step):
        return (*state, step), SOUND

    def is_complete(self, state):
        return len(state) == 2


def is_right(text: str) -> bool:
    """Whether the digits of both lines add up to an even number."""
    return sum(map(int, text.replace("\n", ""))) % 2 == 0


def even(prompts, completions, **columns):
    """The reward of it."""
    return [float(is_right(text.strip())) if text.strip() else 0.0 for text in completions]


TASK = Task(
    "lines",
    rewards=((even, 1.0),),
    plain=lambda question: question + "\n",
    extract=lambda text: text.strip() or None,
    unit="line",
    checker=Anything(),
    conclude="\n".join,
    canvas_length=LENGTH,
)


def chance(prefix: str) -> float:
    """The exact probability that a completion of these digits is right, by enumeration."""
    total = right = 0.0
    for rest in itertools.product("12", repeat=4 - len(prefix)):
        digits = prefix + "".join(rest)
        p = 1.0
        for i, digit in enumerate(digits):
            if i >= len(prefix):
                one = START if i == 0 else AFTER_ONE if digits[i - 1] == "1" else AFTER_TWO
                p *= one if digit == "1" else 1 - one
        total += p
        right += p * is_right(digits)
    assert abs(total - 1) < 1e-9
    return right
