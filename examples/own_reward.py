"""Reinforcement learning on prompts and a reward of one's own, in the form of TRL's GRPO example. Half a minute on a CPU.

`python examples/own_reward.py`
"""

from itertools import permutations

from datasets import Dataset

from lockstitch import DiffusionGRPOConfig, DiffusionGRPOTrainer

puzzle = "3102\n2000\n0210\n0320\n"
renamings = [dict(zip("1234", order, strict=True)) for order in permutations("1234")]
rows = [{"prompt": "".join(names.get(c, c) for c in puzzle), "wanted": "1234"} for names in renamings]


def whole_rows(completions, wanted, **columns):
    """The share of four lines that hold every digit. A list in, a list out; columns of the data come by their names."""
    texts = zip(completions, wanted, strict=True)
    return [sum(sorted(line) == list(digits) for line in text.split()) / 4 for text, digits in texts]


trainer = DiffusionGRPOTrainer(
    model="embedded:sudoku-early",
    reward_funcs=whole_rows,
    args=DiffusionGRPOConfig(
        output_dir="runs/own_reward",
        max_completion_length=20,
        steps=10,
        num_generations=8,
        per_device_train_batch_size=32,
        learning_rate=1e-4,
        max_steps=24,
        logging_steps=6,
        report_to="none",
    ),
    train_dataset=Dataset.from_list(rows),
)
trainer.train()
print("rewards:", [round(entry["reward"], 2) for entry in trainer.state.log_history if "reward" in entry])
