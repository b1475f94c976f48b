"""Supervised training on one's own rows of prompts and completions; the loss before and after. Half a minute on a CPU.

`python examples/supervised.py`
"""

from datasets import Dataset

from lockstitch import Denoiser, DiffusionSFTConfig, DiffusionSFTTrainer, SamplerConfig, sample

rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(10, 90) for b in range(1, 10)]
data = Dataset.from_list(rows).train_test_split(test_size=64, seed=0)

trainer = DiffusionSFTTrainer(
    "embedded:arithmetic-early",
    DiffusionSFTConfig(
        "runs/supervised",
        canvas_length=8,  # completions are padded to it with the end token, as the sampler's canvas will be
        learning_rate=1e-3,
        per_device_train_batch_size=32,
        max_steps=60,
        logging_steps=20,
        report_to="none",
    ),
    train_dataset=data["train"],
    eval_dataset=data["test"],
)
before = trainer.evaluate()["eval_loss"]
trainer.train()
print(f"loss on held-out rows: {before:.2f} before, {trainer.evaluate()['eval_loss']:.2f} after")
trainer.save_model()

denoiser = Denoiser.from_pretrained("runs/supervised")
for trajectory in sample(
    denoiser, [row["prompt"] for row in data["test"].select(range(4))], SamplerConfig(canvas_length=8)
):
    print(repr(trajectory.text))
