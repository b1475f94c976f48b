"""Stock TRL: a two-step GRPOTrainer run on a tiny random model with our rewards, unchanged."""

import pytest

pytestmark = pytest.mark.slow

TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("conversational", [False, True], ids=["texts", "conversations"])
def test_grpo_trains_with_our_rewards(tmp_path, conversational):
    import torch
    from datasets import Dataset
    from lockstitch.rewards.contract import combine
    from lockstitch.rewards.format_rewards import repetition_penalty, xml_count_reward
    from lockstitch.rewards.math_rewards import math_reward
    from models import tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    torch.manual_seed(0)
    tok = tokenizer()
    tok.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tok),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
        bos_token_id=None,
        initializer_range=0.5,
    )
    model = LlamaForCausalLM(config)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    texts = [f"{i}+{i}=" for i in range(8)]
    golds = [None if i < 4 else str(2 * i) for i in range(8)]
    prompts = [[{"role": "user", "content": text}] for text in texts] if conversational else texts
    seen = []

    def spying(prompts, completions, **columns):
        """Keeps what TRL passes, and pays nothing."""
        seen.append((completions, columns))
        return [None] * len(completions)

    repetition = repetition_penalty(1, unit="characters")
    weights = [2.0, 1.0, 0.5, 1.0]
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=[math_reward, xml_count_reward, repetition, spying],
        args=GRPOConfig(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=8,
            learning_rate=1e-2,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            reward_weights=weights,
            save_strategy="no",
            seed=0,
            bf16=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts, "answer": golds}),
        processing_class=tok,
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(logs) == len(seen) == 2
    assert any((old != new).any() for old, new in zip(before, model.parameters(), strict=True))
    assert 0.0 < sum(log["rewards/math_reward/none"] for log in logs) < 2.0
    for log, (completions, columns) in zip(logs, seen, strict=True):
        given = {name: value for name, value in columns.items() if name not in ("log_extra", "log_metric")}
        rewards = [
            reward(prompts=completions, completions=completions, **given)
            for reward in (math_reward, xml_count_reward, repetition)
        ]
        # What the trainer logged is what the rewards say of the same completions.
        none = sum(value is None for value in rewards[0])
        assert log["rewards/math_reward/none"] == pytest.approx(none / 8)
        for name, values in zip(("math_reward", "xml_count_reward", "repetition_penalty"), rewards, strict=True):
            known = [value for value in values if value is not None]
            assert log[f"rewards/{name}/mean"] == (pytest.approx(sum(known) / len(known)) if known else None)
        total = [value for value in combine(rewards, weights[:3]) if value is not None]
        assert log["reward"] == pytest.approx(sum(total) / len(total), abs=1e-5)
