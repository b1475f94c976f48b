"""Stitches the best steps of eight trajectories into one answer, beside the majority's, and says what each cost.

`python examples/stitch_in_python.py`
"""

from lockstitch.rewards.tasks.named import get_task
from lockstitch.stitching.methods import Compare, StitchSettings
from lockstitch.stitching.pipeline import Sample
from lockstitch.stitching.score import load_scorer

from lockstitch import Denoiser, SamplerConfig

N = 8
task = get_task("countdown")
denoiser = Denoiser.from_pretrained("embedded:countdown")
config = SamplerConfig(canvas_length=task.canvas_length, steps=6, temperature=0.7)
scorer = load_scorer("calculator", task)  # exact: it checks every equation

draw = Sample(task, scorer, N, denoiser, config)
compare = Compare(task, scorer, StitchSettings(N, rule="path", delta=0.9, rounds=True), None, denoiser, config)

questions = ["30,100,93=23", "47,58,55=66"]
batch = compare(draw({"question": questions, "seed": [0, 1]}))
for question, compared in zip(questions, batch["compared"], strict=True):
    print(question)
    for name in ("majority_vote", "stitched"):
        outcome = compared.outcomes[name]
        right = task.is_correct(question, None, outcome.answer or "")
        print(f"  {name}: {outcome.answer}, {'right' if right else 'wrong'}, {outcome.ledger.nfe} forward passes")
    print("  chain:", [clue.step.text for clue in compared.evidence.chain])
