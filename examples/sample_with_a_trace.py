"""Draws four trajectories of one puzzle, and reads from their traces what was written when, and how surely.

`python examples/sample_with_a_trace.py`
"""

from lockstitch import Denoiser, SamplerConfig, sample

denoiser = Denoiser.from_pretrained("embedded:sudoku")  # or a directory, or a name on the hub
config = SamplerConfig(canvas_length=20, policy="threshold", threshold=0.95, temperature=1.0)

trajectories = sample(denoiser, ["3102\n2000\n0210\n0320\n"], config, n=4, seed=0)
for k, trajectory in enumerate(trajectories):
    print(f"trajectory {k}: {trajectory.text.split()}, {trajectory.ledger.nfe} forward passes")

first = trajectories[0]
for step in range(1, max(first.commit_step) + 1):
    shown = [
        token if since <= step else None for token, since in zip(first.canvas_ids, first.commit_step, strict=True)
    ]
    print(
        f"step {step}:",
        "".join("░" if token is None else denoiser.tokenizer.decode([token]) for token in shown).split(),
    )

unsure = min(range(first.length), key=lambda position: first.confidence[position])
print(f"least sure of position {unsure}: {first.confidence[unsure]:.2f} at step {first.commit_step[unsure]}")
