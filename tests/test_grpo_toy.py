"""A toy whose best policy is known: two arms, pulled four times; one pays, the other costs. Every recipe's pair finds it."""

import pytest
import torch
from grpo_runs import make_trainer
from lockstitch.sampling.denoiser import Denoiser, make_bidirectional
from test_grpo import PAIRS
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

WORDS = ["<pad>", "<eos>", "<mask>", "x", "good", "bad"]
PULLS = 4
SETTINGS = {"max_steps": 40, "num_iterations": 2, "per_device_train_batch_size": 16, "num_generations": 16, "steps": 4,
            "max_completion_length": PULLS, "seed": 0}  # fmt: skip


def bandit():
    """A small random model that knows six words."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="x"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", mask_token="<mask>"
    )
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
        initializer_range=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Denoiser(make_bidirectional(LlamaForCausalLM(config)), tokenizer)


def pay(completion_ids, **columns):
    """In [-1, 1]: 1 is the best policy's."""
    return [(ids.count(WORDS.index("good")) - ids.count(WORDS.index("bad"))) / PULLS for ids in completion_ids]


def rewards_of(settings, tmp_path):
    settings = {**SETTINGS, **settings}
    if "block_length" in settings:
        settings["block_length"] //= 2 if settings["block_length"] > 1 else 1
    trainer = make_trainer(settings, tmp_path, denoiser=bandit(), rewards=pay, prompts=["x"] * 8)
    trainer.train()
    return trainer.state.log_history


@pytest.mark.parametrize("name", PAIRS)
def test_every_pair_finds_the_arm_that_pays(name, tmp_path):
    settings = PAIRS[name] | ({"steps": PULLS} if PAIRS[name].get("steps") else {})
    if name == "forkgrpo":
        settings["threshold"] = 0.95  # there is nothing to learn from what is sure
    rewards = [entry["reward"] for entry in rewards_of(settings, tmp_path) if "reward" in entry]
    assert rewards[0] < 0.2
    # What makes a position likelier to be next makes the others' tokens less likely, right as they may be: that is slower.
    assert sum(rewards[-4:]) / 4 > (0.6 if name == "mask_aware" else 0.8)


def test_ratios_of_a_bound_are_noisier_by_token(tmp_path):
    """The same bound, masks and learning rate: by token a few ratios outweigh the rest as the policy moves."""
    sizes = []
    for loss in ({}, {"policy_loss": "sequence"}):
        log = rewards_of(
            {"estimator": "elbo", "max_steps": 8, "num_iterations": 8, "learning_rate": 1e-2, **loss}, tmp_path
        )
        sizes.append([entry["ratio/effective_sample_size"] for entry in log if "ratio/spread" in entry])
    by_token, by_sequence = sizes
    assert by_token[0] == by_sequence[0] == 1.0
    assert sum(by_token[1:]) < 0.8 * sum(by_sequence[1:])
