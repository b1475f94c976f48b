"""A task of one's own in Python: rows, a prompt, what pays, a step; sampled and judged. A few seconds on a CPU.

`python examples/own_task.py`; `lockstitch sample --task examples/own_task.py:task --limit 2 --model embedded:arithmetic`
"""

from lockstitch.rewards.tasks.rows import load_rows
from lockstitch.rewards.tasks.task import Source, Task

from lockstitch import Denoiser, SamplerConfig, sample


def doublings(count, seed):
    """New rows, as many as one asks for."""
    return [{"number": 3 + seed + i, "answer": str(2 * (3 + seed + i))} for i in range(count)]


def read(row):
    """The row's columns by the names that the reward reads."""
    return {**row, "question": f"{row['number']}, *2\n"}


task = Task(
    "doublings",
    rewards=(("math", 1.0),),
    sources={"train": Source(generate=doublings)},
    read=read,
    question=lambda columns: columns["question"],
    unit="line",
    canvas_length=16,
)

if __name__ == "__main__":
    rows = load_rows(task, count=4, conversational=False)
    denoiser = Denoiser.from_pretrained("embedded:arithmetic")
    trajectories = sample(denoiser, [row["prompt"] for row in rows], SamplerConfig(task.canvas_length, steps=8))
    for row, trajectory in zip(rows, trajectories, strict=True):
        answer = task.extract(trajectory.text)
        (verdict,) = task.judge(task.read_row(row), [answer or ""])
        print(f"{row['prompt']!r} -> {trajectory.text!r}: {answer}, {verdict}")
